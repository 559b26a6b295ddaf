//! Peers that run WireGuard only, and what this node learns of itself.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use common::*;
use natpunch_core::PeerState;

/// Node 0 knows node 1 as plain; node 1 has no natpunch.
fn plain() -> World {
    let mut world = World::pair();
    let (own, other) = (world.nodes[0].number, world.nodes[1].number);
    let mut spec = spec(own, &[other]);
    spec.peers[0].managed = false;
    world.with(0, |mesh, now| mesh.handle_spec(spec, now));
    world.nodes[1].mesh_up = false;
    world
}

#[test]
fn a_plain_peer_gets_its_endpoint_as_offered_and_no_probe() {
    let mut world = plain();
    assert!(matches!(world.status(0).state, PeerState::Waiting { .. }));
    world.tell(0, 1);
    world.run(secs(2));
    assert_eq!(
        world.nodes[0].endpoint(world.nodes[1].number),
        Some(world.address(1))
    );
    assert_eq!(world.status(0).state, PeerState::Connected);
    assert!(world.nodes[0].sent.is_empty(), "it answers no probes");
    assert!(!world.nodes[0].wanted(world.nodes[1].number));
}

#[test]
fn a_live_plain_endpoint_is_left_alone() {
    let mut world = plain();
    world.tell(0, 1);
    world.run(secs(2));
    let sets = world.nodes[0].sets.len();
    world.tell_address(0, 1, addr("198.51.100.1:1"));
    // Idle for an hour: the session is long over, but nobody wants anything.
    world.run(secs(3600));
    assert_eq!(world.nodes[0].sets.len(), sets);
    // Now somebody sends and nothing comes back.
    let key = public(world.nodes[1].number);
    world.nodes[1].up = false;
    world.nodes[0].device.get_mut(&key).unwrap().tx_bytes += 148;
    world.run(secs(30));
    assert!(world.nodes[0].sets.len() > sets, "a dead one is replaced");
}

#[test]
fn the_candidates_of_a_plain_peer_are_tried_in_turn_with_pauses() {
    let mut world = plain();
    for last in 1..4 {
        world.tell_address(0, 1, addr(&format!("198.51.100.{last}:1")));
    }
    world.run(secs(29));
    let tried: Vec<_> = world.nodes[0]
        .sets
        .iter()
        .map(|(_, _, endpoint, _)| *endpoint)
        .collect();
    assert_eq!(tried.len(), 3, "{tried:?}");
    world.run(secs(5));
    assert!(
        matches!(world.status(0).state, PeerState::Unreachable { .. }),
        "{:?}",
        world.status(0).state
    );
    world.run(secs(3600));
    assert!(
        world.nodes[0].sets.len() < 40,
        "{}",
        world.nodes[0].sets.len()
    );
    // What is new is tried at once.
    world.tell(0, 1);
    world.run(secs(2));
    assert_eq!(
        world.nodes[0].endpoint(world.nodes[1].number),
        Some(world.address(1))
    );
    assert_eq!(world.status(0).state, PeerState::Connected);
}

#[test]
fn a_running_session_is_adopted_when_the_peer_becomes_plain_or_comes_by_reload() {
    for first in [vec![], vec![0]] {
        let mut world = World::pair();
        let (own, other) = (world.nodes[0].number, world.nodes[1].number);
        let key = public(other);
        // At first the file does not have the peer, or has it as managed, while the device has a
        // session with it.
        let peers: Vec<u8> = first.iter().map(|_: &i32| other).collect();
        world.with(0, |mesh, now| mesh.handle_spec(spec(own, &peers), now));
        let row = world.nodes[0].device.get_mut(&key).unwrap();
        (row.endpoint, row.last_handshake) = (Some(addr("198.51.100.9:9")), Some(secs(5)));
        world.feed_device(0);
        let mut plain = spec(own, &[other]);
        plain.peers[0].managed = false;
        world.with(0, |mesh, now| mesh.handle_spec(plain, now));
        world.tell(0, 1);
        world.run(secs(100));
        assert!(world.nodes[0].sets.is_empty(), "{:?}", world.nodes[0].sets);
        assert_eq!(world.status(0).state, PeerState::Connected);
    }
}

#[test]
fn stun_from_wireguards_port_tells_the_reflexive_address() {
    let mut world = World::pair();
    let publications = world.nodes[0].publications;
    world.with(0, |mesh, now| mesh.handle_stun_servers(&[addr(STUN)], now));
    world.run(secs(1));
    // Without a NAT the server sees the host address: no second candidate, nothing published.
    let local = world.nodes[0].mesh.status(world.now).local;
    assert_eq!(local.len(), 1, "{local:?}");
    assert_eq!(world.nodes[0].publications, publications);
    world.run(secs(60));
    let asked = world.nodes[0]
        .sent
        .iter()
        .filter(|(_, transmit)| transmit.path.remote == addr(STUN))
        .count();
    assert!(
        (2..=5).contains(&asked),
        "{asked} requests in a minute while a peer is wanted"
    );
}

#[test]
fn a_silent_stun_server_is_asked_five_times_and_then_looked_for_by_who_hears_no_peer() {
    let mut world = World::pair();
    world.passes = Box::new(|_, _, _| false);
    world.with(0, |mesh, now| mesh.handle_stun_servers(&[addr(STUN)], now));
    world.run(secs(20));
    let asked = world.nodes[0]
        .sent
        .iter()
        .filter(|(_, transmit)| transmit.path.remote == addr(STUN))
        .count();
    // One request every two and a half seconds, spread by a fifth, after four seconds.
    assert!((5 + 5..=5 + 8).contains(&asked), "{asked} requests");
}

#[test]
fn a_plain_session_of_last_week_does_not_keep_new_addresses_away() {
    let mut world = plain();
    let other = world.nodes[1].number;
    let dead = world.nodes[0].device.get_mut(&public(other)).unwrap();
    (dead.endpoint, dead.last_handshake) = (Some(addr("203.0.113.77:7")), Some(secs(1_000)));
    world.read_at = Some(secs(700_000));
    world.restart_agent(0, 99);
    let mut spec = spec(world.nodes[0].number, &[other]);
    spec.peers[0].managed = false;
    world.with(0, |mesh, now| mesh.handle_spec(spec, now));
    world.nodes[0].sets.clear();
    world.tell(0, 1);
    world.run(secs(1));
    assert_eq!(
        world.nodes[0].endpoint(other),
        Some(world.address(1)),
        "{:?}",
        world.nodes[0].sets
    );
}
