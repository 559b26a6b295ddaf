//! Many peers: names around a ring, those of a site beside each other, links through its inside.

use std::collections::BTreeMap;
use std::f64::consts::{FRAC_PI_2, PI, TAU};

use crate::canvas::{At, Canvas, MARGIN, n, polyline};
use crate::cards::{finish, hub, other};
use crate::sites::{Group, groups};
use crate::text::width;
use crate::{Kind, Links, Mesh, Node, Picture, cut, printable};

/// Between two sites, in places of peers.
const BETWEEN: f64 = 1.6;
/// The least radius.
const LEAST: f64 = 210.0;
/// From the ring to the names.
const TO_NAME: f64 = 14.0;
/// Names of sites are written up to so many.
const MOST_SITES: usize = 28;
const SITE_FONT: f64 = 13.0;

/// Where the peers are.
struct Ring {
    radius: f64,
    middle: At,
    /// The angle of each node, clockwise from the right; `None` for the one in the middle.
    angles: Vec<Option<f64>>,
    /// The angles between which each group's nodes are.
    spans: Vec<(f64, f64)>,
    groups: Vec<Group>,
    /// Width and height of the picture.
    size: (f64, f64),
    names: Vec<String>,
    font: f64,
}

impl Ring {
    fn of(mesh: &Mesh) -> Self {
        let groups = groups(mesh, mesh.center);
        let count: usize = groups.iter().map(|group| group.nodes.len()).sum();
        let (font, pitch, most) = match count {
            0..=130 => (12.0, 15.5, 34),
            _ => (10.0, 12.0, 26),
        };
        let between = if groups.len() > 1 { BETWEEN } else { 0.0 };
        let places = count as f64 + between * groups.len() as f64;
        let radius = (places * pitch / TAU).max(LEAST);
        let step = TAU / places.max(1.0);
        let mut angles = vec![None; mesh.nodes.len()];
        let mut spans = Vec::new();
        let mut angle = -FRAC_PI_2 + step * (between + 1.0) / 2.0;
        for group in &groups {
            let first = angle;
            for node in &group.nodes {
                if let Some(place) = angles.get_mut(*node) {
                    *place = Some(angle);
                }
                angle += step;
            }
            spans.push((first, angle - step));
            angle += between * step;
        }
        let names: Vec<String> = mesh
            .nodes
            .iter()
            .map(|node| cut(&label(node), most))
            .collect();
        let mut ring = Self {
            radius,
            middle: At { x: 0.0, y: 0.0 },
            angles,
            spans,
            groups,
            size: (0.0, 0.0),
            names,
            font,
        };
        ring.fit();
        ring
    }

    /// Makes the picture as large as what is in it.
    fn fit(&mut self) {
        let edge = self.radius + TO_NAME;
        let (mut least, mut most) = (At { x: -edge, y: -edge }, At { x: edge, y: edge });
        let mut take = |x: f64, y: f64| {
            least = At {
                x: least.x.min(x),
                y: least.y.min(y),
            };
            most = At {
                x: most.x.max(x),
                y: most.y.max(y),
            };
        };
        for (angle, name) in self.angles.iter().zip(&self.names) {
            if let Some(angle) = angle {
                let end = self.at(*angle, edge + width(name, self.font));
                take(end.x, end.y);
            }
        }
        for number in 0..self.groups.len() {
            if let Some((At { x, y }, anchor, text)) = self.site(number) {
                let wide = width(&text, SITE_FONT);
                let from = match anchor {
                    "start" => x,
                    "end" => x - wide,
                    _ => x - wide / 2.0,
                };
                take(from, y - SITE_FONT);
                take(from + wide, y + 4.0);
            }
        }
        self.middle = At {
            x: MARGIN - least.x,
            y: 12.0 - least.y,
        };
        self.size = (most.x - least.x + 2.0 * MARGIN, most.y - least.y + 24.0);
    }

