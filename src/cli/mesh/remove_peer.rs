//! `natpunch remove-peer`: a peer less in the mesh file.

use std::io::Write as _;
use std::process::ExitCode;

use super::add_peer::no_such_peer;
use crate::cli::CliError;
use crate::cli::args::RemovePeerArgs;
use crate::config::{self, Edit, MeshConfig, SecretSource};
use crate::plugins::registry;

pub(in crate::cli) fn run(args: &RemovePeerArgs) -> Result<ExitCode, CliError> {
    let path = &args.mesh.path;
    let Some(mut edit) = Edit::for_peer(path, &args.name, &registry::kinds())? else {
        if args.if_present {
            writeln!(
                anstream::stdout(),
                "{}: there is no peer {}: nothing changed",
                path.display(),
                args.name
            )?;
            return Ok(ExitCode::SUCCESS);
        }
        return Err(no_such_peer(&config::load(path)?, path, &args.name)
            .help("with --if-present this is no error"));
    };
    let secrets = match edit.mesh().peers.get(&args.name) {
        Some(peer) if peer.managed => secrets_of(edit.mesh()),
        _ => Vec::new(),
    };
    edit.remove_peer(&args.name);
    edit.write()?;
    writeln!(
        anstream::stdout(),
        "removed {} from {}",
        args.name,
        edit.file().display()
    )?;
    if !secrets.is_empty() {
        // With standard error closed there is nobody to tell.
        let _ = writeln!(
            anstream::stderr(),
            "{} still knows {}: if it is in other hands, change that (docs/how-to/secrets.md)",
            args.name,
            secrets.join(", ")
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// What every node knows beside its own keys, as the mesh file names it.
fn secrets_of(mesh: &MeshConfig) -> Vec<String> {
    let asked = mesh.discovery.iter().flat_map(|instance| {
        let files = instance.about.secrets.iter();
        files.map(|secret| format!("{} of discovery.{}", secret.key, instance.name))
    });
    let preshared = match &mesh.preshared_secret {
        Some(SecretSource::File(_)) => Some("preshared_secret_file of [mesh]".to_owned()),
        Some(SecretSource::Age(_)) => Some("preshared_secret_age of [mesh]".to_owned()),
        None => None,
    };
    asked.chain(preshared).collect()
}
