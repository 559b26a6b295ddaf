//! One NAT or stateful firewall, by the axes of RFC 4787: mapping, filtering, port allocation,
//! timers, and what it does with packets that nobody asked for.
//!
//! Like conntrack and every other session-based NAT, it looks for a session of the packet's own
//! five-tuple first: an answer leaves by the port at which the question came in, whatever the
//! mapping behaviour.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::random::Random;

/// The lowest port that a NAT hands out.
const LOWEST_PORT: u16 = 1024;

/// To how many destinations one external port is reused (RFC 4787, 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mapping {
    /// One external port for all destinations ("cone").
    EndpointIndependent,
    /// One external port per destination address.
    AddressDependent,
    /// One external port per destination address and port ("symmetric").
    AddressAndPortDependent,
}

/// Whose packets a mapping lets in (RFC 4787, 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Filtering {
    /// Anybody's.
    EndpointIndependent,
    /// Those from an address to which the mapping has sent.
    AddressDependent,
    /// Those from an address and port to which the mapping has sent.
    AddressAndPortDependent,
}

/// Which external port a new mapping gets (RFC 4787, 4.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allocation {
    /// The internal port; a random one if it is taken.
    Preserve,
    /// Any free port in this range.
    Random {
        /// First port.
        low: u16,
        /// Last port.
        high: u16,
    },
    /// The last port plus this step.
    Sequential {
        /// Distance from one mapping to the next.
        step: u16,
    },
    /// A random port in one block of this size: a carrier's deterministic share (RFC 7422).
    Block {
        /// Ports of the block.
        size: u16,
    },
}

/// How long state lives, and what keeps it alive (RFC 4787, 4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timers {
    /// Lifetime of a session that has seen packets in one direction only.
    pub one_way: Duration,
    /// Lifetime of a session that has seen both directions.
    pub two_way: Duration,
    /// Whether packets from outside refresh a session (RFC 4787 says that they may).
    pub refresh_inbound: bool,
}

impl Timers {
    /// Linux conntrack: 30 s and 120 s, refreshed from both sides.
    pub const LINUX: Self = Self {
        one_way: Duration::from_secs(30),
        two_way: Duration::from_secs(120),
        refresh_inbound: true,
    };
}

/// What happens to a packet from outside that no session or mapping lets in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsolicited {
    /// Nothing is remembered.
    Drop,
    /// It is taken as the router's own, and so leaves a session that occupies the very five-tuple
    /// that an inside host is about to use: Linux with an accepting INPUT chain on the outside
    /// ("poison").
    CreateState,
}

/// The behaviour of one NAT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NatConfig {
    /// False: a stateful firewall. Addresses and ports stay what they are, and mapping and
    /// allocation mean nothing.
    pub translates: bool,
    /// Mapping behaviour.
    pub mapping: Mapping,
    /// Filtering behaviour.
    pub filtering: Filtering,
    /// Port allocation.
    pub allocation: Allocation,
    /// Lifetimes.
    pub timers: Timers,
    /// Treatment of the unexpected.
    pub unsolicited: Unsolicited,
    /// Whether inside hosts reach each other by their outside addresses (RFC 4787, 6).
    pub hairpin: bool,
    /// Most sessions at one time; a new one beyond is refused.
    pub table_size: usize,
    /// New mappings a second of hosts that are not simulated, which a sequence of ports shows.
    pub background: u32,
}

impl NatConfig {
    /// A NAT with these behaviours, Linux timers, and a drop policy.
    pub const fn new(mapping: Mapping, filtering: Filtering, allocation: Allocation) -> Self {
        Self {
            translates: true,
            mapping,
            filtering,
            allocation,
            timers: Timers::LINUX,
            unsolicited: Unsolicited::Drop,
            hairpin: false,
            table_size: 4096,
            background: 0,
        }
    }

