//! Keeps this node's records on the server: puts what is new at once, and all of it again before it
//! expires there.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use natpunch_plugin::{RecordTag, SealedRecord};
use natpunch_types::lock;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::client::{Client, Error, Etag, Polled};
use crate::{Backoff, Feeds, Reporter};

/// `natpunch serve` keeps a record for an hour.
const REFRESH: Duration = Duration::from_secs(15 * 60);
/// When to try again a server that takes no records.
const UNSUPPORTED: Duration = Duration::from_secs(5 * 60);
/// A record that somebody else replaced is put again after this time: two who fight over a tag must
/// not do it hot.
const CONTESTED: Duration = Duration::from_secs(10);
const CONCURRENT_PUTS: usize = 8;

/// This node's records and what is known of them on the server.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    entries: Mutex<BTreeMap<RecordTag, Entry>>,
    changed: Notify,
}

#[derive(Debug)]
struct Entry {
    blob: Arc<[u8]>,
    /// The version that our last put made.
    etag: Option<Etag>,
    /// When to put it (again).
    due: Instant,
    put: Option<Instant>,
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<RecordTag, Entry>> {
        lock(&self.entries)
    }

    /// Takes the complete new set over. Records that did not change stay as they are.
    fn replace(&self, records: &[SealedRecord], now: Instant) {
        let mut entries = self.lock();
        let mut old = std::mem::take(&mut *entries);
        for record in records {
            let kept = old
                .remove(&record.tag)
                .filter(|entry| entry.blob == record.blob);
            let new = || Entry {
                blob: record.blob.clone(),
                etag: None,
                due: now,
                put: None,
            };
            entries.insert(record.tag, kept.unwrap_or_else(new));
        }
    }

    /// The records whose time has come, and when the next one's comes.
    fn due(&self, now: Instant) -> (Vec<SealedRecord>, Option<Instant>) {
        let entries = self.lock();
        let due = entries.iter().filter(|(_, entry)| entry.due <= now);
        let records = due
            .map(|(tag, entry)| SealedRecord {
                tag: *tag,
                blob: entry.blob.clone(),
            })
            .collect();
        (
            records,
            entries
                .values()
                .map(|entry| entry.due)
                .filter(|due| *due > now)
                .min(),
        )
    }

    /// Notes what came of a put, unless the record is another one by now.
    fn settle(&self, record: &SealedRecord, etag: Option<Etag>, due: Instant, now: Instant) {
        if let Some(entry) = self
            .lock()
            .get_mut(&record.tag)
            .filter(|entry| entry.blob == record.blob)
        {
            entry.put = Some(now);
            entry.etag = etag;
            entry.due = due;
        }
    }

    /// Our records with their versions: a poll for them tells when the server lost one, as by a
    /// restart.
    pub(crate) fn known(&self) -> BTreeMap<RecordTag, Option<Etag>> {
        let entries = self.lock();
        entries
            .iter()
            .filter_map(|(tag, entry)| Some((*tag, Some(entry.etag.clone()?))))
            .collect()
    }

    /// The server has something else under one of our tags than we put there: put it again.
    pub(crate) fn differs(&self, tag: RecordTag, found: &Polled) {
        let mut entries = self.lock();
        let Some(entry) = entries.get_mut(&tag) else {
            return;
        };
        let now = Instant::now();
        match found {
            // The answer to an older question than our last put.
            Polled::Changed(etag, _) if Some(etag) == entry.etag.as_ref() => return,
            Polled::Changed(etag, blob) if **blob == *entry.blob => {
                entry.etag = Some(etag.clone());
                return;
            }
            Polled::Changed(..) => {
                entry.due = entry
                    .due
                    .min(entry.put.map_or(now, |put| (put + CONTESTED).max(now)));
            }
            Polled::Gone => entry.due = now,
        }
        entry.etag = None;
        drop(entries);
        self.changed.notify_one();
    }
}

/// Publishes until the host is gone.
pub(crate) async fn run(mut feeds: Feeds, outbox: Arc<Outbox>, reporter: Arc<Reporter>) {
    let mut backoff = Backoff::new();
    let mut not_before: Option<Instant> = None;
    loop {
        let now = Instant::now();
        let (records, next) = outbox.due(now);
        let waiting = not_before.filter(|until| *until > now && !records.is_empty());
        if !records.is_empty() && waiting.is_none() {
            let client = feeds.client.borrow().clone();
            let count = records.len();
            let outcome = tokio::select! {
                outcome = put_all(&client, records, &outbox, &reporter) => outcome,
                // Another network: what hangs would hang until it times out.
                _ = feeds.client.changed() => continue,
            };
            not_before = match outcome {
                Ok(()) => {
                    backoff = Backoff::new();
                    reporter.publishing(Ok(format!("{} records published", outbox.lock().len())));
                    None
                }
                Err(error @ Error::Unsupported(_)) => {
                    reporter.publishing(Err(format!(
                        "this node's records can't be published: {error}; \
                         the URL of a `natpunch serve --http` ends in /v1"
                    )));
                    Some(Instant::now() + UNSUPPORTED)
                }
                Err(error) => {
                    tracing::debug!(%error, count, "can't publish");
                    reporter.publishing(Err(format!("can't publish: {error}")));
                    Some(Instant::now() + reporter.jitter(backoff.next()))
                }
            };
            continue;
        }
        let wake = waiting.or(next);
        tokio::select! {
            () = tokio::time::sleep_until(wake.unwrap_or(now)), if wake.is_some() => {}
            () = outbox.changed.notified() => {}
            changed = feeds.records.changed() => {
                if changed.is_err() {
                    return;
                }
                let records = feeds.records.borrow_and_update().clone();
                outbox.replace(&records, Instant::now());
            }
            changed = feeds.client.changed() => {
                if changed.is_err() {
                    return;
                }
                // Another network: what failed before may work now.
                backoff = Backoff::new();
                not_before = None;
            }
        }
    }
}

/// Puts these records, several at a time. After a failure no further ones are begun.
async fn put_all(
    client: &Client,
    records: Vec<SealedRecord>,
    outbox: &Outbox,
    reporter: &Reporter,
) -> Result<(), Error> {
    let mut puts = JoinSet::new();
    let mut records = records.into_iter();
    let mut outcome = Ok(());
    loop {
        while outcome.is_ok() && puts.len() < CONCURRENT_PUTS {
            let Some(record) = records.next() else { break };
            let client = client.clone();
            puts.spawn(async move {
                let result = client.put(&record).await;
                (record, result)
            });
        }
        let Some(done) = puts.join_next().await else {
            return outcome;
        };
        match done {
            Ok((record, Ok(etag))) => {
                let now = Instant::now();
                outbox.settle(&record, etag, now + reporter.jitter(REFRESH), now);
            }
            Ok((_, Err(error))) => outcome = Err(error),
            Err(_) => outcome = Err(Error::Answer("could not be handled")),
        }
    }
}
