//! What WireGuard has begun before a path was known.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use common::*;
use natpunch_types::{INITIATION_LEN, resting_endpoint};

/// When and where a node has sent copies of these bytes.
fn copies(world: &World, index: usize, bytes: &[u8]) -> Vec<(Duration, SocketAddr)> {
    let sent = world.nodes[index].sent.iter();
    let copies = sent.filter(|(_, transmit)| transmit.payload == bytes);
    copies
        .map(|(at, transmit)| (at.since_origin(), transmit.path.remote))
        .collect()
}

fn kicks(world: &World, index: usize) -> usize {
    let sets = world.nodes[index].sets.iter();
    sets.filter(|(_, _, _, kick)| *kick).count()
}

#[test]
fn what_wireguard_has_begun_goes_by_the_first_path_and_nobody_is_kicked() {
    let mut world = World::pair();
    let peer = world.nodes[1].number;
    let old = world.initiate_at_rest(0, peer, 1);
    world.run(secs(3));
    let newest = world.initiate_at_rest(0, peer, 2);
    world.run(secs(1));
    world.tell_both();
    world.connect();
    assert_eq!(copies(&world, 0, &old), [], "it is void");
    let sent = copies(&world, 0, &newest);
    assert!(!sent.is_empty());
    let first = sent[0].0;
    // The device is read once a second here; until then its answer is not known.
    assert!(sent.iter().all(|(at, _)| *at <= first + secs(1)));
    assert!(sent.iter().all(|(_, to)| *to == world.address(1)));
    assert_eq!(kicks(&world, 0), 0);
    assert_eq!(world.initiations, 0, "no second handshake");
}

#[test]
fn the_copies_go_on_until_one_is_answered() {
    let mut world = World::pair();
    let mut lost = 0;
    world.passes = Box::new(move |_, _, wireguard| {
        lost += usize::from(wireguard);
        !wireguard || lost > 3
    });
    let peer = world.nodes[1].number;
    let bytes = world.initiate_at_rest(0, peer, 1);
    world.tell_both();
    world.connect();
    let sent = copies(&world, 0, &bytes);
    let gaps: Vec<u128> = sent
        .iter()
        .map(|(at, _)| (*at - sent[0].0).as_millis())
        .collect();
    assert_eq!(gaps, [0, 100, 250, 500]);
    assert_eq!(kicks(&world, 0), 0);
}

#[test]
fn an_initiation_that_wireguard_has_repeated_elsewhere_is_not_sent() {
    let mut world = World::pair();
    let peer = world.nodes[1].number;
    let bytes = world.initiate_at_rest(0, peer, 1);
    world.run(secs(7));
    world.nodes[0].initiated.clear();
    world.tell_both();
    world.connect();
    assert_eq!(copies(&world, 0, &bytes), []);
    assert_eq!(kicks(&world, 0), 1);
}

#[test]
fn the_controlled_side_sends_its_own_only_when_the_other_sides_does_not_come() {
    let mut world = World::pair();
    let [low, high] = [world.nodes[0].number, world.nodes[1].number];
    let own = world.initiate_at_rest(1, low, 1);
    let peers = world.initiate_at_rest(0, high, 2);
    world.tell_both();
    world.connect();
    assert_eq!(copies(&world, 1, &own), [], "the two would cross");
    assert!(!copies(&world, 0, &peers).is_empty());

    // The controlling side's WireGuard is not heard.
    let mut world = World::pair();
    let from = world.address(0);
    let mut heard = false;
    world.passes = Box::new(move |source, _, wireguard| {
        heard |= wireguard && source != from;
        !wireguard || source != from || heard
    });
    let own = world.initiate_at_rest(1, low, 1);
    world.initiate_at_rest(0, high, 2);
    world.tell_both();
    world.connect();
    assert!(!copies(&world, 1, &own).is_empty());
}

#[test]
fn what_is_no_initiation_for_the_peer_at_that_endpoint_is_ignored() {
    let mut world = World::pair();
    let peer = public(world.nodes[1].number);
    let own = public(world.nodes[0].number);
    let mut bytes = vec![3; INITIATION_LEN];
    bytes[..4].copy_from_slice(&[1, 0, 0, 0]);
    for (endpoint, keyed_by) in [(peer, own), (own, peer)] {
        natpunch_types::sign_handshake(&keyed_by, &mut bytes);
        world.with(0, |mesh, now| {
            mesh.handle_initiation(resting_endpoint(&endpoint), &bytes, now);
        });
    }
    world.tell_both();
    world.connect();
    assert_eq!(copies(&world, 0, &bytes), []);
    assert_eq!(kicks(&world, 0), 1);
}
