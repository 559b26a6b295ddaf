//! `natpunch confirm`: the person who made a change is still there.

use std::io::Write as _;
use std::process::ExitCode;

use super::agents::agent_of;
use crate::cli::CliError;
use crate::cli::args::ConfirmArgs;
use crate::control::{Client, Request, runtime_dir};

/// Confirms the change under way.
///
/// # Errors
/// No agent runs here, or no change waits.
pub(in crate::cli) fn run(args: &ConfirmArgs) -> Result<ExitCode, CliError> {
    let directory = runtime_dir();
    let interface = agent_of(&directory, args.interface.as_deref())?;
    let answer = Client::connect(&directory, &interface)?.ask(Request::Confirm)?;
    let revision = answer
        .get("revision")
        .and_then(serde_json::Value::as_str)
        .unwrap_or_default();
    writeln!(
        anstream::stdout(),
        "revision {revision} of {interface} stays"
    )?;
    Ok(ExitCode::SUCCESS)
}
