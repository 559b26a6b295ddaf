//! A peer as it is added to a document: behind the last one, in the form that the others have.

use std::net::IpAddr;

use ipnet::IpNet;
use natpunch_types::PeerKey;
use toml_edit::{Array, DocumentMut, InlineTable, Item, Table, TableLike, Value};

/// A peer as it is added to a mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewPeer {
    /// Its name, a DNS label.
    pub name: String,
    /// Its public key.
    pub public_key: PeerKey,
    /// Its addresses in the mesh.
    pub addresses: Vec<IpAddr>,
    /// Networks behind it.
    pub routes: Vec<IpNet>,
    /// Whether others may send all their traffic through it.
    pub exit: bool,
    /// The peer through which it sends all its own.
    pub exit_node: Option<String>,
    /// `HOST:PORT`.
    pub endpoint: Option<String>,
    /// False for plain WireGuard.
    pub managed: bool,
    /// Words for people and tools.
    pub tags: Vec<String>,
    /// Seconds between keepalives to it; `None`: as the nodes' interfaces say.
    pub persistent_keepalive: Option<u16>,
}

impl NewPeer {
    /// A plain WireGuard peer of which no more is known.
    pub(crate) fn new(name: &str, public_key: PeerKey) -> Self {
        Self {
            name: name.to_owned(),
            public_key,
            addresses: Vec::new(),
            routes: Vec::new(),
            exit: false,
            exit_node: None,
            endpoint: None,
            managed: false,
            tags: Vec::new(),
            persistent_keepalive: None,
        }
    }
}

/// Adds a peer behind the last one of a document.
pub(super) fn insert_peer(document: &mut DocumentMut, peer: &NewPeer) {
    let end = last_position(document.as_table());
    let root = document.as_table_mut();
    let peers = root.entry("peers").or_insert_with(|| {
        let mut table = Table::new();
        table.set_implicit(true);
        Item::Table(table)
    });
    let inline = peers.is_inline_table()
        || peers
            .as_table()
            .is_some_and(|peers| peers.iter().any(|(_, peer)| peer.is_inline_table()));
    if inline {
        if let Some(peers) = peers.as_table_like_mut() {
            let mut table = InlineTable::new();
            fill(&mut table, peer);
            peers.insert(&peer.name, Item::Value(Value::InlineTable(table)));
        }
        return;
    }
    let mut table = peer_section(peer);
    let last = peers.as_table().and_then(last_position);
    let mut before = "\n".to_owned();
    // Behind the whole file, with the comments that end it: they are not about this peer.
    let at_end = last.is_none() || last == end;
    if at_end {
        let trailing = document.trailing().as_str().unwrap_or_default();
        before = if trailing.is_empty() || trailing.ends_with("\n\n") {
            trailing.to_owned()
        } else {
            format!("{trailing}\n")
        };
        if trailing.is_empty() && end.is_some() {
            "\n".clone_into(&mut before);
        }
        table.set_position(Some(end.map_or(0, |end| end + 1)));
        document.set_trailing("");
    } else {
        table.set_position(last);
    }
    table.decor_mut().set_prefix(before);
    if let Some(peers) = document.get_mut("peers").and_then(Item::as_table_like_mut) {
        peers.insert(&peer.name, Item::Table(table));
    }
}

/// The section of a peer.
pub(crate) fn peer_section(peer: &NewPeer) -> Table {
    let mut table = Table::new();
    fill(&mut table, peer);
    table
}

fn fill(table: &mut dyn TableLike, peer: &NewPeer) {
    let mut set = |key: &str, value: Value| {
        table.insert(key, Item::Value(value));
    };
    set("public_key", peer.public_key.to_string().into());
    set(
        "addresses",
        peer.addresses
            .iter()
            .map(ToString::to_string)
            .collect::<Array>()
            .into(),
    );
    if !peer.routes.is_empty() {
        set(
            "routes",
            peer.routes
                .iter()
                .map(ToString::to_string)
                .collect::<Array>()
                .into(),
        );
    }
    if peer.exit {
        set("exit", true.into());
    }
    if let Some(exit) = &peer.exit_node {
        set("exit_node", exit.into());
    }
    if let Some(endpoint) = &peer.endpoint {
        set("endpoint", endpoint.as_str().into());
    }
    if !peer.managed {
        set("managed", false.into());
    }
    if let Some(seconds) = peer.persistent_keepalive {
        set("persistent_keepalive", i64::from(seconds).into());
    }
    if !peer.tags.is_empty() {
        set(
            "tags",
            peer.tags
                .iter()
                .map(String::as_str)
                .collect::<Array>()
                .into(),
        );
    }
}

/// Where in the file the last section within a table begins.
fn last_position(table: &Table) -> Option<isize> {
    let inner = table.iter().filter_map(|(_, item)| match item {
        Item::Table(table) => last_position(table),
        Item::ArrayOfTables(tables) => tables.iter().filter_map(last_position).max(),
        _ => None,
    });
    // An implicit table has no header, and a dotted one is written within another.
    let own = table
        .position()
        .filter(|_| !table.is_implicit() && !table.is_dotted());
    inner.max().max(own)
}
