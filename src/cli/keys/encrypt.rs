//! `natpunch encrypt`: the key on standard input, encrypted with age so that it can stand in the
//! mesh file.

use std::io::{Read as _, Write as _};
use std::process::ExitCode;

use clap::ValueEnum as _;
use natpunch_types::SecretKey;
use zeroize::Zeroizing;

use crate::cli::CliError;
use crate::cli::args::EncryptArgs;
use crate::config;

/// Longest input, in bytes; a key has 44.
const LONGEST: usize = 4096;

pub(in crate::cli) fn run(args: &EncryptArgs) -> Result<ExitCode, CliError> {
    let mut text = Zeroizing::new(String::with_capacity(LONGEST));
    let bad = |problem: String| {
        CliError::new(format!("standard input: {problem}")).help(
            "natpunch encrypt --recipient age1… < KEYFILE, with a file made by `natpunch keygen`",
        )
    };
    std::io::stdin()
        .lock()
        .take(LONGEST as u64)
        .read_to_string(&mut text)
        .map_err(|error| bad(error.to_string()))?;
    let key: SecretKey = text
        .trim()
        .parse()
        .map_err(|error| bad(format!("this is not a key: {error}")))?;
    let armor = config::age_encrypt(&key.expose_base64(), &args.recipient)
        .map_err(|error| CliError::new(format!("can't encrypt: {error}")))?;
    let mut out = std::io::stdout().lock();
    match args.toml.and_then(|key| key.to_possible_value()) {
        Some(key) => writeln!(out, "{} = \"\"\"\n{armor}\"\"\"", key.get_name())?,
        None => write!(out, "{armor}")?,
    }
    Ok(ExitCode::SUCCESS)
}
