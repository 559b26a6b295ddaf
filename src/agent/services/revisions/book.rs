//! Which version of the mesh each node runs, asked and told inside the mesh.
//!
//! A datagram of [`LENGTH`] bytes over UDP, port [`PORT`], between the nodes' mesh addresses, each
//! way: a question holds what the asker runs, an answer what the answerer does. Who sent it is
//! known by its source address, which WireGuard lets no other peer use. Nothing is sent unless
//! somebody asks `status --mesh`, or this node changed its version. This file is the codec and the
//! book; The module above has the sockets.
//!
//! | bytes | what |
//! |---|---|
//! | 0..4 | `NPRV` |
//! | 4 | 1, the form |
//! | 5 | 1 question, 2 answer |
//! | 6 | bit 0: there is a generation; bit 1: the newest version was not applied |
//! | 8..16 | what the asker chose; the answer has it, too |
//! | 16..24 | generation |
//! | 24..40 | start of the hash of what the mesh says |
//! | 40..44 | for how many seconds it has run |
//! | 44..50 | version of natpunch, three numbers |
//!
//! Numbers are little-endian; other bytes are zero, and ignored.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use natpunch_types::{Rate, RateBudget, Time};
use serde::{Deserialize, Serialize};

use crate::agent::rollout::names;

/// The UDP port on mesh addresses.
pub(crate) const PORT: u16 = 51_897;
/// The length of both kinds, in bytes: an answer is never longer than its question.
pub(crate) const LENGTH: usize = 64;

const MAGIC: [u8; 4] = *b"NPRV";
const FORM: u8 = 1;
const HAS_GENERATION: u8 = 1;
const NOT_NEWEST: u8 = 2;

/// Answers to one peer.
const ANSWERS: Rate = Rate::every(Duration::from_millis(250), 8);

/// What a node runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Revision {
    /// The generation that the mesh file states.
    pub(crate) generation: Option<u64>,
    /// Start of the hash of what the mesh says.
    pub(crate) hash: [u8; 16],
    /// For how long it has run.
    pub(crate) runs_for: Duration,
    /// The version of natpunch.
    pub(crate) version: [u16; 3],
    /// Whether the node has a newer one that it does not run.
    pub(crate) not_newest: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Question,
    Answer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Message {
    kind: Kind,
    nonce: [u8; 8],
    revision: Revision,
}

impl Message {
    fn encode(&self) -> [u8; LENGTH] {
        let Self {
            kind,
            nonce,
            revision,
        } = self;
        let kind = match kind {
            Kind::Question => 1,
            Kind::Answer => 2,
        };
        let mut flags = if revision.generation.is_some() {
            HAS_GENERATION
        } else {
            0
        };
        flags |= if revision.not_newest { NOT_NEWEST } else { 0 };
        let [major, minor, patch] = revision.version.map(u16::to_le_bytes);
        let parts: [&[u8]; 9] = [
            &MAGIC,
            &[FORM, kind, flags, 0],
            nonce,
            &revision.generation.unwrap_or_default().to_le_bytes(),
            &revision.hash,
            &u32::try_from(revision.runs_for.as_secs())
                .unwrap_or(u32::MAX)
                .to_le_bytes(),
            &major,
            &minor,
            &patch,
        ];
        let mut bytes = [0; LENGTH];
        for (to, from) in bytes.iter_mut().zip(parts.into_iter().flatten()) {
            *to = *from;
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; LENGTH] = bytes.try_into().ok()?;
        let (magic, rest) = bytes.split_first_chunk::<4>()?;
        let ([form, kind, flags, _], rest) = rest.split_first_chunk::<4>()?;
        let (nonce, rest) = rest.split_first_chunk::<8>()?;
        let (generation, rest) = rest.split_first_chunk::<8>()?;
        let (hash, rest) = rest.split_first_chunk::<16>()?;
        let (seconds, rest) = rest.split_first_chunk::<4>()?;
        let (major, rest) = rest.split_first_chunk::<2>()?;
        let (minor, rest) = rest.split_first_chunk::<2>()?;
        let (patch, _) = rest.split_first_chunk::<2>()?;
        if *magic != MAGIC || *form != FORM {
            return None;
        }
        let kind = match kind {
            1 => Kind::Question,
            2 => Kind::Answer,
            _ => return None,
        };
        let revision = Revision {
            generation: (flags & HAS_GENERATION != 0).then(|| u64::from_le_bytes(*generation)),
            hash: *hash,
            runs_for: Duration::from_secs(u32::from_le_bytes(*seconds).into()),
            version: [major, minor, patch].map(|number| u16::from_le_bytes(*number)),
            not_newest: flags & NOT_NEWEST != 0,
        };
        Some(Self {
            kind,
            nonce: *nonce,
            revision,
        })
    }
}

