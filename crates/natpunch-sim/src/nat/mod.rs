//! One NAT or stateful firewall, by the axes of RFC 4787: mapping, filtering, port allocation,
//! timers, and what it does with packets that nobody asked for.
//!
//! Like conntrack and every other session-based NAT, it looks for a session of the packet's own
//! five-tuple first: an answer leaves by the port at which the question came in, whatever the
//! mapping behaviour.

mod allocation;
mod config;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::random::Random;

use allocation::nth_after;
use config::LOWEST_PORT;
pub use config::{
    Allocation, Filtering, Mapping, NatConfig, Pool, Refusal, Timers, Unsolicited, WhenFull,
};

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

impl Session {
    /// One that is over: what is not yet known of a new one.
    fn ended(now: Duration) -> Self {
        Self {
            expires: now,
            sent: false,
            received: false,
        }
    }

    fn lifetime(&self, timers: &Timers) -> Duration {
        match (self.sent, self.received) {
            (true, true) => timers.two_way,
            _ => timers.one_way,
        }
    }
}

#[derive(Debug, Clone)]
struct PortMapping {
    /// As the outside sees it; of a firewall the internal one.
    external: SocketAddr,
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

/// An outside address that sends what nobody asked for.
#[derive(Debug, Clone, Copy)]
struct Suspect {
    /// When the second began in which its packets are counted.
    since: Duration,
    count: u32,
    /// Nothing of it is let in until then.
    shut_out_until: Duration,
}

/// One NAT with its state.
#[derive(Debug, Clone)]
pub struct Nat {
    config: NatConfig,
    /// The first of the pool.
    outside: IpAddr,
    mappings: BTreeMap<MappingKey, PortMapping>,
    owners: BTreeMap<SocketAddr, MappingKey>,
    /// Sessions of the router itself, left by unsolicited packets: (sender, where it came in).
    own_sessions: BTreeMap<(SocketAddr, SocketAddr), Duration>,
    suspects: BTreeMap<IpAddr, Suspect>,
    /// Which address of the pool an inside host has.
    paired: BTreeMap<IpAddr, IpAddr>,
    /// The port that a neighbour has, too ([`Allocation::Contended`]).
    contended: Option<u16>,
    last_port: u16,
    block_start: u16,
    next_sweep: Duration,
    /// When the last port of a sequence was handed out.
    last_allocation: Duration,
    /// Sessions of all mappings, with those that have ended and are not forgotten yet.
    stored: usize,
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
            suspects: BTreeMap::new(),
            paired: BTreeMap::new(),
            contended: None,
            last_port: random.port(LOWEST_PORT, u16::MAX),
            block_start,
            next_sweep: Duration::ZERO,
            last_allocation: Duration::ZERO,
            stored: 0,
            peak: 0,
        }
    }

    /// Its behaviour.
    pub fn config(&self) -> &NatConfig {
        &self.config
    }

    /// Changes its behaviour; what it knows stays.
    pub(crate) fn reconfigure(&mut self, change: impl FnOnce(&mut NatConfig)) {
        change(&mut self.config);
    }

    /// Its outside address; of a pool the first.
    pub fn outside(&self) -> IpAddr {
        self.outside
    }

    /// All its outside addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let (first, size) = (self.outside, self.config.pool.size());
        (0..size).map(move |number| nth_after(first, number))
    }

    /// Power cycle: all state is gone, and the outside address may be another.
    pub fn reboot(&mut self, outside: IpAddr, random: &mut Random) {
        // A neighbour of the same port is there as before.
        let contended = self.contended;
        *self = Self::new(self.config, outside, random);
        self.contended = contended;
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

    /// Most sessions that it had at one time, with those that ended within the last second.
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
        let timers = self.config.timers;
        let mapping = self.mappings.get_mut(&key).ok_or(Refusal::NoMapping)?;
        let session = mapping.sessions.entry(remote).or_insert_with(|| {
            self.stored += 1;
            Session::ended(now)
        });
        let begins = session.expires <= now;
        if begins {
            session.received = false;
        }
        session.sent = true;
        if begins || timers.refresh_outbound {
            session.expires = now + session.lifetime(&timers);
        }
        mapping.expires = mapping.expires.max(session.expires);
        let external = mapping.external;
        self.note_peak();
        Ok(external)
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
        let suspect = self.suspects.get(&remote.ip());
        if suspect.is_some_and(|suspect| suspect.shut_out_until > now) {
            return Err(Refusal::Blacklisted);
        }
        let result = self.let_in(remote, destination, now);
        match self.config.unsolicited {
            _ if result.is_ok() => {}
            Unsolicited::Drop | Unsolicited::Reject(_) => {}
            Unsolicited::CreateState if !self.config.translates => {}
            Unsolicited::CreateState => {
                self.make_room(now)?;
                let ends = now + self.config.timers.one_way;
                self.own_sessions.insert((remote, destination), ends);
                self.note_peak();
            }
            Unsolicited::Blacklist {
                per_second,
                duration,
            } => self.suspect(remote.ip(), per_second, duration, now),
        }
        result
    }

    /// An ICMP error about a packet that left from `external` towards `remote`: the inside host that
    /// gets it.
    pub fn inbound_error(
        &mut self,
        external: SocketAddr,
        remote: SocketAddr,
        now: Duration,
    ) -> Result<SocketAddr, Refusal> {
        let key = *self.owners.get(&external).ok_or(Refusal::NoMapping)?;
        let mapping = self.mappings.get_mut(&key).ok_or(Refusal::NoMapping)?;
        if !mapping.has_session(remote, now) {
            return Err(Refusal::Filtered);
        }
        if self.config.icmp_closes {
            self.end_session(key, remote);
        }
        Ok(key.internal)
    }

    /// An ICMP error from inside about a packet that came from `remote` to `internal`: where the
    /// outside believes that the packet went.
    pub fn outbound_error(
        &self,
        internal: SocketAddr,
        remote: SocketAddr,
        now: Duration,
    ) -> Result<SocketAddr, Refusal> {
        let key = self.session_of(internal, remote, now);
        let mapping = key.and_then(|key| self.mappings.get(&key));
        mapping
            .map(|mapping| mapping.external)
            .ok_or(Refusal::NoMapping)
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
        let mapping = self.mappings.get(&key).ok_or(Refusal::NoMapping)?;
        if mapping.expires <= now {
            return Err(Refusal::NoMapping);
        }
        if !mapping.lets_in(remote, self.config.filtering, now) {
            return Err(Refusal::Filtered);
        }
        let known = mapping.has_session(remote, now);
        if !known {
            self.make_room(now)?;
        }
        let timers = self.config.timers;
        // The session that made room may have been the last of this mapping.
        let mapping = self.mappings.get_mut(&key).ok_or(Refusal::NoMapping)?;
        let session = mapping.sessions.entry(remote).or_insert_with(|| {
            self.stored += 1;
            Session::ended(now)
        });
        if !known {
            *session = Session {
                expires: now + timers.one_way,
                ..Session::ended(now)
            };
        }
        session.received = true;
        if timers.refresh_inbound {
            session.expires = now + session.lifetime(&timers);
        }
        mapping.expires = mapping.expires.max(session.expires);
        self.note_peak();
        Ok(key.internal)
    }

    /// Counts an unsolicited packet of this address, and shuts it out if it is one too many.
    fn suspect(&mut self, from: IpAddr, per_second: u32, duration: Duration, now: Duration) {
        let suspect = self.suspects.entry(from).or_insert(Suspect {
            since: now,
            count: 0,
            shut_out_until: Duration::ZERO,
        });
        if now >= suspect.since + Duration::from_secs(1) {
            (suspect.since, suspect.count) = (now, 0);
        }
        suspect.count += 1;
        if suspect.count > per_second {
            suspect.shut_out_until = now + duration;
        }
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
        self.make_room(now)?;
        self.contended.get_or_insert(internal.port());
        let is_contended = self.is_contended(internal, remote);
        let scope = match self.config.mapping {
            _ if !self.config.translates => Scope::All,
            Mapping::EndpointIndependent if is_contended => Scope::Host(remote.ip()),
            Mapping::EndpointIndependent => Scope::All,
            Mapping::AddressDependent => Scope::Host(remote.ip()),
            Mapping::AddressAndPortDependent => Scope::Endpoint(remote),
        };
        let usual = MappingKey { internal, scope };
        let known = self
            .mappings
            .get(&usual)
            .filter(|mapping| mapping.expires > now)
            .map(|mapping| mapping.external);
        match known {
            Some(external) if !self.is_own(external, remote, now) => return Ok(usual),
            // The router itself holds this tuple: this session, and only this one, gets another
            // port.
            Some(external) => {
                let displaced = MappingKey {
                    internal,
                    scope: Scope::Endpoint(remote),
                };
                let any = SocketAddr::new(external.ip(), internal.port());
                let external =
                    self.random_port(any, remote, (LOWEST_PORT, u16::MAX), now, random)?;
                self.map(displaced, external);
                return Ok(displaced);
            }
            None => {}
        }
        let external = self.allocate(internal, remote, now, random)?;
        self.map(usual, external);
        Ok(usual)
    }

    fn map(&mut self, key: MappingKey, external: SocketAddr) {
        self.unmap(&key);
        self.mappings.insert(
            key,
            PortMapping {
                external,
                expires: Duration::ZERO,
                sessions: BTreeMap::new(),
            },
        );
        self.owners.insert(external, key);
    }

    fn unmap(&mut self, key: &MappingKey) {
        if let Some(old) = self.mappings.remove(key) {
            self.stored -= old.sessions.len();
            // The port of an expired mapping may have a new owner by now.
            if self.owners.get(&old.external) == Some(key) {
                self.owners.remove(&old.external);
            }
        }
    }

    /// Whether the router itself holds this tuple.
    fn is_own(&self, external: SocketAddr, remote: SocketAddr, now: Duration) -> bool {
        let own = self.own_sessions.get(&(remote, external));
        own.is_some_and(|expires| *expires > now)
    }

    /// Makes sure that one more session fits.
    fn make_room(&mut self, now: Duration) -> Result<(), Refusal> {
        if self.stored + self.own_sessions.len() < self.config.table_size {
            return Ok(());
        }
        self.forget_expired(now);
        if self.stored + self.own_sessions.len() < self.config.table_size {
            return Ok(());
        }
        let may_go = |session: &Session| match self.config.when_full {
            WhenFull::Refuse => false,
            WhenFull::EvictAny => true,
            WhenFull::EvictUnanswered => !(session.sent && session.received),
        };
        let sessions = self.mappings.iter().flat_map(|(key, mapping)| {
            let of_mapping = mapping.sessions.iter();
            of_mapping.map(move |(remote, session)| (session, *key, *remote))
        });
        let oldest = sessions
            .filter(|(session, ..)| may_go(session))
            .min_by_key(|(session, ..)| session.expires)
            .map(|(_, key, remote)| (key, remote));
        let (key, remote) = oldest.ok_or(Refusal::TableFull)?;
        self.end_session(key, remote);
        Ok(())
    }

    /// Forgets one session, and its mapping with the last one.
    fn end_session(&mut self, key: MappingKey, remote: SocketAddr) {
        let Some(mapping) = self.mappings.get_mut(&key) else {
            return;
        };
        self.stored -= usize::from(mapping.sessions.remove(&remote).is_some());
        if mapping.sessions.is_empty() {
            self.unmap(&key);
        }
    }

    fn note_peak(&mut self) {
        self.peak = self.peak.max(self.stored + self.own_sessions.len());
    }

    /// Forgets what has expired, so that state stays bounded by what lives.
    fn sweep(&mut self, now: Duration) {
        if now >= self.next_sweep {
            self.next_sweep = now + Duration::from_secs(1);
            self.forget_expired(now);
        }
    }

    fn forget_expired(&mut self, now: Duration) {
        let dead: Vec<_> = self
            .mappings
            .iter()
            .filter(|(_, mapping)| mapping.expires <= now)
            .map(|(key, _)| *key)
            .collect();
        for key in dead {
            self.unmap(&key);
        }
        self.stored = 0;
        for mapping in self.mappings.values_mut() {
            mapping.sessions.retain(|_, session| session.expires > now);
            self.stored += mapping.sessions.len();
        }
        self.own_sessions.retain(|_, expires| *expires > now);
        let counts = now.saturating_sub(Duration::from_secs(1));
        self.suspects
            .retain(|_, suspect| suspect.shut_out_until > now || suspect.since > counts);
    }
}

#[cfg(test)]
mod tests;
