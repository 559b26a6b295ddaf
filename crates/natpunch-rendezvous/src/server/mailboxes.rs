//! Mailboxes: the newest sealed record under each tag, and the clients that watch it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Bound;
use std::time::Duration;

use natpunch_types::{PeerKey, Time};

use super::egress::Departure;
use super::session::{ClientId, Pushes, Sender};
use super::ticket::SecretNumber;
use super::{Limits, Pacer};
use crate::frame::Notice;
use crate::wire::{Digest, Tag};
use natpunch_types::Usage;
use natpunch_types::{Network, Site};

/// How long a record or a wish is kept after its client last said it.
const LIFETIME: Duration = Duration::from_secs(900);
/// The most watchers of one mailbox: the two of a pair, in both families.
const MAX_WATCHERS: usize = 4;
/// When a record is told again while its receipt is not acknowledged.
const RESEND: [Duration; 4] = [
    Duration::from_millis(300),
    Duration::from_millis(600),
    Duration::from_millis(1200),
    Duration::from_millis(2400),
];
/// And after that, as long as its watcher is registered; it is sent only while the watcher is
/// heard.
const RESEND_SLOWLY: Duration = Duration::from_secs(20);
/// Bytes that a site may have of those that are nearly used up.
const FEW_BYTES: usize = 16 << 10;
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
    /// Who left it; `None`: a client of another process did.
    owner: Option<Owner>,
    expires: Time,
}

/// Of whom something is kept: in whose shares it counts, and by which secret its owner had come in.
#[derive(Clone, Copy)]
struct Owner {
    identity: PeerKey,
    network: Network,
    secret: SecretNumber,
}

impl From<&Sender> for Owner {
    fn from(sender: &Sender) -> Self {
        Self {
            identity: sender.client.identity,
            network: sender.network(),
            secret: sender.secret,
        }
    }
}

struct Watcher {
    client: ClientId,
    network: Network,
    secret: SecretNumber,
    /// With which ticket its session began. In a session it is told again by the schedule only.
    ticket: u64,
    /// What it has.
    seen: Digest,
    expires: Time,
    tries: usize,
    /// Its turn among those that are told, or told again.
    due: Option<Turn>,
    /// Its turn is the first, which it waits for: bytes for it are reserved.
    is_reserved: bool,
}

/// When a watcher is told again, and a number that tells apart those of the same moment.
type Turn = (Time, u64);

/// What is to be told again, and when.
#[derive(Default)]
struct Due {
    turns: BTreeMap<Turn, (Tag, ClientId)>,
    given: u64,
}

impl Due {
    fn insert(&mut self, at: Time, tag: Tag, who: ClientId) -> Turn {
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
    /// What those who have not yet got the record are to be told now: all, or one. The others get
    /// their turn.
    fn tell(
        &mut self,
        tag: &Tag,
        only: Option<&ClientId>,
        due: &mut Due,
        told: &mut Pushes,
        pacer: &mut Pacer<'_>,
    ) {
        let now = pacer.now;
        let Some(record) = self.record.as_ref().filter(|record| now < record.expires) else {
            return;
        };
        for watcher in &mut self.watchers {
            let concerned = only.is_none_or(|only| watcher.client == *only);
            if !concerned || now >= watcher.expires {
                continue;
            }
            if watcher.seen == record.digest {
                due.remove(watcher.due.take());
                continue;
            }
            watcher.tries = 0;
            // What waits for its first turn has paid for it, whatever the record is by then.
            if watcher.is_reserved && watcher.due.is_some() {
                continue;
            }
            due.remove(watcher.due.take());
            watcher.tell(tag, record, due, told, pacer);
        }
    }
}

impl Watcher {
    /// Tells it now, or gives it its turn.
    fn tell(
        &mut self,
        tag: &Tag,
        record: &Record,
        due: &mut Due,
        told: &mut Pushes,
        pacer: &mut Pacer<'_>,
    ) {
        let length = record.blob.len();
        let departure = if std::mem::take(&mut self.is_reserved) {
            match pacer.depart_as_reserved(&self.client, length) {
                true => Departure::Now,
                false => Departure::Refused,
            }
        } else {
            pacer.depart(&self.client, length)
        };
        let again = pacer.now + RESEND.get(self.tries).copied().unwrap_or(RESEND_SLOWLY);
        let at = match departure {
            Departure::Now => {
                told.push((self.client, record.notice(tag)));
                again
            }
            Departure::At(at) => {
                self.is_reserved = true;
                at
            }
            // Nothing has left. A watcher that has just woken says so within a moment, so it is
            // tried again as soon as if the record had been lost.
            Departure::Refused => again,
        };
        self.due = Some(due.insert(at, *tag, self.client));
    }
}

impl Record {
    fn notice(&self, tag: &Tag) -> Notice {
        Notice::Record {
            tag: *tag,
            blob: self.blob.to_vec(),
        }
    }
}

/// How many records and wishes are kept of each client, network and site, and how many bytes of
/// each site.
#[derive(Default)]
struct MailboxUsage {
    clients: Usage<PeerKey>,
    networks: Usage<Network>,
    sites: Usage<Site>,
    bytes: Usage<Site>,
}

#[derive(Default)]
pub(super) struct Mailboxes {
    by_tag: BTreeMap<Tag, Mailbox>,
    usage: MailboxUsage,
    bytes: usize,
    due: Due,
    sweep_after: Option<Tag>,
}

impl Mailboxes {
    pub(super) fn len(&self) -> usize {
        self.by_tag.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_tag.is_empty()
    }

