//! Discovery sections: every setting of every plugin, and what adding a plugin takes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use natpunch::config::{self, ConfigErrors, Discovery, MeshConfig};
use natpunch::plugins::registry::{self, Row};
use natpunch_plugin::conformance;
use natpunch_plugin::testing::{Effect, FakeHost};
use natpunch_plugin::{
    Abilities, BoxFuture, Candidate, CandidateKind, Description, Flaw, Host, Instance, News,
    PluginError, Runs, Secrets, Settings, Warning,
};
use natpunch_types::PeerKey;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::support::key_pair;

/// A mesh with this discovery section.
fn mesh(section: &str) -> String {
    let peer = key_pair(1).1;
    format!(
        "[mesh]\nname = 'home'\nnetworks = ['10.77.0.0/16']\n\
         [peers.a]\npublic_key = '{peer}'\naddresses = ['10.77.0.1']\n{section}"
    )
}

fn load(text: &str) -> Result<MeshConfig, ConfigErrors> {
    config::load_texts(vec![("/mesh/mesh.toml".into(), text.to_owned())])
}

fn instance(mesh: &MeshConfig) -> &Discovery {
    let is_meant = |instance: &&Discovery| instance.name == "it";
    mesh.discovery.iter().find(is_meant).unwrap()
}

/// A key, a good value, and bad ones.
type Setting = (&'static str, String, Vec<String>);

/// Every setting of every plugin: a good value, and bad ones of each kind.
fn settings() -> BTreeMap<&'static str, Vec<Setting>> {
    let texts = |values: &[&str]| -> Vec<String> {
        let quoted = values.iter().map(|value| format!("'{value}'"));
        quoted.collect()
    };
    let key = format!("'{}'", key_pair(9).1);
    let zeros = PeerKey::from_bytes([0; 32]).to_string();
    let keys = || [texts(&["", "short", &zeros]), vec!["5".into(), "[]".into()]].concat();
    let server = || {
        let bad = [
            "",
            "rv.example.org",
            "rv.example.org:0",
            "rv:70000",
            "2001:db8::1:5",
            "a b:1",
        ];
        [texts(&bad), vec!["5".into(), "['a:1']".into()]].concat()
    };
    let server_of = |port: u16| format!("'rv.example.org:{port}'");
    let numbers = |too_many: &str| {
        let bad = ["0", "-1", too_many, "1.5", "'3'", "true", "[]"];
        bad.map(str::to_owned).to_vec()
    };
    let urls = [
        "",
        "rv.example.org",
        "ftp://rv.example.org",
        "https://",
        "https://a:b@rv.example.org",
        "https://a@rv.example.org/",
        "https://rv.example.org/?a",
        "https://rv.example.org/#a",
        "https://rv.example.org:99999/",
    ];
    let redis_urls = [
        "",
        "rv.example.org:6379",
        "https://rv.example.org",
        "redis://",
        "redis://u:p@rv.example.org",
        "redis://:p@rv.example.org",
        "redis://rv.example.org:0",
        "redis://rv.example.org:99999",
        "redis://rv.example.org/a",
        "redis://rv.example.org/0/1",
        "redis://rv.example.org/65536",
        "redis://rv.example.org/?a",
        "redis://rv.example.org/#a",
        "redis://a b",
    ];
    let files = [
        "",
        "a.key",
        "./a.key",
        "/",
        "credential:",
        "credential:../a",
        "credential:a/b",
    ];
    let commands = [
        "[]",
        "5",
        "'/usr/local/lib/natpunch/file.py'",
        "[5]",
        "['file.py']",
        "['/bin/sh', '-c', 'true']",
        "['/usr/local/lib/natpunch/../../../../bin/sh']",
    ];
    let paths = ["5", "'/srv/a'", "['a']", "['']", "['./a']", "[5]"].map(str::to_owned);
    let paths = paths.to_vec();
    let long = format!("{{ a = '{}' }}", "x".repeat(16 << 10));
    let many: Vec<String> = (0..65).map(|n| format!("a{n} = 1")).collect();
    let bad_settings = vec![
        "5".to_owned(),
        "[]".to_owned(),
        "{ since = 2026-01-01 }".to_owned(),
        "{ share = 1.5 }".to_owned(),
        "{ a = { b = 1 } }".to_owned(),
        "{ a = [1] }".to_owned(),
        long,
        format!("{{ {} }}", many.join(", ")),
    ];
    let mut ipv4_only = server();
    ipv4_only.push("'[2001:db8::1]:49918'".to_owned());
    BTreeMap::from([
        (
            "static",
            vec![("resolve_interval", "30".into(), numbers("86401"))],
        ),
        ("port-mapping", vec![]),
        (
            "rendezvous",
            vec![
                ("server", server_of(51900), server()),
                ("public_key", key.clone(), keys()),
                ("next_public_key", key.clone(), keys()),
                (
                    "admission_secret_file",
                    "'credential:admission.key'".into(),
                    [texts(&files), vec!["5".into()]].concat(),
                ),
                ("relay", "false".into(), vec!["'no'".into(), "0".into()]),
                (
                    "more_ports",
                    "[443, 53]".into(),
                    [
                        "[0]",
                        "[65536]",
                        "[443, 443]",
                        "[51900]",
                        "[1, 2, 3, 4, 5]",
                        "443",
                    ]
                    .map(str::to_owned)
                    .to_vec(),
                ),
                (
                    "tls",
                    "'https://rv.example.org:8443'".into(),
                    [
                        texts(&urls),
                        texts(&["http://rv.example.org", "https://rv.example.org/v1"]),
                        vec!["5".into()],
                    ]
                    .concat(),
                ),
                (
                    "tls_ca_file",
                    "'/etc/natpunch/ca.pem'".into(),
                    texts(&["", "ca.pem"]),
                ),
            ],
        ),
        (
            "natpunch-go",
            vec![
                ("server", server_of(9000), server()),
                ("public_key", key, keys()),
            ],
        ),
        (
            "nat-hole-punching",
            vec![("server", server_of(49918), ipv4_only)],
        ),
        (
            "http",
            vec![
                (
                    "url",
                    "'https://rv.example.org/v1'".into(),
                    [texts(&urls), vec!["5".into()]].concat(),
                ),
                (
                    "stun",
                    "['rv.example.org:3478']".into(),
                    vec!["['rv.example.org']".into(), "[5]".into(), "5".into()],
                ),
                ("interval", "3".into(), numbers("3601")),
            ],
        ),
        (
            "file",
            vec![
                (
                    "directory",
                    "'/srv/records'".into(),
                    [texts(&["", "records", "./records", "/"]), vec!["5".into()]].concat(),
                ),
                ("interval", "2".into(), numbers("3601")),
                (
                    "stun",
                    "['rv.example.org:3478']".into(),
                    vec!["['rv.example.org']".into(), "[5]".into(), "5".into()],
                ),
            ],
        ),
        ("gossip", vec![]),
        (
            "redis",
            vec![
                (
                    "url",
                    "'redis://rv.example.org:6379/3'".into(),
                    [texts(&redis_urls), vec!["5".into()]].concat(),
                ),
                (
                    "user",
                    "'natpunch'".into(),
                    [texts(&["", "a b", &"x".repeat(65)]), vec!["5".into()]].concat(),
                ),
                (
                    "password_file",
                    "'/etc/natpunch/redis.password'".into(),
                    [texts(&files), vec!["5".into()]].concat(),
                ),
                (
                    "prefix",
                    "'mesh:'".into(),
                    [texts(&["", "a b", "ä"]), vec!["5".into()]].concat(),
                ),
                ("lifetime", "3600".into(), numbers("86401")),
                (
                    "stun",
                    "['rv.example.org:3478']".into(),
                    vec!["['rv.example.org']".into(), "[5]".into(), "5".into()],
                ),
                (
                    "tls_ca_file",
                    "'/etc/natpunch/ca.pem'".into(),
                    texts(&["", "ca.pem"]),
                ),
            ],
        ),
        (
            "dns",
            vec![
                (
                    "zone",
                    "'natpunch.example.org'".into(),
                    [
                        texts(&["", ".", "a..b", "a b", "*.example.org"]),
                        vec!["5".into()],
                    ]
                    .concat(),
                ),
                (
                    "name_servers",
                    "['127.0.0.1:9', '::1']".into(),
                    vec![
                        "['rv.example.org']".into(),
                        "['192.0.2.1:0']".into(),
                        "['0.0.0.0']".into(),
                        "['192.0.2.1', '192.0.2.2', '192.0.2.3', '192.0.2.4', '192.0.2.5']".into(),
                        "[5]".into(),
                        "5".into(),
                    ],
                ),
                (
                    "update_server",
                    "'rv.example.org'".into(),
                    [
                        texts(&["", "rv.example.org:0", "rv:70000", "a b"]),
                        vec!["5".into()],
                    ]
                    .concat(),
                ),
                (
                    "key_name",
                    "'natpunch'".into(),
                    [texts(&["", "a b", "a..b"]), vec!["5".into()]].concat(),
                ),
                (
                    "key_file",
                    "'/etc/natpunch/dns.key'".into(),
                    [texts(&files), vec!["5".into()]].concat(),
                ),
                (
                    "algorithm",
                    "'hmac-sha256'".into(),
                    [
                        texts(&["", "hmac-md5", "hmac-sha1", "sha256"]),
                        vec!["5".into()],
                    ]
                    .concat(),
                ),
                (
                    "stun",
                    "['rv.example.org:3478']".into(),
                    vec!["['rv.example.org']".into(), "[5]".into(), "5".into()],
                ),
            ],
        ),
        (
            "exec",
            vec![
                (
                    "command",
                    "['/usr/local/lib/natpunch/file.py', '/srv/records']".into(),
                    commands.map(str::to_owned).to_vec(),
                ),
                (
                    "user",
                    "'nobody'".into(),
                    [texts(&["", "a b", "1000", "-x"]), vec!["5".into()]].concat(),
                ),
                ("meetings", "true".into(), vec!["'yes'".into(), "1".into()]),
                ("read_paths", "['/srv/a']".into(), paths.clone()),
                ("write_paths", "['/srv/b']".into(), paths),
                (
                    "settings",
                    "{ directory = '/srv', seconds = 2, loud = true, also = ['a'] }".into(),
                    bad_settings,
                ),
            ],
        ),
    ])
}

