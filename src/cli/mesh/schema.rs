//! `natpunch schema`: the JSON schema of the mesh file, for editors (Taplo, Even Better TOML).

use std::io::Write as _;
use std::process::ExitCode;

use crate::cli::CliError;
use crate::cli::args::SchemaArgs;
use crate::config;

pub(in crate::cli) fn run(args: &SchemaArgs) -> Result<ExitCode, CliError> {
    let schema = config::schema(args.one_of_several);
    writeln!(std::io::stdout().lock(), "{schema:#}")?;
    Ok(ExitCode::SUCCESS)
}
