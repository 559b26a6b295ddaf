//! Relays that the mesh file lists: which are used at all, and which of them.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use common::*;
use natpunch_core::{Command, Event, Mesh, MeshSpec, Time};
use natpunch_types::{Ask, CandidateKind, InstanceName, RelayPolicy, RelayUse, Route};

fn listing(mut spec: MeshSpec, names: &[&str]) -> MeshSpec {
    for peer in &mut spec.peers {
        peer.relays = Some(names.iter().map(|name| InstanceName::new(name)).collect());
    }
    spec
}

fn relay(address: &str, origin: &str) -> Candidate {
    Candidate {
        kind: CandidateKind::Relay,
        origin: InstanceName::new(origin),
        ..candidate(addr(address))
    }
}

#[test]
fn a_relay_that_is_not_listed_is_never_asked_and_never_probed() {
    let mut mesh = Mesh::new(listing(spec(1, &[2]), &["eu"]), [0; 32], Time::ZERO);
    mesh.handle_candidate(public(2), relay("198.51.100.1:40001", "us"), Time::ZERO);
    assert!(mesh.status(Time::ZERO).peers[0].candidates.is_empty());
    assert!(mesh.poll_transmit().is_none());
    mesh.handle_candidate(public(2), relay("198.51.100.2:40001", "eu"), Time::ZERO);
    mesh.handle_timeout(Time::ZERO);
    let host = addr("198.51.100.2:1").ip();
    mesh.handle_route(public(2), host, Route::Routed, Time::ZERO);
    assert_eq!(
        mesh.poll_transmit().unwrap().path.remote,
        addr("198.51.100.2:40001")
    );

    let interest = std::iter::from_fn(|| mesh.poll_command()).find_map(|command| match command {
        Command::Ask(Ask::Peers(interest)) => Some(interest),
        _ => None,
    });
    let interest = &interest.unwrap()[0];
    assert_eq!(interest.relay_by(&InstanceName::new("eu")), RelayUse::Carry);
    assert_eq!(interest.relay_by(&InstanceName::new("us")), RelayUse::Off);
}

#[test]
fn an_instance_named_peer_or_wireguard_is_no_more_than_an_instance() {
    for name in ["peer", "wireguard"] {
        let mut mesh = Mesh::new(spec(1, &[2]), [0; 32], Time::ZERO);
        let by = "198.51.100.1:40001";
        mesh.handle_candidate(public(2), relay(by, "hub"), Time::ZERO);
        // The peer itself may say that a relay's address is its own; an instance may not.
        let own = Candidate {
            kind: CandidateKind::Host,
            ..relay(by, name)
        };
        mesh.handle_candidate(public(2), own, Time::ZERO);
        let candidate = |mesh: &Mesh| mesh.status(Time::ZERO).peers[0].candidates[0].clone();
        assert_eq!(candidate(&mesh).kind, CandidateKind::Relay, "{name}");
        assert_eq!(candidate(&mesh).origins, ["hub"]);

        mesh.handle_candidate(public(2), relay(by, name), Time::ZERO);
        let written = format!("discovery.{name}");
        assert_eq!(candidate(&mesh).origins, ["hub".to_owned(), written]);
    }
}

/// A pair that lists these relays and knows the one named `second`, and the candidates by the
/// `first` and by it.
fn two_relays(list: &[&str]) -> (World, Candidate, Candidate) {
    let (low, high) = low_high();
    let mut world = World::new(&[
        (low, &["203.0.113.1"]),
        (high, &["203.0.113.2", "203.0.113.22"]),
    ]);
    for (index, (own, other)) in [(low, high), (high, low)].into_iter().enumerate() {
        let mut spec = listing(spec(own, &[other]), list);
        // So that the peer does not say that these addresses are its own, and no relay's.
        spec.peers[0].relay = RelayPolicy::Only;
        world.with(index, |mesh, now| mesh.handle_spec(spec, now));
    }
    let port = world.address(1).port();
    let by_second = relay(&format!("203.0.113.2:{port}"), "second");
    let by_first = relay(&format!("203.0.113.22:{port}"), "first");
    let back = Candidate {
        address: world.address(0),
        ..by_second.clone()
    };
    world.with(0, |mesh, now| {
        mesh.handle_candidate(public(high), by_second.clone(), now)
    });
    world.with(1, |mesh, now| mesh.handle_candidate(public(low), back, now));
    (world, by_first, by_second)
}

