//! What is allowed in a mesh, but likely not meant.

mod networks;
mod notes;
mod reach;
mod secrets;
mod settings;

use std::sync::Arc;

use crate::mesh::model::MeshConfig;
use crate::report::error::{ConfigError, ConfigErrors};
use crate::report::source::Place;

/// A rule adds its findings.
type Rule = fn(&MeshConfig, &mut Vec<ConfigError>);

const WARNINGS: [Rule; 11] = [
    reach::connectivity,
    reach::never_woken,
    reach::no_relay,
    reach::no_shared_relay,
    reach::exit_nodes,
    settings::sections,
    settings::settings,
    networks::routes,
    networks::endpoints,
    secrets::private_keys,
    secrets::foreign_recipients,
];

const NOTES: [Rule; 5] = [
    notes::unreachable_pairs,
    notes::forwarded_ports,
    notes::public_names,
    notes::exit_families,
    notes::carrier_nats,
];

/// Looks for what is allowed but likely not meant; `None` if there is nothing.
pub fn lint(mesh: &MeshConfig) -> Option<ConfigErrors> {
    findings(&WARNINGS, mesh)
}

/// What is worth to know, and often meant, such as pairs that will not connect by themselves as far
/// as the file tells; `None` if there is nothing.
pub fn notes(mesh: &MeshConfig) -> Option<ConfigErrors> {
    findings(&NOTES, mesh)
}

fn findings(rules: &[Rule], mesh: &MeshConfig) -> Option<ConfigErrors> {
    let mut findings = Vec::new();
    for rule in rules {
        rule(mesh, &mut findings);
    }
    (!findings.is_empty()).then(|| ConfigErrors::new(findings, Arc::clone(&mesh.sources)))
}

fn place(mesh: &MeshConfig, peer: &str) -> Place {
    mesh.places.peers.get(peer).copied().unwrap_or_default()
}
