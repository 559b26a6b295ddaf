//! What `natpunch` says when something is missing: whom, why, and where.

use std::process::{Command, Stdio};

use natpunch_lab::{Follower, Nat, lab_test};
use serde_json::Value;

use crate::mesh::replace;
use crate::world::{Discovery, NATPUNCH, World, soon, within};

fn likely(status: &Value, peer: &str) -> Option<String> {
    Some(status["likely"][peer].as_str()?.to_owned())
}

lab_test!(
    a_peer_whose_mesh_file_lacks_this_node_is_named_as_the_likely_cause,
    60,
    |lab| {
        let mut world = World::new(lab, Discovery::Rendezvous);
        let (mut a, _nat_a) = world.node_behind(Nat::PortPreserving, "a");
        let (mut b, _nat_b) = world.node_behind(Nat::PortPreserving, "b");
        world.write_mesh();
        let mut without_a = world.mesh.clone();
        without_a.members.retain(|member| member.name != "a");
        b.file = b.host.directory().unwrap().join("mesh.toml");
        without_a.write(&b.file);
        a.start();
        b.start();
        let cause = a.wait("a likely cause", soon(), |status| likely(status, "b"));
        for part in ["rendezvous works", "without this node", &a.public_key] {
            assert!(cause.contains(part), "{part}: {cause}");
        }
        let text = String::from_utf8(a.natpunch(&["status"]).stdout).unwrap();
        assert!(text.contains("b: most likely: rendezvous works"), "{text}");
        // The other side gets to know this node.
        world.mesh.write(&b.file);
        a.wait_path(&b, "direct", soon());
        a.wait("no cause", soon(), |status| {
            status.get("likely").is_none().then_some(())
        });
    }
);

lab_test!(
    an_endpoint_whose_name_does_not_resolve_is_the_likely_cause,
    60,
    |lab| {
        let mut world = World::new(lab, Discovery::Rendezvous);
        world.mesh.discovery.clear();
        let host = world.lab.public_host("a").unwrap();
        let mut a = world.node(host);
        let key = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
        world
            .mesh
            .add("nas", key, "endpoint = \"nas.invalid:51820\"\n");
        world.write_mesh();
        a.start();
        let cause = a.wait("a likely cause", soon(), |status| likely(status, "nas"));
        assert!(
            cause.contains("nas.invalid:51820") && cause.contains("does not resolve"),
            "{cause}"
        );
    }
);

/// What the status says of the only discovery instance.
fn note(status: &Value) -> Option<(bool, String)> {
    let instance = status["discovery"].get(0)?;
    let note = instance["note"].as_str()?.to_owned();
    Some((instance["ok"].as_bool()?, note))
}

lab_test!(
    a_server_that_does_not_admit_this_node_is_told_from_one_that_udp_does_not_reach,
    90,
    |lab| {
        let mut world = World::new(lab, Discovery::Rendezvous);
        let host = world.lab.public_host("a").unwrap();
        let mut a = world.node(host);
        let other = crate::world::new_file(&a.host, "other.key", &["keygen"]);
        let right = world.server.secret_file.display().to_string();
        let wrong = other.display().to_string();
        world.mesh.discovery = world.mesh.discovery.replace(&right, &wrong);
        world.write_mesh();
        a.start();
        let said = a.wait("word of the secret", within(30), |status| {
            let (ok, note) = note(status)?;
            (!ok && note.contains("answers STUN")).then_some(note)
        });
        for part in ["UDP gets there", "the admission secret the same"] {
            assert!(said.contains(part), "{part}: {said}");
        }
        world.server.close_ports("51900");
        let said = a.wait("word of a firewall", within(90), |status| {
            let (ok, note) = note(status)?;
            (!ok && note.contains("also not by STUN")).then_some(note)
        });
        assert!(said.contains("may UDP reach port 51900"), "{said}");
    }
);

lab_test!(
    closed_ports_of_the_relay_and_the_second_port_are_named,
    90,
    |lab| {
        let mut world = World::new(lab, Discovery::Rendezvous);
        // The usual ones: the port after the server's, and the relay's behind it.
        world.server.close_ports("51901-51933");
        let ([a, _b], _routers) = world.pair([Nat::Symmetric; 2]);
        let said = a.wait("the ports", within(60), |status| {
            let (ok, note) = note(status)?;
            let is_told = note.contains("do not answer") && note.contains("51901, 519");
            (ok && is_told).then_some(note)
        });
        assert!(
            said.contains("open the alternate port and the relay's"),
            "{said}"
        );
    }
);