#[test]
fn a_relay_is_not_left_for_a_better_one_while_a_session_is_made_over_it() {
    let (mut world, by_first, by_second) = two_relays(&["first", "second"]);
    let high = world.nodes[1].number;
    world.with(0, |mesh, now| {
        mesh.handle_candidate(public(high), by_first.clone(), now)
    });
    world.connect();
    let chosen: Vec<_> = world.nodes[0]
        .events
        .iter()
        .filter_map(|(at, event)| match event {
            Event::PathSelected { path, .. } => Some((*at, path.remote)),
            _ => None,
        })
        .collect();
    assert_eq!(
        [chosen[0].1, chosen[1].1],
        [by_second.address, by_first.address]
    );
    assert_eq!(chosen[1].0.since(chosen[0].0), secs(1));
}

#[test]
fn the_relay_that_is_listed_first_is_moved_to_and_not_left() {
    for (list, moves) in [(["first", "second"], true), (["second", "first"], false)] {
        let (mut world, by_first, by_second) = two_relays(&list);
        let high = world.nodes[1].number;
        world.connect();
        assert_eq!(world.status(0).endpoint, Some(by_second.address));
        assert_eq!(world.status(0).relayed_by, ["second"]);

        world.with(0, |mesh, now| {
            mesh.handle_candidate(public(high), by_first.clone(), now)
        });
        // Not for longer: the device of this world answers from its first address, and WireGuard
        // would roam back.
        world.run(ms(500));
        let used = if moves { &by_first } else { &by_second };
        assert_eq!(
            world.status(0).endpoint,
            Some(used.address),
            "{list:?}: {:#?}",
            world.nodes[0].events
        );
        assert_eq!(world.status(0).relayed_by, [used.origin.as_str()]);
    }
}

#[test]
fn a_pong_through_a_relay_is_enough_for_a_first_path_and_one_on_a_direct_path_is_not() {
    let first_path = |kind| {
        let (low, high) = low_high();
        let mut world = World::new(&[(low, &["203.0.113.1"]), (high, &["203.0.113.2"])]);
        for (index, (own, other)) in [(low, high), (high, low)].into_iter().enumerate() {
            let mut spec = spec(own, &[other]);
            spec.peers[0].relay = if kind == CandidateKind::Relay {
                RelayPolicy::Only
            } else {
                RelayPolicy::Auto
            };
            world.with(index, |mesh, now| mesh.handle_spec(spec, now));
        }
        let start = world.now;
        for (index, other) in [(0, high), (1, low)] {
            let candidate = Candidate {
                kind,
                ..candidate(world.address(1 - index))
            };
            world.with(index, |mesh, now| {
                mesh.handle_candidate(public(other), candidate, now)
            });
        }
        world.connect();
        let chosen = |event: &Event| matches!(event, Event::PathSelected { .. });
        world.nodes[0]
            .events
            .iter()
            .find(|(_, event)| chosen(event))
            .map(|(at, _)| at.since(start))
            .unwrap()
    };
    assert_eq!(first_path(CandidateKind::Relay), ms(20), "one round trip");
    assert_eq!(
        first_path(CandidateKind::Reflexive),
        ms(30),
        "and the peer's word that it got its pong, too"
    );
}

#[test]
fn what_still_comes_from_a_relay_that_was_withdrawn_comes_through_a_relay() {
    let (low, high) = low_high();
    let mut world = World::new(&[(low, &["203.0.113.1"]), (high, &["203.0.113.2"])]);
    let here = world.address(1);
    let offered = Candidate {
        address: here,
        ..relay("203.0.113.2:1", "hub")
    };
    world.with(0, |mesh, now| {
        mesh.handle_candidate(public(high), offered.clone(), now);
        mesh.handle_candidate(
            public(high),
            Candidate {
                lifetime: secs(0),
                ..offered.clone()
            },
            now,
        );
        assert!(mesh.status(now).peers[0].candidates.is_empty());
    });
    let back = Candidate {
        address: world.address(0),
        ..offered.clone()
    };
    let mut only = spec(high, &[low]);
    // So that the peer does not say that this address is its own, and no relay's.
    only.peers[0].relay = RelayPolicy::Only;
    world.with(1, |mesh, now| {
        mesh.handle_spec(only, now);
        mesh.handle_candidate(public(low), back, now);
    });
    world.run(secs(1));
    let status = world.nodes[0].mesh.status(world.now);
    let found = status.peers[0]
        .candidates
        .iter()
        .find(|candidate| candidate.address == here)
        .unwrap();
    assert_eq!(found.kind, CandidateKind::Relay);
}
