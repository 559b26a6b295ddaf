//! Meshes for the unit tests of the agent.

use std::path::{Path, PathBuf};

use base64::Engine as _;

use crate::config::{self, NodeConfig};

/// A mesh of this node and `count` peers `p1` and so on, each with these lines.
pub(crate) fn mesh(count: u8, lines: &str) -> String {
    let mut text = "[mesh]\nname = \"test\"\nnetworks = [\"10.77.0.0/16\"]\n".to_owned();
    for n in 0..=count {
        let key = natpunch_types::SecretKey::from_bytes([n + 1; 32]);
        let (name, lines) = if n == 0 {
            ("self".to_owned(), "")
        } else {
            (format!("p{n}"), lines)
        };
        let public = key.public_key();
        text += &format!(
            "[peers.{name}]\npublic_key = \"{public}\"\naddresses = [\"10.77.0.{}\"]\n{lines}",
            n + 1
        );
    }
    text
}

/// Makes a file that holds a key of these bytes, readable by its owner only.
pub(crate) fn secret_file(path: &Path, byte: u8) {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = std::fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .unwrap();
    let key = base64::engine::general_purpose::STANDARD.encode([byte; 32]);
    file.write_all(key.as_bytes()).unwrap();
}

/// This node's part of a mesh.
pub(crate) fn node(text: &str) -> NodeConfig {
    let directory = tempfile::tempdir().unwrap();
    let key = directory.path().join("key");
    secret_file(&key, 1);
    let mesh = config::load_texts(vec![(PathBuf::from("/mesh.toml"), text.to_owned())]).unwrap();
    config::resolve_node(&mesh, Some(&key)).unwrap()
}
