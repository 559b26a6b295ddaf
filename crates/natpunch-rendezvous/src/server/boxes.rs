//! Mailboxes: the newest sealed record under each tag, and who wants to be told of it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Duration;

use natpunch_types::PeerKey;

use super::Limits;
use super::door::SecretNumber;
use super::session::{Slot, Speaker};
use super::shares::{Network, Shares};
use crate::crypto::digest;
use crate::frame::Notice;
use crate::wire::{Digest, Tag};

/// How long a record or a wish is kept after its client last said it.
const LIFETIME: Duration = Duration::from_secs(900);
/// Who may watch one mailbox: the two of a pair, in both families.
const MAX_WATCHERS: usize = 4;
/// When a record is told again while its receipt is not acknowledged.
const RESEND: [Duration; 4] =
    [Duration::from_millis(300), Duration::from_millis(600), Duration::from_millis(1200), Duration::from_millis(2400)];
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
        Self { identity: speaker.slot.identity, network: speaker.network(), secret: speaker.secret }
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
    due: Option<Duration>,
}

/// How a request ended.
pub(super) enum Outcome {
    /// It was done; who is to be told what now.
    Done { digest: Digest, tell: Vec<(Slot, Notice)> },
    /// There is no room.
    Full,
}

#[derive(Default)]
pub(super) struct Boxes {
    by_tag: BTreeMap<Tag, Mailbox>,
    /// Records and wishes of each client, and of each network.
    shares: Shares<PeerKey>,
    networks: Shares<Network>,
    bytes: usize,
    due: BTreeSet<(Duration, Tag, Slot)>,
    sweep_after: Option<Tag>,
}

impl Boxes {
    pub(super) fn len(&self) -> usize {
        self.by_tag.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_tag.is_empty()
    }

    /// Keeps a record in place of an earlier one.
    pub(super) fn put(&mut self, from: &Speaker, tag: Tag, blob: Vec<u8>, limits: &Limits, now: Duration) -> Outcome {
        let digest = digest(&blob);
        let known = self.by_tag.get(&tag);
        let before = known.and_then(|mailbox| mailbox.record.as_ref());
        let freed = before.map_or(0, |record| record.blob.len());
        if (known.is_none() && self.by_tag.len() >= limits.mailboxes)
            || (self.bytes - freed).saturating_add(blob.len()) > limits.bytes
            || !self.has_room(from, before.map(|record| &record.owner), limits)
        {
            return Outcome::Full;
        }
        self.bytes = self.bytes - freed + blob.len();
        let owner = Owner::from(from);
        let record = Record { blob: blob.into(), digest, owner, expires: now + LIFETIME };
        let before = self.by_tag.entry(tag).or_default().record.replace(record);
        if let Some(before) = before {
            self.give_back(&before.owner);
        }
        self.take(owner);
        Outcome::Done { digest, tell: self.tell(&tag, None, now) }
    }

    /// Tells a client of a mailbox from now on.
    pub(super) fn watch(&mut self, who: &Speaker, tag: Tag, have: Digest, limits: &Limits, now: Duration) -> Outcome {
        let watchers = self.by_tag.get(&tag).map(|mailbox| &mailbox.watchers);
        let before = watchers.and_then(|watchers| watchers.iter().find(|watcher| watcher.slot == who.slot));
        let before = before.map(Watcher::owner);
        let crowded = before.is_none() && watchers.is_some_and(|watchers| watchers.len() >= MAX_WATCHERS);
        if (watchers.is_none() && self.by_tag.len() >= limits.mailboxes)
            || crowded
            || !self.has_room(who, before.as_ref(), limits)
        {
            return Outcome::Full;
        }
        let owner = Owner::from(who);
        let (network, secret, expires) = (owner.network, owner.secret, now + LIFETIME);
        let watchers = &mut self.by_tag.entry(tag).or_default().watchers;
        match watchers.iter_mut().find(|watcher| watcher.slot == who.slot) {
            Some(watcher) => {
                (watcher.seen, watcher.expires, watcher.network, watcher.secret) = (have, expires, network, secret);
            }
            None => {
                watchers.reserve_exact(1);
                let (tries, due) = (0, None);
                watchers.push(Watcher { slot: who.slot, network, secret, seen: have, expires, tries, due });
            }
        }
        if let Some(before) = before {
            self.give_back(&before);
        }
        self.take(owner);
        Outcome::Done { digest: have, tell: self.tell(&tag, Some(&who.slot), now) }
    }

    /// A client has what it was told.
    pub(super) fn got(&mut self, who: &Slot, tag: &Tag, digest: &Digest) {
        let Some(mailbox) = self.by_tag.get_mut(tag) else { return };
        let current = mailbox.record.as_ref().is_some_and(|record| record.digest == *digest);
        let Some(watcher) = mailbox.watchers.iter_mut().find(|watcher| watcher.slot == *who) else { return };
        watcher.seen = *digest;
        if let Some(due) = watcher.due.take_if(|_| current) {
            self.due.remove(&(due, *tag, *who));
        }
    }

