use std::time::Duration;

use natpunch_plugin::{
    Abilities, Description, Discovery, Flaw, Instance, Runs, Secrets, check_seconds,
};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::Plugin;

/// The settings of a `[discovery.NAME]` section with `plugin = "static"`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Seconds between two looks at what a host name stands for.
    #[schemars(range(min = 1, max = 86400))]
    pub resolve_interval: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            resolve_interval: 60,
        }
    }
}

/// The endpoints of the mesh file, looked up this often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoints {
    pub(crate) interval: Duration,
}

impl natpunch_plugin::Settings for Settings {
    const PLUGIN: &'static str = "static";
    const ABOUT: &'static str = "the endpoints in the mesh file";
    const ABILITIES: Abilities = Abilities::NONE;
    type Instance = Endpoints;

    fn check(self) -> Result<Endpoints, Vec<Flaw>> {
        let range = (1..=86_400, "expected 1 to 86400 seconds");
        let interval = self.resolve_interval.into();
        match check_seconds("resolve_interval", interval, range, 60) {
            Ok(interval) => Ok(Endpoints { interval }),
            Err(flaw) => Err(vec![flaw]),
        }
    }

    fn implied() -> Option<Endpoints> {
        Self::default().check().ok()
    }
}

impl Instance for Endpoints {
    fn describe(&self) -> Description {
        Description {
            offers_endpoints: true,
            ..Description::default()
        }
    }
}

impl Runs for Endpoints {
    fn plugin(&self, _: &Secrets) -> Box<dyn Discovery> {
        Box::new(Plugin::new(self.clone()))
    }
}
