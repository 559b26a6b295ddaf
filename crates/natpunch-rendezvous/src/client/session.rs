//! A session, as its client holds it.

use std::time::Duration;

use crate::crypto::{Key, open_message, seal_message};
use crate::window::Window;
use crate::wire::{Kind, session_message};

pub(super) struct Session {
    pub(super) id: u64,
    pub(super) from_client: Key,
    pub(super) from_server: Key,
    pub(super) next_counter: u64,
    pub(super) window: Window,
    pub(super) since: Duration,
    pub(super) ping_interval: Duration,
    pub(super) ping_due: Duration,
    /// Since when an answer is awaited.
    pub(super) asked: Option<Duration>,
}

impl Session {
    pub(super) fn seal(&mut self, text: Vec<u8>) -> Option<Vec<u8>> {
        let counter = self.next_counter;
        self.next_counter += 1;
        seal_message(&self.from_client, counter, Kind::Request.session_header(self.id, counter), text)
    }

    /// Opens a message that the server sent in this session and that was not seen.
    pub(super) fn open(&mut self, payload: &[u8]) -> Option<Vec<u8>> {
        let (id, counter, header, sealed) = session_message(payload)?;
        if id != self.id {
            return None;
        }
        // The answer to one who is refused has a counter of its own, and always the same text.
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
