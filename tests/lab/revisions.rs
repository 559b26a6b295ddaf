//! Who runs which version, asked inside the mesh.

use std::path::Path;
use std::time::Instant;

use natpunch_lab::{Nat, lab_test};
use serde_json::Value;

use crate::mesh::{Mesh, replace};
use crate::world::{Discovery, Node, World, new_key, soon};

fn write(mesh: &Mesh, generation: u64, file: &Path) {
    replace(
        file,
        &mesh
            .text()
            .replace("[mesh]\n", &format!("[mesh]\ngeneration = {generation}\n")),
    );
}

/// Asks until the nodes stand as expected; the last answer.
fn wait_standing(node: &Node, expected: &[(&str, &[&str])]) -> Value {
    let deadline = soon();
    loop {
        let output = node.natpunch(&["status", "--mesh", "--json"]);
        let view: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let stands = |(peer, wanted): &(&str, &[&str])| {
            let peers = view["peers"].as_array().into_iter().flatten();
            peers.into_iter().any(|other| {
                other["name"] == **peer
                    && wanted.contains(&other["standing"].as_str().unwrap_or_default())
            })
        };
        if expected.iter().all(stands) {
            return view;
        }
        assert!(
            Instant::now() < deadline,
            "{}: not {expected:?} but {view:#}",
            node.name()
        );
    }
}

fn peer<'a>(view: &'a Value, name: &str) -> &'a Value {
    view["peers"]
        .as_array()
        .unwrap()
        .iter()
        .find(|peer| peer["name"] == name)
        .unwrap()
}

lab_test!(who_lags_is_seen_from_every_node, 90, |lab| {
    let mut world = World::new(lab, Discovery::NatpunchGo);
    let (mut a, _nat) = world.node_behind(Nat::PortPreserving, "a");
    let host = world.lab.public_host("b").unwrap();
    let mut b = world.node(host);
    let host = world.lab.public_host("c").unwrap();
    let mut c = world.node(host);
    let phone = new_key(&world.lab.public_host("phone").unwrap()).1;
    world.mesh.add("phone", &phone, "managed = false\n");
    write(&world.mesh, 1, &world.file());
    c.own_file(&mut world.mesh, "");
    write(&world.mesh, 1, &c.file);
    for node in [&mut a, &mut b, &mut c] {
        node.start();
    }
    let same: &[&str] = &["same"];
    let view = wait_standing(&a, &[("b", same), ("c", same), ("phone", &["plain"])]);
    assert_eq!(view["mesh_hash"], a.status().unwrap()["mesh_hash"]);
    assert_eq!(peer(&view, "c")["version"], env!("CARGO_PKG_VERSION"));
    wait_standing(&b, &[("a", same), ("c", same)]);

    // Two nodes follow, one does not.
    world
        .mesh
        .member("phone")
        .more
        .push_str("tags = [\"new\"]\n");
    write(&world.mesh, 2, &world.file());
    let view = wait_standing(&a, &[("b", same), ("c", &["behind"])]);
    assert_eq!(
        (&view["generation"], &peer(&view, "b")["generation"]),
        (&2.into(), &2.into())
    );
    assert_eq!(
        (
            &peer(&view, "c")["generation"],
            &peer(&view, "c")["not_newest"]
        ),
        (&1.into(), &false.into())
    );
    wait_standing(&c, &[("a", &["ahead"]), ("b", &["ahead"])]);

    // One has a newest version that it can't use.
    replace(&c.file, "this is no mesh\n");
    c.wait("the error", soon(), |status| {
        (!status["reload_error"].is_null()).then_some(())
    });
    let deadline = soon();
    while peer(&wait_standing(&a, &[("c", &["behind"])]), "c")["not_newest"] != true {
        assert!(Instant::now() < deadline, "c does not say so");
    }
    let table = String::from_utf8(a.natpunch(&["status", "--mesh"]).stdout).unwrap();
    assert!(
        table.contains("behind, does not run its newest") && table.contains("plain WireGuard"),
        "{table}"
    );

    // One whose agent is gone: what is known of it stays, with its age.
    b.kill();
    let view = wait_standing(&a, &[("b", &["silent", "away"])]);
    assert_eq!(peer(&view, "b")["generation"], 2);
    assert!(peer(&view, "b")["heard_s"].as_f64().unwrap() > 0.0);
});
