//! Very many versions: thousands that are broken, of which none reaches the kernel, and thousands
//! that are good, of which the last one counts.

use std::path::Path;
use std::time::{Duration, Instant};

use natpunch::config;
use natpunch::control::{Client, ControlError, Request};
use natpunch_lab::{Lab, lab_test};
use natpunch_types::{PeerKey, SecretKey};
use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng as _;

use crate::mesh::{Mesh, replace};
use crate::mutate::mutate;
use crate::safety::pair;
use crate::world::{Discovery, INTERFACE, Node, World, soon, within};

/// What the kernel has, and what the agent has written.
fn everything(node: &Node, log: &Path) -> Vec<Vec<u8>> {
    let of = |program: &str, words: &[&str]| node.host.output(program, words).unwrap().stdout;
    vec![
        of("wg", &["show", INTERFACE, "dump"]),
        of("ip", &["-o", "address"]),
        of("ip", &["-o", "link", "show", INTERFACE]),
        of("ip", &["route", "show", "table", "all"]),
        std::fs::read(
            node.host
                .directory()
                .unwrap()
                .join(format!("state/{INTERFACE}.journal")),
        )
        .unwrap(),
        // Each change of a device, of a route, of an address and of the journal passes places that
        // are noted here.
        std::fs::read(log).unwrap(),
    ]
}

/// Gives a running agent broken versions of its mesh, one after the other.
fn broken(lab: Lab, versions: u32) {
    let mut world = World::new(lab, Discovery::NatpunchGo);
    world.server.kill();
    let host = world.lab.public_host("a").unwrap();
    let mut a = world.node(host);
    for (name, more) in [
        ("nas", "critical = true\n"),
        ("phone", "managed = false\n"),
        ("office", "tags = [\"x\"]\n"),
    ] {
        let (_, key) = crate::world::new_key(&world.lab.public_host(name).unwrap());
        world.mesh.add(
            name,
            &key,
            &format!(
                "{more}routes = [\"172.20.{}.0/24\"]\n",
                world.mesh.members.len()
            ),
        );
    }
    a.own_file(&mut world.mesh, "[apply]\nconfirm = \"90s\"\nheal = true\n");
    let log = a.host.directory().unwrap().join("places");
    a.environment = vec![("NATPUNCH_FAIL_LOG", log.to_str().unwrap().to_owned())];
    a.start();
    a.wait_up();
    let before = everything(&a, &log);
    assert!(
        !before.iter().any(Vec::is_empty),
        "what is compared is there"
    );
    let (good, file) = (world.mesh.text(), a.file.clone());
    let start = Instant::now();
    a.host
        .run(move || {
            let mut agent = Client::connect(Path::new("/run/natpunch"), INTERFACE).unwrap();
            let trial = file.with_file_name("trial.toml");
            let (mut sent, mut seed) = (0, 0);
            while sent < versions {
                seed += 1;
                let text = mutate(&good, &mut ChaCha8Rng::seed_from_u64(seed));
                std::fs::write(&trial, &text).unwrap();
                // What is valid is no mistake that could be seen.
                if config::load(&trial).is_ok() {
                    continue;
                }
                std::fs::rename(&trial, &file).unwrap();
                match agent.ask(Request::Reload) {
                    Err(ControlError::Refused(reason)) => {
                        assert!(reason.contains("mesh.toml"), "seed {seed}: {reason}")
                    }
                    other => panic!("seed {seed}: {other:?}"),
                }
                sent += 1;
            }
        })
        .unwrap();
    println!(
        "measured: {versions} broken versions refused by a running agent in {:?}",
        start.elapsed()
    );
    assert_eq!(a.status().unwrap()["reloads"], 0);
    assert_eq!(everything(&a, &log), before, "something was written");
    world.mesh.write(&a.file);
    a.wait("the end of it", soon(), |status| {
        status["reload_error"].is_null().then_some(())
    });
}

lab_test!(
    of_hundreds_of_broken_versions_none_reaches_the_kernel,
    90,
    |lab| {
        broken(lab, 300);
    }
);

