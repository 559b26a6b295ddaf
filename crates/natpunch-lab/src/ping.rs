//! `ping` in the background, read line by line.

use std::io::{BufRead as _, BufReader};
use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::host::{Host, Process};
use crate::{Error, Result};

/// A running `ping`.
#[derive(Debug)]
pub struct Ping {
    process: Process,
    shared: Arc<Shared>,
}

/// What a `ping` has seen so far.
#[derive(Debug, Default, Clone)]
pub struct Pings {
    /// The sequence numbers that were answered, in the order of the answers, with the time of each.
    pub answers: Vec<(u64, Instant)>,
    /// The round-trip time of the first answer.
    pub first_round_trip: Option<Duration>,
}

impl Pings {
    /// How many requests between the first and the last answered one were not answered.
    pub fn lost(&self) -> u64 {
        let first = self.answers.iter().map(|(sequence, _)| *sequence).min();
        let last = self.answers.iter().map(|(sequence, _)| *sequence).max();
        let (Some(first), Some(last)) = (first, last) else { return 0 };
        let mut distinct: Vec<u64> = self.answers.iter().map(|(sequence, _)| *sequence).collect();
        distinct.sort_unstable();
        distinct.dedup();
        (last - first + 1).saturating_sub(u64::try_from(distinct.len()).unwrap_or(u64::MAX))
    }

    /// The longest time between two answers.
    pub fn longest_gap(&self) -> Duration {
        self.answers
            .iter()
            .zip(self.answers.iter().skip(1))
            .map(|((_, a), (_, b))| b.duration_since(*a))
            .max()
            .unwrap_or_default()
    }
}

#[derive(Debug, Default)]
struct Shared {
    pings: Mutex<Pings>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Pings> {
        self.pings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ping {
    /// Starts `ping` on `host`, one request each `interval` (at least 2 ms).
    pub fn start(host: &Host, to: IpAddr, interval: Duration) -> Result<Self> {
        let mut command = Command::new("ping");
        command
            .args(["-n", "-i", &format!("{:.3}", interval.as_secs_f64()), &to.to_string()])
            .env("LC_ALL", "C")
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut process = host.spawn(command)?;
        let shared = Arc::new(Shared::default());
        let seen = Arc::clone(&shared);
        if let Some(stdout) = process.child().stdout.take() {
            std::thread::Builder::new()
                .name("ping".into())
                .spawn(move || {
                    for line in BufReader::new(stdout).lines().map_while(std::io::Result::ok) {
                        let now = Instant::now();
                        if let Some((sequence, round_trip)) = parse(&line) {
                            let mut pings = seen.lock();
                            pings.answers.push((sequence, now));
                            pings.first_round_trip.get_or_insert(round_trip);
                            seen.changed.notify_all();
                        }
                    }
                })
                .map_err(|source| Error::System { what: "cannot start a thread", source })?;
        }
        Ok(Ping { process, shared })
    }

    /// What it has seen so far.
    pub fn so_far(&self) -> Pings {
        self.shared.lock().clone()
    }

    /// Waits until `count` more answers have come, or the deadline has passed; whether they came.
    pub fn wait_for(&self, count: usize, deadline: Instant) -> bool {
        let mut pings = self.shared.lock();
        let goal = pings.answers.len() + count;
        while pings.answers.len() < goal {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { return false };
            pings = self.shared.changed.wait_timeout(pings, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Waits for the first answer; when it came.
    pub fn first(&self, deadline: Instant) -> Option<Instant> {
        let mut pings = self.shared.lock();
        loop {
            if let Some((_, at)) = pings.answers.first() {
                return Some(*at);
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            pings = self.shared.changed.wait_timeout(pings, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Stops it.
    pub fn stop(self) -> Pings {
        let pings = self.so_far();
        // A process that has ended by itself is as good.
        let _ = self.process.kill();
        pings
    }
}

/// The sequence number and round-trip time of `64 bytes from 10.0.0.1: icmp_seq=7 ttl=64 time=0.034 ms`.
fn parse(line: &str) -> Option<(u64, Duration)> {
    if !line.contains(" bytes from ") {
        return None;
    }
    let field = |name: &str| line.split_whitespace().find_map(|word| word.strip_prefix(name));
    let sequence = field("icmp_seq=")?.parse().ok()?;
    let milliseconds: f64 = field("time=")?.parse().ok()?;
    Some((sequence, Duration::try_from_secs_f64(milliseconds / 1000.0).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_and_nothing_else_is() {
        let line = "64 bytes from 10.77.0.3: icmp_seq=7 ttl=64 time=0.340 ms";
        assert_eq!(parse(line), Some((7, Duration::from_micros(340))));
        assert_eq!(parse("64 bytes from fd77::3: icmp_seq=7 ttl=64 time=12 ms"), Some((7, Duration::from_millis(12))));
        assert_eq!(parse("From 10.77.0.2 icmp_seq=1 Destination Host Unreachable"), None);
        assert_eq!(parse("PING 10.77.0.3 (10.77.0.3) 56(84) bytes of data."), None);
    }

    #[test]
    fn a_gap_in_the_numbers_is_a_loss_and_a_duplicate_is_not_an_answer_more() {
        let now = Instant::now();
        let pings = |numbers: &[u64]| Pings {
            answers: numbers.iter().map(|number| (*number, now)).collect(),
            first_round_trip: None,
        };
        assert_eq!(pings(&[]).lost(), 0);
        assert_eq!(pings(&[5, 6, 7]).lost(), 0);
        assert_eq!(pings(&[5, 7, 6]).lost(), 0, "reordered");
        assert_eq!(pings(&[5, 8, 8]).lost(), 2);
    }
}
