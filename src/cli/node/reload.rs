//! `natpunch reload`: look for a new version of the mesh now.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use super::agents::agent_of;
use crate::cli::CliError;
use crate::cli::args::ReloadArgs;
use crate::control::{Client, Request};

/// Longer than any look at a source takes.
const PATIENCE: Duration = Duration::from_secs(150);

/// Asks the agent and waits for its verdict.
///
/// # Errors
/// No agent runs here, or the newest version can't be had or used; then the mesh stays as it was.
pub(in crate::cli) fn run(args: &ReloadArgs) -> Result<ExitCode, CliError> {
    let directory = crate::control::runtime_dir();
    let interface = agent_of(&directory, args.interface.as_deref())?;
    let mut client = Client::connect(&directory, &interface)?;
    client.set_patience(PATIENCE)?;
    client.ask(Request::Reload)?;
    writeln!(
        anstream::stdout(),
        "{interface}: the newest version is loaded"
    )?;
    Ok(ExitCode::SUCCESS)
}
