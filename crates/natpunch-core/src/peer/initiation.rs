//! A handshake that is not waited for: the newest initiation that WireGuard made for a peer without
//! a path, and its copies on the path that is found.
//!
//! Such a peer has a [resting endpoint](natpunch_types::resting_endpoint), where the shell picks the
//! initiation up. The same bytes are as good on any path: the peer's WireGuard answers the first
//! that arrives and drops the others as replays, and WireGuard here takes the source of the answer
//! for the endpoint. So what waits in WireGuard leaves a round trip after the path is proven.
//! WireGuard by itself makes its next initiation only 5 s after this one, and a peer that is made
//! anew for an earlier one loses what waits.

use std::time::Duration;

use natpunch_types::{INITIATION_LEN, PathId};

use crate::env::Env;
use crate::{PacketKind, Time, Transmit};

use super::Peer;
use super::demand::Waker;
use super::selection::Check;

/// An initiation may still be the newest for this long. WireGuard repeats it after 5 s and up to
/// 333 ms (its REKEY_TIMEOUT and jitter); one that is older was replaced by one that took another
/// way, or WireGuard has given up, and nothing waits.
const CURRENT: Duration = Duration::from_secs(6);
/// When its copies leave, counted from when WireGuard was told of the path. One or two may be lost;
/// after the last, WireGuard's own repetition is due soon enough.
const COPIES: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_millis(1000),
];

/// WireGuard's newest initiation to a peer, and where it goes.
#[derive(Debug, Default)]
pub(super) struct Initiation {
    newest: Option<Kept>,
    /// At most one path: the choice of another takes its place.
    way: Option<Way>,
}

#[derive(Debug)]
struct Kept {
    datagram: Box<[u8; INITIATION_LEN]>,
    at: Time,
}

#[derive(Debug)]
struct Way {
    path: PathId,
    /// `None` until WireGuard was told of the path: a pin has to be in force before.
    since: Option<Time>,
    sent: usize,
}

impl Way {
    fn next(&self) -> Option<Time> {
        let after = COPIES.get(self.sent)?;
        self.since.map(|since| since + *after)
    }
}

impl Initiation {
    /// WireGuard made a new one, so that every older one is void. It takes the way of the last.
    fn keep(&mut self, datagram: &[u8], now: Time) {
        let Ok(datagram) = <[u8; INITIATION_LEN]>::try_from(datagram) else {
            return;
        };
        let datagram = Box::new(datagram);
        self.newest = Some(Kept { datagram, at: now });
        if let Some(way) = &mut self.way {
            way.since = way.since.map(|_| now);
            way.sent = 0;
        }
    }

    /// There is one that WireGuard may still wait for the answer to.
    pub(super) fn is_current(&self, now: Time) -> bool {
        let is_young = |kept: &Kept| now.since(kept.at) < CURRENT;
        self.newest.as_ref().is_some_and(is_young)
    }

    /// It shall go by this path, when WireGuard was told of it.
    pub(super) fn send_on(&mut self, path: PathId) {
        self.way = Some(Way {
            path,
            since: None,
            sent: 0,
        });
    }

    /// WireGuard was told of this path.
    fn release(&mut self, path: PathId, now: Time) {
        if let Some(way) = self.way.as_mut().filter(|way| way.path == path) {
            way.since.get_or_insert(now);
        }
    }

    /// When the next copy leaves.
    pub(super) fn next_copy(&self) -> Option<Time> {
        self.way.as_ref()?.next()
    }

    /// The copy that is due, and its path.
    fn take_due(&mut self, now: Time) -> Option<(PathId, Vec<u8>)> {
        let kept = self.newest.as_ref()?;
        let way = self.way.as_mut()?;
        way.next().filter(|at| *at <= now)?;
        // Copies that are late are not made up for.
        while way.next().is_some_and(|at| at <= now) {
            way.sent += 1;
        }
        Some((way.path, kept.datagram.to_vec()))
    }

    /// It was answered, or WireGuard has taken another handshake for it.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }
}

