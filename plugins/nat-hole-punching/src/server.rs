//! The server, without sockets: a table of who was seen where.
//!
//! The protocol can't tell a client from somebody who writes its key and a made-up source address,
//! so what is done here limits the damage: a registration that is alive is not moved from
//! elsewhere, one source holds few keys and asks at a bounded rate, and a full table refuses
//! newcomers instead of forgetting others.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use natpunch_types::{Bucket, Network, PeerKey, Rate, Site, Time, Usage};

use crate::wire::{Answer, Request};

/// How a [`Server`] is set up.
#[derive(Debug, Clone)]
pub struct Config {
    /// Which keys may register. `None`: any.
    pub allowed: Option<BTreeSet<PeerKey>>,
    /// How many keys may be registered at once.
    pub max_keys: usize,
    /// How many of them from one IPv4 address. Those of one /24 never have more than they leave to all
    /// others.
    pub max_keys_per_source: u32,
    /// How many requests a second, and at once, are answered to one IPv4 address.
    pub requests_per_source: u32,
    /// How long a silent registration lives.
    pub lifetime: Duration,
    /// How long a registration must have been silent before another source may take it over.
    pub hold: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            allowed: None,
            max_keys: 65_536,
            max_keys_per_source: 64,
            requests_per_source: 200,
            lifetime: Duration::from_secs(15 * 60),
            hold: Duration::from_secs(30),
        }
    }
}

/// What happened since the start, for metrics and the rate-limited log of the shell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Keys registered anew.
    pub registered: u64,
    /// Registrations that ended by silence.
    pub expired: u64,
    /// Requests answered with an address.
    pub found: u64,
    /// Requests answered with "not known".
    pub not_known: u64,
    /// Datagrams of no known form.
    pub malformed: u64,
    /// Requests of keys that are not allowed.
    pub not_allowed: u64,
    /// Requests that a rate limit or quota of their source refused.
    pub limited: u64,
    /// Requests of new keys when the table was full.
    pub full: u64,
    /// Requests with a key that is alive elsewhere.
    pub held: u64,
}

#[derive(Debug)]
struct Registration {
    address: SocketAddrV4,
    seen: Time,
}

/// What one IPv4 address holds. Exists as long as it holds a key, so there are never more than
/// keys.
#[derive(Debug, Default)]
struct Source {
    keys: u32,
    requests: Bucket,
}

/// A rendezvous server for clients of WireGuard's example.
///
/// Memory: about 300 bytes for each registered key, whose number [`Config::max_keys`] bounds.
pub struct Server {
    config: Config,
    registrations: HashMap<PeerKey, Registration>,
    sources: HashMap<Ipv4Addr, Source>,
    /// How many keys each /24 has: however many addresses one has, others find room.
    sites: Usage<Site>,
    /// By the earliest time at which they may have been silent for too long.
    expiry: BTreeSet<(Time, PeerKey)>,
    counters: Counters,
}

impl Server {
    /// A server without registrations.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            registrations: HashMap::new(),
            sources: HashMap::new(),
            sites: Usage::default(),
            expiry: BTreeSet::new(),
            counters: Counters::default(),
        }
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// How many keys are registered.
    pub fn registered(&self) -> usize {
        self.registrations.len()
    }

    /// Changes which keys may register. Registrations of others end at once.
    pub fn set_allowed(&mut self, allowed: Option<BTreeSet<PeerKey>>) {
        self.config.allowed = allowed;
        let ended: Vec<PeerKey> = self
            .registrations
            .keys()
            .filter(|key| !self.is_allowed(key))
            .copied()
            .collect();
        for key in ended {
            self.remove(&key);
        }
    }

    /// Handles one datagram. `now` counts from any origin and never goes back. The reply, if any,
    /// goes to `source`; it is 6 bytes or empty.
    pub fn handle_datagram(
        &mut self,
        source: SocketAddr,
        datagram: &[u8],
        now: Time,
    ) -> Option<Vec<u8>> {
        self.handle_timeout(now);
        let (SocketAddr::V4(source), Some(request)) =
            (natpunch_types::canonical(source), Request::parse(datagram))
        else {
            self.counters.malformed += 1;
            return None;
        };
        if !self.is_allowed(&request.own) {
            self.counters.not_allowed += 1;
            return None;
        }
        self.register(request.own, source, now)?;
        let found = self
            .registrations
            .get(&request.wanted)
            .map(|registration| registration.address);
        match found {
            Some(_) => self.counters.found += 1,
            None => self.counters.not_known += 1,
        }
        Some(Answer(found).encode())
    }

    /// Forgets what was silent for too long.
    pub fn handle_timeout(&mut self, now: Time) {
        while let Some((_, key)) = self.expiry.first().copied().filter(|(end, _)| *end <= now) {
            self.expiry.pop_first();
            let Some(registration) = self.registrations.get(&key) else {
                continue;
            };
            let end = registration.seen + self.config.lifetime;
            if end > now {
                self.expiry.insert((end, key));
            } else {
                self.counters.expired += 1;
                self.remove(&key);
            }
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) next has something to do.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.expiry.first().map(|(end, _)| *end)
    }

    /// How many more keys there is room for.
    fn left(&self) -> usize {
        self.config
            .max_keys
            .saturating_sub(self.registrations.len())
    }

    fn is_allowed(&self, key: &PeerKey) -> bool {
        self.config
            .allowed
            .as_ref()
            .is_none_or(|allowed| allowed.contains(key))
    }

    /// Notes that `key` is at `source`. `None` if that is refused.
    fn register(&mut self, key: PeerKey, source: SocketAddrV4, now: Time) -> Option<()> {
        let known = self
            .registrations
            .get(&key)
            .map(|registration| (registration.address, registration.seen));
        match known {
            Some((address, seen)) if address != source && now.since(seen) < self.config.hold => {
                self.counters.held += 1;
                return None;
            }
            None if !self.sites.leaves_room(&site(source), self.left()) => {
                self.counters.full += 1;
                return None;
            }
            _ => {}
        }

        let newcomer = known.is_none_or(|(address, _)| address.ip() != source.ip());
        let holder = self.sources.get(source.ip());
        let requests = holder.map_or_else(Bucket::default, |holder| holder.requests);
        let keys = holder.map_or(0, |holder| holder.keys);
        let per_second = u64::from(self.config.requests_per_source.max(1));
        let rate = Rate::per_second(per_second, per_second);
        let many_keys = newcomer && keys >= self.config.max_keys_per_source;
        let Some(requests) = requests.after(rate, 1, now).filter(|_| !many_keys) else {
            self.counters.limited += 1;
            return None;
        };

        if newcomer {
            if known.is_some() {
                self.remove(&key);
            } else {
                self.counters.registered += 1;
            }
            self.expiry.insert((now + self.config.lifetime, key));
        }
        if newcomer {
            self.sites.take(site(source));
        }
        let holder = self.sources.entry(*source.ip()).or_default();
        holder.requests = requests;
        holder.keys += u32::from(newcomer);
        self.registrations.insert(
            key,
            Registration {
                address: source,
                seen: now,
            },
        );
        Some(())
    }

    fn remove(&mut self, key: &PeerKey) {
        let Some(registration) = self.registrations.remove(key) else {
            return;
        };
        self.sites.give_back(&site(registration.address));
        if let Some(source) = self.sources.get_mut(registration.address.ip()) {
            source.keys -= 1;
            if source.keys == 0 {
                self.sources.remove(registration.address.ip());
            }
        }
    }
}

fn site(source: SocketAddrV4) -> Site {
    Network::of(IpAddr::V4(*source.ip())).site()
}

#[cfg(test)]
mod tests;
