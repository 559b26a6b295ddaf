//! From a path to a valid mesh: read, parse, merge, validate.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use blake2::{Blake2s256, Digest as _};
use natpunch_os::reason;

use crate::file::{self, kind::Kind};
use crate::mesh::check::check;
use crate::mesh::model::MeshConfig;
use crate::report::error::{ConfigError, ConfigErrors};

/// The longest file that is read, in bytes: about twenty times a mesh of 10,000 peers.
const LONGEST_FILE: u64 = 8 << 20;

/// Most files that a directory may hold.
const MOST_FILES: usize = 4096;

/// Loads the mesh of one TOML file, or of a directory's `*.toml` files in lexical order, and
/// validates it for every node in it. `kinds` are the plugins that it may name. Needs no privileges
/// and no private key.
///
/// # Errors
/// Every error of every file.
pub fn load(path: &Path, kinds: &[Kind]) -> Result<MeshConfig, ConfigErrors> {
    load_with(path, &Given::default(), kinds)
}

/// What is loaded in another way than [`load`] does.
#[derive(Debug, Default)]
pub(crate) struct Given<'a> {
    /// A file that shall hold this text, whether it is there or not.
    pub(crate) file: Option<(&'a Path, &'a str)>,
    /// A mesh without peers is valid: it is about to get some.
    pub(crate) may_be_empty: bool,
}

/// [`load`], but for what is given.
pub(crate) fn load_with(
    path: &Path,
    given: &Given<'_>,
    kinds: &[Kind],
) -> Result<MeshConfig, ConfigErrors> {
    let mut errors = Vec::new();
    let mut files = Vec::new();
    let mut listed = match given.file {
        Some((file, _)) if file == path => vec![path.to_owned()],
        _ => list(path).map_err(|error| ConfigErrors::new(vec![error], Arc::default()))?,
    };
    if let Some((file, _)) = given.file
        && !listed.iter().any(|other| other == file)
    {
        listed.push(file.to_owned());
        listed.sort();
    }
    for file in listed {
        let bytes = match given.file {
            Some((given, text)) if given == file => Ok(text.as_bytes().to_vec()),
            _ => read(&file),
        };
        match bytes {
            Ok(bytes) => files.push((file, bytes)),
            Err(error) => errors.push(error),
        }
    }
    load_files(files, errors, given.may_be_empty, kinds)
}

/// Loads the mesh of files that were read before, as [`load`] gives it: relative paths in them
/// count from where the files were.
///
/// # Errors
/// Every error of every file.
pub fn load_texts(
    files: Vec<(PathBuf, String)>,
    kinds: &[Kind],
) -> Result<MeshConfig, ConfigErrors> {
    let files = files
        .into_iter()
        .map(|(path, text)| (path, text.into_bytes()));
    load_files(files.collect(), Vec::new(), false, kinds)
}

/// From what the files hold to the mesh: pure.
fn load_files(
    files: Vec<(PathBuf, Vec<u8>)>,
    mut errors: Vec<ConfigError>,
    may_be_empty: bool,
    kinds: &[Kind],
) -> Result<MeshConfig, ConfigErrors> {
    let content_hash = hash(
        files
            .iter()
            .map(|(file, bytes)| (file.as_path(), bytes.as_slice())),
    );
    let (parts, sources) = file::read(files, kinds, &mut errors);
    let mesh = check(
        parts,
        kinds,
        may_be_empty,
        &sources,
        content_hash,
        &mut errors,
    );
    match mesh {
        Some(mesh) if errors.is_empty() => Ok(mesh),
        _ => Err(ConfigErrors::new(errors, sources)),
    }
}

/// The files that `path` means, and a hash of what they hold. Unreadable ones count as empty: the
/// hash only tells versions apart.
pub fn fingerprint(path: &Path) -> [u8; 32] {
    let files = list(path).unwrap_or_default();
    let contents: Vec<(PathBuf, Vec<u8>)> = files
        .into_iter()
        .map(|file| {
            let bytes = read(&file).unwrap_or_default();
            (file, bytes)
        })
        .collect();
    hash(
        contents
            .iter()
            .map(|(file, bytes)| (file.as_path(), bytes.as_slice())),
    )
}

/// [`fingerprint`], if there is a mesh, and a hash of what these key files hold.
pub fn fingerprint_with_keys(mesh: Option<&Path>, keys: &[PathBuf]) -> [u8; 32] {
    let mut hash = Blake2s256::new();
    hash.update(mesh.map(fingerprint).unwrap_or_default());
    for key in keys {
        let bytes = zeroize::Zeroizing::new(read(key).unwrap_or_default());
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(&*bytes);
    }
    hash.finalize().into()
}

fn hash<'a>(files: impl Iterator<Item = (&'a Path, &'a [u8])>) -> [u8; 32] {
    let mut hash = Blake2s256::new();
    for (file, bytes) in files {
        // Names take part, lengths keep the parts apart.
        let name = file.file_name().unwrap_or_default().as_encoded_bytes();
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name);
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    }
    hash.finalize().into()
}

fn list(path: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let failed = |error: std::io::Error| {
        let help = match error.kind() {
            std::io::ErrorKind::NotFound => {
                "check the path; the mesh file may also be a directory of *.toml files"
            }
            std::io::ErrorKind::PermissionDenied => {
                "make it readable for the user that runs natpunch"
            }
            _ => "name a TOML file, or a directory of *.toml files",
        };
        ConfigError::of(path, format!("can't read this path: {}", reason(&error))).help(help)
    };
    let meta = fs::metadata(path).map_err(failed)?;
    if !meta.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        // Hidden files are editors' and Kubernetes' own.
        let hidden = name.as_encoded_bytes().starts_with(b".");
        let file = path.join(&name);
        if !hidden
            && file
                .extension()
                .is_some_and(|extension| extension == "toml")
        {
            files.push(file);
        }
    }
    files.sort();
    if files.is_empty() {
        return Err(ConfigError::of(path, "the directory holds no *.toml files")
            .help("put the mesh file into it"));
    }
    if files.len() > MOST_FILES {
        return Err(ConfigError::of(
            path,
            format!("the directory holds more than {MOST_FILES} *.toml files"),
        )
        .help("is this the directory that you meant?"));
    }
    Ok(files)
}

fn read(file: &Path) -> Result<Vec<u8>, ConfigError> {
    let failed = |error: std::io::Error| {
        ConfigError::of(file, format!("can't read this file: {}", reason(&error)))
            .help("make it a readable TOML file")
    };
    // Opening a FIFO would wait for a writer.
    if !fs::metadata(file).map_err(failed)?.is_file() {
        return Err(ConfigError::of(file, "this is not a file")
            .help("name a TOML file, or a directory of *.toml files"));
    }
    let mut bytes = Vec::new();
    fs::File::open(file)
        .and_then(|open| open.take(LONGEST_FILE + 1).read_to_end(&mut bytes))
        .map_err(failed)?;
    if bytes.len() as u64 > LONGEST_FILE {
        return Err(ConfigError::of(
            file,
            format!("the file is longer than {} MiB", LONGEST_FILE >> 20),
        )
        .help(
            "is this a mesh file? a large mesh can be split into several files of one directory",
        ));
    }
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(ConfigError::of(file, "the file is empty").help(
            "a mesh file begins with [mesh]; see docs/config.md, or \
             examples/configs/two-nodes.toml for a first one",
        ));
    }
    Ok(bytes)
}
