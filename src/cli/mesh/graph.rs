//! `natpunch graph`: a picture of the mesh. Equal meshes give equal pictures.

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
        GraphFormat::Svg => svg(&mesh),
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

const LINE: f64 = 16.0;
const TITLE: f64 = 84.0;

fn svg(mesh: &MeshConfig) -> Result<String, std::fmt::Error> {
    let boxes: Vec<(&String, bool, Vec<String>)> = mesh
        .peers
        .iter()
        .map(|(name, peer)| (name, peer.managed, lines(peer)))
        .collect();
    // Text in a font of unknown width: seven parts of its height are enough for every character of
    // an address.
    let longest = boxes
        .iter()
        .flat_map(|(name, _, lines)| lines.iter().map(String::len).chain([name.len()]))
        .max();
    let width = longest.unwrap_or(0) as f64 * 7.8 + 24.0;
    let height = boxes
        .iter()
        .map(|(_, _, lines)| lines.len())
        .max()
        .unwrap_or(0) as f64
        * LINE
        + 36.0;
    let count = boxes.len() as f64;
    // Neighbours on the ellipse keep a box apart.
    let radius_y = (count * (height + 24.0) / std::f64::consts::TAU).max(height + 24.0);
    let radius_x = radius_y.max(width) * 1.25;
    let (w, h) = (
        2.0 * radius_x + width + 40.0,
        2.0 * radius_y + height + 40.0 + TITLE,
    );
    let (cx, cy) = (w / 2.0, (h + TITLE) / 2.0);
    let at = |index: usize| {
        let angle = index as f64 / count * std::f64::consts::TAU - std::f64::consts::FRAC_PI_2;
        (cx + radius_x * angle.cos(), cy + radius_y * angle.sin())
    };
    let mut text = String::new();
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
    for (x, dash, words) in [
        (20.0, "", "by an endpoint of the file"),
        (250.0, " stroke-dasharray=\"6 5\"", "by discovery"),
    ] {
        let end = x + 36.0;
        writeln!(
            text,
            "<path d=\"M{x} 68H{end}\" stroke=\"#0969da\" stroke-width=\"1.5\"{dash}/>"
        )?;
        writeln!(
            text,
            "<text x=\"{}\" y=\"72\" fill=\"#57606a\">{words}</text>",
            end + 8.0
        )?;
    }
    for (a, b, link) in links(mesh) {
        let ((ax, ay), (bx, by)) = (at(a), at(b));
        let dash = if link == Link::Endpoint {
            ""
        } else {
            " stroke-dasharray=\"6 5\""
        };
        writeln!(
            text,
            "<path d=\"M{ax:.1} {ay:.1}L{bx:.1} {by:.1}\" stroke=\"#0969da\" stroke-width=\"1.5\"{dash}/>"
        )?;
    }
    for (index, (name, managed, lines)) in boxes.iter().enumerate() {
        let (x, y) = at(index);
        let own = lines.len() as f64 * LINE + 36.0;
        let (left, top) = (x - width / 2.0, y - own / 2.0);
        let (fill, stroke) = if *managed {
            ("#ddf4ff", "#0969da")
        } else {
            ("#f6f8fa", "#8c959f")
        };
        writeln!(
            text,
            "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{own:.1}\" rx=\"8\" fill=\"{fill}\" \
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
    }
    writeln!(text, "</svg>")?;
    Ok(text)
}
