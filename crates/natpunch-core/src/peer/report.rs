//! What is to be seen of a peer.

use std::time::Duration;

use natpunch_types::{CandidateKind, Mapping, Origin, PathId, RelayPolicy, Route};

use crate::candidates::Entry;
use crate::env::Env;
use crate::gather::Local;
use crate::nat::profile::NatProfile;
use crate::path::Tier;
use crate::{CandidateStatus, NotProbed, PathKind, PeerState, PeerStatus, Time};

use super::selection::{Check, How};
use super::{Connection, DEAD, Peer};

impl Peer {
    pub(crate) fn status(&self, env: &Env, now: Time) -> PeerStatus {
        let in_use = match &self.choice.selection {
            Some(selection) if self.is_connected(now) => Some(selection.path),
            _ if !self.probes() && self.connection(now) != Connection::Down => self.device_path(),
            _ => None,
        };
        let relay = in_use
            .and_then(|path| self.table.get(&path))
            .filter(|entry| entry.is_relay());
        let same_site = self.table.same_site;
        let tier = |path: PathId| {
            let unknown = || Tier::new(CandidateKind::PeerReflexive, path.remote, None, same_site);
            let entry = self.table.get(&path);
            entry.map_or_else(unknown, |entry| entry.tier(path, same_site))
        };
        // Until WireGuard has shown that it works on a direct path, the change from the relay may
        // cost a packet.
        let is_leaving_relay = self.choice.selection.as_ref().is_some_and(|s| {
            let checked = matches!(s.check, Check::Passed | Check::Lost);
            s.how == How::ChosenOverRelay && !checked
        });
        let rests = |path: PathId| self.choice.is_selected(path) && self.is_idle(env, now);
        PeerStatus {
            key: self.spec.key,
            name: self.spec.name.clone(),
            managed: self.spec.managed,
            path: in_use.map_or(PathKind::None, |path| match tier(path) {
                _ if is_leaving_relay => PathKind::Relay,
                Tier::Lan => PathKind::Lan,
                Tier::Direct | Tier::Tunnel => PathKind::Direct,
                Tier::Relay | Tier::Stream => PathKind::Relay,
            }),
            local: in_use.map(|path| path.local),
            relayed_by: relay
                .iter()
                .flat_map(|entry| entry.origins().filter_map(Origin::instance))
                .map(ToString::to_string)
                .collect(),
            relay_policy: self.spec.relay,
            nat: self.punching.peer_nat().map(NatProfile::status),
            relay: self.relay_use(now),
            endpoint: self.device.endpoint,
            path_mtu: in_use.and(self.path_mtu()),
            rtt: in_use.and_then(|path| self.table.get(&path)?.rtt),
            loss_percent: in_use.and_then(|path| self.table.get(&path)?.loss_percent(now)),
            handshake_age: self.device.handshake_seen.map(|at| now.since(at)),
            rx_bytes: self.device.rx_bytes,
            tx_bytes: self.device.tx_bytes,
            seen_as: self.prober.seen_as,
            state: self.state(&env.local, now),
            relay_reason: relay.and_then(|_| self.relay_reason(&env.local, now)),
            probes_unanswered: self.is_connected(now) && self.connection(now) == Connection::Down,
            has_twins: self.prober.has_twins(now),
            strategy: self.punching.in_words(),
            candidates: self
                .table
                .iter()
                .map(|(path, entry)| CandidateStatus {
                    local: path.local,
                    address: path.remote,
                    kind: entry.kind,
                    origins: entry.origins().map(ToString::to_string).collect(),
                    age: now.since(entry.learned),
                    last_probe: entry.last_ping.map(|at| now.since(at)),
                    rtt: entry.rtt,
                    probes: entry.counts.0,
                    answers: entry.counts.1,
                    last_answer: entry.last_pong.map(|(at, _)| now.since(at)),
                    not_probed: not_probed(*path, entry, &env.local),
                    answered: self.is_answered(*path, now),
                    proven: entry.is_proven(now) || rests(*path),
                    wireguard_blocked: entry.is_blocked(now),
                })
                .collect(),
        }
    }

    /// When a ping on the path in use was last answered, and its round trip.
    pub(crate) fn last_answer(&self) -> Option<(Time, Duration)> {
        let path = self.choice.selection.as_ref()?.path;
        self.table.get(&path)?.last_pong
    }

    /// The path in use passes through a relay.
    pub(crate) fn is_relayed(&self) -> bool {
        let in_use = self.choice.selection.as_ref();
        in_use.is_some_and(|selection| self.is_relay(selection.path))
    }

