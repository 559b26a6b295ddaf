//! The mesh file: raw (as written, with spans), merged, resolved, validated.
//!
//! [`load`] reads one TOML file, or a directory's `*.toml` files in lexical order, and gives the
//! whole mesh or every error of every file at once. [`resolve_node`] then finds this host in it by
//! its private key. Neither writes anything anywhere.

mod age;
mod convert;
mod digest;
mod edit;
mod error;
mod import;
mod keyfile;
mod lint;
mod load;
mod model;
mod names;
mod networks;
mod plugins;
mod raw;
mod read;
mod relays;
mod resolve;
mod schema;
mod serve;
mod validate;
mod value;
mod watch;
mod wg_comments;
mod wg_quick;

pub use age::{
    AgeRecipient, DEFAULT_IDENTITY_FILE, Encrypted, age_encrypt, age_recipients, new_age_identity,
};
pub use convert::{ImportOptions, Loss, convert as convert_wg_quick};
pub use edit::{Edit, NewPeer, create_mesh, free_addresses, new_mesh, similar_peer};
pub use error::{ConfigError, ConfigErrors, Excerpt, Location};
pub use import::{
    ImportedMesh, ImportedPreshared, create_secret_file, imported_text, read_key_file,
    write_imported,
};
pub use keyfile::{new_key_file, new_private_key};
pub use lint::{lint, notes};
pub(crate) use load::fingerprint;
pub use load::{load, load_texts, load_texts_with, reason};
pub use model::{
    ApplyConfig, Backend, Discovery, ExitNode, InterfaceConfig, MeshConfig, NodeConfig, PeerConfig,
    RemotePeer, SERVE_PORTS, SecretSource,
};
pub use plugins::Kind;
pub use resolve::{
    Local, endpoint_listen_port, own_addresses, peers_of, private_key_of, resolve_node,
    resolve_node_at, with_default_routes,
};
pub use schema::schema;
pub use value::parse_span;
pub use watch::Watcher;
pub use wg_quick::{
    LONGEST as WG_QUICK_LONGEST, WgQuick, WgQuickError, WgQuickPeer, decode as decode_wg_quick,
    format as format_wg_quick, parse as parse_wg_quick,
};
