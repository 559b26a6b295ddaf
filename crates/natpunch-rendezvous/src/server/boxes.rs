//! Mailboxes: the newest sealed record under each tag, and who wants to be told of it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Bound;
use std::time::Duration;

use natpunch_types::PeerKey;

use super::Limits;
use super::door::SecretNumber;
use super::session::{Slot, Speaker, Told};
use super::shares::{Network, Shares};
use crate::frame::Notice;
use crate::wire::{Digest, Tag};

/// How long a record or a wish is kept after its client last said it.
const LIFETIME: Duration = Duration::from_secs(900);
/// Who may watch one mailbox: the two of a pair, in both families.
const MAX_WATCHERS: usize = 4;
/// When a record is told again while its receipt is not acknowledged.
const RESEND: [Duration; 4] = [
    Duration::from_millis(300),
    Duration::from_millis(600),
    Duration::from_millis(1200),
    Duration::from_millis(2400),
];
/// And after that, as long as its watcher is registered.
const RESEND_SLOWLY: Duration = Duration::from_secs(20);
/// Mailboxes looked through in one sweep.
const SWEEP_SIZE: usize = 4_096;

#[derive(Default)]
struct Mailbox {
    record: Option<Record>,
    watchers: Vec<Watcher>,
}

struct Record {
    blob: Box<[u8]>,
    digest: Digest,
    owner: Owner,
    expires: Duration,
}

/// Of whom something is kept: in whose shares it counts, and by which secret its owner had come in.
#[derive(Clone, Copy)]
struct Owner {
    identity: PeerKey,
    network: Network,
    secret: SecretNumber,
}

impl From<&Speaker> for Owner {
    fn from(speaker: &Speaker) -> Self {
        Self {
            identity: speaker.slot.identity,
            network: speaker.network(),
            secret: speaker.secret,
        }
    }
}

struct Watcher {
    slot: Slot,
    network: Network,
    secret: SecretNumber,
    /// What it has.
    seen: Digest,
    expires: Duration,
    tries: usize,
    /// Its turn among those that are told again.
    due: Option<Turn>,
}

/// When somebody is told again, and which one among those of the same moment.
type Turn = (Duration, u64);

/// What is to be told again, and when.
#[derive(Default)]
struct Due {
    turns: BTreeMap<Turn, (Tag, Slot)>,
    given: u64,
}

impl Due {
    fn insert(&mut self, at: Duration, tag: Tag, who: Slot) -> Turn {
        self.given += 1;
        let turn = (at, self.given);
        self.turns.insert(turn, (tag, who));
        turn
    }

    fn remove(&mut self, turn: Option<Turn>) {
        if let Some(turn) = turn {
            self.turns.remove(&turn);
        }
    }
}

impl Mailbox {
    /// What those who have not yet got the record are to be told now: all, or one.
    fn tell(
        &mut self,
        tag: &Tag,
        only: Option<&Slot>,
        due: &mut Due,
        told: &mut Told,
        now: Duration,
    ) {
        let Some(record) = self.record.as_ref().filter(|record| now < record.expires) else {
            return;
        };
        for watcher in &mut self.watchers {
            let concerned = only.is_none_or(|only| watcher.slot == *only);
            if !concerned || watcher.seen == record.digest || now >= watcher.expires {
                continue;
            }
            due.remove(watcher.due.take());
            watcher.tries = 0;
            watcher.due = Some(due.insert(
                now + RESEND.first().copied().unwrap_or_default(),
                *tag,
                watcher.slot,
            ));
            told.push((
                watcher.slot,
                Notice::Record {
                    tag: *tag,
                    blob: record.blob.to_vec(),
                },
            ));
        }
    }
}

/// How many records and wishes are kept of each client, and of each network.
#[derive(Default)]
struct Kept {
    clients: Shares<PeerKey>,
    networks: Shares<Network>,
}

#[derive(Default)]
pub(super) struct Boxes {
    by_tag: BTreeMap<Tag, Mailbox>,
    kept: Kept,
    bytes: usize,
    due: Due,
    sweep_after: Option<Tag>,
}

impl Boxes {
    pub(super) fn len(&self) -> usize {
        self.by_tag.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_tag.is_empty()
    }

