//! Edits of the mesh file that keep its comments and its order, and are written only if the whole
//! mesh is valid after them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, io};

use ipnet::IpNet;
use natpunch_os::{durable, reason};
use natpunch_types::PeerKey;
use toml_edit::{Array, ArrayOfTables, DocumentMut, InlineTable, Item, Table, TableLike, Value};

use crate::file::error::{ConfigError, ConfigErrors, Place};
use crate::file::kind::Kind;
use crate::file::reader::{Quoted, did_you_mean};
use crate::load::{Given, load_with};
use crate::mesh::model::MeshConfig;
use crate::mesh::validate::has_special_addresses;

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

/// A mesh of which one file is edited. Nothing is written before [`Edit::write`].
#[derive(Debug)]
pub struct Edit {
    path: PathBuf,
    kinds: Vec<Kind>,
    mesh: MeshConfig,
    file: PathBuf,
    /// What the file holds; `None`: it is not there yet.
    before: Option<String>,
    document: DocumentMut,
}

impl Edit {
    /// Opens the mesh at `path`, which must be valid but may have no peers yet, to add a peer.
    ///
    /// In a directory the file is `file` if given, else the only one that holds peers; where each
    /// peer has a file of its own, the new one gets one, `NAME.toml`.
    ///
    /// # Errors
    /// The mesh is not valid, or the file can't be chosen.
    pub fn for_new_peer(
        path: &Path,
        file: Option<&Path>,
        name: &str,
        kinds: &[Kind],
    ) -> Result<Self, ConfigErrors> {
        let mesh = load_with(
            path,
            &Given {
                may_be_empty: true,
                ..Given::default()
            },
            kinds,
        )?;
        let file = match file {
            Some(file) => given_file(path, &mesh, file)?,
            None => file_for_new_peer(path, &mesh, name)?,
        };
        Self::open(path, mesh, file, kinds)
    }

    /// Opens the mesh at `path` to remove a peer: the file is the one that has it. `None` if no
    /// file has.
    ///
    /// # Errors
    /// The mesh is not valid.
    pub fn for_peer(path: &Path, name: &str, kinds: &[Kind]) -> Result<Option<Self>, ConfigErrors> {
        let mesh = load_with(path, &Given::default(), kinds)?;
        let file = mesh
            .places
            .peers
            .get(name)
            .and_then(|place| mesh.files.get(place.file))
            .cloned();
        file.map(|file| Self::open(path, mesh, file, kinds))
            .transpose()
    }

    fn open(
        path: &Path,
        mesh: MeshConfig,
        file: PathBuf,
        kinds: &[Kind],
    ) -> Result<Self, ConfigErrors> {
        let before = mesh
            .sources
            .0
            .iter()
            .find(|source| source.path == file)
            .map(|source| source.text.clone());
        let document = before.as_deref().unwrap_or_default().parse().map_err(
            |error: toml_edit::TomlError| {
                fail(
                    &file,
                    format!("this is not TOML: {}", error.message()),
                    "see https://toml.io",
                )
            },
        )?;
        Ok(Self {
            path: path.to_owned(),
            kinds: kinds.to_vec(),
            mesh,
            file,
            before,
            document,
        })
    }

    /// The mesh as it was opened.
    pub fn mesh(&self) -> &MeshConfig {
        &self.mesh
    }

    /// The file that is edited.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// What the file would hold.
    pub fn text(&self) -> String {
        let text = self.document.to_string();
        // The file's own line ends, also for the lines that are new.
        if self
            .before
            .as_ref()
            .is_some_and(|before| before.contains("\r\n"))
        {
            text.replace("\r\n", "\n").replace('\n', "\r\n")
        } else {
            text
        }
    }

    /// Adds a peer behind the last one of the file.
    pub fn add_peer(&mut self, peer: &NewPeer) {
        insert_peer(&mut self.document, peer);
    }

