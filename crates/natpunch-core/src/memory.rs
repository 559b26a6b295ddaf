//! What worked in which network, so that a later run, or a return to the network, tries that first.
//!
//! Pure: what works and the time in, what is to be tried out. The shell names the network that this
//! host is in, and keeps a [`Memory`] on disk. Nothing of it is believed: a path from here is a
//! candidate of [`Origin::Remembered`](natpunch_types::Origin), proven like any other.
//!
//! Of the NAT's profile only the lifetime of mappings is kept, which takes minutes to measure. All
//! else is known two seconds after a start, and an old profile could be that of another router.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use natpunch_types::{CandidateKind, PathId, PeerKey, is_forwarder};
use serde::{Deserialize, Serialize};

use crate::{MeasuredLifetime, admit};

/// For how long after it worked last a path is tried.
const LONGEST: Duration = Duration::from_secs(30 * 86_400);
/// What goes on working is noted again after so long, and not each time: each note is a write.
const REFRESH: Duration = Duration::from_secs(86_400);
/// A note from further in the future was made by a clock that was wrong.
const SKEW: Duration = Duration::from_secs(2 * 86_400);
/// Networks that are remembered.
const MAX_NETWORKS: usize = 16;
/// Paths to one peer in one network: a private and a public one of each family.
const MAX_PER_PEER: usize = 4;
/// Paths in all, each of some 150 bytes on disk.
const MAX_PATHS: usize = 8_192;
/// Lifetimes of mappings: the core itself remembers 16 networks of each family.
const MAX_LIFETIMES: usize = 32;

/// A path to a peer that works, or did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownPath {
    /// The peer.
    pub peer: PeerKey,
    /// Where its packets leave this host, and where they go.
    pub path: PathId,
    /// How the other end was found.
    pub kind: CandidateKind,
}

/// What worked, by the network that this host was in. It has bounds, whatever it is read from. Each
/// time is in seconds since 1970.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Written")]
pub struct Memory {
    /// The one that this host was in last comes first.
    networks: Vec<Network>,
    lifetimes: Vec<Lifetime>,
}

/// A [`Memory`] as it is read: nothing of it is checked.
#[derive(Deserialize)]
struct Written {
    networks: Vec<Network>,
    lifetimes: Vec<Lifetime>,
}

/// What worked in one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Network {
    name: String,
    /// Those of a peer are sorted by path.
    peers: BTreeMap<PeerKey, Vec<Worked>>,
}

/// A path that worked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Worked {
    #[serde(flatten)]
    path: PathId,
    kind: CandidateKind,
    /// When it did last, give or take [`REFRESH`].
    at: u64,
}

/// How long mappings live, as it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Lifetime {
    /// Where servers see this node.
    seen_at: IpAddr,
    seconds: u8,
    measured: u64,
}

impl From<Written> for Memory {
    fn from(written: Written) -> Self {
        let Written {
            mut networks,
            mut lifetimes,
        } = written;
        networks.truncate(MAX_NETWORKS);
        lifetimes.truncate(MAX_LIFETIMES);
        for network in &mut networks {
            for paths in network.peers.values_mut() {
                paths.retain(Worked::may_be);
                paths.truncate(MAX_PER_PEER);
                paths.sort_by_key(|worked| worked.path);
            }
        }
        let mut memory = Self {
            networks,
            lifetimes,
        };
        memory.make_room();
        memory
    }
}

impl Worked {
    /// A peer can be there, and a later run can send from there.
    fn may_be(&self) -> bool {
        let remote = self.path.remote;
        let is_address = admit(remote, &[], |_| false) == Ok(remote);
        is_address && !is_forwarder(remote.ip()) && self.kind != CandidateKind::Relay
    }

    fn is_fresh(&self, now: u64) -> bool {
        is_within(self.at, LONGEST, now)
    }
}

