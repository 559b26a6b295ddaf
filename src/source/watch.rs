//! Watching a mesh file, and the key files that it names, for changes.
//!
//! A file's own watch dies with the first atomic rename over it, so directories are watched: every
//! one that holds a component of the path or a target of a symbolic link on the way, which is where
//! editors, `git pull`, the `..data` swap of Kubernetes and the directory link of git-sync leave
//! their traces. After every event the way is walked again. Whether anything changed is decided by
//! what the files hold, never by the events.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use natpunch_types::lock;
use notify::event::{AccessKind, AccessMode, EventKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};

use crate::config::fingerprint_with_keys;

/// Writes have settled after this long without another.
const QUIET: Duration = Duration::from_millis(150);

/// A change is told after this long, even if writes go on.
const LONGEST_WAIT: Duration = Duration::from_millis(700);

/// How often the files are read without any event: a net for network file systems and lost events.
const POLL: Duration = Duration::from_secs(30);

/// Most symbolic links that are followed, all files together.
const MOST_LINKS: usize = 1000;

/// Tells of changes of a mesh file or of a directory of them, and of the key files that it names.
pub struct Watcher {
    /// None where only key files are watched.
    mesh: Option<PathBuf>,
    keys: Vec<PathBuf>,
    /// What the files held when this was last told; None: tell in any case.
    content: Option<[u8; 32]>,
    /// Something happened that was not looked at yet.
    unsettled: bool,
    /// None if the system offers no file events; then there is only polling.
    events: Option<RecommendedWatcher>,
    /// What events are about, as their handler sees it.
    way: Arc<Mutex<Way>>,
    /// Capacity 1: that something happened is all there is to know.
    happened: mpsc::Receiver<()>,
    /// Keeps the channel open where there are no events.
    _open: mpsc::Sender<()>,
}

impl Watcher {
    /// Watches a path from what it holds now. Never fails: where events can't be had, the files are
    /// polled.
    pub fn new(path: &Path) -> Self {
        // An absolute path keeps its meaning.
        Self::watch(Some(
            std::path::absolute(path).unwrap_or_else(|_| path.to_owned()),
        ))
    }

    /// Watches no mesh file, only what [`Watcher::watch_keys`] names.
    pub fn of_keys() -> Self {
        Self::watch(None)
    }

    fn watch(mesh: Option<PathBuf>) -> Self {
        let (tell, happened) = mpsc::channel(1);
        let way = Arc::new(Mutex::new(Way::default()));
        let (open, seen) = (tell.clone(), Arc::clone(&way));
        let handler = move |event: notify::Result<notify::Event>| {
            if event.map_or(true, |event| concerns(&event, &lock(&seen))) {
                // Full: there is word already.
                let _ = tell.try_send(());
            }
        };
        let events = notify::recommended_watcher(handler)
            .inspect_err(|error| {
                let every = POLL.as_secs();
                tracing::warn!(%error, "no file events: looking every {every} s for changes");
            })
            .ok();
        let (keys, content, unsettled) = (Vec::new(), None, false);
        let mut watcher = Self {
            mesh,
            keys,
            content,
            unsettled,
            events,
            way,
            happened,
            _open: open,
        };
        watcher.watch_way();
        watcher.content = Some(watcher.fingerprint());
        watcher
    }

    /// Watches these key files, too, and those that were named before no longer. It is told once
    /// more if they are others than before: they may have changed since they were read.
    pub fn watch_keys(&mut self, files: &[PathBuf]) {
        if self.keys != files {
            files.clone_into(&mut self.keys);
            (self.content, self.unsettled) = (None, true);
        }
    }

    /// Waits until the files hold something else than when this was last told, or than at the
    /// start, and until their writes have settled. Dropping the future loses nothing.
    pub async fn changed(&mut self) {
        loop {
            self.settled().await;
            self.unsettled = false;
            let content = Some(self.fingerprint());
            if content != self.content {
                self.content = content;
                return;
            }
        }
    }

    /// To be called before somebody else tells of the files as they are now: the next change counts
    /// from here.
    pub fn told(&mut self) {
        self.content = Some(self.fingerprint());
    }

