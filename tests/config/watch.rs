//! How files change in real life, and what the watcher tells of it: each change once, within a
//! second.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use natpunch::source::Watcher;
use tempfile::TempDir;
use tokio::time::timeout;

/// A change is told within this time.
const SOON: Duration = Duration::from_secs(1);

/// Longer than the watcher waits for writes to settle: what is not told by then is not told.
const NEVER: Duration = Duration::from_millis(900);

async fn told_once(watcher: &mut Watcher, what: &str, change: impl FnOnce()) {
    let start = Instant::now();
    change();
    // Time that the change itself took does not count as waiting.
    let changed = start.elapsed();
    timeout(Duration::from_secs(10), watcher.changed())
        .await
        .unwrap_or_else(|_| panic!("{what}: not told"));
    let waited = start.elapsed() - changed;
    assert!(waited <= SOON, "{what}: told after {waited:?}");
    silent(watcher, what).await;
}

async fn silent(watcher: &mut Watcher, what: &str) {
    assert!(
        timeout(NEVER, watcher.changed()).await.is_err(),
        "{what}: told of nothing new"
    );
}

fn directory() -> (TempDir, PathBuf) {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("mesh.toml");
    fs::write(&file, "version = 0\n").unwrap();
    (directory, file)
}

fn text(version: u32) -> String {
    format!("version = {version}\n")
}

/// Renames a new link over an old one, as `ln -sfn` does not but Kubernetes and git-sync do.
fn swap_link(target: &str, link: &Path) {
    let new = link.with_file_name("new-link");
    symlink(target, &new).unwrap();
    fs::rename(new, link).unwrap();
}

#[tokio::test]
async fn a_write_in_place_is_told_once() {
    let (_directory, file) = directory();
    let mut watcher = Watcher::new(&file);
    for version in 1..=3 {
        told_once(&mut watcher, "write", || {
            fs::write(&file, text(version)).unwrap()
        })
        .await;
    }
}

#[tokio::test]
async fn an_atomic_rename_is_told_once_each_time() {
    let (directory, file) = directory();
    let mut watcher = Watcher::new(&file);
    for version in 1..=3 {
        told_once(&mut watcher, "rename", || {
            let new = directory.path().join(".mesh.toml.new");
            fs::write(&new, text(version)).unwrap();
            fs::rename(new, &file).unwrap();
        })
        .await;
    }
}

#[tokio::test]
async fn an_editor_that_moves_the_old_file_away_is_told_once() {
    let (directory, file) = directory();
    let mut watcher = Watcher::new(&file);
    for version in 1..=2 {
        told_once(&mut watcher, "write and swap", || {
            let backup = directory.path().join("mesh.toml~");
            fs::write(directory.path().join("4913"), "").unwrap();
            fs::remove_file(directory.path().join("4913")).unwrap();
            fs::rename(&file, &backup).unwrap();
            fs::write(&file, text(version)).unwrap();
            fs::remove_file(backup).unwrap();
        })
        .await;
    }
}

#[tokio::test]
async fn a_removed_file_that_comes_back_is_told() {
    let (_directory, file) = directory();
    let mut watcher = Watcher::new(&file);
    told_once(&mut watcher, "removal", || fs::remove_file(&file).unwrap()).await;
    told_once(&mut watcher, "return", || {
        fs::write(&file, text(1)).unwrap()
    })
    .await;
}

