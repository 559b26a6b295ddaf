//! Tables as people read them: columns as wide as their widest cell, and no lines between them.

use std::fmt::Write as _;

use comfy_table::{ContentArrangement, Table, presets};

/// An empty one, which no terminal makes narrower.
pub(crate) fn new() -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    table
}

/// Its lines, each with its end.
pub(crate) fn text(table: &Table) -> String {
    let mut text = String::new();
    for line in table.lines() {
        // Columns are padded on both sides; the first needs none.
        let line = line.strip_prefix(' ').unwrap_or(&line).trim_end();
        let _ = writeln!(text, "{line}");
    }
    text
}
