//! What must be true of a mesh, at the bound of each: what is just allowed, and what is just not.

use crate::support::{SERVER, head, key, load, mesh, peer, refusals};

/// The first is allowed; the second is refused with these words, at a line with that text.
#[track_caller]
fn refused(words: &str, at: &str, allowed: &str, not: &str) {
    let said = refusals(allowed);
    assert!(said.is_empty(), "{said:?}\n{allowed}");
    let said = refusals(not);
    let hit = |(message, line): &(String, String)| message.contains(words) && line.contains(at);
    assert!(said.iter().any(hit), "{words} at {at}: {said:?}\n{not}");
    assert_eq!(said.len(), 1, "nothing else: {said:?}\n{not}");
}

#[test]
fn a_mesh_has_a_name_a_network_and_a_peer() {
    let whole = mesh("", "", ["", "", ""]);
    let network = "networks = ['10.0.0.0/24']\n";
    for (words, at, not) in [
        (
            "`mesh.name` is missing",
            "[mesh]",
            whole.replace("name = 'home'\n", ""),
        ),
        (
            "`mesh.networks` is missing",
            "[mesh]",
            whole.replace(network, ""),
        ),
        (
            "`mesh.networks` is missing",
            "networks",
            whole.replace(network, "networks = []\n"),
        ),
    ] {
        refused(words, at, &whole, &not);
    }
    let alone = head("10.0.0.0/24", "");
    refused("section [peers] is missing", "", &whole, &alone);
    let peers = whole.split_once("[peers").unwrap().1;
    refused(
        "section [mesh] is missing",
        "",
        &whole,
        &format!("[peers{peers}"),
    );
}

#[test]
fn an_address_is_one_of_the_meshs_and_no_networks_own() {
    let of = |network: &str, address: &str| {
        head(network, "") + &peer("a", 1, &format!("addresses = ['{address}']"))
    };
    let outside = "is outside of the mesh's networks";
    let (own, broadcast) = (
        "the network's own address",
        "the network's broadcast address",
    );
    for (words, network, allowed, not) in [
        (outside, "10.0.0.0/24", "10.0.0.254", "10.0.1.1"),
        (own, "10.0.0.0/30", "10.0.0.1", "10.0.0.0"),
        (broadcast, "10.0.0.0/30", "10.0.0.2", "10.0.0.3"),
        (own, "fd00::/126", "fd00::3", "fd00::"),
    ] {
        refused(words, "addresses", &of(network, allowed), &of(network, not));
    }
    // Where there are just two, or one (RFC 3021, RFC 6164).
    for (network, address) in [
        ("10.0.0.0/31", "10.0.0.0"),
        ("10.0.0.0/31", "10.0.0.1"),
        ("10.0.0.7/32", "10.0.0.7"),
        ("fd00::/127", "fd00::"),
    ] {
        assert_eq!(
            refusals(&of(network, address)),
            [],
            "{address} of {network}"
        );
    }
    let none = head("10.0.0.0/24", "") + &peer("a", 1, "addresses = []");
    refused(
        "the peer's address is missing",
        "addresses",
        &of("10.0.0.0/24", "10.0.0.1"),
        &none,
    );
}

#[test]
fn a_message_names_three_networks_and_counts_more() {
    let of = |networks: &[&str]| {
        let text = head(&networks.join("', '"), "") + &peer("a", 1, "addresses = ['10.9.0.1']");
        let errors = load(&text).unwrap_err();
        errors
            .iter()
            .next()
            .unwrap()
            .helps()
            .next()
            .unwrap()
            .to_owned()
    };
    let four = ["10.1.0.0/24", "10.2.0.0/24", "10.3.0.0/24", "10.4.0.0/24"];
    let three = "write an address of 10.1.0.0/24 or 10.2.0.0/24 or 10.3.0.0/24";
    let end = ", or add a network to `mesh.networks`";
    assert_eq!(of(&four[..3]), format!("{three}{end}"));
    assert_eq!(
        of(&four),
        format!("{three} or another of the 4 networks{end}")
    );
}

