//! Few peers: cards along the four sides of a rectangle, links through its inside. So no card
//! covers another and no link runs behind a card.

use crate::canvas::{At, Canvas, MARGIN, head, n, polyline};
use crate::sites::groups;
use crate::text::width;
use crate::{Kind, Links, Mesh, Node, Pair, Picture, cut, printable, rtt_in_words};

/// So many peers at most are cards.
pub const MOST_CARDS: usize = 16;

const LINE: f64 = 17.0;
/// Height of a card around its lines.
const PADDING: f64 = 22.0;
/// Between two cards, and around the picture.
const GAP: f64 = 22.0;
/// The least width and height of the inside, where the links are.
const INSIDE: (f64, f64) = (300.0, 150.0);
/// Lines on a card.
const MOST_LINES: usize = 8;
/// Characters of a line.
const MOST_CHARACTERS: usize = 40;

/// A side of the rectangle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Top,
    Right,
    Bottom,
    Left,
}

/// Where the cards are. All are of one size.
#[derive(Debug)]
struct Layout {
    /// Width and height of a card.
    cell: (f64, f64),
    /// Width and height of the picture.
    size: (f64, f64),
    /// The middle of each card, and the side that it is at, clockwise from the left of the top.
    places: Vec<(At, Side)>,
}

impl Layout {
    fn of(count: usize, cell: (f64, f64), least: (f64, f64)) -> Self {
        // Three are a triangle.
        let (columns, rows, top_row) = match (count, sides(count, cell)) {
            (3, _) => (2, 0, 1),
            (_, (columns, rows)) => (columns, rows, columns),
        };
        let (step_x, step_y) = (cell.0 + GAP, cell.1 + GAP);
        // Cards beside each other need no room above and below.
        let rim_x = if rows == 0 { 0.0 } else { step_x };
        let (least_y, rim_y) = if columns == 0 {
            (0.0, 0.0)
        } else {
            (least.1, step_y)
        };
        let inside = (
            least.0.max(columns as f64 * step_x),
            least_y.max(rows.max(1) as f64 * step_y),
        );
        let size = (
            inside.0 + 2.0 * rim_x + 2.0 * GAP,
            inside.1 + 2.0 * rim_y + 2.0 * GAP,
        );
        // The middles of the outermost cards.
        let (left, right) = (GAP + step_x / 2.0, size.0 - GAP - step_x / 2.0);
        let (top, bottom) = (GAP + step_y / 2.0, size.1 - GAP - step_y / 2.0);
        let along = |from: f64, length: f64, n: usize, of: usize| {
            from + (n as f64 + 0.5) * length / of.max(1) as f64
        };
        let x = |n, of| along(GAP + rim_x, inside.0, n, of);
        let y = |n| along(GAP + rim_y, inside.1, n, rows);
        let at = |x, y, side| (At { x, y }, side);
        let top_row = (0..top_row).map(|n| at(x(n, top_row), top, Side::Top));
        let right_column = (0..rows).map(|n| at(right, y(n), Side::Right));
        let bottom_row = (0..columns)
            .rev()
            .map(|n| at(x(n, columns), bottom, Side::Bottom));
        let left_column = (0..rows).rev().map(|n| at(left, y(n), Side::Left));
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

    /// Where links begin at a card: the middle of its inner edge.
    fn edge(&self, (at, side): (At, Side)) -> At {
        let (half_x, half_y) = (self.cell.0 / 2.0, self.cell.1 / 2.0);
        let At { x, y } = at;
        match side {
            Side::Top => At { x, y: y + half_y },
            Side::Right => At { x: x - half_x, y },
            Side::Bottom => At { x, y: y - half_y },
            Side::Left => At { x: x + half_x, y },
        }
    }

    fn middle(&self) -> At {
        At {
            x: self.size.0 / 2.0,
            y: self.size.1 / 2.0,
        }
    }
}

/// How many cards lie along a horizontal and along a vertical side, so that the inside is about as
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

/// What is written on a card below the name.
fn lines(node: &Node) -> Vec<String> {
    let mut lines = Vec::new();
    let mut facts: Vec<String> = node.site.iter().map(|s| format!("site {s}")).collect();
    facts.extend(node.nat.iter().map(|nat| format!("NAT {nat}")));
    if !facts.is_empty() {
        lines.push(facts.join(" · "));
    }
    lines.extend(node.lines.iter().cloned());
    lines.extend(node.routes.iter().map(|route| format!("to {route}")));
    if !node.marks().is_empty() {
        lines.push(node.marks().join(", "));
    }
    if lines.len() > MOST_LINES {
        let more = lines.len() - (MOST_LINES - 1);
        lines.truncate(MOST_LINES - 1);
        lines.push(format!("and {more} more"));
    }
    lines
        .iter()
        .map(|line| cut(line, MOST_CHARACTERS))
        .collect()
}

pub(crate) fn draw(mesh: &Mesh, links: &Links) -> Picture {
    let center = mesh.center.filter(|center| *center < mesh.nodes.len());
    let texts: Vec<Vec<String>> = mesh.nodes.iter().map(lines).collect();
    let name = |node: &Node| cut(&node.name, 28);
    let widths = mesh.nodes.iter().zip(&texts).flat_map(|(node, lines)| {
        let lines = lines.iter().map(|line| width(line, 12.0));
        lines.chain([width(&name(node), 14.0)])
    });
    let most_lines = texts.iter().map(Vec::len).max().unwrap_or(0);
    let cell = (
        (widths.fold(90.0, f64::max) + 24.0).round(),
        (most_lines + 1) as f64 * LINE + PADDING,
    );
    let order: Vec<usize> = groups(mesh, center)
        .into_iter()
        .flat_map(|g| g.nodes)
        .collect();
    // Around the one in the middle there is room for what is written on its lines.
    let least = match center {
        Some(_) => (cell.0 + 330.0, cell.1 + 190.0),
        None => INSIDE,
    };
    let layout = Layout::of(order.len(), cell, least);
    let mut canvas = Canvas::default();
    let mut edges = vec![None; mesh.nodes.len()];
    for (node, place) in order.iter().zip(&layout.places) {
        if let Some(edge) = edges.get_mut(*node) {
            *edge = Some(layout.edge(*place));
        }
    }
    let relays = relays(mesh, links, &edges, layout.middle());
    draw_links(&mut canvas, mesh, links, &edges, &relays, layout.middle());
    let places = layout.places.iter().map(|(at, _)| *at);
    let middle = center.map(|center| (center, layout.middle()));
    for (index, at) in order.iter().copied().zip(places).chain(middle) {
        let (Some(node), Some(lines)) = (mesh.nodes.get(index), texts.get(index)) else {
            continue;
        };
        card(&mut canvas, node, lines, at, cell, Some(index) == center);
    }
    for (relay, at) in mesh.relays.iter().zip(&relays) {
        if let Some(at) = at {
            hub(&mut canvas, relay, *at);
        }
    }
    finish(canvas, mesh, links, layout.size)
}

/// Puts the head above what is drawn.
pub(crate) fn finish(canvas: Canvas, mesh: &Mesh, links: &Links, size: (f64, f64)) -> Picture {
    let width = size.0.max(560.0);
    let mut above = Canvas::default();
    let height = head(&mut above, mesh, links, width);
    let moved = canvas.shapes.into_iter();
    let shift = format!("translate({} {})", n((width - size.0) / 2.0), n(height));
    let moved = moved.map(|mut shape| {
        let own = shape
            .attributes
            .iter_mut()
            .find(|(name, _)| *name == "transform");
        match own {
            Some((_, own)) => *own = format!("{shift} {own}"),
            None => shape.attributes.push(("transform", shift.clone())),
        }
        shape
    });
    let mut shapes = above.shapes;
    shapes.extend(moved);
    Picture {
        title: printable(&mesh.title),
        width,
        height: height + size.1 + MARGIN / 2.0,
        shapes,
    }
}

/// Where the relays are: between the middle and those whose paths pass through them.
fn relays(mesh: &Mesh, links: &Links, edges: &[Option<At>], middle: At) -> Vec<Option<At>> {
    let place = |relay: usize| {
        let pairs = links
            .lines
            .iter()
            .filter_map(|index| mesh.pairs.get(*index));
        let pairs = pairs.filter(|pair| pair.relay == Some(relay));
        let ends = pairs.flat_map(|pair| [pair.a, pair.b]);
        let ends: Vec<At> = ends.filter_map(|end| *edges.get(end)?).collect();
        if ends.is_empty() {
            return None;
        }
        let count = ends.len() as f64;
        let mean = At {
            x: ends.iter().map(|at| at.x).sum::<f64>() / count,
            y: ends.iter().map(|at| at.y).sum::<f64>() / count,
        };
        let part = if mesh.center.is_some() { 0.62 } else { 0.35 };
        // Two relays with the same peers don't hide each other.
        let at = middle.towards(mean, part);
        Some(At {
            x: at.x,
            y: at.y + 26.0 * relay as f64,
        })
    };
    (0..mesh.relays.len()).map(place).collect()
}

fn draw_links(
    canvas: &mut Canvas,
    mesh: &Mesh,
    links: &Links,
    edges: &[Option<At>],
    relays: &[Option<At>],
    middle: At,
) {
    let pairs = links.drawn(mesh);
    let mut labels = Vec::new();
    for pair in pairs {
        let end = |node: usize| match mesh.center == Some(node) {
            true => Some(middle),
            false => edges.get(node).copied().flatten(),
        };
        let (Some(a), Some(b)) = (end(pair.a), end(pair.b)) else {
            continue;
        };
        let relay = pair.relay.and_then(|relay| *relays.get(relay)?);
        let d = match relay {
            Some(by) => polyline(&[a, by, b]),
            None => format!(
                "M{} {}Q{} {} {} {}",
                n(a.x),
                n(a.y),
                n(middle.x),
                n(middle.y),
                n(b.x),
                n(b.y)
            ),
        };
        if let Some(shape) = canvas.path(format!("line {}", pair.kind.word()), d) {
            shape.about = pair.about(mesh);
            shape.peer = other(mesh, pair);
        }
        if let (Some(center), true) = (mesh.center, pair.kind != Kind::Down) {
            let outer = if pair.a == center { b } else { a };
            labels.extend(
                pair.rtt_ms
                    .map(|rtt| (outer.towards(relay.unwrap_or(middle), 0.22), rtt)),
            );
        }
    }
    for (at, rtt) in labels {
        let at = At {
            x: at.x,
            y: at.y + 4.0,
        };
        canvas.text("muted halo", at, "middle", &rtt_in_words(rtt));
    }
}

/// The name of the peer that a pair is about, seen from the middle.
pub(crate) fn other(mesh: &Mesh, pair: &Pair) -> Option<String> {
    let center = mesh.center?;
    let other = if pair.a == center { pair.b } else { pair.a };
    Some(mesh.nodes.get(other)?.name.clone())
}

fn card(
    canvas: &mut Canvas,
    node: &Node,
    lines: &[String],
    at: At,
    cell: (f64, f64),
    is_self: bool,
) {
    let class = match (is_self, node.is_plain) {
        (true, _) => "card self",
        (_, true) => "card plain",
        _ => "card",
    };
    if let Some(shape) = canvas.rect(class, at, cell) {
        shape.about = node.about();
        shape.peer = Some(node.name.clone());
    }
    // In the middle of the card's height.
    let height = (lines.len() + 1) as f64 * LINE;
    let mut y = at.y - height / 2.0 + 13.0;
    if let Some(shape) = canvas.text("name", At { x: at.x, y }, "middle", &cut(&node.name, 28)) {
        shape.about = node.about();
        shape.peer = Some(node.name.clone());
    }
    for line in lines {
        y += LINE;
        canvas.text("muted", At { x: at.x, y }, "middle", line);
    }
}

/// A relay: a name in a pill.
pub(crate) fn hub(canvas: &mut Canvas, relay: &str, at: At) {
    let text = cut(relay, 24);
    let size = (width(&text, 13.0) + 22.0, 24.0);
    if let Some(shape) = canvas.rect("hub", at, size) {
        shape.about = format!("relay {}", printable(relay));
    }
    let at = At {
        x: at.x,
        y: at.y + 4.5,
    };
    canvas.text("name", at, "middle", &text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_card_covers_another_or_leaves_the_picture_whatever_the_number_of_peers() {
        for count in 0..=MOST_CARDS {
            for cell in [(110.0, 52.0), (260.0, 52.0), (110.0, 160.0)] {
                let layout = Layout::of(count, cell, INSIDE);
                assert_eq!(layout.places.len(), count);
                for (n, (At { x, y }, _)) in layout.places.iter().enumerate() {
                    let (half_x, half_y) = (cell.0 / 2.0, cell.1 / 2.0);
                    assert!(*x >= half_x && *x <= layout.size.0 - half_x, "{count} {n}");
                    assert!(*y >= half_y && *y <= layout.size.1 - half_y, "{count} {n}");
                    for (other, _) in layout.places.iter().take(n) {
                        let apart = (x - other.x).abs() >= cell.0 || (y - other.y).abs() >= cell.1;
                        assert!(apart, "{n} of {count} at {x} {y} and {other:?}");
                    }
                }
            }
        }
    }
}
