//! The peers that have to survive a change, and whether they have.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use natpunch_types::{DeviceSnapshot, PeerKey, Time};

use crate::facts::{Facts, Finds, Hash, Touch, effects};
use crate::journal::Watch;
use crate::words::{Answers, Moment};

/// A new preshared key shows in the next handshake only, at the latest when the session ends
/// (REJECT_AFTER_TIME is 180 s).
const NEXT_HANDSHAKE: Duration = Duration::from_secs(200);
/// What discovery and relays are told shows within this time: a relay is given up by a message, and
/// three of them may be lost.
const SETTLE: Duration = Duration::from_secs(5);
/// Most peers that are watched: a sample is enough to know whether the node is cut off.
const MOST_WATCHED: usize = 64;
/// The pause between two questions to the peers that are not back.
pub(crate) const CHECK_PAUSE: Duration = Duration::from_millis(300);

/// The peers that a change has to keep alive, and how long that takes to show.
#[derive(Debug, Clone, Default)]
pub(crate) struct Watchers {
    pub(crate) all: Vec<Candidate>,
    /// Whether a session of before goes on until its next handshake.
    rekeys: bool,
    /// Whether the effect may show some seconds later only.
    is_late: bool,
}

/// The peers that a change would have to keep alive, were it made now.
pub fn watched<D: Finds>(before: &Facts<D>, after: &Facts<D>, moment: &Moment) -> Vec<Watch> {
    let carriers = moment.logins.iter().filter_map(|l| l.carrier(before));
    let operators = carriers.map(|(name, _)| name).collect();
    Watchers::of(before, after, &moment.alive, &operators, &[]).watches()
}

/// A peer to watch, and where it was before.
#[derive(Debug, Clone)]
pub(crate) struct Candidate {
    pub(crate) watch: Watch,
    before: Option<IpAddr>,
    /// It was watched in the change before, which is not confirmed: what it answered before that
    /// counts.
    known: bool,
}

impl Watchers {
    /// The peers of `alive` (by name) that the way from `before` to `after` touches. `operators`
    /// carry a login on this host; `earlier` were watched in a change that is not confirmed.
    pub(crate) fn of<D: Finds>(
        before: &Facts<D>,
        after: &Facts<D>,
        alive: &BTreeSet<String>,
        operators: &BTreeSet<&str>,
        earlier: &[Watch],
    ) -> Self {
        let mut watchers = Self::default();
        for effect in effects(before, after) {
            let peer = effect.before;
            let Some(now) = effect.after.filter(|_| alive.contains(&peer.name)) else {
                continue;
            };
            let must = match effect.touch {
                // The change does not reach the peer, or is directed against it: a hostile peer
                // must not be able to undo its own removal by keeping silent.
                Touch::Not | Touch::Against => continue,
                // The peer's own entry changed: if the peer does not follow, the entry is wrong.
                Touch::Entry => true,
                // This node's own side changed, which touches every peer. A laptop that went to
                // sleep must not undo that; an important peer must be back. One that is no longer
                // critical is not among them: that is a change against it.
                Touch::Node => now.critical || operators.contains(peer.name.as_str()),
            };
            let earlier = earlier.iter().find(|earlier| earlier.name == peer.name);
            watchers.rekeys |= effect.rekeys;
            watchers.is_late |= effect.is_late;
            watchers.all.push(Candidate {
                watch: Watch {
                    name: peer.name.clone(),
                    key: Some(now.key),
                    addresses: now.addresses.clone(),
                    must,
                    echo: earlier.is_some_and(|earlier| earlier.echo),
                    full: earlier.is_some_and(|earlier| earlier.full),
                    handshake: effect.rekeys,
                },
                before: peer.addresses.first().copied(),
                known: earlier.is_some(),
            });
        }
        // Peers that must be back come first, so that the bound never drops one of them.
        watchers.all.sort_by_key(|candidate| !candidate.watch.must);
        watchers.all.truncate(MOST_WATCHED);
        watchers
    }

    /// The peers to ask before the change is made.
    pub(crate) fn baseline(&self) -> Vec<IpAddr> {
        let fresh = self.all.iter().filter(|candidate| !candidate.known);
        fresh.filter_map(|candidate| candidate.before).collect()
    }

    /// Notes the answers from before the change. A peer has to answer the same afterwards.
    pub(crate) fn take_baseline(&mut self, answers: &Answers) {
        for candidate in self.all.iter_mut().filter(|candidate| !candidate.known) {
            let has = |set: &BTreeSet<IpAddr>| candidate.before.is_some_and(|ip| set.contains(&ip));
            candidate.watch.echo = has(&answers.small);
            candidate.watch.full = has(&answers.full);
        }
    }

    /// How long the peers have, if the file says `confirm`.
    pub(crate) fn window(&self, confirm: Duration) -> Duration {
        if self.rekeys {
            confirm.max(NEXT_HANDSHAKE)
        } else {
            confirm
        }
    }

