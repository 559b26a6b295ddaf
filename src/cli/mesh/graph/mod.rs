//! `natpunch graph`: a picture of the mesh. Equal meshes give equal pictures.

mod svg;

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;

use crate::cli::CliError;
use crate::cli::args::{GraphArgs, GraphFormat};
use crate::config::{self, DiscoverySettings, MeshConfig, PeerConfig};

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
        .any(|instance| !matches!(instance.settings, DiscoverySettings::Static(_)));
    if a.endpoint.is_some() || b.endpoint.is_some() {
        Link::Endpoint
    } else if a.managed && b.managed && discovery {
        Link::Punched
    } else {
        Link::None
    }
}

/// Every pair once, by index in the order of names.
fn links(mesh: &MeshConfig) -> Vec<(usize, usize, Link)> {
    let peers: Vec<&PeerConfig> = mesh.peers.values().collect();
    let pairs = peers.iter().enumerate().flat_map(|(i, a)| {
        peers
            .iter()
            .enumerate()
            .skip(i + 1)
            .map(move |(j, b)| (i, j, *a, *b))
    });
    pairs
        .map(|(i, j, a, b)| (i, j, link(mesh, a, b)))
        .filter(|(.., link)| *link != Link::None)
        .collect()
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
    for (a, b, link) in links(mesh) {
        let arrow = if link == Link::Endpoint { "---" } else { "-.-" };
        writeln!(text, "    p{a} {arrow} p{b}")?;
    }
    Ok(text)
}
