//! What commands say that can't do what they are asked: the place, and what to do instead.

use std::fs;

use crate::support::{key_pair, matches_snapshot, natpunch, root, write};

/// The name of a snapshot, and the command line.
const COMMANDS: &[(&str, &[&str])] = &[
    ("export-of-nobody", &["export", "nope"]),
    ("export-of-a-misspelt-peer", &["export", "phon"]),
    (
        "export-without-the-mesh",
        &["export", "phone", "--mesh", "mash.toml"],
    ),
    (
        "export-without-the-key",
        &["export", "phone", "--private-key-file", "nofile.key"],
    ),
    ("import-of-no-file", &["import", "nofile.conf"]),
    ("import-of-a-misspelt-file", &["import", "wg.conf"]),
    ("import-of-a-directory", &["import", "split"]),
    ("import-of-a-mesh-file", &["import", "mesh.toml"]),
    ("import-of-what-is-not-text", &["import", "binary.conf"]),
    ("remove-of-nobody", &["remove-peer", "nope"]),
    ("check-without-the-mesh", &["check", "mash.toml"]),
    (
        "plan-without-the-key",
        &["plan", "mesh.toml", "--private-key-file", "nofile.key"],
    ),
    (
        "plan-without-the-key-that-the-mesh-names",
        &["plan", "mesh.toml"],
    ),
    ("graph-without-the-mesh", &["graph", "mash.toml"]),
];

#[test]
fn a_command_says_where_it_failed_and_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let text = format!(
        "[mesh]\nname = 'home'\nnetworks = ['10.77.0.0/24']\n[interface]\nprivate_key_file = 'nofile.key'\n\
         [peers.nas]\npublic_key = '{}'\naddresses = ['10.77.0.1']\nendpoint = 'nas.example.org:1'\n\
         [peers.phone]\npublic_key = '{}'\naddresses = ['10.77.0.3']\nmanaged = false\n",
        key_pair(1).1,
        key_pair(3).1
    );
    write(&directory.path().join("mesh.toml"), &text, 0o644);
    write(&directory.path().join("wg0.conf"), "[Interface]\n", 0o600);
    fs::write(directory.path().join("binary.conf"), [0xff, 0x00, 0xfe]).unwrap();
    fs::create_dir(directory.path().join("split")).unwrap();
    let mut wrong = Vec::new();
    for (name, arguments) in COMMANDS {
        let output = natpunch(directory.path(), arguments);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{name}: {text}");
        assert!(
            text.starts_with("error: ") && text.contains("help: "),
            "{name}: {text}"
        );
        assert!(
            !text.contains("hint") && !text.contains("os error"),
            "{name}: {text}"
        );
        let file = root().join(format!("tests/config/commands/{name}.txt"));
        wrong.extend(matches_snapshot(&file, &text).err());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
