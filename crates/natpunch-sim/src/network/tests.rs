use std::net::SocketAddr;

use super::*;
use crate::packet::Payload;
use crate::wireguard::Message;

const HOP: LinkConfig = LinkConfig::wire(Duration::from_millis(1));

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn packet(source: &str, destination: &str) -> Packet {
    Packet::new(address(source), address(destination), Payload::Raw(vec![1]))
}

fn run(network: &mut Network) -> Vec<(HostId, Packet)> {
    while let Some(at) = network.poll_timeout() {
        network.handle_timeout(at);
    }
    std::iter::from_fn(|| network.poll_delivery()).collect()
}

fn home(nat: NatConfig, outside: &str, hops: u8) -> GatewayConfig {
    GatewayConfig {
        v4: Some((nat, ip(outside))),
        v6: Some(NatConfig::firewall()),
        uplink: LinkConfig::wire(Duration::from_millis(10)).with_hops(hops),
    }
}

#[test]
fn a_packet_and_its_answer_cross_two_nats() {
    let mut network = Network::new(1);
    let server = network.add_host("server", Network::INTERNET, &[ip("198.51.100.1")], HOP);
    let (carrier, _) = network.add_gateway(
        "carrier",
        Network::INTERNET,
        home(NatConfig::home(), "203.0.113.1", 0),
    );
    let (lan, _) = network.add_gateway("home", carrier, home(NatConfig::home(), "100.64.0.2", 0));
    let host = network.add_host("host", lan, &[ip("192.168.1.2")], HOP);
    network.send(
        host,
        packet("192.168.1.2:7", "198.51.100.1:9"),
        Duration::ZERO,
    );
    let arrived = run(&mut network);
    assert_eq!(arrived[0].0, server);
    assert_eq!(arrived[0].1.source, address("203.0.113.1:7"));
    assert_eq!(
        network.trace.entries().last().unwrap().at,
        Duration::from_millis(22)
    );
    network.send(
        server,
        packet("198.51.100.1:9", "203.0.113.1:7"),
        Duration::from_secs(1),
    );
    let answered = run(&mut network);
    assert_eq!(
        (answered[0].0, answered[0].1.destination),
        (host, address("192.168.1.2:7"))
    );
}

#[test]
fn a_low_ttl_opens_the_own_nat_and_dies_before_the_other() {
    let mut network = Network::new(1);
    let (a, gateway_a) = network.add_gateway(
        "a",
        Network::INTERNET,
        home(NatConfig::home(), "203.0.113.1", 3),
    );
    let (b, gateway_b) = network.add_gateway(
        "b",
        Network::INTERNET,
        home(NatConfig::home().poisoned(), "203.0.113.2", 3),
    );
    let host_a = network.add_host("host-a", a, &[ip("192.168.1.2")], HOP);
    network.add_host("host-b", b, &[ip("192.168.1.2")], HOP);
    for (ttl, opened, reached) in [(1, 0, 0), (4, 1, 0), (7, 1, 0), (8, 1, 1)] {
        let opener = Packet {
            ttl,
            ..packet("192.168.1.2:7", "203.0.113.2:7")
        };
        network.send(host_a, opener, Duration::ZERO);
        run(&mut network);
        assert_eq!(
            network.nat_v4(gateway_a).unwrap().sessions(Duration::ZERO),
            opened,
            "ttl {ttl}"
        );
        assert_eq!(
            network.nat_v4(gateway_b).unwrap().sessions(Duration::ZERO),
            reached,
            "ttl {ttl}"
        );
    }
}

