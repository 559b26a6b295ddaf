//! Paths to which no fixed port leads: a NAT that maps by destination ("symmetric") before one that
//! filters by port. Both sides guess within the punch budget, and WireGuard's packets leave from the
//! source port that was found, by a pin.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use natpunch_lab::{Lab, Nat, Router, lab_test};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::mesh::replace;
use crate::pairs::{PATIENCE, assert_harmless};
use crate::relay::iperf3;
use crate::world::{Discovery, INTERFACE, Node, World, soon, within};

const INTERVAL: Duration = Duration::from_millis(20);

/// A node behind a hard NAT, and one behind a router that keeps ports and filters by them.
pub(crate) struct Hard {
    pub(crate) world: World,
    pub(crate) nodes: [Node; 2],
    routers: [Router; 2],
    started: Instant,
}

impl Hard {
    pub(crate) fn start(lab: Lab, nats: [Nat; 2]) -> Self {
        Self::start_after(lab, nats, |_, _| {})
    }

    /// The same, when something was done to the first node, whose mesh file is written.
    fn start_after(lab: Lab, nats: [Nat; 2], prepare: impl FnOnce(&mut Node, &World)) -> Self {
        let mut world = World::new(lab, Discovery::Rendezvous);
        let (mut a, nat_a) = world.node_behind(nats[0], "a");
        let (mut b, nat_b) = world.node_behind(nats[1], "b");
        world.write_mesh();
        let server = world.server.address();
        watch(&nat_a, server, &nat_b);
        watch(&nat_b, server, &nat_a);
        prepare(&mut a, &world);
        let started = Instant::now();
        a.start();
        b.start();
        Self {
            world,
            nodes: [a, b],
            routers: [nat_a, nat_b],
            started,
        }
    }

    /// Waits for a direct path in both directions.
    pub(crate) fn wait_direct(&self) {
        let (deadline, [a, b]) = (within(PATIENCE), &self.nodes);
        a.wait_path(b, "direct", deadline);
        b.wait_path(a, "direct", deadline);
        println!(
            "measured: direct after {:.1} s",
            self.started.elapsed().as_secs_f64()
        );
        assert!(a.reaches(b.address));
        assert!(b.reaches(a.address));
    }
}

/// Counts what a router's hosts send to anybody but the server and the other router.
fn watch(router: &Router, server: Ipv4Addr, other: &Router) {
    router.count_except(&[server, other.address()]).unwrap();
}

/// The source port of the pin that leads to a peer.
fn pinned(node: &Node, peer: &Node) -> Option<u64> {
    let status = node.status()?;
    status["pins"]["peers"][peer.name()]["source_port"].as_u64()
}

pub(crate) fn wait_pinned(node: &Node, peer: &Node) -> u64 {
    node.wait("a pin", soon(), |status| {
        status["pins"]["peers"][peer.name()]["source_port"].as_u64()
    })
}