    /// How long signs of life do not count yet.
    pub(crate) fn settle(&self, confirm: Duration) -> Duration {
        if self.is_late {
            SETTLE.min(confirm / 2)
        } else {
            Duration::ZERO
        }
    }

    pub(crate) fn watches(&self) -> Vec<Watch> {
        let all = self.all.iter();
        all.map(|candidate| candidate.watch.clone()).collect()
    }
}

/// The time between a change and the knowledge that it works.
#[derive(Debug, Clone)]
pub(crate) struct Guard {
    /// The version that is tried.
    pub(crate) to: Hash,
    pub(crate) deadline: Time,
    /// Signs of life count from here on.
    pub(crate) settled: Time,
    /// Whether a person has to confirm.
    pub(crate) by_person: bool,
    /// The peers that have to be alive.
    pub(crate) watched: Vec<Watch>,
    /// The endpoints of the peers of the version before.
    pub(crate) endpoints: BTreeMap<PeerKey, SocketAddr>,
    /// When it began: a confirmation has to come over a connection that is younger.
    pub(crate) began: Time,
    pub(crate) shook: BTreeSet<PeerKey>,
    pub(crate) back: BTreeSet<String>,
    /// Handshakes and received bytes right after the change.
    pub(crate) seen: Option<BTreeMap<PeerKey, (Option<Duration>, u64)>>,
    /// The question under way, and until when an answer is awaited.
    pub(crate) asked: Option<(u64, Time)>,
    pub(crate) ask_at: Time,
}

/// How a change stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Not known yet.
    Wait,
    /// It works; these peers did not come back, and are not needed.
    Good(Vec<String>),
    /// It does not: why.
    Bad(String),
}

impl Guard {
    pub(crate) fn new(to: Hash, deadline: Time, settled: Time, now: Time) -> Self {
        Self {
            to,
            deadline,
            settled,
            by_person: false,
            watched: Vec::new(),
            endpoints: BTreeMap::new(),
            began: now,
            shook: BTreeSet::new(),
            back: BTreeSet::new(),
            seen: None,
            asked: None,
            ask_at: now.max(settled),
        }
    }

    /// The names of the peers that are not back.
    pub(crate) fn missing(&self) -> Vec<String> {
        let missing = self.watched.iter().filter(|watch| !self.is_back(watch));
        missing.map(|watch| watch.name.clone()).collect()
    }

    fn is_back(&self, watch: &Watch) -> bool {
        self.back.contains(&watch.name)
    }

    fn has_shaken(&self, watch: &Watch) -> bool {
        !watch.handshake || watch.key.is_some_and(|key| self.shook.contains(&key))
    }

    /// The addresses to ask, by small packets and by full ones.
    pub(crate) fn to_ask(&self) -> (Vec<IpAddr>, Vec<IpAddr>) {
        let open = self.watched.iter().filter(|watch| !self.is_back(watch));
        // Where no handshake was made yet the echo asks for one: WireGuard makes it for traffic.
        let (full, small): (Vec<&Watch>, Vec<&Watch>) = open.partition(|watch| watch.full);
        let first = |list: Vec<&Watch>| {
            let addresses = list.into_iter().filter_map(|watch| watch.addresses.first());
            addresses.copied().collect()
        };
        (first(small), first(full))
    }

    /// Takes the answers of an [`Ask`](crate::Ask).
    pub(crate) fn take_answers(&mut self, answers: &Answers) {
        let answered = |watch: &Watch| {
            let set = if watch.full {
                &answers.full
            } else {
                &answers.small
            };
            watch.addresses.first().is_some_and(|ip| set.contains(ip))
        };
        let back: Vec<String> = self
            .watched
            .iter()
            .filter(|watch| self.has_shaken(watch) && answered(watch))
            .map(|watch| watch.name.clone())
            .collect();
        self.back.extend(back);
    }

    /// Takes what the device says. Received bytes count only for peers that never answered an echo:
    /// a keepalive also passes on a path that drops larger packets.
    pub(crate) fn take_snapshot(&mut self, snapshot: &DeviceSnapshot, now: Time) {
        let rows: BTreeMap<PeerKey, _> = snapshot
            .peers
            .iter()
            .map(|peer| (peer.key, (peer.last_handshake, peer.rx_bytes)))
            .collect();
        // Packets from before `settled` may have come by the old path.
        let Some(seen) = self.seen.as_ref().filter(|_| now >= self.settled) else {
            self.seen = Some(rows);
            return;
        };
        for watch in &self.watched {
            let Some(key) = watch.key else { continue };
            let (handshake, received) = seen.get(&key).copied().unwrap_or_default();
            let Some((new_handshake, new_received)) = rows.get(&key).copied() else {
                continue;
            };
            let has_shaken = new_handshake.is_some() && new_handshake != handshake;
            if has_shaken {
                self.shook.insert(key);
            }
            let alive = if watch.handshake {
                has_shaken
            } else {
                new_received > received
            };
            if alive && !watch.echo {
                self.back.insert(watch.name.clone());
            }
        }
    }

