//! The file of the admission secret.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use natpunch_types::{PresharedKey, SecretKey};
use tokio::io::AsyncReadExt as _;
use zeroize::Zeroizing;

/// A secret is 45 bytes; anything much longer is something else.
const MAX: u64 = 256;

/// Reads the secret; else what is wrong and what would help.
pub(crate) async fn read(path: &Path) -> Result<PresharedKey, String> {
    let wrong = |problem: String| format!("admission_secret_file {}: {problem}", path.display());
    let failed = |error: io::Error| wrong(format!("can't be read: {error}"));
    let file = tokio::fs::File::open(path).await.map_err(failed)?;
    let metadata = file.metadata().await.map_err(failed)?;
    if !metadata.is_file() {
        return Err(wrong("is not a regular file".to_owned()));
    }
    if metadata.mode() & 0o077 != 0 {
        return Err(wrong(format!(
            "others can read it (mode {:04o}); chmod 600 it",
            metadata.mode() & 0o7777
        )));
    }
    let mut text = Zeroizing::new(String::with_capacity(MAX as usize + 1));
    file.take(MAX)
        .read_to_string(&mut text)
        .await
        .map_err(failed)?;
    let key: SecretKey = text
        .trim()
        .parse()
        .map_err(|error| wrong(format!("{error}; it holds what `natpunch keygen` prints")))?;
    Ok(PresharedKey::from_bytes(*key.expose()))
}