#[test]
fn check_refuses_every_bad_value_of_every_setting_where_it_stands() {
    for (plugin, keys) in settings() {
        let lines = |changed: Option<(&str, &str)>| {
            let line = |(key, good, _): &Setting| {
                let value = changed
                    .filter(|(at, _)| at == key)
                    .map_or(good.as_str(), |(_, v)| v);
                format!("{key} = {value}\n")
            };
            let lines: String = keys.iter().map(line).collect();
            mesh(&format!("[discovery.it]\nplugin = '{plugin}'\n{lines}"))
        };
        let good = load(&lines(None)).unwrap_or_else(|errors| panic!("{plugin}: {errors}"));
        let it = instance(&good);
        assert_eq!(it.plugin, plugin);
        assert!(registry::build(&it.settings, &it.secrets).is_some());
        for (key, _, bad) in &keys {
            for value in bad {
                let text = lines(Some((key, value)));
                let at = format!("{plugin}: {key} = {value}");
                let Err(errors) = load(&text) else {
                    panic!("{at}: passes")
                };
                let start = format!("{key} =");
                let lines: Vec<&str> = text.lines().collect();
                let place = lines.iter().rposition(|line| line.starts_with(&start));
                for error in errors.iter() {
                    let location = errors.location(error).unwrap();
                    assert_eq!(location.line, place.unwrap() + 1, "{at}: {errors}");
                    assert!(error.message().contains(*key), "{at}: {errors}");
                }
            }
        }
    }
}

