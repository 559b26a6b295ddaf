//! Which counters of a session were seen.
//!
//! A session carries a few packets an hour, nearly all in order, so what is kept is not a bitmap
//! but the gaps: in the usual case nothing but the newest counter.

/// Remembers the counters of one direction of a session.
#[derive(Debug, Clone, Default)]
pub(crate) struct Window {
    /// One more than the highest counter seen; 0 at first.
    next: u64,
    /// The counters below `next` that were not seen, as half-open ranges in rising order.
    gaps: Vec<(u64, u64)>,
}

impl Window {
    /// How far behind the newest counter an older one is still accepted, once.
    pub(crate) const SIZE: u64 = 8_192;
    /// Gaps that are remembered. Beyond it the oldest is closed: its packets are refused, which is
    /// the safe side.
    pub(crate) const GAPS: usize = 32;

    /// Whether this counter is new and not too old. Changes nothing: the packet is not
    /// authenticated yet.
    pub(crate) fn accepts(&self, counter: u64) -> bool {
        if counter >= self.next {
            return counter < u64::MAX - 1; // the last two are no session's
        }
        self.next - counter <= Self::SIZE
            && self
                .gaps
                .iter()
                .any(|(from, to)| (*from..*to).contains(&counter))
    }

    /// Whether this counter is higher than all that were seen.
    pub(crate) fn is_newest(&self, counter: u64) -> bool {
        counter >= self.next
    }

    /// Accepts no counter any more that is below the newest.
    pub(crate) fn close_gaps(&mut self) {
        self.gaps.clear();
    }

    /// Marks a counter that was [accepted](Self::accepts) and whose packet proved authentic.
    pub(crate) fn mark(&mut self, counter: u64) {
        if counter >= self.next {
            if counter > self.next {
                self.gaps.push((self.next, counter));
            }
            self.next = counter.saturating_add(1);
            let oldest = self.next.saturating_sub(Self::SIZE);
            self.gaps.retain(|(_, to)| *to > oldest);
        } else if let Some(index) = self
            .gaps
            .iter()
            .position(|(from, to)| (*from..*to).contains(&counter))
        {
            let (from, to) = self.gaps.remove(index);
            let parts = [(from, counter), (counter + 1, to)];
            self.gaps.splice(
                index..index,
                parts.into_iter().filter(|(from, to)| from < to),
            );
        }
        if self.gaps.len() > Self::GAPS {
            self.gaps.remove(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn packets_in_order_cost_no_memory() {
        let mut window = Window::default();
        for counter in 0..10_000 {
            assert!(window.accepts(counter));
            window.mark(counter);
            assert!(!window.accepts(counter));
        }
        assert_eq!(window.gaps.capacity(), 0);
    }

    #[test]
    fn the_window_is_at_least_as_wide_as_wireguards() {
        let mut window = Window::default();
        window.mark(8_128);
        assert!(window.accepts(0));
        window.mark(100_000);
        assert!(window.accepts(100_000 - 8_128) && !window.accepts(1));
        assert!(!window.accepts(u64::MAX) && !window.accepts(u64::MAX - 1));
    }

    proptest! {
        #[test]
        fn no_counter_is_accepted_twice_and_late_ones_are_accepted_once(
            start in prop_oneof![Just(0u64), any::<u64>()],
            steps in prop::collection::vec(prop_oneof![0u64..8, 0u64..80, 0u64..9_000], 1..300),
        ) {
            let (mut window, mut seen, mut base) = (Window::default(), BTreeSet::new(), start);
            for step in steps {
                let counter = base.saturating_add(step);
                base = base.saturating_add(step / 7);
                let newest = seen.last().copied();
                let late = newest.is_some_and(|newest| counter < newest);
                if window.accepts(counter) {
                    prop_assert!(seen.insert(counter), "{counter} twice");
                    prop_assert!(!late || newest.is_some_and(|newest| newest - counter < Window::SIZE));
                    window.mark(counter);
                } else if !late && counter < u64::MAX - 1 {
                    prop_assert!(seen.contains(&counter), "a new counter was refused");
                }
                prop_assert!(window.gaps.len() <= Window::GAPS);
            }
        }
    }
}
