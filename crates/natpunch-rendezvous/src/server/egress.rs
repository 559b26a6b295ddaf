//! Bytes out: how much goes to a client and into a network, and when nothing does.
//!
//! A session's address was proven once, and the client may have left it since. A client that is
//! there is heard within every ping interval, and within a round trip of each record, which it
//! acknowledges. An address from which nothing is heard gets little, and soon nothing at all.

use std::time::Duration;

use natpunch_types::{Bucket, Rate, Time};

use super::Limits;
use crate::wire::{CLASSES, MAC_LEN, MAX_DATAGRAM, SESSION_HEADER_LEN, Tag};

/// How long something may be unanswered until nothing more is sent.
const SILENCE: Duration = Duration::from_secs(5);
/// What goes at most to a client that was not heard since.
const UNHEARD_BYTES: u64 = 32 << 10;
/// How far ahead records are given a time to leave.
const LONGEST_QUEUE: Duration = Duration::from_secs(20);
/// The headers of a datagram: Ethernet, IPv4 and UDP.
const HEADERS: u64 = 42;

/// A rate of so many bytes in a second, and half of them at once.
pub(super) const fn pace(bytes_per_second: u64) -> Rate {
    Rate::per_second(bytes_per_second, bytes_per_second / 2)
}

/// When a record may leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Departure {
    /// At once.
    Now,
    /// Then, for which it has paid.
    At(Time),
    /// Not now: its watcher is not there, or too much is on its way.
    Refused,
}

/// What goes to one client.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Egress {
    /// Records, which may wait for their turn.
    records: Bucket,
    /// All else, which may not.
    answers: Bucket,
    /// Bytes that were sent since the client was heard.
    unheard: u64,
    /// Since when an answer to them is awaited.
    asked: Option<Time>,
}

impl Egress {
    /// The client was heard from its proven address.
    pub(super) fn heard(&mut self) {
        (self.unheard, self.asked) = (0, None);
    }

    /// Whether so many bytes may be sent to an address that the client may have left.
    fn is_awaited(&self, bytes: u64, now: Time) -> bool {
        let in_time = self.asked.is_none_or(|asked| now < asked + SILENCE);
        in_time && self.unheard + bytes <= UNHEARD_BYTES
    }

    /// A record leaves, and its receiver will say that it has it.
    fn ask(&mut self, bytes: u64, now: Time) {
        self.unheard += bytes;
        self.asked.get_or_insert(now);
    }

    /// When a record of this length may leave.
    pub(super) fn depart(&mut self, length: usize, limits: &Limits, now: Time) -> Departure {
        if !self.is_awaited(alone(length), now) {
            return Departure::Refused;
        }
        let rate = pace(limits.client_bytes_per_second);
        match self.records.reserve(rate, cost(length), LONGEST_QUEUE, now) {
            None => Departure::Refused,
            Some(at) if at > now => Departure::At(at),
            Some(_) => {
                self.ask(alone(length), now);
                Departure::Now
            }
        }
    }

    /// Whether a record may leave whose time has come; it has paid for it.
    pub(super) fn depart_as_reserved(&mut self, length: usize, now: Time) -> bool {
        let awaited = self.is_awaited(alone(length), now);
        if awaited {
            self.ask(alone(length), now);
        }
        awaited
    }

    /// Whether a datagram without records may leave now.
    pub(super) fn answer(&mut self, length: usize, limits: &Limits, now: Time) -> bool {
        let may = self.is_awaited(alone(length), now)
            && self
                .answers
                .take(pace(limits.client_bytes_per_second), cost(length), now);
        if may {
            self.unheard += alone(length);
        }
        may
    }
}

/// What a datagram, or a record in one, costs at a rate.
pub(super) fn cost(length: usize) -> u64 {
    length as u64 + HEADERS
}

/// What a record, or a datagram without one, takes on the wire if it goes alone.
fn alone(length: usize) -> u64 {
    const AROUND: usize = SESSION_HEADER_LEN + MAC_LEN + 3 + size_of::<Tag>();
    let class = CLASSES.into_iter().find(|class| *class >= length + AROUND);
    class.unwrap_or(MAX_DATAGRAM) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Time = at(1_000);

    const fn at(millis: u64) -> Time {
        Time::from_millis(millis)
    }

    fn limits() -> Limits {
        Limits {
            client_bytes_per_second: 10_000,
            ..Limits::default()
        }
    }

    #[test]
    fn records_leave_at_the_rate_and_each_has_a_time_of_its_own() {
        let (mut egress, limits) = (Egress::default(), limits());
        let at: Vec<Departure> = (0..8)
            .map(|_| egress.depart(958, &limits, SECOND))
            .collect();
        assert_eq!(
            at[..5],
            [Departure::Now; 5],
            "half a second's worth at once"
        );
        let later = |ms| Departure::At(SECOND + Duration::from_millis(ms));
        assert_eq!(at[5..], [later(100), later(200), later(300)]);
        let refused = (0..1_000)
            .map(|_| egress.depart(958, &limits, SECOND))
            .position(|at| at == Departure::Refused);
        assert!(refused < Some(200), "nothing waits longer than its readers");
    }

    #[test]
    fn nothing_goes_to_who_does_not_answer_for_some_seconds_or_some_bytes() {
        let (mut egress, limits) = (Egress::default(), Limits::default());
        assert_eq!(egress.depart(96, &limits, SECOND), Departure::Now);
        assert!(egress.answer(96, &limits, at(5_000)));
        assert!(!egress.answer(96, &limits, at(6_000)));
        assert_eq!(egress.depart(96, &limits, at(6_000)), Departure::Refused);
        egress.heard();
        let sent = (0..1_000)
            .filter(|n| egress.answer(1_200, &limits, at(7_000 + 4 * n)))
            .count();
        assert!((sent * 1_200) as u64 <= UNHEARD_BYTES, "{sent}");
        egress.heard();
        assert!(egress.answer(1_200, &limits, at(12_000)));
    }

    #[test]
    fn answers_do_not_wait_behind_records() {
        let (mut egress, limits) = (Egress::default(), limits());
        (0..20).for_each(|_| _ = egress.depart(958, &limits, SECOND));
        assert!(egress.answer(96, &limits, SECOND));
    }
}
