//! Kinds of paths other than through two NATs.

use std::net::SocketAddr;
use std::time::Duration;

use natpunch_core::PathKind;
use natpunch_sim::{
    GatewayConfig, HostId, LinkConfig, NatConfig, Network, Packet, Payload, Random, Verdict, What,
    World, direct_path_possible,
};

use crate::lab::{Discovery, LAN, Lab, MINUTE, SECOND, SERVER_V4, Side, UPLINK, discovery, ip};

/// Two nodes behind one router, on its LAN.
pub(crate) fn one_lan(seed: u64, which: Discovery, nat: NatConfig) -> Lab {
    let mut world = World::new(seed);
    let server = world.add_model_server(
        "server",
        &[ip(SERVER_V4)],
        LinkConfig::wire(Duration::from_millis(10)),
    );
    let router = GatewayConfig {
        v4: Some((nat, ip("203.0.113.1"))),
        v6: None,
        uplink: UPLINK,
    };
    let (segment, gateway) = world.add_gateway("home", Network::INTERNET, router);
    let config = discovery(&world, server, which);
    let a = world.add_node("a", segment, &[ip("192.168.1.2")], LAN, config.clone());
    let b = world.add_node("b", segment, &[ip("192.168.1.3")], LAN, config);
    world.add_bystander("printer", segment, &[ip("192.168.1.9")], LAN);
    world.peer(a, b);
    Lab {
        world,
        server,
        servers: Vec::new(),
        a,
        b,
        gateway_a: Some(gateway),
        gateway_b: Some(gateway),
    }
}

pub(crate) fn endpoint_of_b(lab: &Lab) -> SocketAddr {
    lab.world
        .device(lab.a)
        .endpoint(&lab.world.key(lab.b))
        .unwrap()
}

#[test]
fn two_nodes_behind_one_nat_use_the_lan() {
    for which in [Discovery::Rendezvous, Discovery::Records] {
        for (seed, nat) in [
            (1, NatConfig::home()),
            (2, NatConfig::symmetric()),
            (3, NatConfig::home().with_hairpin()),
        ] {
            let mut lab = one_lan(seed, which, nat).start();
            lab.expect_connected(10 * SECOND);
            lab.run_with_pings(MINUTE);
            assert_eq!(endpoint_of_b(&lab).ip(), ip("192.168.1.3"));
            assert_eq!(
                lab.world.status(lab.a).unwrap().peers[0].path,
                PathKind::Lan
            );
        }
    }
}

#[test]
fn two_nodes_on_one_lan_find_each_other_without_any_server() {
    let mut lab = one_lan(1, Discovery::Rendezvous, NatConfig::home());
    lab.world.set_server_down(lab.server, true);
    lab.start().expect_connected(10 * SECOND);
}

#[test]
fn a_public_node_connects_to_any_nat() {
    for nat in [
        NatConfig::home(),
        NatConfig::full_cone(),
        NatConfig::symmetric(),
    ] {
        for (seed, loss) in [(1, 0.0), (2, 0.05)] {
            let uplink = UPLINK.with_loss(loss);
            for which in [Discovery::Rendezvous, Discovery::Records] {
                Lab::new(seed, Side::Public, nat, uplink, which)
                    .start()
                    .expect_connected(20 * SECOND);
                Lab::new(seed, nat, Side::Public, uplink, which)
                    .start()
                    .expect_connected(20 * SECOND);
            }
        }
    }
}

#[test]
fn ipv6_hosts_behind_stateful_firewalls_connect() {
    for seed in 0..10 {
        let mut lab = Lab::new(
            seed,
            Side::Ipv6,
            Side::Ipv6,
            UPLINK.with_loss(0.02),
            Discovery::Records,
        )
        .start();
        assert_eq!(
            direct_path_possible(&lab.world.network, lab.a, lab.b),
            Verdict::Possible
        );
        lab.expect_connected(20 * SECOND);
    }
}

#[test]
fn hosts_behind_two_nats_each_connect() {
    let chain = || Side::Behind(vec![NatConfig::home(), NatConfig::home()]);
    for seed in 0..10 {
        Lab::usual(seed, chain(), chain())
            .start()
            .expect_connected(10 * SECOND);
        let open = Side::Behind(vec![NatConfig::full_cone(), NatConfig::full_cone()]);
        Lab::usual(
            seed,
            Side::Behind(vec![NatConfig::home(), NatConfig::symmetric()]),
            open,
        )
        .start()
        .expect_connected(20 * SECOND);
    }
}