fn nft(node: &Node, words: &str) -> String {
    let words: Vec<&str> = words.split(' ').collect();
    let output = node.host.output("nft", &words).unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

lab_test!(
    two_neighbouring_routers_that_accept_on_their_wan_become_direct,
    300,
    |lab| {
        // Openers that should end behind the own router reach the neighbour here. Where it takes one
        // for its own, it moves the mapping that the pair would need, and another source port, to
        // which that has not happened, takes its place.
        lab.join_wires().unwrap();
        let mut world = World::new(lab, Discovery::Rendezvous);
        let routers = ["nat-a", "nat-b"].map(|name| {
            world
                .lab
                .accepting_router(name, Nat::PortPreserving)
                .unwrap()
        });
        let mut a = world.node_at(&routers[0], "a");
        let mut b = world.node_at(&routers[1], "b");
        world.write_mesh();
        let started = Instant::now();
        a.start();
        b.start();
        a.wait_path(&b, "direct", within(30));
        b.wait_path(&a, "direct", within(30));
        println!(
            "measured: neighbours that accept on their WAN: direct after {:.1} s, by port {:?}",
            started.elapsed().as_secs_f64(),
            pinned(&a, &b).or(pinned(&b, &a))
        );
        assert!(a.reaches(b.address) && b.reaches(a.address));
    }
);

lab_test!(
    a_random_symmetric_and_a_port_restricted_nat_become_direct_over_a_pin,
    300,
    |lab| {
        let hard = Hard::start(lab, [Nat::Symmetric, Nat::PortPreserving]);
        hard.wait_direct();
        let [a, b] = &hard.nodes;
        let port = wait_pinned(a, b);
        assert!((61_000..=65_535).contains(&port), "{port}");
        assert_eq!(pinned(b, a), None, "the easy side needs none");
        let text = String::from_utf8(a.natpunch(&["status"]).stdout).unwrap();
        assert!(
            text.contains(&format!("direct (from port {port})")),
            "{text}"
        );
        assert_harmless(&hard.routers);
        // What made it goes away with it.
        let mut nodes = hard.nodes;
        nodes[0].stop();
        assert!(nft(&nodes[0], "list tables").contains("natpunch_wg-lab"));
        let down = nodes[0].natpunch(&["down"]);
        assert!(down.status.success(), "{down:?}");
        assert_eq!(nft(&nodes[0], "list tables"), "");
    }
);

lab_test!(
    two_random_symmetric_nats_stay_on_the_relay_and_their_routers_are_spared,
    300,
    |lab| {
        let hard = Hard::start(lab, [Nat::Symmetric, Nat::Symmetric]);
        let [a, b] = &hard.nodes;
        a.wait_path(b, "relay", soon());
        b.wait_path(a, "relay", soon());
        // As long as a search that is worth its while would take.
        let ping = a.ping(b.address, Duration::from_millis(200));
        assert!(ping.wait_for(75, within(40)));
        let status = a.wait_path(b, "relay", soon());
        assert!(status["relay_reason"].is_string(), "{status:#}");
        assert_harmless(&hard.routers);
    }
);

lab_test!(
    an_agent_killed_under_ping_over_a_pin_loses_no_packet,
    300,
    |lab| {
        let mut hard = Hard::start(lab, [Nat::Symmetric, Nat::PortPreserving]);
        hard.wait_direct();
        let [a, b] = &mut hard.nodes;
        let port = wait_pinned(a, b);
        let ping = a.ping(b.address, INTERVAL);
        assert!(ping.wait_for(10, soon()));
        let before = a.wg_peer(b);
        a.kill();
        assert!(ping.wait_for(100, soon()), "the pin went with its agent");
        a.start();
        a.wait_path(b, "direct", soon());
        assert_eq!(wait_pinned(a, b), port, "it is taken over");
        assert!(ping.wait_for(100, soon()));
        let after = a.wg_peer(b);
        assert_eq!(ping.stop().lost(), 0);
        assert_eq!(after.endpoint, before.endpoint);
        assert_eq!(after.latest_handshake, before.latest_handshake);
    }
);

/// As on a host without nftables: the program is no file any more, for this host alone.
fn hide_nft(node: &Node) {
    let found = node.host.output("which", &["nft"]).unwrap();
    let path = String::from_utf8(found.stdout).unwrap();
    let hidden = node
        .host
        .output("mount", &["--bind", "/dev/null", path.trim()])
        .unwrap();
    assert!(hidden.status.success(), "{hidden:?}");
}

/// The ends of UDP sockets of a host that pins have to do with: on the pinned port, and at the
/// address of a forwarder.
fn pin_sockets(node: &Node, port: u64) -> usize {
    let all = node.host.output("ss", &["-Huan"]).unwrap();
    let all = String::from_utf8(all.stdout).unwrap();
    let of_pin = |line: &&str| line.contains(&format!(":{port} ")) || line.contains("127.78.82.1");
    all.lines().filter(of_pin).count()
}

/// What nftables does elsewhere is done without it, in this way: the path becomes direct, nothing
/// is lost when the agent is killed, and nothing is left in the end.
fn becomes_direct_without_nftables(mut hard: Hard, method: &str) {
    hard.wait_direct();
    let [a, b] = &mut hard.nodes;
    let port = wait_pinned(a, b);
    let status = a.status().unwrap();
    assert_eq!(status["pins"]["method"], method, "{:#}", status["pins"]);
    let reason = status["pins"]["reason"].as_str().unwrap();
    assert!(reason.contains("is not installed"), "{reason}");
    let text = String::from_utf8(a.natpunch(&["status"]).stdout).unwrap();
    assert!(text.contains("sends from other source ports"), "{text}");
    let ping = a.ping(b.address, INTERVAL);
    assert!(ping.wait_for(10, soon()));
    let before = a.wg_peer(b);
    a.kill();
    assert!(ping.wait_for(50, soon()), "the pin went with its agent");
    a.start();
    a.wait_path(b, "direct", soon());
    assert_eq!(wait_pinned(a, b), port, "it is taken over");
    assert!(ping.wait_for(50, soon()));
    let after = a.wg_peer(b);
    assert_eq!(ping.stop().lost(), 0);
    assert_eq!(after.endpoint, before.endpoint);
    assert_eq!(after.latest_handshake, before.latest_handshake);
    if method == "forwarder" {
        let ping = a.ping(b.address, INTERVAL);
        assert!(ping.wait_for(10, soon()));
        kill(forwarder(), Signal::SIGKILL).unwrap();
        a.wait("the heal", soon(), |status| {
            (status["pins"]["healed"].as_u64()? == 1).then_some(())
        });
        assert!(ping.wait_for(10, soon()));
        println!(
            "measured: a forwarder that was killed cost at most {} ms",
            ping.stop().longest_gap().as_millis()
        );
        assert_eq!(wait_pinned(a, b), port);
    }
    assert!(pin_sockets(a, port) > 0);
    a.stop();
    let down = a.natpunch(&["down"]);
    assert!(down.status.success(), "{down:?}");
    assert_eq!(pin_sockets(a, port), 0);
    let left = a.host.output("ls", &["/run/natpunch"]).unwrap().stdout;
    assert_eq!(String::from_utf8(left).unwrap(), "");
}

/// The one forwarder of pins of this lab.
fn forwarder() -> Pid {
    let processes = std::fs::read_dir("/proc").unwrap();
    let is_one = |pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.windows(14).any(|words| words == b"\0pin-forwarder")
    };
    let mut pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    Pid::from_raw(pids.find(is_one).expect("a forwarder runs"))
}

