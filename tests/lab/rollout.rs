//! Whose word counts in a change: who is cut off by it, who is logged in, and never the one that it
//! is directed against.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use natpunch_lab::{Nat, lab_test};

use crate::safety::{CONFIRM, pair, revision};
use crate::world::{
    Discovery, INTERFACE, NATPUNCH, Node, World, new_file, public_key, soon, within,
};

/// A session of root on this machine, as systemd-logind has it. All hosts of a lab see it.
fn log_in(from: std::net::Ipv4Addr) {
    let sessions = std::path::Path::new("/run/systemd/sessions");
    std::fs::create_dir_all(sessions).unwrap();
    let text = format!(
        "# This is private data. Do not parse.\nUID=0\nUSER=root\nACTIVE=1\nSTATE=active\n\
         REMOTE=1\nREMOTE_HOST={from}\nTYPE=tty\nCLASS=user\nLEADER=1\nSERVICE=sshd\n"
    );
    std::fs::write(sessions.join("1"), text).unwrap();
}

fn remove_b(world: &mut World, a: &Node, words: &str) {
    world.mesh.members.retain(|member| member.name != "b");
    let discovery = &mut world.mesh.discovery;
    // It is the only peer, which nobody removes by mistake.
    let allow = format!("{CONFIRM}allow = [\"empty-mesh\"{words}]\n");
    let end = discovery.find(CONFIRM).unwrap();
    discovery.truncate(end);
    discovery.push_str(&allow);
    world.mesh.write(&a.file);
}

fn wait_stays(a: &Node, before: &str) {
    a.wait("the new version, confirmed", soon(), |status| {
        let stays = status["revision"] != *before && status["change"].is_null();
        stays.then_some(())
    });
    // Longer than the deadline.
    std::thread::sleep(Duration::from_secs(4));
    let status = a.status().unwrap();
    assert!(
        status["held"].is_null() && status["reload_error"].is_null(),
        "{status:#?}"
    );
    assert_ne!(status["revision"], *before);
}

lab_test!(
    a_relayed_peer_that_the_file_forbids_relays_to_is_not_lost,
    150,
    |lab| {
        let mut world = World::new(lab, Discovery::Rendezvous);
        let (mut a, _nat_a) = world.node_behind(Nat::Symmetric, "a");
        let (mut b, _nat_b) = world.node_behind(Nat::Symmetric, "b");
        world.write_mesh();
        a.own_file(&mut world.mesh, "[apply]\nconfirm = \"20s\"\n");
        a.start();
        b.start();
        a.wait_path(&b, "relay", soon());
        b.wait_path(&a, "relay", soon());
        let good = world.mesh.clone();
        for lines in [
            "relay = \"never\"\n",
            "critical = true\nrelay = \"never\"\n",
        ] {
            let before = revision(&a);
            world.mesh.member("b").more = lines.to_owned();
            world.mesh.write(&a.file);
            a.wait("the change", soon(), |status| {
                (!status["change"].is_null()).then_some(())
            });
            a.wait("the way back", within(45), |status| {
                (status["revision"] == *before && !status["held"].is_null()).then_some(())
            });
            a.wait_path(&b, "relay", within(30));
            let deadline = soon();
            while !a.reaches(b.address) {
                assert!(Instant::now() < deadline, "b is not reached any more");
            }
            good.write(&a.file);
            a.wait("the good file", soon(), |status| {
                status["held"].is_null().then_some(())
            });
        }
    }
);

/// Gives a node another private key, and the mesh its public one.
fn change_own_key(world: &mut World, a: &Node) {
    let next = new_file(&a.host, "next.key", &["keygen"]);
    world.mesh.member("a").public_key = public_key(&next);
    std::fs::rename(next, &a.key_file).unwrap();
}

lab_test!(
    another_own_key_is_confirmed_by_a_handshake_and_by_nothing_of_the_old_session,
    120,
    |lab| {
        let mut world = World::new(lab, Discovery::NatpunchGo);
        let (a, b, _routers) = pair(&mut world, CONFIRM);
        let before = revision(&a);
        // b goes on to send by the session of the key that it knows.
        let _ping = b.ping(a.address, Duration::from_millis(100));
        change_own_key(&mut world, &a);
        world.mesh.write(&a.file);
        a.wait("the change", soon(), |status| {
            (!status["change"].is_null()).then_some(())
        });
        // Much longer than what counted as a sign of life before: 6 s.
        let until = Instant::now() + Duration::from_secs(15);
        while Instant::now() < until {
            let status = a.status().unwrap();
            assert_eq!(status["change"]["waiting_for"][0], "b", "{status:#}");
            std::thread::sleep(Duration::from_millis(100));
        }
        // Now b learns of it.
        world.write_mesh();
        a.wait("the new version, confirmed", within(60), |status| {
            (status["revision"] != *before && status["change"].is_null()).then_some(())
        });
        assert!(a.status().unwrap()["held"].is_null());
        a.wait_connected("b");
    }
);

