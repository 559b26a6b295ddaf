//! IPv6 alone: the way to the server, between the nodes, and to the relay.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use natpunch_lab::{Lab, Nat, Router, lab_test};

use crate::world::{Node, World, soon, within};

/// Two nodes without any IPv4, each behind a firewall that lets in only what it knows, not started
/// yet.
fn pair(lab: Lab) -> (World, [Node; 2], [Router; 2]) {
    let mut world = World::over_ipv6(lab);
    let routers = ["a", "b"].map(|name| {
        world
            .lab
            .dual_router(&format!("firewall-{name}"), Nat::Symmetric)
            .unwrap()
    });
    let nodes = [("a", &routers[0]), ("b", &routers[1])].map(|(name, router)| {
        let host = world.lab.ipv6_host_behind(router, name).unwrap();
        world.node(host)
    });
    world.write_mesh();
    (world, nodes, routers)
}

/// Waits until both reach each other over such a path, which ends at these addresses.
fn wait_both([a, b]: &[Node; 2], path: &str, ends: [IpAddr; 2]) {
    for (node, peer, end) in [(a, b, ends[1]), (b, a, ends[0])] {
        let status = node.wait_path(peer, path, within(40));
        let endpoint: SocketAddr = status["endpoint"].as_str().unwrap().parse().unwrap();
        assert_eq!(endpoint.ip(), end, "{status:#}");
        assert!(
            node.reaches(peer.address),
            "{} does not reach {}",
            node.name(),
            peer.name()
        );
    }
}

fn own([a, b]: &[Node; 2]) -> [IpAddr; 2] {
    [a, b].map(|node| node.host.ipv6().unwrap().into())
}

lab_test!(
    two_nodes_with_ipv6_alone_connect_directly_through_their_firewalls,
    60,
    |lab| {
        let (_world, mut nodes, _routers) = pair(lab);
        nodes.iter_mut().for_each(Node::start);
        wait_both(&nodes, "direct", own(&nodes));
    }
);

lab_test!(
    two_nodes_with_ipv6_alone_are_relayed_over_it_while_their_firewalls_forbid_a_direct_path,
    120,
    |lab| {
        let (world, mut nodes, routers) = pair(lab);
        let other = own(&nodes)[1];
        routers[0].set_blocked(other, true).unwrap();
        nodes.iter_mut().for_each(Node::start);
        wait_both(&nodes, "relay", [world.server.ipv6().into(); 2]);
        let ping = nodes[0].ping(nodes[1].address, Duration::from_millis(50));
        assert!(ping.wait_for(20, soon()));
        routers[0].set_blocked(other, false).unwrap();
        wait_both(&nodes, "direct", own(&nodes));
        let lost = ping.stop().lost();
        assert!(
            lost <= 1,
            "{lost} pings were lost by the change to the direct path"
        );
    }
);
