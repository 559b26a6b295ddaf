//! `natpunch import`: a mesh file from a file of wg-quick or a running interface. Keys go to files
//! of their own.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use natpunch_types::PeerKey;
use zeroize::Zeroizing;

use crate::cli::CliError;
use crate::cli::args::ImportArgs;
use crate::config::{self, ImportedMesh, ImportedPreshared, NewPeer, WgQuick, WgQuickPeer};

pub(in crate::cli) fn run(args: &ImportArgs) -> Result<ExitCode, CliError> {
    let (source, file) = match (&args.interface, &args.private_key_file, &args.file) {
        (Some(interface), Some(key_file), _) => {
            (interface.clone(), from_interface(interface, key_file)?)
        }
        (_, _, Some(file)) => (file.display().to_string(), from_file(file)?),
        _ => {
            return Err(CliError::new(
                "name a file, or an interface with --interface",
            ));
        }
    };
    let mut lost: Vec<String> = file
        .left_out
        .iter()
        .map(|key| format!("{key} has no counterpart"))
        .collect();
    let mesh = convert(args, &source, &file, &mut lost)?;
    let text = config::imported_text(&args.output, &mesh)?;
    for lost in &lost {
        // With standard error closed there is nobody to tell.
        let _ = writeln!(anstream::stderr(), "left out: {lost}");
    }
    if args.dry_run {
        std::io::stdout().lock().write_all(text.as_bytes())?;
        return Ok(ExitCode::SUCCESS);
    }
    config::write_imported(&args.output, &mesh, &text)?;
    let mut out = anstream::stdout();
    let path = args.output.display();
    writeln!(
        out,
        "made {path}: mesh {} with {} peers, this one is {}",
        mesh.name,
        mesh.peers.len(),
        mesh.own
    )?;
    if !mesh.private_key_is_there {
        writeln!(
            out,
            "made {}, which is for {} only",
            mesh.private_key_file.display(),
            mesh.own
        )?;
    }
    for psk in &mesh.preshared {
        writeln!(
            out,
            "made {}, which is for {} and {} only",
            psk.file.display(),
            mesh.own,
            psk.peer
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

fn from_file(file: &Path) -> Result<WgQuick, CliError> {
    let shown = file.display();
    let failed = |error: std::io::Error| CliError::new(format!("can't read {shown}: {error}"));
    let mut text = Zeroizing::new(String::new());
    let open = std::fs::File::open(file).map_err(failed)?;
    open.take(config::WG_QUICK_LONGEST)
        .read_to_string(&mut text)
        .map_err(failed)?;
    config::parse_wg_quick(&text).map_err(|error| CliError::new(format!("{shown}: {error}")))
}

/// What a running interface would say in a file. The device tells everybody's keys but its own.
fn from_interface(name: &str, key_file: &Path) -> Result<WgQuick, CliError> {
    let observed = natpunch_wg::observe(name).map_err(|error| CliError::new(error.to_string()))?;
    let private_key = config::read_key_file(key_file)?;
    let device = observed.state.snapshot;
    if device.public_key != Some(private_key.public_key()) {
        return Err(CliError::new(format!(
            "{} does not hold the key of {name}",
            key_file.display()
        ))
        .help("the key that it has now: `wg show NAME private-key`, into a file with mode 0600"));
    }
    let peers = device.peers.iter().map(|peer| WgQuickPeer {
        public_key: peer.key,
        name: None,
        preshared_key: observed.state.preshared.get(&peer.key).cloned(),
        allowed_ips: peer.allowed_ips.clone(),
        endpoint: peer.endpoint.map(|endpoint| endpoint.to_string()),
        persistent_keepalive: peer
            .persistent_keepalive
            .and_then(|every| u16::try_from(every.as_secs()).ok()),
    });
    Ok(WgQuick {
        private_key: Some(private_key),
        name: None,
        addresses: observed.addresses,
        listen_port: Some(device.listen_port).filter(|port| *port != 0),
        mtu: Some(observed.mtu),
        fwmark: Some(device.fwmark),
        external: observed.backend == natpunch_wg::BackendKind::External,
        peers: peers.collect(),
        remarks: Vec::new(),
        left_out: Vec::new(),
    })
}

fn convert(
    args: &ImportArgs,
    shown: &str,
    file: &WgQuick,
    lost: &mut Vec<String>,
) -> Result<ImportedMesh, CliError> {
    let private_key = file.private_key.clone().ok_or_else(|| {
        CliError::new(format!("{shown}: [Interface] has no PrivateKey"))
            .help("import the file of the running interface")
    })?;
    let stem = args
        .file
        .as_ref()
        .and_then(|file| file.file_stem())
        .map(|stem| stem.to_string_lossy().into_owned());
    let interface = args.interface.clone().or(stem).unwrap_or_default();
    let mut used = BTreeSet::new();
    let own = name(
        &mut used,
        args.name.as_deref().or(file.name.as_deref()),
        "this-node",
    );
    let addresses: Vec<IpNet> = if args.address.is_empty() {
        file.addresses.clone()
    } else {
        args.address.clone()
    };
    if addresses.is_empty() {
        return Err(
            CliError::new(format!("{shown}: [Interface] has no Address"))
                .help("`wg showconf` does not print it: say --address 10.0.0.1/24"),
        );
    }
    let hosts: Vec<IpAddr> = file
        .peers
        .iter()
        .flat_map(|peer| &peer.allowed_ips)
        .filter(|net| net.prefix_len() == net.max_prefix_len())
        .map(IpNet::addr)
        .collect();
    let mut networks: Vec<IpNet> = args.network.clone();
    for address in addresses.iter().filter(|_| args.network.is_empty()) {
        let network = network_of(address, &hosts).trunc();
        if !networks.iter().any(|other| other.contains(&network)) {
            networks.retain(|other| !network.contains(other));
            networks.push(network);
        }
    }
    let inside = |ip: IpAddr| networks.iter().any(|network| network.contains(&ip));
    let mut peers = vec![NewPeer {
        name: own.clone(),
        public_key: private_key.public_key(),
        addresses: addresses.iter().map(IpNet::addr).collect(),
        routes: Vec::new(),
        exit: false,
        exit_node: None,
        endpoint: None,
        managed: true,
        tags: Vec::new(),
        persistent_keepalive: None,
    }];
    let mut preshared = Vec::new();
    for (index, peer) in file.peers.iter().enumerate() {
        let name = name(
            &mut used,
            peer.name.as_deref(),
            &format!("peer-{}", index + 1),
        );
        let mut new = new_peer(&name, peer.public_key, args.managed);
        new.endpoint.clone_from(&peer.endpoint);
        new.persistent_keepalive = peer.persistent_keepalive;
        new.addresses.extend(
            args.peer_address
                .iter()
                .filter(|given| given.0 == name)
                .map(|given| given.1),
        );
        for net in &peer.allowed_ips {
            if net.prefix_len() == 0 {
                new.exit = true;
            } else if networks.iter().any(|network| net.contains(network)) {
                lost.push(format!(
                    "{net} of `{name}`: in a mesh every peer has addresses of its own"
                ));
            } else if net.prefix_len() == net.max_prefix_len() && inside(net.addr()) {
                if !new.addresses.contains(&net.addr()) {
                    new.addresses.push(net.addr());
                }
            } else {
                new.routes.push(*net);
            }
        }
        if new.addresses.is_empty() {
            return Err(CliError::new(format!(
                "{shown}: the peer `{name}` has no address of its own in its AllowedIPs"
            ))
            .help(format!(
                "say which one it has: --peer-address {name}=10.0.0.1"
            )));
        }
        if let Some(key) = &peer.preshared_key {
            let file = beside(&args.output, &format!("{own}-{name}.psk"));
            preshared.push(ImportedPreshared {
                peer: name.clone(),
                file,
                key: key.clone(),
            });
        }
        if let (true, Some(own)) = (new.exit, peers.first_mut()) {
            own.exit_node = Some(name);
        }
        peers.push(new);
    }
    Ok(ImportedMesh {
        name: label(args.mesh_name.as_deref().unwrap_or(&interface))
            .unwrap_or_else(|| "home".to_owned()),
        networks,
        interface,
        private_key_file: match &args.private_key_file {
            // The mesh file is elsewhere: the way to the key must not depend on where.
            Some(file) => std::path::absolute(file)?,
            None => beside(&args.output, &format!("{own}.key")),
        },
        private_key_is_there: args.private_key_file.is_some(),
        own,
        private_key,
        listen_port: file.listen_port,
        mtu: file.mtu,
        fwmark: file.fwmark,
        external: file.external,
        peers,
        preshared,
    })
}

fn new_peer(name: &str, public_key: PeerKey, managed: bool) -> NewPeer {
    NewPeer {
        name: name.to_owned(),
        public_key,
        addresses: Vec::new(),
        routes: Vec::new(),
        exit: false,
        exit_node: None,
        endpoint: None,
        managed,
        tags: Vec::new(),
        persistent_keepalive: None,
    }
}

fn beside(output: &Path, name: &str) -> PathBuf {
    output
        .parent()
        .map_or_else(|| PathBuf::from(name), |directory| directory.join(name))
}

/// The mesh network of an address: what its prefix says, else the smallest usual one around it and
/// the peers.
fn network_of(address: &IpNet, hosts: &[IpAddr]) -> IpNet {
    if address.prefix_len() < address.max_prefix_len() {
        return *address;
    }
    let usual = if address.addr().is_ipv4() { 24 } else { 64 };
    let least = if address.addr().is_ipv4() { 8 } else { 32 };
    let wider = |length: u8| match address.addr() {
        IpAddr::V4(ip) => Ipv4Net::new(ip, length).map(IpNet::from).ok(),
        IpAddr::V6(ip) => Ipv6Net::new(ip, length).map(IpNet::from).ok(),
    };
    let same = |ip: &&IpAddr| ip.is_ipv4() == address.addr().is_ipv4();
    let around = |network: &IpNet| hosts.iter().filter(same).all(|host| network.contains(host));
    let found = (least..=usual).rev().filter_map(wider).find(around);
    found.or_else(|| wider(usual)).unwrap_or(*address)
}

/// A DNS label that nobody has yet.
fn name(used: &mut BTreeSet<String>, stated: Option<&str>, otherwise: &str) -> String {
    let base = stated
        .and_then(label)
        .unwrap_or_else(|| otherwise.to_owned());
    let mut name = base.clone();
    let mut n = 1;
    while !used.insert(name.clone()) {
        n += 1;
        name = format!("{}-{n}", base.chars().take(55).collect::<String>());
    }
    name
}

/// A DNS label like a text.
fn label(text: &str) -> Option<String> {
    let allowed = |c: char| {
        if c.is_ascii_alphanumeric() {
            c.to_ascii_lowercase()
        } else {
            '-'
        }
    };
    let mut label: String = text.trim().chars().map(allowed).take(63).collect();
    while label.contains("--") {
        label = label.replace("--", "-");
    }
    let label = label.trim_matches('-');
    (!label.is_empty()).then(|| label.to_owned())
}
