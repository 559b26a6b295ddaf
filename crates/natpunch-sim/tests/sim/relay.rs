//! Relays: first, until there is a direct path, and again when it dies.

use std::time::Duration;

use natpunch_core::{Event, PathKind};
use natpunch_sim::{LinkConfig, NatConfig, Verdict, direct_path_possible};
use natpunch_types::PathId;

use crate::lab::{Lab, MINUTE, MS, NEAR, OUTSIDE_A, OUTSIDE_B, SECOND, ip};

const FAR: LinkConfig = LinkConfig::wire(Duration::from_millis(80));

/// Time until both nodes have a session.
fn connect(lab: &mut Lab, patience: Duration) -> Duration {
    lab.connect(patience)
        .unwrap_or_else(|| lab.fail("no session"))
}

/// Two home routers that can reach each other, on a direct path, with a relay beside it.
fn direct(seed: u64) -> Lab {
    let mut lab = Lab::with_servers(seed, NatConfig::home(), NatConfig::home(), &[NEAR]).start();
    connect(&mut lab, 10 * SECOND);
    lab.reach(PathKind::Direct, 10 * SECOND);
    lab.pings_lost(SECOND * u32::try_from(5 + seed % 7).unwrap());
    lab
}

fn set_routes(lab: &mut Lab, there: bool, back: bool) {
    lab.world
        .network
        .set_route(ip(OUTSIDE_A), ip(OUTSIDE_B), there);
    lab.world
        .network
        .set_route(ip(OUTSIDE_B), ip(OUTSIDE_A), back);
}

#[test]
fn two_symmetric_nats_connect_through_a_relay_within_two_round_trips_and_200_ms_of_both_being_up() {
    const ROUND_TRIP: Duration = Duration::from_millis(80);
    let mut times = Vec::new();
    for seed in 0..40 {
        let mut lab = Lab::with_servers(
            seed,
            NatConfig::symmetric(),
            NatConfig::symmetric(),
            &[NEAR],
        );
        assert_eq!(
            direct_path_possible(&lab.world.network, lab.a, lab.b),
            Verdict::Impossible
        );
        // The first half at the same time, the others one after the other.
        let both_up = lab.world.now()
            + if seed < 20 {
                Duration::ZERO
            } else {
                MS * (seed as u32 * 313 % 4_000)
            };
        let (first, second) = if seed % 2 == 0 {
            (lab.a, lab.b)
        } else {
            (lab.b, lab.a)
        };
        lab.world.start_at(first, lab.world.now());
        lab.world.start_at(second, both_up);
        lab.world.run_until(both_up);
        times.push(connect(&mut lab, 10 * SECOND));
        lab.reach(PathKind::Relay, SECOND);
        lab.run_with_pings(10 * SECOND);
    }
    println!("symmetric x symmetric: session by the relay after {times:?}");
    let worst = times.iter().max().copied().unwrap_or_default();
    assert!(worst <= ROUND_TRIP * 2 + MS * 200, "{worst:?}");
}

/// When the first node had a direct path.
fn direct_since(lab: &Lab) -> Option<Duration> {
    let is_direct = |path: &PathId| !path.remote.to_string().starts_with("198.51.100.");
    let selected = |(at, event): &(Duration, Event)| match event {
        Event::PathSelected { path, .. } if is_direct(path) => Some(*at),
        _ => None,
    };
    let nodes = [lab.a, lab.b].into_iter();
    let first = nodes.filter_map(|node| lab.world.events(node).iter().find_map(selected));
    first.min()
}

#[test]
fn a_direct_path_is_used_when_it_is_proven_though_a_relay_was_first() {
    let (mut times, mut lost) = (Vec::new(), Vec::new());
    for seed in 0..20 {
        let nat = NatConfig::home();
        let server = NEAR.with_disorder(5 * MS, 0.0, 0.0);
        let mut lab = Lab::with_servers(seed, nat, nat, &[server]).start();
        let of_both = lab.pings_lost(5 * SECOND);
        lost.push(of_both.0 + of_both.1);
        times.extend(direct_since(&lab));
        assert_eq!(lab.paths(), [PathKind::Direct; 2], "{}", lab.world.report());
        lab.expect_sound();
    }
    times.sort_unstable();
    println!("a relay first: direct after {times:?}, of 1,000 pings lost {lost:?}");
    assert!(times.iter().all(|time| *time <= 400 * MS), "{times:?}");
    // What a side sends by the relay as the relay ceases to carry.
    assert!(lost.iter().all(|lost| *lost <= 7), "{lost:?}");
}

#[test]
fn a_relayed_pair_moves_to_the_direct_path_and_stays_there() {
    let mut most = 0;
    for seed in 0..5 {
        let mut lab = Lab::with_servers(seed, NatConfig::home(), NatConfig::home(), &[NEAR]);
        set_routes(&mut lab, false, false);
        lab = lab.start();
        connect(&mut lab, 10 * SECOND);
        lab.reach(PathKind::Relay, SECOND);
        lab.pings_lost(5 * SECOND);
        set_routes(&mut lab, true, true);
        let lost = lab.pings_lost(MINUTE);
        assert_eq!(lab.paths(), [PathKind::Direct; 2]);
        most = most.max(lost.0).max(lost.1);
        let carried = lab.world.carried_by(lab.server);
        lab.pings_lost(MINUTE);
        assert_eq!(lab.world.carried_by(lab.server), carried);
    }
    assert!(most <= 25, "{most} of 100 pings a second lost");
    println!("relay to direct: {most} of 100 pings a second lost at worst");
}

