//! What is to be seen of a peer.

use std::net::SocketAddr;
use std::time::Duration;

use natpunch_types::{CandidateKind, Mapping, Origin, RelayPolicy, Route};

use crate::candidates::Entry;
use crate::env::Env;
use crate::gather::Local;
use crate::path::Tier;
use crate::{CandidateStatus, PathKind, PeerState, PeerStatus, Time};

use super::round::Phase;
use super::{Check, Peer};

impl Peer {
    pub(crate) fn status(&self, env: &Env, now: Time) -> PeerStatus {
        let in_use = match &self.selection {
            Some(selection) if self.has_live_session(now) => Some(selection.address),
            _ if !self.probes() && self.is_connected(now) => self.device.endpoint,
            _ => None,
        };
        let relay = in_use
            .and_then(|address| self.table.get(&address))
            .filter(|entry| entry.is_relay());
        let same_site = self.table.same_site;
        let tier = |address: SocketAddr| {
            self.table.get(&address).map_or_else(
                || Tier::new(CandidateKind::PeerReflexive, address, None, same_site),
                |entry| entry.tier(address, same_site),
            )
        };
        PeerStatus {
            key: self.spec.key,
            name: self.spec.name.clone(),
            managed: self.spec.managed,
            path: in_use.map_or(PathKind::None, |address| {
                match tier(address) {
                    // Until WireGuard has shown that it works there, the change from the relay may
                    // cost a packet.
                    _ if self
                        .selection
                        .as_ref()
                        .is_some_and(|s| s.from_relay && s.check != Check::Passed) =>
                    {
                        PathKind::Relay
                    }
                    Tier::Lan => PathKind::Lan,
                    Tier::Direct | Tier::Tunnel => PathKind::Direct,
                    Tier::Relay => PathKind::Relay,
                }
            }),
            relayed_by: relay
                .iter()
                .flat_map(|entry| entry.origins().filter_map(Origin::instance))
                .map(ToString::to_string)
                .collect(),
            relay: self.relay_use(now),
            endpoint: self.device.endpoint,
            rtt: in_use.and_then(|address| self.table.get(&address)?.rtt),
            handshake_age: self.device.handshake_seen.map(|at| now.since(at)),
            rx_bytes: self.device.rx_bytes,
            tx_bytes: self.device.tx_bytes,
            seen_as: self.seen_as,
            state: self.state(&env.local, now),
            relay_reason: relay.and_then(|_| self.relay_reason(&env.local, now)),
            probes_unanswered: self.has_live_session(now) && !self.is_connected(now),
            candidates: self
                .table
                .iter()
                .map(|(address, entry)| CandidateStatus {
                    address: *address,
                    kind: entry.kind,
                    origins: entry.origins().map(ToString::to_string).collect(),
                    age: now.since(entry.learned),
                    last_probe: entry.last_ping.map(|at| now.since(at)),
                    rtt: entry.rtt,
                    proven: entry.is_proven(now),
                    wireguard_blocked: entry.is_blocked(now),
                })
                .collect(),
        }
    }

    /// WireGuard works, though our probes may be unanswered, as where the peer's natpunch has
    /// ended.
    pub(super) fn has_live_session(&self, now: Time) -> bool {
        self.is_connected(now) || (self.selection.is_some() && self.device.has_fresh_keys(now))
    }

    pub(crate) fn state(&self, local: &Local, now: Time) -> PeerState {
        if self.has_live_session(now) {
            return PeerState::Connected;
        }
        if self.spec.managed && self.keys.is_none() {
            return PeerState::Unreachable {
                reason: self.unreachable_reason(local, now),
                retry_in: Duration::MAX,
            };
        }
        if self.table.is_empty() {
            let reason = "no address of this peer is known yet: no discovery source has one, \
                          and none is given in the mesh file";
            return PeerState::Waiting {
                reason: reason.to_owned(),
            };
        }
        let retry = match self.round.phase {
            _ if !self.probes() => self.plain.next.filter(|_| self.plain.paused),
            Phase::Silent { until } if self.round.is_unreachable() => Some(until),
            _ => None,
        };
        match retry {
            Some(at) => PeerState::Unreachable {
                reason: self.unreachable_reason(local, now),
                retry_in: at.since(now),
            },
            None => PeerState::Punching,
        }
    }

