//! What other people and other networks do to the host that a node runs on.

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use natpunch_lab::{Nat, Process, lab_test};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::world::{Discovery, INTERFACE, NATPUNCH, Node, World, soon, within};

/// What the host would do with a packet to this address.
fn route(node: &Node, to: &str) -> String {
    let output = node.host.output("ip", &["route", "get", to]).unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn warnings(node: &Node) -> String {
    let status = node.status().unwrap();
    status["warnings"]
        .as_array()
        .map_or_else(String::new, |all| {
            let texts: Vec<_> = all.iter().filter_map(|text| text.as_str()).collect();
            texts.join("\n")
        })
}

fn device_pid(node: &Node) -> Pid {
    let pid = node.status().unwrap()["device"]["pid"].as_i64().unwrap();
    Pid::from_raw(i32::try_from(pid).unwrap())
}

lab_test!(a_renamed_interface_gets_its_name_back, 90, |lab| {
    let mut world = World::new(lab, Discovery::Rendezvous);
    let ([a, b], _routers) = world.pair([Nat::PortPreserving, Nat::PortPreserving]);
    a.wait_connected("b");
    a.host
        .ip(format!("link set dev {INTERFACE} name mine0\n"))
        .unwrap();
    let told = a.wait("the renaming in its status", within(30), |status| {
        let changes = status["drift"]["changes"].as_array()?;
        let change = changes.first()?.as_str()?.to_owned();
        (status["drift"]["healed"] == true).then_some(change)
    });
    assert!(told.contains("mine0 renamed to wg-lab"), "{told}");
    assert!(a.reaches(b.address) || a.reaches(b.address));
    // And a reload works, as before.
    world.mesh.member("b").more = "persistent_keepalive = 31\n".to_owned();
    world.write_mesh();
    a.wait("the reload", soon(), |status| {
        (status["reloads"] == 1 && status["reload_error"].is_null()).then_some(())
    });
});

lab_test!(
    a_lan_with_the_network_of_the_mesh_keeps_it_whichever_was_first,
    120,
    |lab| {
        let mut world = World::new(lab, Discovery::Rendezvous);
        let ([mut a, b], _routers) = world.pair([Nat::PortPreserving, Nat::PortPreserving]);
        a.wait_connected("b");
        let lan = "link add lan0 type veth peer name lan1\nlink set lan1 up\naddress add 10.77.0.200/24 dev lan0\nlink set lan0 up\n";
        for agent_first in [true, false] {
            if !agent_first {
                a.stop();
                assert!(a.natpunch(&["down"]).status.success());
            }
            a.host.ip(lan).unwrap();
            if !agent_first {
                a.start();
                a.wait_up();
            }
            a.wait("what is said of it", soon(), |_| {
                warnings(&a).contains("10.77.0.0/24 on lan0").then_some(())
            });
            let way = route(&a, "10.77.0.254");
            assert!(way.contains("dev lan0"), "agent first {agent_first}: {way}");
            a.host.ip("link delete lan0\n").unwrap();
            a.wait("the end of the warning", soon(), |_| {
                warnings(&a).is_empty().then_some(())
            });
            a.wait_connected("b");
            assert!(a.reaches(b.address) || a.reaches(b.address));
        }
    }
);

lab_test!(
    a_network_with_the_gateway_of_a_larger_lan_in_it_is_not_taken,
    120,
    |lab| {
        let mut world = World::new(lab, Discovery::Rendezvous);
        let ([mut a, _b], _routers) = world.pair([Nat::PortPreserving, Nat::PortPreserving]);
        a.wait_connected("b");
        let lan = "link add lan0 type veth peer name lan1\nlink set lan1 up\naddress add 10.0.0.5/8 dev lan0\nlink set lan0 up\n\
                   route add default via 10.77.0.77 dev lan0 metric 999\n";
        for agent_first in [true, false] {
            if !agent_first {
                a.stop();
                assert!(a.natpunch(&["down"]).status.success());
            }
            a.host.ip(lan).unwrap();
            if !agent_first {
                a.start();
                a.wait_up();
            }
            a.wait("the way to the gateway", within(30), |_| {
                route(&a, "10.77.0.77").contains("dev lan0").then_some(())
            });
            let said = warnings(&a);
            assert!(
                said.contains("10.77.0.77 of the LAN would be cut off"),
                "{said}"
            );
            a.host.ip("link delete lan0\n").unwrap();
            a.wait("the network of the mesh", within(30), |_| {
                let way = route(&a, "10.77.0.77");
                way.contains(&format!("dev {INTERFACE}")).then_some(())
            });
        }
    }
);

lab_test!(a_hung_device_is_named_and_down_ends_it, 120, |lab| {
    let (_world, mut a) = World::with_one_node(lab, Discovery::Rendezvous);
    a.start();
    a.wait_up();
    let device = device_pid(&a);
    a.stop();
    kill(device, Signal::SIGSTOP).unwrap();
    let down = a.natpunch(&["down"]);
    let said = String::from_utf8_lossy(&down.stderr).into_owned();
    assert!(down.status.success(), "{said}");
    assert!(said.contains(&device.to_string()), "{said}");
    let links = a.host.output("ip", &["-br", "link"]).unwrap();
    assert!(!String::from_utf8_lossy(&links.stdout).contains(INTERFACE));
});

lab_test!(a_hung_agent_is_named_with_its_process, 120, |lab| {
    let (_world, mut a) = World::with_one_node(lab, Discovery::Rendezvous);
    a.start();
    a.wait_up();
    let pid = a.status().unwrap()["pid"].as_i64().unwrap();
    let agent = Pid::from_raw(i32::try_from(pid).unwrap());
    kill(agent, Signal::SIGSTOP).unwrap();
    for command in ["status", "down"] {
        let output = a.natpunch(&[command]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success());
        assert!(
            said.contains(&format!("process {pid}")),
            "{command}: {said}"
        );
        assert!(!said.contains("os error"), "{command}: {said}");
    }
    // It does what `down` asked for as soon as it can.
    kill(agent, Signal::SIGCONT).unwrap();
    let deadline = soon();
    while !a.has_ended() {
        assert!(std::time::Instant::now() < deadline, "it goes on");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(a.natpunch(&["down"]).status.success());
});

// The control socket is there before the device is, so a reload may come from then on.
lab_test!(a_hangup_in_the_first_moment_is_a_reload, 90, |lab| {
    let (_world, mut a) = World::with_one_node(lab, Discovery::Rendezvous);
    for _ in 0..5 {
        a.start();
        let socket = format!("/run/natpunch/{INTERFACE}.agent.sock");
        let deadline = soon();
        let seen = socket.clone();
        while !a
            .host
            .run({
                let seen = seen.clone();
                move || std::path::Path::new(&seen).exists()
            })
            .unwrap()
        {
            assert!(std::time::Instant::now() < deadline);
        }
        kill(a.pid(), Signal::SIGHUP).unwrap();
        a.wait_up();
        a.stop();
        assert!(a.natpunch(&["down"]).status.success());
    }
});

// What a unit runs: it knows its process, and no name of an interface.
lab_test!(
    a_reload_finds_the_agent_by_its_process_and_programs_read_what_came_of_it,
    90,
    |lab| {
        let (_world, mut a) = World::with_one_node(lab, Discovery::Rendezvous);
        a.start();
        a.wait_up();
        let json = |a: &Node, command: &[&str]| -> serde_json::Value {
            let output = a.natpunch(command);
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{command:?}: {said}");
            serde_json::from_slice(&output.stdout).unwrap()
        };
        // Inside of the sandbox, where the agent has another number.
        let process = a.status().unwrap()["pid"].to_string();
        let reloaded = json(&a, &["reload", "--pid", &process, "--json"]);
        assert_eq!(reloaded["interface"], INTERFACE);
        assert_eq!(reloaded["revision"], a.status().unwrap()["revision"]);
        let wrong = a.natpunch(&["reload", "--pid", "1"]);
        let said = String::from_utf8_lossy(&wrong.stderr);
        assert!(
            said.contains("process 1 is no natpunch agent") && wrong.status.code() == Some(1),
            "{said}"
        );
        std::fs::write(&a.file, "broken").unwrap();
        let refused = a.natpunch(&["reload", "--pid", &process, "--json"]);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(
            !refused.status.success() && refused.stdout.is_empty(),
            "{said}"
        );
        let down = json(&a, &["down", "--json"]);
        assert_eq!(
            (&down["mesh"], &down["interface"]),
            (&"lab".into(), &INTERFACE.into())
        );
        assert_eq!(down["removed"]["interface"], true);
    }
);

lab_test!(a_directory_that_others_may_write_to_is_refused, 60, |lab| {
    let (_world, mut a) = World::with_one_node(lab, Discovery::Rendezvous);
    let directory = a.host.directory().unwrap().join("open");
    std::fs::create_dir(&directory).unwrap();
    std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o777)).unwrap();
    let text = directory.to_str().unwrap().to_owned();
    a.environment = vec![("NATPUNCH_RUNTIME_DIR", text.clone())];
    a.start();
    assert!(
        a.wait_log("others than its owner may write to", soon())
            .is_some()
    );
    let deadline = soon();
    while !a.has_ended() {
        assert!(std::time::Instant::now() < deadline, "it goes on");
        std::thread::sleep(Duration::from_millis(20));
    }
    let links = a.host.output("ip", &["-br", "link"]).unwrap();
    assert!(!String::from_utf8_lossy(&links.stdout).contains(INTERFACE));
});