#[test]
fn an_exit_node_is_another_peer_that_offers_itself() {
    let exit = "exit = true";
    let uses = |node: &str| format!("exit_node = '{node}'");
    let with = |a: &str, b: &str| mesh("", SERVER, [a, b, ""]);
    let allowed = with(exit, &uses("a"));
    for (words, not) in [
        ("is not an exit node", with("", &uses("a"))),
        (
            "is its own exit node",
            with(exit, &format!("{exit}\n{}", uses("b"))),
        ),
        ("there is no peer `x`", with(exit, &uses("x"))),
    ] {
        refused(words, "exit_node", &allowed, &not);
    }
    let except = "exit_except = ['192.168.0.0/16']";
    refused(
        "has exceptions from an exit node, but uses none",
        "exit_except",
        &with(exit, &format!("{}\n{except}", uses("a"))),
        &with(exit, except),
    );
}

#[test]
fn a_key_pair_is_one_peers() {
    let (_, public) = key(1);
    let twice = head("10.0.0.0/24", "") + &peer("a", 1, "") + &peer("b", 2, "");
    let again = twice.replace(&key(2).1.to_string(), &public.to_string());
    refused(
        "two peers have the public key",
        "public_key",
        &twice,
        &again,
    );
}

#[test]
fn a_list_of_relays_names_1_to_64_relays_each_once() {
    let servers: String = (0..65)
        .map(|n| format!("[discovery.r{n}]\nplugin = 'server'\n"))
        .collect();
    let listing = |relays: &[String]| {
        let list: Vec<String> = relays.iter().map(|name| format!("'{name}'")).collect();
        mesh(
            "",
            &servers,
            [
                &format!("relays = [{}]", list.join(", ")),
                "serve = 7\nendpoint = '192.0.2.1:99'",
                "",
            ],
        )
    };
    let all: Vec<String> = (0..65).map(|n| format!("r{n}")).collect();
    let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
    refused(
        "a list of 65 relays",
        "relays",
        &listing(&all[..64]),
        &listing(&all),
    );
    let allowed = listing(&names(&["r1", "b"]));
    for (words, list) in [
        ("names no relay", &[][..]),
        ("the relay `r1` is named twice", &["r1", "r2", "r1"]),
        ("there is no relay `x`", &["x"]),
        ("`c` is not a relay", &["c"]),
    ] {
        refused(words, "relays", &allowed, &listing(&names(list)));
    }
    let web = allowed.replace("r1]\nplugin = 'server'", "r1]\nplugin = 'web'");
    refused("`r1` is not a relay", "relays", &allowed, &web);
}

#[test]
fn a_preshared_key_is_that_of_two_peers() {
    let with = |pairs: &[&str]| {
        let sections = pairs
            .iter()
            .map(|pair| format!("[[preshared]]\npeers = {pair}\npreshared_key_file = '/k'\n"));
        mesh("", SERVER, ["", "", ""]) + &sections.collect::<String>()
    };
    let allowed = with(&["['a', 'b']", "['b', 'c']"]);
    for (words, pairs) in [
        ("belongs to two peers", &["['a']"][..]),
        ("belongs to two peers", &["['a', 'b', 'c']"]),
        ("no preshared key with itself", &["['a', 'a']"]),
        ("there is no peer `x`", &["['a', 'x']"]),
        (
            "two preshared keys for `a` and `b`",
            &["['a', 'b']", "['b', 'a']"],
        ),
    ] {
        refused(words, "peers = ", &allowed, &with(pairs));
    }
    let keys = load(&allowed).unwrap().preshared_keys;
    let pairs: Vec<_> = keys.keys().map(|(a, b)| format!("{a} {b}")).collect();
    assert_eq!(pairs, ["a b", "b c"]);
}

/// A mesh in which a serves at a port, with WireGuard at another, and b at a third one.
fn serving(port: u16, wireguard: u16, other: u16) -> String {
    let a = format!("endpoint = 'a.example.org:{wireguard}'\nserve = {port}");
    let b = format!("endpoint = 'a.example.org:9'\nserve = {other}");
    mesh("", "", [&a, &b, ""])
}

