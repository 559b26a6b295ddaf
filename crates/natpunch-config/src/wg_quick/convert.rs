//! From a wg-quick file to a mesh that means the same. What a mesh can't keep is a loss, and a loss
//! that was not allowed refuses the import.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use natpunch_types::PeerKey;

use super::import::{ImportedMesh, ImportedPreshared};
use super::syntax::{WgQuick, WgQuickPeer};
use crate::edit::new_peer::NewPeer;
use crate::mesh::network_map::NetworkMap;
use crate::report::error::ConfigErrors;

/// What is asked of an import beside the file.
#[derive(Debug, Clone, Default)]
pub struct ImportOptions {
    /// The file or interface, for messages.
    pub source: PathBuf,
    /// The name of the interface.
    pub interface: String,
    /// The name of the mesh; `None`: as the interface.
    pub mesh_name: Option<String>,
    /// The name of this node; `None`: what the file's comments say.
    pub name: Option<String>,
    /// This node's addresses; empty: those of the file.
    pub addresses: Vec<IpNet>,
    /// The networks of the mesh; empty: those of the addresses.
    pub networks: Vec<IpNet>,
    /// Addresses of peers by name, beside those that the file tells.
    pub peer_addresses: Vec<(String, IpAddr)>,
    /// Whether the other peers will run natpunch.
    pub managed: bool,
    /// The mesh file to be made; key files come beside it.
    pub output: PathBuf,
    /// The key file of this node, if there is one already.
    pub private_key_file: Option<PathBuf>,
    /// The keys of which a meaning may be lost.
    pub leave_out: BTreeSet<String>,
    /// Whether what is imported is a running interface: its routes are not seen.
    pub running: bool,
}

/// Something that the file means and the mesh does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// The key of the file, which `leave_out` names.
    pub key: &'static str,
    /// Its line, from 1; 0 where there is no file.
    pub line: usize,
    /// What is lost.
    pub what: String,
}

