//! Git repositories: what comes from them, and what must not.

use std::fs;
use std::path::Path;
use std::time::Duration;

use natpunch::source::{Problem, SourceError};

use crate::hostile::write_noise;
use crate::server::Server;
use crate::support::{Agent, Repository, Signer, mesh, mesh_of_generation, options};

fn state() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// Starts with what is there, which must fail.
async fn refused(location: &str, trust: Option<&Path>) -> SourceError {
    match Agent::open(options(location, trust, state().path())).await {
        Ok(agent) => panic!("it was accepted: {:?}", agent.status()),
        Err(error) => error,
    }
}

#[tokio::test]
async fn a_push_to_a_git_server_is_what_the_agent_loads_next() {
    let repository = Repository::new();
    let first = repository.publish(&mesh(1), None);
    let server = Server::start(repository.served()).await;
    let state = state();
    let mut agent = Agent::start(options(&server.git_url("mesh.toml"), None, state.path()))
        .await
        .unwrap();
    assert_eq!(agent.text(), mesh(1));
    assert_eq!(agent.status().revision, Some(first));
    assert_eq!(
        agent.source.path().file_name().unwrap(),
        "mesh.toml",
        "errors name the file as the repository does"
    );
    server.answers();
    agent.reload().await.unwrap();
    assert_eq!(
        server
            .answers()
            .iter()
            .filter(|(path, _)| path.ends_with("git-upload-pack"))
            .count(),
        1,
        "a look"
    );
    let second = repository.publish(&mesh(2), None);
    agent.reload().await.unwrap();
    assert_eq!(agent.text(), mesh(2));
    assert_eq!(agent.status().revision, Some(second));
}

#[tokio::test]
async fn a_repository_is_polled_without_being_asked_to() {
    let repository = Repository::new();
    repository.publish(&mesh(1), None);
    let state = state();
    let mut options = options(&repository.file_url("mesh.toml"), None, state.path());
    options.poll = Duration::from_secs(1);
    let mut agent = Agent::start(options).await.unwrap();
    repository.publish(&mesh(2), None);
    agent.changed().await;
    assert_eq!(agent.text(), mesh(2));
}

#[tokio::test]
async fn a_commit_that_changes_something_else_is_no_change_but_is_where_the_next_range_begins() {
    let (repository, signer, state) = (Repository::new(), Signer::new(), state());
    repository.publish(&mesh(1), Some(&signer));
    let trust = signer.trust("");
    let mut agent = Agent::start(options(
        &repository.file_url("mesh.toml"),
        Some(&trust),
        state.path(),
    ))
    .await
    .unwrap();
    let path = agent.source.path();
    let hash = natpunch::config::load(&path).unwrap().content_hash;
    repository.write("README.md", "about");
    let second = repository.commit(Some(&signer));
    repository.push();
    agent.reload().await.unwrap();
    assert_eq!(agent.status().revision, Some(second));
    assert_eq!(
        natpunch::config::load(&agent.source.path())
            .unwrap()
            .content_hash,
        hash
    );
}

#[tokio::test]
async fn the_toml_files_of_a_directory_are_the_mesh_and_nothing_else_is_taken() {
    let repository = Repository::new();
    repository.write("sites/home/mesh.toml", mesh(1));
    repository.write("sites/home/.hidden.toml", "not TOML");
    repository.write("sites/home/README.md", "about");
    repository.write("sites/home/more/x.toml", "not TOML");
    std::os::unix::fs::symlink("/etc/passwd", repository.work().join("sites/home/link.txt"))
        .unwrap();
    repository.commit(None);
    repository.push();
    let state = state();
    let agent = Agent::start(options(
        &repository.file_url("sites/home"),
        None,
        state.path(),
    ))
    .await
    .unwrap();
    let names: Vec<_> = fs::read_dir(agent.source.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["mesh.toml"]);
}

