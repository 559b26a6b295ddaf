//! What a connected pair survives.

use std::time::Duration;

use natpunch_core::Event;
use natpunch_sim::{
    Allocation, GatewayConfig, NatConfig, Network, Random, Timers, Verdict, direct_path_possible,
};

use crate::lab::{Discovery, LAN, Lab, MINUTE, NEAR, SECOND, Side, UPLINK, ip};

const RANDOM: Allocation = Allocation::Random {
    low: 1024,
    high: 65_535,
};
const BOTH: [Discovery; 2] = [Discovery::Rendezvous, Discovery::Records];

fn connected(seed: u64, a: impl Into<Side>, b: impl Into<Side>, which: Discovery) -> Lab {
    let mut lab = Lab::new(seed, a, b, UPLINK, which).start();
    lab.expect_connected(10 * SECOND);
    lab.run_with_pings(10 * SECOND);
    lab
}

/// How long until data flows again.
fn recovery(lab: &mut Lab, patience: Duration) -> Duration {
    let start = lab.world.now();
    lab.expect_flow(patience);
    lab.world.now() - start
}

#[test]
fn a_connected_pair_stays_connected_for_a_day_without_a_change_of_endpoint() {
    let mut lab = connected(
        1,
        NatConfig::home(),
        NatConfig::home(),
        Discovery::Rendezvous,
    );
    let endpoint = |lab: &Lab| lab.world.device(lab.a).endpoint(&lab.world.key(lab.b));
    let before = endpoint(&lab);
    let probes = lab.world.probes_sent(lab.a);
    lab.world.run_until(24 * 60 * MINUTE);
    lab.expect_flow(5 * SECOND);
    assert_eq!(endpoint(&lab), before);
    let selected = |event: &&(Duration, Event)| matches!(event.1, Event::PathSelected { .. });
    assert_eq!(lab.world.events(lab.a).iter().filter(selected).count(), 1);
    println!(
        "probes of one node in a connected day: {}",
        lab.world.probes_sent(lab.a) - probes
    );
}

/// How a NAT comes back after a power cut.
#[derive(Debug, Clone, Copy)]
enum Reboot {
    /// Same address, same ports.
    SamePorts,
    /// Same address, other ports.
    NewPorts,
    /// Another address, as after a PPPoE dial-in.
    NewAddress,
}

#[test]
fn a_nat_that_reboots_costs_seconds() {
    for which in BOTH {
        for (reboot, limit) in [
            (Reboot::SamePorts, SECOND),
            (Reboot::NewPorts, 15 * SECOND),
            (Reboot::NewAddress, 15 * SECOND),
        ] {
            let nat = match reboot {
                Reboot::SamePorts => NatConfig::home(),
                _ => NatConfig {
                    allocation: RANDOM,
                    ..NatConfig::home()
                },
            };
            let outside = matches!(reboot, Reboot::NewAddress).then(|| ip("203.0.113.50"));
            let mut times = Vec::new();
            for seed in 0..20 {
                let mut lab = connected(seed, nat, nat, which);
                lab.run_with_pings(Random::new(seed, 11).duration(MINUTE));
                let gateway = if seed % 2 == 0 {
                    lab.gateway_a
                } else {
                    lab.gateway_b
                };
                lab.world.reboot_gateway(gateway.unwrap(), outside);
                times.push(recovery(&mut lab, MINUTE));
                lab.run_with_pings(MINUTE);
            }
            times.sort();
            println!(
                "NAT rebooted, {reboot:?}, {which:?}: p50 {:?} worst {:?}",
                times[10], times[19]
            );
            assert!(times[19] <= limit, "{:?}", times[19]);
        }
    }
}

#[test]
fn both_nats_rebooting_at_once_are_survived() {
    for which in BOTH {
        let nat = NatConfig {
            allocation: RANDOM,
            ..NatConfig::home()
        };
        let mut lab = connected(1, nat, nat, which);
        lab.world
            .reboot_gateway(lab.gateway_a.unwrap(), Some(ip("203.0.113.50")));
        lab.world
            .reboot_gateway(lab.gateway_b.unwrap(), Some(ip("203.0.113.51")));
        println!(
            "both NATs rebooted, {which:?}: {:?}",
            recovery(&mut lab, 2 * MINUTE)
        );
    }
}

