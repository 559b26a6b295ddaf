//! Fetches what peers left for this node: by long poll where the server has it, else file by file.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use natpunch_plugin::{Interest, News, RecordTag, SealedRecord};
use natpunch_types::lock;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::client::{Client, Error, Etag, Fetched, LONG_POLL, MAX_TAGS, Polled};
use crate::publish::Outbox;
use crate::{Backoff, Feeds, Reporter};

/// Half of a poll's tags are peers' records, the other half our own, to see when the server lost
/// them.
const TAGS_PER_POLL: usize = MAX_TAGS / 2;
/// Polls at a time.
const LANES: usize = 4;
/// Plain fetches at a time.
const CONCURRENT_FETCHES: usize = 8;
/// How much more seldom a plain file is fetched while its peer is connected.
const UNWANTED_FACTOR: u32 = 20;
/// How long a server without long poll is believed to stay so.
const WITHOUT_LONG_POLL: Duration = Duration::from_secs(10 * 60);
/// Polls of one lane that may follow each other at once, and the pace after that: a server that
/// always has news, or does not wait, is asked at this rate.
const POLL_BURST: u32 = 10;
const POLL_PACE: Duration = Duration::from_millis(500);

/// What is known of the peers' records.
struct Inbox {
    known: Mutex<BTreeMap<RecordTag, Option<Etag>>>,
    outbox: Arc<Outbox>,
    reporter: Arc<Reporter>,
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<RecordTag, Option<Etag>>> {
        lock(&self.known)
    }

    /// Hands a record to the host, and remembers its version so that it is not fetched again.
    fn found(&self, tag: RecordTag, etag: Option<Etag>, blob: Vec<u8>) {
        self.lock().insert(tag, etag);
        if !blob.is_empty() {
            let blob = blob.into();
            let record = SealedRecord { tag, blob };
            self.reporter.host.tell(News::Record(record));
        }
    }

    fn report(&self, how: &str, peers: usize) {
        let found = self.lock().len();
        self.reporter
            .fetching(Ok(format!("{found} of {peers} peers' records found {how}")));
    }
}

fn tags(peers: &[Interest]) -> BTreeSet<RecordTag> {
    peers.iter().map(|peer| peer.inbound_tag).collect()
}

/// Fetches until the host is gone.
pub(crate) async fn run(
    mut feeds: Feeds,
    outbox: Arc<Outbox>,
    reporter: Arc<Reporter>,
    interval: Duration,
) {
    let inbox = Arc::new(Inbox {
        known: Mutex::default(),
        outbox,
        reporter,
    });
    let mut plain_until: Option<Instant> = None;
    loop {
        let client = feeds.client.borrow_and_update().clone();
        let wanted = tags(&feeds.peers.borrow_and_update());
        inbox.lock().retain(|tag, _| wanted.contains(tag));
        let plain = plain_until.filter(|until| *until > Instant::now());
        let session = async {
            match plain {
                _ if wanted.is_empty() => std::future::pending().await,
                Some(until) => {
                    let fetching = plain_fetch(&client, feeds.peers.clone(), &inbox, interval);
                    let _ = tokio::time::timeout_at(until, fetching).await;
                    None
                }
                None => Some(long_poll(&client, &wanted, &inbox).await),
            }
        };
        tokio::pin!(session);
        let (mut peers, mut clients) = (feeds.peers.clone(), feeds.client.clone());
        loop {
            tokio::select! {
                ended = &mut session => {
                    plain_until = ended.map(|without| {
                        tracing::debug!(%without, "no long poll here: fetching plain files");
                        Instant::now() + WITHOUT_LONG_POLL
                    });
                    break;
                }
                changed = clients.changed() => if changed.is_ok() { break } else { return },
                changed = peers.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    // Only other tags make another question.
                    if tags(&peers.borrow_and_update()) != wanted {
                        break;
                    }
                }
            }
        }
    }
}

/// Polls all tags in parallel lanes. Ends, with the reason, only if the server has no long poll.
async fn long_poll(client: &Client, wanted: &BTreeSet<RecordTag>, inbox: &Arc<Inbox>) -> Error {
    let wanted: Vec<RecordTag> = wanted.iter().copied().collect();
    let mut lanes = vec![Vec::new(); LANES.min(wanted.len().div_ceil(TAGS_PER_POLL))];
    for (index, chunk) in wanted.chunks(TAGS_PER_POLL).enumerate() {
        if let Some(lane) = lanes.get_mut(index % LANES) {
            lane.push((index, chunk.to_vec()));
        }
    }
    let mut tasks = JoinSet::new();
    for lane in lanes {
        tasks.spawn(poll_lane(client.clone(), lane, wanted.len(), inbox.clone()));
    }
    match tasks.join_next().await {
        Some(Ok(error)) => error,
        _ => Error::Answer("could not be handled"),
    }
}

