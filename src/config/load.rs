//! From a path to a valid mesh: read, parse, merge, validate.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read as _;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use blake2::{Blake2s256, Digest as _};

use natpunch_types::PeerKey;
use toml_edit::TableLike;

use super::error::{ConfigError, ConfigErrors, Place, Source, Sources};
use super::model::MeshConfig;
use super::plugins::Kind;
use super::raw::{self, RawFile};
use super::read::{Field, Quoted, Reader, Section, is_secret};
use super::value::check_host_port;
use crate::plugins::registry;

/// The longest file that is read, in bytes: about twenty times a mesh of 10,000 peers.
const LONGEST_FILE: u64 = 8 << 20;

/// Most files that a directory may hold.
const MOST_FILES: usize = 4096;

/// Loads the mesh of one TOML file, or of a directory's `*.toml` files in lexical order, and
/// validates it for every node in it. Needs no privileges and no private key.
///
/// # Errors
/// Every error of every file.
pub fn load(path: &Path) -> Result<MeshConfig, ConfigErrors> {
    load_with(path, &Given::default())
}

/// What is loaded in another way than [`load`] does.
#[derive(Debug, Default)]
pub(super) struct Given<'a> {
    /// A file that shall hold this text, whether it is there or not.
    pub(super) file: Option<(&'a Path, &'a str)>,
    /// A mesh without peers is valid: it is about to get some.
    pub(super) may_be_empty: bool,
}

/// [`load`], but for what is given.
pub(super) fn load_with(path: &Path, given: &Given<'_>) -> Result<MeshConfig, ConfigErrors> {
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
    let kinds = registry::kinds().into();
    load_files(files, errors, given.may_be_empty, kinds)
}

/// Loads the mesh of files that were read before, as [`load`] gives it: relative paths in them
/// count from where the files were.
///
/// # Errors
/// Every error of every file.
pub fn load_texts(files: Vec<(PathBuf, String)>) -> Result<MeshConfig, ConfigErrors> {
    load_texts_with(files, &registry::kinds())
}

/// The same for a build with these plugins.
///
/// # Errors
/// As [`load_texts`].
pub fn load_texts_with(
    files: Vec<(PathBuf, String)>,
    kinds: &[Kind],
) -> Result<MeshConfig, ConfigErrors> {
    let files = files
        .into_iter()
        .map(|(path, text)| (path, text.into_bytes()));
    load_files(files.collect(), Vec::new(), false, kinds.into())
}

fn load_files(
    files: Vec<(PathBuf, Vec<u8>)>,
    mut errors: Vec<ConfigError>,
    may_be_empty: bool,
    kinds: Arc<[Kind]>,
) -> Result<MeshConfig, ConfigErrors> {
    let content_hash = hash(
        files
            .iter()
            .map(|(file, bytes)| (file.as_path(), bytes.as_slice())),
    );
    let mut sources = Sources::default();
    for (file, bytes) in files {
        match String::from_utf8(bytes) {
            Ok(text) => sources.0.push(Source::new(file, text)),
            Err(error) => {
                let bad = error.utf8_error().valid_up_to();
                // What comes before the first bad byte is text and shows where it is.
                let mut bytes = error.into_bytes();
                bytes.truncate(bad);
                let text = String::from_utf8(bytes).unwrap_or_default();
                let place = Place {
                    file: sources.0.len(),
                    start: text.len(),
                    end: text.len(),
                };
                sources.0.push(Source::new(file, text));
                let error = ConfigError::at(place, "the file is not UTF-8 text")
                    .label("the first byte that is not UTF-8");
                errors.push(
                    error.help("save it as UTF-8, or remove the file if it is not a mesh file"),
                );
            }
        }
    }
    let sources = Arc::new(sources);
    let broken: BTreeSet<usize> = errors.iter().filter_map(ConfigError::file_index).collect();
    let mut parts = Parts {
        raw: RawFile::default(),
        unusable: BTreeSet::new(),
        complete: errors.is_empty(),
        may_be_empty,
        kinds: Arc::clone(&kinds),
    };
    for (index, source) in sources.0.iter().enumerate() {
        if broken.contains(&index) {
            continue;
        }
        let mut reader = Reader {
            file: index,
            kinds: Arc::clone(&kinds),
            errors: Vec::new(),
            unusable: BTreeSet::new(),
        };
        match parse(source, &mut reader) {
            Some(raw) => merge(&mut parts.raw, raw, &mut reader.errors),
            None => parts.complete = false,
        }
        errors.append(&mut reader.errors);
        parts.unusable.append(&mut reader.unusable);
    }
    let mesh = super::validate::validate(parts, &sources, content_hash, &mut errors);
    match mesh {
        Some(mesh) if errors.is_empty() => Ok(mesh),
        _ => Err(ConfigErrors::new(errors, sources)),
    }
}

