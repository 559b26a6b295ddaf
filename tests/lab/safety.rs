//! Changes that must not cut a node off: refused, confirmed, undone; and what others do to the
//! interface.

use std::time::{Duration, Instant};

use natpunch_lab::{Nat, lab_test, sandbox};

use crate::world::{Discovery, INTERFACE, Node, World, soon};

/// How long peers have to come back in these tests.
pub(crate) const CONFIRM: &str = "[apply]\nconfirm = \"3s\"\n";

/// Two connected nodes; only `a` follows what the test writes with `world.mesh.write(&a.file)`.
pub(crate) fn pair(world: &mut World, apply: &str) -> (Node, Node, [natpunch_lab::Router; 2]) {
    let (mut a, nat_a) = world.node_behind(Nat::PortPreserving, "a");
    let (mut b, nat_b) = world.node_behind(Nat::PortPreserving, "b");
    world.write_mesh();
    a.own_file(&mut world.mesh, apply);
    a.start();
    b.start();
    a.wait_connected("b");
    b.wait_connected("a");
    (a, b, [nat_a, nat_b])
}

pub(crate) fn revision(node: &Node) -> String {
    node.status().unwrap()["revision"]
        .as_str()
        .unwrap()
        .to_owned()
}

lab_test!(
    a_change_that_cuts_the_node_off_is_undone_and_not_tried_again,
    60,
    |lab| {
        let mut world = World::new(lab, Discovery::NatpunchGo);
        let (mut a, b, _routers) = pair(&mut world, CONFIRM);
        assert!(a.reaches(b.address));
        let (before, good) = (revision(&a), world.mesh.clone());
        world.mesh.member("b").public_key =
            crate::world::new_key(&world.lab.public_host("stranger").unwrap()).1;
        let written = Instant::now();
        world.mesh.write(&a.file);
        a.wait("the change", soon(), |status| {
            (!status["change"].is_null()).then_some(())
        });
        let held = a.wait("the way back", soon(), |status| {
            status["held"]["revision"].as_str().map(str::to_owned)
        });
        a.wait("the version before", soon(), |status| {
            (status["revision"] == *before).then_some(())
        });
        assert!(
            written.elapsed() < Duration::from_secs(3 + 2) * sandbox::patience(),
            "it took {:?}",
            written.elapsed()
        );
        assert_ne!(held, before);
        a.wait_connected("b");
        let deadline = soon();
        while !a.reaches(b.address) {
            assert!(Instant::now() < deadline, "no way back");
        }
        assert!(
            a.status().unwrap()["reload_error"]
                .as_str()
                .unwrap()
                .contains("no sign of life after it from b")
        );

        // Not by the next agent either, until the file changes.
        a.kill();
        a.start();
        a.wait("the next agent", soon(), |status| {
            (status["held"]["revision"] == *held).then_some(())
        });
        assert_eq!(revision(&a), before);
        good.write(&a.file);
        a.wait("the end of it", soon(), |status| {
            status["reload_error"].is_null().then_some(())
        });
    }
);

lab_test!(
    a_change_is_undone_by_the_next_agent_if_its_own_was_killed,
    60,
    |lab| {
        let mut world = World::new(lab, Discovery::NatpunchGo);
        let (mut a, b, _routers) = pair(&mut world, CONFIRM);
        let before = revision(&a);
        world.mesh.member("b").address = "10.77.0.99".parse().unwrap();
        world.mesh.write(&a.file);
        a.wait("the change", soon(), |status| {
            (!status["change"].is_null()).then_some(())
        });
        a.kill();
        let killed = Instant::now();
        a.start();
        a.wait("the way back", soon(), |status| {
            (status["revision"] == *before).then_some(())
        });
        assert!(
            killed.elapsed() < Duration::from_secs(3 + 2) * sandbox::patience(),
            "it took {:?}",
            killed.elapsed()
        );
        assert!(!a.status().unwrap()["held"].is_null());
        let deadline = soon();
        while !a.reaches(b.address) {
            assert!(Instant::now() < deadline, "no way back");
        }
    }
);

