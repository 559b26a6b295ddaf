//! Pairs that one port on each side does not join: strategies, pins and the punch budget.

use std::time::Duration;

use natpunch_core::PathKind;
use natpunch_sim::{Allocation, Filtering, LinkConfig, Mapping, NatConfig};

use crate::lab::{Lab, MINUTE, MS, NEAR, SECOND, Side, UPLINK};

/// Most entries of any NAT, whatever is tried.
const MOST_ENTRIES: usize = 2_300;

const fn hard(allocation: Allocation) -> NatConfig {
    NatConfig::new(
        Mapping::AddressAndPortDependent,
        Filtering::AddressAndPortDependent,
        allocation,
    )
}

/// The links of the nodes and of the server.
const USUAL: [LinkConfig; 2] = [UPLINK, NEAR];

const SEQUENTIAL: NatConfig = hard(Allocation::Sequential { step: 1 });
const BLOCK: NatConfig = hard(Allocation::Block { size: 1_024 });

/// What a run of one pair came to.
struct Run {
    direct: Option<Duration>,
    pinned: bool,
}

/// Runs until both are direct, for at most this long, with a ping each way all the time.
fn run(
    seed: u64,
    a: impl Into<Side>,
    b: impl Into<Side>,
    links: [LinkConfig; 2],
    patience: Duration,
) -> (Run, Lab) {
    let mut lab = Lab::punching(seed, a, b, links[0], links[1]).start();
    let start = lab.world.now();
    let mut direct = None;
    while direct.is_none() && lab.world.now() < start + patience {
        lab.world.ping(lab.a, lab.b);
        let next = lab.world.now() + 20 * MS;
        lab.world.run_until(next);
        let is_direct = lab.paths() == [PathKind::Direct; 2];
        direct = is_direct.then(|| lab.world.now() - start);
    }
    if direct.is_some() {
        lab.expect_flow(5 * SECOND);
    }
    lab.expect_sound();
    for gateway in lab.gateway_a.into_iter().chain(lab.gateway_b) {
        let peak = lab
            .world
            .network
            .nat_v4(gateway)
            .map(|nat| nat.most_sessions());
        if peak.is_some_and(|peak| peak > MOST_ENTRIES) {
            lab.fail(&format!("{peak:?} entries in one NAT"));
        }
    }
    let pinned = [(lab.a, lab.b), (lab.b, lab.a)]
        .into_iter()
        .any(|(node, peer)| lab.world.pin(node, peer).is_some());
    (Run { direct, pinned }, lab)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

#[test]
fn a_symmetric_nat_and_a_port_filtering_one_become_direct_by_a_pinned_port() {
    let mut times = Vec::new();
    for seed in 0..10 {
        let (a, b) = match seed % 2 {
            0 => (NatConfig::symmetric(), NatConfig::home()),
            _ => (NatConfig::home(), NatConfig::symmetric()),
        };
        let (run, lab) = run(seed, a, b, USUAL, 15 * SECOND);
        let Some(took) = run.direct else {
            lab.fail("no direct path");
        };
        assert!(run.pinned);
        times.push(took);
    }
    println!(
        "symmetric with home: {times:?}, median {:?}",
        median(times.clone())
    );
}

#[test]
fn a_sequence_of_ports_and_a_block_of_them_are_found_with_few_probes() {
    for (name, nat) in [("sequential", SEQUENTIAL), ("block", BLOCK)] {
        let mut times = Vec::new();
        for seed in 0..10 {
            let (run, lab) = run(seed, nat, NatConfig::home(), USUAL, 15 * SECOND);
            let Some(took) = run.direct else {
                lab.fail(&format!("{name}: no direct path"));
            };
            times.push(took);
        }
        println!(
            "{name} with home: {times:?}, median {:?}",
            median(times.clone())
        );
    }
}

#[test]
fn two_sequences_of_ports_meet_where_nobody_else_takes_any() {
    for seed in 0..5 {
        let (run, lab) = run(seed, SEQUENTIAL, SEQUENTIAL, USUAL, MINUTE);
        println!("both sequential: {:?}", run.direct);
        if run.direct.is_none() {
            lab.fail("no direct path");
        }
    }
}

#[test]
fn two_routers_that_accept_on_their_outside_and_share_a_wire_become_direct_by_another_port() {
    let wire = LinkConfig::wire(Duration::from_micros(150));
    // The moments at which the two are told to fire are further apart than their wire is long.
    let jittery = NEAR.with_disorder(3 * MS, 0.0, 0.0);
    for seed in 0..10 {
        let poisoned = NatConfig::home().poisoned();
        let (run, lab) = run(seed, poisoned, poisoned, [wire, jittery], MINUTE);
        println!(
            "poisoned neighbours: {:?} pinned {}",
            run.direct, run.pinned
        );
        if run.direct.is_none() {
            lab.fail("no direct path");
        }
    }
}
