//! Paths through relays: when one is used, when it stands by, and how the pair changes between it
//! and a direct path.
//!
//! WireGuard roams to wherever an authentic packet comes from. As long as a relay carries packets,
//! those that are still under way would take a device back to the relay right after it was told of
//! a direct path, and from there its answers would take the other device back, and so on. Hence a
//! relay carries until both sides have chosen the direct path, which each tells the other with
//! every probe, and from then on lets only probes through.

use std::net::SocketAddr;
use std::time::Duration;

use natpunch_types::{CandidateKind, Origin, RelayPolicy, RelayUse};

use crate::env::Env;
use crate::{EndpointReason, Time};

use super::{Check, Peer};

/// A path in use on which pings are unanswered for this long (or three round trips) is suspected:
/// relays shall be ready to carry, and the other proven paths are asked.
const SUSPECT: Duration = Duration::from_millis(900);
/// After this long (or four round trips), and this many pings, another path that answers takes its
/// place.
const SILENT: Duration = Duration::from_millis(2400);
const SILENT_PINGS: u32 = 6;
/// WireGuard sends and hears nothing: pings this much apart tell whether the path is dead.
const WATCH: Duration = Duration::from_millis(1500);
/// The same for this long: the peer is asked for a sign of life of its WireGuard ...
const ASK: Duration = Duration::from_secs(3);
/// ... and if there is none though pings are answered, the path does not let WireGuard through.
const DEAF: Duration = Duration::from_secs(8);
/// A session that ran before us is held to pass a relay for this long, until discovery has told the
/// relays' addresses.
const ADOPTED: Duration = Duration::from_secs(30);
/// WireGuard is brought back from a relay this often, then left there: the other side or a relay
/// does not do its part.
const MAX_RESTORED: u32 = 30;
/// A relay over which WireGuard makes a session, or has just made one, is kept for this long: the
/// peer's agent has to see the session before it sets another endpoint, or it would take its device
/// for one without a session and begin anew.
pub(super) const STAY: Duration = Duration::from_secs(1);
/// A direct path that was in use for less than this is unreliable ...
const UNRELIABLE: Duration = Duration::from_secs(60);
/// ... and is not used again for this long the first time, doubling with each up to the second
/// figure.
const RETREAT: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(320));

/// Retreats from direct paths to a relay.
#[derive(Debug, Default)]
pub(super) struct Retreat {
    /// Too early ones in a row.
    count: u32,
    /// No direct path is used before.
    pub(super) until: Time,
}

impl Peer {
    /// Whether what this origin offers may be used at all.
    pub(super) fn permits(
        &self,
        address: SocketAddr,
        kind: CandidateKind,
        origin: &Origin,
    ) -> bool {
        let relay = kind == CandidateKind::Relay || self.is_relay(&address);
        // What the peer or WireGuard uses is not known by whose relay it is.
        let listed = match (origin.instance(), &self.spec.relays) {
            (Some(instance), Some(relays)) => relays.contains(instance),
            (None, _) | (_, None) => true,
        };
        let offers_relay = kind == CandidateKind::Relay && origin.instance().is_some();
        match self.spec.relay {
            _ if kind == CandidateKind::Relay && !listed => false,
            // Whoever says so: what was a relay's and is offered by none that may, is not used.
            RelayPolicy::Auto => offers_relay || !self.table.is_barred_relay(&address),
            RelayPolicy::Only => relay || !self.spec.managed,
            RelayPolicy::Never => !relay && !self.table.is_former_relay(&address),
        }
    }

    pub(super) fn is_relay(&self, address: &SocketAddr) -> bool {
        self.table
            .get(address)
            .is_some_and(|entry| entry.is_relay())
    }

    /// Connected, and nothing better is looked for.
    pub(crate) fn is_settled(&self, now: Time) -> bool {
        self.is_connected(now) && (!self.probes() || self.has_found())
    }

    /// Whether the peer is looked for: `None` if not, true while it is worth haste.
    pub(crate) fn search(&self, now: Time) -> Option<bool> {
        (!self.is_settled(now)).then(|| !self.is_connected(now) || !self.round.is_unreachable())
    }

