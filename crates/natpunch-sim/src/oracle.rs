//! Whether two hosts can have a direct path at all, from the topology alone: RFC 4787 reasoning
//! that knows nothing of how the core punches.

use std::net::IpAddr;

use natpunch_types::{AddressClass, classify};

use crate::nat::{Allocation, Filtering, Mapping, NatConfig, Unsolicited};
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

/// All NATs on the way of one host, seen as one.
#[derive(Debug, Clone, Copy)]
struct Stack {
    mapping: Mapping,
    filtering: Filtering,
    poison: bool,
}

impl Stack {
    /// A chain is as hard as its hardest part, on each axis.
    fn of<'a>(nats: impl IntoIterator<Item = &'a NatConfig>) -> Self {
        let open = Self {
            mapping: Mapping::EndpointIndependent,
            filtering: Filtering::EndpointIndependent,
            poison: false,
        };
        nats.into_iter().fold(open, |stack, nat| Self {
            mapping: if nat.translates {
                stack.mapping.max(nat.mapping)
            } else {
                stack.mapping
            },
            filtering: stack.filtering.max(nat.filtering),
            poison: stack.poison
                || (nat.translates
                    && nat.unsolicited == Unsolicited::CreateState
                    && nat.filtering != Filtering::EndpointIndependent),
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

fn over_ipv4(network: &Network, a: HostId, b: HostId) -> Verdict {
    let above = |host| network.gateways_above(network.segment_of(host));
    let (above_a, above_b) = (above(a), above(b));
    let has_ipv4 = |host| network.addresses(host).iter().any(IpAddr::is_ipv4);
    let nats = |gateways: &[GatewayId]| -> Option<Vec<NatConfig>> {
        gateways
            .iter()
            .map(|gateway| network.nat_v4(*gateway).map(|nat| *nat.config()))
            .collect()
    };
    let (Some(nats_a), Some(nats_b), true) =
        (nats(&above_a), nats(&above_b), has_ipv4(a) && has_ipv4(b))
    else {
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
        // enough.
        (true, false) => a.filtering == Filtering::AddressDependent,
        (false, true) => b.filtering == Filtering::AddressDependent,
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
    let nats = |host| -> Option<Vec<NatConfig>> {
        let gateways = above(host).into_iter();
        gateways
            .map(|gateway| network.nat_v4(gateway).map(|nat| *nat.config()))
            .collect()
    };
    let shares_a_router = above(a).iter().any(|gateway| above(b).contains(gateway));
    let (Some(nats_a), Some(nats_b), false) = (nats(a), nats(b), shares_a_router) else {
        return Reach::Relay;
    };
    let stacks = [&nats_a, &nats_b].map(Stack::of);
    let easy = stacks.map(|stack| stack.easy());
    // The ports of a side that lets in whatever comes from an address can be found from behind any
    // NAT: it does not matter from which port.
    let lets_in = |stack: &Stack| stack.filtering != Filtering::AddressAndPortDependent;
    if stacks.iter().any(lets_in) {
        return Reach::Guessed;
    }
    // Of a chain the sequence is only to be seen where no other router hands out ports after it.
    let background = |nats: &[NatConfig]| match nats {
        [nat] if matches!(nat.allocation, Allocation::Sequential { .. }) => Some(nat.background),
        _ => None,
    };
    match easy {
        [true, false] | [false, true] => Reach::Guessed,
        [false, false] => match (background(&nats_a), background(&nats_b)) {
            (Some(0), Some(0)) => Reach::Guessed,
            // What others take of the sequences meanwhile decides.
            (Some(_), Some(_)) => Reach::Luck,
            (None, _) | (_, None) => Reach::Relay,
        },
        [true, true] => Reach::Relay,
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
