//! Which pairs of networks connect, and over which path.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use natpunch_lab::{Host, Lab, Nat, lab_test, sandbox};
use serde_json::Value;

use crate::world::{Discovery, INTERFACE, Node, UDP_PORT, World, soon, within};

/// The endpoint that the status names for a peer, once connected without a relay, which may well
/// come first.
fn endpoint(node: &Node, peer: &str) -> (SocketAddr, Value) {
    let peer = node.wait_peer(peer, "a path without a relay", soon(), |peer| {
        let connected = peer["state"] == "connected" && !peer["handshake_age_s"].is_null();
        // What was chosen may still be on its way to WireGuard.
        let candidates = peer["candidates"].as_array()?;
        let at_relay = candidates
            .iter()
            .any(|known| known["kind"] == "relay" && known["address"] == peer["endpoint"]);
        (connected && peer["path"] != "relay" && !at_relay).then(|| peer.clone())
    });
    (peer["endpoint"].as_str().unwrap().parse().unwrap(), peer)
}

/// Waits until both are connected, directly and at each other's public address, and a ping passes
/// each way.
fn connect_directly([a, b]: &[Node; 2], addresses: [Ipv4Addr; 2]) {
    for (node, peer, at) in [(a, b, addresses[1]), (b, a, addresses[0])] {
        let (endpoint, status) = endpoint(node, peer.name());
        assert_eq!(endpoint.ip(), IpAddr::V4(at), "{status:#}");
        assert_eq!(status["path"], "direct");
        assert!(
            node.reaches(peer.address),
            "{} does not reach {}",
            node.name(),
            peer.name()
        );
    }
}

fn connects_directly(lab: Lab, discovery: Discovery, nats: [Nat; 2]) {
    let mut world = World::new(lab, discovery);
    let (nodes, routers) = world.pair(nats);
    connect_directly(&nodes, [routers[0].address(), routers[1].address()]);
}

lab_test!(
    the_rendezvous_connects_two_port_preserving_nats,
    60,
    |lab| {
        connects_directly(lab, Discovery::Rendezvous, [Nat::PortPreserving; 2]);
    }
);

lab_test!(
    the_rendezvous_connects_a_symmetric_and_a_full_cone_nat,
    60,
    |lab| {
        connects_directly(lab, Discovery::Rendezvous, [Nat::Symmetric, Nat::FullCone]);
    }
);

lab_test!(
    where_the_servers_first_port_is_blocked_the_next_one_of_the_file_is_used,
    60,
    |lab| {
        let mut world = World::new(lab, Discovery::Rendezvous);
        let other = UDP_PORT + 100;
        world.server.kill();
        world.server.arguments = vec!["--listen".to_owned(), format!("0.0.0.0:{other}")];
        world.server.restart();
        world.server.close_ports(&UDP_PORT.to_string());
        let ports = format!("plugin = \"rendezvous\"\nmore_ports = [{other}]\n");
        world.mesh.discovery = world
            .mesh
            .discovery
            .replace("plugin = \"rendezvous\"\n", &ports);
        let (nodes, routers) = world.pair([Nat::PortPreserving; 2]);
        connect_directly(&nodes, [routers[0].address(), routers[1].address()]);
        let status = nodes[0].status().unwrap();
        let note = status["discovery"][0]["note"].as_str().unwrap();
        assert!(note.contains(&format!(":{other}")), "{note}");
    }
);

lab_test!(two_port_preserving_nats_connect, 60, |lab| {
    connects_directly(lab, Discovery::NatpunchGo, [Nat::PortPreserving; 2]);
});

lab_test!(a_port_preserving_and_a_full_cone_nat_connect, 60, |lab| {
    connects_directly(
        lab,
        Discovery::NatpunchGo,
        [Nat::PortPreserving, Nat::FullCone],
    );
});

lab_test!(two_restricted_nats_connect, 60, |lab| {
    connects_directly(lab, Discovery::NatpunchGo, [Nat::Restricted; 2]);
});

lab_test!(a_symmetric_and_a_full_cone_nat_connect, 60, |lab| {
    connects_directly(lab, Discovery::NatpunchGo, [Nat::Symmetric, Nat::FullCone]);
});

