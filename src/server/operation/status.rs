//! What a running server says of itself: to `natpunch serve status`, and to Prometheus. No keys, no
//! clients' addresses.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::exposition::Exposition;
use crate::server::counters::Count;

/// What the server says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The version of natpunch.
    pub version: String,
    /// Since its start.
    pub uptime_seconds: u64,
    /// Where it listens for UDP.
    pub listen: Vec<SocketAddr>,
    /// Its second port.
    pub alternate_port: Option<u16>,
    /// Threads that serve UDP.
    pub workers: usize,
    /// Threads, of these and of the relay, that have shown no sign of life for ten seconds.
    pub stuck: Vec<String>,
    /// Handshakes that wait for their turn.
    pub handshakes_waiting: usize,
    /// Bytes of memory that it has.
    pub resident_bytes: u64,
    /// natpunch's own rendezvous, if it is spoken.
    pub rendezvous: Option<Rendezvous>,
    /// The relay, if there is one.
    #[serde(default)]
    pub relay: Option<Relay>,
    /// Clients that no UDP reaches, by TLS or from a reverse proxy.
    #[serde(default)]
    pub streams: usize,
    /// The record store, if it is offered.
    pub http: Option<Records>,
    /// The store that it shares with other processes, if there is one.
    #[serde(default)]
    pub store: Option<Store>,
    /// What happened to the settings since the start.
    pub reloads: Reloads,
    /// What happened, how often.
    pub events: Vec<Event>,
}

/// What the relay may pass on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relay {
    /// Its UDP ports.
    pub first_port: u16,
    /// The last of them.
    pub last_port: u16,
    /// Bytes in a second, for each pair.
    pub bytes_per_second: u64,
    /// Bytes in an hour, for each pair.
    pub bytes_per_hour: u64,
    /// Bytes in a second, for all pairs together.
    pub total_bytes_per_second: u64,
}

/// How full the rendezvous is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rendezvous {
    /// Registered clients, once for each address family.
    pub sessions: usize,
    /// At most.
    pub max_sessions: usize,
    /// Mailboxes.
    pub mailboxes: usize,
    /// At most.
    pub max_mailboxes: usize,
    /// Pairs of which one waits for the other to probe at the same moment.
    pub meetings: usize,
    /// Pairs where a side wants a relay.
    pub relays: usize,
    /// At most.
    pub max_relays: usize,
    /// Those of them that have a relay.
    pub allocations: usize,
    /// Bytes of memory that it takes at most.
    pub max_memory_bytes: usize,
}

/// How full the record store is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Records {
    /// Records.
    pub records: usize,
    /// At most.
    pub max_records: usize,
    /// Their bytes.
    pub bytes: usize,
    /// At most.
    pub max_bytes: usize,
}

/// The store that several processes share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Store {
    /// Its host and port.
    pub server: String,
    /// Whether there is a connection.
    pub connected: bool,
    /// For how long that is so.
    pub seconds: u64,
    /// What is wrong, and what to do.
    pub problem: Option<String>,
    /// How long it took for the last answer.
    pub delay_microseconds: u64,
    /// Commands that it has answered.
    pub asked: u64,
    /// Mailboxes that it has yet to hear of.
    pub waiting: usize,
}

/// How often the settings were read again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloads {
    /// And taken.
    pub taken: u64,
    /// And refused.
    pub refused: u64,
    /// What is wrong with them now.
    pub problem: Option<String>,
    /// What was changed and needs a restart.
    pub needs_restart: Vec<String>,
}

/// How often something happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Which protocol; `server` for what they share.
    pub protocol: String,
    /// What.
    pub event: String,
    /// How often.
    pub total: u64,
}

impl From<Count> for Event {
    fn from(
        Count {
            protocol,
            event,
            total,
            ..
        }: Count,
    ) -> Self {
        Self {
            protocol: protocol.to_owned(),
            event: event.replace([' ', '-'], "_").replace([',', '\''], ""),
            total,
        }
    }
}

/// Bytes of memory that this process has; 0 if the system does not say.
pub(in crate::server) fn resident_bytes() -> u64 {
    let pages = || {
        std::fs::read_to_string("/proc/self/statm")
            .ok()?
            .split(' ')
            .nth(1)?
            .parse::<u64>()
            .ok()
    };
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
        .ok()
        .flatten();
    pages().unwrap_or(0)
        * page
            .and_then(|page| u64::try_from(page).ok())
            .unwrap_or(4_096)
}

