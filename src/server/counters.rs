//! What the server counts instead of logging each packet: an attacker decides how often something goes wrong, the
//! server decides how often it says so.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

/// A number of events.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    /// Counts one event.
    pub(super) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts several events.
    pub(super) fn count(&self, events: usize) {
        self.0.fetch_add(events as u64, Ordering::Relaxed);
    }

    /// How many events there were.
    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $field:ident: $name:literal,)*) => {
        /// All counters of a server.
        #[derive(Debug, Default)]
        pub(super) struct Counters { $($(#[$doc])* pub(super) $field: Counter,)* }

        impl Counters {
            /// The values of all counters, with their names.
            pub(super) fn read(&self) -> Vec<(&'static str, u64)> {
                vec![$(($name, self.$field.get()),)*]
            }
        }
    };
}

counters! {
    /// Datagrams received.
    received: "received",
    /// Datagrams that nobody understood or that failed their checks; silently dropped.
    dropped: "dropped",
    /// Handshakes dropped because too many were waiting.
    handshakes_shed: "handshakes shed",
    /// Datagrams sent.
    answered: "answered",
    /// Answers that could not be sent.
    send_errors: "send errors",
    /// Errors of receiving.
    receive_errors: "receive errors",
    /// Connections refused because too many were open.
    http_refused: "http connections refused",
    /// Errors of accepting a connection.
    http_accept_errors: "http accept errors",
}

/// Renders what has been counted since the last time.
#[derive(Debug, Default)]
pub(super) struct Reporter(Vec<(&'static str, u64)>);

impl Reporter {
    /// Of these values, always in the same order, what has changed since the last call, as `12 received, 3 dropped`; nothing if nothing has.
    pub(super) fn changes(&mut self, now: Vec<(&'static str, u64)>) -> Option<String> {
        let mut text = String::new();
        for (index, (name, value)) in now.iter().enumerate() {
            let before = self.0.get(index).map_or(0, |(_, before)| *before);
            if *value > before {
                let comma = if text.is_empty() { "" } else { ", " };
                let _ = write!(text, "{comma}{} {name}", value - before);
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
        assert_eq!(reporter.changes(counters.read()).unwrap(), "2 received, 1 dropped");
        assert_eq!(reporter.changes(counters.read()), None);
        counters.dropped.add();
        assert_eq!(reporter.changes(counters.read()).unwrap(), "1 dropped");
    }
}
