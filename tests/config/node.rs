//! This node's part of a mesh.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use natpunch::config::{self, Backend, NodeConfig};
use tempfile::TempDir;

use crate::support::{key_pair, matches_snapshot, root, shown, write};

/// A directory with a mesh of four peers: `a` and `b` with key files, `nas` with overrides, a plain
/// `phone`.
struct Host {
    directory: TempDir,
}

impl Host {
    fn new() -> Self {
        let host = Self {
            directory: TempDir::new().unwrap(),
        };
        for (name, seed) in [("a", 1), ("b", 2), ("psk", 9)] {
            write(
                &host.file(&format!("{name}.key")),
                &format!("{}\n", key_pair(seed).0.expose_base64().as_str()),
                0o600,
            );
        }
        host.mesh("private_key_file = 'a.key'", "");
        host
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn mesh(&self, interface: &str, more: &str) {
        let [a, b, nas, phone] = [1, 2, 3, 4].map(|seed| key_pair(seed).1);
        let text = format!(
            "[mesh]\nname = 'home'\nnetworks = ['10.77.0.0/16', 'fd77:1::/64']\n\
             [interface]\n{interface}\n\
             [peers.a]\npublic_key = '{a}'\naddresses = ['10.77.0.1', 'fd77:1::1']\n\
             [peers.b]\npublic_key = '{b}'\naddresses = ['10.77.0.2']\n\
             [peers.nas]\npublic_key = '{nas}'\naddresses = ['10.77.0.3']\nroutes = ['192.168.1.0/24']\n\
             endpoint = 'nas.example.org:51820'\n\
             interface = {{ name = 'wg9', mtu = 1300, listen_port = 51820, fwmark = 0x77, backend = 'kernel' }}\n\
             [peers.phone]\npublic_key = '{phone}'\naddresses = ['10.77.0.9']\nmanaged = false\npersistent_keepalive = 0\n\
             {more}"
        );
        fs::write(self.file("mesh.toml"), text).unwrap();
    }

    fn resolve(&self, key_file: Option<&str>) -> Result<NodeConfig, String> {
        let mesh = config::load(&self.file("mesh.toml"))
            .map_err(|errors| shown(&errors, self.directory.path()))?;
        let key_file = key_file.map(|name| self.file(name));
        config::resolve_node(&mesh, key_file.as_deref())
            .map_err(|errors| shown(&errors, self.directory.path()))
    }
}

#[test]
fn a_node_finds_itself_by_its_private_key() {
    let host = Host::new();
    assert_eq!(host.resolve(None).unwrap().name, "a");
    assert_eq!(host.resolve(Some("b.key")).unwrap().name, "b");
}

#[test]
fn defaults_hold_where_the_file_says_nothing() {
    let node = Host::new().resolve(None).unwrap();
    assert_eq!(
        (node.mesh.as_str(), node.interface.as_str()),
        ("home", "wg-home")
    );
    assert_eq!(
        (node.mtu, node.fwmark, node.backend),
        (1420, 0, Backend::Auto)
    );
    assert_eq!(
        node.listen_port,
        natpunch_types::derive_listen_port(&node.public_key)
    );
    assert_eq!(node.persistent_keepalive, Some(Duration::from_secs(25)));
    assert_eq!(
        node.addresses,
        [
            "10.77.0.1/16".parse().unwrap(),
            "fd77:1::1/64".parse().unwrap()
        ]
    );
    assert_eq!(
        node.peers
            .iter()
            .map(|peer| peer.name.as_str())
            .collect::<Vec<_>>(),
        ["b", "nas", "phone"]
    );
}

#[test]
fn a_peer_overrides_the_defaults_of_every_node() {
    let host = Host::new();
    write(&host.file("nas.key"), &key_pair(3).0.expose_base64(), 0o400);
    host.mesh(
        "name = 'wg1'\nmtu = 1400\npersistent_keepalive = 0\nprivate_key_file = 'a.key'",
        "",
    );
    let nas = host.resolve(Some("nas.key")).unwrap();
    assert_eq!(
        (nas.interface.as_str(), nas.mtu, nas.listen_port, nas.fwmark),
        ("wg9", 1300, 51820, 0x77)
    );
    assert_eq!(
        (nas.backend, nas.persistent_keepalive),
        (Backend::Kernel, None)
    );
    let a = host.resolve(None).unwrap();
    assert_eq!((a.interface.as_str(), a.mtu, a.fwmark), ("wg1", 1400, 0));
}

#[test]
fn a_peer_is_seen_with_its_networks_port_and_keepalive() {
    let node = Host::new().resolve(None).unwrap();
    let [b, nas, phone] = node.peers.as_slice() else {
        panic!("three peers")
    };
    assert_eq!(
        nas.allowed_ips,
        [
            "10.77.0.3/32".parse().unwrap(),
            "192.168.1.0/24".parse().unwrap()
        ]
    );
    assert_eq!(
        (nas.endpoint.as_deref(), nas.listen_port),
        (Some("nas.example.org:51820"), 51820)
    );
    assert_eq!(nas.persistent_keepalive, Some(Duration::from_secs(25)));
    assert_eq!((phone.managed, phone.persistent_keepalive), (false, None));
    assert_eq!(
        (b.managed, b.listen_port),
        (true, natpunch_types::derive_listen_port(&b.key))
    );
}

#[test]
fn a_node_listens_on_the_port_of_its_endpoint_unless_it_is_told_another() {
    let own = |interface: &str, line: &str| {
        let text = format!(
            "[mesh]\nname = 'home'\nnetworks = ['10.77.0.0/16']\n[interface]\n{interface}\n\
             [peers.a]\npublic_key = '{}'\naddresses = ['10.77.0.1']\n{line}\n",
            key_pair(1).1
        );
        let mesh = config::load_texts(vec![("/mesh.toml".into(), text)]).unwrap();
        let listens = config::endpoint_listen_port(&mesh, &mesh.peers["a"]);
        let notes = config::notes(&mesh).map(|notes| notes.to_string());
        (
            listens,
            notes.is_some_and(|notes| notes.contains("the others reach it at port")),
        )
    };
    assert_eq!(own("", ""), (None, false));
    assert_eq!(
        own("", "endpoint = 'a.example.org:7777'"),
        (Some(7777), false)
    );
    assert_eq!(
        own("", "endpoint = '[2001:db8::1]:7777'"),
        (Some(7777), false)
    );
    // A router may forward one port to another: legal, and said by `check`.
    let forwarded = "endpoint = 'a.example.org:7777'\ninterface = { listen_port = 51820 }";
    assert_eq!(own("", forwarded), (Some(51_820), true));
    let endpoint = "endpoint = 'a.example.org:7777'";
    assert_eq!(own("listen_port = 51820", endpoint), (Some(51_820), true));
    assert_eq!(own("listen_port = 7777", endpoint), (Some(7777), false));
}

#[test]
fn the_others_know_on_which_port_a_node_with_an_endpoint_listens() {
    let host = Host::new();
    let more = format!(
        "[peers.hub]\npublic_key = '{}'\naddresses = ['10.77.0.7']\nendpoint = 'hub.example.org:7777'\n",
        key_pair(7).1
    );
    host.mesh("private_key_file = 'a.key'", &more);
    let node = host.resolve(None).unwrap();
    let hub = node.peers.iter().find(|peer| peer.name == "hub").unwrap();
    assert_eq!(hub.listen_port, 7777);
    write(&host.file("hub.key"), &key_pair(7).0.expose_base64(), 0o400);
    assert_eq!(host.resolve(Some("hub.key")).unwrap().listen_port, 7777);
}

#[test]
fn an_endpoint_works_without_any_discovery_section() {
    let node = Host::new().resolve(None).unwrap();
    let names: Vec<_> = node.discovery.iter().map(|i| i.name.as_str()).collect();
    assert_eq!(names, ["static", "port-mapping"]);
    let is_named_like_it = |instance: &config::Discovery| instance.name == instance.plugin;
    assert!(node.discovery.iter().all(is_named_like_it));
}

#[test]
fn a_node_asks_its_router_unless_it_is_told_not_to() {
    let asks = |interface: &str, more: &str| {
        let host = Host::new();
        host.mesh(&format!("private_key_file = 'a.key'\n{interface}"), more);
        let node = host.resolve(None).unwrap();
        let mut instances = node.discovery.iter();
        instances.any(|instance| instance.plugin == "port-mapping")
    };
    let off = "port_mapping = false";
    assert!(asks("", "") && !asks(off, ""));
    assert!(!asks(off, "[discovery.home]\nplugin = 'port-mapping'\n"));
    assert!(asks(off, "[peers.a.interface]\nport_mapping = true\n"));
}

#[test]
fn peer_and_wireguard_are_names_like_any_other() {
    let host = Host::new();
    let [server, hub] = [200, 5].map(|seed| key_pair(seed).1);
    let rendezvous = format!(
        "plugin = 'rendezvous'\nserver = 'rv.example.org:51900'\npublic_key = '{server}'\n"
    );
    host.mesh(
        "private_key_file = 'a.key'",
        &format!(
            "[discovery.peer]\n{rendezvous}\
             [peers.wireguard]\npublic_key = '{hub}'\naddresses = ['10.77.0.20']\n\
             endpoint = 'hub.example.org:51820'\nserve = true\n"
        ),
    );
    let node = host.resolve(None).unwrap();
    let names: Vec<_> = node.discovery.iter().map(|i| i.name.as_str()).collect();
    assert_eq!(names, ["peer", "static", "port-mapping", "wireguard"]);

    host.mesh(
        "private_key_file = 'a.key'",
        &format!("[discovery.wireguard]\n{rendezvous}"),
    );
    let node = host.resolve(None).unwrap();
    assert_eq!(node.discovery[0].name, "wireguard");
}

#[test]
fn a_mesh_that_names_only_a_rendezvous_sends_in_no_old_protocol() {
    let host = Host::new();
    let server = key_pair(200).1;
    let section = format!(
        "[discovery.rv]\nplugin = 'rendezvous'\nserver = 'rv.example.org:51900'\npublic_key = '{server}'\n"
    );
    host.mesh("private_key_file = 'a.key'", &section);
    let node = host.resolve(None).unwrap();
    let mut of_endpoints = 0;
    for instance in &node.discovery {
        let uses_port = instance.about.abilities.wireguard_port;
        match instance.plugin {
            "rendezvous" => assert!(uses_port),
            "static" => of_endpoints += usize::from(!uses_port),
            "port-mapping" => assert!(!uses_port),
            other => panic!("{other}"),
        }
    }
    assert_eq!(
        (node.discovery.len(), of_endpoints),
        (3, 1),
        "`nas` has an endpoint, which is resolved and nothing else"
    );
}

#[test]
fn a_preshared_key_is_that_of_the_pair() {
    let host = Host::new();
    host.mesh(
        "private_key_file = 'a.key'",
        "[[preshared]]\npeers = ['nas', 'a']\npreshared_key_file = 'psk.key'\n",
    );
    let node = host.resolve(None).unwrap();
    let with: Vec<&str> = node
        .peers
        .iter()
        .filter(|peer| peer.preshared_key.is_some())
        .map(|peer| peer.name.as_str())
        .collect();
    assert_eq!(with, ["nas"]);
    assert!(node.files.contains(&host.file("psk.key")));
    // The other pairs' files are other hosts' business.
    assert!(
        host.resolve(Some("b.key"))
            .unwrap()
            .peers
            .iter()
            .all(|peer| peer.preshared_key.is_none())
    );
    fs::remove_file(host.file("psk.key")).unwrap();
    host.resolve(Some("b.key")).unwrap();
    assert!(host.resolve(None).is_err());
}

#[test]
fn the_key_file_of_a_peer_goes_before_that_of_all() {
    let host = Host::new();
    let b = key_pair(2).1;
    let path = host.file("mesh.toml");
    host.mesh("private_key_file = 'missing.key'", "");
    let text = fs::read_to_string(&path).unwrap();
    let own = format!("public_key = '{b}'\ninterface = {{ private_key_file = 'b.key' }}");
    fs::write(&path, text.replace(&format!("public_key = '{b}'"), &own)).unwrap();
    assert_eq!(host.resolve(None).unwrap().name, "b");
}

#[test]
fn equal_files_have_equal_hashes_and_a_change_another() {
    let host = Host::new();
    let hash = || host.resolve(None).unwrap().content_hash;
    let first = hash();
    assert_eq!(hash(), first);
    assert_eq!(host.resolve(None).unwrap(), host.resolve(None).unwrap());
    host.mesh("private_key_file = 'a.key'\nmtu = 1400", "");
    assert_ne!(hash(), first);
}

#[test]
fn a_link_to_a_key_file_is_followed() {
    let host = Host::new();
    symlink(host.file("b.key"), host.file("link.key")).unwrap();
    assert_eq!(host.resolve(Some("link.key")).unwrap().name, "b");
}

#[test]
fn a_key_file_that_can_not_be_used_is_shown_with_help() {
    let host = Host::new();
    let text = key_pair(1).0.expose_base64();
    for (name, mode) in [
        ("group.key", 0o640),
        ("world.key", 0o604),
        ("writable.key", 0o622),
    ] {
        write(&host.file(name), &text, mode);
    }
    write(&host.file("owner.key"), &text, 0o600);
    std::os::unix::fs::chown(host.file("owner.key"), Some(12345), None).unwrap();
    write(&host.file("empty.key"), "\n", 0o600);
    write(&host.file("short.key"), "AAEC\n", 0o600);
    write(
        &host.file("garbage.key"),
        "[Interface]\nPrivateKey = x\n",
        0o600,
    );
    write(&host.file("long.key"), &"A".repeat(100_000), 0o600);
    fs::write(host.file("binary.key"), [0xff; 32]).unwrap();
    fs::set_permissions(host.file("binary.key"), fs::Permissions::from_mode(0o600)).unwrap();
    write(
        &host.file("other.key"),
        &key_pair(77).0.expose_base64(),
        0o600,
    );
    fs::create_dir(host.file("directory.key")).unwrap();
    nix::unistd::mkfifo(
        &host.file("fifo.key"),
        nix::sys::stat::Mode::from_bits_truncate(0o600),
    )
    .unwrap();
    write(
        &host.file("phone.key"),
        &key_pair(4).0.expose_base64(),
        0o600,
    );

    let mut all = String::new();
    let names = [
        "missing",
        "group",
        "world",
        "writable",
        "owner",
        "empty",
        "short",
        "garbage",
        "long",
        "binary",
        "other",
        "directory",
        "fifo",
        "phone",
    ];
    for name in names {
        host.mesh(&format!("private_key_file = '{name}.key'"), "");
        let error = host
            .resolve(if name == "phone" {
                Some("phone.key")
            } else {
                None
            })
            .unwrap_err();
        assert!(!error.contains(text.as_str()), "a secret is never printed");
        all += &format!("# {name}\n{error}\n\n");
    }
    host.mesh("", "");
    all += &format!("# none named\n{}\n\n", host.resolve(None).unwrap_err());
    all += &format!(
        "# named by the command line\n{}\n\n",
        host.resolve(Some("other.key")).unwrap_err()
    );
    host.mesh(
        "private_key_file = 'a.key'",
        "[[preshared]]\npeers = ['a', 'b']\npreshared_key_file = 'group.key'\n",
    );
    all += &format!("# preshared\n{}\n\n", host.resolve(None).unwrap_err());
    let all = all.replace(&format!("{}/", host.directory.path().display()), "");
    matches_snapshot(&root().join("tests/config/key-files.txt"), &all).unwrap();
}

#[test]
fn two_own_keys_on_one_host_need_a_choice() {
    let host = Host::new();
    let b = key_pair(2).1;
    let path = host.file("mesh.toml");
    let text = fs::read_to_string(&path).unwrap();
    let own = format!("public_key = '{b}'\ninterface = {{ private_key_file = 'b.key' }}");
    fs::write(&path, text.replace(&format!("public_key = '{b}'"), &own)).unwrap();
    let error = host.resolve(None).unwrap_err();
    assert!(
        error.contains("the keys of several peers: a, b") && error.contains("--private-key-file"),
        "{error}"
    );
    assert_eq!(host.resolve(Some("b.key")).unwrap().name, "b");
}

#[test]
fn a_file_too_large_to_be_a_mesh_is_refused_unread() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("big.toml");
    fs::File::create(&file).unwrap().set_len(1 << 40).unwrap();
    let error = shown(&config::load(&file).unwrap_err(), directory.path());
    assert!(error.contains("longer than 8 MiB"), "{error}");
}

