//! The local control socket behind `status` and `down`: one JSON object a line, each way.
//!
//! The socket is `NAME.agent.sock` in the runtime directory, with mode 0600, and only root and the
//! agent's own user may speak to it (checked by the kernel's peer credentials, since a mode can be
//! changed). With a [`Readers`] group its mode is 0660, and the members of the group may ask, and
//! change nothing. A request is at most 4 KiB, a connection may send them for as long as it likes,
//! and at most 16 connections are served at a time, 8 of them the group's.

mod client;
mod server;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use client::{Client, ControlError, running};
pub use server::{Call, Readers, Server};

/// What can be asked of an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// The status of the mesh.
    Status,
    /// Why the path of a peer is what it is.
    Why {
        /// Its name.
        peer: String,
    },
    /// How a peer sees its path to this node; the peer is asked.
    WhyThere {
        /// Its name.
        peer: String,
    },
    /// Ping a peer on the path in use.
    Ping {
        /// Its name.
        peer: String,
    },
    /// Stop, and leave the tunnels up.
    Stop,
    /// Read the mesh file again now.
    Reload,
    /// A person says that the change under way is good.
    Confirm,
    /// How the interface differs from the version that runs.
    Drift,
    /// What every node of the mesh runs.
    Mesh,
    /// What is counted, in Prometheus' text format.
    Metrics,
}

impl Request {
    /// Whether it only asks.
    fn only_reads(&self) -> bool {
        match self {
            Self::Status
            | Self::Why { .. }
            | Self::WhyThere { .. }
            | Self::Drift
            | Self::Mesh
            | Self::Metrics => true,
            Self::Ping { .. } | Self::Stop | Self::Reload | Self::Confirm => false,
        }
    }
}

/// What an agent answers: the value asked for, or what went wrong.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// Done; the answer, if any.
    Ok(serde_json::Value),
    /// Not done; why.
    Error(String),
}

/// Where agents keep their sockets: `$NATPUNCH_RUNTIME_DIR`, else `/run/natpunch`.
pub fn runtime_dir() -> PathBuf {
    std::env::var_os("NATPUNCH_RUNTIME_DIR")
        .map_or_else(|| PathBuf::from("/run/natpunch"), PathBuf::from)
}

/// Where agents keep what must survive a reboot: `$NATPUNCH_STATE_DIR`, else `$STATE_DIRECTORY`
/// (systemd), else `/var/lib/natpunch`.
pub fn state_dir() -> PathBuf {
    ["NATPUNCH_STATE_DIR", "STATE_DIRECTORY"]
        .iter()
        .find_map(std::env::var_os)
        .map_or_else(|| PathBuf::from("/var/lib/natpunch"), PathBuf::from)
}

/// The name that an agent without a mesh has in place of its interface's, which it does not know yet:
/// longer than the name of an interface can be, so none is taken for it.
const WAITING: &str = "waiting-for-source-";

/// The control socket of an agent that waits for its mesh to come from `location`.
pub(crate) fn waiting_path(directory: &Path, location: &crate::source::Location) -> PathBuf {
    socket_path(directory, &format!("{WAITING}{}", location.id()))
}

/// Whether this is an agent that has no interface yet.
pub fn is_waiting(name: &str) -> bool {
    name.starts_with(WAITING)
}

/// The control socket of the agent of this interface.
pub fn socket_path(directory: &Path, interface: &str) -> PathBuf {
    directory.join(format!("{interface}.agent.sock"))
}
