//! docs/config.md is written from the schema, which is written from the structs that read the file.

use std::fmt::Write as _;

use natpunch::config;
use serde_json::Value;

use crate::support::{matches_snapshot, root};

const INTRODUCTION: &str = include_str!("reference-introduction.md");

#[test]
fn the_reference_is_that_of_this_version() {
    matches_snapshot(
        &root().join("docs/config.md"),
        &reference(&config::schema(false)),
    )
    .unwrap();
}

fn reference(schema: &Value) -> String {
    let mut text = INTRODUCTION.to_owned();
    for (title, key) in [
        ("[mesh]", "mesh"),
        ("[interface] and [peers.NAME.interface]", "interface"),
        ("[peers.NAME]", "peers"),
        ("[apply]", "apply"),
        ("[punch]", "punch"),
        ("[[preshared]]", "preshared"),
        ("[secrets]", "secrets"),
        ("[names]", "names"),
        ("[stun]", "stun"),
    ] {
        let property = &schema["properties"][key];
        let section = match property["type"].as_str() {
            Some("object") if !property["properties"].is_null() => property,
            Some("object") => resolve(schema, &property["additionalProperties"]),
            Some("array") => resolve(schema, &property["items"]),
            _ => resolve(schema, property),
        };
        section_table(&mut text, schema, title, text_of(property), section);
    }
    writeln!(
        text,
        "\n## `[discovery.NAME]`\n\n{}",
        text_of(&schema["properties"]["discovery"])
    )
    .unwrap();
    let forms = resolve(
        schema,
        &schema["properties"]["discovery"]["additionalProperties"],
    )["oneOf"]
        .as_array()
        .unwrap();
    for form in forms {
        let plugin = form["properties"]["plugin"]["const"].as_str().unwrap();
        writeln!(text, "\n### `plugin = \"{plugin}\"`\n").unwrap();
        keys_table(&mut text, schema, form);
    }
    text
}

fn section_table(
    text: &mut String,
    schema: &Value,
    title: &str,
    description: &str,
    section: &Value,
) {
    writeln!(
        text,
        "\n## `{}`\n\n{description}\n",
        title.replace(" and ", "` and `")
    )
    .unwrap();
    keys_table(text, schema, section);
}

fn keys_table(text: &mut String, schema: &Value, section: &Value) {
    let required: Vec<&str> = section["required"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|key| key.as_str().unwrap())
        .collect();
    writeln!(text, "| key | value | meaning |\n|---|---|---|").unwrap();
    for (key, property) in section["properties"].as_object().unwrap() {
        if key == "plugin" {
            continue;
        }
        let needed = if required.contains(&key.as_str()) {
            " Required."
        } else {
            ""
        };
        let default = match &property["default"] {
            Value::Null => String::new(),
            default => format!(" Default: `{default}`."),
        };
        let meaning = text_of(property).replace('|', "\\|");
        assert!(!meaning.is_empty(), "{key} is not documented");
        writeln!(
            text,
            "| `{key}` | {} | {meaning}{default}{needed} |",
            kind(schema, property)
        )
        .unwrap();
    }
}

fn text_of(property: &Value) -> &str {
    property["description"].as_str().unwrap_or_default()
}

fn resolve<'a>(schema: &'a Value, part: &'a Value) -> &'a Value {
    match part["$ref"].as_str() {
        Some(reference) => schema.pointer(reference.trim_start_matches('#')).unwrap(),
        None => part,
    }
}

fn kind(schema: &Value, property: &Value) -> String {
    let part = resolve(schema, property);
    if let Some(forms) = part["oneOf"].as_array() {
        let words = |form: &Value| match &form["const"] {
            Value::Null => kind(schema, form),
            word => format!("`{word}`"),
        };
        return forms.iter().map(words).collect::<Vec<_>>().join(", ");
    }
    match part["type"].as_str().unwrap() {
        "array" => format!("array of {}s", kind(schema, &part["items"])),
        "integer" => match (part["minimum"].as_i64(), part["maximum"].as_i64()) {
            (Some(least), Some(most)) => format!("integer, {least} to {most}"),
            _ => "integer".to_owned(),
        },
        "object" => "table".to_owned(),
        other => other.to_owned(),
    }
}
