//! What the documents say, typed as it stands there: only keys and the names of hosts are filled in.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Command;

use natpunch_lab::{Lab, Nat, lab_test};

use crate::mesh::{Mesh, replace};
use crate::world::{NATPUNCH, Node, soon};

const PAGE: &str = include_str!("../../docs/mesh-files.md");

/// The first block of code below a heading of the page.
fn block(heading: &str) -> &'static str {
    let (_, section) = PAGE.split_once(&format!("\n## {heading}\n")).unwrap();
    let (_, block) = section.split_once("\n```").unwrap();
    let (_, code) = block.split_once('\n').unwrap();
    code.split("\n```").next().unwrap()
}

/// Types a line in a directory, with `natpunch` in the search path.
fn type_line(directory: &Path, line: &str) {
    let programs = Path::new(NATPUNCH).parent().unwrap().display().to_string();
    let path = format!("{programs}:{}", std::env::var("PATH").unwrap());
    let output = Command::new("sh")
        .args(["-c", line])
        .current_dir(directory)
        .env("PATH", path)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {said}");
}

/// The IPv4 address of a peer of a mesh file.
fn address(file: &Path, peer: &str) -> Ipv4Addr {
    let mesh = natpunch::config::load(file).unwrap_or_else(|errors| panic!("{errors}"));
    let addresses = &mesh.peers[peer].addresses;
    let v4 = addresses.iter().find_map(|address| match address {
        IpAddr::V4(v4) => Some(*v4),
        IpAddr::V6(_) => None,
    });
    v4.unwrap()
}

/// A host that runs a node of this file.
fn node(host: natpunch_lab::Host, file: &Path) -> Node {
    Node::new(host, &mut Mesh::default(), file.to_owned(), "")
}

/// A laptop behind a router of its own.
fn laptop(lab: &mut Lab, name: &str, file: &Path) -> (Node, natpunch_lab::Router) {
    let router = lab
        .router(&format!("nat-{name}"), Nat::PortPreserving)
        .unwrap();
    let host = lab.host_behind(&router, name).unwrap();
    (node(host, file), router)
}

lab_test!(
    the_documented_way_from_nothing_to_a_mesh_makes_two_nodes_that_reach_each_other,
    60,
    |lab| {
        let directory = lab.directory().to_owned();
        let file = directory.join("mesh.toml");
        let mut nas = node(lab.public_host("nas").unwrap(), &file);
        let (mut laptop, _router) = laptop(&mut lab, "laptop", &file);
        let code = block("From nothing to a mesh");
        assert!(code.contains("--endpoint nas.example.org:51820"), "{code}");
        let at = nas.host.ipv4().unwrap().to_string();
        for line in code.lines() {
            let line = line.replace("bpkhi…=", &laptop.public_key);
            type_line(&directory, &line.replace("nas.example.org", &at));
        }
        nas.key_file = directory.join("nas.key");
        nas.address = address(&file, "nas");
        laptop.address = address(&file, "laptop");
        nas.start();
        laptop.start();
        laptop.wait_connected("nas");
        assert!(laptop.reaches(nas.address) && nas.reaches(laptop.address));
        assert_eq!(nas.status().unwrap()["listen_port"], 51_820);
    }
);

lab_test!(
    the_documented_peer_that_serves_connects_two_nodes_behind_nats,
    90,
    |lab| {
        let file = lab.directory().join("mesh.toml");
        let mut hub = node(lab.public_host("hub").unwrap(), &file);
        let (mut a, _router_a) = laptop(&mut lab, "a", &file);
        let (mut b, _router_b) = laptop(&mut lab, "b", &file);
        let section = block("A mesh that serves itself");
        assert!(!section.contains("listen_port"), "{section}");
        let at = hub.host.ipv4().unwrap().to_string();
        let mut text = section
            .replacen('…', &hub.public_key, 1)
            .replace("hub.example.org", &at);
        for (n, peer) in [(2, &a), (3, &b)] {
            text.push_str(&format!(
                "\n[peers.{}]\npublic_key = \"{}\"\naddresses = [\"10.77.0.{n}\"]\n",
                peer.name(),
                peer.public_key
            ));
        }
        let head = "[mesh]\nname = \"home\"\nnetworks = [\"10.77.0.0/24\"]\n\n";
        replace(&file, &format!("{head}{text}"));
        hub.address = address(&file, "hub");
        a.address = address(&file, "a");
        b.address = address(&file, "b");
        for node in [&mut hub, &mut a, &mut b] {
            node.start();
        }
        a.wait_path(&b, "direct", soon());
        assert!(a.reaches(b.address) && b.reaches(hub.address));
    }
);