#[test]
fn a_node_that_moves_to_another_network_is_found_again() {
    for which in BOTH {
        let mut lab = connected(1, NatConfig::home(), NatConfig::home(), which);
        let hotel = GatewayConfig {
            v4: Some((NatConfig::home(), ip("203.0.113.60"))),
            v6: None,
            uplink: UPLINK,
        };
        let (segment, _) = lab.world.add_gateway("hotel", Network::INTERNET, hotel);
        lab.world.move_node(lab.a, segment, &[ip("10.20.30.40")]);
        let took = recovery(&mut lab, 30 * SECOND);
        println!("moved, {which:?}: {took:?}");
        // A record reaches the other side at once; of a server that is asked only when needed it
        // learns late.
        let limit = if which == Discovery::Records {
            3 * SECOND
        } else {
            15 * SECOND
        };
        assert!(took <= limit, "{took:?}");
        lab.run_with_pings(5 * MINUTE);
    }
}

#[test]
fn a_node_that_moves_after_hours_is_found_as_soon() {
    let mut lab = connected(1, NatConfig::home(), NatConfig::home(), Discovery::Records);
    lab.world.run_until(180 * MINUTE);
    let hotel = GatewayConfig {
        v4: Some((NatConfig::home(), ip("203.0.113.60"))),
        v6: None,
        uplink: UPLINK,
    };
    let (segment, _) = lab.world.add_gateway("hotel", Network::INTERNET, hotel);
    lab.world.move_node(lab.a, segment, &[ip("10.20.30.40")]);
    let took = recovery(&mut lab, 30 * SECOND);
    assert!(took <= 3 * SECOND, "{took:?}");
}

#[test]
fn a_node_that_comes_home_uses_the_lan() {
    let mut lab = connected(1, NatConfig::home(), NatConfig::home(), Discovery::Records);
    // Long after the first round of probing.
    lab.world.run_until(30 * MINUTE);
    let home = lab.world.network.segment_of(lab.b);
    lab.world.move_node(lab.a, home, &[ip("192.168.2.77")]);
    lab.run_with_pings(2 * MINUTE);
    let endpoint = lab
        .world
        .device(lab.b)
        .endpoint(&lab.world.key(lab.a))
        .unwrap();
    assert_eq!(endpoint.ip(), ip("192.168.2.77"));
}

#[test]
fn a_suspended_node_is_back_soon_after_it_wakes() {
    for which in BOTH {
        for gap in [30 * SECOND, 10 * MINUTE, 480 * MINUTE] {
            let mut lab = connected(1, NatConfig::home(), NatConfig::home(), which);
            lab.world.suspend(lab.a, gap);
            lab.world.run_until(lab.world.now() + gap);
            let took = recovery(&mut lab, 30 * SECOND);
            println!("suspended for {gap:?}, {which:?}: {took:?}");
        }
    }
}

#[test]
fn a_node_that_wakes_is_heard_in_two_seconds_or_without_keys_at_its_peers_next_attempt() {
    for (name, nat) in [
        ("directly", NatConfig::home()),
        ("by a relay", NatConfig::symmetric()),
    ] {
        // As long as WireGuard's keys live, longer than that, longer than the server remembers
        // anything.
        for sleep in [100 * SECOND, 200 * SECOND, 20 * MINUTE] {
            let gap = |seed| {
                let mut lab = Lab::with_servers(seed, nat, nat, &[NEAR]).start();
                lab.expect_connected(10 * SECOND);
                lab.longest_gap(SECOND * (20 + 7 * seed as u32), |_| ());
                lab.world.suspend(lab.a, sleep);
                lab.longest_gap(sleep, |_| ());
                lab.longest_gap(MINUTE, |_| ())
            };
            let gaps: Vec<_> = (0..4).map(gap).collect();
            println!("connected {name}, one side slept {sleep:?}: back after {gaps:?}");
            // Its peer has gone on talking. Where the keys are gone both need a handshake, and a
            // WireGuard that has just begun one begins no other for REKEY_TIMEOUT, kicked or not.
            let bound = if sleep < 3 * MINUTE {
                2 * SECOND
            } else {
                natpunch_sim::REKEY_TIMEOUT
            };
            assert!(
                gaps.iter().all(|gap| *gap <= bound),
                "{name}, {sleep:?}: {gaps:?}"
            );
        }
    }
}

#[test]
fn tunnels_outlive_the_server() {
    for which in BOTH {
        let mut lab = connected(1, NatConfig::home(), NatConfig::home(), which);
        lab.world.set_server_down(lab.server, true);
        lab.world.set_record_store_down(true);
        let handshakes = lab
            .world
            .device(lab.a)
            .last_handshake(&lab.world.key(lab.b));
        lab.run_with_pings(30 * MINUTE);
        assert!(
            lab.world
                .device(lab.a)
                .last_handshake(&lab.world.key(lab.b))
                > handshakes
        );
        let lost = |event: &&(Duration, Event)| matches!(event.1, Event::PathLost { .. });
        assert_eq!(lab.world.events(lab.a).iter().filter(lost).count(), 0);
    }
}

