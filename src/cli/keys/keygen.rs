//! `natpunch keygen`: a new private key, as `wg genkey`, or an age identity. A preshared key is
//! made the same way.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use crate::cli::CliError;
use crate::cli::args::KeygenArgs;
use crate::config;

pub(in crate::cli) fn run(args: &KeygenArgs) -> Result<ExitCode, CliError> {
    if args.age {
        let (identity, recipient) = config::new_age_identity();
        write!(std::io::stdout().lock(), "{}", identity.as_str())?;
        // Standard output is most often a file.
        if !std::io::stdout().is_terminal() {
            // With standard error closed there is nobody to tell.
            let _ = writeln!(std::io::stderr().lock(), "public key: {recipient}");
        }
        return Ok(ExitCode::SUCCESS);
    }
    let key = config::new_private_key()
        .map_err(|error| CliError::new(format!("the system gives no random bytes: {error}")))?;
    writeln!(std::io::stdout().lock(), "{}", key.expose_base64().as_str())?;
    Ok(ExitCode::SUCCESS)
}
