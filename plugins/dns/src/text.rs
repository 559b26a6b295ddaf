//! A sealed record as the strings of a TXT record (RFC 1035, 3.3.14). Pure.
//!
//! ```text
//! "v=natpunch1" "c2VhbGVkIGZvciB5b3U…" "…"
//! ```
//! The first string says what it is and in which version; the others are the record in base64, 255
//! characters each.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use domain::rdata::Txt;
use domain::rdata::rfc1035::{TxtAppendError, TxtBuilder};
use natpunch_plugin::SealedRecord;

const VERSION: &[u8] = b"v=natpunch1";

/// The strings of a record.
///
/// # Errors
/// It is longer than what any TXT record holds, which is 32 times the longest sealed record.
pub(crate) fn write(blob: &[u8]) -> Result<Txt<Vec<u8>>, TxtAppendError> {
    let mut strings = TxtBuilder::<Vec<u8>>::new();
    strings.append_slice(VERSION)?;
    strings.close_charstr();
    strings.append_slice(STANDARD.encode(blob).as_bytes())?;
    strings.finish()
}

/// The record in these strings, however they are cut. `None` if it is none.
pub(crate) fn read(strings: &Txt<impl AsRef<[u8]>>) -> Option<Vec<u8>> {
    let joined: Vec<u8> = strings.iter().flatten().copied().collect();
    let text = joined.strip_prefix(VERSION)?;
    let blob = STANDARD.decode(text).ok()?;
    (!blob.is_empty() && blob.len() <= SealedRecord::MAX).then_some(blob)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_any_length_comes_back_from_strings_of_at_most_255_bytes() {
        for length in [1, 180, 191, 192, 500, SealedRecord::MAX] {
            let blob: Vec<u8> = (0..length).map(|n| n as u8).collect();
            let strings = write(&blob).unwrap();
            assert_eq!(strings.iter().next(), Some(VERSION));
            assert!(strings.iter().all(|one| one.len() <= 255));
            assert_eq!(read(&strings), Some(blob));
        }
    }

    #[test]
    fn what_is_no_record_is_none() {
        let joined = |text: &[u8]| Txt::<Vec<u8>>::build_from_slice(text).unwrap();
        assert_eq!(read(&joined(b"v=natpunch1c2Vh")), Some(b"sea".into()));
        for other in [
            &b""[..],
            b"v=spf1 -all",
            b"v=natpunch1",
            b"v=natpunch2c2Vh",
            b"v=natpunch1c2V!",
            b"c2Vh",
            b"\xff\xfe",
        ] {
            assert_eq!(read(&joined(other)), None, "{other:?}");
        }
        let too_long = write(&[7; SealedRecord::MAX + 1]).unwrap();
        assert_eq!(read(&too_long), None);
    }
}