lab_test!(
    records_on_a_web_server_and_stun_are_enough_to_connect,
    60,
    |lab| {
        connects_directly(lab, Discovery::Http, [Nat::PortPreserving; 2]);
    }
);

lab_test!(
    records_in_a_shared_directory_and_stun_are_enough_to_connect,
    60,
    |lab| {
        connects_directly(lab, Discovery::File, [Nat::PortPreserving; 2]);
    }
);

lab_test!(
    records_in_a_redis_server_and_stun_are_enough_to_connect,
    60,
    |lab| {
        connects_directly(lab, Discovery::Redis, [Nat::PortPreserving; 2]);
    }
);

lab_test!(
    records_in_a_dns_zone_and_stun_are_enough_to_connect,
    60,
    |lab| {
        connects_directly(lab, Discovery::Dns, [Nat::PortPreserving; 2]);
    }
);

lab_test!(a_public_node_and_one_behind_a_nat_connect, 60, |lab| {
    let mut world = World::new(lab, Discovery::NatpunchGo);
    let (mut a, router) = world.node_behind(Nat::Symmetric, "a");
    let host = world.lab.public_host("b").unwrap();
    let mut b = world.node(host);
    world.write_mesh();
    a.start();
    b.start();
    let public = b.host.ipv4().unwrap();
    connect_directly(&[a, b], [router.address(), public]);
});

lab_test!(
    two_nodes_behind_one_nat_connect_within_their_lan,
    60,
    |lab| {
        let mut world = World::new(lab, Discovery::Http);
        let router = world.lab.router("home", Nat::PortPreserving).unwrap();
        let [mut a, mut b] = ["a", "b"].map(|name| {
            let host = world.lab.host_behind(&router, name).unwrap();
            world.node(host)
        });
        world.write_mesh();
        a.start();
        b.start();
        for (node, peer) in [(&a, &b), (&b, &a)] {
            let (endpoint, status) = endpoint(node, peer.name());
            assert_eq!(
                endpoint.ip(),
                IpAddr::V4(peer.host.ipv4().unwrap()),
                "{status:#}"
            );
            assert_eq!(status["path"], "lan");
            assert!(node.reaches(peer.address));
        }
    }
);

lab_test!(
    the_first_packet_to_a_peer_that_comes_later_is_answered,
    60,
    |lab| {
        let mut world = World::new(lab, Discovery::Rendezvous);
        let (mut a, _nat_a) = world.node_behind(Nat::PortPreserving, "a");
        let (mut b, _nat_b) = world.node_behind(Nat::PortPreserving, "b");
        world.write_mesh();
        a.start();
        a.wait_up();
        // Longer apart than WireGuard's initiations.
        let ping = a.ping(b.address, Duration::from_secs(6));
        b.start();
        let (answered, first) = ping.first(soon()).expect("a ping is answered");
        assert_eq!(first.sequence, 1, "the first was lost");
        let log = "first proven path";
        let chosen = [&a, &b].map(|node| node.wait_log(log, Instant::now()));
        let path = chosen.into_iter().flatten().min().unwrap();
        println!(
            "measured: the first ping was answered {:.3} s after the path was there",
            answered.saturating_duration_since(path).as_secs_f64()
        );
    }
);

/// Drops the first of WireGuard's handshake responses that a router forwards into the internet.
const LOSES_A_RESPONSE: &str = "table inet lossy { chain out {
    type filter hook postrouting priority -300;
    oifname wan udp length 100 @th,64,32 0x02000000 limit rate 1/hour burst 1 packets counter drop
}
}";

