//! The small commands.

use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};

use crate::support::{natpunch, root};

fn pubkey(input: &[u8]) -> std::process::Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_natpunch"))
        .arg("pubkey")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn a_public_key_is_that_of_rfc_7748() {
    // RFC 7748, 6.1: Alice's key pair.
    let output = pubkey(b"dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=\n");
    assert!(output.status.success());
    assert_eq!(
        output.stdout,
        b"hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=\n"
    );
}

#[test]
fn a_new_private_key_is_clamped_and_new() {
    let keygen = || natpunch(&root(), &["keygen"]).stdout;
    let (one, two) = (keygen(), keygen());
    assert_eq!(one.len(), 45);
    assert_ne!(one, two);
    let key: natpunch_types::SecretKey = std::str::from_utf8(&one).unwrap().parse().unwrap();
    assert_eq!(key.expose()[0] & 7, 0);
    assert_eq!(key.expose()[31] & 0xc0, 0x40);
}

#[test]
fn a_wrong_private_key_is_not_printed_back() {
    for wrong in [&b"c2VjcmV0"[..], b"", b"\xff\xfe", &[b'A'; 10_000]] {
        let output = pubkey(wrong);
        assert_eq!(output.status.code(), Some(1));
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(
            text.starts_with("error: standard input: ") && text.contains("help: "),
            "{text}"
        );
        assert!(!text.contains("c2VjcmV0"));
    }
}

#[test]
fn a_reader_that_goes_away_makes_no_noise() {
    for args in [
        &["schema"][..],
        &["completions", "zsh"],
        &["check", "examples/configs/home.toml", "--json"],
    ] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_natpunch"))
            .args(args)
            .current_dir(root())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let mut text = String::new();
        child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(
            (child.wait().unwrap().code(), text.as_str()),
            (Some(0), ""),
            "{args:?}"
        );
    }
}

#[test]
fn completions_are_there_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = natpunch(&root(), &["completions", shell]);
        assert!(output.status.success());
        assert!(
            String::from_utf8(output.stdout).unwrap().contains("keygen"),
            "{shell}"
        );
    }
}

#[test]
fn a_wrong_log_filter_is_an_error() {
    let output = natpunch(&root(), &["--log", "=debug=", "keygen"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .starts_with("error: --log: ")
    );
}
