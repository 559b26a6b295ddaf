//! Which peer of the mesh this host is: the one whose private key it has.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use natpunch_types::{PeerKey, SecretKey};

use super::identity::Closed;
use super::key_file;
use super::secrets::SecretReader;
use crate::mesh::model::{MeshConfig, PeerConfig, SecretSource};
use crate::report::error::ConfigError;
use crate::report::wording::Quoted;

/// The peer that this host is.
pub(super) struct ThisHost<'a> {
    pub(super) name: &'a str,
    pub(super) private_key: SecretKey,
    /// The file that holds the key, or opens it.
    pub(super) key_file: PathBuf,
}

impl<'a> ThisHost<'a> {
    fn new(name: &'a str, private_key: SecretKey, key_file: &Path) -> Self {
        Self {
            name,
            private_key,
            key_file: key_file.to_owned(),
        }
    }
}

/// Finds this host among the peers, by the key file that it was told of or by what the mesh names.
///
/// # Errors
/// A key can't be used, or no peer, or more than one, is this host.
pub(super) fn find<'a>(secrets: &SecretReader<'a>) -> Result<ThisHost<'a>, Vec<ConfigError>> {
    let search = Search {
        secrets,
        mesh: secrets.mesh,
        node: secrets.local.node.as_deref(),
        found: Vec::new(),
        errors: Vec::new(),
    };
    match &secrets.local.private_key_file {
        Some(file) => search.by_file(file),
        None => search.by_mesh(),
    }
}

struct Search<'s, 'a> {
    secrets: &'s SecretReader<'a>,
    mesh: &'a MeshConfig,
    /// The only peer that this host may be, if it was told so.
    node: Option<&'a str>,
    found: Vec<ThisHost<'a>>,
    errors: Vec<ConfigError>,
}

