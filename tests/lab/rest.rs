//! Peers at rest: coming to rest, and what becomes of them when their agent ends.

use std::time::{Duration, Instant};

use natpunch_lab::{Nat, lab_test};

use crate::demand::{ON_DEMAND, first_ping};
use crate::world::{Discovery, INTERFACE, Node, World, peer_in, soon, within};

/// For how long a guard waits for another agent, and a moment for it to act.
const GUARD_WAITS: u64 = 8 + 10;

/// A mesh on demand of two nodes on the internet, both at rest. The mesh file says where `b` is,
/// and where another peer would be, `c`.
fn at_rest(lab: natpunch_lab::Lab) -> (World, [Node; 2], Rest) {
    let mut world = World::new(lab, Discovery::Rendezvous);
    let mut nodes = ["a", "b"].map(|name| {
        let host = world.lab.public_host(name).unwrap();
        world.node(host)
    });
    let places = Rest {
        b: format!("{}:51820", nodes[1].host.ipv4().unwrap()),
        c: "198.51.100.77:7".to_owned(),
        c_key: natpunch_types::PeerKey::from_bytes([7; 32]).to_string(),
    };
    world.mesh.add("c", &places.c_key, "");
    for member in &mut world.mesh.members {
        member.more.push_str(ON_DEMAND);
    }
    for (name, endpoint) in [("b", &places.b), ("c", &places.c)] {
        let more = format!("endpoint = \"{endpoint}\"\n");
        world.mesh.member(name).more.push_str(&more);
    }
    world.write_mesh();
    for node in &mut nodes {
        node.start();
    }
    for node in &nodes {
        node.wait("rest", soon(), |status| {
            let peers = status["peers"].as_array()?;
            let rest = peers.iter().all(|peer| peer["state"] == "resting");
            (rest && status["discovery"][0]["ok"] == true).then_some(())
        });
    }
    (world, nodes, places)
}

struct Rest {
    b: String,
    c: String,
    c_key: String,
}

/// Where WireGuard has a peer.
fn endpoint(node: &Node, key: &str) -> String {
    let peers = node.wg();
    let peer = peers.iter().find(|peer| peer.public_key == key).unwrap();
    peer.endpoint.clone()
}

fn is_resting(endpoint: &str) -> bool {
    endpoint.starts_with("127.79.") && endpoint.ends_with(":9")
}

/// The guards of this lab.
fn guards() -> Vec<i32> {
    let processes = std::fs::read_dir("/proc").unwrap();
    let is_one = |pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.windows(7).any(|words| words == b"\0guard\0")
    };
    let pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(is_one).collect()
}

