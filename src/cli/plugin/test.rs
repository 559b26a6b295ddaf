//! `natpunch plugin test`: a program of somebody's, held to the rules of plugins.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use natpunch_plugin_exec::{Program, trial};
use nix::unistd::{Uid, User};

use super::args::PluginTestArgs;
use crate::cli::CliError;
use crate::cli::exit::Exit;

pub(super) fn run(args: &PluginTestArgs) -> Result<ExitCode, CliError> {
    let program = program(args)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    // What it writes to standard error is in the log, which goes to standard error, too.
    let report = runtime.block_on(trial::run(&program));
    let mut out = anstream::stdout().lock();
    write!(out, "{report}")?;
    let broken = report
        .checked
        .iter()
        .filter(|rule| report.of(**rule).next().is_some())
        .count();
    if broken == 0 {
        writeln!(out, "It keeps all {} rules.", report.checked.len())?;
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(
        out,
        "It breaks {broken} of {} rules; docs/reference/plugin-protocol.md has the protocol.",
        report.checked.len()
    )?;
    Ok(Exit::Failure.into())
}

/// What the mesh file would say.
fn program(args: &PluginTestArgs) -> Result<Program, CliError> {
    let mut command = args.command.clone();
    let file = command.first().map(|name| find(name)).transpose()?;
    let file = file.unwrap_or_default();
    let name = file
        .to_str()
        .ok_or_else(|| CliError::new(format!("{}: not UTF-8", file.display())))?;
    if let Some(first) = command.first_mut() {
        *first = name.to_owned();
    }
    let user = match &args.user {
        Some(user) => user.clone(),
        None => own_user()?,
    };
    // It is tested where it is written, and not where it will be installed.
    let beside = file.parent().map(Path::to_owned);
    let named = args.command.iter().skip(1).map(PathBuf::from);
    let read_paths = args.read.iter().cloned();
    let read_paths = read_paths
        .chain(beside)
        .chain(named.filter(|path| path.is_absolute() && path.exists()));
    Ok(Program {
        command,
        user,
        meetings: args.meetings,
        read_paths: read_paths.map(absolute).collect(),
        write_paths: args.write.iter().cloned().map(absolute).collect(),
        settings: args.set.iter().cloned().collect(),
    })
}

fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}

/// The program of this name: a path, or one in the directories of `PATH`.
fn find(name: &str) -> Result<PathBuf, CliError> {
    if name.contains('/') {
        return Ok(absolute(name.into()));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|file| file.is_file())
        .ok_or_else(|| {
            let error = CliError::new(format!("there is no program {name} in PATH"));
            error.help(format!("for a file in this directory write ./{name}"))
        })
}

fn own_user() -> Result<String, CliError> {
    let uid = Uid::effective();
    match User::from_uid(uid) {
        Ok(Some(user)) => Ok(user.name),
        Ok(None) => Err(CliError::new(format!("user {uid} has no name"))
            .help("name the user to run it as by --user")),
        Err(error) => Err(CliError::new(format!("can't look for user {uid}: {error}"))),
    }
}
