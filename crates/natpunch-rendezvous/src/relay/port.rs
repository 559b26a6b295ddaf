//! One UDP port of a relay.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use natpunch_types::{Bucket, Rate, Time, canonical};

use super::bind::{Message, State};
use super::budget::{Budget, Share};
use super::shape::{Index, Shape};
use crate::crypto::{self, Key, short_mac};
use crate::server::Via;
use crate::wire::{BIND_LEN, CookieBytes, Kind, put_address};

#[path = "allocation.rs"]
mod allocation;

/// Both sides have to be bound this long after the allocation was made.
const BIND_WINDOW: Duration = Duration::from_secs(30);
/// An allocation ends when one of its sides was silent for this long.
const IDLE: Duration = Duration::from_secs(300);
/// How old a cookie may be: this long, or twice.
const COOKIE_SLOT: Duration = Duration::from_secs(150);
/// WireGuard's REJECT_AFTER_TIME: no key is used for longer.
const KEY_LIFETIME: Duration = Duration::from_secs(180);
/// How long an index is good: a key's life, and the handshake before it.
const INDEX_LIFETIME: Duration = Duration::from_secs(240);
/// Indices of one side that are remembered: an attempt chooses one every 5 s.
const INDICES: usize = 16;
/// Sessions of each side that began on another path and go on here, in one stretch of WireGuard's
/// messages ...
const TAKEN_OVER: u8 = 4;
/// ... which begins after a pause of this length: meanwhile they took that path, also for
/// handshakes.
const PAUSE: Duration = Duration::from_secs(5);
/// Probes of one side: in a second, and at once.
const PROBES: Rate = Rate::per_second(20, 60);
/// The same of probes that measure how large datagrams may be, and of their answers: a search sends
/// up to 25, and a path that is in use is measured every few seconds.
const SIZE_PROBES: Rate = Rate::per_second(4, 60);
/// What a datagram counts besides its payload: headers of the link, IP and UDP.
const OVERHEAD: u64 = 42;
/// The length of one allocation's queue: the bytes that pass in this time, but not less than the
/// first and no more than the second number of bytes. A longer queue would only add delay.
const QUEUE: (Duration, u64, u64) = (Duration::from_millis(50), 32 << 10, 512 << 10);
/// How often the queues are looked at for datagrams that may leave.
const RELEASE: Duration = Duration::from_millis(1);
/// How often allocations are looked at for those that are over.
const SWEEP: Duration = Duration::from_secs(1);

/// What an allocation may carry, in both directions together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// In a second, and as a burst, counting 42 bytes of headers for each datagram. What comes
    /// faster waits for up to 50 ms.
    pub bytes_per_second: u64,
    /// In each hour of its life.
    pub bytes_per_hour: u64,
    /// Forwards every datagram between two bound sides, for modified WireGuard protocols.
    pub any_payload: bool,
}

impl Limits {
    /// Of each pair, in bytes.
    fn pair_rate(&self) -> Rate {
        Rate::per_second(self.bytes_per_second, self.bytes_per_second)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes_per_second: 25_000_000,
            bytes_per_hour: 20_000_000_000,
            any_payload: false,
        }
    }
}

/// What the server tells a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Let two sides bind.
    Open {
        /// An even number. The second side's binds have it with the lowest bit set.
        allocation: u64,
        /// The secret of each side's offer.
        keys: [Key; 2],
        /// Where each side's session has proven to be.
        registered: [SocketAddr; 2],
    },
    /// The session of a side has proven to be elsewhere.
    Registered {
        /// With the lowest bit set if it is the second side's.
        allocation: u64,
        /// Where.
        address: SocketAddr,
    },
    /// Whether WireGuard's messages may pass, or only probes.
    Carry {
        /// Which.
        allocation: u64,
        /// Whether one of the sides asked for it.
        carry: bool,
    },
    /// It is over.
    Close {
        /// Which.
        allocation: u64,
    },
}

/// What a port tells the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Both sides of this allocation are bound.
    Bound(u64),
    /// This allocation is over: a side did not bind in time, or was silent for too long.
    Over(u64),
}

