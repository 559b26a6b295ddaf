//! Edits of the mesh file that keep its comments and its order, and are written only if the whole
//! mesh is valid after them.

mod changes;
mod choice_of_file;
pub(crate) mod free_addresses;
pub(crate) mod new_mesh;
pub(crate) mod new_peer;
mod removal;

use std::path::{Path, PathBuf};
use std::{fs, io};

use natpunch_os::{durable, reason};
use toml_edit::{DocumentMut, Value};

use crate::file::kind::Kind;
use crate::load::{Given, load_with};
use crate::mesh::model::MeshConfig;
use crate::report::error::ConfigErrors;
use crate::report::wording::did_you_mean;
use choice_of_file::{file_for_new_peer, given_file};
use new_peer::{NewPeer, insert_peer};

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

    /// Opens the mesh at `path` to change or remove a peer: the file is the one that has it. `None` if no
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
                ConfigErrors::of(
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
        removal::remove_peer(&mut self.document, name);
    }

    /// Sets a key of a peer, such as `endpoint` or `interface.listen_port`, to a value as the file
    /// would have it; text that is none is taken as a string. `None` removes the key.
    ///
    /// # Errors
    /// There is no place for it.
    pub fn set(&mut self, peer: &str, key: &str, value: Option<&str>) -> Result<(), ConfigErrors> {
        let value = value.map(|text| text.parse::<Value>().unwrap_or_else(|_| text.into()));
        changes::set(&mut self.document, peer, key, value).map_err(|error| {
            let help = "name a key of [peers.NAME], such as endpoint or interface.listen_port";
            ConfigErrors::of(&self.file, error.0, help)
        })
    }

    /// Gives a peer another name, also where others of this file name it.
    pub fn rename_peer(&mut self, from: &str, to: &str) {
        changes::rename(&mut self.document, from, to);
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
                return Err(ConfigErrors::of(
                    &self.file,
                    format!("can't read this file: {}", reason(&error)),
                    "",
                ));
            }
        };
        if now.as_deref() != self.before.as_ref().map(String::as_bytes) {
            return Err(ConfigErrors::of(
                &self.file,
                "the file was changed by somebody else meanwhile",
                "say the command again",
            ));
        }
        durable::rewrite(&self.file, self.text().as_bytes()).map_err(|error| {
            ConfigErrors::of(
                &self.file,
                format!("can't write this file: {}", reason(&error)),
                "nothing was changed",
            )
        })
    }
}

/// The names of peers that look like a name that no peer has.
pub fn similar_peer<'a>(mesh: &'a MeshConfig, name: &str) -> Option<&'a str> {
    let names: Vec<&str> = mesh.peers.keys().map(String::as_str).collect();
    did_you_mean(name, &names)
}