    /// What those who have not yet got the record are to be told now: all, or one.
    fn tell(&mut self, tag: &Tag, only: Option<&Slot>, now: Duration) -> Vec<(Slot, Notice)> {
        let Some(Mailbox { record, watchers }) = self.by_tag.get_mut(tag) else { return Vec::new() };
        let Some(record) = record.as_ref().filter(|record| now < record.expires) else { return Vec::new() };
        let mut told = Vec::new();
        for watcher in watchers {
            let concerned = only.is_none_or(|only| watcher.slot == *only);
            if !concerned || watcher.seen == record.digest || now >= watcher.expires {
                continue;
            }
            if let Some(due) = watcher.due.take() {
                self.due.remove(&(due, *tag, watcher.slot));
            }
            watcher.tries = 0;
            watcher.due = Some(now + RESEND.first().copied().unwrap_or_default());
            self.due.extend(watcher.due.map(|due| (due, *tag, watcher.slot)));
            told.push((watcher.slot, Notice::Record { tag: *tag, blob: record.blob.to_vec() }));
        }
        told
    }

    pub(super) fn next_due(&self) -> Option<Duration> {
        self.due.first().map(|(due, ..)| *due)
    }

    /// What is to be told again.
    pub(super) fn due(&mut self, now: Duration) -> Vec<(Slot, Notice)> {
        let mut told = Vec::new();
        while let Some((_, tag, slot)) = self.due.first().filter(|(due, ..)| *due <= now).copied() {
            self.due.pop_first();
            let Some(Mailbox { record, watchers }) = self.by_tag.get_mut(&tag) else { continue };
            let Some(watcher) = watchers.iter_mut().find(|watcher| watcher.slot == slot) else { continue };
            watcher.due = None;
            let Some(record) = record.as_ref().filter(|record| now < record.expires) else { continue };
            watcher.tries += 1;
            if now >= watcher.expires {
                continue;
            }
            let due = now + RESEND.get(watcher.tries).copied().unwrap_or(RESEND_SLOWLY);
            watcher.due = Some(due);
            self.due.insert((due, tag, slot));
            told.push((slot, Notice::Record { tag, blob: record.blob.to_vec() }));
        }
        told
    }

    /// Forgets what expired among the next few.
    pub(super) fn sweep(&mut self, now: Duration) {
        let from = self.sweep_after.map_or(Bound::Unbounded, Bound::Excluded);
        let tags: Vec<Tag> =
            self.by_tag.range((from, Bound::Unbounded)).take(SWEEP_SIZE).map(|(tag, _)| *tag).collect();
        self.sweep_after = (tags.len() == SWEEP_SIZE).then(|| tags.last().copied()).flatten();
        for tag in tags {
            let Some(mailbox) = self.by_tag.get_mut(&tag) else { continue };
            let mut over = Vec::new();
            if let Some(record) = mailbox.record.take_if(|record| now >= record.expires) {
                self.bytes -= record.blob.len();
                over.push(record.owner);
            }
            for watcher in mailbox.watchers.extract_if(.., |watcher| now >= watcher.expires) {
                if let Some(due) = watcher.due {
                    self.due.remove(&(due, tag, watcher.slot));
                }
                over.push(watcher.owner());
            }
            if mailbox.record.is_none() && mailbox.watchers.is_empty() {
                self.by_tag.remove(&tag);
            }
            over.iter().for_each(|owner| self.give_back(owner));
        }
    }

    /// Forgets the records and wishes of all of whom this is not true, who came in by this secret.
    pub(super) fn retain(&mut self, stays: impl Fn(&PeerKey, SecretNumber) -> bool) {
        let stays = |owner: &Owner| stays(&owner.identity, owner.secret);
        let mut over = Vec::new();
        self.by_tag.retain(|tag, mailbox| {
            if let Some(record) = mailbox.record.take_if(|record| !stays(&record.owner)) {
                self.bytes -= record.blob.len();
                over.push(record.owner);
            }
            for watcher in mailbox.watchers.extract_if(.., |watcher| !stays(&watcher.owner())) {
                if let Some(due) = watcher.due {
                    self.due.remove(&(due, *tag, watcher.slot));
                }
                over.push(watcher.owner());
            }
            mailbox.record.is_some() || !mailbox.watchers.is_empty()
        });
        over.iter().for_each(|owner| self.give_back(owner));
    }

    /// Whether one more fits in the shares of this client and its network. What it had before in this place makes room.
    fn has_room(&self, who: &Speaker, before: Option<&Owner>, limits: &Limits) -> bool {
        let (identity, network) = (who.slot.identity, who.network());
        let own = before.is_some_and(|before| before.identity == identity);
        let near = before.is_some_and(|before| before.network == network);
        (own || self.shares.of(&identity) < limits.mailboxes_per_client)
            && (near || self.networks.of(&network) < limits.mailboxes_per_network)
    }

    fn take(&mut self, owner: Owner) {
        self.shares.take(owner.identity);
        self.networks.take(owner.network);
    }

    fn give_back(&mut self, owner: &Owner) {
        self.shares.give_back(&owner.identity);
        self.networks.give_back(&owner.network);
    }
}

impl Watcher {
    fn owner(&self) -> Owner {
        Owner { identity: self.slot.identity, network: self.network, secret: self.secret }
    }
}
