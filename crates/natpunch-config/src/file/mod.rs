//! From text to raw sections with the place of each value: as written, merged, with every error of
//! every file. What the sections mean together is not known here.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

pub(crate) mod discovery;
pub(crate) mod encrypted;
pub(crate) mod forms;
pub(crate) mod kind;
pub(crate) mod merge;
pub(crate) mod parse;
pub(crate) mod raw;
pub(crate) mod reader;

use crate::report::error::ConfigError;
use crate::report::source::{Place, Source, Sources};
use kind::Kind;
use raw::RawFile;
use reader::Reader;

/// What was read of all files.
pub(crate) struct Parts {
    /// The merged sections.
    pub(crate) raw: RawFile,
    /// Keys that are there, but with values that can't be used, in whole or in part.
    pub(crate) unusable: BTreeSet<String>,
    /// Whether all files could be read: else nothing can be said to be missing.
    pub(crate) complete: bool,
}

/// Reads the files of a mesh. `errors` are of files that could not be had.
pub(crate) fn read(
    files: Vec<(PathBuf, Vec<u8>)>,
    kinds: &[Kind],
    errors: &mut Vec<ConfigError>,
) -> (Parts, Arc<Sources>) {
    let kinds: Arc<[Kind]> = kinds.into();
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
        match parse::parse(source, &mut reader) {
            Some(raw) => merge::merge(&mut parts.raw, raw, &mut reader.errors),
            None => parts.complete = false,
        }
        errors.append(&mut reader.errors);
        parts.unusable.append(&mut reader.unusable);
    }
    (parts, sources)
}
