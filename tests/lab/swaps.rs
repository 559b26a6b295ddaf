//! The ways in which files change in real life, each of which the running agent takes as one
//! change; and what it tells systemd.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use natpunch_lab::{lab_test, sandbox};

use crate::mesh::replace;
use crate::world::{Discovery, NATPUNCH, Node, World, new_key, soon};

/// Longer than the agent waits for writes to settle: a reload that has not come by then does not
/// come.
const NEVER: Duration = Duration::from_millis(900);

/// Puts a version of the mesh file in place below a directory, from version 0 on.
type Way = fn(&Path, u32, &str);

/// Each way, and the path that `natpunch apply` is given.
const WAYS: [(&str, &str, Way); 6] = [
    ("a write in place", "mesh.toml", |dir, _, text| {
        fs::write(dir.join("mesh.toml"), text).unwrap()
    }),
    ("an atomic rename", "mesh.toml", |dir, _, text| {
        replace(&dir.join("mesh.toml"), text)
    }),
    ("an editor's swap", "mesh.toml", editor),
    ("a git pull", "clone/mesh.toml", git_pull),
    ("a ConfigMap", "mesh.toml", config_map),
    ("git-sync", "current", git_sync),
];

/// As vim does with `backupcopy=no`: a probe file, the old file moved away, a new one, the old one
/// removed.
fn editor(dir: &Path, version: u32, text: &str) {
    let (file, backup) = (dir.join("mesh.toml"), dir.join("mesh.toml~"));
    fs::write(dir.join("4913"), "").unwrap();
    fs::remove_file(dir.join("4913")).unwrap();
    if version > 0 {
        fs::rename(&file, &backup).unwrap();
    }
    fs::write(&file, text).unwrap();
    let _ = fs::remove_file(backup);
}

fn git_pull(dir: &Path, version: u32, text: &str) {
    let git = |at: &Path, args: &[&str]| {
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
            .current_dir(at)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .output()
            .expect("git is needed for this test");
        assert!(
            output.status.success(),
            "git {args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    let (upstream, clone) = (dir.join("upstream"), dir.join("clone"));
    if version == 0 {
        fs::create_dir(&upstream).unwrap();
        git(&upstream, &["init", "-q"]);
    }
    fs::write(upstream.join("mesh.toml"), text).unwrap();
    git(&upstream, &["add", "-A"]);
    git(&upstream, &["commit", "-q", "-m", "a change"]);
    match version {
        0 => git(dir, &["clone", "-q", "upstream", "clone"]),
        _ => git(&clone, &["pull", "-q", "--ff-only"]),
    }
}

/// A new link, renamed over the old one.
fn swap_link(target: &str, link: &Path) {
    let new = link.with_file_name("new-link");
    symlink(target, &new).unwrap();
    fs::rename(new, link).unwrap();
}

fn config_map(dir: &Path, version: u32, text: &str) {
    let name = |version: u32| format!("..2026_11_22_{version}");
    fs::create_dir(dir.join(name(version))).unwrap();
    fs::write(dir.join(name(version)).join("mesh.toml"), text).unwrap();
    swap_link(&name(version), &dir.join("..data"));
    match version.checked_sub(1) {
        None => symlink("..data/mesh.toml", dir.join("mesh.toml")).unwrap(),
        Some(old) => fs::remove_dir_all(dir.join(name(old))).unwrap(),
    }
}

fn git_sync(dir: &Path, version: u32, text: &str) {
    let tree = |version: u32| format!("worktrees/{version}");
    fs::create_dir_all(dir.join(tree(version))).unwrap();
    fs::write(dir.join(tree(version)).join("mesh.toml"), text).unwrap();
    swap_link(&tree(version), &dir.join("current"));
    if let Some(old) = version.checked_sub(1) {
        fs::remove_dir_all(dir.join(tree(old))).unwrap();
    }
}

fn reloads(node: &Node) -> u64 {
    node.status().unwrap()["reloads"].as_u64().unwrap()
}

lab_test!(
    each_way_of_changing_the_file_is_exactly_one_reload_within_a_second,
    120,
    |lab| {
        let mut world = World::new(lab, Discovery::NatpunchGo);
        let third = world.lab.public_host("third").unwrap();
        world.mesh.add("third", &new_key(&third).1, "");
        let host = world.lab.public_host("a").unwrap();
        let mut a = world.node(host);
        for (number, (way, path, change)) in WAYS.into_iter().enumerate() {
            let dir = a.host.directory().unwrap().join(format!("way{number}"));
            fs::create_dir(&dir).unwrap();
            let mut put = |version: u32| {
                world.mesh.member("third").more = format!("routes = [\"172.20.{version}.0/24\"]\n");
                change(&dir, version, &world.mesh.text());
            };
            put(0);
            a.file = dir.join(path);
            a.start();
            a.wait_up();
            for version in 1..=2 {
                put(version);
                let changed = Instant::now();
                let wanted = format!("172.20.{version}.0/24");
                while !a.wg().iter().any(|peer| peer.allowed_ips.contains(&wanted)) {
                    assert!(Instant::now() < soon(), "{way}: never applied");
                    std::thread::sleep(Duration::from_millis(5));
                }
                let lag = changed.elapsed();
                println!("{way}: in place after {lag:?}");
                assert!(
                    lag < Duration::from_secs(1) * sandbox::patience(),
                    "{way}: applied after {lag:?}"
                );
                std::thread::sleep(NEVER);
                assert_eq!(reloads(&a), u64::from(version), "{way}: reloads");
            }
            a.stop();
            // Else the next start would change what runs, which is a reload, too.
            assert!(a.natpunch(&["down"]).status.success());
        }
    }
);

lab_test!(
    systemd_is_told_when_the_agent_is_ready_and_when_it_stops,
    60,
    |lab| {
        let (_world, a) = World::with_one_node(lab, Discovery::NatpunchGo);
        let path = a.host.directory().unwrap().join("notify.sock");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let mut command = Command::new(NATPUNCH);
        command
            .arg("apply")
            .arg(&a.file)
            .arg("--private-key-file")
            .arg(&a.key_file);
        command.env(
            "NATPUNCH_STATE_DIR",
            a.host.directory().unwrap().join("state"),
        );
        command
            .env("NOTIFY_SOCKET", &path)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let agent = a.host.spawn(command).unwrap();
        let told = |state: &str| {
            let mut buffer = [0; 512];
            loop {
                let length = socket
                    .recv(&mut buffer)
                    .unwrap_or_else(|error| panic!("{state} was not told: {error}"));
                let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
                if text.lines().any(|line| line == state) {
                    return;
                }
            }
        };
        told("READY=1");
        assert!(a.status().is_some(), "ready means that it answers");
        agent.terminate().unwrap();
        told("STOPPING=1");
    }
);
