//! Peers that shall hear of us at once, as kernel WireGuard lets them when a keepalive is switched
//! on.
//!
//! gotatun sends such a keepalive only at the next tick of its timer, up to 250 ms later, and drops
//! it if anything comes in from the peer before. Where both ends of a path kick each other, one of
//! the two keepalives is therefore lost, and with it the only sign that WireGuard works there. So
//! each kick is followed until something has left, and is repeated meanwhile.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use natpunch_types::PeerKey;

use crate::device::{PeerAction, PeerChange};

/// A kick is followed for this long. Longer than four ticks of gotatun's, and shorter than the time
/// after which the agent kicks again.
const FOLLOWED: Duration = Duration::from_millis(1_500);

/// A peer that shall hear of us.
#[derive(Debug)]
struct Kick {
    /// The bytes that were sent to the peer before.
    sent: u64,
    /// Its keepalive is on only for this.
    pulse: bool,
    since: Duration,
}

/// All peers that shall hear of us and have not yet.
#[derive(Debug, Default)]
pub(super) struct Kicks(HashMap<PeerKey, Kick>);

/// What is to be done about them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Followed {
    /// Their keepalive is switched on anew: nothing has left yet.
    pub(super) again: Vec<PeerKey>,
    /// Their keepalive is switched off: it was on for the kick only, which is over.
    pub(super) over: Vec<PeerKey>,
}

impl Kicks {
    /// A keepalive was switched on, when `sent` bytes were sent to the peer; `pulse`: only for
    /// that.
    pub(super) fn begin(&mut self, key: PeerKey, sent: u64, pulse: bool, now: Duration) {
        let since = now;
        self.0.insert(key, Kick { sent, pulse, since });
    }

    /// Somebody has removed the peer, or says what its keepalive shall be.
    pub(super) fn forget(&mut self, key: &PeerKey) {
        self.0.remove(key);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The peer's keepalive is on only for a kick, so snapshots must not show it.
    pub(super) fn is_pulse(&self, key: &PeerKey) -> bool {
        self.0.get(key).is_some_and(|kick| kick.pulse)
    }

    /// Goes through all of them; `sent`: the bytes that were sent to a peer, `None` if it is gone.
    pub(super) fn follow(
        &mut self,
        sent: impl Fn(&PeerKey) -> Option<u64>,
        now: Duration,
    ) -> Followed {
        let mut followed = Followed::default();
        self.0.retain(|key, kick| {
            let Some(sent) = sent(key) else {
                return false;
            };
            let has_left = sent > kick.sent;
            // Without a session gotatun sends no keepalive, and its handshakes have a clock of
            // their own.
            let is_over = has_left || now.saturating_sub(kick.since) >= FOLLOWED;
            if !is_over {
                followed.again.push(*key);
            } else if kick.pulse {
                followed.over.push(*key);
            }
            !is_over
        });
        followed
    }
}

/// Peers that shall hear of us now, not at the next tick of gotatun's timer: those that are removed
/// and made anew with an endpoint, and those whose keepalive was off and is switched on, of which
/// the kernel sends one at once.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Woken {
    pub(super) woken: Vec<PeerKey>,
    /// Those of them whose keepalive is switched off again by the same request. gotatun would send
    /// none; so that is left out of the changes, to be done later.
    pub(super) pulses: Vec<PeerKey>,
}

