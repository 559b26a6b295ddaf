//! Why the agent can't start or go on.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use natpunch_net::NetError;
use natpunch_os::private::NotPrivate;
use natpunch_rollout::{Refusal, Refused};
use natpunch_types::Help;
use natpunch_wg::WgError;

use crate::config::ConfigErrors;
use crate::source::SourceError;

fn list(refusals: &[Refusal]) -> String {
    refusals
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("; ")
}

/// Why the agent can't start or go on.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The mesh file is wrong; nothing was changed.
    #[error("{0}")]
    Config(#[from] ConfigErrors),
    /// There is no mesh to start with.
    #[error(transparent)]
    Source(#[from] SourceError),
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
    /// Collectors of metrics can't be answered.
    #[error("can't listen on {address} for collectors of metrics: {source}")]
    Metrics {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The path of this program is not known.
    #[error("can't find the path of this program, which the embedded device needs: {0}")]
    Program(io::Error),
    /// A setting that a running mesh can't change.
    #[error("{0} can't change while the mesh is up")]
    Fixed(&'static str),
    /// The change needs a person's consent.
    #[error("the change is refused: {}", list(.0))]
    Refused(Vec<Refusal>),
    /// The version was tried and undone.
    #[error(
        "this version was rolled back, and is not tried again until the mesh file changes: {0}"
    )]
    Held(String),
    /// Others could put a journal, or a version of the mesh, in this node's way.
    #[error("the state directory can't be trusted: {0}")]
    StateDir(NotPrivate),
    /// The change was not begun: without a journal there is no way back.
    #[error(
        "can't write the journal, without which a change could not be undone: {0}; the mesh stays \
         as it was"
    )]
    Journal(String),
    /// The plan that was to be applied is not the one that would be.
    #[error("the plan has changed: it was {wanted}, it is {found}; nothing was changed")]
    PlanChanged {
        /// The id that was asked for.
        wanted: String,
        /// The id of what would be done.
        found: String,
    },
    /// Something that should not happen.
    #[error("{0}")]
    Internal(String),
}

impl From<Refused> for AgentError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Held(reason) => Self::Held(reason),
            Refused::Fixed(what) => Self::Fixed(what),
            Refused::Caps(refusals) => Self::Refused(refusals),
        }
    }
}

impl Help for AgentError {
    fn helps(&self) -> Vec<String> {
        let help = match self {
            Self::Source(error) => return error.helps(),
            Self::Journal(_) => Some(
                "make the state directory writable (NATPUNCH_STATE_DIR, default /var/lib/natpunch)"
                    .to_owned(),
            ),
            Self::Control { source, .. } if source.kind() == io::ErrorKind::AddrInUse => Some(
                "this mesh is applied already; `natpunch status` shows it, `natpunch down` ends it"
                    .to_owned(),
            ),
            Self::Control { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("run as root, or set NATPUNCH_RUNTIME_DIR to a directory of yours".to_owned())
            }
            Self::Refused(refusals) => {
                let words: Vec<&str> = refusals
                    .iter()
                    .map(|refusal| refusal.consent.word())
                    .collect();
                Some(format!(
                    "if it is meant, say so in the file, [apply] allow = [\"{}\"], or with --allow {}",
                    words.join("\", \""),
                    words.join(" --allow ")
                ))
            }
            Self::StateDir(_) => Some("NATPUNCH_STATE_DIR names another directory".to_owned()),
            Self::Fixed(_) => Some("run `natpunch down`, then `natpunch apply` again".to_owned()),
            Self::PlanChanged { .. } => Some("look at `natpunch plan` again".to_owned()),
            _ => None,
        };
        help.into_iter().collect()
    }
}
