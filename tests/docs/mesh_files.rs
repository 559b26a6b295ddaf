//! How-tos about the mesh file, typed as they stand there, by hosts that then reach each other.

use std::fs;
use std::net::IpAddr;

use natpunch_lab::{Lab, Nat, Process, Router, lab_test};

use crate::blocks::Block;
use crate::typed::{Typist, eventually};

const HEAD: &str = "[mesh]\nname = \"home\"\nnetworks = [\"10.77.0.0/24\"]\n\n";

/// A host behind a router of its own.
fn behind(lab: &mut Lab, name: &str) -> (Typist, Router) {
    let nat = format!("nat-{name}");
    let router = lab.router(&nat, Nat::PortPreserving).unwrap();
    (Typist::at(lab.host_behind(&router, name).unwrap()), router)
}

/// A key pair in a file of this host; the public half.
fn new_key(at: &Typist, file: &str) -> String {
    let public = at.types(&format!(
        "umask 077; natpunch keygen > {file}; natpunch pubkey < {file}"
    ));
    public.trim().to_owned()
}

/// The IPv4 address of a peer of the mesh file.
fn address(at: &Typist, peer: &str) -> IpAddr {
    let mesh = natpunch::config::load(&at.file("mesh.toml"));
    let mesh = mesh.unwrap_or_else(|errors| panic!("{errors}"));
    let addresses = &mesh.peers[peer].addresses;
    addresses.iter().copied().find(IpAddr::is_ipv4).unwrap()
}

fn apply(at: &Typist, key_file: &str) -> Process {
    let line = format!("natpunch apply mesh.toml --private-key-file {key_file}");
    at.leaves(&line, "apply.log")
}

fn reach(from: &Typist, to: IpAddr) {
    eventually(&format!("answer of {to}"), || {
        let answer = from.types(&format!("ping -n -c 1 -W 1 {to} || true"));
        let is_answered = answer.contains("1 received");
        is_answered.then_some(()).ok_or(answer)
    });
}

/// What a peer of a mesh file needs beside what the page shows of it.
fn with_keys(text: &str, peers: &[(&str, &str)]) -> String {
    let mut text = text.to_owned();
    for (number, (name, key)) in (1..).zip(peers) {
        let heading = format!("[peers.{name}]\n");
        let lines = format!("public_key = \"{key}\"\naddresses = [\"10.77.0.{number}\"]\n");
        assert!(text.contains(&heading), "{name} in\n{text}");
        text = text.replace(&heading, &format!("{heading}{lines}"));
    }
    text
}

lab_test!(a_mesh_is_made_from_nothing, 90, |lab| {
    let nas = Typist::at(lab.public_host("nas").unwrap());
    let (laptop, _router) = behind(&mut lab, "laptop");
    let hosts = format!("{} nas.example.org\n", nas.host.ipv4().unwrap());
    laptop.write_own("/etc/hosts", &hosts);
    let key = new_key(&laptop, "laptop.key");
    let made = Block::named("docs/how-to/peers.md", "from-nothing").text;
    assert!(made.contains("bpkhi…="), "{made}");
    nas.types(&made.replace("bpkhi…=", &key));
    fs::copy(nas.file("mesh.toml"), laptop.file("mesh.toml")).unwrap();
    let _agents = [apply(&nas, "nas.key"), apply(&laptop, "laptop.key")];
    reach(&laptop, address(&nas, "nas"));
    reach(&nas, address(&nas, "laptop"));
    let status = nas.types("natpunch status --json");
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["listen_port"], 51_820, "that of its endpoint");
});

lab_test!(a_mesh_serves_itself, 90, |lab| {
    let hub = Typist::at(lab.public_host("hub").unwrap());
    let (a, _router_a) = behind(&mut lab, "a");
    let (b, _router_b) = behind(&mut lab, "b");
    let keys = [&hub, &a, &b].map(|host| new_key(host, "own.key"));
    let section = Block::named("docs/how-to/relays.md", "serve").filled(&[&keys[0]]);
    assert!(!section.contains("listen_port"), "{section}");
    let others = with_keys(
        "[peers.x]\n[peers.a]\n[peers.b]\n",
        &[("x", "-"), ("a", &keys[1]), ("b", &keys[2])],
    );
    let (_, others) = others.split_once("[peers.a]").unwrap();
    let hosts = format!("{} hub.example.org\n", hub.host.ipv4().unwrap());
    let mut agents = Vec::new();
    for host in [&hub, &a, &b] {
        host.write_own("/etc/hosts", &hosts);
        let text = format!("{HEAD}{section}\n[peers.a]{others}");
        fs::write(host.file("mesh.toml"), text).unwrap();
        agents.push(apply(host, "own.key"));
    }
    reach(&a, address(&a, "b"));
    reach(&b, address(&a, "hub"));
    eventually("direct path", || {
        let shown = a.types("natpunch status || true");
        let is_direct = shown.matches(" direct ").count() == 2;
        is_direct.then_some(()).ok_or(shown)
    });
});

