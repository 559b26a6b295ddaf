//! Which datagrams on WireGuard's port are for which discovery instance.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use natpunch_types::{InstanceName, RENDEZVOUS_MAGIC, Time};

/// Which instances get the datagrams of which server: for a minute after the last datagram that
/// each sent there, and those of natpunch's own protocol for three.
///
/// One port of `natpunch serve` speaks several protocols. natpunch's own is told apart by its
/// magic; instances of the others, and several of one, each get what comes from there, and heed
/// what they can authenticate.
#[derive(Debug, Default)]
pub struct Correspondents {
    /// By the server's address, and whether the protocol is natpunch's own: who has sent there, and
    /// is heard until when.
    by_address: BTreeMap<(SocketAddr, bool), Vec<(InstanceName, Time)>>,
    /// The addresses that the packet filter has to know: those of other protocols.
    filtered: usize,
}

impl Correspondents {
    /// How long replies are awaited.
    const LIFETIME: Duration = Duration::from_secs(60);
    /// The same of natpunch's own protocol, whose clients hold a mapping by as few packets as their
    /// NAT allows: more than the longest silence, as the server may have news at any time.
    const LIFETIME_OWN: Duration = Duration::from_secs(180);
    /// The most addresses at one time that the packet filter has to know (its bound), and of all.
    const MAX: (usize, usize) = (64, 4_096);
    /// The most instances that share the datagrams of one address. The next one takes the place of
    /// the one that has sent nothing for the longest time.
    const MAX_SHARING: usize = 4;

    /// Notes that `instance` sent a datagram to `address` at `now`. True when the packet filter must
    /// learn the address, which it need not if the answers pass by their form; `None` when there is
    /// no room.
    pub fn sent(
        &mut self,
        instance: &InstanceName,
        address: SocketAddr,
        payload: &[u8],
        now: Time,
    ) -> Option<bool> {
        let key = (address, payload.starts_with(&RENDEZVOUS_MAGIC));
        let is_new = !self.by_address.contains_key(&key);
        let learns = is_new && !key.1;
        if is_new && self.by_address.len() >= Self::MAX.1 || learns && self.filtered >= Self::MAX.0
        {
            return None;
        }
        self.filtered += usize::from(learns);
        // In the order in which they sent last.
        let sharing = self.by_address.entry(key).or_default();
        sharing.retain(|(known, _)| known != instance);
        if sharing.len() >= Self::MAX_SHARING {
            sharing.remove(0);
        }
        let lifetime = if key.1 {
            Self::LIFETIME_OWN
        } else {
            Self::LIFETIME
        };
        sharing.push((instance.clone(), now + lifetime));
        Some(learns)
    }

    /// The instances that correspond with `source` in the protocol of this payload, in order of
    /// their names.
    pub fn of(&self, source: SocketAddr, payload: &[u8]) -> BTreeSet<&InstanceName> {
        let sharing = self
            .by_address
            .get(&(source, payload.starts_with(&RENDEZVOUS_MAGIC)));
        sharing
            .into_iter()
            .flatten()
            .map(|(instance, _)| instance)
            .collect()
    }

