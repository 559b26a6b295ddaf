//! How much of something each client, or each network, has.

use std::collections::BTreeMap;
use std::net::IpAddr;

/// An IPv4 address, or the first 64 bits of an IPv6 one. No two are the same: the IPv6 networks
/// that begin with 32 zero bits are nobody's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Network(pub(super) u64);

impl Network {
    pub(super) fn of(ip: IpAddr) -> Self {
        Self(match ip {
            IpAddr::V4(ip) => ip.to_bits().into(),
            IpAddr::V6(ip) => (ip.to_bits() >> 64) as u64,
        })
    }
}

/// The shares of all who have one.
pub(super) struct Shares<K>(BTreeMap<K, usize>);

impl<K> Default for Shares<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord> Shares<K> {
    pub(super) fn of(&self, who: &K) -> usize {
        self.0.get(who).copied().unwrap_or_default()
    }

    pub(super) fn take(&mut self, who: K) {
        *self.0.entry(who).or_default() += 1;
    }

    pub(super) fn give_back(&mut self, who: &K) {
        if let Some(share) = self.0.get_mut(who) {
            *share = share.saturating_sub(1);
            if *share == 0 {
                self.0.remove(who);
            }
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}
