//! `natpunch why PEER`: why a peer's path is what it is; `natpunch why A B`: as both of them see it.

mod there;
mod view;

use std::io::Write as _;
use std::process::ExitCode;

use serde::Deserialize as _;
use serde_json::Value;

use super::agents::agent_of;
use crate::agent::PeerView;
use crate::cli::args::WhyArgs;
use crate::cli::{CliError, json};
use crate::control::{Client, ControlError, Request, runtime_dir};

use view::{View, render};

/// Asks the agent, and it the peer, and prints the answers.
///
/// # Errors
/// No agent runs here, or it has no such peer; of two names none is this node's.
pub(in crate::cli) fn run(args: &WhyArgs) -> Result<ExitCode, CliError> {
    let directory = runtime_dir();
    let interface = agent_of(&directory, args.interface.as_deref())?;
    let mut agent = Client::connect(&directory, &interface)?;
    let asked = match args.peers.as_slice() {
        [peer] => (peer, false),
        [one, other] => (there::other_than_own(&mut agent, one, other)?, true),
        // clap lets no other number pass.
        _ => return Err(CliError::new("name one peer, or two")),
    };
    let (peer, both) = (asked.0.clone(), asked.1);
    let here = agent.ask(Request::Why { peer: peer.clone() })?;
    let there = both.then(|| match agent.ask(Request::WhyThere { peer }) {
        Ok(view) => Ok(Ok(view)),
        // The half of this node is worth showing alone.
        Err(ControlError::Refused(reason)) => Ok(Err(reason)),
        Err(error) => Err(error),
    });
    let there = there.transpose()?;
    let text = match (args.json, there) {
        (true, None) => json::object(&here)?,
        (true, Some(there)) => json::object(&there::halves(here, there))?,
        (false, there) => shown(here, there, args.verbose)?,
    };
    anstream::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// One screen, or two of them.
fn shown(
    here: Value,
    there: Option<Result<Value, String>>,
    verbose: bool,
) -> Result<String, CliError> {
    let other_version =
        |error: serde_json::Error| {
            CliError::new(format!("the agent speaks another version of natpunch: {error}")).help(
            "restart the agent, tunnels stay up meanwhile; `why --json` shows its answer as it is",
        )
        };
    let here = View::deserialize(here).map_err(other_version)?;
    let mut text = render(&here, verbose);
    if let Some(there) = there {
        let view = there.map(PeerView::deserialize);
        let view = match view {
            Ok(view) => Ok(view.map_err(other_version)?),
            Err(reason) => Err(reason),
        };
        text.push_str(&there::render(here.peer_name(), &here.node, &view));
    }
    Ok(text)
}