/// The mesh that means what a wg-quick file means, and what was allowed to be lost.
///
/// # Errors
/// The file leaves something open that a mesh says, or says something that a mesh can't.
pub fn convert(
    file: &WgQuick,
    options: &ImportOptions,
) -> Result<(ImportedMesh, Vec<Loss>), ConfigErrors> {
    let refuse = |line: usize, message: String, help: &str| {
        let place = match line {
            0 => String::new(),
            line => format!("line {line}: "),
        };
        ConfigErrors::of(&options.source, format!("{place}{message}"), help)
    };
    let private_key = file.private_key.clone().ok_or_else(|| {
        let help = "import the running interface instead: --interface NAME --private-key-file FILE";
        refuse(0, "[Interface] has no PrivateKey".to_owned(), help)
    })?;
    let addresses = match options.addresses.is_empty() {
        true => &file.addresses,
        false => &options.addresses,
    };
    if addresses.is_empty() {
        let help = "`wg showconf` does not print it: say --address 10.0.0.1/24";
        return Err(refuse(0, "[Interface] has no Address".to_owned(), help));
    }
    let mut names = Names::default();
    let own_name = options.name.as_deref().or(file.name.as_deref());
    let own = names.take(own_name, "this-node");
    let networks = Networks::of(file, addresses, &options.networks);
    let mut losses: Vec<Loss> = file.unsupported.iter().map(loss_of_key).collect();
    let mut peers = vec![NewPeer {
        addresses: addresses.iter().map(IpNet::addr).collect(),
        managed: true,
        ..NewPeer::new(&own, private_key.public_key())
    }];
    let mut preshared = Vec::new();
    let mut claimed: BTreeMap<IpNet, usize> = BTreeMap::new();
    let mut keys: BTreeMap<PeerKey, usize> = BTreeMap::new();
    let mut exit_node: Option<String> = None;
    for (index, peer) in file.peers.iter().enumerate() {
        if let Some(first) = keys.insert(peer.public_key, peer.line) {
            let message = format!("the same PublicKey as that of line {first}");
            let help = "WireGuard takes the two sections for one peer: make them one";
            return Err(refuse(peer.line, message, help));
        }
        for (net, line) in peer.allowed() {
            // The same peer may say it twice.
            let first = claimed.insert(net, index).filter(|first| *first != index);
            if first.is_some() {
                let message = format!("{net} is allowed to an earlier peer, too");
                let help = "WireGuard sends it to the last one only: remove it from the others";
                return Err(refuse(line, message, help));
            }
        }
        let name = names.take(peer.name.as_deref(), &format!("peer-{}", index + 1));
        let mut new = NewPeer {
            endpoint: peer.endpoint.clone(),
            persistent_keepalive: peer.persistent_keepalive,
            managed: options.managed,
            ..NewPeer::new(&name, peer.public_key)
        };
        let given = options
            .peer_addresses
            .iter()
            .filter(|given| given.0 == name);
        new.addresses.extend(given.map(|given| given.1));
        networks.sort(peer, file, options, &mut new, &mut losses);
        if new.addresses.is_empty() {
            let message = format!("the peer `{name}` has no address of its own in its AllowedIPs");
            let help = format!("say which one it has: --peer-address {name}=10.0.0.1");
            return Err(refuse(peer.line, message, &help));
        }
        if let Some(key) = &peer.preshared_key {
            preshared.push(ImportedPreshared {
                peer: name.clone(),
                file: beside(&options.output, &format!("{own}-{name}.psk")),
                key: key.clone(),
            });
        }
        if new.exit
            && let Some(first) = exit_node.replace(name.clone())
        {
            let message = format!("`{first}` and `{name}` both take a default route");
            let help = "a node has one exit node: give one peer both 0.0.0.0/0 and ::/0";
            return Err(refuse(peer.line, message, help));
        }
        peers.push(new);
    }
    if let Some(own) = peers.first_mut() {
        own.exit_node = exit_node;
    }
    refuse_losses(&losses, options)?;
    let mesh_name = options.mesh_name.as_deref().unwrap_or(&options.interface);
    let mesh = ImportedMesh {
        name: label(mesh_name).unwrap_or_else(|| "home".to_owned()),
        networks: networks.all,
        interface: options.interface.clone(),
        private_key_file: match &options.private_key_file {
            Some(file) => file.clone(),
            None => beside(&options.output, &format!("{own}.key")),
        },
        private_key_is_there: options.private_key_file.is_some(),
        own,
        private_key,
        listen_port: file.listen_port,
        mtu: file.mtu,
        fwmark: file.fwmark,
        external: file.external,
        peers,
        preshared,
    };
    Ok((mesh, losses))
}

/// What goes lost with a key that a mesh has no counterpart of.
fn loss_of_key(unsupported: &super::syntax::Unsupported) -> Loss {
    let what = match unsupported.key {
        "DNS" => "the resolver that the host uses while the interface is up: a mesh sets none",
        "SaveConfig" => "the file is written anew from the interface: a mesh file is only read",
        _ => "a command that is run with the interface: natpunch runs none",
    };
    Loss {
        key: unsupported.key,
        line: unsupported.line,
        what: what.to_owned(),
    }
}

/// Refuses what is lost and was not allowed to be.
fn refuse_losses(losses: &[Loss], options: &ImportOptions) -> Result<(), ConfigErrors> {
    let allowed = |loss: &&Loss| {
        let mut words = options.leave_out.iter();
        words.any(|word| word.eq_ignore_ascii_case(loss.key))
    };
    let lost: Vec<&Loss> = losses.iter().filter(|loss| !allowed(loss)).collect();
    if lost.is_empty() {
        return Ok(());
    }
    let lines: String = lost.iter().map(|loss| format!("\n  {loss}")).collect();
    let keys: BTreeSet<&str> = losses.iter().map(|loss| loss.key).collect();
    let keys = keys.into_iter().collect::<Vec<_>>().join(",");
    let message = format!("a mesh can't keep all of what this says{lines}");
    let help = format!("to import it without that: --leave-out {keys}");
    Err(ConfigErrors::of(&options.source, message, &help))
}

impl std::fmt::Display for Loss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.key, self.what),
            line => write!(f, "{} (line {line}): {}", self.key, self.what),
        }
    }
}