    /// Keeps a record in place of an earlier one, and says who is to be told what now. `None`:
    /// there is no room. The digest is its owner's word, which only its own readers depend on.
    pub(super) fn put(
        &mut self,
        from: &Speaker,
        tag: Tag,
        (digest, blob): (Digest, Vec<u8>),
        limits: &Limits,
        told: &mut Told,
        now: Duration,
    ) -> Option<()> {
        let has_room = self.by_tag.len() < limits.mailboxes;
        let entry = self.by_tag.entry(tag);
        let before = match &entry {
            Entry::Occupied(mailbox) => mailbox.get().record.as_ref(),
            Entry::Vacant(_) if has_room => None,
            Entry::Vacant(_) => return None,
        };
        let bytes =
            (self.bytes - before.map_or(0, |record| record.blob.len())).saturating_add(blob.len());
        (bytes <= limits.bytes).then_some(())?;
        let owner = Owner::from(from);
        self.kept
            .replace(before.map(|record| record.owner), owner, limits)?;
        self.bytes = bytes;
        let mailbox = entry.or_default();
        mailbox.record = Some(Record {
            blob: blob.into(),
            digest,
            owner,
            expires: now + LIFETIME,
        });
        mailbox.tell(&tag, None, &mut self.due, told, now);
        Some(())
    }

    /// Tells a client of a mailbox from now on, and says what it is to be told now. `None`: there
    /// is no room.
    pub(super) fn watch(
        &mut self,
        who: &Speaker,
        tag: Tag,
        have: Digest,
        limits: &Limits,
        told: &mut Told,
        now: Duration,
    ) -> Option<()> {
        let has_room = self.by_tag.len() < limits.mailboxes;
        let entry = self.by_tag.entry(tag);
        let watchers = match &entry {
            Entry::Occupied(mailbox) => mailbox.get().watchers.as_slice(),
            Entry::Vacant(_) if has_room => &[],
            Entry::Vacant(_) => return None,
        };
        let known = watchers.iter().position(|watcher| watcher.slot == who.slot);
        let before = known
            .and_then(|known| watchers.get(known))
            .map(Watcher::owner);
        (before.is_some() || watchers.len() < MAX_WATCHERS).then_some(())?;
        let owner = Owner::from(who);
        self.kept.replace(before, owner, limits)?;
        let (network, secret, expires) = (owner.network, owner.secret, now + LIFETIME);
        let mailbox = entry.or_default();
        match known.and_then(|known| mailbox.watchers.get_mut(known)) {
            Some(watcher) => {
                (
                    watcher.seen,
                    watcher.expires,
                    watcher.network,
                    watcher.secret,
                ) = (have, expires, network, secret);
            }
            None => {
                mailbox.watchers.reserve_exact(1);
                let (tries, due) = (0, None);
                mailbox.watchers.push(Watcher {
                    slot: who.slot,
                    network,
                    secret,
                    seen: have,
                    expires,
                    tries,
                    due,
                });
            }
        }
        mailbox.tell(&tag, Some(&who.slot), &mut self.due, told, now);
        Some(())
    }

    /// Who else watches a mailbox in which this client's record is.
    pub(super) fn readers(
        &self,
        owner: &Slot,
        tag: &Tag,
        now: Duration,
    ) -> impl Iterator<Item = Slot> {
        let is_owners =
            |record: &Record| record.owner.identity == owner.identity && now < record.expires;
        let mailbox = self
            .by_tag
            .get(tag)
            .filter(|mailbox| mailbox.record.as_ref().is_some_and(is_owners));
        let watchers = mailbox.into_iter().flat_map(|mailbox| &mailbox.watchers);
        let others = watchers.filter(move |watcher| {
            watcher.slot.identity != owner.identity && now < watcher.expires
        });
        others.map(|watcher| watcher.slot)
    }

    /// A client has what it was told.
    pub(super) fn got(&mut self, who: &Slot, tag: &Tag, digest: &Digest) {
        let Some(mailbox) = self.by_tag.get_mut(tag) else {
            return;
        };
        let current = mailbox
            .record
            .as_ref()
            .is_some_and(|record| record.digest == *digest);
        let Some(watcher) = mailbox
            .watchers
            .iter_mut()
            .find(|watcher| watcher.slot == *who)
        else {
            return;
        };
        watcher.seen = *digest;
        self.due.remove(watcher.due.take_if(|_| current));
    }

    pub(super) fn next_due(&self) -> Option<Duration> {
        self.due.turns.first_key_value().map(|((due, _), _)| *due)
    }