/// What was read of all files.
pub(super) struct Parts {
    /// The merged sections.
    pub(super) raw: RawFile,
    /// Keys that are there, but with values that can't be used, in whole or in part.
    pub(super) unusable: BTreeSet<String>,
    /// Whether all files could be read: else nothing can be said to be missing.
    pub(super) complete: bool,
    /// Whether there may be no peers.
    pub(super) may_be_empty: bool,
    /// The plugins that the mesh may name.
    pub(super) kinds: Arc<[Kind]>,
}

/// The files that `path` means, and a hash of what they hold. Unreadable ones count as empty: the
/// hash only tells versions apart.
pub(crate) fn fingerprint(path: &Path) -> [u8; 32] {
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
pub(super) fn fingerprint_with_keys(mesh: Option<&Path>, keys: &[PathBuf]) -> [u8; 32] {
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
            "a mesh file begins with [mesh]; see docs/config.md, or examples/configs/two-nodes.toml for a first one",
        ));
    }
    Ok(bytes)
}

/// What the system says of an error, without its number.
pub fn reason(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error")
        .next()
        .unwrap_or_default()
        .to_lowercase()
}

/// The keys by which a file of wg-quick is told from a mesh file.
const WG_QUICK_KEYS: [&str; 6] = [
    "PrivateKey",
    "PublicKey",
    "AllowedIPs",
    "ListenPort",
    "Address",
    "Endpoint",
];

/// Where the first section of a file of wg-quick begins, if the text is one.
fn wg_quick_section(text: &str) -> Option<Range<usize>> {
    let key = |line: &str| {
        line.split('=')
            .next()
            .map(str::trim)
            .unwrap_or_default()
            .to_owned()
    };
    if !text
        .lines()
        .any(|line| WG_QUICK_KEYS.contains(&key(line).as_str()))
    {
        return None;
    }
    let section = text.lines().map(str::trim).find(|line| {
        ["[Interface]", "[Peer]"]
            .iter()
            .any(|section| line.starts_with(section))
    })?;
    let start = section.as_ptr().addr() - text.as_ptr().addr();
    Some(start..start + section.len())
}

/// The error of a value without quotes, if that is what is wrong with the line at `at`.
fn unquoted(text: &str, at: usize, place: impl Fn(Range<usize>) -> Place) -> Option<ConfigError> {
    let start = text.get(..at)?.rfind('\n').map_or(0, |newline| newline + 1);
    let line = text.get(start..)?.lines().next()?;
    let (key, value) = line.split_once('=')?;
    let key = key.trim();
    // A comment behind the value is none of it.
    let value = value.split(" #").next().unwrap_or(value).trim();
    let bare = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    let plain = !value.is_empty() && !value.contains(['"', '\'', '\\', '{', ',']);
    let in_brackets = value.starts_with('[') && check_host_port(value).is_err();
    if !plain || in_brackets || key.is_empty() || !key.chars().all(bare) {
        return None;
    }
    // A value that is one by itself has something else wrong with it.
    if format!("v = {value}")
        .parse::<toml_edit::DocumentMut>()
        .is_ok()
    {
        return None;
    }
    let value_start = value.as_ptr().addr() - text.as_ptr().addr();
    let at = place(value_start..value_start + value.len());
    let error = ConfigError::at(
        at,
        format!("the value of `{}` is not in quotes", Quoted(key)),
    )
    .label("expected a text in quotes");
    let secret = is_secret(key) || value.parse::<PeerKey>().is_ok();
    let error = if secret { error.secret() } else { error };
    Some(match secret {
        true => error.help(format!("write it in quotes: {key} = \"…\"")),
        false => error.help(format!("write: {key} = \"{}\"", Quoted(value))),
    })
}