lab_test!(
    without_nftables_the_embedded_device_itself_sends_from_the_port_that_was_found,
    300,
    |lab| {
        let hard = Hard::start_after(lab, [Nat::Symmetric, Nat::PortPreserving], |a, _| {
            hide_nft(a);
        });
        becomes_direct_without_nftables(hard, "device");
    }
);

/// wireguard-go stands for the kernel's WireGuard: neither knows of pins.
fn use_wireguard_go(a: &mut Node, world: &World) {
    let mut wireguard = std::process::Command::new("wireguard-go");
    wireguard.arg(INTERFACE);
    let mut started = a.host.spawn(wireguard).unwrap();
    assert!(started.child().wait().unwrap().success());
    let text = world.mesh.text();
    let text = text.replacen("[interface]\n", "[interface]\nbackend = \"external\"\n", 1);
    a.file = a.host.directory().unwrap().join("mesh.toml");
    replace(&a.file, &text);
}

lab_test!(
    without_nftables_a_forwarder_sends_for_any_other_wireguard,
    300,
    |lab| {
        let hard = Hard::start_after(lab, [Nat::Symmetric, Nat::PortPreserving], |a, world| {
            hide_nft(a);
            use_wireguard_go(a, world);
        });
        becomes_direct_without_nftables(hard, "forwarder");
    }
);

/// Prints what one TCP connection carries by a path of this kind, each way, from a node with
/// wireguard-go to one with the embedded device.
fn measure_path(lab: Lab, kind: &str, nat: Nat, prepare: impl FnOnce(&mut Node)) {
    let hard = Hard::start_after(lab, [nat, Nat::PortPreserving], |a, world| {
        prepare(a);
        use_wireguard_go(a, world);
    });
    hard.wait_direct();
    let [a, b] = &hard.nodes;
    let method = a.status().unwrap()["pins"]["method"].clone();
    assert_eq!(pinned(a, b).is_some(), kind != "none");
    assert!(kind == "none" || method == kind, "{method}");
    for (way, words) in [("sent", &[][..]), ("received", &["--reverse"][..])] {
        let report = iperf3(a, b, words);
        let rate = report["end"]["sum_received"]["bits_per_second"].as_f64();
        println!(
            "measured: pin: {kind}; {way} {:.0} Mbit/s",
            rate.unwrap() / 1e6
        );
    }
}

