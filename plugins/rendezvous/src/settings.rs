use std::path::PathBuf;

use natpunch_plugin::{
    Abilities, Description, Discovery, Endpoint, Flaw, Instance, PeerKey, Runs, SecretFile,
    Secrets, check_server, check_server_key,
};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::Plugin;

/// The settings of a `[discovery.NAME]` section with `plugin = "rendezvous"`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Where the server is: `HOST:PORT`. For several servers, write several sections.
    pub server: String,
    /// The server's public key in base64, as it prints it at its start.
    #[schemars(with = "String")]
    pub public_key: PeerKey,
    /// The key that the server will have next, while it changes over. Either is accepted.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub next_public_key: Option<PeerKey>,
    /// The file with the mesh's admission secret, if the server asks for one: one line, as
    /// `natpunch keygen` prints it, readable by its owner only. An absolute path;
    /// `credential:NAME` is a credential of systemd.
    #[serde(default)]
    pub admission_secret_file: Option<PathBuf>,
    /// Whether its relay is used while two nodes have no direct path. False: it only introduces
    /// them.
    #[serde(default = "yes")]
    pub relay: bool,
}

fn yes() -> bool {
    true
}

/// The key of the section that names the file of the admission secret.
pub(crate) const ADMISSION: &str = "admission_secret_file";

/// A natpunch rendezvous server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    pub(crate) endpoint: Endpoint,
    /// Its keys, the one that it has first.
    pub(crate) keys: Vec<PeerKey>,
    admission: Option<SecretFile>,
    pub(crate) relay: bool,
    /// It is a node of the mesh, and knows this one by its WireGuard key.
    pub(crate) is_node: bool,
}

impl natpunch_plugin::Settings for Settings {
    const PLUGIN: &'static str = "rendezvous";
    const ABOUT: &'static str = "natpunch's own server: it introduces and relays";
    const ABILITIES: Abilities = Abilities {
        wireguard_port: true,
        meetings: true,
        relays: true,
        records: true,
        ..Abilities::NONE
    };
    type Instance = Server;

    fn check(self) -> Result<Server, Vec<Flaw>> {
        let key =
            |name, key: Option<&PeerKey>| key.map_or(Ok(()), |key| check_server_key(name, key));
        let endpoint = check_server("server", &self.server);
        let public_key = key("public_key", Some(&self.public_key));
        let next = key("next_public_key", self.next_public_key.as_ref());
        let admission = self
            .admission_secret_file
            .map(|path| SecretFile::new(ADMISSION, path))
            .transpose();
        match (endpoint, public_key, next, admission) {
            (Ok(endpoint), Ok(()), Ok(()), Ok(admission)) => Ok(Server {
                endpoint,
                keys: [Some(self.public_key), self.next_public_key]
                    .into_iter()
                    .flatten()
                    .collect(),
                admission,
                relay: self.relay,
                is_node: false,
            }),
            (endpoint, public_key, next, admission) => {
                let flaws = [
                    endpoint.err(),
                    public_key.err(),
                    next.err(),
                    admission.err(),
                ];
                Err(flaws.into_iter().flatten().collect())
            }
        }
    }

    fn of_node(server: &Endpoint, key: PeerKey) -> Option<Server> {
        Some(Server {
            endpoint: server.clone(),
            keys: vec![key],
            admission: None,
            relay: true,
            is_node: true,
        })
    }
}

impl Instance for Server {
    fn describe(&self) -> Description {
        Description {
            abilities: Abilities {
                wireguard_port: true,
                meetings: true,
                relays: self.relay,
                records: true,
                mappings: false,
            },
            finds_peers: true,
            needs_private_key: true,
            servers: vec![self.endpoint.to_string()],
            secrets: self.admission.iter().cloned().collect(),
            node: self.keys.first().copied().filter(|_| self.is_node),
            relay_is_off: (!self.relay).then_some("remove relay = false there"),
            ..Description::default()
        }
    }
}

impl Runs for Server {
    fn plugin(&self, secrets: &Secrets) -> Box<dyn Discovery> {
        Box::new(Plugin::new(self.clone(), secrets.get(ADMISSION)))
    }
}
