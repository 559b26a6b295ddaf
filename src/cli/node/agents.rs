//! What `apply`, `plan`, `status` and `down` share: errors of the agent as this command line prints
//! them, and which agent is meant.

use std::path::Path;

use crate::agent::AgentError;
use crate::cli::CliError;
use crate::control::{self, ControlError};
use crate::source::SourceError;

impl From<AgentError> for CliError {
    fn from(error: AgentError) -> Self {
        let help = error.help();
        match (error, help) {
            (AgentError::Config(errors), _) => errors.into(),
            (error, Some(help)) => Self::new(error.to_string()).help(help),
            (error, None) => Self::new(error.to_string()),
        }
    }
}

impl From<SourceError> for CliError {
    fn from(error: SourceError) -> Self {
        let message = Self::new(error.to_string());
        match error.hint() {
            Some(hint) => message.help(hint),
            None => message,
        }
    }
}

impl From<ControlError> for CliError {
    fn from(error: ControlError) -> Self {
        let message = Self::new(error.to_string());
        match error {
            ControlError::NotRunning { .. } => message.help("start it: `natpunch apply mesh.toml`"),
            ControlError::Denied { .. } => {
                message.help("run this as root, or as the user that runs the agent")
            }
            ControlError::Io { .. } | ControlError::Refused(_) => message,
        }
    }
}

/// The interface whose agent is meant: the one named, or the only one that runs.
pub(super) fn agent_of(directory: &Path, named: Option<&str>) -> Result<String, CliError> {
    if let Some(name) = named {
        return Ok(name.to_owned());
    }
    match control::running(directory).as_slice() {
        [one] => Ok(one.clone()),
        [] => Err(CliError::new(format!(
            "no natpunch agent answers in {}",
            directory.display()
        ))
        .help(
            "run this as the agent's user (root), or start an agent: `natpunch apply mesh.toml`",
        )),
        several => Err(
            CliError::new(format!("several meshes are up: {}", several.join(", ")))
                .help("say which one with `--interface NAME`"),
        ),
    }
}