    /// Removes a peer, with the comments right above it, and the preshared keys that it has with
    /// others in this file.
    pub fn remove_peer(&mut self, name: &str) {
        let Some(peers) = self
            .document
            .get_mut("peers")
            .and_then(Item::as_table_like_mut)
        else {
            return;
        };
        let removed = peers.remove(name);
        if let Some(Item::Table(table)) = removed {
            self.keep_comments(&table);
        }
        let names = |table: &dyn TableLike| {
            let pair = table.get("peers").and_then(Item::as_array);
            pair.is_some_and(|pair| pair.iter().any(|peer| peer.as_str() == Some(name)))
        };
        match self.document.get_mut("preshared") {
            Some(Item::ArrayOfTables(sections)) => {
                let removed: Vec<Table> = sections
                    .iter()
                    .filter(|table| names(*table))
                    .cloned()
                    .collect();
                let left: ArrayOfTables = sections
                    .iter()
                    .filter(|table| !names(*table))
                    .cloned()
                    .collect();
                *sections = left;
                for table in &removed {
                    self.keep_comments(table);
                }
            }
            Some(Item::Value(Value::Array(sections))) => {
                sections
                    .retain(|section| !section.as_inline_table().is_some_and(|table| names(table)));
            }
            _ => {}
        }
    }

    /// Comments above a removed section that stand apart from it by an empty line are about what
    /// follows too.
    fn keep_comments(&mut self, removed: &Table) {
        let above = removed
            .decor()
            .prefix()
            .and_then(|prefix| prefix.as_str())
            .unwrap_or_default();
        let Some((kept, _)) = above
            .rsplit_once("\n\n")
            .or_else(|| above.rsplit_once("\n\r\n"))
        else {
            return;
        };
        if kept.trim().is_empty() {
            return;
        }
        let at = removed.position().unwrap_or_default();
        match next_table(self.document.as_table_mut(), at) {
            Some(next) => {
                let own = next
                    .decor()
                    .prefix()
                    .and_then(|prefix| prefix.as_str())
                    .unwrap_or_default();
                let joined = format!(
                    "{kept}\n{}{own}",
                    if own.starts_with('\n') { "" } else { "\n" }
                );
                next.decor_mut().set_prefix(joined);
            }
            None => {
                let own = self.document.trailing().as_str().unwrap_or_default();
                let joined = format!("{kept}\n{own}");
                self.document.set_trailing(joined);
            }
        }
    }

    /// The whole mesh as it would be.
    ///
    /// # Errors
    /// Everything that would be wrong with it.
    pub fn check(&self) -> Result<MeshConfig, ConfigErrors> {
        load_with(
            &self.path,
            &Given {
                file: Some((&self.file, &self.text())),
                may_be_empty: false,
            },
            &self.kinds,
        )
    }

    /// Validates the mesh as it would be, and puts the new text in the file's place at once, with
    /// the mode that it has.
    ///
    /// # Errors
    /// The mesh would not be valid, the file was changed by somebody else since, or it can't be
    /// written. The file is then as it was.
    pub fn write(&self) -> Result<(), ConfigErrors> {
        self.check()?;
        let now = match fs::read(&self.file) {
            Ok(bytes) => Some(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                return Err(fail(
                    &self.file,
                    format!("can't read this file: {}", reason(&error)),
                    "",
                ));
            }
        };
        if now.as_deref() != self.before.as_ref().map(String::as_bytes) {
            return Err(fail(
                &self.file,
                "the file was changed by somebody else meanwhile",
                "say the command again",
            ));
        }
        durable::rewrite(&self.file, self.text().as_bytes()).map_err(|error| {
            fail(
                &self.file,
                format!("can't write this file: {}", reason(&error)),
                "nothing was changed",
            )
        })
    }
}

pub(crate) fn fail(file: &Path, message: impl Into<String>, help: &str) -> ConfigErrors {
    let error = ConfigError::of(file, message);
    let error = if help.is_empty() {
        error
    } else {
        error.help(help)
    };
    ConfigErrors::new(vec![error], Arc::default())
}

/// The file that `--file` names: counted from the mesh's directory if it is not there as it stands.
fn given_file(path: &Path, mesh: &MeshConfig, file: &Path) -> Result<PathBuf, ConfigErrors> {
    let inside = path.join(file);
    for candidate in [file, inside.as_path()] {
        if let Some(known) = mesh.files.iter().find(|known| known.as_path() == candidate) {
            return Ok(known.clone());
        }
    }
    let name = file.file_name().map(Path::new);
    let bare = name == Some(file) || file.parent() == Some(path);
    let visible = name.is_some_and(|name| !name.as_os_str().as_encoded_bytes().starts_with(b"."));
    if path.is_dir()
        && bare
        && visible
        && file
            .extension()
            .is_some_and(|extension| extension == "toml")
    {
        return Ok(path.join(name.unwrap_or(file)));
    }
    let help = if path.is_dir() {
        "name a *.toml file right in that directory; one that is not there yet is made"
    } else {
        "the mesh is one file: leave --file out"
    };
    Err(fail(
        path,
        format!("{} is no file of this mesh", file.display()),
        help,
    ))
}