    /// Linux `masquerade` behind a dropping INPUT chain: the home router.
    pub const fn home() -> Self {
        Self::new(
            Mapping::EndpointIndependent,
            Filtering::AddressAndPortDependent,
            Allocation::Preserve,
        )
    }

    /// Linux `masquerade random`: the usual "symmetric" NAT.
    pub const fn symmetric() -> Self {
        Self::new(
            Mapping::AddressAndPortDependent,
            Filtering::AddressAndPortDependent,
            Allocation::Random {
                low: LOWEST_PORT,
                high: u16::MAX,
            },
        )
    }

    /// Everything independent of the endpoint.
    pub const fn full_cone() -> Self {
        Self::new(
            Mapping::EndpointIndependent,
            Filtering::EndpointIndependent,
            Allocation::Preserve,
        )
    }

    /// A stateful firewall without translation.
    pub const fn firewall() -> Self {
        Self {
            translates: false,
            ..Self::home()
        }
    }

    /// The same, accepting on its outside ([`Unsolicited::CreateState`]).
    pub const fn poisoned(self) -> Self {
        Self {
            unsolicited: Unsolicited::CreateState,
            ..self
        }
    }

    /// The same, with hairpinning.
    pub const fn with_hairpin(self) -> Self {
        Self {
            hairpin: true,
            ..self
        }
    }
}

/// Why a NAT did not forward a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// No mapping has this port.
    NoMapping,
    /// The mapping does not let this sender in.
    Filtered,
    /// The session table or the port range is full.
    TableFull,
    /// An inside host sent to the NAT's outside address, and the NAT does not hairpin.
    NoHairpin,
}

/// What one external port stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct MappingKey {
    internal: SocketAddr,
    scope: Scope,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Scope {
    All,
    Host(IpAddr),
    Endpoint(SocketAddr),
}

#[derive(Debug, Clone, Copy)]
struct Session {
    expires: Duration,
    sent: bool,
    received: bool,
}

#[derive(Debug, Clone)]
struct PortMapping {
    port: u16,
    expires: Duration,
    sessions: BTreeMap<SocketAddr, Session>,
}

impl PortMapping {
    fn has_session(&self, remote: SocketAddr, now: Duration) -> bool {
        self.sessions
            .get(&remote)
            .is_some_and(|session| session.expires > now)
    }

    fn lets_in(&self, remote: SocketAddr, filtering: Filtering, now: Duration) -> bool {
        match filtering {
            Filtering::EndpointIndependent => self.expires > now,
            Filtering::AddressDependent => self
                .sessions
                .iter()
                .any(|(peer, session)| peer.ip() == remote.ip() && session.expires > now),
            Filtering::AddressAndPortDependent => self.has_session(remote, now),
        }
    }
}

/// One NAT with its state, for one outside address.
#[derive(Debug, Clone)]
pub struct Nat {
    config: NatConfig,
    outside: IpAddr,
    mappings: BTreeMap<MappingKey, PortMapping>,
    owners: BTreeMap<SocketAddr, MappingKey>,
    /// Sessions of the router itself, left by unsolicited packets: (sender, port on which it came).
    own_sessions: BTreeMap<(SocketAddr, u16), Duration>,
    last_port: u16,
    block_start: u16,
    next_sweep: Duration,
    /// When the last port of a sequence was handed out.
    last_allocation: Duration,
    /// Most sessions at one time so far.
    peak: usize,
}

impl Nat {
    /// A NAT without any state. A firewall never uses `outside`.
    pub fn new(config: NatConfig, outside: IpAddr, random: &mut Random) -> Self {
        let block_start = match config.allocation {
            Allocation::Block { size } => random.port(LOWEST_PORT, u16::MAX - size),
            _ => LOWEST_PORT,
        };
        Self {
            config,
            outside,
            mappings: BTreeMap::new(),
            owners: BTreeMap::new(),
            own_sessions: BTreeMap::new(),
            last_port: random.port(LOWEST_PORT, u16::MAX),
            block_start,
            next_sweep: Duration::ZERO,
            last_allocation: Duration::ZERO,
            peak: 0,
        }
    }

