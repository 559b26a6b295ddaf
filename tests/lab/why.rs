//! What `natpunch why` says of real pairs.

use std::time::Instant;

use natpunch_lab::{Nat, lab_test};
use serde_json::Value;

use crate::world::{Discovery, Node, World, soon, within};

fn text(node: &Node, arguments: &[&str]) -> String {
    let output = node.natpunch(&[&["why"], arguments].concat());
    let both = [output.stdout, output.stderr].concat();
    String::from_utf8(both).unwrap()
}

/// Asks why until it is for this reason; the whole answer.
fn wait_situation(node: &Node, peer: &str, situation: &str, deadline: Instant) -> Value {
    loop {
        let answer = node.natpunch(&["why", peer, "--json"]).stdout;
        let why: Value = serde_json::from_slice(&answer).unwrap_or_default();
        if why["cause"]["situation"] == situation {
            return why;
        }
        assert!(
            Instant::now() < deadline,
            "{}: not {situation}, but\n{}",
            node.name(),
            text(node, &[peer, "--verbose"])
        );
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is missing in\n{text}");
    }
}

lab_test!(
    a_direct_pair_is_told_with_its_nats_its_tries_and_its_past_and_an_absent_one_with_what_lacks,
    60,
    |lab| {
        let mut world = World::new(lab, Discovery::Rendezvous);
        let key = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
        world.mesh.add("absent", key, "");
        let (mut a, _nat_a) = world.node_behind(Nat::PortPreserving, "a");
        let (mut b, _nat_b) = world.node_behind(Nat::PortPreserving, "b");
        world.write_mesh();
        a.arguments = ["--metrics", "127.0.0.1:9468"].map(str::to_owned).to_vec();
        a.start();
        b.start();
        a.wait_path(&b, "direct", soon());
        let metrics = a.host.run(|| {
            let mut stream = std::net::TcpStream::connect("127.0.0.1:9468").unwrap();
            let request = b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n";
            std::io::Write::write_all(&mut stream, request).unwrap();
            std::io::read_to_string(stream).unwrap()
        });
        let metrics = metrics.unwrap();
        assert_says(
            &metrics,
            &[
                "natpunch_agent_peers{path=\"direct\"} 1",
                "natpunch_agent_time_to_direct_seconds_count 1",
                "natpunch_agent_rollout{state=\"settled\"} 1",
                "natpunch_agent_discovery_ok{instance=\"rendezvous\"} 1",
            ],
        );
        let why = wait_situation(&a, "b", "direct", soon());
        assert!(why["since_s"].as_f64().is_some(), "{why:#}");
        let candidates = why["peer"]["candidates"].as_array().unwrap();
        assert!(
            candidates.iter().any(|c| c["answers"].as_u64() > Some(0)),
            "{why:#}"
        );
        let text_of_b = text(&a, &["b", "--verbose"]);
        let parts = [
            "b: direct at ",
            "why: all is well: the path is direct",
            "in use",
        ];
        assert_says(&text_of_b, &parts);
        assert_says(
            &text_of_b,
            &["connected at", "NAT of a  easy: ", "the search for it"],
        );
        let ping = a.natpunch(&["ping", "b"]);
        let said = String::from_utf8(ping.stdout).unwrap();
        assert!(ping.status.success(), "{said}");
        assert_says(&said, &["b: direct ", ": answered in ", "; 10.77.0.3 in "]);
        assert_eq!(
            a.natpunch(&["ping", "absent", "-c", "1"]).status.code(),
            Some(1)
        );
        // The other half, asked inside the mesh: in any order of the names, and of a living peer.
        for names in [["a", "b"], ["b", "a"]] {
            let both = text(&a, &names);
            assert_says(
                &both,
                &[
                    "b: direct at ",
                    "as b sees it\n  a: direct at ",
                    "NAT of b: easy",
                ],
            );
        }
        let both = a.natpunch(&["why", "a", "b", "--json"]).stdout;
        let both: Value = serde_json::from_slice(&both).unwrap();
        assert_eq!(both["there"]["situation"], "direct", "{both:#}");
        assert_eq!(both["here"]["peer"]["name"], "b", "{both:#}");
        assert_says(
            &text(&a, &["a", "absent"]),
            &[
                "not connected",
                "as absent sees it\n  not known: absent did not answer",
            ],
        );
        assert_says(
            &text(&a, &["absent", "b"]),
            &[
                "this node is a",
                "help: run `natpunch why absent b` on absent or on b",
            ],
        );
        wait_situation(&a, "absent", "nothing-left-for-us", soon());
        assert_says(
            &text(&a, &["absent"]),
            &["not connected (waiting)", "without this node"],
        );
        assert_says(
            &text(&a, &["a"]),
            &["a is this node", "help: name another one"],
        );
        assert_says(
            &text(&a, &["bb"]),
            &["no peer \"bb\"", "help: did you mean \"b\"?"],
        );
    }
);

