use std::net::IpAddr;

use natpunch_plugin::{
    Abilities, Description, Discovery, Endpoint, Flaw, Instance, Runs, Secrets, check_server,
};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::Plugin;

/// The settings of a `[discovery.NAME]` section with `plugin = "nat-hole-punching"`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Where the server is: `HOST:PORT`. WireGuard's example listens on port 49918.
    pub server: String,
}

/// A server of WireGuard's nat-hole-punching example.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server(pub(crate) Endpoint);

impl natpunch_plugin::Settings for Settings {
    const PLUGIN: &'static str = "nat-hole-punching";
    const ABOUT: &'static str = "a server of nat-hole-punching";
    const ABILITIES: Abilities = Abilities {
        wireguard_port: true,
        ..Abilities::NONE
    };
    type Instance = Server;

    fn check(self) -> Result<Server, Vec<Flaw>> {
        let server = check_server("server", &self.server).map_err(|flaw| vec![flaw])?;
        if matches!(server.host.parse(), Ok(IpAddr::V6(_))) {
            return Err(vec![Flaw {
                key: "server",
                problem: "this protocol knows only IPv4".to_owned(),
                expected: "expected IPv4",
                help: "give the server's IPv4 address or its name".to_owned(),
            }]);
        }
        Ok(Server(server))
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
            servers: vec![self.0.to_string()],
            ..Description::default()
        }
    }
}

impl Runs for Server {
    fn plugin(&self, _: &Secrets) -> Box<dyn Discovery> {
        Box::new(Plugin::new(self.clone()))
    }
}
