//! What worked in the networks that this host was in, kept over restarts in `INTERFACE.memory` of
//! the state directory. What of it is kept and what is tried is decided in
//! [`Memory`]; here it is read, offered to the core, and written.
//!
//! The file holds endpoints of peers, public keys and the router's hardware address, and no secret.
//! It is of use and not needed: whatever is wrong with it is a warning and a start without it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use natpunch_core::{Memory, Mesh};
use natpunch_net::Place;
use natpunch_os::{durable, secret};
use natpunch_types::PeerKey;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{Agent, STOP_DEADLINE, now};

const FORMAT: u32 = 1;
/// More than the most that a memory comes to.
const LONGEST: usize = 4 << 20;
/// How often it is looked at what works. After a change of the network what worked in the other one
/// is over by then.
const LOOK: Duration = Duration::from_secs(5);
/// The least time from one write to the next.
const WRITE: Duration = Duration::from_secs(60);
/// How often, and how many times, it is asked which network this is while the router is silent.
const ASK: (Duration, u32) = (Duration::from_millis(250), 20);

/// The file of one interface.
#[derive(Debug, Clone)]
struct File(PathBuf);

#[derive(Serialize, Deserialize)]
struct Form<M> {
    format: u32,
    #[serde(flatten)]
    memory: M,
}

impl File {
    /// What it holds, or why that can't be used. One that is not there holds nothing.
    fn read(&self) -> Result<Memory, String> {
        let text = match secret::read(&self.0, LONGEST) {
            Ok(text) => text,
            Err(error) if error.is_absent() => return Ok(Memory::default()),
            Err(error) => return Err(error.to_string()),
        };
        let form: Form<Memory> = serde_json::from_str(&text)
            .map_err(|error| format!("{} is damaged: {error}", self.0.display()))?;
        if form.format != FORMAT {
            let (path, found) = (self.0.display(), form.format);
            return Err(format!(
                "{path} has format {found}, this natpunch knows {FORMAT}"
            ));
        }
        Ok(form.memory)
    }

    fn write(&self, memory: &Memory) -> io::Result<()> {
        let form = Form {
            format: FORMAT,
            memory,
        };
        let directory = self.0.parent().unwrap_or(Path::new("."));
        durable::create_dir_all(directory)?;
        durable::replace(&self.0, &serde_json::to_vec(&form)?, 0o600)
    }
}

/// What is remembered, and where this host is.
#[derive(Debug)]
pub(super) struct Warm {
    file: File,
    memory: Memory,
    /// The network that this host is in, as far as it is known.
    place: Option<String>,
    /// When it is asked next which network this is, and how often it was.
    ask_at: Option<Instant>,
    asked: u32,
    look_at: Instant,
    /// It holds more than the file.
    changed: bool,
    write_at: Instant,
    /// The end of the write that is under way.
    writing: Option<oneshot::Receiver<io::Result<()>>>,
    complained: bool,
}

impl Warm {
    /// Reads what earlier runs have left.
    pub(super) fn open(directory: &Path, interface: &str) -> Self {
        let file = File(directory.join(format!("{interface}.memory")));
        let memory = file.read().unwrap_or_else(|error| {
            tracing::warn!(
                error,
                "what worked before can't be used; this start is one without memory, and the file \
                 is written anew"
            );
            Memory::default()
        });
        Self {
            file,
            memory,
            place: None,
            ask_at: Some(Instant::now()),
            asked: 0,
            look_at: Instant::now() + LOOK,
            changed: false,
            write_at: Instant::now(),
            writing: None,
            complained: false,
        }
    }

    /// This host may be in another network.
    pub(super) fn moved(&mut self) {
        self.place = None;
        (self.ask_at, self.asked) = (Some(Instant::now()), 0);
        self.look_at = Instant::now() + LOOK;
    }

    /// Forgets peers that the mesh no longer has.
    pub(super) fn keep(&mut self, is_peer: impl Fn(&PeerKey) -> bool) {
        self.changed |= self.memory.keep(is_peer);
    }

    /// Lets a core that begins know how long mappings live.
    pub(super) fn restore_lifetimes(&self, mesh: &mut Mesh) {
        mesh.restore_lifetimes(&self.memory.lifetimes(unix_time()), now());
    }

    /// Gives the core what worked here.
    fn offer(&self, mesh: &mut Mesh) {
        if let Some(place) = &self.place {
            mesh.handle_remembered(&self.memory.paths(place, unix_time()), now());
        }
    }

    /// Asks which network this is, if that is due. True if it has become known.
    fn find_place(&mut self) -> bool {
        if self.ask_at.is_none_or(|at| at > Instant::now()) {
            return false;
        }
        self.asked += 1;
        let again = (self.asked < ASK.1).then(|| Instant::now() + ASK.0);
        self.ask_at = None;
        match natpunch_net::place() {
            Ok(Place::Known(name)) => {
                tracing::debug!(network = name, "this network is known by this name");
                self.place = Some(name);
                return true;
            }
            Ok(Place::Asked) => self.ask_at = again,
            Ok(Place::None) => {}
            Err(error) => {
                tracing::debug!(%error, "the network has no name");
                self.ask_at = again;
            }
        }
        false
    }

    /// Takes what works at this moment.
    fn look(&mut self, mesh: &Mesh) {
        if let Some(place) = &self.place {
            let works = mesh.working_paths(now());
            self.changed |= self.memory.note(place, works, unix_time());
        }
        let lifetimes = mesh.measured_lifetimes(now());
        self.changed |= self.memory.note_lifetimes(&lifetimes, unix_time());
    }

