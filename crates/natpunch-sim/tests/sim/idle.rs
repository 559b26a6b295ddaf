//! What a pair costs while nobody talks, and that it is there when somebody does.

use std::collections::BTreeMap;
use std::time::Duration;

use natpunch_core::{Event, PathKind};
use natpunch_sim::{HostId, NatConfig, Purpose, Timers};

use crate::kinds::{RANDOM, hard};
use crate::lab::{Lab, MINUTE, NEAR, SECOND, Side, UPLINK};

/// Datagrams that leave a node in a minute for an idle peer behind NATs of Linux: WireGuard's, those
/// to the peer, by the relay in reserve, and for its port there.
const MOST_A_MINUTE: f64 = 3.0;
/// The same where the relay is all there is: the search for a direct path goes on every hour.
const MOST_RELAYED: f64 = 5.0;
/// The same for its server, however many peers it has.
const MOST_FOR_THE_SERVER: f64 = 2.5;
/// The same for an idle peer where no lifetime is known.
const MOST_BY_RULE: f64 = 14.0;

/// A node pair of which each side can measure its NAT.
fn measuring(seed: u64, a: impl Into<Side>, b: impl Into<Side>, path: PathKind) -> Lab {
    connected(Lab::punching(seed, a, b, UPLINK, NEAR), path)
}

fn connected(lab: Lab, path: PathKind) -> Lab {
    let mut lab = lab.start();
    lab.expect_connected(10 * SECOND);
    lab.reach(path, 20 * SECOND);
    lab
}

fn nat(seconds: u32, refresh_inbound: bool) -> NatConfig {
    NatConfig {
        timers: timers(seconds, refresh_inbound),
        ..NatConfig::home()
    }
}

fn timers(seconds: u32, refresh_inbound: bool) -> Timers {
    Timers {
        one_way: SECOND * seconds.min(30),
        two_way: SECOND * seconds,
        refresh_inbound,
        ..Timers::LINUX
    }
}

fn run(lab: &mut Lab, time: Duration) {
    lab.world.run_until(lab.world.now() + time);
}

/// How often either side has lost a path.
fn losses(lab: &Lab) -> usize {
    let events = [lab.a, lab.b].into_iter();
    let events = events.flat_map(|node| lab.world.events(node));
    events
        .filter(|(_, event)| matches!(event, Event::PathLost { .. }))
        .count()
}

/// What a node knows of its own NAT and of the peer's.
fn lifetimes(lab: &Lab, node: HostId) -> [Option<u8>; 2] {
    let status = lab.world.status(node).unwrap();
    let peers = status.peers[0].nat.and_then(|nat| nat.mapping_lifetime_s);
    [status.nat.mapping_lifetime_s, peers]
}

/// Datagrams that a node has sent so far, by their purpose.
fn sent(lab: &Lab, node: HostId) -> BTreeMap<Purpose, u64> {
    let mut sent = BTreeMap::new();
    for ((purpose, _), count) in lab.world.sent(node) {
        *sent.entry(*purpose).or_default() += count;
    }
    sent
}

/// Datagrams that each node sends in a minute of this time, by their purpose.
fn rates(lab: &mut Lab, time: Duration) -> [BTreeMap<Purpose, f64>; 2] {
    let nodes = [lab.a, lab.b];
    let before = nodes.map(|node| sent(lab, node));
    run(lab, time);
    let minutes = time.as_secs_f64() / 60.0;
    let rate = |index: usize| {
        let after = sent(lab, nodes[index]).into_iter();
        let more = after.map(|(purpose, count)| {
            let earlier = before[index].get(&purpose).copied().unwrap_or_default();
            (purpose, (count - earlier) as f64 / minutes)
        });
        more.collect()
    };
    [rate(0), rate(1)]
}

fn for_the_peer(rates: &BTreeMap<Purpose, f64>) -> f64 {
    let of = [Purpose::WireGuard, Purpose::Probe, Purpose::Bind];
    of.iter().filter_map(|purpose| rates.get(purpose)).sum()
}

fn for_the_server(rates: &BTreeMap<Purpose, f64>) -> f64 {
    let of = [Purpose::Server, Purpose::Stun];
    of.iter().filter_map(|purpose| rates.get(purpose)).sum()
}

