//! The discovery sections: which plugin each names, and how its settings are read.

use natpunch_plugin_description::{AnyInstance, Flaw};
use schemars::Schema;
use toml_edit::{InlineTable, Item, TableLike, Value};

use super::forms::check_host_port;
use super::kind::{Kind, NotSettings};
use super::reader::{KeyPath, Reader, integer};
use crate::report::error::ConfigError;
use crate::report::source::Place;
use crate::report::wording::{Quoted, did_you_mean};

/// Reads `[discovery.NAME]`.
pub(crate) fn read(
    table: &dyn TableLike,
    place: Place,
    path: &KeyPath<'_>,
    reader: &mut Reader,
) -> Option<(&'static str, AnyInstance)> {
    let kinds = reader.kinds.clone();
    let ids: Vec<&str> = kinds.iter().map(Kind::id).collect();
    let Some(item) = table.get("plugin") else {
        let error = ConfigError::at(place, format!("`plugin` is missing in [{path}]"));
        reader.report(
            error
                .label("this section names no plugin")
                .help(format!("plugins: {}", ids.join(", "))),
        );
        return None;
    };
    let place_of_id = reader.place(item.span());
    let Some(id) = item.as_str() else {
        reader.wrong_type(
            item,
            place_of_id,
            &path.join("plugin"),
            "the name of a plugin",
        );
        return None;
    };
    let Some(kind) = kinds.iter().find(|kind| kind.id() == id) else {
        let error = ConfigError::at(place_of_id, format!("there is no plugin `{}`", Quoted(id)))
            .label("not a plugin");
        reader.report(match did_you_mean(id, &ids) {
            Some(best) => error.help(format!("did you mean \"{best}\"?")),
            None => error.help(format!("plugins: {}", ids.join(", "))),
        });
        return None;
    };
    let instance = settings(kind, table, place, path, reader)?;
    Some((kind.id(), instance))
}

/// Where the keys of a section stand, those of its tables as `TABLE.KEY`.
pub(crate) fn keys(section: &dyn TableLike, reader: &Reader) -> Vec<(String, Place)> {
    let mut places = Vec::new();
    for (key, item) in section.iter() {
        places.push((key.to_owned(), reader.key_place(section, key)));
        let Some(table) = item.as_table_like() else {
            continue;
        };
        for (inner, _) in table.iter() {
            places.push((format!("{key}.{inner}"), reader.key_place(table, inner)));
        }
    }
    places
}

/// Reads the settings of one plugin, keeping every error: serde stops at the first, so the key with
/// an error is taken out and the rest is tried again.
fn settings(
    kind: &Kind,
    table: &dyn TableLike,
    place: Place,
    path: &KeyPath<'_>,
    reader: &mut Reader,
) -> Option<AnyInstance> {
    let schema = kind.settings_schema();
    let (properties, required) = (names(&schema, "properties"), names(&schema, "required"));
    let known: Vec<&str> = std::iter::once("plugin")
        .chain(properties.iter().map(String::as_str))
        .collect();
    let errors_before = reader.errors.len();
    reader.unknown_keys(table, path, &known, &[]);
    for key in &required {
        reader.required(
            table,
            place,
            path,
            &known,
            (key, &format!("add a line: {key} = …")),
        );
    }

    let mut values = InlineTable::new();
    for key in &properties {
        let Some(value) = table
            .get(key)
            .cloned()
            .and_then(|item| item.into_value().ok())
        else {
            continue;
        };
        let path = path.join(key);
        if check_address(key, &value, &path, reader)
            && check_range(
                schema.pointer(&format!("/properties/{key}")),
                &value,
                &path,
                reader,
            )
        {
            values.insert(key, value);
        }
    }
    for _ in 0..=properties.len() {
        let error = match kind.read(values.clone()) {
            Ok(_) if reader.errors.len() > errors_before => return None,
            Ok(instance) => return Some(instance),
            Err(NotSettings::Flaws(flaws)) => {
                for flaw in flaws {
                    report(flaw, table, place, path, reader);
                }
                return None;
            }
            Err(NotSettings::Form(error)) => error,
        };
        let culprit = error.span().and_then(|span| {
            let holds = |value: &Value| {
                value
                    .span()
                    .is_some_and(|of| of.start <= span.start && span.end <= of.end)
            };
            values
                .iter()
                .find(|(_, value)| holds(value))
                .map(|(key, _)| (key.to_owned(), span))
        });
        match culprit {
            Some((key, span)) => {
                // serde's own words: "invalid type: integer `5`, expected a string".
                let (problem, expected) = error
                    .message()
                    .split_once(", expected ")
                    .unwrap_or((error.message(), ""));
                let message = format!("bad value of `{}`: {problem}", path.join(&key));
                let mut error = ConfigError::at(reader.place(Some(span)), message);
                if !expected.is_empty() {
                    error = error.label(format!(
                        "expected {}",
                        if is_unsigned(expected) {
                            "a whole number"
                        } else {
                            expected
                        }
                    ));
                }
                reader.report(error.help("docs/config.md has the settings of every plugin"));
                values.remove(&key);
            }
            // A required key is missing: reported above, or it was taken out.
            None if reader.errors.len() > errors_before => return None,
            None => {
                reader.report(ConfigError::at(
                    place,
                    format!("bad settings in [{path}]: {}", error.message()),
                ));
                return None;
            }
        }
    }
    None
}

