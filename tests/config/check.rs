//! `check` for CI services, and the example jobs that call it.

use std::collections::BTreeSet;
use std::fs;

use clap::Parser as _;
use natpunch::cli::args::{Cli, Command};

use crate::support::{natpunch, root, write};

const CLEAN: &str = "examples/configs/two-nodes.toml";

#[test]
fn github_gets_one_annotation_a_finding_at_its_place() {
    let directory = root().join("tests/config/errors");
    let output = natpunch(
        &directory,
        &["check", "--format", "github", "overlapping-addresses.toml"],
    );
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    for line in text.lines() {
        let (head, message) = line
            .strip_prefix("::error ")
            .unwrap()
            .split_once("::")
            .unwrap();
        assert!(
            head.starts_with("file=overlapping-addresses.toml,line="),
            "{line}"
        );
        assert!(
            head.ends_with(",title=natpunch invalid") && message.contains("%0A"),
            "{line}"
        );
    }
    assert!(text.lines().count() > 0);
}

#[test]
fn annotations_can_not_be_broken_out_of() {
    let directory = tempfile::tempdir().unwrap();
    let file = "a,b%0A::error ::x.toml";
    write(
        &directory.path().join(file),
        "[mesh]\nna%me = 'x'\n\"a\\n::error ::owned\" = 1\n",
        0o644,
    );
    let output = natpunch(directory.path(), &["check", "--format", "github", file]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.lines().count() > 0
            && text
                .lines()
                .all(|line| line.starts_with("::error file=a%2Cb%250A%3A%3Aerror ")),
        "{text}"
    );
}

