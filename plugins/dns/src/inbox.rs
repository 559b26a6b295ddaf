//! Whose records are asked for, and when; and which of what is found is new. Pure.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use natpunch_plugin::{Interest, PeerKey, RecordTag, Schedule, SealedRecord, Time};
use natpunch_types::{Rate, RateBudget};

use crate::pause::Pause;
use crate::query::MOST_RECORDS;

/// Peers that are asked about at a time.
const MOST_AT_ONCE: usize = 8;
/// Peers that are asked about in all, with one question or two: name servers count what one address
/// asks (response rate limiting).
const RATE: Rate = Rate::per_second(20, 40);
/// How often the addresses that a person wrote are asked for. They change seldom.
pub(crate) const ADDRESSES: Duration = Duration::from_secs(60);

/// What is asked about a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Turn {
    pub(crate) peer: PeerKey,
    /// The tag of the record that the peer leaves for this node, if the pair has one.
    pub(crate) tag: Option<RecordTag>,
    /// Whether the addresses that a person wrote for the peer are asked for, too.
    pub(crate) addresses: bool,
}

/// The peers, and what is known of their records.
#[derive(Debug)]
pub(crate) struct Inbox {
    peers: BTreeMap<PeerKey, Peer>,
    schedule: Schedule,
    budget: RateBudget,
    under_way: BTreeSet<PeerKey>,
    pub(crate) pause: Pause,
}

#[derive(Debug)]
struct Peer {
    tag: RecordTag,
    /// When its addresses are to be asked for.
    addresses_due: Time,
    /// What was found under its tag already.
    told: VecDeque<SealedRecord>,
}

impl Inbox {
    pub(crate) fn new() -> Self {
        Self {
            peers: BTreeMap::new(),
            schedule: Schedule::default(),
            budget: RateBudget::new(RATE),
            under_way: BTreeSet::new(),
            pause: Pause::default(),
        }
    }

    /// Sets the peers, complete.
    pub(crate) fn set_peers(&mut self, peers: &[Interest], now: Time) {
        let mut old = std::mem::take(&mut self.peers);
        for interest in peers {
            let tag = interest.inbound_tag;
            let known = old.remove(&interest.peer).filter(|peer| peer.tag == tag);
            let new = || Peer {
                tag,
                addresses_due: now,
                told: VecDeque::new(),
            };
            self.peers.insert(interest.peer, known.unwrap_or_else(new));
        }
        let wanted = peers.iter().map(|one| (one.peer, one.wanted));
        self.schedule.set_peers(wanted, now);
    }

    /// Another network: what failed may work, and what was found may be old.
    pub(crate) fn restart(&mut self, now: Time) {
        self.pause.over();
        self.schedule.restart(now);
        for peer in self.peers.values_mut() {
            peer.addresses_due = now;
        }
    }

    /// Whose turn it is, if anybody's. The peer is under way until it [ends](Self::ended).
    pub(crate) fn next(&mut self, now: Time) -> Option<Turn> {
        if self.under_way.len() >= MOST_AT_ONCE || now < self.pause.ends() {
            return None;
        }
        // Each peer that is looked at has its next turn later, so this ends.
        while let Some((key, _)) = self.schedule.next().filter(|(_, due)| *due <= now) {
            if self.budget.available_at().is_none_or(|at| at > now) {
                return None;
            }
            self.schedule.asked(&key, now);
            let Some(peer) = self.peers.get_mut(&key) else {
                continue;
            };
            // A server slower than the schedule is not asked the same twice.
            if self.under_way.contains(&key) {
                continue;
            }
            let tag = Some(peer.tag).filter(|tag| *tag != RecordTag::NONE);
            let addresses = peer.addresses_due <= now;
            if tag.is_none() && !addresses {
                continue;
            }
            if addresses {
                peer.addresses_due = now + ADDRESSES;
            }
            self.budget.take(now);
            self.under_way.insert(key);
            return Some(Turn {
                peer: key,
                tag,
                addresses,
            });
        }
        None
    }

    /// When [`next`](Self::next) may have a turn; `None`: when one ends, or there are other peers.
    pub(crate) fn wakes(&self) -> Option<Time> {
        if self.under_way.len() >= MOST_AT_ONCE {
            return None;
        }
        let (_, due) = self.schedule.next()?;
        let allowed = self.budget.available_at()?;
        Some(due.max(allowed).max(self.pause.ends()))
    }

    /// The turn of a peer is over.
    pub(crate) fn ended(&mut self, peer: &PeerKey) {
        self.under_way.remove(peer);
    }

    /// Which of these records were not found before.
    pub(crate) fn new_ones(
        &mut self,
        peer: &PeerKey,
        found: Vec<SealedRecord>,
    ) -> Vec<SealedRecord> {
        let Some(peer) = self.peers.get_mut(peer) else {
            return Vec::new();
        };
        let mut is_new = |record: &SealedRecord| {
            // The question may be older than the tag.
            if record.tag != peer.tag || peer.told.contains(record) {
                return false;
            }
            if peer.told.len() == MOST_RECORDS {
                peer.told.pop_front();
            }
            peer.told.push_back(record.clone());
            true
        };
        found.into_iter().filter(|one| is_new(one)).collect()
    }