#[test]
fn an_idle_pair_costs_three_packets_a_minute_each_way_and_keeps_its_path() {
    let mut most = [0.0_f64; 2];
    for seed in 0..8 {
        let mut lab = measuring(seed, NatConfig::home(), NatConfig::home(), PathKind::Direct);
        run(&mut lab, 6 * MINUTE);
        assert_eq!(lifetimes(&lab, lab.a), [Some(110); 2]);
        for rates in rates(&mut lab, 30 * MINUTE) {
            if seed == 0 {
                println!("a minute: {rates:.2?}");
            }
            most[0] = most[0].max(for_the_peer(&rates));
            most[1] = most[1].max(for_the_server(&rates));
        }
        if lab.paths() != [PathKind::Direct; 2] || losses(&lab) > 0 {
            lab.fail("the idle pair has lost its path");
        }
        lab.expect_flow(SECOND);
    }
    println!("an idle pair: at most {most:.2?} a minute, for the peer and for the server");
    assert!(
        most[0] <= MOST_A_MINUTE && most[1] <= MOST_FOR_THE_SERVER,
        "{most:?}"
    );
}

#[test]
fn an_idle_pair_of_which_no_lifetime_is_known_is_held_by_rules_of_thumb() {
    for (nat, path) in [
        (NatConfig::home(), PathKind::Direct),
        (NatConfig::symmetric(), PathKind::Relay),
    ] {
        let mut most = 0.0_f64;
        for seed in 0..8 {
            let mut lab = connected(Lab::with_servers(seed, nat, nat, &[NEAR]), path);
            run(&mut lab, 2 * MINUTE);
            for rates in rates(&mut lab, 15 * MINUTE) {
                most = most.max(for_the_peer(&rates));
            }
            if lab.paths() != [path; 2] || losses(&lab) > 0 {
                lab.fail("the idle pair has lost its path");
            }
            lab.expect_flow(SECOND);
        }
        println!("{path:?} path, idle, by rule: at most {most:.1} packets a minute for the peer");
        // Rounds that look for a direct path begin ever more seldom.
        let rounds = if path == PathKind::Relay { 30.0 } else { 0.0 };
        assert!(most <= MOST_BY_RULE + rounds, "{path:?}: {most}");
    }
}

#[test]
fn a_pair_that_idles_on_a_relay_guesses_no_ports_until_somebody_talks() {
    let guesses = |lab: &Lab| {
        let of = |node| {
            let events = lab.world.events(node).iter();
            events
                .filter(|(_, event)| matches!(event, Event::StrategyBegun { .. }))
                .count()
        };
        [lab.a, lab.b].map(of)
    };
    for seed in 0..2 {
        let mut lab = measuring(seed, hard(RANDOM), hard(RANDOM), PathKind::Relay);
        // Each strategy has its turn when the pair begins.
        run(&mut lab, 8 * MINUTE);
        let before = guesses(&lab);
        if lab.paths() != [PathKind::Relay; 2] {
            continue; // One guess in thousands hits.
        }
        assert!(before.iter().all(|count| *count > 0), "{before:?}");
        for rates in rates(&mut lab, 30 * MINUTE) {
            println!("relayed, idle, a minute: {rates:.2?}");
            let most = for_the_peer(&rates);
            assert!(most <= MOST_RELAYED, "{seed}: {most} a minute");
        }
        assert_eq!(guesses(&lab), before, "{seed}");
        for _ in 0..60 {
            lab.world.send(lab.a, lab.b);
            run(&mut lab, SECOND);
        }
        assert_ne!(guesses(&lab), before, "{seed}: somebody talks");
    }
}

#[test]
fn mappings_of_any_lifetime_are_measured_and_held_by_no_more_packets_than_they_need() {
    for (seconds, measured) in [(15, 13), (30, 28), (60, 58), (120, 110)] {
        for refresh_inbound in [true, false] {
            let (mut most, mut pairs) = (0.0_f64, 0);
            for seed in 0..if seconds == 15 { 8 } else { 4 } {
                let nat = nat(seconds, refresh_inbound);
                let mut lab = measuring(seed, nat, nat, PathKind::Direct);
                run(&mut lab, 7 * MINUTE);
                let place = format!("mappings of {seconds} s, inbound {refresh_inbound}, {seed}");
                for node in [lab.a, lab.b] {
                    assert_eq!(lifetimes(&lab, node), [Some(measured); 2], "{place}");
                }
                let before = losses(&lab);
                let rates = rates(&mut lab, 15 * MINUTE);
                // A mapping that was lost before anything was known costs the pair its rest for an
                // hour: it is pinged every five seconds.
                let is_watched = |rates: &BTreeMap<_, _>| rates[&Purpose::Probe] > 12.0;
                if seconds == 15 && rates.iter().any(is_watched) {
                    continue;
                }
                pairs += 1;
                for rates in rates {
                    most = most.max(for_the_peer(&rates));
                }
                if losses(&lab) > before {
                    lab.fail(&format!("{place}: lost in a rest"));
                }
                lab.expect_flow(SECOND);
            }
            // WireGuard's keepalive, a ping or its answer, a bind; and the relay's ping.
            let keepalive = f64::from(measured) * 0.9 - 1.0;
            let needed = 3.2 * 60.0 / keepalive + 1.8;
            assert!(pairs > 1, "{pairs} pairs have lost nothing");
            println!("mappings of {seconds} s: {most:.1} packets a minute for the peer");
            assert!(most <= needed, "{seconds} s: {most} of {needed}");
        }
    }
}

