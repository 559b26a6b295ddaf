//! Every key of the mesh file: what a change of it comes to.

use std::collections::{BTreeMap, BTreeSet};

use natpunch_rollout::{Moment, watched};
use natpunch_types::PeerKey;
use serde_json::Value;

use super::facts;
use super::tests::watched_of;
use crate::agent::testing::{mesh, node, secret_file};
use crate::config;

/// What a change of one key of the mesh file comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    /// The peers that it touches have to survive it.
    Watched,
    /// No peer is watched, and why that does no harm.
    Harmless(&'static str),
    /// It can't be changed while the mesh is up, or names another node.
    Fixed,
}
use Expect::{Fixed, Harmless, Watched};

const RELAYED: &str = "[discovery.rv]\nplugin = \"rendezvous\"\nserver = \"rv.example.org:1\"\n\
    public_key = \"hHpUIW0xoSdoCrYbgVQl2NMYlJr1qvN3Mqm2xgk5YU0=\"\n";
/// The same with another way, of whose keys some mean nothing alone.
const BY_TLS: &str = "[discovery.rv]\nplugin = \"rendezvous\"\nserver = \"rv.example.org:1\"\n\
    public_key = \"hHpUIW0xoSdoCrYbgVQl2NMYlJr1qvN3Mqm2xgk5YU0=\"\n\
    tls = \"https://rv.example.org\"\n";
const GO: &str = "[discovery.go]\nplugin = \"natpunch-go\"\nserver = \"go.example.org:1\"\n\
    public_key = \"hHpUIW0xoSdoCrYbgVQl2NMYlJr1qvN3Mqm2xgk5YU0=\"\n";
const HOLE: &str =
    "[discovery.nhp]\nplugin = \"nat-hole-punching\"\nserver = \"nhp.example.org:1\"\n";
const WEB: &str = "[discovery.web]\nplugin = \"http\"\nurl = \"https://example.org/v1\"\n";
const FILES: &str = "[discovery.files]\nplugin = \"file\"\ndirectory = \"/srv/records\"\n";
const REDIS: &str = "[discovery.redis]\nplugin = \"redis\"\nurl = \"rediss://redis.example.org\"\n";
const ZONE: &str = "[discovery.zone]\nplugin = \"dns\"\nzone = \"natpunch.example.org\"\n\
    update_server = \"ns1.example.org\"\nkey_name = \"natpunch\"\nkey_file = \"/etc/dns.key\"\n";
const GOSSIP: &str = "[discovery.gossip]\nplugin = \"gossip\"\n";
const EXEC: &str = "[discovery.own]\nplugin = \"exec\"\n\
    command = [\"/usr/lib/natpunch/a\"]\nuser = \"nobody\"\n";

