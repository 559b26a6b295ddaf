//! `natpunch status`: what the agent of this host knows of its peers; where none answers, what the
//! WireGuard device knows.

mod check;
mod lines;
#[cfg(test)]
pub(super) mod sample;
pub(in crate::cli) mod select;
mod table;
mod tunnels;
pub(super) mod view;

use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use serde::Deserialize as _;
use serde_json::Value;

use super::agents::agent_of;
use crate::agent::Waiting;
use crate::cli::args::StatusArgs;
use crate::cli::exit::{Exit, Verdict};
use crate::cli::{CliError, json};
use crate::control::{Client, ControlError, Request, runtime_dir, state_dir};

use check::Judgement;
use table::Shown;
use tunnels::Tunnels;
pub(super) use view::duration;
use view::{Counts, Peer, View};

/// How often `--watch` asks.
const INTERVAL: Duration = Duration::from_secs(1);

/// Prints the status, once or every second, or judges it.
///
/// # Errors
/// No agent runs here, or it has no such peer.
pub(in crate::cli) fn run(args: &StatusArgs) -> Result<ExitCode, CliError> {
    let directory = runtime_dir();
    let named = args.interface.as_deref();
    // One whose agent is gone is found by what that left.
    let interface =
        agent_of(&directory, named).or_else(|error| tunnels::made(&directory, named).ok_or(error));
    if args.check {
        let Judgement { verdict, text } = judge(&directory, interface, args);
        print(&text)?;
        return Ok(verdict.into());
    }
    let mut link = Link::to(&directory, &interface?);
    let mut is_away = false;
    loop {
        let (shown, code) = match link.ask() {
            Ok(status) => {
                is_away = false;
                (show(status, args)?, ExitCode::SUCCESS)
            }
            Err(error @ (ControlError::Refused(_) | ControlError::Denied { .. })) => {
                return Err(error.into());
            }
            Err(error) => {
                let first = !std::mem::replace(&mut is_away, true);
                let shown = without_agent(&link.interface, &error, args, first)?;
                if !args.watch {
                    print(&shown)?;
                    return Err(error.into());
                }
                (shown, Exit::Failure.into())
            }
        };
        if print(&shown).is_err() || !args.watch {
            return Ok(code);
        }
        std::thread::sleep(INTERVAL);
    }
}

fn print(text: &str) -> std::io::Result<()> {
    let mut out = anstream::stdout();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// A connection to an agent that may end, and come again.
pub(super) struct Link<'a> {
    directory: &'a Path,
    interface: String,
    client: Option<Client>,
}

impl<'a> Link<'a> {
    pub(super) fn to(directory: &'a Path, interface: &str) -> Self {
        Self {
            directory,
            interface: interface.to_owned(),
            client: None,
        }
    }

    /// Asks for the status; connects if need be.
    pub(super) fn ask(&mut self) -> Result<Value, ControlError> {
        let mut client = match self.client.take() {
            Some(client) => client,
            None => Client::connect(self.directory, &self.interface)?,
        };
        let answer = client.ask(Request::Status)?;
        self.client = Some(client);
        Ok(answer)
    }
}

/// The agent's answer as it was asked for.
fn show(mut status: Value, args: &StatusArgs) -> Result<String, CliError> {
    let all = select(&mut status, args)?;
    if args.json {
        return match args.watch {
            true => json::line(&status),
            false => json::object(&status),
        };
    }
    let text = match Waiting::deserialize(&status) {
        Ok(waiting) => without_mesh(&waiting),
        Err(_) => {
            let shown = match (&args.peer, args.filter.as_slice()) {
                (Some(_), _) => Shown::One,
                (None, []) => Shown::All,
                (None, _) => Shown::Some(all),
            };
            table::render(&read(status)?, shown)
        }
    };
    Ok(on_screen(text, args))
}