#[test]
fn what_is_not_a_file_is_refused_without_waiting() {
    let directory = TempDir::new().unwrap();
    let fifo = directory.path().join("fifo.toml");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    for path in [fifo.as_path(), directory.path(), Path::new("/dev/zero")] {
        let error = shown(&config::load(path).unwrap_err(), directory.path());
        assert!(error.contains("this is not a file"), "{error}");
    }
}

#[test]
fn the_relays_of_a_pair_are_those_that_both_sides_list_by_the_sum_of_their_places() {
    let host = Host::new();
    let mut more = String::new();
    for name in ["r1", "r2", "r3"] {
        let key = key_pair(7).1;
        more += &format!(
            "[discovery.{name}]\nplugin = 'rendezvous'\nserver = '{name}.example.org:51900'\npublic_key = '{key}'\n"
        );
    }
    for (name, seed, list) in [
        ("all", 11, "'r1', 'r2', 'r3'"),
        ("back", 12, "'r3', 'r2'"),
        ("ends", 13, "'r3', 'r1'"),
        ("one", 14, "'r1'"),
    ] {
        let (private, public) = key_pair(seed);
        write(
            &host.file(&format!("{name}.key")),
            &format!("{}\n", private.expose_base64().as_str()),
            0o600,
        );
        more += &format!(
            "[peers.{name}]\npublic_key = '{public}'\naddresses = ['10.77.1.{seed}']\nrelays = [{list}]\n"
        );
    }
    host.mesh("private_key_file = 'a.key'", &more);
    let mesh = config::load(&host.file("mesh.toml")).unwrap();
    let pair = |own: &str, other: &str| {
        let node = config::resolve_node(&mesh, Some(&host.file(&format!("{own}.key")))).unwrap();
        node.peers
            .into_iter()
            .find(|peer| peer.name == other)
            .unwrap()
            .relays
    };
    let list = |names: &[&str]| {
        Some(
            names
                .iter()
                .map(|name| (*name).to_owned())
                .collect::<Vec<_>>(),
        )
    };
    assert_eq!(pair("a", "b"), None, "any");
    for (a, b, both) in [
        ("all", "a", &["r1", "r2", "r3"][..]),
        ("back", "a", &["r3", "r2"]),
        ("all", "back", &["r2", "r3"]),
        ("all", "ends", &["r1", "r3"]),
        ("back", "ends", &["r3"]),
        ("back", "one", &[]),
    ] {
        assert_eq!(pair(a, b), list(both), "{a}, {b}");
        assert_eq!(pair(b, a), list(both), "{b}, {a}");
    }
}