/// Polls chunk after chunk, over and over, and holds each poll open for its share of the time.
async fn poll_lane(
    client: Client,
    chunks: Vec<(usize, Vec<RecordTag>)>,
    peers: usize,
    inbox: Arc<Inbox>,
) -> Error {
    let mut backoff = Backoff::new();
    let mut pacer = Pacer::new();
    let share = LONG_POLL / u32::try_from(chunks.len().max(1)).unwrap_or(u32::MAX);
    let wait = share.max(Duration::from_secs(1));
    loop {
        for (index, chunk) in &chunks {
            pacer.turn().await;
            let mut known: BTreeMap<_, _> = {
                let state = inbox.lock();
                chunk
                    .iter()
                    .map(|tag| (*tag, state.get(tag).cloned().flatten()))
                    .collect()
            };
            known.extend(
                inbox
                    .outbox
                    .known()
                    .into_iter()
                    .skip(index * TAGS_PER_POLL)
                    .take(TAGS_PER_POLL),
            );
            match client.poll(known, wait).await {
                Ok(differing) => {
                    backoff = Backoff::new();
                    for (tag, polled) in differing {
                        if chunk.binary_search(&tag).is_err() {
                            inbox.outbox.differs(tag, &polled);
                        } else if let Polled::Changed(etag, blob) = polled {
                            inbox.found(tag, Some(etag), blob);
                        } else {
                            inbox.lock().remove(&tag);
                        }
                    }
                    inbox.report("by long poll", peers);
                }
                Err(error @ Error::Unsupported(_)) => return error,
                Err(error) => {
                    tracing::debug!(%error, "can't poll");
                    inbox
                        .reporter
                        .fetching(Err(format!("can't fetch: {error}")));
                    tokio::time::sleep(inbox.reporter.jitter(backoff.next())).await;
                }
            }
        }
    }
}

/// Lets polls through at a bounded rate.
struct Pacer {
    /// When the bucket would be full.
    full: Instant,
}

impl Pacer {
    fn new() -> Self {
        Self {
            full: Instant::now(),
        }
    }

    async fn turn(&mut self) {
        let now = Instant::now();
        self.full = self.full.max(now) + POLL_PACE;
        tokio::time::sleep_until((self.full - POLL_PACE * POLL_BURST).max(now)).await;
    }
}

/// Fetches file by file: each wanted peer's every `interval`, the others' seldom.
async fn plain_fetch(
    client: &Client,
    mut feed: watch::Receiver<Arc<[Interest]>>,
    inbox: &Inbox,
    interval: Duration,
) {
    let mut backoff = Backoff::new();
    let mut fetched: BTreeMap<RecordTag, Instant> = BTreeMap::new();
    loop {
        let peers = feed.borrow_and_update().clone();
        let now = Instant::now();
        let due_at = |peer: &Interest, fetched: &BTreeMap<RecordTag, Instant>| {
            let pause = if peer.wanted {
                interval
            } else {
                interval * UNWANTED_FACTOR
            };
            fetched
                .get(&peer.inbound_tag)
                .map_or(now, |last| *last + pause)
        };
        let due: Vec<RecordTag> = peers
            .iter()
            .filter(|peer| due_at(peer, &fetched) <= now)
            .map(|peer| peer.inbound_tag)
            .collect();
        if !due.is_empty() {
            fetched.extend(due.iter().map(|tag| (*tag, now)));
            match fetch_all(client, due, inbox).await {
                Ok(()) => {
                    backoff = Backoff::new();
                    inbox.report("as plain files", peers.len());
                }
                Err(error) => {
                    tracing::debug!(%error, "can't fetch");
                    inbox
                        .reporter
                        .fetching(Err(format!("can't fetch: {error}")));
                    tokio::time::sleep(inbox.reporter.jitter(backoff.next())).await;
                }
            }
            continue;
        }
        let next = peers.iter().map(|peer| due_at(peer, &fetched)).min();
        tokio::select! {
            () = tokio::time::sleep_until(next.unwrap_or(now + interval)) => {}
            changed = feed.changed() => if changed.is_err() { return },
        }
    }
}

/// Fetches these files, several at a time; the first problem is the outcome.
async fn fetch_all(client: &Client, tags: Vec<RecordTag>, inbox: &Inbox) -> Result<(), Error> {
    let mut fetches = JoinSet::new();
    let mut tags = tags.into_iter();
    let mut outcome = Ok(());
    loop {
        while fetches.len() < CONCURRENT_FETCHES {
            let Some(tag) = tags.next() else { break };
            let known = inbox.lock().get(&tag).cloned().flatten();
            let client = client.clone();
            fetches.spawn(async move { (tag, client.get(tag, known.as_ref()).await) });
        }
        let Some(done) = fetches.join_next().await else {
            return outcome;
        };
        let Ok((tag, result)) = done else { continue };
        match result {
            Ok(Fetched::Changed(etag, blob)) => inbox.found(tag, etag, blob),
            Ok(Fetched::Unchanged) => {}
            Ok(Fetched::Nothing) => drop(inbox.lock().remove(&tag)),
            Err(error) => outcome = outcome.and(Err(error)),
        }
    }
}