/// Whether a moment is less than `age` ago, by a clock that may have been set meanwhile.
fn is_within(at: u64, age: Duration, now: u64) -> bool {
    now.saturating_sub(at) < age.as_secs() && at.saturating_sub(now) < SKEW.as_secs()
}

impl Memory {
    /// Notes what works in a network at this moment, of each peer the path in use first. True if
    /// that is worth a write.
    ///
    /// A path that has ceased to work stays as long as there is room and it is not too old: it may
    /// be the one that works after the next move. The ports of relays are made anew for each
    /// session, so they are not noted.
    pub fn note(
        &mut self,
        network: &str,
        works: impl IntoIterator<Item = KnownPath>,
        now: u64,
    ) -> bool {
        let mut of_peers: BTreeMap<PeerKey, Vec<Worked>> = BTreeMap::new();
        for KnownPath { peer, path, kind } in works {
            let worked = Worked {
                path,
                kind,
                at: now,
            };
            let paths = of_peers.entry(peer).or_default();
            if worked.may_be() && paths.len() < MAX_PER_PEER {
                paths.push(worked);
            }
        }
        of_peers.retain(|_, paths| !paths.is_empty());
        let place = self.networks.iter().position(|known| known.name == network);
        if place.is_none() && of_peers.is_empty() {
            return false;
        }
        let mut changed = place != Some(0);
        let known = place.map(|place| self.networks.remove(place));
        let mut known = known.unwrap_or_else(|| Network {
            name: network.to_owned(),
            peers: BTreeMap::new(),
        });
        let mut room = MAX_PATHS.saturating_sub(known.len());
        for (peer, mut works) in of_peers {
            // Those that have places keep them. Otherwise two peers would take turns, and each turn
            // is a write.
            let held = known.held(&peer);
            works.truncate(held + room);
            if !works.is_empty() {
                changed |= known.note(peer, works, now);
                room = (room + held).saturating_sub(known.held(&peer));
            }
        }
        self.networks.insert(0, known);
        self.networks.truncate(MAX_NETWORKS);
        if changed {
            self.make_room();
        }
        changed
    }

    /// Notes how long mappings live, as far as it was measured. True if that is worth a write.
    pub fn note_lifetimes(&mut self, measured: &[MeasuredLifetime], now: u64) -> bool {
        let measured = measured.iter().take(MAX_LIFETIMES).map(|measured| {
            let before = self.lifetimes.iter();
            let same = before
                .filter(|known| known.seen_at == measured.network)
                .find(|known| known.seconds == measured.seconds);
            // What was measured again, with the same result, is written again once a day.
            let at = now.saturating_sub(measured.age.as_secs());
            let kept = same.filter(|known| is_within(known.measured, REFRESH, at));
            kept.copied().unwrap_or(Lifetime {
                seen_at: measured.network,
                seconds: measured.seconds,
                measured: at,
            })
        });
        let measured: Vec<Lifetime> = measured.collect();
        let changed = measured != self.lifetimes;
        self.lifetimes = measured;
        changed
    }

    /// Forgets the peers that are no longer there. True if that is worth a write.
    pub fn keep(&mut self, is_there: impl Fn(&PeerKey) -> bool) -> bool {
        let mut changed = false;
        for network in &mut self.networks {
            let gone = network.peers.extract_if(.., |peer, _| !is_there(peer));
            changed |= gone.count() > 0;
        }
        self.networks.retain(|network| !network.peers.is_empty());
        changed
    }

    /// What to try in a network: what worked there, and nothing that is too old.
    pub fn paths(&self, network: &str, now: u64) -> Vec<KnownPath> {
        let known = self.networks.iter().find(|known| known.name == network);
        let peers = known.into_iter().flat_map(|known| &known.peers);
        let all = peers.flat_map(|(peer, paths)| paths.iter().map(move |worked| (*peer, worked)));
        all.filter(|(_, worked)| worked.is_fresh(now))
            .map(|(peer, worked)| KnownPath {
                peer,
                path: worked.path,
                kind: worked.kind,
            })
            .collect()
    }

