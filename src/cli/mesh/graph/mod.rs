//! `natpunch graph`: a picture of the mesh. Equal meshes give equal pictures.

mod mermaid;

use std::io::Write as _;
use std::process::ExitCode;

use natpunch_picture::{Kind, Mesh, Node, Pair, draw, sites_of};
use natpunch_types::Connect;

use crate::cli::CliError;
use crate::cli::args::{GraphArgs, GraphFormat};
use crate::config::{self, MeshConfig, PeerConfig};

/// Beyond, the ring is larger than a screen shows.
const MOST_PEERS: usize = 1_000;

pub(in crate::cli) fn run(args: &GraphArgs) -> Result<ExitCode, CliError> {
    let mesh = config::load(&args.path)?;
    if mesh.peers.len() > MOST_PEERS {
        return Err(CliError::new(format!(
            "{} peers are too many for a picture",
            mesh.peers.len()
        ))
        .help(format!("at most {MOST_PEERS} are drawn")));
    }
    let drawn = drawn(&mesh);
    let text = match args.format {
        GraphFormat::Svg => draw(&drawn).svg(),
        GraphFormat::Mermaid => mermaid::text(&drawn),
    };
    std::io::stdout().lock().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// How the peers of a mesh get together, as far as the file tells.
#[derive(Clone, Copy)]
struct Ways<'a> {
    mesh: &'a MeshConfig,
    /// Something finds peers.
    finds: bool,
    /// Something tells a peer at rest that it is wanted.
    wakes: bool,
}

impl<'a> Ways<'a> {
    fn of(mesh: &'a MeshConfig) -> Self {
        let mut instances = mesh.discovery.iter();
        let finds = instances.any(|instance| instance.about.finds_peers);
        let wakes = mesh.carries_records();
        Self { mesh, finds, wakes }
    }

    /// How two of them do; `None`: in no way.
    fn kind(self, a: &PeerConfig, b: &PeerConfig) -> Option<Kind> {
        let meets = || self.wakes || self.mesh.connect_of(a, b) == Connect::Always;
        if a.endpoint.is_some() || b.endpoint.is_some() {
            Some(Kind::Endpoint)
        } else if a.managed && b.managed && self.finds && meets() {
            Some(Kind::Discovery)
        } else {
            None
        }
    }
}

/// The site that a peer's tags name: the rest of the first one that begins with `site-`, `site:` or
/// `site=`.
fn tagged_site(peer: &PeerConfig) -> Option<String> {
    let site = peer.tags.iter().find_map(|tag| tag.strip_prefix("site"))?;
    let site = site.strip_prefix(['-', ':', '='])?;
    (!site.is_empty()).then(|| site.to_owned())
}

/// The mesh of a file, as pictures have it. Peers are told by their index in the order of names.
fn drawn(mesh: &MeshConfig) -> Mesh {
    let sites = sites_of(mesh.peers.keys().map(String::as_str));
    let nodes = mesh.peers.iter().zip(sites).map(|((name, peer), site)| {
        let addresses = peer.addresses.iter().map(ToString::to_string);
        let at = peer
            .endpoint
            .iter()
            .map(|endpoint| format!("at {endpoint}"));
        let through = peer.exit_node.iter();
        let through = through.map(|exit| format!("to the internet through {exit}"));
        Node {
            name: name.clone(),
            site: tagged_site(peer).or(site),
            is_plain: !peer.managed,
            has_endpoint: peer.endpoint.is_some(),
            serves: peer.serve.is_some(),
            is_exit: peer.exit,
            routes: peer.routes.iter().map(ToString::to_string).collect(),
            nat: None,
            lines: addresses.chain(at).chain(through).collect(),
        }
    });
    let peers: Vec<&PeerConfig> = mesh.peers.values().collect();
    let ways = Ways::of(mesh);
    let pairs = peers.iter().enumerate().flat_map(|(a, one)| {
        let others = peers.iter().enumerate().skip(a + 1);
        others.filter_map(move |(b, other)| {
            let kind = ways.kind(one, other)?;
            Some(Pair {
                a,
                b,
                kind,
                relay: None,
                rtt_ms: None,
                reason: None,
            })
        })
    });
    let networks: Vec<String> = mesh.networks.iter().map(ToString::to_string).collect();
    Mesh {
        title: format!("mesh {}", mesh.name),
        subtitle: networks.join(" "),
        nodes: nodes.collect(),
        pairs: pairs.collect(),
        relays: Vec::new(),
        center: None,
    }
}

#[cfg(test)]
mod tests;
