//! Follows a source: looks for new versions, tells the agent, remembers what it applied.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use natpunch_types::{Help, lock};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::error::{Problem, SourceError};
use super::freshness::{self, unix_time};
use super::location::Location;
use super::store::{Store, Version};
use super::trust::{Memory, Trust};
use super::watch::Watcher;
use super::{Known, check_generation, fetch, must_have_generation};
use crate::config;
use crate::control::Reply;

/// Longest wait between two looks after failures, unless the interval itself is longer.
const LONGEST_WAIT: Duration = Duration::from_secs(15 * 60);

/// Most versions that wait for the agent's word; it works on one and knows of the next.
const MOST_CANDIDATES: usize = 4;

/// What to follow, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the mesh comes from.
    pub location: Location,
    /// The trust file, if not the default one.
    pub trust: Option<PathBuf>,
    /// Time between two looks.
    pub poll: Duration,
    /// Where versions are kept.
    pub state_dir: PathBuf,
    /// Look before starting, even if there is a version that was applied before.
    pub look_first: bool,
}

/// Word that the mesh at [`Source::path`] is to be loaded.
#[derive(Debug)]
pub struct Change {
    /// The request that waits for the result, if there is one.
    pub answer: Option<oneshot::Sender<Reply>>,
}

/// What `status` says of a source that is polled.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SourceStatus {
    /// Where the mesh comes from.
    pub location: String,
    /// The version that runs: a commit, or a hash of the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Its generation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// Seconds since it was fetched, by this machine's clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age_s: Option<u64>,
    /// A newer version that was fetched but does not run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub newest: Option<String>,
    /// What kind of problem the last look found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
    /// The problem, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem_text: Option<String>,
    /// Seconds since the source answered well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checked_s: Option<u64>,
    /// Why the version that runs is older than the trust file allows: newer ones may be withheld.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stale: Option<String>,
}

/// Where the agent's mesh comes from.
#[derive(Debug)]
pub struct Source {
    shared: Arc<Shared>,
    asks: mpsc::Sender<oneshot::Sender<Reply>>,
    applied: watch::Sender<Option<[u8; 32]>>,
    keys: watch::Sender<Vec<PathBuf>>,
}

/// What the agent and the task that follows the source share.
#[derive(Debug)]
struct Shared {
    location: Location,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    /// What the agent is to load.
    path: PathBuf,
    /// The version that was applied last, and where it is.
    applied: Option<(Version, PathBuf)>,
    newest: Option<String>,
    problem: Option<SourceError>,
    checked: Option<Instant>,
    stale: Option<String>,
}

impl Shared {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        lock(&self.seen)
    }
}

impl Source {
    /// Begins to follow a source. Where a version was applied before, that is what the agent starts
    /// with, so that a start never waits for a network that the mesh itself may carry; a newer one
    /// comes as a change.
    ///
    /// # Errors
    /// There is no version to start with: the source gives none, and none was applied before.
    pub async fn open(options: Options) -> Result<(Self, mpsc::Receiver<Change>), SourceError> {
        let (tell, changes) = mpsc::channel(4);
        let (asks, asked) = mpsc::channel(4);
        let (applied, accepted) = watch::channel(None);
        let (keys, named) = watch::channel(Vec::new());
        let shared = Arc::new(Shared {
            location: options.location.clone(),
            seen: Mutex::default(),
        });
        if let Location::Local(path) = &options.location {
            shared.seen().path.clone_from(path);
            // Before the first load, so that nothing is missed.
            tokio::spawn(watch_files(Watcher::new(path), named, asked, tell));
            return Ok((
                Self {
                    shared,
                    asks,
                    applied,
                    keys,
                },
                changes,
            ));
        }
        let store = Store::open(&options.state_dir, &options.location)?;
        let mut follower = Follower {
            shared: Arc::clone(&shared),
            store,
            options,
            candidates: Vec::new(),
            seen_revision: None,
            seen_etag: None,
            judged: None,
            max_age: None,
            failures: 0,
        };
        let wait = follower.start().await?;
        let (_, nobody_asks) = mpsc::channel(1);
        tokio::spawn(watch_files(
            Watcher::of_keys(),
            named,
            nobody_asks,
            tell.clone(),
        ));
        tokio::spawn(follower.run(wait, asked, accepted, tell));
        Ok((
            Self {
                shared,
                asks,
                applied,
                keys,
            },
            changes,
        ))
    }

    /// The mesh file or directory to load.
    pub fn path(&self) -> PathBuf {
        self.shared.seen().path.clone()
    }