lab_test!(
    a_change_that_everybody_survives_stays_without_waiting,
    60,
    |lab| {
        let mut world = World::new(lab, Discovery::NatpunchGo);
        let (a, b, _routers) = pair(&mut world, "");
        let ping = a.ping(b.address, Duration::from_millis(20));
        assert!(ping.wait_for(10, soon()));
        let before = revision(&a);
        world.mesh.member("b").more = "routes = [\"172.20.1.0/24\"]\n".into();
        world.mesh.discovery.push_str("[stun]\nservers = []\n");
        world.mesh.write(&a.file);
        let works = |status: &serde_json::Value| {
            (status["revision"] != *before && status["change"].is_null()).then_some(())
        };
        a.wait(
            "the new version, long before its 60 s are over",
            soon(),
            works,
        );
        assert!(a.wg_peer(&b).allowed_ips.contains("172.20.1.0/24"));
        assert!(ping.wait_for(10, soon()));
        assert_eq!(ping.stop().lost(), 0);
    }
);

lab_test!(
    a_person_confirms_over_a_new_connection_or_the_change_is_undone,
    60,
    |lab| {
        let mut world = World::new(lab, Discovery::NatpunchGo);
        let (mut a, _b, _routers) = pair(&mut world, "");
        a.stop();
        a.arguments = ["--confirm", "4s"].map(str::to_owned).to_vec();
        a.start();
        a.wait_connected("b");
        assert!(!a.natpunch(&["confirm"]).status.success(), "nothing waits");
        for (route, confirmed) in [("172.20.1.0/24", true), ("172.20.2.0/24", false)] {
            let before = revision(&a);
            world.mesh.member("b").more = format!("routes = [\"{route}\"]\n");
            world.mesh.write(&a.file);
            a.wait("the question", soon(), |status| {
                status["change"]["by_person"]
                    .as_bool()
                    .filter(|asked| *asked)
            });
            if confirmed {
                let output = a.natpunch(&["confirm", "--json"]);
                assert!(
                    output.status.success(),
                    "{}",
                    String::from_utf8_lossy(&output.stderr)
                );
                let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
                assert_eq!(said["revision"], *revision(&a));
                assert_ne!(revision(&a), before);
            } else {
                a.wait("the way back", soon(), |status| {
                    (status["revision"] == *before).then_some(())
                });
            }
            assert!(a.status().unwrap()["change"].is_null());
        }
    }
);

lab_test!(half_of_the_mesh_is_not_removed_by_mistake, 60, |lab| {
    let mut world = World::new(lab, Discovery::NatpunchGo);
    let host = world.lab.public_host("a").unwrap();
    let mut a = world.node(host);
    for n in 0..6 {
        let (_, key) = crate::world::new_key(&world.lab.public_host(&format!("p{n}")).unwrap());
        world.mesh.add(&format!("p{n}"), &key, "");
    }
    a.own_file(&mut world.mesh, "");
    a.start();
    a.wait_up();
    world.mesh.members.truncate(4);
    world.mesh.write(&a.file);
    a.wait("the refusal", soon(), |status| {
        status["reload_error"]
            .as_str()
            .filter(|error| error.contains("3 of 6 peers: p3, p4, p5"))
            .map(|_| ())
    });
    assert_eq!(a.wg().len(), 6);
    let file = a.file.to_str().unwrap().to_owned();
    let plan = a.natpunch(&[
        "plan",
        &file,
        "--private-key-file",
        a.key_file.to_str().unwrap(),
    ]);
    let text = String::from_utf8(plan.stdout).unwrap();
    assert_eq!(plan.status.code(), Some(2));
    assert!(
        text.contains("- peer p5") && text.contains("traffic: interruption"),
        "{text}"
    );
    assert!(
        text.contains("refused without --allow mass-removal"),
        "{text}"
    );
    world
        .mesh
        .discovery
        .push_str("[apply]\nallow = [\"mass-removal\"]\n");
    world.mesh.write(&a.file);
    a.wait("the consent", soon(), |status| {
        (status["reloads"] == 1).then_some(())
    });
    assert!(a.status().unwrap()["reload_error"].is_null());
    assert_eq!(a.wg().len(), 3);
});

