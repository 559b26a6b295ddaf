//! A lab leaves nothing behind, however it ends.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use natpunch_lab::{lab_test, sandbox};

/// The states of the processes whose command line contains `marker`.
fn processes_with(marker: &str) -> Vec<String> {
    let own = std::process::id().to_string();
    std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|id| *id != own)
        .filter(|id| {
            std::fs::read_to_string(format!("/proc/{id}/cmdline"))
                .is_ok_and(|line| line.contains(marker))
        })
        .collect()
}

#[test]
fn killing_a_sandbox_ends_even_its_detached_processes() {
    // Nothing else on the machine sleeps for just this long.
    let seconds = format!("{}.25", 100_000 + std::process::id());
    let mut child = sandbox::command("setsid")
        .args([
            "--fork",
            "sh",
            "-c",
            "sleep \"$1\" & echo started; wait",
            "sh",
            &seconds,
        ])
        .stdout(Stdio::piped())
        .spawn()
        .expect(sandbox::HELP);
    let mut line = String::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut line).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    // The pipe ends when nobody in the sandbox holds it any more.
    stdout.read_line(&mut line).unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    while !processes_with(&seconds).is_empty() {
        assert!(
            Instant::now() < deadline,
            "still there: {:?}",
            processes_with(&seconds)
        );
        std::thread::yield_now();
    }
}

lab_test!(a_panic_in_a_sandbox_fails_the_test, 20, |lab| {
    drop(lab);
    let path = "this_one_panics_in_its_sandbox";
    let again = std::env::current_exe().unwrap();
    let output = Command::new(again)
        .args([path, "--exact", "--ignored", "--test-threads=1"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!output.status.success(), "{text}");
    assert!(text.contains("the reason of the panic"), "{text}");
});

lab_test!(
    #[ignore = "fails by design; run by another test"]
    this_one_panics_in_its_sandbox,
    20,
    |lab| {
        drop(lab);
        panic!("the reason of the panic");
    }
);

#[test]
fn a_test_that_hangs_is_ended() {
    let path = "this_one_hangs_in_its_sandbox";
    let again = std::env::current_exe().unwrap();
    let output = Command::new(again)
        .args([path, "--exact", "--ignored", "--test-threads=1"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!output.status.success(), "{text}");
    assert!(text.contains("did not end within 1s"), "{text}");
}

lab_test!(
    #[ignore = "hangs by design; run by another test"]
    this_one_hangs_in_its_sandbox,
    1,
    |lab| {
        let _lab = lab;
        loop {
            std::thread::park();
        }
    }
);
