//! `natpunch schema`: the JSON schema of the mesh file, for editors (Taplo, Even Better TOML).

use std::io::Write as _;
use std::process::ExitCode;

use crate::cli::CliError;
use crate::config;

pub(in crate::cli) fn run() -> Result<ExitCode, CliError> {
    writeln!(std::io::stdout().lock(), "{:#}", config::schema())?;
    Ok(ExitCode::SUCCESS)
}