    /// Its behaviour.
    pub fn config(&self) -> &NatConfig {
        &self.config
    }

    pub(crate) fn set_timers(&mut self, timers: Timers) {
        self.config.timers = timers;
    }

    /// Its outside address.
    pub fn outside(&self) -> IpAddr {
        self.outside
    }

    /// Power cycle: all state is gone, and the outside address may be another.
    pub fn reboot(&mut self, outside: IpAddr, random: &mut Random) {
        *self = Self::new(self.config, outside, random);
    }

    /// Live sessions, the router's own included.
    pub fn sessions(&self, now: Duration) -> usize {
        let forwarded = self
            .mappings
            .values()
            .flat_map(|mapping| mapping.sessions.values());
        forwarded.filter(|session| session.expires > now).count()
            + self
                .own_sessions
                .values()
                .filter(|expires| **expires > now)
                .count()
    }

    /// Most sessions that it had at one time.
    pub fn most_sessions(&self) -> usize {
        self.peak
    }

    /// A packet from inside: the source that the outside sees.
    pub fn outbound(
        &mut self,
        internal: SocketAddr,
        remote: SocketAddr,
        now: Duration,
        random: &mut Random,
    ) -> Result<SocketAddr, Refusal> {
        self.sweep(now);
        let key = match self.session_of(internal, remote, now) {
            Some(key) => key,
            None => self.admit(internal, remote, now, random)?,
        };
        let outside = self.outside;
        let translates = self.config.translates;
        let timers = self.config.timers;
        let mapping = self.mappings.get_mut(&key).ok_or(Refusal::NoMapping)?;
        let session = mapping.sessions.entry(remote).or_insert(Session {
            expires: now,
            sent: false,
            received: false,
        });
        if session.expires <= now {
            session.received = false;
        }
        session.sent = true;
        session.expires = now
            + if session.received {
                timers.two_way
            } else {
                timers.one_way
            };
        mapping.expires = mapping.expires.max(session.expires);
        Ok(if translates {
            SocketAddr::new(outside, mapping.port)
        } else {
            internal
        })
    }

    /// A packet from inside that is not forwarded: it keeps its session alive if there is one, and
    /// makes none.
    pub fn refresh(
        &mut self,
        internal: SocketAddr,
        remote: SocketAddr,
        now: Duration,
        random: &mut Random,
    ) {
        if self.session_of(internal, remote, now).is_some() {
            // It finds that session.
            let _ = self.outbound(internal, remote, now, random);
        }
    }

    /// A packet from outside: the inside host that gets it.
    pub fn inbound(
        &mut self,
        remote: SocketAddr,
        destination: SocketAddr,
        now: Duration,
    ) -> Result<SocketAddr, Refusal> {
        self.sweep(now);
        let result = self.let_in(remote, destination, now);
        if result.is_err()
            && self.config.translates
            && self.config.unsolicited == Unsolicited::CreateState
        {
            let sessions = self.sessions(now);
            if sessions >= self.config.table_size {
                return Err(Refusal::TableFull);
            }
            self.peak = self.peak.max(sessions + 1);
            self.own_sessions.insert(
                (remote, destination.port()),
                now + self.config.timers.one_way,
            );
        }
        result
    }

    /// A packet from inside to the outside address: source and destination as the inside receiver
    /// sees them (external source form, RFC 4787, REQ-9).
    pub fn hairpin(
        &mut self,
        internal: SocketAddr,
        destination: SocketAddr,
        now: Duration,
        random: &mut Random,
    ) -> Result<(SocketAddr, SocketAddr), Refusal> {
        if !self.config.hairpin {
            return Err(Refusal::NoHairpin);
        }
        let source = self.outbound(internal, destination, now, random)?;
        let receiver = self.inbound(source, destination, now)?;
        Ok((source, receiver))
    }