lab_test!(two_hosts_with_one_key_are_the_likely_cause, 150, |lab| {
    let mut world = World::new(lab, Discovery::Rendezvous);
    let [mut a, mut b, mut twin] = ["a", "b", "twin"].map(|name| {
        let host = world.lab.public_host(name).unwrap();
        world.node(host)
    });
    // A machine that was cloned, key and all.
    world.mesh.members.retain(|member| member.name != "twin");
    twin.key_file.clone_from(&b.key_file);
    world.write_mesh();
    let all = [&mut a, &mut b, &mut twin];
    all.into_iter().for_each(|node| node.start());
    // Before it has found either, it says that b has left nothing for it.
    let cause = a.wait("word of two hosts", within(100), |status| {
        likely(status, "b").filter(|cause| cause.contains("two hosts"))
    });
    assert!(cause.contains("its private key"), "{cause}");
});

lab_test!(
    who_may_not_look_is_told_so_and_not_that_nothing_is_up,
    60,
    |lab| {
        let (_world, mut a) = World::with_one_node(lab, Discovery::Rendezvous);
        a.start();
        a.wait_up();
        // As the agent makes it where it is not there.
        let own = || {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
            std::fs::set_permissions("/run/natpunch", mode)
        };
        a.host.run(own).unwrap().unwrap();
        for command in ["status", "down"] {
            let words = ["--reuid", "65534", "--clear-groups", NATPUNCH, command];
            let output = a.host.output("setpriv", &words).unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!output.status.success(), "{command}: {said}");
            assert!(
                said.contains("/run/natpunch") && said.contains("help: run this as root"),
                "{command}: {said}"
            );
        }
        assert!(a.status().is_some(), "it is up all the same");
    }
);

lab_test!(
    a_group_may_ask_the_agent_and_nobody_but_root_may_change_anything,
    60,
    |lab| {
        let (_world, mut a) = World::with_one_node(lab, Discovery::Rendezvous);
        a.arguments = vec!["--control-group".to_owned(), "4242".to_owned()];
        a.start();
        a.wait_up();
        let says = |groups: &str, command: &str| {
            let words = [
                "--reuid", "65534", "--regid", "65534", groups, NATPUNCH, command,
            ];
            let output = a.host.output("setpriv", &words).unwrap();
            let text = [output.stdout, output.stderr].concat();
            let text = String::from_utf8_lossy(&text).into_owned();
            (output.status.success(), text)
        };
        let (may, text) = says("--groups=4242", "status");
        assert!(may && text.contains("mesh lab · node a"), "{text}");
        for command in ["reload", "confirm"] {
            let (may, text) = says("--groups=4242", command);
            assert!(!may && text.contains("may only ask"), "{command}: {text}");
        }
        let (may, text) = says("--clear-groups", "status");
        assert!(!may && text.contains("/run/natpunch"), "{text}");
    }
);

lab_test!(
    without_its_agent_a_node_says_which_tunnels_are_up_and_is_critical,
    60,
    |lab| {
        let mut world = World::new(lab, Discovery::Rendezvous);
        let hosts = ["a", "b"].map(|name| world.lab.public_host(name).unwrap());
        let [mut a, mut b] = hosts.map(|host| world.node(host));
        world.write_mesh();
        a.start();
        b.start();
        a.wait_path(&b, "direct", soon());
        let text = |words: &[&str]| {
            let output = a.natpunch(words);
            let text = String::from_utf8(output.stdout).unwrap();
            (output.status.code(), text)
        };
        let (code, said) = text(&["status", "--check"]);
        assert_eq!(code, Some(0), "{said}");
        assert!(
            said.starts_with("OK lab: 1 of 1 connected: 1 direct |"),
            "{said}"
        );
        let (code, said) = text(&["status", "--filter", "relayed"]);
        assert_eq!(code, Some(0), "{said}");
        assert!(
            said.starts_with("1 of 1 connected: 1 direct (0 shown)"),
            "{said}"
        );

        a.kill();
        let text = |words: &[&str]| {
            let output = a.natpunch(words);
            let text = String::from_utf8(output.stdout).unwrap();
            (output.status.code(), text)
        };
        let (code, said) = text(&["status"]);
        assert_eq!(code, Some(1), "{said}");
        for part in [
            "does NOT answer; 1 of 1 tunnels are up",
            "mesh lab · node a",
            "b  ",
            " session ",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
        let (code, said) = text(&["status", "--json"]);
        let tunnels: Value = serde_json::from_str(&said).unwrap();
        assert_eq!(
            (code, &tunnels["peers"][0]["session"]),
            (Some(1), &true.into())
        );
        let (code, said) = text(&["status", "--check"]);
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains("1 of 1 tunnels are up"), "{said}");
    }
);