    /// Where the name of a site is written, and how.
    fn site(&self, number: usize) -> Option<(At, &'static str, String)> {
        if !(2..=MOST_SITES).contains(&self.groups.len()) {
            return None;
        }
        let text = cut(self.groups.get(number)?.site.as_deref()?, 20);
        let (first, last) = *self.spans.get(number)?;
        let angle = first.midpoint(last);
        let (sin, cos) = angle.sin_cos();
        // Beyond the names of peers that are about where it is written.
        let reach =
            (sin.abs() * width(&text, SITE_FONT) + cos.abs() * SITE_FONT + 12.0) / self.radius;
        let near = self.angles.iter().zip(&self.names).filter(|(at, _)| {
            at.is_some_and(|at| ((at - angle + PI).rem_euclid(TAU) - PI).abs() < reach)
        });
        let names = near
            .map(|(_, name)| width(name, self.font))
            .fold(0.0, f64::max);
        let at = self.at(angle, self.radius + TO_NAME + names + 14.0);
        let anchor = match cos {
            cos if cos > 0.3 => "start",
            cos if cos < -0.3 => "end",
            _ => "middle",
        };
        Some((
            At {
                x: at.x,
                y: at.y + 5.0,
            },
            anchor,
            text,
        ))
    }

    fn at(&self, angle: f64, radius: f64) -> At {
        At {
            x: self.middle.x + radius * angle.cos(),
            y: self.middle.y + radius * angle.sin(),
        }
    }

    fn angle(&self, node: usize) -> Option<f64> {
        *self.angles.get(node)?
    }

    /// A curve between two places of the ring, the nearer to the middle the farther they are apart.
    fn curve(&self, a: f64, b: f64, radius: f64) -> String {
        let apart = (b - a).rem_euclid(TAU);
        let (apart, from) = if apart > PI {
            (TAU - apart, b)
        } else {
            (apart, a)
        };
        let control = self.at(from + apart / 2.0, radius * 0.85 * (1.0 - apart / PI));
        let (a, b) = (self.at(a, radius), self.at(b, radius));
        format!(
            "M{} {}Q{} {} {} {}",
            n(a.x),
            n(a.y),
            n(control.x),
            n(control.y),
            n(b.x),
            n(b.y)
        )
    }
}

/// A peer in one line.
fn label(node: &Node) -> String {
    let mut parts = vec![node.name.clone()];
    let marks = [
        (node.is_exit, "exit"),
        (node.serves, "server"),
        (node.is_plain, "plain"),
    ];
    parts.extend(
        marks
            .into_iter()
            .filter(|(has, _)| *has)
            .map(|(_, mark)| mark.to_owned()),
    );
    match node.routes.as_slice() {
        [] => {}
        [one] => parts.push(one.clone()),
        [one, more @ ..] => parts.push(format!("{one} +{}", more.len())),
    }
    parts.join(" · ")
}

pub(crate) fn draw(mesh: &Mesh, links: &Links) -> Picture {
    let ring = Ring::of(mesh);
    let mut canvas = Canvas::default();
    bands(&mut canvas, links, &ring);
    let relays = relays(mesh, links, &ring);
    lines(&mut canvas, mesh, links, &ring, &relays);
    sites(&mut canvas, &ring);
    names(&mut canvas, mesh, &ring);
    for (relay, at) in mesh.relays.iter().zip(&relays) {
        if let Some(at) = at {
            hub(&mut canvas, relay, *at);
        }
    }
    if let Some(node) = mesh.center.and_then(|center| mesh.nodes.get(center)) {
        let text = cut(&node.name, 28);
        if let Some(shape) =
            canvas.rect("card self", ring.middle, (width(&text, 14.0) + 28.0, 32.0))
        {
            shape.about = node.about();
        }
        let at = At {
            x: ring.middle.x,
            y: ring.middle.y + 5.0,
        };
        canvas.text("name", at, "middle", &text);
    }
    finish(canvas, mesh, links, ring.size)
}

/// A key of [`Links::bands`].
type Band = (usize, usize, Kind);

