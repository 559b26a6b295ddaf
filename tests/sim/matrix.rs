//! Every kind of NAT against every kind.

use std::collections::BTreeMap;
use std::time::Duration;

use natpunch_core::PeerState;
use natpunch_sim::{Allocation, Filtering, LinkConfig, Mapping, NatConfig, Random, Verdict, direct_path_possible};

use crate::lab::{Discovery, Lab, MINUTE, SECOND, UPLINK};

const MAPPINGS: [Mapping; 3] =
    [Mapping::EndpointIndependent, Mapping::AddressDependent, Mapping::AddressAndPortDependent];
const FILTERINGS: [Filtering; 3] =
    [Filtering::EndpointIndependent, Filtering::AddressDependent, Filtering::AddressAndPortDependent];
const ALLOCATIONS: [Allocation; 4] = [
    Allocation::Preserve,
    Allocation::Random { low: 1024, high: 65_535 },
    Allocation::Sequential { step: 1 },
    Allocation::Block { size: 512 },
];

/// Most probes of one node in one hour in which it cannot reach its peer.
const PROBES_PER_HOUR: u64 = 1_500;

fn all_nats() -> Vec<NatConfig> {
    let mut nats = Vec::new();
    for mapping in MAPPINGS {
        for filtering in FILTERINGS {
            for allocation in ALLOCATIONS {
                nats.push(NatConfig::new(mapping, filtering, allocation));
            }
        }
    }
    nats
}

/// Every unordered pair, a NAT with itself included.
fn all_pairs() -> Vec<(NatConfig, NatConfig)> {
    let nats = all_nats();
    let rows = nats.iter().enumerate();
    rows.flat_map(|(row, a)| nats[row..].iter().map(move |b| (*a, *b))).collect()
}

/// Links of this seed: up to 10 % loss from node to node, with jitter, reordering and duplicates.
fn rough_uplink(random: &mut Random) -> LinkConfig {
    let loss = random.below(5_001) as f64 / 100_000.0;
    let delay = Duration::from_millis(1 + random.below(60));
    let disorder = random.below(1_001) as f64 / 100_000.0;
    LinkConfig { delay, ..UPLINK }.with_loss(loss).with_disorder(random.duration(delay / 4), disorder, disorder)
}

#[derive(Debug, Default)]
struct Tally {
    connected: BTreeMap<&'static str, u64>,
    times: Vec<Duration>,
}

/// One run of the campaign: what the oracle says must come true.
fn run(seed: u64, (a, b): (NatConfig, NatConfig), tally: &mut Tally) {
    let mut random = Random::new(seed, 3);
    let uplink = rough_uplink(&mut random);
    let (a, b) = if random.chance(0.5) { (a, b) } else { (b, a) };
    let which = if random.chance(0.5) { Discovery::Rendezvous } else { Discovery::Records };
    let mut lab = Lab::new(seed, a, b, uplink, which);
    lab.world.start_at(lab.a, random.duration(2 * SECOND));
    lab.world.start_at(lab.b, random.duration(2 * SECOND));
    let verdict = direct_path_possible(&lab.world.network, lab.a, lab.b);
    let outcome = match verdict {
        Verdict::Possible => {
            let took = lab.expect_connected(MINUTE);
            tally.times.push(took);
            "connected"
        }
        Verdict::Impossible => {
            expect_stated_unreachable(&mut lab);
            "stated as not directly reachable"
        }
        Verdict::Contended => unreachable!("no NAT of the matrix is poisoned"),
    };
    *tally.connected.entry(outcome).or_default() += 1;
}

/// Both nodes say that there is no path, and then leave the network in peace.
fn expect_stated_unreachable(lab: &mut Lab) {
    lab.world.run_until(2 * MINUTE);
    let stated = |state: &PeerState| matches!(state, PeerState::Unreachable { .. });
    if !lab.states().iter().all(stated) {
        lab.fail("not stated as unreachable");
    }
    let nodes = [lab.a, lab.b];
    let before = nodes.map(|node| lab.world.probes_sent(node));
    lab.world.run_until(62 * MINUTE);
    for (node, before) in nodes.into_iter().zip(before) {
        let probes = lab.world.probes_sent(node) - before;
        if probes > PROBES_PER_HOUR {
            lab.fail(&format!("{probes} probes in one hour in vain"));
        }
    }
    if !lab.states().iter().all(stated) {
        lab.fail("no longer stated as unreachable");
    }
    lab.expect_sound();
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

fn campaign(seeds: u64) {
    let pairs = all_pairs();
    let mut tally = Tally::default();
    let seeds = match number("NATPUNCH_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("NATPUNCH_SIM_SEEDS").unwrap_or(seeds),
    };
    let runs = seeds.end - seeds.start;
    for seed in seeds {
        // 397 is coprime to the number of pairs: few seeds already see all kinds.
        let pair = pairs[(seed * 397 % pairs.len() as u64) as usize];
        run(seed, pair, &mut tally);
    }
    tally.times.sort();
    let at = |share: usize| tally.times.get(tally.times.len() * share / 100).copied().unwrap_or_default();
    println!("{runs} seeds: {:?}; time to direct p50 {:?} p95 {:?} p99 {:?}", tally.connected, at(50), at(95), at(99));
}

#[test]
fn every_pair_of_nats_connects_whenever_the_oracle_says_that_it_can() {
    campaign(1_000);
}

#[test]
#[ignore = "long: run by `cargo test --test sim -- --ignored`"]
fn every_pair_of_nats_connects_over_ten_thousand_seeds() {
    campaign(10_000);
}

#[test]
fn a_symmetric_nat_connects_to_an_address_filtering_one_through_peer_reflexive_learning() {
    for filtering in [Filtering::EndpointIndependent, Filtering::AddressDependent] {
        let easy = NatConfig::new(Mapping::EndpointIndependent, filtering, Allocation::Preserve);
        for seed in 0..10 {
            Lab::usual(seed, NatConfig::symmetric(), easy).start().expect_connected(10 * SECOND);
            Lab::usual(seed, easy, NatConfig::symmetric()).start().expect_connected(10 * SECOND);
        }
    }
}

#[test]
fn a_symmetric_nat_and_a_port_filtering_one_end_in_a_stated_unreachable() {
    for (seed, other) in [(1, NatConfig::home()), (2, NatConfig::symmetric())] {
        expect_stated_unreachable(&mut Lab::usual(seed, NatConfig::symmetric(), other).start());
    }
}
