//! Two NATs that keep their ports, of which one takes a packet for its own that it does not expect
//! (Linux that accepts on its outside), where the two nodes can agree on nothing: there is no relay
//! to speak over, and nobody who arranges a moment.
//!
//! The five-tuple of the first try is spoiled, and stays so until half a minute after the last
//! packet. Here each side has a few source ports that both know from the keys that they share, and
//! that nobody has used yet. It opens its NAT from WireGuard's port towards the peer's, by packets
//! that end before the peer's NAT: such a door stays open for half a minute. And it tries its own
//! ones one after the other, ever more slowly. The first of them for which the peer has opened its
//! door gets through. So the two sides need not begin together: a port that was tried too early is
//! lost for this time, and the next one is tried a moment later.

use std::net::SocketAddr;
use std::time::Duration;

use natpunch_types::{Mapping, PathId};

use super::{Aim, Pair, Shot, Strategy, Timing};
use crate::nat::profile::{NatProfile, Pattern};
use crate::ports::series;

/// Ports of each side.
const PORTS: usize = 16;
/// When those of one volley are tried, in milliseconds, half of all: the others are for the next
/// volley, in which these may still be spoiled.
const TRIES: [u64; PORTS / 2] = [400, 700, 1_100, 1_700, 2_600, 4_000, 6_500, 10_000];

pub(super) static STRATEGY: Strategy = Strategy {
    id: 7,
    name: "fresh ports",
    timing: Timing::Alone,
    ports: PORTS,
    samples: false,
    known_ports: true,
    both_open: false,
    either_opens: false,
    patience: |_| Duration::from_secs(1),
    can: |pair| pair.opener.spray,
    suits,
    opener: shot,
    sweeper: |_, _| None,
};

/// Nothing need be known of the peer. A side that can make no pins, or whose NAT uses other ports
/// than its host, opens doors only.
fn suits(pair: Pair<'_>) -> bool {
    let may_keep = |side: &NatProfile| {
        let keeps = matches!(side.pattern, Pattern::Unknown | Pattern::Preserved);
        keeps && side.mapping != Some(Mapping::EndpointDependent)
    };
    may_keep(pair.opener) && may_keep(pair.sweeper)
}

fn shot(aim: &Aim<'_>, n: usize) -> Option<Shot> {
    if n < PORTS {
        let port = series(aim.peers_seed).nth(n)?;
        let remote = SocketAddr::new(aim.target.ip(), port.get());
        return Some(Shot {
            after: Duration::ZERO,
            path: PathId::wireguard(remote),
            ttl: Some(aim.opener_ttl),
        });
    }
    let place = n - PORTS;
    let after = Duration::from_millis(*TRIES.get(place)?);
    let half = usize::try_from(aim.attempt % 2).ok()?;
    // Without ports of its own this side has opened its doors, and waits.
    let local = aim.ports.get(half * TRIES.len() + place)?;
    Some(Shot {
        after,
        path: PathId::from_port(*local, aim.target),
        ttl: None,
    })
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use super::*;

    fn aim<'a>(
        profile: &'a NatProfile,
        ports: &'a [NonZeroU16],
        peers_seed: u16,
        attempt: u32,
    ) -> Aim<'a> {
        Aim {
            pair: Pair {
                opener: profile,
                sweeper: profile,
            },
            ports,
            target: "192.0.2.1:7".parse().unwrap(),
            seed: 0,
            peers_seed,
            attempt,
            opener_ttl: 4,
        }
    }

    #[test]
    fn each_side_opens_for_the_ports_that_the_other_tries_and_no_port_is_tried_twice_in_a_row() {
        let profile = NatProfile::default();
        let ports: Vec<_> = series(5).take(PORTS).collect();
        let shots = |ports: &[NonZeroU16], peers_seed, attempt| -> Vec<Shot> {
            let aim = aim(&profile, ports, peers_seed, attempt);
            (0..).map_while(|n| shot(&aim, n)).collect()
        };
        let doors: Vec<u16> = shots(&[], 5, 0)
            .iter()
            .map(|s| s.path.remote.port())
            .collect();
        assert_eq!(
            doors,
            ports.iter().map(|port| port.get()).collect::<Vec<_>>()
        );
        let tried = |attempt| -> Vec<NonZeroU16> {
            let shots = shots(&ports, 9, attempt);
            assert!(
                shots
                    .iter()
                    .all(|shot| shot.ttl.is_some() == shot.path.pin().is_none())
            );
            shots.iter().filter_map(|shot| shot.path.pin()).collect()
        };
        let both = [tried(0), tried(1)].concat();
        assert_eq!(both, ports);
        assert_eq!(tried(2), tried(0));
    }
}
