//! A path in use: guarded, followed when WireGuard roams, replaced when it dies, adopted after a
//! restart.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::net::SocketAddr;

use common::*;
use natpunch_core::{Event, PathKind, PeerState, Time};
use natpunch_types::{HostNetwork, InstanceName, LinkRole, PathId, Route};

fn count(world: &World, index: usize, matches: impl Fn(&Event) -> bool) -> usize {
    world.nodes[index]
        .events
        .iter()
        .filter(|(_, event)| matches(event))
        .count()
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
    let before = [
        world.nodes[0].endpoint(world.nodes[1].number),
        world.nodes[1].endpoint(world.nodes[0].number),
    ];
    let sets = world.nodes[0].sets.len() + world.nodes[1].sets.len();
    for last in 10..60 {
        world.tell_address(0, 1, addr(&format!("198.51.100.{last}:1000")));
        world.tell_address(1, 0, addr(&format!("198.51.100.{last}:1000")));
        world.run(ms(500));
    }
    world.run(secs(600));
    assert_eq!(
        before,
        [
            world.nodes[0].endpoint(world.nodes[1].number),
            world.nodes[1].endpoint(world.nodes[0].number)
        ]
    );
    assert_eq!(sets, world.nodes[0].sets.len() + world.nodes[1].sets.len());
}

#[test]
fn a_lan_path_replaces_an_internet_path_once_proven_and_both_follow() {
    let (low, high) = low_high();
    let mut world = World::new(&[
        (low, &["203.0.113.1", "10.0.0.1"]),
        (high, &["203.0.113.2", "10.0.0.2"]),
    ]);
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
        assert_eq!(
            world.status(index).path,
            PathKind::Lan,
            "{:#?}",
            world.nodes[index].events
        );
        assert_eq!(
            count(&world, index, |event| matches!(
                event,
                Event::PathSelected { .. }
            )),
            2
        );
    }
}

#[test]
fn a_path_that_is_a_little_faster_is_not_worth_a_change() {
    let (low, high) = low_high();
    let mut world = World::new(&[
        (low, &["203.0.113.1"]),
        (high, &["203.0.113.2", "203.0.113.3"]),
    ]);
    let fast: SocketAddr = SocketAddr::new("203.0.113.3".parse().unwrap(), world.nodes[1].port);
    world.delay = Box::new(move |source, destination| {
        if [source, destination].contains(&fast) {
            ms(48)
        } else {
            ms(50)
        }
    });
    world.tell(1, 0);
    world.tell(0, 1);
    world.run(secs(2));
    world.tell_address(0, 1, fast);
    world.run(secs(300));
    assert_eq!(
        world.nodes[0].endpoint(world.nodes[1].number),
        Some(world.address(1))
    );
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
        assert_eq!(
            world.nodes[watcher].endpoint(world.nodes[roamer].number),
            Some(roamed)
        );
        assert_eq!(world.nodes[watcher].sets.len(), sets, "fought");
        assert_eq!(world.status(watcher).endpoint, Some(roamed));
        // The new path is the one that counts from now on.
        assert_eq!(world.status(watcher).state, PeerState::Connected);
        assert_eq!(
            count(&world, watcher, |event| matches!(
                event,
                Event::Roamed { .. }
            )),
            1
        );
        let listed = world
            .status(watcher)
            .candidates
            .iter()
            .any(|c| c.address == roamed && c.origins == ["wireguard"]);
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
    assert_eq!(
        world.nodes[0].endpoint(world.nodes[1].number),
        Some(world.address(1)),
        "{:#?}",
        world.nodes[0].events
    );
    assert_eq!(world.status(0).state, PeerState::Connected);
}