    fn let_in(
        &mut self,
        remote: SocketAddr,
        destination: SocketAddr,
        now: Duration,
    ) -> Result<SocketAddr, Refusal> {
        let key = *self.owners.get(&destination).ok_or(Refusal::NoMapping)?;
        let full = self.sessions(now) >= self.config.table_size;
        let mapping = self.mappings.get_mut(&key).ok_or(Refusal::NoMapping)?;
        if mapping.expires <= now {
            return Err(Refusal::NoMapping);
        }
        if !mapping.lets_in(remote, self.config.filtering, now) {
            return Err(Refusal::Filtered);
        }
        let timers = self.config.timers;
        let known = mapping.has_session(remote, now);
        if !known && full {
            return Err(Refusal::TableFull);
        }
        let session = mapping.sessions.entry(remote).or_insert(Session {
            expires: now,
            sent: false,
            received: false,
        });
        if !known {
            *session = Session {
                expires: now + timers.one_way,
                sent: false,
                received: true,
            };
        }
        session.received = true;
        if timers.refresh_inbound {
            session.expires = now
                + if session.sent {
                    timers.two_way
                } else {
                    timers.one_way
                };
            mapping.expires = mapping.expires.max(session.expires);
        }
        Ok(key.internal)
    }

    /// The mapping that already carries this very session.
    fn session_of(
        &self,
        internal: SocketAddr,
        remote: SocketAddr,
        now: Duration,
    ) -> Option<MappingKey> {
        let first = MappingKey {
            internal,
            scope: Scope::All,
        };
        let all = self
            .mappings
            .range(first..)
            .take_while(|(key, _)| key.internal == internal);
        all.filter(|(_, mapping)| mapping.has_session(remote, now))
            .map(|(key, _)| *key)
            .next()
    }

    /// Finds or makes the mapping for a new session.
    fn admit(
        &mut self,
        internal: SocketAddr,
        remote: SocketAddr,
        now: Duration,
        random: &mut Random,
    ) -> Result<MappingKey, Refusal> {
        let sessions = self.sessions(now);
        if sessions >= self.config.table_size {
            return Err(Refusal::TableFull);
        }
        self.peak = self.peak.max(sessions + 1);
        let scope = match self.config.mapping {
            _ if !self.config.translates => Scope::All,
            Mapping::EndpointIndependent => Scope::All,
            Mapping::AddressDependent => Scope::Host(remote.ip()),
            Mapping::AddressAndPortDependent => Scope::Endpoint(remote),
        };
        let usual = MappingKey { internal, scope };
        let clash = |port| {
            self.own_sessions
                .get(&(remote, port))
                .is_some_and(|expires| *expires > now)
        };
        match self.mappings.get(&usual) {
            Some(mapping) if mapping.expires > now && !clash(mapping.port) => return Ok(usual),
            // The router itself holds this tuple: this session, and only this one, gets another
            // port.
            Some(mapping) if mapping.expires > now => {
                let displaced = MappingKey {
                    internal,
                    scope: Scope::Endpoint(remote),
                };
                let port =
                    self.random_port(internal, remote, (LOWEST_PORT, u16::MAX), now, random)?;
                self.map(displaced, port);
                return Ok(displaced);
            }
            _ => {}
        }
        let port = self.allocate(internal, remote, now, random)?;
        self.map(usual, port);
        Ok(usual)
    }

    fn map(&mut self, key: MappingKey, port: u16) {
        self.unmap(&key);
        self.mappings.insert(
            key,
            PortMapping {
                port,
                expires: Duration::ZERO,
                sessions: BTreeMap::new(),
            },
        );
        self.owners.insert(self.external(key.internal, port), key);
    }

    fn unmap(&mut self, key: &MappingKey) {
        if let Some(old) = self.mappings.remove(key) {
            let external = self.external(key.internal, old.port);
            // The port of an expired mapping may have a new owner by now.
            if self.owners.get(&external) == Some(key) {
                self.owners.remove(&external);
            }
        }
    }

