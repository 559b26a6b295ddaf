//! Secrets that others may know.

use std::collections::{BTreeMap, BTreeSet};

use natpunch_types::{PeerKey, SecretKey};

use crate::mesh::model::MeshConfig;
use crate::report::error::ConfigError;
use crate::report::source::Place;
use crate::report::wording::Quoted;

/// Most texts that are tried as private keys.
const MOST_TRIED: usize = 1000;

/// Private keys that stand anywhere in the files, comments included: texts whose public key a peer
/// has.
pub(super) fn private_keys(mesh: &MeshConfig, findings: &mut Vec<ConfigError>) {
    let owners: BTreeMap<PeerKey, &str> = mesh
        .peers
        .iter()
        .map(|(name, peer)| (peer.public_key, name.as_str()))
        .collect();
    let mut tried = BTreeSet::new();
    for (file, source) in mesh.sources.0.iter().enumerate() {
        let base64 = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '=');
        let words = source
            .text
            .split(|c| !base64(c))
            .filter(|word| word.len() == 44 && word.ends_with('='));
        for word in words {
            let Ok(key) = word.parse::<SecretKey>() else {
                continue;
            };
            if owners.contains_key(&PeerKey::from_bytes(*key.expose())) {
                continue;
            }
            if tried.len() == MOST_TRIED || !tried.insert(word) {
                continue;
            }
            let Some(owner) = owners.get(&key.public_key()) else {
                continue;
            };
            let start = word.as_ptr().addr() - source.text.as_ptr().addr();
            let at = Place {
                file,
                start,
                end: start + word.len(),
            };
            let message = format!("the private key of `{}` is in the file", Quoted(owner));
            let finding = ConfigError::at(at, message)
                .label("whoever reads the file is this peer")
                .secret();
            let help =
                "make a new key pair with `natpunch keygen`: what was in git once stays known";
            findings.push(finding.rule("private-key-in-file").help(help));
        }
    }
}

/// Encrypted values that others than nodes can open, too.
pub(super) fn foreign_recipients(mesh: &MeshConfig, findings: &mut Vec<ConfigError>) {
    for (at, kinds) in &mesh.places.foreign_recipients {
        let message = format!(
            "natpunch can't be the recipients of the kind {}",
            kinds.join(", ")
        );
        let finding =
            ConfigError::at(*at, message).label("can be opened by others than nodes, too");
        let help =
            "recipients of nodes begin with age1; others are for people with their own tools";
        findings.push(finding.rule("foreign-recipient").help(help));
    }
}