#[test]
fn a_lan_delivers_directly_and_to_all() {
    let mut network = Network::new(1);
    let (lan, gateway) = network.add_gateway(
        "home",
        Network::INTERNET,
        home(NatConfig::home(), "203.0.113.1", 0),
    );
    let a = network.add_host("a", lan, &[ip("192.168.1.2"), ip("2001:db8:1::2")], HOP);
    let b = network.add_host("b", lan, &[ip("192.168.1.3"), ip("2001:db8:1::3")], HOP);
    let outsider = network.add_host("outsider", Network::INTERNET, &[ip("198.51.100.1")], HOP);
    network.send(a, packet("192.168.1.2:7", "192.168.1.3:7"), Duration::ZERO);
    network.send(
        a,
        packet("192.168.1.2:7", "255.255.255.255:7"),
        Duration::ZERO,
    );
    network.send(
        a,
        packet("[2001:db8:1::2]:7", "[ff02::1]:7"),
        Duration::ZERO,
    );
    network.send(
        outsider,
        packet("198.51.100.1:7", "255.255.255.255:7"),
        Duration::ZERO,
    );
    let arrived: Vec<_> = run(&mut network)
        .into_iter()
        .map(|(host, _)| host)
        .collect();
    assert_eq!(arrived, [b, b, b]);
    assert_eq!(network.nat_v4(gateway).unwrap().sessions(Duration::ZERO), 0);
}

#[test]
fn a_private_address_leads_nowhere_on_the_internet() {
    let mut network = Network::new(1);
    let (lan, _) = network.add_gateway(
        "home",
        Network::INTERNET,
        home(NatConfig::home(), "203.0.113.1", 0),
    );
    let a = network.add_host("a", lan, &[ip("192.168.1.2")], HOP);
    network.send(a, packet("192.168.1.2:7", "10.9.9.9:7"), Duration::ZERO);
    assert!(run(&mut network).is_empty());
}

#[test]
fn ipv6_is_routed_through_firewalls_without_translation() {
    let mut network = Network::new(1);
    let (a, _) = network.add_gateway(
        "a",
        Network::INTERNET,
        home(NatConfig::home(), "203.0.113.1", 0),
    );
    let (b, _) = network.add_gateway(
        "b",
        Network::INTERNET,
        home(NatConfig::home(), "203.0.113.2", 0),
    );
    let host_a = network.add_host("host-a", a, &[ip("2001:db8:1::2")], HOP);
    let host_b = network.add_host("host-b", b, &[ip("2001:db8:2::2")], HOP);
    network.send(
        host_a,
        packet("[2001:db8:1::2]:7", "[2001:db8:2::2]:7"),
        Duration::ZERO,
    );
    assert!(run(&mut network).is_empty());
    network.send(
        host_b,
        packet("[2001:db8:2::2]:7", "[2001:db8:1::2]:7"),
        Duration::from_secs(1),
    );
    let arrived = run(&mut network);
    assert_eq!(
        (arrived[0].0, arrived[0].1.source),
        (host_a, address("[2001:db8:2::2]:7"))
    );
}

#[test]
fn a_moved_or_unplugged_host_gets_nothing_at_its_old_address() {
    let mut network = Network::new(1);
    let a = network.add_host("a", Network::INTERNET, &[ip("198.51.100.1")], HOP);
    let b = network.add_host("b", Network::INTERNET, &[ip("198.51.100.2")], HOP);
    network.send(
        b,
        packet("198.51.100.2:7", "198.51.100.1:7"),
        Duration::ZERO,
    );
    network.move_host(a, Network::INTERNET, &[ip("198.51.100.3")]);
    assert!(run(&mut network).is_empty());
    network.set_host_connected(a, false);
    network.send(
        b,
        packet("198.51.100.2:7", "198.51.100.3:7"),
        Duration::from_secs(1),
    );
    assert!(run(&mut network).is_empty());
    network.set_host_connected(a, true);
    network.send(
        b,
        packet("198.51.100.2:7", "198.51.100.3:7"),
        Duration::from_secs(2),
    );
    assert_eq!(run(&mut network).len(), 1);
}

#[test]
fn a_forged_source_does_not_leave_its_host() {
    let mut network = Network::new(1);
    let a = network.add_host("a", Network::INTERNET, &[ip("198.51.100.1")], HOP);
    network.add_host("b", Network::INTERNET, &[ip("198.51.100.2")], HOP);
    let forged = Packet::new(
        address("198.51.100.9:7"),
        address("198.51.100.2:7"),
        Payload::WireGuard(Message::keepalive_for_test()),
    );
    network.send(a, forged, Duration::ZERO);
    assert!(run(&mut network).is_empty());
}
