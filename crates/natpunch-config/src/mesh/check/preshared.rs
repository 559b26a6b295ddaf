//! `[[preshared]]`: one key for a pair of peers.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::Check;
use crate::file::raw::RawPreshared;
use crate::file::reader::{Field, Located};
use crate::mesh::model::SecretSource;
use crate::report::error::ConfigError;
use crate::report::source::Place;
use crate::report::wording::Quoted;

impl Check<'_> {
    pub(super) fn preshared(
        &mut self,
        raw: Field<Vec<Located<RawPreshared>>>,
    ) -> BTreeMap<(String, String), SecretSource> {
        let mut seen: BTreeMap<(String, String), Place> = BTreeMap::new();
        let mut keys = BTreeMap::new();
        for section in raw.map(|raw| raw.value).unwrap_or_default() {
            let RawPreshared {
                peers,
                preshared_key_file,
                preshared_key_age,
            } = section.value;
            let key = self.secret("preshared_key", preshared_key_file, preshared_key_age);
            let Some(pair) = peers else { continue };
            let mut names: Vec<String> =
                pair.value.iter().map(|name| name.value.0.clone()).collect();
            names.sort();
            let [first, second] = names.as_slice() else {
                let error = ConfigError::at(pair.place, "a preshared key belongs to two peers")
                    .label("expected two names");
                self.errors
                    .push(error.help("write: peers = [\"laptop\", \"nas\"]"));
                continue;
            };
            if first == second {
                let error = ConfigError::at(pair.place, "a peer has no preshared key with itself")
                    .label("twice the same");
                self.errors.push(error.help("name two peers"));
                continue;
            }
            for name in &pair.value {
                if !self.places.peers.contains_key(&name.value.0)
                    && self.is_all_read(&format!("peers.{}", name.value.0))
                {
                    let known = self.places.peers.keys().map(String::as_str);
                    let best = self.suggestions.best(&name.value.0, known);
                    let message = format!("there is no peer `{}`", Quoted(&name.value.0));
                    let error =
                        ConfigError::at(name.place, message).label("not a peer of this mesh");
                    self.errors.push(match best {
                        Some(best) => error.help(format!("did you mean \"{best}\"?")),
                        None => error.help("name a peer as in its section [peers.NAME]"),
                    });
                }
            }
            let names = (first.clone(), second.clone());
            match seen.entry(names.clone()) {
                Entry::Occupied(earlier) => {
                    let message = format!(
                        "two preshared keys for `{}` and `{}`",
                        Quoted(first),
                        Quoted(second)
                    );
                    let error = ConfigError::at(pair.place, message).label("named again here");
                    self.errors.push(
                        error
                            .also(*earlier.get(), "first named here")
                            .help("remove one of the two"),
                    );
                }
                Entry::Vacant(entry) => {
                    entry.insert(pair.place);
                }
            }
            if let Some((key, place)) = key {
                if let SecretSource::File(path) = &key {
                    self.places
                        .preshared_key_files
                        .entry(path.clone())
                        .or_insert(place);
                }
                keys.insert(names, key);
            }
        }
        keys
    }
}