    fn external(&self, internal: SocketAddr, port: u16) -> SocketAddr {
        if self.config.translates {
            SocketAddr::new(self.outside, port)
        } else {
            internal
        }
    }

    fn allocate(
        &mut self,
        internal: SocketAddr,
        remote: SocketAddr,
        now: Duration,
        random: &mut Random,
    ) -> Result<u16, Refusal> {
        if !self.config.translates {
            return Ok(internal.port());
        }
        match self.config.allocation {
            Allocation::Preserve if self.is_free(internal.port(), remote, now) => {
                Ok(internal.port())
            }
            Allocation::Preserve => {
                self.random_port(internal, remote, (LOWEST_PORT, u16::MAX), now, random)
            }
            Allocation::Random { low, high } => {
                self.random_port(internal, remote, (low, high), now, random)
            }
            Allocation::Block { size } => {
                let range = (
                    self.block_start,
                    self.block_start.saturating_add(size.saturating_sub(1)),
                );
                self.random_port(internal, remote, range, now, random)
            }
            Allocation::Sequential { step } => {
                self.pass_background(step, now, random);
                for _ in 0..u16::MAX {
                    self.last_port = match self.last_port.checked_add(step) {
                        Some(port) => port,
                        None => LOWEST_PORT,
                    };
                    if self.is_free(self.last_port, remote, now) {
                        return Ok(self.last_port);
                    }
                }
                Err(Refusal::TableFull)
            }
        }
    }

    /// The sequence has gone on meanwhile, by what other hosts took.
    fn pass_background(&mut self, step: u16, now: Duration, random: &mut Random) {
        let elapsed = now
            .saturating_sub(self.last_allocation)
            .min(Duration::from_secs(60));
        self.last_allocation = now;
        if self.config.background == 0 {
            return;
        }
        let expected = elapsed.as_secs_f64() * f64::from(self.config.background);
        // Many short moments, each with one new mapping or none.
        let moments = (expected * 10.0).ceil().max(1.0);
        let taken = (0..moments as u64)
            .filter(|_| random.chance(expected / moments))
            .count();
        for _ in 0..taken {
            self.last_port = self.last_port.checked_add(step).unwrap_or(LOWEST_PORT);
        }
    }

    fn random_port(
        &self,
        internal: SocketAddr,
        remote: SocketAddr,
        (low, high): (u16, u16),
        now: Duration,
        random: &mut Random,
    ) -> Result<u16, Refusal> {
        let start = random.port(low, high);
        let mut candidates = (start..=high).chain(low..start);
        let free = |port: &u16| *port != internal.port() && self.is_free(*port, remote, now);
        candidates.find(free).ok_or(Refusal::TableFull)
    }

    fn is_free(&self, port: u16, remote: SocketAddr, now: Duration) -> bool {
        let owner = self
            .owners
            .get(&SocketAddr::new(self.outside, port))
            .and_then(|key| self.mappings.get(key));
        let owned = owner.is_some_and(|mapping| mapping.expires > now);
        let clash = self
            .own_sessions
            .get(&(remote, port))
            .is_some_and(|expires| *expires > now);
        !owned && !clash
    }

    /// Forgets what has expired, so that state stays bounded by what lives.
    fn sweep(&mut self, now: Duration) {
        if now < self.next_sweep {
            return;
        }
        self.next_sweep = now + Duration::from_secs(10);
        let dead: Vec<_> = self
            .mappings
            .iter()
            .filter(|(_, mapping)| mapping.expires <= now)
            .map(|(key, _)| *key)
            .collect();
        for key in dead {
            self.unmap(&key);
        }
        for mapping in self.mappings.values_mut() {
            mapping.sessions.retain(|_, session| session.expires > now);
        }
        self.own_sessions.retain(|_, expires| *expires > now);
    }
}

#[cfg(test)]
#[path = "nat_tests.rs"]
mod tests;
