//! The mesh file's language ([`natpunch_config`]), with the plugins of this build: what needs them
//! is here by the same name, and takes them from the [`registry`].

use std::path::{Path, PathBuf};

use crate::plugins::registry;

pub use natpunch_config::*;

/// [`natpunch_config::load`] with the plugins of this build.
///
/// # Errors
/// As there.
pub fn load(path: &Path) -> Result<MeshConfig, ConfigErrors> {
    natpunch_config::load(path, &registry::kinds())
}

/// [`natpunch_config::load_texts`] with the plugins of this build.
///
/// # Errors
/// As there.
pub fn load_texts(files: Vec<(PathBuf, String)>) -> Result<MeshConfig, ConfigErrors> {
    natpunch_config::load_texts(files, &registry::kinds())
}

/// [`natpunch_config::schema`] with the plugins of this build.
pub fn schema(one_of_several: bool) -> serde_json::Value {
    natpunch_config::schema(one_of_several, &registry::kinds())
}
