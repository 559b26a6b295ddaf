//! What a signature is bound to: the branch that it is for, and a time. A server that means harm can
//! show any signed commit as any branch, and can stop to show new ones.

use std::time::{SystemTime, UNIX_EPOCH};

use natpunch::source::Problem;

use crate::support::{Agent, Repository, Signer, mesh, options};

const DAY: u64 = 86_400;

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap().as_secs()
}

#[tokio::test]
async fn a_signed_draft_that_the_server_shows_as_main_is_refused() {
    let (repository, signer) = (Repository::new(), Signer::new());
    let state = tempfile::tempdir().unwrap();
    let trust = signer.trust("bind_branch = true\n");
    repository.write("mesh.toml", mesh(1));
    let main = repository.commit_for(&["main"], now(), &signer);
    repository.push();
    let location = repository.file_url("mesh.toml");
    let mut agent = Agent::start(options(&location, Some(&trust), state.path()))
        .await
        .unwrap();
    // Drafts begin at what runs, and are signed by who may sign.
    for (branches, why) in [
        (&[][..], "does not say that it is for the branch main"),
        (
            &["draft"][..],
            "is for the branch draft, and main is followed",
        ),
    ] {
        repository.git(&["reset", "-q", "--hard", &main]);
        repository.write("mesh.toml", mesh(9));
        repository.commit_for(branches, now(), &signer);
        // What the hostile server does: the draft is what it calls main.
        repository.push();
        let error = agent.reload().await.unwrap_err();
        assert!(error.contains(why), "{error}");
        assert!(
            error.contains("--trailer 'Natpunch-Branch: main'"),
            "{error}"
        );
        assert_eq!(
            (agent.text(), agent.status().problem),
            (mesh(1), Some(Problem::Refused))
        );
    }
    // Merged by somebody who says so: the draft's own commits may say what they like.
    repository.write("mesh.toml", mesh(2));
    repository.commit_for(&["release", "main"], now(), &signer);
    repository.push();
    agent.reload().await.unwrap();
    assert_eq!(agent.text(), mesh(2));
}

#[tokio::test]
async fn a_commit_that_names_another_branch_is_refused_also_where_none_has_to_be_named() {
    let (repository, signer) = (Repository::new(), Signer::new());
    let state = tempfile::tempdir().unwrap();
    let trust = signer.trust("");
    repository.publish(&mesh(1), Some(&signer));
    let location = repository.file_url("mesh.toml");
    let mut agent = Agent::start(options(&location, Some(&trust), state.path()))
        .await
        .unwrap();
    repository.write("mesh.toml", mesh(9));
    repository.commit_for(&["draft"], now(), &signer);
    repository.push();
    let error = agent.reload().await.unwrap_err();
    assert!(error.contains("is for the branch draft"), "{error}");
    repository.publish(&mesh(2), Some(&signer));
    agent.reload().await.unwrap();
    assert_eq!(agent.text(), mesh(2));
}

#[tokio::test]
async fn a_server_that_shows_an_old_version_for_too_long_raises_an_alarm_and_stops_nothing() {
    let (repository, signer) = (Repository::new(), Signer::new());
    let state = tempfile::tempdir().unwrap();
    let location = repository.file_url("mesh.toml");
    repository.write("mesh.toml", mesh(1));
    repository.commit_for(&[], now() - 40 * DAY, &signer);
    repository.push();
    // Without a limit any age does.
    let any = signer.trust("");
    let agent = Agent::start(options(&location, Some(&any), state.path()))
        .await
        .unwrap();
    assert_eq!(agent.status().stale, None);
    drop(agent);

    let month = signer.trust("max_age_days = 30\n");
    let mut agent = crate::git::restarted(options(&location, Some(&month), state.path())).await;
    let unchanged = agent.reload().await;
    assert!(unchanged.is_ok(), "{unchanged:?}");
    let stale = agent.status().stale.unwrap();
    assert!(stale.contains("signed 40 days ago"), "{stale}");
    assert_eq!((agent.text(), agent.status().problem), (mesh(1), None));

    // What comes after is taken even if it is old, too: it is nearer to the newest.
    repository.write("mesh.toml", mesh(2));
    repository.commit_for(&[], now() - 35 * DAY, &signer);
    repository.push();
    agent.reload().await.unwrap();
    assert_eq!(agent.text(), mesh(2));
    assert!(agent.status().stale.unwrap().contains("signed 35 days ago"));

    // An empty commit says that nothing has changed.
    repository.commit_for(&[], now(), &signer);
    repository.push();
    agent.reload().await.unwrap();
    assert_eq!((agent.text(), agent.status().stale), (mesh(2), None));
}

#[tokio::test]
async fn a_node_without_a_version_refuses_a_first_one_that_is_too_old() {
    let (repository, signer) = (Repository::new(), Signer::new());
    let state = tempfile::tempdir().unwrap();
    let trust = signer.trust("max_age_days = 30\n");
    repository.write("mesh.toml", mesh(1));
    repository.commit_for(&[], now() - 40 * DAY, &signer);
    repository.push();
    let location = repository.file_url("mesh.toml");
    let opened = Agent::open(options(&location, Some(&trust), state.path())).await;
    let error = opened.err().unwrap();
    assert_eq!(error.problem(), Problem::Refused);
    assert!(error.to_string().contains("signed 40 days ago"), "{error}");
    repository.commit_for(&[], now(), &signer);
    repository.push();
    let agent = Agent::start(options(&location, Some(&trust), state.path())).await;
    assert_eq!(agent.unwrap().text(), mesh(1));
}