fn file_for_new_peer(path: &Path, mesh: &MeshConfig, name: &str) -> Result<PathBuf, ConfigErrors> {
    let mut peers: BTreeMap<usize, usize> = BTreeMap::new();
    for place in mesh.places.peers.values() {
        *peers.entry(place.file).or_default() += 1;
    }
    let with_peers: Vec<&PathBuf> = peers
        .keys()
        .filter_map(|file| mesh.files.get(*file))
        .collect();
    match with_peers.as_slice() {
        [only] => Ok((*only).clone()),
        [] => match mesh.files.as_slice() {
            [only] => Ok(only.clone()),
            _ => Ok(path.join("peers.toml")),
        },
        several if peers.values().all(|count| *count == 1) => {
            // A number in front orders the files; it is not part of the peer's name.
            let own = |(peer, place): (&String, &Place)| {
                let stem = mesh.files.get(place.file).and_then(|file| file.file_stem());
                let stem = stem.and_then(|stem| stem.to_str()).unwrap_or_default();
                stem == peer || stem.ends_with(&format!("-{peer}"))
            };
            if mesh.places.peers.iter().all(own) {
                Ok(path.join(format!("{name}.toml")))
            } else {
                Err(which_file(path, several))
            }
        }
        several => Err(which_file(path, several)),
    }
}

fn which_file(path: &Path, files: &[&PathBuf]) -> ConfigErrors {
    const SHOWN: usize = 8;
    let names: Vec<String> = files
        .iter()
        .take(SHOWN)
        .filter_map(|file| file.file_name())
        .map(|name| name.to_string_lossy().into_owned())
        .collect();
    let more = if files.len() > SHOWN { ", …" } else { "" };
    let message = format!("peers are in several files: {}{more}", names.join(", "));
    fail(
        path,
        message,
        "say which one gets the new peer, or name a new one: --file NAME.toml",
    )
}

/// Adds a peer behind the last one of a document.
fn insert_peer(document: &mut DocumentMut, peer: &NewPeer) {
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

/// The first section behind a position.
fn next_table(table: &mut Table, after: isize) -> Option<&mut Table> {
    let next = first_position(table, after)?;
    at_position(table, next)
}

fn first_position(table: &Table, after: isize) -> Option<isize> {
    let inner = table.iter().filter_map(|(_, item)| match item {
        Item::Table(table) => first_position(table, after),
        Item::ArrayOfTables(tables) => tables
            .iter()
            .filter_map(|table| first_position(table, after))
            .min(),
        _ => None,
    });
    let own = table
        .position()
        .filter(|position| *position > after && !table.is_implicit() && !table.is_dotted());
    inner.chain(own).min()
}

fn at_position(table: &mut Table, position: isize) -> Option<&mut Table> {
    if table.position() == Some(position) && !table.is_implicit() && !table.is_dotted() {
        return Some(table);
    }
    table.iter_mut().find_map(|(_, item)| match item {
        Item::Table(table) => at_position(table, position),
        Item::ArrayOfTables(tables) => tables
            .iter_mut()
            .find_map(|table| at_position(table, position)),
        _ => None,
    })
}

/// The names of peers that look like a name that no peer has.
pub fn similar_peer<'a>(mesh: &'a MeshConfig, name: &str) -> Option<&'a str> {
    let names: Vec<&str> = mesh.peers.keys().map(String::as_str).collect();
    did_you_mean(name, &names)
}

/// The lowest free address of each address family that the mesh has: of the first network of the
/// family with one.
///
/// # Errors
/// A family has no network with a free address.
pub fn free_addresses(mesh: &MeshConfig) -> Result<Vec<IpAddr>, ConfigErrors> {
    let mut claims: Vec<(u128, u128)> = Vec::new();
    let mut addresses = Vec::new();
    for v6 in [false, true] {
        claims.clear();
        let family = |net: &&IpNet| matches!(net, IpNet::V6(_)) == v6;
        for peer in mesh.peers.values() {
            let hosts = peer.addresses.iter().map(|address| IpNet::from(*address));
            claims.extend(
                hosts
                    .chain(peer.routes.iter().copied())
                    .filter(|net| family(&net))
                    .map(|net| bounds(&net)),
            );
        }
        claims.sort_unstable();
        let taken = merged(&claims);
        let networks: Vec<&IpNet> = mesh.networks.iter().filter(family).collect();
        match networks.iter().find_map(|network| free_in(network, &taken)) {
            Some(free) => addresses.push(free),
            None if networks.is_empty() => {}
            None => {
                let all: BTreeSet<String> = networks.iter().map(ToString::to_string).collect();
                let all = all.into_iter().collect::<Vec<_>>().join(" and ");
                let file = mesh.files.first().cloned().unwrap_or_default();
                let help = "add a network to `mesh.networks`, or say --address yourself";
                return Err(fail(&file, format!("no address is free in {all}"), help));
            }
        }
    }
    Ok(addresses)
}

