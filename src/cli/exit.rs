//! The exit codes of this program, each with one meaning. docs/reference/cli.md has them as a table.

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

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}
