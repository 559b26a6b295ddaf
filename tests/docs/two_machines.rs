//! README's "Two machines, for real", typed as it stands there.

use natpunch_lab::{Nat, lab_test};

use crate::blocks::Block;
use crate::typed::{Typist, eventually};

lab_test!(two_machines_connect_by_what_readme_says, 120, |lab| {
    let server = Typist::at(lab.public_host("server").unwrap());
    let nats = ["nat-a", "nat-b"].map(|name| lab.router(name, Nat::PortPreserving).unwrap());
    let a = Typist::at(lab.host_behind(&nats[0], "a").unwrap());
    let b = Typist::at(lab.host_behind(&nats[1], "b").unwrap());
    let address = server.host.ipv4().unwrap();
    for node in [&a, &b] {
        node.write_own("/etc/hosts", &format!("{address} rv.example.org\n"));
    }

    let _serving = server.leaves(&Block::named("README.md", "server").text, "serve.log");
    let server_key = server.reads("serve.log", "public key: ");
    let secret = std::fs::read_to_string(server.file("admission.key")).unwrap();
    let status = Block::named("README.md", "serve-status").text;
    let status = eventually("answer of serve status", || Ok(server.types(&status)));
    assert!(status.contains("workers"), "{status}");

    let keys = [&a, &b].map(|node| {
        let printed = node.types(&Block::named("README.md", "node-key").text);
        node.write_own("/etc/natpunch/admission.key", &secret);
        node.types("chmod 600 /etc/natpunch/admission.key");
        printed.trim().to_owned()
    });
    let mesh = Block::named("README.md", "mesh").filled(&[&server_key, &keys[0], &keys[1]]);
    let check = Block::named("README.md", "check");
    let mut agents = Vec::new();
    for node in [&a, &b] {
        std::fs::write(node.file("mesh.toml"), &mesh).unwrap();
        assert!(node.types(&check.text).contains("ok: mesh home"));
        agents.push(node.leaves(&Block::named("README.md", "apply").text, "apply.log"));
    }
    let ping = Block::named("README.md", "ping").text;
    let (ping, status) = (ping.trim().to_owned(), "natpunch status".to_owned());
    eventually("direct path", || {
        // One packet also wakes the path; the README's command goes on until Ctrl-C.
        let answer = a.types(&format!(
            "{} || true",
            ping.replacen("ping", "ping -c 1 -W 1", 1)
        ));
        let shown = a.types(&format!("{status} || true"));
        match answer.contains("1 received") && shown.contains("direct") {
            true => Ok(()),
            false => Err(format!("{answer}\n{shown}")),
        }
    });
    // The mesh answers to its name, too.
    assert!(
        a.types("natpunch status -i home")
            .contains("interface wg-home")
    );
    a.types("natpunch down -i home");
});
