//! What a pair costs while nobody talks, and that it is there when somebody does.

use std::time::Duration;

use natpunch_core::{Event, PathKind};
use natpunch_sim::{NatConfig, Timers};

use crate::lab::{Lab, MINUTE, NEAR, SECOND};

/// Datagrams of the agent that leave a node in a minute while its one peer is idle: to the peer, by
/// the relay in reserve, for its port there, and to the server.
const MOST_A_MINUTE: u64 = 11;

fn pair(seed: u64, nat: NatConfig, path: PathKind) -> Lab {
    let mut lab = Lab::with_servers(seed, nat, nat, &[NEAR]).start();
    lab.expect_connected(10 * SECOND);
    lab.reach(path, 20 * SECOND);
    lab
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

#[test]
fn an_idle_pair_costs_a_few_packets_a_minute_and_keeps_its_path() {
    let minutes = 15;
    for (nat, path) in [
        (NatConfig::home(), PathKind::Direct),
        (NatConfig::symmetric(), PathKind::Relay),
    ] {
        let mut most = 0;
        for seed in 0..8 {
            let mut lab = pair(seed, nat, path);
            run(&mut lab, 2 * MINUTE);
            let count = |lab: &Lab| [lab.a, lab.b].map(|node| lab.world.probes_sent(node));
            let before = count(&lab);
            run(&mut lab, minutes * MINUTE);
            let after = count(&lab);
            for (before, after) in before.into_iter().zip(after) {
                most = most.max((after - before).div_ceil(u64::from(minutes)));
            }
            if lab.paths() != [path; 2] || losses(&lab) > 0 {
                lab.fail("the idle pair has lost its path");
            }
            lab.expect_flow(SECOND);
        }
        println!("{path:?} path, idle: at most {most} datagrams a minute of the agent");
        // Rounds that look for a direct path begin ever more seldom.
        let rounds = if path == PathKind::Relay { 30 } else { 0 };
        assert!(most <= MOST_A_MINUTE + rounds, "{path:?}: {most}");
    }
}

#[test]
fn nats_that_forget_soon_cost_an_idle_pair_at_most_one_path() {
    for (lifetime, most_lost) in [(15, 1), (30, 0), (60, 0), (120, 0)] {
        for refresh_inbound in [true, false] {
            for seed in 0..8 {
                let timers = Timers {
                    one_way: SECOND * lifetime.min(30),
                    two_way: SECOND * lifetime,
                    refresh_inbound,
                };
                let nat = NatConfig {
                    timers,
                    ..NatConfig::home()
                };
                let mut lab = pair(seed, nat, PathKind::Direct);
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
fn traffic_after_a_long_rest_leaves_a_path_that_broke_meanwhile_at_once() {
    for seed in 0..16 {
        let mut lab = pair(seed, NatConfig::home(), PathKind::Direct);
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
