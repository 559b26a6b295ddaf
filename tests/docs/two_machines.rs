//! The tutorial, typed as it stands there.

use natpunch_lab::{Nat, lab_test};

use crate::blocks::Block;
use crate::typed::{Typist, eventually};

lab_test!(two_machines_connect_by_what_the_tutorial_says, 120, |lab| {
    let server = Typist::at(lab.public_host("server").unwrap());
    let nats = ["nat-a", "nat-b"].map(|name| lab.router(name, Nat::PortPreserving).unwrap());
    let a = Typist::at(lab.host_behind(&nats[0], "a").unwrap());
    let b = Typist::at(lab.host_behind(&nats[1], "b").unwrap());
    let address = server.host.ipv4().unwrap();
    for node in [&a, &b] {
        node.write_own("/etc/hosts", &format!("{address} rv.example.org\n"));
    }

    let _serving = server.leaves(
        &Block::named("docs/tutorial.md", "server").text,
        "serve.log",
    );
    let server_key = server.reads("serve.log", "public key: ");
    let secret = std::fs::read_to_string(server.file("admission.key")).unwrap();
    let status = Block::named("docs/tutorial.md", "serve-status").text;
    let status = eventually("answer of serve status", || Ok(server.types(&status)));
    assert!(status.contains("workers"), "{status}");

    let keys = [&a, &b].map(|node| {
        let printed = node.types(&Block::named("docs/tutorial.md", "node-key").text);
        node.write_own("/etc/natpunch/admission.key", &secret);
        node.types("chmod 600 /etc/natpunch/admission.key");
        printed.trim().to_owned()
    });
    let mesh = Block::named("docs/tutorial.md", "mesh").filled(&[&server_key, &keys[0], &keys[1]]);
    let check = Block::named("docs/tutorial.md", "check");
    let mut agents = Vec::new();
    for node in [&a, &b] {
        std::fs::write(node.file("mesh.toml"), &mesh).unwrap();
        assert!(node.types(&check.text).contains("ok: mesh home"));
        let plan = node.types(&Block::named("docs/tutorial.md", "plan").text);
        assert!(plan.contains("+ interface wg-home"), "{plan}");
        agents.push(node.leaves(&Block::named("docs/tutorial.md", "apply").text, "apply.log"));
    }
    let ping = Block::named("docs/tutorial.md", "ping").text;
    let ping = ping.trim().to_owned();
    let status = Block::named("docs/tutorial.md", "status").text;
    eventually("direct path", || {
        // One packet also wakes the path; the document's command goes on until Ctrl-C.
        let answer = a.types(&format!(
            "{} || true",
            ping.replacen("ping", "ping -c 1 -W 1", 1)
        ));
        let shown = a.types(&format!("{} || true", status.trim()));
        // The row of the peer: a line below the table may speak of a direct path that is looked for.
        let mut rows = shown.lines().filter(|line| line.starts_with("b "));
        let is_direct = rows.any(|row| row.contains(" direct "));
        match answer.contains("1 received") && is_direct {
            true => Ok(()),
            false => Err(format!("{answer}\n{shown}")),
        }
    });
    // The mesh answers to its name, too.
    assert!(
        a.types("natpunch status -i home")
            .contains("interface wg-home")
    );
    monitoring(&a);
    new_key(&a, &keys[0]);
    a.types(&Block::named("docs/tutorial.md", "down").text);
    a.types(&Block::named("docs/tutorial.md", "git-commit").text);
    assert!(a.types("git -C mesh show --stat").contains("mesh.toml"));
});

/// What docs/how-to/monitoring.md makes of the status of a node whose peer is connected.
fn monitoring(node: &Typist) {
    node.types(&Block::named("docs/how-to/monitoring.md", "check-node").text);
    let file = node.types(&Block::named("docs/how-to/monitoring.md", "textfile").text);
    let lines = [
        "natpunch_peer_connected{mesh=\"home\",peer=\"b\"} 1",
        "natpunch_peer_direct{mesh=\"home\",peer=\"b\"} 1",
    ];
    assert_eq!(file.lines().collect::<Vec<_>>(), lines);
}

/// What docs/how-to/secrets.md says of the key of a node: one commit changes it in two places.
fn new_key(node: &Typist, old: &str) {
    let new = node.types(&Block::named("docs/how-to/secrets.md", "new-key").text);
    let section = Block::named("docs/how-to/secrets.md", "new-key-file").text;
    let mesh = std::fs::read_to_string(node.file("mesh.toml")).unwrap();
    let changed = mesh.replace(old, new.trim());
    let changed = format!("{changed}\n{}", section.replace("peers.nas", "peers.a"));
    std::fs::write(node.file("changed.toml"), changed).unwrap();
    let plan = node.types("natpunch plan changed.toml || test $? = 2");
    assert!(
        plan.contains(&format!("~ private key (public key {})", new.trim())),
        "{plan}"
    );
    assert_eq!(plan.matches("private key").count(), 1, "{plan}");
}
