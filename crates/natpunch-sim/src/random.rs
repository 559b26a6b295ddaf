//! Chance, from one seed: the same seed gives the same internet, packet by packet.

use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

/// A seeded stream of chance.
#[derive(Debug, Clone)]
pub struct Random(ChaCha8Rng);

impl Random {
    /// The stream of this seed. `stream` tells apart independent users of one seed.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream);
        Self(rng)
    }

    /// A number in `0..below`; 0 if `below` is 0.
    pub fn below(&mut self, below: u64) -> u64 {
        // The bias of a modulo over 64 bits is far below anything that a simulation can see.
        self.0.next_u64().checked_rem(below).unwrap_or(0)
    }

    /// A port in `low..=high`.
    pub fn port(&mut self, low: u16, high: u16) -> u16 {
        let span = u64::from(high.saturating_sub(low)) + 1;
        low.saturating_add(u16::try_from(self.below(span)).unwrap_or(0))
    }

    /// True with this probability.
    pub fn chance(&mut self, probability: f64) -> bool {
        // Always draws, so that a run with other probabilities still has the same chance elsewhere.
        self.fraction() < probability
    }

    /// How many events happen in a time in which so many are expected.
    pub fn poisson(&mut self, mean: f64) -> u64 {
        // Knuth's method (The Art of Computer Programming, 3.4.1), in parts for which `exp` is far
        // from zero.
        const PART: f64 = 30.0;
        let mut left = mean;
        let mut events = 0;
        while left > 0.0 {
            let end = (-left.min(PART)).exp();
            let mut product = self.fraction();
            while product > end {
                product *= self.fraction();
                events += 1;
            }
            left -= PART;
        }
        events
    }

    /// A number from 0 to 1, without 1.
    fn fraction(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A duration in `0..=most`.
    pub fn duration(&mut self, most: Duration) -> Duration {
        let nanos = u64::try_from(most.as_nanos()).unwrap_or(u64::MAX - 1);
        Duration::from_nanos(self.below(nanos + 1))
    }

    /// 32 bytes, for a key or another seed.
    pub fn bytes32(&mut self) -> [u8; 32] {
        let mut bytes = [0; 32];
        self.0.fill_bytes(&mut bytes);
        bytes
    }

    /// One of `items`, which may not be empty.
    pub fn pick<T: Clone>(&mut self, items: &[T]) -> T {
        let index = usize::try_from(self.below(items.len() as u64)).unwrap_or(0);
        items[index].clone()
    }
}