/// What is to be done with a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Drop,
    /// Send it, unchanged, to the other side.
    Forward {
        /// Over which way.
        via: Via,
        /// Where the other side is bound.
        to: SocketAddr,
    },
    /// Send this to where it came from. It is never longer.
    Answer([u8; BIND_LEN]),
    /// Nothing now: the port has kept it, and gives it by [`Port::poll_transmit`].
    Queued,
}

/// What a port did so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Datagrams passed on.
    pub forwarded: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Times that a side was bound, first or elsewhere.
    pub bound: u64,
    /// Challenges sent.
    pub challenged: u64,
    /// Datagrams dropped: of an address that is not bound, or forged binds.
    pub strangers: u64,
    /// Dropped: not WireGuard's nor a probe, or for a session of WireGuard's that no handshake
    /// began.
    pub misshapen: u64,
    /// Dropped: the other side is not bound, or neither side asked to carry WireGuard's messages.
    pub not_carried: u64,
    /// Dropped: more probes than a side may send.
    pub limited: u64,
    /// Kept for a moment, at a rate.
    pub queued: u64,
    /// Dropped at an allocation's rate, since its queue was full.
    pub pair_rate: u64,
    /// Dropped since an allocation has used its bytes of the hour.
    pub pair_hour: u64,
    /// Dropped at the rate of all together, since the queue of an allocation that has more than its
    /// share was full.
    pub total_rate: u64,
    /// Binds refused: of an address that no client may have here.
    pub refused: u64,
}

impl std::ops::AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        self.forwarded += other.forwarded;
        self.bytes += other.bytes;
        self.bound += other.bound;
        self.challenged += other.challenged;
        self.strangers += other.strangers;
        self.misshapen += other.misshapen;
        self.not_carried += other.not_carried;
        self.limited += other.limited;
        self.queued += other.queued;
        self.pair_rate += other.pair_rate;
        self.pair_hour += other.pair_hour;
        self.total_rate += other.total_rate;
        self.refused += other.refused;
    }
}

/// A port of a relay. Pure: feed datagrams and [`Command`]s, drain [`Event`]s.
pub struct Port {
    limits: Limits,
    /// What all ports may pass on together; `None`: no more is asked than each allocation's limits.
    budget: Option<Arc<Budget>>,
    cookie_key: Key,
    own: Own,
    /// By their (even) number.
    allocations: BTreeMap<u64, Box<Allocation>>,
    /// Which allocation and side an address is bound to.
    by_source: BTreeMap<SocketAddr, (u64, usize)>,
    /// The allocations with something in their queues.
    waiting: BTreeSet<u64>,
    next_release: Time,
    events: VecDeque<Event>,
    next_sweep: Time,
    counters: Counters,
}

/// Where the server itself listens, so that no relay ever sends to it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Own {
    /// Its addresses, as far as they were named.
    pub addresses: BTreeSet<IpAddr>,
    /// Its UDP ports.
    pub ports: BTreeSet<u16>,
}

struct Allocation {
    sides: [Side; 2],
    opened: Time,
    /// Whether WireGuard's messages may pass.
    carried: bool,
    /// Since when they do without a pause, and when the last one did.
    stretch: Option<(Time, Time)>,
    /// A handshake was completed here since then.
    shook_hands: bool,
    /// The server knows that both are bound.
    told: bool,
    /// The bytes that may pass.
    bytes: Bucket,
    /// The hour of its life, and what passed in it.
    used: (u64, u64),
    /// What the budget of all leaves it.
    share: Share,
    /// What waits, and its bytes.
    queue: VecDeque<Waiting>,
    queued: u64,
}

/// A datagram that waits.
struct Waiting {
    /// To which side it goes.
    to: usize,
    payload: Vec<u8>,
}

/// What stands against a datagram's leaving now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Obstacle {
    PairHour,
    PairRate,
    TotalRate,
}

