//! The rules of `docs/ARCHITECTURE.md`, checked against what is written: who imports whom, what the
//! pure parts may touch, where `unsafe` is, how long a file may be.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// What a package may have in `[dependencies]`.
enum May {
    /// These and no others.
    Only(&'static [&'static str]),
    /// Everything but these.
    NotUse(&'static [&'static str]),
}

/// One row of the table.
struct Rule {
    /// The part, as the table's first column has it.
    part: &'static str,
    dependencies: May,
    /// Things that its source may not name.
    never_names: &'static [&'static str],
}

/// The clock, the system, and orders that differ from run to run.
const IMPURE: &[&str] = &[
    "std::env",
    "std::fs",
    "std::process",
    "std::thread",
    "std::os",
    "Instant::now",
    "SystemTime",
    "UdpSocket",
    "TcpStream",
    "TcpListener",
    "HashMap",
    "HashSet",
    "RandomState",
    "getrandom",
    "OsRng",
    "tokio::",
    "println!",
    "eprintln!",
];

/// [`IMPURE`], but for files and the random bytes of new keys.
const NO_NETWORK_NO_CLOCK: &[&str] = &[
    "std::env",
    "std::process",
    "std::thread",
    "Instant::now",
    "SystemTime",
    "UdpSocket",
    "TcpStream",
    "TcpListener",
    "HashMap",
    "HashSet",
    "RandomState",
    "tokio::",
    "println!",
    "eprintln!",
];

const TABLE: &[Rule] = &[
    Rule {
        part: "crates/natpunch-types",
        dependencies: May::Only(&[
            "serde",
            "blake2",
            "ipnet",
            "base64",
            "zeroize",
            "subtle",
            "x25519-dalek",
        ]),
        never_names: IMPURE,
    },
    Rule {
        part: "crates/natpunch-core",
        dependencies: May::Only(&[
            "natpunch-types",
            "base64",
            "blake2",
            "bytes",
            "chacha20poly1305",
            "ipnet",
            "rand_chacha",
            "rand_core",
            "serde",
            "snow",
            "subtle",
            "thiserror",
            "tracing",
            "x25519-dalek",
            "zeroize",
        ]),
        never_names: IMPURE,
    },
    Rule {
        part: "crates/natpunch-rollout",
        dependencies: May::Only(&["natpunch-types", "ipnet", "serde", "thiserror"]),
        never_names: IMPURE,
    },
    Rule {
        part: "crates/natpunch-picture",
        dependencies: May::Only(&["natpunch-types", "serde"]),
        never_names: IMPURE,
    },
    Rule {
        part: "crates/natpunch-noise",
        dependencies: May::Only(&[
            "natpunch-types",
            "aws-lc-rs",
            "rand_core",
            "snow",
            "subtle",
            "zeroize",
        ]),
        never_names: IMPURE,
    },
    Rule {
        part: "crates/natpunch-rendezvous",
        dependencies: May::Only(&[
            "natpunch-noise",
            "natpunch-types",
            "aws-lc-rs",
            "blake2",
            "chacha20poly1305",
            "rand_core",
            "slab",
            "subtle",
            "thiserror",
            "zeroize",
        ]),
        never_names: IMPURE,
    },
    Rule {
        part: "crates/natpunch-gossip",
        dependencies: May::Only(&["natpunch-types"]),
        never_names: IMPURE,
    },
    Rule {
        part: "crates/natpunch-os",
        dependencies: May::Only(&["libc", "nix", "rustix", "tempfile", "thiserror", "zeroize"]),
        never_names: &["tokio::", "TcpStream", "std::process::Command"],
    },
    Rule {
        part: "crates/natpunch-config",
        dependencies: May::Only(&[
            "natpunch-os",
            "natpunch-plugin-description",
            "natpunch-types",
            "age",
            "blake2",
            "getrandom",
            "ipnet",
            "psl",
            "schemars",
            "serde",
            "serde_json",
            "strsim",
            "thiserror",
            "toml",
            "toml_edit",
            "zeroize",
        ]),
        never_names: NO_NETWORK_NO_CLOCK,
    },
    Rule {
        part: "crates/natpunch-net",
        dependencies: May::NotUse(&[
            "natpunch",
            "natpunch-core",
            "natpunch-plugin",
            "natpunch-wg",
            "natpunch-sim",
        ]),
        never_names: &[],
    },
    Rule {
        part: "crates/natpunch-forwarder",
        dependencies: May::NotUse(&[
            "natpunch",
            "natpunch-core",
            "natpunch-plugin",
            "natpunch-net",
            "natpunch-wg",
            "natpunch-sim",
        ]),
        never_names: &[],
    },
    Rule {
        part: "crates/natpunch-tls",
        dependencies: May::Only(&["rustls-platform-verifier", "tokio-rustls"]),
        never_names: &[],
    },
    Rule {
        part: "crates/natpunch-redis",
        dependencies: May::Only(&[
            "natpunch-plugin-description",
            "natpunch-tls",
            "tokio",
            "tokio-rustls",
            "url",
        ]),
        never_names: &[],
    },
    Rule {
        part: "crates/natpunch-wg",
        dependencies: May::NotUse(&[
            "natpunch",
            "natpunch-core",
            "natpunch-plugin",
            "natpunch-net",
            "natpunch-sim",
        ]),
        never_names: &[],
    },
    Rule {
        part: "crates/natpunch-sim",
        dependencies: May::NotUse(&[
            "natpunch",
            "natpunch-net",
            "natpunch-wg",
            "natpunch-plugin",
            "tokio",
        ]),
        never_names: IMPURE_SIM,
    },
    Rule {
        part: "crates/natpunch-lab",
        dependencies: May::Only(&["nix", "thiserror"]),
        never_names: &[],
    },
    Rule {
        part: "crates/natpunch-plugin-description",
        dependencies: May::Only(&["natpunch-types", "schemars", "serde", "thiserror"]),
        never_names: IMPURE,
    },
    Rule {
        part: "plugins/natpunch-plugin",
        dependencies: May::NotUse(&[
            "natpunch",
            "natpunch-core",
            "natpunch-net",
            "natpunch-wg",
            "natpunch-sim",
        ]),
        never_names: &[],
    },
    Rule {
        part: "plugins/*",
        dependencies: May::NotUse(&[
            "natpunch",
            "natpunch-core",
            "natpunch-net",
            "natpunch-wg",
            "natpunch-sim",
        ]),
        never_names: &[],
    },
    Rule {
        part: "src/",
        dependencies: May::NotUse(&["natpunch-sim"]),
        never_names: &["natpunch_sim"],
    },
];

