//! `check` and `plan` of what is not on this machine yet.

use std::path::Path;
use std::process::{Command, Output};

use crate::support::{Agent, Repository, Signer, mesh, nobody, options};

fn natpunch(arguments: &[&str]) -> Output {
    let state = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_natpunch"));
    command
        .args(arguments)
        .env("NATPUNCH_STATE_DIR", state.path())
        .output()
        .unwrap()
}

#[test]
fn check_fetches_what_it_checks_and_says_why_it_may_not_be_used() {
    let (repository, signer) = (Repository::new(), Signer::new());
    repository.publish(&mesh(1), None);
    let location = repository.file_url("mesh.toml");
    let nobody = nobody();
    let ok = natpunch(&["check", &location, "--trust", nobody.to_str().unwrap()]);
    assert!(
        ok.status.success(),
        "{}",
        String::from_utf8_lossy(&ok.stderr)
    );
    assert!(String::from_utf8_lossy(&ok.stdout).contains("ok: mesh lab"));
    let unsigned = natpunch(&[
        "check",
        &location,
        "--trust",
        signer.trust("").to_str().unwrap(),
    ]);
    let said = String::from_utf8_lossy(&unsigned.stderr).into_owned();
    assert!(
        !unsigned.status.success()
            && said.contains("is not signed")
            && said.contains("gpg.format ssh"),
        "{said}"
    );
}

#[test]
fn diff_reads_revisions_of_the_repository_that_it_is_run_in() {
    let repository = Repository::new();
    repository.publish(&mesh(1), None);
    repository.publish(&mesh(2), None);
    let top = repository.work();
    let below = top.join("below");
    std::fs::create_dir(&below).unwrap();
    let diff_in = |directory: &Path, words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_natpunch"));
        command.arg("diff").args(words).current_dir(directory);
        let output = command.output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(said).unwrap())
    };
    let diff = |words: &[&str]| diff_in(top.as_ref(), words);
    for (directory, [old, new]) in [
        (top.as_ref(), ["HEAD~1:mesh.toml", "mesh.toml"]),
        (top.as_ref(), ["HEAD~1:.", "HEAD:./mesh.toml"]),
        (below.as_path(), ["HEAD~1:..", "HEAD:../mesh.toml"]),
    ] {
        let (done, said) = diff_in(directory, &[old, new]);
        assert!(
            done && said.contains("own addresses + 10.77.0.2/24, - 10.77.0.1/24"),
            "{said}"
        );
    }
    let (done, said) = diff(&["--json", "HEAD:mesh.toml", "mesh.toml"]);
    let json: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert!(
        done && json["nodes"].as_array().unwrap().is_empty(),
        "{said}"
    );
    for (wrong, why) in [
        ("nonsense:mesh.toml", "git knows no revision nonsense"),
        ("HEAD:other.toml", "git has no HEAD:other.toml"),
        ("--upload-pack=id:x", "unexpected argument"),
    ] {
        let (done, said) = diff(&[wrong, "mesh.toml"]);
        assert!(!done && said.contains(why), "{said}");
    }
}

#[test]
fn a_location_that_can_not_be_used_is_wrong_usage() {
    for (location, why) in [
        ("git+https://git.example/mesh.git", "names no branch"),
        ("git+ext::sh -c id#main:x", "does not fetch over"),
        (
            "https://user:hunter2@config.example/mesh.toml",
            "holds a password",
        ),
    ] {
        let output = natpunch(&["apply", location]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(64), "{said}");
        assert!(said.contains(why), "{said}");
    }
}

#[tokio::test]
async fn what_changes_between_the_opening_of_a_file_and_its_first_load_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("mesh.toml");
    std::fs::write(&file, mesh(1)).unwrap();
    let mut agent = Agent::open(options(file.to_str().unwrap(), None, directory.path()))
        .await
        .unwrap();
    std::fs::write(&file, mesh(2)).unwrap();
    agent.changed().await;
}

#[tokio::test]
async fn a_file_that_is_put_back_after_somebody_asked_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("mesh.toml");
    std::fs::write(&file, mesh(1)).unwrap();
    let mut agent = Agent::open(options(file.to_str().unwrap(), None, directory.path()))
        .await
        .unwrap();
    std::fs::write(&file, "[mesh").unwrap();
    agent.ask().await;
    // Before the writes have settled: the agent has seen the broken one, and would go on saying so.
    std::fs::write(&file, mesh(1)).unwrap();
    agent.changed().await;
}
