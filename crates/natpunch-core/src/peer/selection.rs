//! The path that WireGuard is told to use, how that came about, and whether WireGuard works there.

use natpunch_types::PathId;

use crate::Time;

/// How a path came to be in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// The pair chose it.
    Chosen,
    /// The pair chose it, a direct one, in the place of a relay. The relay carries nothing
    /// meanwhile, so WireGuard has little time to show that it works there.
    ChosenOverRelay,
    /// WireGuard moved there by itself.
    Roamed,
    /// WireGuard used it before this program started, or before a reload.
    Adopted,
}

/// Whether WireGuard itself works on the path in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Check {
    /// Its handshake should arrive from the peer by itself, which sets the endpoint too.
    Deferred { until: Time },
    /// Its endpoint was set, and a handshake or traffic has to show that it works.
    Running { tries: u32, deadline: Time },
    /// It has worked since the path was chosen.
    Passed,
    /// It has worked, and then the path showed no sign of life any more.
    Lost,
}

/// The path that WireGuard is told to use.
#[derive(Debug)]
pub(super) struct Selection {
    pub(super) path: PathId,
    pub(super) since: Time,
    pub(super) how: How,
    pub(super) check: Check,
    /// Last pong on it.
    pub(super) answered: Option<Time>,
    /// Since when it has to answer anew, because something moved.
    pub(super) doubted: Option<Time>,
    /// How often WireGuard had to be brought back to it.
    pub(super) restored: u32,
    /// WireGuard was told of it.
    pub(super) told: bool,
}

impl Selection {
    /// A path that the pair has chosen because it answers.
    pub(super) fn chosen(path: PathId, how: How, check: Check, now: Time) -> Self {
        Self {
            path,
            since: now,
            how,
            check,
            answered: Some(now),
            doubted: None,
            restored: 0,
            told: false,
        }
    }

    /// A path on which WireGuard has authentic traffic already.
    pub(super) fn taken_over(path: PathId, how: How, now: Time) -> Self {
        Self {
            answered: None,
            ..Self::chosen(path, how, Check::Passed, now)
        }
    }
}