lab_test!(
    #[ignore = "takes a minute: `make mutations`"]
    of_ten_thousand_broken_versions_none_reaches_the_kernel,
    1800,
    |lab| {
        broken(lab, 10_000);
    }
);

/// Resident memory in KB.
fn resident(node: &Node) -> u64 {
    let pid = node.status().unwrap()["pid"].as_u64().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn version(mesh: &mut Mesh, number: u32) -> String {
    mesh.member("p1").more = format!("routes = [\"172.20.{}.0/24\"]\n", number % 250);
    mesh.text()
}

/// Writes as many versions in so much time, every seventh of them broken, under traffic of a peer
/// that they are not about.
fn storm(lab: Lab, peers: u32, versions: u32, time: Duration) {
    let mut world = World::new(lab, Discovery::NatpunchGo);
    let strangers = (1..=peers).map(|number| {
        let mut bytes = [9; 32];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        let key: PeerKey = SecretKey::from_bytes(bytes).public_key();
        (number, key)
    });
    world.mesh.networks = "10.77.0.0/16".into();
    for (number, key) in strangers {
        world.mesh.add(&format!("p{number}"), &key.to_string(), "");
    }
    let (a, b, _routers) = pair(&mut world, "");
    let ping = b.ping(a.address, Duration::from_millis(20));
    assert!(ping.wait_for(10, soon()));
    let (before, reloads) = (a.wg_peer(&b), |node: &Node| {
        node.status().unwrap()["reloads"].as_u64().unwrap()
    });
    let mut memory = Vec::new();
    let start = Instant::now();
    for number in 1..=versions {
        let mut text = version(&mut world.mesh, number);
        if number % 7 == 0 && number != versions {
            text = text.replacen("public_key", "pubic_key", 1);
        }
        replace(&a.file, &text);
        if number % (versions / 5) == 0 {
            memory.push(resident(&a));
        }
        let next = start + time * number / versions;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    let written = Instant::now();
    let last = format!("172.20.{}.0/24", versions % 250);
    let deadline = within(60);
    while !a.wg().iter().any(|peer| peer.allowed_ips.contains(&last)) {
        assert!(
            Instant::now() < deadline,
            "the last version was not applied"
        );
    }
    let lag = written.elapsed();
    a.wait("the end of it", soon(), |status| {
        status["reload_error"].is_null().then_some(())
    });
    let after = a.wg_peer(&b);
    println!(
        "measured: {versions} versions of {} peers written in {:?}: {} reloads, the last one {lag:?} after its write; \
         memory of the agent {memory:?} KB",
        peers + 2,
        written - start,
        reloads(&a),
    );
    assert_eq!(ping.stop().lost(), 0);
    assert_eq!(
        (after.latest_handshake, after.endpoint),
        (before.latest_handshake, before.endpoint)
    );
    assert!(
        after.received > before.received && after.sent > before.sent,
        "the counters went on"
    );
    let (first, end) = (memory[0], memory[memory.len() - 1]);
    assert!(
        end < first + first / 4 + 8192,
        "the agent grows: {memory:?} KB"
    );
    // Nothing of the versions between is left.
    let routes = String::from_utf8(a.host.output("ip", &["route"]).unwrap().stdout).unwrap();
    let left: Vec<&str> = routes
        .lines()
        .filter(|line| line.contains("172.20."))
        .collect();
    assert!(left.len() == 1 && left[0].starts_with(&last), "{left:?}");
}

lab_test!(
    a_storm_of_versions_of_a_large_mesh_ends_in_the_last_one,
    120,
    |lab| {
        storm(lab, 998, 500, Duration::from_secs(3));
    }
);

lab_test!(
    #[ignore = "takes minutes: `make reload-storm`"]
    ten_thousand_versions_in_a_minute_end_in_the_last_one,
    900,
    |lab| {
        storm(lab, 998, 10_000, Duration::from_secs(60));
    }
);