/// A peer, as far as revisions go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) addresses: Vec<IpAddr>,
    /// Whether natpunch runs on it.
    pub(crate) managed: bool,
}

/// How a peer's version stands to this node's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// It runs the same mesh.
    Same,
    /// It runs a lower generation.
    Behind,
    /// It runs a higher generation.
    Ahead,
    /// It runs another mesh, and the generations do not tell which is newer.
    Differs,
    /// It is connected, but does not answer: an older natpunch, or a firewall.
    Silent,
    /// It is not connected.
    Away,
    /// It is a plain WireGuard peer.
    Plain,
}

/// A peer in `status --mesh`. What is known of it may be older, if it is silent or away now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerRevision {
    /// Its name.
    pub name: String,
    /// How it stands to this node.
    pub standing: Standing,
    /// What it runs, if it ever said.
    #[serde(flatten)]
    pub runs: Option<Runs>,
    /// When it said so, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heard_s: Option<f64>,
}

/// What a node runs, for people and machines.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Runs {
    /// How the version of the mesh is called: generation and hash.
    #[serde(default)]
    pub revision: String,
    /// The generation that the mesh file states.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// Start of the hash of what the mesh says, in hex.
    pub mesh_hash: String,
    /// The version of natpunch.
    pub version: String,
    /// For how long it has run this mesh, in seconds, as far as its agent knows.
    pub runs_for_s: f64,
    /// Whether it has a newer version that it does not run.
    pub not_newest: bool,
}

impl Runs {
    /// What `revision`, heard `ago`, means now.
    pub(crate) fn of(revision: &Revision, ago: Duration) -> Self {
        let [major, minor, patch] = revision.version;
        Self {
            generation: revision.generation,
            revision: names::revision(revision.generation, &revision.hash),
            mesh_hash: names::short(&revision.hash),
            version: format!("{major}.{minor}.{patch}"),
            runs_for_s: (revision.runs_for + ago).as_secs_f64(),
            not_newest: revision.not_newest,
        }
    }
}

#[derive(Debug)]
struct Entry {
    member: Member,
    asked: Option<[u8; 8]>,
    answered: bool,
    heard: Option<(Revision, Time)>,
    answers: RateBudget,
}

/// What the peers said. Time is since boot.
#[derive(Debug, Default)]
pub(crate) struct Book {
    peers: BTreeMap<String, Entry>,
    by_address: BTreeMap<IpAddr, String>,
}

impl Book {
    /// The peers from now on. What is known of those that stay is kept.
    pub(crate) fn set_members(&mut self, members: Vec<Member>) {
        let mut before = std::mem::take(&mut self.peers);
        self.by_address.clear();
        for member in members {
            if member.managed {
                let own = |address: &IpAddr| (*address, member.name.clone());
                self.by_address.extend(member.addresses.iter().map(own));
            }
            let entry = match before.remove(&member.name) {
                Some(entry) if entry.member.addresses == member.addresses => {
                    Entry { member, ..entry }
                }
                _ => Entry {
                    member,
                    asked: None,
                    answered: false,
                    heard: None,
                    answers: RateBudget::new(ANSWERS),
                },
            };
            self.peers.insert(entry.member.name.clone(), entry);
        }
    }

    /// A new round of questions.
    pub(crate) fn begin(&mut self) {
        for entry in self.peers.values_mut() {
            (entry.asked, entry.answered) = (None, false);
        }
    }

