//! Paths through relays: when one is used, when it stands by, and how the pair changes between it
//! and a direct path.
//!
//! WireGuard roams to the source of every authentic packet. While a relay carries packets, one that
//! is still under way can take a device back to the relay right after it was told of a direct path.
//! The answers of that device then take the other device back, and so on. So a relay carries until
//! both sides have chosen the direct path, and from then on forwards only probes. Each side says
//! with every probe which path it has chosen.

use std::time::Duration;

use natpunch_types::{CandidateKind, Origin, PathId, RelayPolicy, RelayUse, backoff};

use crate::candidates::Entry;
use crate::env::Env;
use crate::{EndpointReason, Time};

use super::health::ASK_OTHERS_EVERY;
use super::selection::{Check, How, Selection};
use super::{Connection, Peer, Search};

/// WireGuard sends and hears nothing: pings this much apart tell whether the path is dead.
const WATCH: Duration = Duration::from_millis(1500);
/// A session that ran before us is held to pass a relay for this long, until discovery has told the
/// relays' addresses.
const ADOPTED: Duration = Duration::from_secs(30);
/// WireGuard is brought back from a relay this often, then left there: the other side or a relay
/// breaks the protocol, and a path through the relay is better than none.
const MAX_RESTORED: u32 = 30;
/// A relay over which WireGuard makes a session is kept for this long, unless the handshake can go
/// by another path as it is: a second one beside it would end both. It is kept for as long against
/// another relay, which is hardly better.
pub(super) const STAY: Duration = Duration::from_secs(1);
/// A direct path that was in use for less than this is unreliable ...
const UNRELIABLE: Duration = Duration::from_secs(60);
/// ... and is not used again for this long the first time, doubling with each up to the second
/// figure.
const RETREAT: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(320));

/// A choice of this side may reach the peer this late, or two round trips late.
const NEWS: Duration = Duration::from_millis(100);

/// Retreats from direct paths to a relay.
#[derive(Debug, Default)]
pub(super) struct Retreat {
    /// How many in a row came soon after the change to the direct path.
    count: u32,
    until: Time,
    /// When the last direct path was left.
    left_at: Time,
}

impl Retreat {
    /// No direct path takes the place of a relay before this.
    pub(super) fn ends_at(&self) -> Time {
        self.until
    }

    /// Only a direct path that has answered since then takes the place of a relay: an older answer
    /// may be from before the peer moved.
    pub(super) fn left_at(&self) -> Time {
        self.left_at
    }

    /// A direct path that was in use for `used` is left for a relay.
    fn on_left(&mut self, used: Duration, now: Time) {
        if used < UNRELIABLE {
            self.extend(now);
        } else {
            *self = Self::default();
        }
        self.left_at = now;
    }

    /// WireGuard itself has moved from a direct path to a relay, which the peer has chosen. Once, that
    /// may be because the peer has not heard of this side's choice, and a fresh answer by the direct
    /// path is enough to take it again. Soon after the last time, the path is unreliable.
    fn on_roamed(&mut self, now: Time) {
        if self.left_at > Time::ZERO && now.since(self.left_at) < UNRELIABLE {
            self.extend(now);
        }
        self.left_at = now;
    }

    /// No direct path for a while, longer each time.
    fn extend(&mut self, now: Time) {
        let wait = backoff(RETREAT, self.count);
        self.count = self.count.saturating_add(1);
        self.until = now + wait;
    }
}

impl Peer {
    /// Whether the mesh file allows a path that this origin offers.
    pub(super) fn permits(&self, path: PathId, kind: CandidateKind, origin: &Origin) -> bool {
        let relay = kind == CandidateKind::Relay || self.is_relay(path);
        let is_listed = match (&self.spec.relays, origin.instance()) {
            (Some(relays), Some(instance)) => relays.contains(instance),
            // The peer or WireGuard use the path: they do not say which server's relay it is.
            (Some(_), None) | (None, _) => true,
        };
        let offers_relay = kind == CandidateKind::Relay && origin.instance().is_some();
        match self.spec.relay {
            // The mesh file lists other relays.
            _ if kind == CandidateKind::Relay && !is_listed => false,
            // An allowed instance offers it now, or it was never the port of a relay that is no
            // longer allowed: the peer may go on naming such a port.
            RelayPolicy::Auto => offers_relay || !self.table.is_barred_relay(&path),
            // A direct path would show the peer this node's address. A plain peer can't use
            // relays, so the policy does not apply to it.
            RelayPolicy::Only => relay || !self.spec.managed,
            // A former relay's port stays a relay, whatever the peer calls it.
            RelayPolicy::Never => !relay && !self.table.is_former_relay(&path),
        }
    }

    pub(super) fn is_relay(&self, path: PathId) -> bool {
        self.table.get(&path).is_some_and(Entry::is_relay)
    }

    /// A path of the sort that is looked for: any where only relays may be used, else a direct one.
    pub(super) fn is_sought(&self, path: PathId) -> bool {
        self.spec.relay == RelayPolicy::Only || !self.is_relay(path)
    }

