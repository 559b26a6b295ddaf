//! Secrets that stand in the mesh file encrypted with age (<https://age-encryption.org/v1>): to
//! recipients, in armor. Their form is checked without any key; the identities that open them are
//! the node's ([`crate::node::identity`]).

use std::fmt;
use std::io::Read as _;

use age::Decryptor;
use age::armor::ArmoredReader;
use natpunch_types::PeerKey;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::reader::{Flaw, Text};
use crate::report::source::Place;
use crate::report::wording::Quoted;

const BEGIN: &str = "-----BEGIN AGE ENCRYPTED FILE-----";
const END: &str = "-----END AGE ENCRYPTED FILE-----";
const HOW: &str =
    "write what `natpunch encrypt --recipient age1… < KEYFILE` prints, between two \"\"\"";

/// Longest armored value, in bytes: [`MOST_RECIPIENTS`] of the largest kind, and a key.
const LONGEST: usize = 32 << 10;
/// Most recipients of one value. A key of a pair needs two, and whoever administers them.
pub(crate) const MOST_RECIPIENTS: usize = 32;
/// Longest secret, in bytes; a key has 44 and a line end.
pub(crate) const LONGEST_SECRET: usize = 1024;

/// The kind of recipient that an identity of age's own opens.
const X25519: &str = "X25519";

/// A secret, encrypted.
#[derive(Clone, PartialEq, Eq)]
pub struct Encrypted {
    /// The armor, with plain line ends.
    armor: String,
    /// The kinds of recipients that natpunch can't be, such as `ssh-ed25519`.
    foreign: Vec<String>,
    pub(crate) place: Place,
}

impl Encrypted {
    /// Whether both are the same text, wherever it stands.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.armor == other.armor
    }
}

impl fmt::Debug for Encrypted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Encrypted")
    }
}

impl Encrypted {
    /// The age file in armor.
    pub(crate) fn armor(&self) -> &str {
        &self.armor
    }

    /// The kinds of recipients, beside those that natpunch can be.
    pub(crate) fn foreign(&self) -> &[String] {
        &self.foreign
    }

    /// Says where it stands.
    pub(crate) fn at(mut self, place: Place) -> Self {
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
        json_schema!({
            "type": "string",
            "pattern": format!("^\\s*{BEGIN}[^-]*{END}\\s*$"),
            "maxLength": LONGEST,
        })
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
        let help = "encrypt it to the recipients of the nodes: natpunch encrypt --recipient \
                    age1… < KEYFILE";
        return Err(Flaw::new(
            "it is encrypted with a passphrase, which no node can type",
            help,
        ));
    }
    if !kinds.iter().any(|kind| kind == X25519) {
        let problem = format!(
            "natpunch can't be its recipient, which is of the kind {}",
            kinds.join(", ")
        );
        let help = "encrypt it to recipients that begin with age1: `natpunch keygen --age` makes \
                    one, ssh-to-age one of an SSH host key";
        return Err(Flaw::new(problem, help));
    }
    Ok(kinds)
}
