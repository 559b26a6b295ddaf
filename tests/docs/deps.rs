//! `scripts/deps.sh`, which the Makefile runs before what needs programs of this machine.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use crate::blocks::root;

fn program(directory: &Path, name: &str, text: &str) {
    let path = directory.join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// What it says is missing for the virtual machine, where these programs come first in the path.
fn missing(directory: &Path) -> String {
    let path = format!("{}:{}", directory.display(), std::env::var("PATH").unwrap());
    let output = Command::new(root("scripts/deps.sh"))
        .arg("vm")
        .env("PATH", path)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    let line = said
        .lines()
        .find(|line| line.starts_with("missing programs:"));
    line.unwrap_or_default().to_owned() + " "
}

#[test]
fn a_busybox_that_needs_libraries_is_none_for_the_virtual_machine() {
    let directory = tempfile::tempdir().unwrap();
    // Somebody who may not install anything.
    program(directory.path(), "id", "#!/bin/sh\necho 1000\n");
    let busybox = directory.path().join("busybox");
    // A program of this machine that has libraries, and one that has none.
    fs::copy("/bin/ls", &busybox).unwrap();
    assert!(missing(directory.path()).contains(" busybox "));
    fs::remove_file(&busybox).unwrap();
    program(directory.path(), "busybox", "#!/bin/sh\n");
    assert!(!missing(directory.path()).contains(" busybox "));
}