    /// How much the peer is looked for.
    pub(crate) fn search(&self, now: Time) -> Search {
        if self.rests() {
            return Search::Done;
        }
        match self.connection(now) {
            Connection::Settled => Search::Done,
            Connection::Down => Search::Eager,
            // Where many rounds were fruitless, the relay is likely to stay.
            Connection::ByRelay if self.round.is_unreachable() => Search::Patient,
            Connection::ByRelay => Search::Eager,
        }
    }

    /// A path of the sort that is looked for is chosen, though WireGuard may not have shown yet
    /// that it works there.
    pub(super) fn has_found(&self) -> bool {
        let selection = self.choice.selection.as_ref();
        selection.is_some_and(|s| s.check != Check::Lost && self.is_sought(s.path))
    }

    /// What the pair wants of a relay.
    pub(crate) fn relay_use(&self, now: Time) -> RelayUse {
        if !self.probes() || self.rests() || self.spec.relay == RelayPolicy::Never {
            // A plain peer can't bind a relay's port, a peer at rest needs none, and the mesh file may
            // forbid relays.
            return RelayUse::Off;
        }
        let scene = self.scene(now);
        let Some(selection) = &self.choice.selection else {
            // No path is in use: the relay is likely to be the first.
            return RelayUse::Carry;
        };
        if self.is_relay(selection.path) {
            // The relay is the path in use.
            return RelayUse::Carry;
        }
        if scene.health(selection).wants_relay() {
            // The relay has to carry already when the direct path is given up.
            return RelayUse::Carry;
        }
        if selection.how == How::Adopted && now.since(selection.since) < ADOPTED {
            // The session that was found may pass a relay which discovery has not named yet.
            return RelayUse::Carry;
        }
        if self.device.handshake_seen.is_none() {
            // The first handshake may be under way by the relay.
            return RelayUse::Carry;
        }
        if self.choice.is_agreed() {
            // Both sides have chosen the direct path. A packet that the relay still carried would
            // take WireGuard back to it.
            RelayUse::Standby
        } else {
            // The peer may still send by the relay: those packets would be lost.
            RelayUse::Carry
        }
    }

    /// When another proven path is to be asked next, as the one in use is suspect: once at first,
    /// and then after each ping on the path in use.
    pub(super) fn ask_others_at(&self, env: &Env, now: Time) -> Option<Time> {
        let others = self.others_to_ask(now);
        let first = others.into_iter().map(|(at, _)| at).min()?;
        // While the budget is empty there is nothing to be done.
        Some(first.max(env.pings.available_at()?))
    }

    /// Asks the other proven paths, one of which may take the place of the one in use.
    pub(super) fn ask_others(&mut self, env: &mut Env, now: Time) {
        for (at, path) in self.others_to_ask(now) {
            if at <= now {
                self.ping_now(path, env, now);
            }
        }
    }

    /// The paths that may take the place of the one in use if they answer, and when to ask each.
    fn others_to_ask(&self, now: Time) -> Vec<(Time, PathId)> {
        let Some(selection) = &self.choice.selection else {
            return Vec::new();
        };
        let scene = self.scene(now);
        let Some(since) = scene.health(selection).asks_others() else {
            return Vec::new();
        };
        let in_use = self.table.get(&selection.path);
        let pinged = in_use.and_then(|entry| entry.last_ping);
        let mut others = Vec::new();
        for (path, entry) in scene.usable() {
            if *path == selection.path || entry.is_answered_since(since) {
                continue;
            }
            match entry.last_ping.filter(|at| *at >= since) {
                None => others.push((now, *path)),
                Some(asked) if pinged.is_some_and(|pinged| pinged > asked) => {
                    others.push((asked + ASK_OTHERS_EVERY, *path));
                }
                // It was asked since the last ping on the path in use, which sets the pace.
                Some(_) => {}
            }
        }
        others
    }

    /// When a relay may be left, or the pair's use of relays may change, without any input; always
    /// after `now`.
    pub(super) fn relaying_changes_at(&self, now: Time) -> Option<Time> {
        let selection = self.choice.selection.as_ref()?;
        let adopted = (selection.how == How::Adopted).then_some(selection.since + ADOPTED);
        let on_relay = self.is_relay(selection.path);
        let retreated = on_relay.then_some(self.retreat.ends_at());
        let stayed = on_relay.then_some(selection.since + STAY);
        let moments = [adopted, retreated, stayed].into_iter().flatten();
        moments.filter(|at| *at > now).min()
    }

    /// The path in use is about to be left for this one. Says how the new one comes into use.
    pub(super) fn leave_for(&mut self, path: PathId, now: Time) -> How {
        let Some(selection) = &self.choice.selection else {
            return How::Chosen;
        };
        match (self.is_relay(selection.path), self.is_relay(path)) {
            // The relay stops carrying, so WireGuard has little time to show that it works.
            (true, false) => How::ChosenOverRelay,
            // The direct path failed. If it did so soon, it is not tried again for a while.
            (false, true) => {
                let used = now.since(selection.since);
                self.retreat.on_left(used, now);
                How::Chosen
            }
            (true, true) | (false, false) => How::Chosen,
        }
    }

