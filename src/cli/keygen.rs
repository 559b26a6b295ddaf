//! `natpunch keygen`: a new private key, as `wg genkey`. A preshared key is made the same way.

use std::io::Write as _;
use std::process::ExitCode;

use natpunch_types::SecretKey;
use zeroize::Zeroizing;

use super::CliError;

pub(super) fn run() -> Result<ExitCode, CliError> {
    let mut bytes = Zeroizing::new([0_u8; 32]);
    getrandom::fill(bytes.as_mut_slice())
        .map_err(|error| CliError::new(format!("the system gives no random bytes: {error}")))?;
    // Clamped as Curve25519 does it anyway (RFC 7748, 5), so that the key looks like those of `wg genkey`.
    let [first, .., last] = &mut *bytes;
    *first &= 0xf8;
    *last = (*last & 0x7f) | 0x40;
    let key = SecretKey::from_bytes(*bytes);
    writeln!(std::io::stdout().lock(), "{}", key.expose_base64().as_str())?;
    Ok(ExitCode::SUCCESS)
}
