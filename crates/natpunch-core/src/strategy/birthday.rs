//! A NAT that hands out any port, against one that keeps its port and filters by port.
//!
//! Of `R` ports `N` lead to the opener; `M` probes at random ports miss them all with the
//! probability `(1 - N/R)^M`: with 256 of 64,512 and 1,024 probes that is 1.7 %, and the mean number
//! of probes to the first hit is 251.

use std::time::Duration;

use super::order::shuffled;
use super::{Aim, Pair, Shot, Strategy, Timing};

/// The ports that a NAT may hand out: all but the well-known ones.
const FIRST: u16 = 1_024;
const COUNT: u32 = 65_536 - FIRST as u32;

pub(super) static STRATEGY: Strategy = Strategy {
    id: 1,
    name: "birthday",
    timing: Timing::Armed,
    ports: 256,
    samples: false,
    known_ports: false,
    both_open: false,
    either_opens: false,
    patience: |_| Duration::from_millis(600),
    can: |pair| suits(pair) && pair.may_open(),
    suits,
    opener: |aim, n| aim.open(n),
    sweeper,
};

/// The same where nobody knows of a NAT that maps by destination, and no direct path is found all the
/// same: one server can't tell a NAT that maps by address from one that maps independently.
pub(super) static LAST_RESORT: Strategy = Strategy {
    id: 6,
    name: "birthday on suspicion",
    timing: Timing::Armed,
    ports: 256,
    samples: false,
    known_ports: false,
    both_open: false,
    either_opens: true,
    patience: |_| Duration::from_secs(10),
    can: |pair| pair.may_open() && !suits(pair),
    suits: suits_on_suspicion,
    opener: |aim, n| aim.open(n),
    sweeper,
};

fn suits_on_suspicion(pair: Pair<'_>) -> bool {
    !pair.sweeper.is_hard()
}

/// Any pattern: where a better guess has failed, this is what is left.
fn suits(pair: Pair<'_>) -> bool {
    pair.is_hard_with_findable()
}

fn sweeper(aim: &Aim<'_>, n: usize) -> Option<Shot> {
    let port = u16::try_from(shuffled(n, COUNT, aim.seed)?).ok()?;
    Some(aim.sweep(FIRST + port, Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand_chacha::ChaCha20Rng;
    use rand_core::{RngCore as _, SeedableRng as _};

    use super::*;

    /// So many ports that lead to the opener.
    fn ports(rng: &mut ChaCha20Rng, count: usize) -> BTreeSet<u32> {
        let mut ports = BTreeSet::new();
        while ports.len() < count {
            ports.insert(rng.next_u32() % COUNT);
        }
        ports
    }

    /// Probes to the first hit.
    fn probes(seed: u16, ports: &BTreeSet<u32>) -> usize {
        let order = (0..).map_while(|n| shuffled(n, COUNT, seed));
        1 + order.take_while(|port| !ports.contains(port)).count()
    }

    #[test]
    fn ten_thousand_birthdays_come_within_three_sigma_of_the_mathematics() {
        const SEEDS: u16 = 10_000;
        let mut rng = ChaCha20Rng::from_seed([5; 32]);
        for open in [64.0, 256.0_f64] {
            let found: Vec<usize> = (0..SEEDS)
                .map(|seed| probes(seed, &ports(&mut rng, open as usize)))
                .collect();
            let (seeds, range) = (f64::from(SEEDS), f64::from(COUNT));
            // The first of N hits among R places: mean (R + 1)/(N + 1), and nearly that deviation.
            let mean = found.iter().sum::<usize>() as f64 / seeds;
            let expected = (range + 1.0) / (open + 1.0);
            let sigma = expected / seeds.sqrt();
            assert!(
                (mean - expected).abs() < 3.0 * sigma,
                "{mean}, not {expected}"
            );
            for probes in [256.0, 1024.0_f64] {
                let hits = found.iter().filter(|n| **n as f64 <= probes).count() as f64;
                // C(R - N, M) / C(R, M), factor by factor.
                let miss = (0..probes as u32)
                    .map(|n| 1.0 - open / (range - f64::from(n)))
                    .product::<f64>();
                let (share, expected) = (hits / seeds, 1.0 - miss);
                let sigma = (expected * miss / seeds).sqrt();
                assert!(
                    (share - expected).abs() < 3.0 * sigma,
                    "{share}, not {expected}"
                );
            }
        }
    }
}
