//! Why the agent can't start or go on.

use std::io;
use std::path::PathBuf;

use natpunch_net::NetError;
use natpunch_plugin::PluginError;
use natpunch_wg::WgError;

use crate::config::ConfigErrors;
use crate::source::SourceError;

/// Why the agent can't start or go on.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The mesh file is wrong; nothing was changed.
    #[error("{0}")]
    Config(#[from] ConfigErrors),
    /// There is no mesh to start with.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A plugin refuses its settings; nothing was changed.
    #[error("discovery: {0}")]
    Plugin(PluginError),
    /// The WireGuard device.
    #[error(transparent)]
    Device(#[from] WgError),
    /// The raw sockets or the link watch.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The control socket.
    #[error("can't listen on the control socket {}: {source}", path.display())]
    Control {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The path of this program is not known.
    #[error("can't find the path of this program, which the embedded device needs: {0}")]
    Program(io::Error),
    /// A setting that a running mesh can't change.
    #[error("{0} can't change while the mesh is up: run `natpunch down`, then `natpunch apply` again")]
    Fixed(&'static str),
    /// Something that should not happen.
    #[error("{0}")]
    Internal(String),
}

impl AgentError {
    /// What to do about it.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Source(error) => error.hint().map(str::to_owned),
            Self::Control { source, .. } if source.kind() == io::ErrorKind::AddrInUse => {
                Some("this mesh is applied already; `natpunch status` shows it, `natpunch down` ends it".to_owned())
            }
            Self::Control { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("run as root, or set NATPUNCH_RUNTIME_DIR to a directory of yours".to_owned())
            }
            _ => None,
        }
    }
}
