//! `natpunch add-peer`: a new peer in the mesh file.

use std::io::Write as _;
use std::process::ExitCode;

use natpunch_types::PeerKey;

use crate::cli::CliError;
use crate::cli::args::AddPeerArgs;
use crate::config::{self, Edit, MeshConfig, NewPeer, PeerConfig};
use crate::plugins::registry;

pub(in crate::cli) fn run(args: AddPeerArgs) -> Result<ExitCode, CliError> {
    let kinds = registry::kinds();
    let open = || Edit::for_new_peer(&args.mesh.path, args.file.as_deref(), &args.name, &kinds);
    let mut edit = open()?;
    if let Some(there) = edit.mesh().peers.get(&args.name) {
        return already_there(&args, there);
    }
    let placeholder = PeerKey::from_bytes([0; 32]);
    let addresses = if args.address.is_empty() {
        config::free_addresses(edit.mesh())?
    } else {
        args.address.clone()
    };
    let mut peer = NewPeer {
        name: args.name.clone(),
        public_key: args.public_key.unwrap_or(placeholder),
        addresses,
        routes: args.route,
        exit: false,
        exit_node: None,
        endpoint: args.endpoint,
        managed: !args.unmanaged,
        tags: args.tag,
        persistent_keepalive: None,
    };
    if let Some(file) = &args.private_key_file {
        // With any key the rest must be right before a key is made.
        let any = config::new_private_key()?.public_key();
        let mut trial = open()?;
        trial.add_peer(&NewPeer {
            public_key: any,
            ..peer.clone()
        });
        trial.check()?;
        let (key, new) = config::new_key_file(file)?;
        peer.public_key = key.public_key();
        let did = if new { "made" } else { "uses the key of" };
        // With standard error closed there is nobody to tell.
        let _ = writeln!(
            anstream::stderr(),
            "{did} {}: keep it on {} only",
            file.display(),
            args.name
        );
    }
    edit.add_peer(&peer);
    edit.write()?;
    let addresses: Vec<String> = peer.addresses.iter().map(ToString::to_string).collect();
    let file = edit.file().display();
    writeln!(
        anstream::stdout(),
        "added {} to {file}: {} {}",
        peer.name,
        addresses.join(" "),
        peer.public_key
    )?;
    Ok(ExitCode::SUCCESS)
}

/// Saying the same again changes nothing; saying something else of the same name is an error.
fn already_there(args: &AddPeerArgs, there: &PeerConfig) -> Result<ExitCode, CliError> {
    let public_key = match &args.private_key_file {
        Some(file) if file.exists() => Some(config::new_key_file(file)?.0.public_key()),
        Some(_) => None,
        None => args.public_key,
    };
    let mut differs = Vec::new();
    if public_key != Some(there.public_key) {
        differs.push("public_key");
    }
    if !args.address.is_empty() && args.address != there.addresses {
        differs.push("addresses");
    }
    if args.route != there.routes {
        differs.push("routes");
    }
    if args.endpoint != there.endpoint {
        differs.push("endpoint");
    }
    if args.unmanaged == there.managed {
        differs.push("managed");
    }
    if args.tag != there.tags {
        differs.push("tags");
    }
    if differs.is_empty() {
        writeln!(
            anstream::stdout(),
            "{} is there already, with all of this: nothing changed",
            args.name
        )?;
        return Ok(ExitCode::SUCCESS);
    }
    let path = args.mesh.path.display();
    Err(CliError::new(format!(
        "{path}: `{}` is there already, with another {}",
        args.name,
        differs.join(", ")
    ))
    .help("change it in the file, or remove it first: `natpunch remove-peer`"))
}

/// The error of a name that no peer has.
pub(super) fn no_such_peer(mesh: &MeshConfig, path: &std::path::Path, name: &str) -> CliError {
    let error = CliError::new(format!("{}: there is no peer `{name}`", path.display()));
    match config::similar_peer(mesh, name) {
        Some(best) => error.help(format!("did you mean `{best}`?")),
        None => {
            const SHOWN: usize = 8;
            let mut names: Vec<&str> = mesh.peers.keys().take(SHOWN).map(String::as_str).collect();
            if mesh.peers.len() > SHOWN {
                names.push("…");
            }
            error.help(format!("its peers: {}", names.join(", ")))
        }
    }
}
