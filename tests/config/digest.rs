//! The hash of what a mesh says, by which nodes compare what they run.

use std::path::PathBuf;

use natpunch::config;

use crate::support::key_pair;

fn hash(files: &[(&str, &str)]) -> [u8; 32] {
    let [a, b] = [1, 2].map(|seed| key_pair(seed).1.to_string());
    let files = files
        .iter()
        .map(|(path, text)| {
            (
                PathBuf::from(path),
                text.replace("KEY_A", &a).replace("KEY_B", &b),
            )
        })
        .collect();
    config::load_texts(files)
        .unwrap_or_else(|errors| panic!("{errors}"))
        .mesh_hash()
}

const MESH: &str = "[mesh]\nname = 'home'\nnetworks = ['10.0.0.0/24']\n";
const A: &str = "[peers.a]\npublic_key = 'KEY_A'\naddresses = ['10.0.0.1']\nroutes = ['10.1.0.0/16', '10.2.0.0/16']\n";
const B: &str = "[peers.b]\npublic_key = 'KEY_B'\naddresses = ['10.0.0.2']\n";

#[test]
fn where_and_how_a_mesh_is_written_makes_no_difference() {
    let whole = hash(&[("/etc/natpunch/mesh.toml", &[MESH, A, B].concat())]);
    let forms = [
        vec![("/other/place.toml", [MESH, A, B].concat())],
        vec![("/mesh.toml", [B, A, MESH].concat())],
        vec![
            ("/1.toml", MESH.to_owned()),
            ("/2.toml", B.to_owned()),
            ("/3.toml", A.to_owned()),
        ],
        vec![(
            "/mesh.toml",
            format!("# a comment\n{MESH}\n\n{A}{}", B.replace('\'', "\"")),
        )],
        vec![(
            "/mesh.toml",
            format!("{MESH}{A}[peers]\nb = {{ addresses = ['10.0.0.2'], public_key = 'KEY_B' }}\n"),
        )],
    ];
    for form in forms {
        let files: Vec<(&str, &str)> = form
            .iter()
            .map(|(path, text)| (*path, text.as_str()))
            .collect();
        assert_eq!(hash(&files), whole, "{form:?}");
    }
}

#[test]
fn what_a_mesh_says_makes_a_difference() {
    let text = [MESH, A, B].concat();
    let changes = [
        ("'home'", "'hem'"),
        ("10.0.0.2", "10.0.0.3"),
        ("name = 'home'", "name = 'home'\ngeneration = 2"),
        (
            "['10.1.0.0/16', '10.2.0.0/16']",
            "['10.2.0.0/16', '10.1.0.0/16']",
        ),
        ("[peers.b]", "[peers.c]"),
        ("[peers.b]", "[interface]\nmtu = 1380\n[peers.b]"),
    ];
    let mut hashes = vec![hash(&[("/mesh.toml", &text)])];
    hashes.extend(
        changes
            .iter()
            .map(|(from, to)| hash(&[("/mesh.toml", &text.replacen(from, to, 1))])),
    );
    let count = hashes.len();
    hashes.sort();
    hashes.dedup();
    assert_eq!(hashes.len(), count);
}
