//! Nodes that remember what worked in their network: restarts of both sides without discovery.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use natpunch_lab::{Nat, lab_test};

use crate::measure::median;
use crate::pins::{Hard, wait_pinned};
use crate::world::{Discovery, INTERFACE, Node, World, peer_in, soon};

fn memory(node: &Node) -> PathBuf {
    let directory = node.host.directory().unwrap();
    directory.join(format!("state/{INTERFACE}.memory"))
}

/// Ends both nodes, with their devices: nothing but their disks knows the other one any more.
fn take_down(nodes: &mut [Node; 2]) {
    for node in nodes {
        node.stop();
        node.natpunch(&["down"]);
    }
}

/// Starts both; the time to the first answered ping.
fn first_ping(nodes: &mut [Node; 2]) -> Duration {
    let [a, b] = nodes;
    let start = Instant::now();
    a.start();
    b.start();
    a.wait_log("connected at", soon()).unwrap();
    let ping = a.ping(b.address, Duration::from_millis(2));
    ping.first(soon()).unwrap().0.duration_since(start)
}

lab_test!(
    a_pair_whose_discovery_is_dead_after_a_restart_connects_again_from_memory,
    120,
    |lab| {
        let mut world = World::new(lab, Discovery::Rendezvous);
        let (mut nodes, _routers) = world.pair([Nat::PortPreserving; 2]);
        nodes[0].wait_path(&nodes[1], "direct", soon());
        nodes[1].wait_path(&nodes[0], "direct", soon());
        take_down(&mut nodes);
        for node in &nodes {
            let mode = fs::metadata(memory(node)).unwrap().permissions();
            assert_eq!(mode.mode() & 0o7777, 0o600);
        }
        world.server.kill();
        let took = first_ping(&mut nodes);
        println!("pings after {took:?}, from memory alone");
        let is_remembered = |status: &serde_json::Value| {
            let candidates = peer_in(status, "b")?["candidates"].as_array()?.clone();
            let has_origin = |candidate: &serde_json::Value| {
                let mut origins = candidate["origins"].as_array().into_iter().flatten();
                candidate["proven"] == true && origins.any(|origin| origin == "remembered")
            };
            candidates.iter().any(has_origin).then_some(())
        };
        nodes[0].wait("the origin of the path", soon(), is_remembered);
        let why = nodes[0].natpunch(&["why", "b", "--verbose"]);
        let why = String::from_utf8(why.stdout).unwrap();
        assert!(why.contains("remembered"), "{why}");
    }
);

/// What may be wrong with a memory, and what is said of it.
type Damage = (fn(&Path), &'static str);

const DAMAGES: [Damage; 4] = [
    (|file| fs::write(file, "{").unwrap(), "is damaged"),
    (|file| fs::write(file, "").unwrap(), "is empty"),
    (
        |file| fs::set_permissions(file, Permissions::from_mode(0o644)).unwrap(),
        "can be read by others than its owner",
    ),
    (
        |file| chown(file, Some(1_000), Some(1_000)).unwrap(),
        "belongs to another user",
    ),
];

lab_test!(
    a_pinned_path_is_used_again_after_a_restart_of_both_sides_without_any_server,
    300,
    |lab| {
        let mut hard = Hard::start(lab, [Nat::Symmetric, Nat::PortPreserving]);
        hard.wait_direct();
        let [a, b] = &hard.nodes;
        let port = wait_pinned(a, b);
        take_down(&mut hard.nodes);
        hard.world.server.kill();
        let took = first_ping(&mut hard.nodes);
        println!("pings after {took:?}, from memory alone, by a pin");
        let [a, b] = &hard.nodes;
        assert_eq!(wait_pinned(a, b), port);
        a.wait_path(b, "direct", soon());
    }
);

lab_test!(
    a_memory_that_cannot_be_used_is_a_warning_and_a_usual_start,
    120,
    |lab| {
        let mut world = World::new(lab, Discovery::Rendezvous);
        let (mut nodes, _routers) = world.pair([Nat::PortPreserving; 2]);
        nodes[0].wait_path(&nodes[1], "direct", soon());
        for (damage, words) in DAMAGES {
            take_down(&mut nodes);
            damage(&memory(&nodes[0]));
            first_ping(&mut nodes);
            let log = nodes[0].logged();
            let warning = log
                .iter()
                .find(|line| line.contains("what worked before can't be used"));
            assert!(warning.is_some_and(|line| line.contains(words)), "{log:#?}");
            nodes[0].wait_path(&nodes[1], "direct", soon());
        }
        // It is written anew.
        take_down(&mut nodes);
        let text = fs::read_to_string(memory(&nodes[0])).unwrap();
        assert!(text.contains(&nodes[1].public_key), "{text}");
    }
);

lab_test!(
    #[ignore = "a measurement: make measure"]
    measure_a_restart_cold_and_warm,
    300,
    |lab| {
        const RUNS: usize = 9;
        let mut world = World::new(lab, Discovery::Rendezvous);
        let (mut nodes, _routers) = world.pair([Nat::PortPreserving; 2]);
        nodes[0].wait_path(&nodes[1], "direct", soon());
        let direct = |nodes: &mut [Node; 2]| {
            let start = Instant::now();
            let ping = first_ping(nodes);
            nodes[0].wait_path(&nodes[1], "direct", soon());
            nodes[1].wait_path(&nodes[0], "direct", soon());
            let direct = start.elapsed();
            take_down(nodes);
            (ping, direct)
        };
        take_down(&mut nodes);
        let mut measured: Vec<(&str, Vec<(Duration, Duration)>)> = Vec::new();
        let warm: Vec<_> = (0..RUNS).map(|_| direct(&mut nodes)).collect();
        measured.push(("warm, with the server", warm));
        let cold = (0..RUNS).map(|_| {
            nodes
                .iter()
                .for_each(|node| fs::remove_file(memory(node)).unwrap());
            direct(&mut nodes)
        });
        measured.push(("cold, with the server", cold.collect()));
        world.server.kill();
        let alone: Vec<_> = (0..RUNS).map(|_| direct(&mut nodes)).collect();
        measured.push(("warm, without any server", alone));
        for (what, times) in measured {
            let (pings, directs): (Vec<_>, Vec<_>) = times.into_iter().unzip();
            let worst = directs.iter().max().copied().unwrap_or_default();
            println!(
                "measured: both nodes restarted with their devices, {what}: first ping {:.3} s, \
                 direct {:.3} s (medians of {RUNS}), at worst {:.3} s",
                median(&pings).unwrap_or_default().as_secs_f64(),
                median(&directs).unwrap_or_default().as_secs_f64(),
                worst.as_secs_f64()
            );
        }
    }
);