    /// Forgets the instances and addresses whose time is over, and returns the addresses that the
    /// packet filter knows.
    pub fn expire(&mut self, now: Time) -> Vec<SocketAddr> {
        let over = self.by_address.extract_if(.., |_, sharing| {
            sharing.retain(|(_, until)| now < *until);
            sharing.is_empty()
        });
        let over: Vec<_> = over
            .filter(|((_, ours), _)| !ours)
            .map(|((address, _), _)| address)
            .collect();
        self.filtered -= over.len();
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours() -> Vec<u8> {
        [&RENDEZVOUS_MAGIC[..], &[7]].concat()
    }

    fn heard(known: &Correspondents, address: SocketAddr, payload: &[u8]) -> String {
        known
            .of(address, payload)
            .into_iter()
            .map(InstanceName::as_str)
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn replies_reach_the_instance_that_asked_for_one_minute_and_those_of_our_own_protocol_for_three()
     {
        let mut known = Correspondents::default();
        let address: SocketAddr = "192.0.2.1:51900".parse().unwrap();
        let a = InstanceName::new("a");
        assert_eq!(known.sent(&a, address, &[1], Time::ZERO), Some(true));
        assert_eq!(
            known.sent(&a, address, &[1], Time::from_millis(30_000)),
            Some(false)
        );
        assert!(known.expire(Time::from_millis(60_000)).is_empty());
        assert_eq!(heard(&known, address, &[2]), "a");
        assert_eq!(known.expire(Time::from_millis(90_000)), [address]);
        assert_eq!(heard(&known, address, &[2]), "");
        for port in 0..64 {
            known.sent(
                &a,
                SocketAddr::from(([192, 0, 2, 2], port)),
                &[1],
                Time::ZERO,
            );
        }
        assert_eq!(known.sent(&a, address, &[1], Time::ZERO), None, "no room");
        assert_eq!(
            known.sent(&a, address, &ours(), Time::ZERO),
            Some(false),
            "it passes by its form"
        );
        assert_eq!(heard(&known, address, &ours()), "a");
        assert_eq!(
            known.expire(Time::from_millis(60_000)).len(),
            64,
            "only what the filter knows"
        );
        assert_eq!(
            heard(&known, address, &ours()),
            "a",
            "it is seldom heard of"
        );
        known.expire(Time::from_millis(180_000));
        assert_eq!(heard(&known, address, &ours()), "");
        assert_eq!(
            known.sent(&a, address, &[1], Time::ZERO),
            Some(true),
            "there is room again"
        );
    }

    #[test]
    fn two_protocols_at_one_address_are_kept_apart() {
        let mut known = Correspondents::default();
        let address: SocketAddr = "192.0.2.1:51900".parse().unwrap();
        let (rendezvous, go) = (InstanceName::new("rendezvous"), InstanceName::new("go"));
        assert_eq!(
            known.sent(&rendezvous, address, &ours(), Time::ZERO),
            Some(false)
        );
        assert_eq!(
            known.sent(&go, address, &[1], Time::ZERO),
            Some(true),
            "the filter does not know it yet"
        );
        assert_eq!(heard(&known, address, &ours()), "rendezvous");
        assert_eq!(heard(&known, address, &[2]), "go");
        known.sent(&rendezvous, address, &ours(), Time::from_millis(30_000));
        assert_eq!(
            known.expire(Time::from_millis(60_000)),
            [address],
            "its own protocol needs no place in the filter"
        );
        assert_eq!(
            (
                heard(&known, address, &ours()),
                heard(&known, address, &[2])
            ),
            ("rendezvous".into(), "".into())
        );
        assert_eq!(
            known.sent(&go, address, &[1], Time::from_millis(60_000)),
            Some(true)
        );
    }

    #[test]
    fn instances_that_share_an_address_all_hear_what_comes_from_there() {
        let mut known = Correspondents::default();
        let address: SocketAddr = "192.0.2.1:51900".parse().unwrap();
        for (payload, learns) in [(&[1][..], true), (&ours(), false)] {
            let mut sent = |name: &str, second: u64| {
                let now = Time::from_millis(second * 1_000);
                assert_eq!(
                    known.sent(&InstanceName::new(name), address, payload, now),
                    Some(learns && second == 0)
                );
            };
            ["a", "b", "c"]
                .into_iter()
                .zip(0..)
                .for_each(|(name, second)| sent(name, second));
            sent("a", 10);
            assert_eq!(heard(&known, address, payload), "a b c");
        }
        assert!(known.expire(Time::from_millis(61_000)).is_empty());
        assert_eq!(
            heard(&known, address, &[1]),
            "a c",
            "each is heard for its own minute"
        );
        for (name, second) in [("d", 62), ("e", 63), ("f", 64)] {
            known.sent(
                &InstanceName::new(name),
                address,
                &[1],
                Time::from_millis(second * 1_000),
            );
        }
        assert_eq!(heard(&known, address, &[1]), "a d e f", "no more than four");
        assert_eq!(
            known.expire(Time::from_millis(200_000)),
            [address],
            "the filter knows the address once"
        );
        assert_eq!((known.filtered, known.by_address.len()), (0, 0));
    }
}
