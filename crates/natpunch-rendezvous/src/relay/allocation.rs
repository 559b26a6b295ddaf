//! One pair at a port: which datagrams it forwards between its two sides, and when.
//!
//! The rule of forwarding ([`Allocation::forward`]) keeps a relay from carrying anything but
//! WireGuard: probes at a low rate; handshakes while a side asked to carry; and data only for a
//! session whose handshake the port has seen, or that another path began shortly before.

use std::net::SocketAddr;

use natpunch_types::{Bucket, Time, is_global};

use super::{
    Allocation, BIND_WINDOW, Counters, IDLE, INDEX_LIFETIME, INDICES, KEY_LIFETIME, Limits,
    OVERHEAD, Obstacle, PAUSE, PROBES, QUEUE, SIZE_PROBES, Side, TAKEN_OVER, Verdict, Waiting,
};
use crate::crypto::Key;
use crate::relay::budget::Budget;
use crate::relay::shape::{Index, Shape};
use crate::server::Via;
use natpunch_types::Network;

impl Allocation {
    /// Whether a datagram of side `from`, which came by `via`, is forwarded to the other side.
    pub(super) fn forward(
        &mut self,
        from: usize,
        via: Via,
        payload: &[u8],
        limits: &Limits,
        counters: &mut Counters,
        now: Time,
    ) -> Verdict {
        let shape = Shape::of(payload);
        let is_probe = shape.is_some_and(Shape::is_probe);
        let since = if self.carried && !is_probe {
            self.stretch_at(now)
        } else {
            now
        };
        let [a, b] = &mut self.sides;
        let (sender, receiver) = if from == 0 { (a, b) } else { (b, a) };
        // The address was proven for one socket of the server only: by another socket the same
        // address is another path, which the side has not bound.
        let here = sender.bound.is_some_and(|(_, bound)| bound == via);
        let Some((to, to_via)) = receiver.bound.filter(|_| here) else {
            counters.not_carried += 1;
            return Verdict::Drop;
        };
        let known = match shape {
            // Probes always pass, so that a relay in reserve stays proven. Their rate is bounded,
            // or they would be a way to carry data on standby.
            Some(own @ (Shape::Probe | Shape::SizeProbe)) => {
                if !sender.may_probe(own, now) {
                    counters.limited += 1;
                    return Verdict::Drop;
                }
                true
            }
            // Standby: a packet of WireGuard's that came by the relay would make its receiver roam
            // back to it.
            _ if !self.carried => {
                counters.not_carried += 1;
                return Verdict::Drop;
            }
            // The operator lets modified protocols pass, whose messages have other forms.
            _ if limits.any_payload => true,
            // Neither a probe nor WireGuard's: the relay is not a general tunnel.
            None => false,
            // An initiation begins a session, so it can't refer to an earlier message. It is short
            // and of one length.
            Some(Shape::Initiation { sender: index }) => {
                sender.chose(index, now);
                true
            }
            // A response is forwarded only to the side whose initiation passed here.
            Some(Shape::Response {
                sender: index,
                receiver: asked,
            }) => {
                let known = receiver.knows(asked, now);
                if known {
                    sender.chose(index, now);
                    self.shook_hands = true;
                }
                known
            }
            // A cookie reply answers a handshake message that passed here.
            Some(Shape::CookieReply { receiver: asked }) => receiver.knows(asked, now),
            // Data belongs to a session whose handshake passed here.
            Some(Shape::Data { receiver: session }) => {
                receiver.knows(session, now) || {
                    // Or its handshake took the path that just died. Without this exception the
                    // pair would wait until WireGuard tries a new handshake, 15 s later.
                    let recent = now.since(since) < KEY_LIFETIME;
                    let taken = recent && !self.shook_hands && receiver.taken_over < TAKEN_OVER;
                    if taken {
                        receiver.taken_over += 1;
                        receiver.chose(session, now);
                    }
                    taken
                }
            }
        };
        if !known {
            counters.misshapen += 1;
            return Verdict::Drop;
        }
        sender.heard = now;
        if !is_probe {
            self.stretch = Some((since, now));
        }
        Verdict::Forward { via: to_via, to }
    }

    /// When the stretch of WireGuard's messages began to which a message at `now` belongs. After a
    /// pause a new stretch begins: the pair may have made sessions on another path meanwhile, so
    /// each side may take some over again.
    pub(super) fn stretch_at(&mut self, now: Time) -> Time {
        let going_on = self.stretch.filter(|(_, last)| now.since(*last) < PAUSE);
        going_on.map_or_else(
            || {
                self.shook_hands = false;
                self.sides.iter_mut().for_each(|side| side.taken_over = 0);
                now
            },
            |(since, _)| since,
        )
    }

    /// The networks of its two sides: of the bound address, or else of the session's.
    pub(super) fn networks(&self) -> [Network; 2] {
        self.sides.each_ref().map(|side| {
            let bound = side.bound.map_or(side.registered, |(address, _)| address);
            Network::of(bound.ip())
        })
    }

