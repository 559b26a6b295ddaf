//! `natpunch plugin`: what plugins there are, and help for whoever writes one.

pub mod args;
mod list;
mod new;
mod test;

use std::process::ExitCode;

use super::CliError;
use args::PluginCommand;

pub(in crate::cli) fn run(command: &PluginCommand) -> Result<ExitCode, CliError> {
    match command {
        PluginCommand::List(args) => list::run(args),
        PluginCommand::Test(args) => test::run(args),
        PluginCommand::New(args) => new::run(args),
    }
}