#[tokio::test]
async fn what_is_no_plain_file_is_refused() {
    let repository = Repository::new();
    repository.publish(&mesh(1), None);
    let link = |target: &str, name: &str| {
        fs::create_dir_all(repository.work().join(name).parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(target, repository.work().join(name)).unwrap();
    };
    link("/etc/passwd", "link.toml");
    link("/etc", "directory");
    link("../../mesh.toml", "sites/home/mesh.toml");
    repository.commit(None);
    let head = repository.head();
    repository.git(&[
        "update-index",
        "--add",
        "--cacheinfo",
        &format!("160000,{head},module.toml"),
    ]);
    repository.git(&["commit", "-q", "-m", "submodule"]);
    repository.push();
    for (path, why) in [
        ("link.toml", "symbolic link"),
        ("directory/passwd", "is not there"),
        ("sites/home", "symbolic link"),
        ("module.toml", "not a plain file"),
        ("gone.toml", "is not there"),
        ("sites", "no *.toml files"),
    ] {
        let error = refused(&repository.file_url(path), None).await;
        assert!(error.to_string().contains(why), "{path}: {error}");
        assert_eq!(error.problem(), Problem::Refused);
    }
}

#[tokio::test]
async fn what_is_too_large_is_refused_and_ends_early() {
    let repository = Repository::new();
    repository.write("mesh.toml", format!("{}# {}", mesh(1), "x".repeat(9 << 20)));
    repository.commit(None);
    repository.push();
    let error = refused(&repository.file_url("mesh.toml"), None).await;
    assert!(error.to_string().contains("8 MiB a file"), "{error}");
    repository.write("mesh.toml", mesh(1));
    write_noise(&repository, 66);
    repository.commit(None);
    repository.push();
    let state = self::state();
    let error = Agent::open(options(
        &repository.file_url("mesh.toml"),
        None,
        state.path(),
    ))
    .await
    .err()
    .unwrap();
    assert!(error.to_string().contains("more than 64 MiB"), "{error}");
    let left = Path::new(state.path()).join("sources");
    let of_source = fs::read_dir(left).unwrap().next().unwrap().unwrap().path();
    let names: Vec<_> = fs::read_dir(of_source)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["lock"], "nothing of it stays on the disk");
}

#[tokio::test]
async fn with_signers_every_commit_since_the_applied_one_must_be_signed_by_one_of_them() {
    let (repository, signer, stranger, state) =
        (Repository::new(), Signer::new(), Signer::new(), state());
    let trust = signer.trust("");
    let first = repository.publish(&mesh(1), Some(&signer));
    let mut agent = Agent::start(options(
        &repository.file_url("mesh.toml"),
        Some(&trust),
        state.path(),
    ))
    .await
    .unwrap();
    let back = || {
        repository.git(&["reset", "-q", "--hard", &first]);
    };

    repository.publish(&mesh(2), None);
    let error = agent.reload().await.unwrap_err();
    assert!(error.contains("is not signed"), "{error}");

    // A signed commit on top does not cover what is below it.
    repository.publish(&mesh(3), Some(&signer));
    let error = agent.reload().await.unwrap_err();
    assert!(error.contains("is not signed"), "{error}");

    back();
    repository.publish(&mesh(4), Some(&stranger));
    let error = agent.reload().await.unwrap_err();
    assert!(error.contains("not signed by a listed signer"), "{error}");

    // A true signature, of another commit.
    back();
    repository.write("mesh.toml", mesh(5));
    repository.commit(Some(&signer));
    let forged = repository
        .git(&["cat-file", "commit", "HEAD"])
        .replace("\n\nchange", "\n\nforged");
    let file = repository.directory.path().join("forged");
    fs::write(&file, forged + "\n").unwrap();
    let forged = repository.git(&["hash-object", "-t", "commit", "-w", file.to_str().unwrap()]);
    repository.git(&["reset", "-q", "--hard", &forged]);
    repository.push();
    let error = agent.reload().await.unwrap_err();
    assert!(error.contains("not signed by a listed signer"), "{error}");
    assert_eq!(agent.status().problem, Some(Problem::Refused));
    let again = agent.reload().await.unwrap_err();
    assert_eq!(
        again, error,
        "a refused commit is remembered with its reason"
    );

    assert_eq!(agent.text(), mesh(1), "the mesh stayed");
    assert_eq!(agent.status().revision, Some(first.clone()));
    back();
    let good = repository.publish(&mesh(6), Some(&signer));
    agent.reload().await.unwrap();
    assert_eq!(
        (agent.text(), agent.status().revision),
        (mesh(6), Some(good))
    );
    assert_eq!(agent.status().problem, None);
}

#[tokio::test]
async fn with_signers_a_merge_is_judged_by_all_that_it_brings_in() {
    let (repository, signer, state) = (Repository::new(), Signer::new(), state());
    let trust = signer.trust("");
    // More commits than are fetched at first, so that the branch begins beyond them.
    let root = repository.publish(&mesh(1), Some(&signer));
    for _ in 0..70 {
        repository.commit(Some(&signer));
    }
    repository.push();
    let mut agent = Agent::start(options(
        &repository.file_url("mesh.toml"),
        Some(&trust),
        state.path(),
    ))
    .await
    .unwrap();
    let merge = |by: Option<&Signer>, text: &str| {
        repository.git(&["checkout", "-q", "-b", "side", &root]);
        repository.write("mesh.toml", text);
        repository.commit(by);
        repository.git(&["checkout", "-q", "master-or-main"]);
        let key = format!("user.signingKey={}", signer.file.display());
        let merge = [
            "-c",
            "gpg.format=ssh",
            "-c",
            &key,
            "merge",
            "-q",
            "-S",
            "--no-ff",
            "-m",
            "merge",
            "side",
        ];
        repository.git(&merge);
        repository.git(&["branch", "-q", "-D", "side"]);
        repository.push();
    };
    repository.git(&["checkout", "-q", "-b", "master-or-main"]);
    let before = repository.head();
    merge(None, &mesh(2));
    let error = agent.reload().await.unwrap_err();
    assert!(error.contains("is not signed"), "{error}");
    repository.git(&["reset", "-q", "--hard", &before]);
    merge(Some(&signer), &mesh(3));
    agent.reload().await.unwrap();
    assert_eq!(agent.text(), mesh(3));
}

