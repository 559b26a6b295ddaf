//! The JSON schema of the mesh file, from the structs that read it.

use schemars::generate::SchemaSettings;
use schemars::transform::{Transform, transform_subschemas};
use schemars::{JsonSchema as _, Schema, SchemaGenerator, json_schema};
use serde_json::Value;

use crate::file::kind::Kind;
use crate::file::raw::{RawDiscovery, RawFile};

/// The JSON schema (draft 2020-12) of the mesh file, or of one file of a directory: that one need
/// not hold every section, nor all of `[mesh]`, since the others may. `kinds` are the plugins that
/// it may name.
pub fn schema(one_of_several: bool, kinds: &[Kind]) -> Value {
    let mut generator = SchemaSettings::draft2020_12()
        .with_transform(ForToml)
        .into_generator();
    // The type's own definition knows no plugin. A generator makes each definition once, so this
    // one is made first and then replaced.
    generator.subschema_for::<RawDiscovery>();
    let discovery = discovery(kinds, &mut generator);
    let name = RawDiscovery::schema_name().into_owned();
    generator
        .definitions_mut()
        .insert(name, discovery.to_value());
    let mut schema = generator.into_root_schema_for::<RawFile>();
    schema.insert("title".to_owned(), "natpunch mesh".into());
    let mut schema = schema.to_value();
    if one_of_several {
        for section in ["", "/properties/mesh"] {
            let section = schema.pointer_mut(section).and_then(Value::as_object_mut);
            section.and_then(|section| section.remove("required"));
        }
    }
    schema
}

/// The schema of `[discovery.NAME]`: one form for each plugin.
fn discovery(kinds: &[Kind], generator: &mut SchemaGenerator) -> Schema {
    let forms: Vec<Schema> = kinds.iter().map(|kind| form(kind, generator)).collect();
    json_schema!({ "type": "object", "required": ["plugin"], "oneOf": forms })
}

fn form(kind: &Kind, generator: &mut SchemaGenerator) -> Schema {
    let mut schema = kind.schema(generator);
    let object = schema.ensure_object();
    let described = serde_json::json!({ "const": kind.id(), "description": "Which plugin." });
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

/// TOML has no null: a key is there or it is not. And the lines of a doc comment are those of the
/// source.
#[derive(Clone)]
struct ForToml;

impl Transform for ForToml {
    fn transform(&mut self, schema: &mut Schema) {
        if let Some(Value::String(description)) = schema.get_mut("description") {
            *description = description.replace('\n', " ");
        }
        if let Some(Value::Array(types)) = schema.get_mut("type") {
            types.retain(|kind| kind != "null");
            if let [only] = types.as_slice() {
                let only = only.clone();
                schema.insert("type".to_owned(), only);
            }
        }
        if let Some(Value::Array(forms)) = schema.get_mut("anyOf") {
            forms.retain(|form| form != &serde_json::json!({ "type": "null" }));
            if let [Value::Object(only)] = forms.as_mut_slice() {
                let only = std::mem::take(only);
                schema.remove("anyOf");
                for (key, value) in only {
                    schema.insert(key, value);
                }
            }
        }
        if schema.get("default").is_some_and(Value::is_null) {
            schema.remove("default");
        }
        transform_subschemas(self, schema);
    }
}