lab_test!(what_is_said_of_networks_and_names_is_valid, 60, |lab| {
    let at = Typist::at(lab.public_host("a").unwrap());
    let names = ["nas", "gateway", "laptop"];
    let keys = names.map(|name| new_key(&at, &format!("{name}.key")));
    let peers: Vec<(&str, &str)> = names
        .into_iter()
        .zip(keys.iter().map(String::as_str))
        .collect();
    let networks = Block::named("docs/how-to/exit-node.md", "behind-peers").text;
    let hosts = Block::named("docs/how-to/names.md", "names").text;
    let server = "[discovery.go]\nplugin = \"natpunch-go\"\nserver = \"rv.example.org:1\"\n";
    let server = format!("{server}public_key = \"{}\"\n", keys[0]);
    let mapping = Block::named("docs/how-to/port-mapping.md", "port-mapping").text;
    let peers = with_keys(&networks, &peers);
    let text = format!("{HEAD}{hosts}{server}{peers}\n{mapping}");
    fs::write(at.file("mesh.toml"), text).unwrap();
    let said = at.types("natpunch check mesh.toml");
    assert!(said.contains("ok: mesh home"), "{said}");
});

lab_test!(plain_wireguard_comes_in_and_goes_out, 60, |lab| {
    let at = Typist::at(lab.public_host("nas").unwrap());
    let peer = new_key(&at, "peer.key");
    let own = at.types("natpunch keygen");
    let conf = format!(
        "[Interface]\nPrivateKey = {own}Address = 10.77.0.1/24\nListenPort = 51820\n\n\
         [Peer]\n# Name = laptop\nPublicKey = {peer}\nAllowedIPs = 10.77.0.2/32\n"
    );
    at.types("mkdir -p /etc/wireguard");
    at.write_own("/etc/wireguard/wg0.conf", &conf);
    at.types("chmod 600 /etc/wireguard/wg0.conf");
    at.types(&Block::named("docs/how-to/plain-wireguard.md", "import").text);
    let printed = at.types(&Block::named("docs/how-to/plain-wireguard.md", "phone").text);
    assert!(
        printed.contains('█') || printed.contains('▄'),
        "no QR code: {printed}"
    );
    for made in ["mesh.toml", "nas.key", "phone.key"] {
        assert!(at.file(made).exists(), "{made}");
    }
    let mesh = natpunch::config::load(&at.file("mesh.toml")).unwrap();
    assert!(mesh.peers.contains_key("laptop") && mesh.peers.contains_key("phone"));
});

lab_test!(a_key_comes_encrypted_with_the_mesh_file, 60, |lab| {
    let at = Typist::at(lab.public_host("nas").unwrap());
    let typed = Block::named("docs/how-to/secrets.md", "age").text;
    let (identity, key) = typed.split_once('\n').unwrap();
    at.types(&format!(
        "mkdir -p /etc/natpunch\n{{ {identity}\n}} 2> said"
    ));
    let said = fs::read_to_string(at.file("said")).unwrap();
    let recipient = said
        .split_whitespace()
        .find(|word| word.starts_with("age1"));
    let recipient = recipient.unwrap_or_else(|| panic!("no recipient: {said}"));
    let key = key
        .replace("age1NODE…", recipient)
        .replace("age1ADMIN…", recipient);
    // The shell that most people type into; the page's line is for it.
    fs::write(at.file("key.sh"), key).unwrap();
    let toml = at.types("bash -eu -o pipefail key.sh 2> public");
    // The shell does not wait for the process behind `>(…)`.
    let public = eventually("public key", || {
        let text = fs::read_to_string(at.file("public")).unwrap();
        text.ends_with('\n').then_some(()).ok_or(String::new())?;
        Ok(text)
    });

    let shown = Block::named("docs/how-to/secrets.md", "age-key").text;
    let armour = |text: &str| {
        let (_, rest) = text.split_once("FILE-----\n").unwrap();
        rest.split("-----END").next().unwrap().to_owned()
    };
    let section = shown.replace(&armour(&shown), &armour(&toml));
    let peer = with_keys("[peers.nas]\n", &[("nas", public.trim())]);
    fs::write(at.file("mesh.toml"), format!("{HEAD}{peer}{section}")).unwrap();
    at.types("natpunch check mesh.toml");
    // 2: there would be changes, so the key was opened.
    at.types("natpunch plan mesh.toml --age-identity /etc/natpunch/age.key || [ $? = 2 ]");
});
