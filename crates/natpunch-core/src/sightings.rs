//! Where peers see this node: each answer to a ping says from which address the ping came. Where no
//! server tells that any more, peers do, and one of them that lies is one voice.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use natpunch_types::{AddressClass, PeerKey, Rate, RateBudget, classify};

use crate::Time;

/// Addresses of one family that are published.
const MOST: usize = 2;
/// How often one peer may change its word, and how often at once: each change may be published, and
/// every peer probes it.
const CHANGE: Rate = Rate::every(Duration::from_secs(15), 4);
/// A word is believed for this long. A path in use is asked at least every minute.
const LIFETIME: Duration = Duration::from_secs(300);

/// What one peer says.
#[derive(Debug)]
struct Sighting {
    address: Option<SocketAddr>,
    seen: Time,
    changes: RateBudget,
}

/// What peers say of this node's address, one word each.
#[derive(Debug, Default)]
pub(crate) struct Sightings {
    /// Some discovery instance has use for it.
    is_wanted: bool,
    by: BTreeMap<PeerKey, Sighting>,
    has_changed: bool,
}

impl Sightings {
    /// Whether what peers say is of use; if not, it is forgotten.
    pub(crate) fn set_wanted(&mut self, is_wanted: bool) {
        self.is_wanted = is_wanted;
        if !is_wanted {
            self.forget_all();
        }
    }

    /// A peer has answered, and says so where it sees us; the address, if that is new.
    pub(crate) fn note(
        &mut self,
        peer: &PeerKey,
        address: Option<SocketAddr>,
        now: Time,
    ) -> Option<SocketAddr> {
        let is_usable = |address: &SocketAddr| {
            let class = classify(address.ip());
            address.port() != 0 && matches!(class, AddressClass::Global | AddressClass::Private)
        };
        let address = address.filter(is_usable).filter(|_| self.is_wanted)?;
        let sighting = self.by.entry(*peer).or_insert_with(|| Sighting {
            address: None,
            seen: now,
            changes: RateBudget::new(CHANGE),
        });
        if sighting.address == Some(address) {
            sighting.seen = now;
            return None;
        }
        if !sighting.changes.take(now) {
            return None;
        }
        (sighting.address, sighting.seen) = (Some(address), now);
        self.has_changed = true;
        Some(address)
    }

    /// The peer is no longer reached, or no peer: what it saw may have ended with that.
    pub(crate) fn forget(&mut self, peer: &PeerKey) {
        self.has_changed |= self.by.remove(peer).is_some();
    }

    /// The network is another.
    pub(crate) fn forget_all(&mut self) {
        self.has_changed |= !self.by.is_empty();
        self.by.clear();
    }

    /// Forgets what was not said again for long.
    pub(crate) fn expire(&mut self, now: Time) {
        self.by
            .retain(|_, sighting| now.since(sighting.seen) < LIFETIME);
    }

    /// Whether something changed since this was asked last.
    pub(crate) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.has_changed)
    }

    /// The addresses that most peers see, at most [`MOST`] of each family; of those that as many
    /// see, in the order of the peers, so that the same peers always come to the same.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        let mut votes: Vec<(SocketAddr, usize)> = Vec::new();
        for address in self.by.values().filter_map(|sighting| sighting.address) {
            match votes.iter_mut().find(|(known, _)| *known == address) {
                Some((_, count)) => *count += 1,
                None => votes.push((address, 1)),
            }
        }
        votes.sort_by_key(|(_, count)| Reverse(*count));
        let of_family = |is_v4: bool| {
            let of = votes.iter().filter(move |(at, _)| at.is_ipv4() == is_v4);
            of.map(|(address, _)| *address).take(MOST)
        };
        of_family(true).chain(of_family(false)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> PeerKey {
        PeerKey::from_bytes([n; 32])
    }

    fn at(text: &str) -> Option<SocketAddr> {
        Some(text.parse().unwrap())
    }

    fn wanted() -> Sightings {
        let mut sightings = Sightings::default();
        sightings.set_wanted(true);
        sightings
    }

    #[test]
    fn what_most_peers_see_comes_first_and_a_liar_is_one_voice() {
        let mut sightings = wanted();
        sightings.note(&key(0), at("198.51.100.66:6"), Time::ZERO);
        sightings.note(&key(1), at("198.51.100.67:6"), Time::ZERO);
        for honest in 2..5 {
            sightings.note(&key(honest), at("203.0.113.1:1"), Time::ZERO);
        }
        sightings.note(&key(5), at("[2001:db8::1]:1"), Time::ZERO);
        let seen = sightings.addresses().into_iter().map(Some);
        let expected = [
            at("203.0.113.1:1"),
            at("198.51.100.66:6"),
            at("[2001:db8::1]:1"),
        ];
        assert!(seen.eq(expected));
    }

    #[test]
    fn a_peer_that_says_another_address_each_time_is_heeded_a_few_times() {
        let mut sightings = wanted();
        let says = |port: u16| Some(SocketAddr::from(([203, 0, 113, 1], port)));
        let heeded = (1..=1_000).filter(|port| {
            let is_new = sightings.note(&key(1), says(*port), Time::ZERO).is_some();
            assert_eq!(is_new, sightings.take_changed());
            is_new
        });
        assert_eq!(heeded.count(), 4);
        let later = Time::ZERO + Duration::from_secs(15);
        assert_eq!(sightings.note(&key(1), says(2_000), later), says(2_000));
        assert_eq!(sightings.note(&key(1), says(2_000), later), None);
    }

    #[test]
    fn nothing_is_kept_of_another_network_of_a_peer_that_is_gone_or_without_use_for_it() {
        let mut sightings = wanted();
        let see = |sightings: &mut Sightings| {
            sightings.note(&key(1), at("203.0.113.1:1"), Time::ZERO);
            assert!(sightings.take_changed());
        };
        see(&mut sightings);
        sightings.forget(&key(2));
        assert!(!sightings.take_changed());
        sightings.forget(&key(1));
        assert!(sightings.take_changed() && sightings.addresses().is_empty());
        see(&mut sightings);
        sightings.forget_all();
        assert!(sightings.take_changed() && sightings.addresses().is_empty());
        see(&mut sightings);
        sightings.expire(Time::ZERO + LIFETIME);
        assert!(sightings.addresses().is_empty());
        see(&mut sightings);
        sightings.set_wanted(false);
        sightings.note(&key(1), at("203.0.113.1:1"), Time::ZERO);
        assert!(sightings.addresses().is_empty());
    }

    #[test]
    fn what_no_packet_can_come_from_is_no_address() {
        let mut sightings = wanted();
        for bad in ["203.0.113.1:0", "127.0.0.1:1", "0.0.0.0:1", "224.0.0.1:1"] {
            sightings.note(&key(1), at(bad), Time::ZERO);
        }
        sightings.note(&key(1), None, Time::ZERO);
        assert!(sightings.addresses().is_empty());
    }
}