/// The pairs of two sites as one band.
fn bands(canvas: &mut Canvas, links: &Links, ring: &Ring) {
    // The bands of a site leave it in the order of the sites that they lead to, so that they don't
    // cross there.
    let mut of_site: BTreeMap<usize, Vec<(usize, Band)>> = BTreeMap::new();
    let count = ring.groups.len();
    for band in links.bands.keys() {
        for (site, to) in [(band.0, band.1), (band.1, band.0)] {
            let clockwise = (to + count - site) % count.max(1);
            of_site
                .entry(site)
                .or_default()
                .push((count - clockwise, *band));
        }
    }
    for bands in of_site.values_mut() {
        bands.sort_unstable();
    }
    let end = |site: usize, band: &Band| {
        let (first, last) = ring.spans.get(site)?;
        let bands = of_site.get(&site)?;
        let place = bands.iter().position(|(_, other)| other == band)?;
        let part = (place as f64 + 1.0) / (bands.len() as f64 + 1.0);
        Some(first + (last - first) * part)
    };
    let most = links.bands.values().copied().max().unwrap_or(1) as f64;
    for (band, count) in &links.bands {
        let (Some(a), Some(b)) = (end(band.0, band), end(band.1, band)) else {
            continue;
        };
        let wide = 1.5 + 14.0 * (*count as f64 / most).sqrt();
        let d = ring.curve(a, b, ring.radius - 12.0);
        let Some(shape) = canvas.path(format!("band {}", band.2.word()), d) else {
            continue;
        };
        shape.attributes.push(("stroke-width", n(wide)));
        let site = |index: usize| {
            let site = ring
                .groups
                .get(index)
                .and_then(|group| group.site.as_deref());
            site.map_or_else(|| "the others".to_owned(), printable)
        };
        let pairs = crate::links::thousands(*count);
        shape.about = format!(
            "{} – {}: {pairs} pairs {}",
            site(band.0),
            site(band.1),
            band.2.in_words()
        );
    }
}

/// Where the relays are: on the way to those whose paths pass through them, apart from each other.
fn relays(mesh: &Mesh, links: &Links, ring: &Ring) -> Vec<Option<At>> {
    let mut angles: Vec<(f64, usize)> = Vec::new();
    for relay in 0..mesh.relays.len() {
        let pairs = links
            .lines
            .iter()
            .filter_map(|index| mesh.pairs.get(*index));
        let pairs = pairs.filter(|pair| pair.relay == Some(relay));
        let ends = pairs
            .flat_map(|pair| [pair.a, pair.b])
            .filter_map(|end| ring.angle(end));
        let (mut x, mut y, mut count) = (0.0, 0.0, 0);
        for angle in ends {
            (x, y, count) = (x + angle.cos(), y + angle.sin(), count + 1);
        }
        if count > 0 {
            angles.push((f64::atan2(y, x), relay));
        }
    }
    angles.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let apart = (TAU / angles.len().max(1) as f64).min(0.7);
    let mut places = vec![None; mesh.relays.len()];
    let mut last: Option<f64> = None;
    for (angle, relay) in angles {
        let angle = last.map_or(angle, |last| angle.max(last + apart));
        last = Some(angle);
        if let Some(place) = places.get_mut(relay) {
            // Near the middle, where their lines run beside those of the others, and clear of the
            // name there.
            let (sin, cos) = angle.sin_cos();
            *place = Some(At {
                x: ring.middle.x + cos * (ring.radius * 0.3 + 50.0),
                y: ring.middle.y + sin * ring.radius * 0.3,
            });
        }
    }
    places
}

