//! What is allowed and likely not meant, or worth to know: each rule with a mesh that it speaks of,
//! and with the nearest one that it does not.

use natpunch_config::{ConfigErrors, lint, notes};

use crate::support::{SERVER, WEB, head, key, load, mesh, peer};

const ENDPOINT: &str = "endpoint = '192.0.2.1:7'";
const PLAIN: &str = "managed = false";

/// The rules that speak of a mesh, each with the line that it points at.
fn rules(text: &str) -> Vec<(&'static str, String)> {
    let mesh = load(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let rules = |found: Option<ConfigErrors>| {
        let found = found.iter().flat_map(|found| {
            found.iter().map(|error| {
                let line = found.location(error).unwrap().line;
                let line = text.lines().nth(line - 1).unwrap();
                (error.rule_name(), line.to_owned())
            })
        });
        found.collect::<Vec<_>>()
    };
    [rules(lint(&mesh)), rules(notes(&mesh))].concat()
}

/// The rule speaks of the first mesh, at a line with this text, and of the second it does not.
#[track_caller]
fn tells_apart(rule: &str, at: &str, has: &str, has_not: &str) {
    let found = rules(has);
    let mut lines = found.iter().filter(|(name, _)| *name == rule);
    let line = lines.next();
    assert!(
        line.is_some_and(|(_, line)| line.contains(at)),
        "{rule} at {at}: {found:?}\n{has}"
    );
    assert!(lines.next().is_none(), "once: {found:?}");
    let found = rules(has_not);
    let is_quiet = found.iter().all(|(name, _)| *name != rule);
    assert!(is_quiet, "no {rule}: {found:?}\n{has_not}");
}

#[test]
fn a_usual_mesh_has_nothing_to_be_said() {
    assert_eq!(rules(&mesh("", SERVER, [ENDPOINT, "", ""])), []);
    let plain = format!("{ENDPOINT}\n{PLAIN}");
    assert_eq!(rules(&mesh("", "", [ENDPOINT, "", &plain])), []);
}

#[test]
fn what_a_plugin_finds_odd_is_said_at_its_section() {
    let book = |more: &str| {
        let section = format!("[discovery.shelf]\nplugin = 'book'\n{more}");
        mesh("", &(section + SERVER), [ENDPOINT, "", ""])
    };
    let section = "[discovery.shelf]";
    tells_apart("shouting-book", section, &book("shout = true\n"), &book(""));
}

#[test]
fn a_plugin_that_a_mesh_has_unwritten_is_there_once_and_only_where_it_is_of_use() {
    let books = |text: &str| -> Vec<String> {
        let mesh = load(text).unwrap();
        let of_book = mesh.discovery.iter().filter(|one| one.plugin == "book");
        of_book.map(|one| one.name.clone()).collect()
    };
    let written = "[discovery.shelf]\nplugin = 'book'\n";
    for (sections, endpoint, expected) in [
        ("", ENDPOINT, &["book"][..]),
        ("", "", &[]),
        (written, ENDPOINT, &["shelf"]),
        (written, "", &["shelf"]),
    ] {
        let text = mesh("", &(SERVER.to_owned() + sections), [endpoint, "", ""]);
        assert_eq!(books(&text), expected, "{text}");
    }
}

#[test]
fn networks_that_get_into_each_others_way() {
    let lan = |lan: &str| mesh(&format!("lans = ['{lan}']"), SERVER, ["", "", ""]);
    tells_apart(
        "lan-clash",
        "networks",
        &lan("10.0.0.128/25"),
        &lan("10.0.1.0/24"),
    );
    let route = |route: &str| {
        let lans = "lans = ['192.168.1.0/24']";
        mesh(lans, SERVER, [&format!("routes = ['{route}']"), "", ""])
    };
    tells_apart(
        "route-in-mesh",
        "routes",
        &route("10.0.0.128/25"),
        &route("10.0.1.0/24"),
    );
    tells_apart(
        "widened-route",
        "routes",
        &route("192.168.0.0/16"),
        &route("192.168.1.0/24"),
    );
    let endpoint = |endpoint: &str| {
        let routed = "routes = ['172.20.0.0/16']";
        let endpoint = format!("endpoint = '{endpoint}'");
        mesh("", SERVER, [&endpoint, routed, ""])
    };
    for within in ["10.0.0.77:1", "172.20.3.4:1"] {
        tells_apart(
            "endpoint-in-tunnel",
            "[peers.a]",
            &endpoint(within),
            &endpoint("10.0.1.77:1"),
        );
    }
    let of = |network: &str, address: &str| {
        let addresses = format!("addresses = ['{address}']");
        head(network, "") + SERVER + &peer("a", 1, &addresses)
    };
    tells_apart(
        "carrier-nat-clash",
        "networks",
        &of("100.127.255.0/24", "100.127.255.1"),
        &of("100.128.0.0/24", "100.128.0.1"),
    );
}

#[test]
fn an_mtu_that_is_too_small_for_ipv6_or_too_large_for_most_links() {
    let of = |address: &str, mtu: u32| {
        let more = format!("addresses = ['{address}']\ninterface = {{ mtu = {mtu} }}");
        let networks = "10.0.0.0/24', 'fd00::/64";
        head(networks, "") + SERVER + &peer("a", 1, "") + &peer("b", 2, &more)
    };
    tells_apart(
        "small-mtu",
        "[peers.b]",
        &of("fd00::2", 1279),
        &of("fd00::2", 1280),
    );
    tells_apart(
        "small-mtu",
        "[peers.b]",
        &of("fd00::2", 1279),
        &of("10.0.0.2", 1279),
    );
    tells_apart(
        "large-mtu",
        "[peers.b]",
        &of("fd00::2", 1421),
        &of("fd00::2", 1420),
    );
    // A default of all nodes is one finding, and each its own is one each.
    let all = "[interface]\nmtu = 1421\n".to_owned() + SERVER;
    tells_apart(
        "large-mtu",
        "[peers.a]",
        &mesh("", &all, ["", "", ""]),
        &mesh("", SERVER, ["", "", ""]),
    );
}

#[test]
fn settings_that_nobody_uses_or_that_all_share() {
    let plain = |interface: &str| {
        let more = format!("{PLAIN}\ninterface = {{ {interface} }}");
        mesh("", SERVER, [ENDPOINT, &more, ""])
    };
    tells_apart(
        "unused-interface",
        "[peers.b]",
        &plain("listen_port = 7, mtu = 1400"),
        &plain("listen_port = 7"),
    );
    let managed = mesh("", SERVER, ["interface = { mtu = 1400 }", "", ""]);
    tells_apart(
        "unused-interface",
        "[peers.b]",
        &plain("mtu = 1400"),
        &managed,
    );
    let all = format!("[interface]\nlisten_port = 7\n{SERVER}");
    tells_apart(
        "shared-port",
        "listen_port",
        &mesh("", &all, [ENDPOINT, "", PLAIN]),
        &mesh("", &all, [ENDPOINT, PLAIN, PLAIN]),
    );
}

#[test]
fn peers_that_nobody_finds_or_reaches() {
    let plain = |others: &str| mesh("", SERVER, [PLAIN, others, ""]);
    tells_apart(
        "unreachable-plain-peer",
        "[peers.a]",
        &plain(""),
        &plain(ENDPOINT),
    );
    // A plain peer with an endpoint is no node that reaches it.
    let both = format!("{ENDPOINT}\n{PLAIN}");
    tells_apart(
        "unreachable-plain-peer",
        "[peers.a]",
        &plain(&both),
        &plain(ENDPOINT),
    );
    tells_apart(
        "no-discovery",
        "[peers.c]",
        &mesh("", "", [ENDPOINT, "", ""]),
        &mesh("", WEB, [ENDPOINT, "", ""]),
    );
    tells_apart(
        "no-discovery",
        "[peers.c]",
        &mesh("", "", [ENDPOINT, "", ""]),
        &mesh("", "", [ENDPOINT, PLAIN, ""]),
    );
    let pairs = [
        ([PLAIN, ENDPOINT, ""], [PLAIN, ENDPOINT, ENDPOINT]),
        ([PLAIN, ENDPOINT, PLAIN], [PLAIN, "", ""]),
    ];
    for (has, has_not) in pairs {
        let found = rules(&mesh("", SERVER, has));
        let plain = has.iter().filter(|more| **more == PLAIN).count();
        let of_pairs = found.iter().filter(|(rule, _)| *rule == "unreachable-pair");
        assert_eq!(of_pairs.count(), plain, "{found:?}");
        let found = rules(&mesh("", SERVER, has_not));
        let is_quiet = found.iter().all(|(rule, _)| *rule != "unreachable-pair");
        assert!(is_quiet, "{found:?}");
    }
}

#[test]
fn a_plain_peer_is_told_five_that_it_can_not_reach_and_how_many_more() {
    let message = |hidden: u8| {
        let mut text = head("10.0.0.0/24", "") + SERVER;
        text += &peer("hub", 1, ENDPOINT);
        text += &peer("plain", 2, PLAIN);
        for number in 3..3 + hidden {
            text += &peer(&format!("n{number}"), number, "");
        }
        let notes = notes(&load(&text).unwrap()).unwrap();
        notes.iter().next().unwrap().message().to_owned()
    };
    let five = "the plain WireGuard peer `plain` can't reach `n3`, `n4`, `n5`, `n6`, `n7`";
    assert_eq!(message(5), five);
    assert_eq!(message(7), format!("{five} and 2 more"));
}

#[test]
fn relays_that_a_pair_can_not_share() {
    let only = "relay = 'only'";
    tells_apart(
        "no-relay",
        "[peers.b]",
        &mesh("", WEB, ["", only, ""]),
        &mesh("", SERVER, ["", only, ""]),
    );
    tells_apart(
        "no-relay",
        "[peers.b]",
        &mesh("", WEB, ["", only, ""]),
        &mesh("", WEB, ["", "relay = 'never'", ""]),
    );
    let two = format!("{SERVER}[discovery.r2]\nplugin = 'server'\n");
    let lists = |a: &str, b: &str| {
        let a = format!("relays = {a}");
        let b = format!("relays = {b}");
        mesh("", &two, [&a, &b, ""])
    };
    let apart = lists("['rv']", "['r2']");
    let near = [
        lists("['rv']", "['r2', 'rv']"),
        lists("['rv']", "['rv']"),
        lists("['rv']", "['r2']\nrelay = 'never'"),
        lists("['rv']", "['r2']\nmanaged = false"),
        mesh("", &two, ["relays = ['rv']", "", ""]),
    ];
    for near in near {
        tells_apart("no-shared-relay", "['r2']", &apart, &near);
    }
}

#[test]
fn a_pair_on_demand_that_nothing_wakes() {
    let demand = "connect = 'on-demand'";
    let of = |sections: &str, a: &str, b: &str| mesh("", sections, [a, b, "connect = 'always'"]);
    let lost = of(WEB, "", demand);
    for near in [
        of(SERVER, "", demand),
        of(WEB, "", ""),
        of(WEB, "connect = 'always'", demand),
        of(WEB, "critical = true", demand),
        of(WEB, ENDPOINT, demand),
        of(WEB, PLAIN, demand),
    ] {
        tells_apart("never-woken", demand, &lost, &near);
    }
    let all = |sections: &str| {
        mesh("", sections, ["", "", ENDPOINT]).replace("[mesh]", "[mesh]\nconnect = 'on-demand'")
    };
    tells_apart("never-woken", demand, &all(WEB), &all(SERVER));
}

#[test]
fn an_exit_node_that_only_itself_leads_to() {
    let exit = |sections: &str, gate: &str, more: &str| {
        let gate = format!("exit = true\n{gate}");
        mesh(
            "",
            sections,
            [&gate, &format!("exit_node = 'a'\n{more}"), ""],
        )
    };
    let looped = exit(WEB, "", "");
    let near = [
        exit(&format!("{SERVER}{WEB}"), "", ""),
        exit("", "", ""),
        exit(WEB, ENDPOINT, ""),
        exit(WEB, "", PLAIN),
    ];
    for near in near {
        tells_apart("exit-node-needed-to-find-it", "exit_node", &looped, &near);
    }
}

#[test]
fn an_address_family_that_an_exit_node_does_not_carry() {
    let of = |gate: &str, own: &str| {
        let gate = format!("addresses = {gate}\nexit = true\n{ENDPOINT}");
        let own = format!("addresses = {own}\nexit_node = 'a'");
        head("10.0.0.0/24', 'fd00::/64", "") + SERVER + &peer("a", 1, &gate) + &peer("b", 2, &own)
    };
    let both = |number: u8| format!("['10.0.0.{number}', 'fd00::{number}']");
    let all = of(&both(1), &both(2));
    for lacking in [
        of("['10.0.0.1']", &both(2)),
        of("['fd00::1']", &both(2)),
        of(&both(1), "['10.0.0.2']"),
        of(&both(1), "['fd00::2']"),
    ] {
        tells_apart("exit-node-family", "exit_node", &lacking, &all);
    }
}

#[test]
fn a_port_that_is_another_than_that_of_the_endpoint() {
    let listens = |port: u16| {
        let more = format!("{ENDPOINT}\ninterface = {{ listen_port = {port} }}");
        mesh("", SERVER, [&more, "", ""])
    };
    tells_apart("endpoint-port", "[peers.a]", &listens(8), &listens(7));
}

#[test]
fn names_that_others_own() {
    let named = |name: &str, sections: &str| {
        let text = mesh("", &format!("{sections}{SERVER}"), ["", "", ""]);
        text.replace("name = 'home'", &format!("name = '{name}'"))
    };
    let no_hosts = "[names]\nhosts = false\n";
    tells_apart(
        "public-name",
        "name",
        &named("com", no_hosts),
        &named("home", no_hosts),
    );
    let peer_named = |name: &str| head("10.0.0.0/24", "") + SERVER + &peer(name, 1, "");
    tells_apart(
        "public-name",
        "[peers.wpad]",
        &peer_named("wpad"),
        &peer_named("web"),
    );
    let hosts = named("com", "[names]\nhosts = true\n");
    assert!(load(&hosts).is_err(), "an error, and no finding beside it");
}

#[test]
fn a_private_key_in_a_comment_is_found_where_it_stands() {
    let with = |number: u8| {
        let (secret, _) = key(number);
        let comment = format!("# b has {}, don't tell\n", &*secret.expose_base64());
        mesh("", &format!("{comment}{SERVER}"), ["", "", ""])
    };
    tells_apart("private-key-in-file", "# b has", &with(2), &with(9));
}
