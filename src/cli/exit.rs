//! The exit codes of this program. docs/reference/cli.md has them as a table.

use std::process::ExitCode;

/// How a command ended, beside success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// What was asked for could not be done.
    Failure,
    /// `plan` found something to change.
    Changes,
    /// `apply --once` passed its deadline.
    DeadlinePassed,
    /// `doctor` or `ping` did its work, and what it looked at is not as it should be.
    Unfit,
    /// The command line itself is wrong: `EX_USAGE` of sysexits.h. Not 2, which says that a plan has
    /// changes, and a script that applies these must not take a typing error for them.
    Usage,
}

impl Exit {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Failure,
        Self::Changes,
        Self::DeadlinePassed,
        Self::Unfit,
        Self::Usage,
    ];

    /// The number.
    pub fn code(self) -> u8 {
        match self {
            Self::Failure => 1,
            Self::Changes => 2,
            Self::DeadlinePassed => 3,
            Self::Unfit => 4,
            Self::Usage => 64,
        }
    }
}

/// What `status --check` finds, in the codes that monitoring systems take
/// (<https://www.monitoring-plugins.org/doc/guidelines.html>).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Nothing is wrong.
    Fine,
    /// Somebody should look.
    Warning,
    /// Somebody should look now.
    Critical,
    /// It could not be found out.
    Unknown,
}

impl Verdict {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Fine, Self::Warning, Self::Critical, Self::Unknown];

    /// The number.
    pub fn code(self) -> u8 {
        match self {
            Self::Fine => 0,
            Self::Warning => 1,
            Self::Critical => 2,
            Self::Unknown => 3,
        }
    }

    /// The word that monitoring systems show.
    pub fn word(self) -> &'static str {
        match self {
            Self::Fine => "OK",
            Self::Warning => "WARNING",
            Self::Critical => "CRITICAL",
            Self::Unknown => "UNKNOWN",
        }
    }
}

impl From<Verdict> for ExitCode {
    fn from(verdict: Verdict) -> Self {
        Self::from(verdict.code())
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}