/// The keys that a schema lists as `properties` or as `required`.
fn names(schema: &Schema, list: &str) -> Vec<String> {
    match schema.get(list) {
        Some(serde_json::Value::Object(object)) => object.keys().cloned().collect(),
        Some(serde_json::Value::Array(array)) => array
            .iter()
            .filter_map(|name| name.as_str().map(str::to_owned))
            .collect(),
        _ => Vec::new(),
    }
}

/// Reports what a plugin finds wrong with one of its settings, where that stands.
fn report(
    flaw: Flaw,
    table: &dyn TableLike,
    section: Place,
    path: &KeyPath<'_>,
    reader: &mut Reader,
) {
    let span = table.get(flaw.key).and_then(Item::span);
    let place = span.map_or(section, |span| reader.place(Some(span)));
    let message = format!("bad value of `{}`: {}", path.join(flaw.key), flaw.problem);
    let error = ConfigError::at(place, message);
    reader.report(error.label(flaw.expected).help(flaw.help));
}

fn is_unsigned(expected: &str) -> bool {
    matches!(expected, "u8" | "u16" | "u32" | "u64")
}

/// Checks the form of the settings that all plugins name alike; false if it was reported.
fn check_address(key: &str, value: &Value, path: &KeyPath<'_>, reader: &mut Reader) -> bool {
    let texts: Vec<&Value> = match (key, value) {
        ("server" | "servers" | "stun", Value::Array(array)) => array.iter().collect(),
        ("server" | "servers" | "stun", Value::String(_)) => vec![value],
        _ => Vec::new(),
    };
    let mut good = true;
    for value in texts {
        let Some(text) = value.as_str() else { continue };
        let place = reader.place(value.span());
        if let Err(flaw) = check_host_port(text) {
            let error = ConfigError::at(place, format!("bad value of `{path}`: {}", flaw.problem));
            reader.report(error.label("expected HOST:PORT").help(flaw.help));
            good = false;
        }
    }
    good
}

/// Checks a number against the bounds that the schema states; false if it was reported.
fn check_range(
    schema: Option<&serde_json::Value>,
    value: &Value,
    path: &KeyPath<'_>,
    reader: &mut Reader,
) -> bool {
    let bound = |key| {
        schema
            .and_then(|schema| schema.get(key))
            .and_then(serde_json::Value::as_i64)
    };
    let (Some(least), Some(most)) = (bound("minimum"), bound("maximum")) else {
        return true;
    };
    let place = reader.place(value.span());
    integer::<i64>(
        &Item::Value(value.clone()),
        place,
        path,
        reader,
        (least, most),
        "",
    )
    .is_some()
}
