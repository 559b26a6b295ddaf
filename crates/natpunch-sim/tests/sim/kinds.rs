//! The kinds of place that a node may be in, by the names that docs/nat.md has.

use natpunch_sim::{Allocation, Filtering, Mapping, NatConfig, Pool, Unsolicited, WhenFull};
use natpunch_types::IcmpKind;

use crate::lab::{MINUTE, Side};

pub(crate) const RANDOM: Allocation = Allocation::Random {
    low: 1_024,
    high: 65_535,
};

pub(crate) const fn hard(allocation: Allocation) -> NatConfig {
    NatConfig::new(
        Mapping::AddressAndPortDependent,
        Filtering::AddressAndPortDependent,
        allocation,
    )
}

/// A sequence that other hosts use, too, with as many new mappings a second.
pub(crate) const fn busy(step: u16, background: u32) -> NatConfig {
    NatConfig {
        background,
        ..hard(Allocation::Sequential { step })
    }
}

/// Shuts an address out for a minute after 100 unexpected packets of it in one second.
const GUARD: Unsolicited = Unsolicited::Blacklist {
    per_second: 100,
    duration: MINUTE,
};

/// Every kind, by its name.
pub(crate) fn kinds() -> Vec<(&'static str, Side)> {
    let (home, symmetric) = (NatConfig::home(), NatConfig::symmetric());
    let easy =
        |filtering, allocation| NatConfig::new(Mapping::EndpointIndependent, filtering, allocation);
    let address_dependent = NatConfig::new(
        Mapping::AddressDependent,
        Filtering::AddressAndPortDependent,
        RANDOM,
    );
    let lax = NatConfig::new(
        Mapping::AddressAndPortDependent,
        Filtering::AddressDependent,
        RANDOM,
    );
    let closes = |nat: NatConfig| NatConfig {
        icmp_closes: true,
        ..nat
    };
    let contended = easy(
        Filtering::AddressAndPortDependent,
        Allocation::Contended {
            servers: [198, 51, 100],
        },
    );
    let small = NatConfig {
        table_size: 300,
        when_full: WhenFull::EvictUnanswered,
        ..home
    };
    vec![
        ("public", Side::Public),
        ("public, host firewall", Side::Firewalled),
        ("full cone", NatConfig::full_cone().into()),
        (
            "address-restricted",
            easy(Filtering::AddressDependent, Allocation::Preserve).into(),
        ),
        ("port-restricted", home.into()),
        (
            "port-restricted, random ports",
            easy(Filtering::AddressAndPortDependent, RANDOM).into(),
        ),
        (
            "rejects by ICMP",
            home.with_unsolicited(Unsolicited::Reject(IcmpKind::PortUnreachable))
                .into(),
        ),
        ("ends sessions on ICMP", closes(home).into()),
        ("accepts on its outside", home.poisoned().into()),
        ("300 sessions, evicts", small.into()),
        ("pool of 4, paired", home.with_pool(Pool::Paired(4)).into()),
        ("two nodes with one port", contended.into()),
        ("symmetric", symmetric.into()),
        ("symmetric, filters by address", lax.into()),
        (
            "symmetric, accepts on its outside",
            symmetric.poisoned().into(),
        ),
        ("symmetric, ends sessions on ICMP", closes(symmetric).into()),
        (
            "symmetric, blacklists from 100/s",
            symmetric.with_unsolicited(GUARD).into(),
        ),
        (
            "symmetric, pool of 4, arbitrary",
            symmetric.with_pool(Pool::Arbitrary(4)).into(),
        ),
        ("per address", address_dependent.into()),
        (
            "sequential",
            hard(Allocation::Sequential { step: 1 }).into(),
        ),
        ("sequential, 20 flows/s", busy(2, 20).into()),
        ("block of 512", hard(Allocation::Block { size: 512 }).into()),
        (
            "block of 1,024",
            hard(Allocation::Block { size: 1_024 }).into(),
        ),
        (
            "home behind a carrier's cone",
            Side::Behind(vec![home, home]),
        ),
        (
            "home behind a carrier's symmetric",
            Side::Behind(vec![symmetric, home]),
        ),
    ]
}
