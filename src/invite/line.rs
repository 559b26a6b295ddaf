//! The form of an invite's line, without clock or disk.
//!
//! `natpunch-invite-1-` and base64 (RFC 4648, 5) of: a byte that says how the body is kept, the
//! body's length in two bytes, most significant first, the body, and eight bytes of BLAKE2s over
//! all before. The body is JSON, as it is or sealed by age with a code. The checksum tells a line
//! that was damaged on its way; only the code makes it one that nobody else can read or forge.

use std::time::Duration;

use base64::Engine as _;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use blake2::{Blake2s256, Digest as _};
use zeroize::Zeroizing;

use super::{Invite, spoken};
use crate::config;

const START: &str = "natpunch-invite-";
const VERSION: &str = "1";

/// Longest line that is read, in bytes. The body's length fits in two bytes.
const LONGEST: usize = 96 << 10;

const CHECKSUM: usize = 8;
const HEAD: usize = 3;

const PLAIN: u8 = 0;
const SEALED: u8 = 1;

/// A line that was cut is decoded as far as it goes: then it can be said that it was cut.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// Why a line is no invite that can be used now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// It is something else.
    #[error("this is not an invite")]
    NotAnInvite,
    /// It is of another version of the form.
    #[error("this invite is of version {0}, and this natpunch reads version {VERSION}")]
    Version(String),
    /// Its end is missing.
    #[error("this invite was cut: the last {missing} of its characters are missing")]
    Cut {
        /// How many characters are missing.
        missing: usize,
    },
    /// There is more of it than was made.
    #[error("this invite has more characters than were made")]
    Added,
    /// It is not what was made.
    #[error("this invite was altered: its checksum does not fit")]
    Altered,
    /// It is sealed, and no code was given.
    #[error("this invite is sealed by a code")]
    NeedsCode,
    /// The code does not open it.
    #[error("the code does not open this invite")]
    WrongCode,
    /// It is too old.
    #[error("this invite has expired, {} ago", spoken(*ago))]
    Expired {
        /// Since when.
        ago: Duration,
    },
    /// It was made after the time that this machine's clock shows.
    #[error("this invite was made {} after what this machine's clock shows", spoken(*by))]
    FromTheFuture {
        /// By how much.
        by: Duration,
    },
}

/// The line of an invite, sealed if there is a code. `None`: it would be too long.
pub fn encode(invite: &Invite, code: Option<&str>) -> Option<Zeroizing<String>> {
    let json = Zeroizing::new(serde_json::to_vec(invite).ok()?);
    let (kind, body) = match code {
        None => (PLAIN, json),
        Some(code) => (
            SEALED,
            Zeroizing::new(config::age_seal(&json, &typed(code)).ok()?),
        ),
    };
    let length = u16::try_from(body.len()).ok()?;
    let mut bytes = Zeroizing::new(vec![kind]);
    bytes.extend(length.to_be_bytes());
    bytes.extend(body.iter());
    let checksum = checksum(&bytes);
    bytes.extend(checksum);
    let text = Zeroizing::new(BASE64.encode(&*bytes));
    Some(Zeroizing::new(format!("{START}{VERSION}-{}", *text)))
}

/// Whether a line says that a code opens it.
pub fn is_sealed(line: &str) -> bool {
    open(line).is_ok_and(|(kind, _)| kind == SEALED)
}

/// Reads a line. Blanks and line breaks in it do not count: what it was sent by may have put them
/// in.
///
/// # Errors
/// It was not made so, or needs another code. Of its age see [`Invite::check_time`].
pub fn decode(line: &str, code: Option<&str>) -> Result<Invite, LineError> {
    let (kind, body) = open(line)?;
    let json = match (kind, code) {
        (PLAIN, _) => body,
        (SEALED, None) => return Err(LineError::NeedsCode),
        (SEALED, Some(code)) => {
            Zeroizing::new(config::age_unseal(&body, &typed(code)).ok_or(LineError::WrongCode)?)
        }
        _ => return Err(LineError::Altered),
    };
    serde_json::from_slice(&json).map_err(|_| LineError::Altered)
}

/// A code as it counts, however it is typed: its letters, in capitals, and its digits.
fn typed(code: &str) -> Zeroizing<String> {
    let counts = code.chars().filter(char::is_ascii_alphanumeric);
    Zeroizing::new(counts.map(|c| c.to_ascii_uppercase()).collect())
}

