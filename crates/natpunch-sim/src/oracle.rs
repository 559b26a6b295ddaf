//! Whether two hosts can have a direct path at all, from the topology alone: RFC 4787 reasoning
//! that knows nothing of how the core punches.

use std::net::IpAddr;

use natpunch_types::{AddressClass, classify};

use crate::nat::{Allocation, Filtering, Mapping, NatConfig, Pool, Unsolicited};
use crate::network::{GatewayId, HostId, Network};

/// What may be expected of a pair of hosts whose servers are on the internet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// There is a path, and punching with WireGuard's one port finds it.
    Possible,
    /// There may be a path, but an early packet can destroy it ([`Unsolicited::CreateState`]).
    Contended,
    /// None with one port and no guessing.
    Impossible,
}

/// All NATs and firewalls on the way of one host, seen as one.
#[derive(Debug, Clone, Copy)]
struct Stack {
    mapping: Mapping,
    filtering: Filtering,
    poison: bool,
    /// It comes from another address towards each destination ([`Pool::Arbitrary`]).
    scattered: bool,
    /// An ICMP error ends its sessions, so that what opens it has to reach the other side.
    frail: bool,
    /// It shuts out whoever sends much that is unexpected ([`Unsolicited::Blacklist`]).
    guarded: bool,
}

impl Stack {
    /// A chain is as hard as its hardest part, on each axis.
    fn of<'a>(nats: impl IntoIterator<Item = &'a NatConfig>) -> Self {
        let open = Self {
            mapping: Mapping::EndpointIndependent,
            filtering: Filtering::EndpointIndependent,
            poison: false,
            scattered: false,
            frail: false,
            guarded: false,
        };
        nats.into_iter().fold(open, |stack, nat| {
            let mapping = match nat.allocation {
                _ if !nat.translates => Mapping::EndpointIndependent,
                // Its server sees one port, everybody else another.
                Allocation::Contended { .. } => nat.mapping.max(Mapping::AddressDependent),
                _ => nat.mapping,
            };
            let is_open = nat.filtering == Filtering::EndpointIndependent;
            let takes_early = nat.unsolicited == Unsolicited::CreateState;
            Self {
                mapping: stack.mapping.max(mapping),
                filtering: stack.filtering.max(nat.filtering),
                poison: stack.poison || (nat.translates && takes_early && !is_open),
                scattered: stack.scattered
                    || (matches!(nat.pool, Pool::Arbitrary(_))
                        && mapping != Mapping::EndpointIndependent),
                frail: stack.frail || nat.icmp_closes,
                guarded: stack.guarded || matches!(nat.unsolicited, Unsolicited::Blacklist { .. }),
            }
        })
    }

    fn easy(&self) -> bool {
        self.mapping == Mapping::EndpointIndependent
    }

    /// Whoever knows one external port of it gets in.
    fn dialable(&self) -> bool {
        self.filtering == Filtering::EndpointIndependent
    }
}

/// Whether these two hosts can reach each other directly.
pub fn direct_path_possible(network: &Network, a: HostId, b: HostId) -> Verdict {
    if network.segment_of(a) == network.segment_of(b) || over_ipv6(network, a, b) {
        return Verdict::Possible;
    }
    over_ipv4(network, a, b)
}

/// IPv6 is not translated: any stateful firewall opens for the one who sends out.
fn over_ipv6(network: &Network, a: HostId, b: HostId) -> bool {
    [a, b].into_iter().all(|host| {
        let global = |ip: &IpAddr| ip.is_ipv6() && classify(*ip) == AddressClass::Global;
        let forwards = |gateway: &GatewayId| network.firewall_v6(*gateway).is_some();
        network.addresses(host).iter().any(global)
            && network
                .gateways_above(network.segment_of(host))
                .iter()
                .all(forwards)
    })
}

/// What is on the way of a host's IPv4, from inside to outside; `None` if it has none.
fn way_out(network: &Network, host: HostId) -> Option<Vec<NatConfig>> {
    if !network.addresses(host).iter().any(IpAddr::is_ipv4) {
        return None;
    }
    let firewall = network.host_firewall(host).map(|nat| Some(*nat.config()));
    let gateways = network.gateways_above(network.segment_of(host));
    let nats = gateways
        .into_iter()
        .map(|gateway| network.nat_v4(gateway).map(|nat| *nat.config()));
    firewall.into_iter().chain(nats).collect()
}

fn over_ipv4(network: &Network, a: HostId, b: HostId) -> Verdict {
    let above = |host| network.gateways_above(network.segment_of(host));
    let (above_a, above_b) = (above(a), above(b));
    let (Some(nats_a), Some(nats_b)) = (way_out(network, a), way_out(network, b)) else {
        return Verdict::Impossible;
    };
    let (stack_a, stack_b) = (Stack::of(&nats_a), Stack::of(&nats_b));
    if let Some(shared) = above_a.iter().find(|gateway| above_b.contains(gateway)) {
        // What the servers saw is the shared router's own address: only its hairpin leads there.
        let hairpin = network
            .nat_v4(*shared)
            .is_some_and(|nat| nat.config().hairpin);
        return if hairpin && stack_a.easy() && stack_b.easy() {
            Verdict::Possible
        } else {
            Verdict::Impossible
        };
    }
    pair(stack_a, stack_b)
}

