//! What a node measures of its NAT, and what a wrong measurement costs: time, and no path.

use std::net::IpAddr;
use std::time::Duration;

use natpunch_core::{Filtering, NatStatus, PathKind};
use natpunch_sim::{NatConfig, Reach, reach_with_other_ports};

use crate::kinds::kinds;
use crate::lab::{Lab, MINUTE, NEAR, SECOND, SERVER_V6, Side, UPLINK, ip};

fn measured(lab: &Lab) -> NatStatus {
    lab.world.status(lab.a).unwrap().nat
}

#[test]
fn each_kind_of_nat_is_measured_as_what_it_is() {
    use Filtering::{AddressAndPortDependent, NotByPort};
    for (name, nat) in kinds() {
        let mut lab = Lab::punching(1, nat, Side::Public, UPLINK, NEAR).start();
        lab.world.run_until(MINUTE);
        let NatStatus {
            filtering,
            poison_prone,
            addresses,
            ..
        } = measured(&lab);
        let expected = match name {
            "public" | "full cone" | "address-restricted" | "symmetric, filters by address" => {
                (Some(NotByPort), None)
            }
            "accepts on its outside" => (Some(AddressAndPortDependent), Some(true)),
            // It keeps its port towards both ports of a server with one address.
            "public, host firewall"
            | "port-restricted"
            | "port-restricted, random ports"
            | "rejects by ICMP"
            | "ends sessions on ICMP"
            | "300 sessions, evicts"
            | "pool of 4, paired"
            | "two nodes with one port"
            | "per address"
            | "home behind a carrier's cone" => (Some(AddressAndPortDependent), Some(false)),
            // Each destination has another port.
            _ => (Some(AddressAndPortDependent), None),
        };
        assert_eq!((filtering, poison_prone), expected, "{name}");
        // Of a pool each mapping shows any address.
        let is_pool = name == "symmetric, pool of 4, arbitrary";
        assert!(addresses == Some(1) || is_pool, "{name}: {addresses:?}");
        let peers_word = lab.world.status(lab.b).unwrap().peers[0].nat;
        let heard = peers_word.map(|nat| (nat.filtering, nat.poison_prone));
        assert_eq!(heard, Some(expected), "{name}: what the peer has heard");
    }
}

#[test]
fn a_server_with_two_addresses_tells_a_full_cone_from_one_that_filters_by_address() {
    for (name, nat) in kinds() {
        let expected = match name {
            "full cone" => Filtering::EndpointIndependent,
            "address-restricted" => Filtering::AddressDependent,
            "port-restricted" | "accepts on its outside" => Filtering::AddressAndPortDependent,
            _ => continue,
        };
        let mut lab = Lab::punching(1, nat, Side::Public, UPLINK, NEAR);
        lab.world.add_address(lab.server, ip("198.51.100.77"));
        let mut lab = lab.start();
        lab.world.run_until(MINUTE);
        assert_eq!(measured(&lab).filtering, Some(expected), "{name}");
    }
}

#[test]
fn a_firewall_of_ipv6_is_measured_and_an_idle_pair_goes_by_how_long_it_remembers() {
    let server: IpAddr = ip(SERVER_V6);
    let mut lab = Lab::punching_at(1, Side::Ipv6, Side::Ipv6, server).start();
    lab.world.run_until(6 * MINUTE);
    for node in [lab.a, lab.b] {
        let status = lab.world.status(node).unwrap();
        let found = (status.nat.filtering_v6, status.nat.mapping_lifetime_v6_s);
        let expected = (Some(Filtering::AddressAndPortDependent), Some(110));
        assert_eq!(found, expected);
        assert_eq!(status.nat.filtering, None, "there is no IPv4");
        let heard = status.peers[0].nat.unwrap();
        assert_eq!(heard.mapping_lifetime_v6_s, Some(110));
    }
    assert_eq!(lab.paths(), [PathKind::Direct; 2]);
}

/// The bits of a profile that a node measures, by the byte in which they are: mapping; kind of the
/// pattern; filtering, and whether the NAT is poison-prone.
const MEASURED: [(usize, u8); 10] = [
    (0, 1),
    (0, 2),
    (1, 1),
    (1, 2),
    (1, 4),
    (2, 1),
    (2, 2),
    (2, 4),
    (2, 8),
    (2, 16),
];