#[test]
fn a_pair_connects_once_its_server_is_back() {
    for which in BOTH {
        let mut lab = Lab::new(1, NatConfig::home(), NatConfig::home(), UPLINK, which);
        lab.world.set_server_down(lab.server, true);
        let mut lab = lab.start();
        lab.world.run_until(MINUTE);
        lab.world.set_server_down(lab.server, false);
        let took = lab.expect_connected(MINUTE);
        println!("server back after 60 s, {which:?}: {took:?}");
    }
}

#[test]
fn a_restarted_agent_adopts_the_running_tunnel() {
    for which in BOTH {
        let mut lab = connected(1, NatConfig::home(), NatConfig::home(), which);
        let device = |lab: &Lab| {
            let device = lab.world.device(lab.a);
            (
                device.endpoint(&lab.world.key(lab.b)),
                device.last_handshake(&lab.world.key(lab.b)),
            )
        };
        let before = device(&lab);
        lab.world.restart_agent(lab.a, 3 * SECOND);
        lab.run_with_pings(20 * SECOND);
        assert_eq!(device(&lab), before);
        let events: Vec<_> = lab
            .world
            .events(lab.a)
            .iter()
            .map(|(_, event)| event)
            .collect();
        let adopted = |event: &&&Event| matches!(event, Event::Adopted { .. });
        assert_eq!(events.iter().filter(adopted).count(), 1);
        lab.run_with_pings(10 * MINUTE);
    }
}

#[test]
fn a_pair_that_restarts_with_its_devices_and_without_any_server_connects_from_memory() {
    let mut times = Vec::new();
    for seed in 0..20 {
        let which = BOTH[(seed % 2) as usize];
        let mut lab = connected(seed, NatConfig::home(), NatConfig::home(), which);
        lab.world.set_server_down(lab.server, true);
        lab.world.set_record_store_down(true);
        let mut random = Random::new(seed, 12);
        for node in [lab.a, lab.b] {
            let away = random.duration(2 * SECOND);
            lab.world.restart_device(node, away);
            lab.world.restart_agent(node, away);
        }
        lab.world.run_until(lab.world.now() + 2 * SECOND);
        times.push(recovery(&mut lab, 10 * SECOND));
    }
    times.sort();
    println!(
        "both restarted, no server: p50 {:?} worst {:?}",
        times[10], times[19]
    );
    assert!(times[19] <= 6 * SECOND, "{:?}", times[19]);
}

#[test]
fn a_partition_heals() {
    for which in BOTH {
        for gap in [10 * SECOND, 5 * MINUTE] {
            let mut lab = connected(1, NatConfig::home(), NatConfig::home(), which);
            lab.world
                .network
                .set_uplink_connected(lab.gateway_a.unwrap(), false);
            lab.world.run_until(lab.world.now() + gap);
            lab.world
                .network
                .set_uplink_connected(lab.gateway_a.unwrap(), true);
            println!(
                "cut for {gap:?}, {which:?}: {:?}",
                recovery(&mut lab, 30 * SECOND)
            );
        }
    }
}

#[test]
fn a_removed_peer_stays_removed_and_can_come_back() {
    let mut lab = connected(1, NatConfig::home(), NatConfig::home(), Discovery::Records);
    let key = lab.world.key(lab.b);
    lab.world.unpeer(lab.a, lab.b);
    lab.world.run_until(lab.world.now() + 10 * MINUTE);
    assert!(!lab.world.device(lab.a).has_peer(&key));
    lab.expect_sound();
    lab.world.peer(lab.a, lab.b);
    lab.expect_connected(MINUTE);
}

#[test]
fn a_reload_of_one_peer_leaves_the_others_in_peace() {
    let mut lab = connected(1, NatConfig::home(), NatConfig::home(), Discovery::Records);
    let other = lab.world.add_node(
        "other",
        Network::INTERNET,
        &[ip("203.0.113.90")],
        LAN,
        Default::default(),
    );
    let before = lab
        .world
        .device(lab.a)
        .last_handshake(&lab.world.key(lab.b));
    let selected = |lab: &Lab| {
        let counts = |event: &&(Duration, Event)| matches!(event.1, Event::PathSelected { .. });
        lab.world.events(lab.a).iter().filter(counts).count()
    };
    let selections = selected(&lab);
    for _ in 0..20 {
        lab.world.peer(lab.a, other);
        lab.run_with_pings(SECOND);
        lab.world.unpeer(lab.a, other);
        lab.run_with_pings(SECOND);
    }
    assert_eq!(
        lab.world
            .device(lab.a)
            .last_handshake(&lab.world.key(lab.b)),
        before
    );
    assert_eq!(selected(&lab), selections);
}

