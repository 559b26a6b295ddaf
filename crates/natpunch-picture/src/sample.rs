//! Meshes of as many peers as a test or a document wants, the same each time.

use crate::{Kind, Mesh, Node, Pair, sites_of};

const SITES: [&str; 9] = [
    "berlin", "home", "lagos", "lima", "lisbon", "office", "osaka", "oslo", "perth",
];

fn nodes(count: usize) -> Vec<Node> {
    let sites = (count / 7).clamp(2, SITES.len());
    let mut nodes: Vec<Node> = (0..count)
        .map(|n| {
            let site = SITES.get(n % sites).copied().unwrap_or_default();
            let number = n / sites + 1;
            let name = match n {
                _ if count > 16 && n % 23 == 5 => format!("laptop{n}"),
                _ => format!("{site}-{number:02}"),
            };
            let is_plain = n % 23 == 5;
            Node {
                has_endpoint: n == 0 && !is_plain,
                serves: n == 0,
                is_exit: n % 29 == 2,
                is_plain,
                routes: match n % 17 {
                    2 => vec![format!("192.168.{n}.0/24")],
                    _ => Vec::new(),
                },
                nat: match n % 7 {
                    0 => Some("none".to_owned()),
                    6 => Some("hard".to_owned()),
                    _ => Some("easy".to_owned()),
                },
                lines: vec![format!("10.77.{}.{}", n / 250, n % 250 + 1)],
                name,
                site: None,
            }
        })
        .collect();
    let names: Vec<Option<String>> = sites_of(nodes.iter().map(|node| node.name.as_str()));
    for (node, site) in nodes.iter_mut().zip(names) {
        node.site = site;
    }
    nodes
}

fn pair(a: usize, b: usize, kind: Kind) -> Pair {
    Pair {
        a,
        b,
        kind,
        relay: None,
        rtt_ms: None,
        reason: None,
    }
}

/// The mesh of a file.
pub(crate) fn of_file(count: usize) -> Mesh {
    let nodes = nodes(count);
    let mut pairs = Vec::new();
    for (a, one) in nodes.iter().enumerate() {
        for (b, other) in nodes.iter().enumerate().skip(a + 1) {
            if one.has_endpoint || other.has_endpoint {
                pairs.push(pair(a, b, Kind::Endpoint));
            } else if !one.is_plain && !other.is_plain {
                pairs.push(pair(a, b, Kind::Discovery));
            }
        }
    }
    Mesh {
        title: "mesh home".to_owned(),
        subtitle: "10.77.0.0/16".to_owned(),
        nodes,
        pairs,
        relays: Vec::new(),
        center: None,
    }
}

/// What the agent of one node of it knows.
pub(crate) fn of_node(count: usize) -> Mesh {
    let mut mesh = of_file(count);
    mesh.pairs = (1..count).map(|n| seen(n, &mesh)).collect();
    mesh.center = Some(0);
    mesh.relays = vec!["hub".to_owned(), "fallback".to_owned()];
    let connected = mesh.pairs.iter().filter(|pair| pair.kind != Kind::Down);
    mesh.subtitle = format!(
        "as seen by berlin-01 · {} of {} connected",
        connected.count(),
        count.saturating_sub(1)
    );
    mesh
}

fn seen(n: usize, mesh: &Mesh) -> Pair {
    let rtt = 4.0 + (n * 37 % 90) as f64 / 2.0;
    let site = |n: usize| mesh.nodes.get(n).and_then(|node| node.site.as_deref());
    let mut pair = pair(0, n, Kind::Direct);
    pair.rtt_ms = Some(rtt);
    match n % 20 {
        _ if site(n) == site(0) && site(n).is_some() => {
            pair.kind = Kind::Lan;
            pair.rtt_ms = Some(0.4);
        }
        7 | 17 => {
            pair.kind = Kind::Relayed;
            pair.relay = Some(usize::from(n % 40 > 20));
            pair.rtt_ms = Some(48.5);
            let reason = "both NATs give every destination another port";
            pair.reason = Some(reason.to_owned());
        }
        14 => {
            pair.kind = Kind::Down;
            pair.rtt_ms = None;
            let reason = "it has left nothing at any server: is its natpunch running?";
            pair.reason = Some(reason.to_owned());
        }
        9 => pair.kind = Kind::Pinned,
        3 if n > 20 => {
            pair.kind = Kind::Resting;
            pair.rtt_ms = None;
        }
        _ => {}
    }
    pair
}

/// A mesh whose names attack what shows them.
pub(crate) fn hostile(count: usize) -> Mesh {
    let mut mesh = of_node(count);
    let names = [
        "<script>alert(1)</script>".to_owned(),
        "\u{202e}gnp.exe\u{2066}\u{0}\u{1b}[2J".to_owned(),
        "\" onload=\"alert(1)".to_owned(),
        "<img src=x onerror=alert(1)>".repeat(3),
        "&lt;&#0;]]>".to_owned(),
    ];
    for (node, name) in mesh.nodes.iter_mut().zip(names) {
        node.site = Some(name.clone());
        node.routes = vec![name.clone()];
        node.lines = vec![name.clone()];
        node.name = name;
    }
    mesh.title = "<script>\u{202e}".to_owned();
    mesh.relays = vec!["<script>".to_owned(), "</svg>".to_owned()];
    for pair in &mut mesh.pairs {
        pair.reason = Some("<script>".to_owned());
        pair.kind = Kind::Relayed;
        pair.relay = Some(0);
    }
    mesh
}