lab_test!(
    what_somebody_else_changed_is_shown_and_put_right,
    90,
    |lab| {
        let mut world = World::new(lab, Discovery::NatpunchGo);
        // One that the file does not state follows the NATs, and is nobody's mistake. The line is
        // the first after `[interface]`.
        let stated = "persistent_keepalive = 25\n";
        world.mesh.discovery.insert_str(0, stated);
        let (a, b, _routers) = pair(&mut world, "[apply]\nheal = false\n");
        let plan = |arguments: &[&str]| {
            let output = a.natpunch(&[&["plan"], arguments].concat());
            (
                output.status.code(),
                String::from_utf8(output.stdout).unwrap(),
            )
        };
        assert_eq!(plan(&["--live"]).0, Some(0));
        let endpoint = a.wg_peer(&b).endpoint;
        let set = |words: &[&str]| {
            assert!(
                a.host
                    .output("wg", &[&["set", INTERFACE], words].concat())
                    .unwrap()
                    .status
                    .success()
            )
        };
        set(&[
            "peer",
            &b.public_key,
            "persistent-keepalive",
            "7",
            "endpoint",
            "192.0.2.9:9",
        ]);
        let (code, text) = plan(&["--live"]);
        assert_eq!(code, Some(2));
        assert!(
            text.contains("~ peer b: keepalive 7 s -> 25 s") && text.contains("1 to change"),
            "{text}"
        );
        assert!(
            !text.contains("192.0.2.9"),
            "where WireGuard sends to is nobody's drift: {text}"
        );
        set(&["peer", &b.public_key, "endpoint", &endpoint]);
        a.wait("the report", soon(), |status| {
            (status["drift"]["healed"] == false && status["drift"]["changes"][0].is_string())
                .then_some(())
        });
        assert_eq!(a.wg_peer(&b).keepalive, "7");

        world.mesh.discovery = world.mesh.discovery.replace("heal = false", "heal = true");
        world.mesh.write(&a.file);
        let deadline = soon();
        while a.wg_peer(&b).keepalive != "25" {
            assert!(Instant::now() < deadline, "the keepalive was not put right");
            std::thread::sleep(Duration::from_millis(50));
        }
        set(&["peer", &b.public_key, "remove"]);
        a.wait("the report", soon(), |status| {
            (status["drift"]["healed"] == true).then_some(())
        });
        assert_eq!(plan(&["--live"]).0, Some(0));
        a.wait_connected("b");
        let deadline = soon();
        while !a.reaches(b.address) {
            assert!(Instant::now() < deadline, "b did not come back");
        }
    }
);

lab_test!(apply_does_the_plan_that_was_read_or_stops, 60, |lab| {
    let mut world = World::new(lab, Discovery::NatpunchGo);
    let host = world.lab.public_host("a").unwrap();
    let mut a = world.node(host);
    let (_, key) = crate::world::new_key(&world.lab.public_host("p").unwrap());
    world.mesh.add("nas", &key, "");
    a.own_file(&mut world.mesh, "");
    let file = a.file.to_str().unwrap().to_owned();
    let key_file = a.key_file.to_str().unwrap().to_owned();
    let plan = |node: &Node| -> (Option<i32>, serde_json::Value) {
        let output = node.natpunch(&["plan", &file, "--private-key-file", &key_file, "--json"]);
        (
            output.status.code(),
            serde_json::from_slice(&output.stdout).unwrap(),
        )
    };
    let (code, before) = plan(&a);
    assert_eq!(code, Some(2));
    let changes = before["changes"].as_array().unwrap();
    let nas = changes
        .iter()
        .find(|change| change["change"] == "add-peer")
        .unwrap();
    assert_eq!(
        (&nas["name"], &nas["effect"], &nas["sign"]),
        (&"nas".into(), &"none".into(), &"+".into())
    );
    assert_eq!(nas["peer"], key);
    let id = before["id"].as_str().unwrap();

    world.mesh.member("nas").more = "persistent_keepalive = 5\n".into();
    world.mesh.write(&a.file);
    let stale = a.natpunch(&[
        "apply",
        &file,
        "--private-key-file",
        &key_file,
        "--plan",
        id,
    ]);
    assert_eq!(stale.status.code(), Some(1));
    assert!(
        String::from_utf8(stale.stderr)
            .unwrap()
            .contains("the plan has changed")
    );
    let (_, now) = plan(&a);
    assert_ne!(
        now["id"], id,
        "nothing of it was done, and it is another plan"
    );
    a.arguments = vec!["--plan".into(), now["id"].as_str().unwrap().into()];
    a.start();
    a.wait_up();
    assert_eq!(plan(&a).0, Some(0));
});