/// The simulator's scenarios may print; its time, randomness and order are as pure as the core's.
const IMPURE_SIM: &[&str] = &[
    "std::env",
    "Instant::now",
    "SystemTime",
    "UdpSocket",
    "HashMap",
    "HashSet",
    "getrandom",
    "OsRng",
    "tokio::",
];

/// The packages that may contain `unsafe`.
const UNSAFE: &[&str] = &[
    "crates/natpunch-net",
    "crates/natpunch-os",
    "crates/natpunch-wg",
];

/// Lines of a source file.
const LONGEST_FILE: usize = 1000;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The packages of the workspace but the root: their directories, relative to the root.
fn packages() -> Vec<String> {
    let mut packages: Vec<String> = ["crates", "plugins"]
        .iter()
        .flat_map(|parent| {
            fs::read_dir(root().join(parent))
                .unwrap()
                .map(move |entry| (parent, entry.unwrap()))
        })
        .filter(|(_, entry)| entry.path().join("Cargo.toml").exists())
        .map(|(parent, entry)| format!("{parent}/{}", entry.file_name().into_string().unwrap()))
        .collect();
    packages.sort();
    assert!(packages.len() >= 10, "{packages:?}");
    packages
}

/// Nothing here is on crates.io: the packages depend on each other by their paths alone, and only the
/// program has users. A package that is to go there gets versions for its dependencies first.
#[test]
fn every_package_says_that_it_is_not_published() {
    let others = ["", "tests/fuzz"].map(str::to_owned);
    for package in packages().into_iter().chain(others) {
        let text = fs::read_to_string(root().join(&package).join("Cargo.toml")).unwrap();
        let manifest: toml::Table = text.parse().unwrap();
        let publish = manifest["package"].get("publish");
        assert_eq!(
            publish.and_then(toml::Value::as_bool),
            Some(false),
            "{package}/Cargo.toml: write publish = false"
        );
    }
}

/// The rule of a package: its own row, else the one of its directory.
fn rule(package: &str) -> &'static Rule {
    TABLE
        .iter()
        .find(|rule| rule.part == package)
        .or_else(|| {
            TABLE.iter().find(|rule| {
                rule.part
                    .strip_suffix('*')
                    .is_some_and(|dir| package.starts_with(dir))
            })
        })
        .unwrap_or_else(|| {
            panic!("{package} is in no row of the table: add it there and in docs/ARCHITECTURE.md")
        })
}