    /// Takes what a datagram costs from every budget, if each has enough. A probe is bound only by
    /// the bytes of the hour and the budget of all: it has a rate of its own, and what it measures
    /// is the path, not a queue here.
    pub(super) fn pass(
        &mut self,
        cost: u64,
        is_probe: bool,
        limits: &Limits,
        budget: Option<&Budget>,
        now: Time,
    ) -> Result<(), Obstacle> {
        if self.has_used_its_hour(limits, now) {
            return Err(Obstacle::PairHour);
        }
        if !is_probe && !self.has_room(cost, limits, now) {
            return Err(Obstacle::PairRate);
        }
        if !is_probe && !self.share.has(cost, now) {
            return Err(Obstacle::TotalRate);
        }
        if budget.is_some_and(|budget| !budget.take(cost, now)) {
            return Err(Obstacle::TotalRate);
        }
        self.bytes.take(limits.pair_rate(), cost, now);
        self.share.take(cost, now);
        self.used.1 = self.used.1.saturating_add(cost);
        Ok(())
    }

    /// The rate that holds back a datagram which waits behind others.
    pub(super) fn obstacle(&self, cost: u64, limits: &Limits, now: Time) -> Obstacle {
        if self.has_room(cost, limits, now) {
            Obstacle::TotalRate
        } else {
            Obstacle::PairRate
        }
    }

    fn has_room(&self, cost: u64, limits: &Limits, now: Time) -> bool {
        self.bytes.after(limits.pair_rate(), cost, now).is_some()
    }

    pub(super) fn has_used_its_hour(&mut self, limits: &Limits, now: Time) -> bool {
        let hour = now.since(self.opened).as_secs() / 3600;
        if self.used.0 != hour {
            self.used = (hour, 0);
        }
        self.used.1 >= limits.bytes_per_hour
    }

    /// Keeps a datagram for a side; false if its queue is full.
    pub(super) fn enqueue(
        &mut self,
        to: usize,
        payload: &[u8],
        limits: &Limits,
        budget: Option<&Budget>,
    ) -> bool {
        let (time, least, most) = QUEUE;
        let rate = limits
            .bytes_per_second
            .min(self.share.rate().unwrap_or(u64::MAX));
        let room = rate.saturating_mul(time.as_millis() as u64) / 1_000;
        let bytes = payload.len() as u64 + OVERHEAD;
        if self.queued + bytes > room.clamp(least, most)
            || budget.is_some_and(|budget| !budget.queue(bytes))
        {
            return false;
        }
        self.queued += bytes;
        let payload = payload.to_vec();
        self.queue.push_back(Waiting { to, payload });
        true
    }

    /// The first datagram in the queue, if it may leave now. One whose side has no address any more
    /// is dropped.
    pub(super) fn release(
        &mut self,
        limits: &Limits,
        budget: Option<&Budget>,
        now: Time,
    ) -> Option<(Via, SocketAddr, Vec<u8>)> {
        loop {
            let cost = self.queue.front()?.payload.len() as u64 + OVERHEAD;
            match self.pass(cost, false, limits, budget, now) {
                Ok(()) => {}
                Err(Obstacle::PairHour) => {
                    self.clear_queue(budget);
                    return None;
                }
                Err(Obstacle::PairRate | Obstacle::TotalRate) => return None,
            }
            let Waiting { to, payload } = self.queue.pop_front()?;
            self.queued = self.queued.saturating_sub(cost);
            if let Some(budget) = budget {
                budget.unqueue(cost);
            }
            if let Some((address, via)) = self.sides.get(to).and_then(|side| side.bound) {
                return Some((via, address, payload));
            }
        }
    }

    pub(super) fn clear_queue(&mut self, budget: Option<&Budget>) {
        self.queue.clear();
        let queued = std::mem::take(&mut self.queued);
        if let Some(budget) = budget {
            budget.unqueue(queued);
        }
    }

    pub(super) fn is_over(&self, now: Time) -> bool {
        let bound = self.sides.iter().all(|side| side.bound.is_some());
        let unused = !bound && now.since(self.opened) >= BIND_WINDOW;
        unused || self.sides.iter().any(|side| now.since(side.heard) >= IDLE)
    }
}

impl Side {
    pub(super) fn new(key: Key, registered: SocketAddr, now: Time) -> Self {
        Self {
            key,
            registered,
            bound: None,
            moves: 0,
            heard: now,
            indices: [(0, 0); INDICES],
            next_index: 0,
            taken_over: 0,
            probes: Bucket::default(),
            size_probes: Bucket::default(),
        }
    }

    /// Whether this side may be at an address: any global one, and the one where its session is. So
    /// a server sends into a private network only to clients that it serves there anyway.
    pub(super) fn admits(&self, source: SocketAddr) -> bool {
        is_global(source.ip()) || source.ip() == self.registered.ip()
    }

    fn may_probe(&mut self, shape: Shape, now: Time) -> bool {
        match shape {
            Shape::SizeProbe => self.size_probes.take(SIZE_PROBES, 1, now),
            _ => self.probes.take(PROBES, 1, now),
        }
    }

    /// This side chose an index, so datagrams for that index belong to it.
    pub(super) fn chose(&mut self, index: Index, now: Time) {
        let now = now.since_origin().as_secs() as u32;
        if let Some(known) = self
            .indices
            .iter_mut()
            .find(|(known, since)| *known == index && *since != 0)
        {
            known.1 = now.max(1);
        } else if let Some(oldest) = self.indices.get_mut(self.next_index) {
            *oldest = (index, now.max(1));
            self.next_index = (self.next_index + 1) % INDICES;
        }
    }

    /// Whether this side chose an index lately.
    pub(super) fn knows(&self, index: Index, now: Time) -> bool {
        let now = now.since_origin().as_secs() as u32;
        self.indices.iter().any(|(known, since)| {
            *known == index
                && *since != 0
                && now.saturating_sub(*since) < INDEX_LIFETIME.as_secs() as u32
        })
    }
}
