//! What the server counts instead of logging each packet: an attacker decides how often something
//! goes wrong, the server decides how often it says so.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

/// A number of events.
#[derive(Debug, Default)]
pub(in crate::server) struct Counter(AtomicU64);

impl Counter {
    /// Counts one event.
    pub(in crate::server) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts several events.
    pub(in crate::server) fn count(&self, events: usize) {
        self.0.fetch_add(events as u64, Ordering::Relaxed);
    }

    /// How many events there were.
    pub(in crate::server) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How often something happened since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::server) struct Count {
    /// Which protocol, or `server`.
    pub(in crate::server) protocol: &'static str,
    /// What.
    pub(in crate::server) event: &'static str,
    /// How often.
    pub(in crate::server) total: u64,
}

macro_rules! counters {
    ($($(#[$doc:meta])* $field:ident: $name:literal,)*) => {
        /// All counters of a server.
        #[derive(Debug, Default)]
        pub(in crate::server) struct Counters { $($(#[$doc])* pub(in crate::server) $field: Counter,)* }

        impl Counters {
            /// The values of all counters.
            pub(in crate::server) fn read(&self) -> Vec<Count> {
                vec![$(Count { protocol: "server", event: $name, total: self.$field.get() },)*]
            }
        }
    };
}

counters! {
    /// Datagrams received.
    received: "received",
    /// Datagrams that no protocol understood or that failed their checks; silently dropped.
    dropped: "dropped",
    /// Handshakes dropped because too many were waiting.
    handshakes_shed: "handshakes shed",
    /// Datagrams sent.
    answered: "answered",
    /// Answers that could not be sent.
    send_errors: "send errors",
    /// Errors of receiving.
    receive_errors: "receive errors",
    /// Datagrams that the relay could not send.
    relay_send_errors: "relay send errors",
    /// Errors of receiving at the relay's ports.
    relay_receive_errors: "relay receive errors",
    /// Connections refused because too many were open.
    http_refused: "http connections refused",
    /// Errors of accepting a connection.
    http_accept_errors: "http accept errors",
    /// Connections for streams refused because too many were open.
    streams_refused: "streams refused",
    /// Errors of accepting a connection for a stream.
    stream_accept_errors: "stream accept errors",
    /// Messages of streams that were none, for no port, or for which there was no room.
    stream_dropped: "stream messages dropped",
    /// Datagrams for streams that are gone or have no room.
    stream_unsent: "stream messages not sent",
}

/// Renders what has been counted since the last time.
#[derive(Debug, Default)]
pub(in crate::server) struct Reporter(Vec<Count>);

impl Reporter {
    /// Of these, always in the same order, what has changed since the last call, as
    /// `12 received, 3 dropped; rendezvous: 5 welcomed`; nothing if nothing has.
    pub(in crate::server) fn changes(&mut self, now: Vec<Count>) -> Option<String> {
        let mut text = String::new();
        let mut last = "server";
        for (
            index,
            Count {
                protocol,
                event,
                total,
            },
        ) in now.iter().copied().enumerate()
        {
            let before = self.0.get(index).map_or(0, |before| before.total);
            if total > before {
                let separator = match (text.is_empty(), protocol == last) {
                    (true, true) => String::new(),
                    (false, true) => ", ".to_owned(),
                    (true, false) => format!("{protocol}: "),
                    (false, false) => format!("; {protocol}: "),
                };
                let _ = write!(text, "{separator}{} {event}", total - before);
                last = protocol;
            }
        }
        self.0 = now;
        (!text.is_empty()).then_some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_changes_are_reported() {
        let (counters, mut reporter) = (Counters::default(), Reporter::default());
        assert_eq!(reporter.changes(counters.read()), None);
        counters.received.add();
        counters.received.add();
        counters.dropped.add();
        assert_eq!(
            reporter.changes(counters.read()).unwrap(),
            "2 received, 1 dropped"
        );
        assert_eq!(reporter.changes(counters.read()), None);
        counters.dropped.add();
        assert_eq!(reporter.changes(counters.read()).unwrap(), "1 dropped");
        let with = |total| {
            [
                counters.read(),
                vec![Count {
                    protocol: "relay",
                    event: "bound",
                    total,
                }],
            ]
            .concat()
        };
        assert_eq!(reporter.changes(with(2)).unwrap(), "relay: 2 bound");
        counters.received.add();
        assert_eq!(
            reporter.changes(with(3)).unwrap(),
            "1 received; relay: 1 bound"
        );
    }
}