#[test]
fn gitlab_gets_a_report_whose_fingerprints_stay_when_lines_move() {
    let directory = tempfile::tempdir().unwrap();
    let source = fs::read_to_string(root().join("tests/config/warnings/large-mtu.toml")).unwrap();
    let report = |text: &str, path: &str| {
        write(&directory.path().join("mesh.toml"), text, 0o644);
        let output = natpunch(directory.path(), &["check", "--format", "gitlab", path]);
        assert!(output.status.success() && output.stderr.is_empty());
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    let first = report(&source, "mesh.toml");
    let issues = first.as_array().unwrap();
    let fingerprints: BTreeSet<&str> = issues
        .iter()
        .map(|issue| issue["fingerprint"].as_str().unwrap())
        .collect();
    assert_eq!(fingerprints.len(), issues.len(), "each its own: {first}");
    let mtu = issues
        .iter()
        .find(|issue| issue["check_name"] == "large-mtu")
        .unwrap();
    assert_eq!(
        (mtu["severity"].as_str(), mtu["location"]["path"].as_str()),
        (Some("minor"), Some("mesh.toml"))
    );
    let absolute = directory.path().join("mesh.toml");
    let moved = report(
        &format!("# a line more\n{source}"),
        absolute.to_str().unwrap(),
    );
    let again = moved
        .as_array()
        .unwrap()
        .iter()
        .find(|issue| issue["check_name"] == "large-mtu")
        .unwrap();
    assert_eq!(again["fingerprint"], mtu["fingerprint"]);
    assert_eq!(
        again["location"]["path"], "mesh.toml",
        "from the repository's root"
    );
    let line = |issue: &serde_json::Value| issue["location"]["lines"]["begin"].as_u64().unwrap();
    assert_eq!(line(again), line(mtu) + 1);
    // A clean mesh is an empty report.
    fs::copy(root().join(CLEAN), directory.path().join("mesh.toml")).unwrap();
    assert_eq!(
        natpunch(
            directory.path(),
            &["check", "--format", "gitlab", "mesh.toml"]
        )
        .stdout,
        b"[]\n"
    );
}

#[test]
fn strict_fails_on_warnings_and_not_on_notes() {
    let directory = root().join("tests/config/warnings");
    for format in ["text", "json", "github", "gitlab"] {
        let code = |file: &str| {
            natpunch(&directory, &["check", "--strict", "--format", format, file])
                .status
                .code()
        };
        assert_eq!(code("large-mtu.toml"), Some(1), "{format}");
        // The phone can't reach the laptop, as most phones can't.
        let home = root().join("examples/configs/home.toml");
        let output = natpunch(
            &directory,
            &[
                "check",
                "--strict",
                "--format",
                format,
                home.to_str().unwrap(),
            ],
        );
        assert_eq!(output.status.code(), Some(0), "{format}");
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(
            text.contains("`phone` can't reach `laptop`"),
            "{format}: {text}"
        );
    }
}

#[test]
fn a_private_key_in_the_file_is_found_wherever_it_stands_and_never_printed() {
    let directory = root().join("tests/config/warnings");
    for format in ["text", "json", "github", "gitlab"] {
        let output = natpunch(
            &directory,
            &["check", "--format", format, "private-key-in-file.toml"],
        );
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        for peer in ["a", "b"] {
            assert!(
                text.contains(&format!("the private key of `{peer}` is in the file")),
                "{format}: {text}"
            );
        }
        for secret in ["dwdtCnMY", "XasIfmJK"] {
            assert!(!text.contains(secret), "{format}: {text}");
        }
    }
}

#[test]
fn what_the_example_jobs_call_is_there_and_works() {
    let jobs = [
        "github/.github/workflows/mesh.yml",
        "gitlab/.gitlab-ci.yml",
        "pre-commit/.pre-commit-config.yaml",
    ];
    for job in jobs {
        let text = fs::read_to_string(root().join("examples/ci").join(job)).unwrap();
        let mut calls = 0;
        for line in text
            .lines()
            .filter_map(|line| line.find("natpunch check -").and_then(|at| line.get(at..)))
        {
            let line = line.split(" > ").next().unwrap();
            let words: Vec<&str> = line.split_whitespace().collect();
            let cli = Cli::try_parse_from(&words).unwrap_or_else(|error| panic!("{job}: {error}"));
            assert!(matches!(cli.command, Command::Check(_)));
            let directory = tempfile::tempdir().unwrap();
            for (mesh, code) in [
                (CLEAN, 0),
                ("tests/config/warnings/large-mtu.toml", 1),
                ("tests/config/errors/bad-address.toml", 1),
            ] {
                fs::copy(root().join(mesh), directory.path().join("mesh.toml")).unwrap();
                assert_eq!(
                    natpunch(directory.path(), &words[1..]).status.code(),
                    Some(code),
                    "{job} {mesh}"
                );
            }
            calls += 1;
        }
        assert_eq!(calls, 1, "{job}");
        for line in text.lines() {
            let Some(at) = line.find("natpunch diff ") else {
                continue;
            };
            let words = line.get(at..).unwrap().split(" > ").next().unwrap();
            let words = words.split_whitespace().map(|word| word.trim_matches('"'));
            let cli = Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{job}: {error}"));
            assert!(matches!(cli.command, Command::Diff(args) if args.markdown));
        }
    }
}

#[test]
fn a_name_that_others_own_is_noted_before_it_is_refused_in_a_hosts_file() {
    let directory = tempfile::tempdir().unwrap();
    let text = |hosts: bool| {
        format!(
            "[mesh]\nname = 'dev'\nnetworks = ['10.77.0.0/24']\n[names]\nhosts = {hosts}\n\
             [peers.isatap]\npublic_key = '{}'\naddresses = ['10.77.0.1']\nendpoint = '192.0.2.1:1'\n",
            crate::support::key_pair(1).1
        )
    };
    let check = |hosts: bool| {
        let file = directory.path().join("mesh.toml");
        crate::support::write(&file, &text(hosts), 0o644);
        let output = crate::support::natpunch(directory.path(), &["check", "mesh.toml"]);
        (
            output.status.code(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let (code, said) = check(false);
    assert_eq!(
        (code, said.matches("note: ").count()),
        (Some(0), 2),
        "{said}"
    );
    let (code, said) = check(true);
    assert_eq!(
        (code, said.matches("error: ").count()),
        (Some(1), 2),
        "{said}"
    );
}
