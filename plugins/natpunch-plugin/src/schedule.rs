//! When to ask a server that can't call back about which peer.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::PeerKey;
use natpunch_types::Time;

/// The turns of the peers, for a protocol of questions and answers. Pure: `now` counts from any
/// origin.
///
/// A wanted peer is asked for at once, and then after an eighth of the time that it has been
/// wanted: polling adds at most an eighth to any wait, and settles at [`MAX`](Self::MAX). A peer
/// that is not wanted is asked for every [`IDLE`](Self::IDLE), which keeps a registration with the
/// server fresh.
#[derive(Debug, Clone, Default)]
pub struct Schedule {
    peers: BTreeMap<PeerKey, Turn>,
    queue: BTreeSet<(Time, PeerKey)>,
}

#[derive(Debug, Clone, Copy)]
struct Turn {
    wanted: bool,
    since: Time,
    due: Time,
}

impl Schedule {
    /// The shortest time between two questions about a peer.
    pub const MIN: Duration = Duration::from_millis(20);
    /// The longest time between two questions about a wanted peer.
    pub const MAX: Duration = Duration::from_secs(2);
    /// The time between two questions about a peer that is not wanted.
    pub const IDLE: Duration = Duration::from_secs(240);

    /// Sets the peers, complete, and whether each is wanted. New and newly wanted ones are due at
    /// once. True if there is a newly wanted one among those that were known.
    pub fn set_peers(
        &mut self,
        peers: impl IntoIterator<Item = (PeerKey, bool)>,
        now: Time,
    ) -> bool {
        let old = std::mem::take(&mut self.peers);
        self.queue.clear();
        let mut newly_wanted = false;
        for (key, wanted) in peers {
            let turn = match old.get(&key) {
                Some(turn) if turn.wanted == wanted => *turn,
                Some(turn) if !wanted => Turn {
                    wanted,
                    since: now,
                    due: turn.due.max(now + Self::MAX),
                },
                known => {
                    newly_wanted |= known.is_some();
                    Turn {
                        wanted,
                        since: now,
                        due: now,
                    }
                }
            };
            if self.peers.insert(key, turn).is_none() {
                self.queue.insert((turn.due, key));
            }
        }
        newly_wanted
    }

    /// Starts over: each peer is due at once.
    pub fn restart(&mut self, now: Time) {
        self.queue.clear();
        for (key, turn) in &mut self.peers {
            turn.since = now;
            turn.due = now;
            self.queue.insert((now, *key));
        }
    }

    /// Whose turn is next, and when.
    pub fn next(&self) -> Option<(PeerKey, Time)> {
        self.queue.first().map(|(due, key)| (*key, *due))
    }

    /// Notes that a peer was asked for: its next turn comes later.
    pub fn asked(&mut self, key: &PeerKey, now: Time) {
        let Some(turn) = self.peers.get_mut(key) else {
            return;
        };
        let wait = if turn.wanted {
            (now.since(turn.since) / 8).clamp(Self::MIN, Self::MAX)
        } else {
            Self::IDLE
        };
        self.queue.remove(&(turn.due, *key));
        turn.due = now + wait;
        self.queue.insert((turn.due, *key));
    }

    /// Whether this peer takes part.
    pub fn contains(&self, key: &PeerKey) -> bool {
        self.peers.contains_key(key)
    }

    /// Whether any peer is wanted.
    pub fn is_any_wanted(&self) -> bool {
        self.peers.values().any(|turn| turn.wanted)
    }

    /// Whether there are no peers.
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(n: u64) -> Time {
        Time::from_millis(n * 1_000)
    }

    fn key(n: u8) -> PeerKey {
        PeerKey::from_bytes([n; 32])
    }

    /// When a schedule that is always answered at once asks, in the first `end`.
    fn turns(schedule: &mut Schedule, end: Time) -> Vec<(PeerKey, Time)> {
        let mut turns = Vec::new();
        while let Some((peer, due)) = schedule.next().filter(|(_, due)| *due < end) {
            schedule.asked(&peer, due);
            turns.push((peer, due));
        }
        turns
    }

    #[test]
    fn polling_adds_at_most_an_eighth_to_any_wait_and_settles() {
        let mut schedule = Schedule::default();
        schedule.set_peers([(key(1), true)], seconds(1));
        let times: Vec<_> = turns(&mut schedule, seconds(60))
            .into_iter()
            .map(|(_, at)| at.since(seconds(1)))
            .collect();
        assert_eq!(
            times[..3],
            [Duration::ZERO, Schedule::MIN, Schedule::MIN * 2]
        );
        for pair in times.windows(2) {
            let gap = pair[1] - pair[0];
            assert!(
                gap <= (pair[0] / 8).max(Schedule::MIN)
                    && (Schedule::MIN..=Schedule::MAX).contains(&gap)
            );
        }
        assert!(times.len() < 75, "{}", times.len());
    }

    #[test]
    fn a_peer_that_is_not_wanted_is_asked_for_seldom() {
        let mut schedule = Schedule::default();
        schedule.set_peers([(key(1), false)], seconds(1));
        assert_eq!(turns(&mut schedule, seconds(500)).len(), 3);
    }

    #[test]
    fn a_newly_wanted_peer_is_due_at_once_and_the_others_keep_their_turn() {
        let mut schedule = Schedule::default();
        assert!(!schedule.set_peers([(key(1), false), (key(2), true)], seconds(1)));
        turns(&mut schedule, seconds(100));
        let before = schedule.next();
        assert!(!schedule.set_peers([(key(1), false), (key(2), true)], seconds(99)));
        assert_eq!(schedule.next(), before);
        assert!(schedule.set_peers([(key(1), true), (key(2), true)], seconds(99)));
        assert_eq!(schedule.next(), Some((key(1), seconds(99))));
    }

    #[test]
    fn wanted_peers_take_turns() {
        let mut schedule = Schedule::default();
        schedule.set_peers((0..10).map(|n| (key(n), true)), seconds(1));
        let first: Vec<_> = turns(&mut schedule, seconds(1) + Schedule::MIN)
            .into_iter()
            .map(|(key, _)| key)
            .collect();
        assert_eq!(first, (0..10).map(key).collect::<Vec<_>>());
    }

    #[test]
    fn a_removed_peer_has_no_turn() {
        let mut schedule = Schedule::default();
        schedule.set_peers([(key(1), true)], seconds(1));
        schedule.set_peers([], seconds(1));
        schedule.asked(&key(1), seconds(1));
        assert!(schedule.is_empty() && schedule.next().is_none());
    }
}
