//! Who is asked for whom, what is kept for others, and what is passed on. Pure: it is told the time
//! and does nothing itself.
//!
//! A node that looks for a peer leaves its own record for that peer with others to which it has a
//! direct path, a few at a time, in turns. A helper keeps the record, passes it to the peer as soon
//! as it has a direct path to it, and answers with what the peer has left for the node. Nothing is
//! acknowledged: whoever still looks says it again, ever more seldom. A node that moves leaves its new
//! records once, for all. One that looks for nobody and stays where it is says nothing.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use natpunch_types::{Interest, PeerKey, Rate, RateBudget, RecordTag, SealedRecord, Time};

use crate::held::Held;
use crate::wire::{Message, RECORD_MAX, Way};

/// A peer is looked for this long before others are asked: a server that is there is faster.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);
/// Others that are asked for one peer at once ...
pub(crate) const HELPERS: usize = 4;
/// ... and how long after that the next are. When all were asked, there is a pause, each twice as
/// long as the one before, up to the longest.
pub(crate) const TURN: Duration = Duration::from_secs(1);
pub(crate) const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// Others that are asked for one peer between two pauses.
const MOST_ASKED: usize = 16;
/// A node that has moved says so to the peers that it has a direct path to, or had, before it knows
/// which of them it has lost: its records are left for so many of them ...
const MOST_ANNOUNCED: usize = 32;
/// ... this long after they changed, so that the first of several changes waits for the others, and
/// if they changed this soon after the network.
const SETTLE: Duration = Duration::from_millis(100);
const MOVED: Duration = Duration::from_secs(10);
/// What this node sends of its own accord, per second and at once. The host has limits of its own.
const SENT: Rate = Rate::per_second(32, 128);

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Send this message.
    Send {
        /// To whom, a peer with a direct path.
        to: PeerKey,
        /// The message.
        payload: Vec<u8>,
    },
    /// A record that a peer left for this node.
    Tell(SealedRecord),
}

/// Where a helper stands in the order of turns: those with an endpoint in the mesh file first,
/// which are likely to have a path to everybody.
type Place = (bool, PeerKey);

/// A peer that is looked for.
#[derive(Debug)]
struct Search {
    due: Time,
    last: Option<Time>,
    pause: Duration,
    /// Who was asked last, and how many since the last pause.
    after: Option<Place>,
    asked: usize,
}

impl Search {
    fn new(now: Time) -> Self {
        Self {
            due: now + PATIENCE,
            last: None,
            pause: TURN,
            after: None,
            asked: 0,
        }
    }

    /// Something is new: others are asked soon. Before its first turn a search waits for servers,
    /// whatever is new.
    fn hurry(&mut self, now: Time) {
        if let Some(last) = self.last {
            self.due = self.due.min((last + TURN).max(now));
        }
    }
}

/// What is known of a peer that runs natpunch.
#[derive(Debug)]
struct Known {
    inbound_tag: RecordTag,
    outbound_tag: RecordTag,
    is_direct: bool,
    has_endpoint: bool,
    search: Option<Search>,
    /// The record of this peer's that was told last.
    told: Option<Arc<[u8]>>,
}

/// One node's part in the gossip.
#[derive(Debug)]
pub struct Gossip {
    own: PeerKey,
    peers: BTreeMap<PeerKey, Known>,
    /// This node's own records, by the tag of the peer that each is for.
    records: BTreeMap<RecordTag, Arc<[u8]>>,
    held: Held,
    /// When the network changed last, and when that is to be announced.
    moved: Option<Time>,
    announce: Option<Time>,
    sent: RateBudget,
    effects: VecDeque<Effect>,
}

impl Gossip {
    /// Of the node with this key.
    pub fn new(own: PeerKey) -> Self {
        Self {
            own,
            peers: BTreeMap::new(),
            records: BTreeMap::new(),
            held: Held::default(),
            moved: None,
            announce: None,
            sent: RateBudget::new(SENT),
            effects: VecDeque::new(),
        }
    }

