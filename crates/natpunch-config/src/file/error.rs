//! Errors of a mesh file: what, where, and what to do.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

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
    fn location(&self, offset: usize) -> Location {
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
    fn line(&self, offset: usize) -> (usize, Range<usize>) {
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

/// A stretch of a file that takes part in an error.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Label {
    place: Place,
    text: String,
    /// What stands there is not shown.
    secret: bool,
}

/// The rule of every error that is no lint.
const INVALID: &str = "invalid";

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    message: String,
    /// The file, if the error is about a file as a whole.
    file: Option<PathBuf>,
    /// Where: the first is the error itself, the others are places that it refers to.
    labels: Vec<Label>,
    help: Vec<String>,
    /// The name of what is broken, for tools.
    rule: &'static str,
}

impl ConfigError {
    /// An error at a place.
    pub(crate) fn at(place: Place, message: impl Into<String>) -> Self {
        let label = Label {
            place,
            text: String::new(),
            secret: false,
        };
        Self {
            message: message.into(),
            file: None,
            labels: vec![label],
            help: Vec::new(),
            rule: INVALID,
        }
    }

    /// An error of a file or directory as a whole.
    pub(crate) fn of(file: &Path, message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            file: Some(file.to_owned()),
            labels: Vec::new(),
            help: Vec::new(),
            rule: INVALID,
        }
    }

    /// Says something next to the place.
    pub(crate) fn label(mut self, text: impl Into<String>) -> Self {
        if let Some(label) = self.labels.first_mut() {
            label.text = text.into();
        }
        self
    }

    /// Names the rule that is broken, where it is one of [`lint`](crate::lint).
    pub(crate) fn rule(mut self, rule: &'static str) -> Self {
        self.rule = rule;
        self
    }

    /// Hides what stands at the place: it is a secret.
    pub(crate) fn secret(mut self) -> Self {
        if let Some(label) = self.labels.first_mut() {
            label.secret = true;
        }
        self
    }

    /// Names another place.
    pub(crate) fn also(mut self, place: Place, text: impl Into<String>) -> Self {
        self.labels.push(Label {
            place,
            text: text.into(),
            secret: false,
        });
        self
    }

    /// Says what to do.
    pub(crate) fn help(mut self, text: impl Into<String>) -> Self {
        self.help.push(text.into());
        self
    }

    /// The file that it is in, by its index among the sources.
    pub(crate) fn file_index(&self) -> Option<usize> {
        self.labels.first().map(|label| label.place.file)
    }

    /// What is wrong, in one line.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The name of the rule that is broken, in kebab case and stable; `invalid` where the mesh
    /// can't be used.
    pub fn rule_name(&self) -> &'static str {
        self.rule
    }

    /// What to do about it.
    pub fn hints(&self) -> impl Iterator<Item = &str> {
        self.help.iter().map(String::as_str)
    }
}

/// A line of a file with a part of it marked, ready to be shown. Values of secrets in it are
/// masked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Excerpt {
    /// Where the marked part begins.
    pub location: Location,
    /// The line.
    pub line: String,
    /// The marked bytes of it.
    pub marked: Range<usize>,
    /// What to say about them; may be empty.
    pub label: String,
}

/// Everything that is wrong with a mesh, in the order of files and lines. Never empty.
#[derive(Debug, Clone)]
pub struct ConfigErrors {
    errors: Vec<ConfigError>,
    sources: Arc<Sources>,
}

impl ConfigErrors {
    pub(crate) fn new(mut errors: Vec<ConfigError>, sources: Arc<Sources>) -> Self {
        errors.sort_by_key(|error| error.labels.first().map(|label| label.place));
        errors.dedup();
        Self { errors, sources }
    }

    /// The errors.
    pub fn iter(&self) -> impl Iterator<Item = &ConfigError> {
        self.errors.iter()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.errors.len()
    }

    /// Where an error is: the file alone if the error is about a file as a whole.
    pub fn location(&self, error: &ConfigError) -> Option<Location> {
        match error.labels.first() {
            Some(label) => {
                let source = self.sources.0.get(label.place.file)?;
                Some(source.location(label.place.start))
            }
            None => error.file.as_ref().map(|file| Location {
                file: file.clone(),
                line: 1,
                column: 1,
            }),
        }
    }