    /// Why the path in use is no direct one; nothing if the mesh file wants it so.
    fn relay_reason(&self, local: &Local, now: Time) -> Option<String> {
        if self.spec.relay == RelayPolicy::Only {
            return None;
        }
        if now < self.retreat.until {
            let wait = self.retreat.until.since(now).as_secs();
            return Some(format!(
                "a direct path was lost soon after it was found; it is used again in {wait} s"
            ));
        }
        match self.round.phase {
            Phase::Silent { until } => {
                let (reason, wait) = (self.no_path(local, now), until.since(now).as_secs());
                Some(format!("{reason}; next try in {wait} s"))
            }
            Phase::Probing { .. } => Some("a direct path is looked for".to_owned()),
            Phase::Resting => Some("a direct path will be looked for".to_owned()),
        }
    }

    /// The most telling thing that is known of why there is no connection.
    pub(super) fn unreachable_reason(&self, local: &Local, now: Time) -> String {
        if self.spec.managed && self.keys.is_none() {
            return "its public key is not a valid point: check it in the mesh file".to_owned();
        }
        if !self.spec.managed {
            let addresses = addresses(self.table.iter().count());
            return format!(
                "plain WireGuard does not answer a handshake at {addresses}: is it up, does it \
                 know our key?"
            );
        }
        self.no_path(local, now)
    }

    /// The most telling thing that is known of why no path without a relay is in use.
    fn no_path(&self, local: &Local, now: Time) -> String {
        let only = self.spec.relay == RelayPolicy::Only;
        let of_use = self
            .table
            .iter()
            .filter(|(_, entry)| entry.is_relay() == only);
        let places: Vec<(&SocketAddr, &Entry)> = of_use.collect();
        if let Some((address, _)) = places.iter().find(|(_, entry)| entry.is_blocked(now)) {
            return format!(
                "probes are answered at {address} but WireGuard's handshake is not: \
                 does a firewall on either host drop the port, do both sides have the same keys?"
            );
        }
        let tried = places
            .iter()
            .filter(|(address, entry)| !entry.is_barred() && local.can_reach(address.ip()))
            .count();
        if let Some((address, _)) = places.iter().find(|(_, entry)| entry.is_answered(now)) {
            return format!("it answers at {address}, but what it sends first does not arrive");
        }
        let nats = match local.mapping() {
            None => "both NATs give every destination another port",
            Some(Mapping::EndpointIndependent) => {
                "the peer is not where it was seen (the NAT here keeps the port)"
            }
            Some(Mapping::EndpointDependent) => {
                "the NAT here gives every destination another port (endpoint-dependent mapping), \
                 as the peer's may: only a relay helps then"
            }
        };
        let (addresses, not_tried) = (addresses(tried), self.not_tried(local));
        // A peer that answers through a relay runs.
        let not_running = if self.has_live_session(now) {
            ""
        } else {
            "the peer's natpunch is not running, "
        };
        format!(
            "no probe was answered at {addresses}{not_tried}: {not_running}UDP is filtered, or \
             {nats}"
        )
    }

    /// How many candidates were not tried, and why, in brackets; nothing if all were.
    fn not_tried(&self, local: &Local) -> String {
        let count = |of: &dyn Fn(&SocketAddr, &Entry) -> bool| {
            self.table.iter().filter(|(a, entry)| of(a, entry)).count()
        };
        let causes = [
            (
                count(&|_, entry| entry.is_barred() && entry.route == Some(Route::Tunneled)),
                "behind a tunnel of this host",
            ),
            (
                count(&|_, entry| entry.is_barred() && entry.route == Some(Route::Unusable)),
                "without a route from here",
            ),
            (
                count(&|address, _| !local.can_reach(address.ip())),
                "of a family that this host has no address of",
            ),
            (self.table.left_out(), "for want of places"),
        ];
        let known: Vec<String> = causes
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, cause)| format!("{count} {cause}"))
            .collect();
        if known.is_empty() {
            String::new()
        } else {
            format!(" (not tried: {})", known.join(", "))
        }
    }
}

fn addresses(count: usize) -> String {
    if count == 1 {
        "its only known address".to_owned()
    } else {
        format!("any of {count} addresses")
    }
}