    /// A question to a node, and where it goes; `None` if it is no node or has answered in this
    /// round.
    pub(crate) fn ask(
        &mut self,
        name: &str,
        own: &Revision,
        nonce: [u8; 8],
    ) -> Option<(Vec<IpAddr>, [u8; LENGTH])> {
        let entry = self
            .peers
            .get_mut(name)
            .filter(|entry| entry.member.managed && !entry.answered)?;
        let nonce = *entry.asked.get_or_insert(nonce);
        let message = Message {
            kind: Kind::Question,
            nonce,
            revision: *own,
        };
        Some((entry.member.addresses.clone(), message.encode()))
    }

    /// Whether this node has answered in this round.
    pub(crate) fn has_answered(&self, name: &str) -> bool {
        self.peers
            .get(name)
            .is_none_or(|entry| entry.answered || !entry.member.managed)
    }

    /// Takes a datagram from an address inside the mesh; the value is what to answer.
    pub(crate) fn handle(
        &mut self,
        source: IpAddr,
        bytes: &[u8],
        own: &Revision,
        now: Time,
    ) -> Option<[u8; LENGTH]> {
        let name = self.by_address.get(&source)?;
        let entry = self.peers.get_mut(name)?;
        let Message {
            kind,
            nonce,
            revision,
        } = Message::decode(bytes)?;
        match kind {
            Kind::Answer => {
                if entry.asked == Some(nonce) {
                    entry.answered = true;
                    entry.heard = Some((revision, now));
                }
                None
            }
            Kind::Question => {
                entry.answers.take(now).then_some(())?;
                entry.heard = Some((revision, now));
                Some(
                    Message {
                        kind: Kind::Answer,
                        nonce,
                        revision: *own,
                    }
                    .encode(),
                )
            }
        }
    }

    /// Every peer as it stands to `own`, by name.
    pub(crate) fn report(
        &self,
        own: &Revision,
        connected: &dyn Fn(&str) -> bool,
        now: Time,
    ) -> Vec<PeerRevision> {
        let peer = |entry: &Entry| {
            let standing = match &entry.heard {
                _ if !entry.member.managed => Standing::Plain,
                _ if !connected(&entry.member.name) => Standing::Away,
                Some((revision, _)) if entry.answered => standing(own, revision),
                _ => Standing::Silent,
            };
            let heard = entry.heard.as_ref().filter(|_| entry.member.managed);
            let ago = |at: &Time| now.since(*at);
            PeerRevision {
                name: entry.member.name.clone(),
                standing,
                runs: heard.map(|(revision, at)| Runs::of(revision, ago(at))),
                heard_s: heard.map(|(_, at)| ago(at).as_secs_f64()),
            }
        };
        self.peers.values().map(peer).collect()
    }
}