/// For every key of the schema: text that is replaced in the mesh below, its replacement, and what
/// that comes to. A text that begins with `+` is put behind the mesh.
#[rustfmt::skip]
const KEYS: &[(&str, &str, &str, Expect)] = &[
    ("mesh.name", "name = \"test\"", "name = \"other\"", Fixed),
    ("mesh.networks", "[\"10.77.0.0/16\"]", "[\"10.77.0.0/16\", \"10.78.0.0/16\"]", Watched),
    ("mesh.generation", "[mesh]", "[mesh]\ngeneration = 7", Harmless("a number that names the version")),
    ("mesh.connect", "[mesh]", "[mesh]\nconnect = \"on-demand\"",
        Harmless("a pair that rests is woken by what is asked of it")),
    ("mesh.lans", "[mesh]", "[mesh]\nlans = [\"192.168.7.0/24\"]", Watched),
    ("mesh.preshared_secret_file", "[mesh]", "[mesh]\npreshared_secret_file = \"SECRET\"", Watched),
    ("mesh.preshared_secret_age", "", "", Harmless("the same secret from another place: as its file")),
    ("interface.name", "+", "[interface]\nname = \"wg9\"\n", Fixed),
    ("interface.private_key_file", "+", "[interface]\nprivate_key_file = \"/nowhere\"\n",
        Harmless("another place of the same key; another key is another node")),
    ("interface.private_key_age", "", "", Harmless("the same key from another place")),
    ("interface.mtu", "+", "[interface]\nmtu = 1300\n", Watched),
    ("interface.listen_port", "+", "[interface]\nlisten_port = 7\n", Watched),
    ("interface.fwmark", "+", "[interface]\nfwmark = 7\n", Watched),
    ("interface.backend", "+", "[interface]\nbackend = \"userspace\"\n", Fixed),
    ("interface.persistent_keepalive", "+", "[interface]\npersistent_keepalive = 9\n",
        Harmless("a NAT forgets in minutes, when every deadline is over; pings keep its mapping")),
    ("interface.port_mapping", "+", "[interface]\nport_mapping = false\n", Watched),
    ("apply.confirm", "+", "[apply]\nconfirm = \"7s\"\n", Harmless("a rule for changes, no way to anybody")),
    ("apply.heal", "+", "[apply]\nheal = false\n", Harmless("a rule for what others change")),
    ("apply.allow", "+", "[apply]\nallow = [\"empty-mesh\"]\n", Harmless("a rule for changes")),
    ("punch.rate", "+", "[punch]\nrate = 7\n", Harmless("bounds a search; a path in use stays")),
    ("punch.per_round", "+", "[punch]\nper_round = 7\n", Harmless("the same")),
    ("punch.per_10_minutes", "+", "[punch]\nper_10_minutes = 7\n", Harmless("the same")),
    ("punch.spray", "+", "[punch]\nspray = false\n", Harmless("the same")),
    ("secrets.identity_file", "+", "[secrets]\nidentity_file = \"/etc/natpunch/other.age\"\n",
        Harmless("opens the same keys, or the file is refused")),
    ("names.hosts", "+", "[names]\nhosts = true\n", Harmless("names for people; no packet of a tunnel needs one")),
    ("stun.servers", "+", "[stun]\nservers = [\"stun.example.org:3478\"]\n", Watched),
    ("peers.public_key", "P1KEY", "hHpUIW0xoSdoCrYbgVQl2NMYlJr1qvN3Mqm2xgk5YU0=", Watched),
    ("peers.addresses", "10.77.0.2", "10.77.9.9", Watched),
    ("peers.routes", "[peers.p1]\n", "[peers.p1]\nroutes = [\"172.20.0.0/24\"]\n", Watched),
    ("peers.exit", "[peers.p1]\n", "[peers.p1]\nexit = true\n", Harmless("nothing goes there until exit_node says so")),
    ("peers.exit_node", "[peers.self]\n", "[peers.self]\nexit_node = \"p3\"\n", Watched),
    ("peers.exit_except", "exit_node = \"p3\"", "exit_node = \"p3\"\nexit_except = [\"192.168.7.0/24\"]", Watched),
    ("peers.endpoint", "[peers.p1]\n", "[peers.p1]\nendpoint = \"192.0.2.1:7\"\n", Watched),
    ("peers.managed", "[peers.p1]\n", "[peers.p1]\nmanaged = false\n", Watched),
    ("peers.serve", "[peers.p1]\n", "[peers.p1]\nendpoint = \"192.0.2.1:7\"\nserve = true\n", Watched),
    ("peers.relay", "[peers.p1]\n", "[peers.p1]\nrelay = \"never\"\n", Watched),
    ("peers.relays", "[peers.p1]\n", "[peers.p1]\nrelays = [\"rv\"]\n", Watched),
    ("peers.critical", "[peers.p1]\n", "[peers.p1]\ncritical = true\n", Harmless("says how much a loss matters, and causes none")),
    ("peers.tags", "[peers.p1]\n", "[peers.p1]\ntags = [\"lab\"]\n", Harmless("words for people and tools")),
    ("peers.connect", "[peers.p1]\n", "[peers.p1]\nconnect = \"on-demand\"\n",
        Harmless("as that of the mesh")),
    ("peers.persistent_keepalive", "[peers.p1]\n", "[peers.p1]\npersistent_keepalive = 9\n",
        Harmless("as that of the interface")),
    ("peers.interface.name", "[peers.self]\n", "[peers.self]\ninterface.name = \"wg9\"\n", Fixed),
    ("peers.interface.private_key_file", "[peers.self]\n", "[peers.self]\ninterface.private_key_file = \"/nowhere\"\n",
        Harmless("as that of the interface")),
    ("peers.interface.private_key_age", "", "", Harmless("as that of the interface")),
    ("peers.interface.mtu", "[peers.self]\n", "[peers.self]\ninterface.mtu = 1300\n", Watched),
    ("peers.interface.listen_port", "[peers.p1]\n", "[peers.p1]\ninterface.listen_port = 7\n", Watched),
    ("peers.interface.fwmark", "[peers.self]\n", "[peers.self]\ninterface.fwmark = 7\n", Watched),
    ("peers.interface.backend", "[peers.self]\n", "[peers.self]\ninterface.backend = \"userspace\"\n", Fixed),
    ("peers.interface.persistent_keepalive", "[peers.self]\n", "[peers.self]\ninterface.persistent_keepalive = 9\n",
        Harmless("as that of the interface")),
    ("peers.interface.port_mapping", "[peers.self]\n", "[peers.self]\ninterface.port_mapping = false\n", Watched),
    ("preshared.peers", "+", "[[preshared]]\npeers = [\"self\", \"p1\"]\npreshared_key_file = \"SECRET\"\n", Watched),
    ("preshared.preshared_key_file", "+", "[[preshared]]\npeers = [\"self\", \"p1\"]\npreshared_key_file = \"SECRET\"\n", Watched),
    ("preshared.preshared_key_age", "", "", Harmless("the same key from another place: as its file")),
];