fn wait_until(what: &str, deadline: Instant, is_so: impl Fn() -> bool) {
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Waits until a guard runs: it was told where the peers are when it was started.
fn wait_for_guards(count: usize) {
    wait_until("a guard runs", soon(), || guards().len() == count);
}

lab_test!(
    the_first_packet_wakes_a_pair_at_rest_without_a_nat,
    60,
    |lab| {
        let (_world, [a, b], _) = at_rest(lab);
        let (took, sequence) = first_ping(&a, &b);
        println!("measured: no NAT, at rest: first ping answered after {took:?}");
        assert_eq!(sequence, 1, "the first packet was lost");
        b.wait_connected("a");
    }
);

lab_test!(
    peers_at_rest_are_reached_where_they_were_after_their_agent_was_killed,
    90,
    |lab| {
        let (_world, [mut a, b], places) = at_rest(lab);
        // That of `b` has `c` to guard, and would do the same there.
        wait_for_guards(2);
        assert!(is_resting(&endpoint(&a, &b.public_key)));
        a.kill();
        // What somebody has set is nobody else's to change.
        let theirs = "198.51.100.78:8";
        let set = ["set", INTERFACE, "peer", &places.c_key, "endpoint", theirs];
        assert!(a.host.output("wg", &set).unwrap().status.success());
        wait_until("the guard acts", within(GUARD_WAITS), || {
            endpoint(&a, &b.public_key) == places.b
        });
        assert_eq!(endpoint(&a, &places.c_key), theirs);
        assert!(a.reaches(b.address), "without an agent");
        // An agent that comes late takes over.
        a.start();
        a.wait_connected("b");
        wait_until("what nobody uses rests again", soon(), || {
            is_resting(&endpoint(&a, &places.c_key))
        });
        assert!(a.reaches(b.address));
    }
);

lab_test!(
    a_guard_leaves_everything_to_an_agent_that_runs_again_and_ends,
    90,
    |lab| {
        let (_world, [mut a, mut b], _) = at_rest(lab);
        wait_for_guards(2);
        b.stop();
        wait_for_guards(1);
        let [old] = guards()[..] else { unreachable!() };
        a.kill();
        a.start();
        wait_until("the old guard ends", within(GUARD_WAITS), || {
            !guards().contains(&old)
        });
        assert!(is_resting(&endpoint(&a, &b.public_key)));
        // With the interface there is nothing left to guard, and nothing is left of it.
        wait_for_guards(1);
        a.kill();
        let down = a.natpunch(&["down"]);
        assert!(down.status.success(), "{down:?}");
        wait_until("no guard is left", within(GUARD_WAITS), || {
            guards().is_empty()
        });
        let left = a.host.output("ls", &["/run/natpunch"]).unwrap().stdout;
        let left = String::from_utf8(left).unwrap();
        assert!(!left.contains("guard"), "{left}");
    }
);

lab_test!(
    an_agent_that_stops_leaves_its_peers_at_rest_where_they_were,
    60,
    |lab| {
        let (_world, [mut a, b], places) = at_rest(lab);
        wait_for_guards(2);
        a.stop();
        assert_eq!(guards().len(), 1, "only that of b");
        assert_eq!(endpoint(&a, &b.public_key), places.b);
        assert_eq!(endpoint(&a, &places.c_key), places.c);
        assert!(a.reaches(b.address), "without an agent");
    }
);

/// How often a node's log says this.
fn said(node: &Node, text: &str) -> usize {
    let lines = node.logged();
    lines.iter().filter(|line| line.contains(text)).count()
}

lab_test!(
    #[ignore = "takes eight minutes: WireGuard's keys live for three after the last handshake"]
    both_sides_rest_after_traffic_and_nothing_wakes_them_until_there_is_more,
    900,
    |lab| {
        const WATCHED: Duration = Duration::from_secs(120);
        let mut world = World::new(lab, Discovery::Rendezvous);
        let (mut a, _router) = world.node_behind(Nat::PortPreserving, "a");
        let host = world.lab.public_host("b").unwrap();
        let mut b = world.node(host);
        for member in &mut world.mesh.members {
            member.more.push_str(ON_DEMAND);
        }
        world.write_mesh();
        a.start();
        b.start();
        let is_up =
            |status: &serde_json::Value| (status["discovery"][0]["ok"] == true).then_some(());
        for node in [&a, &b] {
            node.wait("registered", soon(), is_up);
        }
        first_ping(&a, &b);
        a.wait_path(&b, "direct", soon());
        let ping = a.ping(b.address, Duration::from_millis(100));
        assert!(ping.wait_for(50, soon()));
        assert_eq!(ping.stop().lost(), 0);
        let talked = Instant::now();
        for (node, peer) in [(&a, "b"), (&b, "a")] {
            node.wait("rest", talked + Duration::from_secs(340), |status| {
                (peer_in(status, peer)?["state"] == "resting").then_some(())
            });
        }
        println!(
            "measured: both rest {:?} after the last packet",
            talked.elapsed()
        );
        let nodes = [(&a, &b), (&b, &a)];
        let woken = nodes.map(|(node, _)| said(node, "woken"));
        let before = nodes.map(|(node, peer)| node.wg_peer(peer));
        std::thread::sleep(WATCHED);
        for ((node, peer), before) in nodes.into_iter().zip(&before) {
            assert_eq!(node.wg_peer(peer), *before, "{}", node.name());
            assert!(is_resting(&before.endpoint) && before.keepalive == "off");
        }
        assert_eq!(nodes.map(|(node, _)| said(node, "woken")), woken);
        wait_for_guards(2);
        a.kill();
        wait_until("the guard acts", within(GUARD_WAITS), || {
            !is_resting(&endpoint(&a, &b.public_key))
        });
        assert!(a.reaches(b.address), "without an agent");
    }
);
