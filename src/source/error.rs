//! Why a source gives no new version.

use std::fmt;

use natpunch_types::Help;
use serde::{Deserialize, Serialize};

/// What kind of problem a source has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Problem {
    /// It can't be reached, or does not give what was asked for: tried again later.
    Unreachable,
    /// It gives a version that may not be used here.
    Refused,
    /// This machine can't keep or read what it must: the state directory, the trust file, a missing
    /// program.
    Local,
    /// What stands on the command line can't be used.
    Usage,
}

impl Problem {
    /// The word of `status`.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Refused => "refused",
            Self::Local => "local",
            Self::Usage => "usage",
        }
    }
}

/// Why a source gives no new version, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SourceError {
    problem: Problem,
    message: String,
    help: Option<String>,
}

impl SourceError {
    fn new(problem: Problem, message: impl Into<String>) -> Self {
        Self {
            problem,
            message: message.into(),
            help: None,
        }
    }

    pub(super) fn unreachable(message: impl Into<String>) -> Self {
        Self::new(Problem::Unreachable, message)
    }

    pub(super) fn refused(message: impl Into<String>) -> Self {
        Self::new(Problem::Refused, message)
    }

    pub(super) fn local(message: impl Into<String>) -> Self {
        Self::new(Problem::Local, message)
    }

    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self::new(Problem::Usage, message)
    }

    #[must_use]
    pub(super) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// The same with its place, where the message does not name it: for who has typed a command.
    #[must_use]
    pub(crate) fn at(mut self, location: &impl fmt::Display) -> Self {
        let place = location.to_string();
        let (url, _) = place.split_once('#').unwrap_or((&place, ""));
        if !self.message.contains(url.trim_start_matches("git+")) {
            self.message = format!("{place}: {}", self.message);
        }
        self
    }

    /// The same of something that the message then begins with.
    #[must_use]
    pub(super) fn about(mut self, subject: &str) -> Self {
        self.message = format!("{subject} {}", self.message);
        self
    }

    /// What kind of problem it is.
    pub fn problem(&self) -> Problem {
        self.problem
    }
}

impl Help for SourceError {
    fn helps(&self) -> Vec<String> {
        self.help.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_its_source_once() {
        let text = "git+https://git.example/mesh.git#main:mesh.toml";
        let without = SourceError::refused("commit 0123 is not signed").at(&text);
        assert_eq!(
            without.to_string(),
            format!("{text}: commit 0123 is not signed")
        );
        let with = "can't fetch from https://git.example/mesh.git: no answer";
        assert_eq!(SourceError::unreachable(with).at(&text).to_string(), with);
    }
}