impl Woken {
    /// `keepalives`: the peers whose keepalive is on.
    pub(super) fn by(changes: &mut [PeerChange], mut keepalives: HashSet<PeerKey>) -> Self {
        let mut found = Self::default();
        let mut removed = HashSet::new();
        for change in changes {
            let key = change.key;
            if change.action == PeerAction::Remove {
                removed.insert(key);
                keepalives.remove(&key);
                continue;
            }
            let anew = removed.remove(&key) && change.endpoint.is_some();
            let switched_on = match change.persistent_keepalive {
                None => false,
                Some(0) => {
                    let was_on = keepalives.remove(&key);
                    if was_on && found.woken.contains(&key) {
                        change.persistent_keepalive = None;
                        found.pulses.push(key);
                    }
                    false
                }
                Some(_) => keepalives.insert(key),
            };
            if (anew || switched_on) && !found.woken.contains(&key) {
                found.woken.push(key);
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: PeerKey = PeerKey::from_bytes([7; 32]);

    fn keepalive(seconds: u16) -> PeerChange {
        PeerChange {
            persistent_keepalive: Some(seconds),
            ..PeerChange::new(KEY, PeerAction::Update)
        }
    }

    fn woken(mut changes: Vec<PeerChange>, is_on: bool) -> (bool, bool, Vec<Option<u16>>) {
        let on = is_on.then_some(KEY).into_iter().collect();
        let Woken { woken, pulses } = Woken::by(&mut changes, on);
        let keepalives = changes.iter().map(|c| c.persistent_keepalive).collect();
        (woken == [KEY], pulses == [KEY], keepalives)
    }

    #[test]
    fn a_keepalive_that_is_switched_on_wakes_a_peer_and_one_that_stays_on_does_not() {
        assert_eq!(
            woken(vec![keepalive(25)], false),
            (true, false, vec![Some(25)])
        );
        assert_eq!(
            woken(vec![keepalive(7)], true),
            (false, false, vec![Some(7)])
        );
        assert_eq!(
            woken(vec![keepalive(0)], true),
            (false, false, vec![Some(0)])
        );
        // A pulse of one that is on, and of one that is off: this one lasts until it is sent.
        assert_eq!(
            woken(vec![keepalive(0), keepalive(25)], true),
            (true, false, vec![Some(0), Some(25)])
        );
        assert_eq!(
            woken(vec![keepalive(25), keepalive(0)], false),
            (true, true, vec![Some(25), None])
        );
    }

    #[test]
    fn a_peer_that_is_made_anew_with_an_endpoint_is_woken() {
        let anew = |endpoint: Option<&str>| PeerChange {
            endpoint: endpoint.map(|endpoint| endpoint.parse().unwrap()),
            ..PeerChange::new(KEY, PeerAction::Upsert)
        };
        let remove = PeerChange::remove(KEY);
        assert!(woken(vec![remove.clone(), anew(Some("192.0.2.1:1"))], false).0);
        assert!(!woken(vec![remove, anew(None)], false).0);
        assert!(!woken(vec![anew(Some("192.0.2.1:1"))], false).0);
    }

    #[test]
    fn a_kick_is_repeated_until_something_has_left() {
        let second = Duration::from_secs(1);
        let mut kicks = Kicks::default();
        kicks.begin(KEY, 100, false, second);
        let again = Followed {
            again: vec![KEY],
            over: vec![],
        };
        assert_eq!(kicks.follow(|_| Some(100), second), again);
        assert_eq!(kicks.follow(|_| Some(132), second), Followed::default());
        assert!(kicks.is_empty());
    }

    #[test]
    fn a_pulse_lasts_until_something_has_left_or_its_time_is_over() {
        let over = Followed {
            again: vec![],
            over: vec![KEY],
        };
        let mut kicks = Kicks::default();
        for (sent, at) in [(132, Duration::ZERO), (100, FOLLOWED)] {
            kicks.begin(KEY, 100, true, Duration::ZERO);
            assert!(kicks.is_pulse(&KEY));
            assert_eq!(kicks.follow(|_| Some(100), Duration::ZERO).again, [KEY]);
            assert!(kicks.is_pulse(&KEY), "on until it has left");
            assert_eq!(kicks.follow(|_| Some(sent), at), over);
            assert!(kicks.is_empty() && !kicks.is_pulse(&KEY));
        }
    }

    #[test]
    fn a_peer_that_is_gone_is_not_kicked() {
        let mut kicks = Kicks::default();
        kicks.begin(KEY, 0, true, Duration::ZERO);
        assert_eq!(kicks.follow(|_| None, Duration::ZERO), Followed::default());
        assert!(kicks.is_empty());
    }
}