#[tokio::test]
async fn with_signers_a_branch_never_goes_back_or_aside() {
    let (repository, signer, state) = (Repository::new(), Signer::new(), state());
    let trust = signer.trust("");
    let first = repository.publish(&mesh(1), Some(&signer));
    let second = repository.publish(&mesh(2), Some(&signer));
    let mut agent = Agent::start(options(
        &repository.file_url("mesh.toml"),
        Some(&trust),
        state.path(),
    ))
    .await
    .unwrap();
    repository.git(&["reset", "-q", "--hard", &first]);
    repository.push();
    let error = agent.reload().await.unwrap_err();
    assert!(error.contains("rewritten or set back"), "older: {error}");
    repository.publish(&mesh(3), Some(&signer));
    let error = agent.reload().await.unwrap_err();
    assert!(
        error.contains("rewritten or set back"),
        "force-pushed: {error}"
    );
    repository.git(&["checkout", "-q", "--orphan", "other"]);
    repository.publish(&mesh(4), Some(&signer));
    let error = agent.reload().await.unwrap_err();
    assert!(
        error.contains("rewritten or set back"),
        "another history: {error}"
    );
    assert_eq!(
        (agent.text(), agent.status().revision),
        (mesh(2), Some(second))
    );
    // What was applied is remembered over a restart, too.
    drop(agent);
    let mut again = options(
        &repository.file_url("mesh.toml"),
        Some(&trust),
        state.path(),
    );
    again.look_first = true;
    let agent = restarted(again).await;
    assert_eq!(agent.text(), mesh(2));
    assert!(
        agent
            .status()
            .problem_text
            .unwrap()
            .contains("rewritten or set back")
    );
}

#[tokio::test]
async fn on_first_use_the_head_must_be_signed_and_what_comes_after_since() {
    let (repository, signer) = (Repository::new(), Signer::new());
    let unsigned = repository.publish(&mesh(1), None);
    let location = repository.file_url("mesh.toml");
    assert!(
        refused(&location, Some(&signer.trust("")))
            .await
            .to_string()
            .contains("is not signed")
    );
    repository.publish(&mesh(2), Some(&signer));
    let state = state();
    Agent::start(options(&location, Some(&signer.trust("")), state.path()))
        .await
        .unwrap();
    let since = signer.trust(&format!("since = \"{unsigned}\"\n"));
    let state = self::state();
    Agent::start(options(&location, Some(&since), state.path()))
        .await
        .unwrap();
    repository.publish(&mesh(3), None);
    repository.publish(&mesh(4), Some(&signer));
    assert!(
        refused(&location, Some(&since))
            .await
            .to_string()
            .contains("is not signed")
    );
}

/// Opens a source that another agent has just let go of: it does so when its task ends.
pub(crate) async fn restarted(options: natpunch::source::Options) -> Agent {
    for _ in 0..200 {
        match Agent::open(options.clone()).await {
            Err(error) if error.to_string().contains("another natpunch agent") => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            opened => return opened.unwrap(),
        }
    }
    panic!("the first agent still follows the source");
}

#[tokio::test]
async fn a_generation_only_rises() {
    let (repository, state) = (Repository::new(), state());
    repository.publish(&mesh_of_generation(1, 7), None);
    let mut agent = Agent::start(options(
        &repository.file_url("mesh.toml"),
        None,
        state.path(),
    ))
    .await
    .unwrap();
    assert_eq!(agent.status().generation, Some(7));
    for (text, why) in [
        (
            mesh_of_generation(2, 7),
            "its generation is 7, and 7 is applied",
        ),
        (mesh_of_generation(2, 6), "its generation is 6"),
        (mesh(2), "has no generation"),
    ] {
        repository.publish(&text, None);
        let error = agent.reload().await.unwrap_err();
        assert!(error.contains(why), "{error}");
        assert_eq!(agent.text(), mesh_of_generation(1, 7));
    }
    repository.publish(&mesh_of_generation(2, 8), None);
    agent.reload().await.unwrap();
    assert_eq!(agent.status().generation, Some(8));
}