#[test]
fn a_running_plugin_can_say_where_its_settings_stand() {
    let section = "[discovery.it]\nplugin = 'exec'\nuser = 'nobody'\n\
        command = ['/usr/lib/natpunch/a']\n[discovery.it.settings]\ndirectory = '/srv'\n";
    let text = mesh(section);
    let line = |start: &str| {
        text.lines()
            .position(|line| line.starts_with(start))
            .unwrap()
            + 1
    };
    let loaded = load(&text).unwrap();
    let places = &instance(&loaded).places;
    let at = |key: &str| places.of(key).unwrap().to_string();
    let there = |line: usize, column: usize| format!("/mesh/mesh.toml:{line}:{column}");
    assert_eq!(at("settings.directory"), there(line("directory"), 1));
    assert_eq!(at("user"), there(line("user"), 1));
    // Missing ones: where they belong.
    let table = line("[discovery.it.settings]");
    assert!(at("settings.seconds").starts_with(&format!("/mesh/mesh.toml:{table}:")));
    assert!(at("write_paths").starts_with(&format!("/mesh/mesh.toml:{}:", line("[discovery.it]"))));

    // Lines that move change nothing that is run.
    let moved = load(&text.replace("[discovery.it]", "# moved\n[discovery.it]")).unwrap();
    assert_eq!(instance(&moved), instance(&loaded));
}

