//! What a host knows of itself beside the mesh file.

use std::path::PathBuf;

use natpunch_os::secret;
use serde::{Deserialize, Serialize};

/// What a host knows beside the mesh file: where its own secrets are, and who it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Local {
    /// The private key file, instead of those that the mesh names.
    pub private_key_file: Option<PathBuf>,
    /// The file of the age identity, instead of the one that the mesh names.
    pub age_identity_file: Option<PathBuf>,
    /// The name of the peer that this host is, if its identity opens the keys of several.
    pub node: Option<String>,
}

impl Local {
    /// The same with absolute paths, which mean the same in another directory.
    #[must_use]
    pub fn absolute(self) -> Self {
        let absolute = |file: PathBuf| match secret::credential(&file) {
            Some(_) => file,
            None => std::path::absolute(&file).unwrap_or(file),
        };
        Self {
            private_key_file: self.private_key_file.map(absolute),
            age_identity_file: self.age_identity_file.map(absolute),
            node: self.node,
        }
    }
}
