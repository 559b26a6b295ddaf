//! `natpunch remove-peer`: a peer less in the mesh file.

use std::io::Write as _;
use std::process::ExitCode;

use super::add_peer::no_such_peer;
use crate::cli::CliError;
use crate::cli::args::RemovePeerArgs;
use crate::config::{self, Edit};
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
    edit.remove_peer(&args.name);
    edit.write()?;
    writeln!(
        anstream::stdout(),
        "removed {} from {}",
        args.name,
        edit.file().display()
    )?;
    Ok(ExitCode::SUCCESS)
}
