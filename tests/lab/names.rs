//! Names of the peers in the hosts file.

use std::time::Instant;

use natpunch_lab::{Nat, lab_test};

use crate::safety::revision;
use crate::world::{Discovery, INTERFACE, World, soon};

const OWN: &str = "127.0.0.1 localhost\n192.0.2.1 printer\n";

lab_test!(names_of_the_peers_come_and_go_with_the_mesh, 60, |lab| {
    let mut world = World::new(lab, Discovery::NatpunchGo);
    let (mut a, _nat) = world.node_behind(Nat::PortPreserving, "a");
    let host = world.lab.public_host("b").unwrap();
    let mut b = world.node(host);
    world.mesh.discovery.push_str("[names]\nhosts = true\n");
    world.write_mesh();
    let hosts = a.host.directory().unwrap().join("hosts");
    std::fs::write(&hosts, OWN).unwrap();
    // The command line of the test and the agent share it.
    a.environment
        .push(("NATPUNCH_HOSTS_FILE", hosts.display().to_string()));
    b.environment
        .push(("NATPUNCH_HOSTS_FILE", "/proc/natpunch/hosts".to_owned()));
    let text = || std::fs::read_to_string(&hosts).unwrap();
    let wait = |what: &str, check: &dyn Fn(&str) -> bool| {
        let deadline = soon();
        while !check(&text()) {
            assert!(Instant::now() < deadline, "{what}: {}", text());
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    };

    a.start();
    b.start();
    a.wait_connected("b");
    let line = format!("{} b.lab b\n", b.address);
    wait("the names", &|text| {
        text.starts_with(OWN) && text.contains(&line)
    });

    // Where they can't be written, the tunnels are as they are, and the node says why.
    let error = b.wait("the error", soon(), |status| {
        status["hosts_error"].as_str().map(str::to_owned)
    });
    assert!(error.contains("/proc/natpunch/hosts"), "{error}");
    assert!(a.reaches(b.address));

    // What somebody takes out comes back, and what somebody adds outside of the block stays.
    std::fs::write(&hosts, format!("{OWN}192.0.2.2 b\n")).unwrap();
    wait("healing", &|text| {
        text.contains(&format!("{} b.lab\n", b.address))
    });
    assert!(text().starts_with(OWN) && text().contains("192.0.2.2 b\n"));

    // A reload that wants none takes them away.
    let before = revision(&a);
    world.mesh.discovery = world
        .mesh
        .discovery
        .replace("hosts = true", "hosts = false");
    world.write_mesh();
    a.wait("the reload", soon(), |status| {
        (status["revision"] != *before).then_some(())
    });
    wait("no names", &|text| text == format!("{OWN}192.0.2.2 b\n"));
    world.mesh.discovery = world
        .mesh
        .discovery
        .replace("hosts = false", "hosts = true");
    world.write_mesh();
    wait("the names again", &|text| text.contains("b.lab"));

    // They stay with the tunnels when the agent ends, and go with them.
    a.stop();
    assert!(text().contains("b.lab"));
    let down = a.natpunch(&["down", "--interface", INTERFACE]);
    assert!(
        down.status.success(),
        "{}",
        String::from_utf8_lossy(&down.stderr)
    );
    assert_eq!(text(), format!("{OWN}192.0.2.2 b\n"));
});
