//! Which of several proven paths to use: a pure ranking with hysteresis, apart from all state.

use std::cmp::Ordering;
use std::net::SocketAddr;
use std::time::Duration;

use natpunch_types::{CandidateKind, Route, is_forwarder, is_mesh_lan};

/// A path of the same tier and place replaces the one in use only if its round trip is shorter by
/// more than this share ...
const GAIN_PERCENT: u32 = 10;
/// ... and by more than this time ...
const GAIN: Duration = Duration::from_millis(5);
/// ... on this many samples in a row.
pub(crate) const SAMPLES: u8 = 3;

/// What separates paths more than their round trip does, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Tier {
    /// Within one site. It keeps to itself what a direct path shows to others, and is worth a
    /// little of its round trip, but not more: what looks like a LAN may be a bridge over a slow
    /// link.
    Lan,
    Direct,
    /// Within a tunnel of another network.
    Tunnel,
    Relay,
    /// Through a relay, and to it in a stream: what is lost there holds up what follows.
    Stream,
}

impl Tier {
    /// `same_site`: both nodes are behind one NAT. A private address counts as of this site if the
    /// kernel would send to it directly, or if a router leads to it and both are of one site;
    /// before the route is known it gets the benefit of the doubt.
    pub(crate) fn new(
        kind: CandidateKind,
        address: SocketAddr,
        route: Option<Route>,
        same_site: bool,
    ) -> Self {
        match (kind, route) {
            (CandidateKind::Relay, _) if is_forwarder(address.ip()) => Self::Stream,
            (CandidateKind::Relay, _) => Self::Relay,
            (_, Some(Route::Tunneled)) => Self::Tunnel,
            (_, Some(Route::OnLink)) => Self::Lan,
            (_, None) if is_mesh_lan(address.ip()) => Self::Lan,
            (_, Some(Route::Routed)) if same_site && is_mesh_lan(address.ip()) => Self::Lan,
            (_, Some(Route::Routed | Route::Unusable) | None) => Self::Direct,
        }
    }
}

/// The worth of a path; the least is the best.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rank {
    pub(crate) tier: Tier,
    /// Of relays, the place in the list of those that may be used; else 0.
    pub(crate) place: usize,
    /// Round trip, with IPv6 favoured by a tenth: no NAT, so no mapping to lose.
    pub(crate) cost: Duration,
}

impl Rank {
    pub(crate) fn new(tier: Tier, address: SocketAddr, place: usize, rtt: Duration) -> Self {
        let cost = if address.is_ipv6() { rtt * 9 / 10 } else { rtt };
        Self { tier, place, cost }
    }

    /// Whether it is worth leaving `current` for this path.
    pub(crate) fn is_worth_leaving(&self, current: &Self) -> bool {
        match (self.tier, current.tier) {
            // Half of what it takes to leave the LAN again, so that a round trip near the border
            // does not move the pair to and fro.
            (Tier::Lan, Tier::Direct) => !current.is_shorter(self, 2),
            (Tier::Direct, Tier::Lan) => self.is_shorter(current, 1),
            _ => match (self.tier, self.place).cmp(&(current.tier, current.place)) {
                Ordering::Less => true,
                Ordering::Greater => false,
                Ordering::Equal => self.is_shorter(current, 1),
            },
        }
    }

    /// Shorter by more than a `share` of what is worth a change.
    fn is_shorter(&self, other: &Self, share: u32) -> bool {
        self.cost + GAIN / share < other.cost
            && self.cost * 100 < other.cost * (100 - GAIN_PERCENT / share)
    }

    /// What paths are ordered by. LAN and direct paths compare by round trip, of which a LAN is
    /// forgiven what is not worth a change.
    fn key(&self) -> (Tier, usize, Duration, Duration) {
        match self.tier {
            Tier::Lan => {
                let forgiven = self.cost * (100 - GAIN_PERCENT) / 100;
                let cost = forgiven.saturating_sub(GAIN);
                (Tier::Direct, self.place, cost, self.cost)
            }
            tier => (tier, self.place, self.cost, self.cost),
        }
    }
}

impl Ord for Rank {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key()
            .cmp(&other.key())
            .then(self.tier.cmp(&other.tier))
    }
}

impl PartialOrd for Rank {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn rank(address: &str, millis: u64) -> Rank {
        Rank::new(Tier::Direct, address.parse().unwrap(), 0, ms(millis))
    }

