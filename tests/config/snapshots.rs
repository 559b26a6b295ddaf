//! Whole messages: one broken mesh for each class of error, with what is printed next to it.

use std::fs;
use std::path::PathBuf;

use crate::support::{matches_snapshot, natpunch, root};

/// The meshes of a directory and the text of each, as `(name, snapshot)`.
fn fixtures(directory: &str) -> Vec<(String, PathBuf)> {
    let directory = root().join("tests/config").join(directory);
    let mut found: Vec<(String, PathBuf)> = fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| {
            entry
                .path()
                .extension()
                .is_none_or(|extension| extension == "toml")
        })
        .map(|entry| {
            (
                entry.file_name().into_string().unwrap(),
                entry.path().with_extension("txt"),
            )
        })
        .collect();
    found.sort();
    assert!(!found.is_empty(), "no fixtures in {}", directory.display());
    found
}

#[test]
fn every_class_of_error_is_shown_with_place_and_help_and_exits_with_1() {
    let directory = root().join("tests/config/errors");
    let mut wrong = Vec::new();
    for (name, snapshot) in fixtures("errors") {
        let output = natpunch(&directory, &["check", &name]);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{name}");
        assert!(
            output.stdout.is_empty(),
            "{name}: results go to standard output, errors do not"
        );
        assert!(!text.contains('\u{1b}'), "{name}: colour is for terminals");
        for error in text.split("\n\n") {
            assert!(
                error.starts_with("error: ")
                    && error.contains("--> ")
                    && error.contains("= help: "),
                "{name}: {error}"
            );
        }
        wrong.extend(matches_snapshot(&snapshot, &text).err());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_is_allowed_but_hardly_meant_is_a_warning() {
    let directory = root().join("tests/config/warnings");
    let mut wrong = Vec::new();
    for (name, snapshot) in fixtures("warnings") {
        let output = natpunch(&directory, &["check", &name]);
        assert_eq!(output.status.code(), Some(0), "{name}");
        let text = format!(
            "{}{}",
            String::from_utf8(output.stderr).unwrap(),
            String::from_utf8(output.stdout).unwrap()
        );
        assert!(text.starts_with("warning: "), "{name}: {text}");
        wrong.extend(matches_snapshot(&snapshot, &text).err());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_secret_is_never_printed() {
    let directory = root().join("tests/config/errors");
    for name in ["secret-in-plain.toml", "secret-in-place-of-a-path.toml"] {
        let text = fs::read_to_string(directory.join(name)).unwrap();
        let secret = text
            .lines()
            .find_map(|line| line.split_once("private_key"))
            .unwrap()
            .1;
        let secret = secret.split('"').nth(1).unwrap();
        for args in [vec!["check", name], vec!["check", "--json", name]] {
            let output = natpunch(&directory, &args);
            let printed = [output.stdout, output.stderr].concat();
            assert!(
                !String::from_utf8_lossy(&printed).contains(secret),
                "{name} {args:?}"
            );
        }
    }
}

#[test]
fn errors_for_machines_have_the_same_places() {
    let directory = root().join("tests/config/errors");
    let output = natpunch(
        &directory,
        &["check", "--json", "overlapping-addresses.toml"],
    );
    assert_eq!(output.status.code(), Some(1));
    let verdict: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(verdict["ok"], false);
    let errors = verdict["errors"].as_array().unwrap();
    let text =
        String::from_utf8(natpunch(&directory, &["check", "overlapping-addresses.toml"]).stderr)
            .unwrap();
    for error in errors {
        let place = format!(
            "--> {}:{}:{}\n",
            error["file"].as_str().unwrap(),
            error["line"],
            error["column"]
        );
        assert!(text.contains(&place), "{place}");
    }
    assert_eq!(text.matches("error: ").count(), errors.len());
}