#[test]
fn a_relay_takes_over_when_the_direct_path_dies_and_gives_back_when_it_lives() {
    for (name, there, back) in [
        ("both ways", false, false),
        ("one way", false, true),
        ("other way", true, false),
    ] {
        let (mut takeovers, mut returns) = (Vec::new(), Vec::new());
        for seed in 0..6 {
            let mut lab = direct(seed);
            set_routes(&mut lab, there, back);
            takeovers.push(lab.reach(PathKind::Relay, 10 * SECOND));
            let lost = lab.pings_lost(30 * SECOND);
            // Where the direct path still works one way, what the peer has under way on it takes
            // WireGuard back there for the time of a snapshot.
            assert!(lost.0.max(lost.1) <= 7, "{lost:?}");
            assert_eq!(lab.paths(), [PathKind::Relay; 2]);
            set_routes(&mut lab, true, true);
            returns.push(lab.reach(PathKind::Direct, 2 * MINUTE));
            let lost = lab.pings_lost(30 * SECOND);
            assert!(lost.0.max(lost.1) <= 25, "{lost:?}");
            assert_eq!(lab.paths(), [PathKind::Direct; 2]);
        }
        takeovers.sort();
        returns.sort();
        println!("{name} broken: relay after {takeovers:?}, mended: direct after {returns:?}");
    }
}

#[test]
fn of_two_relays_the_nearer_one_is_used() {
    for (links, nearer) in [([FAR, NEAR], "198.51.100.2"), ([NEAR, FAR], "198.51.100.1")] {
        let mut lab =
            Lab::with_servers(1, NatConfig::symmetric(), NatConfig::symmetric(), &links).start();
        connect(&mut lab, 10 * SECOND);
        lab.reach(PathKind::Relay, SECOND);
        lab.run_with_pings(5 * SECOND);
        for (node, peer) in [(lab.a, lab.b), (lab.b, lab.a)] {
            let endpoint = lab
                .world
                .device(node)
                .endpoint(&lab.world.key(peer))
                .unwrap();
            assert_eq!(endpoint.ip(), ip(nearer));
        }
    }
}

/// Both nodes' WireGuard goes by the server at this address, and their statuses say so.
fn expect_relayed_by(lab: &Lab, server: &str) {
    for (node, peer) in [(lab.a, lab.b), (lab.b, lab.a)] {
        let endpoint = lab
            .world
            .device(node)
            .endpoint(&lab.world.key(peer))
            .unwrap();
        assert_eq!(endpoint.ip(), ip(server));
        let status = lab.world.status(node).unwrap();
        assert_eq!(status.peers[0].relayed_by, [format!("server-{server}")]);
    }
}

/// Two nodes that list relays by their numbers: the first is far, the second near.
fn listing(list: &[usize]) -> Lab {
    let mut lab = Lab::with_servers(
        1,
        NatConfig::symmetric(),
        NatConfig::symmetric(),
        &[FAR, NEAR],
    );
    let servers: Vec<_> = list.iter().map(|number| lab.servers[*number]).collect();
    for node in [lab.a, lab.b] {
        lab.world.set_relays(node, &servers);
    }
    let mut lab = lab.start();
    connect(&mut lab, 10 * SECOND);
    lab
}

#[test]
fn the_relay_that_is_listed_first_is_used_though_it_is_farther_and_the_next_one_when_it_dies() {
    let mut lab = listing(&[0, 1]);
    lab.run_with_pings(5 * SECOND);
    expect_relayed_by(&lab, "198.51.100.1");
    let far = lab.servers[0];
    lab.world.set_server_down(far, true);
    lab.run_with_pings(10 * SECOND);
    expect_relayed_by(&lab, "198.51.100.2");
    lab.world.set_server_down(far, false);
    lab.run_with_pings(2 * MINUTE);
    expect_relayed_by(&lab, "198.51.100.1");
}

#[test]
fn a_relay_that_is_not_listed_is_not_used_even_if_no_other_is_left() {
    let mut lab = listing(&[0]);
    lab.run_with_pings(5 * SECOND);
    expect_relayed_by(&lab, "198.51.100.1");
    let (far, near) = (lab.servers[0], lab.servers[1]);
    lab.world.set_server_down(far, true);
    lab.longest_gap(2 * MINUTE, |_| ());
    assert_eq!(lab.world.carried_by(near), 0);
    for node in [lab.a, lab.b] {
        let status = lab.world.status(node).unwrap();
        let offered = status.peers[0]
            .candidates
            .iter()
            .any(|candidate| candidate.address.ip() == ip("198.51.100.2"));
        assert!(!offered);
    }
    lab.world.set_server_down(far, false);
    lab.run_with_pings(2 * MINUTE);
    expect_relayed_by(&lab, "198.51.100.1");
}

#[test]
fn a_relayed_pair_goes_on_within_seven_seconds_when_a_router_forgets_its_mappings() {
    for servers in [&[NEAR][..], &[NEAR, NEAR]] {
        let gaps = (0..8).map(|seed| {
            let symmetric = NatConfig::symmetric();
            let mut lab = Lab::with_servers(seed, symmetric, symmetric, servers).start();
            connect(&mut lab, 10 * SECOND);
            // At any time between two binds that keep the mapping.
            lab.longest_gap(SECOND * (30 + 7 * seed as u32), |_| ());
            lab.world.reboot_gateway(lab.gateway_a.unwrap(), None);
            let gap = lab.longest_gap(MINUTE, |_| ());
            lab.expect_sound();
            gap
        });
        let gaps: Vec<_> = gaps.collect();
        println!(
            "a router of a relayed pair reboots, {} servers: gaps {gaps:?}",
            servers.len()
        );
        assert!(gaps.iter().all(|gap| *gap <= 7 * SECOND), "{gaps:?}");
    }
}
