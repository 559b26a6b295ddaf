//! The mesh as Mermaid text, which GitHub and GitLab draw, within Mermaid's limits.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use natpunch_picture::{Kind, Mesh, Node, cut, printable};

#[cfg(test)]
/// Links that GitHub and GitLab draw of one picture (`maxEdges`).
pub(super) const MOST_LINKS: usize = 500;
#[cfg(test)]
/// Characters that they take (`maxTextSize`).
pub(super) const MOST_TEXT: usize = 50_000;

/// Lines between single pairs, as long as the eye can follow each.
const MOST_LINES: usize = 40;
/// Peers that have a box of their own. More of them stand together by site.
const MOST_BOXES: usize = 100;
/// Peers of a larger mesh that keep a box of their own, for what they have that others don't.
const MOST_SPECIAL: usize = 60;
/// Boxes of sites.
const MOST_SITES: usize = 100;

/// What the hub stands for.
const HUB: [&str; 4] = [
    "every pair of these",
    "solid line: with all, by its endpoint",
    "dashed line: by discovery",
    "no line: only with solid ones",
];

pub(super) fn text(mesh: &Mesh) -> String {
    let mut text = format!("---\ntitle: {}\n---\ngraph LR\n", label(&mesh.title));
    let pairs: Vec<(usize, usize, Kind)> = mesh
        .pairs
        .iter()
        .map(|pair| (pair.a, pair.b, pair.kind))
        .collect();
    if pairs.len() <= MOST_LINES && mesh.nodes.len() <= MOST_BOXES {
        for (index, node) in mesh.nodes.iter().enumerate() {
            peer(&mut text, index, node);
        }
        for (a, b, kind) in pairs {
            let _ = writeln!(text, "    p{a} {} p{b}", arrow(kind));
        }
        return text;
    }
    // So many pairs that their lines would be one surface. How two peers get together follows from
    // what each of them has, so each has one line to a hub.
    let own = own_kinds(mesh);
    let own = |index: &usize| own.get(index).copied();
    let mut links = Vec::new();
    let mut sites: BTreeMap<(Option<&str>, Option<Kind>), Vec<&Node>> = BTreeMap::new();
    let mut special = 0;
    for (index, node) in mesh.nodes.iter().enumerate() {
        let is_special =
            node.has_endpoint || node.is_exit || node.serves || !node.routes.is_empty();
        let has_box = match mesh.nodes.len() <= MOST_BOXES {
            true => true,
            false => is_special && special < MOST_SPECIAL,
        };
        if !has_box {
            let site = (node.site.as_deref(), own(&index));
            sites.entry(site).or_default().push(node);
            continue;
        }
        special += 1;
        peer(&mut text, index, node);
        links.extend(own(&index).map(|kind| (format!("p{index}"), kind)));
    }
    let count = sites.len();
    for (number, ((site, kind), nodes)) in sites.into_iter().take(MOST_SITES).enumerate() {
        let _ = writeln!(text, "    s{number}[[\"{}\"]]", site_label(site, &nodes));
        links.extend(kind.map(|kind| (format!("s{number}"), kind)));
    }
    if count > MOST_SITES {
        let _ = writeln!(
            text,
            "    more[[\"and {} more sites\"]]",
            count - MOST_SITES
        );
    }
    let _ = writeln!(text, "    hub{{{{\"{}\"}}}}", HUB.join("<br/>"));
    for (from, kind) in links {
        let _ = writeln!(text, "    {from} {} hub", arrow(kind));
    }
    text
}

fn arrow(kind: Kind) -> &'static str {
    if kind == Kind::Endpoint { "---" } else { "-.-" }
}

/// How a peer gets together with another one that has no endpoint: what it has itself.
fn own_kinds(mesh: &Mesh) -> BTreeMap<usize, Kind> {
    let mut kinds = BTreeMap::new();
    for pair in &mesh.pairs {
        for node in [pair.a, pair.b] {
            let has_endpoint = mesh.nodes.get(node).is_some_and(|node| node.has_endpoint);
            match pair.kind {
                Kind::Endpoint if !has_endpoint => {}
                kind => _ = kinds.insert(node, kind),
            }
        }
    }
    kinds
}

fn peer(text: &mut String, index: usize, node: &Node) {
    let mut lines = vec![label(&node.name)];
    lines.extend(node.lines.iter().take(4).map(|line| label(line)));
    lines.extend(
        node.routes
            .iter()
            .take(4)
            .map(|route| format!("to {}", label(route))),
    );
    if node.routes.len() > 4 {
        lines.push(format!("and {} networks more", node.routes.len() - 4));
    }
    let marks = [
        (node.is_exit, "exit node"),
        (node.serves, "server"),
        (node.is_plain, "plain WireGuard"),
    ];
    let marks = marks.into_iter().filter(|(has, _)| *has);
    lines.extend(marks.map(|(_, mark)| mark.to_owned()));
    let (open, close) = if node.is_plain {
        ("([", "])")
    } else {
        ("[", "]")
    };
    let _ = writeln!(text, "    p{index}{open}\"{}\"{close}", lines.join("<br/>"));
}

fn site_label(site: Option<&str>, nodes: &[&Node]) -> String {
    let site = site.map_or_else(|| "of no site".to_owned(), label);
    let names: Vec<String> = nodes
        .iter()
        .take(3)
        .map(|node| cut(&node.name, 20))
        .collect();
    let names: Vec<String> = names.iter().map(|name| label(name)).collect();
    let more = if nodes.len() > 3 { " …" } else { "" };
    let plain = if nodes.iter().all(|node| node.is_plain) {
        " (plain WireGuard)"
    } else {
        ""
    };
    format!(
        "{site}: {} peers{plain}<br/>{}{more}",
        nodes.len(),
        names.join(" ")
    )
}

/// Text in a label: what Mermaid or HTML would read as anything else is written by its number.
fn label(text: &str) -> String {
    let mut to = String::new();
    for c in printable(text).chars() {
        match c {
            '"' | '<' | '>' | '&' | '#' | ';' | '`' | '\\' => {
                let _ = write!(to, "#{};", u32::from(c));
            }
            '\n' | '\r' => to.push(' '),
            c => to.push(c),
        }
    }
    to
}