#[test]
fn homes_behind_one_carrier_nat_connect_when_it_hairpins() {
    for (hairpin, expected) in [(true, Verdict::Possible), (false, Verdict::Impossible)] {
        let mut world = World::new(1);
        let server = world.add_model_server(
            "server",
            &[ip(SERVER_V4)],
            LinkConfig::wire(Duration::from_millis(10)),
        );
        let carrier = NatConfig {
            hairpin,
            ..NatConfig::home()
        };
        let carrier = GatewayConfig {
            v4: Some((carrier, ip("203.0.113.1"))),
            v6: None,
            uplink: UPLINK,
        };
        let (inner, _) = world.add_gateway("carrier", Network::INTERNET, carrier);
        let config = discovery(&world, server, Discovery::Rendezvous);
        let [a, b] = [1_u8, 2].map(|number| {
            let outside = ip(&format!("100.64.0.{number}"));
            let home = GatewayConfig {
                v4: Some((NatConfig::home(), outside)),
                v6: None,
                uplink: LAN,
            };
            let (segment, _) = world.add_gateway("home", inner, home);
            world.add_node(
                "node",
                segment,
                &[ip(&format!("192.168.{number}.2"))],
                LAN,
                config.clone(),
            )
        });
        world.peer(a, b);
        let mut lab = Lab {
            world,
            server,
            servers: Vec::new(),
            a,
            b,
            gateway_a: None,
            gateway_b: None,
        }
        .start();
        assert_eq!(direct_path_possible(&lab.world.network, a, b), expected);
        assert_eq!(lab.connect(MINUTE).is_some(), hairpin);
        lab.expect_sound();
    }
}

#[test]
fn a_plain_wireguard_peer_is_connected_without_probes() {
    let mut lab = Lab::usual(1, NatConfig::home(), Side::Public);
    // The plain host has a device and no agent; its address is known to nobody but the mesh file's
    // discovery.
    let plain = lab.b;
    lab.world.peer_one_way(lab.a, plain, false);
    let address = SocketAddr::new(
        lab.world.network.addresses(plain)[0],
        lab.world.listen_port(plain),
    );
    lab.world.start_at(lab.a, Duration::ZERO);
    lab.world.run_until(SECOND);
    lab.world.offer_candidate(lab.a, plain, address);
    lab.expect_connected(10 * SECOND);
    lab.run_with_pings(10 * MINUTE);
    assert_eq!(endpoint_of_b(&lab), address);
}

#[test]
fn a_plain_peer_that_roams_is_not_fought() {
    let mut lab = Lab::usual(1, NatConfig::full_cone(), Side::Public);
    let plain = lab.b;
    lab.world.peer_one_way(lab.a, plain, false);
    let old = SocketAddr::new(
        lab.world.network.addresses(plain)[0],
        lab.world.listen_port(plain),
    );
    lab.world.start_at(lab.a, Duration::ZERO);
    lab.world.run_until(SECOND);
    lab.world.offer_candidate(lab.a, plain, old);
    lab.expect_connected(10 * SECOND);
    let new = ip("203.0.113.77");
    lab.world.move_node(plain, Network::INTERNET, &[new]);
    lab.world.ping(lab.a, lab.b);
    lab.world.run_until(lab.world.now() + SECOND);
    lab.world.ping(lab.a, lab.b);
    for _ in 0..120 {
        lab.world.ping(lab.a, lab.b);
        lab.world.offer_candidate(lab.a, plain, old);
        lab.world.run_until(lab.world.now() + SECOND);
        assert_eq!(endpoint_of_b(&lab).ip(), new);
    }
    lab.expect_sound();
}

#[test]
fn a_mesh_of_six_behind_mixed_nats_connects_every_pair() {
    let mut world = World::new(6);
    let server = world.add_model_server(
        "server",
        &[ip(SERVER_V4)],
        LinkConfig::wire(Duration::from_millis(10)),
    );
    let config = discovery(&world, server, Discovery::Records);
    let nats = [NatConfig::home(), NatConfig::full_cone(), NatConfig::home()];
    let mut nodes = Vec::new();
    for (number, nat) in (1_u8..).zip(nats) {
        let outside = ip(&format!("203.0.113.{number}"));
        let router = GatewayConfig {
            v4: Some((nat, outside)),
            v6: None,
            uplink: UPLINK.with_loss(0.02),
        };
        let (segment, _) = world.add_gateway("gw", Network::INTERNET, router);
        for host in [2, 3] {
            let address = ip(&format!("192.168.{number}.{host}"));
            nodes.push(world.add_node("node", segment, &[address], LAN, config.clone()));
        }
    }
    for (i, a) in nodes.iter().enumerate() {
        for b in &nodes[i + 1..] {
            world.peer(*a, *b);
        }
    }
    for node in &nodes {
        world.start_at(*node, Duration::ZERO);
    }
    let all = |world: &World| {
        let pairs = nodes
            .iter()
            .enumerate()
            .flat_map(|(i, a)| nodes[i + 1..].iter().map(move |b| (*a, *b)));
        pairs.into_iter().all(|(a, b)| world.has_sessions(a, b))
    };
    let at = world.run_until_done(30 * SECOND, all);
    assert!(at.is_some(), "{}", world.report());
    assert!(world.violations().is_empty(), "{}", world.report());
}