    /// The peers, complete.
    pub fn handle_peers(&mut self, interests: &[Interest], now: Time) {
        let mut before = std::mem::take(&mut self.peers);
        let mut newly_direct = Vec::new();
        // A peer without natpunch has no record, and nobody has one for it.
        let managed = interests
            .iter()
            .filter(|interest| interest.inbound_tag != RecordTag::NONE);
        for interest in managed.filter(|interest| interest.peer != self.own) {
            let known = before.remove(&interest.peer);
            let same = known.filter(|known| known.inbound_tag == interest.inbound_tag);
            let mut known = same.unwrap_or(Known {
                inbound_tag: interest.inbound_tag,
                outbound_tag: interest.outbound_tag,
                is_direct: false,
                has_endpoint: false,
                search: None,
                told: None,
            });
            if interest.is_direct && !known.is_direct {
                newly_direct.push(interest.peer);
            }
            known.is_direct = interest.is_direct;
            known.has_endpoint = interest.endpoint.is_some();
            known.search = interest
                .wanted
                .then(|| known.search.take().unwrap_or_else(|| Search::new(now)));
            self.peers.insert(interest.peer, known);
        }
        let Self { peers, held, .. } = self;
        held.restrict(|peer| peers.contains_key(peer));
        for receiver in &newly_direct {
            for sender in self.held.senders_to(*receiver) {
                self.pass(sender, *receiver, now);
            }
        }
        if !newly_direct.is_empty() {
            self.hurry(now);
        }
    }

    /// This node's records, complete.
    pub fn handle_records(&mut self, records: &[SealedRecord], now: Time) {
        let carried = records
            .iter()
            .filter(|record| (1..=RECORD_MAX).contains(&record.blob.len()));
        self.records = carried
            .map(|record| (record.tag, record.blob.clone()))
            .collect();
        if self.moved.is_some_and(|moved| now.since(moved) < MOVED) {
            self.announce = Some(now + SETTLE);
        }
        self.hurry(now);
    }

    /// The network changed: the search begins anew.
    pub fn handle_network_change(&mut self, now: Time) {
        self.moved = Some(now);
        let known = self.peers.values_mut();
        for search in known.filter_map(|known| known.search.as_mut()) {
            (search.pause, search.asked) = (TURN, 0);
        }
        self.hurry(now);
    }

    fn hurry(&mut self, now: Time) {
        let known = self.peers.values_mut();
        known
            .filter_map(|known| known.search.as_mut())
            .for_each(|search| search.hurry(now));
    }

    /// A message of a peer.
    pub fn handle_message(&mut self, from: PeerKey, payload: &[u8], now: Time) {
        let Some(message) = Message::from_bytes(payload) else {
            return;
        };
        // Both are members, and two of them: who is told by one peer of itself, or of this node, is
        // told nothing.
        let is_member = |peer| self.peers.contains_key(peer);
        if !is_member(&from) || !is_member(&message.peer) || message.peer == from {
            return;
        }
        match message.way {
            Way::For => self.take_for(from, message.peer, message.record, now),
            Way::From => self.take_from(message.peer, message.record),
        }
    }

    /// One peer leaves a record for another.
    fn take_for(&mut self, from: PeerKey, to: PeerKey, record: &[u8], now: Time) {
        self.held.keep(from, to, record, now);
        self.pass(from, to, now);
        self.pass(to, from, now);
    }

    /// Passes on what one peer has left for another, if the other can be reached.
    fn pass(&mut self, from: PeerKey, to: PeerKey, now: Time) {
        if !self.peers.get(&to).is_some_and(|known| known.is_direct) {
            return;
        }
        let Some(record) = self.held.pass(from, to, now) else {
            return;
        };
        let message = Message {
            way: Way::From,
            peer: from,
            record: &record,
        };
        let payload = message.to_bytes();
        self.effects
            .extend(payload.map(|payload| Effect::Send { to, payload }));
    }

    /// A helper passes on what a peer has left for this node. Whether it is the peer's and newer
    /// than what is known is seen where it is opened.
    fn take_from(&mut self, peer: PeerKey, record: &[u8]) {
        let Some(known) = self.peers.get_mut(&peer) else {
            return;
        };
        if known.told.as_deref() == Some(record) {
            return;
        }
        let record: Arc<[u8]> = record.into();
        known.told = Some(record.clone());
        self.effects.push_back(Effect::Tell(SealedRecord {
            tag: known.inbound_tag,
            blob: record,
        }));
    }