struct Side {
    key: Key,
    registered: SocketAddr,
    bound: Option<(SocketAddr, Via)>,
    /// How often it was bound to another address: older cookies are void.
    moves: u32,
    /// When it was heard.
    heard: Time,
    /// Indices that this side chose in handshakes, and when (in seconds), the newest at
    /// `next_index - 1`.
    indices: [(Index, u32); INDICES],
    next_index: usize,
    taken_over: u8,
    /// Probes that may pass now, times a thousand, and when (in milliseconds) that was so.
    probes: Bucket,
    /// The same of probes that measure how large datagrams may be.
    size_probes: Bucket,
}

impl Port {
    /// Bytes of memory that an allocation takes here at most, with its share of the maps.
    pub(crate) const ALLOCATION: usize = size_of::<Allocation>()
        + 3 * (size_of::<(SocketAddr, (u64, usize))>() + size_of::<(u64, usize)>());

    /// A port without allocations. The key is of its own, random.
    pub fn new(limits: Limits, own: Own, key: [u8; 32]) -> Self {
        Self {
            limits,
            budget: None,
            cookie_key: Key::new(key),
            own,
            allocations: BTreeMap::new(),
            by_source: BTreeMap::new(),
            waiting: BTreeSet::new(),
            next_release: Time::ZERO,
            events: VecDeque::new(),
            next_sweep: Time::ZERO,
            counters: Counters::default(),
        }
    }

    /// The same port, within a budget that it shares with others.
    #[must_use]
    pub fn within(self, budget: Arc<Budget>) -> Self {
        Self {
            budget: Some(budget),
            ..self
        }
    }

    /// Does what the server says.
    pub fn handle_command(&mut self, command: Command, now: Time) {
        match command {
            Command::Open {
                allocation,
                keys,
                registered,
            } => {
                self.close(allocation);
                let [a, b] = keys;
                let [at_a, at_b] = registered.map(canonical);
                let sides = [Side::new(a, at_a, now), Side::new(b, at_b, now)];
                let allocation_state = Allocation {
                    sides,
                    opened: now,
                    carried: false,
                    stretch: None,
                    shook_hands: false,
                    told: false,
                    bytes: Bucket::default(),
                    used: (0, 0),
                    share: Share::new(now),
                    queue: VecDeque::new(),
                    queued: 0,
                };
                self.allocations
                    .insert(allocation, Box::new(allocation_state));
            }
            Command::Registered {
                allocation,
                address,
            } => {
                let (allocation, side) = split(allocation);
                let side = self
                    .allocations
                    .get_mut(&allocation)
                    .and_then(|found| found.sides.get_mut(side));
                if let Some(side) = side {
                    side.registered = canonical(address);
                }
            }
            Command::Carry { allocation, carry } => {
                if let Some(allocation) = self.allocations.get_mut(&allocation)
                    && allocation.carried != carry
                {
                    (allocation.carried, allocation.stretch) = (carry, None);
                    // Only WireGuard's packets wait. Sent after a change to a direct path they
                    // would take WireGuard back to the relay.
                    allocation.clear_queue(self.budget.as_deref());
                }
            }
            Command::Close { allocation } => self.close(allocation),
        }
    }

