//! The command line: parse, dispatch to one file per command, map results to exit codes.
//!
//! Exit codes: 0 done, 1 error, 2 `plan` found changes (or wrong usage), 3 `apply --once` passed
//! its deadline.

mod add_peer;
mod agents;
mod apply;
pub mod args;
mod check;
mod completions;
mod confirm;
mod demo;
mod device;
mod down;
mod encrypt;
mod export;
mod graph;
mod import;
mod init;
mod keygen;
mod log;
mod plan;
mod pubkey;
mod reload;
mod remove_peer;
pub mod report;
mod revisions;
pub mod schema;
pub mod serve;
mod status;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Parser as _;
use tracing_subscriber::EnvFilter;

use args::{Cli, Command, LogFormat};
pub use report::CliError;

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = start_log(&cli).and_then(|()| match cli.command {
        Command::Apply(args) => apply::run(args),
        Command::Plan(args) => plan::run(&args),
        Command::Confirm(args) => confirm::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Init(args) => init::run(&args),
        Command::AddPeer(args) => add_peer::run(args),
        Command::RemovePeer(args) => remove_peer::run(&args),
        Command::Import(args) => import::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Graph(args) => graph::run(&args),
        Command::Status(args) if args.mesh => revisions::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Reload(args) => reload::run(&args),
        Command::Down(args) => down::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::Demo(args) => demo::run(args),
        Command::Keygen(args) => keygen::run(&args),
        Command::Encrypt(args) => encrypt::run(&args),
        Command::Pubkey(args) => pubkey::run(&args),
        Command::Schema => schema::run(),
        Command::Completions(args) => completions::run(&args),
        Command::Device(args) => device::run(args),
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
    let writer = log::Limited::new(std::io::stderr(), matches!(cli.log_format, LogFormat::Json));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer);
    // A second subscriber in one process (tests) changes nothing.
    let _ = match cli.log_format {
        LogFormat::Text => log
            .with_ansi(std::io::stderr().is_terminal())
            .with_target(false)
            .try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    };
    Ok(())
}
