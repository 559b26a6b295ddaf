//! The picture: boxes along the four sides of a rectangle, links through its inside. So no box covers
//! another and no link runs behind a box, however many peers there are.

use std::fmt::Write as _;

use super::{HUB, Link, Links, lines};
use crate::config::MeshConfig;

const LINE: f64 = 16.0;
/// Height of a box around its lines.
const PADDING: f64 = 36.0;
/// Between two boxes, and around the picture.
const GAP: f64 = 20.0;
/// Height of what stands above the picture.
const TITLE: f64 = 84.0;
/// The least width and height of the inside, where the links are.
const INSIDE: (f64, f64) = (280.0, 120.0);
/// A side of the rectangle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Top,
    Right,
    Bottom,
    Left,
}

/// Where the boxes are. All are of one size.
#[derive(Debug)]
struct Layout {
    /// Width and height of a box.
    cell: (f64, f64),
    /// Width and height of the picture.
    size: (f64, f64),
    /// The middle of each box, and the side that it is at, clockwise from the left of the top.
    places: Vec<(f64, f64, Side)>,
}

impl Layout {
    fn of(count: usize, cell: (f64, f64)) -> Self {
        let (columns, rows) = sides(count, cell);
        let (step_x, step_y) = (cell.0 + GAP, cell.1 + GAP);
        let inside = (
            INSIDE.0.max(columns as f64 * step_x),
            INSIDE.1.max(rows as f64 * step_y),
        );
        let size = (
            inside.0 + 2.0 * step_x + 2.0 * GAP,
            inside.1 + 2.0 * step_y + 2.0 * GAP + TITLE,
        );
        // The middles of the outermost boxes.
        let (left, right) = (GAP + step_x / 2.0, size.0 - GAP - step_x / 2.0);
        let (top, bottom) = (TITLE + GAP + step_y / 2.0, size.1 - GAP - step_y / 2.0);
        let along = |from: f64, length: f64, n: usize, of: usize| {
            from + (n as f64 + 0.5) * length / of.max(1) as f64
        };
        let x = |n| along(GAP + step_x, inside.0, n, columns);
        let y = |n| along(TITLE + GAP + step_y, inside.1, n, rows);
        let top_row = (0..columns).map(|n| (x(n), top, Side::Top));
        let right_column = (0..rows).map(|n| (right, y(n), Side::Right));
        let bottom_row = (0..columns).rev().map(|n| (x(n), bottom, Side::Bottom));
        let left_column = (0..rows).rev().map(|n| (left, y(n), Side::Left));
        let places = top_row
            .chain(right_column)
            .chain(bottom_row)
            .chain(left_column);
        Self {
            cell,
            size,
            places: places.take(count).collect(),
        }
    }

    /// Where links begin at a box: the middle of its inner edge.
    fn edge(&self, index: usize) -> Option<(f64, f64)> {
        let (x, y, side) = *self.places.get(index)?;
        let (half_x, half_y) = (self.cell.0 / 2.0, self.cell.1 / 2.0);
        Some(match side {
            Side::Top => (x, y + half_y),
            Side::Right => (x - half_x, y),
            Side::Bottom => (x, y - half_y),
            Side::Left => (x + half_x, y),
        })
    }

    /// The middle of the inside.
    fn middle(&self) -> (f64, f64) {
        (self.size.0 / 2.0, f64::midpoint(self.size.1, TITLE))
    }
}

/// How many boxes lie along a horizontal and along a vertical side, so that the inside is about as
/// wide as high.
fn sides(count: usize, cell: (f64, f64)) -> (usize, usize) {
    let mut columns = 0;
    loop {
        let rows = count.saturating_sub(2 * columns).div_ceil(2);
        let is_wide = columns as f64 * (cell.0 + GAP) >= rows as f64 * (cell.1 + GAP);
        // Two peers stand beside each other.
        if is_wide || rows <= 1 {
            return (columns, rows);
        }
        columns += 1;
    }
}

pub(super) fn svg(mesh: &MeshConfig) -> Result<String, std::fmt::Error> {
    let boxes: Vec<(&String, bool, Vec<String>)> = mesh
        .peers
        .iter()
        .map(|(name, peer)| (name, peer.managed, lines(peer)))
        .collect();
    // Text in a font of unknown width: 7.8 parts of 13 are enough for every character of an
    // address, and 9 for the bold ones of a name.
    let widths = boxes.iter().flat_map(|(name, _, lines)| {
        let lines = lines.iter().map(|line| line.len() as f64 * 7.8);
        lines.chain([name.len() as f64 * 9.0])
    });
    let most_lines = boxes.iter().map(|(_, _, lines)| lines.len()).max();
    let cell = (
        widths.fold(0.0, f64::max) + 24.0,
        most_lines.unwrap_or(0) as f64 * LINE + PADDING,
    );
    let layout = Layout::of(boxes.len(), cell);
    let mut text = String::new();
    head(&mut text, mesh, layout.size)?;
    // What the file's endpoints make is drawn over what discovery makes.
    let kinds = [Link::Punched, Link::Endpoint];
    match Links::of(mesh) {
        Links::Pairs(pairs) => {
            for kind in kinds {
                for (a, b, _) in pairs.iter().filter(|(.., link)| *link == kind) {
                    curve(&mut text, &layout, *a, *b, kind)?;
                }
            }
        }
        Links::Hub(spokes) => {
            for kind in kinds {
                for (peer, _) in spokes.iter().filter(|(_, link)| *link == kind) {
                    spoke(&mut text, &layout, *peer, kind)?;
                }
            }
            hub(&mut text, layout.middle())?;
        }
    }
    for ((name, managed, lines), place) in boxes.iter().zip(&layout.places) {
        peer(&mut text, name, *managed, lines, (place.0, place.1), cell)?;
    }
    writeln!(text, "</svg>")?;
    Ok(text)
}

