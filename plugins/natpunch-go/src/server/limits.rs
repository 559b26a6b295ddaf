//! Who may cost the server a handshake, and how often. Fixed memory, whatever is sent.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use natpunch_types::{Bucket, Network, Rate, Site, Time, Usage};
use rand_core::RngCore;

/// The part of an address that one customer of a provider can't change at will: an IPv4 address, an
/// IPv6 /64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Prefix {
    family: u64,
    bits: u64,
}

impl Prefix {
    fn of(source: SocketAddr) -> Self {
        match source.ip() {
            IpAddr::V4(ip) => Self {
                family: 4,
                bits: u32::from(ip).into(),
            },
            IpAddr::V6(ip) => Self {
                family: 6,
                bits: (u128::from(ip) >> 64) as u64,
            },
        }
    }
}

fn site(source: SocketAddr) -> Site {
    Network::of(source.ip()).site()
}

/// At least one, whatever the settings say.
fn rate(per_second: u32, burst: u32) -> Rate {
    Rate::per_second(per_second.max(1).into(), burst.max(1).into())
}

/// Limits handshakes: each source has its own budget, and all sources that never finished one share
/// another, so that a flood from made-up addresses takes neither the processor nor the turn of
/// those who are registered.
pub(super) struct Limits {
    per_source: Rate,
    strangers: Rate,
    all_strangers: Bucket,
    /// Buckets by keyed hash of the prefix. Two sources may share one; nobody can choose with whom.
    buckets: Box<[Bucket]>,
    keys: [u64; 3],
    /// How many registrations each prefix has. Bounded by the number of registrations.
    known: HashMap<Prefix, u32>,
    /// How many registrations each site has.
    sites: Usage<Site>,
}

impl Limits {
    const BUCKETS_LOG2: u32 = 14;

    pub(super) fn new(per_source: u32, strangers: u32, rng: &mut impl RngCore) -> Self {
        Self {
            per_source: rate(per_source, per_source),
            strangers: rate(strangers, strangers.div_ceil(8)),
            all_strangers: Bucket::default(),
            buckets: vec![Bucket::default(); 1 << Self::BUCKETS_LOG2].into(),
            keys: [rng.next_u64(), rng.next_u64() | 1, rng.next_u64() | 1],
            known: HashMap::new(),
            sites: Usage::default(),
        }
    }

    /// Whether the site of `source` may have one more registration, where so much room is left:
    /// however many addresses one has, others find room.
    pub(super) fn leaves_room(&self, source: SocketAddr, left: usize) -> bool {
        self.sites.leaves_room(&site(source), left)
    }

    /// Whether a handshake from `source` may be worked on now.
    pub(super) fn admit(&mut self, source: SocketAddr, now: Time) -> bool {
        let prefix = Prefix::of(source);
        let index = self.bucket(prefix);
        let Some(bucket) = self.buckets.get_mut(index) else {
            return false;
        };
        bucket.take(self.per_source, 1, now)
            && (self.known.contains_key(&prefix) || self.all_strangers.take(self.strangers, 1, now))
    }

    /// A registration now lives at `source`.
    pub(super) fn add_known(&mut self, source: SocketAddr) {
        *self.known.entry(Prefix::of(source)).or_default() += 1;
        self.sites.take(site(source));
    }

    /// A registration at `source` ended.
    pub(super) fn remove_known(&mut self, source: SocketAddr) {
        let prefix = Prefix::of(source);
        if let Some(count) = self.known.get_mut(&prefix) {
            self.sites.give_back(&site(source));
            *count -= 1;
            if *count == 0 {
                self.known.remove(&prefix);
            }
        }
    }

    /// Multiply-shift hashing: without the keys, collisions can't be aimed for.
    fn bucket(&self, prefix: Prefix) -> usize {
        let [offset, a, b] = self.keys;
        let mixed = prefix.bits.wrapping_mul(a).rotate_left(32) ^ prefix.family;
        (mixed.wrapping_add(offset).wrapping_mul(b) >> (64 - Self::BUCKETS_LOG2)) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::rng;

    fn source(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_source_gets_its_burst_and_then_its_rate() {
        let mut limits = Limits::new(20, 4000, &mut rng(1));
        let at = source("203.0.113.1:1");
        let admitted =
            |limits: &mut Limits, now| (0..100).filter(|_| limits.admit(at, now)).count();
        assert_eq!(admitted(&mut limits, Time::from_millis(1_000)), 20);
        assert_eq!(admitted(&mut limits, Time::from_millis(1_000)), 0);
        assert_eq!(admitted(&mut limits, Time::from_millis(1_500)), 10);
    }

    #[test]
    fn the_addresses_of_one_ipv6_network_share_a_budget() {
        let mut limits = Limits::new(20, 4000, &mut rng(1));
        let admitted = (0..100u16)
            .filter(|n| limits.admit(source(&format!("[2001:db8::{n:x}]:{}", n + 1)), Time::ZERO))
            .count();
        assert_eq!(admitted, 20);
    }

    #[test]
    fn a_flood_of_strangers_leaves_the_known_their_turn() {
        let mut limits = Limits::new(20, 1000, &mut rng(1));
        let known = source("203.0.113.1:1");
        limits.add_known(known);
        let mut strangers = 0;
        for n in 0..60_000u32 {
            let now = Time::from_nanos(u64::from(n) * 1_000_000_000 / 60_000);
            strangers += u32::from(limits.admit(
                (std::net::Ipv4Addr::from(0x0b00_0000 + n * 7), 9).into(),
                now,
            ));
        }
        assert!((1000..=1130).contains(&strangers), "{strangers}");
        assert!(limits.admit(known, Time::from_millis(1_000)));
    }

    #[test]
    fn what_is_known_is_forgotten_with_its_last_registration() {
        let mut limits = Limits::new(20, 1000, &mut rng(1));
        let at = source("203.0.113.1:1");
        limits.add_known(at);
        limits.add_known(at);
        limits.remove_known(at);
        assert_eq!(limits.known.len(), 1);
        limits.remove_known(at);
        limits.remove_known(at);
        assert!(limits.known.is_empty());
        assert_eq!(limits.sites.len(), 0);
    }
}