fn bounds(net: &IpNet) -> (u128, u128) {
    match net {
        IpNet::V4(net) => (
            u32::from(net.network()).into(),
            u32::from(net.broadcast()).into(),
        ),
        IpNet::V6(net) => (net.network().into(), net.broadcast().into()),
    }
}

/// Sorted claims as sorted stretches that are apart.
fn merged(claims: &[(u128, u128)]) -> Vec<(u128, u128)> {
    let mut merged: Vec<(u128, u128)> = Vec::new();
    for (start, end) in claims {
        match merged.last_mut() {
            Some((_, last)) if *start <= last.saturating_add(1) => *last = (*last).max(*end),
            _ => merged.push((*start, *end)),
        }
    }
    merged
}

/// The lowest address of a network that is in none of these stretches, which are sorted and apart.
fn free_in(network: &IpNet, taken: &[(u128, u128)]) -> Option<IpAddr> {
    let (mut candidate, mut last) = bounds(network);
    if has_special_addresses(*network) {
        candidate += 1;
        last -= u128::from(matches!(network, IpNet::V4(_)));
    }
    // Of the stretches only the last that begins at or before the candidate can hold it.
    let after = taken.partition_point(|(start, _)| *start <= candidate);
    let around = after.checked_sub(1).and_then(|at| taken.get(at));
    if let Some((_, end)) = around.filter(|(_, end)| *end >= candidate) {
        candidate = end.checked_add(1)?;
    }
    let free = match network {
        IpNet::V4(_) => IpAddr::V4(u32::try_from(candidate).ok()?.into()),
        IpNet::V6(_) => IpAddr::V6(candidate.into()),
    };
    (candidate <= last).then_some(free)
}

/// The text of a new mesh file without peers.
///
/// # Errors
/// What is wrong with the name or a network.
pub fn new_mesh(
    path: &Path,
    name: &str,
    networks: &[IpNet],
    kinds: &[Kind],
) -> Result<String, ConfigErrors> {
    let quoted = |value: Value| value.to_string().trim().to_owned();
    let networks = networks.iter().map(ToString::to_string).collect::<Array>();
    let text = format!(
        "# The mesh: the same file on every node. `natpunch check` validates it, docs/config.md has every key.\n\
         \n\
         [mesh]\n\
         name = {}\n\
         networks = {}\n\
         \n\
         [interface]\n\
         # Each node has its own private key in this file, mode 0600: `natpunch keygen` makes one.\n\
         private_key_file = {}\n\
         \n\
         # How nodes without an endpoint find each other. Any number, all used at once; see docs/server.md.\n\
         # [discovery.rv]\n\
         # plugin = \"rendezvous\"\n\
         # server = \"rv.example.org:51900\"\n\
         # public_key = \"…\"                  # the server prints it\n\
         # admission_secret_file = \"/etc/natpunch/admission.key\"\n\
         # Or, without a server: a peer with an endpoint that the others reach, and serve = true.\n",
        quoted(name.into()),
        quoted(networks.into()),
        quoted(format!("/etc/natpunch/{}.key", Quoted(name)).into()),
    );
    load_with(
        path,
        &Given {
            file: Some((path, &text)),
            may_be_empty: true,
        },
        kinds,
    )?;
    Ok(text)
}

/// Makes the file of a new mesh.
///
/// # Errors
/// What is wrong with it, or why it can't be written. A file that is there is never overwritten.
pub fn create_mesh(
    path: &Path,
    name: &str,
    networks: &[IpNet],
    kinds: &[Kind],
) -> Result<(), ConfigErrors> {
    let text = new_mesh(path, name, networks, kinds)?;
    durable::create(path, text.as_bytes(), 0o644).map_err(|error| {
        let help = match error.kind() {
            io::ErrorKind::AlreadyExists => {
                "name another file; a file that is there is never overwritten"
            }
            _ => "nothing was changed",
        };
        fail(
            path,
            format!("can't make this file: {}", reason(&error)),
            help,
        )
    })
}
