//! `natpunch reload`: look for a new version of the mesh now.

use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;

use super::agents::{agent_of, agent_with};
use crate::cli::args::ReloadArgs;
use crate::cli::{CliError, json};
use crate::control::{Client, Request};

/// Longer than any look at a source takes.
const PATIENCE: Duration = Duration::from_secs(150);

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Reloaded<'a> {
    /// Whose agent it is.
    interface: &'a str,
    /// The version that it has loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<&'a str>,
}

/// Asks the agent and waits for its verdict.
///
/// # Errors
/// No agent runs here, or the newest version can't be had or used; then the mesh stays as it was.
pub(in crate::cli) fn run(args: &ReloadArgs) -> Result<ExitCode, CliError> {
    let directory = crate::control::runtime_dir();
    let interface = match args.pid {
        Some(process) => agent_with(&directory, process)?,
        None => agent_of(&directory, args.interface.as_deref())?,
    };
    let mut client = Client::connect(&directory, &interface)?;
    client.set_patience(PATIENCE)?;
    let answer = client.ask(Request::Reload)?;
    let revision = answer.get("revision").and_then(serde_json::Value::as_str);
    let reloaded = Reloaded {
        interface: &interface,
        revision,
    };
    let words = format_args!("{interface}: the newest version is loaded");
    json::tell(args.json, &reloaded, words)?;
    Ok(ExitCode::SUCCESS)
}