    /// Keeps a record in place of an earlier one, and says who is to be told what now: whether it
    /// is another than before. `None`: there is no room. The digest is its owner's word, which only
    /// its own readers depend on.
    pub(super) fn put(
        &mut self,
        from: &Sender,
        tag: Tag,
        (digest, blob): (Digest, Vec<u8>),
        pacer: &mut Pacer<'_>,
        told: &mut Pushes,
    ) -> Option<bool> {
        let (limits, now) = (pacer.limits, pacer.now);
        let owner = Owner::from(from);
        let has_room = self.has_room_for_mailbox(&owner, limits);
        let entry = self.by_tag.entry(tag);
        let before = match &entry {
            Entry::Occupied(mailbox) => mailbox.get().record.as_ref(),
            Entry::Vacant(_) if has_room => None,
            Entry::Vacant(_) => return None,
        };
        let bytes =
            (self.bytes - before.map_or(0, |record| record.blob.len())).saturating_add(blob.len());
        (bytes <= limits.bytes).then_some(())?;
        // A record that gets no longer takes nothing of what is left for other sites.
        let site = owner.network.site();
        let own = before.filter(|record| {
            let owner = record.owner.as_ref();
            owner.is_some_and(|owner| owner.network.site() == site)
        });
        let own = own.map_or(0, |record| record.blob.len());
        let site_bytes = (self.usage.bytes.of(&site) - own).saturating_add(blob.len());
        let left = limits.bytes - bytes;
        (blob.len() <= own || site_bytes <= left.max(FEW_BYTES)).then_some(())?;
        let is_new = before.is_none_or(|record| record.digest != digest);
        let before = before.map(|record| (record.owner, record.blob.len()));
        self.usage
            .replace(before.and_then(|(owner, _)| owner), owner, limits)?;
        if let Some((Some(before), length)) = before {
            let site = before.network.site();
            self.usage.bytes.give_back_many(&site, length);
        }
        self.usage.bytes.take_many(site, blob.len());
        self.bytes = bytes;
        let mailbox = entry.or_default();
        mailbox.record = Some(Record {
            blob: blob.into(),
            digest,
            owner: Some(owner),
            expires: now + LIFETIME,
        });
        mailbox.tell(&tag, None, &mut self.due, told, pacer);
        Some(is_new)
    }

