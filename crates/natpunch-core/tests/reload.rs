//! What a reload leaves of a peer that it changes.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::net::SocketAddr;
use std::sync::Arc;

use common::*;
use natpunch_core::{Event, PathKind, PeerSpec, PeerState, Time};
use natpunch_types::{CandidateKind, InstanceName, PresharedKey, RelayPolicy, SealedRecord};

/// A pair without a path, of which the first node has a record of the other: it, and the candidate.
fn with_record() -> (World, SealedRecord, SocketAddr) {
    let mut world = World::pair();
    world.passes = Box::new(|_, _, _| false);
    world.run(secs(1));
    let record = world.nodes[1].records[0].clone();
    let address = world.address(1);
    take(&mut world, &record);
    (world, record, address)
}

fn take(world: &mut World, record: &SealedRecord) {
    world.with(0, |mesh, now| {
        mesh.handle_record(&InstanceName::new("rv"), record, now)
    });
}

/// The other's record when it has moved to this address.
fn moves(world: &mut World, to: &str) -> SealedRecord {
    world.with(1, |mesh, now| {
        mesh.handle_local_addresses(&host(&[to]), now)
    });
    world.run(secs(1));
    world.nodes[1].records[0].clone()
}

fn reload(world: &mut World, index: usize, change: impl FnOnce(&mut PeerSpec)) {
    let mut spec = spec(world.nodes[index].number, &[world.nodes[1 - index].number]);
    change(&mut spec.peers[0]);
    world.with(index, |mesh, now| mesh.handle_spec(spec, now));
}

fn has_candidate(world: &World, address: SocketAddr) -> bool {
    world
        .status(0)
        .candidates
        .iter()
        .any(|candidate| candidate.address == address)
}

#[test]
fn a_reload_that_changes_a_peer_keeps_its_record_and_probes_at_once() {
    let changes: [fn(&mut PeerSpec); 3] = [
        |peer| peer.relay = RelayPolicy::Never,
        |peer| peer.relays = Some(Arc::from([InstanceName::new("rv")])),
        |peer| peer.managed = false,
    ];
    for change in changes {
        let (mut world, record, address) = with_record();
        world.tell_address(0, 1, addr("203.0.113.99:9"));
        world.run(secs(100));
        reload(&mut world, 0, change);
        reload(&mut world, 0, |_| ());
        assert!(has_candidate(&world, address) && has_candidate(&world, addr("203.0.113.99:9")));
        let now = world.now;
        world.run(ms(1));
        assert!(
            world.nodes[0]
                .sent
                .iter()
                .any(|(at, sent)| *at == now && sent.path.remote == address)
        );
        // It is still the same record, and expires when it does.
        take(&mut world, &record);
        world.run(secs(501));
        // What a plain peer's device was told stays.
        let told = world.nodes[0].endpoint(world.nodes[1].number) == Some(address);
        assert_eq!(has_candidate(&world, address), told);
    }
}

#[test]
fn what_a_peers_record_says_is_used_as_soon_as_a_reload_allows_it() {
    let (mut world, _, address) = with_record();
    for change in [
        |peer: &mut PeerSpec| peer.relay = RelayPolicy::Only,
        |peer: &mut PeerSpec| peer.managed = false,
    ] {
        reload(&mut world, 0, change);
        let newer = moves(&mut world, "203.0.113.50");
        take(&mut world, &newer);
        let moved = SocketAddr::new("203.0.113.50".parse().unwrap(), address.port());
        assert!(!has_candidate(&world, moved));
        reload(&mut world, 0, |_| ());
        assert!(has_candidate(&world, moved));
        let newest = moves(&mut world, "203.0.113.2");
        take(&mut world, &newest);
        assert!(has_candidate(&world, address) && !has_candidate(&world, moved));
    }
}

#[test]
fn a_reload_that_changes_a_peer_does_not_let_an_older_record_in() {
    let (mut world, older, address) = with_record();
    let newer = moves(&mut world, "203.0.113.50");
    take(&mut world, &newer);
    world.run(secs(300));
    reload(&mut world, 0, |peer| peer.relay = RelayPolicy::Never);
    take(&mut world, &older);
    assert!(
        !has_candidate(&world, address),
        "{:?}",
        world.status(0).candidates
    );
}

#[test]
fn another_key_of_a_pair_inherits_nothing() {
    let (mut world, _, address) = with_record();
    reload(&mut world, 0, |peer| {
        peer.preshared_key = Some(PresharedKey::from_bytes([7; 32]))
    });
    assert!(!has_candidate(&world, address));
}

#[test]
fn a_reload_that_changes_a_peer_leaves_its_path_as_it_is_and_the_peer_still_answers() {
    let mut world = World::pair();
    world.tell_both();
    world.connect();
    world.run(secs(1200));
    let start = world.now;
    reload(&mut world, 0, |peer| peer.relay = RelayPolicy::Never);
    world.run(secs(60));
    assert_eq!(world.status(0).state, PeerState::Connected);
    let lost = |(_, event): &(Time, Event)| matches!(event, Event::PathLost { .. });
    assert!(
        !world.nodes[0].events.iter().any(lost),
        "{:#?}",
        world.nodes[0].events
    );
    // The other side heard nothing but this node's probes, and none of them was a replay to it.
    let probes = world.nodes[0]
        .sent
        .iter()
        .filter(|(at, _)| *at > start + secs(10))
        .count();
    assert!((3..40).contains(&probes), "{probes} in 50 s");
}

#[test]
fn a_peer_that_was_removed_and_comes_back_is_answered_at_once() {
    let mut world = World::pair();
    world.tell_both();
    world.connect();
    let [removing, other] = [world.nodes[0].number, world.nodes[1].number];
    for _ in 0..300 {
        world.with(0, |mesh, now| mesh.ping(&public(other), now));
        world.run(ms(200));
    }
    world.with(0, |mesh, now| mesh.handle_spec(spec(removing, &[]), now));
    world.run(secs(5));
    world.with(0, |mesh, now| {
        mesh.handle_spec(spec(removing, &[other]), now)
    });
    world.tell(0, 1);
    world.run(secs(1));
    // By now it knows the other side's run again, which has heard many pings of this one: to it,
    // lower numbers are replays.
    for _ in 0..10 {
        world.with(0, |mesh, now| mesh.ping(&public(other), now));
        world.run(ms(200));
    }
    let status = world.status(0);
    let last = status.candidates.iter().filter_map(|c| c.last_answer).min();
    assert!(last.is_some_and(|last| last <= ms(200)), "{status:#?}");
}

#[test]
fn a_relay_that_a_reload_forbids_is_left() {
    let mut world = World::pair();
    let by = |address| Candidate {
        kind: CandidateKind::Relay,
        ..candidate(address)
    };
    for index in [0, 1] {
        let (address, key) = (
            world.address(1 - index),
            public(world.nodes[1 - index].number),
        );
        world.with(index, |mesh, now| {
            mesh.handle_candidate(key, by(address), now)
        });
        reload(&mut world, index, |peer| peer.relay = RelayPolicy::Only);
    }
    world.connect();
    assert_eq!(world.status(0).path, PathKind::Relay);
    reload(&mut world, 0, |peer| peer.relay = RelayPolicy::Never);
    world.run(secs(5));
    let status = world.status(0);
    assert_eq!(
        (status.path, status.candidates),
        (PathKind::None, vec![]),
        "it was a relay, and is no direct path now"
    );
}
