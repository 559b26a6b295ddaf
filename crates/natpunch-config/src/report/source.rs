//! The files as they were read, and places in them.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

/// One file as it was read.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(crate) path: PathBuf,
    pub(crate) text: String,
    /// Offset of the start of each line.
    lines: Vec<usize>,
    /// How many characters begin before each stretch of [`STRETCH`] bytes, so that a column in a
    /// file of one long line is found without counting all of it.
    characters: Vec<usize>,
}

/// Bytes of text that are counted at once.
const STRETCH: usize = 1024;

/// How many characters begin in these bytes of UTF-8.
fn beginnings(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| **byte & 0xc0 != 0x80).count()
}

impl Source {
    pub(crate) fn new(path: PathBuf, text: String) -> Self {
        let lines = std::iter::once(0)
            .chain(text.match_indices('\n').map(|(at, _)| at + 1))
            .collect();
        let mut characters = vec![0];
        let mut before = 0;
        for stretch in text.as_bytes().chunks(STRETCH) {
            before += beginnings(stretch);
            characters.push(before);
        }
        Self {
            characters,
            path,
            text,
            lines,
        }
    }

    /// How many characters begin before a byte offset.
    fn characters_before(&self, offset: usize) -> usize {
        let whole = offset / STRETCH;
        let rest = self.text.as_bytes().get(whole * STRETCH..offset);
        let before = self.characters.get(whole).copied();
        before.unwrap_or_default() + beginnings(rest.unwrap_or_default())
    }

    /// Where a byte offset is.
    pub(super) fn location(&self, offset: usize) -> Location {
        let offset = offset.min(self.text.len());
        let (line, range) = self.line(offset);
        let start = offset.clamp(range.start, range.end);
        let column = self.characters_before(start) - self.characters_before(range.start) + 1;
        Location {
            file: self.path.clone(),
            line,
            column,
        }
    }

    /// The line around a byte offset: its number, from 1, and its bytes without the line break.
    pub(super) fn line(&self, offset: usize) -> (usize, Range<usize>) {
        let number = self.lines.partition_point(|start| *start <= offset).max(1);
        let start = self.lines.get(number - 1).copied().unwrap_or(0);
        let end = self
            .lines
            .get(number)
            .map_or(self.text.len(), |next| next - 1);
        (number, start..end.max(start))
    }
}

/// The files of a mesh.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sources(pub(crate) Vec<Source>);

impl Sources {
    /// Where a place is, for people.
    pub(crate) fn locate(&self, place: Place) -> Option<Location> {
        let source = self.0.get(place.file)?;
        Some(source.location(place.start))
    }
}

/// A span of bytes in one of the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Place {
    pub(crate) file: usize,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

/// Where something is in a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Location {
    /// The file.
    pub file: PathBuf,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file.display(), self.line, self.column)
    }
}
