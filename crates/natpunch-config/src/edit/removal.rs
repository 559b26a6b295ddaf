//! A peer that goes from a document takes what is about it alone.

use toml_edit::{ArrayOfTables, DocumentMut, Item, Table, TableLike, Value};

/// Removes a peer, with the comments right above it, and the preshared keys that it has with
/// others in this file.
pub(super) fn remove_peer(document: &mut DocumentMut, name: &str) {
    let Some(peers) = document.get_mut("peers").and_then(Item::as_table_like_mut) else {
        return;
    };
    let removed = peers.remove(name);
    if let Some(Item::Table(table)) = removed {
        keep_comments(document, &table);
    }
    let names = |table: &dyn TableLike| {
        let pair = table.get("peers").and_then(Item::as_array);
        pair.is_some_and(|pair| pair.iter().any(|peer| peer.as_str() == Some(name)))
    };
    match document.get_mut("preshared") {
        Some(Item::ArrayOfTables(sections)) => {
            let removed: Vec<Table> = sections
                .iter()
                .filter(|table| names(*table))
                .cloned()
                .collect();
            let left: ArrayOfTables = sections
                .iter()
                .filter(|table| !names(*table))
                .cloned()
                .collect();
            *sections = left;
            for table in &removed {
                keep_comments(document, table);
            }
        }
        Some(Item::Value(Value::Array(sections))) => {
            sections.retain(|section| !section.as_inline_table().is_some_and(|table| names(table)));
        }
        _ => {}
    }
}

/// Comments above a removed section that stand apart from it by an empty line are about what
/// follows too.
fn keep_comments(document: &mut DocumentMut, removed: &Table) {
    let above = removed
        .decor()
        .prefix()
        .and_then(|prefix| prefix.as_str())
        .unwrap_or_default();
    let Some((kept, _)) = above
        .rsplit_once("\n\n")
        .or_else(|| above.rsplit_once("\n\r\n"))
    else {
        return;
    };
    if kept.trim().is_empty() {
        return;
    }
    let at = removed.position().unwrap_or_default();
    match next_table(document.as_table_mut(), at) {
        Some(next) => {
            let own = next
                .decor()
                .prefix()
                .and_then(|prefix| prefix.as_str())
                .unwrap_or_default();
            let joined = format!(
                "{kept}\n{}{own}",
                if own.starts_with('\n') { "" } else { "\n" }
            );
            next.decor_mut().set_prefix(joined);
        }
        None => {
            let own = document.trailing().as_str().unwrap_or_default();
            let joined = format!("{kept}\n{own}");
            document.set_trailing(joined);
        }
    }
}

/// The first section behind a position.
fn next_table(table: &mut Table, after: isize) -> Option<&mut Table> {
    let next = first_position(table, after)?;
    at_position(table, next)
}

fn first_position(table: &Table, after: isize) -> Option<isize> {
    let inner = table.iter().filter_map(|(_, item)| match item {
        Item::Table(table) => first_position(table, after),
        Item::ArrayOfTables(tables) => tables
            .iter()
            .filter_map(|table| first_position(table, after))
            .min(),
        _ => None,
    });
    let own = table
        .position()
        .filter(|position| *position > after && !table.is_implicit() && !table.is_dotted());
    inner.chain(own).min()
}

fn at_position(table: &mut Table, position: isize) -> Option<&mut Table> {
    if table.position() == Some(position) && !table.is_implicit() && !table.is_dotted() {
        return Some(table);
    }
    table.iter_mut().find_map(|(_, item)| match item {
        Item::Table(table) => at_position(table, position),
        Item::ArrayOfTables(tables) => tables
            .iter_mut()
            .find_map(|table| at_position(table, position)),
        _ => None,
    })
}