lab_test!(
    a_handshake_response_that_is_lost_costs_a_moment_and_not_wireguards_five_seconds,
    60,
    |lab| {
        let mut world = World::new(lab, Discovery::Rendezvous);
        let (mut a, nat_a) = world.node_behind(Nat::PortPreserving, "a");
        let (mut b, nat_b) = world.node_behind(Nat::PortPreserving, "b");
        for router in [&nat_a, &nat_b] {
            router.nft(LOSES_A_RESPONSE).unwrap();
        }
        world.write_mesh();
        a.start();
        a.wait_up();
        let ping = a.ping(b.address, Duration::from_millis(50));
        b.start();
        let (answered, _) = ping.first(soon()).expect("a ping is answered");
        let path = [&a, &b].map(|node| node.wait_log("first proven path", Instant::now()));
        let path = path.into_iter().flatten().min().unwrap();
        let took = answered.saturating_duration_since(path);
        println!(
            "measured: the first ping was answered {:.3} s after the path was there, though the \
             handshake's response was lost",
            took.as_secs_f64()
        );
        let lost = [&nat_a, &nat_b].map(|router| router.rules().unwrap());
        let has_dropped = |rules: &String| rules.contains("counter packets 1 ");
        assert!(lost.iter().any(has_dropped), "no response was lost");
        assert!(took < Duration::from_secs(3), "{took:?}");
    }
);

lab_test!(
    two_nodes_in_one_lan_connect_with_no_server_at_all,
    60,
    |lab| {
        let mut world = World::new(lab, Discovery::Http);
        world.server.kill();
        world.mesh.discovery.clear();
        let router = world.lab.router("home", Nat::PortPreserving).unwrap();
        let mut a = world.node_at(&router, "a");
        let mut b = world.node_at(&router, "b");
        world.write_mesh();
        a.start();
        // Its own pings were lost to nobody.
        a.wait_up();
        b.start();
        for (node, peer) in [(&a, &b), (&b, &a)] {
            let (endpoint, status) = endpoint(node, peer.name());
            let lan = IpAddr::V4(peer.host.ipv4().unwrap());
            assert_eq!(
                (endpoint.ip(), &status["path"]),
                (lan, &"lan".into()),
                "{status:#}"
            );
            assert!(node.reaches(peer.address));
        }
    }
);

lab_test!(
    ipv6_connects_through_stateful_firewalls_where_ipv4_cannot,
    60,
    |lab| {
        let mut world = World::new(lab, Discovery::Http);
        let routers = ["a", "b"].map(|name| {
            world
                .lab
                .dual_router(&format!("nat-{name}"), Nat::Symmetric)
                .unwrap()
        });
        let [mut a, mut b] = [("a", &routers[0]), ("b", &routers[1])].map(|(name, router)| {
            let host = world.lab.host_behind(router, name).unwrap();
            world.node(host)
        });
        world.write_mesh();
        a.start();
        b.start();
        for (node, peer) in [(&a, &b), (&b, &a)] {
            let (endpoint, status) = endpoint(node, peer.name());
            assert_eq!(
                endpoint.ip(),
                IpAddr::V6(peer.host.ipv6().unwrap()),
                "{status:#}"
            );
            assert!(node.reaches(peer.address));
        }
    }
);

lab_test!(two_symmetric_nats_are_said_to_be_not_reachable, 60, |lab| {
    let mut world = World::new(lab, Discovery::NatpunchGo);
    let ([a, b], _routers) = world.pair([Nat::Symmetric, Nat::Symmetric]);
    for (node, peer) in [(&a, &b), (&b, &a)] {
        let status = node.wait_peer(peer.name(), "the word unreachable", within(30), |peer| {
            (peer["state"] == "unreachable").then(|| peer.clone())
        });
        assert!(!status["reason"].as_str().unwrap().is_empty(), "{status:#}");
        assert!(status["retry_in_s"].as_f64().unwrap() > 0.0, "{status:#}");
    }
});

