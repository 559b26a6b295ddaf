//! Probes that arrive: which of them count, what they change, and which are answered.

use std::net::IpAddr;
use std::time::Duration;

use natpunch_types::{CandidateKind, Origin, PathId, RelayPolicy};

use crate::burst::Burst;
use crate::candidates::{Entry, Offer};
use crate::env::Env;
use crate::messages::probe::{Kind, Probe};
use crate::path::Rank;
use crate::{EndpointReason, Event, PacketKind, Time, Transmit};

use super::demand::Waker;
use super::probing::Freshness;
use super::{Connection, LEARNED_LIFETIME, Peer};

/// A ping that is due this soon need not be triggered.
const SOON: Duration = Duration::from_millis(100);
/// A ping that was not asked for restarts a finished burst at most this often.
const TRIGGER_EVERY: Duration = Duration::from_secs(5);

impl Peer {
    /// A datagram that carries this peer's tag. `path` is the one back to where it came from, and
    /// `destination` the address on this host that it was sent to.
    pub(crate) fn handle_probe(
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
        let Some(probe) = keys.and_then(|keys| Probe::open(&keys.inbound, datagram)) else {
            return;
        };
        match probe.kind {
            Kind::Ping => self.handle_ping(path, destination, &probe, env, now),
            Kind::Pong => self.handle_pong(path, &probe, env, now),
        }
        self.decide(env, now);
    }

    /// The path by which a probe came, if this side may answer there.
    pub(super) fn admit_probe(&self, path: PathId, env: &Env) -> Option<PathId> {
        if !self.probes() {
            return None;
        }
        let remote = env.admit(path.remote).ok()?;
        let path = self.path_seen(path.with_remote(remote));
        // A source port serves one peer. A probe at another peer's port is no path of this one.
        let is_ours = |port| env.ports.is_of(port, &self.spec.key);
        let is_of_another = !path.pin().is_none_or(is_ours);
        // An answer would show the peer this node's address.
        let shows_address = self.spec.relay == RelayPolicy::Only && !self.is_relay(path);
        // This host can't send on the path. An answer would make the peer choose it.
        let is_barred =
            self.table.get(&path).is_some_and(Entry::is_barred) && !self.choice.is_selected(path);
        (!is_of_another && !shows_address && !is_barred).then_some(path)
    }

    fn handle_ping(
        &mut self,
        path: PathId,
        destination: Option<IpAddr>,
        ping: &Probe,
        env: &mut Env,
        now: Time,
    ) {
        let freshness = self.prober.judge(ping.stamp(), env.session);
        let is_within_limit = match freshness {
            // A copy: the original was answered.
            Freshness::Seen => false,
            Freshness::Fresh => true,
            // It may be a replay, even from a forged source.
            Freshness::KnowsUsNot | Freshness::OtherRun => self.prober.may_answer_unsure(now),
        };
        if !is_within_limit || !env.pongs.take(now) {
            return;
        }
        self.timeline.heard(PacketKind::Probe, path, now);
        match freshness {
            Freshness::Seen => {}
            // Nobody here or there has anything to say.
            Freshness::Fresh if self.rests() && ping.at_ease => {
                self.send_pong(path, destination, ping, env, now);
            }
            Freshness::Fresh => self.on_fresh_ping(path, destination, ping, env, now),
            // An answer tells an honest peer our session, so that its next ping names it. It has
            // the ping's size, and nothing else changes.
            Freshness::KnowsUsNot => self.send_pong(path, destination, ping, env, now),
            // The answer to a ping of ours tells the peer's present session. It has the size of
            // what came, and nothing else changes.
            Freshness::OtherRun => {
                if let Some(payload) = self.ping(path, env, now) {
                    self.send(PacketKind::Probe, Transmit::new(path, payload), env, now);
                }
            }
        }
    }