#[tokio::test]
async fn a_mesh_that_is_wrong_is_never_the_last_good_one() {
    let (repository, state) = (Repository::new(), state());
    let first = repository.publish(&mesh(1), None);
    let location = repository.file_url("mesh.toml");
    let mut agent = Agent::start(options(&location, None, state.path()))
        .await
        .unwrap();
    let second = repository.publish("[mesh\n", None);
    assert!(agent.reload().await.unwrap_err().contains("mesh.toml:1"));
    assert_eq!(
        (agent.status().revision, agent.status().newest),
        (Some(first.clone()), Some(second))
    );
    drop(agent);
    let mut again = options(&location, None, state.path());
    again.look_first = true;
    let agent = restarted(again).await;
    assert!(agent.apply().await.is_err());
    assert!(agent.source.fall_back());
    assert_eq!(agent.text(), mesh(1));
    agent.source.applied(
        natpunch::config::load(&agent.source.path())
            .unwrap()
            .content_hash,
    );
    assert_eq!(agent.status().revision, Some(first));
}

#[tokio::test]
async fn while_the_server_is_down_the_last_good_version_is_used() {
    let (repository, state) = (Repository::new(), state());
    let first = repository.publish(&mesh(1), None);
    let server = Server::start(repository.served()).await;
    let location = server.git_url("mesh.toml");
    let mut agent = Agent::start(options(&location, None, state.path()))
        .await
        .unwrap();
    server.stop().await;
    let error = agent.reload().await.unwrap_err();
    assert!(error.contains("can't fetch"), "{error}");
    assert_eq!(agent.status().problem, Some(Problem::Unreachable));
    drop(agent);
    for look_first in [false, true] {
        let again = natpunch::source::Options {
            look_first,
            ..options(&location, None, state.path())
        };
        let agent = restarted(again).await;
        assert_eq!(
            (agent.text(), agent.status().revision),
            (mesh(1), Some(first.clone()))
        );
        assert!(agent.status().age_s.is_some());
        drop(agent);
    }
    let error = refused(&location, None).await;
    assert_eq!(
        error.problem(),
        Problem::Unreachable,
        "and without a last good version there is nothing to start with"
    );
}

#[tokio::test]
async fn an_answer_that_ends_too_soon_changes_nothing() {
    let (repository, state) = (Repository::new(), state());
    repository.publish(&mesh(1), None);
    let server = Server::start(repository.served()).await;
    let mut agent = Agent::start(options(&server.git_url("mesh.toml"), None, state.path()))
        .await
        .unwrap();
    repository.publish(&mesh(2), None);
    for cut in [0, 5, 60, 200, 300, 400] {
        server.shown.lock().unwrap().cut = Some(cut);
        assert!(agent.reload().await.is_err(), "cut after {cut} bytes");
        assert_eq!(agent.text(), mesh(1));
    }
    server.shown.lock().unwrap().cut = None;
    agent.reload().await.unwrap();
    assert_eq!(agent.text(), mesh(2));
}

#[tokio::test]
async fn a_repository_with_a_missing_object_changes_nothing() {
    let (repository, state) = (Repository::new(), state());
    repository.publish(&mesh(1), None);
    let mut agent = Agent::start(options(
        &repository.file_url("mesh.toml"),
        None,
        state.path(),
    ))
    .await
    .unwrap();
    repository.publish(&mesh(2), None);
    let blob = repository.git(&["rev-parse", "HEAD:mesh.toml"]);
    let object = repository
        .served()
        .join("mesh.git/objects")
        .join(&blob[..2])
        .join(&blob[2..]);
    fs::remove_file(object).unwrap();
    assert!(agent.reload().await.is_err());
    assert_eq!(agent.text(), mesh(1));
}

#[tokio::test]
async fn nothing_of_a_repository_is_ever_run() {
    let repository = Repository::new();
    let trace = repository.directory.path().join("ran");
    let hook = format!("#!/bin/sh\ntouch {}\n", trace.display());
    // Hooks and filters that a checkout, and a template directory that an init would run or copy.
    repository.write(".gitattributes", "*.toml filter=evil\n");
    repository.write("mesh.toml", mesh(1));
    for name in ["post-checkout", "reference-transaction", "post-merge"] {
        repository.write(&format!("hooks/{name}"), &hook);
        let served = repository.served().join("mesh.git/hooks").join(name);
        fs::write(&served, &hook).unwrap();
        fs::set_permissions(&served, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    repository.commit(None);
    repository.push();
    let _ = fs::remove_file(&trace);
    let state = state();
    Agent::start(options(
        &repository.file_url("mesh.toml"),
        None,
        state.path(),
    ))
    .await
    .unwrap();
    assert!(!trace.exists());
}