/// The networks of the mesh, and what all peers are allowed.
struct Networks {
    all: Vec<IpNet>,
    own: NetworkMap<IpNet>,
    /// Also everything that is allowed to a peer: of two networks WireGuard takes the narrower.
    holes: NetworkMap<IpNet>,
}

impl Networks {
    fn of(file: &WgQuick, addresses: &[IpNet], stated: &[IpNet]) -> Self {
        let allowed = || file.peers.iter().flat_map(|peer| &peer.allowed_ips);
        let is_host = |net: &&IpNet| net.prefix_len() == net.max_prefix_len();
        let hosts: BTreeSet<IpAddr> = allowed().filter(is_host).map(IpNet::addr).collect();
        let mut all: Vec<IpNet> = stated.to_vec();
        if all.is_empty() {
            let found = addresses.iter().map(|address| network_of(address, &hosts));
            all = outermost(found.map(|net| net.trunc()));
        }
        let own: NetworkMap<IpNet> = all.iter().map(|net| (*net, *net)).collect();
        let mut holes = own.clone();
        allowed().for_each(|net| holes.insert(*net, *net));
        let hosts = addresses.iter().map(|address| IpNet::from(address.addr()));
        hosts.for_each(|net| holes.insert(net, net));
        Self { all, own, holes }
    }

    /// What a peer's AllowedIPs mean: addresses of its own, routes, or everything.
    fn sort(
        &self,
        peer: &WgQuickPeer,
        file: &WgQuick,
        options: &ImportOptions,
        new: &mut NewPeer,
        losses: &mut Vec<Loss>,
    ) {
        let name = new.name.clone();
        let mut addresses: BTreeSet<IpAddr> = new.addresses.iter().copied().collect();
        let outermost: BTreeSet<IpNet> = outermost(peer.allowed_ips.iter().copied())
            .into_iter()
            .collect();
        let aggregated = IpNet::aggregate(&peer.allowed_ips);
        // Also as two halves, which wg-quick's users write to keep the host's own default route.
        let everything = |ipv6: bool| {
            let all = |net: &IpNet| net.prefix_len() == 0 && net.addr().is_ipv6() == ipv6;
            aggregated.iter().any(all)
        };
        let everything = [everything(false), everything(true)];
        let mut routes = Vec::new();
        let mut lose = |key, line, what| losses.push(Loss { key, line, what });
        for (net, line) in peer.allowed() {
            let is_host = net.prefix_len() == net.max_prefix_len();
            let around = self.own.around(net);
            if is_host && around.is_some() {
                if addresses.insert(net.addr()) {
                    new.addresses.push(net.addr());
                }
                continue;
            }
            if around == Some(&net) {
                let what = format!("all of {net} goes to `{name}`, which passes it on: in a mesh");
                let what = format!("{what} every peer has addresses of its own");
                lose("AllowedIPs", line, what);
                continue;
            }
            let beyond = around.is_none();
            if let (true, Some((table, line))) = (beyond, &file.table) {
                // wg-quick routes none of it, and a mesh would.
                let what = format!("{net} is allowed to `{name}`, and Table = {table} keeps it");
                let what = format!("{what} out of the main routing table: a mesh routes it there");
                lose("Table", *line, what);
                continue;
            }
            let [v4, v6] = everything;
            let default = if net.addr().is_ipv6() { v6 } else { v4 };
            if default && outermost.contains(&net) {
                if options.running {
                    let what = format!(
                        "everything is allowed to `{name}`, and of a running interface it is not \
                         seen whether everything goes there: with exit = true at `{name}` and \
                         exit_node at this node it does"
                    );
                    lose("AllowedIPs", line, what);
                    continue;
                }
                new.exit = true;
                continue;
            }
            // The mesh's own network is in it, and what is around that goes to the exit node.
            if default && self.own.within(net).is_some() {
                continue;
            }
            routes.push(net);
        }
        if new.exit && everything != [true, true] {
            let (one, other) = if everything == [true, false] {
                ("IPv4", "IPv6")
            } else {
                ("IPv6", "IPv4")
            };
            let what = format!(
                "only {one} goes to `{name}`: an exit node takes both, so that {other} is \
                 unreachable outside of the mesh and the host's own networks"
            );
            let line = peer.allowed_lines.first().copied().unwrap_or_default();
            lose(other, line, what);
        }
        // What another peer, or the mesh, has of a wider network is not this peer's.
        for net in routes {
            self.without_holes(net, &mut new.routes);
        }
    }

