//! How much of something each client, network and site has, and how much it may have.

use std::collections::BTreeMap;

/// What one may have of what is nearly used up: a small server is for one network.
const FEW: usize = 16;

/// The shares of all who have one.
#[derive(Debug)]
pub struct Usage<K>(BTreeMap<K, usize>);

impl<K> Default for Usage<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord> Usage<K> {
    /// How much this one has.
    pub fn of(&self, who: &K) -> usize {
        self.0.get(who).copied().unwrap_or_default()
    }

    /// One more is this one's.
    pub fn take(&mut self, who: K) {
        self.take_many(who, 1);
    }

    /// So many more are this one's.
    pub fn take_many(&mut self, who: K, count: usize) {
        *self.0.entry(who).or_default() += count;
    }

    /// This one has one less.
    pub fn give_back(&mut self, who: &K) {
        self.give_back_many(who, 1);
    }

    /// This one has so many less.
    pub fn give_back_many(&mut self, who: &K, count: usize) {
        if let Some(share) = self.0.get_mut(who) {
            *share = share.saturating_sub(count);
            if *share == 0 {
                self.0.remove(who);
            }
        }
    }

    /// Whether this one may have one more of what so much is left of: never more than is left for all
    /// others. So one alone has half at most, and however many take what they can, the next to come
    /// still finds as much as each of them has (dynamic thresholds, as Choudhury and Hahne use them
    /// for shared buffers). So few as [`FEW`] it may have while there is any.
    pub fn leaves_room(&self, who: &K, left: usize) -> bool {
        left > 0 && self.of(who) < left.max(FEW)
    }

    /// How many have any.
    #[allow(clippy::len_without_is_empty, reason = "nobody asks")]
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn however_many_take_what_they_can_the_next_one_finds_as_much_as_each_has() {
        for greedy in [1, 16, 256] {
            let (mut shares, most, mut taken) = (Usage::default(), 65_536, 0);
            for _ in 0..most {
                for who in 0..greedy {
                    if shares.leaves_room(&who, most - taken) {
                        shares.take(who);
                        taken += 1;
                    }
                }
            }
            let each = shares.of(&0);
            assert!(
                most - taken + 1 >= each,
                "{greedy} leave {} of {most}",
                most - taken
            );
            assert!(each >= most / (greedy + 2), "{greedy} have {each} each");
        }
    }
}