impl Status {
    /// The same for Prometheus, in its text format (version 0.0.4).
    pub fn exposition(&self) -> String {
        let mut text = Exposition::default();
        let mut gauge = |name: &str, help: &str, value: u64| text.gauge(name, help, value);
        gauge(
            "uptime_seconds",
            "Time since the start.",
            self.uptime_seconds,
        );
        gauge("workers", "Threads that serve UDP.", self.workers as u64);
        gauge(
            "threads_stuck",
            "Threads without a sign of life for ten seconds.",
            self.stuck.len() as u64,
        );
        gauge(
            "handshakes_waiting",
            "Handshakes that wait for their turn.",
            self.handshakes_waiting as u64,
        );
        gauge(
            "resident_bytes",
            "Memory of the process.",
            self.resident_bytes,
        );
        gauge(
            "settings_broken",
            "1 if the settings file has an error and the ones before are used.",
            self.reloads.problem.is_some().into(),
        );
        if let Some(rendezvous) = &self.rendezvous {
            gauge(
                "sessions",
                "Registered clients.",
                rendezvous.sessions as u64,
            );
            gauge(
                "max_sessions",
                "Registered clients at most.",
                rendezvous.max_sessions as u64,
            );
            gauge("mailboxes", "Mailboxes.", rendezvous.mailboxes as u64);
            gauge(
                "max_mailboxes",
                "Mailboxes at most.",
                rendezvous.max_mailboxes as u64,
            );
            gauge(
                "meetings",
                "Pairs of which one waits for the other.",
                rendezvous.meetings as u64,
            );
            gauge(
                "relays",
                "Pairs of which somebody wants a relay.",
                rendezvous.relays as u64,
            );
            gauge(
                "max_relays",
                "Such pairs at most.",
                rendezvous.max_relays as u64,
            );
            gauge(
                "relay_allocations",
                "Pairs that have a relay.",
                rendezvous.allocations as u64,
            );
            gauge(
                "max_memory_bytes",
                "Memory of the rendezvous at most.",
                rendezvous.max_memory_bytes as u64,
            );
        }
        gauge(
            "streams",
            "Clients that no UDP reaches.",
            self.streams as u64,
        );
        if let Some(store) = &self.store {
            gauge(
                "store_connected",
                "1 if there is a connection to the store.",
                store.connected.into(),
            );
            gauge(
                "store_broken",
                "1 if the store is gone or refuses something.",
                store.problem.is_some().into(),
            );
            gauge(
                "store_delay_microseconds",
                "How long the store took for its last answer.",
                store.delay_microseconds,
            );
            gauge(
                "store_waiting",
                "Mailboxes that the store has yet to hear of.",
                store.waiting as u64,
            );
        }
        if let Some(http) = &self.http {
            gauge("http_records", "Records in the store.", http.records as u64);
            gauge(
                "http_max_records",
                "Records at most.",
                http.max_records as u64,
            );
            gauge("http_record_bytes", "Their bytes.", http.bytes as u64);
            gauge(
                "http_max_record_bytes",
                "Their bytes at most.",
                http.max_bytes as u64,
            );
        }
        text.family("events_total", "counter", "What happened, by protocol.");
        for event in &self.events {
            let labels = [
                ("protocol", event.protocol.as_str()),
                ("event", event.event.as_str()),
            ];
            text.sample("events_total", &labels, event.total as f64);
        }
        text.text()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_well_formed_and_have_no_addresses() {
        let count = Count {
            protocol: "rendezvous",
            event: "refused, no room",
            total: 3,
            is_fault: false,
        };
        let status = Status {
            version: "1".into(),
            uptime_seconds: 5,
            listen: vec!["192.0.2.77:51900".parse().unwrap()],
            alternate_port: Some(51901),
            workers: 2,
            stuck: vec!["relay-0".into()],
            handshakes_waiting: 7,
            resident_bytes: resident_bytes(),
            rendezvous: Some(Rendezvous {
                sessions: 1,
                max_sessions: 2,
                mailboxes: 3,
                max_mailboxes: 4,
                meetings: 5,
                relays: 6,
                max_relays: 7,
                allocations: 8,
                max_memory_bytes: 9,
            }),
            relay: None,
            streams: 3,
            http: Some(Records {
                records: 1,
                max_records: 2,
                bytes: 3,
                max_bytes: 4,
            }),
            store: Some(Store {
                server: "192.0.2.77:6379".into(),
                connected: true,
                seconds: 1,
                problem: Some("192.0.2.77 is full".into()),
                delay_microseconds: 250,
                asked: 7,
                waiting: 9,
            }),
            reloads: Reloads {
                problem: Some("line 3 of 192.0.2.77".into()),
                ..Reloads::default()
            },
            events: vec![count.into()],
        };
        assert!(status.resident_bytes > 1 << 20);
        let text = status.exposition();
        assert!(
            text.ends_with(
                "natpunch_events_total{protocol=\"rendezvous\",event=\"refused_no_room\"} 3\n"
            ),
            "{text}"
        );
        assert!(!text.contains("192.0.2.77"));
        for gauge in [
            "threads_stuck 1",
            "handshakes_waiting 7",
            "meetings 5",
            "relays 6",
            "relay_allocations 8",
            "store_connected 1",
            "store_broken 1",
            "store_delay_microseconds 250",
            "store_waiting 9",
        ] {
            assert!(text.contains(&format!("\nnatpunch_{gauge}\n")), "{gauge}");
        }
        assert!(
            text.contains("\nnatpunch_http_records 1\n")
                && text.contains("\nnatpunch_http_record_bytes 3\n")
        );
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(
                name.starts_with("natpunch_") && value.parse::<u64>().is_ok(),
                "{line}"
            );
            let family = name.split('{').next().unwrap();
            assert!(text.contains(&format!("# TYPE {family} ")), "{line}");
        }
    }
}
