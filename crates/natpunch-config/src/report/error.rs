//! Errors of a mesh file: what, where, and what to do.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use natpunch_types::with_help;

use super::masking::mask_secret;
use super::source::{Location, Place, Sources};

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
    pub fn helps(&self) -> impl Iterator<Item = &str> {
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

    /// An error of a file as a whole, and what to do about it; no help where there is none.
    pub(crate) fn of(file: &Path, message: impl Into<String>, help: &str) -> Self {
        let error = ConfigError::of(file, message);
        let error = match help.is_empty() {
            true => error,
            false => error.help(help),
        };
        Self::new(vec![error], Arc::default())
    }

    /// A new file can't be made.
    pub(crate) fn cannot_make(file: &Path, error: &io::Error) -> Self {
        let help = match error.kind() {
            io::ErrorKind::AlreadyExists => {
                "name another file; a file that is there is never overwritten"
            }
            _ => "nothing was changed",
        };
        let message = format!("can't make this file: {}", natpunch_os::reason(error));
        Self::of(file, message, help)
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

/// One line an error, for logs: `file:line:column: message; help: …`.
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
            f.write_str(&with_help(&error.message, error.help.first()))?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}
