//! `natpunch import`: a mesh file from a file of wg-quick or a running interface. Keys go to files
//! of their own.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use zeroize::Zeroizing;

use crate::cli::CliError;
use crate::cli::args::ImportArgs;
use crate::config::{self, ImportOptions, WgQuick, WgQuickPeer};
use crate::plugins::registry;

pub(in crate::cli) fn run(args: &ImportArgs) -> Result<ExitCode, CliError> {
    let (source, file) = match (&args.interface, &args.private_key_file, &args.file) {
        (Some(interface), Some(key_file), _) => (
            PathBuf::from(interface),
            from_interface(interface, key_file)?,
        ),
        (_, _, Some(file)) => (file.clone(), from_file(file)?),
        _ => {
            return Err(CliError::new(
                "name a file, or an interface with --interface",
            ));
        }
    };
    let (mesh, lost) = config::convert_wg_quick(&file, &options(args, source)?)?;
    let text = config::imported_text(&args.output, &mesh, &registry::kinds())?;
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

/// What is asked for beside the file.
fn options(args: &ImportArgs, source: PathBuf) -> Result<ImportOptions, CliError> {
    let stem = args.file.as_ref().and_then(|file| file.file_stem());
    let stem = stem.map(|stem| stem.to_string_lossy().into_owned());
    // The mesh file may be elsewhere: the way to the key must not depend on where.
    let key_file = args.private_key_file.as_ref().map(std::path::absolute);
    Ok(ImportOptions {
        source,
        interface: args.interface.clone().or(stem).unwrap_or_default(),
        mesh_name: args.mesh_name.clone(),
        name: args.name.clone(),
        addresses: args.address.clone(),
        networks: args.network.clone(),
        peer_addresses: args.peer_address.clone(),
        managed: args.managed,
        output: args.output.clone(),
        private_key_file: key_file.transpose()?,
        leave_out: args.leave_out.iter().cloned().collect(),
        running: args.interface.is_some(),
    })
}

fn from_file(file: &Path) -> Result<WgQuick, CliError> {
    let shown = file.display();
    let mut bytes = Zeroizing::new(Vec::new());
    let open = std::fs::File::open(file).map_err(|error| unreadable(file, &error))?;
    open.take(config::WG_QUICK_LONGEST)
        .read_to_end(&mut bytes)
        .map_err(|error| unreadable(file, &error))?;
    let parsed = config::decode_wg_quick(&bytes).and_then(|text| config::parse_wg_quick(&text));
    parsed.map_err(|error| {
        let error = CliError::new(format!("{shown}:{}: {}", error.line, error.problem));
        if file
            .extension()
            .is_some_and(|extension| extension == "toml")
        {
            return error.help("import reads files of wg-quick; this looks like a mesh file");
        }
        error.help("import reads a file of wg-quick, such as /etc/wireguard/wg0.conf")
    })
}

/// The error of a file that can't be read, with those that were likely meant.
fn unreadable(file: &Path, error: &std::io::Error) -> CliError {
    let message = format!(
        "can't read {}: {}",
        file.display(),
        natpunch_os::reason(error)
    );
    let error = CliError::new(message);
    let conf = |directory: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        let files = entries.map(|entry| entry.path());
        let is_conf = |file: &PathBuf| file.extension().is_some_and(|end| end == "conf");
        files.filter(is_conf).collect()
    };
    let here = file
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let mut found = conf(here.unwrap_or(Path::new(".")));
    if found.is_empty() {
        found = conf(Path::new("/etc/wireguard"));
    }
    found.sort();
    let shown: Vec<String> = found
        .iter()
        .take(8)
        .map(|file| {
            file.strip_prefix("./")
                .unwrap_or(file)
                .display()
                .to_string()
        })
        .collect();
    match shown.is_empty() {
        true => error.help("name a file of wg-quick, such as /etc/wireguard/wg0.conf"),
        false => error.help(format!("there is: {}", shown.join(", "))),
    }
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
        line: 0,
        allowed_lines: Vec::new(),
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
        table: None,
        unsupported: Vec::new(),
    })
}
