//! How the NAT before this node hands out ports: STUN requests from spare source ports, each of
//! which makes a new mapping.

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::time::Duration;

use natpunch_types::{PathId, PeerKey};
use rand_core::RngCore;

use crate::gather::fresh;
use crate::nat::profile::{ENOUGH_SAMPLES, Pattern};
use crate::nat::stun::{self, Answer, TransactionId};
use crate::ports::SourcePorts;
use crate::{Time, Transmit};

/// Ports that are sampled.
const SAMPLES: usize = 12;
/// From one request to the next: they have to arrive in this order.
const PACE: Duration = Duration::from_millis(10);
/// How long answers are awaited after the last request.
const PATIENCE: Duration = Duration::from_millis(1200);
/// When too few came, it is tried again after this.
const RETRY: Duration = Duration::from_secs(15);
/// What was sampled is good for this long, unless the network changes.
const LIFETIME: Duration = Duration::from_secs(3600);

#[derive(Debug)]
struct Sample {
    port: NonZeroU16,
    transaction: TransactionId,
    outside: Option<u16>,
}

/// Requests that are under way.
#[derive(Debug)]
struct Run {
    server: SocketAddr,
    samples: Vec<Sample>,
    sent: usize,
    next: Time,
}

/// What samples have shown, of IPv4.
#[derive(Debug, Default)]
pub(crate) struct Sampler {
    pattern: Pattern,
    run: Option<Run>,
    /// Sampled anew after this.
    due: Option<Time>,
    /// When the newest port of a sequence was seen.
    fresh: Option<Time>,
    /// One more sample is wanted: where the sequence is now.
    wants_fresh: bool,
}

impl Sampler {
    pub(crate) fn pattern(&self) -> Pattern {
        self.pattern
    }

    /// Samples were taken, and other mappings change nothing about what they have shown: there is no
    /// sequence to which they add.
    pub(crate) fn is_undisturbed(&self) -> bool {
        let is_sequence = matches!(self.pattern, Pattern::Sequential { .. });
        self.run.is_none() && self.pattern != Pattern::Unknown && !is_sequence
    }

    /// Whether the newest port of a sequence was seen at this time or later.
    pub(crate) fn is_fresh_since(&self, since: Time) -> bool {
        self.fresh.is_some_and(|at| at >= since)
    }

    /// The network is another.
    pub(crate) fn restart(&mut self, ports: &mut SourcePorts, owner: &PeerKey) {
        ports.close(owner, |_| false);
        *self = Self::default();
    }

    /// Looks where the sequence is now.
    pub(crate) fn refresh(&mut self) {
        self.wants_fresh = true;
    }

    /// When the next run is due, if one was made.
    pub(crate) fn due_at(&self) -> Option<Time> {
        self.due.filter(|_| self.run.is_none())
    }

    pub(crate) fn next_timeout(&self) -> Option<Time> {
        self.run.as_ref().map(|run| run.next)
    }

    /// Begins a run if one is due and something can be had by it, and goes on with one that is
    /// under way. `server` is one that answers; `wanted`: some peer needs it.
    pub(crate) fn handle_timeout(
        &mut self,
        (server, wanted, owner): (Option<SocketAddr>, bool, PeerKey),
        ports: &mut SourcePorts,
        rng: &mut impl RngCore,
        now: Time,
        mut send: impl FnMut(Transmit),
    ) {
        let due = wanted && self.due.is_none_or(|due| due <= now);
        if self.run.is_none() && (due || self.wants_fresh) {
            let count = if due { SAMPLES } else { 1 };
            let opened = match server {
                Some(_) => ports.open(owner, count, rng),
                None => Vec::new(),
            };
            if let Some(server) = server.filter(|_| !opened.is_empty()) {
                self.wants_fresh = false;
                let sample = |port| Sample {
                    port,
                    transaction: fresh(rng),
                    outside: None,
                };
                self.run = Some(Run {
                    server,
                    samples: opened.into_iter().map(sample).collect(),
                    sent: 0,
                    next: now,
                });
            }
        }
        let Some(run) = self.run.as_mut().filter(|run| run.next <= now) else {
            return;
        };
        if let Some(sample) = run.samples.get(run.sent) {
            let path = PathId::from_port(sample.port, run.server);
            send(Transmit::new(path, stun::request(sample.transaction)));
            run.sent += 1;
            let is_last = run.sent == run.samples.len();
            run.next = now + if is_last { PATIENCE } else { PACE };
        } else {
            self.conclude(ports, &owner, now);
        }
    }