impl<'a> Search<'_, 'a> {
    fn by_file(self, file: &Path) -> Result<ThisHost<'a>, Vec<ConfigError>> {
        let key: SecretKey = key_file::read(file, "keygen")
            .map_err(|error| vec![self.secrets.key_file_error(file, error)])?;
        match self.owner_of(&key) {
            Some(name) => Ok(ThisHost::new(name, key, file)),
            None => Err(vec![self.nobody(file, &key)]),
        }
    }

    fn by_mesh(mut self) -> Result<ThisHost<'a>, Vec<ConfigError>> {
        if let Some(node) = self.node
            && !self.mesh.peers.contains_key(node)
        {
            return Err(vec![self.no_such_node(node)]);
        }
        let named = self.by_key_files();
        // A key file on this host is its owner's word; an identity may open the keys of several.
        if self.found.is_empty() {
            let closed = self.by_identity();
            if self.found.is_empty() && self.errors.is_empty() {
                self.errors.extend(closed);
            }
        }
        match self.found.pop() {
            Some(only) if self.found.is_empty() => Ok(only),
            Some(last) => {
                self.found.push(last);
                Err(vec![self.several()])
            }
            None if self.errors.is_empty() => Err(vec![self.no_key_file(named)]),
            None => Err(self.errors),
        }
    }

    /// The peers that this host may be.
    fn candidates(&self) -> impl Iterator<Item = (&'a str, &'a PeerConfig)> + use<'a> {
        let node = self.node;
        let peers = self.mesh.peers.iter();
        peers
            .map(|(name, peer)| (name.as_str(), peer))
            .filter(move |(name, _)| node.is_none_or(|node| node == *name))
    }

    /// Looks for key files on this host that hold the key of a peer which names them. The value is
    /// one of the files that peers name, if any does.
    fn by_key_files(&mut self) -> Option<&'a Path> {
        // Peers by the file that would hold their key on their host.
        let mut files: BTreeMap<&Path, BTreeMap<PeerKey, &str>> = BTreeMap::new();
        for (name, peer) in self.candidates() {
            if let Some(file) = self.key_file_of(peer) {
                files.entry(file).or_default().insert(peer.public_key, name);
            }
        }
        for (file, peers) in &files {
            if !key_file::exists(file) {
                continue;
            }
            match key_file::read::<SecretKey>(file, "keygen") {
                Ok(key) => match peers.get(&key.public_key()) {
                    Some(name) => self.found.push(ThisHost::new(name, key, file)),
                    None => self.errors.push(self.nobody(file, &key)),
                },
                Err(error) => self.errors.push(self.secrets.key_file_error(file, error)),
            }
        }
        files.keys().next().copied()
    }

    /// Looks for encrypted private keys that this host's identity opens. The value is what is wrong
    /// if there are such keys, but none of them opens.
    fn by_identity(&mut self) -> Option<ConfigError> {
        let mut closed = None;
        for (name, peer) in self.candidates() {
            let Some(SecretSource::Age(value)) = &peer.interface.private_key else {
                continue;
            };
            let identities = match self.secrets.identities() {
                Ok(identities) => identities,
                Err(error) => return Some(self.secrets.no_identity(value, error)),
            };
            match identities.open::<SecretKey>(value) {
                Ok(key) => match self.secrets.check_key(name, peer, value, key) {
                    Ok(key) => {
                        let host = ThisHost::new(name, key, identities.file());
                        self.found.push(host);
                    }
                    Err(error) => self.errors.push(error),
                },
                Err(why) => {
                    let error = self.secrets.closed(value, why, identities);
                    match why {
                        // Of a mesh whose keys are all encrypted, every key but one is for others.
                        Closed::NotForUs => closed = closed.or(Some(error)),
                        Closed::Damaged | Closed::NotAKey(_) => self.errors.push(error),
                    }
                }
            }
        }
        closed
    }

    /// The file that would hold a peer's key on its host.
    fn key_file_of(&self, peer: &'a PeerConfig) -> Option<&'a Path> {
        let own = peer.interface.private_key.as_ref();
        match own.or(self.mesh.interface.private_key.as_ref())? {
            SecretSource::File(file) => Some(file),
            SecretSource::Age(_) => None,
        }
    }

    fn owner_of(&self, key: &SecretKey) -> Option<&'a str> {
        let public = key.public_key();
        let mut peers = self.mesh.peers.iter();
        let owner = peers.find(|(_, peer)| peer.public_key == public);
        owner.map(|(name, _)| name.as_str())
    }

    /// A file of the mesh, for errors about all of it.
    fn mesh_file(&self) -> PathBuf {
        self.mesh.files.first().cloned().unwrap_or_default()
    }

    fn no_such_node(&self, node: &str) -> ConfigError {
        let message = format!("there is no peer `{}`, as --node says", Quoted(node));
        ConfigError::of(&self.mesh_file(), message)
            .help("name the peer that this host is, as in its section [peers.NAME]")
    }

    fn several(&self) -> ConfigError {
        let names: Vec<&str> = self.found.iter().map(|host| host.name).collect();
        let names = names.join(", ");
        let message = format!("this host holds the keys of several peers: {names}");
        let file = self.found.first().map(|host| host.key_file.as_path());
        self.secrets
            .error(file.unwrap_or(Path::new("")), message)
            .help("say which one it is: --node NAME, or --private-key-file FILE")
    }

    /// No key of this host was found; `named` is a file that could hold one.
    fn no_key_file(&self, named: Option<&Path>) -> ConfigError {
        let Some(file) = named else {
            let message = "the mesh names no private key file";
            return ConfigError::of(&self.mesh_file(), message).help(
                "add [interface] with private_key_file = \"/etc/natpunch/mesh.key\", or say \
                 --private-key-file FILE",
            );
        };
        match key_file::read::<SecretKey>(file, "keygen") {
            Err(error) => self.secrets.key_file_error(file, error),
            Ok(key) => self.nobody(file, &key),
        }
    }

    /// No peer has this key, or one that names another file.
    fn nobody(&self, file: &Path, key: &SecretKey) -> ConfigError {
        let message = format!("no peer of the mesh has the key of {}", file.display());
        let error = self.secrets.error(file, message);
        if let Some(name) = self.owner_of(key) {
            let help = "whose section names another private_key_file";
            return error.help(format!("it is the key of `{name}`, {help}"));
        }
        let public = key.public_key();
        error
            .help(format!(
                "its public key is {public}: add it as [peers.NAME] with public_key = \"{public}\""
            ))
            .help("or name the right key: --private-key-file FILE")
    }
}
