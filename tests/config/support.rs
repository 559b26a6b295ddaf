//! What the tests of the mesh file share.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use natpunch::config::ConfigErrors;
use natpunch_types::{PeerKey, SecretKey};

/// The root of the repository.
pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Runs the program in a directory.
pub(crate) fn natpunch(directory: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_natpunch"))
        .args(args)
        .current_dir(directory)
        .env_remove("NATPUNCH_LOG")
        .output()
        .unwrap()
}

/// Runs the program and gives what it printed; it must have succeeded.
pub(crate) fn done(directory: &Path, args: &[&str]) -> String {
    let output = natpunch(directory, args);
    let (out, err) = (
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    );
    assert!(output.status.success(), "{args:?}: {err}");
    out + &err
}

/// Runs the program and gives its error; it must have failed.
pub(crate) fn refused(directory: &Path, args: &[&str]) -> String {
    let output = natpunch(directory, args);
    assert_eq!(output.status.code(), Some(1), "{args:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// Compares with a committed file; writes it instead if BLESS is set.
pub(crate) fn matches_snapshot(file: &Path, actual: &str) -> Result<(), String> {
    if std::env::var_os("BLESS").is_some() {
        fs::write(file, actual).unwrap();
        return Ok(());
    }
    let expected = fs::read_to_string(file).unwrap_or_default();
    if expected == actual {
        return Ok(());
    }
    let shown = file.strip_prefix(root()).unwrap_or(file).display();
    Err(format!(
        "--- {shown}\n{expected}\n+++ now\n{actual}\n(BLESS=1 cargo test --test config accepts it)"
    ))
}

/// A key pair that exists for this test only.
pub(crate) fn key_pair(seed: u8) -> (SecretKey, PeerKey) {
    let secret = SecretKey::from_bytes([seed; 32]);
    let public = secret.public_key();
    (secret, public)
}

/// Writes a file with a mode.
pub(crate) fn write(file: &Path, text: &str, mode: u32) {
    fs::write(file, text).unwrap();
    fs::set_permissions(file, fs::Permissions::from_mode(mode)).unwrap();
}

/// Errors as they are shown, without colour, with a directory's name left out.
pub(crate) fn shown(errors: &ConfigErrors, directory: &Path) -> String {
    let text = natpunch::cli::report::render(errors, natpunch::cli::report::Severity::Error);
    let plain = anstream::adapter::strip_str(&text).to_string();
    plain.replace(&format!("{}/", directory.display()), "")
}

/// Runs the program with something on its standard input; gives its standard output.
pub(crate) fn piped(directory: &Path, args: &[&str], input: &str) -> Result<String, String> {
    let mut child = Command::new(env!("CARGO_BIN_EXE_natpunch"))
        .args(args)
        .current_dir(directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that refuses its arguments reads nothing.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let [out, err] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    if output.status.success() {
        Ok(out)
    } else {
        Err(err)
    }
}