/// How the body is kept, and the body.
fn open(line: &str) -> Result<(u8, Zeroizing<Vec<u8>>), LineError> {
    if line.len() > LONGEST {
        return Err(LineError::NotAnInvite);
    }
    let line: Zeroizing<String> =
        Zeroizing::new(line.chars().filter(|c| !c.is_whitespace()).collect());
    let (version, text) = line
        .strip_prefix(START)
        .and_then(|rest| rest.split_once('-'))
        .ok_or(LineError::NotAnInvite)?;
    if version != VERSION {
        let is_number = !version.is_empty() && version.bytes().all(|byte| byte.is_ascii_digit());
        return Err(match is_number && version.len() < 6 {
            true => LineError::Version(version.to_owned()),
            false => LineError::NotAnInvite,
        });
    }
    // One character alone holds no byte.
    let whole = if text.len() % 4 == 1 {
        text.get(..text.len() - 1).unwrap_or_default()
    } else {
        text
    };
    let mut bytes = Zeroizing::new(BASE64.decode(whole).map_err(|_| LineError::Altered)?);
    let length = match bytes.get(1..HEAD) {
        Some(&[high, low]) => usize::from(u16::from_be_bytes([high, low])),
        _ => return Err(LineError::NotAnInvite),
    };
    let characters = ((HEAD + length + CHECKSUM) * 4).div_ceil(3);
    if text.len() < characters {
        let missing = characters - text.len();
        return Err(LineError::Cut { missing });
    }
    if text.len() > characters {
        return Err(LineError::Added);
    }
    let end = bytes.len().saturating_sub(CHECKSUM);
    let sum = bytes.split_off(end);
    if sum != checksum(&bytes) {
        return Err(LineError::Altered);
    }
    let kind = bytes.first().copied().ok_or(LineError::Altered)?;
    let body = Zeroizing::new(bytes.split_off(HEAD));
    Ok((kind, body))
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM] {
    let digest: [u8; 32] = Blake2s256::new()
        .chain_update(b"natpunch invite, v1")
        .chain_update(bytes)
        .finalize()
        .into();
    let mut sum = [0; CHECKSUM];
    sum.iter_mut().zip(digest).for_each(|(to, from)| *to = from);
    sum
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::invite::Secret;

    fn invite() -> Invite {
        let secret = Secret(Zeroizing::new("s3cret".to_owned()));
        Invite {
            mesh: "home".to_owned(),
            node: "laptop".to_owned(),
            made: 1000,
            expires: 2000,
            source: "https://config.example/mesh.toml".to_owned(),
            trust: Some("[trust]\n".to_owned()),
            secrets: [("/etc/natpunch/admission.key".into(), secret)].into(),
            key: None,
        }
    }

    #[test]
    fn a_line_says_what_the_invite_says_however_it_was_wrapped() {
        let line = encode(&invite(), None).unwrap();
        assert_eq!(decode(&line, None), Ok(invite()));
        let wrapped: String = line
            .chars()
            .enumerate()
            .flat_map(|(at, c)| [(at % 70 == 69).then_some('\n'), Some(c)])
            .flatten()
            .collect();
        assert_eq!(decode(&format!("  {wrapped}\r\n"), None), Ok(invite()));
        // It is one word for a shell.
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        assert!(line.chars().all(fits));
        assert!(!is_sealed(&line) && !format!("{:?}", invite()).contains("s3cret"));
    }

    #[test]
    fn a_sealed_line_opens_with_its_code_and_shows_nothing_without() {
        let line = encode(&invite(), Some("K7QWE-9XTRB")).unwrap();
        assert!(is_sealed(&line));
        assert_eq!(decode(&line, None), Err(LineError::NeedsCode));
        assert_eq!(
            decode(&line, Some("K7QWE-9XTRC")),
            Err(LineError::WrongCode)
        );
        assert_eq!(decode(&line, Some("K7QWE-9XTRB")), Ok(invite()));
        // As people type it.
        assert_eq!(decode(&line, Some(" k7qwe9xtrb\n")), Ok(invite()));
        let (_, body) = open(&line).unwrap();
        assert!(!body.windows(6).any(|part| part == b"laptop"));
    }

    #[test]
    fn a_line_that_was_cut_says_how_much_is_missing() {
        let line = encode(&invite(), None).unwrap();
        let start = START.len() + VERSION.len() + 1;
        for length in start + 4..line.len() {
            let missing = line.len() - length;
            assert_eq!(
                decode(&line[..length], None),
                Err(LineError::Cut { missing })
            );
        }
        for length in 0..start + 4 {
            decode(&line[..length], None).unwrap_err();
        }
        assert_eq!(decode(&format!("{}A", *line), None), Err(LineError::Added));
    }

    #[test]
    fn another_text_or_version_is_told_from_a_damaged_line() {
        for other in [
            "",
            "laptop",
            "natpunch-invite-",
            "natpunch-invite-x-AAAA",
            "natpunch-invite-1-",
        ] {
            assert_eq!(decode(other, None), Err(LineError::NotAnInvite), "{other}");
        }
        let newer = decode("natpunch-invite-2-AAAA", None);
        assert_eq!(newer, Err(LineError::Version("2".to_owned())));
    }

    #[test]
    fn an_invite_holds_from_when_it_was_made_to_its_end() {
        let invite = invite();
        assert_eq!(invite.check_time(1000), Ok(()));
        assert_eq!(invite.check_time(2000), Ok(()));
        assert!(matches!(
            invite.check_time(2001),
            Err(LineError::Expired { .. })
        ));
        let late = Invite {
            made: 9000,
            expires: 9999,
            ..invite
        };
        assert!(matches!(
            late.check_time(1),
            Err(LineError::FromTheFuture { .. })
        ));
    }

    proptest! {
        #[test]
        fn no_altered_character_goes_unnoticed(at in 0_usize..10_000, to in "[A-Za-z0-9_-]") {
            let line = encode(&invite(), None).unwrap();
            let at = at % line.len();
            let mut altered = line.to_string();
            altered.replace_range(at..=at, &to);
            prop_assume!(altered != *line);
            // The last character has bits that mean nothing.
            prop_assume!(at + 1 != line.len());
            prop_assert!(decode(&altered, None).is_err());
        }

        #[test]
        fn no_text_panics(text in "(natpunch-invite-1-)?[A-Za-z0-9_-]{0,80}") {
            let _ = decode(&text, None);
        }
    }
}
