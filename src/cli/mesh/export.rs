//! `natpunch export`: the wg-quick file of a peer, as text, QR code or picture.

use std::io::Write as _;
use std::process::ExitCode;

use qrcode::render::{svg, unicode};
use qrcode::{EcLevel, QrCode};
use zeroize::Zeroizing;

use super::add_peer::no_such_peer;
use crate::cli::CliError;
use crate::cli::args::ExportArgs;
use crate::config::{self, Local, MeshConfig, WgQuick, WgQuickPeer};

fn local(args: &ExportArgs) -> Local {
    Local {
        age_identity_file: args.age_identity.clone(),
        ..Local::default()
    }
}

pub(in crate::cli) fn run(args: &ExportArgs) -> Result<ExitCode, CliError> {
    let mesh = config::load(&args.mesh.path)?;
    let mut file = wg_quick(&mesh, args)?;
    if let Some(key_file) = &args.private_key_file {
        let key = config::read_key_file(key_file)?;
        let stated = mesh.peers.get(&args.peer).map(|peer| peer.public_key);
        if stated != Some(key.public_key()) {
            return Err(CliError::new(format!(
                "{} does not hold the key of `{}`",
                key_file.display(),
                args.peer
            ))
            .help("its public key is another one than the mesh file says"));
        }
        file.private_key = Some(key);
    } else if args.age_identity.is_some() {
        file.private_key = config::private_key_of(&mesh, &args.peer, &local(args))?;
    }
    let picture = args.qr || args.svg.is_some();
    if picture && file.private_key.is_none() {
        return Err(CliError::new("a QR code without the private key is of no use").help(
            "say --private-key-file FILE; or make a key pair for it with `natpunch add-peer --private-key-file`",
        ));
    }
    if picture {
        // Remarks are for people; a smaller code is read more easily.
        file.remarks.clear();
    }
    let text = config::format_wg_quick(&file);
    if let Some(output) = &args.output {
        config::create_secret_file(output, text.as_bytes())?;
    }
    if picture {
        let code =
            QrCode::with_error_correction_level(text.as_bytes(), EcLevel::L).map_err(|_| {
                CliError::new(format!("{} bytes are too many for a QR code", text.len()))
                    .help("give the peer fewer others, or bring it the file by --output")
            })?;
        if let Some(output) = &args.svg {
            let picture = Zeroizing::new(
                code.render::<svg::Color<'_>>()
                    .min_dimensions(512, 512)
                    .build(),
            );
            config::create_secret_file(output, picture.as_bytes())?;
        }
        if args.qr {
            // Light modules are printed: most terminals are dark, and readers take both.
            let picture = Zeroizing::new(
                code.render::<unicode::Dense1x2>()
                    .dark_color(unicode::Dense1x2::Light)
                    .light_color(unicode::Dense1x2::Dark)
                    .build(),
            );
            writeln!(std::io::stdout().lock(), "{}", picture.as_str())?;
        }
    } else if args.output.is_none() {
        std::io::stdout().lock().write_all(text.as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What a peer's file says: itself, and every other peer of which one side can reach the other.
fn wg_quick(mesh: &MeshConfig, args: &ExportArgs) -> Result<WgQuick, CliError> {
    let name = &args.peer;
    let own = mesh
        .peers
        .get(name)
        .ok_or_else(|| no_such_peer(mesh, &args.mesh.path, name))?;
    let reachable = |endpoint: &Option<String>| endpoint.is_some() || own.endpoint.is_some();
    let (peers, hidden): (Vec<_>, Vec<_>) = config::peers_of(mesh, name, &local(args))?
        .into_iter()
        .partition(|peer| reachable(&peer.endpoint));
    Ok(WgQuick {
        private_key: None,
        name: Some(name.clone()),
        addresses: config::own_addresses(mesh, own),
        // The others send to the endpoint's port, so the file says where that leads.
        listen_port: own
            .interface
            .listen_port
            .or_else(|| config::endpoint_listen_port(mesh, own)),
        mtu: own.interface.mtu.or(mesh.interface.mtu),
        fwmark: own.interface.fwmark,
        external: false,
        peers: peers
            .into_iter()
            .map(|peer| WgQuickPeer {
                allowed_ips: match own.exit_node.as_ref() == Some(&peer.name) {
                    // Both families, also the one that the exit node has no address of: what is
                    // not allowed to any peer leaves the device outside of the tunnel.
                    true => config::with_default_routes(peer.allowed_ips),
                    false => peer.allowed_ips,
                },
                public_key: peer.key,
                name: Some(peer.name),
                preshared_key: peer.preshared_key,
                endpoint: peer.endpoint,
                line: 0,
                allowed_lines: Vec::new(),
                persistent_keepalive: peer
                    .persistent_keepalive
                    .and_then(|every| u16::try_from(every.as_secs()).ok()),
            })
            .collect(),
        remarks: hidden
            .iter()
            .map(|peer| format!("{} is left out: neither side has an endpoint", peer.name))
            .collect(),
        table: None,
        unsupported: Vec::new(),
    })
}