#[test]
fn no_setting_of_a_plugin_is_left_out_of_these_tests() {
    let schema = config::schema(false);
    let forms = schema["$defs"]["Discovery"]["oneOf"].as_array().unwrap();
    let listed = settings();
    let plugins: BTreeSet<&str> = forms
        .iter()
        .map(|form| form["properties"]["plugin"]["const"].as_str().unwrap())
        .collect();
    assert_eq!(plugins, listed.keys().copied().collect());
    for form in forms {
        let plugin = form["properties"]["plugin"]["const"].as_str().unwrap();
        let of_schema: BTreeSet<&str> = form["properties"]
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .filter(|key| *key != "plugin")
            .collect();
        let of_table: BTreeSet<&str> = listed[plugin].iter().map(|(key, ..)| *key).collect();
        assert_eq!(of_schema, of_table, "{plugin}");
    }
}

/// An instance of each plugin that opens no connection but to this machine.
fn local_instances() -> Vec<(&'static str, Discovery)> {
    let section = |(plugin, keys): (&'static str, Vec<Setting>)| {
        let lines = keys
            .iter()
            .map(|(key, good, _)| format!("{key} = {good}\n"));
        let lines: String = lines.filter(|line| !line.contains("credential:")).collect();
        let lines = lines.replace("rv.example.org", "127.0.0.1");
        let text = mesh(&format!("[discovery.it]\nplugin = '{plugin}'\n{lines}"));
        (plugin, instance(&load(&text).unwrap()).clone())
    };
    settings().into_iter().map(section).collect()
}

#[test]
fn each_plugin_tells_all_that_its_instances_can_do() {
    for (plugin, it) in local_instances() {
        let kinds = registry::kinds();
        let kind = kinds.iter().find(|kind| kind.id() == plugin).unwrap();
        let (all, own) = (kind.abilities().names(), it.about.abilities.names());
        assert!(
            own.iter().all(|name| all.contains(name)),
            "{plugin}: {own:?}"
        );
        assert!(
            !kind.about().is_empty() && kind.about().len() < 60,
            "{plugin}"
        );
    }
}

/// Programs of one's own are held to the same by `natpunch plugin test`, and tested so.
#[tokio::test]
async fn every_built_in_plugin_keeps_the_rules_of_plugins() {
    let checks = local_instances()
        .into_iter()
        .filter(|(plugin, _)| *plugin != "exec");
    let checks = checks.map(|(plugin, it)| {
        tokio::spawn(async move {
            let make = || registry::build(&it.settings, &it.secrets).unwrap();
            let about = it.about.clone();
            let subject = conformance::Subject {
                about,
                plugin: &make,
            };
            (plugin, conformance::check(&subject).await)
        })
    });
    for check in checks.collect::<Vec<_>>() {
        let (plugin, report) = check.await.unwrap();
        assert!(report.is_good(), "{plugin}:\n{report}");
    }
}

/// A plugin that this build does not have: all that adding one takes, but for its row.
mod lighthouse {
    use super::*;

