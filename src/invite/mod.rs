//! Invites: what a new node has to be told before it can be one, as one line of text.
//!
//! `natpunch invite` makes the line (`origin` finds out where the mesh is fetched from), `line` is
//! its form, and `natpunch join` turns it into files of the new machine (`install`). What the line
//! protects and what not is in `docs/how-to/join.md`.

mod install;
mod line;
mod origin;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use natpunch_types::Help;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::config::{MeshConfig, SecretSource};

pub use install::{Content, Found, Installation, Piece};
pub use line::{LineError, decode, encode, is_sealed};
pub use origin::origin_of;

/// The directory that an invite may put files into, and no other.
pub const DIRECTORY: &str = "/etc/natpunch";

/// How far a clock may be behind that of the machine which made the invite.
const MOST_SKEW: u64 = 3600;

/// What a new node is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Invite {
    /// The mesh that it is for.
    pub mesh: String,
    /// The one node that it is for.
    pub node: String,
    /// When it was made, in seconds since 1970.
    pub made: u64,
    /// Until when it may be used, in seconds since 1970.
    pub expires: u64,
    /// Where the node fetches the mesh from, as `natpunch apply` takes it.
    pub source: String,
    /// The text of its trust file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust: Option<String>,
    /// What the mesh's secret files hold, by their path.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<PathBuf, Secret>,
    /// Its private key, in base64, if the mesh knows it already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Secret>,
}

impl Invite {
    /// Demands that it may be used at this time, in seconds since 1970.
    ///
    /// # Errors
    /// It is old, or this machine's clock is wrong.
    pub fn check_time(&self, now: u64) -> Result<(), LineError> {
        if now > self.expires {
            return Err(LineError::Expired {
                ago: Duration::from_secs(now - self.expires),
            });
        }
        if now.saturating_add(MOST_SKEW) < self.made {
            return Err(LineError::FromTheFuture {
                by: Duration::from_secs(self.made - now),
            });
        }
        Ok(())
    }
}

/// The files that hold secrets of the whole mesh, on every node.
pub fn secret_files(mesh: &MeshConfig) -> BTreeSet<PathBuf> {
    let asked = mesh.discovery.iter().flat_map(|instance| {
        let files = instance.about.secrets.iter();
        files.map(|secret| secret.path.clone())
    });
    let preshared = match &mesh.preshared_secret {
        Some(SecretSource::File(file)) => Some(file.clone()),
        _ => None,
    };
    asked.chain(preshared).collect()
}

/// Whether an invite may put a file there: right in, or below, [`DIRECTORY`].
pub fn may_be_written(path: &Path) -> bool {
    let plain = path
        .components()
        .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    plain && path.starts_with(DIRECTORY) && path != Path::new(DIRECTORY)
}

/// A secret as text: wiped when it is dropped, and never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub Zeroizing<String>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self(Zeroizing::new(text)))
    }
}

/// A time as people say it: the two largest units.
pub fn spoken(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

impl Help for LineError {
    fn helps(&self) -> Vec<String> {
        let help = match self {
            Self::NotAnInvite => "paste the whole line that `natpunch invite NAME` printed",
            Self::Version(_) => "install the natpunch that made it, or a newer one",
            Self::Cut { .. } | Self::Added | Self::Altered => {
                "copy it again, from its first word to its last"
            }
            Self::NeedsCode => "the code is what `natpunch invite` printed beside the line",
            Self::WrongCode => "type the code again, as `natpunch invite` printed it",
            Self::Expired { .. } => "ask for a new one: `natpunch invite NAME`",
            Self::FromTheFuture { .. } => "set the clock of this machine, then try again",
        };
        vec![help.to_owned()]
    }
}