    fn on_fresh_ping(
        &mut self,
        path: PathId,
        destination: Option<IpAddr>,
        ping: &Probe,
        env: &mut Env,
        now: Time,
    ) {
        self.rouse(Waker::Peer, env, now);
        self.hear_ease(ping.at_ease, now);
        let known = self.table.get(&path).is_some();
        // The volley that runs has found enough paths. More would only cost probes.
        if !known && self.has_enough_finds() {
            return;
        }
        self.learn_from_peer(path, CandidateKind::PeerReflexive, env, now);
        self.believe(path, ping, env, now);
        self.send_pong(path, destination, ping, env, now);
        if let Some(entry) = self.table.get_mut(&path).filter(|_| ping.heard) {
            entry.on_exchange(now);
        }
        if let Some(about) = ping.about {
            self.vigilance.on_peers_ping(about.profile.lifetime);
            self.heed_about(about, env, now);
        }
        // Host addresses are for WireGuard's own port: there is no NAT on the way that another
        // source port could pass.
        let hosts = ping.hosts.iter().filter(|_| path.pin().is_none());
        for host in hosts {
            self.learn_from_peer(path.with_remote(*host), CandidateKind::Host, env, now);
        }
        if !known {
            // The peer has moved, or something between us has changed.
            self.doubt(now);
        }
        self.trigger(path, now);
        self.send_pings(env, now);
    }

    fn send_pong(
        &mut self,
        path: PathId,
        pinged: Option<IpAddr>,
        ping: &Probe,
        env: &mut Env,
        now: Time,
    ) {
        let Some(payload) = self.pong(path, ping, env, now) else {
            return;
        };
        // Answer from the address that was pinged, unless that was a broadcast.
        let source = pinged.filter(|ip| env.local.is_own_ip(*ip));
        let pong = Transmit {
            source,
            ..Transmit::new(path, payload)
        };
        self.send(PacketKind::Answer, pong, env, now);
    }

    fn handle_pong(&mut self, path: PathId, pong: &Probe, env: &mut Env, now: Time) {
        // It answers a ping of an earlier run of this node.
        if pong.to_session != env.session && pong.to_session != 0 {
            return;
        }
        // It is a copy, late, or answers no ping of this run.
        let Some(ping) = self.prober.take_pending(&pong.transaction, now) else {
            return;
        };
        self.timeline.answered((ping.path, ping.sent), path, now);
        // The transaction was random: this is the peer's present run.
        if self.prober.on_run(pong.session, now) {
            self.on_restart(env, now);
        }
        // A question at rest only tells the peer's run.
        if self.rests() && pong.at_ease {
            return;
        }
        self.rouse(Waker::Peer, env, now);
        self.hear_ease(pong.at_ease, now);
        self.prober.seen_as = pong.observed;
        self.note_sighting(ping.path, pong, env, now);
        if ping.path != path {
            // The answer to a beacon, or from a peer with several addresses: a path to ask on, not
            // a proof.
            self.learn_from_peer(path, CandidateKind::PeerReflexive, env, now);
            self.trigger(path, now);
            self.send_pings(env, now);
            return;
        }
        if self.table.get(&path).is_none() {
            // Only a ping of a new run was seen from there so far.
            self.learn_from_peer(path, CandidateKind::PeerReflexive, env, now);
        }
        let later = self.prober.pings_after(&ping);
        if let Some(entry) = self.table.get_mut(&path) {
            entry.note_answered(later);
        }
        self.on_answer(path, now.since(ping.sent), pong, env, now);
    }

