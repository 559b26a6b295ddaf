//! Where things of a mesh stand.

use std::collections::BTreeMap;
use std::path::PathBuf;

use ipnet::IpNet;

use crate::report::source::Place;

/// Where things of a mesh stand, for errors that are found later.
#[derive(Debug, Clone, Default)]
pub(crate) struct Places {
    /// `name` in `[mesh]`.
    pub(crate) name: Place,
    /// The names of the peers.
    pub(crate) peers: BTreeMap<String, Place>,
    /// `private_key_file`, in `[interface]` and in peers.
    pub(crate) private_key_files: BTreeMap<PathBuf, Place>,
    /// `exit_node`, by the name of the peer that uses it.
    pub(crate) exit_nodes: BTreeMap<String, Place>,
    /// The names of the discovery instances.
    pub(crate) discovery: BTreeMap<String, Place>,
    /// `relays`, by the name of the peer that has this list.
    pub(crate) relays: BTreeMap<String, Place>,
    /// `connect` in `[mesh]`.
    pub(crate) connect: Option<Place>,
    /// `connect` of peers.
    pub(crate) connects: BTreeMap<String, Place>,
    /// The networks of the mesh, in their order.
    pub(crate) networks: Vec<Place>,
    /// The routes.
    pub(crate) routes: BTreeMap<IpNet, Place>,
    /// `listen_port` in `[interface]`.
    pub(crate) listen_port: Option<Place>,
    /// `preshared_key_file`.
    pub(crate) preshared_key_files: BTreeMap<PathBuf, Place>,
    /// `identity_file` in `[secrets]`.
    pub(crate) age_identity_file: Option<Place>,
    /// Encrypted values with recipients that natpunch can't be, and their kinds.
    pub(crate) foreign_recipients: Vec<(Place, Vec<String>)>,
}
