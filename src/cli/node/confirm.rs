//! `natpunch confirm`: the person who made a change is still there.

use std::process::ExitCode;

use serde::Serialize;

use super::agents::agent_of;
use crate::cli::args::ConfirmArgs;
use crate::cli::{CliError, json};
use crate::control::{Client, Request, runtime_dir};

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Confirmed<'a> {
    /// Whose agent it is.
    interface: &'a str,
    /// The version that stays.
    revision: &'a str,
}

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
    let confirmed = Confirmed {
        interface: &interface,
        revision,
    };
    let words = format_args!("revision {revision} of {interface} stays");
    json::tell(args.json, &confirmed, words)?;
    Ok(ExitCode::SUCCESS)
}
