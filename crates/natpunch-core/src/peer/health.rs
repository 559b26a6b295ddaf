//! Whether the path in use is alive: one answer, from its pings alone.

use std::time::Duration;

use crate::Time;
use crate::candidates::Entry;

use super::selection::{Check, Selection};

/// Pings that are unanswered for this long, or for three round trips, make a path suspect.
const SUSPECT: Duration = Duration::from_millis(900);
/// Pings that are unanswered for this long, or for four round trips, make it fail ...
const FAILING: Duration = Duration::from_millis(2400);
/// ... if there are so many of them: one lost burst is no failure.
const FAILING_PINGS: u32 = 6;
/// After something moved, a path has this long, or three round trips, to answer.
const CONFIRM: Duration = Duration::from_millis(300);

/// The state of the path in use, the worst last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Health {
    /// Its pings are answered, or have not waited long enough to mean anything.
    Alive,
    /// Its pings have gone unanswered for a while. Relays get ready to carry, and the other proven
    /// paths are asked, so that there is one to change to if this one fails.
    Suspect { since: Time },
    /// Something moved and the path has not answered since, in the time that it has for that. A
    /// path that has answered since then takes its place. Relays are not called yet: an answer that
    /// only comes late would send them to and fro.
    Unconfirmed { since: Time },
    /// Its pings have gone unanswered for so long that a path that answers takes its place.
    Failing { since: Time },
    /// Neither pings nor WireGuard have shown life for seconds. Its endpoint stays until some path
    /// has answered, this one included.
    Lost { since: Time },
}

impl Health {
    pub(super) fn of(selection: &Selection, entry: Option<&Entry>, now: Time) -> Self {
        let silence = entry.and_then(Silence::of);
        let suspect = silence.filter(|silence| silence.suspect_at() <= now);
        let failing = suspect.filter(|silence| silence.is_failing(now));
        let unconfirmed = selection
            .doubted
            .filter(|_| Self::confirm_by(selection, entry).is_some_and(|by| by <= now));
        // A move is the later event: only an answer from after it proves the path.
        let since = selection.doubted.or(failing.map(|silence| silence.since));
        match (suspect, since) {
            _ if selection.check == Check::Lost => Self::Lost {
                since: since.unwrap_or(Time::ZERO),
            },
            (Some(_), Some(since)) if failing.is_some() || unconfirmed.is_some() => {
                Self::Failing { since }
            }
            (Some(silence), _) => Self::Suspect {
                since: silence.since,
            },
            (None, Some(since)) if unconfirmed.is_some() => Self::Unconfirmed { since },
            (None, _) => Self::Alive,
        }
    }

    /// When the health may become another one without any input; always after `now`.
    pub(super) fn changes_at(
        selection: &Selection,
        entry: Option<&Entry>,
        now: Time,
    ) -> Option<Time> {
        let suspect = entry.and_then(Silence::of).map(Silence::suspect_at);
        let confirm = Self::confirm_by(selection, entry);
        let moments = [suspect, confirm].into_iter().flatten();
        moments.filter(|at| *at > now).min()
    }

    /// Until when a path that is in doubt has to answer.
    fn confirm_by(selection: &Selection, entry: Option<&Entry>) -> Option<Time> {
        let rtt = entry.and_then(|entry| entry.rtt).unwrap_or_default();
        Some(selection.doubted? + CONFIRM.max(rtt * 3))
    }

    /// Since when an answer on another path counts, if the others are to be asked.
    pub(super) fn asks_others(self) -> Option<Time> {
        match self {
            Self::Alive | Self::Unconfirmed { .. } => None,
            Self::Suspect { since } | Self::Failing { since } | Self::Lost { since } => Some(since),
        }
    }

    /// Since when an answer on another path counts, if that path may take this one's place.
    pub(super) fn replaceable_since(self) -> Option<Time> {
        match self {
            Self::Alive | Self::Suspect { .. } => None,
            Self::Unconfirmed { since } | Self::Failing { since } | Self::Lost { since } => {
                Some(since)
            }
        }
    }

    /// Whether relays shall carry, in case the path is dead.
    pub(super) fn wants_relay(self) -> bool {
        match self {
            Self::Alive | Self::Unconfirmed { .. } => false,
            Self::Suspect { .. } | Self::Failing { .. } | Self::Lost { .. } => true,
        }
    }
}

/// How often the other paths are asked, at most.
pub(super) const ASK_OTHERS_EVERY: Duration = Duration::from_millis(450);

/// Pings of one path that await their pong.
#[derive(Debug, Clone, Copy)]
struct Silence {
    since: Time,
    pings: u32,
    rtt: Duration,
}

impl Silence {
    fn of(entry: &Entry) -> Option<Self> {
        Some(Self {
            since: entry.unanswered_since?,
            pings: entry.unanswered,
            rtt: entry.rtt.unwrap_or_default(),
        })
    }

    fn suspect_at(self) -> Time {
        self.since + SUSPECT.max(self.rtt * 3)
    }

    fn is_failing(self, now: Time) -> bool {
        self.pings >= FAILING_PINGS && now.since(self.since) >= FAILING.max(self.rtt * 4)
    }
}
