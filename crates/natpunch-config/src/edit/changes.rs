//! Changes of a peer that is there: a value, a name. Spaces and comments around them stay.

use toml_edit::{DocumentMut, InlineTable, Item, Key, Table, TableLike, Value};

/// Why a change can't be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CannotChange(pub(super) String);

/// Sets a key of a peer, such as `endpoint` or `interface.listen_port`; `None` removes it.
pub(super) fn set(
    document: &mut DocumentMut,
    peer: &str,
    path: &str,
    value: Option<Value>,
) -> Result<(), CannotChange> {
    let mut place = peers(document)
        .and_then(|peers| peers.get_mut(peer))
        .and_then(Item::as_table_like_mut)
        .ok_or_else(|| CannotChange(format!("`{peer}` is not a section of this file")))?;
    let mut parts = path.split('.').peekable();
    while let Some(part) = parts.next() {
        if part.is_empty() {
            return Err(CannotChange(format!("`{path}` is not a key")));
        }
        if parts.peek().is_none() {
            put(place, part, value);
            return Ok(());
        }
        if place.get(part).is_none() {
            if value.is_none() {
                return Ok(());
            }
            place.insert(part, Item::Table(Table::new()));
        }
        place = place
            .get_mut(part)
            .and_then(Item::as_table_like_mut)
            .ok_or_else(|| CannotChange(format!("`{part}` has no keys below it")))?;
    }
    Ok(())
}

fn put(place: &mut dyn TableLike, key: &str, value: Option<Value>) {
    let Some(mut value) = value else {
        place.remove(key);
        return;
    };
    match place.get_mut(key).and_then(Item::as_value_mut) {
        Some(there) => {
            *value.decor_mut() = there.decor().clone();
            *there = value;
        }
        None => {
            place.insert(key, Item::Value(value));
        }
    }
}

/// Gives a peer another name, also where the others of this file name it.
pub(super) fn rename(document: &mut DocumentMut, from: &str, to: &str) {
    let serves = peers(document)
        .and_then(|peers| peers.get(from)?.as_table_like())
        .is_some_and(|peer| peer.contains_key("serve"));
    match document.get_mut("peers") {
        Some(Item::Table(table)) => rename_key(table, from, to),
        Some(Item::Value(Value::InlineTable(table))) => rename_inline(table, from, to),
        _ => {}
    }
    if let Some(peers) = peers(document) {
        for (_, peer) in peers.iter_mut() {
            let Some(peer) = peer.as_table_like_mut() else {
                continue;
            };
            rename_value(peer.get_mut("exit_node"), from, to);
            if serves {
                rename_value(peer.get_mut("relays"), from, to);
            }
        }
    }
    match document.get_mut("preshared") {
        Some(Item::ArrayOfTables(sections)) => sections
            .iter_mut()
            .for_each(|section| rename_value(section.get_mut("peers"), from, to)),
        Some(Item::Value(Value::Array(sections))) => {
            for section in sections.iter_mut() {
                let pair = section.as_inline_table_mut();
                rename_in(pair.and_then(|table| table.get_mut("peers")), from, to);
            }
        }
        _ => {}
    }
}

fn rename_value(item: Option<&mut Item>, from: &str, to: &str) {
    rename_in(item.and_then(Item::as_value_mut), from, to);
}

/// In a string, or in the strings of an array.
fn rename_in(value: Option<&mut Value>, from: &str, to: &str) {
    match value {
        Some(Value::Array(array)) => array
            .iter_mut()
            .for_each(|value| rename_in(Some(value), from, to)),
        Some(value) if value.as_str() == Some(from) => {
            let mut new = Value::from(to);
            *new.decor_mut() = value.decor().clone();
            *value = new;
        }
        _ => {}
    }
}

/// Every entry is taken out and put in again: a map that is only given the new one would have it
/// last.
fn rename_key(table: &mut Table, from: &str, to: &str) {
    let names: Vec<String> = table.iter().map(|(name, _)| name.to_owned()).collect();
    for name in names {
        if let Some((key, item)) = table.remove_entry(&name) {
            table.insert_formatted(&renamed(key, from, to), item);
        }
    }
}

fn rename_inline(table: &mut InlineTable, from: &str, to: &str) {
    let names: Vec<String> = table.iter().map(|(name, _)| name.to_owned()).collect();
    for name in names {
        if let Some((key, value)) = table.remove_entry(&name) {
            table.insert_formatted(&renamed(key, from, to), value);
        }
    }
}

fn renamed(key: Key, from: &str, to: &str) -> Key {
    if key.get() != from {
        return key;
    }
    let mut new = Key::new(to);
    *new.leaf_decor_mut() = key.leaf_decor().clone();
    *new.dotted_decor_mut() = key.dotted_decor().clone();
    new
}

fn peers(document: &mut DocumentMut) -> Option<&mut dyn TableLike> {
    document.get_mut("peers").and_then(Item::as_table_like_mut)
}
