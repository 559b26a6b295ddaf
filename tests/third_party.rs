//! THIRD-PARTY.md names every package that is in the binary, with its licence, as Cargo knows it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

const INTRODUCTION: &str = "\
# Third-party software

The `natpunch` binary for Linux contains these packages, at the versions of `Cargo.lock`. `BLESS=1 \
cargo test --test third_party` writes this page; the test fails when it is out of date.

Two licences ask something of those who distribute the binary, and nothing of those who use it:

- **LGPL-2.1-or-later** (`wireguard-control`, linked statically): the recipient must be able to \
exchange that library and link again. Natpunch's own source, `Cargo.lock` and the command \
`cargo build --release --locked` are enough for that: pass them on, or say where they are, and \
pass on the text of the licence.
- **MPL-2.0** (`gotatun`, used unchanged): say where its source is, which is \
<https://crates.io/crates/gotatun> at the version below. A changed file of it has to be published \
under the same licence.

The other licences ask for their notices to be passed on with the binary.
";

#[test]
fn every_package_in_the_binary_is_named_with_its_licence() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("THIRD-PARTY.md");
    let actual = page(&metadata());
    if std::env::var_os("BLESS").is_some() {
        fs::write(&file, &actual).unwrap();
    }
    assert_eq!(
        fs::read_to_string(&file).unwrap(),
        actual,
        "BLESS=1 cargo test --test third_party writes it anew"
    );
}

fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--locked", "--format-version", "1"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The page: the packages by licence.
fn page(metadata: &Value) -> String {
    let packages: BTreeMap<&str, &Value> = metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|package| (package["id"].as_str().unwrap(), package))
        .collect();
    let mut by_licence: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for id in linked(metadata) {
        let package = packages[id.as_str()];
        if package["source"].is_null() {
            continue;
        }
        let licence = package["license"].as_str().expect("a licence");
        let (name, version) = (&package["name"], &package["version"]);
        by_licence
            .entry(licence.replace('/', " OR "))
            .or_default()
            .insert(format!(
                "{} {}",
                name.as_str().unwrap(),
                version.as_str().unwrap()
            ));
    }
    let mut text = INTRODUCTION.to_owned();
    for (licence, packages) in by_licence {
        write!(text, "\n## {licence}\n\n").unwrap();
        for package in packages {
            writeln!(text, "- {package}").unwrap();
        }
    }
    text
}

/// What is linked into the root package: its normal dependencies, and theirs. What only a build
/// script or a macro uses is not in the binary.
fn linked(metadata: &Value) -> BTreeSet<String> {
    let nodes: BTreeMap<&str, &Value> = metadata["resolve"]["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|node| (node["id"].as_str().unwrap(), node))
        .collect();
    let is_macro: BTreeSet<&str> = metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|package| package["targets"][0]["kind"][0] == "proc-macro")
        .map(|package| package["id"].as_str().unwrap())
        .collect();
    let mut found = BTreeSet::new();
    let mut left = vec![metadata["resolve"]["root"].as_str().unwrap()];
    while let Some(id) = left.pop() {
        if is_macro.contains(id) || !found.insert(id.to_owned()) {
            continue;
        }
        for dependency in nodes[id]["deps"].as_array().unwrap() {
            let kinds = dependency["dep_kinds"].as_array().unwrap();
            if kinds.iter().any(|kind| kind["kind"].is_null()) {
                left.push(dependency["pkg"].as_str().unwrap());
            }
        }
    }
    found
}