lab_test!(a_start_that_fails_leaves_nothing_behind, 60, |lab| {
    let (_world, a) = World::with_one_node(lab, Discovery::Rendezvous);
    // Without the capability for raw sockets, which are opened after the device.
    let file = a.file.to_str().unwrap().to_owned();
    let key = a.key_file.to_str().unwrap().to_owned();
    let state = a.host.directory().unwrap().join("state");
    let output = a
        .host
        .output(
            "setpriv",
            &[
                "--bounding-set=-net_raw",
                "--inh-caps=-net_raw",
                "env",
                &format!("NATPUNCH_STATE_DIR={}", state.display()),
                NATPUNCH,
                "apply",
                &file,
                "--private-key-file",
                &key,
            ],
        )
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{said}");
    let links = a.host.output("ip", &["-br", "link"]).unwrap();
    let links = String::from_utf8_lossy(&links.stdout).into_owned();
    assert!(!links.contains(INTERFACE), "{links}\n{said}");
});

lab_test!(
    a_device_that_was_killed_comes_back_with_what_plain_peers_had,
    90,
    |lab| {
        let mut world = World::new(lab, Discovery::Rendezvous);
        let host = world.lab.public_host("a").unwrap();
        let mut a = world.node(host);
        let router = world.lab.router("mobile", Nat::Symmetric).unwrap();
        let phone = world.lab.host_behind(&router, "phone").unwrap();
        let (key_file, public_key) = crate::world::new_key(&phone);
        let address = world.mesh.add("phone", &public_key, "managed = false\n");
        world.write_mesh();
        a.start();
        a.wait_up();
        let port = a.status().unwrap()["listen_port"].to_string();
        let _wireguard: Option<Process> = crate::plain::plain_wireguard(
            &phone,
            &key_file,
            &address.to_string(),
            (&a.public_key, crate::plain::ALL),
        );
        let endpoint = format!("{}:{port}", a.host.ipv4().unwrap());
        let set = ["set", "wg0", "peer", &a.public_key, "endpoint", &endpoint];
        assert!(phone.output("wg", &set).unwrap().status.success());
        let to = a.address.to_string();
        let _ = phone.output("ping", &["-n", "-c3", "-W2", "-i0.2", &to]);
        let learned = a.wait_connected("phone")["endpoint"].clone();
        let killed = device_pid(&a);
        kill(killed, Signal::SIGKILL).unwrap();
        a.wait("another device", soon(), |status| {
            let pid = status["device"]["pid"].as_i64()?;
            (pid != i64::from(killed.as_raw())).then_some(())
        });
        assert_eq!(a.wg()[0].endpoint, learned.as_str().unwrap());
        assert!(a.reaches(address) || a.reaches(address) || a.reaches(address));
    }
);

