//! An order of numbers that looks random, each number once, without a list.

/// The number at place `n` of a seeded permutation of `0..count`; `None` beyond its end.
///
/// A Feistel network over the smallest even number of bits that holds `count`, walked on while it
/// leads outside (cycle walking, Black and Rogaway 2002). It spreads probes; nothing secret hangs
/// on it.
pub(super) fn shuffled(n: usize, count: u32, seed: u16) -> Option<u32> {
    let n = u32::try_from(n).ok().filter(|n| *n < count)?;
    let bits = (32 - (count - 1).leading_zeros()).max(2).div_ceil(2);
    let mask = (1_u32 << bits) - 1;
    let mut value = n;
    loop {
        let (mut left, mut right) = (value >> bits, value & mask);
        for round in 0..4 {
            let mixed = mix(right, u32::from(seed) << 2 | round) & mask;
            (left, right) = (right, left ^ mixed);
        }
        value = left << bits | right;
        if value < count {
            return Some(value);
        }
    }
}

/// The finaliser of MurmurHash3.
fn mix(value: u32, key: u32) -> u32 {
    let mut h = value ^ key.wrapping_mul(0x9e37_79b9);
    h = (h ^ h >> 16).wrapping_mul(0x85eb_ca6b);
    h = (h ^ h >> 13).wrapping_mul(0xc2b2_ae35);
    h ^ h >> 16
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_number_comes_once_and_seeds_give_other_orders() {
        for count in [1, 2, 3, 256, 1000, 64_512] {
            let all: BTreeSet<u32> = (0..).map_while(|n| shuffled(n, count, 7)).collect();
            assert_eq!(all.len(), count as usize);
            assert!(all.iter().all(|number| *number < count));
        }
        let first = |seed| {
            (0..8)
                .map(|n| shuffled(n, 64_512, seed))
                .collect::<Vec<_>>()
        };
        assert_ne!(first(1), first(2));
    }
}
