//! From the sections of each file to those of the mesh: none overrides another.

use super::raw::{Named, RawFile};
use super::reader::{Field, Section};
use crate::report::error::ConfigError;
use crate::report::source::Place;

/// Takes the sections of one more file. What two files both define is an error.
pub(crate) fn merge(into: &mut RawFile, from: RawFile, errors: &mut Vec<ConfigError>) {
    merge_section("mesh", &mut into.mesh, from.mesh, errors);
    merge_section("stun", &mut into.stun, from.stun, errors);
    merge_section("names", &mut into.names, from.names, errors);
    merge_section("secrets", &mut into.secrets, from.secrets, errors);
    merge_section("apply", &mut into.apply, from.apply, errors);
    merge_section("punch", &mut into.punch, from.punch, errors);
    merge_section("interface", &mut into.interface, from.interface, errors);
    merge_named(&mut into.discovery, from.discovery);
    merge_named(&mut into.peers, from.peers);
    match (&mut into.preshared, from.preshared) {
        (Some(into), Some(from)) => into.value.extend(from.value),
        (into @ None, from) => *into = from,
        (Some(_), None) => {}
    }
}

fn merge_named<T>(into: &mut Field<Named<T>>, from: Field<Named<T>>) {
    match (into, from) {
        // Names that are there twice are found by the validation, which sees all of them.
        (Some(into), Some(from)) => into.value.0.extend(from.value.0),
        (into @ None, from) => *into = from,
        (Some(_), None) => {}
    }
}

fn merge_section<T: Section>(
    name: &str,
    into: &mut Field<T>,
    from: Field<T>,
    errors: &mut Vec<ConfigError>,
) {
    match (into, from) {
        (Some(into), Some(from)) => into.value.merge(from.value, &mut |key, second, first| {
            errors.push(twice(&format!("{name}.{key}"), second, first));
        }),
        (into @ None, from) => *into = from,
        (Some(_), None) => {}
    }
}

/// The error of a key that is defined twice.
pub(crate) fn twice(what: &str, second: Place, first: Place) -> ConfigError {
    ConfigError::at(second, format!("`{what}` is defined twice"))
        .label("defined again here")
        .also(first, "first defined here")
        .help("remove one of the two: files of a directory are merged, none overrides another")
}
