//! `natpunch keygen`: a new private key, as `wg genkey`. A preshared key is made the same way.

use std::io::Write as _;
use std::process::ExitCode;

use super::CliError;
use crate::config;

pub(super) fn run() -> Result<ExitCode, CliError> {
    let key = config::new_private_key()
        .map_err(|error| CliError::new(format!("the system gives no random bytes: {error}")))?;
    writeln!(std::io::stdout().lock(), "{}", key.expose_base64().as_str())?;
    Ok(ExitCode::SUCCESS)
}
