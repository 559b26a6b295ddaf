//! Which file of a mesh gets a new peer.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::mesh::model::MeshConfig;
use crate::report::error::ConfigErrors;
use crate::report::source::Place;

/// The file that `--file` names: counted from the mesh's directory if it is not there as it stands.
pub(super) fn given_file(
    path: &Path,
    mesh: &MeshConfig,
    file: &Path,
) -> Result<PathBuf, ConfigErrors> {
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
    Err(ConfigErrors::of(
        path,
        format!("{} is not a file of this mesh", file.display()),
        help,
    ))
}

pub(super) fn file_for_new_peer(
    path: &Path,
    mesh: &MeshConfig,
    name: &str,
) -> Result<PathBuf, ConfigErrors> {
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
    ConfigErrors::of(
        path,
        message,
        "say which one gets the new peer, or name a new one: --file NAME.toml",
    )
}
