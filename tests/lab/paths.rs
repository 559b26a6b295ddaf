//! Which addresses are paths at all: hosts with many bridges, meshes beside meshes; and what the
//! status says of it.

use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use natpunch_lab::{Host, Lab, Nat, Process, lab_test};
use serde_json::Value;

use crate::plain::plain_wireguard;
use crate::world::{
    Discovery, INTERFACE, NATPUNCH, Node, World, new_file, public_key, soon, wg_peers, within,
};

/// Gives a host so many bridges that carry a private address and have a carrier, as one with
/// containers has.
fn add_bridges(host: &Host, count: usize) {
    let mut lines = String::new();
    for n in 0..count {
        lines += &format!(
            "link add name br{n} type bridge\n\
             link add name in{n} type veth peer name out{n}\n\
             link set in{n} master br{n} up\nlink set out{n} up\nlink set br{n} up\n\
             address add 172.20.{n}.1/24 dev br{n}\n"
        );
    }
    host.ip(lines).unwrap();
}

/// Starts two nodes behind two routers, each host with so many bridges, and gives the time until
/// both have a direct path.
fn time_to_direct(lab: Lab, bridges: usize) {
    let mut world = World::new(lab, Discovery::Rendezvous);
    let (mut a, nat_a) = world.node_behind(Nat::PortPreserving, "a");
    let (mut b, nat_b) = world.node_behind(Nat::PortPreserving, "b");
    for node in [&a, &b] {
        add_bridges(&node.host, bridges);
    }
    world.write_mesh();
    let start = Instant::now();
    a.start();
    b.start();
    for (node, peer, at) in [(&a, &b, nat_b.address()), (&b, &a, nat_a.address())] {
        let status = node.wait_path(peer, "direct", soon());
        let endpoint: std::net::SocketAddr = status["endpoint"].as_str().unwrap().parse().unwrap();
        assert_eq!(endpoint.ip(), IpAddr::V4(at), "{status:#}");
        assert!(node.reaches(peer.address));
    }
    println!(
        "{bridges} bridges on both hosts: direct after {:.2} s",
        start.elapsed().as_secs_f64()
    );
}

lab_test!(hosts_with_six_bridges_become_direct, 60, |lab| {
    time_to_direct(lab, 6);
});

lab_test!(hosts_with_ten_bridges_become_direct, 60, |lab| {
    time_to_direct(lab, 10);
});

lab_test!(hosts_with_thirty_bridges_become_direct, 60, |lab| {
    time_to_direct(lab, 30);
});

/// The agent of one more mesh on a host.
struct Second {
    key_file: std::path::PathBuf,
    public_key: String,
    process: Option<Process>,
}

const SECOND: &str = "wg-second";

impl Second {
    fn new(host: &Host) -> Self {
        let key_file = new_file(host, "second.key", &["keygen"]);
        let mut command = Command::new(NATPUNCH);
        command
            .arg("pubkey")
            .stdin(std::fs::File::open(&key_file).unwrap());
        let public_key = String::from_utf8(command.output().unwrap().stdout).unwrap();
        Self {
            key_file,
            public_key: public_key.trim().to_owned(),
            process: None,
        }
    }

    fn start(&mut self, host: &Host, file: &std::path::Path) {
        let mut command = Command::new(NATPUNCH);
        command
            .args(["--log", "warn", "apply"])
            .arg(file)
            .arg("--private-key-file")
            .arg(&self.key_file)
            .env(
                "NATPUNCH_STATE_DIR",
                host.directory().unwrap().join("second"),
            )
            .stdout(Stdio::null());
        self.process = Some(host.spawn(command).unwrap());
    }
}

/// Bytes received and sent, and the endpoint, of the only peer of each mesh.
fn peers(host: &Host) -> [(u64, String); 2] {
    [INTERFACE, SECOND].map(|interface| {
        let peer = wg_peers(host, interface).remove(0);
        (peer.received + peer.sent, peer.endpoint)
    })
}

/// What the second mesh's status says of its only peer.
fn second_peer(node: &Node) -> Option<Value> {
    let output = node.natpunch(&["status", "-i", SECOND, "--json"]);
    let status: Value = serde_json::from_slice(&output.stdout).ok()?;
    status["peers"].get(0).cloned()
}