fn git(directory: &Path, args: &[&str]) {
    let output = Command::new("git")
        .args([
            "-c",
            "user.name=t",
            "-c",
            "user.email=t@example.org",
            "-c",
            "init.defaultBranch=main",
        ])
        .args(args)
        .current_dir(directory)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .output()
        .expect("git is needed for this test");
    assert!(
        output.status.success(),
        "git {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[tokio::test]
async fn a_git_pull_is_told_once() {
    let upstream = TempDir::new().unwrap();
    let commit = |version: u32| {
        fs::write(upstream.path().join("1.toml"), text(version)).unwrap();
        fs::write(upstream.path().join("2.toml"), text(version + 100)).unwrap();
        git(upstream.path(), &["add", "-A"]);
        git(upstream.path(), &["commit", "-q", "-m", "a change"]);
    };
    git(upstream.path(), &["init", "-q"]);
    commit(0);
    let clone = TempDir::new().unwrap();
    git(
        clone.path(),
        &["clone", "-q", upstream.path().to_str().unwrap(), "."],
    );
    let mut watcher = Watcher::new(clone.path());
    for version in 1..=2 {
        commit(version);
        told_once(&mut watcher, "git pull", || {
            git(clone.path(), &["pull", "-q", "--ff-only"])
        })
        .await;
    }
}

/// A mounted ConfigMap: files link into `..data`, which links to a directory of one version.
fn config_map(directory: &Path, version: u32) {
    let name = format!("..2026_11_22_{version}");
    fs::create_dir(directory.join(&name)).unwrap();
    fs::write(directory.join(&name).join("mesh.toml"), text(version)).unwrap();
    swap_link(&name, &directory.join("..data"));
    let file = directory.join("mesh.toml");
    if !file.exists() {
        symlink("..data/mesh.toml", file).unwrap();
    }
    if let Some(old) = version.checked_sub(1) {
        fs::remove_dir_all(directory.join(format!("..2026_11_22_{old}"))).unwrap();
    }
}

#[tokio::test]
async fn a_config_map_swap_is_told_once_for_the_file_and_for_the_directory() {
    let mount = TempDir::new().unwrap();
    config_map(mount.path(), 0);
    let mut of_file = Watcher::new(&mount.path().join("mesh.toml"));
    let mut of_directory = Watcher::new(mount.path());
    for version in 1..=3 {
        config_map(mount.path(), version);
        tokio::join!(
            told_once(&mut of_file, "swap, by file", || {}),
            told_once(&mut of_directory, "swap, by directory", || {})
        );
    }
}

#[tokio::test]
async fn a_git_sync_swap_of_the_directory_is_told_once_and_later_writes_too() {
    let volume = TempDir::new().unwrap();
    let checkout = |version: u32| {
        let name = format!("rev{version}");
        fs::create_dir_all(volume.path().join("worktrees").join(&name).join("mesh")).unwrap();
        fs::write(
            volume
                .path()
                .join("worktrees")
                .join(&name)
                .join("mesh/a.toml"),
            text(version),
        )
        .unwrap();
        swap_link(&format!("worktrees/{name}"), &volume.path().join("current"));
        if let Some(old) = version.checked_sub(1) {
            fs::remove_dir_all(volume.path().join(format!("worktrees/rev{old}"))).unwrap();
        }
    };
    checkout(0);
    let mesh = volume.path().join("current/mesh");
    let mut watcher = Watcher::new(&mesh);
    for version in 1..=3 {
        told_once(&mut watcher, "git-sync", || checkout(version)).await;
    }
    told_once(&mut watcher, "a write after the swap", || {
        fs::write(mesh.join("a.toml"), "x = 1\n").unwrap()
    })
    .await;
}

#[tokio::test]
async fn a_replaced_parent_directory_is_told_once() {
    let volume = TempDir::new().unwrap();
    let parent = volume.path().join("etc");
    let make = |version| {
        let new = volume.path().join("new");
        fs::create_dir(&new).unwrap();
        fs::write(new.join("mesh.toml"), text(version)).unwrap();
        if parent.exists() {
            fs::rename(&parent, volume.path().join(format!("old{version}"))).unwrap();
        }
        fs::rename(new, &parent).unwrap();
    };
    make(0);
    let mut watcher = Watcher::new(&parent.join("mesh.toml"));
    for version in 1..=2 {
        told_once(&mut watcher, "new parent", || make(version)).await;
    }
    told_once(&mut watcher, "a write after it", || {
        fs::write(parent.join("mesh.toml"), text(9)).unwrap()
    })
    .await;
}

#[tokio::test]
async fn files_of_a_directory_are_told_when_they_come_change_and_go() {
    let (directory, _) = directory();
    let mut watcher = Watcher::new(directory.path());
    let second = directory.path().join("second.toml");
    told_once(&mut watcher, "new file", || {
        fs::write(&second, text(1)).unwrap()
    })
    .await;
    told_once(&mut watcher, "changed file", || {
        fs::write(&second, text(2)).unwrap()
    })
    .await;
    told_once(&mut watcher, "renamed file", || {
        fs::rename(&second, directory.path().join("third.toml")).unwrap()
    })
    .await;
    told_once(&mut watcher, "removed file", || {
        fs::remove_file(directory.path().join("third.toml")).unwrap()
    })
    .await;
}

#[tokio::test]
async fn what_changes_nothing_is_not_told() {
    let (directory, file) = directory();
    let mut of_file = Watcher::new(&file);
    let mut of_directory = Watcher::new(directory.path());
    fs::write(&file, "version = 0\n").unwrap();
    fs::File::options()
        .append(true)
        .open(&file)
        .unwrap()
        .set_modified(std::time::SystemTime::now())
        .unwrap();
    fs::write(directory.path().join("README.md"), "hello").unwrap();
    fs::write(directory.path().join(".hidden.toml"), "hello").unwrap();
    for _ in 0..10 {
        fs::read(&file).unwrap();
    }
    tokio::join!(
        silent(&mut of_file, "file"),
        silent(&mut of_directory, "directory")
    );
}

#[tokio::test]
async fn of_a_thousand_writes_in_a_burst_the_last_wins_and_few_are_told() {
    let (_directory, file) = directory();
    let mut watcher = Watcher::new(&file);
    let target = file.clone();
    let start = Instant::now();
    let writer = std::thread::spawn(move || {
        for version in 1..=1000 {
            fs::write(&target, text(version)).unwrap();
            std::thread::sleep(Duration::from_millis(2));
        }
        Instant::now()
    });
    let mut seen = Vec::new();
    let mut last = Instant::now();
    while timeout(Duration::from_millis(1500), watcher.changed())
        .await
        .is_ok()
    {
        last = Instant::now();
        seen.push(fs::read_to_string(&file).unwrap());
    }
    let written = writer.join().unwrap();
    assert_eq!(seen.last(), Some(&text(1000)));
    // At most one in 700 ms while writes go on, and the last.
    let most = (written - start).as_millis() / 700 + 2;
    assert!(
        seen.len() as u128 <= most,
        "{} told in {:?}",
        seen.len(),
        written - start
    );
    assert!(
        last.saturating_duration_since(written) <= SOON,
        "the last was told after {:?}",
        last - written
    );
}

#[tokio::test]
async fn a_path_that_is_not_there_yet_is_told_when_it_comes() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("later/mesh.toml");
    let mut watcher = Watcher::new(&file);
    told_once(&mut watcher, "arrival", || {
        fs::create_dir(directory.path().join("later")).unwrap();
        fs::write(&file, text(1)).unwrap();
    })
    .await;
}

#[tokio::test]
async fn key_files_are_told_as_the_mesh_file_is_and_a_new_list_of_them_once() {
    let (directory, file) = directory();
    let keys = ["a.key", "b.psk"].map(|name| directory.path().join(name));
    for key in &keys {
        fs::write(key, "one\n").unwrap();
    }
    let (mut with_mesh, mut without) = (Watcher::new(&file), Watcher::of_keys());
    let steps: [(&str, &dyn Fn()); 4] = [
        ("another list", &|| {}),
        ("a written key", &|| fs::write(&keys[1], "two\n").unwrap()),
        ("a replaced key", &|| {
            fs::write(directory.path().join("new"), "three\n").unwrap();
            fs::rename(directory.path().join("new"), &keys[1]).unwrap();
        }),
        ("a key that is gone", &|| fs::remove_file(&keys[1]).unwrap()),
    ];
    for (what, change) in steps {
        for watcher in [&mut with_mesh, &mut without] {
            // Naming the same ones again changes nothing.
            watcher.watch_keys(&keys);
        }
        tokio::join!(
            told_once(&mut with_mesh, what, change),
            told_once(&mut without, what, || {})
        );
    }
    fs::write(&file, text(1)).unwrap();
    tokio::join!(
        told_once(&mut with_mesh, "the mesh file", || {}),
        silent(&mut without, "the mesh file")
    );
}

#[tokio::test]
async fn a_wait_that_is_given_up_loses_no_change() {
    let (_directory, file) = directory();
    let mut watcher = Watcher::new(&file);
    fs::write(&file, text(1)).unwrap();
    // Given up after the event, before the writes count as settled.
    for _ in 0..20 {
        assert!(
            timeout(Duration::from_millis(10), watcher.changed())
                .await
                .is_err()
        );
    }
    told_once(&mut watcher, "the change", || {}).await;
}
