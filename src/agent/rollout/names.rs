//! How a version of the mesh is called: by one word in every command, in the log and in the JSON.

use std::collections::VecDeque;

use natpunch_rollout::Hash;

use crate::config::NodeConfig;

/// How many versions are remembered. Those that are spoken of are the one that runs, the one
/// before, and the newest.
const MOST: usize = 16;

/// The start of a hash as it is shown: 12 hexadecimal digits.
pub(crate) fn short(hash: &[u8]) -> String {
    hash.iter()
        .take(6)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// The name of a version: the generation that the mesh file states, if it does, and the start of
/// the hash of what it says. It is the same on every node that has this mesh.
pub(crate) fn revision(generation: Option<u64>, mesh_hash: &[u8]) -> String {
    match generation {
        Some(generation) => format!("{generation}-{}", short(mesh_hash)),
        None => short(mesh_hash),
    }
}

/// The name of the version that this is a node's part of.
pub(crate) fn revision_of(node: &NodeConfig) -> String {
    revision(node.generation, &node.mesh_hash)
}

/// The names of versions that the journal knows by the hash of their files.
#[derive(Debug, Default)]
pub(crate) struct Names(VecDeque<(Hash, String)>);

impl Names {
    /// Remembers a version that was loaded.
    pub(crate) fn learn(&mut self, node: &NodeConfig) {
        self.0.retain(|(hash, _)| *hash != node.content_hash);
        self.0.truncate(MOST - 1);
        self.0.push_front((node.content_hash, revision_of(node)));
    }

    /// The name of a version; of one that this agent never loaded, the hash of its files.
    pub(crate) fn of(&self, files: &Hash) -> String {
        let known = self.0.iter().find(|(hash, _)| hash == files);
        known.map_or_else(
            || format!("files-{}", short(files)),
            |(_, name)| name.clone(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_called_by_its_generation_and_what_it_says() {
        let hash = [0xab; 32];
        assert_eq!(revision(Some(12), &hash), "12-abababababab");
        assert_eq!(revision(None, &hash), "abababababab");
        assert_eq!(Names::default().of(&hash), "files-abababababab");
    }
}