    /// Keeps a record that a client of another process left, in place of the one here, and says who
    /// is to be told what now. It counts in nobody's share: that process has counted it. False: this
    /// mailbox is not here, or there is no room.
    pub(super) fn adopt(
        &mut self,
        tag: Tag,
        (digest, blob): (Digest, &[u8]),
        pacer: &mut Pacer<'_>,
        told: &mut Pushes,
    ) -> bool {
        let Some(mailbox) = self.by_tag.get_mut(&tag) else {
            return false;
        };
        let before = mailbox.record.as_ref();
        let bytes = self.bytes - before.map_or(0, |record| record.blob.len()) + blob.len();
        if bytes > pacer.limits.bytes {
            return false;
        }
        if let Some(before) = mailbox.record.take() {
            self.usage.let_go(&before);
        }
        self.bytes = bytes;
        mailbox.record = Some(Record {
            blob: blob.into(),
            digest,
            owner: None,
            expires: pacer.now + LIFETIME,
        });
        mailbox.tell(&tag, None, &mut self.due, told, pacer);
        true
    }

    /// The record of a mailbox, and whether a client of this process left it.
    pub(super) fn record(&self, tag: &Tag, now: Time) -> Option<(Digest, &[u8], bool)> {
        let record = self.by_tag.get(tag)?.record.as_ref();
        let record = record.filter(|record| now < record.expires)?;
        Some((record.digest, &record.blob, record.owner.is_some()))
    }

    /// The clients that watch a mailbox.
    pub(super) fn watchers(&self, tag: &Tag, now: Time) -> impl Iterator<Item = ClientId> {
        let watchers = self.by_tag.get(tag).into_iter();
        let watchers = watchers.flat_map(|mailbox| &mailbox.watchers);
        let alive = watchers.filter(move |watcher| now < watcher.expires);
        alive.map(|watcher| watcher.client)
    }

    /// Whether there may be one more mailbox, for this owner's first record or wish.
    fn has_room_for_mailbox(&self, owner: &Owner, limits: &Limits) -> bool {
        let left = limits.mailboxes.saturating_sub(self.by_tag.len());
        self.usage.sites.leaves_room(&owner.network.site(), left)
    }

    /// Tells a client of a mailbox from now on, and says what it is to be told now. `None`: there
    /// is no room.
    pub(super) fn watch(
        &mut self,
        who: &Sender,
        tag: Tag,
        have: Digest,
        pacer: &mut Pacer<'_>,
        told: &mut Pushes,
    ) -> Option<()> {
        let (limits, now) = (pacer.limits, pacer.now);
        let owner = Owner::from(who);
        let has_room = self.has_room_for_mailbox(&owner, limits);
        let entry = self.by_tag.entry(tag);
        let watchers = match &entry {
            Entry::Occupied(mailbox) => mailbox.get().watchers.as_slice(),
            Entry::Vacant(_) if has_room => &[],
            Entry::Vacant(_) => return None,
        };
        let known = watchers
            .iter()
            .position(|watcher| watcher.client == who.client);
        let before = known
            .and_then(|known| watchers.get(known))
            .map(Watcher::owner);
        (before.is_some() || watchers.len() < MAX_WATCHERS).then_some(())?;
        self.usage.replace(before, owner, limits)?;
        let (network, secret, expires) = (owner.network, owner.secret, now + LIFETIME);
        let mailbox = entry.or_default();
        match known.and_then(|known| mailbox.watchers.get_mut(known)) {
            Some(watcher) => {
                let same_session = watcher.ticket == who.ticket;
                (
                    watcher.seen,
                    watcher.expires,
                    watcher.network,
                    watcher.secret,
                    watcher.ticket,
                ) = (have, expires, network, secret, who.ticket);
                // It was told in this session and has not said that it got it: the schedule tells
                // it again, however often it asks.
                let record = mailbox.record.as_ref();
                let has_it = record.is_some_and(|record| record.digest == have);
                if same_session && watcher.due.is_some() && !has_it {
                    return Some(());
                }
            }
            None => {
                mailbox.watchers.reserve_exact(1);
                mailbox.watchers.push(Watcher {
                    client: who.client,
                    network,
                    secret,
                    ticket: who.ticket,
                    seen: have,
                    expires,
                    tries: 0,
                    due: None,
                    is_reserved: false,
                });
            }
        }
        mailbox.tell(&tag, Some(&who.client), &mut self.due, told, pacer);
        Some(())
    }