#[test]
fn a_pair_is_on_demand_if_a_side_or_the_mesh_says_so_and_no_side_forbids_it() {
    use natpunch_types::Connect::{self, Always, OnDemand};
    // As each side that runs natpunch has it.
    let pair = |mesh: &str, a: &str, b: &str| -> Vec<Connect> {
        let host = Host::new();
        let mut text = format!("[mesh]\nname = 'm'\nnetworks = ['10.77.0.0/16']\n{mesh}\n");
        for (name, seed, lines) in [("a", 11, a), ("b", 12, b)] {
            let (private, public) = key_pair(seed);
            let key = format!("{}\n", private.expose_base64().as_str());
            write(&host.file(&format!("{name}.key")), &key, 0o600);
            text += &format!(
                "[peers.{name}]\npublic_key = '{public}'\naddresses = ['10.77.1.{seed}']\n{lines}\n"
            );
        }
        write(&host.file("mesh.toml"), &text, 0o644);
        let mesh = config::load(&host.file("mesh.toml")).unwrap();
        let sides = [("a", a), ("b", b)].into_iter();
        let sides = sides.filter(|(_, lines)| !lines.contains("managed"));
        let of = |(own, _)| {
            let key = host.file(&format!("{own}.key"));
            let node = config::resolve_node(&mesh, Some(&key)).unwrap();
            node.peers.first().unwrap().connect
        };
        sides.map(of).collect()
    };
    let demand = "connect = 'on-demand'";
    let always = "connect = 'always'";
    for (mesh, a, b, expected) in [
        ("", "", "", Always),
        (demand, "", "", OnDemand),
        (always, demand, "", OnDemand),
        (demand, always, "", Always),
        ("", demand, always, Always),
        ("", demand, demand, OnDemand),
        // What is critical keeps its path, and plain WireGuard can't be woken.
        (demand, "critical = true", "", Always),
        (demand, "managed = false", demand, Always),
    ] {
        for pair in [pair(mesh, a, b), pair(mesh, b, a)] {
            let same = pair.iter().all(|connect| *connect == expected);
            assert!(same && !pair.is_empty(), "{mesh}, {a}, {b}: {pair:?}");
        }
    }
}
