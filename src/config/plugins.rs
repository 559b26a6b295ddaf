//! The settings of the built-in discovery plugins: which plugin has which, and how its section is
//! read.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{DeserializeOwned, IntoDeserializer as _};
use toml_edit::{InlineTable, Item, TableLike, Value};

use super::error::{ConfigError, Place};
use super::model::DiscoverySettings;
use super::read::{KeyPath, Quoted, Reader, did_you_mean, integer};
use super::value::check_host_port;

/// A plugin that this build has.
struct Plugin {
    id: &'static str,
    schema: fn(&mut SchemaGenerator) -> Schema,
    read: fn(&dyn TableLike, Place, &KeyPath<'_>, &mut Reader) -> Option<DiscoverySettings>,
}

const fn plugin<T: DeserializeOwned + JsonSchema>(
    id: &'static str,
    read: fn(&dyn TableLike, Place, &KeyPath<'_>, &mut Reader) -> Option<DiscoverySettings>,
) -> Plugin {
    Plugin {
        id,
        schema: T::json_schema,
        read,
    }
}

const PLUGINS: [Plugin; 5] = [
    plugin::<natpunch_plugin_static::Settings>("static", |table, place, path, reader| {
        settings(table, place, path, reader).map(DiscoverySettings::Static)
    }),
    plugin::<natpunch_plugin_rendezvous::Settings>("rendezvous", |table, place, path, reader| {
        settings(table, place, path, reader).map(DiscoverySettings::Rendezvous)
    }),
    plugin::<natpunch_plugin_natpunch_go::Settings>("natpunch-go", |table, place, path, reader| {
        settings(table, place, path, reader).map(DiscoverySettings::NatpunchGo)
    }),
    plugin::<natpunch_plugin_nat_hole_punching::Settings>(
        "nat-hole-punching",
        |table, place, path, reader| {
            settings(table, place, path, reader).map(DiscoverySettings::NatHolePunching)
        },
    ),
    plugin::<natpunch_plugin_http::Settings>("http", |table, place, path, reader| {
        settings(table, place, path, reader).map(DiscoverySettings::Http)
    }),
];

/// The schema of `[discovery.NAME]`: one form for each plugin.
pub(super) fn schema(generator: &mut SchemaGenerator) -> Schema {
    let forms: Vec<Schema> = PLUGINS
        .iter()
        .map(|plugin| form(plugin, generator))
        .collect();
    json_schema!({ "type": "object", "required": ["plugin"], "oneOf": forms })
}

fn form(plugin: &Plugin, generator: &mut SchemaGenerator) -> Schema {
    let mut schema = (plugin.schema)(generator);
    let object = schema.ensure_object();
    let described = serde_json::json!({ "const": plugin.id, "description": "Which plugin." });
    let properties = object
        .entry("properties")
        .or_insert_with(|| serde_json::json!({}));
    if let Some(properties) = properties.as_object_mut() {
        properties.insert("plugin".to_owned(), described);
    }
    let required = object
        .entry("required")
        .or_insert_with(|| serde_json::json!([]));
    if let Some(required) = required.as_array_mut() {
        required.insert(0, "plugin".into());
    }
    schema
}

/// Reads `[discovery.NAME]`.
pub(super) fn read(
    table: &dyn TableLike,
    place: Place,
    path: &KeyPath<'_>,
    reader: &mut Reader,
) -> Option<DiscoverySettings> {
    let ids = PLUGINS.map(|plugin| plugin.id);
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
    let Some(plugin) = PLUGINS.iter().find(|plugin| plugin.id == id) else {
        let error = ConfigError::at(place_of_id, format!("there is no plugin `{}`", Quoted(id)))
            .label("not a plugin");
        reader.report(match did_you_mean(id, &ids) {
            Some(best) => error.help(format!("did you mean \"{best}\"?")),
            None => error.help(format!("plugins: {}", ids.join(", "))),
        });
        return None;
    };
    (plugin.read)(table, place, path, reader)
}

/// Reads the settings of one plugin, keeping every error: serde stops at the first, so the key with
/// an error is taken out and the rest is tried again.
fn settings<T: DeserializeOwned + JsonSchema>(
    table: &dyn TableLike,
    place: Place,
    path: &KeyPath<'_>,
    reader: &mut Reader,
) -> Option<T> {
    let schema = T::json_schema(&mut SchemaGenerator::default());
    let names = |key: &str| -> Vec<String> {
        match schema.get(key) {
            Some(serde_json::Value::Object(object)) => object.keys().cloned().collect(),
            Some(serde_json::Value::Array(array)) => array
                .iter()
                .filter_map(|name| name.as_str().map(str::to_owned))
                .collect(),
            _ => Vec::new(),
        }
    };
    let (properties, required) = (names("properties"), names("required"));
    let known: Vec<&str> = std::iter::once("plugin")
        .chain(properties.iter().map(String::as_str))
        .collect();
    let errors_before = reader.errors.len();
    reader.unknown_keys(table, path, &known);
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
        let error = match T::deserialize(Value::InlineTable(values.clone()).into_deserializer()) {
            Ok(settings) => return (reader.errors.len() == errors_before).then_some(settings),
            Err(error) => error,
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

fn is_unsigned(expected: &str) -> bool {
    matches!(expected, "u8" | "u16" | "u32" | "u64")
}

/// Checks the form of the settings that all plugins name alike; false if it was reported.
fn check_address(key: &str, value: &Value, path: &KeyPath<'_>, reader: &mut Reader) -> bool {
    let texts: Vec<&Value> = match (key, value) {
        ("server" | "servers" | "stun", Value::Array(array)) => array.iter().collect(),
        ("server" | "servers" | "stun" | "url", Value::String(_)) => vec![value],
        _ => Vec::new(),
    };
    let mut good = true;
    for value in texts {
        let Some(text) = value.as_str() else { continue };
        let place = reader.place(value.span());
        if key == "url" {
            if !["http://", "https://"].iter().any(|scheme| {
                text.strip_prefix(scheme)
                    .is_some_and(|rest| !rest.is_empty())
            }) {
                let error = ConfigError::at(
                    place,
                    format!("bad value of `{path}`: this is not a web address"),
                );
                reader.report(
                    error
                        .label("expected a URL")
                        .help("write it like \"https://rv.example.org/v1\""),
                );
                good = false;
            }
        } else if let Err(flaw) = check_host_port(text) {
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
