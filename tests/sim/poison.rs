//! Routers that take an early packet for their own (Linux with an accepting INPUT chain on the outside), and so move the
//! very session that was wanted to another port.

use std::time::Duration;

use natpunch_sim::{NatConfig, Random, Verdict, direct_path_possible};

use crate::lab::{Lab, MINUTE, SECOND};

/// Times to direct of the seeds that connect within five minutes, sorted.
fn times_to_direct(a: NatConfig, b: NatConfig, seeds: u64) -> Vec<Duration> {
    let time = |seed| {
        let mut lab = Lab::usual(seed, a, b);
        assert_eq!(direct_path_possible(&lab.world.network, lab.a, lab.b), Verdict::Contended);
        let mut random = Random::new(seed, 5);
        lab.world.start_at(lab.a, random.duration(2 * SECOND));
        lab.world.start_at(lab.b, random.duration(2 * SECOND));
        let took = lab.connect(5 * MINUTE);
        lab.expect_sound();
        took
    };
    let mut times: Vec<_> = (0..seeds).filter_map(time).collect();
    times.sort();
    times
}

#[test]
fn poison_prone_routers_are_passed_after_the_silence_in_which_they_forget() {
    let home = NatConfig::home();
    for (name, a, b) in [("both", home.poisoned(), home.poisoned()), ("one", home.poisoned(), home)] {
        let times = times_to_direct(a, b, 100);
        let half = times.get(times.len() / 2);
        assert!(times.len() >= 99, "{name}: {} of 100", times.len());
        println!("poison-prone routers: {name}: {} of 100 connect, p50 {half:?} worst {:?}", times.len(), times.last());
    }
}