    /// WireGuard has moved to this path, and it is left there.
    pub(super) fn note_roaming(&mut self, path: PathId, now: Time) {
        let in_use = self.choice.selection.as_ref().map(|s| s.path);
        if in_use.is_some_and(|in_use| !self.is_relay(in_use)) && self.is_relay(path) {
            self.retreat.on_roamed(now);
        }
    }

    /// Whether WireGuard's move to `path` is to be undone.
    pub(super) fn resists(&self, path: PathId, now: Time) -> bool {
        let Some(selection) = &self.choice.selection else {
            return false;
        };
        if self.scene(now).health(selection).wants_relay() {
            // The path in use may be dead. WireGuard has heard the peer on the other one.
            return false;
        }
        let unheard = self
            .table
            .get(&path)
            .is_some_and(|entry| entry.is_unheard(now));
        if unheard && selection.restored < MAX_RESTORED {
            // The peer does not hear WireGuard there. It goes on sending there until it learns
            // that its answers do not arrive.
            return true;
        }
        let (moved_to_relay, on_relay) = (self.is_relay(path), self.is_relay(selection.path));
        if self.spec.relay == RelayPolicy::Only {
            // A packet came past the relay, which is the only allowed path.
            return on_relay && !moved_to_relay;
        }
        // The peer's word counts only from when it could know of this side's choice.
        let chosen = selection.since + NEWS.max(self.rtt(path) * 2);
        // A packet that was still under way through a relay took WireGuard there. But if the peer
        // has chosen that relay, or if this happens again and again, the move is intended. Of two
        // relays the controlling side holds on to its own: what came by the other one left before
        // the peer knew of the choice. If both sides gave way, each would follow where the other
        // has just been, without end.
        let has_chosen = !on_relay || self.choice.controlling;
        moved_to_relay
            && has_chosen
            && selection.restored < MAX_RESTORED
            && !self.choice.peer_uses_since(path, chosen)
    }

    /// Brings WireGuard back to the path in use.
    pub(super) fn hold_on(&mut self, env: &mut Env, now: Time) {
        let Some(selection) = &mut self.choice.selection else {
            return;
        };
        selection.restored += 1;
        let path = selection.path;
        // WireGuard will be left on the relay the next time, so the direct path rests.
        if selection.restored >= MAX_RESTORED {
            self.retreat.extend(now);
        }
        self.set_endpoint(path, false, EndpointReason::Restored, env, now);
    }

    /// The peer says whether its WireGuard hears nothing on this path. The only path is kept: the
    /// reason may be one that every path shares.
    pub(super) fn heed_deafness(&mut self, path: PathId, deaf: bool, env: &mut Env, now: Time) {
        if deaf && !self.has_other(path, now) {
            return;
        }
        let Some(entry) = self.table.get_mut(&path) else {
            return;
        };
        entry.on_deaf(deaf, now);
        if deaf && self.choice.is_selected(path) {
            self.leave_deaf(path, env);
        }
    }

    /// The peer's WireGuard receives nothing. This side may hear the peer all the same: a firewall
    /// may drop one direction only.
    pub(super) fn heed_unheard(&mut self, path: PathId, env: &mut Env, now: Time) {
        let is_passed = |s: &mut Selection| s.check == Check::Passed;
        let in_use = self.choice.selected_mut(path).is_some_and(is_passed);
        // If probes do not pass either, the path is dead, which `Health` finds.
        let passes = self.table.get(&path).is_some_and(|e| e.unanswered == 0);
        let sends = self.device.has_sent_all_the_time(now);
        if in_use && passes && sends && !self.may_be_size(now) && self.has_other(path, now) {
            self.block(path, env, now);
            if let Some(entry) = self.table.get_mut(&path) {
                entry.on_unheard();
            }
        }
    }

    /// The first sign of a dead path is that WireGuard sends and hears nothing.
    pub(super) fn watch_traffic(&mut self, env: &mut Env, now: Time) {
        if !self.device.is_waiting() {
            return;
        }
        let in_use = self.choice.selection.as_ref();
        let Some(selection) = in_use.filter(|s| s.check == Check::Passed) else {
            return;
        };
        let path = selection.path;
        let Some(entry) = self.table.get(&path).filter(|e| e.unanswered == 0) else {
            // Pings are unanswered too. Their number and age tell more (`Health`).
            return;
        };
        let asked = entry.last_ping.is_some_and(|at| now.since(at) < WATCH);
        if !asked {
            self.ping_now(path, env, now);
        } else if self.device.is_cut_off(now) && !self.may_be_size(now) && self.has_other(path, now)
        {
            // Probes pass and WireGuard does not. Without another path, this one stays.
            self.block(path, env, now);
        }
    }

    /// There is another path that could be used.
    pub(super) fn has_other(&self, path: PathId, now: Time) -> bool {
        let scene = self.scene(now);
        let mut usable = scene.usable();
        usable.any(|(other, _)| *other != path)
    }
}
