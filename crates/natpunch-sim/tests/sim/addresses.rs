//! Hosts with many addresses: containers' bridges, and laptops with two links and two families.

use std::net::IpAddr;
use std::time::Duration;

use natpunch_core::PathKind;
use natpunch_sim::NatConfig;
use natpunch_types::RelayPolicy;

use crate::lab::{Discovery, Lab, MINUTE, MS, NEAR, SECOND, ip};
use crate::paths::{endpoint_of_b, one_lan};

/// The addresses of so many bridges to containers; on every container host they are the same.
fn bridges(count: usize) -> Vec<IpAddr> {
    (0..count)
        .map(|n| IpAddr::from([172, 17 + (n / 250) as u8, (n % 250) as u8, 1]))
        .collect()
}

/// Gives both nodes bridges, and starts them.
fn start_with(mut lab: Lab, extra: [Vec<IpAddr>; 2], relay: RelayPolicy) -> Lab {
    for (node, addresses) in [lab.a, lab.b].into_iter().zip(extra) {
        lab.world.set_bridges(node, &addresses);
        lab.world.set_relay_policy(node, relay);
    }
    lab.start()
}

fn time_to_direct(mut lab: Lab, what: &str) -> Duration {
    let Some(took) = lab.connect_directly(MINUTE) else {
        lab.fail(&format!("{what}: never direct"));
    };
    lab.expect_flow(5 * SECOND);
    took
}

#[test]
fn a_host_with_two_hundred_addresses_connects_as_fast_as_one_with_one() {
    let home = NatConfig::home();
    for relay in [RelayPolicy::Auto, RelayPolicy::Never] {
        let mut alone = None;
        for (here, there) in [
            (0, 0),
            (1, 1),
            (5, 5),
            (6, 6),
            (7, 7),
            (8, 8),
            (10, 10),
            (30, 30),
            (200, 200),
            (200, 0),
            (0, 200),
        ] {
            let lab = Lab::with_servers(1, home, home, &[NEAR]);
            let extra = [bridges(here), bridges(there)];
            let what = format!("{here} and {there} more addresses, relay {relay:?}");
            let took = time_to_direct(start_with(lab, extra, relay), &what);
            println!("{what}: direct after {took:?}");
            let alone = *alone.get_or_insert(took);
            assert!(took <= alone + 100 * MS, "{what}: {took:?}, not {alone:?}");
        }
    }
}

#[test]
fn a_laptop_with_two_links_and_two_families_and_an_ipv4_only_peer_become_direct() {
    let home = NatConfig::home();
    let mut addresses = vec![ip("192.168.7.2")];
    for link in ["a", "b"] {
        for n in 1..=2 {
            addresses.push(ip(&format!("2001:db8:{link}::{n}")));
            addresses.push(ip(&format!("fd00:{link}::{n}")));
        }
    }
    for swapped in [false, true] {
        let lab = Lab::with_servers(1, home, home, &[NEAR]);
        let extra = if swapped {
            [Vec::new(), addresses.clone()]
        } else {
            [addresses.clone(), Vec::new()]
        };
        let took = time_to_direct(start_with(lab, extra, RelayPolicy::Auto), "laptop");
        assert!(took <= 3 * SECOND, "{took:?}");
    }
}

#[test]
fn one_lan_is_found_behind_ten_bridges_of_lower_index() {
    for count in [0, 10, 200] {
        let lab = one_lan(1, Discovery::Records, NatConfig::home());
        let extra = [bridges(count), bridges(count)];
        let mut lab = start_with(lab, extra, RelayPolicy::Auto);
        let took = lab.expect_connected(5 * SECOND);
        println!("{count} bridges on one LAN: {took:?}");
        lab.run_with_pings(10 * SECOND);
        assert_eq!(endpoint_of_b(&lab).ip(), ip("192.168.1.3"));
        assert_eq!(
            lab.world.status(lab.a).unwrap().peers[0].path,
            PathKind::Lan
        );
    }
}
