//! A NAT that hands out ports in sequence, against one that keeps its port: the next ones are
//! probed.

use std::time::Duration;

use super::{Aim, Pair, Shot, Strategy, Timing};
use crate::nat::profile::Pattern;

/// Ports that the opener takes of the sequence: gaps that other hosts make do not matter.
const PORTS: usize = 16;
/// How far ahead the sweeper looks: a carrier's NAT at 35 new flows a second and a round trip of a
/// second is still within it.
const WINDOW: usize = 96;

pub(super) static STRATEGY: Strategy = Strategy {
    id: 3,
    name: "sequential",
    timing: Timing::Armed,
    ports: PORTS,
    samples: true,
    known_ports: false,
    both_open: false,
    either_opens: false,
    patience: |_| Duration::from_millis(600),
    can,
    suits,
    opener: |aim, n| aim.open(n),
    sweeper,
};

fn can(pair: Pair<'_>) -> bool {
    let is_sequence = matches!(pair.opener.pattern, Pattern::Sequential { .. });
    is_sequence && pair.may_open()
}

fn suits(pair: Pair<'_>) -> bool {
    pair.is_hard_with_findable()
}

fn sweeper(aim: &Aim<'_>, n: usize) -> Option<Shot> {
    let port = (n < WINDOW).then(|| ahead(aim.pair.opener.pattern, n + 1))??;
    Some(aim.sweep(port, Duration::ZERO))
}

/// The port so many mappings after the newest one that is known.
pub(super) fn ahead(pattern: Pattern, count: usize) -> Option<u16> {
    let Pattern::Sequential { newest, step } = pattern else {
        return None;
    };
    let far = i32::from(newest) + i32::from(step) * i32::try_from(count).ok()?;
    // Where the range ends it begins anew, above the well-known ports.
    let wrapped = match far {
        65_536.. => far - 65_536 + 1_024,
        ..1_024 => far + 64_512,
        _ => far,
    };
    u16::try_from(wrapped).ok()
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha20Rng;
    use rand_core::{RngCore as _, SeedableRng as _};

    use super::*;
    use crate::nat::profile::NatProfile;

    #[test]
    fn the_sequence_goes_on_beyond_the_end_of_the_range() {
        let rising = Pattern::Sequential {
            newest: 65_534,
            step: 1,
        };
        let ports: Vec<_> = (1..4).map(|n| ahead(rising, n)).collect();
        assert_eq!(ports, [Some(65_535), Some(1_024), Some(1_025)]);
        let falling = Pattern::Sequential {
            newest: 1_025,
            step: -2,
        };
        assert_eq!(ahead(falling, 1), Some(65_535));
        assert_eq!(ahead(Pattern::Random, 1), None);
    }

    /// How many mappings other hosts make while so many are expected: a Poisson process, by Knuth's
    /// method (The Art of Computer Programming, 3.4.1).
    fn others(rng: &mut ChaCha20Rng, expected: f64) -> u32 {
        let mut uniform = || f64::from(rng.next_u32()) / f64::from(u32::MAX);
        let end = (-expected).exp();
        let products = std::iter::successors(Some(uniform()), |product| Some(product * uniform()));
        products.take_while(|product| *product > end).count() as u32
    }

    #[test]
    fn ten_thousand_predictions_come_within_three_sigma_of_the_mathematics() {
        const SEEDS: u32 = 10_000;
        let mut rng = ChaCha20Rng::from_seed([6; 32]);
        // From the sample until the opener's first packet leaves: 35 flows a second during 1 to 3 s.
        for expected in [35.0, 85.0, 95.0, 105.0_f64] {
            let mut hits = 0;
            for _ in 0..SEEDS {
                let newest = 1_024 + u16::try_from(rng.next_u32() % 60_000).unwrap();
                let profile = NatProfile {
                    pattern: Pattern::Sequential { newest, step: 1 },
                    ..NatProfile::default()
                };
                let aim = Aim {
                    pair: Pair {
                        opener: &profile,
                        sweeper: &profile,
                    },
                    ports: &[],
                    target: "203.0.113.1:9".parse().unwrap(),
                    seed: 0,
                    peers_seed: 0,
                    attempt: 0,
                    opener_ttl: 4,
                };
                let mut port = newest;
                let opened: Vec<u16> = (0..PORTS)
                    .map(|n| {
                        // The others take nearly none while the opener takes its own.
                        let first = if n == 0 { expected } else { 0.1 };
                        port = ahead_of(port, 1 + others(&mut rng, first));
                        port
                    })
                    .collect();
                let mut swept = (0..).map_while(|n| sweeper(&aim, n));
                hits += u32::from(swept.any(|shot| opened.contains(&shot.path.remote.port())));
            }
            // The first of its ports is within the window: fewer than that were taken before.
            let mut term = (-expected).exp();
            let mut within = term;
            for taken in 1..WINDOW {
                term *= expected / taken as f64;
                within += term;
            }
            let (seeds, share) = (f64::from(SEEDS), f64::from(hits) / f64::from(SEEDS));
            let sigma = (within * (1.0 - within) / seeds).sqrt();
            assert!(
                (share - within).abs() <= 3.0 * sigma + 1e-9,
                "{expected} expected: {share}, not {within}"
            );
        }
    }

    /// So many ports after this one, as the NAT counts.
    fn ahead_of(port: u16, count: u32) -> u16 {
        let far = u32::from(port) + count;
        u16::try_from(far).unwrap_or_else(|_| u16::try_from(far - 65_536 + 1_024).unwrap())
    }
}
