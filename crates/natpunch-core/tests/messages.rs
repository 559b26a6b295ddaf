//! Messages of plugins to their like at peers, and what peers tell of this node's own address.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use common::*;
use natpunch_types::{Abilities, CandidateKind, InstanceName, PEER_MESSAGE_MAX, Running};

/// A pair with a direct path; an instance of node 0, and of node 1 if `both`, exchanges messages.
fn connected(both: bool) -> World {
    let mut world = World::pair();
    world.tell_both();
    world.connect();
    world.run(secs(10));
    for index in [0, 1] {
        let abilities = Abilities {
            peer_messages: index == 0 || both,
            ..Abilities::NONE
        };
        let mut running = instances(true);
        running.insert(InstanceName::new("gossip"), Running { abilities, run: 1 });
        world.with(index, |mesh, now| mesh.handle_instances(running, now));
    }
    world.run(secs(1));
    world
}

fn send(world: &mut World, payload: &[u8]) {
    let peer = public(world.nodes[1].number);
    world.with(0, |mesh, now| mesh.send_message(&peer, payload, now));
}

fn is_direct(world: &World) -> bool {
    world.nodes[0].interest.iter().any(|peer| peer.is_direct)
}

#[test]
fn a_message_comes_once_and_its_replay_and_one_of_another_run_do_not() {
    let mut world = connected(true);
    assert!(is_direct(&world));
    send(&mut world, b"hello");
    let sent = world.nodes[0].sent.last().unwrap().1.payload.clone();
    world.run(secs(1));
    let from = public(world.nodes[0].number);
    let said = vec![(from, b"hello".to_vec())];
    assert_eq!(world.nodes[1].messages, said);
    let source = world.address(0);
    world.inject(1, source, &sent);
    assert_eq!(world.nodes[1].messages, said, "a replay");
    world.restart_agent(1, 7);
    let running = [(InstanceName::new("gossip"), messages())].into();
    world.with(1, |mesh, now| mesh.handle_instances(running, now));
    world.inject(1, source, &sent);
    assert_eq!(world.nodes[1].messages, said, "meant for the run before");
}

fn messages() -> Running {
    let abilities = Abilities {
        peer_messages: true,
        ..Abilities::NONE
    };
    Running { abilities, run: 1 }
}

#[test]
fn a_node_whose_plugins_exchange_nothing_takes_no_message_and_says_nothing() {
    let mut world = connected(false);
    send(&mut world, b"hello");
    let before = world.nodes[1].sent.len();
    world.run(ms(100));
    assert!(world.nodes[1].messages.is_empty());
    assert_eq!(world.nodes[1].sent.len(), before);
}

#[test]
fn a_flood_of_messages_is_bounded_where_it_is_made_and_where_it_comes() {
    let mut world = connected(true);
    let before = world.nodes[0].sent.len();
    for _ in 0..1_000 {
        send(&mut world, &[7; PEER_MESSAGE_MAX]);
    }
    let sent: Vec<_> = world.nodes[0].sent[before..].to_vec();
    assert_eq!(sent.len(), 64);
    world.run(ms(900));
    assert_eq!(world.nodes[1].messages.len(), 64);
    world.run(secs(60));
    let (empty, too_long) = ([], [7; PEER_MESSAGE_MAX + 1]);
    send(&mut world, &empty);
    send(&mut world, &too_long);
    world.run(secs(1));
    assert_eq!(world.nodes[1].messages.len(), 64);
}

#[test]
fn nothing_is_sent_to_a_peer_without_a_path_that_works() {
    let mut world = connected(true);
    world.passes = Box::new(|_, _, _| false);
    world.run(secs(60));
    assert!(!is_direct(&world));
    let before = world.nodes[0].sent.len();
    send(&mut world, b"hello");
    assert_eq!(world.nodes[0].sent.len(), before);
}

#[test]
fn where_a_peer_sees_this_node_is_published_while_a_plugin_has_use_for_it() {
    let mut world = World::pair();
    world.tell_both();
    world.connect();
    // Known to the peer only: this node's interface has another address, as behind a NAT.
    let seen = world.address(0);
    world.with(0, |mesh, now| {
        mesh.handle_local_addresses(&host(&["192.168.1.2"]), now)
    });
    world.run(secs(10));
    let published = |world: &World| {
        let status = world.nodes[0].mesh.status(world.now);
        let seen = status.local.iter().find(|local| local.address == seen);
        seen.map(|local| local.kind)
    };
    assert_eq!(published(&world), None);
    let mut running = instances(true);
    running.insert(InstanceName::new("gossip"), messages());
    world.with(0, |mesh, now| mesh.handle_instances(running, now));
    let before = world.nodes[0].publications;
    world.run(secs(60));
    assert_eq!(published(&world), Some(CandidateKind::Reflexive));
    assert!(world.nodes[0].publications > before);
    world.with(0, |mesh, now| mesh.handle_instances(instances(true), now));
    assert_eq!(published(&world), None);
}