    /// Begins to write, by a thread that neither the agent's loop nor its end waits for.
    fn begin_write(&mut self) {
        self.changed = false;
        self.write_at = Instant::now() + WRITE;
        let (file, memory) = (self.file.clone(), self.memory.clone());
        let (written, writing) = oneshot::channel();
        std::thread::spawn(move || written.send(file.write(&memory)));
        self.writing = Some(writing);
    }

    fn on_written(&mut self, result: io::Result<()>) {
        self.writing = None;
        match result {
            Ok(()) => self.complained = false,
            Err(error) => {
                self.changed = true;
                if !std::mem::replace(&mut self.complained, true) {
                    tracing::warn!(
                        file = %self.file.0.display(), %error,
                        "can't keep what works in this network: after a restart paths are looked \
                         for as if for the first time"
                    );
                }
            }
        }
    }

    /// Writes what is not written yet.
    async fn close(&mut self) {
        self.finish().await;
        if self.changed {
            self.begin_write();
            self.finish().await;
        }
    }

    async fn finish(&mut self) {
        if let Some(writing) = &mut self.writing {
            let result = writing
                .await
                .unwrap_or_else(|error| Err(io::Error::other(error)));
            self.on_written(result);
        }
    }
}

impl Agent {
    /// Offers what worked in this network, notes what works, and keeps it on disk.
    pub(super) fn tend_memory(&mut self) {
        if self.warm.find_place() {
            self.offer_remembered();
        }
        let warm = &mut self.warm;
        if Instant::now() >= warm.look_at {
            warm.look_at = Instant::now() + LOOK;
            warm.look(&self.mesh);
        }
        if let Some(Ok(result)) = warm.writing.as_mut().map(oneshot::Receiver::try_recv) {
            warm.on_written(result);
        }
        if warm.changed && warm.writing.is_none() && Instant::now() >= warm.write_at {
            warm.begin_write();
        }
    }

    /// Gives the core what worked in this network.
    pub(super) fn offer_remembered(&mut self) {
        self.warm.offer(&mut self.mesh);
        self.guard.look_again();
    }

    /// Keeps what works at the end of this run.
    pub(super) async fn close_memory(&mut self) {
        self.warm.look(&self.mesh);
        let closed = tokio::time::timeout(STOP_DEADLINE, self.warm.close()).await;
        if closed.is_err() {
            tracing::warn!("the disk is busy; what works in this network may not be kept");
        }
    }
}

/// Seconds since 1970, by a clock that may be set at any time.
fn unix_time() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use natpunch_core::KnownPath;
    use natpunch_types::{CandidateKind, PathId};

    use super::*;

    fn remembered() -> Memory {
        let mut memory = Memory::default();
        let known = KnownPath {
            peer: PeerKey::from_bytes([1; 32]),
            path: PathId::wireguard("203.0.113.1:7".parse().unwrap()),
            kind: CandidateKind::Reflexive,
        };
        assert!(memory.note("home", [known], unix_time()));
        memory
    }

    fn file(directory: &tempfile::TempDir) -> File {
        File(directory.path().join("state/wg0.memory"))
    }

    #[test]
    fn what_is_written_is_read_and_belongs_to_its_owner_only() {
        let directory = tempfile::tempdir().unwrap();
        let file = file(&directory);
        assert_eq!(file.read(), Ok(Memory::default()));
        file.write(&remembered()).unwrap();
        assert_eq!(file.read(), Ok(remembered()));
        let mode = fs::metadata(&file.0).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
    }

    #[test]
    fn a_file_that_is_damaged_exposed_too_long_or_none_is_a_start_without_memory() {
        let directory = tempfile::tempdir().unwrap();
        let file = file(&directory);
        file.write(&remembered()).unwrap();
        let good = fs::read(&file.0).unwrap();
        let is_cold = |words: &str| {
            let error = file.read().unwrap_err();
            assert!(error.contains(words), "{error}");
            let parent = file.0.parent().unwrap();
            Warm::open(parent, "wg0").memory == Memory::default()
        };
        for at in (0..good.len()).step_by(7) {
            fs::write(&file.0, &good[..at]).unwrap();
            assert!(is_cold(if at == 0 { "is empty" } else { "is damaged" }));
        }
        fs::write(&file.0, [0xff; 9]).unwrap();
        assert!(is_cold("not text"));
        fs::write(&file.0, br#"{"format":2,"networks":[],"lifetimes":[]}"#).unwrap();
        assert!(is_cold("format 2"));
        fs::write(&file.0, vec![b' '; LONGEST + 1]).unwrap();
        assert!(is_cold("longer than"));
        fs::write(&file.0, &good).unwrap();
        fs::set_permissions(&file.0, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(is_cold("read by others"));
        fs::remove_file(&file.0).unwrap();
        fs::create_dir(&file.0).unwrap();
        assert!(is_cold("not a file"));
        fs::remove_dir(&file.0).unwrap();
        symlink("/proc/self/mem", &file.0).unwrap();
        assert!(file.read().is_err());
    }

    #[test]
    fn a_disk_that_takes_nothing_leaves_what_was_there() {
        let directory = tempfile::tempdir().unwrap();
        let file = file(&directory);
        file.write(&remembered()).unwrap();
        // A file in the place of the directory: root may write everywhere else.
        let (state, aside) = (
            directory.path().join("state"),
            directory.path().join("aside"),
        );
        fs::rename(&state, &aside).unwrap();
        fs::write(&state, "").unwrap();
        assert!(file.write(&Memory::default()).is_err());
        fs::remove_file(&state).unwrap();
        fs::rename(&aside, &state).unwrap();
        assert_eq!(file.read(), Ok(remembered()));
    }
}