    /// What is to be told again.
    pub(super) fn due(&mut self, now: Duration) -> Told {
        let mut told = Vec::new();
        while let Some(turn) = self
            .due
            .turns
            .first_entry()
            .filter(|turn| turn.key().0 <= now)
        {
            let (tag, slot) = turn.remove();
            let Some(Mailbox { record, watchers }) = self.by_tag.get_mut(&tag) else {
                continue;
            };
            let Some(watcher) = watchers.iter_mut().find(|watcher| watcher.slot == slot) else {
                continue;
            };
            watcher.due = None;
            let Some(record) = record.as_ref().filter(|record| now < record.expires) else {
                continue;
            };
            watcher.tries += 1;
            if now >= watcher.expires {
                continue;
            }
            let wait = RESEND.get(watcher.tries).copied().unwrap_or(RESEND_SLOWLY);
            watcher.due = Some(self.due.insert(now + wait, tag, slot));
            told.push((
                slot,
                Notice::Record {
                    tag,
                    blob: record.blob.to_vec(),
                },
            ));
        }
        told
    }

    /// Forgets what expired among the next few.
    pub(super) fn sweep(&mut self, now: Duration) {
        let from = self.sweep_after.map_or(Bound::Unbounded, Bound::Excluded);
        let tags: Vec<Tag> = self
            .by_tag
            .range((from, Bound::Unbounded))
            .take(SWEEP_SIZE)
            .map(|(tag, _)| *tag)
            .collect();
        self.sweep_after = (tags.len() == SWEEP_SIZE)
            .then(|| tags.last().copied())
            .flatten();
        for tag in tags {
            let Some(mailbox) = self.by_tag.get_mut(&tag) else {
                continue;
            };
            let mut over = Vec::new();
            if let Some(record) = mailbox.record.take_if(|record| now >= record.expires) {
                self.bytes -= record.blob.len();
                over.push(record.owner);
            }
            for watcher in mailbox
                .watchers
                .extract_if(.., |watcher| now >= watcher.expires)
            {
                self.due.remove(watcher.due);
                over.push(watcher.owner());
            }
            if mailbox.record.is_none() && mailbox.watchers.is_empty() {
                self.by_tag.remove(&tag);
            }
            over.iter().for_each(|owner| self.kept.give_back(owner));
        }
    }

    /// Forgets the records and wishes of all of whom this is not true, who came in by this secret.
    pub(super) fn retain(&mut self, stays: impl Fn(&PeerKey, SecretNumber) -> bool) {
        let stays = |owner: &Owner| stays(&owner.identity, owner.secret);
        let mut over = Vec::new();
        self.by_tag.retain(|_, mailbox| {
            if let Some(record) = mailbox.record.take_if(|record| !stays(&record.owner)) {
                self.bytes -= record.blob.len();
                over.push(record.owner);
            }
            for watcher in mailbox
                .watchers
                .extract_if(.., |watcher| !stays(&watcher.owner()))
            {
                self.due.remove(watcher.due);
                over.push(watcher.owner());
            }
            mailbox.record.is_some() || !mailbox.watchers.is_empty()
        });
        over.iter().for_each(|owner| self.kept.give_back(owner));
    }
}

impl Kept {
    /// Counts one for its owner, in place of what was there before. `None`, and nothing changes: it
    /// does not fit in the shares of the client and its network.
    fn replace(&mut self, before: Option<Owner>, owner: Owner, limits: &Limits) -> Option<()> {
        let own = before.is_some_and(|before| before.identity == owner.identity);
        let near = before.is_some_and(|before| before.network == owner.network);
        let has_room = (own || self.clients.of(&owner.identity) < limits.mailboxes_per_client)
            && (near || self.networks.of(&owner.network) < limits.mailboxes_per_network);
        has_room.then_some(())?;
        if !(own && near) {
            before.iter().for_each(|before| self.give_back(before));
            self.clients.take(owner.identity);
            self.networks.take(owner.network);
        }
        Some(())
    }

    fn give_back(&mut self, owner: &Owner) {
        self.clients.give_back(&owner.identity);
        self.networks.give_back(&owner.network);
    }
}

impl Watcher {
    fn owner(&self) -> Owner {
        Owner {
            identity: self.slot.identity,
            network: self.network,
            secret: self.secret,
        }
    }
}