#[test]
fn a_stranger_who_floods_gets_no_answer_and_costs_nothing() {
    let mut lab = Lab::usual(1, NatConfig::home(), Side::Public).start();
    lab.expect_connected(10 * SECOND);
    let stranger =
        lab.world
            .add_bystander("stranger", Network::INTERNET, &[ip("198.51.100.66")], LAN);
    let target = SocketAddr::new(
        lab.world.network.addresses(lab.b)[0],
        lab.world.listen_port(lab.b),
    );
    let mut random = Random::new(1, 77);
    let before = lab.world.probes_sent(lab.b);
    let quiet = lab.world.now();
    for i in 0..5_000_u64 {
        let length = (i % 300) as usize;
        let bytes = random.bytes32().into_iter().cycle().take(length).collect();
        let source = SocketAddr::new(ip("198.51.100.66"), 1000 + (i % 50_000) as u16);
        lab.world
            .inject(stranger, Packet::new(source, target, Payload::Raw(bytes)));
        lab.world.run_until(quiet + Duration::from_millis(i));
    }
    assert!(lab.world.probes_sent(lab.b) - before < 50);
    lab.expect_flow(5 * SECOND);
}

/// What really arrived at a node's agent so far, with the source it had then.
fn overheard(world: &World, node: HostId) -> Vec<Vec<u8>> {
    let address = world.network.addresses(node)[0];
    let raw = |packet: &Packet| match &packet.payload {
        Payload::Raw(bytes) if packet.destination.ip() == address => Some(bytes.clone()),
        _ => None,
    };
    let entries = world
        .network
        .trace
        .entries()
        .filter(|entry| entry.what == What::Delivered);
    entries
        .filter_map(|entry| entry.packet.as_ref().and_then(raw))
        .collect()
}

#[test]
fn a_replayed_probe_amplifies_nothing_and_moves_nothing() {
    let mut lab = Lab::usual(1, NatConfig::home(), Side::Public).start();
    lab.expect_connected(10 * SECOND);
    lab.run_with_pings(30 * SECOND);
    let probes = overheard(&lab.world, lab.b);
    assert!(probes.len() > 5);
    let stranger_ip = ip("198.51.100.66");
    let stranger = lab
        .world
        .add_bystander("stranger", Network::INTERNET, &[stranger_ip], LAN);
    let target = SocketAddr::new(
        lab.world.network.addresses(lab.b)[0],
        lab.world.listen_port(lab.b),
    );
    let endpoint = lab.world.device(lab.b).endpoint(&lab.world.key(lab.a));
    let (mut replayed, start) = (0, lab.world.now());
    for round in 0..600_u64 {
        for (index, bytes) in probes.iter().enumerate() {
            let source = SocketAddr::new(
                stranger_ip,
                1000 + (round % 100) as u16 * 100 + (index % 100) as u16,
            );
            lab.world.inject(
                stranger,
                Packet::new(source, target, Payload::Raw(bytes.clone())),
            );
            replayed += 1;
        }
        lab.world
            .run_until(start + Duration::from_millis(100) * round as u32);
    }
    let answers = lab.world.packets_to(stranger);
    println!("{replayed} replayed probes: {answers} packets to the replayer");
    assert!(
        answers <= replayed,
        "{answers} packets for {replayed} replayed ones"
    );
    assert_eq!(
        lab.world.device(lab.b).endpoint(&lab.world.key(lab.a)),
        endpoint
    );
    lab.world.check_memory();
    lab.run_with_pings(MINUTE);
    assert_eq!(
        lab.world.device(lab.b).endpoint(&lab.world.key(lab.a)),
        endpoint
    );
}

#[test]
fn one_probe_replayed_from_many_places_makes_no_amplifier() {
    let mut lab = Lab::usual(1, NatConfig::home(), Side::Public).start();
    lab.expect_connected(10 * SECOND);
    let probe = overheard(&lab.world, lab.b).swap_remove(0);
    let stranger_ip = ip("198.51.100.66");
    let stranger = lab
        .world
        .add_bystander("stranger", Network::INTERNET, &[stranger_ip], LAN);
    let target = SocketAddr::new(
        lab.world.network.addresses(lab.b)[0],
        lab.world.listen_port(lab.b),
    );
    for second in 1..=60_u16 {
        let source = SocketAddr::new(stranger_ip, 1000 + second);
        lab.world.inject(
            stranger,
            Packet::new(source, target, Payload::Raw(probe.clone())),
        );
        lab.world.run_until(lab.world.now() + SECOND);
    }
    let answers = lab.world.packets_to(stranger);
    println!("one probe replayed from 60 places: {answers} packets back");
    assert!(answers <= 60, "{answers} packets for 60 replayed ones");
    lab.expect_flow(5 * SECOND);
}
