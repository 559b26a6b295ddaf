//! What `natpunch doctor` says of hosts whose network is known.

use natpunch_lab::{Nat, lab_test};
use serde_json::Value;

use crate::world::{Discovery, NATPUNCH, Node, World};

/// Examines a node's host, and gives the exit code and the checks.
fn examine(node: &Node) -> (Option<i32>, Vec<Value>) {
    let (file, key) = (node.file.to_str().unwrap(), node.key_file.to_str().unwrap());
    let output = node.natpunch(&["doctor", file, "--json", "--private-key-file", key]);
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    (
        output.status.code(),
        report["checks"].as_array().unwrap().clone(),
    )
}

/// The verdict of a check, and what it says.
fn check<'a>(checks: &'a [Value], name: &str) -> (&'a str, &'a str) {
    let is_it = |check: &&Value| check["check"].as_str().unwrap().starts_with(name);
    let found = checks
        .iter()
        .find(is_it)
        .unwrap_or_else(|| panic!("no {name} in {checks:#?}"));
    (
        found["verdict"].as_str().unwrap(),
        found["text"].as_str().unwrap(),
    )
}

lab_test!(
    doctor_tells_an_easy_nat_from_a_hard_one_and_names_a_server_that_udp_does_not_reach,
    60,
    |lab| {
        let mut world = World::new(lab, Discovery::Rendezvous);
        let (a, _nat_a) = world.node_behind(Nat::PortPreserving, "a");
        let (b, _nat_b) = world.node_behind(Nat::Symmetric, "b");
        world.write_mesh();
        let (code, checks) = examine(&a);
        for good in [
            "privileges",
            "TUN",
            "nftables",
            "listen port",
            "networks",
            "MTU",
            "server rendezvous",
        ] {
            assert_eq!(check(&checks, good).0, "good", "{checks:#?}");
        }
        assert!(
            check(&checks, "NAT of IPv4").1.starts_with("easy: "),
            "{checks:#?}"
        );
        assert_eq!(code, Some(0), "{checks:#?}");
        let (code, checks) = examine(&b);
        assert_eq!((code, check(&checks, "NAT of IPv4").0), (Some(4), "bad"));
        assert!(
            check(&checks, "NAT of IPv4").1.starts_with("hard: "),
            "{checks:#?}"
        );
        world.server.close_ports("51900-51933");
        let (code, checks) = examine(&a);
        assert_eq!(
            (code, check(&checks, "server rendezvous").0),
            (Some(4), "bad")
        );
    }
);

lab_test!(
    doctor_tells_whose_packets_real_nats_let_in_and_which_one_unexpected_packets_spoil,
    90,
    |lab| {
        let mut world = World::new(lab, Discovery::Rendezvous);
        let kinds = [
            (Nat::PortPreserving, "packets from where", Some("good")),
            (Nat::FullCone, "packets from any port of", None),
            (Nat::Restricted, "packets from any port of", None),
            // Another port for each destination hides what an unexpected packet does.
            (Nat::Symmetric, "packets from where", None),
        ];
        let behind: Vec<_> = kinds
            .iter()
            .enumerate()
            .map(|(n, (nat, ..))| world.node_behind(*nat, &format!("n{n}")))
            .collect();
        let accepting = world
            .lab
            .accepting_router("accepts", Nat::PortPreserving)
            .unwrap();
        let spoilt = world.node_at(&accepting, "n9");
        world.write_mesh();
        for ((nat, filter, unexpected), (node, _)) in kinds.iter().zip(&behind) {
            let (_, checks) = examine(node);
            let (verdict, text) = check(&checks, "filter of IPv4");
            assert!(text.starts_with(filter), "{nat:?}: {checks:#?}");
            assert_eq!(verdict, "good");
            let is_unexpected = |check: &&Value| check["check"] == "unexpected packets";
            let found = checks.iter().find(is_unexpected);
            let verdict = found.map(|check| check["verdict"].as_str().unwrap());
            assert_eq!(verdict, *unexpected, "{nat:?}: {checks:#?}");
        }
        let (_, checks) = examine(&spoilt);
        assert_eq!(check(&checks, "unexpected packets").0, "bad", "{checks:#?}");
        let filter = check(&checks, "filter of IPv4").1;
        assert!(filter.starts_with("packets from where"), "{filter}");
    }
);

lab_test!(doctor_works_for_a_user_and_without_a_mesh, 60, |lab| {
    let mut world = World::new(lab, Discovery::Rendezvous);
    let host = world.lab.public_host("a").unwrap();
    let stun = format!("{}:51900", world.server.address());
    let words = [
        "--reuid",
        "65534",
        "--clear-groups",
        NATPUNCH,
        "doctor",
        "--stun",
        &stun,
    ];
    let output = host.output("setpriv", &words).unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    for part in [
        "unknown  privileges",
        "answers over UDP: IPv4 in ",
        "none: this host has the public address",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
});
