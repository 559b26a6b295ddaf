//! Secrets that stand in the mesh file encrypted with age (<https://age-encryption.org/v1>): to
//! recipients, in armor.
//!
//! [`Encrypted`] is one such value, checked for its form without any key. [`Identities`] are the
//! keys of this host, which open the values that are for it. What is opened exists in memory only,
//! and is wiped.

use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use age::armor::{ArmoredReader, ArmoredWriter, Format};
use age::secrecy::ExposeSecret as _;
use age::x25519::{Identity, Recipient};
use age::{DecryptError, Decryptor, Encryptor};
use natpunch_types::{KeyError, PeerKey};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use zeroize::Zeroizing;

use super::error::Place;
use super::keyfile::{self, KeyFileError};
use super::read::{Flaw, Quoted, Text};

/// Where a node's identity is if nothing else is said.
pub const DEFAULT_IDENTITY_FILE: &str = "/etc/natpunch/age.key";

const BEGIN: &str = "-----BEGIN AGE ENCRYPTED FILE-----";
const END: &str = "-----END AGE ENCRYPTED FILE-----";
const HOW: &str =
    "write what `natpunch encrypt --recipient age1… < KEYFILE` prints, between two \"\"\"";

/// Longest armored value, in bytes: [`MOST_RECIPIENTS`] of the largest kind, and a key.
const LONGEST: usize = 32 << 10;
/// Most recipients of one value. A key of a pair needs two, and whoever administers them.
const MOST_RECIPIENTS: usize = 32;
/// Longest secret, in bytes; a key has 44 and a line end.
const LONGEST_SECRET: usize = 1024;
/// Most identities of a host.
const MOST_IDENTITIES: usize = 16;
/// Longest identity file, in bytes.
const LONGEST_IDENTITY_FILE: usize = 16 << 10;

/// The kind of recipient that an identity of age's own opens.
const X25519: &str = "X25519";

/// A secret, encrypted.
#[derive(Clone, PartialEq, Eq)]
pub struct Encrypted {
    /// The armor, with plain line ends.
    armor: String,
    /// The kinds of recipients that natpunch can't be, such as `ssh-ed25519`.
    foreign: Vec<String>,
    pub(super) place: Place,
}

impl fmt::Debug for Encrypted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Encrypted")
    }
}

impl Encrypted {
    /// The kinds of recipients, beside those that natpunch can be.
    pub(super) fn foreign(&self) -> &[String] {
        &self.foreign
    }

    /// Says where it stands.
    pub(super) fn at(mut self, place: Place) -> Self {
        self.place = place;
        self
    }
}

impl JsonSchema for Encrypted {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Encrypted".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": format!("^\\s*{BEGIN}[^-]*{END}\\s*$"), "maxLength": LONGEST })
    }
}

impl Text for Encrypted {
    const EXPECTED: &'static str = "an armored age file";
    fn parse(text: &str) -> Result<Self, Flaw> {
        let flaw = |problem: String| Flaw::new(problem, HOW);
        let text = text.trim();
        if text.parse::<PeerKey>().is_ok() {
            let problem = "this is a key in plain, not one encrypted with age";
            return Err(Flaw::new(
                problem,
                format!("{HOW}; this key was exposed, make a new one"),
            ));
        }
        if text.starts_with("AGE-SECRET-KEY-") {
            let problem = "this is an age identity, which opens everything that is encrypted to it";
            return Err(Flaw::new(
                problem,
                format!("it was exposed, make a new one; {HOW}"),
            ));
        }
        if text.len() > LONGEST {
            return Err(flaw(format!("it is longer than {LONGEST} bytes")));
        }
        if !text.starts_with(BEGIN) {
            return Err(flaw(format!("it does not begin with {BEGIN}")));
        }
        if !text.ends_with(END) {
            return Err(flaw(format!("it does not end with {END}")));
        }
        // Editors indent, and leave the line ends of their system.
        let mut armor: String = text.lines().flat_map(|line| [line.trim(), "\n"]).collect();
        armor.shrink_to_fit();
        let kinds = inspect(&armor)?;
        let foreign = kinds.into_iter().filter(|kind| kind != X25519).collect();
        Ok(Self {
            armor,
            foreign,
            place: Place::default(),
        })
    }
}