#[test]
fn short_nat_timers_are_outlived() {
    let timers = Timers {
        one_way: 20 * SECOND,
        two_way: 30 * SECOND,
        refresh_inbound: false,
        ..Timers::LINUX
    };
    let nat = NatConfig {
        timers,
        ..NatConfig::home()
    };
    let mut lab = connected(1, nat, nat, Discovery::Records);
    assert_eq!(
        direct_path_possible(&lab.world.network, lab.a, lab.b),
        Verdict::Possible
    );
    for _ in 0..6 {
        lab.world.run_until(lab.world.now() + 10 * MINUTE);
        lab.expect_flow(5 * SECOND);
    }
}

#[test]
fn an_outage_of_hours_on_both_sides_ends_when_the_network_is_back() {
    for which in BOTH {
        for (seed, outage) in [(1, 20 * MINUTE), (2, 183 * MINUTE), (3, 600 * MINUTE)] {
            let mut lab = connected(seed, NatConfig::home(), NatConfig::home(), which);
            let gateways = [lab.gateway_a.unwrap(), lab.gateway_b.unwrap()];
            let down = lab.world.now() + Random::new(seed, 12).duration(MINUTE);
            for gateway in gateways {
                lab.world.network.set_uplink_connected(gateway, false);
            }
            lab.world.run_until(down + outage);
            for gateway in gateways {
                lab.world.network.set_uplink_connected(gateway, true);
                lab.world.reboot_gateway(gateway, None);
            }
            println!(
                "both cut for {outage:?}, {which:?}: {:?}",
                recovery(&mut lab, 30 * SECOND)
            );
        }
    }
}

#[test]
fn a_peer_that_comes_back_after_a_night_is_connected_at_once() {
    for which in BOTH {
        let mut times = Vec::new();
        for seed in 0..5 {
            let mut lab = Lab::new(seed, NatConfig::home(), NatConfig::home(), UPLINK, which);
            let start = 600 * MINUTE + Random::new(seed, 13).duration(60 * MINUTE);
            lab.world.start_at(lab.a, Duration::ZERO);
            lab.world.start_at(lab.b, start);
            lab.world.run_until(start);
            times.push(lab.expect_connected(MINUTE));
        }
        times.sort();
        println!(
            "other node ten hours later, {which:?}: median {:?}, worst {:?}",
            times[2], times[4]
        );
        assert!(times[4] <= 10 * SECOND, "{times:?}");
    }
}

#[test]
fn a_device_that_is_gone_for_a_while_does_not_cost_minutes() {
    for gap in [5 * SECOND, 20 * SECOND, 2 * MINUTE] {
        let mut lab = connected(1, NatConfig::home(), NatConfig::home(), Discovery::Records);
        lab.world.restart_device(lab.b, gap);
        lab.world.run_until(lab.world.now() + gap);
        let took = recovery(&mut lab, 5 * MINUTE);
        println!("device gone for {gap:?}: {took:?} after it is back");
        assert!(took <= MINUTE, "{took:?}");
    }
}

#[test]
fn a_firewall_that_drops_wireguard_for_a_while_costs_minutes_at_most() {
    for gap in [20 * SECOND, MINUTE] {
        let mut lab = connected(1, NatConfig::home(), NatConfig::home(), Discovery::Records);
        lab.world.set_wireguard_blocked(lab.b, true);
        // Without a session there is no handshake to fall back on.
        lab.world.restart_device(lab.b, SECOND);
        lab.world.run_until(lab.world.now() + gap);
        lab.world.set_wireguard_blocked(lab.b, false);
        let took = recovery(&mut lab, 5 * MINUTE);
        println!("WireGuard dropped for {gap:?}: {took:?} after that");
        assert!(took <= 2 * MINUTE, "{took:?}");
    }
}

#[test]
fn a_peer_that_does_not_know_us_gets_few_probes() {
    let mut lab = Lab::usual(1, NatConfig::home(), Side::Public);
    lab.world.unpeer(lab.b, lab.a);
    lab = lab.start();
    lab.world.run_until(2 * MINUTE);
    let before = lab.world.probes_sent(lab.a);
    lab.world.run_until(62 * MINUTE);
    assert_eq!(lab.world.probes_sent(lab.b), 0, "no answer to a stranger");
    assert!(lab.world.probes_sent(lab.a) - before <= 1_500);
    lab.expect_sound();
}
