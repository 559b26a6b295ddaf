//! Routers that take an early packet for their own (Linux with an accepting INPUT chain on the outside): measured, and
//! not yet required to work.

use natpunch_sim::{NatConfig, Random, Verdict, direct_path_possible};

use crate::lab::{Lab, MINUTE, SECOND};

/// Runs of which so many connect.
fn successes(a: NatConfig, b: NatConfig, runs: u64) -> u64 {
    let connects = |seed: &u64| {
        let mut lab = Lab::usual(*seed, a, b);
        assert_eq!(direct_path_possible(&lab.world.network, lab.a, lab.b), Verdict::Contended);
        let mut random = Random::new(*seed, 5);
        lab.world.start_at(lab.a, random.duration(2 * SECOND));
        lab.world.start_at(lab.b, random.duration(2 * SECOND));
        let connected = lab.connect(5 * MINUTE).is_some();
        lab.expect_sound();
        connected
    };
    (0..runs).filter(connects).count() as u64
}

#[test]
fn poisoned_routers_are_measured() {
    let home = NatConfig::home();
    for (name, a, b) in [("both", home.poisoned(), home.poisoned()), ("one", home.poisoned(), home)] {
        println!("poison-prone routers: {name}: {} of 100 connect", successes(a, b, 100));
    }
}
