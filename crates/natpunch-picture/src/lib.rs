//! The picture of a mesh: where its peers stand, what is drawn between them, and the SVG of it.
//!
//! [`draw`] is one function of what is known: equal meshes give equal pictures, to the byte. A mesh
//! file gives every pair and how it gets together; an agent gives the pairs of its own node, which
//! then stands in the middle.
//!
//! Up to [`MOST_CARDS`] peers are cards with all that is known of them; more are names around a
//! ring, those of a site beside each other. So no line ever runs over a name. A mesh of 60 has
//! 1,770 pairs: what holds for most of them is the *rule*, which the picture says in words and draws as
//! bands from site to site; the exceptions are drawn pair by pair ([`Links`]).
//!
//! Names come from others. They are cut, and bereft of what would steer a reader's eye or program.

mod canvas;
mod cards;
mod links;
mod ring;
mod sites;
mod text;

use std::fmt;

use serde::Serialize;

pub use canvas::{Picture, STYLE, Shape};
pub use cards::MOST_CARDS;
pub use links::Links;
pub use sites::sites_of;
pub use text::{cut, escaped, printable};

/// What is drawn.
#[derive(Debug, Clone, Default)]
pub struct Mesh {
    /// What stands above.
    pub title: String,
    /// And below that, smaller.
    pub subtitle: String,
    /// The peers.
    pub nodes: Vec<Node>,
    /// What is known of pairs of them. Others have none, or nobody knows.
    pub pairs: Vec<Pair>,
    /// The relays, by name.
    pub relays: Vec<String>,
    /// The node whose pairs these are, if they are of one alone: an index of `nodes`.
    pub center: Option<usize>,
}

/// A peer.
#[derive(Debug, Clone, Default)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// The peers of one site stand together.
    pub site: Option<String>,
    /// A plain WireGuard peer.
    pub is_plain: bool,
    /// It has an endpoint, at which all others reach it.
    pub has_endpoint: bool,
    /// It serves the mesh.
    pub serves: bool,
    /// Others may send all their traffic through it.
    pub is_exit: bool,
    /// Networks behind it.
    pub routes: Vec<String>,
    /// The NAT before it, in a word.
    pub nat: Option<String>,
    /// What else there is to say, such as its addresses: a line each.
    pub lines: Vec<String>,
}

/// What is between two nodes: indices of [`Mesh::nodes`].
#[derive(Debug, Clone)]
pub struct Pair {
    /// One side.
    pub a: usize,
    /// The other.
    pub b: usize,
    /// The path.
    pub kind: Kind,
    /// The relay that it passes through: an index of [`Mesh::relays`].
    pub relay: Option<usize>,
    /// Its round trip, in milliseconds.
    pub rtt_ms: Option<f64>,
    /// Why it is what it is.
    pub reason: Option<String>,
}

/// How two peers get together. The order is the one of the legend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// One of them has an endpoint, says the mesh file.
    Endpoint,
    /// Discovery finds them, says the mesh file.
    Discovery,
    /// Within one LAN.
    Lan,
    /// From node to node through the internet.
    Direct,
    /// The same, from another source port than WireGuard's.
    Pinned,
    /// Through a relay.
    Relayed,
    /// On demand, and nobody has talked for a while.
    Resting,
    /// A path is looked for.
    Searching,
    /// No path.
    Down,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Endpoint,
        Self::Discovery,
        Self::Lan,
        Self::Direct,
        Self::Pinned,
        Self::Relayed,
        Self::Resting,
        Self::Searching,
        Self::Down,
    ];

    /// In a word, as a class of the style has it, too.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Endpoint => "endpoint",
            Self::Discovery => "discovery",
            Self::Lan => "lan",
            Self::Direct => "direct",
            Self::Pinned => "pinned",
            Self::Relayed => "relayed",
            Self::Resting => "resting",
            Self::Searching => "searching",
            Self::Down => "down",
        }
    }

    /// As the legend has it.
    pub const fn in_words(self) -> &'static str {
        match self {
            Self::Endpoint => "by an endpoint of the file",
            Self::Discovery => "by discovery",
            Self::Lan => "in one LAN",
            Self::Direct => "direct",
            Self::Pinned => "direct, from another port",
            Self::Relayed => "relayed",
            Self::Resting => "resting",
            Self::Searching => "searching",
            Self::Down => "down",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// Draws a mesh. Indices that lead nowhere are left out.
pub fn draw(mesh: &Mesh) -> Picture {
    let links = Links::of(mesh);
    if mesh.nodes.len() <= MOST_CARDS {
        cards::draw(mesh, &links)
    } else {
        ring::draw(mesh, &links)
    }
}

impl Node {
    /// What it is beside a peer, in words.
    fn marks(&self) -> Vec<&'static str> {
        let marks = [
            (self.is_exit, "exit node"),
            (self.serves, "server"),
            (self.is_plain, "plain WireGuard"),
        ];
        let marks = marks.into_iter().filter(|(has, _)| *has);
        marks.map(|(_, mark)| mark).collect()
    }

    /// All that is known of it, a line each, the name first.
    fn about(&self) -> String {
        let mut lines = vec![printable(&self.name)];
        lines.extend(
            self.site
                .iter()
                .map(|site| format!("site {}", printable(site))),
        );
        lines.extend(self.marks().into_iter().map(str::to_owned));
        lines.extend(
            self.nat
                .iter()
                .map(|nat| format!("NAT: {}", printable(nat))),
        );
        lines.extend(
            self.routes
                .iter()
                .map(|route| format!("to {}", printable(route))),
        );
        lines.extend(self.lines.iter().map(|line| printable(line)));
        lines.join("\n")
    }
}

impl Pair {
    /// What is to say of it.
    fn about(&self, mesh: &Mesh) -> String {
        let name = |index: usize| {
            let node = mesh.nodes.get(index);
            node.map_or_else(String::new, |node| printable(&node.name))
        };
        let mut text = format!("{} – {}: {}", name(self.a), name(self.b), self.kind);
        if let Some(relay) = self.relay.and_then(|relay| mesh.relays.get(relay)) {
            text.push_str(&format!(" by {}", printable(relay)));
        }
        if let Some(rtt) = self.rtt_ms {
            text.push_str(&format!(", {}", rtt_in_words(rtt)));
        }
        if let Some(reason) = &self.reason {
            text.push_str(&format!("\n{}", printable(reason)));
        }
        text
    }
}

/// A round trip for people.
fn rtt_in_words(ms: f64) -> String {
    match ms {
        ms if ms < 10.0 => format!("{ms:.1} ms"),
        ms => format!("{ms:.0} ms"),
    }
}

#[cfg(test)]
mod sample;
#[cfg(test)]
mod tests;
