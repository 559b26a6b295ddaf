//! `natpunch serve`.

use std::io::Write as _;
use std::process::ExitCode;

use super::args::{ServeArgs, ServeCommand, ServeStatusArgs};
use super::{CliError, json};
use crate::control::{Client, ControlError, Request};
use crate::server::status::{Event, Status, Store};
use crate::server::{self, ServeError};

/// Serves until SIGTERM or SIGINT, or asks a server that does.
pub fn run(args: &ServeArgs) -> Result<ExitCode, CliError> {
    if let Some(ServeCommand::Status(args)) = &args.command {
        return status(args);
    }
    server::run(args, &mut std::io::stdout())?;
    Ok(ExitCode::SUCCESS)
}

impl From<ServeError> for CliError {
    fn from(error: ServeError) -> Self {
        match error {
            ServeError::Key(errors) => errors.into(),
            error => Self::of(&error),
        }
    }
}

fn status(args: &ServeStatusArgs) -> Result<ExitCode, CliError> {
    let answer = connect(args)
        .and_then(|mut client| client.ask(Request::Status))
        .map_err(|error| match error {
            ControlError::NotRunning { path } => {
                CliError::new(format!("no natpunch server answers at {}", path.display()))
                    .help("start it: `natpunch serve`; `control` in its settings names its socket, and --control here")
            }
            ControlError::Denied { path } => CliError::new(format!("may not open {}", path.display()))
                .help("run this as root, or as the user that runs the server"),
            error => error.into(),
        })?;
    let text = if args.json {
        json::object(&answer)?
    } else {
        let status: Status = serde_json::from_value(answer).map_err(|error| {
            CliError::new(format!(
                "the server speaks another version of this: {error}"
            ))
        })?;
        render(&status)
    };
    // The reader may have closed the pipe early, as `head` does.
    let _ = anstream::stdout().write_all(text.as_bytes());
    Ok(ExitCode::SUCCESS)
}

/// Connects to the socket that is named, or to the first one where a server answers.
fn connect(args: &ServeStatusArgs) -> Result<Client, ControlError> {
    if let Some(path) = &args.control {
        return Client::connect_to(path.clone());
    }
    let mut paths = server::control_paths();
    // Root may ask a server that a user runs; others can't open these.
    let users = std::fs::read_dir("/run/user")
        .into_iter()
        .flatten()
        .flatten();
    paths.extend(users.map(|user| user.path().join("natpunch-serve/serve.sock")));
    let mut first_error = None;
    for path in paths {
        match Client::connect_to(path) {
            Ok(client) => return Ok(client),
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    Err(first_error.unwrap_or(ControlError::NotRunning {
        path: "/run/natpunch-serve".into(),
    }))
}

fn render(status: &Status) -> String {
    let mut lines = vec![format!(
        "natpunch {} up {}, {} workers, {} MiB of memory",
        status.version,
        duration(status.uptime_seconds),
        status.workers,
        status.resident_bytes >> 20
    )];
    lines.extend(status.listen.iter().map(|address| format!("udp {address}")));
    lines.extend(
        status
            .alternate_port
            .map(|port| format!("alternate port {port}")),
    );
    if let Some(rendezvous) = &status.rendezvous {
        lines.push(format!(
            "{} of {} sessions, {} of {} mailboxes, at most {} MiB",
            rendezvous.sessions,
            rendezvous.max_sessions,
            rendezvous.mailboxes,
            rendezvous.max_mailboxes,
            rendezvous.max_memory_bytes >> 20
        ));
        if rendezvous.max_relays > 0 {
            let (relays, most, allocations) = (
                rendezvous.relays,
                rendezvous.max_relays,
                rendezvous.allocations,
            );
            lines.push(format!(
                "{relays} of {most} pairs want a relay, {allocations} have one"
            ));
        }
    }
    if let Some(relay) = &status.relay {
        lines.push(format!(
            "relay ports {}-{}, at most {} MB/s a pair and {} MB/s in all",
            relay.first_port,
            relay.last_port,
            relay.bytes_per_second / 1_000_000,
            relay.total_bytes_per_second / 1_000_000
        ));
        lines.extend(caps_that_bite(status));
    }
    if status.streams > 0 {
        lines.push(format!("{} clients by TLS", status.streams));
    }
    if let Some(http) = &status.http {
        let (kib, most) = (http.bytes >> 10, http.max_bytes >> 10);
        lines.push(format!(
            "{} of {} records, {kib} of {most} KiB",
            http.records, http.max_records
        ));
    }
    lines.extend(status.store.iter().map(store));
    if status.handshakes_waiting > 0 {
        lines.push(format!("{} handshakes wait", status.handshakes_waiting));
    }
    if !status.stuck.is_empty() {
        lines.push(format!(
            "STUCK, restart the server: {}",
            status.stuck.join(", ")
        ));
    }
    lines.extend(
        status
            .reloads
            .problem
            .iter()
            .map(|problem| format!("the settings have an error: {problem}")),
    );
    if !status.reloads.needs_restart.is_empty() {
        lines.push(format!(
            "not changed without a restart: {}",
            status.reloads.needs_restart.join(", ")
        ));
    }
    let events = status.events.iter().filter(|event| event.total > 0);
    lines.extend(events.map(|event| {
        format!(
            "{:>12} {}: {}",
            event.total,
            event.protocol,
            event.event.replace('_', " ")
        )
    }));
    lines.join("\n") + "\n"
}

fn store(store: &Store) -> String {
    let Store {
        server, waiting, ..
    } = store;
    let time = duration(store.seconds);
    match (&store.problem, store.connected) {
        (None, true) => {
            let milliseconds = store.delay_microseconds as f64 / 1_000.0;
            format!(
                "store {server} for {time}, answers in {milliseconds:.1} ms, {waiting} mailboxes \
                 wait"
            )
        }
        (Some(problem), true) => format!("STORE {server} REFUSES: {problem}"),
        (None, false) => format!("store {server}: not connected yet"),
        (Some(problem), false) => format!("STORE {server} GONE for {time}: {problem}"),
    }
}

/// Which of the relay's limits have made it drop something, and the key that sets each.
fn caps_that_bite(status: &Status) -> impl Iterator<Item = String> {
    const CAPS: [(&str, &str, &str); 3] = [
        (
            "dropped_at_a_pairs_rate",
            "a pair's rate",
            "relay_bytes_per_second",
        ),
        (
            "dropped_at_a_pairs_bytes_of_the_hour",
            "a pair's bytes of the hour",
            "relay_bytes_per_hour",
        ),
        (
            "dropped_at_the_rate_of_all_pairs",
            "the rate of all pairs",
            "relay_total_bytes_per_second",
        ),
    ];
    let total = |name: &str| {
        let of_relay = |event: &&Event| event.protocol == "relay" && event.event == name;
        status
            .events
            .iter()
            .find(of_relay)
            .map_or(0, |event| event.total)
    };
    CAPS.map(|(event, what, key)| (total(event), what, key))
        .into_iter()
        .filter(|(total, ..)| *total > 0)
        .map(|(total, what, key)| {
            format!("the relay dropped {total} packets at {what}; {key} sets it")
        })
}

fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min", seconds / 60),
        3_600..86_400 => format!("{} h {} min", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{} days", seconds / 86_400),
    }
}
