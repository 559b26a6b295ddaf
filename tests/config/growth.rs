//! How the work of reading a mesh grows with the lists in it: somebody else writes them.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use natpunch::config::{self, Local};
use nix::time::{ClockId, clock_gettime};
use serde_json::Value;

/// A list of the mesh file with so many entries.
struct Case {
    /// The list, as the schema has it.
    list: &'static str,
    /// How the entries are.
    entries: &'static str,
    text: fn(u32) -> String,
}

fn key(n: u32) -> String {
    let mut key = [7; 32];
    key[..4].copy_from_slice(&n.to_be_bytes());
    STANDARD.encode(key)
}

/// `/30` networks of 10.0.0.0/9, all different.
fn net(n: u32) -> String {
    format!("10.{}.{}.{}/30", n >> 14, n >> 6 & 255, (n & 63) * 4)
}

fn list(n: u32, entry: impl Fn(u32) -> String) -> String {
    let entries: Vec<String> = (0..n).map(|n| format!("'{}'", entry(n))).collect();
    format!("[{}]", entries.join(", "))
}

fn head(networks: &str, more: &str) -> String {
    format!("[mesh]\nname = 'large'\nnetworks = {networks}\n{more}\n")
}

/// A mesh with one peer that has this line, beside another that exits.
fn one_peer(line: &str) -> String {
    format!(
        "{}[peers.one]\npublic_key = '{}'\naddresses = ['172.16.0.1']\n{line}\n\
         [peers.exit]\npublic_key = '{}'\naddresses = ['172.16.0.2']\nexit = true\nendpoint = '192.0.2.1:1'\n",
        head("['172.16.0.0/12']", ""),
        key(1_000_001),
        key(1_000_002)
    )
}

/// A mesh of so many peers, each with this text; `{n}` in it is the peer's number.
fn peers(n: u32, networks: &str, before: &str, each: &str) -> String {
    let mut text = head(networks, "") + before;
    for n in 0..n {
        let address = format!("172.{}.{}.{}", 16 + (n >> 14), n >> 7 & 127, (n & 127) + 1);
        let each = each.replace("{n}", &n.to_string());
        writeln!(
            text,
            "[peers.p{n}]\npublic_key = '{}'\naddresses = ['{address}']\n{each}",
            key(n)
        )
        .unwrap();
    }
    text
}

const NET: &str = "['172.16.0.0/12']";