/// Takes the armor off and reads the header (<https://c2sp.org/age>): the kinds of its recipients.
fn inspect(armor: &str) -> Result<Vec<String>, Flaw> {
    let damaged = |what: &str| {
        Flaw::new(
            format!("{what} is damaged"),
            format!("copy it again whole, or {HOW}"),
        )
    };
    let mut file = Vec::new();
    ArmoredReader::new(armor.as_bytes())
        .read_to_end(&mut file)
        .map_err(|_| damaged("the armor"))?;
    let mut kinds = Vec::new();
    let mut rest = file.as_slice();
    loop {
        let end = rest
            .iter()
            .position(|byte| *byte == b'\n')
            .ok_or_else(|| damaged("the age header"))?;
        let (line, after) = rest.split_at(end);
        rest = after.get(1..).unwrap_or_default();
        let line = std::str::from_utf8(line).map_err(|_| damaged("the age header"))?;
        if line.starts_with("---") {
            break;
        }
        // Stanzas of such a name are there to be ignored.
        if let Some(kind) = line
            .strip_prefix("-> ")
            .and_then(|stanza| stanza.split(' ').next())
            && !kind.ends_with("-grease")
        {
            kinds.push(Quoted(kind).to_string());
        }
    }
    // The nonce, and one chunk with its tag.
    if rest.len() > 16 + LONGEST_SECRET + 16 {
        return Err(Flaw::new(
            format!("what is encrypted is longer than {LONGEST_SECRET} bytes"),
            HOW,
        ));
    }
    if rest.len() <= 16 + 16 {
        return Err(damaged("what is encrypted"));
    }
    if kinds.len() > MOST_RECIPIENTS {
        let help = "name the nodes that need it, and no others";
        return Err(Flaw::new(
            format!("it has more than {MOST_RECIPIENTS} recipients"),
            help,
        ));
    }
    let decryptor =
        Decryptor::new_buffered(file.as_slice()).map_err(|_| damaged("the age header"))?;
    if decryptor.is_scrypt() {
        let help = "encrypt it to the recipients of the nodes: natpunch encrypt --recipient age1… < KEYFILE";
        return Err(Flaw::new(
            "it is encrypted with a passphrase, which no node can type",
            help,
        ));
    }
    if !kinds.iter().any(|kind| kind == X25519) {
        let problem = format!(
            "natpunch can be none of its recipients, which are of the kind {}",
            kinds.join(", ")
        );
        let help = "encrypt it to recipients that begin with age1: `natpunch keygen --age` makes one, ssh-to-age one of \
                    an SSH host key";
        return Err(Flaw::new(problem, help));
    }
    Ok(kinds)
}

/// Why a value can't be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Closed {
    /// It is for others.
    NotForUs,
    /// It was changed after it was made.
    Damaged,
    /// It holds no key.
    NotAKey(KeyError),
}

/// The age identities of this host.
pub(super) struct Identities {
    file: PathBuf,
    keys: Vec<Identity>,
}