    /// Takes a datagram, and says what is to be done with it.
    pub fn handle_datagram(
        &mut self,
        via: Via,
        source: SocketAddr,
        payload: &[u8],
        now: Time,
    ) -> Verdict {
        let source = canonical(source);
        // A bind may come from any address: it is how a side proves where it is.
        if Kind::of(payload) == Some(Kind::Bind) {
            return self
                .handle_bind(via, source, payload, now)
                .map_or(Verdict::Drop, Verdict::Answer);
        }
        // Every other datagram belongs to the side that is bound to its source, or to none.
        let Some((allocation, side)) = self.by_source.get(&source).copied() else {
            self.counters.strangers += 1;
            return Verdict::Drop;
        };
        let number = allocation;
        let Some(allocation) = self.allocations.get_mut(&number) else {
            return Verdict::Drop;
        };
        let verdict = allocation.forward(side, via, payload, &self.limits, &mut self.counters, now);
        if !matches!(verdict, Verdict::Forward { .. }) {
            return verdict;
        }
        let cost = payload.len() as u64 + OVERHEAD;
        let budget = self.budget.as_deref();
        if let Some(budget) = budget {
            let networks = allocation.networks();
            allocation.share.offer(cost, number, networks, budget, now);
        }
        // A probe does not wait behind others: it has a rate of its own, and measures the path, not
        // a queue here.
        let is_probe = Shape::of(payload).is_some_and(Shape::is_probe);
        let obstacle = if allocation.queue.is_empty() || is_probe {
            allocation.pass(cost, is_probe, &self.limits, budget, now)
        } else {
            // Datagrams that came before it wait, and a pair's datagrams keep their order.
            Err(allocation.obstacle(cost, &self.limits, now))
        };
        let Err(obstacle) = obstacle else {
            self.counters.forwarded += 1;
            self.counters.bytes += payload.len() as u64;
            return verdict;
        };
        // A pair without bytes for this hour would wait for the next hour.
        let may_wait = !is_probe && obstacle != Obstacle::PairHour;
        if may_wait && allocation.enqueue(1 - side, payload, &self.limits, budget) {
            if self.waiting.is_empty() {
                self.next_release = now + RELEASE;
            }
            self.waiting.insert(number);
            self.counters.queued += 1;
            return Verdict::Queued;
        }
        match obstacle {
            Obstacle::PairHour => self.counters.pair_hour += 1,
            Obstacle::PairRate => self.counters.pair_rate += 1,
            Obstacle::TotalRate => self.counters.total_rate += 1,
        }
        Verdict::Drop
    }

    /// The next datagram whose turn has come: over which way it goes, where, and what it is. To be
    /// drained after each call of [`handle_datagram`](Self::handle_datagram), and at
    /// [`poll_release`](Self::poll_release).
    pub fn poll_transmit(&mut self, now: Time) -> Option<(Via, SocketAddr, Vec<u8>)> {
        if self.waiting.is_empty() || now < self.next_release {
            return None;
        }
        let mut number = self.waiting.first().copied();
        while let Some(current) = number {
            // Each allocation has rates of its own, so the order of the visits costs none of them.
            number = self.waiting.range(current + 1..).next().copied();
            let Some(allocation) = self.allocations.get_mut(&current) else {
                self.waiting.remove(&current);
                continue;
            };
            let released = allocation.release(&self.limits, self.budget.as_deref(), now);
            if allocation.queue.is_empty() {
                self.waiting.remove(&current);
            }
            if let Some((via, to, payload)) = released {
                self.counters.forwarded += 1;
                self.counters.bytes += payload.len() as u64;
                return Some((via, to, payload));
            }
        }
        self.next_release = now + RELEASE;
        None
    }

    /// When something may leave a queue.
    pub fn poll_release(&self) -> Option<Time> {
        (!self.waiting.is_empty()).then_some(self.next_release)
    }

