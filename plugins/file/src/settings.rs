//! The settings, and what is to be known of an instance.

use std::path::PathBuf;
use std::time::Duration;

use natpunch_plugin::{
    Abilities, Description, Discovery, Flaw, Instance, Runs, Secrets, check_seconds, check_stun,
};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::Plugin;

/// `[discovery.NAME]` with `plugin = "file"`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The directory that all nodes see, by NFS, Syncthing or a repository that something else
    /// keeps in step. Each node keeps one file in it.
    pub directory: PathBuf,
    /// Seconds between two looks at the directory.
    #[serde(default = "default_interval")]
    #[schemars(range(min = 1, max = 3600))]
    pub interval: u64,
    /// STUN servers, `HOST:PORT`, that tell this node its address as the internet sees it. A
    /// directory can't. `natpunch serve` answers STUN on its UDP port.
    #[serde(default)]
    pub stun: Vec<String>,
}

fn default_interval() -> u64 {
    2
}

/// A directory of records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shared {
    pub(crate) directory: PathBuf,
    pub(crate) interval: Duration,
    stun: Vec<String>,
}

impl natpunch_plugin::Settings for Settings {
    const PLUGIN: &'static str = "file";
    const ABOUT: &'static str = "records in a directory that all nodes see";
    const ABILITIES: Abilities = Abilities {
        records: true,
        ..Abilities::NONE
    };
    type Instance = Shared;

    fn check(self) -> Result<Shared, Vec<Flaw>> {
        let mut flaws = check_stun(&self.stun);
        let range = (1..=3_600, "expected 1 to 3600 seconds");
        flaws.extend(check_seconds("interval", self.interval, range, 2).err());
        let has_nul = self.directory.as_os_str().as_encoded_bytes().contains(&0);
        if !self.directory.is_absolute() || self.directory.parent().is_none() || has_nul {
            flaws.push(Flaw {
                key: "directory",
                problem: "this is not the path of a directory from the root on".to_owned(),
                expected: "expected an absolute path",
                help: "write it like \"/srv/natpunch-records\"".to_owned(),
            });
        }
        if !flaws.is_empty() {
            return Err(flaws);
        }
        Ok(Shared {
            directory: self.directory,
            interval: Duration::from_secs(self.interval),
            stun: self.stun,
        })
    }
}

impl Instance for Shared {
    fn describe(&self) -> Description {
        Description {
            abilities: <Settings as natpunch_plugin::Settings>::ABILITIES,
            finds_peers: true,
            stun: self.stun.clone(),
            ..Description::default()
        }
    }
}

impl Runs for Shared {
    fn plugin(&self, _: &Secrets) -> Box<dyn Discovery> {
        Box::new(Plugin::new(self.clone()))
    }
}