    /// Goes back to the version that was applied last, for an agent that can't start with what
    /// [`Source::path`] is. False: there is none, or that was it.
    pub fn fall_back(&self) -> bool {
        let mut seen = self.shared.seen();
        match seen.applied.as_ref().map(|(_, path)| path.clone()) {
            Some(path) if path != seen.path => {
                seen.path = path;
                true
            }
            _ => false,
        }
    }

    /// To be told the [`content_hash`](config::MeshConfig::content_hash) of the mesh that now runs:
    /// it becomes the last good version.
    pub fn applied(&self, content_hash: [u8; 32]) {
        self.applied.send_replace(Some(content_hash));
    }

    /// To be told the key files of the mesh that was loaded: what changes in them is a [`Change`],
    /// too.
    pub fn watch_keys(&self, files: &[PathBuf]) {
        self.keys.send_if_modified(|known| {
            let is_new = known != files;
            if is_new {
                files.clone_into(known);
            }
            is_new
        });
    }

    /// Looks at once. A [`Change`] with the asker follows, or the asker hears why there is none.
    pub fn ask(&self, answer: oneshot::Sender<Reply>) {
        if let Err(error) = self.asks.try_send(answer) {
            let _ = error.into_inner().send(Reply::Error(
                "too many have asked already: try again".to_owned(),
            ));
        }
    }

    /// What `status` says; `None` for a path of this machine.
    pub fn status(&self) -> Option<SourceStatus> {
        if self.shared.location.is_local() {
            return None;
        }
        let seen = self.shared.seen();
        let applied = seen.applied.as_ref().map(|(version, _)| version);
        Some(SourceStatus {
            location: self.shared.location.to_string(),
            revision: applied.map(|version| version.revision.clone()),
            generation: applied.and_then(|version| version.generation),
            age_s: applied.map(|version| unix_time().saturating_sub(version.fetched)),
            newest: seen
                .newest
                .clone()
                .filter(|newest| applied.is_none_or(|version| version.revision != *newest)),
            problem: seen.problem.as_ref().map(SourceError::problem),
            problem_text: seen.problem.as_ref().map(Help::in_full),
            checked_s: seen.checked.map(|at| at.elapsed().as_secs()),
            stale: seen.stale.clone(),
        })
    }
}

/// Tells of changes of files of this machine: the mesh, if it is here, and its keys. A task of its
/// own: the watcher's wait for quiet must not be cut off by the agent's other events.
async fn watch_files(
    mut watcher: Watcher,
    mut keys: watch::Receiver<Vec<PathBuf>>,
    mut asked: mpsc::Receiver<oneshot::Sender<Reply>>,
    tell: mpsc::Sender<Change>,
) {
    loop {
        let answer = tokio::select! {
            () = watcher.changed() => None,
            Ok(()) = keys.changed() => {
                watcher.watch_keys(&keys.borrow_and_update());
                continue;
            }
            Some(answer) = asked.recv() => {
                watcher.told();
                Some(answer)
            }
            () = tell.closed() => return,
        };
        if tell.send(Change { answer }).await.is_err() {
            return;
        }
    }
}

/// A version that the agent may be working on.
struct Candidate {
    content: [u8; 32],
    version: Version,
}

/// Owns a source that is polled.
struct Follower {
    shared: Arc<Shared>,
    store: Store,
    options: Options,
    candidates: Vec<Candidate>,
    /// The newest version that is on disk.
    seen_revision: Option<String>,
    seen_etag: Option<String>,
    /// The commit that was refused last, by which trust, and why: no need to fetch it again.
    judged: Option<(Trust, String, SourceError)>,
    /// How old the version that runs may be before that is an alarm.
    max_age: Option<Duration>,
    failures: u32,
}

impl Follower {
    /// Finds something to start with; how long to wait for the first look.
    async fn start(&mut self) -> Result<Duration, SourceError> {
        let last = self.store.applied().cloned();
        if let Some(version) = &last {
            let path = self.store.path(version);
            let mut seen = self.shared.seen();
            seen.path.clone_from(&path);
            seen.applied = Some((version.clone(), path));
            drop(seen);
            self.seen_revision = Some(version.revision.clone());
            self.seen_etag.clone_from(&version.etag);
        }
        let Some(version) = last else {
            self.look().await?;
            return Ok(self.next_wait());
        };
        if self.options.look_first {
            if let Err(error) = self.look().await {
                self.report(&error);
            }
            return Ok(self.next_wait());
        }
        tracing::info!(
            source = %self.options.location, revision = super::git::short(&version.revision),
            age_s = unix_time().saturating_sub(version.fetched),
            "starting with the last good version; looking for a newer one"
        );
        Ok(Duration::ZERO)
    }