    /// A path of the sort that is looked for is chosen.
    pub(super) fn has_found(&self) -> bool {
        self.selection.as_ref().is_some_and(|selection| {
            !selection.lost
                && (!self.is_relay(&selection.address) || self.spec.relay == RelayPolicy::Only)
        })
    }

    /// What the pair wants of a relay.
    pub(crate) fn relay_use(&self, now: Time) -> RelayUse {
        if !self.probes() || self.spec.relay == RelayPolicy::Never {
            return RelayUse::Off;
        }
        let Some(selection) = &self.selection else {
            return RelayUse::Carry;
        };
        let adopted = selection.adopted && now.since(selection.since) < ADOPTED;
        let both = self.peer_uses == Some(selection.address);
        let good = !selection.lost && !adopted && both && self.device.handshake_seen.is_some();
        if good && !self.is_relay(&selection.address) && !self.is_suspect(now) {
            RelayUse::Standby
        } else {
            RelayUse::Carry
        }
    }

    /// The best relay, while another path is in use.
    pub(super) fn standby(&self, now: Time) -> Option<SocketAddr> {
        let selection = self
            .selection
            .as_ref()
            .filter(|selection| !self.is_relay(&selection.address))?;
        let relays = self.table.iter().filter(|(address, entry)| {
            entry.is_relay() && entry.is_usable(now) && **address != selection.address
        });
        self.best(relays)
    }

    /// Since when pings on the path in use are unanswered, and their number.
    fn silence(&self) -> Option<(Time, u32, Duration)> {
        let entry = self.table.get(&self.selection.as_ref()?.address)?;
        Some((
            entry.unanswered_since?,
            entry.unanswered,
            entry.rtt.unwrap_or_default(),
        ))
    }

    fn is_suspect(&self, now: Time) -> bool {
        self.silence()
            .is_some_and(|(since, _, rtt)| now.since(since) >= SUSPECT.max(rtt * 3))
    }

    /// Since when the path in use is silent, if that is long enough for another to take its place.
    pub(super) fn silent_since(&self, now: Time) -> Option<Time> {
        let (since, pings, rtt) = self.silence()?;
        (pings >= SILENT_PINGS && now.since(since) >= SILENT.max(rtt * 4)).then_some(since)
    }

    /// Asks the other proven paths when the one in use is suspected.
    pub(super) fn ask_others(&mut self, env: &mut Env, now: Time) {
        let Some((since, _, _)) = self.silence().filter(|_| self.is_suspect(now)) else {
            return;
        };
        let others: Vec<SocketAddr> = self
            .table
            .iter()
            .filter(|(address, entry)| {
                let asked = entry
                    .last_ping
                    .is_some_and(|at| at >= since && now.since(at) < SUSPECT / 2);
                !self.is_selected(**address)
                    && entry.is_usable(now)
                    && !entry.is_answered_since(since)
                    && !asked
            })
            .map(|(address, _)| *address)
            .collect();
        for address in others {
            self.ping_now(address, env, now);
        }
    }

    /// When the relays' part may change.
    pub(super) fn relaying_timeout(&self, now: Time) -> Option<Time> {
        let selection = self.selection.as_ref()?;
        let suspect = self
            .silence()
            .map(|(since, _, rtt)| since + SUSPECT.max(rtt * 3));
        let adopted = selection.adopted.then_some(selection.since + ADOPTED);
        let retreat = self
            .is_relay(&selection.address)
            .then_some(self.retreat.until.max(selection.since + STAY));
        [suspect, adopted, retreat]
            .into_iter()
            .flatten()
            .filter(|at| *at > now)
            .min()
    }

    /// The path in use is about to be left for this one; true if for a direct one from a relay.
    pub(super) fn leave_for(&mut self, address: SocketAddr, now: Time) -> bool {
        let Some(selection) = &self.selection else {
            return false;
        };
        let (from, to) = (self.is_relay(&selection.address), self.is_relay(&address));
        if !from && to {
            if now.since(selection.since) < UNRELIABLE {
                self.retreat(now);
            } else {
                self.retreat = Retreat::default();
            }
        }
        from && !to
    }

    /// No direct path for a while.
    fn retreat(&mut self, now: Time) {
        let (first, last) = RETREAT;
        let wait = last.min(first * 2_u32.saturating_pow(self.retreat.count.min(8)));
        self.retreat = Retreat {
            count: self.retreat.count.saturating_add(1),
            until: now + wait,
        };
    }