    pub(crate) fn verdict(&self, now: Time) -> Verdict {
        let missing = self.missing();
        // Every peer is back. A change that a person has to confirm waits for the person.
        if !self.by_person && missing.is_empty() {
            return Verdict::Good(missing);
        }
        if now < self.deadline {
            return Verdict::Wait;
        }
        // A person who does not confirm may have lost access to the host.
        if self.by_person {
            return Verdict::Bad("it was not confirmed with `natpunch confirm`".to_owned());
        }
        let needed: Vec<&str> = self
            .watched
            .iter()
            .filter(|watch| watch.must && !self.is_back(watch))
            .map(|watch| watch.name.as_str())
            .collect();
        if !needed.is_empty() {
            return Verdict::Bad(format!(
                "no sign of life after it from {}",
                needed.join(", ")
            ));
        }
        // A quorum of the rest: half of them.
        let others = self.watched.iter().filter(|watch| !watch.must).count();
        if missing.len() * 2 > others {
            return Verdict::Bad(format!(
                "no sign of life after it from {} of {others} peers that were alive before",
                missing.len()
            ));
        }
        Verdict::Good(missing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(must: &[bool]) -> Guard {
        let watched = must.iter().enumerate().map(|(n, must)| Watch {
            name: format!("p{n}"),
            key: Some(PeerKey::from_bytes([n as u8; 32])),
            addresses: vec![IpAddr::from([10, 0, 0, n as u8])],
            must: *must,
            echo: true,
            full: false,
            handshake: false,
        });
        Guard {
            watched: watched.collect(),
            ..Guard::new([1; 32], LATE, Time::ZERO, Time::ZERO)
        }
    }

    const EARLY: Time = Time::from_millis(1000);
    const LATE: Time = Time::from_millis(10_000);

    fn answer(guard: &mut Guard, from: &[u8]) {
        let small = from.iter().map(|n| IpAddr::from([10, 0, 0, *n])).collect();
        guard.take_answers(&Answers {
            small,
            full: BTreeSet::new(),
        });
    }

    #[test]
    fn a_change_is_good_as_soon_as_everybody_is_back_and_bad_if_one_is_missing_that_must_be_there()
    {
        let mut guard = guard(&[true, false, false]);
        assert_eq!(guard.verdict(EARLY), Verdict::Wait);
        answer(&mut guard, &[1, 2]);
        assert!(matches!(guard.verdict(LATE), Verdict::Bad(why) if why.contains("p0")));
        answer(&mut guard, &[0]);
        assert_eq!(guard.verdict(EARLY), Verdict::Good(vec![]));
    }

    #[test]
    fn a_peer_that_went_to_sleep_does_not_undo_a_change_of_all() {
        let mut guard = guard(&[false, false, false]);
        answer(&mut guard, &[0]);
        assert!(
            matches!(guard.verdict(LATE), Verdict::Bad(_)),
            "most are gone"
        );
        answer(&mut guard, &[1]);
        assert_eq!(guard.verdict(LATE), Verdict::Good(vec!["p2".to_owned()]));
    }

    #[test]
    fn only_a_person_can_confirm_what_a_person_has_to() {
        let mut guard = guard(&[]);
        guard.by_person = true;
        assert_eq!(guard.verdict(Time::ZERO), Verdict::Wait);
        assert!(matches!(guard.verdict(LATE), Verdict::Bad(_)));
    }

    fn row(handshake: u64, rx_bytes: u64) -> DeviceSnapshot {
        DeviceSnapshot {
            peers: vec![natpunch_types::DevicePeer {
                last_handshake: Some(Duration::from_secs(handshake)),
                rx_bytes,
                ..natpunch_types::DevicePeer::new(PeerKey::from_bytes([0; 32]))
            }],
            ..DeviceSnapshot::default()
        }
    }

    #[test]
    fn a_new_key_is_shown_by_its_own_handshake_and_by_nothing_of_the_old_session() {
        let mut guard = guard(&[true]);
        guard.watched[0].handshake = true;
        guard.take_snapshot(&row(1, 0), EARLY);
        guard.take_snapshot(&row(1, 5000), EARLY);
        answer(&mut guard, &[0]);
        assert_eq!(guard.verdict(LATE - Duration::from_secs(1)), Verdict::Wait);
        guard.take_snapshot(&row(2, 5000), EARLY);
        assert_eq!(
            guard.verdict(EARLY),
            Verdict::Wait,
            "it answered echoes before"
        );
        answer(&mut guard, &[0]);
        assert_eq!(guard.verdict(EARLY), Verdict::Good(vec![]));
    }

    #[test]
    fn what_the_old_way_still_brings_is_no_sign_of_life() {
        let mut guard = guard(&[true]);
        guard.settled = EARLY;
        guard.watched[0].echo = false;
        guard.take_snapshot(&row(1, 0), Time::ZERO);
        guard.take_snapshot(&row(1, 100), Time::from_millis(500));
        guard.take_snapshot(&row(1, 100), LATE);
        assert_eq!(guard.missing(), ["p0"]);
        guard.take_snapshot(&row(1, 132), LATE);
        assert!(guard.missing().is_empty());
    }
}