    /// The lines that an error is about, the error's own first.
    pub fn excerpts(&self, error: &ConfigError) -> Vec<Excerpt> {
        error
            .labels
            .iter()
            .filter_map(|label| self.excerpt(label))
            .collect()
    }

    /// The file, if an error is about a file as a whole.
    pub fn whole_file<'a>(&self, error: &'a ConfigError) -> Option<&'a Path> {
        error.file.as_deref()
    }

    fn excerpt(&self, label: &Label) -> Option<Excerpt> {
        let source = self.sources.0.get(label.place.file)?;
        let (_, range) = source.line(label.place.start);
        let line = source.text.get(range.clone())?.trim_end_matches('\r');
        let start = label
            .place
            .start
            .saturating_sub(range.start)
            .min(line.len());
        let end = label
            .place
            .end
            .saturating_sub(range.start)
            .clamp(start, line.len());
        let mut shown = mask_secret(line);
        if label.secret {
            let stars = "*".repeat(end - start);
            shown = [shown.get(..start), Some(&stars), shown.get(end..)]
                .into_iter()
                .flatten()
                .collect();
        }
        Some(Excerpt {
            location: source.location(label.place.start),
            line: shown,
            marked: start..end,
            label: label.text.clone(),
        })
    }
}

/// One line an error, for logs: `file:line:column: message (hint)`.
impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, error) in self.errors.iter().enumerate() {
            if n > 0 {
                f.write_str("\n")?;
            }
            match (self.location(error), &error.file) {
                (_, Some(file)) => write!(f, "{}: ", file.display())?,
                (Some(location), None) => write!(f, "{location}: ")?,
                (None, None) => {}
            }
            f.write_str(&error.message)?;
            if let Some(hint) = error.help.first() {
                write!(f, " ({hint})")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// Masks the value in a line that seems to hold a secret in plain, keeping its length so that
/// columns stay right.
fn mask_secret(line: &str) -> String {
    if let Some((code, comment)) = line.split_once('#')
        && holds_key(comment)
    {
        // Nobody knows what a key in a comment is.
        let hidden: String = comment
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { '*' } else { c })
            .collect();
        return format!("{}#{hidden}", mask_secret(code));
    }
    let lower = line.to_ascii_lowercase();
    let secret = [
        "private",
        "presharedkey",
        "preshared_key",
        "preshared-key",
        "secret",
        "psk",
        "password",
    ]
    .iter()
    .filter_map(|word| lower.find(word))
    .filter_map(|at| {
        lower
            .get(at..)
            .and_then(|rest| rest.find('='))
            .map(|equals| (at, at + equals))
    })
    .filter(|(at, equals)| {
        // A path may be shown, unless a key stands in its place.
        let is_path = lower
            .get(*at..*equals)
            .is_some_and(|key| key.contains("_file"));
        !is_path || line.get(equals + 1..).is_some_and(holds_key)
    })
    .map(|(_, equals)| equals)
    .min();
    let Some(equals) = secret else {
        return line.to_owned();
    };
    let mut masked = String::with_capacity(line.len());
    for (at, c) in line.char_indices() {
        let hide = at > equals && (c.is_ascii_alphanumeric() || "+/=".contains(c) || !c.is_ascii());
        if hide {
            masked.extend(std::iter::repeat_n('*', c.len_utf8()))
        } else {
            masked.push(c)
        }
    }
    masked
}

/// Whether a text holds something as long as a key in base64.
fn holds_key(text: &str) -> bool {
    let base64 = |c: char| c.is_ascii_alphanumeric() || c == '+' || c == '/';
    text.split(|c| !base64(c) && c != '=')
        .any(|word| word.len() == 44 && word.ends_with('='))
}

#[cfg(test)]
mod tests {
    use super::mask_secret;

    #[test]
    fn a_secret_in_plain_is_masked_and_columns_stay() {
        assert_eq!(
            mask_secret("private_key = \"aGk=\""),
            "private_key = \"****\""
        );
        assert_eq!(
            mask_secret("x = { PresharedKey = 'é' }"),
            "x = { PresharedKey = '**' }"
        );
        let key = "c3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3M=";
        assert!(!mask_secret(&format!("private_key_file = '{key}'")).contains(key));
        for plain in [
            "private_key_file = \"/etc/k\"",
            "public_key = \"aGk=\"",
            "# private",
        ] {
            assert_eq!(mask_secret(plain), plain);
        }
    }
}