/// All keys of the schema but those of plugins: `section.key`, without names.
fn leaves(schema: &Value, part: &Value, path: &str, found: &mut BTreeSet<String>) {
    let part = match part["$ref"].as_str() {
        Some(reference) => schema.pointer(reference.trim_start_matches('#')).unwrap(),
        None => part,
    };
    let below = [&part["additionalProperties"], &part["items"]];
    let below = below.into_iter().find(|below| {
        below["$ref"].is_string() || below["properties"].is_object() || below["oneOf"].is_array()
    });
    if let Some(properties) = part["properties"].as_object() {
        for (key, property) in properties {
            let path = if path.is_empty() {
                key.clone()
            } else {
                format!("{path}.{key}")
            };
            leaves(schema, property, &path, found);
        }
    } else if let Some(below) = below.filter(|below| is_section(schema, below)) {
        leaves(schema, below, path, found);
    } else {
        found.insert(path.to_owned());
    }
}

/// Whether a part of the schema is a section with keys, not a plain value.
fn is_section(schema: &Value, part: &Value) -> bool {
    let resolved = match part["$ref"].as_str() {
        Some(reference) => schema.pointer(reference.trim_start_matches('#')).unwrap(),
        None => part,
    };
    resolved["properties"].is_object()
}

#[test]
fn every_key_of_the_mesh_file_is_watched_or_harmless_for_a_reason() {
    let schema = config::schema(false);
    let mut all = BTreeSet::new();
    leaves(&schema, &schema, "", &mut all);
    assert!(all.remove("discovery"), "has its own test: {all:#?}");
    let known: BTreeMap<&str, _> = KEYS.iter().map(|row| (row.0, row)).collect();
    let listed: BTreeSet<String> = known.keys().map(|key| (*key).to_owned()).collect();
    assert_eq!(
        listed, all,
        "a new key: say here what a change of it comes to"
    );

    let directory = tempfile::tempdir().unwrap();
    let secret = directory.path().join("secret");
    secret_file(&secret, 5);
    let p1 = natpunch_types::SecretKey::from_bytes([2; 32]).public_key();
    for (path, from, to, expect) in known.into_values() {
        if from.is_empty() && to.is_empty() {
            assert!(matches!(expect, Harmless(_)), "{path}");
            continue;
        }
        let mut before = mesh(3, "").replacen("[peers.p3]\n", "[peers.p3]\nexit = true\n", 1);
        before.push_str(RELAYED);
        if *path == "peers.exit_except" {
            before = before.replacen("[peers.self]\n", "[peers.self]\nexit_node = \"p3\"\n", 1);
        }
        let to = to.replace("SECRET", secret.to_str().unwrap());
        let from = from.replace("P1KEY", &p1.to_string());
        let after = match from.as_str() {
            "+" => format!("{before}{to}"),
            from => before.replacen(from, &to, 1),
        };
        assert_ne!(before, after, "{path}");
        let (old, new) = (facts(&node(&before)), facts(&node(&after)));
        let all = ["p1", "p2", "p3"].map(str::to_owned);
        let moment = Moment {
            alive: all.into(),
            logins: Vec::new(),
        };
        let is_watched = !watched(&old, &new, &moment).is_empty();
        match expect {
            Watched => assert!(is_watched, "{path}: a change of it is not watched"),
            Harmless(reason) => assert!(!is_watched && !reason.is_empty(), "{path}"),
            Fixed => assert!(is_watched, "{path}"),
        }
    }
}