fn pair(a: Stack, b: Stack) -> Verdict {
    // One side stands open: the other dials what the servers saw, and is answered on the same
    // session.
    if a.dialable() || b.dialable() {
        return Verdict::Possible;
    }
    let possible = match (a.easy(), b.easy()) {
        (true, true) => true,
        // The hard side comes from a port that nobody can know. It gets in where the address is
        // enough, if that is known.
        (true, false) => a.filtering == Filtering::AddressDependent && !b.scattered,
        (false, true) => b.filtering == Filtering::AddressDependent && !a.scattered,
        (false, false) => false,
    };
    // A poisoned router moves the session to another port, which matters to those who compare
    // ports.
    let strict = |stack: Stack| stack.filtering == Filtering::AddressAndPortDependent;
    match possible {
        false => Verdict::Impossible,
        true if (a.poison && strict(b)) || (b.poison && strict(a)) => Verdict::Contended,
        true => Verdict::Possible,
    }
}

/// What may be expected of a pair that can use other source ports than WireGuard's, and guess.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// A direct path, without any guess.
    Direct,
    /// A direct path, with the probability of the mathematics: see `docs/nat.md`.
    Guessed,
    /// A direct path with luck, else a relay: neither is wrong.
    Luck,
    /// A relay.
    Relay,
}

/// Whether these two hosts can reach each other directly by other source ports and by guesses
/// within the punch budget.
pub fn reach_with_other_ports(network: &Network, a: HostId, b: HostId) -> Reach {
    match direct_path_possible(network, a, b) {
        // Other ports are other five-tuples, which no early packet has spoiled.
        Verdict::Possible | Verdict::Contended => return Reach::Direct,
        Verdict::Impossible => {}
    }
    let above = |host| network.gateways_above(network.segment_of(host));
    let shares_a_router = above(a).iter().any(|gateway| above(b).contains(gateway));
    let (Some(nats_a), Some(nats_b), false) =
        (way_out(network, a), way_out(network, b), shares_a_router)
    else {
        return Reach::Relay;
    };
    let (first, second) = (Stack::of(&nats_a), Stack::of(&nats_b));
    // A guess may hit before the guard notices, or at the address that the other side expects. Where
    // one NAT has to be opened by packets that arrive, and the other is spoiled by them, their order
    // decides.
    let guessed = |opener: Stack, sweeper: Stack| {
        let in_order = opener.frail && sweeper.poison;
        match opener.guarded || opener.scattered || in_order {
            true => Reach::Luck,
            false => Reach::Guessed,
        }
    };
    // The ports of a side that lets in whatever comes from an address can be found from behind any
    // NAT, if that address is known: it does not matter from which port.
    let lets_in = |stack: &Stack| stack.filtering != Filtering::AddressAndPortDependent;
    let mut ways = [(first, second), (second, first)].into_iter();
    if let Some((opener, sweeper)) = ways.find(|(opener, _)| lets_in(opener)) {
        return match sweeper.scattered {
            true => Reach::Luck,
            false => guessed(opener, sweeper),
        };
    }
    // Of a chain the sequence is only to be seen where no other router hands out ports after it.
    let background = |nats: &[NatConfig]| match nats {
        [nat] if matches!(nat.allocation, Allocation::Sequential { .. }) => Some(nat.background),
        _ => None,
    };
    match (first.easy(), second.easy()) {
        (false, true) => guessed(first, second),
        (true, false) => guessed(second, first),
        (false, false) => match (background(&nats_a), background(&nats_b)) {
            (Some(0), Some(0)) => Reach::Guessed,
            // What others take of the sequences meanwhile decides.
            (Some(_), Some(_)) => Reach::Luck,
            (None, _) | (_, None) => Reach::Relay,
        },
        (true, true) => Reach::Relay,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(a: NatConfig, b: NatConfig) -> Verdict {
        let (first, second) = (
            pair(Stack::of([&a]), Stack::of([&b])),
            pair(Stack::of([&b]), Stack::of([&a])),
        );
        assert_eq!(first, second, "the order of a pair means nothing");
        first
    }

    #[test]
    fn the_pairs_of_the_literature_are_judged_as_there() {
        let random = Allocation::Random {
            low: 1024,
            high: 65_535,
        };
        let restricted = NatConfig::new(
            Mapping::EndpointIndependent,
            Filtering::AddressDependent,
            random,
        );
        let contended = NatConfig {
            allocation: Allocation::Contended {
                servers: [198, 51, 100],
            },
            ..NatConfig::home()
        };
        let (home, symmetric, open) = (
            NatConfig::home(),
            NatConfig::symmetric(),
            NatConfig::full_cone(),
        );
        for (a, b, expected) in [
            (home, home, Verdict::Possible),
            (home, open, Verdict::Possible),
            (symmetric, open, Verdict::Possible),
            (symmetric, restricted, Verdict::Possible),
            (symmetric, home, Verdict::Impossible),
            (symmetric, symmetric, Verdict::Impossible),
            (NatConfig::firewall(), home, Verdict::Possible),
            (home.poisoned(), home, Verdict::Contended),
            (home.poisoned(), restricted, Verdict::Possible),
            (
                symmetric.with_pool(Pool::Paired(4)),
                restricted,
                Verdict::Possible,
            ),
            (
                symmetric.with_pool(Pool::Arbitrary(4)),
                restricted,
                Verdict::Impossible,
            ),
            (home.with_pool(Pool::Arbitrary(4)), home, Verdict::Possible),
            (contended, home, Verdict::Impossible),
            (contended, restricted, Verdict::Possible),
        ] {
            assert_eq!(verdict(a, b), expected, "{a:?} with {b:?}");
        }
    }

    #[test]
    fn a_chain_is_as_hard_as_its_hardest_part() {
        let chain = Stack::of([&NatConfig::full_cone(), &NatConfig::symmetric()]);
        assert!(!chain.easy() && !chain.dialable());
    }
}
