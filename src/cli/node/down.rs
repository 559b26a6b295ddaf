//! `natpunch down`: take a mesh off this host, and nothing else.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use natpunch_wg::Removed;
use serde::Serialize;

use crate::agent::AgentError;
use crate::agent::rollout::journal::Journal;
use crate::agent::services::hosts;
use crate::cli::args::DownArgs;
use crate::cli::{CliError, json};
use crate::control::{self, Client, ControlError, Request};

/// How long an agent may take to stop.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Down<'a> {
    /// The mesh that was up.
    mesh: &'a str,
    /// Its interface.
    interface: &'a str,
    /// What was taken off the host.
    removed: &'a Removed,
}

/// Stops the agent, if one runs, and removes the interface with its addresses, routes and device
/// process.
///
/// # Errors
/// There is nothing of ours to remove, or it can't be removed.
pub(in crate::cli) fn run(args: &DownArgs) -> Result<ExitCode, CliError> {
    let directory = control::runtime_dir();
    let mut interfaces = natpunch_wg::managed(&directory);
    if let Some(name) = &args.interface {
        // The name of the mesh does, too, unless an interface has it.
        let is_interface = interfaces.iter().any(|interface| interface.name == *name);
        interfaces.retain(|interface| match is_interface {
            true => interface.name == *name,
            false => interface.owner == *name,
        });
    }
    let interface = match interfaces.as_slice() {
        [one] => one,
        [] => {
            // Another user's runtime directory can't be looked into, so nothing is known.
            let looked = std::fs::read_dir(&directory);
            if matches!(looked, Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied)
            {
                return Err(CliError::new(format!(
                    "may not look into {}, so what is up is not known",
                    directory.display()
                ))
                .help("run this as root, or as the user that runs the agent"));
            }
            let which = args
                .interface
                .as_ref()
                .map(|name| format!(" with the interface or the mesh {name}"))
                .unwrap_or_default();
            return Err(
                CliError::new(format!("no mesh is up on this host{which}")).help(format!(
                    "natpunch looked in {}; it removes only what it made",
                    directory.display()
                )),
            );
        }
        several => {
            let names: Vec<_> = several
                .iter()
                .map(|interface| interface.name.as_str())
                .collect();
            return Err(
                CliError::new(format!("several meshes are up: {}", names.join(", ")))
                    .help("say which one: `natpunch down --interface NAME`"),
            );
        }
    };
    stop_agent(&directory, &interface.name)?;
    let removed = natpunch_wg::down(&interface.name, &interface.owner, &directory)
        .map_err(AgentError::from)?;
    natpunch_forwarder::stop(&directory, &interface.name);
    let file = hosts::path();
    if let Err(error) = hosts::apply(&file, &interface.name, &[]) {
        // The mesh is down all the same.
        let _ = writeln!(
            anstream::stderr(),
            "warning: can't take the peers' names out of {}: {error}",
            file.display()
        );
    }
    Journal::new(&control::state_dir(), &interface.name).remove();
    let down = Down {
        mesh: &interface.owner,
        interface: &interface.name,
        removed: &removed,
    };
    let words = format_args!("mesh {} is down: {removed}", interface.owner);
    json::tell(args.json, &down, words)?;
    Ok(ExitCode::SUCCESS)
}

/// Its supervisor, if it has one, would start it again.
fn end_it(pid: i32) -> String {
    format!(
        "end it with `systemctl kill -s KILL natpunch && systemctl stop natpunch`, or \
         `kill -9 {pid}` where no unit runs it; then run `natpunch down` again"
    )
}

fn stop_agent(directory: &std::path::Path, interface: &str) -> Result<(), CliError> {
    let mut client = match Client::connect(directory, interface) {
        Ok(client) => client,
        Err(ControlError::NotRunning { .. }) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    match client.ask(Request::Stop) {
        // An agent that ends closes the connection, now and then before its answer was written.
        Ok(_) | Err(ControlError::Io { .. }) => {}
        Err(error @ ControlError::Hung { pid, .. }) => {
            return Err(CliError::new(error.to_string()).help(end_it(pid)));
        }
        Err(error) => return Err(error.into()),
    }
    let deadline = Instant::now() + STOP_DEADLINE;
    while control::running(directory)
        .iter()
        .any(|name| name == interface)
    {
        if Instant::now() > deadline {
            return Err(CliError::new(format!(
                "the agent of {interface} (process {}) does not stop",
                client.pid()
            ))
            .help(end_it(client.pid())));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