#[test]
fn whatever_changes_of_a_discovery_instance_is_watched() {
    let schema = config::schema(false);
    let forms = &schema["properties"]["discovery"]["additionalProperties"];
    let forms = match forms["$ref"].as_str() {
        Some(reference) => schema.pointer(reference.trim_start_matches('#')).unwrap(),
        None => forms,
    };
    let mut checked = 0;
    for form in forms["oneOf"].as_array().unwrap() {
        let plugin = form["properties"]["plugin"]["const"].as_str().unwrap();
        let section = match plugin {
            "rendezvous" => BY_TLS,
            "natpunch-go" => GO,
            "nat-hole-punching" => HOLE,
            "http" => WEB,
            "exec" => EXEC,
            "file" => FILES,
            "redis" => REDIS,
            "dns" => ZONE,
            "gossip" => GOSSIP,
            // They are there without being written.
            "static" | "port-mapping" => continue,
            other => panic!("say here how a section of `{other}` looks"),
        };
        let before = format!("{}{section}", mesh(2, ""));
        for (name, property) in form["properties"].as_object().unwrap() {
            let value = match (name.as_str(), property["type"].as_str()) {
                ("plugin", _) => continue,
                ("public_key" | "next_public_key", _) => {
                    format!("\"{}\"", PeerKey::from_bytes([9; 32]))
                }
                ("tls", _) => "\"https://other.example.org\"".to_owned(),
                ("url", _) if plugin == "redis" => "\"rediss://other.example.org\"".to_owned(),
                ("url", _) => "\"https://other.example.org/v1\"".to_owned(),
                ("server" | "update_server", _) => "\"other.example.org:2\"".to_owned(),
                ("zone" | "key_name", _) => "\"other.example.org\"".to_owned(),
                ("more_ports", _) => "[443]".to_owned(),
                ("name_servers", _) => "[\"192.0.2.54\"]".to_owned(),
                ("algorithm", _) => "\"hmac-sha512\"".to_owned(),
                ("command", _) => "[\"/usr/lib/natpunch/b\"]".to_owned(),
                ("directory", _) => "\"/srv/other\"".to_owned(),
                ("user", _) => "\"daemon\"".to_owned(),
                ("lifetime", _) => "60".to_owned(),
                ("read_paths" | "write_paths", _) => "[\"/srv/other\"]".to_owned(),
                ("settings", _) => "{ directory = \"/srv/other\" }".to_owned(),
                (_, Some("boolean")) => {
                    (!property["default"].as_bool().unwrap_or_default()).to_string()
                }
                (_, Some("integer")) => "7".to_owned(),
                (_, Some("array")) => "[\"stun.example.org:3478\"]".to_owned(),
                _ => "\"/etc/natpunch/other.key\"".to_owned(),
            };
            let line = format!("{name} = {value}\n");
            let old = section
                .lines()
                .find(|l| l.starts_with(&format!("{name} =")));
            let changed = match old {
                Some(old) => section.replacen(&format!("{old}\n"), &line, 1),
                None => format!("{section}{line}"),
            };
            let after = format!("{}{changed}", mesh(2, ""));
            let found = watched_of(&before, &after, &["p1", "p2"], &[]);
            assert_eq!(found.len(), 2, "{plugin}.{name} = {value}");
            checked += 1;
        }
        // And that there is one at all.
        assert_eq!(watched_of(&before, &mesh(2, ""), &["p1"], &[]).len(), 1);
    }
    assert!(checked > 6, "{checked}");
}