    /// How long mappings live, as [`Mesh::restore_lifetimes`](crate::Mesh::restore_lifetimes) takes
    /// it.
    pub fn lifetimes(&self, now: u64) -> Vec<MeasuredLifetime> {
        let known = self.lifetimes.iter();
        let known = known.filter(|known| is_within(known.measured, LONGEST, now));
        known
            .map(|known| MeasuredLifetime {
                network: known.seen_at,
                seconds: known.seconds,
                age: Duration::from_secs(now.saturating_sub(known.measured)),
            })
            .collect()
    }

    /// Forgets what is beyond the bound: of the network that this host has not been in for longest,
    /// and there what has not worked for longest.
    fn make_room(&mut self) {
        let mut room = MAX_PATHS;
        for network in &mut self.networks {
            network.shrink(room);
            room -= network.len().min(room);
        }
        self.networks.retain(|network| !network.peers.is_empty());
    }
}

impl Network {
    fn len(&self) -> usize {
        self.peers.values().map(Vec::len).sum()
    }

    fn held(&self, peer: &PeerKey) -> usize {
        self.peers.get(peer).map_or(0, Vec::len)
    }

    /// Notes what works of a peer. What worked before fills the places that are left, the latest
    /// first.
    fn note(&mut self, peer: PeerKey, mut works: Vec<Worked>, now: u64) -> bool {
        let before = self.peers.remove(&peer).unwrap_or_default();
        for worked in &mut works {
            let known = before.iter().find(|known| known.path == worked.path);
            let known = known.filter(|known| is_within(known.at, REFRESH, now));
            worked.at = known.map_or(now, |known| known.at);
        }
        let is_past = |known: &&Worked| !works.iter().any(|worked| worked.path == known.path);
        let mut past: Vec<Worked> = before.iter().filter(is_past).copied().collect();
        past.retain(|known| known.is_fresh(now));
        past.sort_by_key(|known| std::cmp::Reverse(known.at));
        past.truncate(MAX_PER_PEER.saturating_sub(works.len()));
        works.extend(past);
        works.sort_by_key(|worked| worked.path);
        let changed = works != before;
        self.peers.insert(peer, works);
        changed
    }

