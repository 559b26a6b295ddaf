//! `natpunch demo` as a person runs it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn demo(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_natpunch"))
        .arg("demo")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn the_demo_connects_reloads_and_says_so() {
    let output = demo(&[]);
    let text = text(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    for expected in [
        "behind a port-preserving NAT",
        "first ping of 10.77.0.2 is answered",
        "route 192.168.77.0/24",
        " 0 lost",
        "direct",
    ] {
        assert!(
            text.contains(expected),
            "{expected:?} is missing in\n{text}"
        );
    }
    // Names stand where the log has keys.
    let key = text
        .split_whitespace()
        .find(|word| word.len() >= 43 && word.trim_end_matches(':').ends_with('='));
    assert_eq!(key, None, "{text}");
}

#[test]
fn two_symmetric_nats_are_connected_by_a_relay() {
    let output = demo(&["--nat-a", "symmetric", "--nat-b", "symmetric"]);
    let text = text(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(
        text.contains("relay (rendezvous)") && text.contains(" 0 lost"),
        "{text}"
    );
}

#[test]
fn the_demo_admits_that_two_symmetric_nats_need_a_relay() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mesh = include_str!("../examples/configs/demo.toml")
        .replace("[peers.b]\n", "[peers.b]\nrelay = \"never\"\n");
    std::fs::write(file.path(), mesh).unwrap();
    let config = file.path().to_str().unwrap();
    let output = demo(&[
        "--nat-a",
        "symmetric",
        "--nat-b",
        "symmetric",
        "--config",
        config,
    ]);
    let text = text(&output);
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(
        text.contains("not directly reachable") && text.contains("relay"),
        "{text}"
    );
}

#[test]
fn a_mesh_file_that_does_not_fit_is_refused_by_name() {
    let output = demo(&["--config", "/nonexistent/mesh.toml"]);
    let text = text(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("/nonexistent/mesh.toml"), "{text}");
}

/// Starts the demo, waits until both agents run, sends a signal to its first process, and waits for
/// the end.
fn interrupted(signal: Signal) -> (Option<i32>, Vec<String>) {
    // The environment of the demo's processes tells them from those of other tests.
    let mark = format!("NATPUNCH_DEMO_TEST={}-{signal}", std::process::id());
    let (key, value) = mark.split_once('=').unwrap();
    let mut child: Child = Command::new(env!("CARGO_BIN_EXE_natpunch"))
        .arg("demo")
        .env(key, value)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut joined = 0;
    while joined < 2 {
        let mut line = String::new();
        assert_ne!(
            lines.read_line(&mut line).unwrap(),
            0,
            "the demo ended by itself"
        );
        joined += usize::from(line.contains("joined the mesh"));
    }
    assert!(
        marked(&mark).len() >= 5,
        "two agents, two devices, a server"
    );
    kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
    let status = child.wait().unwrap();
    // Its output ends when nobody holds it any more.
    lines.read_to_end(&mut Vec::new()).unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    while !marked(&mark).is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    (status.code(), marked(&mark))
}

/// The processes that have this in their environment.
fn marked(mark: &str) -> Vec<String> {
    let processes = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    processes
        .filter(|id| id.bytes().all(|byte| byte.is_ascii_digit()))
        .filter(|id| {
            let environment = std::fs::read(format!("/proc/{id}/environ")).unwrap_or_default();
            environment
                .split(|byte| *byte == 0)
                .any(|variable| variable == mark.as_bytes())
        })
        .collect()
}

#[test]
fn an_interrupted_demo_leaves_no_process_behind() {
    assert_eq!(interrupted(Signal::SIGINT), (Some(130), vec![]));
}

#[test]
fn a_terminated_demo_leaves_no_process_behind() {
    assert_eq!(interrupted(Signal::SIGTERM), (Some(1), vec![]));
}

#[test]
fn a_killed_demo_leaves_no_process_behind() {
    assert_eq!(interrupted(Signal::SIGKILL), (None, vec![]));
}
