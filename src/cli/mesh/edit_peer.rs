//! `natpunch edit-peer`, `rename-peer` and `rotate-key`: changes of a peer in the mesh file.

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use super::add_peer::no_such_peer;
use crate::cli::CliError;
use crate::cli::args::{EditPeerArgs, RenamePeerArgs, RotateKeyArgs};
use crate::config::{self, Edit, SecretSource};
use crate::plugins::registry;

pub(in crate::cli) fn edit(args: &EditPeerArgs) -> Result<ExitCode, CliError> {
    let mut edit = open(&args.mesh.path, &args.name)?;
    for pair in &args.set {
        let (key, value) = pair.split_once('=').ok_or_else(|| {
            CliError::new(format!("`{pair}` has no `=`"))
                .help("write KEY=VALUE, such as endpoint=nas.example.org:51820")
        })?;
        edit.set(&args.name, key.trim(), Some(value.trim()))?;
    }
    for key in &args.unset {
        edit.set(&args.name, key, None)?;
    }
    edit.write()?;
    said(&edit, format_args!("changed {}", args.name))
}

pub(in crate::cli) fn rename(args: &RenamePeerArgs) -> Result<ExitCode, CliError> {
    let mut edit = open(&args.mesh.path, &args.name)?;
    if edit.mesh().peers.contains_key(&args.new_name) {
        return Err(CliError::new(format!(
            "{}: there is a peer `{}` already",
            args.mesh.path.display(),
            args.new_name
        ))
        .help("choose another name"));
    }
    edit.rename_peer(&args.name, &args.new_name);
    edit.write()?;
    said(
        &edit,
        format_args!("renamed {} to {}", args.name, args.new_name),
    )
}

pub(in crate::cli) fn rotate_key(args: &RotateKeyArgs) -> Result<ExitCode, CliError> {
    let file = &args.private_key_file;
    let mut edit = open(&args.mesh.path, &args.name)?;
    let mesh = edit.mesh();
    let own = mesh.peers.get(&args.name);
    let managed = own.is_none_or(|peer| peer.managed);
    let used = own.and_then(|peer| peer.interface.private_key.as_ref());
    if managed && !file.is_absolute() {
        return Err(
            CliError::new(format!("{} is not an absolute path", file.display())).help(
                "name the file as it is on the peer's machine, such as /etc/natpunch/home-2.key",
            ),
        );
    }
    let used = used.or(mesh.interface.private_key.as_ref());
    if matches!(used, Some(SecretSource::File(used)) if used == file) {
        return Err(
            CliError::new(format!("{} holds the key that is in use", file.display()))
                .help("name a new file: the old key works until the change has arrived"),
        );
    }
    let set = |edit: &mut Edit, key: &str| -> Result<(), CliError> {
        edit.set(&args.name, "public_key", Some(&format!("\"{key}\"")))?;
        if managed {
            let path = file.display().to_string();
            let path = toml_edit::Value::from(path).to_string();
            edit.set(&args.name, "interface.private_key_age", None)?;
            edit.set(&args.name, "interface.private_key_file", Some(path.trim()))?;
        }
        Ok(())
    };
    let key = match &args.public_key {
        Some(key) => *key,
        None => {
            // With any key the rest must be right before one is made.
            let mut trial = open(&args.mesh.path, &args.name)?;
            set(
                &mut trial,
                &config::new_private_key()?.public_key().to_string(),
            )?;
            trial.check()?;
            config::new_key_file(file)?.0.public_key()
        }
    };
    set(&mut edit, &key.to_string())?;
    edit.write()?;
    said(
        &edit,
        format_args!(
            "{} has the key {key}, which {} holds on its machine",
            args.name,
            file.display()
        ),
    )
}

fn open(path: &Path, name: &str) -> Result<Edit, CliError> {
    match Edit::for_peer(path, name, &registry::kinds())? {
        Some(edit) => Ok(edit),
        None => Err(no_such_peer(&config::load(path)?, path, name)),
    }
}

fn said(edit: &Edit, what: std::fmt::Arguments<'_>) -> Result<ExitCode, CliError> {
    let file = edit.file().display();
    writeln!(anstream::stdout(), "{file}: {what}")?;
    Ok(ExitCode::SUCCESS)
}
