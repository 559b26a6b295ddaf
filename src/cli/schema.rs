//! `natpunch schema`: the JSON schema of the mesh file, for editors (Taplo, Even Better TOML).

use std::io::Write as _;
use std::process::ExitCode;

use super::CliError;
use crate::config;

pub(super) fn run() -> Result<ExitCode, CliError> {
    writeln!(std::io::stdout().lock(), "{:#}", config::schema())?;
    Ok(ExitCode::SUCCESS)
}