#[test]
fn nats_that_forget_soon_cost_an_idle_pair_at_most_one_path() {
    for (lifetime, most_lost) in [(15, 1), (30, 0), (60, 0), (120, 0)] {
        for refresh_inbound in [true, false] {
            for seed in 0..8 {
                let nat = nat(lifetime, refresh_inbound);
                let lab = Lab::with_servers(seed, nat, nat, &[NEAR]);
                let mut lab = connected(lab, PathKind::Direct);
                run(&mut lab, 15 * MINUTE);
                lab.expect_flow(5 * SECOND);
                lab.reach(PathKind::Direct, 20 * SECOND);
                let lost = losses(&lab);
                if lost > most_lost * 2 {
                    lab.fail(&format!("mappings of {lifetime} s: {lost} losses"));
                }
            }
        }
    }
}

#[test]
fn a_lifetime_that_is_wrong_since_routers_were_replaced_is_unlearned_and_measured_anew() {
    // Where a path that was lost is opened again by whoever speaks first, the next trial shows it.
    for (both, seed) in (0..4).flat_map(|seed| [(true, seed), (false, seed)]) {
        let mut lab = measuring(seed, NatConfig::home(), NatConfig::home(), PathKind::Direct);
        run(&mut lab, 6 * MINUTE);
        assert_eq!(lifetimes(&lab, lab.a), [Some(110); 2]);
        let routers = [lab.gateway_a, lab.gateway_b.filter(|_| both)];
        for router in routers.into_iter().flatten() {
            lab.world.replace_router(router, timers(20, true));
        }
        run(&mut lab, 40 * MINUTE);
        let [own, _] = lifetimes(&lab, lab.a);
        assert_eq!(own, Some(18), "{both}, {seed}");
        let lost = losses(&lab);
        run(&mut lab, 15 * MINUTE);
        if losses(&lab) > lost {
            lab.fail("the pair has learned nothing");
        }
        lab.reach(PathKind::Direct, 20 * SECOND);
        lab.expect_flow(SECOND);
    }
}

#[test]
fn between_public_addresses_without_keepalives_an_idle_pair_sends_nothing() {
    for seed in 0..4 {
        let mut lab = Lab::with_servers(seed, Side::Public, Side::Public, &[NEAR]);
        lab.world.set_keepalive(lab.a, None);
        lab.world.set_keepalive(lab.b, None);
        let mut lab = connected(lab, PathKind::Direct);
        run(&mut lab, 5 * MINUTE);
        for rates in rates(&mut lab, 60 * MINUTE) {
            let to_peer = for_the_peer(&rates) - rates.get(&Purpose::Bind).unwrap_or(&0.0);
            assert!(to_peer < f64::EPSILON, "{seed}: {rates:?}");
        }
        assert_eq!(losses(&lab), 0);
        // One speaks first: of two handshakes that cross neither comes to anything.
        lab.world.send(lab.a, lab.b);
        run(&mut lab, SECOND);
        lab.expect_flow(SECOND);
    }
}

#[test]
fn traffic_after_a_long_rest_leaves_a_path_that_broke_meanwhile_at_once() {
    for seed in 0..16 {
        let mut lab = measuring(seed, NatConfig::home(), NatConfig::home(), PathKind::Direct);
        run(&mut lab, 10 * MINUTE);
        for (from, to) in [
            ("203.0.113.1", "203.0.113.2"),
            ("203.0.113.2", "203.0.113.1"),
        ] {
            let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
            lab.world.network.set_route(from, to, false);
        }
        // Nobody has asked the path yet when the first word is spoken.
        lab.reach(PathKind::Relay, 8 * SECOND);
        lab.expect_flow(SECOND);
    }
}
