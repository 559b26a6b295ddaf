use std::path::PathBuf;

use natpunch_plugin::PeerKey;
use schemars::JsonSchema;
use serde::Deserialize;

/// A node of the mesh that serves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServingNode {
    /// Where it serves: `HOST:PORT`.
    pub server: String,
    /// Its WireGuard public key.
    pub public_key: PeerKey,
}

/// The settings of a `[discovery.NAME]` section with `plugin = "rendezvous"`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Where the server is: `HOST:PORT`. For several servers, write several sections.
    pub server: String,
    /// The server's public key in base64, as it prints it at its start.
    #[schemars(with = "String")]
    pub public_key: PeerKey,
    /// The key that the server will have next, while it changes over. Either is accepted.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub next_public_key: Option<PeerKey>,
    /// The file with the mesh's admission secret, if the server asks for one: one line, as
    /// `natpunch keygen` prints it, readable by its owner only. An absolute path.
    #[serde(default)]
    pub admission_secret_file: Option<PathBuf>,
    /// Whether its relay is used while two nodes have no direct path. False: it only introduces
    /// them.
    #[serde(default = "yes")]
    pub relay: bool,
}

fn yes() -> bool {
    true
}