lab_test!(down_removes_what_apply_made_and_nothing_else, 60, |lab| {
    let mut world = World::new(lab, Discovery::NatpunchGo);
    let ([mut a, b], _routers) = world.pair([Nat::PortPreserving, Nat::PortPreserving]);
    a.host
        .ip("link add name other type bridge\nlink set other up\n")
        .unwrap();
    a.wait_connected("b");
    a.stop();
    assert!(a.reaches(b.address), "the tunnel outlives its agent");
    let output = a.natpunch(&["down"]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let links = a.host.output("ip", &["-o", "link"]).unwrap();
    let links = String::from_utf8(links.stdout).unwrap();
    assert!(
        !links.contains(INTERFACE) && links.contains("other"),
        "{links}"
    );
    let routes = a.host.output("ip", &["route"]).unwrap();
    assert!(!String::from_utf8(routes.stdout).unwrap().contains("10.77."));
    assert!(!a.reaches(b.address));
    // And it can join again.
    a.start();
    a.wait("its peer b", soon(), |status| {
        crate::world::peer_in(status, "b").map(|_| ())
    });
    a.wait_connected("b");
});

lab_test!(
    apply_once_ends_when_connected_or_when_its_deadline_has_passed,
    60,
    |lab| {
        let mut world = World::new(lab, Discovery::NatpunchGo);
        let (a, _nat_a) = world.node_behind(Nat::PortPreserving, "a");
        let (mut b, _nat_b) = world.node_behind(Nat::PortPreserving, "b");
        world.write_mesh();
        let once = |deadline: &str| {
            let file = world.file();
            let arguments = [
                "apply",
                file.to_str().unwrap(),
                "--once",
                "--deadline",
                deadline,
                "--private-key-file",
            ];
            let output = a.natpunch(&[&arguments[..], &[a.key_file.to_str().unwrap()]].concat());
            output.status.code()
        };
        assert_eq!(once("2"), Some(3), "b is not there");
        b.start();
        b.wait_up();
        assert_eq!(once("20"), Some(0));
        assert!(a.reaches(b.address), "the tunnel stays");
    }
);

/// Sends this host's questions for names to a server that drops them all, as long as it lives.
fn drop_dns(world: &mut World, node: &Node) -> Host {
    let server = world.lab.public_host("dns").unwrap();
    let rules = server.directory().unwrap().join("drop.nft");
    let text = "table inet silent {\n  chain in {\n    type filter hook input priority 0\n    \
                meta l4proto { tcp, udp } th dport 53 drop\n  }\n}\n";
    std::fs::write(&rules, text).unwrap();
    let output = server.output("nft", &["-f".as_ref(), rules.as_os_str()]);
    assert!(output.unwrap().status.success());
    let file = node.host.directory().unwrap().join("resolv.conf");
    std::fs::write(&file, format!("nameserver {}\n", server.ipv4().unwrap())).unwrap();
    let mounted = node.host.run(move || {
        let none: Option<&str> = None;
        nix::mount::mount(
            Some(&file),
            "/etc/resolv.conf",
            none,
            nix::mount::MsFlags::MS_BIND,
            none,
        )
    });
    mounted.unwrap().unwrap();
    server
}

lab_test!(
    a_peer_with_an_address_waits_for_none_of_sixty_names_that_do_not_resolve,
    180,
    |lab| {
        let mut world = World::new(lab, Discovery::Rendezvous);
        world.mesh.discovery.clear();
        let [mut a, mut b] = ["a", "b"].map(|name| {
            let host = world.lab.public_host(name).unwrap();
            world.node(host)
        });
        let at = b.host.ipv4().unwrap();
        world.mesh.member("b").more = format!("endpoint = \"{at}:51820\"\n");
        let _dns = drop_dns(&mut world, &a);
        world.write_mesh();
        let mut time_to_connect = |world: &World, names: &str| {
            world.write_mesh();
            // b knows nothing of a before a has found it.
            b.start();
            b.wait_up();
            let start = Instant::now();
            a.start();
            a.wait_connected("b");
            let took = start.elapsed();
            println!("measured: a peer with an address, {names}: connected after {took:.2?}");
            for node in [&mut a, &mut b] {
                node.stop();
                assert!(node.natpunch(&["down"]).status.success());
            }
            took
        };
        let alone = time_to_connect(&world, "alone");
        for number in 1..=60_u8 {
            let key = natpunch_types::SecretKey::from_bytes([number; 32]).public_key();
            let name = format!("endpoint = \"host{number}.example.net:51820\"\n");
            let member = format!("p{number}");
            world.mesh.add(&member, &key.to_string(), &name);
        }
        let among = time_to_connect(&world, "with 60 names that do not resolve");
        let limit = alone + Duration::from_secs(2) * sandbox::patience();
        assert!(among <= limit, "{among:?}, alone {alone:?}");
    }
);
