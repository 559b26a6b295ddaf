//! Every kind of NAT against every kind.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use natpunch_core::PeerState;
use natpunch_sim::{
    Allocation, Filtering, HostId, LinkConfig, Mapping, NatConfig, Random, Verdict, World,
    direct_path_possible,
};

use crate::lab::{Discovery, Lab, MINUTE, SECOND, UPLINK};

const MAPPINGS: [Mapping; 3] = [
    Mapping::EndpointIndependent,
    Mapping::AddressDependent,
    Mapping::AddressAndPortDependent,
];
const FILTERINGS: [Filtering; 3] = [
    Filtering::EndpointIndependent,
    Filtering::AddressDependent,
    Filtering::AddressAndPortDependent,
];
const ALLOCATIONS: [Allocation; 4] = [
    Allocation::Preserve,
    Allocation::Random {
        low: 1024,
        high: 65_535,
    },
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
fn all_pairs() -> Vec<Pair> {
    let nats = all_nats();
    let rows = nats.iter().enumerate();
    rows.flat_map(|(row, a)| nats[row..].iter().map(move |b| (*a, *b)))
        .collect()
}

type Pair = (NatConfig, NatConfig);

fn has_an_easy_side((a, b): &Pair) -> bool {
    [a, b]
        .into_iter()
        .any(|nat| nat.mapping == Mapping::EndpointIndependent)
}

/// Links of this seed: up to 10 % loss from node to node, with jitter, reordering and duplicates.
fn rough_uplink(random: &mut Random) -> LinkConfig {
    let loss = random.below(5_001) as f64 / 100_000.0;
    let delay = Duration::from_millis(1 + random.below(60));
    let disorder = random.below(1_001) as f64 / 100_000.0;
    LinkConfig { delay, ..UPLINK }
        .with_loss(loss)
        .with_disorder(random.duration(delay / 4), disorder, disorder)
}

#[derive(Debug, Default)]
struct Tally {
    outcomes: BTreeMap<&'static str, u64>,
    times: Vec<Duration>,
}

/// One run of the campaign: what the oracle says must come true.
fn run(seed: u64, (a, b): Pair, tally: &mut Tally) {
    let mut random = Random::new(seed, 3);
    let uplink = rough_uplink(&mut random);
    let (a, b) = if random.chance(0.5) { (a, b) } else { (b, a) };
    let which = if random.chance(0.5) {
        Discovery::Rendezvous
    } else {
        Discovery::Records
    };
    let mut lab = Lab::new(seed, a, b, uplink, which);
    let starts = [random.duration(2 * SECOND), random.duration(2 * SECOND)];
    lab.world.start_at(lab.a, starts[0]);
    lab.world.start_at(lab.b, starts[1]);
    let verdict = direct_path_possible(&lab.world.network, lab.a, lab.b);
    let outcome = match verdict {
        Verdict::Possible => {
            let took = lab.expect_connected(MINUTE);
            tally.times.push(took - starts[0].max(starts[1]));
            "connected"
        }
        Verdict::Impossible => {
            expect_stated_unreachable(&mut lab);
            "stated as not directly reachable"
        }
        Verdict::Contended => {
            lab.expect_connected(30 * MINUTE);
            "connected although contended"
        }
    };
    *tally.outcomes.entry(outcome).or_default() += 1;
}

/// Both nodes say that there is no path, and then leave the network in peace.
fn expect_stated_unreachable(lab: &mut Lab) {
    expect_statement(lab, 2 * MINUTE);
    let nodes = [lab.a, lab.b];
    let before = nodes.map(|node| lab.world.probes_sent(node));
    let hour = lab.world.now() + 60 * MINUTE;
    lab.world.run_until(hour);
    for (node, before) in nodes.into_iter().zip(before) {
        let probes = lab.world.probes_sent(node) - before;
        if probes > PROBES_PER_HOUR {
            lab.fail(&format!("{probes} probes in one hour in vain"));
        }
    }
    expect_statement(lab, hour);
    lab.expect_sound();
}

/// Both say so at this time, or as soon as the round of probing ends that happens to run.
fn expect_statement(lab: &mut Lab, at: Duration) {
    lab.world.run_until(at);
    let (a, b) = (lab.a, lab.b);
    let stated = |world: &World| [a, b].into_iter().all(|node| is_stated(world, node));
    if lab.world.run_until_done(at + 10 * SECOND, stated).is_none() {
        lab.fail("not stated as unreachable");
    }
}

fn is_stated(world: &World, node: HostId) -> bool {
    let peers = world
        .status(node)
        .map(|status| status.peers)
        .unwrap_or_default();
    peers
        .iter()
        .all(|peer| matches!(peer.state, PeerState::Unreachable { .. }))
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text} is not a number"))
    })
}

