//! A path in use: guarded, followed when WireGuard roams, replaced when it dies, adopted after a restart.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::net::SocketAddr;

use common::*;
use natpunch_core::{Event, PathKind, PeerState, Time};

fn count(world: &World, index: usize, matches: impl Fn(&Event) -> bool) -> usize {
    world.nodes[index].events.iter().filter(|(_, event)| matches(event)).count()
}

fn connected() -> World {
    let mut world = World::pair();
    world.tell_both();
    world.connect();
    world
}

#[test]
fn a_live_endpoint_is_never_replaced_by_an_unproven_one() {
    let mut world = connected();
    let before = [world.nodes[0].endpoint(world.nodes[1].number), world.nodes[1].endpoint(world.nodes[0].number)];
    let sets = world.nodes[0].sets.len() + world.nodes[1].sets.len();
    for last in 10..60 {
        world.tell_address(0, 1, addr(&format!("198.51.100.{last}:1000")));
        world.tell_address(1, 0, addr(&format!("198.51.100.{last}:1000")));
        world.run(ms(500));
    }
    world.run(secs(600));
    assert_eq!(
        before,
        [world.nodes[0].endpoint(world.nodes[1].number), world.nodes[1].endpoint(world.nodes[0].number)]
    );
    assert_eq!(sets, world.nodes[0].sets.len() + world.nodes[1].sets.len());
}

#[test]
fn a_lan_path_replaces_an_internet_path_once_proven_and_both_follow() {
    let (low, high) = low_high();
    let mut world = World::new(&[(low, &["203.0.113.1", "10.0.0.1"]), (high, &["203.0.113.2", "10.0.0.2"])]);
    // The LAN is down at first.
    world.passes = Box::new(|_, destination, _| !destination.ip().to_string().starts_with("10."));
    world.tell_both();
    world.connect();
    assert_eq!(world.status(0).path, PathKind::Direct);
    world.passes = Box::new(|_, _, _| true);
    for (node, other) in [(0, 1), (1, 0)] {
        let mut address = world.address(other);
        address.set_ip(world.nodes[other].addresses[1]);
        world.tell_address(node, other, address);
    }
    world.run(secs(400));
    for index in 0..2 {
        assert_eq!(world.status(index).path, PathKind::Lan, "{:#?}", world.nodes[index].events);
        assert_eq!(count(&world, index, |event| matches!(event, Event::PathSelected { .. })), 2);
    }
}

#[test]
fn a_path_that_is_a_little_faster_is_not_worth_a_change() {
    let (low, high) = low_high();
    let mut world = World::new(&[(low, &["203.0.113.1"]), (high, &["203.0.113.2", "203.0.113.3"])]);
    let fast: SocketAddr = SocketAddr::new("203.0.113.3".parse().unwrap(), world.nodes[1].port);
    world.delay =
        Box::new(move |source, destination| if [source, destination].contains(&fast) { ms(48) } else { ms(50) });
    world.tell(1, 0);
    world.tell(0, 1);
    world.run(secs(2));
    world.tell_address(0, 1, fast);
    world.run(secs(300));
    assert_eq!(world.nodes[0].endpoint(world.nodes[1].number), Some(world.address(1)));
}

#[test]
fn roaming_is_accepted_and_never_fought() {
    for roamer in [0, 1] {
        let mut world = connected();
        let watcher = 1 - roamer;
        let sets = world.nodes[watcher].sets.len();
        let roamed = addr("198.51.100.77:4444");
        let key = public(world.nodes[roamer].number);
        // The peer's device sends from elsewhere now; its natpunch is silent.
        world.nodes[roamer].mesh_up = false;
        let row = world.nodes[watcher].device.get_mut(&key).unwrap();
        (row.endpoint, row.rx_bytes) = (Some(roamed), row.rx_bytes + 1000);
        world.run(secs(100));
        assert_eq!(world.nodes[watcher].endpoint(world.nodes[roamer].number), Some(roamed));
        assert_eq!(world.nodes[watcher].sets.len(), sets, "fought");
        assert_eq!(world.status(watcher).endpoint, Some(roamed));
        // The new path is the one that counts from now on.
        assert_eq!(world.status(watcher).state, PeerState::Connected);
        assert_eq!(count(&world, watcher, |event| matches!(event, Event::Roamed { .. })), 1);
        let listed = world.status(watcher).candidates.iter().any(|c| c.address == roamed && c.origins == ["wireguard"]);
        assert!(listed);
    }
}

