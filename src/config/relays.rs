//! The relays that a peer names: `relays` in `[peers.NAME]`.

use std::collections::{BTreeMap, BTreeSet};

use super::error::{ConfigError, Place};
use super::model::{Discovery, DiscoverySettings};
use super::read::{Located, Quoted, did_you_mean};
use super::value::Word;

/// What the lists of a mesh may name.
pub(super) struct Known<'a> {
    /// The discovery instances of the file, and where each stands.
    pub(super) instances: &'a [Discovery],
    pub(super) places: &'a BTreeMap<String, Place>,
    /// The peers that serve.
    pub(super) servers: BTreeSet<&'a str>,
    /// All peers, and where each stands.
    pub(super) peers: &'a BTreeMap<String, Place>,
}

/// Whether an instance of the file relays, as far as its settings tell.
pub(super) fn relays(settings: &DiscoverySettings) -> bool {
    match settings {
        DiscoverySettings::Node(_) => true,
        DiscoverySettings::Rendezvous(settings) => settings.relay,
        _ => false,
    }
}

impl Known<'_> {
    /// Checks the list of one peer. `unread`: whether a section of this name is there that could
    /// not be read.
    pub(super) fn check(
        &self,
        list: &Located<Vec<Located<Word>>>,
        unread: impl Fn(&str) -> bool,
        errors: &mut Vec<ConfigError>,
    ) {
        let mut seen: BTreeMap<&str, Place> = BTreeMap::new();
        for word in &list.value {
            let name = word.value.0.as_str();
            if let Some(first) = seen.insert(name, word.place) {
                let error = ConfigError::at(
                    word.place,
                    format!("the relay `{}` is named twice", Quoted(name)),
                );
                let error = error
                    .label("named again here")
                    .also(first, "first named here");
                errors.push(error.help("remove one of the two"));
            } else if !unread(name) {
                errors.extend(self.flaw(name, word.place));
            }
        }
    }

    /// What is wrong with a name.
    fn flaw(&self, name: &str, place: Place) -> Option<ConfigError> {
        if self.servers.contains(name) {
            return None;
        }
        let none = ConfigError::at(place, format!("`{}` is no relay", Quoted(name)));
        if let Some(instance) = self.instances.iter().find(|instance| instance.name == name) {
            let there = self.places.get(name).copied().unwrap_or_default();
            let help = match &instance.settings {
                settings if relays(settings) => return None,
                DiscoverySettings::Rendezvous(_) => {
                    "remove relay = false there, or don't name it here"
                }
                _ => {
                    "only a server of the plugin `rendezvous` relays, and a peer with serve = true"
                }
            };
            return Some(
                none.label("does not relay")
                    .also(there, "this one")
                    .help(help),
            );
        }
        if let Some(there) = self.peers.get(name) {
            let help = "add serve = true there, or don't name it here";
            return Some(
                none.label("does not serve")
                    .also(*there, "this one")
                    .help(help),
            );
        }
        let named = self
            .instances
            .iter()
            .filter(|instance| relays(&instance.settings));
        let known: Vec<&str> = named
            .map(|instance| instance.name.as_str())
            .chain(self.servers.iter().copied())
            .collect();
        let error = ConfigError::at(place, format!("there is no relay `{}`", Quoted(name)))
            .label("neither a [discovery.NAME] nor a peer");
        Some(match did_you_mean(name, &known) {
            Some(best) => error.help(format!("did you mean \"{best}\"?")),
            None => error.help(
                "name a [discovery.NAME] with plugin = \"rendezvous\", or a peer with serve = true",
            ),
        })
    }
}