    /// The other clients that watch a mailbox with this client's record.
    pub(super) fn readers(
        &self,
        owner: &ClientId,
        tag: &Tag,
        now: Time,
    ) -> impl Iterator<Item = ClientId> {
        let mailbox = self
            .by_tag
            .get(tag)
            .filter(|_| self.is_owner(owner, tag, now));
        let watchers = mailbox.into_iter().flat_map(|mailbox| &mailbox.watchers);
        let others = watchers.filter(move |watcher| {
            watcher.client.identity != owner.identity && now < watcher.expires
        });
        others.map(|watcher| watcher.client)
    }

    /// Whether the record of a mailbox is this client's.
    pub(super) fn is_owner(&self, who: &ClientId, tag: &Tag, now: Time) -> bool {
        let record = self.by_tag.get(tag).and_then(|it| it.record.as_ref());
        let owner = record.filter(|record| now < record.expires);
        let owner = owner.and_then(|record| record.owner.as_ref());
        owner.is_some_and(|owner| owner.identity == who.identity)
    }

    /// A client has what it was told.
    pub(super) fn got(&mut self, who: &ClientId, tag: &Tag, digest: &Digest) {
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
            .find(|watcher| watcher.client == *who)
        else {
            return;
        };
        watcher.seen = *digest;
        self.due.remove(watcher.due.take_if(|_| current));
    }

    pub(super) fn next_due(&self) -> Option<Time> {
        self.due.turns.first_key_value().map(|((due, _), _)| *due)
    }

    /// What is to be told whose turn has come.
    pub(super) fn due(&mut self, pacer: &mut Pacer<'_>) -> Pushes {
        let now = pacer.now;
        let mut told = Vec::new();
        while let Some(turn) = self
            .due
            .turns
            .first_entry()
            .filter(|turn| turn.key().0 <= now)
        {
            let (tag, client) = turn.remove();
            let Some(Mailbox { record, watchers }) = self.by_tag.get_mut(&tag) else {
                continue;
            };
            let Some(watcher) = watchers.iter_mut().find(|watcher| watcher.client == client) else {
                continue;
            };
            watcher.due = None;
            let Some(record) = record.as_ref().filter(|record| now < record.expires) else {
                continue;
            };
            if now >= watcher.expires {
                continue;
            }
            watcher.tries += usize::from(!watcher.is_reserved);
            watcher.tell(&tag, record, &mut self.due, &mut told, pacer);
        }
        told
    }

    /// Forgets what expired among the next few.
    pub(super) fn sweep(&mut self, now: Time) {
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
                self.usage.let_go(&record);
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
            over.iter().for_each(|owner| self.usage.give_back(owner));
        }
    }

    /// Forgets the records and wishes of all of whom this is not true, who came in by this secret.
    pub(super) fn retain(&mut self, stays: impl Fn(&PeerKey, SecretNumber) -> bool) {
        let stays = |owner: &Owner| stays(&owner.identity, owner.secret);
        let mut over = Vec::new();
        self.by_tag.retain(|_, mailbox| {
            let goes = |record: &mut Record| record.owner.is_some_and(|owner| !stays(&owner));
            if let Some(record) = mailbox.record.take_if(goes) {
                self.bytes -= record.blob.len();
                self.usage.let_go(&record);
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
        over.iter().for_each(|owner| self.usage.give_back(owner));
    }
}

impl MailboxUsage {
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
            self.sites.take(owner.network.site());
        }
        Some(())
    }

    /// A record is gone.
    fn let_go(&mut self, record: &Record) {
        if let Some(owner) = &record.owner {
            let site = owner.network.site();
            self.bytes.give_back_many(&site, record.blob.len());
            self.give_back(owner);
        }
    }

    fn give_back(&mut self, owner: &Owner) {
        self.clients.give_back(&owner.identity);
        self.networks.give_back(&owner.network);
        self.sites.give_back(&owner.network.site());
    }
}

impl Watcher {
    fn owner(&self) -> Owner {
        Owner {
            identity: self.client.identity,
            network: self.network,
            secret: self.secret,
        }
    }
}