/// What is left to say while no agent answers; with `--watch` in a file, once.
fn without_agent(
    interface: &str,
    error: &ControlError,
    args: &StatusArgs,
    first: bool,
) -> Result<String, CliError> {
    let mut tunnels = Tunnels::read(&state_dir(), interface, &error.to_string());
    if let Some((tunnels, name)) = tunnels.as_mut().zip(args.peer.as_deref()) {
        tunnels.keep(name);
    }
    if args.json {
        return match (tunnels, args.watch) {
            (None, _) => Ok(String::new()),
            (Some(tunnels), true) => json::line(&tunnels),
            (Some(tunnels), false) => json::object(&tunnels),
        };
    }
    let mut text = tunnels.as_ref().map(tunnels::render).unwrap_or_default();
    if !args.watch {
        return Ok(text);
    }
    text.push_str(&format!("{interface}: waiting for the agent\n"));
    let is_new = first || std::io::stdout().is_terminal();
    Ok(if is_new {
        on_screen(text, args)
    } else {
        String::new()
    })
}

/// Home and clear only on a terminal; a log file gets one table after the other.
fn on_screen(text: String, args: &StatusArgs) -> String {
    match args.watch && std::io::stdout().is_terminal() {
        true => format!("\x1b[H\x1b[J{text}"),
        false => text,
    }
}

/// Reads the agent's answer.
///
/// # Errors
/// It is of another version.
pub(super) fn read(status: Value) -> Result<View, CliError> {
    View::deserialize(status).map_err(|error| {
        CliError::new(format!(
            "the agent speaks another version of natpunch: {error}"
        ))
        .help(
            "restart the agent, tunnels stay up meanwhile; `status --json` shows its answer as it \
             is",
        )
    })
}

fn judge(directory: &Path, interface: Result<String, CliError>, args: &StatusArgs) -> Judgement {
    let interface = match interface {
        Ok(interface) => interface,
        Err(error) => {
            // Nothing is known of what this user may not look at.
            let nobody = std::fs::read_dir(directory).is_ok()
                && crate::control::running(directory).is_empty();
            let verdict = if nobody {
                Verdict::Critical
            } else {
                Verdict::Unknown
            };
            return Judgement::without_status(verdict, &error.to_string());
        }
    };
    let mut status = match Link::to(directory, &interface).ask() {
        Ok(status) => status,
        Err(error @ (ControlError::Denied { .. } | ControlError::Refused(_))) => {
            return Judgement::without_status(Verdict::Unknown, &error.to_string());
        }
        Err(error) => {
            let tunnels = Tunnels::read(&state_dir(), &interface, "");
            let up = tunnels.map(|tunnels| format!("; {}", tunnels.summary()));
            let text = format!("{error}{}", up.unwrap_or_default());
            return Judgement::without_status(Verdict::Critical, &text);
        }
    };
    if let Ok(waiting) = Waiting::deserialize(&status) {
        let text = format!("no mesh yet: {}", waiting.problem);
        return Judgement::without_status(Verdict::Critical, &text);
    }
    match select(&mut status, args).and_then(|_| read(status)) {
        Ok(view) => check::judge(&view),
        Err(error) => Judgement::without_status(Verdict::Unknown, &error.to_string()),
    }
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

/// Leaves the peers that were asked for, in the order that was asked for, and counts all of them.
fn select(status: &mut Value, args: &StatusArgs) -> Result<Counts, CliError> {
    let Some(peers) = status.get_mut("peers").and_then(Value::as_array_mut) else {
        return Ok(Counts::default());
    };
    if let Some(name) = &args.peer {
        keep_peer(peers, name)?;
        return Ok(Counts::default());
    }
    // What an agent of another version says is shown as it comes.
    let read = |value: &Value| Peer::deserialize(value).ok();
    let Some(known) = peers.iter().map(read).collect::<Option<Vec<Peer>>>() else {
        return Ok(Counts::default());
    };
    let all = Counts::of(&known);
    let is_wanted =
        |peer: &Peer| args.filter.is_empty() || args.filter.iter().any(|filter| filter.is_of(peer));
    let mut wanted: Vec<(Peer, Value)> = known.into_iter().zip(std::mem::take(peers)).collect();
    wanted.retain(|(peer, _)| is_wanted(peer));
    wanted.sort_by(|(a, _), (b, _)| args.sort.order(a, b));
    *peers = wanted.into_iter().map(|(_, value)| value).collect();
    Ok(all)
}

/// Leaves only the peer with this name.
fn keep_peer(peers: &mut Vec<Value>, name: &str) -> Result<(), CliError> {
    let names: Vec<String> = peers
        .iter()
        .filter_map(|peer| peer.get("name")?.as_str().map(str::to_owned))
        .collect();
    peers.retain(|peer| peer.get("name").and_then(Value::as_str) == Some(name));
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