    /// Takes an answer that came to a spare port.
    pub(crate) fn handle_answer(
        &mut self,
        path: PathId,
        payload: &[u8],
        ports: &mut SourcePorts,
        owner: &PeerKey,
        now: Time,
    ) {
        let Some(run) = self.run.as_mut().filter(|run| run.server == path.remote) else {
            return;
        };
        let Some((transaction, Answer::Mapped(address))) = stun::parse_answer(payload) else {
            return;
        };
        let asked = |sample: &&mut Sample| {
            path.pin() == Some(sample.port) && sample.transaction == transaction
        };
        if let Some(sample) = run.samples.iter_mut().find(asked) {
            sample.outside = Some(address.port());
        }
        let sent_all = run.sent == run.samples.len();
        if sent_all && run.samples.iter().all(|sample| sample.outside.is_some()) {
            self.conclude(ports, owner, now);
        }
    }

    fn conclude(&mut self, ports: &mut SourcePorts, owner: &PeerKey, now: Time) {
        let Some(run) = self.run.take() else { return };
        ports.close(owner, |_| false);
        let of_sample = |sample: &Sample| Some((sample.port.get(), sample.outside?));
        let seen: Vec<(u16, u16)> = run.samples.iter().filter_map(of_sample).collect();
        if run.samples.len() == 1 {
            if let (Pattern::Sequential { newest, .. }, [(_, outside)]) =
                (&mut self.pattern, seen.as_slice())
            {
                *newest = *outside;
                self.fresh = Some(now);
            }
            return;
        }
        let enough = seen.len() >= ENOUGH_SAMPLES;
        if enough {
            self.pattern = Pattern::of(&seen);
            self.fresh = Some(now);
        }
        self.due = Some(now + if enough { LIFETIME } else { RETRY });
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng as _;

    use super::*;
    use crate::ports::Pinning;

    #[test]
    fn twelve_ports_ask_one_after_the_other_and_are_closed_when_nobody_answers() {
        let owner = PeerKey::from_bytes([1; 32]);
        let server: SocketAddr = "198.51.100.1:3478".parse().unwrap();
        let mut ports = SourcePorts::default();
        ports.pinning = Pinning::Possible;
        let mut rng = ChaCha20Rng::from_seed([0; 32]);
        let mut sampler = Sampler::default();
        let (mut now, mut asked) = (Time::ZERO, Vec::new());
        let wanted = (Some(server), true, owner);
        sampler.handle_timeout(wanted, &mut ports, &mut rng, now, |t| asked.push(t.path));
        while let Some(next) = sampler.next_timeout() {
            assert!(next > now, "time goes on");
            now = next;
            sampler.handle_timeout(wanted, &mut ports, &mut rng, now, |t| asked.push(t.path));
        }
        let mut from: Vec<_> = asked.iter().map(|path| path.pin()).collect();
        from.dedup();
        assert_eq!((asked.len(), from.len()), (SAMPLES, SAMPLES));
        assert!(asked.iter().all(|path| path.remote == server));
        assert_eq!(now, Time::ZERO + PACE * 11 + PATIENCE);
        assert!(
            from.iter()
                .flatten()
                .all(|port| !ports.is_of(*port, &owner))
        );
        assert_eq!(sampler.due_at(), Some(now + RETRY), "too few have answered");
    }
}
