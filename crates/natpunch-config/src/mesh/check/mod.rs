//! What must be true of a mesh as a whole: every error is found, each with its place.

mod discovery;
mod overlaps;
mod peers;
mod preshared;
mod relays;
mod sections;
mod serve;

use std::collections::BTreeSet;
use std::sync::Arc;

use super::model::MeshConfig;
use super::places::Places;
use crate::file::Parts;
use crate::file::forms::Word;
use crate::file::kind::Kind;
use crate::file::reader::{Field, Located};
use crate::report::error::ConfigError;
use crate::report::source::{Place, Sources};
use crate::report::wording::Suggestions;
use sections::{MeshSection, apply_config, punch_spec};
use serve::Server;

/// Checks the merged files and gives their meaning.
pub(crate) fn check(
    parts: Parts,
    kinds: &[Kind],
    may_be_empty: bool,
    sources: &Arc<Sources>,
    content_hash: [u8; 32],
    errors: &mut Vec<ConfigError>,
) -> Option<MeshConfig> {
    let Parts {
        raw,
        unusable,
        complete,
    } = parts;
    let mut check = Check {
        sources,
        complete,
        may_be_empty,
        kinds,
        unusable,
        errors,
        places: Places::default(),
        servers: vec![],
        relays: vec![],
        suggestions: Suggestions::default(),
    };
    let mesh = check.mesh(raw.mesh);
    let apply = raw
        .apply
        .map(|apply| apply_config(apply.value))
        .unwrap_or_default();
    let punch = raw
        .punch
        .map(|punch| punch_spec(punch.value))
        .unwrap_or_default();
    let hosts = raw
        .names
        .and_then(|names| names.value.hosts)
        .is_some_and(|hosts| hosts.value);
    let age_identity_file = raw
        .secrets
        .and_then(|secrets| secrets.value.identity_file)
        .map(|file| {
            check.places.age_identity_file = Some(file.place);
            check.resolve(file.place, &file.value.0)
        });
    let interface = check.defaults(raw.interface);
    // With a network that could not be read, nothing can be said to be outside of the networks; with
    // none at all, that has been said.
    let all_known = check.is_all_read("mesh.networks");
    let networks = mesh
        .as_ref()
        .map(|mesh| mesh.networks.as_slice())
        .filter(|networks| all_known && !networks.is_empty());
    let peers = check.peers(raw.peers, networks);
    let discovery = check.discovery(raw.discovery, &peers, &interface);
    let preshared_keys = check.preshared(raw.preshared);
    let stun_servers = raw.stun.and_then(|stun| stun.value.servers);
    let MeshSection {
        name,
        networks,
        generation,
        lans,
        preshared_secret,
        connect,
    } = mesh?;
    check.places.name = name.place;
    if hosts {
        check.public_names(&name);
    }
    if interface.name.is_none() {
        check.interface_name(&name);
    }
    Some(MeshConfig {
        name: name.value.0,
        networks: networks.iter().map(|network| network.value.0).collect(),
        generation,
        lans,
        preshared_secret,
        connect,
        age_identity_file,
        hosts,
        interface,
        apply,
        punch,
        discovery,
        stun_servers: values(stun_servers).map(|server| server.0).collect(),
        peers,
        preshared_keys,
        files: sources.0.iter().map(|source| source.path.clone()).collect(),
        content_hash,
        places: check.places,
        sources: Arc::clone(sources),
    })
}

struct Check<'a> {
    sources: &'a Sources,
    complete: bool,
    may_be_empty: bool,
    kinds: &'a [Kind],
    unusable: BTreeSet<String>,
    errors: &'a mut Vec<ConfigError>,
    places: Places,
    servers: Vec<Server>,
    /// The lists of relays that peers have.
    relays: Vec<Located<Vec<Located<Word>>>>,
    suggestions: Suggestions,
}

impl Check<'_> {
    fn missing(&mut self, place: Place, what: &str, label: &str, help: &str) {
        self.errors.push(
            ConfigError::at(place, format!("{what} is missing"))
                .label(label)
                .help(help),
        );
    }

    /// Whether nothing of a key stands in the files beyond what could be read.
    fn is_all_read(&self, key: &str) -> bool {
        self.complete && !self.unusable.contains(key)
    }

    /// A whole section is missing.
    fn missing_section(&mut self, section: &str, help: &str) {
        if let (true, Some(source)) = (self.is_all_read(section), self.sources.0.first()) {
            let message = format!("the section [{section}] is missing");
            self.errors
                .push(ConfigError::of(&source.path, message).help(help));
        }
    }
}

fn values<T>(field: Field<Vec<Located<T>>>) -> impl Iterator<Item = T> {
    field
        .map(|field| field.value)
        .unwrap_or_default()
        .into_iter()
        .map(|element| element.value)
}
