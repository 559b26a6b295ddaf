//! `natpunch graph`: a picture of the mesh. Equal meshes give equal pictures.

mod svg;

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;

use crate::cli::CliError;
use crate::cli::args::{GraphArgs, GraphFormat};
use crate::config::{self, MeshConfig, PeerConfig};

/// Beyond, nobody sees anything in it.
const MOST_PEERS: usize = 200;

pub(in crate::cli) fn run(args: &GraphArgs) -> Result<ExitCode, CliError> {
    let mesh = config::load(&args.path)?;
    if mesh.peers.len() > MOST_PEERS {
        return Err(CliError::new(format!(
            "{} peers are too many for a picture",
            mesh.peers.len()
        ))
        .help(format!("at most {MOST_PEERS} are drawn")));
    }
    let text = match args.format {
        GraphFormat::Svg => svg::svg(&mesh),
        GraphFormat::Mermaid => mermaid(&mesh),
    }
    .unwrap_or_default();
    std::io::stdout().lock().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// How two peers get together, as far as the file tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    /// One of them has an endpoint.
    Endpoint,
    /// Both run natpunch and there is discovery.
    Punched,
    /// Neither.
    None,
}

fn link(mesh: &MeshConfig, a: &PeerConfig, b: &PeerConfig) -> Link {
    let discovery = mesh
        .discovery
        .iter()
        .any(|instance| instance.about.finds_peers);
    if a.endpoint.is_some() || b.endpoint.is_some() {
        Link::Endpoint
    } else if a.managed && b.managed && discovery {
        Link::Punched
    } else {
        Link::None
    }
}

/// Lines between single pairs, as long as the eye can follow each.
const MOST_LINES: usize = 40;

/// The links of a mesh as they are drawn. Peers are told by their index in the order of names.
#[derive(Debug)]
enum Links {
    /// Every pair that gets together has a line.
    Pairs(Vec<(usize, usize, Link)>),
    /// So many pairs that their lines would be one surface. How two peers get together follows from
    /// what each of them has, so each has one line to a hub: [`Link::Endpoint`] to all others,
    /// [`Link::Punched`] to all others that have a line.
    Hub(Vec<(usize, Link)>),
}

/// What the hub stands for.
const HUB: [&str; 4] = [
    "every pair of these",
    "solid line: with all, by its endpoint",
    "dashed line: by discovery",
    "no line: only with solid ones",
];

impl Links {
    fn of(mesh: &MeshConfig) -> Self {
        let peers: Vec<&PeerConfig> = mesh.peers.values().collect();
        let pairs = peers.iter().enumerate().flat_map(|(i, a)| {
            peers
                .iter()
                .enumerate()
                .skip(i + 1)
                .map(move |(j, b)| (i, j, *a, *b))
        });
        let pairs: Vec<_> = pairs
            .map(|(i, j, a, b)| (i, j, link(mesh, a, b)))
            .filter(|(.., link)| *link != Link::None)
            .collect();
        if pairs.len() <= MOST_LINES {
            return Self::Pairs(pairs);
        }
        // With another peer of its own kind a peer shows what it has itself.
        let own = peers.iter().map(|peer| link(mesh, peer, peer));
        Self::Hub(
            own.enumerate()
                .filter(|(_, link)| *link != Link::None)
                .collect(),
        )
    }
}

/// What is written below a peer's name.
fn lines(peer: &PeerConfig) -> Vec<String> {
    let mut lines: Vec<String> = peer.addresses.iter().map(ToString::to_string).collect();
    lines.extend(
        peer.endpoint
            .iter()
            .map(|endpoint| format!("at {endpoint}")),
    );
    lines.extend(peer.routes.iter().map(|route| format!("to {route}")));
    if let Some(port) = peer.serve {
        lines.push(format!("serves on port {port}"));
    }
    if !peer.managed {
        lines.push("plain WireGuard".to_owned());
    }
    lines
}

fn mermaid(mesh: &MeshConfig) -> Result<String, std::fmt::Error> {
    let mut text = format!("---\ntitle: mesh {}\n---\ngraph LR\n", mesh.name);
    for (index, (name, peer)) in mesh.peers.iter().enumerate() {
        let label = std::iter::once(name.clone())
            .chain(lines(peer))
            .collect::<Vec<_>>()
            .join("<br/>");
        let (open, close) = if peer.managed {
            ("[", "]")
        } else {
            ("([", "])")
        };
        writeln!(text, "    p{index}{open}\"{label}\"{close}")?;
    }
    let arrow = |link| if link == Link::Endpoint { "---" } else { "-.-" };
    match Links::of(mesh) {
        Links::Pairs(pairs) => {
            for (a, b, link) in pairs {
                writeln!(text, "    p{a} {} p{b}", arrow(link))?;
            }
        }
        Links::Hub(spokes) => {
            writeln!(text, "    hub{{{{\"{}\"}}}}", HUB.join("<br/>"))?;
            for (peer, link) in spokes {
                writeln!(text, "    p{peer} {} hub", arrow(link))?;
            }
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    /// A mesh of so many peers, of which the first has an endpoint and the last is plain.
    fn mesh(count: usize) -> MeshConfig {
        let mut text = String::from(
            "[mesh]\nname = \"lab\"\nnetworks = [\"10.77.0.0/16\"]\n\n[discovery.rv]\nplugin = \"rendezvous\"\n\
             server = \"rv.example:51900\"\npublic_key = \"xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\"\n",
        );
        for n in 1..=count {
            let key = natpunch_types::SecretKey::from_bytes([n as u8; 32]).public_key();
            writeln!(
                text,
                "[peers.p{n}]\npublic_key = \"{key}\"\naddresses = [\"10.77.0.{n}\"]"
            )
            .unwrap();
            match n {
                1 => text += "endpoint = \"198.51.100.7:51820\"\n",
                n if n == count => text += "managed = false\n",
                _ => {}
            }
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("mesh.toml");
        std::fs::write(&path, text).unwrap();
        config::load(&path).unwrap()
    }

    #[test]
    fn few_links_are_drawn_each_and_many_as_one_line_a_peer() {
        let Links::Pairs(pairs) = Links::of(&mesh(7)) else {
            panic!("7 peers have a hub");
        };
        // All pairs but those of the plain peer, which only the endpoint has.
        assert_eq!(pairs.len(), 6 * 5 / 2 + 1);
        for count in [12, 60] {
            let mesh = mesh(count);
            let Links::Hub(spokes) = Links::of(&mesh) else {
                panic!("{count} peers have no hub");
            };
            assert_eq!(spokes.len(), count - 1);
            let solid = spokes.iter().filter(|(_, link)| *link == Link::Endpoint);
            assert_eq!(solid.count(), 1);
            for text in [svg::svg(&mesh).unwrap(), mermaid(&mesh).unwrap()] {
                assert!(text.contains("every pair of these"));
                assert!(text.lines().count() < 6 * count + 20, "one line a peer");
            }
        }
    }
}
