//! `ping` in the background, read line by line.

use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::follow::Follower;
use crate::host::{Host, Process};
use crate::{Error, Result};

/// A running `ping`.
#[derive(Debug)]
pub struct Ping {
    process: Process,
    answers: Follower<Answer>,
}

/// One answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// The number of the request.
    pub sequence: u64,
    /// How long it took, by `ping`'s own measurement.
    pub round_trip: Duration,
}

/// What a `ping` has seen so far.
#[derive(Debug, Default, Clone)]
pub struct Pings {
    /// The answers in their order, with the time of each.
    pub answers: Vec<(Instant, Answer)>,
}

impl Pings {
    /// How many requests between the first and the last answered one were not answered.
    pub fn lost(&self) -> u64 {
        let mut sequences: Vec<u64> = self
            .answers
            .iter()
            .map(|(_, answer)| answer.sequence)
            .collect();
        sequences.sort_unstable();
        sequences.dedup();
        let (Some(first), Some(last)) = (sequences.first(), sequences.last()) else {
            return 0;
        };
        (last - first + 1).saturating_sub(u64::try_from(sequences.len()).unwrap_or(u64::MAX))
    }

    /// The longest time between two answers.
    pub fn longest_gap(&self) -> Duration {
        let times = || self.answers.iter().map(|(at, _)| *at);
        times()
            .zip(times().skip(1))
            .map(|(before, after)| after.duration_since(before))
            .max()
            .unwrap_or_default()
    }
}

impl Ping {
    /// Starts `ping` on `host`, one request each `interval` (at least 2 ms).
    pub fn start(host: &Host, to: IpAddr, interval: Duration) -> Result<Self> {
        let mut command = Command::new("ping");
        command
            .args([
                "-n",
                "-i",
                &format!("{:.3}", interval.as_secs_f64()),
                &to.to_string(),
            ])
            .env("LC_ALL", "C")
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut process = host.spawn(command)?;
        let failed = |source| Error::System {
            what: "cannot read what ping prints",
            source,
        };
        let stdout = process
            .child()
            .stdout
            .take()
            .ok_or_else(|| failed(std::io::ErrorKind::BrokenPipe.into()))?;
        let answers = Follower::start(stdout, |_, line| parse(line)).map_err(failed)?;
        Ok(Ping { process, answers })
    }

    /// What it has seen so far.
    pub fn so_far(&self) -> Pings {
        Pings {
            answers: self.answers.so_far(),
        }
    }

    /// Waits until `count` more answers have come, or the deadline has passed; whether they came.
    pub fn wait_for(&self, count: usize, deadline: Instant) -> bool {
        let goal = self.answers.so_far().len() + count;
        self.answers
            .wait(deadline, |answers| (answers.len() >= goal).then_some(()))
            .is_some()
    }

    /// Waits for the first answer; when it came.
    pub fn first(&self, deadline: Instant) -> Option<(Instant, Answer)> {
        self.answers
            .wait(deadline, |answers| answers.first().copied())
    }

    /// Stops it.
    pub fn stop(self) -> Pings {
        let pings = self.so_far();
        // A process that has ended by itself is as good.
        let _ = self.process.kill();
        pings
    }
}

/// Reads `64 bytes from 10.0.0.1: icmp_seq=7 ttl=64 time=0.034 ms`.
fn parse(line: &str) -> Option<Answer> {
    if !line.contains(" bytes from ") {
        return None;
    }
    let field = |name: &str| {
        line.split_whitespace()
            .find_map(|word| word.strip_prefix(name))
    };
    let milliseconds: f64 = field("time=")?.parse().ok()?;
    let round_trip = Duration::try_from_secs_f64(milliseconds / 1000.0).ok()?;
    Some(Answer {
        sequence: field("icmp_seq=")?.parse().ok()?,
        round_trip,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_and_nothing_else_is() {
        let answer = |sequence, round_trip| {
            Some(Answer {
                sequence,
                round_trip,
            })
        };
        let line = "64 bytes from 10.77.0.3: icmp_seq=7 ttl=64 time=0.340 ms";
        assert_eq!(parse(line), answer(7, Duration::from_micros(340)));
        assert_eq!(
            parse("64 bytes from fd77::3: icmp_seq=8 ttl=64 time=12 ms"),
            answer(8, Duration::from_millis(12))
        );
        assert_eq!(
            parse("From 10.77.0.2 icmp_seq=1 Destination Host Unreachable"),
            None
        );
        assert_eq!(
            parse("PING 10.77.0.3 (10.77.0.3) 56(84) bytes of data."),
            None
        );
    }

    #[test]
    fn a_gap_in_the_numbers_is_a_loss_and_a_duplicate_is_not_an_answer_more() {
        let now = Instant::now();
        let round_trip = Duration::ZERO;
        let pings = |sequences: &[u64]| Pings {
            answers: sequences
                .iter()
                .map(|sequence| {
                    (
                        now,
                        Answer {
                            sequence: *sequence,
                            round_trip,
                        },
                    )
                })
                .collect(),
        };
        assert_eq!(pings(&[]).lost(), 0);
        assert_eq!(pings(&[5, 6, 7]).lost(), 0);
        assert_eq!(pings(&[5, 7, 6]).lost(), 0, "reordered");
        assert_eq!(pings(&[5, 8, 8]).lost(), 2);
    }
}
