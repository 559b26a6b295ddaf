use natpunch_plugin::{
    Abilities, Description, Discovery, Endpoint, Flaw, Instance, Runs, Secrets, check_server,
    check_server_key,
};
use natpunch_types::PeerKey;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::Plugin;

/// The settings of a `[discovery.NAME]` section with `plugin = "natpunch-go"`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Where the server is: `HOST:PORT`.
    pub server: String,
    /// The server's public key in base64, as it prints it at its start.
    #[schemars(with = "String")]
    pub public_key: PeerKey,
}

/// A natpunch-go server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    pub(crate) endpoint: Endpoint,
    pub(crate) public_key: PeerKey,
}

impl natpunch_plugin::Settings for Settings {
    const PLUGIN: &'static str = "natpunch-go";
    const ABOUT: &'static str = "a server of natpunch-go";
    const ABILITIES: Abilities = Abilities {
        wireguard_port: true,
        ..Abilities::NONE
    };
    type Instance = Server;

    fn check(self) -> Result<Server, Vec<Flaw>> {
        let public_key = self.public_key;
        let key = check_server_key("public_key", &public_key);
        match (check_server("server", &self.server), key) {
            (Ok(endpoint), Ok(())) => Ok(Server {
                endpoint,
                public_key,
            }),
            (server, key) => Err([server.err(), key.err()].into_iter().flatten().collect()),
        }
    }
}

impl Instance for Server {
    fn describe(&self) -> Description {
        Description {
            abilities: Abilities {
                wireguard_port: true,
                ..Abilities::default()
            },
            finds_peers: true,
            needs_private_key: true,
            servers: vec![self.endpoint.to_string()],
            ..Description::default()
        }
    }
}

impl Runs for Server {
    fn plugin(&self, _: &Secrets) -> Box<dyn Discovery> {
        Box::new(Plugin::new(self.clone()))
    }
}