    fn fingerprint(&self) -> [u8; 32] {
        fingerprint_with_keys(self.mesh.as_deref(), &self.keys)
    }

    /// Waits for an event, or for the time to poll, and then until events have stopped.
    async fn settled(&mut self) {
        let polled = !self.unsettled && timeout(POLL, self.happened.recv()).await.is_err();
        self.unsettled = true;
        let deadline = Instant::now() + if polled { Duration::ZERO } else { LONGEST_WAIT };
        loop {
            // New links and directories are watched before what they hold is read.
            self.watch_way();
            let quiet = (Instant::now() + QUIET).min(deadline);
            let more = timeout_at(quiet, self.happened.recv()).await.is_ok();
            if !more || Instant::now() >= deadline {
                return;
            }
        }
    }

    /// Watches every directory on the way as it is now, and no others.
    fn watch_way(&mut self) {
        let now = Way::of(self.mesh.as_deref(), &self.keys);
        let before = std::mem::replace(&mut *lock(&self.way), now.clone());
        let Some(events) = &mut self.events else {
            return;
        };
        // A directory that was removed took its watch with it.
        for gone in before
            .directories
            .difference(&now.directories)
            .filter(|gone| gone.exists())
        {
            let _ = events.unwatch(gone);
        }
        for directory in &now.directories {
            // Renewed each time: a directory that was replaced has the same name and no watch.
            if let Err(error) = events.watch(directory, RecursiveMode::NonRecursive) {
                tracing::debug!(directory = %directory.display(), %error, "can't watch");
            }
        }
    }
}

/// Whether an event may have changed what the path leads to.
fn concerns(event: &notify::Event, way: &Way) -> bool {
    let is_read = match event.kind {
        // Reading makes events too: without this, every look would lead to the next.
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => false,
        EventKind::Access(_) => true,
        _ => false,
    };
    let touches = |path: &PathBuf| {
        way.entries.contains(path) || (way.mesh.is_some() && path.parent() == way.mesh.as_deref())
    };
    !is_read && (event.need_rescan() || event.paths.is_empty() || event.paths.iter().any(touches))
}

/// What decides where a path leads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Way {
    /// The directories that hold a component or a link target.
    directories: BTreeSet<PathBuf>,
    /// The components and link targets.
    entries: BTreeSet<PathBuf>,
    /// The directory at its end, all of whose entries count.
    mesh: Option<PathBuf>,
}

impl Way {
    fn of(mesh: Option<&Path>, keys: &[PathBuf]) -> Self {
        let mut way = Self::default();
        let mut links = 0;
        for key in keys {
            way.walk(key, &mut links);
        }
        let Some(mesh) = mesh else { return way };
        let end = way.walk(mesh, &mut links);
        if end.is_dir() {
            way.directories.insert(end.clone());
            // Its files may be links themselves, as in a ConfigMap.
            for entry in fs::read_dir(&end).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_symlink()) {
                    way.walk(&entry.path(), &mut links);
                }
            }
            way.mesh = Some(end);
        }
        way
    }

    /// Notes every component on the way to `path`, through symbolic links; gives the end of it.
    fn walk(&mut self, path: &Path, links: &mut usize) -> PathBuf {
        let mut todo = components(path);
        let mut here = PathBuf::from("/");
        while let Some(name) = todo.pop() {
            if name == ".." {
                here.pop();
                continue;
            }
            let entry = here.join(&name);
            self.entries.insert(entry.clone());
            self.directories.insert(here.clone());
            match fs::read_link(&entry) {
                Ok(target) if *links < MOST_LINKS => {
                    *links += 1;
                    if target.is_absolute() {
                        here = PathBuf::from("/");
                    }
                    todo.extend(components(&target));
                }
                _ => here = entry,
            }
        }
        here
    }
}

/// The names of a path, the last first.
fn components(path: &Path) -> Vec<OsString> {
    let name = |component: Component<'_>| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::CurDir | Component::RootDir | Component::Prefix(_) => None,
    };
    path.components().rev().filter_map(name).collect()
}
