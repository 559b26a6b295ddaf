//! What the server should know of a client: the records that it keeps there, and the mailboxes that
//! it watches.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use natpunch_types::{Time, backoff};

use super::{MAX_ITEMS, REQUEST_RESEND};
use crate::frame::{Frame as _, Request};
use crate::wire::{Digest, MAX_DATAGRAM, Tag};

/// Which item: a record that we keep at the server, or a mailbox that we watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Name {
    Watch(Tag),
    Put(Tag),
}

pub(super) struct Item {
    /// Our record; none for a watched mailbox.
    pub(super) blob: Option<Arc<[u8]>>,
    /// Of our record, or of what we have of the watched one.
    pub(super) digest: Digest,
    pub(super) due: Time,
    pub(super) tries: u32,
}

/// What the server should know of us, and when each is said (again).
#[derive(Default)]
pub(super) struct Items {
    pub(super) by_name: BTreeMap<Name, Item>,
    pub(super) queue: BTreeSet<(Time, Name)>,
    pub(super) paced_until: Time,
    pub(super) refused: usize,
}

impl Items {
    pub(super) fn schedule(&mut self, name: Name, due: Time, tries: u32) {
        if let Some(item) = self.by_name.get_mut(&name) {
            self.queue.remove(&(item.due, name));
            (item.due, item.tries) = (due, tries);
            self.queue.insert((due, name));
        }
    }

    pub(super) fn remove(&mut self, name: &Name) {
        if let Some(item) = self.by_name.remove(name) {
            self.queue.remove(&(item.due, *name));
        }
    }

    pub(super) fn insert(
        &mut self,
        name: Name,
        blob: Option<Arc<[u8]>>,
        digest: Digest,
        now: Time,
    ) {
        self.remove(&name);
        if self.by_name.len() < MAX_ITEMS {
            self.by_name.insert(
                name,
                Item {
                    blob,
                    digest,
                    due: now,
                    tries: 0,
                },
            );
            self.queue.insert((now, name));
        }
    }

    pub(super) fn restart(&mut self, now: Time) {
        let names: Vec<Name> = self.by_name.keys().copied().collect();
        names
            .into_iter()
            .for_each(|name| self.schedule(name, now, 0));
        self.paced_until = now;
    }

    /// What is to be said again until then, and awaits no answer, is due now: so many at most.
    pub(super) fn bring_forward(&mut self, until: Time, most: usize, now: Time) {
        let awaits_nothing = |(due, name): &&(Time, Name)| {
            *due > now && self.by_name.get(name).is_some_and(|item| item.tries == 0)
        };
        let soon = self.queue.iter().take_while(|(due, _)| *due <= until);
        let soon = soon.filter(awaits_nothing).take(most);
        let soon: Vec<Name> = soon.map(|(_, name)| *name).collect();
        soon.into_iter()
            .for_each(|name| self.schedule(name, now, 0));
    }

    /// The requests that are due, as many as fit in `datagrams`, and notes that they were sent.
    pub(super) fn take_due(
        &mut self,
        datagrams: usize,
        overhead: usize,
        now: Time,
    ) -> Vec<Request> {
        let mut room = datagrams * (MAX_DATAGRAM - overhead);
        let mut requests = Vec::new();
        while let Some((_, name)) = self.queue.first().filter(|(due, _)| *due <= now).copied() {
            let Some(item) = self.by_name.get(&name) else {
                break;
            };
            let request = match (name, &item.blob) {
                (Name::Put(tag), Some(blob)) => Request::Put {
                    tag,
                    digest: item.digest,
                    blob: blob.to_vec(),
                },
                (Name::Watch(tag) | Name::Put(tag), _) => Request::Watch {
                    tag,
                    have: item.digest,
                },
            };
            let length = request.encode().len();
            if length > room {
                break;
            }
            room -= length;
            let wait = backoff(REQUEST_RESEND, item.tries);
            let tries = item.tries.saturating_add(1);
            requests.push(request);
            self.schedule(name, now + wait, tries);
        }
        requests
    }
}
