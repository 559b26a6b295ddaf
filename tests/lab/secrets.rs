//! Secrets: keys that stand in the mesh file, encrypted with age, and an admission secret that
//! changes.

use std::path::Path;
use std::process::Command;

use natpunch_lab::{Nat, lab_test};

use crate::world::{Discovery, NATPUNCH, World, new_file, soon};

/// What a command prints that reads this file.
fn of_file(arguments: &[&str], file: &Path) -> String {
    let output = Command::new(NATPUNCH)
        .args(arguments)
        .stdin(std::fs::File::open(file).unwrap())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

lab_test!(nodes_need_nothing_but_their_age_identity, 60, |lab| {
    let mut world = World::new(lab, Discovery::NatpunchGo);
    let (mut a, _nat_a) = world.node_behind(Nat::PortPreserving, "a");
    let (mut b, _nat_b) = world.node_behind(Nat::PortPreserving, "b");
    let mut recipients = Vec::new();
    for node in [&mut a, &mut b] {
        let identity = new_file(&node.host, "age.key", &["keygen", "--age"]);
        let recipient = of_file(&["pubkey", "--age"], &identity).trim().to_owned();
        let key = of_file(
            &[
                "encrypt",
                "--recipient",
                &recipient,
                "--toml",
                "private_key_age",
            ],
            &node.key_file,
        );
        world.mesh.member(node.name()).more = format!("[peers.{}.interface]\n{key}", node.name());
        // What is left of the host's own is the identity.
        std::fs::remove_file(&node.key_file).unwrap();
        node.age_identity = Some(identity);
        recipients.push(recipient);
    }
    let pair = new_file(&a.host, "pair.psk", &["keygen"]);
    let [to_a, to_b] = [0, 1].map(|n| recipients[n].as_str());
    let psk = of_file(
        &[
            "encrypt",
            "-r",
            to_a,
            "-r",
            to_b,
            "--toml",
            "preshared_key_age",
        ],
        &pair,
    );
    let discovery = world.mesh.discovery.clone();
    world
        .mesh
        .discovery
        .push_str(&format!("[[preshared]]\npeers = [\"a\", \"b\"]\n{psk}"));
    world.write_mesh();
    a.start();
    b.start();
    a.wait_connected("b");
    assert!(a.reaches(b.address));
    let shown = a
        .host
        .output("wg", &["show", crate::world::INTERFACE, "preshared-keys"])
        .unwrap();
    let psk_in_plain = std::fs::read_to_string(&pair).unwrap();
    assert!(
        String::from_utf8_lossy(&shown.stdout).contains(psk_in_plain.trim()),
        "the pair's key is in use"
    );

    // Encrypted to somebody else, a new version is not applied; and the next agent finds its key in
    // the journal's.
    let stranger = new_file(&a.host, "stranger.age", &["keygen", "--age"]);
    let to = of_file(&["pubkey", "--age"], &stranger);
    let wrong = of_file(
        &[
            "encrypt",
            "-r",
            to.trim(),
            "-r",
            to_b,
            "--toml",
            "preshared_key_age",
        ],
        &pair,
    );
    world.mesh.discovery = format!("{discovery}[[preshared]]\npeers = [\"a\", \"b\"]\n{wrong}");
    world.write_mesh();
    let error = a.wait("the refusal", soon(), |status| {
        status["reload_error"].as_str().map(str::to_owned)
    });
    assert!(
        error.contains("does not open this") && error.contains("mesh.toml:"),
        "{error}"
    );
    assert!(!error.contains(psk_in_plain.trim()));
    assert!(a.reaches(b.address));
    let kept = a.host.directory().unwrap().join("state/wg-lab.journal");
    let journal = std::fs::read_to_string(kept).unwrap();
    assert!(journal.contains("BEGIN AGE ENCRYPTED FILE") && !journal.contains(psk_in_plain.trim()));
});

lab_test!(
    nodes_take_another_admission_secret_while_they_run,
    90,
    |lab| {
        let mut world = World::new(lab, Discovery::Rendezvous);
        let (mut late, _nat) = world.node_behind(Nat::PortPreserving, "late");
        let ([a, b], _routers) = world.pair([Nat::PortPreserving; 2]);
        // A relay would end with the old secret, and be made anew.
        a.wait_path(&b, "direct", soon());
        b.wait_path(&a, "direct", soon());
        let new = new_file(&a.host, "new.key", &["keygen"]);
        // The server reads the same file, and lets nobody in by the old one from now on.
        std::fs::rename(new, &world.server.secret_file).unwrap();
        for node in [&a, &b] {
            node.wait_log("reloaded the mesh file", soon())
                .expect("the secret is watched");
        }
        assert!(a.reaches(b.address), "the tunnel does not notice");
        late.start();
        late.wait_connected("a");
        late.wait_connected("b");
    }
);