lab_test!(
    two_meshes_on_the_same_two_hosts_stay_out_of_each_other,
    180,
    |lab| {
        let mut world = World::new(lab, Discovery::Rendezvous);
        // Two hosts on one wire with public addresses: nothing but the meshes can go wrong.
        let nodes = ["a", "b"].map(|name| {
            let host = world.lab.public_host(name).unwrap();
            world.node(host)
        });
        let [mut a, mut b] = nodes;
        world.write_mesh();
        let mut text = world.mesh.text();
        let mut seconds = [Second::new(&a.host), Second::new(&b.host)];
        for (node, second) in [&a, &b].into_iter().zip(&seconds) {
            text = text.replace(&node.public_key, &second.public_key);
        }
        let text = text
            .replace("name = \"lab\"", "name = \"second\"")
            .replace("10.77.", "10.78.");
        let file = world.lab.directory().join("second.toml");
        std::fs::write(&file, text).unwrap();
        a.start();
        b.start();
        // While there is one agent, its status needs no name.
        a.wait_path(&b, "direct", soon());
        b.wait_path(&a, "direct", soon());
        for (node, second) in [&a, &b].into_iter().zip(&mut seconds) {
            second.start(&node.host, &file);
        }
        let deadline = soon();
        for node in [&a, &b] {
            while second_peer(node).is_none_or(|peer| peer["path"] != "direct") {
                assert!(Instant::now() < deadline, "{:#?}", second_peer(node));
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        // A pair may find once that another of its direct paths is better. Meshes in each other
        // change all the time, and never come to this rest.
        let seen = || [&a, &b].map(|node| peers(&node.host));
        let endpoints = || seen().map(|peers| peers.map(|(_, endpoint)| endpoint));
        let start = seen();
        let (mut last, mut since) = (endpoints(), Instant::now());
        let deadline = within(40);
        while since.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(50));
            assert!(Instant::now() < deadline, "still changing: {last:?}");
            let now = endpoints();
            if now != last {
                (last, since) = (now, Instant::now());
            }
        }
        // Idle: keepalives and handshakes only, and always the same way.
        for _ in 0..100 {
            std::thread::sleep(Duration::from_millis(200));
            for ((now, start), last) in seen().iter().zip(&start).zip(&last) {
                for (((bytes, endpoint), (before, _)), first) in now.iter().zip(start).zip(last) {
                    assert_eq!(endpoint, first, "an idle mesh changes its path");
                    assert!(!endpoint.starts_with("10."), "{endpoint} is in a mesh");
                    assert!(
                        bytes - before < 20_000,
                        "{} bytes while idle",
                        bytes - before
                    );
                }
            }
        }
        assert!(a.reaches(b.address));
    }
);

/// A VPN that somebody set up by hand between these hosts, in which everything goes by the hub. Its
/// processes, if the kernel has no WireGuard.
fn hub_vpn(hub: &Host, leaves: [&Host; 2]) -> Vec<Option<Process>> {
    let of = |host: &Host| {
        let key_file = new_file(host, "vpn.key", &["keygen"]);
        let public = public_key(&key_file);
        (key_file, public)
    };
    let set = |host: &Host, words: &[&str]| {
        let output = host.output("wg", &[&["set", "wg0"], words].concat());
        assert!(output.unwrap().status.success(), "{words:?}");
    };
    let forward = || std::fs::write("/proc/sys/net/ipv4/ip_forward", "1");
    hub.run(forward).unwrap().unwrap();
    let (key_file, hub_key) = of(hub);
    let keys = leaves.map(of);
    let first = (keys[0].1.as_str(), "10.99.0.2/32");
    let mut processes = vec![plain_wireguard(hub, &key_file, "10.99.0.1", first)];
    set(hub, &["peer", &keys[1].1, "allowed-ips", "10.99.0.3/32"]);
    let addresses = ["10.99.0.2", "10.99.0.3"];
    for ((host, (leaf_file, _)), address) in leaves.into_iter().zip(&keys).zip(addresses) {
        let to_all = (hub_key.as_str(), "10.99.0.0/24");
        processes.push(plain_wireguard(host, leaf_file, address, to_all));
        let endpoint = format!("{}:{}", hub.ipv4().unwrap(), crate::plain::PORT);
        let words = ["endpoint", &endpoint, "persistent-keepalive", "5"];
        set(host, &[&["peer", hub_key.as_str()], &words[..]].concat());
    }
    processes
}

lab_test!(
    a_vpn_of_others_through_a_hub_is_no_lan_and_carries_no_path,
    120,
    |lab| {
        let mut world = World::new(lab, Discovery::Rendezvous);
        let hub = world.lab.public_host("hub").unwrap();
        let (mut a, nat_a) = world.node_behind(Nat::PortPreserving, "a");
        let (mut b, nat_b) = world.node_behind(Nat::PortPreserving, "b");
        let _vpn = hub_vpn(&hub, [&a.host, &b.host]);
        let deadline = soon();
        while !a.reaches("10.99.0.3".parse().unwrap()) {
            assert!(Instant::now() < deadline, "the VPN does not work");
        }

        world.write_mesh();
        a.start();
        b.start();
        for (node, peer, at) in [(&a, &b, nat_b.address()), (&b, &a, nat_a.address())] {
            let status = node.wait_path(peer, "direct", soon());
            let endpoint = status["endpoint"].as_str().unwrap().to_owned();
            assert!(endpoint.starts_with(&format!("{at}:")), "{status:#}");
        }
        // And there it stays, whatever is measured of the way through the hub.
        let first = [a.wg_peer(&b).endpoint, b.wg_peer(&a).endpoint];
        for _ in 0..50 {
            std::thread::sleep(Duration::from_millis(200));
            assert_eq!([a.wg_peer(&b).endpoint, b.wg_peer(&a).endpoint], first);
        }
        assert!(a.reaches(b.address));
    }
);

lab_test!(
    behind_a_symmetric_nat_the_status_claims_no_address_and_gives_the_relays_reason,
    60,
    |lab| {
        let mut world = World::new(lab, Discovery::Rendezvous);
        let ([a, b], _routers) = world.pair([Nat::Symmetric; 2]);
        a.wait_path(&b, "relay", soon());
        a.wait("how the NAT maps", soon(), |status| {
            (status["mapping"] == "endpoint-dependent").then_some(())
        });
        let text = String::from_utf8(a.natpunch(&["status"]).stdout).unwrap();
        assert!(!text.contains("reachable as"), "{text}");
        assert!(text.contains("endpoint-dependent mapping"), "{text}");
        assert!(text.contains("b: relayed: "), "{text}");
    }
);