fn dependencies(directory: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(directory.join("Cargo.toml")).unwrap();
    let manifest: toml::Table = text.parse().unwrap();
    let mut names = BTreeSet::new();
    let mut add = |table: Option<&toml::Value>| {
        names.extend(
            table
                .and_then(toml::Value::as_table)
                .into_iter()
                .flat_map(toml::Table::keys)
                .cloned(),
        );
    };
    add(manifest.get("dependencies"));
    add(manifest.get("build-dependencies"));
    for target in manifest
        .get("target")
        .and_then(toml::Value::as_table)
        .into_iter()
        .flat_map(toml::Table::values)
    {
        add(target.get("dependencies"));
    }
    names
}

/// The `.rs` files below a directory, without build output.
fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![directory.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                left.push(path);
            } else if name.ends_with(".rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The code of a source file, line by line with its number: without comments, and without the unit
/// tests at its end.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .take_while(|line| !line.starts_with("#[cfg(test)]"))
        .enumerate()
        .map(|(number, line)| {
            (
                number + 1,
                line.split_once("//").map_or(line, |(code, _)| code),
            )
        })
}

/// Where the code names one of `words`, as `line: word`.
fn names(text: &str, words: &[&str]) -> Vec<String> {
    code(text)
        .flat_map(|(number, line)| {
            words
                .iter()
                .filter(move |word| line.contains(**word))
                .map(move |word| format!("line {number}: {word}"))
        })
        .collect()
}

/// The names above are text; clippy knows the types behind them.
#[test]
fn clippy_watches_what_a_pure_crate_touches() {
    let pure = TABLE.iter().filter(|rule| rule.never_names == IMPURE);
    for rule in pure {
        let link = root().join(rule.part).join("clippy.toml");
        let target = fs::read_link(&link).unwrap_or_default();
        assert_eq!(
            target,
            Path::new("../pure-clippy.toml"),
            "{}: ln -s ../pure-clippy.toml {0}/clippy.toml",
            rule.part
        );
    }
}

/// Whether a line of code opens something unsafe; the lint's name is not that.
fn is_unsafe(line: &str) -> bool {
    line.split(|c: char| !c.is_alphanumeric() && c != '_')
        .any(|word| word == "unsafe")
}

/// A reader of one room need not know those that come after it.
#[test]
fn the_rooms_of_the_configuration_build_on_each_other() {
    const ROOMS: [(&str, &[&str]); 7] = [
        ("report", &[]),
        ("file", &["report"]),
        ("mesh", &["report", "file"]),
        ("node", &["report", "file", "mesh"]),
        ("lint", &["report", "file", "mesh"]),
        ("edit", &["report", "file", "mesh", "load"]),
        (
            "wg_quick",
            &["report", "file", "mesh", "load", "node", "edit"],
        ),
    ];
    let source = root().join("crates/natpunch-config/src");
    for (room, may_use) in ROOMS {
        for file in sources(&source.join(room)) {
            let text = fs::read_to_string(&file).unwrap();
            let used: BTreeSet<&str> = code(&text)
                .flat_map(|(_, line)| line.split("crate::").skip(1))
                .filter_map(|path| path.split("::").next())
                .filter(|module| *module != room && !may_use.contains(module))
                .collect();
            assert!(used.is_empty(), "{}: {used:?}", file.display());
        }
    }
}

/// Sessions, records and tickets of a server whose machine slept are as old as the world says.
#[test]
fn the_server_has_no_clock_that_stands_still_in_sleep_or_is_set_by_somebody() {
    for file in sources(&root().join("src/server")) {
        let found = names(
            &fs::read_to_string(&file).unwrap(),
            &["Instant", "SystemTime"],
        );
        assert!(
            found.is_empty(),
            "{}: {found:?}: natpunch_net::Stopwatch has the time",
            file.display()
        );
    }
}

/// What a client left at its server expires there, whether this machine sleeps or not.
#[test]
fn clients_of_servers_have_no_clock_that_stands_still_in_sleep() {
    for plugin in ["rendezvous", "natpunch-go", "nat-hole-punching", "redis"] {
        let is_test = |file: &PathBuf| file.file_name().is_some_and(|name| name == "tests.rs");
        let files = sources(&root().join("plugins").join(plugin).join("src"))
            .into_iter()
            .filter(|file| !is_test(file));
        for file in files {
            let found = names(&fs::read_to_string(&file).unwrap(), &["Instant"]);
            assert!(
                found.is_empty(),
                "{}: {found:?}: natpunch_plugin::Links has the time",
                file.display()
            );
        }
    }
}

