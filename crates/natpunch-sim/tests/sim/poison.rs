//! Routers that take an early packet for their own (Linux with an accepting INPUT chain on the
//! outside), and so move the very session that was wanted to another port.

use std::time::Duration;

use natpunch_sim::{NatConfig, Random, Verdict, direct_path_possible};
use natpunch_types::RelayPolicy;

use crate::lab::{Lab, MINUTE, NEAR, SECOND};

/// Times to direct of the seeds that have a direct path within five minutes, sorted.
fn times_to_direct(
    a: NatConfig,
    b: NatConfig,
    meet: bool,
    pins: [bool; 2],
    seeds: u64,
) -> Vec<Duration> {
    let time = |seed| {
        let mut lab = if meet {
            Lab::with_servers(seed, a, b, &[NEAR])
        } else {
            Lab::usual(seed, a, b)
        };
        for (node, pins) in [lab.a, lab.b].into_iter().zip(pins) {
            lab.world.set_relay_policy(node, RelayPolicy::Never);
            if pins {
                lab.world.enable_pins(node);
            }
        }
        if a != b || a != NatConfig::home() {
            assert_eq!(
                direct_path_possible(&lab.world.network, lab.a, lab.b),
                Verdict::Contended
            );
        }
        let mut random = Random::new(seed, 5);
        let starts = [random.duration(2 * SECOND), random.duration(2 * SECOND)];
        lab.world.start_at(lab.a, starts[0]);
        lab.world.start_at(lab.b, starts[1]);
        let took = lab.connect_directly(5 * MINUTE);
        lab.expect_sound();
        took.map(|took| took - starts[0].max(starts[1]))
    };
    let mut times: Vec<_> = (0..seeds).filter_map(time).collect();
    times.sort();
    times
}

#[test]
fn poison_prone_routers_are_passed_after_the_silence_in_which_they_forget() {
    let home = NatConfig::home();
    for (name, a, b) in [
        ("both", home.poisoned(), home.poisoned()),
        ("one", home.poisoned(), home),
    ] {
        let times = times_to_direct(a, b, false, [false; 2], 100);
        let half = times.get(times.len() / 2);
        assert!(times.len() >= 99, "{name}: {} of 100", times.len());
        println!(
            "poison-prone routers: {name}: {} of 100 connect, p50 {half:?} worst {:?}",
            times.len(),
            times.last()
        );
    }
}

#[test]
fn poison_prone_routers_are_passed_at_once_where_discovery_makes_both_sides_fire_at_one_moment() {
    let home = NatConfig::home();
    for (name, a, b) in [
        ("none", home, home),
        ("both", home.poisoned(), home.poisoned()),
        ("one", home.poisoned(), home),
        ("other", home, home.poisoned()),
    ] {
        let times = times_to_direct(a, b, true, [false; 2], 40);
        let half = times.get(times.len() / 2);
        println!(
            "poison-prone: {name}, both told when to fire: p50 {half:?} worst {:?}",
            times.last()
        );
        assert!(
            times.len() == 40 && times.iter().all(|took| *took <= 2 * SECOND),
            "{name}: {times:?}"
        );
    }
}

/// There is no relay, and nobody arranges a moment: each side goes on by itself from other source
/// ports, which both know.
#[test]
fn poison_prone_routers_are_passed_within_seconds_where_a_side_can_use_other_source_ports() {
    let home = NatConfig::home();
    for (name, a, b, pins) in [
        ("both", home.poisoned(), home.poisoned(), [true, true]),
        (
            "both, a has ports",
            home.poisoned(),
            home.poisoned(),
            [true, false],
        ),
        (
            "both, b has ports",
            home.poisoned(),
            home.poisoned(),
            [false, true],
        ),
        ("one", home.poisoned(), home, [true, true]),
        ("one, of the other", home.poisoned(), home, [false, true]),
    ] {
        let times = times_to_direct(a, b, false, pins, 40);
        let half = times.get(times.len() / 2);
        println!(
            "poison-prone, other source ports: {name}: {} of 40, p50 {half:?} worst {:?}",
            times.len(),
            times.last()
        );
        assert!(
            times.len() == 40 && times.iter().all(|took| *took <= 6 * SECOND),
            "{name}: {times:?}"
        );
    }
}
