//! How errors and warnings look: the file, the line with the part that is wrong underlined, and
//! what to do. Colour is for terminals; the streams of `anstream` take it away elsewhere.

use std::borrow::Cow;
use std::io::{self, Write as _};
use std::process::ExitCode;

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};
use natpunch_types::{Help, split_help};

use super::exit::Exit;
use crate::config::{ConfigError, ConfigErrors, Excerpt};

/// Most errors that are printed; beyond, only their number is said.
const MOST: usize = 200;

/// A longer line, in bytes, is not printed: its place is enough.
const LONGEST_LINE: usize = 2048;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The mesh file is wrong.
    #[error("{0}")]
    Config(#[from] ConfigErrors),
    /// Anything else.
    #[error("{message}")]
    Failed {
        /// What failed, and where.
        message: String,
        /// What to do.
        helps: Vec<String>,
    },
    /// Standard output was closed by its reader, which then wants no more.
    #[error("standard output was closed")]
    BrokenPipe,
}

impl CliError {
    /// An error with this message. What would help comes apart, where the message says that, too,
    /// as those of the agent and the device do.
    pub fn new(message: impl AsRef<str>) -> Self {
        let (message, helps) = split_help(message.as_ref());
        Self::Failed {
            message: message.to_owned(),
            helps: helps.map(str::to_owned).collect(),
        }
    }

    /// Says what to do about it.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        if let Self::Failed { helps, .. } = &mut self {
            helps.push(help.into());
        }
        self
    }

    /// What an error says of itself.
    pub fn of(error: &dyn Help) -> Self {
        Self::new(error.in_full())
    }

    /// Prints the error on standard error and gives the exit code of the process.
    pub fn report(&self) -> ExitCode {
        let text = match self {
            Self::BrokenPipe => return ExitCode::SUCCESS,
            Self::Config(errors) => render(errors, Severity::Error),
            Self::Failed { message, helps } => {
                let group = Group::with_title(Level::ERROR.primary_title(clean(message)));
                Renderer::styled().render(&[with_helps(group, helps.iter().map(String::as_str))])
            }
        };
        // With standard error closed there is nobody to tell.
        let _ = writeln!(anstream::stderr().lock(), "{text}");
        Exit::Failure.into()
    }
}

/// For writing to standard output with `?`.
impl From<io::Error> for CliError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::BrokenPipe,
            _ => Self::new(error.to_string()),
        }
    }
}

/// How bad the findings are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The mesh can't be used.
    Error,
    /// The mesh can be used, but likely does not do what was meant.
    Warning,
    /// It is worth to know, and may well be meant.
    Note,
}

/// The findings with their lines, as text with ANSI colours.
pub fn render(errors: &ConfigErrors, severity: Severity) -> String {
    let renderer = Renderer::styled();
    let mut parts: Vec<String> = errors
        .iter()
        .take(MOST)
        .map(|error| renderer.render(&[group(errors, error, severity)]))
        .collect();
    if let Some(more) = errors.count().checked_sub(MOST).filter(|more| *more > 0) {
        parts.push(format!("… and {more} more"));
    }
    parts.join("\n\n")
}

fn group<'a>(errors: &ConfigErrors, error: &'a ConfigError, severity: Severity) -> Group<'a> {
    let level = match severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
        Severity::Note => Level::NOTE,
    };
    let mut group = level
        .primary_title(clean(error.message()))
        .elements(std::iter::empty::<Origin<'_>>());
    if let Some(file) = errors.whole_file(error) {
        group = group.element(Origin::path(clean(&file.to_string_lossy()).into_owned()));
    }
    for (n, excerpt) in errors.excerpts(error).into_iter().enumerate() {
        let kind = if n == 0 {
            AnnotationKind::Primary
        } else {
            AnnotationKind::Context
        };
        group = match snippet(&excerpt, kind) {
            Some(snippet) => group.element(snippet),
            None => group.element(origin(&excerpt)),
        };
    }
    with_helps(group, error.helps())
}

/// Adds what to do, a line each that begins with `help: `.
fn with_helps<'a>(group: Group<'a>, helps: impl Iterator<Item = &'a str>) -> Group<'a> {
    helps.fold(group, |group, help| {
        group.element(Level::HELP.message(clean(help)))
    })
}

fn snippet(
    excerpt: &Excerpt,
    kind: AnnotationKind,
) -> Option<Snippet<'static, annotate_snippets::Annotation<'static>>> {
    if excerpt.line.len() > LONGEST_LINE {
        return None;
    }
    let mut annotation = kind.span(excerpt.marked.clone());
    if !excerpt.label.is_empty() {
        annotation = annotation.label(clean(&excerpt.label).into_owned());
    }
    let path = clean(&excerpt.location.file.to_string_lossy()).into_owned();
    Some(
        Snippet::source(excerpt.line.clone())
            .line_start(excerpt.location.line)
            .path(path)
            .annotation(annotation),
    )
}

fn origin(excerpt: &Excerpt) -> Origin<'static> {
    let path = clean(&excerpt.location.file.to_string_lossy()).into_owned();
    Origin::path(path)
        .line(excerpt.location.line)
        .char_column(excerpt.location.column)
}

/// Text without control characters, so that no file or file name can steer the terminal.
fn clean(text: &str) -> Cow<'_, str> {
    let bad = |c: char| c.is_control() && c != '\n';
    if text.contains(bad) {
        text.chars()
            .map(|c| if bad(c) { '\u{fffd}' } else { c })
            .collect::<String>()
            .into()
    } else {
        text.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_help_stands_on_lines_of_its_own_whoever_says_it() {
        let texts = |error: CliError| match error {
            CliError::Failed { message, helps } => (message, helps),
            other => panic!("{other:?}"),
        };
        let (message, helps) = texts(CliError::new("no WireGuard; help: load it").help("or not"));
        assert_eq!((message.as_str(), helps.len()), ("no WireGuard", 2));
        let error = crate::agent::AgentError::Fixed("the name");
        let (message, helps) = texts(error.into());
        assert!(!message.contains("natpunch down"), "{message}");
        assert!(helps[0].contains("natpunch down"), "{helps:?}");
    }
}