fn standing(own: &Revision, other: &Revision) -> Standing {
    if own.hash == other.hash {
        return Standing::Same;
    }
    match (own.generation, other.generation) {
        (Some(own), Some(other)) if other < own => Standing::Behind,
        (Some(own), Some(other)) if other > own => Standing::Ahead,
        _ => Standing::Differs,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Revision = Revision {
        generation: Some(7),
        hash: [7; 16],
        runs_for: Duration::from_secs(60),
        version: [0, 1, 0],
        not_newest: false,
    };

    fn address(n: u8) -> IpAddr {
        IpAddr::from([10, 77, 0, n])
    }

    fn book() -> Book {
        let member = |n: u8, managed| Member {
            name: format!("p{n}"),
            addresses: vec![address(n)],
            managed,
        };
        let mut book = Book::default();
        book.set_members(vec![member(1, true), member(2, true), member(3, false)]);
        book
    }

    fn standing_of(book: &Book, name: &str) -> Standing {
        let report = book.report(&OWN, &|_| true, Time::from_millis(1_000));
        report
            .iter()
            .find(|peer| peer.name == name)
            .unwrap()
            .standing
    }

    #[test]
    fn what_is_written_is_read_and_nothing_else() {
        for (generation, not_newest) in [(None, false), (Some(u64::MAX), true)] {
            let revision = Revision {
                generation,
                not_newest,
                ..OWN
            };
            let message = Message {
                kind: Kind::Answer,
                nonce: [3; 8],
                revision,
            };
            assert_eq!(Message::decode(&message.encode()), Some(message));
        }
        let bytes = Message {
            kind: Kind::Question,
            nonce: [3; 8],
            revision: OWN,
        }
        .encode();
        for length in 0..LENGTH {
            assert_eq!(Message::decode(&bytes[..length]), None, "{length} bytes");
        }
        assert_eq!(Message::decode(&[&bytes[..], &[0]].concat()), None);
        for at in 0..6 {
            let mut wrong = bytes;
            wrong[at] ^= 0x80;
            assert_eq!(Message::decode(&wrong), None, "byte {at}");
        }
    }

    #[test]
    fn a_question_is_answered_with_as_many_bytes_and_teaches_what_the_asker_runs() {
        let (mut asker, mut answerer) = (book(), book());
        let other = Revision {
            generation: Some(6),
            hash: [6; 16],
            ..OWN
        };
        asker.begin();
        let (to, question) = asker.ask("p1", &OWN, [9; 8]).unwrap();
        assert_eq!(to, [address(1)]);
        let answer = answerer
            .handle(address(2), &question, &other, Time::ZERO)
            .unwrap();
        assert_eq!(answer.len(), question.len());
        assert_eq!(asker.handle(address(1), &answer, &OWN, Time::ZERO), None);
        assert_eq!(standing_of(&asker, "p1"), Standing::Behind);
        assert!(asker.has_answered("p1") && asker.ask("p1", &OWN, [9; 8]).is_none());
        assert_eq!(
            answerer.report(&other, &|_| true, Time::ZERO)[1]
                .runs
                .as_ref()
                .unwrap()
                .generation,
            Some(7)
        );
    }

    #[test]
    fn an_answer_counts_only_for_who_was_asked_and_for_what_was_asked() {
        let mut book = book();
        book.begin();
        book.ask("p1", &OWN, [9; 8]).unwrap();
        let answer = |nonce| {
            Message {
                kind: Kind::Answer,
                nonce,
                revision: OWN,
            }
            .encode()
        };
        for (source, nonce) in [
            (address(2), [9; 8]),
            (address(1), [8; 8]),
            (address(3), [9; 8]),
            (address(99), [9; 8]),
        ] {
            assert_eq!(book.handle(source, &answer(nonce), &OWN, Time::ZERO), None);
            assert_eq!(standing_of(&book, "p1"), Standing::Silent, "{source}");
        }
        book.handle(address(1), &answer([9; 8]), &OWN, Time::ZERO);
        assert_eq!(standing_of(&book, "p1"), Standing::Same);
        book.begin();
        assert_eq!(
            standing_of(&book, "p1"),
            Standing::Silent,
            "an old answer is not one of this round"
        );
    }

    #[test]
    fn strangers_and_plain_peers_get_no_answer_and_a_peer_only_so_many() {
        let mut book = book();
        let question = Message {
            kind: Kind::Question,
            nonce: [1; 8],
            revision: OWN,
        }
        .encode();
        for source in [address(3), address(99)] {
            assert_eq!(book.handle(source, &question, &OWN, Time::ZERO), None);
        }
        let answers = |book: &mut Book, peer, at| {
            (0..1000)
                .filter(|_| book.handle(address(peer), &question, &OWN, at).is_some())
                .count()
        };
        assert_eq!(answers(&mut book, 1, Time::ZERO), 8);
        assert_eq!(
            answers(&mut book, 2, Time::ZERO),
            8,
            "each peer has its own share"
        );
        assert_eq!(answers(&mut book, 1, Time::from_millis(1_000)), 4);
        assert_eq!(answers(&mut book, 1, Time::from_millis(3_600_000)), 8);
    }

    #[test]
    fn without_generations_nobody_can_say_who_is_newer() {
        let other = |generation, hash| Revision {
            generation,
            hash: [hash; 16],
            ..OWN
        };
        assert_eq!(standing(&OWN, &other(None, 7)), Standing::Same);
        assert_eq!(standing(&OWN, &other(Some(8), 8)), Standing::Ahead);
        for differs in [other(None, 8), other(Some(7), 8)] {
            assert_eq!(standing(&OWN, &differs), Standing::Differs);
        }
    }
}