/// All that was measured is wrong, in another way each.
const ALL_WRONG: [[u8; 3]; 3] = [[3, 7, 31], [3, 0, 0], [1, 5, 18]];

fn one_wrong() -> impl Iterator<Item = [u8; 3]> {
    MEASURED.into_iter().map(|(byte, bit)| {
        let mut bits = [0; 3];
        bits[byte] = bit;
        bits
    })
}

/// Runs a pair of which each side believes and tells the wrong thing, until it is direct.
fn expect_direct_in_spite(
    seed: u64,
    [(one, a), (other, b)]: &[(&str, Side); 2],
    wrong: [[u8; 3]; 2],
) -> Duration {
    let mut lab = Lab::punching(seed, a.clone(), b.clone(), UPLINK, NEAR);
    for (node, bits) in [lab.a, lab.b].into_iter().zip(wrong) {
        lab.world.distort_profile(node, bits);
    }
    let mut lab = lab.start();
    while lab.paths() != [PathKind::Direct; 2] {
        if lab.world.now() > 6 * 60 * MINUTE {
            lab.fail(&format!(
                "{one} with {other}: no direct path; wrong: {wrong:?}"
            ));
        }
        lab.world.ping(lab.a, lab.b);
        let next = lab.world.now() + SECOND;
        lab.world.run_until(next);
    }
    lab.world.now()
}

/// The pairs that have a direct path for sure, by guesses or not. Two sequences are left out where
/// the pattern is wrong: without its numbers there is nothing to guess by.
fn pairs(has_pattern: bool) -> Vec<[(&'static str, Side); 2]> {
    let kinds = kinds();
    let mut pairs = Vec::new();
    for (row, (name, a)) in kinds.iter().enumerate() {
        for (other, b) in kinds.iter().skip(row) {
            let lab = Lab::punching(1, a.clone(), b.clone(), UPLINK, NEAR);
            let reach = reach_with_other_ports(&lab.world.network, lab.a, lab.b);
            let are_sequences = [name, other].iter().all(|n| n.starts_with("sequential"));
            // What opens these two no measurement tells: which port a peer sees that is no server, and
            // that openers have to arrive. With another measurement wrong, too, luck decides.
            let is_told = |name: &&str| {
                *name != "two nodes with one port" && *name != "symmetric, ends sessions on ICMP"
            };
            let is_told = [name, other].into_iter().all(is_told);
            let is_sure = is_told && matches!(reach, Reach::Direct | Reach::Guessed);
            if is_sure && (has_pattern || !are_sequences) {
                pairs.push([(*name, a.clone()), (*other, b.clone())]);
            }
        }
    }
    pairs
}

#[test]
fn a_measurement_that_is_wrong_in_any_bit_costs_no_pair_its_path() {
    let hard_with_easy = [
        ("symmetric", NatConfig::symmetric().into()),
        ("port-restricted", NatConfig::home().into()),
    ];
    let mut times = Vec::new();
    for (n, bits) in one_wrong().chain(ALL_WRONG).enumerate() {
        let wrong = match n % 3 {
            0 => [bits, [0; 3]],
            1 => [[0; 3], bits],
            _ => [bits; 2],
        };
        times.push(expect_direct_in_spite(n as u64, &hard_with_easy, wrong));
    }
    for (n, pair) in pairs(false).iter().enumerate().step_by(3) {
        let bits = ALL_WRONG[n % 3];
        times.push(expect_direct_in_spite(n as u64, pair, [bits; 2]));
    }
    times.sort();
    let (half, most) = (times[times.len() / 2], times[times.len() * 95 / 100]);
    println!(
        "{} pairs measured wrongly: direct after {half:?}, 95 % after {most:?}, the last after {:?}",
        times.len(),
        times[times.len() - 1]
    );
}

#[test]
#[ignore = "long: run by `make sim`"]
fn each_bit_of_either_side_may_be_wrong_for_every_pair() {
    for bits in one_wrong().chain(ALL_WRONG) {
        for (n, pair) in pairs(bits[1] == 0).iter().enumerate() {
            for wrong in [[bits, [0; 3]], [[0; 3], bits], [bits; 2]] {
                expect_direct_in_spite(n as u64, pair, wrong);
            }
        }
    }
}
