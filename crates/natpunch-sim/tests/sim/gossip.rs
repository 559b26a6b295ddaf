//! Peers that carry records for each other, in a mesh without any server: two nodes behind NATs,
//! and a helper on the internet whose endpoint the mesh file has.

use std::net::SocketAddr;
use std::time::Duration;

use natpunch_core::{PathKind, PeerState, PeerStatus};
use natpunch_sim::{DiscoveryConfig, HostId, NatConfig, SegmentId, World};

use crate::lab::{MINUTE, MS, SECOND, Side, UPLINK, ip, side};

const SEEDS: u64 = 16;

struct Trio {
    world: World,
    a: HostId,
    c: HostId,
    helper: HostId,
    /// Another network, to which `c` moves.
    office: SegmentId,
}

impl Trio {
    /// All three run, and each of the two knows where the helper is.
    fn start(seed: u64, nats: [NatConfig; 3], gossip: bool) -> Self {
        let mut world = World::new(seed);
        let discovery = DiscoveryConfig {
            gossip,
            ..DiscoveryConfig::default()
        };
        let mut add = |name: &str, number: u8, at: Side| {
            let place = side(&mut world, name, number, &at, UPLINK);
            let (segment, addresses) = (place.segment, place.addresses);
            world.add_node(name, segment, &addresses, place.link, discovery.clone())
        };
        let a = add("a", 1, nats[0].into());
        let c = add("c", 2, nats[1].into());
        let helper = add("helper", 3, Side::Public);
        let office = side(&mut world, "office", 4, &nats[2].into(), UPLINK).segment;
        for (one, other) in [(a, c), (a, helper), (c, helper)] {
            world.peer(one, other);
        }
        for node in [a, c, helper] {
            world.start_at(node, Duration::ZERO);
        }
        world.run_until(MS);
        let endpoint = world.network.addresses(helper)[0];
        let endpoint = SocketAddr::new(endpoint, world.listen_port(helper));
        for node in [a, c] {
            world.offer_candidate(node, helper, endpoint);
        }
        Self {
            world,
            a,
            c,
            helper,
            office,
        }
    }

    fn peer(&self, node: HostId, peer: HostId) -> PeerStatus {
        let key = self.world.key(peer);
        let peers = self.world.status(node).unwrap().peers;
        peers.into_iter().find(|peer| peer.key == key).unwrap()
    }

    /// Runs until both have a direct path to each other that works; how long that took.
    fn meet(&mut self, patience: Duration) -> Option<Duration> {
        let start = self.world.now();
        let is_good = |trio: &Self, node, peer| {
            let status = trio.peer(node, peer);
            let works = status.state == PeerState::Connected && !status.probes_unanswered;
            works && status.path == PathKind::Direct
        };
        while !(is_good(self, self.a, self.c) && is_good(self, self.c, self.a)) {
            if self.world.now() >= start + patience {
                return None;
            }
            self.world.ping(self.a, self.c);
            self.world.run_until(self.world.now() + 20 * MS);
        }
        Some(self.world.now() - start)
    }

    fn moves(&mut self) {
        self.world
            .move_node(self.c, self.office, &[ip("192.168.4.2")]);
        // Until the old path is given up, it is shown as the one in use.
        while self.peer(self.a, self.c).state == PeerState::Connected {
            self.world.run_until(self.world.now() + 100 * MS);
        }
    }

    fn expect_no_violation(&self) {
        assert!(self.world.violations().is_empty());
    }
}

fn home() -> [NatConfig; 3] {
    [NatConfig::home(); 3]
}

#[test]
fn a_mesh_with_one_endpoint_and_no_server_connects_all_and_finds_a_node_that_moves() {
    let (mut first, mut again) = (Vec::new(), Vec::new());
    for seed in 0..SEEDS {
        let mut trio = Trio::start(seed, home(), true);
        let met = trio.meet(20 * SECOND);
        first.push(met.unwrap_or_else(|| panic!("never met:\n{}", trio.world.report())));
        trio.world.run_until(trio.world.now() + MINUTE);
        let moved = trio.world.now();
        trio.world
            .move_node(trio.c, trio.office, &[ip("192.168.4.2")]);
        let key = trio.world.key(trio.a);
        let received = |trio: &Trio| trio.world.device(trio.c).received_data(&key);
        let before = received(&trio);
        while received(&trio) == before {
            let so_far = trio.world.now() - moved;
            assert!(so_far < 40 * SECOND, "not found:\n{}", trio.world.report());
            trio.world.ping(trio.a, trio.c);
            trio.world.run_until(trio.world.now() + 20 * MS);
        }
        again.push(trio.world.now() - moved);
        trio.expect_no_violation();
    }
    for (what, mut times) in [("first", first), ("after a move", again)] {
        times.sort();
        let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
        println!("{what}: median {median:?}, worst {worst:?}");
    }
}

#[test]
fn without_gossip_two_nodes_behind_nats_and_a_helper_never_meet() {
    for seed in 0..4 {
        let mut trio = Trio::start(seed, home(), false);
        assert_eq!(trio.meet(3 * MINUTE), None);
        let helped = trio.peer(trio.a, trio.helper);
        assert_eq!(helped.path, PathKind::Direct, "the helper is there");
    }
}

#[test]
fn a_node_that_sleeps_while_another_moves_finds_it_by_the_helper_when_it_wakes() {
    for seed in 0..SEEDS {
        let mut trio = Trio::start(seed, home(), true);
        trio.meet(20 * SECOND).expect("they meet");
        trio.world.suspend(trio.a, 5 * MINUTE);
        trio.moves();
        trio.world.run_until(trio.world.now() + 5 * MINUTE);
        if trio.meet(40 * SECOND).is_none() {
            panic!("not found:\n{}", trio.world.report());
        }
        trio.expect_no_violation();
    }
}

#[test]
fn gossip_costs_nothing_while_nobody_is_looked_for() {
    let sent_in_an_hour = |gossip: bool| {
        // They meet by themselves: nothing in front of either filters.
        let mut trio = Trio::start(1, [NatConfig::full_cone(); 3], gossip);
        let place = |trio: &Trio, node: HostId| {
            let port = trio.world.listen_port(node);
            SocketAddr::new(
                ip(if node == trio.a {
                    "203.0.113.1"
                } else {
                    "203.0.113.2"
                }),
                port,
            )
        };
        let (a, c) = (trio.a, trio.c);
        let (at_a, at_c) = (place(&trio, a), place(&trio, c));
        trio.world.offer_candidate(a, c, at_c);
        trio.world.offer_candidate(c, a, at_a);
        trio.meet(20 * SECOND).expect("they meet");
        trio.world.run_until(trio.world.now() + 2 * MINUTE);
        let nodes = [trio.a, trio.c, trio.helper];
        let sent = |trio: &Trio| {
            nodes
                .map(|node| trio.world.probes_sent(node))
                .iter()
                .sum::<u64>()
        };
        let before = sent(&trio);
        trio.world.run_until(trio.world.now() + 60 * MINUTE);
        sent(&trio) - before
    };
    let [without, with] = [false, true].map(sent_in_an_hour);
    println!("three idle nodes in an hour: {without} datagrams without gossip, {with} with it");
    assert!(with.abs_diff(without) * 100 <= without, "{without} {with}");
}