    /// Whether WireGuard's move to `address` is to be undone: it followed a packet that was still
    /// under way through a relay, or one that came past the relay that alone may be used.
    pub(super) fn resists(&self, address: SocketAddr, now: Time) -> bool {
        let Some(selection) = &self.selection else {
            return false;
        };
        let only = self.spec.relay == RelayPolicy::Only;
        let strays = self.is_relay(&address) != only && self.is_relay(&selection.address) == only;
        strays
            && !selection.lost
            && (only || selection.restored < MAX_RESTORED)
            && !self.is_suspect(now)
            && (only || self.peer_uses != Some(address))
    }

    /// Brings WireGuard back to the path in use.
    pub(super) fn hold_on(&mut self, env: &mut Env, now: Time) {
        let Some(selection) = &mut self.selection else {
            return;
        };
        selection.restored += 1;
        let address = selection.address;
        if selection.restored >= MAX_RESTORED {
            self.retreat(now);
        }
        self.set_endpoint(address, false, EndpointReason::Restored, env, now);
    }

    /// An origin no longer offers an address.
    pub(super) fn withdraw(&mut self, address: SocketAddr, origin: &Origin, now: Time) {
        let address = natpunch_types::canonical(address);
        if self.table.withdraw(&address, origin) && self.is_selected(address) {
            self.doubt(now);
        }
        self.table.expire(self.keep(), now);
    }

    /// WireGuard has heard nothing for so long that the peer is asked for a sign of life.
    pub(super) fn is_deaf(&self, now: Time) -> bool {
        self.device
            .unanswered_for(now)
            .is_some_and(|unanswered| unanswered >= ASK)
    }

    /// The peer says whether its WireGuard hears nothing on this path. Where it is the only one it
    /// is kept: it may be that WireGuard passes nowhere.
    pub(super) fn heed_deafness(
        &mut self,
        address: SocketAddr,
        deaf: bool,
        env: &mut Env,
        now: Time,
    ) {
        let has_another = self
            .table
            .iter()
            .any(|(other, entry)| *other != address && entry.is_usable(now));
        if deaf && !has_another {
            return;
        }
        let Some(entry) = self.table.get_mut(&address) else {
            return;
        };
        entry.on_deaf(deaf, now);
        if deaf && self.is_selected(address) {
            self.leave_deaf(address, env);
        }
    }

    /// The peer's WireGuard receives nothing. That ours hears the peer's proves nothing of the
    /// other direction, where all that it sends may be dropped.
    pub(super) fn heed_unheard(&mut self, address: SocketAddr, env: &mut Env, now: Time) {
        let in_use = self.selection.as_ref().is_some_and(|selection| {
            selection.address == address && selection.check == Check::Passed
        });
        let has_another = self
            .table
            .iter()
            .any(|(other, entry)| *other != address && entry.is_usable(now));
        // Where probes do not pass either, the path is dead, which is noticed otherwise.
        let passes = self
            .table
            .get(&address)
            .is_some_and(|entry| entry.unanswered == 0);
        if in_use && passes && has_another && self.device.has_sent_all_the_time(now) {
            self.block(address, env, now);
        }
    }

    /// What WireGuard sends without hearing anything is the first sign of a dead path.
    pub(super) fn watch_traffic(&mut self, env: &mut Env, now: Time) {
        let Some(unanswered) = self.device.unanswered_for(now) else {
            return;
        };
        let Some(selection) = self
            .selection
            .as_ref()
            .filter(|s| s.check == Check::Passed && !s.lost)
        else {
            return;
        };
        let address = selection.address;
        let Some(entry) = self.table.get(&address) else {
            return;
        };
        let asked = entry.last_ping.is_some_and(|at| now.since(at) < WATCH);
        let others = |peer: &Self| {
            peer.table
                .iter()
                .any(|(other, entry)| *other != address && entry.is_usable(now))
        };
        if entry.unanswered == 0 && !asked {
            self.ping_now(address, env, now);
        } else if entry.unanswered == 0 && unanswered >= DEAF && others(self) {
            self.block(address, env, now);
        }
    }
}