#[test]
fn a_restarted_agent_adopts_a_running_session_without_a_flap() {
    for restarted in [0, 1] {
        let mut world = connected();
        world.nodes[restarted].mesh_up = false;
        world.run(secs(30));
        let sets = [world.nodes[0].sets.len(), world.nodes[1].sets.len()];
        world.restart_agent(restarted, 99);
        assert_eq!(world.status(restarted).state, PeerState::Connected);
        world.run(secs(60));
        assert_eq!(
            sets,
            [world.nodes[0].sets.len(), world.nodes[1].sets.len()],
            "{:#?}",
            world.nodes[restarted].events
        );
        assert_eq!(world.status(0).state, PeerState::Connected);
        assert_eq!(world.status(1).state, PeerState::Connected);
        assert!(world.status(restarted).rtt.is_some(), "verified by probes");
    }
}

#[test]
fn an_adopted_session_that_is_dead_is_punched_anew() {
    let mut world = connected();
    world.nodes[0].mesh_up = false;
    // The peer moves while nobody looks.
    world.nodes[1].addresses = vec!["203.0.113.9".parse().unwrap()];
    world.run(secs(30));
    world.restart_agent(0, 99);
    world.restart_agent(1, 98);
    world.tell_both();
    world.run(secs(15));
    assert_eq!(world.nodes[0].endpoint(world.nodes[1].number), Some(world.address(1)), "{:#?}", world.nodes[0].events);
    assert_eq!(world.status(0).state, PeerState::Connected);
}

#[test]
fn a_node_that_moves_to_another_network_is_followed_within_a_second() {
    for mover in [0, 1] {
        let mut world = connected();
        world.run(secs(20));
        let addresses = vec!["203.0.113.99".parse().unwrap()];
        world.nodes[mover].addresses = addresses.clone();
        world.with(mover, |mesh, now| mesh.handle_local_addresses(&addresses, now));
        let other = 1 - mover;
        let number = world.nodes[mover].number;
        let target = world.address(mover);
        let end = world.now + secs(1);
        let done = world.run_until(end, |world| world.nodes[other].endpoint(number) == Some(target));
        assert!(done, "{mover}: {:#?}", world.nodes[other].events);
        world.run(secs(30));
        assert_eq!(world.nodes[other].endpoint(number), Some(target));
        assert_eq!(world.status(0).state, PeerState::Connected);
        assert_eq!(world.status(1).state, PeerState::Connected);
    }
}

#[test]
fn a_dead_path_is_noticed_and_replaced_by_one_that_answers() {
    let (low, high) = low_high();
    let mut world = World::new(&[(low, &["203.0.113.1", "2001:db8::1"]), (high, &["203.0.113.2", "2001:db8::2"])]);
    // IPv6 is slow, so IPv4 is in use.
    world.delay = Box::new(|_, destination| if destination.is_ipv6() { ms(100) } else { ms(10) });
    world.tell_both();
    world.connect();
    let number = world.nodes[1].number;
    assert_eq!(world.nodes[0].endpoint(number), Some(world.address(1)));
    world.passes = Box::new(|_, destination, _| destination.is_ipv6());
    let start = world.now;
    let end = start + secs(30);
    assert!(world.run_until(end, |world| world.nodes[0].endpoint(number).is_some_and(|at| at.is_ipv6())));
    assert!(world.now.since(start) <= secs(17), "{:?}", world.now.since(start));
    world.run(secs(10));
    for index in 0..2 {
        assert_eq!(world.status(index).state, PeerState::Connected, "{:#?}", world.nodes[index].events);
    }
}

#[test]
fn traffic_keeps_a_path_alive_whose_probes_are_lost() {
    let mut world = connected();
    world.passes = Box::new(|_, _, wireguard| wireguard);
    let key = public(world.nodes[1].number);
    for _ in 0..120 {
        world.nodes[0].device.get_mut(&key).unwrap().rx_bytes += 100;
        world.run(secs(1));
    }
    assert_eq!(count(&world, 0, |event| matches!(event, Event::PathLost { .. })), 0);
    assert_eq!(world.status(0).state, PeerState::Connected);
}

