//! The command line: parse, dispatch to one file per command, map results to exit codes.

pub mod args;
mod completions;
mod demo;
pub mod exit;
pub mod json;
mod keys;
mod log;
mod manual;
mod mesh;
mod node;
pub mod plugin;
pub mod report;
pub mod serve;
#[cfg(test)]
mod shown;
mod table;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Parser as _;
use tracing_subscriber::EnvFilter;

use args::{Cli, Command, LogFormat};
pub use report::CliError;

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // With standard error closed there is nobody to tell.
            let _ = error.print();
            // `--help` and `--version` are such errors, too.
            return match error.use_stderr() {
                true => exit::Exit::Usage.into(),
                false => ExitCode::SUCCESS,
            };
        }
    };
    if let Command::Apply(_)
    | Command::Serve(_)
    | Command::Device(_)
    | Command::Forwarder(_)
    | Command::Guard(_) = cli.command
    {
        // They hold keys for as long as they run, or read them, which a dump of memory, or another process of
        // this user, would show.
        let _ = nix::sys::prctl::set_dumpable(false);
    }
    let done = start_log(&cli).and_then(|()| match cli.command {
        Command::Apply(args) => node::apply::run(args),
        Command::Plan(args) => node::plan::run(&args),
        Command::Confirm(args) => node::confirm::run(&args),
        Command::Check(args) => mesh::check::run(&args),
        Command::Diff(args) => mesh::diff::run(&args),
        Command::Init(args) => mesh::init::run(&args),
        Command::AddPeer(args) => mesh::add_peer::run(args),
        Command::EditPeer(args) => mesh::edit_peer::edit(&args),
        Command::RenamePeer(args) => mesh::edit_peer::rename(&args),
        Command::RotateKey(args) => mesh::edit_peer::rotate_key(&args),
        Command::RemovePeer(args) => mesh::remove_peer::run(&args),
        Command::Invite(args) => mesh::invite::run(&args),
        Command::Join(args) => node::join::run(&args),
        Command::Import(args) => mesh::import::run(&args),
        Command::Export(args) => mesh::export::run(&args),
        Command::Graph(args) => mesh::graph::run(&args),
        Command::Status(args) if args.mesh => node::revisions::run(&args),
        Command::Status(args) => node::status::run(&args),
        Command::Top(args) => node::top::run(&args),
        Command::Web(args) => node::web::run(&args),
        Command::Why(args) => node::why::run(&args),
        Command::Ping(args) => node::ping::run(&args),
        Command::Doctor(args) => node::doctor::run(&args),
        Command::Reload(args) => node::reload::run(&args),
        Command::Down(args) => node::down::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::Demo(args) => demo::run(args),
        Command::Keygen(args) => keys::keygen::run(&args),
        Command::Encrypt(args) => keys::encrypt::run(&args),
        Command::Pubkey(args) => keys::pubkey::run(&args),
        Command::Schema(args) => mesh::schema::run(&args),
        Command::Plugin(command) => plugin::run(&command),
        Command::Completions(args) => completions::run(&args),
        Command::Manual(args) => manual::run(&args),
        Command::Device(args) => node::device::run(args),
        Command::Forwarder(args) => node::device::run_forwarder(&args),
        Command::PinForwarder(args) => node::device::run_pin_forwarder(&args),
        Command::Guard(args) => node::device::run_guard(&args),
    });
    done.unwrap_or_else(|error| error.report())
}

/// Log lines go to standard error: standard output is for results.
fn start_log(cli: &Cli) -> Result<(), CliError> {
    const VARIABLE: &str = "NATPUNCH_LOG";
    let (filter, from) = match (&cli.log, std::env::var(VARIABLE)) {
        (Some(filter), _) => (filter.clone(), "--log"),
        (None, Ok(filter)) => (filter, VARIABLE),
        (None, Err(_)) => ("info".to_owned(), "default"),
    };
    let filter = EnvFilter::try_new(&filter).map_err(|error| {
        CliError::new(format!("{from}: `{filter}` is not a log filter: {error}"))
            .help("write a level (error, warn, info, debug, trace) or parts with levels: natpunch=debug,info")
    })?;
    let (json, journal) = (cli.log_format == LogFormat::Json, log::is_journal());
    let writer = log::Limited::new(std::io::stderr(), json, journal);
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer);
    // A second subscriber in one process (tests) changes nothing.
    let _ = match cli.log_format {
        LogFormat::Text if journal => log
            .with_ansi(false)
            .with_target(false)
            .without_time()
            .try_init(),
        LogFormat::Text => log
            .with_ansi(std::io::stderr().is_terminal())
            .with_target(false)
            .try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    };
    Ok(())
}
