//! The records that this node keeps for others: of each pair of peers the newest one each way, for
//! as long as the record itself is good, and of nobody more than a share.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use natpunch_types::{PeerKey, Rate, RateBudget, Time};

/// A record is kept for this long: natpunch's own are good for as long from their receipt.
pub(crate) const LIFETIME: Duration = Duration::from_secs(600);
/// Records of one sender. One more takes the place of that sender's oldest, if that has had its time:
/// else who leaves records for many in turns would be passed on as if each were the first.
pub(crate) const MOST_OF_ONE: usize = 64;
const LEAST_TIME: Duration = Duration::from_secs(60);
/// Records of all: 1 MiB at most.
pub(crate) const MOST: usize = 2_048;

/// How often a record of one pair is passed on, and how often at once: a node that moves has a few in
/// a row.
const PASSES: Rate = Rate::every(Duration::from_secs(2), 4);

/// From whom, for whom.
type Pair = (PeerKey, PeerKey);

#[derive(Debug)]
struct Kept {
    record: Arc<[u8]>,
    since: Time,
    passes: RateBudget,
}

/// What is kept.
#[derive(Debug, Default)]
pub(crate) struct Held {
    records: BTreeMap<Pair, Kept>,
}

impl Held {
    /// Keeps a record in place of the one before. One that is left again is as old as it was.
    pub(crate) fn keep(&mut self, from: PeerKey, to: PeerKey, record: &[u8], now: Time) {
        if let Some(kept) = self.records.get_mut(&(from, to)) {
            if *kept.record != *record {
                (kept.record, kept.since) = (record.into(), now);
            }
            return;
        }
        if self.of(&from).count() >= MOST_OF_ONE {
            let oldest = self.of(&from).min_by_key(|(_, kept)| kept.since);
            let replaced = oldest.filter(|(_, kept)| now.since(kept.since) >= LEAST_TIME);
            let Some(pair) = replaced.map(|(pair, _)| *pair) else {
                return;
            };
            self.records.remove(&pair);
        }
        if self.records.len() >= MOST {
            self.records
                .retain(|_, kept| now.since(kept.since) < LIFETIME);
        }
        // With all places taken by what is still good, the newest waits for its sender's next word.
        if self.records.len() < MOST {
            let kept = Kept {
                record: record.into(),
                since: now,
                passes: RateBudget::new(PASSES),
            };
            self.records.insert((from, to), kept);
        }
    }

    fn of(&self, from: &PeerKey) -> impl Iterator<Item = (&Pair, &Kept)> {
        let first = (*from, PeerKey::from_bytes([0; 32]));
        let last = (*from, PeerKey::from_bytes([0xff; 32]));
        self.records.range(first..=last)
    }

    /// The record of one peer for another, to be passed on now; `None` if there is none, or it was
    /// passed on too often of late.
    pub(crate) fn pass(&mut self, from: PeerKey, to: PeerKey, now: Time) -> Option<Arc<[u8]>> {
        let kept = self.records.get_mut(&(from, to))?;
        let is_due = now.since(kept.since) < LIFETIME && kept.passes.take(now);
        is_due.then(|| kept.record.clone())
    }

    /// Who has left a record for this peer.
    pub(crate) fn senders_to(&self, to: PeerKey) -> Vec<PeerKey> {
        let pairs = self.records.keys();
        pairs
            .filter(|(_, receiver)| *receiver == to)
            .map(|(from, _)| *from)
            .collect()
    }

    /// Forgets what is from or for others than these.
    pub(crate) fn restrict(&mut self, is_peer: impl Fn(&PeerKey) -> bool) {
        self.records
            .retain(|(from, to), _| is_peer(from) && is_peer(to));
    }

    /// How many are kept.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u16) -> PeerKey {
        let mut bytes = [0; 32];
        bytes[..2].copy_from_slice(&n.to_be_bytes());
        PeerKey::from_bytes(bytes)
    }

    #[test]
    fn the_newest_record_of_a_pair_is_passed_on_while_it_is_good() {
        let mut held = Held::default();
        let now = Time::ZERO;
        held.keep(key(1), key(2), &[1], now);
        held.keep(key(1), key(2), &[2], now);
        held.keep(key(3), key(2), &[3], now);
        assert_eq!(held.pass(key(1), key(2), now).as_deref(), Some(&[2][..]));
        assert_eq!(held.pass(key(2), key(1), now), None, "the other way");
        assert_eq!(held.senders_to(key(2)), [key(1), key(3)]);
        held.keep(key(1), key(2), &[2], now + LIFETIME / 2);
        assert_eq!(held.pass(key(1), key(2), now + LIFETIME), None, "as old");
    }

    #[test]
    fn records_of_one_pair_are_passed_on_a_few_times_at_once_and_then_seldom() {
        let mut held = Held::default();
        let mut passed = |at| {
            let now = Time::from_millis(at);
            let pass = |n: u8| {
                held.keep(key(1), key(2), &[n], now);
                held.pass(key(1), key(2), now)
            };
            (0..100).filter_map(pass).count()
        };
        assert_eq!((passed(1_000), passed(2_900), passed(3_000)), (4, 0, 1));
    }

    #[test]
    fn one_sender_takes_no_more_than_its_share_in_which_new_ones_take_turns() {
        let mut held = Held::default();
        let mut now = Time::ZERO;
        held.keep(key(9_000), key(1), &[0], now);
        for to in 1..=100 {
            held.keep(key(0), key(to), &[1], now);
        }
        assert!(held.pass(key(0), key(64), now).is_some());
        assert!(
            held.pass(key(0), key(65), now).is_none(),
            "all places are new"
        );
        now += LEAST_TIME;
        held.keep(key(0), key(65), &[1], now);
        assert!(held.pass(key(0), key(65), now).is_some());
        assert!(
            held.pass(key(0), key(1), now).is_none(),
            "it gave its place"
        );
        assert!(held.pass(key(9_000), key(1), now).is_some());
        assert_eq!(held.len(), MOST_OF_ONE + 1);
    }

    #[test]
    fn all_senders_together_take_a_bounded_place_which_is_free_again_later() {
        let mut held = Held::default();
        for from in 0..4_000 {
            held.keep(key(from), key(9_000), &[1], Time::ZERO);
        }
        assert_eq!(held.len(), MOST);
        held.keep(key(5_000), key(9_000), &[1], Time::ZERO + LIFETIME);
        assert_eq!(held.len(), 1);
    }

    #[test]
    fn what_is_of_a_peer_that_left_is_forgotten() {
        let mut held = Held::default();
        for (from, to) in [(1, 2), (2, 1), (2, 3), (3, 2)] {
            held.keep(key(from), key(to), &[1], Time::ZERO);
        }
        held.restrict(|peer| *peer != key(1));
        assert_eq!(held.len(), 2);
    }
}
