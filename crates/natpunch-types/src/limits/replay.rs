//! Which counters of a sender were seen (the anti-replay window of RFC 4303, 3.4.3, and RFC 6479).
//!
//! Nearly all packets come in order, so what is kept is not a bitmap but the gaps: in the usual
//! case nothing but the newest counter.

/// Remembers which counters of one sender were seen. A counter that is `WIDTH` or more behind the
/// newest one is refused, since nothing tells any more whether it was seen.
#[derive(Debug, Clone, Default)]
pub struct ReplayWindow<const WIDTH: u64 = 8_192> {
    newest: Option<u64>,
    /// The counters below the newest that were not seen, as half-open ranges in rising order.
    gaps: Vec<(u64, u64)>,
}

impl<const WIDTH: u64> ReplayWindow<WIDTH> {
    /// Gaps that are remembered. Beyond it the oldest is closed: its packets are refused, which is
    /// the safe side.
    pub const GAPS: usize = 32;

    /// Whether this counter is new and not too old. Changes nothing: the packet is not
    /// authenticated yet.
    pub fn accepts(&self, counter: u64) -> bool {
        match self.newest {
            Some(newest) if counter <= newest => {
                newest - counter < WIDTH && self.gap_of(counter).is_some()
            }
            _ => true,
        }
    }

    /// Whether this counter is higher than all that were seen.
    pub fn is_newest(&self, counter: u64) -> bool {
        self.newest.is_none_or(|newest| counter > newest)
    }

    /// Refuses from now on every counter that is not higher than all that were seen.
    pub fn close_gaps(&mut self) {
        self.gaps.clear();
    }

    /// Marks a counter that was [accepted](Self::accepts) and whose packet proved authentic.
    pub fn mark(&mut self, counter: u64) {
        if self.is_newest(counter) {
            let first_unseen = self.newest.map_or(0, |newest| newest.saturating_add(1));
            if first_unseen < counter {
                self.gaps.push((first_unseen, counter));
            }
            self.newest = Some(counter);
            let oldest = counter.saturating_sub(WIDTH - 1);
            self.gaps.retain(|(_, end)| *end > oldest);
        } else if let Some(index) = self.gap_of(counter) {
            let (start, end) = self.gaps.remove(index);
            let parts = [(start, counter), (counter + 1, end)];
            let left = parts.into_iter().filter(|(start, end)| start < end);
            self.gaps.splice(index..index, left);
        }
        if self.gaps.len() > Self::GAPS {
            self.gaps.remove(0);
        }
    }

    /// Marks an authentic packet's counter; false if it was seen before or is too old to tell.
    pub fn take(&mut self, counter: u64) -> bool {
        let new = self.accepts(counter);
        if new {
            self.mark(counter);
        }
        new
    }

    fn gap_of(&self, counter: u64) -> Option<usize> {
        self.gaps
            .iter()
            .position(|(start, end)| (*start..*end).contains(&counter))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    type Window = ReplayWindow;

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
    }

    #[test]
    fn a_sequence_number_counts_once() {
        let mut window = ReplayWindow::<64>::default();
        for (sequence, new) in [
            (5, true),
            (5, false),
            (4, true),
            (4, false),
            (70, true),
            (5, false),
            (7, true),
            (6, false),
            (70, false),
        ] {
            assert_eq!(window.take(sequence), new, "{sequence}");
        }
        assert!(window.take(u64::MAX) && !window.take(u64::MAX) && !window.take(70));
    }

    #[test]
    fn what_came_late_is_refused_once_the_gaps_are_closed() {
        let mut window = Window::default();
        window.mark(5);
        assert!(window.accepts(3));
        window.close_gaps();
        assert!(!window.accepts(3) && window.accepts(6));
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
                    prop_assert!(!late || newest.is_some_and(|newest| newest - counter < 8_192));
                    window.mark(counter);
                } else if !late {
                    prop_assert!(seen.contains(&counter), "a new counter was refused");
                }
                prop_assert!(window.gaps.len() <= Window::GAPS);
            }
        }
    }
}
