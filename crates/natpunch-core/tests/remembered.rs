//! What worked before is tried first, and believed no more than any other word.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::num::NonZeroU16;

use common::{World, addr, ms, public, secs};
use natpunch_core::{Command, KnownPath, Memory, PeerState};
use natpunch_types::{CandidateKind, PathId, Pins, resting_endpoint};

const NOW: u64 = 1_800_000_000;

fn known(world: &World, of: usize, path: PathId, kind: CandidateKind) -> KnownPath {
    KnownPath {
        peer: public(world.nodes[of].number),
        path,
        kind,
    }
}

fn is_connected(world: &World, node: usize) -> bool {
    let status = world.nodes[node].mesh.status(world.now);
    status
        .peers
        .iter()
        .all(|peer| peer.state == PeerState::Connected)
}

/// The origins of the candidates that a node has.
fn origins(world: &World, node: usize) -> Vec<String> {
    let status = world.nodes[node].mesh.status(world.now);
    let candidates = status.peers.into_iter().flat_map(|peer| peer.candidates);
    candidates.flat_map(|candidate| candidate.origins).collect()
}

/// A connected pair that was restarted on both sides, devices included, and what each remembers.
fn restarted() -> (World, [Memory; 2]) {
    let mut world = World::pair();
    world.tell_both();
    world.run(secs(10));
    assert!(is_connected(&world, 0) && is_connected(&world, 1));
    let memories = [0, 1].map(|node| {
        let mut memory = Memory::default();
        let works = world.nodes[node].mesh.working_paths(world.now);
        assert!(memory.note("here", works, NOW));
        memory
    });
    for node in [0, 1] {
        for row in world.nodes[node].device.values_mut() {
            (row.endpoint, row.last_handshake) = (None, None);
        }
        world.restart_agent(node, 77);
    }
    world.run(secs(5));
    assert!(!is_connected(&world, 0) && !is_connected(&world, 1));
    (world, memories)
}

#[test]
fn a_pair_that_nobody_tells_anything_connects_from_memory() {
    let (mut world, memories) = restarted();
    for (node, memory) in memories.iter().enumerate() {
        let paths = memory.paths("here", NOW + 60);
        world.with(node, |mesh, now| mesh.handle_remembered(&paths, now));
    }
    world.run(secs(2));
    assert!(is_connected(&world, 0) && is_connected(&world, 1));
    assert!(origins(&world, 0).contains(&"remembered".to_owned()));
}

#[test]
fn a_remembered_address_at_which_nobody_answers_is_never_an_endpoint_and_is_forgotten() {
    let (mut world, _) = restarted();
    let set = world.nodes[0].sets.len();
    let path = PathId::wireguard(addr("203.0.113.77:7"));
    let paths = [known(&world, 1, path, CandidateKind::Mapped)];
    world.with(0, |mesh, now| mesh.handle_remembered(&paths, now));
    assert_eq!(origins(&world, 0), ["remembered"]);
    world.run(secs(700));
    assert_eq!(world.nodes[0].sets.len(), set);
    assert!(origins(&world, 0).is_empty());
}

#[test]
fn what_a_mapping_was_called_does_not_let_probes_into_anothers_tunnel() {
    let (mut world, _) = restarted();
    world.route = Box::new(|_, _| natpunch_types::Route::Tunneled);
    for kind in [CandidateKind::Mapped, CandidateKind::PeerReflexive] {
        let sent = world.nodes[0].sent.len();
        let path = PathId::wireguard(addr("10.9.8.7:7"));
        let paths = [known(&world, 1, path, kind)];
        world.with(0, |mesh, now| mesh.handle_remembered(&paths, now));
        world.run(secs(3));
        let to_it = |sent: &&(_, natpunch_core::Transmit)| sent.1.path == path;
        assert_eq!(world.nodes[0].sent[sent..].iter().filter(to_it).count(), 0);
    }
}

#[test]
fn a_pinned_path_is_tried_from_its_port_once_pins_can_be_made_and_the_port_is_closed_again() {
    let (mut world, _) = restarted();
    let port = NonZeroU16::new(61_234).unwrap();
    let path = PathId::from_port(port, addr("203.0.113.77:7"));
    let paths = [known(&world, 1, path, CandidateKind::Reflexive)];
    let offer = |world: &mut World| {
        let now = world.now;
        let mesh = &mut world.nodes[0].mesh;
        mesh.handle_remembered(&paths, now);
        let mut ports = None;
        while let Some(command) = mesh.poll_command() {
            if let Command::SourcePorts(open) = command {
                ports = Some(open.contains(&port));
            }
        }
        ports
    };
    assert_eq!(offer(&mut world), None);
    world.with(0, |mesh, now| mesh.handle_pins(Pins::Available, now));
    assert_eq!(offer(&mut world), Some(true));
    let sent = world.nodes[0].sent.len();
    world.run(ms(500));
    let from_it = |sent: &&(_, natpunch_core::Transmit)| sent.1.path == path;
    assert!(world.nodes[0].sent[sent..].iter().filter(from_it).count() >= 1);
    // Another path connects the pair.
    world.tell_both();
    world.run(secs(10));
    assert!(is_connected(&world, 0));
    assert_ne!(
        world.nodes[0].endpoint(world.nodes[1].number),
        Some(resting_endpoint(&public(1)))
    );
    let now = world.now;
    let status = world.nodes[0].mesh.status(now);
    let mut candidates = status.peers[0].candidates.iter();
    assert!(candidates.all(|candidate| candidate.local == Default::default()));
}
