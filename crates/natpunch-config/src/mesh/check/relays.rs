//! The relays that a peer names: `relays` in `[peers.NAME]`.

use std::collections::{BTreeMap, BTreeSet};

use crate::file::forms::Word;
use crate::file::reader::Located;
use crate::mesh::model::Discovery;
use crate::report::error::ConfigError;
use crate::report::source::Place;
use crate::report::wording::{Quoted, Suggestions};

/// Most relays in the list of one peer. Every pair gets a list of its own out of those of its two
/// peers, so long ones would cost their length times the number of peers.
const MOST_RELAYS: usize = 64;

/// What the lists of a mesh may name.
pub(super) struct Known<'a> {
    /// The discovery instances of the file, and where each stands.
    instances: BTreeMap<&'a str, &'a Discovery>,
    places: &'a BTreeMap<String, Place>,
    /// The peers that serve.
    servers: BTreeSet<&'a str>,
    /// All peers, and where each stands.
    peers: &'a BTreeMap<String, Place>,
    /// The names of all relays, for suggestions.
    relays: Vec<&'a str>,
}

impl<'a> Known<'a> {
    pub(super) fn new(
        instances: &'a [Discovery],
        places: &'a BTreeMap<String, Place>,
        servers: BTreeSet<&'a str>,
        peers: &'a BTreeMap<String, Place>,
    ) -> Self {
        let named = |instance: &'a Discovery| (instance.name.as_str(), instance);
        let relaying = instances.iter().filter(|one| one.about.abilities.relays);
        let names = relaying.map(|instance| instance.name.as_str());
        Self {
            instances: instances.iter().map(named).collect(),
            places,
            relays: names.chain(servers.iter().copied()).collect(),
            servers,
            peers,
        }
    }

    /// Checks the list of one peer. `unread`: whether a section of this name is there that could
    /// not be read.
    pub(super) fn check(
        &self,
        list: &Located<Vec<Located<Word>>>,
        unread: impl Fn(&str) -> bool,
        suggestions: &mut Suggestions,
        errors: &mut Vec<ConfigError>,
    ) {
        if list.value.len() > MOST_RELAYS {
            let message = format!("a list of {} relays", list.value.len());
            let error = ConfigError::at(list.place, message)
                .label(format!("expected {MOST_RELAYS} at most"));
            let help = "name those that shall be used first; without a list any may be used";
            errors.push(error.help(help));
            return;
        }
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
                errors.extend(self.flaw(name, word.place, suggestions));
            }
        }
    }

    /// What is wrong with a name.
    fn flaw(&self, name: &str, place: Place, suggestions: &mut Suggestions) -> Option<ConfigError> {
        if self.servers.contains(name) {
            return None;
        }
        let none = ConfigError::at(place, format!("`{}` is not a relay", Quoted(name)));
        if let Some(instance) = self.instances.get(name) {
            let there = self.places.get(name).copied().unwrap_or_default();
            if instance.about.abilities.relays {
                return None;
            }
            let help = match instance.about.relay_is_off {
                Some(switch) => format!("{switch}, or don't name it here"),
                None => {
                    "only a server of the plugin `rendezvous` relays, and a peer with serve = true"
                        .to_owned()
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
        let error = ConfigError::at(place, format!("there is no relay `{}`", Quoted(name)))
            .label("neither a [discovery.NAME] nor a peer");
        Some(match suggestions.best(name, self.relays.iter().copied()) {
            Some(best) => error.help(format!("did you mean \"{best}\"?")),
            None => error.help(
                "name a [discovery.NAME] with plugin = \"rendezvous\", or a peer with serve = true",
            ),
        })
    }
}