    async fn run(
        mut self,
        first_wait: Duration,
        mut asked: mpsc::Receiver<oneshot::Sender<Reply>>,
        mut accepted: watch::Receiver<Option<[u8; 32]>>,
        tell: mpsc::Sender<Change>,
    ) {
        let mut next = Instant::now() + first_wait;
        loop {
            let answer = tokio::select! {
                Ok(()) = accepted.changed() => {
                    self.accept(*accepted.borrow_and_update());
                    continue;
                }
                Some(answer) = asked.recv() => Some(answer),
                () = tokio::time::sleep_until(next) => None,
                () = tell.closed() => return,
            };
            let look = tokio::select! {
                look = self.look() => look,
                () = tell.closed() => return,
            };
            let answer = match (look, answer) {
                (Err(error), Some(answer)) => {
                    self.report(&error);
                    let _ = answer.send(Reply::Error(error.in_full()));
                    None
                }
                (Err(error), None) => {
                    self.report(&error);
                    None
                }
                (Ok(false), None) => None,
                (Ok(_), answer) => Some(Change { answer }),
            };
            // The agent's word may have come meanwhile, or the disk may have been full when it
            // came.
            self.accept(*accepted.borrow_and_update());
            next = Instant::now() + self.next_wait();
            if let Some(change) = answer
                && tell.send(change).await.is_err()
            {
                return;
            }
        }
    }

    /// Looks for a new version, and writes it to where the agent can load it. True: there is one.
    async fn look(&mut self) -> Result<bool, SourceError> {
        let result = self.find().await;
        let mut seen = self.shared.seen();
        match &result {
            Ok(_) => {
                if seen.problem.take().is_some() {
                    tracing::info!(source = %self.options.location, "the source is good again");
                }
                seen.checked = Some(Instant::now());
                self.failures = 0;
            }
            Err(_) => self.failures = self.failures.saturating_add(1),
        }
        result
    }

    async fn find(&mut self) -> Result<bool, SourceError> {
        let memory = Memory::of(&self.options.state_dir);
        let trust = Trust::load(self.options.trust.as_deref(), &memory)?;
        if self.options.trust.is_none()
            && let Err(error) = memory.keep(&trust)
        {
            tracing::warn!(%error, "can't remember that the trust file is there");
        }
        self.max_age = trust.max_age;
        self.look_at_age();
        let workspace = self.store.workspace()?;
        let location = self.options.location.clone();
        let applied = self.store.applied().map(|version| version.revision.clone());
        let refused = self
            .judged
            .as_ref()
            .filter(|(by, _, _)| *by == trust)
            .map(|(_, tip, _)| tip.clone());
        let known = Known {
            applied: applied.as_deref(),
            newest: self.seen_revision.as_deref(),
            refused: refused.as_deref(),
            etag: self.seen_etag.as_deref(),
        };
        let found = fetch(&location, &trust, &known, workspace.path()).await;
        drop(workspace);
        let fetched = match found {
            Ok(super::Found::Unchanged) => return Ok(false),
            Ok(super::Found::RefusedBefore) => {
                let again = self.judged.as_ref().map(|(_, _, error)| error.clone());
                return Err(
                    again.unwrap_or_else(|| SourceError::refused("the newest commit is refused"))
                );
            }
            Ok(super::Found::New(fetched)) => fetched,
            Err(super::Failed { error, tip }) => {
                if let (Problem::Refused, Some(tip)) = (error.problem(), tip) {
                    self.judged = Some((trust, tip, error.clone()));
                }
                return Err(error);
            }
        };
        let is_the_same = |applied: &Version| {
            applied.revision == fetched.revision && applied.signed_at == fetched.signed_at
        };
        // A file of a web server that was fetched only for the age of its signature.
        if matches!(location, Location::Web(_)) && self.store.applied().is_some_and(is_the_same) {
            return Ok(false);
        }
        if applied.is_none() {
            freshness::check_first(trust.max_age, fetched.signed_at, unix_time())?;
        }
        let (revision, etag) = (fetched.revision.clone(), fetched.etag.clone());
        let mut version = self.store.write(fetched, unix_time())?;
        let path = self.store.path(&version);
        let content = config::fingerprint(&path);
        let last = self.shared.seen().applied.clone();
        if let Some((last, last_path)) = last
            && config::fingerprint(&last_path) == content
        {
            // Another commit, the same mesh: there is nothing to load, but what follows counts from
            // here.
            version.generation = last.generation;
            self.seen_revision = Some(revision);
            self.seen_etag = etag;
            self.candidates = vec![Candidate { content, version }];
            self.accept(Some(content));
            let mut seen = self.shared.seen();
            let back = seen.path != last_path;
            if let Some((_, path)) = &seen.applied {
                seen.path = path.clone();
            }
            seen.newest = None;
            return Ok(back);
        }
        let judged = judge(
            path.clone(),
            self.store.applied().cloned(),
            must_have_generation(&location, &trust),
        )
        .await;
        version.generation = match judged {
            Ok(generation) => generation,
            Err(error) => {
                self.judged = Some((trust, revision, error.clone()));
                self.prune();
                return Err(error);
            }
        };
        tracing::info!(source = %location, revision = super::git::short(&revision), "fetched a new version");
        self.seen_revision = Some(revision.clone());
        self.seen_etag = etag;
        self.candidates.push(Candidate { content, version });
        if self.candidates.len() > MOST_CANDIDATES {
            self.candidates.remove(0);
        }
        self.prune();
        let mut seen = self.shared.seen();
        seen.path = path;
        seen.newest = Some(revision);
        Ok(true)
    }

