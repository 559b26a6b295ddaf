//! Which of several proven paths to use: a pure ranking with hysteresis, apart from all state.

use std::cmp::Ordering;
use std::net::SocketAddr;
use std::time::Duration;

use natpunch_types::{CandidateKind, is_mesh_lan};

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
    Lan,
    Direct,
    Relay,
}

/// The worth of a path, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    pub(crate) tier: Tier,
    /// Of relays, the place in the list of those that may be used; else 0.
    pub(crate) place: usize,
    /// Round trip, with IPv6 favoured by a tenth: no NAT, so no mapping to lose.
    pub(crate) cost: Duration,
}

impl Rank {
    pub(crate) fn new(
        kind: CandidateKind,
        address: SocketAddr,
        place: usize,
        rtt: Duration,
    ) -> Self {
        let cost = if address.is_ipv6() { rtt * 9 / 10 } else { rtt };
        Self {
            tier: tier(kind, address),
            place,
            cost,
        }
    }

    /// Whether it is worth leaving `current` for this path.
    pub(crate) fn is_worth_leaving(&self, current: &Self) -> bool {
        match (self.tier, self.place).cmp(&(current.tier, current.place)) {
            Ordering::Less => true,
            Ordering::Greater => false,
            Ordering::Equal => {
                self.cost + GAIN < current.cost
                    && self.cost * 100 < current.cost * (100 - GAIN_PERCENT)
            }
        }
    }
}

pub(crate) fn tier(kind: CandidateKind, address: SocketAddr) -> Tier {
    match kind {
        CandidateKind::Relay => Tier::Relay,
        _ if is_mesh_lan(address.ip()) => Tier::Lan,
        _ => Tier::Direct,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rank(address: &str, millis: u64) -> Rank {
        Rank::new(
            CandidateKind::Host,
            address.parse().unwrap(),
            0,
            Duration::from_millis(millis),
        )
    }

    fn relay(place: usize, millis: u64) -> Rank {
        Rank::new(
            CandidateKind::Relay,
            "203.0.113.1:1".parse().unwrap(),
            place,
            Duration::from_millis(millis),
        )
    }

    #[test]
    fn a_lan_path_beats_any_other_and_a_relay_none() {
        let lan = rank("192.168.1.2:1", 9);
        let direct = rank("203.0.113.1:1", 1);
        let relay = relay(0, 0);
        assert!(lan < direct && direct < relay);
        assert!(lan.is_worth_leaving(&direct) && direct.is_worth_leaving(&relay));
        assert!(!direct.is_worth_leaving(&lan) && !relay.is_worth_leaving(&direct));
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
