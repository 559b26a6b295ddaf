//! What discovery plugins do, in virtual time: a client of the rendezvous server, and a store of
//! sealed records.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use natpunch_types::{Interest, PeerKey, RecordTag, SealedRecord};

use crate::network::HostId;
use crate::rendezvous::Message;

/// First interval between two lookups of a peer that is wanted.
const FASTEST_POLL: Duration = Duration::from_millis(50);
/// Last interval.
const SLOWEST_POLL: Duration = Duration::from_secs(2);
/// A registration is repeated after this, which also keeps the NAT mapping towards the server.
const REGISTER: Duration = Duration::from_secs(20);
/// One way to or from the record store, whatever the transport.
const STORE_DELAY: Duration = Duration::from_millis(30);

/// The rendezvous client of one host.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    me: PeerKey,
    server: SocketAddr,
    next_registration: Duration,
    wanted: BTreeMap<PeerKey, Poll>,
}

#[derive(Debug, Clone, Copy)]
struct Poll {
    at: Duration,
    interval: Duration,
}

impl Client {
    pub(crate) fn new(me: PeerKey, server: SocketAddr, now: Duration) -> Self {
        Self {
            me,
            server,
            next_registration: now,
            wanted: BTreeMap::new(),
        }
    }

    pub(crate) fn server(&self) -> SocketAddr {
        self.server
    }

    pub(crate) fn set_interest(&mut self, interest: &[Interest], now: Duration) {
        let wanted = |key: &PeerKey| {
            interest
                .iter()
                .any(|interest| interest.peer == *key && interest.wanted)
        };
        self.wanted.retain(|key, _| wanted(key));
        for Interest { peer, .. } in interest.iter().filter(|interest| interest.wanted) {
            self.wanted.entry(*peer).or_insert(Poll {
                at: now,
                interval: FASTEST_POLL,
            });
        }
    }

    pub(crate) fn register_anew(&mut self, now: Duration) {
        self.next_registration = now;
    }

    /// Requests that are due.
    pub(crate) fn handle_timeout(&mut self, now: Duration) -> Vec<Message> {
        let mut requests = Vec::new();
        for (peer, poll) in &mut self.wanted {
            if poll.at <= now {
                requests.push(Message::Request {
                    from: self.me,
                    wanted: Some(*peer),
                });
                poll.at = now + poll.interval;
                poll.interval = (poll.interval * 2).min(SLOWEST_POLL);
                self.next_registration = now + REGISTER;
            }
        }
        if self.next_registration <= now {
            requests.push(Message::Request {
                from: self.me,
                wanted: None,
            });
            self.next_registration = now + REGISTER;
        }
        requests
    }

    pub(crate) fn poll_timeout(&self) -> Duration {
        let polls = self.wanted.values().map(|poll| poll.at);
        polls.min().map_or(self.next_registration, |poll| {
            poll.min(self.next_registration)
        })
    }
}

/// Sealed records at some URL, with long-poll: whoever watches a tag hears of a change at once.
#[derive(Debug, Default)]
pub(crate) struct RecordStore {
    published: BTreeMap<HostId, Arc<[SealedRecord]>>,
    watched: BTreeMap<HostId, Vec<RecordTag>>,
    due: BTreeMap<(Duration, u64), Due>,
    sequence: u64,
    /// False while the store cannot be reached.
    pub(crate) down: bool,
}

#[derive(Debug)]
enum Due {
    Publish(HostId, Arc<[SealedRecord]>),
    Deliver(HostId, SealedRecord),
}

impl RecordStore {
    fn schedule(&mut self, at: Duration, due: Due) {
        self.sequence += 1;
        self.due.insert((at, self.sequence), due);
    }

    pub(crate) fn publish(&mut self, host: HostId, records: Arc<[SealedRecord]>, now: Duration) {
        self.schedule(now + STORE_DELAY, Due::Publish(host, records));
    }

    pub(crate) fn watch(&mut self, host: HostId, interest: &[Interest], now: Duration) {
        let tags: Vec<_> = interest
            .iter()
            .map(|interest| interest.inbound_tag)
            .collect();
        let before = self.watched.insert(host, tags.clone()).unwrap_or_default();
        let new =
            |record: &&SealedRecord| tags.contains(&record.tag) && !before.contains(&record.tag);
        let found: Vec<_> = self
            .published
            .values()
            .flat_map(|records| records.iter())
            .filter(new)
            .cloned()
            .collect();
        for record in found {
            self.schedule(now + STORE_DELAY * 2, Due::Deliver(host, record));
        }
    }

    pub(crate) fn forget_watcher(&mut self, host: HostId) {
        self.watched.remove(&host);
    }

    pub(crate) fn poll_timeout(&self) -> Option<Duration> {
        self.due.first_key_value().map(|((at, _), _)| *at)
    }

    /// Records that reach a host now.
    pub(crate) fn handle_timeout(&mut self, now: Duration) -> Vec<(HostId, SealedRecord)> {
        let mut delivered = Vec::new();
        while let Some(entry) = self.due.first_entry() {
            if entry.key().0 > now {
                break;
            }
            match entry.remove() {
                _ if self.down => {}
                Due::Deliver(host, record) => delivered.push((host, record)),
                Due::Publish(host, records) => {
                    for (watcher, tags) in self.watched.clone() {
                        for record in records.iter().filter(|record| tags.contains(&record.tag)) {
                            self.schedule(now + STORE_DELAY, Due::Deliver(watcher, record.clone()));
                        }
                    }
                    self.published.insert(host, records);
                }
            }
        }
        delivered
    }
}
