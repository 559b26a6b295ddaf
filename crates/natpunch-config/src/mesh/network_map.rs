//! Networks by address: which of many overlap a given one, without a look at each.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

/// Values by network. Networks nest or are apart, so every question is answered by one look-up for
/// each prefix length that occurs, or by one range.
#[derive(Debug, Clone)]
pub(crate) struct NetworkMap<T> {
    /// By network address and prefix length: an outer network stands right before what it holds.
    entries: BTreeMap<(IpAddr, u8), T>,
    /// The prefix lengths that occur, of IPv4 and of IPv6.
    lengths: [BTreeSet<u8>; 2],
}

impl<T> NetworkMap<T> {
    pub(crate) fn new() -> Self {
        Self {
            entries: BTreeMap::new(),
            lengths: [BTreeSet::new(), BTreeSet::new()],
        }
    }

    /// Adds a network. One that is there keeps its value.
    pub(crate) fn insert(&mut self, network: IpNet, value: T) {
        let [v4, v6] = &mut self.lengths;
        let lengths = if network.addr().is_ipv6() { v6 } else { v4 };
        lengths.insert(network.prefix_len());
        self.entries.entry(key(network)).or_insert(value);
    }

    /// The narrowest network that holds `network`, be it the same one.
    pub(crate) fn around(&self, network: IpNet) -> Option<&T> {
        let [v4, v6] = &self.lengths;
        let lengths = if network.addr().is_ipv6() { v6 } else { v4 };
        lengths
            .range(..=network.prefix_len())
            .rev()
            .filter_map(|length| IpNet::new(network.addr(), *length).ok())
            .find_map(|outer| self.entries.get(&key(outer)))
    }

    /// Whether this very network is there.
    pub(crate) fn contains(&self, network: IpNet) -> bool {
        self.entries.contains_key(&key(network))
    }

    /// A network that lies within `network` and is narrower.
    pub(crate) fn within(&self, network: IpNet) -> Option<&T> {
        let longer = network.prefix_len().checked_add(1)?;
        let first = (network.network(), longer);
        let last = (network.broadcast(), network.max_prefix_len());
        // For a single address nothing is narrower, and the range would be upside down.
        (first <= last)
            .then(|| self.entries.range(first..=last).next())
            .flatten()
            .map(|(_, value)| value)
    }

    /// A network that has an address in common with `network`.
    pub(crate) fn overlapping(&self, network: IpNet) -> Option<&T> {
        self.around(network).or_else(|| self.within(network))
    }
}

impl<T> FromIterator<(IpNet, T)> for NetworkMap<T> {
    fn from_iter<I: IntoIterator<Item = (IpNet, T)>>(entries: I) -> Self {
        let mut map = Self::new();
        for (network, value) in entries {
            map.insert(network, value);
        }
        map
    }
}

fn key(network: IpNet) -> (IpAddr, u8) {
    (network.network(), network.prefix_len())
}

/// Whether the first address of a network, and of IPv4 the last, are no peer's (RFC 3021, RFC 6164:
/// not where there are just one or two).
pub(crate) fn has_special_addresses(network: IpNet) -> bool {
    network.max_prefix_len() - network.prefix_len() >= 2
}

/// Whether two networks have an address in common.
pub(crate) fn overlap(a: IpNet, b: IpNet) -> bool {
    a.contains(&b) || b.contains(&a)
}

#[cfg(test)]
mod tests {
    use super::NetworkMap;
    use ipnet::IpNet;

    #[test]
    fn a_network_overlaps_what_holds_it_and_what_it_holds_and_nothing_else() {
        let all = [
            "10.0.0.0/8",
            "10.1.0.0/16",
            "10.1.2.0/24",
            "192.168.0.0/16",
            "192.168.1.1/32",
            "fd77::/64",
            "fd77::5/128",
            "::/1",
            "255.255.255.255/32",
        ];
        let nets: Vec<IpNet> = all.iter().map(|net| net.parse().unwrap()).collect();
        for skipped in &nets {
            let others = nets.iter().filter(|net| *net != skipped);
            let map: NetworkMap<IpNet> = others.clone().map(|net| (*net, *net)).collect();
            let holds = others.clone().any(|net| net.contains(skipped));
            let held = others.clone().any(|net| skipped.contains(net));
            assert_eq!(map.around(*skipped).is_some(), holds, "{skipped}");
            assert_eq!(map.within(*skipped).is_some(), held, "{skipped}");
            assert_eq!(
                map.overlapping(*skipped).is_some(),
                holds || held,
                "{skipped}"
            );
        }
    }
}
