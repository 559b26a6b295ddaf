use natpunch_plugin::{Abilities, Description, Discovery, Flaw, Instance, Runs, Secrets};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::Plugin;

/// `[discovery.NAME]` with `plugin = "gossip"`. It has no settings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {}

/// The peers of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peers;

impl natpunch_plugin::Settings for Settings {
    const PLUGIN: &'static str = "gossip";
    const ABOUT: &'static str = "peers that still have a path help others to find each other";
    const ABILITIES: Abilities = Abilities {
        records: true,
        peer_messages: true,
        ..Abilities::NONE
    };
    type Instance = Peers;

    fn check(self) -> Result<Peers, Vec<Flaw>> {
        Ok(Peers)
    }
}

impl Instance for Peers {
    fn describe(&self) -> Description {
        Description {
            abilities: <Settings as natpunch_plugin::Settings>::ABILITIES,
            finds_peers: true,
            ..Description::default()
        }
    }
}

impl Runs for Peers {
    fn plugin(&self, _: &Secrets) -> Box<dyn Discovery> {
        Box::new(Plugin)
    }
}
