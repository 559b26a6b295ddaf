//! `natpunch status`: what the agent of this host knows of its peers.

mod view;

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use serde::Deserialize as _;

use super::agents::agent_of;
use crate::agent::Waiting;
use crate::cli::CliError;
use crate::cli::args::StatusArgs;
use crate::control::{Client, ControlError, Request, runtime_dir};

pub(super) use view::duration;
use view::{View, render};

/// How often `--watch` asks.
const INTERVAL: Duration = Duration::from_secs(1);

/// Prints the status, once or every second.
///
/// # Errors
/// No agent runs here, or it has no such peer.
pub(in crate::cli) fn run(args: &StatusArgs) -> Result<ExitCode, CliError> {
    let directory = runtime_dir();
    let interface = agent_of(&directory, args.interface.as_deref())?;
    let mut client = Some(Client::connect(&directory, &interface)?);
    let mut is_away = false;
    loop {
        let answer = match &mut client {
            Some(client) => client.ask(Request::Status),
            None => Client::connect(&directory, &interface).and_then(|mut new| {
                let answer = new.ask(Request::Status);
                client = Some(new);
                answer
            }),
        };
        let shown = match answer {
            Ok(status) => {
                is_away = false;
                show(status, args)?
            }
            // An agent that restarts leaves the tunnels up, and is back in a moment.
            Err(ControlError::NotRunning { .. } | ControlError::Io { .. }) if args.watch => {
                client = None;
                let first = !std::mem::replace(&mut is_away, true);
                match first && !args.json {
                    true => format!("{interface}: the agent does not answer; waiting for it\n"),
                    false => String::new(),
                }
            }
            Err(error) => return Err(error.into()),
        };
        let mut out = anstream::stdout();
        let written = out.write_all(shown.as_bytes()).and_then(|()| out.flush());
        if written.is_err() || !args.watch {
            return Ok(ExitCode::SUCCESS);
        }
        std::thread::sleep(INTERVAL);
    }
}

/// The agent's answer as it was asked for.
fn show(mut status: serde_json::Value, args: &StatusArgs) -> Result<String, CliError> {
    if let Some(name) = &args.peer {
        keep_peer(&mut status, name)?;
    }
    if args.json {
        let text = match args.watch {
            true => serde_json::to_string(&status),
            false => serde_json::to_string_pretty(&status),
        };
        let mut text = text.map_err(|error| CliError::new(error.to_string()))?;
        text.push('\n');
        return Ok(text);
    }
    let text = match Waiting::deserialize(&status) {
        Ok(waiting) => without_mesh(&waiting),
        Err(_) => {
            let view = View::deserialize(status).map_err(|error| {
                CliError::new(format!(
                    "the agent speaks another version of natpunch: {error}"
                ))
                .help(
                    "restart the agent, tunnels stay up meanwhile; `status --json` shows its \
                     answer as it is",
                )
            })?;
            render(&view, args.peer.is_some())
        }
    };
    // Home and clear only on a terminal; a log file gets one table after the other.
    Ok(match args.watch && std::io::stdout().is_terminal() {
        true => format!("\x1b[H\x1b[J{text}"),
        false => text,
    })
}

fn without_mesh(waiting: &Waiting) -> String {
    let Waiting {
        waiting_for,
        problem,
        help,
        retry_in_s,
        pid,
    } = waiting;
    let mut text = format!(
        "no mesh yet: the agent (process {pid}) waits for {waiting_for}\n{problem}; next try in {}\n",
        duration(*retry_in_s)
    );
    if let Some(help) = help {
        text.push_str(&format!("help: {help}\n"));
    }
    text
}

/// Leaves only the peer with this name in the answer.
fn keep_peer(status: &mut serde_json::Value, name: &str) -> Result<(), CliError> {
    let Some(peers) = status
        .get_mut("peers")
        .and_then(serde_json::Value::as_array_mut)
    else {
        return Ok(());
    };
    let names: Vec<String> = peers
        .iter()
        .filter_map(|peer| peer.get("name")?.as_str().map(str::to_owned))
        .collect();
    peers.retain(|peer| peer.get("name").and_then(serde_json::Value::as_str) == Some(name));
    if !peers.is_empty() {
        return Ok(());
    }
    let error = CliError::new(format!("this mesh has no peer {name:?}"));
    let nearest = names
        .iter()
        .max_by(|a, b| strsim::jaro_winkler(a, name).total_cmp(&strsim::jaro_winkler(b, name)));
    Err(match nearest {
        Some(nearest) => error.help(format!("did you mean {nearest:?}?")),
        None => error,
    })
}