    /// What WireGuard has counted, both ways.
    pub(crate) fn bytes(&self) -> u64 {
        self.device.rx_bytes.saturating_add(self.device.tx_bytes)
    }

    /// How the other end of a path was found, if the path is known.
    pub(crate) fn kind_of(&self, path: &PathId) -> Option<CandidateKind> {
        self.table.get(path).map(|entry| entry.kind)
    }

    /// WireGuard works, though our probes may be unanswered, as where the peer's natpunch has
    /// ended.
    pub(super) fn has_live_session(&self, now: Time) -> bool {
        let fresh = self.device.session(now).has_fresh_keys();
        self.connection(now) != Connection::Down || self.choice.selection.is_some() && fresh
    }

    /// The same as people are told it. A keepalive is all that an idle node sends to a peer that has
    /// died, so where pings are unanswered, a keepalive that is unanswered for as long counts, too.
    fn is_connected(&self, now: Time) -> bool {
        let unanswered = self.device.unanswered;
        let is_silent = unanswered.is_some_and(|since| now.since(since) >= DEAD);
        let is_down = self.connection(now) == Connection::Down;
        self.has_live_session(now) && !(is_down && is_silent)
    }

    pub(crate) fn state(&self, local: &Local, now: Time) -> PeerState {
        if self.rests() {
            return PeerState::Resting;
        }
        if self.is_connected(now) {
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
        let retry = if self.probes() {
            self.round.retry_at()
        } else {
            self.plain.retry_at()
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
        if now < self.retreat.ends_at() {
            let wait = self.retreat.ends_at().since(now).as_secs();
            return Some(format!(
                "a direct path was lost soon after it was found; it is used again in {wait} s"
            ));
        }
        if let Some(strategy) = self.punching.in_words() {
            return Some(format!("a direct path is looked for: {strategy}"));
        }
        if let Some(until) = self.round.silent_until() {
            let (reason, wait) = (self.no_path(local, now), until.since(now).as_secs());
            return Some(format!("{reason}; next try in {wait} s"));
        }
        let reason = match self.round.ends_at() {
            Some(_) => "a direct path is looked for",
            None => "a direct path will be looked for",
        };
        Some(reason.to_owned())
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
        let of_use = self.table.iter();
        let of_use = of_use.filter(|(_, entry)| entry.is_relay() == only);
        let paths: Vec<(&PathId, &Entry)> = of_use.collect();
        if let Some((path, _)) = paths.iter().find(|(_, entry)| entry.is_blocked(now)) {
            return format!(
                "probes are answered at {path} but WireGuard's handshake is not: \
                 does a firewall on either host drop the port, do both sides have the same keys?"
            );
        }
        let can_reach = |path: &PathId| local.can_reach(path.remote.ip());
        let tried = paths
            .iter()
            .filter(|(path, e)| !e.is_barred() && can_reach(path));
        let tried = tried.count();
        if let Some((path, _)) = paths.iter().find(|(_, entry)| entry.is_answered(now)) {
            return format!("it answers at {path}, but what it sends first does not arrive");
        }
        let nats = match local.mapping() {
            None => "both NATs give every destination another port",
            Some(Mapping::EndpointIndependent) => {
                "the peer is not where it was seen (the NAT here keeps the port)"
            }
            Some(Mapping::EndpointDependent) => {
                "the NAT here gives every destination another port (endpoint-dependent mapping), \
                 as the peer's may"
            }
        };
        let (addresses, not_tried) = (addresses(tried), self.not_tried(local));
        // A peer that answers through a relay runs.
        let not_running = if self.is_connected(now) {
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
        let count = |of: &dyn Fn(&PathId, &Entry) -> bool| {
            let paths = self.table.iter();
            paths.filter(|(path, entry)| of(path, entry)).count()
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
                count(&|path, _| !local.can_reach(path.remote.ip())),
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

fn not_probed(path: PathId, entry: &Entry, local: &Local) -> Option<NotProbed> {
    match (entry.is_barred(), entry.route) {
        (true, Some(Route::Tunneled)) => Some(NotProbed::BehindTunnel),
        (true, _) => Some(NotProbed::NoRoute),
        (false, _) if !local.can_reach(path.remote.ip()) => Some(NotProbed::NoAddressOfFamily),
        (false, _) => None,
    }
}

fn addresses(count: usize) -> String {
    if count == 1 {
        "its only known address".to_owned()
    } else {
        format!("any of {count} addresses")
    }
}
