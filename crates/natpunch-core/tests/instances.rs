//! What is left of an instance's word when a reload ends or replaces it.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use common::*;
use natpunch_core::{Event, PathKind, PeerState};
use natpunch_types::{
    Abilities, CandidateKind, HostNetwork, InstanceName, Mapping, News, OwnAddressKind,
    RelayPolicy, Running,
};

const ALL: Abilities = Abilities {
    wireguard_port: true,
    meetings: true,
    relays: true,
    records: true,
    mappings: true,
    peer_messages: true,
};

/// The instance `rv` of this run, with these abilities.
fn rv(abilities: Abilities, run: u64) -> BTreeMap<InstanceName, Running> {
    let instance = Running { abilities, run };
    BTreeMap::from([(InstanceName::new("rv"), instance)])
}

fn say(world: &mut World, index: usize, news: News) {
    world.with(index, |mesh, now| {
        mesh.handle_news(&InstanceName::new("rv"), news, now)
    });
}

fn set(world: &mut World, index: usize, running: BTreeMap<InstanceName, Running>) {
    world.with(index, |mesh, now| mesh.handle_instances(running, now));
}

fn offer(world: &mut World, index: usize, address: SocketAddr, kind: CandidateKind) {
    let peer = public(world.nodes[1 - index].number);
    let candidate = natpunch_types::Candidate {
        address,
        kind,
        lifetime: secs(86_400),
    };
    say(world, index, News::Candidate { peer, candidate });
}

/// A pair that `rv` has connected: by a relay, or directly.
fn connected(kind: CandidateKind) -> World {
    let mut world = World::pair();
    if kind == CandidateKind::Relay {
        // So that this node does not say that the address is its own, and no relay's.
        world.with(0, |mesh, now| {
            mesh.handle_local_addresses(&HostNetwork::default(), now)
        });
    }
    for index in [0, 1] {
        let (own, other) = (world.nodes[index].number, world.nodes[1 - index].number);
        let mut spec = spec(own, &[other]);
        if kind == CandidateKind::Relay && index == 1 {
            // Nor this one.
            spec.peers[0].relay = RelayPolicy::Only;
        }
        world.with(index, |mesh, now| mesh.handle_spec(spec, now));
        set(&mut world, index, rv(ALL, 1));
        let address = world.address(1 - index);
        offer(&mut world, index, address, kind);
    }
    world.connect();
    let path = match kind {
        CandidateKind::Relay => PathKind::Relay,
        _ => PathKind::Direct,
    };
    assert_eq!(world.status(0).path, path);
    world
}

fn lost(world: &World) -> bool {
    let is_lost =
        |event: &Event| matches!(event, Event::PathLost { .. } | Event::RelayWithdrawn { .. });
    world.nodes[0]
        .events
        .iter()
        .any(|(_, event)| is_lost(event))
}

#[test]
fn a_pair_leaves_the_relay_of_an_instance_that_may_no_longer_relay() {
    let no_relay = Abilities {
        relays: false,
        ..ALL
    };
    for running in [rv(no_relay, 2), BTreeMap::new()] {
        let mut world = connected(CandidateKind::Relay);
        set(&mut world, 0, running);
        // The other side has not reloaded yet, and still probes through it.
        world.run(secs(5));
        let status = world.status(0);
        assert_eq!(
            (status.path, status.candidates),
            (PathKind::None, vec![]),
            "as after a start with the same file"
        );
        assert_ne!(status.state, PeerState::Connected);
        // The last words of the predecessor arrive late.
        let address = world.address(1);
        offer(&mut world, 0, address, CandidateKind::Relay);
        world.run(secs(5));
        assert_eq!(world.status(0).path, PathKind::None);
        // Another reload allows it again.
        set(&mut world, 0, rv(ALL, 3));
        offer(&mut world, 0, address, CandidateKind::Relay);
        world.run(secs(5));
        assert_eq!(world.status(0).path, PathKind::Relay);
    }
}

#[test]
fn a_relay_that_the_successor_of_its_instance_offers_again_is_not_left() {
    let mut world = connected(CandidateKind::Relay);
    set(&mut world, 0, rv(ALL, 2));
    world.run(secs(5));
    let address = world.address(1);
    offer(&mut world, 0, address, CandidateKind::Relay);
    world.run(secs(60));
    assert_eq!(world.status(0).path, PathKind::Relay);
    assert!(!lost(&world), "{:#?}", world.nodes[0].events);
}

#[test]
fn a_relay_that_the_successor_of_its_instance_does_not_offer_is_left_after_ten_seconds() {
    let mut world = connected(CandidateKind::Relay);
    set(&mut world, 0, rv(ALL, 2));
    world.run(secs(9));
    assert_eq!(world.status(0).path, PathKind::Relay);
    world.run(secs(2));
    assert_eq!(world.status(0).path, PathKind::None);
}

#[test]
fn a_direct_path_outlives_the_instance_that_found_it() {
    let mut world = connected(CandidateKind::Reflexive);
    set(&mut world, 0, BTreeMap::new());
    world.run(secs(600));
    assert_eq!(world.status(0).path, PathKind::Direct);
    assert!(!lost(&world), "{:#?}", world.nodes[0].events);
}

#[test]
fn what_an_instance_said_of_this_node_ends_with_it() {
    let mut world = World::pair();
    let own = |address, kind| News::OwnAddress {
        address,
        kind,
        lifetime: secs(600),
    };
    let [seen, mapped] = ["198.51.100.7:4000", "198.51.100.7:5000"].map(addr);
    let told = |world: &World| {
        let status = world.nodes[0].mesh.status(world.now);
        let local = status
            .local
            .iter()
            .filter(|local| local.kind != CandidateKind::Host);
        let local: Vec<_> = local.map(|local| (local.kind, local.address)).collect();
        (local, status.mapping)
    };
    let all = (
        vec![
            (CandidateKind::Reflexive, seen),
            (CandidateKind::Mapped, mapped),
        ],
        Some(Mapping::EndpointDependent),
    );
    let say_all = |world: &mut World| {
        say(world, 0, own(seen, OwnAddressKind::Reflexive));
        say(world, 0, own(mapped, OwnAddressKind::Mapped));
        say(world, 0, News::Mapping(Mapping::EndpointDependent));
    };
    say_all(&mut world);
    assert_eq!(told(&world), (vec![], None), "no such instance runs");

    set(&mut world, 0, rv(ALL, 1));
    say_all(&mut world);
    assert_eq!(told(&world), all);
    set(&mut world, 0, BTreeMap::new());
    assert_eq!(told(&world), (vec![], None));

    // One that asks no router any more takes back what it said of its mappings, and no more.
    set(&mut world, 0, rv(ALL, 2));
    say_all(&mut world);
    let no_mappings = Abilities {
        mappings: false,
        ..ALL
    };
    set(&mut world, 0, rv(no_mappings, 3));
    assert_eq!(told(&world).0, [(CandidateKind::Reflexive, seen)]);
    world.run(secs(11));
    assert_eq!(told(&world).0, [], "its successor did not say it again");
}

#[test]
fn a_place_that_only_an_instance_has_named_is_forgotten_with_it() {
    let mut world = World::pair();
    set(&mut world, 0, rv(ALL, 1));
    let place = addr("198.51.100.9:4000");
    offer(&mut world, 0, place, CandidateKind::Reflexive);
    let is_known = |world: &World| {
        let status = world.status(0);
        status.candidates.iter().any(|one| one.address == place)
    };
    assert!(is_known(&world));
    set(&mut world, 0, BTreeMap::new());
    assert!(!is_known(&world));
}
