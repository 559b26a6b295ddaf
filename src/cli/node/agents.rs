//! What the commands about an agent share: the errors of the agent as this command line prints them,
//! and which agent is meant.

use std::io;
use std::path::Path;

use crate::agent::AgentError;
use crate::cli::CliError;
use crate::control::{self, Client, ControlError, Request};
use crate::source::SourceError;

impl From<AgentError> for CliError {
    fn from(error: AgentError) -> Self {
        match error {
            AgentError::Config(errors) => errors.into(),
            error => Self::of(&error),
        }
    }
}

impl From<SourceError> for CliError {
    fn from(error: SourceError) -> Self {
        Self::of(&error)
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
            ControlError::Hung { pid, .. } => message.help(format!(
                "it hangs: `kill -9 {pid}` ends it, and tunnels stay up; its unit starts it again"
            )),
            ControlError::Io { .. } | ControlError::Refused(_) => message,
        }
    }
}

/// An agent that runs on this host.
struct Running {
    interface: String,
    /// `None`: it has none yet, or does not answer.
    mesh: Option<String>,
}

impl Running {
    fn list(directory: &Path) -> Vec<Self> {
        let with_mesh = |interface: String| {
            let mesh = mesh_of(directory, &interface);
            Self { interface, mesh }
        };
        let names = control::running(directory).into_iter();
        names.map(with_mesh).collect()
    }

    fn shown(&self) -> String {
        match &self.mesh {
            Some(mesh) => format!("{} (mesh {mesh})", self.interface),
            None => self.interface.clone(),
        }
    }
}

fn mesh_of(directory: &Path, interface: &str) -> Option<String> {
    let mut client = Client::connect(directory, interface).ok()?;
    let status = client.ask(Request::Status).ok()?;
    Some(status.get("mesh")?.as_str()?.to_owned())
}

/// The interface whose agent is meant: the one that has this name or whose mesh has it, or the only
/// one that runs.
///
/// # Errors
/// No agent is meant by it, or more than one; or this user may not know which ones run.
pub(super) fn agent_of(directory: &Path, named: Option<&str>) -> Result<String, CliError> {
    match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(ControlError::Denied {
                path: directory.to_owned(),
            }
            .into());
        }
        // A directory that is not there holds no agents.
        _ => {}
    }
    let names = control::running(directory);
    if let Some(name) = named.filter(|name| names.iter().any(|running| running == name)) {
        return Ok(name.to_owned());
    }
    let Some(name) = named else {
        return match names.as_slice() {
            [one] => Ok(one.clone()),
            [] => Err(none_runs(directory)),
            _ => Err(CliError::new(format!(
                "several meshes are up: {}",
                shown(&Running::list(directory))
            ))
            .help("say which one with `--interface NAME`: the interface's name or the mesh's")),
        };
    };
    if names.is_empty() {
        return Err(none_runs(directory));
    }
    let running = Running::list(directory);
    let mut of_mesh = running
        .iter()
        .filter(|agent| agent.mesh.as_deref() == Some(name));
    match (of_mesh.next(), of_mesh.next()) {
        (Some(agent), None) => Ok(agent.interface.clone()),
        (Some(_), Some(_)) => Err(CliError::new(format!(
            "several interfaces are of the mesh {name}"
        ))
        .help(format!("name the interface: {}", shown(&running)))),
        (None, _) => Err(CliError::new(format!(
            "no agent here has an interface or a mesh that is called {name}"
        ))
        .help(format!("what runs: {}", shown(&running)))),
    }
}

/// The interface whose agent is this process. A waiting agent has a name in place of one.
///
/// # Errors
/// No agent here is this process.
pub(super) fn agent_with(directory: &Path, process: i32) -> Result<String, CliError> {
    let is_it = |name: &String| {
        Client::connect(directory, name).is_ok_and(|client| client.pid() == process)
    };
    control::running(directory)
        .into_iter()
        .find(is_it)
        .ok_or_else(|| {
            CliError::new(format!(
                "process {process} is no natpunch agent that answers in {}",
                directory.display()
            ))
            .help("leave --pid out, or name the interface: `natpunch reload -i NAME`")
        })
}

fn shown(running: &[Running]) -> String {
    let shown: Vec<String> = running.iter().map(Running::shown).collect();
    shown.join(", ")
}

fn none_runs(directory: &Path) -> CliError {
    CliError::new(format!(
        "no natpunch agent answers in {}",
        directory.display()
    ))
    .help("run this as the agent's user (root), or start an agent: `natpunch apply mesh.toml`")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{Reply, Server};

    /// An agent that says of its mesh only the name.
    async fn agent(directory: &Path, interface: &str, mesh: &str) -> Server {
        let (calls_in, mut calls) = tokio::sync::mpsc::channel(4);
        let path = control::socket_path(directory, interface);
        let status = serde_json::json!({ "mesh": mesh });
        tokio::spawn(async move {
            while let Some(control::Call { answer, .. }) = calls.recv().await {
                let _ = answer.send(Reply::Ok(status.clone()));
            }
        });
        Server::listen(&path, None, calls_in).await.unwrap()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_agent_is_found_by_its_interface_or_its_mesh_and_else_the_ones_that_run_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_owned();
        let of = |named: Option<&'static str>| {
            let path = path.clone();
            tokio::task::spawn_blocking(move || {
                agent_of(&path, named).map_err(|error| format!("{error:?}"))
            })
        };
        assert!(
            of(Some("home"))
                .await
                .unwrap()
                .unwrap_err()
                .contains("no natpunch agent answers")
        );
        let _home = agent(&path, "wg-home", "home").await;
        assert_eq!(of(None).await.unwrap().unwrap(), "wg-home");
        assert_eq!(of(Some("wg-home")).await.unwrap().unwrap(), "wg-home");
        assert_eq!(of(Some("home")).await.unwrap().unwrap(), "wg-home");
        let _work = agent(&path, "wg0", "work").await;
        let own = i32::try_from(std::process::id()).unwrap();
        let with = |process| {
            let path = path.clone();
            tokio::task::spawn_blocking(move || {
                agent_with(&path, process).map_err(|error| format!("{error:?}"))
            })
        };
        assert_eq!(
            with(own).await.unwrap().unwrap(),
            "wg-home",
            "of two the first"
        );
        let error = with(1).await.unwrap().unwrap_err();
        assert!(error.contains("process 1 is no natpunch agent"), "{error}");
        assert_eq!(of(Some("work")).await.unwrap().unwrap(), "wg0");
        for wrong in [None, Some("lab")] {
            let error = of(wrong).await.unwrap().unwrap_err();
            assert!(
                error.contains("wg-home (mesh home)") && error.contains("wg0 (mesh work)"),
                "{error}"
            );
        }
    }
}