lab_test!(
    two_hard_nats_are_named_with_the_port_that_would_help,
    60,
    |lab| {
        let mut world = World::new(lab, Discovery::Rendezvous);
        let ([a, b], _routers) = world.pair([Nat::Symmetric; 2]);
        a.wait_path(&b, "relay", soon());
        wait_situation(&a, "b", "both-nats-hard", within(30));
        let parts = [
            "b: by the relay at ",
            "both NATs give every destination another port",
            "forward UDP port ",
        ];
        assert_says(&text(&a, &["b"]), &parts);
        assert_says(
            &text(&a, &["b"]),
            &["NAT of b  hard: ", "in use: rendezvous at "],
        );
    }
);

lab_test!(a_server_that_udp_does_not_reach_is_named, 60, |lab| {
    let mut world = World::new(lab, Discovery::Rendezvous);
    world.server.close_ports("51900");
    let ([a, _b], _routers) = world.pair([Nat::PortPreserving; 2]);
    a.wait("word of the server", within(60), |status| {
        let note = status["discovery"][0]["note"].as_str()?;
        note.contains("also not by STUN").then_some(())
    });
    wait_situation(&a, "b", "servers-silent", soon());
    assert_says(
        &text(&a, &["b"]),
        &["also not by STUN", "can't find each other"],
    );
});

lab_test!(a_wrong_key_of_the_server_is_named, 60, |lab| {
    let mut world = World::new(lab, Discovery::Rendezvous);
    let right = world.server.public_key.clone();
    let wrong = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
    world.mesh.discovery = world.mesh.discovery.replace(&right, wrong);
    let ([a, _b], _routers) = world.pair([Nat::PortPreserving; 2]);
    a.wait("word of the key", within(30), |status| {
        let note = status["discovery"][0]["note"].as_str()?;
        note.contains("answers STUN").then_some(())
    });
    wait_situation(&a, "b", "servers-silent", soon());
    assert_says(&text(&a, &["b"]), &["UDP gets there", wrong]);
});

lab_test!(a_firewall_between_two_easy_nats_is_named, 90, |lab| {
    let mut world = World::new(lab, Discovery::Rendezvous);
    let (mut a, nat_a) = world.node_behind(Nat::PortPreserving, "a");
    let (mut b, nat_b) = world.node_behind(Nat::PortPreserving, "b");
    world.write_mesh();
    nat_b.set_blocked(nat_a.address(), true).unwrap();
    a.start();
    b.start();
    a.wait_path(&b, "relay", soon());
    wait_situation(&a, "b", "firewall", within(40));
    assert_says(
        &text(&a, &["b"]),
        &["is dropped", "allow UDP between the two"],
    );
});

lab_test!(a_mesh_file_that_wants_the_relay_is_named, 60, |lab| {
    let mut world = World::new(lab, Discovery::Rendezvous);
    let (mut a, _nat_a) = world.node_behind(Nat::PortPreserving, "a");
    let (mut b, _nat_b) = world.node_behind(Nat::PortPreserving, "b");
    world.mesh.member("b").more = "relay = \"only\"\n".to_owned();
    world.write_mesh();
    a.start();
    b.start();
    a.wait_path(&b, "relay", soon());
    wait_situation(&a, "b", "relay-only", soon());
    assert_says(&text(&a, &["b"]), &["relay = \"only\"", "take it out"]);
});