lab_test!(
    once_names_each_peer_that_is_missing_at_its_deadline,
    60,
    |lab| {
        let mut world = World::new(lab, Discovery::Rendezvous);
        let host = world.lab.public_host("a").unwrap();
        let a = world.node(host);
        let key = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
        world.mesh.add("absent", key, "");
        world.write_mesh();
        let (file, key_file) = (a.file.to_str().unwrap(), a.key_file.to_str().unwrap());
        let words = ["--log", "error", "apply", "--once", "--deadline", "3"];
        let output = a.natpunch(&[&words[..], &["--private-key-file", key_file, file]].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(3), "{said}");
        assert!(
            said.contains("3 s of --deadline passed") && said.contains("\n  absent: waiting: "),
            "{said}"
        );
    }
);

lab_test!(status_goes_on_when_the_agent_restarts_under_it, 60, |lab| {
    let (_world, mut a) = World::with_one_node(lab, Discovery::Rendezvous);
    a.start();
    a.wait_up();
    let mut command = Command::new(NATPUNCH);
    command
        .args(["status", "--watch", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut watching = a.host.spawn(command).unwrap();
    let answers = Follower::start(watching.child().stdout.take().unwrap(), |_, line| {
        serde_json::from_str::<Value>(line).ok()?["pid"].as_u64()
    })
    .unwrap();
    let first = answers.wait(soon(), |pids| pids.first().map(|(_, pid)| *pid));
    assert!(first.is_some(), "no answer at all");
    a.kill();
    a.start();
    let second = answers.wait(soon(), |pids| {
        let other = pids.iter().find(|(_, pid)| Some(*pid) != first);
        other.map(|(_, pid)| *pid)
    });
    assert!(second.is_some(), "nothing of the second agent");
    assert!(watching.child().try_wait().unwrap().is_none(), "it ended");
});

lab_test!(
    a_node_whose_source_is_down_at_its_first_boot_waits_for_it_and_says_so,
    60,
    |lab| {
        let mut world = World::new(lab, Discovery::Rendezvous);
        let host = world.lab.public_host("a").unwrap();
        let mut a = world.node(host);
        let repository = world.lab.directory().join("repository");
        std::fs::create_dir(&repository).unwrap();
        a.file = format!(
            "git+file://{}/mesh.git#main:mesh.toml",
            repository.display()
        )
        .into();
        a.start();
        let waiting = a.wait("word that it waits", soon(), |status| {
            status.get("waiting_for").is_some().then(|| status.clone())
        });
        assert!(
            waiting["problem"].as_str().unwrap().contains("can't fetch"),
            "{waiting}"
        );
        let text = String::from_utf8(a.natpunch(&["status"]).stdout).unwrap();
        assert!(text.starts_with("no mesh yet: the agent"), "{text}");
        // The repository comes.
        let work = repository.join("work");
        let git = |arguments: &[&str]| {
            let mut command = Command::new("git");
            command
                .args(["-c", "user.name=a", "-c", "user.email=a@example.org"])
                .args(arguments)
                .current_dir(&repository)
                .env("GIT_CONFIG_GLOBAL", "/dev/null");
            assert!(command.status().unwrap().success(), "{arguments:?}");
        };
        git(&["init", "-q", "-b", "main", "work"]);
        replace(&work.join("mesh.toml"), &world.mesh.text());
        git(&["-C", "work", "add", "-A"]);
        git(&["-C", "work", "commit", "-q", "-m", "first"]);
        git(&["clone", "-q", "--bare", "work", "mesh.git"]);
        a.natpunch(&["reload"]);
        a.wait("a mesh", soon(), |status| {
            (status["mesh"] == "lab").then_some(())
        });
        assert!(!a.has_ended(), "it is the agent that waited");
    }
);