/// Parses one file and reads its sections.
fn parse(source: &Source, reader: &mut Reader) -> Option<RawFile> {
    if let Some(section) = wg_quick_section(&source.text) {
        let place = reader.place(Some(section));
        let error = ConfigError::at(place, "this is a file of wg-quick, not a mesh file");
        let file = source.path.display().to_string();
        let help = format!("make a mesh file of it: natpunch import {}", Quoted(&file));
        reader.report(error.label("a section of wg-quick").help(help));
        return None;
    }
    match toml_edit::Document::parse(source.text.as_str()) {
        Ok(document) => Some(raw::read_file(&document, reader)),
        Err(error) => {
            let span = error.span().unwrap_or(source.text.len()..source.text.len());
            let place = reader.place(Some(span.clone()));
            reader.report(if error.message().contains("duplicate key") {
                let error = ConfigError::at(place, "the same key is defined twice").help("remove one of the two");
                match first_definition(&source.text, span.start) {
                    Some(first) => {
                        error.label("defined again here").also(reader.place(Some(first)), "first defined here")
                    }
                    None => error,
                }
            } else if let Some(error) =
                unquoted(&source.text, span.start, |span| reader.place(Some(span)))
            {
                error
            } else {
                let first_line = error.message().lines().next().unwrap_or_default();
                ConfigError::at(place, format!("this is not TOML: {first_line}"))
                    .help("texts stand in quotes, lists in [ ], one `key = value` a line: see https://toml.io")
            });
            None
        }
    }
}

/// Where the key was defined first that is defined again at `at`: by reading what is before that
/// line, and the line by itself.
fn first_definition(text: &str, at: usize) -> Option<Range<usize>> {
    let line_start = text.get(..at)?.rfind('\n').map_or(0, |newline| newline + 1);
    let before = text.get(..line_start)?;
    let line = text.get(line_start..)?.lines().next()?;
    let document = toml_edit::Document::parse(before).ok()?;
    let path_in = |line: &str| -> Option<Vec<String>> {
        let alone = toml_edit::Document::parse(line.to_owned()).ok()?;
        let mut path = Vec::new();
        let mut table: &dyn TableLike = alone.as_table();
        while let Some((key, item)) = table.iter().next() {
            path.push(key.to_owned());
            match item.as_table() {
                Some(inner) => table = inner,
                None => break,
            }
        }
        Some(path)
    };
    let mut path = Vec::new();
    if !line.trim_start().starts_with('[') {
        let header = before
            .lines()
            .rev()
            .find(|line| line.trim_start().starts_with('['));
        path = header.and_then(path_in).unwrap_or_default();
    }
    path.extend(path_in(line)?);
    let (last, parents) = path.split_last()?;
    let mut table: &dyn TableLike = document.as_table();
    for key in parents {
        table = table.get(key)?.as_table_like()?;
    }
    table.key(last)?.span()
}

/// Takes the sections of one more file. What two files both define is an error.
fn merge(into: &mut RawFile, from: RawFile, errors: &mut Vec<ConfigError>) {
    merge_section("mesh", &mut into.mesh, from.mesh, errors);
    merge_section("stun", &mut into.stun, from.stun, errors);
    merge_section("names", &mut into.names, from.names, errors);
    merge_section("secrets", &mut into.secrets, from.secrets, errors);
    merge_section("apply", &mut into.apply, from.apply, errors);
    merge_section("interface", &mut into.interface, from.interface, errors);
    merge_named(&mut into.discovery, from.discovery);
    merge_named(&mut into.peers, from.peers);
    match (&mut into.preshared, from.preshared) {
        (Some(into), Some(from)) => into.value.extend(from.value),
        (into @ None, from) => *into = from,
        (Some(_), None) => {}
    }
}

fn merge_named<T>(into: &mut Field<raw::Named<T>>, from: Field<raw::Named<T>>) {
    match (into, from) {
        // Names that are there twice are found by the validation, which sees all of them.
        (Some(into), Some(from)) => into.value.0.extend(from.value.0),
        (into @ None, from) => *into = from,
        (Some(_), None) => {}
    }
}

fn merge_section<T: Section>(
    name: &str,
    into: &mut Field<T>,
    from: Field<T>,
    errors: &mut Vec<ConfigError>,
) {
    match (into, from) {
        (Some(into), Some(from)) => into.value.merge(from.value, &mut |key, second, first| {
            errors.push(twice(&format!("{name}.{key}"), second, first));
        }),
        (into @ None, from) => *into = from,
        (Some(_), None) => {}
    }
}

/// The error of a key that is defined twice.
pub(super) fn twice(what: &str, second: Place, first: Place) -> ConfigError {
    ConfigError::at(second, format!("`{what}` is defined twice"))
        .label("defined again here")
        .also(first, "first defined here")
        .help("remove one of the two: files of a directory are merged, none overrides another")
}
