//! `natpunch serve`, the real binary, from outside.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    missing_docs
)]

mod campaign;
mod cluster;
mod cluster_campaign;
mod go_client;
mod http;
mod operation;
mod plugin;
mod process;
mod protocols;
mod redis;
mod relay;
mod rendezvous;
mod streams;
mod swarm;
mod udp;

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::time::Duration;

use nix::sys::signal::Signal;

use process::{Server, fails, serve};

const UDP: [&str; 3] = ["--open", "--listen", "127.0.0.1:0"];

#[test]
fn the_first_start_makes_a_key_and_prints_its_public_key_first() {
    let directory = tempfile::tempdir().unwrap();
    let first = Server::start_in(directory.path(), &UDP);
    let path = directory.path().join("server.key");
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
    let private: natpunch_types::SecretKey = std::fs::read_to_string(&path)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    assert_eq!(private.public_key(), first.public_key);
    let public_key = first.public_key;
    drop(first);
    assert_eq!(
        Server::start_in(directory.path(), &UDP).public_key,
        public_key,
        "a restart is the same server"
    );
}

#[test]
fn a_key_that_is_damaged_or_exposed_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("server.key");
    for (content, mode, words) in [
        ("", 0o600, "empty"),
        ("short", 0o600, "not base64"),
        (
            "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n",
            0o600,
            "all zero",
        ),
        (
            "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n",
            0o644,
            "read by others",
        ),
    ] {
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let (code, out, error) = fails({
            let mut command = serve(&UDP);
            command.arg("--key-file").arg(&path);
            command
        });
        assert_eq!(code, Some(1));
        assert_eq!(out, "", "it printed a public key of nothing");
        assert!(
            error.contains(words) && error.contains("help:") && error.contains("server.key"),
            "{error}"
        );
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            content,
            "the file was changed"
        );
    }
}

#[test]
fn what_is_missing_or_taken_is_said_with_help() {
    let directory = tempfile::tempdir().unwrap();
    let key = directory.path().join("server.key");
    let key = key.to_str().unwrap();
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    for (arguments, words) in [
        (&["--key-file", key][..], "nothing to serve"),
        (
            &["--key-file", key, "--listen", "127.0.0.1:0"],
            "--open everybody",
        ),
        (&["--open", "--listen", "127.0.0.1:0"], "--key-file FILE"),
        (
            &["--open", "--key-file", key, "--listen", &taken],
            "another process listens there",
        ),
        (
            &["--open", "--key-file", key, "--listen", "203.0.113.1:1"],
            "no such address",
        ),
        (
            &[
                "--key-file",
                key,
                "--listen",
                "127.0.0.1:0",
                "--compat",
                "natpunchgo",
            ],
            "did you mean `natpunch-go`",
        ),
        (&["--config", "/nonexistent"], "/nonexistent"),
    ] {
        let (code, out, error) = fails(serve(arguments));
        assert!(
            code == Some(1) && out.is_empty() && error.contains(words),
            "{arguments:?}: {code:?} {out} {error}"
        );
    }
}

#[test]
fn a_file_gives_the_same_server_as_flags() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("serve.toml");
    let key = directory.path().join("server.key");
    let text = format!(
        "listen = [\"127.0.0.1:0\", \"[::1]:0\"]\nkey_file = {key:?}\ncompat = [\"nat-hole-punching\"]\nhttp = \"127.0.0.1:0\"\n"
    );
    std::fs::write(&file, &text).unwrap();
    let by_file = Server::spawn(
        serve(&["--config", file.to_str().unwrap()]),
        directory.path(),
    );
    let flags = [
        "--listen",
        "127.0.0.1:0",
        "--listen",
        "[::1]:0",
        "--compat",
        "nat-hole-punching",
        "--http",
        "127.0.0.1:0",
    ];
    let by_flags = Server::start_in(directory.path(), &flags);
    assert_eq!(by_file.public_key, by_flags.public_key);
    for server in [by_file, by_flags] {
        assert_eq!(server.udp.len(), 2);
        assert!(server.http.is_some());
        let socket = go_client::socket([127, 0, 0, 1].into(), server.udp[0]);
        assert_eq!(
            go_client::exchange(&socket, &[7; 64]).unwrap().len(),
            6,
            "nat-hole-punching was named"
        );
    }
    std::fs::write(&file, format!("{text}kye_file = \"x\"\n")).unwrap();
    let (code, _, error) = fails(serve(&["--config", file.to_str().unwrap()]));
    assert!(
        code == Some(1) && error.contains("line 5") && error.contains("kye_file"),
        "{error}"
    );
}

#[test]
fn it_stops_gracefully_also_with_polls_in_flight() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut server =
            Server::start(&["--open", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
        let poll = http::long_poll_in_flight(server.http.unwrap());
        server.signal(signal);
        assert_eq!(
            server.wait(Duration::from_secs(5)).code(),
            Some(0),
            "{}",
            server.log()
        );
        assert_eq!(
            poll.join().unwrap(),
            200,
            "the poll was answered before the end"
        );
    }
}

#[test]
fn systemd_is_told_when_it_listens_and_when_it_stops() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify.sock");
    let systemd = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    systemd
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let told = || {
        let mut buffer = [0; 512];
        let length = systemd.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).trim().to_owned()
    };
    let mut command = serve(&["--open", "--listen", "127.0.0.1:0", "--key-file"]);
    command
        .arg(directory.path().join("server.key"))
        .env("NOTIFY_SOCKET", &path);
    let mut server = Server::spawn(command, directory.path());
    assert_eq!(told(), "READY=1");
    server.signal(Signal::SIGTERM);
    assert_eq!(told(), "STOPPING=1");
    assert!(server.wait(Duration::from_secs(10)).success());
}

fn unit(name: &str) -> String {
    let root = env!("CARGO_MANIFEST_DIR");
    std::fs::read_to_string(format!("{root}/dist/systemd/{name}")).unwrap()
}

#[test]
fn the_template_is_the_unit_but_for_the_name_of_the_mesh() {
    let without_head = |text: String| text.split_once("[Unit]\n").unwrap().1.to_owned();
    let one = without_head(unit("natpunch.service"));
    let each = one
        .replace("/etc/natpunch/mesh.toml", "/etc/natpunch/%i.toml")
        .replace("=natpunch mesh\n", "=natpunch mesh %i\n");
    assert_ne!(one, each);
    assert_eq!(without_head(unit("natpunch@.service")), each);
}

/// The units are files that somebody installs: systemd itself says whether they are right, with the
/// program in place.
#[test]
fn the_systemd_units_are_valid() {
    let directory = tempfile::tempdir().unwrap();
    for name in [
        "natpunch.service",
        "natpunch@.service",
        "natpunch-serve.service",
    ] {
        let unit = unit(name);
        for kept in ["Type=notify\n", "\nExecReload=", "\nWatchdogSec="] {
            assert!(unit.contains(kept), "{name}: {kept}");
        }
        // Of a template systemd looks at an instance.
        let path = directory.path().join(name.replace('@', "@office"));
        std::fs::write(
            &path,
            unit.replace("/usr/bin/natpunch", env!("CARGO_BIN_EXE_natpunch")),
        )
        .unwrap();
        let verify = std::process::Command::new("systemd-analyze")
            .arg("verify")
            .arg(&path)
            .output();
        let verify =
            verify.expect("systemd-analyze is needed for this test (apt-get install systemd)");
        let said = String::from_utf8_lossy(&verify.stderr).into_owned();
        assert!(verify.status.success() && said.is_empty(), "{name}: {said}");
    }
}