    fn lan(millis: u64) -> Rank {
        Rank::new(Tier::Lan, "192.168.1.2:1".parse().unwrap(), 0, ms(millis))
    }

    fn relay(place: usize, millis: u64) -> Rank {
        let address = "203.0.113.1:1".parse().unwrap();
        Rank::new(Tier::Relay, address, place, ms(millis))
    }

    #[test]
    fn a_lan_path_beats_a_direct_one_that_is_not_clearly_shorter_and_a_relay_none() {
        let (lan, direct, relay) = (lan(3), rank("203.0.113.1:1", 1), relay(0, 0));
        assert!(lan < direct && direct < relay);
        assert!(lan.is_worth_leaving(&direct) && direct.is_worth_leaving(&relay));
        assert!(!direct.is_worth_leaving(&lan) && !relay.is_worth_leaving(&direct));
    }

    #[test]
    fn a_lan_path_never_beats_a_direct_one_of_half_its_round_trip() {
        for millis in [20, 40, 300] {
            let (lan, direct) = (lan(millis), rank("203.0.113.1:1", millis / 2));
            assert!(direct < lan && direct.is_worth_leaving(&lan));
            assert!(!lan.is_worth_leaving(&direct));
        }
    }

    #[test]
    fn no_two_round_trips_make_each_of_lan_and_direct_worth_leaving_the_other() {
        for (a, b) in (0..120).flat_map(|a| (0..120).map(move |b| (a, b))) {
            let (lan, direct) = (lan(a), rank("203.0.113.1:1", b));
            assert!(
                !(lan.is_worth_leaving(&direct) && direct.is_worth_leaving(&lan)),
                "{a} and {b} ms"
            );
        }
    }

    #[test]
    fn what_is_a_lan_is_told_by_the_route_and_the_site_and_not_by_the_address_alone() {
        let (private, global) = (
            "10.1.2.3:1".parse().unwrap(),
            "203.0.113.5:1".parse().unwrap(),
        );
        let host = CandidateKind::Host;
        let table = [
            (private, Some(Route::OnLink), false, Tier::Lan),
            (global, Some(Route::OnLink), false, Tier::Lan),
            (private, Some(Route::Routed), true, Tier::Lan),
            (private, Some(Route::Routed), false, Tier::Direct),
            (private, Some(Route::Tunneled), true, Tier::Tunnel),
            (global, Some(Route::Routed), true, Tier::Direct),
            (private, None, false, Tier::Lan),
        ];
        for (address, route, same_site, expected) in table {
            let tier = Tier::new(host, address, route, same_site);
            assert_eq!(tier, expected, "{address} {route:?} {same_site}");
            let relay = Tier::new(CandidateKind::Relay, address, route, same_site);
            assert_eq!(relay, Tier::Relay);
        }
    }

    #[test]
    fn a_relay_in_a_stream_is_the_last_of_all_paths() {
        let address = SocketAddr::from((natpunch_types::FORWARDER, 40_000));
        let tier = Tier::new(CandidateKind::Relay, address, None, true);
        let stream = Rank::new(tier, address, 0, ms(1));
        let worst = relay(9, 2_000);
        assert!(worst < stream && !stream.is_worth_leaving(&worst));
        assert!(worst.is_worth_leaving(&stream));
    }

    #[test]
    fn a_preferred_relay_is_worth_leaving_a_nearer_one_and_never_the_other_way() {
        let (preferred, nearer) = (relay(0, 300), relay(1, 2));
        assert!(
            preferred < nearer
                && preferred.is_worth_leaving(&nearer)
                && !nearer.is_worth_leaving(&preferred)
        );
        assert!(
            relay(1, 100).is_worth_leaving(&relay(1, 300)),
            "the same place: the round trip decides"
        );
    }

    #[test]
    fn a_little_faster_is_not_worth_a_change() {
        let current = rank("203.0.113.1:1", 100);
        assert!(
            !rank("203.0.113.2:1", 91).is_worth_leaving(&current),
            "less than a tenth"
        );
        assert!(rank("203.0.113.2:1", 89).is_worth_leaving(&current));
        assert!(
            !rank("203.0.113.2:1", 2).is_worth_leaving(&rank("203.0.113.1:1", 6)),
            "less than 5 ms"
        );
    }

    #[test]
    fn ipv6_is_favoured_by_a_tenth() {
        assert!(rank("[2001:db8::1]:1", 100) < rank("203.0.113.1:1", 91));
        assert!(rank("[2001:db8::1]:1", 100) > rank("203.0.113.1:1", 89));
    }
}