#[test]
fn a_node_that_moves_to_another_network_is_followed_within_a_second() {
    for mover in [0, 1] {
        let mut world = connected();
        world.run(secs(20));
        let addresses = vec!["203.0.113.99".parse().unwrap()];
        world.nodes[mover].addresses = addresses.clone();
        world.with(mover, |mesh, now| {
            mesh.handle_local_addresses(&addresses.iter().copied().collect(), now)
        });
        let other = 1 - mover;
        let number = world.nodes[mover].number;
        let target = world.address(mover);
        let end = world.now + secs(1);
        let done = world.run_until(end, |world| {
            world.nodes[other].endpoint(number) == Some(target)
        });
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
    let mut world = World::new(&[
        (low, &["203.0.113.1", "2001:db8::1"]),
        (high, &["203.0.113.2", "2001:db8::2"]),
    ]);
    // IPv6 is slow, so IPv4 is in use.
    world.delay = Box::new(|_, destination| {
        if destination.is_ipv6() {
            ms(100)
        } else {
            ms(10)
        }
    });
    world.tell_both();
    world.connect();
    let number = world.nodes[1].number;
    assert_eq!(world.nodes[0].endpoint(number), Some(world.address(1)));
    world.passes = Box::new(|_, destination, _| destination.is_ipv6());
    let start = world.now;
    let end = start + secs(30);
    assert!(world.run_until(end, |world| {
        world.nodes[0]
            .endpoint(number)
            .is_some_and(|at| at.is_ipv6())
    }));
    assert!(
        world.now.since(start) <= secs(17),
        "{:?}",
        world.now.since(start)
    );
    world.run(secs(10));
    for index in 0..2 {
        assert_eq!(
            world.status(index).state,
            PeerState::Connected,
            "{:#?}",
            world.nodes[index].events
        );
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
    assert_eq!(
        count(&world, 0, |event| matches!(event, Event::PathLost { .. })),
        0
    );
    assert_eq!(world.status(0).state, PeerState::Connected);
}

#[test]
fn a_device_that_is_seldom_read_is_given_the_time_to_show_that_it_works() {
    let (low, high) = low_high();
    let mut world = World::new(&[
        (low, &["203.0.113.1"]),
        (high, &["203.0.113.2", "203.0.113.3"]),
    ]);
    let second = SocketAddr::new("203.0.113.3".parse().unwrap(), world.nodes[1].port);
    world.reads_every = secs(8);
    for index in [0, 1] {
        world.with(index, |mesh, _| mesh.set_reading_interval(secs(8)));
    }
    world.tell_both();
    world.tell_address(0, 1, second);
    world.run(secs(60));
    let is_trouble = |event: &Event| {
        matches!(
            event,
            Event::WireGuardBlocked { .. } | Event::PathLost { .. }
        )
    };
    for index in [0, 1] {
        assert_eq!(world.status(index).state, PeerState::Connected);
        assert_eq!(count(&world, index, is_trouble), 0, "node {index}");
    }
    assert_eq!(world.initiations, 1);
}

#[test]
fn where_probes_pass_and_wireguard_does_not_the_next_path_is_taken() {
    let (low, high) = low_high();
    let mut world = World::new(&[
        (low, &["203.0.113.1"]),
        (high, &["203.0.113.2", "203.0.113.3"]),
    ]);
    let blocked = world.address(1);
    let second = SocketAddr::new("203.0.113.3".parse().unwrap(), world.nodes[1].port);
    world.delay = Box::new(move |_, destination| {
        if destination == second {
            ms(60)
        } else {
            ms(10)
        }
    });
    world.passes = Box::new(move |source, destination, wireguard| {
        !(wireguard && (source == blocked || destination == blocked))
    });
    world.tell_both();
    world.tell_address(0, 1, second);
    let number = world.nodes[1].number;
    let end = world.now + secs(30);
    assert!(
        world.run_until(end, |world| world.nodes[0].handshakes(number).is_some()),
        "{:#?}",
        world.nodes[0].events
    );
    world.run(secs(30));
    assert_eq!(world.nodes[0].endpoint(number), Some(second));
    assert_eq!(world.status(0).state, PeerState::Connected);
    assert!(
        count(&world, 0, |event| matches!(
            event,
            Event::WireGuardBlocked { .. }
        )) >= 1
    );
}

#[test]
fn the_first_handshake_is_not_started_from_both_sides_at_once() {
    let world = connected();
    assert_eq!(world.initiations, 1);
    let first_kick = |index: usize| {
        world.nodes[index]
            .sets
            .iter()
            .find(|(.., kick)| *kick)
            .map(|(at, ..)| *at)
    };
    let handshake = world.nodes[1]
        .handshakes(world.nodes[0].number)
        .map(Time::from_origin);
    assert!(first_kick(0) < handshake && first_kick(1).is_none_or(|at| Some(at) > handshake));
}

#[test]
fn a_lost_first_handshake_is_made_up_for_by_the_other_side() {
    let mut world = World::pair();
    let mut lost = false;
    world.passes =
        Box::new(move |_, _, wireguard| !wireguard || std::mem::replace(&mut lost, true));
    world.tell_both();
    let took = world.connect();
    assert!(took <= secs(2), "{took:?}");
}

#[test]
fn a_device_that_lost_its_endpoint_gets_it_back() {
    let mut world = connected();
    let number = world.nodes[1].number;
    world.nodes[0]
        .device
        .insert(public(number), row(public(number)));
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
    let after = after
        .peers
        .iter()
        .find(|peer| peer.key == before.key)
        .unwrap();
    assert_eq!(after.name, "renamed");
    assert_eq!(
        (after.state.clone(), &after.candidates, after.rtt),
        (before.state, &before.candidates, before.rtt)
    );
    assert_eq!(
        (world.nodes[0].sets.len(), world.nodes[0].sent.len()),
        (sets, sent),
        "nothing is re-punched"
    );
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

#[test]
fn a_peer_that_is_missing_in_a_device_made_anew_gets_its_endpoint_back() {
    for absent in [false, true] {
        let mut world = connected();
        world.run(secs(60));
        let number = world.nodes[1].number;
        world.nodes[0].device.remove(&public(number));
        if absent {
            world.run(secs(3));
        }
        world.nodes[0]
            .device
            .insert(public(number), row(public(number)));
        world.run(secs(3));
        assert_eq!(
            world.nodes[0].endpoint(number),
            Some(world.address(1)),
            "{:#?}",
            world.nodes[0].events
        );
        assert_eq!(world.status(0).state, PeerState::Connected);
    }
}

#[test]
fn after_a_long_connection_a_new_candidate_is_still_pinged() {
    let mut world = connected();
    world.run(secs(1200));
    let fresh = addr("198.51.100.7:7");
    world.tell_address(0, 1, fresh);
    world.run(secs(3));
    let pings = world.nodes[0]
        .sent
        .iter()
        .filter(|(_, sent)| sent.path.remote == fresh)
        .count();
    assert_eq!(pings, 8);
}

#[test]
fn an_idle_tunnel_to_a_peer_whose_agent_ended_is_connected_as_long_as_its_session() {
    let mut world = connected();
    world.run(secs(60));
    world.nodes[1].mesh_up = false;
    world.run(secs(60));
    let status = world.status(0);
    assert_eq!(
        status.state,
        PeerState::Connected,
        "{:#?}",
        world.nodes[0].events
    );
    assert!(status.probes_unanswered && status.path == PathKind::Direct);
    assert_eq!(
        count(&world, 0, |event| matches!(
            event,
            Event::Unreachable { .. }
        )),
        0
    );
    // WireGuard sends and gets nothing back: then it is not.
    let key = public(world.nodes[1].number);
    world.nodes[0].device.get_mut(&key).unwrap().tx_bytes += 100;
    world.run(secs(60));
    assert_ne!(world.status(0).state, PeerState::Connected);
    assert!(!world.status(0).probes_unanswered);
}

#[test]
fn wireguard_that_was_blocked_for_half_a_minute_is_tried_again_soon() {
    let mut world = World::pair();
    world.passes = Box::new(|_, _, wireguard| !wireguard);
    world.tell_both();
    let end = world.now + secs(60);
    let blocked = |event: &Event| matches!(event, Event::WireGuardBlocked { .. });
    assert!(world.run_until(end, |world| count(world, 0, blocked) == 1));
    world.passes = Box::new(|_, _, _| true);
    world.run(secs(45));
    assert_eq!(
        world.status(0).state,
        PeerState::Connected,
        "{:#?}",
        world.nodes[0].events
    );
}

#[test]
fn wireguard_that_stays_blocked_is_tried_less_and_less() {
    let mut world = World::pair();
    world.passes = Box::new(|_, _, wireguard| !wireguard);
    world.tell_both();
    world.run(secs(3600));
    let times = count(&world, 0, |event| {
        matches!(event, Event::WireGuardBlocked { .. })
    });
    assert!((5..=10).contains(&times), "{times}");
}

#[test]
fn a_peer_that_restarts_ends_the_pause_of_a_blocked_wireguard() {
    for restarted in [0, 1] {
        let mut world = World::pair();
        world.passes = Box::new(|_, _, wireguard| !wireguard);
        world.tell_both();
        world.run(secs(300));
        world.passes = Box::new(|_, _, _| true);
        world.restart_agent(restarted, 99);
        world.tell_both();
        world.run(secs(8));
        assert_eq!(
            world.status(0).state,
            PeerState::Connected,
            "{:#?}",
            world.nodes[1 - restarted].events
        );
    }
}

#[test]
fn a_session_of_last_week_is_not_adopted() {
    let mut world = World::pair();
    let number = world.nodes[1].number;
    let dead = world.nodes[0].device.get_mut(&public(number)).unwrap();
    (dead.endpoint, dead.last_handshake) = (Some(addr("203.0.113.77:7")), Some(secs(1_000)));
    world.read_at = Some(secs(700_000));
    world.restart_agent(0, 99);
    assert!(
        !matches!(world.status(0).state, PeerState::Connected),
        "{:?}",
        world.status(0).state
    );
    assert!(world.nodes[0].wanted(number));
    let listed = world
        .status(0)
        .candidates
        .iter()
        .any(|candidate| candidate.address == addr("203.0.113.77:7"));
    assert!(listed, "its endpoint is one place to ask");
    world.tell_both();
    world.run(secs(3));
    assert_eq!(world.nodes[0].endpoint(number), Some(world.address(1)));
}

#[test]
fn a_new_listen_port_voids_what_stun_said_of_the_old_one() {
    let mut world = World::new(&[
        (low_high().0, &["192.168.1.1"]),
        (low_high().1, &["203.0.113.2"]),
    ]);
    let server = addr(STUN);
    world.run(secs(1));
    world.with(0, |mesh, now| mesh.handle_stun_servers(&[server], now));
    let requests = |world: &World| {
        world.nodes[0]
            .sent
            .iter()
            .filter(|(_, sent)| sent.path.remote == server)
            .count()
    };
    let request = world.nodes[0]
        .sent
        .iter()
        .find(|(_, sent)| sent.path.remote == server)
        .unwrap()
        .1
        .payload
        .clone();
    let mapped = addr("198.51.100.1:1111");
    let answer = natpunch_core::stun::respond(&request, mapped).unwrap();
    world.with(0, |mesh, now| {
        mesh.handle_datagram(PathId::wireguard(server), None, &answer, now)
    });
    let told = |world: &World| {
        world.nodes[0]
            .mesh
            .status(world.now)
            .local
            .iter()
            .any(|local| local.address == mapped)
    };
    assert!(told(&world));
    let before = requests(&world);
    let spec = natpunch_core::MeshSpec {
        listen_port: 12_345,
        ..spec(low_high().0, &[low_high().1])
    };
    world.with(0, |mesh, now| mesh.handle_spec(spec, now));
    assert!(!told(&world));
    assert_eq!(requests(&world), before + 1, "asked anew at once");
}

#[test]
fn a_lost_path_asks_stun_at_once() {
    let mut world = connected();
    world.with(0, |mesh, now| mesh.handle_stun_servers(&[addr(STUN)], now));
    world.run(secs(60));
    world.passes = Box::new(|_, _, _| false);
    let lost = |world: &World| count(world, 0, |event| matches!(event, Event::PathLost { .. })) > 0;
    let end = world.now + secs(20);
    assert!(world.run_until(end, lost));
    let start = world.now;
    world.run(ms(100));
    let asked = |(at, sent): &&(Time, natpunch_core::Transmit)| {
        *at >= start && sent.path.remote == addr(STUN)
    };
    assert_eq!(world.nodes[0].sent.iter().filter(asked).count(), 1);
}

#[test]
fn two_peers_that_gave_up_meet_when_one_publishes() {
    // Stateful firewalls, and nothing passes for an hour: both are on the long rungs.
    let mut world = World::pair();
    world.flows = Some(Default::default());
    world.passes = Box::new(|_, _, _| false);
    world.tell_both();
    let exchange = |world: &mut World| {
        for (from, to) in [(0, 1), (1, 0)] {
            let record = world.nodes[from].records[0].clone();
            let origin = natpunch_types::InstanceName::new("http");
            world.with(to, |mesh, now| mesh.handle_record(&origin, &record, now));
        }
    };
    for _ in 0..3600 {
        exchange(&mut world);
        world.run(secs(1));
    }
    assert_ne!(world.status(0).state, PeerState::Connected);
    world.passes = Box::new(|_, _, _| true);
    let publications = world.nodes[0].publications + world.nodes[1].publications;
    for _ in 0..310 {
        exchange(&mut world);
        world.run(secs(1));
        if world.nodes[0].publications + world.nodes[1].publications > publications {
            break;
        }
    }
    exchange(&mut world);
    world.run(secs(2));
    assert_eq!(
        world.status(0).state,
        PeerState::Connected,
        "{:#?}",
        world.nodes[0].events
    );
}

#[test]
fn a_peer_that_wants_to_connect_ends_a_long_silence_but_not_every_second() {
    let mut world = World::pair();
    world.passes = Box::new(|_, _, _| false);
    world.run(secs(1));
    let record = world.nodes[0].records[0].clone();
    let news = |world: &mut World| {
        let record = record.clone();
        world.with(1, |mesh, now| {
            mesh.handle_record(&InstanceName::new("rv"), &record, now)
        });
    };
    news(&mut world);
    world.run(secs(200));
    let pings = |world: &mut World| {
        let (since, key) = (world.now, public(world.nodes[0].number));
        world.with(1, |mesh, now| mesh.handle_wanted(key, now));
        world.run(secs(1));
        world.sent_since(1, since)
    };
    assert!(pings(&mut world) >= 2, "a round of probing begins");
    world.run(secs(20));
    assert!(
        pings(&mut world) == 0,
        "whoever says it all the time changes nothing"
    );
}

#[test]
fn the_first_word_of_stun_after_an_outage_ends_the_long_silence() {
    let mut world = World::pair();
    world.passes = Box::new(|_, _, _| false);
    world.tell_both();
    for index in 0..2 {
        world.with(index, |mesh, now| {
            mesh.handle_stun_servers(&[addr(STUN)], now)
        });
    }
    world.run(secs(3600));
    world.passes = Box::new(|_, _, _| true);
    let server = addr(STUN);
    // Only pings of a round count, not those that keep a hole open.
    let start = world.now;
    let answered = move |world: &World| {
        world.nodes[0].events.iter().any(|(at, event)| {
            *at >= start && matches!(event, Event::ReflexiveLearned { server: from, .. } if *from == server.to_string())
        })
    };
    let end = world.now + secs(40);
    assert!(world.run_until(end, answered) || world.status(0).state == PeerState::Connected);
    world.run(secs(1));
    assert_eq!(
        world.status(0).state,
        PeerState::Connected,
        "{:#?}",
        world.nodes[0].events
    );
}

/// Two hosts with a hub VPN on both, whose addresses each learns of the other, and a direct path of
/// half the VPN's round trip. `tunnels`: the kernel says that it is a tunnel; else it is a LAN as far
/// as can be seen.
fn beside_a_hub_vpn(tunnels: bool) -> World {
    let (low, high) = low_high();
    let mut world = World::new(&[
        (low, &["203.0.113.1", "10.8.0.1"]),
        (high, &["203.0.113.2", "10.8.0.2"]),
    ]);
    let is_vpn = |at: SocketAddr| at.ip().to_string().starts_with("10.8.");
    world.delay = Box::new(move |from, to| ms(if is_vpn(from) || is_vpn(to) { 20 } else { 10 }));
    world.route = Box::new(
        move |_, to| match (to.to_string().starts_with("10.8."), tunnels) {
            (true, true) => Route::Tunneled,
            (true, false) => Route::OnLink,
            (false, _) => Route::Routed,
        },
    );
    world.tell_both();
    for (node, other) in [(0, 1), (1, 0)] {
        let mut address = world.address(other);
        address.set_ip(world.nodes[other].addresses[1]);
        world.tell_address(node, other, address);
    }
    world.run(secs(400));
    world
}

#[test]
fn the_path_through_a_tunnel_of_another_network_is_neither_probed_nor_used() {
    let world = beside_a_hub_vpn(true);
    for index in 0..2 {
        let status = world.status(index);
        assert_eq!(status.path, PathKind::Direct);
        assert_eq!(status.endpoint, Some(world.address(1 - index)));
        let probes = world.nodes[index].sent.iter();
        let in_tunnel =
            probes.filter(|(_, sent)| sent.path.remote.ip().to_string().starts_with("10.8."));
        assert_eq!(in_tunnel.count(), 0, "probes into the tunnel");
    }
}

#[test]
fn what_looks_like_a_lan_is_not_preferred_to_a_direct_path_of_half_its_round_trip() {
    let world = beside_a_hub_vpn(false);
    for index in 0..2 {
        let status = world.status(index);
        assert_eq!(
            status.path,
            PathKind::Direct,
            "{:#?}",
            world.nodes[index].events
        );
        assert_eq!(status.endpoint, Some(world.address(1 - index)));
    }
}

#[test]
fn an_endpoint_that_the_mesh_file_states_is_used_though_it_is_behind_a_tunnel() {
    let (low, high) = low_high();
    let mut world = World::new(&[(low, &["10.8.0.1"]), (high, &["10.8.0.2"])]);
    world.route = Box::new(|_, _| Route::Tunneled);
    for index in 0..2 {
        let mut network: HostNetwork = world.nodes[index].addresses.iter().copied().collect();
        network.addresses[0].role = LinkRole::Tunnel;
        world.with(index, |mesh, now| {
            mesh.handle_local_addresses(&network, now)
        });
    }
    let stated = Candidate {
        kind: natpunch_types::CandidateKind::Mapped,
        ..candidate(world.address(1))
    };
    let key = public(high);
    world.with(0, |mesh, now| mesh.handle_candidate(key, stated, now));
    world.connect();
    assert_eq!(world.status(0).endpoint, Some(world.address(1)));
    // And what others only say is there, is not.
    let mut world = World::new(&[(low, &["10.8.0.1"]), (high, &["10.8.0.2"])]);
    world.route = Box::new(|_, _| Route::Tunneled);
    world.tell_both();
    world.run(secs(60));
    assert_ne!(world.status(0).state, PeerState::Connected);
    let PeerState::Unreachable { reason, .. } = world.status(0).state else {
        panic!("{:?}", world.status(0).state)
    };
    assert!(
        reason.contains("not tried: 1 behind a tunnel of this host"),
        "{reason}"
    );
}

#[test]
fn the_router_and_the_broadcast_address_of_the_lan_are_asked_for_no_peer_unless_it_says_so_itself()
{
    let (low, high) = low_high();
    let mut world = World::new(&[(low, &["192.168.1.2"]), (high, &["192.168.1.1"])]);
    world.route = Box::new(|_, to| match to.to_string().as_str() {
        "192.168.1.255" => Route::Unusable,
        _ => Route::OnLink,
    });
    let mut network = host(&["192.168.1.2"]);
    network.routers = vec!["192.168.1.1".parse().unwrap()];
    world.with(0, |mesh, now| mesh.handle_local_addresses(&network, now));
    let router = world.address(1);
    world.tell_address(0, 1, router);
    world.tell_address(0, 1, addr("192.168.1.255:1000"));
    // No beacon finds the peer either.
    world.nodes[1].up = false;
    world.run(secs(100));
    let asked = |world: &World, ip: &str| {
        let sent = world.nodes[0].sent.iter();
        sent.filter(|(_, sent)| sent.path.remote.ip().to_string() == ip)
            .count()
    };
    assert_eq!(asked(&world, "192.168.1.1"), 0);
    assert_eq!(asked(&world, "192.168.1.255"), 0);
    // The peer is the router.
    world.nodes[1].up = true;
    let record = world.nodes[1].records[0].clone();
    world.with(0, |mesh, now| {
        mesh.handle_record(&InstanceName::new("rv"), &record, now)
    });
    world.connect();
    assert_eq!(world.status(0).endpoint, Some(router));
}