lab_test!(
    #[ignore = "a minute: make measure"]
    measure_pins_none,
    300,
    |lab| {
        measure_path(lab, "none", Nat::PortPreserving, |_| ());
    }
);

lab_test!(
    #[ignore = "a minute: make measure"]
    measure_pins_by_nftables,
    300,
    |lab| {
        measure_path(lab, "nftables", Nat::Symmetric, |_| ());
    }
);

lab_test!(
    #[ignore = "a minute: make measure"]
    measure_pins_by_forwarder,
    300,
    |lab| {
        measure_path(lab, "forwarder", Nat::Symmetric, |a| hide_nft(a));
    }
);

lab_test!(
    a_flushed_rule_set_is_healed_under_ping_and_counted,
    300,
    |lab| {
        let hard = Hard::start(lab, [Nat::Symmetric, Nat::PortPreserving]);
        hard.wait_direct();
        let [a, b] = &hard.nodes;
        let port = wait_pinned(a, b);
        let ping = a.ping(b.address, INTERVAL);
        assert!(ping.wait_for(10, soon()));
        let before = a.wg_peer(b);
        for times in 1..=5 {
            nft(a, "flush ruleset");
            a.wait("the heal", soon(), |status| {
                (status["pins"]["healed"].as_u64()? >= times).then_some(())
            });
            assert!(ping.wait_for(10, soon()));
        }
        let pings = ping.stop();
        println!(
            "measured: five flushes cost {} pings of {}, gap at most {} ms",
            pings.lost(),
            pings.answers.len(),
            pings.longest_gap().as_millis()
        );
        assert!(pings.longest_gap() < Duration::from_secs(1));
        assert_eq!(pinned(a, b), Some(port));
        let after = a.wg_peer(b);
        assert_eq!(after.latest_handshake, before.latest_handshake);
        assert_eq!(after.endpoint, before.endpoint);
    }
);

/// What a service such as nftables.service loads when it is reloaded: a firewall of the host that
/// lets in what was asked for and nothing else.
const FIREWALL: &str = "flush ruleset
table inet filter {
    chain input { type filter hook input priority filter; policy drop;
        iifname { lo, wg-lab } accept
        ct state invalid drop
        ct state established,related accept
    }
}
";

lab_test!(
    a_host_firewall_that_drops_strangers_and_is_reloaded_lets_a_pin_through,
    300,
    |lab| {
        let hard = Hard::start(lab, [Nat::Symmetric, Nat::PortPreserving]);
        let [a, b] = &hard.nodes;
        let file = a.host.directory().unwrap().join("nftables.conf");
        std::fs::write(&file, FIREWALL).unwrap();
        let reload = format!("-f {}", file.display());
        nft(a, &reload);
        hard.wait_direct();
        let port = wait_pinned(a, b);
        let ping = a.ping(b.address, INTERVAL);
        assert!(ping.wait_for(10, soon()));
        nft(a, &reload);
        a.wait("the heal", soon(), |status| {
            (status["pins"]["healed"].as_u64()? >= 1).then_some(())
        });
        assert!(ping.wait_for(50, soon()));
        assert_eq!(pinned(a, b), Some(port));
        let tables = nft(a, "list tables");
        assert!(tables.contains("inet filter"), "{tables}");
        println!("measured: a reload cost {} pings", ping.stop().lost());
    }
);