fn head(text: &mut String, mesh: &MeshConfig, (w, h): (f64, f64)) -> std::fmt::Result {
    writeln!(
        text,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{w:.0}\" height=\"{h:.0}\" viewBox=\"0 0 {w:.0} {h:.0}\" \
         font-family=\"sans-serif\" font-size=\"13\">"
    )?;
    writeln!(
        text,
        "<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>"
    )?;
    writeln!(
        text,
        "<text x=\"20\" y=\"30\" font-size=\"18\" font-weight=\"bold\" fill=\"#1b1f24\">mesh {}</text>",
        mesh.name
    )?;
    let networks: Vec<String> = mesh.networks.iter().map(ToString::to_string).collect();
    writeln!(
        text,
        "<text x=\"20\" y=\"50\" fill=\"#57606a\">{}</text>",
        networks.join(" ")
    )?;
    for (x, kind, words) in [
        (20.0, Link::Endpoint, "by an endpoint of the file"),
        (250.0, Link::Punched, "by discovery"),
    ] {
        let end = x + 36.0;
        writeln!(
            text,
            "<path d=\"M{x} 68H{end}\" stroke=\"#0969da\" stroke-width=\"1.5\"{}/>",
            dash(kind)
        )?;
        writeln!(
            text,
            "<text x=\"{}\" y=\"72\" fill=\"#57606a\">{words}</text>",
            end + 8.0
        )?;
    }
    Ok(())
}

fn dash(kind: Link) -> &'static str {
    match kind {
        Link::Endpoint => "",
        _ => " stroke-dasharray=\"6 5\"",
    }
}

/// A link, bent towards the middle: between two boxes of one side a straight line would run along
/// the boxes between them.
fn curve(text: &mut String, layout: &Layout, a: usize, b: usize, kind: Link) -> std::fmt::Result {
    let (Some((ax, ay)), Some((bx, by))) = (layout.edge(a), layout.edge(b)) else {
        return Ok(());
    };
    let (mx, my) = layout.middle();
    writeln!(
        text,
        "<path d=\"M{ax:.1} {ay:.1}Q{mx:.1} {my:.1} {bx:.1} {by:.1}\" fill=\"none\" stroke=\"#0969da\" \
         stroke-width=\"1.5\"{}/>",
        dash(kind)
    )
}

/// The line of a peer to the hub.
fn spoke(text: &mut String, layout: &Layout, peer: usize, kind: Link) -> std::fmt::Result {
    let Some((x, y)) = layout.edge(peer) else {
        return Ok(());
    };
    let (mx, my) = layout.middle();
    writeln!(
        text,
        "<path d=\"M{x:.1} {y:.1}L{mx:.1} {my:.1}\" stroke=\"#0969da\" stroke-width=\"1.5\"{}/>",
        dash(kind)
    )
}

fn hub(text: &mut String, (x, y): (f64, f64)) -> std::fmt::Result {
    let (width, height) = (260.0, HUB.len() as f64 * LINE + 20.0);
    let (left, top) = (x - width / 2.0, y - height / 2.0);
    writeln!(
        text,
        "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{width}\" height=\"{height:.1}\" rx=\"8\" fill=\"#ffffff\" \
         stroke=\"#0969da\"/>"
    )?;
    for (n, line) in HUB.iter().enumerate() {
        let below = top + 24.0 + n as f64 * LINE;
        writeln!(
            text,
            "<text x=\"{x:.1}\" y=\"{below:.1}\" text-anchor=\"middle\" fill=\"#57606a\">{line}</text>"
        )?;
    }
    Ok(())
}

fn peer(
    text: &mut String,
    name: &str,
    managed: bool,
    lines: &[String],
    (x, y): (f64, f64),
    (width, height): (f64, f64),
) -> std::fmt::Result {
    let (left, top) = (x - width / 2.0, y - height / 2.0);
    let (fill, stroke) = if managed {
        ("#ddf4ff", "#0969da")
    } else {
        ("#f6f8fa", "#8c959f")
    };
    writeln!(
        text,
        "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" rx=\"8\" fill=\"{fill}\" \
         stroke=\"{stroke}\"/>"
    )?;
    let first = top + 22.0;
    writeln!(
        text,
        "<text x=\"{x:.1}\" y=\"{first:.1}\" text-anchor=\"middle\" font-weight=\"bold\" fill=\"#1b1f24\">{name}</text>"
    )?;
    for (n, line) in lines.iter().enumerate() {
        let below = first + (n + 1) as f64 * LINE;
        writeln!(
            text,
            "<text x=\"{x:.1}\" y=\"{below:.1}\" text-anchor=\"middle\" fill=\"#57606a\">{line}</text>"
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_box_covers_another_or_leaves_the_picture_whatever_the_number_of_peers() {
        for count in 0..=200 {
            for cell in [(110.0, 52.0), (260.0, 52.0), (110.0, 160.0)] {
                let layout = Layout::of(count, cell);
                assert_eq!(layout.places.len(), count);
                for (n, (x, y, _)) in layout.places.iter().enumerate() {
                    let (half_x, half_y) = (cell.0 / 2.0, cell.1 / 2.0);
                    assert!(*x >= half_x && *x <= layout.size.0 - half_x, "{count} {n}");
                    assert!(
                        *y >= TITLE + half_y && *y <= layout.size.1 - half_y,
                        "{count} {n}"
                    );
                    for (other_x, other_y, _) in layout.places.iter().take(n) {
                        let apart = (x - other_x).abs() >= cell.0 || (y - other_y).abs() >= cell.1;
                        assert!(apart, "{n} of {count} at {x} {y} and {other_x} {other_y}");
                    }
                }
            }
        }
    }
}