impl Peer {
    /// WireGuard's newest initiation to this peer, which had nowhere to go.
    pub(crate) fn handle_initiation(&mut self, datagram: &[u8], env: &mut Env, now: Time) {
        if !self.probes() {
            return;
        }
        self.initiation.keep(datagram, now);
        self.on_demand_here(now);
        self.rouse(Waker::Packet, env, now);
        // A path is in use, and WireGuard made this one before it was told. While that is still
        // under way, the way was chosen with it.
        let in_use = self.choice.selection.as_ref();
        let waits = in_use.filter(|s| matches!(s.check, Check::Running { .. }));
        if let Some(path) = waits
            .map(|s| s.path)
            .filter(|_| !self.device.is_setting(now))
        {
            self.initiation.send_on(path);
            self.initiation.release(path, now);
        }
        self.send_initiation(env, now);
    }

    /// WireGuard was told of a path: the initiation that waited for that leaves.
    pub(super) fn release_initiation(&mut self, path: PathId, env: &mut Env, now: Time) {
        self.initiation.release(path, now);
        self.send_initiation(env, now);
    }

    /// Sends the copy that is due.
    pub(super) fn send_initiation(&mut self, env: &mut Env, now: Time) {
        if let Some((path, payload)) = self.initiation.take_due(now) {
            let copy = Transmit::new(path, payload);
            self.send(PacketKind::HandshakeCopy, copy, env, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Time = Time::ZERO;

    fn path(last: u8) -> PathId {
        PathId::wireguard(([192, 0, 2, last], 51820).into())
    }

    fn datagram(byte: u8) -> Vec<u8> {
        vec![byte; INITIATION_LEN]
    }

    /// When copies leave, and what is in them, from `now` on.
    fn copies(initiation: &mut Initiation) -> Vec<(Duration, PathId, u8)> {
        let mut all = Vec::new();
        while let Some(at) = initiation.next_copy() {
            let (path, bytes) = initiation.take_due(at).unwrap();
            all.push((at.since(START), path, bytes[0]));
        }
        all
    }

    #[test]
    fn copies_leave_when_wireguard_was_told_of_the_path_and_five_in_a_second() {
        let mut initiation = Initiation::default();
        initiation.keep(&datagram(1), START);
        initiation.send_on(path(1));
        assert_eq!(initiation.next_copy(), None, "the path has to be set first");
        initiation.release(path(2), START);
        assert_eq!(initiation.next_copy(), None, "another path was set");
        initiation.release(path(1), START);
        let expected = COPIES.map(|after| (after, path(1), 1));
        assert_eq!(copies(&mut initiation), expected);
    }

    #[test]
    fn only_the_newest_initiation_is_sent() {
        let mut initiation = Initiation::default();
        initiation.keep(&datagram(1), START);
        initiation.send_on(path(1));
        initiation.release(path(1), START);
        assert!(initiation.take_due(START).is_some());
        let later = START + Duration::from_millis(50);
        initiation.keep(&datagram(2), later);
        assert_eq!(initiation.next_copy(), Some(later), "the new one at once");
        assert!(
            copies(&mut initiation)
                .iter()
                .all(|(_, _, byte)| *byte == 2)
        );
    }

    #[test]
    fn copies_that_are_late_are_one() {
        let mut initiation = Initiation::default();
        initiation.keep(&datagram(1), START);
        initiation.send_on(path(1));
        initiation.release(path(1), START);
        let late = START + Duration::from_millis(300);
        assert!(initiation.take_due(late).is_some());
        assert_eq!(initiation.take_due(late), None);
        assert_eq!(
            initiation.next_copy(),
            Some(START + Duration::from_millis(500))
        );
    }

    #[test]
    fn another_path_takes_the_place_of_the_first() {
        let mut initiation = Initiation::default();
        initiation.keep(&datagram(1), START);
        for number in [1, 2] {
            initiation.send_on(path(number));
            initiation.release(path(number), START);
            assert_eq!(initiation.take_due(START).unwrap().0, path(number));
        }
        assert!(copies(&mut initiation).iter().all(|copy| copy.1 == path(2)));
    }

    #[test]
    fn an_initiation_that_wireguard_has_repeated_by_now_is_not_current() {
        let mut initiation = Initiation::default();
        assert!(!initiation.is_current(START));
        initiation.keep(&datagram(1)[1..], START);
        assert!(!initiation.is_current(START), "that is none");
        initiation.keep(&datagram(1), START);
        assert!(initiation.is_current(START + Duration::from_millis(5_400)));
        assert!(!initiation.is_current(START + CURRENT));
        initiation.forget();
        assert!(!initiation.is_current(START) && initiation.next_copy().is_none());
    }
}
