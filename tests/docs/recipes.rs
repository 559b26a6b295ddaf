//! The recipes for other systems: what of them can be tried without these systems is.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use clap::CommandFactory as _;
use natpunch::cli::args::Cli;

use crate::blocks::root;

/// The recipes, with the commands of natpunch that each one runs or tells to run.
const RECIPES: &[(&str, &[&str])] = &[
    (
        "dist/container/Containerfile",
        &["serve", "status", "down", "apply"],
    ),
    (
        "dist/nixos/package.nix",
        &["manual", "completions bash", "completions zsh"],
    ),
    ("dist/nixos/module.nix", &["apply", "keygen"]),
    ("dist/openwrt/natpunch.init", &["apply", "reload", "down"]),
    ("dist/openwrt/input.nft", &[]),
    ("examples/cloud-init/user-data.yaml", &["invite", "join"]),
    ("examples/ansible/playbook.yml", &[]),
    (
        "examples/ansible/roles/natpunch/tasks/main.yml",
        &["keygen", "pubkey", "check", "reload", "add-peer"],
    ),
    (".github/workflows/release.yml", &[]),
];

fn read(path: &str) -> String {
    fs::read_to_string(root(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// What follows the program's name, up to what ends a command in a shell or a list.
fn commands(text: &str) -> Vec<Vec<&str>> {
    const NAMES: [&str; 4] = [
        "natpunch ",
        "natpunch\", \"",
        "\"$PROGRAM\" ",
        "cfg.package} ",
    ];
    let ends = |c: char| "`'|;&<>]\n(".contains(c);
    let mut found = Vec::new();
    for name in NAMES.into_iter().chain(["CMD [\""]) {
        for (at, _) in text.match_indices(name) {
            let rest = &text[at + name.len()..];
            let rest = rest.split(ends).next().unwrap();
            let words = rest.split([' ', '"', ',']).filter(|word| !word.is_empty());
            found.push(words.collect());
        }
    }
    found
}

#[test]
fn the_commands_in_recipes_are_ones_that_natpunch_has() {
    let cli = Cli::command();
    for (recipe, wanted) in RECIPES {
        let text = read(recipe);
        let mut seen = BTreeSet::new();
        for words in commands(&text) {
            let Some((name, arguments)) = words.split_first() else {
                continue;
            };
            // Prose goes on with other words.
            let Some(command) = cli.find_subcommand(name) else {
                continue;
            };
            seen.insert((*name).to_owned());
            seen.extend(arguments.first().map(|first| format!("{name} {first}")));
            let options = arguments.iter().filter_map(|word| word.strip_prefix("--"));
            for option in options {
                let has_it = command
                    .get_arguments()
                    .any(|argument| argument.get_long() == Some(option));
                assert!(has_it, "{recipe}: `natpunch {name}` has no --{option}");
            }
        }
        for command in *wanted {
            assert!(
                seen.contains(*command),
                "{recipe}: no {command} in {seen:?}"
            );
        }
    }
}

#[test]
fn each_recipe_says_at_its_top_what_of_it_is_not_tried_and_the_how_to_links_to_it() {
    let page = read("docs/how-to/install.md");
    for (recipe, _) in RECIPES {
        let text = read(recipe);
        let head: Vec<&str> = text.lines().take(12).collect();
        // A role is read with its playbook.
        if !recipe.contains("/roles/") {
            assert!(head.join("\n").contains("# Not "), "{recipe}");
        }
        let directory = recipe.rsplit_once('/').unwrap().0;
        let directory = directory.split("/roles/").next().unwrap();
        assert!(
            page.contains(&format!("](../../{directory}")),
            "docs/how-to/install.md has no link to {directory}"
        );
    }
}

/// The YAML files below these directories.
fn yaml() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![root("examples"), root(".github")];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let is_yaml = path
                .extension()
                .is_some_and(|end| end == "yml" || end == "yaml");
            if path.is_dir() {
                left.push(path);
            } else if is_yaml {
                found.push(path);
            }
        }
    }
    found
}

#[test]
fn every_yaml_file_is_well_formed() {
    let files = yaml();
    assert!(files.len() >= 8, "{files:?}");
    let output = Command::new("yamllint")
        .args(["--strict", "-d"])
        .arg("{extends: relaxed, rules: {line-length: disable}}")
        .args(files)
        .output()
        .expect("yamllint is needed for this test (apt-get install yamllint)");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
}

#[test]
fn the_image_copies_what_make_dist_makes() {
    let dist = read("scripts/dist");
    let image = read("dist/container/Containerfile");
    let copied: Vec<&str> = image
        .lines()
        .filter_map(|line| line.strip_prefix("COPY "))
        .flat_map(|line| line.rsplit_once(' ').unwrap().0.split(' '))
        .collect();
    assert!(copied.contains(&"natpunch"), "{copied:?}");
    for file in copied {
        assert!(dist.contains(file), "scripts/dist makes no {file}");
    }
}

#[test]
fn the_release_makes_targets_that_there_are() {
    let makefile = read("Makefile");
    let release = read(".github/workflows/release.yml");
    let targets: BTreeSet<&str> = release
        .split("run: make ")
        .skip(1)
        .map(|rest| rest.lines().next().unwrap())
        .collect();
    assert_eq!(targets, BTreeSet::from(["package", "reproducible"]));
    for target in targets {
        assert!(makefile.contains(&format!("\n{target}:")), "{target}");
    }
}

/// Runs it in a shell, after what OpenWrt's rc.common gives it.
fn procd(then: &str) -> String {
    let script = root("dist/openwrt/natpunch.init");
    let text = format!(
        "for name in open_instance set_param close_instance; do\n\
           eval \"procd_$name() {{ echo $name \\\"\\$@\\\"; }}\"\n\
         done\n\
         stop() {{ echo stop; }}\n. {}\n{then}\n",
        script.display()
    );
    let output = Command::new("sh").args(["-eu", "-c", &text]).output();
    let output = output.unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_service_of_openwrt_runs_the_agent_and_takes_the_mesh_down() {
    let directory = tempfile::tempdir().unwrap();
    let mesh = directory.path().join("mesh.toml");
    fs::write(&mesh, "").unwrap();
    let started = procd(&format!("MESH={}; start_service", mesh.display()));
    let command = format!(
        "set_param command /usr/bin/natpunch apply {}",
        mesh.display()
    );
    assert!(started.lines().any(|line| line == command), "{started}");
    assert!(started.contains("set_param respawn"), "{started}");
    // A directory in its place.
    fs::remove_file(&mesh).unwrap();
    let started = procd(&format!("MESH={}; start_service", mesh.display()));
    let command = command.strip_suffix(".toml").unwrap();
    assert!(started.lines().any(|line| line == command), "{started}");
    assert_eq!(procd("PROGRAM=echo; down"), "stop\ndown\n");
    assert_eq!(procd("PROGRAM=echo; reload_service"), "reload\n");
}

#[test]
fn the_rules_of_openwrt_are_ones_that_nft_takes() {
    let rules = read("dist/openwrt/input.nft");
    let text = format!(
        "table inet fw4 {{\n chain input {{\n  type filter hook input priority filter\n{rules}\n }}\n}}\n"
    );
    let mut nft = Command::new("nft")
        .args(["--check", "--file", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    nft.stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let output = nft.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}
