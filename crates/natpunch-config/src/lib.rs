//! The mesh file as a language: text, raw sections with their places, a checked mesh, and one
//! node's part of it.
//!
//! [`load`] reads one TOML file, or a directory's `*.toml` files in lexical order, and gives the
//! whole mesh or every error of every file at once. [`resolve_node`] then finds this host in it by
//! its private key. Neither writes anything anywhere. [`Edit`] changes a mesh file and keeps its
//! comments; [`lint`] says what is allowed and likely not meant.
//!
//! The rooms build on each other: `report` (what is wrong, where, and what to do), `file` (text to
//! raw sections), `mesh` (their meaning and its checks), `node` (this node's part, and its
//! secrets), and then beside each other `lint`, `edit` and `wg_quick`. No plugin is known here:
//! whoever loads a mesh hands in the [`Kind`]s that it may name. Files are read and written through
//! [`natpunch_os`] and `std::fs`; there is no socket, no clock and no runtime.

mod diff;
mod edit;
mod file;
mod lint;
mod load;
mod mesh;
mod node;
mod report;
mod schema;
mod wg_quick;

pub use diff::{Impact, MeshDiff, NodeSteps, PairSteps, Step, Turn, diff};
pub use edit::free_addresses::free_addresses;
pub use edit::new_mesh::{create_mesh, new_mesh};
pub use edit::new_peer::NewPeer;
pub use edit::{Edit, similar_peer};
pub use file::encrypted::Encrypted;
pub use file::forms::{Backend, SERVE_PORTS, parse_span};
pub use file::kind::Kind;
pub use lint::{lint, notes};
pub use load::{fingerprint, fingerprint_with_keys, load, load_texts};
pub use mesh::model::{
    ApplyConfig, Discovery, InterfaceConfig, KeyPlaces, MeshConfig, PeerConfig, SecretSource,
};
pub use mesh::ports::endpoint_listen_port;
pub use node::exit_node::with_default_routes;
pub use node::identity::{
    AgeRecipient, DEFAULT_IDENTITY_FILE, age_encrypt, age_recipients, age_seal, age_unseal,
    new_age_identity,
};
pub use node::key_file::{
    create_secret_file, new_key_file, new_private_key, read_key_file, read_password_file,
};
pub use node::local::Local;
pub use node::model::{ExitNode, NodeConfig, RemotePeer};
pub use node::resolve::{
    own_addresses, peers_of, private_key_of, resolve_node, resolve_node_at, without_keys,
};
pub use report::error::{ConfigError, ConfigErrors, Excerpt};
pub use report::source::Location;
pub use schema::schema;
pub use wg_quick::convert::{ImportOptions, Loss, convert as convert_wg_quick};
pub use wg_quick::import::{ImportedMesh, ImportedPreshared, imported_text, write_imported};
pub use wg_quick::syntax::{
    LONGEST as WG_QUICK_LONGEST, WgQuick, WgQuickError, WgQuickPeer, decode as decode_wg_quick,
    format as format_wg_quick, parse as parse_wg_quick,
};
