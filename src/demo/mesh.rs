//! The demo's mesh file: the one given, with fresh keys in it, and the change that is made while it
//! runs.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use natpunch_types::PeerKey;
use toml_edit::{Array, DocumentMut, Item, Table, value};

use super::DemoError;

/// The file that `natpunch demo` uses if no other is named.
const BUILT_IN: &str = include_str!("../../examples/configs/demo.toml");

/// The peers that the demo plays.
pub(super) const NODES: [&str; 2] = ["a", "b"];

/// A mesh file.
pub(super) struct MeshFile {
    document: DocumentMut,
    file: PathBuf,
}

impl MeshFile {
    /// Reads `file`, or the built-in one.
    pub(super) fn read(file: Option<&Path>) -> Result<Self, DemoError> {
        let (file, text) = match file {
            Some(file) => {
                let text = std::fs::read_to_string(file);
                let text = text.map_err(|error| DemoError::Mesh {
                    file: file.into(),
                    problem: error.to_string(),
                })?;
                (file.into(), text)
            }
            None => (
                PathBuf::from("examples/configs/demo.toml"),
                BUILT_IN.to_owned(),
            ),
        };
        match text.parse() {
            Ok(document) => Ok(MeshFile { document, file }),
            Err(error) => Err(DemoError::Mesh {
                file,
                problem: error.to_string(),
            }),
        }
    }

    fn unfit(&self, problem: impl Into<String>) -> DemoError {
        DemoError::Mesh {
            file: self.file.clone(),
            problem: problem.into(),
        }
    }

    fn peer(&mut self, name: &str) -> Result<&mut Table, DemoError> {
        let missing = self.unfit(format!(
            "it has no section [peers.{name}]; the demo plays the peers a and b"
        ));
        let peer = self
            .document
            .get_mut("peers")
            .and_then(|peers| peers.get_mut(name))
            .and_then(Item::as_table_mut);
        peer.ok_or(missing)
    }

    /// Gives a node its public key.
    pub(super) fn set_node(&mut self, name: &str, key: &PeerKey) -> Result<(), DemoError> {
        set(self.peer(name)?, "public_key", key.to_string());
        Ok(())
    }

    /// Points the file's instances of the protocols that the demo's server speaks to it.
    pub(super) fn set_server(
        &mut self,
        address: &str,
        key: &str,
        secret_file: &Path,
    ) -> Result<(), DemoError> {
        let missing = self
            .unfit("it has no [discovery.NAME] with plugin = \"rendezvous\" or \"natpunch-go\"");
        let mut found = false;
        let instances = self
            .document
            .get_mut("discovery")
            .and_then(Item::as_table_mut);
        for (_, instance) in instances.into_iter().flat_map(Table::iter_mut) {
            let Some(instance) = instance.as_table_mut() else {
                continue;
            };
            let plugin = instance
                .get("plugin")
                .and_then(Item::as_str)
                .map(str::to_owned);
            if plugin.as_deref() == Some("rendezvous") {
                set(
                    instance,
                    "admission_secret_file",
                    secret_file.display().to_string(),
                );
            } else if plugin.as_deref() != Some("natpunch-go") {
                continue;
            }
            set(instance, "server", address.to_owned());
            set(instance, "public_key", key.to_owned());
            found = true;
        }
        if found { Ok(()) } else { Err(missing) }
    }

    /// The first address of a node in the mesh.
    pub(super) fn address(&mut self, name: &str) -> Result<IpAddr, DemoError> {
        let unfit = self.unfit(format!("peers.{name} has no address"));
        let first = self
            .peer(name)?
            .get("addresses")
            .and_then(Item::as_array)
            .and_then(|all| all.get(0));
        first
            .and_then(|first| first.as_str()?.parse().ok())
            .ok_or(unfit)
    }

    /// The change that the demo shows: a network behind b. Gives the lines that were added.
    pub(super) fn add_route(&mut self, route: &str) -> Result<String, DemoError> {
        let peer = self.peer("b")?;
        let mut routes = peer
            .get("routes")
            .and_then(Item::as_array)
            .cloned()
            .unwrap_or_else(Array::new);
        routes.push(route);
        let text = format!("[peers.b]\nroutes = {routes}");
        peer.insert("routes", value(routes));
        Ok(text)
    }

    /// Puts the file in place at once, as an editor or `git pull` does.
    pub(super) fn write(&self, path: &Path) -> Result<(), DemoError> {
        let new = path.with_extension("new");
        std::fs::write(&new, self.document.to_string())
            .and_then(|()| std::fs::rename(&new, path))
            .map_err(DemoError::system("cannot write the mesh file"))
    }
}

/// Replaces a value and keeps the comments around it.
fn set(table: &mut Table, key: &str, new: String) {
    match table.get_mut(key).and_then(Item::as_value_mut) {
        Some(old) => {
            let decor = old.decor().clone();
            *old = new.into();
            *old.decor_mut() = decor;
        }
        None => {
            table.insert(key, value(new));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_file_has_all_that_the_demo_changes() {
        let mut mesh = MeshFile::read(None).unwrap();
        let key = PeerKey::from_bytes([9; 32]);
        for node in NODES {
            mesh.set_node(node, &key).unwrap();
        }
        mesh.set_server("192.0.2.1:1", "KEY", Path::new("/secret"))
            .unwrap();
        assert_ne!(mesh.address("a").unwrap(), mesh.address("b").unwrap());
        assert_eq!(
            mesh.add_route("192.0.2.0/24").unwrap(),
            "[peers.b]\nroutes = [\"192.0.2.0/24\"]"
        );
        let text = mesh.document.to_string();
        let server =
            "server = \"192.0.2.1:1\"\npublic_key = \"KEY\"\nadmission_secret_file = \"/secret\"\n";
        assert!(text.contains(server), "{text}");
        assert_eq!(text.matches(&key.to_string()).count(), 2, "{text}");
        assert!(text.contains("routes = [\"192.0.2.0/24\"]"), "{text}");
    }

    #[test]
    fn a_file_without_the_two_nodes_is_refused_with_what_is_missing() {
        let mut mesh = MeshFile {
            document: "[peers.x]".parse().unwrap(),
            file: "m.toml".into(),
        };
        let key = PeerKey::from_bytes([9; 32]);
        let error = mesh.set_node("a", &key).unwrap_err().to_string();
        assert!(
            error.contains("m.toml") && error.contains("[peers.a]"),
            "{error}"
        );
    }
}
