//! What `natpunch` says when something is missing: whom, why, and where.

use std::process::{Command, Stdio};

use natpunch_lab::{Follower, Nat, lab_test};
use serde_json::Value;

use crate::mesh::replace;
use crate::world::{Discovery, NATPUNCH, World, soon};

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
    let mut world = World::new(lab, Discovery::Rendezvous);
    let host = world.lab.public_host("a").unwrap();
    let mut a = world.node(host);
    world.write_mesh();
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
