//! How fast, and that the same seed gives the same run.

use std::time::Duration;

use natpunch_sim::{Filtering, Mapping, NatConfig, Random, Timers, Unsolicited};

use crate::lab::{Discovery, Lab, MINUTE, SECOND, UPLINK};

fn percentile(times: &mut [Duration], share: usize) -> Duration {
    times.sort();
    times[(times.len() - 1) * share / 100]
}

/// Times from the start of the later of two nodes, which start within half a second of each other,
/// over 200 seeds.
fn times_to_direct(which: Discovery, loss: f64) -> Vec<Duration> {
    let jittery = UPLINK
        .with_loss(loss)
        .with_disorder(Duration::from_millis(1), 0.0, 0.0);
    let time = |seed| {
        let mut lab = Lab::new(seed, NatConfig::home(), NatConfig::home(), jittery, which);
        let mut random = Random::new(seed, 8);
        let starts = [lab.a, lab.b].map(|node| {
            let start = random.duration(SECOND / 2);
            lab.world.start_at(node, start);
            start
        });
        lab.expect_connected(30 * SECOND) - starts[0].max(starts[1])
    };
    (0..200).map(time).collect()
}

#[test]
fn two_endpoint_independent_nats_connect_within_half_a_second() {
    for which in [Discovery::Rendezvous, Discovery::Records] {
        let mut times = times_to_direct(which, 0.0);
        let (half, most) = (percentile(&mut times, 50), percentile(&mut times, 95));
        println!("{which:?}, 20 ms one way: time to both sessions p50 {half:?} p95 {most:?}");
        assert!(
            half <= SECOND / 2 && most <= SECOND,
            "p50 {half:?} p95 {most:?}"
        );
    }
}

#[test]
fn loss_of_five_percent_costs_most_pairs_less_than_a_second() {
    for which in [Discovery::Rendezvous, Discovery::Records] {
        let mut times = times_to_direct(which, 0.025);
        let (half, most) = (percentile(&mut times, 50), percentile(&mut times, 90));
        println!("{which:?}, 20 ms one way, 5 % loss: p50 {half:?} p90 {most:?}");
        assert!(half <= SECOND, "p50 {half:?}");
    }
}

#[test]
fn the_later_of_two_nodes_is_connected_once_the_other_polls_again() {
    let mut times = Vec::new();
    for seed in 0..20 {
        let mut lab = Lab::usual(seed, NatConfig::home(), NatConfig::home());
        let start = 10 * SECOND + Random::new(seed, 9).duration(5 * SECOND);
        lab.world.start_at(lab.a, Duration::ZERO);
        lab.world.start_at(lab.b, start);
        let took = lab.expect_connected(MINUTE);
        times.push(took - start);
    }
    let (half, most) = (percentile(&mut times, 50), percentile(&mut times, 95));
    println!("other node 10 s later: p50 {half:?} p95 {most:?} after its start");
    assert!(most <= 3 * SECOND, "p95 {most:?}");
}

#[test]
fn the_same_seed_gives_the_same_run_bit_by_bit() {
    let run = |seed| {
        let rough = UPLINK
            .with_loss(0.05)
            .with_disorder(Duration::from_millis(5), 0.02, 0.02);
        let timers = Timers {
            one_way: 20 * SECOND,
            two_way: 40 * SECOND,
            refresh_inbound: false,
            ..Timers::LINUX
        };
        let unusual = NatConfig {
            timers,
            unsolicited: Unsolicited::CreateState,
            ..NatConfig::symmetric()
        };
        let easy = NatConfig {
            filtering: Filtering::AddressDependent,
            mapping: Mapping::EndpointIndependent,
            ..NatConfig::symmetric()
        };
        let mut lab = Lab::new(seed, unusual, easy, rough, Discovery::Records).start();
        lab.world.run_until(3 * MINUTE);
        (
            lab.world.network.trace.hash(),
            lab.world.network.trace.text(usize::MAX),
        )
    };
    let (first, second, other) = (run(42), run(42), run(43));
    assert_eq!(first.1, second.1);
    assert_eq!(first.0, second.0);
    assert_ne!(first.0, other.0);
}
