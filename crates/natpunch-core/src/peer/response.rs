//! WireGuard's answer to the handshake that a peer began, and its copies.
//!
//! A lost answer costs five seconds: the peer's WireGuard does not begin anew before, and copies of
//! its initiation are replays to WireGuard here. The same answer, sent again, is as good as the
//! first. The peer's WireGuard takes one of them and drops the others.
//!
//! The shell hears WireGuard's answers only while one is expected, since that costs it a look at
//! each packet that leaves the host.

use std::time::Duration;

use natpunch_types::{INITIATION_LEN, PathId, RESPONSE_LEN};

use crate::env::Env;
use crate::{Time, Transmit};

use super::Peer;
use super::selection::Check;

/// When copies leave, counted from the answer itself.
const COPIES: [Duration; 4] = [
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_millis(1000),
];

/// WireGuard's newest answer to a peer, until data shows that it has arrived.
#[derive(Debug, Default)]
pub(super) struct Response(Option<Kept>);

#[derive(Debug)]
struct Kept {
    datagram: Box<[u8; RESPONSE_LEN]>,
    path: PathId,
    at: Time,
    sent: usize,
    /// Bytes that had come from the peer before.
    received: u64,
}

impl Kept {
    fn next(&self) -> Option<Time> {
        COPIES.get(self.sent).map(|after| self.at + *after)
    }
}

impl Response {
    fn keep(&mut self, path: PathId, datagram: &[u8], received: u64, now: Time) {
        if let Ok(datagram) = <[u8; RESPONSE_LEN]>::try_from(datagram) {
            self.0 = Some(Kept {
                datagram: Box::new(datagram),
                path,
                at: now,
                sent: 0,
                received,
            });
        }
    }

    /// When the next copy leaves.
    pub(super) fn next_copy(&self) -> Option<Time> {
        self.0.as_ref()?.next()
    }

    /// The copy that is due, and its path. Copies that are late are not made up for.
    fn take_due(&mut self, now: Time) -> Option<(PathId, Vec<u8>)> {
        let kept = self.0.as_mut()?;
        kept.next().filter(|at| *at <= now)?;
        while kept.next().is_some_and(|at| at <= now) {
            kept.sent += 1;
        }
        Some((kept.path, kept.datagram.to_vec()))
    }

    /// So much has come from the peer by now: more than its initiation shows that it has the answer.
    pub(super) fn on_received(&mut self, bytes: u64) {
        let is_over = |kept: &mut Kept| bytes.saturating_sub(kept.received) > INITIATION_LEN as u64;
        self.0.take_if(is_over);
    }

    /// The device has forgotten the handshake.
    pub(super) fn forget(&mut self) {
        self.0 = None;
    }
}

impl Peer {
    /// WireGuard has answered an initiation of this peer by this path.
    pub(crate) fn handle_response(&mut self, path: PathId, datagram: &[u8], now: Time) {
        if self.expects_response(now) {
            let received = self.device.rx_bytes;
            self.response.keep(path, datagram, received, now);
        }
    }

    /// Whether a handshake of the peer may come now: it is looked for, or a path was chosen, and
    /// WireGuard has no keys yet.
    pub(crate) fn expects_response(&self, now: Time) -> bool {
        if !self.probes() || self.rests() || self.device.session(now).has_keys() {
            return false;
        }
        match self.choice.selection.as_ref().map(|s| s.check) {
            Some(Check::Passed) => false,
            Some(Check::Deferred { .. } | Check::Running { .. }) => true,
            Some(Check::Lost) | None => self.round.is_probing() || self.has_answered_path(now),
        }
    }

    fn has_answered_path(&self, now: Time) -> bool {
        let mut paths = self.table.iter();
        paths.any(|(_, entry)| entry.is_answered(now) && !entry.is_blocked(now))
    }

    /// Sends the copy that is due.
    pub(super) fn send_response(&mut self, env: &mut Env, now: Time) {
        if let Some((path, payload)) = self.response.take_due(now) {
            env.out.transmit(Transmit::new(path, payload), now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Time = Time::ZERO;

    fn kept() -> Response {
        let mut response = Response::default();
        let path = PathId::wireguard(([192, 0, 2, 1], 51_820).into());
        response.keep(path, &[2; RESPONSE_LEN], 1_000, START);
        response
    }

    #[test]
    fn four_copies_leave_within_a_second_and_late_ones_are_one() {
        let mut response = kept();
        for after in COPIES {
            assert_eq!(response.next_copy(), Some(START + after));
            assert!(response.take_due(START + after).is_some());
        }
        assert_eq!(response.next_copy(), None);
        let (mut response, late) = (kept(), START + Duration::from_millis(600));
        assert!(response.take_due(late).is_some());
        assert_eq!(response.take_due(late), None);
    }

    #[test]
    fn the_peers_data_ends_the_copies_and_its_initiation_does_not() {
        let mut response = kept();
        response.on_received(1_148);
        assert!(response.next_copy().is_some());
        response.on_received(1_180);
        assert_eq!(response.next_copy(), None);
    }

    #[test]
    fn what_has_not_the_length_of_an_answer_is_not_kept() {
        let mut response = Response::default();
        let path = PathId::wireguard(([192, 0, 2, 1], 51_820).into());
        response.keep(path, &[2; RESPONSE_LEN + 1], 0, START);
        assert_eq!(response.next_copy(), None);
    }
}