    /// Keeps so many paths at most.
    fn shrink(&mut self, most: usize) {
        let excess = self.len().saturating_sub(most);
        if excess > 0 {
            let paths = self.peers.iter().flat_map(|(peer, paths)| {
                paths.iter().map(|worked| (worked.at, *peer, worked.path))
            });
            let mut oldest: Vec<_> = paths.collect();
            oldest.sort_unstable();
            for (_, peer, path) in oldest.into_iter().take(excess) {
                if let Some(paths) = self.peers.get_mut(&peer) {
                    paths.retain(|worked| worked.path != path);
                }
            }
        }
        self.peers.retain(|_, paths| !paths.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use super::*;

    const DAY: u64 = 86_400;
    const NOW: u64 = 1_800_000_000;

    fn key(number: u16) -> PeerKey {
        let mut bytes = [0; 32];
        bytes[..2].copy_from_slice(&number.to_be_bytes());
        PeerKey::from_bytes(bytes)
    }

    fn path(remote: &str) -> PathId {
        PathId::wireguard(remote.parse().unwrap())
    }

    fn works(peer: u16, remote: &str) -> KnownPath {
        KnownPath {
            peer: key(peer),
            path: path(remote),
            kind: CandidateKind::Reflexive,
        }
    }

    fn remotes(memory: &Memory, network: &str, now: u64) -> Vec<String> {
        let paths = memory.paths(network, now);
        paths.iter().map(|known| known.path.to_string()).collect()
    }

    /// As the next run has it.
    fn reread(memory: &Memory) -> Memory {
        serde_json::from_str(&serde_json::to_string(memory).unwrap()).unwrap()
    }

    #[test]
    fn what_worked_in_a_network_is_tried_there_and_nowhere_else() {
        let mut memory = Memory::default();
        let pinned = KnownPath {
            path: PathId::from_port(
                NonZeroU16::new(61_234).unwrap(),
                path("203.0.113.2:7").remote,
            ),
            ..works(1, "203.0.113.2:7")
        };
        assert!(memory.note("home", [pinned, works(1, "192.168.1.9:7")], NOW));
        assert!(memory.note("hotel", [works(1, "203.0.113.2:7")], NOW));
        let memory = reread(&memory);
        let expected = ["192.168.1.9:7", "203.0.113.2:7 from port 61234"];
        assert_eq!(remotes(&memory, "home", NOW), expected);
        assert_eq!(remotes(&memory, "hotel", NOW), ["203.0.113.2:7"]);
        assert!(memory.paths("office", NOW).is_empty());
    }

    #[test]
    fn nothing_is_tried_that_worked_a_month_ago_or_is_of_a_clock_that_was_wrong() {
        let mut memory = Memory::default();
        memory.note("home", [works(1, "203.0.113.2:7")], NOW);
        assert_eq!(memory.paths("home", NOW + 29 * DAY).len(), 1);
        assert!(memory.paths("home", NOW + 30 * DAY).is_empty());
        // A clock that was set back by a little is no reason to forget.
        assert_eq!(memory.paths("home", NOW - DAY).len(), 1);
        assert!(memory.paths("home", NOW - 3 * DAY).is_empty());
    }

    #[test]
    fn what_goes_on_working_is_written_once_a_day() {
        let mut memory = Memory::default();
        let same = || [works(1, "203.0.113.2:7")];
        assert!(memory.note("home", same(), NOW));
        let writes = (0..3 * 1_440).filter(|minute| memory.note("home", same(), NOW + minute * 60));
        assert_eq!(writes.count(), 2, "in three days");
        // It is not forgotten after a month in which it worked.
        assert_eq!(memory.paths("home", NOW + 31 * DAY).len(), 1);
    }

    #[test]
    fn a_peer_that_is_away_is_remembered_and_a_moving_one_fills_its_places_only() {
        let mut memory = Memory::default();
        memory.note(
            "home",
            [works(1, "203.0.113.1:7"), works(2, "203.0.113.2:7")],
            NOW,
        );
        assert!(!memory.note("home", [works(1, "203.0.113.1:7")], NOW + 60));
        for n in 10..30 {
            let moved = works(1, &format!("198.51.100.{n}:7"));
            assert!(memory.note("home", [moved], NOW + 60 + n));
        }
        let kept = [
            "198.51.100.26:7",
            "198.51.100.27:7",
            "198.51.100.28:7",
            "198.51.100.29:7",
        ];
        let expected: Vec<&str> = kept.into_iter().chain(["203.0.113.2:7"]).collect();
        let mut found = remotes(&memory, "home", NOW + 90);
        found.sort();
        assert_eq!(found, expected);
    }

    #[test]
    fn of_more_paths_than_there_is_room_for_the_ones_first_named_stay_and_none_is_written_twice() {
        let mut memory = Memory::default();
        let many = || (1..9).map(|n| works(1, &format!("203.0.113.{n}:7")));
        assert!(memory.note("home", many(), NOW));
        assert!(!memory.note("home", many(), NOW + 1));
        let first: Vec<String> = (1..5).map(|n| format!("203.0.113.{n}:7")).collect();
        assert_eq!(remotes(&memory, "home", NOW), first);
    }

    #[test]
    fn networks_and_paths_have_a_bound_and_the_network_of_long_ago_goes_first() {
        let mut memory = Memory::default();
        for n in 0..40 {
            memory.note(&format!("net{n}"), [works(1, "203.0.113.1:7")], NOW + n);
        }
        assert!(memory.paths("net23", NOW).is_empty());
        assert_eq!(memory.paths("net24", NOW).len(), 1);
        // A return makes it the last one to go.
        assert!(memory.note("net24", [], NOW + 50));
        memory.note("net40", [works(1, "203.0.113.1:7")], NOW + 51);
        assert_eq!(memory.paths("net24", NOW).len(), 1);
        assert!(memory.paths("net25", NOW).is_empty());

        let many = |n: u16| works(n, &format!("198.51.{}.{}:7", n / 250, n % 250));
        assert!(memory.note("large", (0..9_000).map(many), NOW + 60));
        assert!(!memory.note("large", (0..9_000).map(many), NOW + 120));
        let paths = |name: &str| memory.paths(name, NOW + 60).len();
        assert_eq!((paths("large"), paths("net24")), (MAX_PATHS, 0));
        assert_eq!(reread(&memory), memory);
    }

    #[test]
    fn peers_that_left_the_mesh_are_forgotten() {
        let mut memory = Memory::default();
        memory.note(
            "home",
            [works(1, "203.0.113.1:7"), works(2, "203.0.113.2:7")],
            NOW,
        );
        assert!(memory.keep(|peer| *peer == key(2)));
        assert!(!memory.keep(|peer| *peer == key(2)));
        assert_eq!(remotes(&memory, "home", NOW), ["203.0.113.2:7"]);
        assert!(memory.keep(|_| false));
        assert_eq!(memory, Memory::default());
    }

    #[test]
    fn neither_relays_nor_addresses_that_no_peer_can_have_are_remembered_or_read() {
        let mut memory = Memory::default();
        let relay = KnownPath {
            kind: CandidateKind::Relay,
            ..works(1, "203.0.113.1:7")
        };
        let forwarder = works(1, "127.78.80.1:7");
        assert!(!memory.note("home", [relay, forwarder, works(1, "224.0.0.1:7")], NOW));
        assert_eq!(memory, Memory::default());

        let peer = serde_json::to_string(&key(1)).unwrap();
        let paths: Vec<String> = ["127.0.0.1:7", "203.0.113.1:0", "203.0.113.1:7"]
            .into_iter()
            .flat_map(|remote| (0..9).map(move |_| remote))
            .map(|remote| {
                format!(
                    r#"{{"local":"wireguard-port","remote":"{remote}","kind":"host","at":{NOW}}}"#
                )
            })
            .collect();
        let text = format!(
            r#"{{"networks":[{{"name":"home","peers":{{{peer}:[{}]}}}}],"lifetimes":[]}}"#,
            paths.join(",")
        );
        let read: Memory = serde_json::from_str(&text).unwrap();
        let found = remotes(&read, "home", NOW);
        assert!(found.len() <= MAX_PER_PEER, "{found:?}");
        assert!(
            found.iter().all(|remote| remote == "203.0.113.1:7"),
            "{found:?}"
        );
    }

    #[test]
    fn lifetimes_are_given_back_with_their_age_and_the_same_ones_are_not_written_again() {
        let measured = |seconds, age| MeasuredLifetime {
            network: "203.0.113.1".parse().unwrap(),
            seconds,
            age: Duration::from_secs(age),
        };
        let mut memory = Memory::default();
        assert!(memory.note_lifetimes(&[measured(28, 100)], NOW));
        assert!(!memory.note_lifetimes(&[measured(28, 160)], NOW + 60));
        // Measured anew, with the same result.
        assert!(!memory.note_lifetimes(&[measured(28, 0)], NOW + 1_800));
        assert!(memory.note_lifetimes(&[measured(28, 0)], NOW + 2 * DAY));
        assert!(memory.note_lifetimes(&[measured(58, 0)], NOW + 2 * DAY));
        let memory = reread(&memory);
        assert_eq!(memory.lifetimes(NOW + 2 * DAY + 70), [measured(58, 70)]);
        assert!(memory.lifetimes(NOW + 40 * DAY).is_empty());
    }
}
