use natpunch_plugin::{Abilities, Description, Discovery, Flaw, Instance, Runs, Secrets};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::Plugin;

/// The settings of a `[discovery.NAME]` section with `plugin = "port-mapping"`. There are none, and
/// the section need not be written: `port_mapping` in `[interface]` says which nodes use it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {}

/// The router of the network that this node is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnRouter;

impl natpunch_plugin::Settings for Settings {
    const PLUGIN: &'static str = "port-mapping";
    const ABOUT: &'static str = "a port that this node's router opens (PCP, NAT-PMP, UPnP)";
    const ABILITIES: Abilities = Abilities {
        mappings: true,
        ..Abilities::NONE
    };
    type Instance = OwnRouter;

    fn check(self) -> Result<OwnRouter, Vec<Flaw>> {
        Ok(OwnRouter)
    }

    fn implied() -> Option<OwnRouter> {
        Some(OwnRouter)
    }
}

impl Instance for OwnRouter {
    fn describe(&self) -> Description {
        Description {
            abilities: <Settings as natpunch_plugin::Settings>::ABILITIES,
            asks_router: true,
            // What a mapping is renewed by is derived from it.
            needs_private_key: true,
            ..Description::default()
        }
    }
}

impl Runs for OwnRouter {
    fn plugin(&self, _: &Secrets) -> Box<dyn Discovery> {
        Box::new(Plugin)
    }
}
