//! Disks that are full, read-only or damaged: what runs stays, and the error says what is wrong.

use std::fs;
use std::path::Path;
use std::process::Command;

use natpunch::source::Problem;
use natpunch_lab::lab_test;

use crate::git::restarted;
use crate::support::{Agent, Repository, mesh, options};

fn mount(arguments: &[&str], at: &Path) {
    let status = Command::new("mount")
        .args(arguments)
        .arg(at)
        .status()
        .unwrap();
    assert!(status.success(), "mount {arguments:?}");
}

pub(crate) fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(test);
}

lab_test!(
    on_a_full_disk_the_mesh_stays_and_goes_on_when_there_is_room,
    60,
    |lab| {
        run(async move {
            let repository = Repository::new();
            let first = repository.publish(&mesh(1), None);
            let state = lab.directory().join("state");
            fs::create_dir(&state).unwrap();
            mount(&["-t", "tmpfs", "-o", "size=1m", "tmpfs"], &state);
            let location = repository.file_url("mesh.toml");
            let mut agent = Agent::start(options(&location, None, &state))
                .await
                .unwrap();
            let filler = state.join("filler");
            while fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(&filler)
                .and_then(|mut file| std::io::Write::write_all(&mut file, &[0; 1024]))
                .is_ok()
            {}
            repository.publish(&mesh(2), None);
            let error = agent.reload().await.unwrap_err();
            assert!(error.to_lowercase().contains("no space left"), "{error}");
            assert!(error.contains("free some space"), "{error}");
            assert_eq!(agent.status().problem, Some(Problem::Local));
            assert_eq!(
                (agent.text(), agent.status().revision),
                (mesh(1), Some(first.clone()))
            );
            drop(agent);
            let mut agent = restarted(options(&location, None, &state)).await;
            assert_eq!(
                agent.text(),
                mesh(1),
                "a start on a full disk uses the last good version"
            );
            fs::remove_file(&filler).unwrap();
            agent.reload().await.unwrap();
            assert_eq!(agent.text(), mesh(2));
        });
    }
);

lab_test!(
    on_a_read_only_disk_the_last_good_version_is_used,
    60,
    |lab| {
        run(async move {
            let repository = Repository::new();
            repository.publish(&mesh(1), None);
            let state = lab.directory().join("state");
            fs::create_dir(&state).unwrap();
            mount(&["-t", "tmpfs", "-o", "size=8m", "tmpfs"], &state);
            let location = repository.file_url("mesh.toml");
            drop(
                Agent::start(options(&location, None, &state))
                    .await
                    .unwrap(),
            );
            // The lock is let go of before the disk changes.
            drop(restarted(options(&location, None, &state)).await);
            repository.publish(&mesh(2), None);
            let remount = || {
                Command::new("mount")
                    .args(["-o", "remount,ro"])
                    .arg(&state)
                    .status()
                    .unwrap()
                    .success()
            };
            while !remount() {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
            let mut agent = restarted(options(&location, None, &state)).await;
            assert_eq!(agent.text(), mesh(1));
            let error = agent.reload().await.unwrap_err();
            assert!(error.contains("Read-only file system"), "{error}");
            assert_eq!(agent.text(), mesh(1));
            let fresh = repository.file_url("");
            let error = Agent::open(options(&fresh, None, &state))
                .await
                .err()
                .unwrap();
            assert!(
                error.to_string().contains("Read-only file system"),
                "with nothing to start from: {error}"
            );
        });
    }
);

#[tokio::test]
async fn a_damaged_state_directory_is_set_aside_and_the_source_is_asked() {
    let (repository, state) = (Repository::new(), tempfile::tempdir().unwrap());
    repository.publish(&mesh(1), None);
    let location = repository.file_url("mesh.toml");
    let agent = Agent::start(options(&location, None, state.path()))
        .await
        .unwrap();
    let path = agent.source.path();
    drop(agent);
    fs::write(path, mesh(9)).unwrap();
    let agent = restarted(options(&location, None, state.path())).await;
    assert_eq!(
        agent.text(),
        mesh(1),
        "what the repository says, not what the disk says"
    );
}