fn lines(canvas: &mut Canvas, mesh: &Mesh, links: &Links, ring: &Ring, relays: &[Option<At>]) {
    let pairs = links.drawn(mesh);
    let inner = ring.radius - 6.0;
    let many = if pairs.len() > 40 { " many" } else { "" };
    // From the middle to a relay all its pairs go the same way.
    let mut trunks = Vec::new();
    for pair in pairs {
        let relay = pair.relay.and_then(|relay| *relays.get(relay)?);
        let is_rare = matches!(pair.kind, Kind::Relayed | Kind::Down);
        let class = format!(
            "line {}{}",
            pair.kind.word(),
            if is_rare { "" } else { many }
        );
        let d = match (ring.angle(pair.a), ring.angle(pair.b), relay) {
            (Some(a), Some(b), None) => ring.curve(a, b, inner),
            (Some(a), Some(b), Some(by)) => polyline(&[ring.at(a, inner), by, ring.at(b, inner)]),
            (Some(one), None, by) | (None, Some(one), by) => {
                let (from, to) = (by.unwrap_or(ring.middle), ring.at(one, inner));
                if by.is_some() && !trunks.contains(&from) {
                    trunks.push(from);
                    canvas.path("line relayed", polyline(&[ring.middle, from]));
                }
                polyline(&[from, to])
            }
            (None, None, _) => continue,
        };
        if let Some(shape) = canvas.path(class, d) {
            shape.about = pair.about(mesh);
            shape.peer = other(mesh, pair);
        }
    }
}

fn sites(canvas: &mut Canvas, ring: &Ring) {
    if ring.groups.len() < 2 {
        return;
    }
    let step = TAU / ring.angles.len().max(1) as f64 * 0.3;
    for (number, (group, (first, last))) in ring.groups.iter().zip(&ring.spans).enumerate() {
        let radius = ring.radius - 8.0;
        let (from, to) = (ring.at(first - step, radius), ring.at(last + step, radius));
        let large = u8::from(last - first > PI);
        let r = n(radius);
        let d = format!(
            "M{} {}A{r} {r} 0 {large} 1 {} {}",
            n(from.x),
            n(from.y),
            n(to.x),
            n(to.y)
        );
        let Some(shape) = canvas.path("arc", d) else {
            continue;
        };
        let count = group.nodes.len();
        let site = group
            .site
            .as_deref()
            .map_or_else(|| "of no site".to_owned(), printable);
        shape.about = format!("{site}: {count} peers");
        if let Some((at, anchor, text)) = ring.site(number)
            && let Some(shape) = canvas.text("site", at, anchor, &text)
        {
            shape.about = format!("{site}: {count} peers");
        }
    }
}

fn names(canvas: &mut Canvas, mesh: &Mesh, ring: &Ring) {
    // From the middle each peer has one path: its mark shows of which kind.
    let mut kinds: BTreeMap<usize, Kind> = BTreeMap::new();
    if let Some(center) = mesh.center {
        for pair in &mesh.pairs {
            let other = if pair.a == center { pair.b } else { pair.a };
            kinds.insert(other, pair.kind);
        }
    }
    let small = if ring.font < 12.0 { " small" } else { "" };
    let r = if ring.font < 12.0 { 3.0 } else { 4.0 };
    for (index, (node, name)) in mesh.nodes.iter().zip(&ring.names).enumerate() {
        let Some(angle) = ring.angle(index) else {
            continue;
        };
        let has = if node.has_endpoint {
            Kind::Endpoint
        } else {
            Kind::Discovery
        };
        let kind = kinds.get(&index).copied().unwrap_or(match mesh.center {
            Some(_) => Kind::Resting,
            None if node.is_plain && !node.has_endpoint => Kind::Resting,
            None => has,
        });
        let about = node.about();
        if let Some(shape) = canvas.spot(kind, ring.at(angle, ring.radius), r) {
            shape.about.clone_from(&about);
            shape.peer = Some(node.name.clone());
        }
        let at = ring.at(angle, ring.radius + TO_NAME - 4.0);
        // Text on the left would stand on its head.
        let is_left = angle.cos() < 0.0;
        let degrees = angle.to_degrees() + if is_left { 180.0 } else { 0.0 };
        let anchor = if is_left { "end" } else { "start" };
        let down = At {
            x: at.x,
            y: at.y + ring.font * 0.34,
        };
        let turn = format!("rotate({} {} {})", n(degrees), n(at.x), n(at.y));
        if let Some(shape) = canvas.text(&format!("peer{small}"), down, anchor, name) {
            shape.attributes.push(("transform", turn));
            shape.about = about;
            shape.peer = Some(node.name.clone());
        }
    }
}
