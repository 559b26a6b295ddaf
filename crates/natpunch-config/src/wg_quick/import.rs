//! A new mesh from a running WireGuard setup: its file, and the key files that it names.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use natpunch_os::durable;
use natpunch_types::{PresharedKey, SecretKey};
use toml_edit::{Array, DocumentMut, Item, Table, value};

use crate::edit::new_peer::{NewPeer, peer_section};
use crate::file::kind::Kind;
use crate::load::{Given, load_with};
use crate::node::key_file;
use crate::report::error::ConfigErrors;

/// A mesh to be written.
#[derive(Debug)]
pub struct ImportedMesh {
    /// Its name.
    pub name: String,
    /// Its networks.
    pub networks: Vec<IpNet>,
    /// The name of this node.
    pub own: String,
    /// The name of this node's interface.
    pub interface: String,
    /// This node's private key.
    pub private_key: SecretKey,
    /// The file to be made for it.
    pub private_key_file: PathBuf,
    /// That file is there already; the mesh file names it as it stands.
    pub private_key_is_there: bool,
    /// This node's UDP port.
    pub listen_port: Option<u16>,
    /// This node's MTU, in bytes.
    pub mtu: Option<u32>,
    /// This node's firewall mark.
    pub fwmark: Option<u32>,
    /// Whether a program runs this node's device.
    pub external: bool,
    /// All peers, this node among them.
    pub peers: Vec<NewPeer>,
    /// Preshared keys of this node and others.
    pub preshared: Vec<ImportedPreshared>,
}

/// A preshared key to be written.
#[derive(Debug)]
pub struct ImportedPreshared {
    /// The other peer.
    pub peer: String,
    /// The key.
    pub key: PresharedKey,
    /// The file to be made for it.
    pub file: PathBuf,
}

/// The text of the mesh file, valid.
///
/// # Errors
/// What would be wrong with it.
pub fn imported_text(
    path: &Path,
    mesh: &ImportedMesh,
    kinds: &[Kind],
) -> Result<String, ConfigErrors> {
    let mut document = DocumentMut::new();
    let mut section = Table::new();
    section.insert("name", value(&mesh.name));
    section.insert(
        "networks",
        value(
            mesh.networks
                .iter()
                .map(ToString::to_string)
                .collect::<Array>(),
        ),
    );
    section.set_position(Some(0));
    section
        .decor_mut()
        .set_prefix("# Made by `natpunch import`; every key: docs/config.md.\n\n");
    document.insert("mesh", Item::Table(section));
    let named = |file: &Path| {
        file.file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    };
    let mut peers = Table::new();
    peers.set_implicit(true);
    for (n, peer) in (1_isize..).zip(&mesh.peers) {
        let mut section = peer_section(peer);
        section.set_position(Some(n));
        section.decor_mut().set_prefix("\n");
        if peer.name != mesh.own {
            peers.insert(&peer.name, Item::Table(section));
            continue;
        }
        let mut own = Table::new();
        own.insert("name", value(&mesh.interface));
        let key_file = match mesh.private_key_is_there {
            true => mesh.private_key_file.to_string_lossy().into_owned(),
            false => named(&mesh.private_key_file),
        };
        own.insert("private_key_file", value(key_file));
        for (key, number) in [
            ("listen_port", mesh.listen_port.map(i64::from)),
            ("mtu", mesh.mtu.map(i64::from)),
            (
                "fwmark",
                mesh.fwmark.filter(|mark| *mark != 0).map(i64::from),
            ),
        ] {
            if let Some(number) = number {
                own.insert(key, value(number));
            }
        }
        if mesh.external {
            own.insert("backend", value("external"));
        }
        own.set_position(Some(n));
        own.decor_mut().set_prefix("\n");
        section.insert("interface", Item::Table(own));
        peers.insert(&peer.name, Item::Table(section));
    }
    document.insert("peers", Item::Table(peers));
    let mut text = document.to_string();
    for psk in &mesh.preshared {
        let pair: Array = [mesh.own.as_str(), &psk.peer].into_iter().collect();
        let file = value(named(&psk.file));
        write!(
            text,
            "\n[[preshared]]\npeers = {}\npreshared_key_file = {}\n",
            value(pair).to_string().trim(),
            file.to_string().trim()
        )
        .ok();
    }
    load_with(
        path,
        &Given {
            file: Some((path, &text)),
            may_be_empty: false,
        },
        kinds,
    )?;
    Ok(text)
}

/// Makes the key files, each readable by its owner only, and then the mesh file. Nothing that is
/// there is overwritten.
///
/// # Errors
/// A file is there already, or can't be made. What was made before is removed again.
pub fn write_imported(path: &Path, mesh: &ImportedMesh, text: &str) -> Result<(), ConfigErrors> {
    let mut made: Vec<&Path> = Vec::new();
    let private_key = (&mesh.private_key_file, mesh.private_key.expose_base64());
    let keys = Some(private_key)
        .filter(|_| !mesh.private_key_is_there)
        .into_iter()
        .chain(
            mesh.preshared
                .iter()
                .map(|psk| (&psk.file, psk.key.expose_base64())),
        );
    let mut done = Ok(());
    for (file, key) in keys {
        done = key_file::write(file, &key).map_err(|error| ConfigErrors::cannot_make(file, &error));
        if done.is_err() {
            break;
        }
        made.push(file);
    }
    let done = done.and_then(|()| {
        durable::create(path, text.as_bytes(), 0o644)
            .map_err(|error| ConfigErrors::cannot_make(path, &error))
    });
    if done.is_err() {
        for file in made {
            std::fs::remove_file(file).ok();
        }
    }
    done
}
