//! `natpunch why PEER`: why a peer's path is what it is.

mod view;

use std::io::Write as _;
use std::process::ExitCode;

use serde::Deserialize as _;

use super::agents::agent_of;
use crate::cli::args::WhyArgs;
use crate::cli::{CliError, json};
use crate::control::{Client, Request, runtime_dir};

use view::{View, render};

/// Asks the agent and prints its answer.
///
/// # Errors
/// No agent runs here, or it has no such peer.
pub(in crate::cli) fn run(args: &WhyArgs) -> Result<ExitCode, CliError> {
    let directory = runtime_dir();
    let interface = agent_of(&directory, args.interface.as_deref())?;
    let peer = args.peer.clone();
    let answer = Client::connect(&directory, &interface)?.ask(Request::Why { peer })?;
    let text = if args.json {
        json::object(&answer)?
    } else {
        let view = View::deserialize(answer).map_err(|error| {
            CliError::new(format!("the agent speaks another version of natpunch: {error}"))
                .help("restart the agent, tunnels stay up meanwhile; `why --json` shows its answer as it is")
        })?;
        render(&view, args.verbose)
    };
    anstream::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
