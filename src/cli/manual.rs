//! `natpunch manual`: the manual pages, from the command line's own description.

use std::process::ExitCode;

use clap::CommandFactory as _;

use super::CliError;
use super::args::{Cli, ManualArgs};

pub(super) fn run(args: &ManualArgs) -> Result<ExitCode, CliError> {
    let program = Cli::command().disable_help_subcommand(true);
    clap_mangen::generate_to(program, &args.directory).map_err(|error| {
        let directory = args.directory.display();
        CliError::new(format!("can't write manual pages to {directory}: {error}"))
            .help("name a directory that is there and that you may write to")
    })?;
    Ok(ExitCode::SUCCESS)
}