const CASES: &[Case] = &[
    Case {
        list: "mesh.networks",
        entries: "all apart, with as many peers, routes and LANs",
        text: |n| {
            let nets = list(n, net).replace('[', "['172.16.0.0/12', ");
            let lans = list(n, |n| net(n + 100_000));
            peers(n, &nets, &format!("lans = {lans}\n"), "")
        },
    },
    Case {
        list: "mesh.networks",
        entries: "all the same, and addresses outside of them",
        text: |n| peers(n, &list(n, |_| "10.0.0.0/9".into()), "", ""),
    },
    Case {
        list: "mesh.lans",
        entries: "all apart, and as many routes",
        text: |n| {
            one_peer(&format!("routes = {}", list(n, |n| net(n + 100_000)))).replace(
                "[peers.one]",
                &format!("lans = {}\n[peers.one]", list(n, net)),
            )
        },
    },
    Case {
        list: "Apply.allow",
        entries: "one word again and again",
        text: |n| {
            let words = list(n, |_| "default-route".into());
            format!("{}[apply]\nallow = {words}\n", one_peer(""))
        },
    },
    Case {
        list: "Apply.allow",
        entries: "words that are none, on one line",
        text: |n| {
            let words = list(n, |n| format!("default-{n}"));
            format!("{}[apply]\nallow = {words}\n", one_peer(""))
        },
    },
    Case {
        list: "Stun.servers",
        entries: "all different",
        text: |n| {
            let servers = list(n, |n| format!("s{n}.example.org:3478"));
            format!("{}[stun]\nservers = {servers}\n", one_peer(""))
        },
    },
    Case {
        list: "Peer.addresses",
        entries: "of one peer, in as many networks",
        text: |n| {
            let addresses = list(n, |n| {
                format!("10.{}.{}.{}", n >> 14, n >> 6 & 255, (n & 63) * 4 + 1)
            });
            let nets = list(n, net).replace('[', "['172.16.0.0/12', ");
            one_peer("exit_node = 'exit'")
                .replacen("['172.16.0.0/12']", &nets, 1)
                .replacen("['172.16.0.1']", &addresses, 1)
        },
    },
    Case {
        list: "Peer.routes",
        entries: "one network again and again, then as many inside of it",
        text: |n| {
            let same = list(n, |_| "10.0.0.0/8".into());
            let inside = list(n, net);
            one_peer(&format!(
                "routes = {}{}",
                same.replace(']', ", "),
                inside.replace('[', "")
            ))
        },
    },
    Case {
        list: "Peer.exit_except",
        entries: "all different",
        text: |n| {
            one_peer(&format!(
                "exit_node = 'exit'\nexit_except = {}",
                list(n, net)
            ))
        },
    },
    Case {
        list: "Peer.relays",
        entries: "names that nobody has",
        text: |n| one_peer(&format!("relays = {}", list(n, |n| format!("relay-{n}")))),
    },
    Case {
        list: "Peer.relays",
        entries: "different lists of every peer, in as many servers",
        text: |n| {
            let mut text = String::new();
            for n in 0..n {
                writeln!(
                    text,
                    "[discovery.d{n}]\nplugin = 'rendezvous'\nserver = 's{n}.example.org:1'\npublic_key = '{}'",
                    key(2_000_000 + n)
                )
                .unwrap();
            }
            peers(n, NET, &text, "relays = ['d{n}']")
        },
    },
    Case {
        list: "Peer.tags",
        entries: "all different",
        text: |n| one_peer(&format!("tags = {}", list(n, |n| n.to_string()))),
    },
    Case {
        list: "peers",
        entries: "phones without an endpoint, and one with",
        text: |n| {
            format!(
                "{}\n[peers.hub]\npublic_key = '{}'\naddresses = ['172.31.255.1']\nendpoint = '192.0.2.1:1'\n",
                peers(n, NET, "", "managed = false"),
                key(3_000_000)
            )
        },
    },
    Case {
        list: "peers",
        entries: "which serve at one port of one host",
        text: |n| peers(n, NET, "", "serve = true\nendpoint = 'h.example.org:1'"),
    },
    Case {
        list: "peers",
        entries: "with exit nodes that nobody is",
        text: |n| peers(n, NET, "", "exit = true\nexit_node = 'nobody-{n}'"),
    },
    Case {
        list: "peers",
        entries: "that all send everything through one",
        text: |n| {
            peers(n, NET, "", "exit_node = 'p0'").replacen("exit_node = 'p0'", "exit = true", 1)
        },
    },
    Case {
        list: "discovery",
        entries: "instances of unknown plugins",
        text: |n| {
            let mut text = one_peer("");
            for n in 0..n {
                writeln!(text, "[discovery.d{n}]\nplugin = 'p{n}'").unwrap();
            }
            text
        },
    },
    Case {
        list: "preshared",
        entries: "of pairs with names that nobody has",
        text: |n| {
            let mut text = peers(n, NET, "", "");
            for n in 0..n {
                writeln!(
                    text,
                    "[[preshared]]\npeers = ['peer-{n}', 'p{n}']\npreshared_key_file = 'k'"
                )
                .unwrap();
            }
            text
        },
    },
    Case {
        list: "Preshared.peers",
        entries: "more than two",
        text: |n| {
            format!(
                "{}[[preshared]]\npeers = {}\npreshared_key_file = 'k'\n",
                one_peer(""),
                list(n, |n| format!("p{n}"))
            )
        },
    },
    Case {
        list: "Discovery.more_ports",
        entries: "all different, where four are the most",
        text: |n| {
            let ports = list(n, |n| (n % 65_535 + 1).to_string()).replace('\'', "");
            format!(
                "{}[discovery.rv]\nplugin = 'rendezvous'\nserver = 'rv.example.org:51900'\nmore_ports = {ports}\n",
                one_peer("")
            )
        },
    },
    Case {
        list: "Discovery.stun",
        entries: "all different",
        text: |n| {
            let servers = list(n, |n| format!("s{n}.example.org:3478"));
            format!(
                "{}[discovery.web]\nplugin = 'http'\nurl = 'https://example.org/v1'\nstun = {servers}\n",
                one_peer("")
            )
        },
    },
    Case {
        list: "Discovery.command",
        entries: "more than may be",
        text: |n| {
            let arguments = list(n, |n| format!("/usr/lib/natpunch/{n}"));
            format!(
                "{}[discovery.own]\nplugin = 'exec'\nuser = 'nobody'\ncommand = {arguments}\n",
                one_peer("")
            )
        },
    },
    Case {
        list: "Discovery.name_servers",
        entries: "more than may be",
        text: |n| {
            let servers = list(n, |n| format!("2001:db8::{n:x}"));
            format!(
                "{}[discovery.zone]\nplugin = 'dns'\nzone = 'example.org'\nname_servers = {servers}\n",
                one_peer("")
            )
        },
    },
    Case {
        list: "Discovery.read_paths",
        entries: "more than may be",
        text: |n| {
            own_program(&format!(
                "read_paths = {}\n",
                list(n, |n| format!("/srv/{n}"))
            ))
        },
    },
    Case {
        list: "Discovery.write_paths",
        entries: "more than may be",
        text: |n| {
            own_program(&format!(
                "write_paths = {}\n",
                list(n, |n| format!("/srv/{n}"))
            ))
        },
    },
    Case {
        list: "Discovery.settings",
        entries: "more than may be",
        text: |n| {
            let settings: Vec<String> = (0..n).map(|n| format!("key{n} = {n}")).collect();
            own_program(&format!("settings = {{ {} }}\n", settings.join(", ")))
        },
    },
];