/// The seeds that the environment asks for (so many, or `FIRST..END`), else this many.
pub(crate) fn seeds_or(usual: u64) -> Range<u64> {
    if let Some(seed) = number("NATPUNCH_SIM_SEED") {
        return seed..seed + 1;
    }
    let text = std::env::var("NATPUNCH_SIM_SEEDS").unwrap_or_default();
    match text.split_once("..").map(|(a, b)| (a.parse(), b.parse())) {
        Some((Ok(first), Ok(end))) => first..end,
        _ => 0..number("NATPUNCH_SIM_SEEDS").unwrap_or(usual),
    }
}

/// Runs so many seeds over these pairs, in an order in which few seeds already see all kinds.
fn campaign(name: &str, mut pairs: Vec<Pair>, seeds: u64) -> Tally {
    let mut random = Random::new(pairs.len() as u64, 0);
    for index in (1..pairs.len()).rev() {
        pairs.swap(index, random.below(index as u64 + 1) as usize);
    }
    let mut tally = Tally::default();
    let seeds = seeds_or(seeds);
    for seed in seeds.clone() {
        run(
            seed,
            pairs[(seed % pairs.len() as u64) as usize],
            &mut tally,
        );
    }
    tally.times.sort();
    let at = |share: usize| {
        tally
            .times
            .get(tally.times.len() * share / 100)
            .copied()
            .unwrap_or_default()
    };
    let (half, most, worst) = (
        at(50),
        at(95),
        tally.times.last().copied().unwrap_or_default(),
    );
    println!(
        "{name}: seeds {seeds:?}, {:?}; time to direct p50 {half:?} p95 {most:?} worst {worst:?}",
        tally.outcomes
    );
    tally
}

fn easy_pairs() -> Vec<Pair> {
    all_pairs().into_iter().filter(has_an_easy_side).collect()
}

fn hard_pairs() -> Vec<Pair> {
    all_pairs()
        .into_iter()
        .filter(|pair| !has_an_easy_side(pair))
        .collect()
}

#[test]
fn every_pair_with_an_endpoint_independent_side_connects_whenever_the_oracle_says_that_it_can() {
    assert_eq!(easy_pairs().len(), 366);
    campaign("one easy side", easy_pairs(), 1_000);
}

#[test]
fn every_pair_of_endpoint_dependent_nats_does_what_the_oracle_says() {
    campaign("two hard sides", hard_pairs(), hard_pairs().len() as u64);
}

#[test]
#[ignore = "long: run by `make sim`"]
fn every_pair_does_what_the_oracle_says_over_ten_thousand_seeds() {
    campaign("all pairs", all_pairs(), 10_000);
}

#[test]
fn poison_prone_routers_only_delay_where_ports_are_compared() {
    let mut random = Random::new(0, 4);
    let poison = |nat: NatConfig, random: &mut Random| {
        if random.chance(0.7) {
            nat.poisoned()
        } else {
            nat
        }
    };
    let pairs: Vec<Pair> = easy_pairs()
        .into_iter()
        .map(|(a, b)| (poison(a, &mut random), poison(b, &mut random)))
        .collect();
    let seeds = pairs.len() as u64;
    let tally = campaign("poison-prone", pairs, seeds);
    assert!(tally.outcomes.contains_key("connected although contended"));
}

#[test]
fn a_symmetric_nat_connects_to_an_address_filtering_one_through_peer_reflexive_learning() {
    for filtering in [Filtering::EndpointIndependent, Filtering::AddressDependent] {
        let easy = NatConfig::new(
            Mapping::EndpointIndependent,
            filtering,
            Allocation::Preserve,
        );
        for seed in 0..10 {
            Lab::usual(seed, NatConfig::symmetric(), easy)
                .start()
                .expect_connected(10 * SECOND);
            Lab::usual(seed, easy, NatConfig::symmetric())
                .start()
                .expect_connected(10 * SECOND);
        }
    }
}

#[test]
fn a_symmetric_nat_and_a_port_filtering_one_end_in_a_stated_unreachable() {
    for (seed, other) in [(1, NatConfig::home()), (2, NatConfig::symmetric())] {
        expect_stated_unreachable(&mut Lab::usual(seed, NatConfig::symmetric(), other).start());
    }
}
