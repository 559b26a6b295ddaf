//! Mailboxes: the newest sealed record under each tag, and who wants to be told of it.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Duration;

use natpunch_types::PeerKey;

use super::Limits;
use super::session::Slot;
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
    owner: PeerKey,
    expires: Duration,
}

struct Watcher {
    slot: Slot,
    /// What it has.
    seen: Digest,
    expires: Duration,
    tries: usize,
    due: Option<Duration>,
}

/// What is to be told again, and when.
type Due = BTreeSet<(Duration, Tag, Slot)>;

impl Mailbox {
    /// What those who have not yet got the record are to be told now: all, or one.
    fn tell(&mut self, tag: &Tag, only: Option<&Slot>, all_due: &mut Due, now: Duration) -> Vec<(Slot, Notice)> {
        let Some(record) = self.record.as_ref().filter(|record| now < record.expires) else { return Vec::new() };
        let mut told = Vec::new();
        for watcher in &mut self.watchers {
            let concerned = only.is_none_or(|only| watcher.slot == *only);
            if !concerned || watcher.seen == record.digest || now >= watcher.expires {
                continue;
            }
            if let Some(due) = watcher.due.take() {
                all_due.remove(&(due, *tag, watcher.slot));
            }
            watcher.tries = 0;
            watcher.due = Some(now + RESEND.first().copied().unwrap_or_default());
            all_due.extend(watcher.due.map(|due| (due, *tag, watcher.slot)));
            told.push((watcher.slot, Notice::Record { tag: *tag, blob: record.blob.to_vec() }));
        }
        told
    }
}

#[derive(Default)]
pub(super) struct Boxes {
    by_tag: BTreeMap<Tag, Mailbox>,
    /// Records and wishes of each client.
    shares: BTreeMap<PeerKey, usize>,
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

    /// Keeps a record in place of an earlier one; who is to be told what now. `None`: there is no room. The digest is its
    /// owner's word, which only its own readers depend on.
    pub(super) fn put(
        &mut self,
        from: &Slot,
        tag: Tag,
        digest: Digest,
        blob: Vec<u8>,
        limits: &Limits,
        now: Duration,
    ) -> Option<Vec<(Slot, Notice)>> {
        let has_room = self.by_tag.len() < limits.mailboxes;
        let entry = self.by_tag.entry(tag);
        let before = match &entry {
            Entry::Occupied(mailbox) => mailbox.get().record.as_ref(),
            Entry::Vacant(_) => None,
        };
        let freed = before.map_or(0, |record| record.blob.len());
        let owner = before.map(|record| record.owner);
        let bytes = (self.bytes - freed).saturating_add(blob.len());
        if (matches!(entry, Entry::Vacant(_)) && !has_room) || bytes > limits.bytes {
            return None;
        }
        if owner != Some(from.identity) {
            let share = self.shares.get(&from.identity).copied().unwrap_or_default();
            (share < limits.mailboxes_per_client).then_some(())?;
            *self.shares.entry(from.identity).or_default() += 1;
        }
        self.bytes = bytes;
        let mailbox = entry.or_default();
        mailbox.record = Some(Record { blob: blob.into(), digest, owner: from.identity, expires: now + LIFETIME });
        let told = mailbox.tell(&tag, None, &mut self.due, now);
        if let Some(owner) = owner.filter(|owner| *owner != from.identity) {
            self.give_back(&owner);
        }
        Some(told)
    }

    /// Tells a client of a mailbox from now on; what it is to be told now. `None`: there is no room.
    pub(super) fn watch(
        &mut self,
        who: &Slot,
        tag: Tag,
        have: Digest,
        limits: &Limits,
        now: Duration,
    ) -> Option<Vec<(Slot, Notice)>> {
        let has_room = self.by_tag.len() < limits.mailboxes;
        let entry = self.by_tag.entry(tag);
        let watchers = match &entry {
            Entry::Occupied(mailbox) => mailbox.get().watchers.as_slice(),
            Entry::Vacant(_) if has_room => &[],
            Entry::Vacant(_) => return None,
        };
        let known = watchers.iter().position(|watcher| watcher.slot == *who);
        if known.is_none() {
            let share = self.shares.get(&who.identity).copied().unwrap_or_default();
            (share < limits.mailboxes_per_client && watchers.len() < MAX_WATCHERS).then_some(())?;
            *self.shares.entry(who.identity).or_default() += 1;
        }
        let mailbox = entry.or_default();
        let expires = now + LIFETIME;
        match known.and_then(|known| mailbox.watchers.get_mut(known)) {
            Some(watcher) => (watcher.seen, watcher.expires) = (have, expires),
            None => {
                mailbox.watchers.reserve_exact(1);
                mailbox.watchers.push(Watcher { slot: *who, seen: have, expires, tries: 0, due: None });
            }
        }
        Some(mailbox.tell(&tag, Some(who), &mut self.due, now))
    }

    /// Who else watches a mailbox in which this client's record is.
    pub(super) fn readers(&self, owner: &Slot, tag: &Tag, now: Duration) -> impl Iterator<Item = Slot> {
        let is_owners = |record: &Record| record.owner == owner.identity && now < record.expires;
        let mailbox = self.by_tag.get(tag).filter(|mailbox| mailbox.record.as_ref().is_some_and(is_owners));
        let watchers = mailbox.into_iter().flat_map(|mailbox| &mailbox.watchers);
        let others = watchers.filter(move |watcher| watcher.slot.identity != owner.identity && now < watcher.expires);
        others.map(|watcher| watcher.slot)
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
                over.push(watcher.slot.identity);
            }
            if mailbox.record.is_none() && mailbox.watchers.is_empty() {
                self.by_tag.remove(&tag);
            }
            over.iter().for_each(|owner| self.give_back(owner));
        }
    }

    /// Forgets the records and wishes of all of whom this is not true.
    pub(super) fn retain(&mut self, stays: impl Fn(&PeerKey) -> bool) {
        let mut over = Vec::new();
        self.by_tag.retain(|tag, mailbox| {
            if let Some(record) = mailbox.record.take_if(|record| !stays(&record.owner)) {
                self.bytes -= record.blob.len();
                over.push(record.owner);
            }
            for watcher in mailbox.watchers.extract_if(.., |watcher| !stays(&watcher.slot.identity)) {
                if let Some(due) = watcher.due {
                    self.due.remove(&(due, *tag, watcher.slot));
                }
                over.push(watcher.slot.identity);
            }
            mailbox.record.is_some() || !mailbox.watchers.is_empty()
        });
        over.iter().for_each(|owner| self.give_back(owner));
    }

    fn give_back(&mut self, who: &PeerKey) {
        if let Some(share) = self.shares.get_mut(who) {
            *share = share.saturating_sub(1);
            if *share == 0 {
                self.shares.remove(who);
            }
        }
    }
}
