//! Every example is a mesh that can be used, and the schema knows every key in it.

use std::fs;
use std::path::PathBuf;

use natpunch::config;
use serde_json::Value;

use crate::support::root;

/// The meshes among the examples: files, and directories of files.
fn examples() -> Vec<PathBuf> {
    let mut meshes: Vec<PathBuf> = fs::read_dir(root().join("examples/configs"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    meshes.sort();
    assert!(meshes.len() >= 5, "{meshes:?}");
    meshes
}

#[test]
fn every_example_is_valid_for_every_node_and_free_of_warnings() {
    for path in examples() {
        let mesh = config::load(&path).unwrap_or_else(|errors| panic!("{errors}"));
        assert!(mesh.peers.len() >= 2, "{}", path.display());
        if let Some(warnings) = config::lint(&mesh) {
            panic!("{warnings}");
        }
    }
}

#[test]
fn the_schema_knows_every_key_of_every_example() {
    let schema = config::schema(false);
    for path in examples() {
        let files = if path.is_dir() {
            fs::read_dir(&path)
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .collect()
        } else {
            vec![path]
        };
        for file in files {
            let document: Value = toml::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
            accepts(&schema, &schema, &document, "")
                .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        }
    }
}

#[test]
fn a_file_of_a_directory_need_not_hold_what_the_others_hold() {
    let required = |one_of_several: bool, section: &str| {
        let schema = config::schema(one_of_several);
        let section = schema.pointer(section).unwrap();
        assert_eq!(section["type"], "object");
        section["required"].as_array().map_or(0, Vec::len)
    };
    for section in ["", "/properties/mesh"] {
        assert_eq!(
            (required(false, section), required(true, section)),
            (2, 0),
            "{section}"
        );
    }
    // A peer is whole in its file.
    assert_eq!(required(true, "/$defs/Peer"), 2);
}

#[test]
fn the_schema_refuses_what_the_parser_refuses() {
    let schema = config::schema(false);
    for wrong in [
        "[mesh]\nnmae = 'x'",
        "[interface]\nmtu = '1380'",
        "[interface]\nmtu = 10",
        "[discovery.x]\nplugin = 'static'\nserver = 'a:1'",
        "[discovery.x]\nplugin = 'nothing'",
        "[peers.a]\naddresses = '10.0.0.1'",
        "[peers.a.interface]\nbackend = 'kernal'",
        "preshared = [{ peer = ['a', 'b'] }]",
    ] {
        let document: Value = toml::from_str(wrong).unwrap();
        assert!(accepts(&schema, &schema, &document, "").is_err(), "{wrong}");
    }
}

/// As much of JSON schema as the mesh file's uses, apart from `pattern`, `format` and `required` of
/// the root (a file may be one of several).
fn accepts(root: &Value, schema: &Value, value: &Value, path: &str) -> Result<(), String> {
    if let Some(reference) = schema["$ref"].as_str() {
        let target = root
            .pointer(reference.trim_start_matches('#'))
            .ok_or(format!("{path}: no {reference}"))?;
        accepts(root, target, value, path)?;
    }
    if let Some(forms) = schema["oneOf"].as_array() {
        let fitting = forms
            .iter()
            .filter(|form| accepts(root, form, value, path).is_ok())
            .count();
        if fitting != 1 {
            return Err(format!("{path}: {fitting} forms fit {value}"));
        }
    }
    if let Some(only) = schema.get("const")
        && only != value
    {
        return Err(format!("{path}: {value} is not {only}"));
    }
    let fits = match schema["type"].as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("integer") => value.is_i64(),
        Some("boolean") => value.is_boolean(),
        None => true,
        Some(other) => return Err(format!("{path}: type {other} is not known")),
    };
    if !fits {
        return Err(format!("{path}: {value} is no {}", schema["type"]));
    }
    if let Some(number) = value.as_i64() {
        let inside = schema["minimum"]
            .as_i64()
            .is_none_or(|least| least <= number)
            && schema["maximum"].as_i64().is_none_or(|most| number <= most);
        if !inside {
            return Err(format!("{path}: {number} is out of range"));
        }
    }
    if let (Some(object), Some("object")) = (value.as_object(), schema["type"].as_str()) {
        for (key, value) in object {
            let path = format!("{path}.{key}");
            match (&schema["properties"][key], &schema["additionalProperties"]) {
                (Value::Null, Value::Bool(false)) => return Err(format!("{path}: unknown key")),
                (Value::Null, Value::Null) => {}
                (Value::Null, every) => accepts(root, every, value, &path)?,
                (known, _) => accepts(root, known, value, &path)?,
            }
        }
        for key in schema["required"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
        {
            if !path.is_empty() && !object.contains_key(key) {
                return Err(format!("{path}.{key}: missing"));
            }
        }
    }
    for element in value.as_array().into_iter().flatten() {
        accepts(root, &schema["items"], element, path)?;
    }
    Ok(())
}
