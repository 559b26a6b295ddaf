//! Meshes as text, and what is said of them.

use natpunch_config::{ConfigErrors, Kind, MeshConfig, load_texts};
use natpunch_plugin_description::{Description, Endpoint, Flaw, Instance, Settings, Warning};
use natpunch_types::{Abilities, PeerKey, SecretKey};
use schemars::JsonSchema;
use serde::Deserialize;

/// What an instance of either plugin is.
#[derive(Debug, PartialEq)]
pub(crate) struct Described(Description);

impl Instance for Described {
    fn describe(&self) -> Description {
        self.0.clone()
    }
}

/// A server that is asked from WireGuard's port, finds peers, relays, carries records, and may be a
/// node of the mesh.
#[derive(Deserialize, JsonSchema)]
struct Server {}

impl Server {
    fn instance() -> Described {
        Described(Description {
            abilities: Self::ABILITIES,
            finds_peers: true,
            ..Description::default()
        })
    }
}

impl Settings for Server {
    const PLUGIN: &'static str = "server";
    const ABOUT: &'static str = "finds and relays";
    const ABILITIES: Abilities = Abilities {
        wireguard_port: true,
        relays: true,
        records: true,
        ..Abilities::NONE
    };
    type Instance = Described;

    fn check(self) -> Result<Described, Vec<Flaw>> {
        Ok(Self::instance())
    }

    fn of_node(_: &Endpoint, _: PeerKey) -> Option<Described> {
        Some(Self::instance())
    }
}

/// A directory that is asked as any website is, and finds peers.
#[derive(Deserialize, JsonSchema)]
struct Web {}

impl Settings for Web {
    const PLUGIN: &'static str = "web";
    const ABOUT: &'static str = "finds";
    const ABILITIES: Abilities = Abilities::NONE;
    type Instance = Described;

    fn check(self) -> Result<Described, Vec<Flaw>> {
        Ok(Described(Description {
            finds_peers: true,
            ..Description::default()
        }))
    }
}

/// Offers the endpoints of the mesh file, and is there without being written. A `shout` in its
/// section is likely not meant.
#[derive(Deserialize, JsonSchema)]
struct Book {
    #[serde(default)]
    shout: bool,
}

impl Settings for Book {
    const PLUGIN: &'static str = "book";
    const ABOUT: &'static str = "has the endpoints of the file";
    const ABILITIES: Abilities = Abilities::NONE;
    type Instance = Described;

    fn check(self) -> Result<Described, Vec<Flaw>> {
        let odd = Warning {
            rule: "shouting-book",
            problem: "shouts".to_owned(),
            label: "nobody hears it",
            help: "take `shout` out",
        };
        Ok(Described(Description {
            offers_endpoints: true,
            warnings: self.shout.then_some(odd).into_iter().collect(),
            ..Description::default()
        }))
    }

    fn implied() -> Option<Described> {
        Book { shout: false }.check().ok()
    }
}

pub(crate) const SERVER: &str = "[discovery.rv]\nplugin = 'server'\n";
pub(crate) const WEB: &str = "[discovery.web]\nplugin = 'web'\n";

/// The mesh of a text.
pub(crate) fn load(text: &str) -> Result<MeshConfig, ConfigErrors> {
    let kinds = [Kind::of::<Server>(), Kind::of::<Web>(), Kind::of::<Book>()];
    load_texts(vec![("mesh.toml".into(), text.to_owned())], &kinds)
}

/// A key pair that exists for these tests only.
pub(crate) fn key(number: u8) -> (SecretKey, PeerKey) {
    let secret = SecretKey::from_bytes([number; 32]);
    let public = secret.public_key();
    (secret, public)
}

/// `[mesh]` with one network, and these lines more.
pub(crate) fn head(network: &str, more: &str) -> String {
    format!("[mesh]\nname = 'home'\nnetworks = ['{network}']\n{more}\n")
}

/// The section of a peer with the address 10.0.0.`number`, and these lines more.
pub(crate) fn peer(name: &str, number: u8, more: &str) -> String {
    let addresses = format!("addresses = ['10.0.0.{number}']\n");
    let addresses = if more.contains("addresses") {
        ""
    } else {
        &addresses
    };
    let (_, public) = key(number);
    format!("[peers.{name}]\npublic_key = '{public}'\n{addresses}{more}\n")
}

/// A mesh of a, b and c, each with these lines more, behind these lines of `[mesh]` and sections.
pub(crate) fn mesh(more_of_mesh: &str, sections: &str, peers: [&str; 3]) -> String {
    let mut text = head("10.0.0.0/24", more_of_mesh) + sections;
    for ((name, number), more) in [("a", 1), ("b", 2), ("c", 3)].into_iter().zip(peers) {
        text += &peer(name, number, more);
    }
    text
}

/// What is said, each with the line that it points at.
pub(crate) fn said(text: &str, errors: &ConfigErrors) -> Vec<(String, String)> {
    let said = errors.iter().map(|error| {
        let line = errors.location(error).map_or(0, |location| location.line);
        let line = text.lines().nth(line.saturating_sub(1)).unwrap_or_default();
        (error.message().to_owned(), line.to_owned())
    });
    said.collect()
}

/// Why a mesh is refused; nothing if it is not.
pub(crate) fn refusals(text: &str) -> Vec<(String, String)> {
    load(text)
        .err()
        .map_or(Vec::new(), |errors| said(text, &errors))
}