#[test]
fn a_peer_that_serves_has_34_ports_of_its_own() {
    let taken = "of its endpoint is WireGuard's";
    refused(
        taken,
        "serve = 1000",
        &serving(1000, 999, 2000),
        &serving(1000, 1000, 2000),
    );
    refused(
        taken,
        "serve = 1000",
        &serving(1000, 1034, 2000),
        &serving(1000, 1033, 2000),
    );
    let twins = "serve at the same ports of a.example.org";
    for (near, meets) in [(1034, 1033), (966, 967)] {
        let at = format!("serve = {meets}");
        refused(
            twins,
            &at,
            &serving(1000, 7, near),
            &serving(1000, 7, meets),
        );
    }
    let listens = |port: u16| {
        let a = format!(
            "endpoint = 'a.example.org:9'\nserve = 1000\ninterface = {{ listen_port = {port} }}"
        );
        mesh("", "", [&a, "", ""])
    };
    let words = |port: u16| format!("WireGuard listens on port {port}");
    refused(&words(1000), "serve", &listens(999), &listens(1000));
    refused(&words(1033), "serve", &listens(1034), &listens(1033));
}

#[test]
fn a_peer_that_serves_is_a_node_at_a_known_host_with_a_name_of_its_own() {
    let serves = |more: &str| format!("endpoint = 'a.example.org:9'\nserve = 1000\n{more}");
    let allowed = mesh("", "", [&serves(""), "", ""]);
    let plain = mesh("", "", [&serves("managed = false"), "", ""]);
    refused("it is a plain WireGuard peer", "serve", &allowed, &plain);
    let hidden = mesh("", "", ["serve = 1000", "", ""]);
    refused(
        "the file does not say where it is",
        "serve",
        &allowed,
        &hidden,
    );
    let named = mesh("", "[discovery.a]\nplugin = 'web'\n", [&serves(""), "", ""]);
    refused(
        "two discovery instances have the name `a`",
        "[discovery.a]",
        &allowed,
        &named,
    );
    let found = load(&allowed).unwrap().discovery;
    let of_server = found.iter().filter(|one| one.plugin == "server");
    let names: Vec<_> = of_server.map(|one| one.name.as_str()).collect();
    assert_eq!(names, ["a"]);
}

#[test]
fn what_could_not_be_read_is_said_once_and_not_to_be_missing_or_wrong_elsewhere() {
    let whole = mesh(
        "",
        SERVER,
        ["relays = ['rv']", "exit = true", "exit_node = 'b'"],
    );
    assert_eq!(refusals(&whole), []);
    for (from, to) in [
        ("name = 'home'", "name = 7"),
        ("networks = ['10.0.0.0/24']", "networks = 7"),
        (
            "networks = ['10.0.0.0/24']",
            "networks = ['10.9.0.0/24', 'x']",
        ),
        ("addresses = ['10.0.0.1']", "addresses = ['x']"),
        ("relays = ['rv']", "relays = [7]"),
        (
            "exit_node = 'b'",
            "exit_node = 7\nexit_except = ['192.168.0.0/16']",
        ),
        ("plugin = 'server'", "plugin = 7"),
        ("[peers.b]", "[peers.b]\nroutes = 7"),
    ] {
        let broken = whole.replacen(from, to, 1);
        assert_ne!(broken, whole);
        let said = refusals(&broken);
        assert_eq!(said.len(), 1, "{to}: {said:?}");
    }
    // A peer that serves, and whose endpoint can't be read, is somewhere.
    let serves = mesh("", "", ["endpoint = 'x'\nserve = 1000", "", ""]);
    let said = refusals(&serves);
    assert_eq!(said.len(), 1, "{said:?}");
    // A file that is no TOML says nothing of what is missing.
    let said = refusals("[mesh\nname = 'home'\n");
    assert_eq!(said.len(), 1, "{said:?}");
}