    /// Ends what is over.
    pub fn handle_timeout(&mut self, now: Time) {
        if now < self.next_sweep {
            return;
        }
        self.next_sweep = now + SWEEP;
        let over = self
            .allocations
            .iter()
            .filter(|(_, allocation)| allocation.is_over(now));
        let over: Vec<u64> = over.map(|(number, _)| *number).collect();
        for number in over {
            self.close(number);
            self.events.push_back(Event::Over(number));
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called.
    pub fn poll_timeout(&self) -> Option<Time> {
        (!self.allocations.is_empty()).then_some(self.next_sweep)
    }

    /// The next thing that the server has to know.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// What was done so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// How many allocations there are.
    pub fn allocations(&self) -> usize {
        self.allocations.len()
    }

    fn close(&mut self, allocation: u64) {
        self.waiting.remove(&allocation);
        let Some(mut allocation) = self.allocations.remove(&allocation) else {
            return;
        };
        allocation.clear_queue(self.budget.as_deref());
        for (address, _) in allocation.sides.iter().filter_map(|side| side.bound) {
            self.by_source.remove(&address);
        }
    }

    fn handle_bind(
        &mut self,
        via: Via,
        source: SocketAddr,
        payload: &[u8],
        now: Time,
    ) -> Option<[u8; BIND_LEN]> {
        let claimed = Message::allocation(payload)?;
        let (number, index) = split(claimed);
        let allocation = self.allocations.get_mut(&number);
        let side = allocation.and_then(|allocation| allocation.sides.get_mut(index));
        // A bind without the secret of the offer gets no answer, so that a port reveals nothing to
        // scans.
        let opened =
            side.and_then(|side| Message::open(&side.key, payload).map(|bind| (side, bind)));
        let Some((side, bind)) = opened else {
            self.counters.strangers += 1;
            return None;
        };
        let theirs = self
            .by_source
            .get(&source)
            .is_some_and(|found| *found != (number, index));
        // The address of another side, of this server, or in a private network that the session
        // does not come from: the relay would send to a host that did not ask for it.
        if theirs || !self.own.admits(via, source) || !side.admits(source) {
            self.counters.refused += 1;
            return None;
        }
        let cookies =
            [0, 1].map(|age| cookie(&self.cookie_key, claimed, side.moves, source, now, age));
        // The session has proven its address already, so a first bind from there needs no cookie.
        // A later bind needs one: another host may have that address by then.
        let proven = side.bound.is_none() && side.moves == 0 && source == side.registered
            || cookies
                .iter()
                .any(|cookie| crypto::equal(cookie, &bind.cookie));
        let mut answer = Message {
            allocation: claimed,
            nonce: bind.nonce,
            cookie: cookies[0],
            state: State::Unproven,
        };
        let key = side.key.clone();
        if !proven {
            self.counters.challenged += 1;
            return Some(answer.seal(Kind::Bound, &key));
        }
        side.heard = now;
        // A new address. It voids older cookies, so that a replayed bind can't move the side back.
        if side.bound != Some((source, via)) {
            let before = side.bound.replace((source, via)).map(|(before, _)| before);
            side.moves += 1;
            answer.cookie = cookie(&self.cookie_key, claimed, side.moves, source, now, 0);
            before.and_then(|before| self.by_source.remove(&before));
            self.by_source.insert(source, (number, index));
            self.counters.bound += 1;
        }
        let allocation = self.allocations.get_mut(&number)?;
        let both = allocation.sides.iter().all(|side| side.bound.is_some());
        if both && !std::mem::replace(&mut allocation.told, true) {
            self.events.push_back(Event::Bound(number));
        }
        answer.state = if both { State::Both } else { State::Bound };
        Some(answer.seal(Kind::Bound, &key))
    }
}

/// The number of an allocation, and the side that a datagram names.
fn split(claimed: u64) -> (u64, usize) {
    (claimed & !1, (claimed & 1) as usize)
}

/// A cookie that only a host at `source` can have received, in the slot of time `age` slots ago.
fn cookie(
    key: &Key,
    claimed: u64,
    moves: u32,
    source: SocketAddr,
    now: Time,
    age: u64,
) -> CookieBytes {
    let mut place = Vec::with_capacity(18);
    put_address(&mut place, source);
    let slot = (now.since_origin().as_secs() / COOKIE_SLOT.as_secs()).wrapping_sub(age);
    short_mac(
        key,
        &[
            &claimed.to_be_bytes(),
            &moves.to_be_bytes(),
            &slot.to_be_bytes(),
            &place,
        ],
    )
}

impl Own {
    /// Whether a datagram's source is another host than this server: a relay that sends to its own
    /// ports would be a loop.
    fn admits(&self, via: Via, source: SocketAddr) -> bool {
        let ours = |ip: IpAddr| {
            ip.is_loopback()
                || self.addresses.contains(&ip)
                || via.local.is_some_and(|(local, _)| local == ip)
        };
        source.port() != 0 && !(self.ports.contains(&source.port()) && ours(source.ip()))
    }
}

#[cfg(test)]
#[path = "port_tests.rs"]
mod tests;
