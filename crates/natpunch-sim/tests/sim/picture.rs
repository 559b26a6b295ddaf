//! The matrix as a picture: SVG that follows the reader's light or dark theme.

use std::fmt::Write as _;

use crate::published::{Cell, Cells};

/// Side of a cell, and the gap between two.
const SIZE: usize = 24;
const GAP: usize = 2;
/// Room for the names on the left and the numbers above.
const LEFT: usize = 262;
const TOP: usize = 34;
const LEGEND: usize = 84;

/// Text, background and one pair of colours for each cell, first light, then dark. Blue and orange
/// are told apart by those who confuse red and green.
const STYLE: &str = "\
    text { font: 12px system-ui, -apple-system, 'Segoe UI', sans-serif; fill: #24292f }
    .number, .letter { text-anchor: middle }
    .letter { font-weight: 600 }
    .ground { fill: #ffffff }
    .direct { fill: #cfe8d5 }
    .sequence { fill: #b6d7f2 }
    .block { fill: #95c1ea }
    .birthday { fill: #79aadf }
    .suspicion { fill: #d9d0f0 }
    .luck { fill: #fbe3a6 }
    .relay { fill: #eceff2 }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3 }
      .ground { fill: #0d1117 }
      .direct { fill: #1f4d31 }
      .sequence { fill: #1d4468 }
      .block { fill: #23568a }
      .birthday { fill: #2c69ab }
      .suspicion { fill: #493d74 }
      .luck { fill: #6b5313 }
      .relay { fill: #21262d }
    }
";

fn class(cell: Cell) -> &'static str {
    match cell {
        Cell::Direct => "direct",
        Cell::Sequential | Cell::BothSequential => "sequence",
        Cell::Block => "block",
        Cell::Birthday => "birthday",
        Cell::Suspicion => "suspicion",
        Cell::Luck => "luck",
        Cell::Relay => "relay",
    }
}

/// One cell with its letter, whose upper left corner is here.
fn draw(svg: &mut String, (x, y): (usize, usize), cell: Cell) {
    let (middle, base) = (x + SIZE / 2, y + SIZE / 2 + 4);
    // Writing to a String cannot fail.
    let _ = writeln!(
        svg,
        "<rect class='{}' x='{x}' y='{y}' width='{SIZE}' height='{SIZE}' rx='4'/>\
         <text class='letter' x='{middle}' y='{base}'>{}</text>",
        class(cell),
        cell.letter(),
    );
}

/// The matrix of these kinds.
pub(crate) fn matrix(names: &[&str], cells: &Cells) -> String {
    let step = SIZE + GAP;
    let (width, height) = (
        LEFT + names.len() * step + 12,
        TOP + names.len() * step + LEGEND,
    );
    let mut svg = format!(
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' \
         height='{height}' role='img' aria-label='Which pairs of NATs become direct'>\n\
         <style>\n{STYLE}</style>\n\
         <rect class='ground' width='{width}' height='{height}' rx='8'/>\n"
    );
    for (row, name) in names.iter().enumerate() {
        let number = row + 1;
        let (along, base) = (row * step, TOP + row * step + SIZE / 2 + 4);
        let _ = writeln!(
            svg,
            "<text x='12' y='{base}'>{number}</text><text x='38' y='{base}'>{}</text>\
             <text class='number' x='{}' y='{}'>{number}</text>",
            name.replace('\'', "’"),
            LEFT + along + SIZE / 2,
            TOP - 10,
        );
        for column in 0..names.len() {
            let cell = cells[&(row.min(column), row.max(column))];
            draw(&mut svg, (LEFT + column * step, TOP + along), cell);
        }
    }
    // Two rows of four.
    let legend = TOP + names.len() * step + 16;
    for (place, cell) in Cell::ALL.into_iter().enumerate() {
        let corner = (38 + place % 4 * 210, legend + place / 4 * (step + 4));
        draw(&mut svg, corner, cell);
        let _ = writeln!(
            svg,
            "<text x='{}' y='{}'>{}</text>",
            corner.0 + SIZE + 8,
            corner.1 + SIZE / 2 + 4,
            cell.meaning(),
        );
    }
    svg + "</svg>\n"
}
