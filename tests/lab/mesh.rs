//! Mesh files of the tests.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;

/// A mesh file in the making. Written as TOML text: the tests use what a person would write.
#[derive(Debug, Clone)]
pub(crate) struct Mesh {
    pub(crate) networks: String,
    pub(crate) discovery: String,
    pub(crate) members: Vec<Member>,
}

impl Default for Mesh {
    fn default() -> Self {
        Self {
            networks: "10.77.0.0/24".into(),
            discovery: String::new(),
            members: Vec::new(),
        }
    }
}

/// One `[peers.NAME]`.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) public_key: String,
    pub(crate) address: Ipv4Addr,
    /// More lines.
    pub(crate) more: String,
}

impl Mesh {
    /// Adds a member with the next address.
    pub(crate) fn add(&mut self, name: &str, public_key: &str, more: &str) -> Ipv4Addr {
        let number = u16::try_from(self.members.len() + 1).unwrap().to_be_bytes();
        let address = Ipv4Addr::new(10, 77, number[0], number[1]);
        self.members.push(Member {
            name: name.to_owned(),
            public_key: public_key.to_owned(),
            address,
            more: more.to_owned(),
        });
        address
    }

    pub(crate) fn member(&mut self, name: &str) -> &mut Member {
        self.members
            .iter_mut()
            .find(|member| member.name == name)
            .unwrap()
    }

    pub(crate) fn text(&self) -> String {
        let mut text = format!(
            "[mesh]\nname = \"lab\"\nnetworks = [\"{}\"]\n\n[interface]\n",
            self.networks
        );
        if let Ok(backend) = std::env::var("NATPUNCH_LAB_BACKEND") {
            writeln!(text, "backend = \"{backend}\"").unwrap();
        }
        writeln!(text, "\n{}", self.discovery).unwrap();
        for Member {
            name,
            public_key,
            address,
            more,
        } in &self.members
        {
            writeln!(
                text,
                "[peers.{name}]\npublic_key = \"{public_key}\"\naddresses = [\"{address}\"]\n{more}"
            )
            .unwrap();
        }
        text
    }

    /// Puts the file in place by a rename.
    pub(crate) fn write(&self, path: &Path) {
        replace(path, &self.text());
    }
}

/// Writes a file as careful editors do: a new file, then a rename over the old one.
pub(crate) fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(&new, path).unwrap();
}
