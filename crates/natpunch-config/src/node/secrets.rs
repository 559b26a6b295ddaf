//! The secrets of this host: from its files, and from the encrypted values that its age identity
//! opens. Every error is at the place that names the secret.

use std::cell::OnceCell;
use std::path::Path;
use std::str::FromStr;

use natpunch_types::{KeyError, SecretKey};

use super::identity::{Closed, DEFAULT_IDENTITY_FILE, Identities};
use super::key_file::KeyFileError;
use super::local::Local;
use crate::file::encrypted::Encrypted;
use crate::mesh::model::{MeshConfig, PeerConfig};
use crate::report::error::ConfigError;
use crate::report::source::Place;

/// Reads and opens the secrets that a mesh names.
pub(super) struct SecretReader<'a> {
    pub(super) mesh: &'a MeshConfig,
    pub(super) local: &'a Local,
    /// Read when the first encrypted value needs them.
    identities: OnceCell<Result<Identities, KeyFileError>>,
}

impl<'a> SecretReader<'a> {
    pub(super) fn new(mesh: &'a MeshConfig, local: &'a Local) -> Self {
        Self {
            mesh,
            local,
            identities: OnceCell::new(),
        }
    }

    fn identity_file(&self) -> &Path {
        let file = self
            .local
            .age_identity_file
            .as_deref()
            .or(self.mesh.age_identity_file.as_deref());
        file.unwrap_or(Path::new(DEFAULT_IDENTITY_FILE))
    }

    pub(super) fn identities(&self) -> Result<&Identities, &KeyFileError> {
        self.identities
            .get_or_init(|| Identities::read(self.identity_file()))
            .as_ref()
    }

    /// Opens an encrypted value.
    pub(super) fn open<K: FromStr<Err = KeyError>>(
        &self,
        value: &Encrypted,
    ) -> Result<K, ConfigError> {
        let identities = self
            .identities()
            .map_err(|error| self.no_identity(value, error))?;
        identities
            .open(value)
            .map_err(|closed| self.closed(value, closed, identities))
    }

    pub(super) fn closed(
        &self,
        value: &Encrypted,
        closed: Closed,
        identities: &Identities,
    ) -> ConfigError {
        let file = identities.file().display();
        let error = |message: String| ConfigError::at(value.place, message).label("encrypted");
        match closed {
            Closed::NotForUs => error(format!("the age identity of {file} does not open this"))
                .help(format!(
                    "encrypt it to this node, too: --recipient {}",
                    identities.recipients()
                )),
            Closed::Damaged => error("what is encrypted here is damaged".to_owned()).help(
                "it is for this node, but was changed after it was made: encrypt the key again",
            ),
            Closed::NotAKey(problem) => {
                error(format!("what is encrypted here is not a key: {problem}"))
                    .help("encrypt what `natpunch keygen` prints, with `natpunch encrypt`")
            }
        }
    }

    /// The identity that an encrypted value needs can't be used.
    pub(super) fn no_identity(&self, value: &Encrypted, error: &KeyFileError) -> ConfigError {
        let message = format!("the age identity can't be used: {}", error.problem);
        let mut shown = ConfigError::at(value.place, message).label("encrypted");
        if !error.help.is_empty() {
            shown = shown.help(error.help.as_str());
        }
        if error.absent {
            shown = shown.help(
                "or name this node's identity: --age-identity FILE, or identity_file in [secrets]",
            );
        }
        shown
    }

    /// An encrypted private key has to be that of the peer in whose section it stands.
    pub(super) fn check_key(
        &self,
        name: &str,
        peer: &PeerConfig,
        value: &Encrypted,
        key: SecretKey,
    ) -> Result<SecretKey, ConfigError> {
        let public = key.public_key();
        if public == peer.public_key {
            return Ok(key);
        }
        let error = ConfigError::at(
            value.place,
            format!("what is encrypted here is not the private key of `{name}`"),
        );
        Err(error.label("another key").help(format!(
            "the public key of this one is {public}: correct public_key, or encrypt the right key"
        )))
    }

    fn place(&self, file: &Path) -> Option<Place> {
        let places = &self.mesh.places;
        places
            .private_key_files
            .get(file)
            .or_else(|| places.preshared_key_files.get(file))
            .copied()
    }

    pub(super) fn error(&self, file: &Path, message: String) -> ConfigError {
        match self.place(file) {
            Some(place) => ConfigError::at(place, message).label("named here"),
            None => ConfigError::of(file, message),
        }
    }

    pub(super) fn key_file_error(&self, file: &Path, error: KeyFileError) -> ConfigError {
        let shown = self.error(file, error.problem);
        if error.help.is_empty() {
            shown
        } else {
            shown.help(error.help)
        }
    }
}