#[test]
fn where_probes_pass_and_wireguard_does_not_the_next_path_is_taken() {
    let (low, high) = low_high();
    let mut world = World::new(&[(low, &["203.0.113.1"]), (high, &["203.0.113.2", "203.0.113.3"])]);
    let blocked = world.address(1);
    let second = SocketAddr::new("203.0.113.3".parse().unwrap(), world.nodes[1].port);
    world.delay = Box::new(move |_, destination| if destination == second { ms(60) } else { ms(10) });
    world.passes =
        Box::new(move |source, destination, wireguard| !(wireguard && (source == blocked || destination == blocked)));
    world.tell_both();
    world.tell_address(0, 1, second);
    let number = world.nodes[1].number;
    let end = world.now + secs(30);
    assert!(world.run_until(end, |world| world.nodes[0].handshakes(number).is_some()), "{:#?}", world.nodes[0].events);
    world.run(secs(30));
    assert_eq!(world.nodes[0].endpoint(number), Some(second));
    assert_eq!(world.status(0).state, PeerState::Connected);
    assert!(count(&world, 0, |event| matches!(event, Event::WireGuardBlocked { .. })) >= 1);
}

#[test]
fn the_first_handshake_is_not_started_from_both_sides_at_once() {
    let world = connected();
    assert_eq!(world.initiations, 1);
    let first_kick = |index: usize| world.nodes[index].sets.iter().find(|(.., kick)| *kick).map(|(at, ..)| *at);
    let handshake = world.nodes[1].handshakes(world.nodes[0].number).map(Time::from_origin);
    assert!(first_kick(0) < handshake && first_kick(1).is_none_or(|at| Some(at) > handshake));
}

#[test]
fn a_lost_first_handshake_is_made_up_for_by_the_other_side() {
    let mut world = World::pair();
    let mut lost = false;
    world.passes = Box::new(move |_, _, wireguard| !wireguard || std::mem::replace(&mut lost, true));
    world.tell_both();
    let took = world.connect();
    assert!(took <= secs(2), "{took:?}");
}

#[test]
fn a_device_that_lost_its_endpoint_gets_it_back() {
    let mut world = connected();
    let number = world.nodes[1].number;
    world.nodes[0].device.insert(public(number), row(public(number)));
    world.run(secs(5));
    assert_eq!(world.nodes[0].endpoint(number), Some(world.address(1)));
    assert_eq!(world.status(0).state, PeerState::Connected);
}

#[test]
fn a_reload_keeps_untouched_peers_as_they_are() {
    let mut world = connected();
    let (own, other) = (world.nodes[0].number, world.nodes[1].number);
    let before = world.status(0);
    let sets = world.nodes[0].sets.len();
    let sent = world.nodes[0].sent.len();
    let mut spec = spec(own, &[other, 7, 8]);
    spec.peers[0].name = "renamed".to_owned();
    world.with(0, |mesh, now| mesh.handle_spec(spec, now));
    let after = world.nodes[0].mesh.status(world.now);
    let after = after.peers.iter().find(|peer| peer.key == before.key).unwrap();
    assert_eq!(after.name, "renamed");
    assert_eq!((after.state.clone(), &after.candidates, after.rtt), (before.state, &before.candidates, before.rtt));
    assert_eq!((world.nodes[0].sets.len(), world.nodes[0].sent.len()), (sets, sent), "nothing is re-punched");
}

#[test]
fn a_removed_peer_is_never_set_again() {
    let mut world = connected();
    let (own, other) = (world.nodes[0].number, world.nodes[1].number);
    // A command for it is under way when the reload comes.
    let key = public(other);
    let now = world.now;
    world.nodes[0].device.insert(key, row(key));
    let snapshot = world.nodes[0].snapshot();
    world.nodes[0].mesh.handle_device(&snapshot, now);
    let empty = spec(own, &[]);
    let sets = world.nodes[0].sets.len();
    world.with(0, |mesh, now| mesh.handle_spec(empty, now));
    assert!(world.nodes[0].mesh.status(now).peers.is_empty());
    world.tell(0, 1);
    world.run(secs(60));
    assert_eq!(world.nodes[0].sets.len(), sets);
    assert!(world.nodes[0].interest.is_empty());
}
