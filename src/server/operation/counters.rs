//! What the server counts instead of logging each packet: an attacker decides how often something
//! goes wrong, the server decides how often it says so.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use natpunch_types::Time;

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
    /// Whether a person should look at it.
    pub(in crate::server) is_fault: bool,
}

macro_rules! counters {
    ($($is_fault:ident { $($(#[$doc:meta])* $field:ident: $name:literal,)* })*) => {
        /// All counters of a server.
        #[derive(Debug, Default)]
        pub(in crate::server) struct Counters { $($($(#[$doc])* pub(in crate::server) $field: Counter,)*)* }

        impl Counters {
            /// The values of all counters.
            pub(in crate::server) fn read(&self) -> Vec<Count> {
                vec![$($(Count {
                    protocol: "server",
                    event: $name,
                    total: self.$field.get(),
                    is_fault: counters!(@ $is_fault),
                },)*)*]
            }
        }
    };
    (@ usual) => { false };
    (@ fault) => { true };
}

counters! {
    usual {
        /// Datagrams received.
        received: "received",
        /// Datagrams that no protocol understood or that failed their checks; silently dropped.
        dropped: "dropped",
        /// Datagrams sent.
        answered: "answered",
        /// Messages of streams that were none, for no port, or for which there was no room.
        stream_dropped: "stream messages dropped",
        /// Datagrams for streams that are gone or have no room.
        stream_unsent: "stream messages not sent",
    }
    fault {
        /// Handshakes dropped because too many were waiting.
        handshakes_shed: "handshakes shed",
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
    }
}

/// How long a log is silent about what it has told.
const HOUR: Duration = Duration::from_secs(3600);

/// A line of the log about what was counted.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::server) enum Line {
    /// A person should look: something that is no part of serving happened since the last call.
    Fault(String),
    /// What happened in an hour.
    Hour(String),
    /// What happened since the last call.
    Lately(String),
}

/// What the log has said of the counts. Others cause what is counted, so it says at most two lines
/// an hour to those who do not look closely.
#[derive(Debug, Default)]
pub(in crate::server) struct Log {
    lately: Reporter,
    hourly: Reporter,
    /// Since when the hour runs.
    hour: Option<Time>,
    /// When a fault was told of.
    told: Option<Time>,
}

impl Log {
    /// What is to be said of these counts, always in the same order, at this time.
    pub(in crate::server) fn lines(&mut self, counts: &[Count], now: Time) -> Vec<Line> {
        let mut lines = Vec::new();
        let has_passed = |since: Time| now.since(since) >= HOUR;
        let faults = self.lately.changes_in(counts, |count| count.is_fault);
        if let Some(faults) = faults.filter(|_| self.told.is_none_or(has_passed)) {
            self.told = Some(now);
            lines.push(Line::Fault(faults));
        }
        let hour = *self.hour.get_or_insert(now);
        if has_passed(hour) {
            self.hour = Some(now);
            lines.extend(self.hourly.changes(counts.to_vec()).map(Line::Hour));
        }
        lines.extend(self.lately.changes(counts.to_vec()).map(Line::Lately));
        lines
    }
}

/// Renders what has been counted since the last time.
#[derive(Debug, Default)]
struct Reporter(Vec<Count>);

impl Reporter {
    /// Of these, always in the same order, what has changed since the last call, as
    /// `12 received, 3 dropped; rendezvous: 5 welcomed`; nothing if nothing has.
    fn changes(&mut self, now: Vec<Count>) -> Option<String> {
        let text = self.changes_in(&now, |_| true);
        self.0 = now;
        text
    }

    /// The same of some of them, and the next call tells of them again.
    fn changes_in(&self, now: &[Count], of: impl Fn(&Count) -> bool) -> Option<String> {
        let mut text = String::new();
        let mut last = "server";
        for (index, count) in now.iter().enumerate().filter(|(_, count)| of(count)) {
            let Count {
                protocol,
                event,
                total,
                ..
            } = *count;
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
                    is_fault: false,
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

    #[test]
    fn a_log_has_one_line_an_hour_of_what_is_usual_and_one_of_what_is_not() {
        let (counters, mut log) = (Counters::default(), Log::default());
        let mut said = Vec::new();
        // A look every ten seconds for three hours and a bit, at a server with faults from the
        // second hour on.
        for look in 0..=1_090_u64 {
            counters.received.add();
            if look > 400 {
                counters.send_errors.add();
            }
            let now = Time::from_origin(Duration::from_secs(10 * look));
            let lines = log.lines(&counters.read(), now);
            let (lately, others): (Vec<_>, Vec<_>) = lines
                .into_iter()
                .partition(|line| matches!(line, Line::Lately(_)));
            assert_eq!(lately.len(), 1, "whoever looks closely sees each");
            said.extend(others.into_iter().map(|line| (look, line)));
        }
        let hour = |text: &str| Line::Hour(text.to_owned());
        let fault = || Line::Fault("1 send errors".to_owned());
        assert_eq!(
            said,
            [
                (360, hour("361 received")),
                (401, fault()),
                (720, hour("360 received, 320 send errors")),
                (761, fault()),
                (1_080, hour("360 received, 360 send errors")),
            ]
        );
    }
}
