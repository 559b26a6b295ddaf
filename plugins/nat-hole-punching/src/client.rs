//! The client, without sockets: keeps one node registered with one server, and asks it for peers.
//!
//! An answer names neither its question nor a peer, and is not authentic. So one question is open
//! at a time, and after a loss the same one is repeated: whichever answer comes then is about the
//! same peer. Another peer is asked for when all answers came, or when the missing ones had `QUIET`
//! to come and did not.

use std::collections::VecDeque;
use std::net::SocketAddrV4;
use std::time::Duration;

use natpunch_plugin::Schedule;
use natpunch_types::{PeerKey, Time};

use crate::wire::{Answer, Request};

/// How long to be silent at most: NATs may forget a mapping after 30 s (RFC 4787, 4.3, in
/// practice).
const KEEPALIVE: Duration = Duration::from_secs(20);
/// How long to wait for an answer, at first and at most; doubled with each repetition.
const MIN_WAIT: Duration = Duration::from_millis(250);
const MAX_WAIT: Duration = Duration::from_secs(2);
/// How late an answer may come and still be expected.
pub(crate) const QUIET: Duration = Duration::from_secs(2);
/// After how many repetitions without an answer the server counts as down.
const DOWN_AFTER: u32 = 3;
/// How many datagrams and events may wait to be polled. The oldest give way.
const MAX_QUEUE: usize = 64;

/// What a [`Client`] found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The server says that this peer was last seen there.
    Found {
        /// The peer.
        peer: PeerKey,
        /// Where.
        address: SocketAddrV4,
    },
    /// The server answers.
    Up,
    /// The server does not answer. Tries go on.
    Down,
}

/// A client of a nat-hole-punching server. See the [module](self) for how it works.
///
/// Feed it with `handle_*` and [`set_peers`](Self::set_peers), then drain
/// [`poll_transmit`](Self::poll_transmit) and [`poll_event`](Self::poll_event), and call
/// [`handle_timeout`](Self::handle_timeout) at the time of [`poll_timeout`](Self::poll_timeout).
/// All times count from one origin and never go back.
pub struct Client {
    own: PeerKey,
    schedule: Schedule,
    /// The peer that the last question was about.
    subject: Option<PeerKey>,
    /// How many questions about it have no answer, and may still get one.
    unanswered: u32,
    last_sent: Time,
    /// When to repeat the open question.
    repeat_at: Option<Time>,
    wait: Duration,
    repetitions: u32,
    up: Option<bool>,
    transmits: VecDeque<Vec<u8>>,
    events: VecDeque<Event>,
}

impl Client {
    /// A client of this node.
    pub fn new(own: PeerKey, now: Time) -> Self {
        Self {
            own,
            schedule: Schedule::default(),
            subject: None,
            unanswered: 0,
            last_sent: now,
            repeat_at: None,
            wait: MIN_WAIT,
            repetitions: 0,
            up: None,
            transmits: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// Sets the peers to ask for, complete, and whether each is wanted. Without peers the client is
    /// silent.
    pub fn set_peers(&mut self, peers: impl IntoIterator<Item = (PeerKey, bool)>, now: Time) {
        let own = self.own;
        let peers = peers
            .into_iter()
            .filter(|(peer, _)| *peer != own && peer.as_bytes() != &[0; 32]);
        self.schedule.set_peers(peers, now);
        if self
            .subject
            .is_some_and(|subject| !self.schedule.contains(&subject))
        {
            self.repeat_at = None;
        }
        self.handle_timeout(now);
    }

    /// The network changed: registers anew and asks for everybody.
    pub fn handle_network_change(&mut self, now: Time) {
        self.schedule.restart(now);
        self.wait = MIN_WAIT;
        if self.repeat_at.is_some() {
            self.repeat_at = Some(now);
        }
        self.handle_timeout(now);
    }

    /// Handles a datagram from the server's address.
    pub fn handle_datagram(&mut self, datagram: &[u8], now: Time) {
        let (Some(Answer(address)), Some(peer)) = (Answer::parse(datagram), self.subject) else {
            return;
        };
        self.forget_lost(now);
        let Some(unanswered) = self.unanswered.checked_sub(1) else {
            return;
        };
        self.unanswered = unanswered;
        self.repeat_at = None;
        self.repetitions = 0;
        self.wait = MIN_WAIT;
        if self.up != Some(true) {
            self.up = Some(true);
            push(&mut self.events, Event::Up);
        }
        if let Some(address) = address
            && self.schedule.contains(&peer)
        {
            push(&mut self.events, Event::Found { peer, address });
        }
        self.handle_timeout(now);
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Time) {
        self.forget_lost(now);
        let Some((next, due)) = self.schedule.next() else {
            self.repeat_at = None;
            self.transmits.clear();
            return;
        };
        if let (Some(at), Some(subject)) = (self.repeat_at, self.subject) {
            if now >= at {
                self.repetitions += 1;
                self.wait = (self.wait * 2).min(MAX_WAIT);
                if self.repetitions == DOWN_AFTER && self.up != Some(false) {
                    self.up = Some(false);
                    push(&mut self.events, Event::Down);
                }
                self.ask(subject, now);
            }
            return;
        }
        if (now >= due || now >= self.last_sent + KEEPALIVE) && self.may_ask(&next) {
            self.ask(next, now);
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) next has something to do.
    pub fn poll_timeout(&self) -> Option<Time> {
        let (next, due) = self.schedule.next()?;
        if self.repeat_at.is_some() {
            return self.repeat_at;
        }
        let ask = due.min(self.last_sent + KEEPALIVE);
        Some(if self.may_ask(&next) {
            ask
        } else {
            ask.max(self.last_sent + QUIET)
        })
    }

    /// The next datagram to send to the server.
    pub fn poll_transmit(&mut self) -> Option<Vec<u8>> {
        self.transmits.pop_front()
    }

    /// The next thing found out.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Whether no answer about another peer is expected any more.
    fn may_ask(&self, peer: &PeerKey) -> bool {
        self.unanswered == 0 || self.subject == Some(*peer)
    }

    fn forget_lost(&mut self, now: Time) {
        if now >= self.last_sent + QUIET {
            self.unanswered = 0;
        }
    }

    fn ask(&mut self, wanted: PeerKey, now: Time) {
        self.schedule.asked(&wanted, now);
        self.subject = Some(wanted);
        self.unanswered += 1;
        self.last_sent = now;
        self.repeat_at = Some(now + self.wait);
        push(
            &mut self.transmits,
            Request {
                own: self.own,
                wanted,
            }
            .encode()
            .to_vec(),
        );
    }
}

fn push<T>(queue: &mut VecDeque<T>, item: T) {
    if queue.len() >= MAX_QUEUE {
        queue.pop_front();
    }
    queue.push_back(item);
}

#[cfg(test)]
mod tests;