#[test]
fn every_package_depends_only_on_what_its_row_allows() {
    let mut wrong = Vec::new();
    for package in packages() {
        for dependency in dependencies(&root().join(&package)) {
            let allowed = match rule(&package).dependencies {
                May::Only(list) => list.contains(&dependency.as_str()),
                May::NotUse(list) => !list.contains(&dependency.as_str()),
            };
            // A plugin may not know another one; the description is what they have in common.
            let plugin = package.starts_with("plugins/")
                && dependency.starts_with("natpunch-plugin-")
                && dependency != "natpunch-plugin-description";
            if !allowed || plugin {
                wrong.push(format!("{package} may not use {dependency}"));
            }
        }
    }
    let May::NotUse(list) = TABLE.last().unwrap().dependencies else {
        unreachable!("the root may use nearly everything")
    };
    wrong.extend(
        dependencies(root())
            .iter()
            .filter(|name| list.contains(&name.as_str()))
            .map(|name| format!("src/ may not use {name}")),
    );
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn no_source_names_what_its_row_forbids() {
    let mut wrong = Vec::new();
    let mut check = |rule: &Rule, directory: PathBuf| {
        for file in sources(&directory) {
            let found = names(&fs::read_to_string(&file).unwrap(), rule.never_names);
            wrong.extend(
                found
                    .iter()
                    .map(|found| format!("{}: {found}", file.display())),
            );
        }
    };
    for package in packages() {
        check(rule(&package), root().join(&package).join("src"));
    }
    check(TABLE.last().unwrap(), root().join("src"));
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_table_of_the_document_has_the_same_rows() {
    let document = fs::read_to_string(root().join("docs/ARCHITECTURE.md")).unwrap();
    let rows: Vec<&str> = document
        .lines()
        .filter(|line| line.starts_with("| `"))
        .filter_map(|line| line.split('|').nth(1))
        .collect();
    let documented: BTreeSet<&str> = rows
        .iter()
        .flat_map(|row| row.split('`').skip(1).step_by(2))
        .collect();
    let documented: BTreeSet<&str> = documented
        .into_iter()
        .filter(|part| *part != "natpunch")
        .collect();
    let checked: BTreeSet<&str> = TABLE.iter().map(|rule| rule.part).collect();
    assert_eq!(documented, checked);
}

#[test]
fn unsafe_code_is_only_where_sockets_and_devices_are() {
    let allowed: Vec<PathBuf> = UNSAFE.iter().map(|package| root().join(package)).collect();
    let wrong: Vec<String> = sources(root())
        .into_iter()
        .filter(|file| !allowed.iter().any(|package| file.starts_with(package)))
        .filter(|file| file.file_name().unwrap() != "architecture.rs")
        .flat_map(|file| {
            let text = fs::read_to_string(&file).unwrap();
            let lines: Vec<usize> = code(&text)
                .filter(|(_, line)| is_unsafe(line))
                .map(|(number, _)| number)
                .collect();
            lines
                .into_iter()
                .map(move |number| format!("{}:{number}", file.display()))
        })
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn no_file_is_longer_than_a_thousand_lines() {
    let files = sources(root());
    assert!(files.len() > 20);
    let long: Vec<String> = files
        .iter()
        .map(|file| (file, fs::read_to_string(file).unwrap().lines().count()))
        .filter(|(_, lines)| *lines > LONGEST_FILE)
        .map(|(file, lines)| format!("{}: {lines} lines", file.display()))
        .collect();
    assert!(long.is_empty(), "{long:#?}");
}

#[test]
fn the_checks_see_what_they_look_for() {
    let source = "use std::collections::HashMap; // HashSet\n/// SystemTime\nlet now = Instant::now();\n#[cfg(test)]\nHashSet";
    assert_eq!(
        names(source, IMPURE),
        ["line 1: HashMap", "line 3: Instant::now"]
    );
    assert!(is_unsafe("    unsafe { f() }"));
    assert!(is_unsafe("unsafe impl Send for T {}"));
    assert!(!is_unsafe("#![allow(unsafe_code)]"));
    let own = dependencies(root());
    assert!(
        own.contains("natpunch-core") && !own.contains("natpunch-sim"),
        "{own:?}"
    );
}