    /// A ping was answered on the path that it took.
    fn on_answer(&mut self, path: PathId, rtt: Duration, pong: &Probe, env: &mut Env, now: Time) {
        let in_use = self.rank_in_use().filter(|(in_use, _)| *in_use != path);
        let connected = self.connection(now) != Connection::Down;
        let same_site = self.table.same_site;
        let was_answered = self.is_answered(path, now);
        self.learn_of_rest(env, now);
        self.vigilance.on_pong();
        let Some(entry) = self.table.get_mut(&path) else {
            return;
        };
        entry.on_pong(rtt, now);
        if let Some((_, current)) = in_use {
            let relays = self.spec.relays.as_deref();
            let rank = entry.rank(path, same_site, relays);
            entry.on_compared(rank.is_worth_leaving(&current));
        }
        let was_proven = entry.is_proven(now);
        self.believe(path, pong, env, now);
        if let Some(selection) = self.choice.selected_mut(path) {
            selection.answered = Some(now);
            selection.doubted = None;
        }
        let in_service = self.choice.is_selected(path) && connected;
        let watch_at = in_service.then(|| self.watch_at(env, now));
        let Some(entry) = self.table.get_mut(&path) else {
            return;
        };
        if in_service {
            // The burst is over: it has told what it was for.
            entry.step = usize::MAX;
            entry.next_ping = watch_at;
        }
        if !was_proven && entry.is_proven(now) {
            env.out.event(Event::PathProven {
                peer: self.spec.key,
                path,
                rtt,
            });
        }
        // The choice comes first, so that this ping carries the nomination. If the choice itself
        // has sent a ping, no other is needed.
        self.decide(env, now);
        let pinged_now = |entry: &Entry| entry.last_ping == Some(now);
        if !was_answered && !self.table.get(&path).is_some_and(pinged_now) {
            self.ping_now(path, env, now);
        }
    }

    /// The path in use and its worth.
    fn rank_in_use(&self) -> Option<(PathId, Rank)> {
        let in_use = self.choice.selection.as_ref()?.path;
        let entry = self.table.get(&in_use)?;
        Some((
            in_use,
            entry.rank(in_use, self.table.same_site, self.spec.relays.as_deref()),
        ))
    }

    /// Flags of a fresh message.
    fn believe(&mut self, path: PathId, probe: &Probe, env: &mut Env, now: Time) {
        if let Some(entry) = self.table.get_mut(&path) {
            entry.on_heard(probe.heard, now);
        }
        self.heed_deafness(path, probe.deaf, env, now);
        if probe.unheard {
            self.heed_unheard(path, env, now);
        }
        self.choice
            .on_peer_says(path, probe.in_use, probe.sequence, now);
        let in_use = self.choice.is_selected(path) && self.device_path() == Some(path);
        if !probe.checking || !in_use {
            return;
        }
        // Without keys a sign of life would be a handshake. It would cross the handshake that the
        // peer has just begun, and both would fail.
        let can_answer = self.has_live_session(now) && self.device.session(now).has_keys();
        if can_answer && self.choice.may_show_life(now) {
            self.set_endpoint(path, true, EndpointReason::Asked, env, now);
        }
    }

    fn learn_from_peer(&mut self, path: PathId, kind: CandidateKind, env: &mut Env, now: Time) {
        let offer = Offer {
            path,
            kind,
            origin: &Origin::Peer,
            expires: now + LEARNED_LIFETIME,
            recorded: false,
        };
        self.learn(offer, env, now);
    }

    /// A packet came by this path: ping it at once, while its NAT is open.
    fn trigger(&mut self, path: PathId, now: Time) {
        let Some(entry) = self.table.get_mut(&path) else {
            return;
        };
        let soon = entry.next_ping.is_some_and(|next| next <= now + SOON);
        let just_asked = entry.last_ping.is_some_and(|at| now.since(at) < SOON);
        if entry.is_proven(now) || soon {
            return;
        }
        // The packet shows that the peer's NAT is open too, so openers are no longer needed.
        let pause = if entry.burst == Burst::Direct {
            TRIGGER_EVERY
        } else {
            Duration::ZERO
        };
        if now.since(entry.burst_started) >= pause {
            self.start_burst(path, Burst::Direct, now);
        } else if !just_asked {
            entry.next_ping = Some(now);
        }
    }

    /// The peer runs anew and has heard nothing yet.
    fn on_restart(&mut self, env: &mut Env, now: Time) {
        for (_, entry) in self.table.iter_mut() {
            entry.forget_heard();
        }
        self.choice.forget_peers_choice();
        self.sizing.forget();
        self.search_again(env, now);
    }
}