lab_test!(
    a_mapping_that_expires_is_replaced_by_the_relay_and_then_by_another,
    400,
    |lab| {
        let hard = Hard::start(lab, [Nat::Symmetric, Nat::PortPreserving]);
        hard.wait_direct();
        let [a, b] = &hard.nodes;
        wait_pinned(a, b);
        let ping = a.ping(b.address, INTERVAL);
        assert!(ping.wait_for(10, soon()));
        let lost = Instant::now();
        hard.world.lab.forget(&hard.routers[0]).unwrap();
        a.wait_path(b, "relay", within(30));
        assert!(ping.wait_for(10, soon()));
        println!(
            "measured: back by the relay {:.1} s after the mapping expired",
            lost.elapsed().as_secs_f64()
        );
        hard.wait_direct();
        println!(
            "measured: direct again {:.1} s after the mapping expired",
            lost.elapsed().as_secs_f64()
        );
        for router in &hard.routers {
            assert_eq!(router.counted().unwrap(), 0, "packets to third parties");
        }
    }
);

/// Breaks a path over a pin under ping: the relay takes over, and the search begins anew.
fn breaks_under_ping(mut hard: Hard, what: &str, fault: impl FnOnce(&mut Hard)) {
    hard.wait_direct();
    let address = hard.nodes[1].address;
    wait_pinned(&hard.nodes[0], &hard.nodes[1]);
    let ping = hard.nodes[0].ping(address, INTERVAL);
    assert!(ping.wait_for(10, soon()));
    fault(&mut hard);
    let broken = Instant::now();
    // What was under way has arrived by now.
    std::thread::sleep(Duration::from_millis(100));
    assert!(ping.wait_for(1, within(15)), "{what}: no ping is answered");
    let back = broken.elapsed();
    assert!(ping.wait_for(50, soon()));
    println!(
        "measured: {what}: pings again after {:.1} s, {} pings of {} ms lost",
        back.as_secs_f64(),
        ping.stop().lost(),
        INTERVAL.as_millis(),
    );
}

lab_test!(
    a_pair_over_a_pin_outlives_the_reboot_of_the_hard_router,
    120,
    |lab| {
        let hard = Hard::start(lab, [Nat::Sequential, Nat::PortPreserving]);
        breaks_under_ping(hard, "the hard NAT reboots", |hard| {
            hard.world.lab.reboot(&mut hard.routers[0]).unwrap();
        });
    }
);

lab_test!(
    a_pair_over_a_pin_outlives_the_reboot_of_the_easy_router,
    120,
    |lab| {
        let hard = Hard::start(lab, [Nat::Sequential, Nat::PortPreserving]);
        breaks_under_ping(hard, "the easy NAT reboots", |hard| {
            hard.world.lab.reboot(&mut hard.routers[1]).unwrap();
        });
    }
);

lab_test!(
    a_pair_over_a_pin_outlives_a_move_of_both_nodes_at_once,
    120,
    |lab| {
        let mut hard = Hard::start(lab, [Nat::Sequential, Nat::PortPreserving]);
        let lab = &mut hard.world.lab;
        let places = [
            lab.router("cafe", Nat::Sequential).unwrap(),
            lab.router("office", Nat::PortPreserving).unwrap(),
        ];
        breaks_under_ping(hard, "both nodes move at once", |hard| {
            for (node, place) in hard.nodes.iter_mut().zip(&places) {
                hard.world.lab.move_behind(&mut node.host, place).unwrap();
            }
        });
    }
);

lab_test!(
    without_spray_nobody_guesses_and_the_status_says_what_is_used,
    90,
    |lab| {
        let mut world = World::new(lab, Discovery::Rendezvous);
        let (mut a, nat_a) = world.node_behind(Nat::Symmetric, "a");
        let (mut b, nat_b) = world.node_behind(Nat::PortPreserving, "b");
        world.mesh.discovery.push_str("[punch]\nspray = false\n");
        world.write_mesh();
        a.start();
        b.start();
        a.wait_path(&b, "relay", soon());
        let ping = a.ping(b.address, Duration::from_millis(200));
        assert!(ping.wait_for(50, within(30)));
        a.wait_path(&b, "relay", soon());
        let status: Value = a.status().unwrap();
        assert_eq!(status["pins"]["peers"], Value::Null, "{:#}", status["pins"]);
        for router in [&nat_a, &nat_b] {
            assert!(router.connections().unwrap() < 100);
        }
    }
);
