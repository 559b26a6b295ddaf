//! The file changes, the mesh follows, and nobody else notices.

use std::time::{Duration, Instant};

use natpunch_lab::{Nat, lab_test, sandbox};

use crate::mesh::replace;
use crate::world::{Discovery, INTERFACE, NATPUNCH, Node, World, peer_in, soon, within};

const INTERVAL: Duration = Duration::from_millis(20);

/// A third member, which never runs: what changes in the tests is about it.
fn third_member(world: &mut World) -> String {
    let host = world.lab.public_host("third").unwrap();
    let (_, public_key) = crate::world::new_key(&host);
    world.mesh.add("third", &public_key, "");
    public_key
}

fn reloads(node: &Node) -> u64 {
    node.status().unwrap()["reloads"].as_u64().unwrap()
}

fn routes(node: &Node) -> String {
    String::from_utf8(node.host.output("ip", &["route"]).unwrap().stdout).unwrap()
}

lab_test!(
    a_storm_of_a_thousand_writes_ends_in_its_last_version_without_a_flap,
    90,
    |lab| {
        const WRITES: u32 = 1000;
        let mut world = World::new(lab, Discovery::NatpunchGo);
        let third = third_member(&mut world);
        let ([a, b], _routers) = world.pair([Nat::PortPreserving, Nat::PortPreserving]);
        a.wait_connected("b");
        b.wait_connected("a");
        let ping = a.ping(b.address, INTERVAL);
        assert!(ping.wait_for(10, soon()));
        let (before, reloads_before) = (a.wg_peer(&b), reloads(&a));
        let start = Instant::now();
        for number in 1..=WRITES {
            world.mesh.member("third").more =
                format!("routes = [\"172.20.{}.0/24\"]\n", number % 250);
            world.write_mesh();
            let next = start + Duration::from_millis(10) * number;
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
        let last = format!("172.20.{}.0/24", WRITES % 250);
        let written = Instant::now();
        let applied = |node: &Node| {
            node.wg()
                .iter()
                .any(|peer| peer.public_key == third && peer.allowed_ips.contains(&last))
        };
        while !(applied(&a) && applied(&b)) {
            assert!(
                Instant::now() < within(10),
                "the last version was not applied"
            );
        }
        let lag = written.elapsed();
        assert!(
            lag < Duration::from_secs(2) * sandbox::patience(),
            "the last version took {lag:?}"
        );
        assert!(ping.wait_for(50, soon()));
        let after = a.wg_peer(&b);
        assert_eq!(ping.stop().lost(), 0);
        assert_eq!(after.latest_handshake, before.latest_handshake);
        assert_eq!(after.endpoint, before.endpoint);
        assert!(after.received > before.received, "the counters went on");
        let storm_routes: Vec<String> = routes(&a)
            .lines()
            .filter(|line| line.contains("172.20."))
            .map(Into::into)
            .collect();
        assert!(
            storm_routes.len() == 1 && storm_routes[0].starts_with(&last),
            "{storm_routes:#?}"
        );
        println!(
            "{} reloads, the last {lag:?} after its write",
            reloads(&a) - reloads_before
        );
    }
);

lab_test!(a_peer_that_is_removed_stays_removed, 60, |lab| {
    let mut world = World::new(lab, Discovery::NatpunchGo);
    let (mut a, _nat_a) = world.node_behind(Nat::PortPreserving, "a");
    let (mut b, _nat_b) = world.node_behind(Nat::PortPreserving, "b");
    // Only a's file will change: b goes on as before, with probes and handshakes.
    a.file = a.host.directory().unwrap().join("mesh.toml");
    world.write_mesh();
    world.mesh.write(&a.file);
    a.start();
    b.start();
    a.wait_connected("b");
    b.wait_connected("a");
    let ping = b.ping(a.address, INTERVAL);
    assert!(ping.wait_for(10, soon()));
    let before = reloads(&a);
    world.mesh.members.retain(|member| member.name != "b");
    // It was the only one, which nobody removes by mistake.
    world
        .mesh
        .discovery
        .push_str("[apply]\nallow = [\"empty-mesh\"]\n");
    world.mesh.write(&a.file);
    a.wait("the reload", soon(), |status| {
        (status["reloads"].as_u64()? > before).then_some(())
    });
    // No deadline, but for how long it must not happen: b's probes and handshakes come several
    // times in it.
    let end = Instant::now() + Duration::from_secs(5);
    while Instant::now() < end {
        assert_eq!(a.wg(), [], "b came back");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(!routes(&a).contains(&b.address.to_string()));
    assert!(peer_in(&a.status().unwrap(), "b").is_none());
});

lab_test!(
    a_broken_version_is_reported_and_changes_nothing,
    60,
    |lab| {
        let mut world = World::new(lab, Discovery::NatpunchGo);
        let ([a, b], _routers) = world.pair([Nat::PortPreserving, Nat::PortPreserving]);
        a.wait_connected("b");
        let ping = a.ping(b.address, INTERVAL);
        assert!(ping.wait_for(10, soon()));
        let (before, routes_before) = (a.wg_peer(&b), routes(&a));
        for (broken, expected) in [
            ("[mesh\nname = 1".to_owned(), "mesh.toml:"),
            (
                world.mesh.text().replace("addresses", "adresses"),
                "adresses",
            ),
            (String::new(), "mesh.toml"),
        ] {
            replace(&world.file(), &broken);
            a.wait("the report", soon(), |status| {
                status["reload_error"]
                    .as_str()?
                    .contains(expected)
                    .then_some(())
            });
            let now = a.wg_peer(&b);
            let unchanged = |peer: &crate::world::WgPeer| {
                (
                    peer.endpoint.clone(),
                    peer.allowed_ips.clone(),
                    peer.latest_handshake,
                )
            };
            assert_eq!(unchanged(&now), unchanged(&before));
            assert_eq!(routes(&a), routes_before);
        }
        world.write_mesh();
        a.wait("the end of the report", soon(), |status| {
            status["reload_error"].is_null().then_some(())
        });
        assert!(ping.wait_for(10, soon()));
        assert_eq!(ping.stop().lost(), 0);
    }
);

lab_test!(
    an_added_route_is_in_place_within_a_second_and_touches_one_peer,
    60,
    |lab| {
        let mut world = World::new(lab, Discovery::NatpunchGo);
        let third = third_member(&mut world);
        let ([a, b], _routers) = world.pair([Nat::PortPreserving, Nat::PortPreserving]);
        a.wait_connected("b");
        let before = a.wg_peer(&b);
        world.mesh.member("third").more = "routes = [\"172.20.1.0/24\"]\n".into();
        let written = Instant::now();
        world.write_mesh();
        while !a
            .wg()
            .iter()
            .any(|peer| peer.public_key == third && peer.allowed_ips.contains("172.20.1.0/24"))
        {
            assert!(Instant::now() < soon());
        }
        let lag = written.elapsed();
        println!("the route was in place after {lag:?}");
        assert!(
            lag < Duration::from_secs(1) * sandbox::patience(),
            "it took {lag:?}"
        );
        let after = a.wg_peer(&b);
        assert_eq!(
            (after.latest_handshake, after.endpoint),
            (before.latest_handshake, before.endpoint)
        );
    }
);

lab_test!(a_key_file_that_changes_alone_is_a_reload, 60, |lab| {
    let mut world = World::new(lab, Discovery::NatpunchGo);
    let host = world.lab.public_host("a").unwrap();
    let mut a = world.node(host);
    third_member(&mut world);
    let secret = a.host.directory().unwrap().join("third.psk");
    let fill = |to: &std::path::Path| {
        let key = std::process::Command::new(NATPUNCH)
            .arg("keygen")
            .output()
            .unwrap()
            .stdout;
        std::fs::write(to, &key).unwrap();
        std::fs::set_permissions(to, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        String::from_utf8(key).unwrap().trim().to_owned()
    };
    let shown = |node: &Node| {
        let output = node
            .host
            .output("wg", &["show", INTERFACE, "preshared-keys"])
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let first = fill(&secret);
    let section =
        format!("[[preshared]]\npeers = [\"a\", \"third\"]\npreshared_key_file = {secret:?}\n");
    a.own_file(&mut world.mesh, &section);
    a.start();
    a.wait_up();
    assert!(shown(&a).contains(&first));
    // Half a key is no key: it is reported, and the running one stays.
    std::fs::write(&secret, &first[..20]).unwrap();
    a.wait("the report", soon(), |status| {
        status["reload_error"]
            .as_str()?
            .contains("third.psk")
            .then_some(())
    });
    assert!(shown(&a).contains(&first));
    let second = secret.with_extension("new");
    let key = fill(&second);
    std::fs::rename(&second, &secret).unwrap();
    a.wait("the reload", soon(), |status| {
        (status["reloads"] == 1).then_some(())
    });
    assert!(shown(&a).contains(&key));
    assert!(a.status().unwrap()["reload_error"].is_null());
});