    /// The parts of a network in which nothing narrower is.
    fn without_holes(&self, net: IpNet, parts: &mut Vec<IpNet>) {
        if self.holes.within(net).is_none() {
            parts.push(net);
            return;
        }
        let longer = net.prefix_len() + 1;
        let halves = match net {
            IpNet::V4(net) => net.subnets(longer).map(|all| all.map(IpNet::V4).collect()),
            IpNet::V6(net) => net.subnets(longer).map(|all| all.map(IpNet::V6).collect()),
        };
        let halves: Vec<IpNet> = halves.unwrap_or_default();
        for half in halves {
            if !self.holes.contains(half) {
                self.without_holes(half, parts);
            }
        }
    }
}

/// Those of some networks that are in no other of them.
fn outermost(networks: impl Iterator<Item = IpNet>) -> Vec<IpNet> {
    let mut sorted: Vec<IpNet> = networks.collect();
    // What holds others stands before them.
    sorted.sort_by_key(|net| (net.network(), net.prefix_len()));
    let mut outermost: Vec<IpNet> = Vec::new();
    for net in sorted {
        if outermost.last().is_none_or(|last| !last.contains(&net)) {
            outermost.push(net);
        }
    }
    outermost
}

/// The mesh network of an address: what its prefix says, else the smallest usual one around it and
/// the peers.
fn network_of(address: &IpNet, hosts: &BTreeSet<IpAddr>) -> IpNet {
    if address.prefix_len() < address.max_prefix_len() {
        return *address;
    }
    let (usual, least) = match address {
        IpNet::V4(_) => (24, 8),
        IpNet::V6(_) => (64, 32),
    };
    let wider = |length: u8| match address.addr() {
        IpAddr::V4(ip) => Ipv4Net::new(ip, length).map(IpNet::from).ok(),
        IpAddr::V6(ip) => Ipv6Net::new(ip, length).map(IpNet::from).ok(),
    };
    // A network holds all hosts of its family if it holds the first and the last.
    let same = |ip: &&IpAddr| ip.is_ipv4() == address.addr().is_ipv4();
    let ends = [hosts.iter().find(same), hosts.iter().rev().find(same)];
    let around = |network: &IpNet| ends.iter().flatten().all(|host| network.contains(*host));
    let found = (least..=usual).rev().filter_map(wider).find(around);
    found.or_else(|| wider(usual)).unwrap_or(*address)
}

fn beside(output: &Path, name: &str) -> PathBuf {
    output
        .parent()
        .map_or_else(|| PathBuf::from(name), |directory| directory.join(name))
}

/// Names that are given away, and how often each was wanted.
#[derive(Default)]
struct Names {
    used: BTreeSet<String>,
    wanted: BTreeMap<String, u32>,
}

impl Names {
    /// A DNS label that no peer has yet.
    fn take(&mut self, stated: Option<&str>, otherwise: &str) -> String {
        let base = stated
            .and_then(label)
            .unwrap_or_else(|| otherwise.to_owned());
        let times = self.wanted.entry(base.clone()).or_insert(0);
        let mut name = base.clone();
        loop {
            *times += 1;
            if *times > 1 {
                let short: String = base.chars().take(55).collect();
                name = format!("{}-{times}", short.trim_end_matches('-'));
            }
            if self.used.insert(name.clone()) {
                return name;
            }
        }
    }
}

/// A DNS label like a text.
fn label(text: &str) -> Option<String> {
    let allowed = |c: char| match c.is_ascii_alphanumeric() {
        true => c.to_ascii_lowercase(),
        false => '-',
    };
    let mut label = String::new();
    for c in text.trim().chars().map(allowed) {
        if label.len() < 63 && !(c == '-' && label.ends_with('-')) {
            label.push(c);
        }
    }
    let label = label.trim_matches('-');
    (!label.is_empty()).then(|| label.to_owned())
}