    #[derive(Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields)]
    pub(super) struct Light {
        /// Where its light is seen.
        tower: String,
        /// How bright it is.
        #[schemars(range(min = 1, max = 9))]
        candela: u8,
    }

    #[derive(Debug, PartialEq)]
    pub(super) struct Tower(std::net::SocketAddr, u8);

    impl Settings for Light {
        const PLUGIN: &'static str = "lighthouse";
        const ABOUT: &'static str = "a light on a coast";
        const ABILITIES: Abilities = Abilities {
            relays: true,
            ..Abilities::NONE
        };
        type Instance = Tower;

        fn check(self) -> Result<Tower, Vec<Flaw>> {
            let flaw = |_| Flaw {
                key: "tower",
                problem: "no ship finds it".to_owned(),
                expected: "expected an address",
                help: "write one".to_owned(),
            };
            let tower = self.tower.parse().map_err(|error| vec![flaw(error)]);
            tower.map(|tower| Tower(tower, self.candela))
        }
    }

    impl Instance for Tower {
        fn describe(&self) -> Description {
            Description {
                abilities: Abilities {
                    relays: true,
                    ..Abilities::default()
                },
                finds_peers: true,
                stun: vec![self.0.to_string()],
                warnings: vec![Warning {
                    rule: "fog",
                    problem: "stands in fog".to_owned(),
                    label: "not seen from far",
                    help: "build it higher",
                }],
                ..Description::default()
            }
        }
    }

    impl Runs for Tower {
        fn plugin(&self, _: &Secrets) -> Box<dyn natpunch_plugin::Discovery> {
            Box::new(Self(self.0, self.1))
        }
    }

    impl natpunch_plugin::Discovery for Tower {
        fn run<'a>(&'a mut self, host: Arc<dyn Host>) -> BoxFuture<'a, Result<(), PluginError>> {
            let candidate = Candidate {
                address: self.0,
                kind: CandidateKind::Relay,
                lifetime: Duration::from_secs(60),
            };
            let peer = host.own_key();
            host.tell(News::Candidate { peer, candidate });
            Box::pin(async { Ok(()) })
        }
    }
}

#[tokio::test]
async fn a_plugin_is_one_crate_and_one_row() {
    let row = Row::of::<lighthouse::Light>();
    let load = |section: &str| {
        let files = vec![("/mesh/mesh.toml".into(), mesh(section))];
        let kinds: Vec<_> = registry::kinds().into_iter().chain([row.kind()]).collect();
        natpunch_config::load_texts(files, &kinds)
    };
    let section = "[discovery.it]\nplugin = 'lighthouse'\n";
    let error = load(&format!("{section}tower = 'sea'\ncandela = 10\nlamp = 1\n")).unwrap_err();
    let messages: Vec<_> = error.iter().map(config::ConfigError::message).collect();
    let problems = ["10 is out of range", "unknown key `lamp`"];
    for problem in problems {
        let is_said = messages.iter().any(|message| message.contains(problem));
        assert!(is_said, "{messages:?}");
    }
    let error = load(&format!("{section}tower = 'sea'\ncandela = 1\n")).unwrap_err();
    assert_eq!(
        error.iter().next().unwrap().message(),
        "bad value of `discovery.it.tower`: no ship finds it"
    );

    // What the rest of the program asks of it.
    let mesh = load(&format!("{section}tower = '192.0.2.1:7'\ncandela = 1\n")).unwrap();
    let it = instance(&mesh);
    assert!(it.about.abilities.relays && it.about.finds_peers);
    let findings = config::lint(&mesh).unwrap();
    assert!(findings.iter().any(|finding| finding.rule_name() == "fog"));

    // And it runs.
    let host = FakeHost::new(key_pair(1).1, None, 1);
    let mut plugin = row.build(&it.settings, &it.secrets).unwrap();
    plugin.run(host.clone()).await.unwrap();
    let said = host.effect().await;
    assert!(matches!(said, Effect::Told(News::Candidate { .. })));
    assert!(registry::build(&it.settings, &it.secrets).is_none());
}