    /// All with a direct path, in the order of turns.
    fn helpers(&self) -> Vec<Place> {
        let direct = self.peers.iter().filter(|(_, known)| known.is_direct);
        let mut helpers: Vec<Place> = direct
            .map(|(key, known)| (!known.has_endpoint, *key))
            .collect();
        helpers.sort_unstable();
        helpers
    }

    /// Leaves the newest records for the peers that this node has, or had, a direct path to.
    fn announce(&mut self, helpers: &[Place], now: Time) {
        for (_, peer) in helpers.iter().take(MOST_ANNOUNCED) {
            let record = self.peers.get(peer);
            let record = record.and_then(|known| self.records.get(&known.outbound_tag));
            let Some(payload) = record.and_then(|record| leave(*peer, record)) else {
                continue;
            };
            let others = helpers.iter().filter(|(_, helper)| helper != peer);
            for (_, helper) in others.take(HELPERS) {
                if !self.sent.take(now) {
                    return;
                }
                let (to, payload) = (*helper, payload.clone());
                self.effects.push_back(Effect::Send { to, payload });
            }
        }
    }

    /// Asks those whose turn it is.
    pub fn handle_timeout(&mut self, now: Time) {
        let helpers = self.helpers();
        if self.announce.take_if(|due| *due <= now).is_some() {
            self.announce(&helpers, now);
        }
        let Self {
            peers,
            records,
            sent,
            effects,
            ..
        } = self;
        for (wanted, known) in peers.iter_mut() {
            let Some(search) = known.search.as_mut().filter(|search| search.due <= now) else {
                continue;
            };
            let record = records.get(&known.outbound_tag);
            let message = record.and_then(|record| leave(*wanted, record));
            let asked = match message {
                Some(payload) => search.ask(*wanted, &helpers, |to| {
                    let may_send = sent.take(now);
                    if may_send {
                        let payload = payload.clone();
                        effects.push_back(Effect::Send { to, payload });
                    }
                    may_send
                }),
                // Without a record there is nothing to say yet.
                None => Asked::All,
            };
            search.last = Some(now);
            search.due = match asked {
                Asked::Some => now + TURN,
                Asked::All => {
                    let pause = search.pause;
                    search.pause = (pause * 2).min(LONGEST_PAUSE);
                    search.asked = 0;
                    now + pause
                }
            };
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called.
    pub fn poll_timeout(&self) -> Option<Time> {
        let searches = self
            .peers
            .values()
            .filter_map(|known| known.search.as_ref());
        searches.map(|search| search.due).chain(self.announce).min()
    }

    /// The next thing to do.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Whether there is anybody to ask.
    pub fn has_helpers(&self) -> bool {
        self.peers.values().any(|known| known.is_direct)
    }
}

/// The message by which this node's record for a peer is left with another.
fn leave(peer: PeerKey, record: &[u8]) -> Option<Vec<u8>> {
    let way = Way::For;
    Message { way, peer, record }.to_bytes()
}

/// How far a search is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// There are others to ask.
    Some,
    /// All were asked, or as many as may be before a pause.
    All,
}

impl Search {
    /// Asks the next few of the helpers, in turns.
    fn ask(
        &mut self,
        wanted: PeerKey,
        helpers: &[Place],
        mut send: impl FnMut(PeerKey) -> bool,
    ) -> Asked {
        let others = helpers.iter().filter(|(_, helper)| *helper != wanted);
        let count = others.clone().count();
        // On from who was asked last, and from the first again after the last.
        let rest = others.clone().filter(|place| Some(**place) > self.after);
        let next: Vec<Place> = rest
            .chain(others)
            .take(HELPERS.min(count))
            .copied()
            .collect();
        for place in next {
            if !send(place.1) {
                return Asked::Some;
            }
            self.after = Some(place);
            self.asked += 1;
        }
        if self.asked >= count.min(MOST_ASKED) {
            Asked::All
        } else {
            Asked::Some
        }
    }
}

#[cfg(test)]
mod tests;
