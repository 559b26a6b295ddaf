//! How large packets may be on the path in use: probes of sizes to the peer and from it, and what
//! the shell is told.

use std::net::IpAddr;
use std::time::Duration;

use natpunch_types::{PathId, Travel};

use crate::env::Env;
use crate::messages::probe::Transaction;
use crate::messages::size::{Kind, SHORTEST, SizeProbe};
use crate::path_mtu::PathMtu;
use crate::{Command, Event, PacketKind, PathMtuStatus, Time, Transmit};

use super::Peer;
use super::probing::Freshness;
use super::selection::Check;

/// When questions that the budget held back are tried again.
const LATER: Duration = Duration::from_millis(100);

/// What is known of sizes on the path in use, and what was ordered for it.
#[derive(Debug, Default)]
pub(super) struct Sizing {
    mtu: PathMtu,
    /// The path, and the interface's MTU, that `mtu` is about.
    measured: Option<(PathId, u32)>,
    /// What the shell was told last.
    ordered: Option<Option<u16>>,
}

impl Sizing {
    pub(super) fn wakes_at(&self) -> Option<Time> {
        self.mtu.wakes_at()
    }

    /// The path is measured anew: its other end is another than before.
    pub(super) fn forget(&mut self) {
        self.measured = None;
    }
}

impl Peer {
    /// WireGuard has sent data to the peer: so many bytes.
    pub(super) fn on_data_sent(&mut self, bytes: u64, now: Time) {
        let Some((path, _)) = self.sizing.measured.filter(|_| bytes > 0) else {
            return;
        };
        let is_answered = self.table.get(&path).is_some_and(|e| e.unanswered == 0);
        let waits = is_answered && self.device.is_waiting();
        self.sizing.mtu.on_data(bytes, waits, now);
    }

    /// Measures the path in use if it is another than before, goes on with what is under way, and
    /// tells the shell what came of it.
    pub(super) fn tend_sizes(&mut self, env: &mut Env, now: Time) {
        let is_good =
            |check: Check, doubted: Option<Time>| check == Check::Passed && doubted.is_none();
        let in_use = self.choice.selection.as_ref();
        let in_use = in_use.filter(|s| is_good(s.check, s.doubted) && self.probes());
        let Some(path) = in_use.map(|selection| selection.path) else {
            self.sizing.measured = None;
            self.sizing.mtu.pause();
            return;
        };
        if self.sizing.measured != Some((path, env.mtu)) {
            self.sizing.measured = Some((path, env.mtu));
            self.sizing.mtu.begin(env.mtu, now);
        }
        self.ask_sizes(path, env, now);
        self.order_mtu(path, env);
    }

    fn ask_sizes(&mut self, path: PathId, env: &mut Env, now: Time) {
        let sizes = self.sizing.mtu.due(self.rtt(path), now);
        if sizes.is_empty() {
            return;
        }
        // One volley counts as one ping: there are few, and half of one would show nothing.
        if !env.pings.take(now) {
            env.probes.held_back += 1;
            self.sizing.mtu.postpone(now + LATER);
            return;
        }
        for size in sizes {
            let question = SizeProbe {
                kind: Kind::Question,
                stamp: self.prober.stamp(env.session),
                transaction: Transaction::random(&mut env.rng),
            };
            let keys = self.keys.as_ref();
            let length = PathMtu::payload(size);
            let sealed = keys.and_then(|k| question.seal(length, &k.outbound, &mut env.rng));
            if let Some(payload) = sealed {
                self.sizing.mtu.on_asked(size, question.transaction);
                let probe = Transmit {
                    travel: Travel::Whole,
                    ..Transmit::new(path, payload)
                };
                self.send(PacketKind::Size, probe, env, now);
                env.probes.sent += 1;
            }
        }
    }

    /// Tells the shell which MTU the routes to the peer need. While nothing is known, what was told
    /// stays: too small costs some percent of the speed, too large loses packets.
    fn order_mtu(&mut self, path: PathId, env: &mut Env) {
        let Some((size, is_limited)) = self.sizing.mtu.found() else {
            return;
        };
        let wanted = is_limited.then_some(size);
        let before = self.sizing.ordered.replace(wanted);
        if before == Some(wanted) {
            return;
        }
        let peer = self.spec.key;
        env.out.mtu(peer, Command::SetMtu { peer, mtu: wanted });
        if before.flatten() != wanted {
            env.out.event(Event::PathMtu {
                peer,
                path,
                mtu: size,
                is_limited,
            });
        }
    }

    /// A datagram with this peer's tag and the form of a probe of a size.
    pub(crate) fn handle_size_probe(
        &mut self,
        path: PathId,
        destination: Option<IpAddr>,
        datagram: &[u8],
        env: &mut Env,
        now: Time,
    ) {
        let Some(path) = self.admit_probe(path, env) else {
            return;
        };
        let keys = self.keys.as_ref();
        let Some(probe) = keys.and_then(|keys| SizeProbe::open(&keys.inbound, datagram)) else {
            return;
        };
        match probe.kind {
            Kind::Question => self.answer_size(path, destination, &probe, env, now),
            // Its transaction was random, so it answers a question of this run, once.
            Kind::Answer if self.sizing.measured.is_some_and(|(of, _)| of == path) => {
                self.timeline.heard(PacketKind::Size, path, now);
                self.sizing.mtu.on_answer(&probe.transaction, now);
                self.decide(env, now);
            }
            Kind::Answer => {}
        }
    }

    /// Answers a question that the peer's present run asks this one for the first time.
    fn answer_size(
        &mut self,
        path: PathId,
        destination: Option<IpAddr>,
        question: &SizeProbe,
        env: &mut Env,
        now: Time,
    ) {
        let is_fresh = self.prober.judge(question.stamp, env.session) == Freshness::Fresh;
        // A path that this side does not know is none that the peer has in use.
        if !is_fresh || self.table.get(&path).is_none() || !env.pongs.take(now) {
            return;
        }
        self.timeline.heard(PacketKind::Size, path, now);
        let answer = SizeProbe {
            kind: Kind::Answer,
            stamp: self.prober.stamp(env.session),
            transaction: question.transaction,
        };
        let keys = self.keys.as_ref();
        let sealed = keys.and_then(|k| answer.seal(SHORTEST, &k.outbound, &mut env.rng));
        if let Some(payload) = sealed {
            let answer = Transmit {
                source: destination.filter(|ip| env.local.is_own_ip(*ip)),
                ..Transmit::new(path, payload)
            };
            self.send(PacketKind::Size, answer, env, now);
        }
    }

    /// What WireGuard sends on the path in use may vanish for its size alone, which is being found
    /// out: to leave the path for that would be too early.
    pub(super) fn may_be_size(&self, now: Time) -> bool {
        self.sizing.measured.is_some() && self.sizing.mtu.is_suspect(now)
    }

    /// What is known of sizes, for people.
    pub(super) fn path_mtu(&self) -> Option<PathMtuStatus> {
        self.sizing.measured?;
        let (mtu, is_limited) = self.sizing.mtu.found()?;
        Some(PathMtuStatus { mtu, is_limited })
    }
}
