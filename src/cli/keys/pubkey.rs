//! `natpunch pubkey`: the public key of the private key on standard input, as `wg pubkey`; or its
//! rendezvous identity, or an age recipient.

use std::io::{Read as _, Write as _};
use std::process::ExitCode;

use natpunch_types::SecretKey;
use zeroize::Zeroizing;

use crate::cli::CliError;
use crate::cli::args::PubkeyArgs;
use crate::config;

/// Longest input, in bytes; a key has 44.
const LONGEST: usize = 4096;

pub(in crate::cli) fn run(args: &PubkeyArgs) -> Result<ExitCode, CliError> {
    let mut text = Zeroizing::new(String::with_capacity(LONGEST));
    let bad = |problem: String| {
        CliError::new(format!("standard input: {problem}"))
            .help("natpunch pubkey < KEYFILE, with a file made by `natpunch keygen`")
    };
    std::io::stdin()
        .lock()
        .take(LONGEST as u64)
        .read_to_string(&mut text)
        .map_err(|error| bad(error.to_string()))?;
    if args.age {
        let recipients = config::age_recipients(&text).ok_or_else(|| {
            CliError::new("standard input: this is not an age identity")
                .help("natpunch pubkey --age < FILE, with a file made by `natpunch keygen --age`")
        })?;
        for recipient in recipients {
            writeln!(std::io::stdout().lock(), "{recipient}")?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let key: SecretKey = text
        .trim()
        .parse()
        .map_err(|error| bad(format!("this is not a private key: {error}")))?;
    let key = if args.rendezvous {
        natpunch_rendezvous::identity(&key)
    } else {
        key
    };
    writeln!(std::io::stdout().lock(), "{}", key.public_key())?;
    Ok(ExitCode::SUCCESS)
}