impl Identities {
    /// Reads an identity file, as `natpunch keygen --age` and `age-keygen` make it.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub(super) fn read(file: &Path) -> Result<Self, KeyFileError> {
        let text = keyfile::read_text(file, "keygen --age", LONGEST_IDENTITY_FILE)?;
        let fail = |problem: &str| KeyFileError {
            absent: false,
            problem: format!("{} {problem}", file.display()),
            help: "it holds a line AGE-SECRET-KEY-1…, as `natpunch keygen --age` prints it"
                .to_owned(),
        };
        let mut keys = Vec::new();
        for line in text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
        {
            keys.push(
                line.parse::<Identity>()
                    .map_err(|_| fail("holds something else than age identities"))?,
            );
            if keys.len() > MOST_IDENTITIES {
                return Err(fail("holds too many age identities"));
            }
        }
        if keys.is_empty() {
            Err(fail("holds no age identity"))
        } else {
            Ok(Self {
                file: file.to_owned(),
                keys,
            })
        }
    }

    /// The file that they are from.
    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// What others encrypt to.
    pub(super) fn recipients(&self) -> String {
        self.keys
            .iter()
            .map(|key| key.to_public().to_string())
            .collect::<Vec<_>>()
            .join(" or ")
    }

    /// Opens a value that holds a key.
    pub(super) fn open<K: FromStr<Err = KeyError>>(&self, value: &Encrypted) -> Result<K, Closed> {
        let decryptor = Decryptor::new_buffered(ArmoredReader::new(value.armor.as_bytes()))
            .map_err(|_| Closed::Damaged)?;
        let mut plain =
            match decryptor.decrypt(self.keys.iter().map(|key| key as &dyn age::Identity)) {
                Ok(plain) => plain.take(LONGEST_SECRET as u64),
                Err(DecryptError::NoMatchingKeys) => return Err(Closed::NotForUs),
                Err(_) => return Err(Closed::Damaged),
            };
        // Its room is there before it is filled, so that no copy of it is left behind.
        let mut secret = Zeroizing::new(String::with_capacity(LONGEST_SECRET));
        plain
            .read_to_string(&mut secret)
            .map_err(|_| Closed::Damaged)?;
        secret.trim().parse().map_err(Closed::NotAKey)
    }
}

/// A new identity: the text of its file, and the recipient that others encrypt to.
pub fn new_age_identity() -> (Zeroizing<String>, String) {
    let identity = Identity::generate();
    let recipient = identity.to_public().to_string();
    let secret = identity.to_string();
    (
        Zeroizing::new(format!(
            "# public key: {recipient}\n{}\n",
            secret.expose_secret()
        )),
        recipient,
    )
}

/// The recipients of the identities in the text of an identity file; `None` if it holds something
/// else, or none.
pub fn age_recipients(text: &str) -> Option<Vec<String>> {
    let lines = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    let recipients: Option<Vec<String>> = lines
        .map(|line| {
            line.parse::<Identity>()
                .ok()
                .map(|key| key.to_public().to_string())
        })
        .collect();
    recipients.filter(|recipients| !recipients.is_empty())
}

/// Whom something is encrypted to: `age1…`.
#[derive(Clone)]
pub struct AgeRecipient(Recipient);

impl fmt::Debug for AgeRecipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl FromStr for AgeRecipient {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|_| {
            if text.starts_with("AGE-SECRET-KEY-") {
                "this is an identity, which is secret; its recipient begins with age1".to_owned()
            } else {
                "not a recipient of age, which begins with age1".to_owned()
            }
        })
    }
}

/// Encrypts a key to recipients, in armor.
///
/// # Errors
/// There are none, or too many.
pub fn age_encrypt(key: &str, recipients: &[AgeRecipient]) -> Result<String, String> {
    if recipients.len() > MOST_RECIPIENTS {
        return Err(format!("more than {MOST_RECIPIENTS} recipients"));
    }
    let to = recipients
        .iter()
        .map(|recipient| &recipient.0 as &dyn age::Recipient);
    let encryptor = Encryptor::with_recipients(to).map_err(|error| error.to_string())?;
    let mut armor = Vec::new();
    let written = ArmoredWriter::wrap_output(&mut armor, Format::AsciiArmor).and_then(|armored| {
        let mut writer = encryptor.wrap_output(armored)?;
        std::io::Write::write_all(&mut writer, key.as_bytes())?;
        writer.finish()?.finish().map(|_| ())
    });
    written.map_err(|error| error.to_string())?;
    String::from_utf8(armor).map_err(|error| error.to_string())
}
