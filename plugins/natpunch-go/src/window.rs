//! Which nonces of a session were seen: the sliding window of RFC 6479, as WireGuard has it.

const WORDS: usize = 17;
const WORD_BITS: u64 = 64;

/// Remembers the nonces of one direction of a session.
///
/// One word more than the window is kept, so that moving forward clears whole words and never
/// shifts bits.
#[derive(Debug, Clone)]
pub(crate) struct Window {
    /// One more than the highest nonce seen; 0 at first.
    next: u64,
    bits: [u64; WORDS],
}

impl Window {
    /// How far behind the newest nonce an older one is still accepted, once.
    pub(crate) const SIZE: u64 = (WORDS as u64 - 1) * WORD_BITS;

    pub(crate) const fn new() -> Self {
        Self {
            next: 0,
            bits: [0; WORDS],
        }
    }

    /// Whether this nonce is new and not too old. Changes nothing: the packet is not authenticated
    /// yet.
    pub(crate) fn accepts(&self, nonce: u64) -> bool {
        if nonce == u64::MAX {
            return false; // reserved by Noise (5.1)
        }
        if nonce >= self.next {
            return true;
        }
        self.next - nonce <= Self::SIZE && self.word(nonce) & bit(nonce) == 0
    }

    /// Whether this nonce is higher than all that were seen.
    pub(crate) fn is_newest(&self, nonce: u64) -> bool {
        nonce >= self.next
    }

    /// Marks a nonce that was [accepted](Self::accepts) and whose packet proved authentic.
    pub(crate) fn mark(&mut self, nonce: u64) {
        if nonce >= self.next {
            let newest = self.next.saturating_sub(1) / WORD_BITS;
            let steps = (nonce / WORD_BITS).saturating_sub(newest).min(WORDS as u64);
            for step in 1..=steps {
                if let Some(word) = self.bits.get_mut(index(newest.wrapping_add(step))) {
                    *word = 0;
                }
            }
            self.next = nonce.saturating_add(1);
        }
        if let Some(word) = self.bits.get_mut(index(nonce / WORD_BITS)) {
            *word |= bit(nonce);
        }
    }

    fn word(&self, nonce: u64) -> u64 {
        self.bits
            .get(index(nonce / WORD_BITS))
            .copied()
            .unwrap_or(u64::MAX)
    }
}

const fn bit(nonce: u64) -> u64 {
    1 << (nonce % WORD_BITS)
}

const fn index(word: u64) -> usize {
    (word % WORDS as u64) as usize
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// What the window promises, the slow way.
    #[derive(Default)]
    struct Model {
        seen: BTreeSet<u64>,
    }

    impl Model {
        fn accepts(&self, nonce: u64) -> bool {
            let newest = self.seen.last().copied();
            nonce != u64::MAX
                && !self.seen.contains(&nonce)
                && newest.is_none_or(|newest| nonce > newest || newest - nonce < Window::SIZE)
        }
    }

    fn check(nonces: impl IntoIterator<Item = u64>) {
        let (mut window, mut model) = (Window::new(), Model::default());
        for nonce in nonces {
            assert_eq!(window.accepts(nonce), model.accepts(nonce), "{nonce}");
            if model.accepts(nonce) {
                window.mark(nonce);
                model.seen.insert(nonce);
            }
        }
    }

    #[test]
    fn the_window_is_at_least_as_wide_as_natpunch_gos() {
        const { assert!(Window::SIZE >= 960) }
    }

    /// G16.
    #[test]
    fn a_counter_near_its_end_neither_wraps_nor_reopens_old_ones() {
        check([
            5,
            u64::MAX - 1,
            u64::MAX - 1,
            u64::MAX,
            0,
            5,
            u64::MAX - 2,
            u64::MAX - 1024,
            u64::MAX - 1025,
        ]);
    }

    proptest! {
        /// G16.
        #[test]
        fn the_window_agrees_with_a_set(
            start in prop_oneof![Just(0u64), Just(u64::MAX - 6000), any::<u64>()],
            steps in prop::collection::vec(prop_oneof![0u64..8, 0u64..80, 900u64..1200, 0u64..6000], 1..400),
        ) {
            check(steps.into_iter().scan(start, |base, step| {
                let nonce = base.saturating_add(step);
                *base = if step > 4000 { nonce } else { base.saturating_add(step / 7) };
                Some(nonce)
            }));
        }
    }
}