lab_test!(
    a_relay_is_shown_as_one_also_after_this_node_got_another_key,
    120,
    |lab| {
        let mut world = World::new(lab, Discovery::Rendezvous);
        let (mut a, _nat_a) = world.node_behind(Nat::Symmetric, "a");
        let (mut b, _nat_b) = world.node_behind(Nat::Symmetric, "b");
        world.write_mesh();
        a.own_file(&mut world.mesh, "");
        [&mut a, &mut b].into_iter().for_each(Node::start);
        for (node, peer) in [(&a, &b), (&b, &a)] {
            node.wait_path(peer, "relay", soon());
        }
        // b does not learn of it, so all that a has is what its device had: the relay's port.
        change_own_key(&mut world, &a);
        world.mesh.write(&a.file);
        a.wait("the change", soon(), |status| {
            (!status["change"].is_null()).then_some(())
        });
        let relay = world.server.address().to_string();
        let until = Instant::now() + Duration::from_secs(12);
        while Instant::now() < until {
            let status = a.status().unwrap();
            let b = crate::world::peer_in(&status, "b").unwrap();
            assert_ne!(b["path"], "direct", "{b:#}");
            for candidate in b["candidates"].as_array().unwrap() {
                let at = candidate["address"].as_str().unwrap();
                let is_relay = at.starts_with(&relay);
                assert_eq!(candidate["kind"] == "relay", is_relay, "{candidate:#}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
);

lab_test!(
    a_connection_to_the_port_of_ssh_does_not_keep_a_member_in_the_mesh,
    90,
    |lab| {
        let mut world = World::new(lab, Discovery::NatpunchGo);
        let (a, b, _routers) = pair(&mut world, CONFIRM);
        let before = revision(&a);
        // Something listens on the port of SSH, and b has a connection to it. Nobody logs in.
        let mut server = Command::new(NATPUNCH);
        server.args([
            "serve",
            "--open",
            "--listen",
            "127.0.0.1:5999",
            "--http",
            &format!("{}:22", a.address),
            "--key-file",
        ]);
        server
            .arg(a.host.directory().unwrap().join("login.key"))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let _server = a.host.spawn(server).unwrap();
        let (address, deadline) = (a.address, soon());
        let _held_open = b
            .host
            .run(move || {
                loop {
                    match std::net::TcpStream::connect((address, 22)) {
                        Ok(stream) => return stream,
                        Err(error) => assert!(Instant::now() < deadline, "{error}"),
                    }
                }
            })
            .unwrap();
        remove_b(&mut world, &a, "");
        wait_stays(&a, &before);
        assert_eq!(a.wg(), []);
    }
);

lab_test!(
    a_member_that_answers_first_and_then_no_more_does_not_keep_its_route,
    90,
    |lab| {
        let mut world = World::new(lab, Discovery::NatpunchGo);
        let (mut a, nat_a) = world.node_behind(Nat::PortPreserving, "a");
        let (mut b, nat_b) = world.node_behind(Nat::PortPreserving, "b");
        world.mesh.member("b").more = "routes = [\"172.20.1.0/24\"]\n".into();
        world.write_mesh();
        a.own_file(&mut world.mesh, CONFIRM);
        a.start();
        b.start();
        a.wait_connected("b");
        b.wait_connected("a");
        let _routers = [nat_a, nat_b];
        let before = revision(&a);
        // A small and a full echo pass, and nothing after them.
        let file = b.host.directory().unwrap().join("spite.nft");
        let rules = format!(
            "table inet spite {{\n  chain in {{\n    type filter hook input priority 0\n    iifname \
             \"{INTERFACE}\" icmp type echo-request quota over 1500 bytes drop\n  }}\n}}\n"
        );
        std::fs::write(&file, rules).unwrap();
        let output = b
            .host
            .output("nft", &["-f".as_ref(), file.as_os_str()])
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        world.mesh.member("b").more.clear();
        world.mesh.write(&a.file);
        wait_stays(&a, &before);
        assert!(!a.wg_peer(&b).allowed_ips.contains("172.20.1.0/24"));
    }
);

lab_test!(
    the_peer_that_carries_a_login_is_removed_with_a_word_and_for_good,
    90,
    |lab| {
        let mut world = World::new(lab, Discovery::NatpunchGo);
        let (a, b, _routers) = pair(&mut world, CONFIRM);
        let before = revision(&a);
        log_in(b.address);
        remove_b(&mut world, &a, "");
        let error = a.wait("the refusal", soon(), |status| {
            status["reload_error"].as_str().map(str::to_owned)
        });
        assert!(
            error.contains("operator-removal")
                && error.contains(&format!("`root` from {}", b.address)),
            "{error}"
        );
        assert_eq!(revision(&a), before, "nothing was begun");
        assert!(a.reaches(b.address));
        remove_b(&mut world, &a, ", \"operator-removal\"");
        wait_stays(&a, &before);
        assert_eq!(a.wg(), []);
    }
);

lab_test!(
    a_peer_with_a_login_has_to_survive_a_change_of_the_node_and_another_need_not,
    90,
    |lab| {
        let mut world = World::new(lab, Discovery::NatpunchGo);
        let (a, b, _routers) = pair(&mut world, CONFIRM);
        let (mut c, _nat_c) = world.node_behind(Nat::PortPreserving, "c");
        // b and c have the file of all, a has its own.
        world.write_mesh();
        world.mesh.write(&a.file);
        c.start();
        for peer in ["b", "c"] {
            a.wait_connected(peer);
        }
        let move_mtu = |world: &mut World, mtu: u32| {
            world.mesh.member("a").more = format!("[peers.a.interface]\nmtu = {mtu}\n");
            world.mesh.write(&a.file);
        };
        // c is lost at the same moment.
        let before = revision(&a);
        c.kill();
        let down = c.natpunch(&["down"]);
        drop(down);
        move_mtu(&mut world, 1300);
        a.wait("the new version, confirmed", soon(), |status| {
            (status["revision"] != *before && status["change"].is_null()).then_some(())
        });
        let before = revision(&a);
        log_in(b.address);
        let _ = b.natpunch(&["down"]);
        move_mtu(&mut world, 1310);
        a.wait("the way back", soon(), |status| {
            (status["revision"] == *before && !status["held"].is_null()).then_some(())
        });
    }
);
