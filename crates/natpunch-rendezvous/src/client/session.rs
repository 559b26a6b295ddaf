//! A session, as its client holds it.

use std::time::Duration;

use natpunch_types::{ReplayWindow, Time};

use crate::crypto::{Key, open_message, seal_in_place};
use crate::wire::{Kind, SESSION_HEADER_LEN, session_message};

/// When a session gets new keys: so long after it was first used, or began. Messages under the old
/// ones that are on their way are done with well within two minutes.
const REKEY_USED: Duration = Duration::from_secs(105);
const REKEY_IDLE: Duration = Duration::from_secs(3600);
/// Or when nothing was answered for so long, which is three pings: a server that has restarted
/// knows no session.
const DOUBTED_AFTER: Duration = Duration::from_secs(3);
/// By how much each session is earlier, at most.
pub(super) const REKEY_EARLY: Duration = Duration::from_secs(15);

pub(super) struct Session {
    pub(super) id: u64,
    pub(super) from_client: Key,
    pub(super) from_server: Key,
    pub(super) next_counter: u64,
    pub(super) window: ReplayWindow,
    pub(super) since: Time,
    pub(super) ping_interval: Duration,
    pub(super) ping_due: Time,
    /// When it carried something other than pings for the first time.
    pub(super) used: Option<Time>,
    /// How much earlier than it must it gets new keys, so that not all do at once.
    pub(super) early: Duration,
    /// The time to the server and back, and since when a pong is awaited that measures it again.
    pub(super) round_trip: Duration,
    pub(super) pinged: Option<Time>,
    /// Since when an answer is awaited.
    pub(super) asked: Option<Time>,
}

impl Session {
    /// When it needs new keys.
    pub(super) fn rekey_at(&self) -> Time {
        let idle = self.since + REKEY_IDLE;
        let due = self.used.map_or(idle, |used| idle.min(used + REKEY_USED)) - self.early;
        self.asked
            .map_or(due, |asked| due.min(asked + DOUBTED_AFTER))
    }

    /// A pong came.
    pub(super) fn measure(&mut self, now: Time) {
        if let Some(pinged) = self.pinged.take() {
            self.round_trip = (self.round_trip * 3 + now.since(pinged)) / 4;
        }
    }

    /// Seals a message that has room for the session's header.
    pub(super) fn seal(&mut self, kind: Kind, mut message: Vec<u8>) -> Option<Vec<u8>> {
        let counter = self.next_counter;
        self.next_counter += 1;
        kind.put_session_header(self.id, counter, &mut message);
        seal_in_place(&self.from_client, counter, SESSION_HEADER_LEN, message)
    }

    /// Opens a message that the server sent in this session and that was not seen.
    pub(super) fn open(&mut self, payload: &[u8]) -> Option<Vec<u8>> {
        let (id, counter, header, sealed) = session_message(payload)?;
        if id != self.id {
            return None;
        }
        // *Busy*, the answer to a refused client, has a counter of its own and always the same
        // text.
        let busy = counter == u64::MAX - 1 && self.next_counter == 1;
        if !busy && !self.window.accepts(counter) {
            return None;
        }
        let text = open_message(&self.from_server, counter, header, sealed)?;
        if !busy {
            self.window.mark(counter);
        }
        Some(text)
    }
}