    /// Of how many peers a record was found, and how many there are that have a tag.
    pub(crate) fn found(&self) -> (usize, usize) {
        let tagged = self.peers.values().filter(|one| one.tag != RecordTag::NONE);
        let found = tagged.clone().filter(|peer| !peer.told.is_empty()).count();
        (found, tagged.count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(n: u64) -> Time {
        Time::from_millis(n * 1_000)
    }

    fn peer(n: u16) -> Interest {
        let mut key = [7; 32];
        key[..2].copy_from_slice(&n.to_be_bytes());
        Interest {
            inbound_tag: RecordTag([n as u8 | 1; 16]),
            ..Interest::new(PeerKey::from_bytes(key))
        }
    }

    fn record(tag: RecordTag, n: u8) -> SealedRecord {
        SealedRecord {
            tag,
            blob: [n].into(),
        }
    }

    /// The turns until `end`, each of which takes no time.
    fn turns(inbox: &mut Inbox, mut now: Time, end: Time) -> Vec<(Time, Turn)> {
        let mut turns = Vec::new();
        while now < end {
            while let Some(turn) = inbox.next(now) {
                inbox.ended(&turn.peer);
                turns.push((now, turn));
            }
            now = inbox
                .wakes()
                .unwrap_or(end)
                .max(now + Duration::from_millis(1));
        }
        turns
    }

    #[test]
    fn a_wanted_peer_is_asked_for_at_once_and_ever_more_seldom() {
        let mut inbox = Inbox::new();
        inbox.set_peers(&[peer(1)], seconds(1));
        let turns = turns(&mut inbox, seconds(1), seconds(121));
        assert_eq!(turns[0].0, seconds(1));
        assert!((60..110).contains(&turns.len()), "{}", turns.len());
        let with_addresses = turns.iter().filter(|(_, turn)| turn.addresses).count();
        assert_eq!(with_addresses, 2, "once a minute");
    }

    #[test]
    fn a_peer_with_a_path_is_asked_for_every_four_minutes() {
        let mut inbox = Inbox::new();
        let idle = Interest {
            wanted: false,
            ..peer(1)
        };
        inbox.set_peers(&[idle], seconds(1));
        assert_eq!(turns(&mut inbox, seconds(1), seconds(721)).len(), 3);
    }

    #[test]
    fn of_a_peer_without_a_tag_only_addresses_are_asked_for() {
        let mut inbox = Inbox::new();
        inbox.set_peers(&[Interest::new(peer(1).peer)], seconds(1));
        let turns = turns(&mut inbox, seconds(1), seconds(121));
        assert!(
            turns
                .iter()
                .all(|(_, turn)| turn.addresses && turn.tag.is_none())
        );
        assert_eq!(turns.len(), 2);
    }

    #[test]
    fn a_large_mesh_is_asked_about_in_turn_and_at_a_bounded_rate() {
        let mut inbox = Inbox::new();
        let peers: Vec<Interest> = (0..1_000).map(peer).collect();
        inbox.set_peers(&peers, seconds(1));
        let turns = turns(&mut inbox, seconds(1), seconds(11));
        assert!((235..=241).contains(&turns.len()), "{}", turns.len());
        let asked: BTreeSet<_> = turns.iter().map(|(_, turn)| turn.peer).collect();
        assert_eq!(asked.len(), turns.len(), "nobody twice before all others");
    }

    #[test]
    fn no_more_questions_than_eight_are_under_way_and_none_twice() {
        let mut inbox = Inbox::new();
        let peers: Vec<Interest> = (0..20).map(peer).collect();
        inbox.set_peers(&peers, seconds(1));
        let first: BTreeSet<_> = std::iter::from_fn(|| inbox.next(seconds(1)))
            .map(|turn| turn.peer)
            .collect();
        assert_eq!(first.len(), MOST_AT_ONCE);
        assert!(inbox.wakes().is_none());
        let one = *first.first().unwrap();
        inbox.set_peers(&peers[..1], seconds(1));
        assert_eq!(one, peers[0].peer);
        inbox.ended(first.last().unwrap());
        assert_eq!(inbox.next(seconds(5)), None, "its question is under way");
        inbox.ended(&one);
        assert!(inbox.next(seconds(9)).is_some());
    }

    #[test]
    fn nobody_is_asked_in_a_pause_and_another_network_ends_it() {
        let mut inbox = Inbox::new();
        inbox.set_peers(&[peer(1)], seconds(1));
        inbox.pause.failed(0, seconds(1));
        assert_eq!(inbox.next(seconds(1)), None);
        assert_eq!(inbox.wakes(), Some(inbox.pause.ends()));
        inbox.restart(seconds(1));
        assert!(inbox.next(seconds(1)).is_some());
    }

    #[test]
    fn a_record_is_new_once_and_under_the_tag_of_the_peer_as_it_is_now() {
        let mut inbox = Inbox::new();
        let one = peer(1);
        inbox.set_peers(std::slice::from_ref(&one), seconds(1));
        let tag = one.inbound_tag;
        let mut new = |tag, n| inbox.new_ones(&one.peer, vec![record(tag, n)]).len();
        assert_eq!((new(tag, 1), new(tag, 1), new(tag, 2)), (1, 0, 1));
        assert_eq!(new(tag, 1), 0, "an older one comes again");
        assert_eq!(new(RecordTag([9; 16]), 3), 0);
        assert_eq!(inbox.found(), (1, 1));
        // A flood of others costs no more than its own memory.
        for n in 0..100 {
            inbox.new_ones(&one.peer, vec![record(tag, n)]);
        }
        assert_eq!(inbox.peers[&one.peer].told.len(), MOST_RECORDS);
    }
}
