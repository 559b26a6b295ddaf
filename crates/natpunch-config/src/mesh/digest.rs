//! What a mesh says, as one number: equal on all nodes that have the same mesh, wherever its files
//! lie.

use blake2::{Blake2s256, Digest as _};
use toml::{Table, Value};

use crate::report::source::Sources;

/// BLAKE2s of the merged files' keys and values. The order of keys and sections, comments, the way
/// that values are written, the names of the files and how the mesh is split into them make no
/// difference.
pub(crate) fn of(sources: &Sources) -> [u8; 32] {
    let mut merged = Table::new();
    for source in &sources.0 {
        // They were parsed before; one that can't be is in no valid mesh.
        merge(&mut merged, source.text.parse().unwrap_or_default());
    }
    let mut bytes = Vec::new();
    table(&merged, &mut bytes);
    Blake2s256::digest(&bytes).into()
}

/// Takes the keys of another file. None overrides another, so that arrays of sections are all that
/// can meet.
fn merge(into: &mut Table, from: Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Table(into)), Value::Table(from)) => merge(into, from),
            (Some(Value::Array(into)), Value::Array(from)) => into.extend(from),
            (_, value) => drop(into.insert(key, value)),
        }
    }
}

fn table(table: &Table, out: &mut Vec<u8>) {
    let mut keys: Vec<_> = table.iter().collect();
    keys.sort_by_key(|(key, _)| *key);
    out.push(b't');
    out.extend((keys.len() as u64).to_le_bytes());
    for (key, inner) in keys {
        text(key, out);
        value(inner, out);
    }
}

/// Every value begins with its kind and has its length in it, so that no two are written alike.
fn value(value: &Value, out: &mut Vec<u8>) {
    let mut tagged = |kind: u8, bytes: &[u8]| {
        out.push(kind);
        out.extend(bytes);
    };
    match value {
        Value::Integer(integer) => tagged(b'i', &integer.to_le_bytes()),
        Value::Float(float) => tagged(b'f', &float.to_bits().to_le_bytes()),
        Value::Boolean(boolean) => tagged(b'b', &[u8::from(*boolean)]),
        Value::String(string) => text(string, out),
        Value::Datetime(datetime) => text(&datetime.to_string(), out),
        Value::Table(inner) => table(inner, out),
        Value::Array(elements) => {
            let mut written: Vec<Vec<u8>> = elements
                .iter()
                .map(|element| {
                    let mut bytes = Vec::new();
                    self::value(element, &mut bytes);
                    bytes
                })
                .collect();
            // Sections of a list have no order; values may have one.
            if elements.iter().all(Value::is_table) {
                written.sort();
            }
            out.push(b'a');
            out.extend((written.len() as u64).to_le_bytes());
            out.extend(written.concat());
        }
    }
}

fn text(text: &str, out: &mut Vec<u8>) {
    out.push(b's');
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}