lab_test!(
    a_state_directory_that_others_may_write_to_is_refused_by_name,
    60,
    |lab| {
        let (_world, mut a) = World::with_one_node(lab, Discovery::Rendezvous);
        let state = a.host.directory().unwrap().join("state");
        std::fs::create_dir(&state).unwrap();
        let set_mode = |mode: u32| {
            let mode = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(&state, mode).unwrap();
        };
        set_mode(0o777);
        let (file, key_file) = (a.file.to_str().unwrap(), a.key_file.to_str().unwrap());
        let output = a.natpunch(&["apply", "--private-key-file", key_file, file]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            said.contains(state.to_str().unwrap()) && said.contains("chmod go-w"),
            "{said}"
        );
        let links = a.host.output("ip", &["-br", "link"]).unwrap();
        let links = String::from_utf8_lossy(&links.stdout).into_owned();
        assert!(!links.contains(INTERFACE), "something was made: {links}");
        set_mode(0o755);
        a.start();
        a.wait_up();
    }
);

lab_test!(
    a_device_whose_program_was_replaced_by_an_upgrade_is_told_of,
    60,
    |lab| {
        let (_world, mut a) = World::with_one_node(lab, Discovery::Rendezvous);
        let directory = a.host.directory().unwrap();
        a.program = directory.join("natpunch");
        std::fs::copy(NATPUNCH, &a.program).unwrap();
        a.start();
        a.wait_up();
        assert_eq!(a.status().unwrap()["device"]["outdated"], false);
        a.stop();
        // As a package manager does it: a new file, renamed over the old one.
        let new = directory.join("natpunch.new");
        std::fs::copy(NATPUNCH, &new).unwrap();
        std::fs::rename(new, &a.program).unwrap();
        a.start();
        let said = a.wait("word of the old device", soon(), |status| {
            (status["device"]["outdated"] == true).then(|| warnings(&a))
        });
        let pid = device_pid(&a).to_string();
        for part in [&pid, "before an upgrade", "natpunch down"] {
            assert!(said.contains(part), "{part}: {said}");
        }
        // And what is advised helps.
        a.stop();
        assert!(a.natpunch(&["down"]).status.success());
        a.start();
        a.wait_up();
        assert_eq!(a.status().unwrap()["device"]["outdated"], false);
    }
);