/// A mesh with a program of one's own, and these lines of its section.
fn own_program(lines: &str) -> String {
    format!(
        "{}[discovery.own]\nplugin = 'exec'\nuser = 'nobody'\n\
         command = ['/usr/lib/natpunch/a']\n{lines}",
        one_peer("")
    )
}

/// The processor time of everything that is done with a mesh file: an answer or all errors.
fn work(text: String) -> Duration {
    let now = || {
        let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap();
        Duration::from(time)
    };
    let start = now();
    match config::load_texts(vec![(PathBuf::from("/mesh.toml"), text)]) {
        Ok(mesh) => {
            let findings = [config::lint(&mesh), config::notes(&mesh)];
            let shown: usize = findings.iter().flatten().map(|f| f.to_string().len()).sum();
            let first = mesh.peers.keys().next().unwrap();
            // Without its key files this host has no preshared keys; all else is as it is.
            let peers = config::peers_of(&mesh, first, &Local::default());
            let own = config::own_addresses(&mesh, &mesh.peers[first]);
            let free = config::free_addresses(&mesh);
            let found = (peers.is_ok(), free.is_ok());
            std::hint::black_box((shown, found, own, mesh.mesh_hash()));
        }
        Err(errors) => {
            std::hint::black_box(errors.to_string());
        }
    }
    now() - start
}

#[test]
fn work_grows_no_faster_than_n_log_n_in_every_list_of_the_schema() {
    const FEW: u32 = 1_000;
    const TIMES: u32 = 8;
    // By n log n 8 times the entries take 11 times the work, and by n squared 64 times.
    const MOST: u32 = 24;
    let mut wrong = Vec::new();
    for case in CASES {
        let measure = || {
            let few = work((case.text)(FEW)).max(Duration::from_millis(1));
            (few, work((case.text)(FEW * TIMES)))
        };
        // Processor time, but caches are shared with other programs: the best of several counts.
        let mut tries = std::iter::repeat_with(measure).take(4);
        let good = tries.find(|(few, many)| *many < *few * MOST);
        let name = format!("{}: {}", case.list, case.entries);
        match good {
            Some((few, many)) => println!("{name}: {few:.1?} -> {many:.1?}"),
            None => wrong.push(name),
        }
    }
    assert!(wrong.is_empty(), "these grow faster: {wrong:#?}");
}

/// The lists and tables of names of a schema, as `section.key`.
fn lists_of(schema: &Value, section: &str, found: &mut BTreeSet<String>) {
    let properties = schema.get("properties").and_then(Value::as_object);
    for (key, property) in properties.into_iter().flatten() {
        let name = match section {
            "" => key.clone(),
            section => format!("{section}.{key}"),
        };
        // A section of its own has `properties`; a table of names has not.
        let is_section = property.get("properties").is_some();
        let is_table = property["type"] == "object" && !is_section;
        if property["type"] == "array" || is_table {
            found.insert(name);
        } else {
            lists_of(property, key, found);
        }
    }
    for form in schema
        .get("oneOf")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        lists_of(form, section, found);
    }
}

#[test]
fn every_list_of_the_schema_is_measured() {
    let schema = config::schema(false);
    let mut lists = BTreeSet::new();
    lists_of(&schema, "", &mut lists);
    for (name, section) in schema["$defs"].as_object().unwrap() {
        lists_of(section, name, &mut lists);
    }
    let measured: BTreeSet<String> = CASES.iter().map(|case| case.list.to_owned()).collect();
    assert_eq!(measured, lists);
}