    /// Says when the version that runs has become too old: in the log once, in the status for as
    /// long as it lasts. Nothing is done about it: a node that stopped would be worse than one that
    /// runs what it ran yesterday.
    fn look_at_age(&self) {
        let Some(version) = self.store.applied() else {
            return;
        };
        let stale = freshness::stale(self.max_age, version.signed_at, unix_time());
        let mut seen = self.shared.seen();
        if let (Some(problem), None) = (&stale, &seen.stale) {
            tracing::warn!(source = %self.options.location, "{problem}");
        }
        seen.stale = stale;
    }

    /// Keeps the version with this content as the last good one.
    fn accept(&mut self, content: Option<[u8; 32]>) {
        let Some(content) = content else { return };
        let Some(index) = self
            .candidates
            .iter()
            .rposition(|candidate| candidate.content == content)
        else {
            return;
        };
        let Some(version) = self
            .candidates
            .get(index)
            .map(|candidate| candidate.version.clone())
        else {
            return;
        };
        if let Err(error) = self.store.accept(&version) {
            // The versions before stay candidates, so that the next look tries again.
            self.report(&error);
            let path = self.store.path(&version);
            self.shared.seen().applied = Some((version, path));
            return;
        }
        self.candidates.drain(..=index);
        let path = self.store.path(&version);
        self.shared.seen().applied = Some((version, path));
        self.look_at_age();
        self.prune();
    }

    fn prune(&self) {
        let mut keep: Vec<&Version> = self
            .candidates
            .iter()
            .map(|candidate| &candidate.version)
            .collect();
        let seen = self.shared.seen();
        keep.extend(seen.applied.as_ref().map(|(version, _)| version));
        self.store.prune(&keep);
    }

    /// Says what is wrong: in the log once, in the status for as long as it lasts.
    fn report(&self, error: &SourceError) {
        let mut seen = self.shared.seen();
        if seen.problem.as_ref() != Some(error) {
            tracing::warn!(
                source = %self.options.location,
                "no new version of the mesh, it stays as it is: {}", error.in_full()
            );
        }
        seen.problem = Some(error.clone());
    }

    fn next_wait(&self) -> Duration {
        let mut random = [0; 8];
        crate::plugins::fill_random(&mut random);
        wait(
            self.options.poll,
            self.failures,
            u64::from_le_bytes(random) as f64 / u64::MAX as f64,
        )
    }
}

/// Judges off the agent's threads: a large mesh takes a moment.
async fn judge(
    path: PathBuf,
    applied: Option<Version>,
    must_have: bool,
) -> Result<Option<u64>, SourceError> {
    tokio::task::spawn_blocking(move || {
        check_generation(Path::new(&path), applied.as_ref(), must_have)
    })
    .await
    .map_err(|error| SourceError::local(error.to_string()))?
}

/// How long to wait until the next look: the interval, doubled with each failure up to
/// [`LONGEST_WAIT`], and a tenth more or less, so that many nodes do not ask at one time. `random`
/// is in 0..=1.
fn wait(interval: Duration, failures: u32, random: f64) -> Duration {
    let doubled = interval.saturating_mul(1 << failures.min(16));
    doubled
        .min(LONGEST_WAIT.max(interval))
        .mul_f64(0.9 + 0.2 * random)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_are_spread_and_become_rare_while_the_source_is_down() {
        let minute = Duration::from_secs(60);
        assert_eq!(wait(minute, 0, 0.5), minute);
        assert_eq!(wait(minute, 0, 0.0), Duration::from_secs(54));
        assert_eq!(wait(minute, 0, 1.0), Duration::from_secs(66));
        assert_eq!(wait(minute, 2, 0.5), 4 * minute);
        assert_eq!(wait(minute, u32::MAX, 0.5), LONGEST_WAIT);
        let day = 24 * 60 * minute;
        assert_eq!(wait(day, 3, 0.5), day, "an interval is never shortened");
    }
}
