//! What of an interface is ours: a small file per interface, so that a restarted agent removes what
//! the one before it made, and never what somebody else added.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use natpunch_os::{durable, private};
use natpunch_types::PeerKey;
use serde::{Deserialize, Serialize};

use crate::backend::BackendKind;
use crate::error::WgError;
use crate::routing::Rule;

/// What we made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StateFile {
    /// The mesh.
    pub(crate) owner: String,
    /// The backend of the interface.
    pub(crate) backend: BackendKind,
    /// Addresses that we set.
    pub(crate) addresses: BTreeSet<IpNet>,
    /// Peers that we added.
    pub(crate) peers: BTreeSet<PeerKey>,
    /// Policy rules that we made.
    #[serde(default)]
    pub(crate) rules: BTreeSet<Rule>,
    /// Whether there may be a table of pins, whose own content says which.
    #[serde(default)]
    pub(crate) pins: bool,
}

impl StateFile {
    /// A file of nothing.
    pub(crate) fn new(owner: &str, backend: BackendKind) -> Self {
        let owner = owner.to_owned();
        Self {
            owner,
            backend,
            addresses: BTreeSet::new(),
            peers: BTreeSet::new(),
            rules: BTreeSet::new(),
            pins: false,
        }
    }

    /// The routing tables that are the interface's own.
    pub(crate) fn tables(&self) -> BTreeSet<u32> {
        self.rules
            .iter()
            .filter(|rule| rule.diverts())
            .map(|rule| rule.table)
            .collect()
    }
}

/// Larger than the file of 100,000 peers; anything beyond is not ours.
const MAX_BYTES: u64 = 16 << 20;

pub(crate) fn path(runtime_dir: &Path, name: &str) -> PathBuf {
    runtime_dir.join(format!("{name}.state.json"))
}

/// The control socket of the embedded device of this interface.
pub(crate) fn control_socket(runtime_dir: &Path, name: &str) -> PathBuf {
    runtime_dir.join(format!("{name}.device.sock"))
}

/// The log of the process that guards this interface's peers at rest.
pub fn guard_log(runtime_dir: &Path, name: &str) -> PathBuf {
    runtime_dir.join(format!("{name}.guard.log"))
}

/// Makes the runtime directory, for root's eyes only, and refuses one that others may write to:
/// what is believed of the files and sockets in it is done as root.
pub(crate) fn make_runtime_dir(dir: &Path) -> Result<(), WgError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|e| WgError::io(format!("create directory {}", dir.display()), e))?;
    Ok(private::check_directory(dir)?)
}

/// An interface that natpunch made and did not take down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Managed {
    /// Its name.
    pub name: String,
    /// The mesh that it belongs to.
    pub owner: String,
}

/// The interfaces that natpunch made on this host and did not take down, sorted by name.
pub fn managed(runtime_dir: &Path) -> Vec<Managed> {
    let Ok(entries) = fs::read_dir(runtime_dir) else {
        return Vec::new();
    };
    let mut found: Vec<_> = entries
        .filter_map(|entry| {
            let file = entry.ok()?.file_name().into_string().ok()?;
            let name = file.strip_suffix(".state.json")?.to_owned();
            let owner = read(runtime_dir, &name)?.owner;
            Some(Managed { name, owner })
        })
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

/// Reads the file; a missing or damaged one is `None`.
pub(crate) fn read(runtime_dir: &Path, name: &str) -> Option<StateFile> {
    let path = path(runtime_dir, name);
    if fs::metadata(&path).ok()?.len() > MAX_BYTES {
        return None;
    }
    serde_json::from_slice(&fs::read(&path).ok()?).ok()
}

/// Writes the file whole or not at all; when this returns, it is on the disk.
pub(crate) fn write(runtime_dir: &Path, name: &str, state: &StateFile) -> Result<(), WgError> {
    let path = path(runtime_dir, name);
    serde_json::to_vec(state)
        .map_err(io::Error::other)
        .and_then(|text| durable::replace(&path, &text, 0o600))
        .map_err(|e| WgError::io(format!("write {}", path.display()), e))
}

/// Removes the file.
pub(crate) fn remove(runtime_dir: &Path, name: &str) {
    let _ = fs::remove_file(path(runtime_dir, name));
}
