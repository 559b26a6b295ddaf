//! What natpunch and a program say to each other, without the program:
//! `docs/reference/plugin-protocol.md`. Pure.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use natpunch_plugin::{
    Ask, Candidate, CandidateKind, Health, Input, Interest, News, OwnAddressKind, PairTag, PeerKey,
    RecordTag, SealedRecord, SettingFlaw,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::own_settings::{self, OwnSettings, Schema};
use crate::text::shown;

/// The version of the protocol.
pub(crate) const VERSION: u64 = 1;
/// The longest line that a program may write, in bytes.
pub(crate) const LONGEST_LINE: usize = 64 << 10;
/// The longest lifetime of an address, in seconds.
const LONGEST_LIFETIME: u64 = 3_600;
/// The latest that both sides may be told to fire, in milliseconds.
const LATEST_FIRE: u64 = 10_000;
/// How many peers of earlier lists are remembered, about.
const MOST_FORMER: usize = 20_000;

/// The first line to a program.
#[derive(Serialize)]
struct Welcome {
    natpunch: u64,
    own_key: PeerKey,
    listen_port: u16,
}

/// Every other line to a program.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Told {
    Settings { settings: OwnSettings },
    Peers { peers: Vec<Peer> },
    Records { records: Vec<Record> },
    Meet { peer: PeerKey },
    NetworkChanged,
    Shutdown,
}

#[derive(Serialize)]
struct Peer {
    peer: PeerKey,
    wanted: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    inbound_tag: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outbound_tag: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pair_tag: Option<String>,
}

impl From<&Interest> for Peer {
    fn from(peer: &Interest) -> Self {
        let tag = |tag: RecordTag| (tag != RecordTag::NONE).then(|| tag.to_string());
        Self {
            peer: peer.peer,
            wanted: peer.wanted,
            endpoint: peer.endpoint.as_deref().map(str::to_owned),
            inbound_tag: tag(peer.inbound_tag),
            outbound_tag: tag(peer.outbound_tag),
            pair_tag: (peer.pair_tag != PairTag::NONE).then(|| peer.pair_tag.to_string()),
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    tag: String,
    blob: String,
}

/// What a program can do, as it says in its first line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ability {
    Candidates,
    Records,
    Mappings,
    Meetings,
}

impl fmt::Display for Ability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Candidates => "candidates",
            Self::Records => "records",
            Self::Mappings => "mappings",
            Self::Meetings => "meetings",
        })
    }
}

/// The first line of a program.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Hello {
    #[serde(rename = "natpunch")]
    _version: u64,
    name: String,
    abilities: BTreeSet<Ability>,
    settings: Option<Schema>,
}

/// Every other line of a program.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum Said {
    Candidate {
        peer: PeerKey,
        address: SocketAddr,
        kind: CandidateKind,
        lifetime: u64,
    },
    Withdraw {
        peer: PeerKey,
        address: SocketAddr,
    },
    Observed {
        address: SocketAddr,
        lifetime: u64,
    },
    Records {
        records: Vec<Record>,
    },
    Fire {
        peer: PeerKey,
        after_ms: u64,
    },
    Wanted {
        peer: PeerKey,
    },
    Health {
        ok: bool,
        note: String,
    },
}

/// What came of a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Heard {
    News(News),
    Health(Health),
}

/// The first line to a program.
pub(crate) fn welcome(own_key: PeerKey, listen_port: u16) -> String {
    line(&Welcome {
        natpunch: VERSION,
        own_key,
        listen_port,
    })
}

/// The last line to a program.
pub(crate) fn farewell() -> String {
    line(&Told::Shutdown)
}

fn line(message: &impl Serialize) -> String {
    // Texts, numbers and lists of them always have a form in JSON.
    let mut line = serde_json::to_string(message).unwrap_or_default();
    line.push('\n');
    line
}

/// A conversation with a program that said hello.
#[derive(Debug)]
pub(crate) struct Session {
    name: String,
    abilities: BTreeSet<Ability>,
    /// What it says of its own settings.
    schema: Option<Schema>,
    peers: Known<PeerKey>,
    inbound: Known<RecordTag>,
}

/// What the program was told of. It may answer for what was on the list before while the newer one
/// is on its way: that is no mistake, and changes nothing.
#[derive(Debug)]
struct Known<T> {
    now: BTreeSet<T>,
    before: BTreeSet<T>,
}

impl<T> Default for Known<T> {
    fn default() -> Self {
        Self {
            now: BTreeSet::new(),
            before: BTreeSet::new(),
        }
    }
}

impl<T: Ord> Known<T> {
    fn replace(&mut self, now: BTreeSet<T>) {
        if self.before.len() > MOST_FORMER {
            self.before.clear();
        }
        self.before.append(&mut self.now);
        self.now = now;
    }

    /// Whether it is on the list; `None` if it never was.
    fn is_current(&self, one: &T) -> Option<bool> {
        let is_current = self.now.contains(one);
        (is_current || self.before.contains(one)).then_some(is_current)
    }
}

impl Session {
    /// Reads a program's first line.
    ///
    /// # Errors
    /// Why natpunch can't work with this program, in words for its author.
    pub(crate) fn start(hello: &[u8], may_meet: bool) -> Result<Self, String> {
        const EXAMPLE: &str = r#"write {"natpunch":1,"name":"my-plugin","abilities":["records"]}"#;
        let value: Value = serde_json::from_slice(hello).map_err(|error| {
            format!("its first line is not JSON ({error}) and so not a hello; {EXAMPLE}")
        })?;
        match value.get("natpunch").map(Value::as_u64) {
            Some(Some(VERSION)) => {}
            Some(Some(other)) => {
                return Err(format!(
                    "it speaks version {other} of the plugin protocol, this natpunch version \
                     {VERSION}; use a version of the program for {VERSION}"
                ));
            }
            Some(None) | None => {
                return Err(format!("its first line is not a hello; {EXAMPLE}"));
            }
        }
        let hello: Hello = serde_json::from_value(value)
            .map_err(|error| format!("its hello is not understood: {error}; {EXAMPLE}"))?;
        if hello.abilities.contains(&Ability::Meetings) && !may_meet {
            return Err(
                "its hello names the ability `meetings`, which the mesh file does not give to \
                 it; write meetings = true in its section, or leave it out of the hello"
                    .to_owned(),
            );
        }
        let settings = hello.settings.as_ref().map_or(0, Schema::len);
        if settings > own_settings::MOST {
            return Err(format!(
                "its hello names {settings} settings; programs have {} at most",
                own_settings::MOST
            ));
        }
        Ok(Self {
            name: shown(&hello.name),
            abilities: hello.abilities,
            schema: hello.settings,
            peers: Known::default(),
            inbound: Known::default(),
        })
    }

    /// The name that the program gives itself.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Whether it has the ability `records`.
    pub(crate) fn carries_records(&self) -> bool {
        self.abilities.contains(&Ability::Records)
    }

    /// The line that tells the program its settings, if its hello names any.
    ///
    /// # Errors
    /// They are not what the hello says of them.
    pub(crate) fn settings(&self, given: &OwnSettings) -> Result<Option<String>, Vec<SettingFlaw>> {
        own_settings::check(&self.name, self.schema.as_ref(), given)?;
        let settings = given.clone();
        Ok(self
            .schema
            .as_ref()
            .map(|_| line(&Told::Settings { settings })))
    }

    /// The line that tells the program of it, if the program cares.
    pub(crate) fn handle_input(&mut self, input: &Input) -> Option<String> {
        match input {
            Input::Ask(Ask::Peers(peers)) => {
                self.peers
                    .replace(peers.iter().map(|peer| peer.peer).collect());
                // The tag belongs to no pair, so no peer uses this mailbox.
                let inbound = peers.iter().map(|peer| peer.inbound_tag);
                self.inbound
                    .replace(inbound.filter(|tag| *tag != RecordTag::NONE).collect());
                let peers = peers.iter().map(Peer::from).collect();
                Some(line(&Told::Peers { peers }))
            }
            Input::Ask(Ask::Records(records)) => {
                if !self.abilities.contains(&Ability::Records) {
                    return None;
                }
                let encoded = |record: &SealedRecord| Record {
                    tag: record.tag.to_string(),
                    blob: STANDARD.encode(&record.blob),
                };
                let records = records.iter().map(encoded).collect();
                Some(line(&Told::Records { records }))
            }
            Input::Ask(Ask::Meet(peer)) => self
                .abilities
                .contains(&Ability::Meetings)
                .then(|| line(&Told::Meet { peer: *peer })),
            Input::NetworkChanged => Some(line(&Told::NetworkChanged)),
            Input::Shutdown => Some(farewell()),
            // Programs send nothing from WireGuard's port and nothing to peers, so nothing comes back.
            Input::Datagram { .. } | Input::FromPeer { .. } => None,
        }
    }

    /// What a line of the program's comes to.
    ///
    /// # Errors
    /// Why the line is refused, in words for the program's author. They quote nothing secret.
    pub(crate) fn handle_line(&self, line: &[u8]) -> Result<Vec<Heard>, String> {
        let said: Said = serde_json::from_slice(line).map_err(|error| {
            if is_hello(line) {
                "it is a second hello; say hello once, in the first line".to_owned()
            } else {
                not_understood(line, &error)
            }
        })?;
        let mut is_current = true;
        let news = match said {
            Said::Health { ok, note } => {
                let note = format!("{}: {}", self.name, shown(&note));
                let health = if ok {
                    Health::Good(note)
                } else {
                    Health::Bad(note)
                };
                return Ok(vec![Heard::Health(health)]);
            }
            Said::Records { records } => {
                self.need(Ability::Records)?;
                let decoded: Result<Vec<_>, _> =
                    records.iter().map(|record| self.record(record)).collect();
                return Ok(decoded?.into_iter().flatten().map(Heard::News).collect());
            }
            Said::Candidate {
                peer,
                address,
                kind,
                lifetime,
            } => {
                self.need(Ability::Candidates)?;
                is_current = self.know(&peer)?;
                News::Candidate {
                    peer,
                    candidate: Candidate {
                        address,
                        kind: check_kind(kind)?,
                        lifetime: check_lifetime(lifetime)?,
                    },
                }
            }
            Said::Withdraw { peer, address } => {
                self.need(Ability::Candidates)?;
                // The peer may have left the mesh while this was on its way.
                News::Withdrawn { peer, address }
            }
            Said::Observed { address, lifetime } => {
                self.need(Ability::Mappings)?;
                News::OwnAddress {
                    address,
                    // Servers see the address of the socket that asks them, and the program's
                    // sockets are not WireGuard's. So all it can know of is a mapping.
                    kind: OwnAddressKind::Mapped,
                    lifetime: check_lifetime(lifetime)?,
                }
            }
            Said::Fire { peer, after_ms } => {
                self.need(Ability::Meetings)?;
                is_current = self.know(&peer)?;
                if after_ms > LATEST_FIRE {
                    return Err(format!(
                        "`after_ms` is {after_ms}; write a number from 0 to {LATEST_FIRE}"
                    ));
                }
                News::Fire {
                    peer,
                    after: Duration::from_millis(after_ms),
                }
            }
            Said::Wanted { peer } => {
                self.need(Ability::Meetings)?;
                is_current = self.know(&peer)?;
                News::Wanted { peer }
            }
        };
        Ok(if is_current {
            vec![Heard::News(news)]
        } else {
            vec![]
        })
    }

    /// Whether the hello named the ability that a message takes.
    fn need(&self, ability: Ability) -> Result<(), String> {
        if self.abilities.contains(&ability) {
            return Ok(());
        }
        Err(format!(
            "the message takes the ability `{ability}`; name it in the `abilities` of the hello"
        ))
    }

    /// Whether a peer is one of the last list; false if it was one of an earlier list.
    fn know(&self, peer: &PeerKey) -> Result<bool, String> {
        self.peers.is_current(peer).ok_or_else(|| {
            format!(
                "`peer` is {}…, which is not in the last `peers` message; answer for those only",
                peer.short()
            )
        })
    }

    fn record(&self, record: &Record) -> Result<Option<News>, String> {
        let tag =
            RecordTag::from_hex(&record.tag).ok_or("a `tag` has not 32 hexadecimal digits")?;
        // Tags are secrets of a pair: the sentence does not quote it.
        let is_current = self.inbound.is_current(&tag).ok_or(
            "a record's `tag` is no `inbound_tag` of the last `peers` message; look for those only",
        )?;
        let blob = STANDARD
            .decode(&record.blob)
            .map_err(|_| "a `blob` is not base64 (RFC 4648, section 4, with its padding)")?;
        if blob.len() > SealedRecord::MAX {
            return Err(format!(
                "a `blob` has {} bytes; records have {} at most",
                blob.len(),
                SealedRecord::MAX
            ));
        }
        let blob = blob.into();
        Ok(is_current.then_some(News::Record(SealedRecord { tag, blob })))
    }
}

fn is_hello(line: &[u8]) -> bool {
    let value: Option<Value> = serde_json::from_slice(line).ok();
    value.is_some_and(|value| value.get("natpunch").is_some())
}

fn not_understood(line: &[u8], error: &serde_json::Error) -> String {
    let problem = shown(&error.to_string());
    if !error.is_syntax() && !error.is_eof() {
        return format!(
            "it is not a message of the protocol: {problem}; docs/reference/plugin-protocol.md has \
             each of them"
        );
    }
    // It was meant as one, then.
    let help = if line.starts_with(b"{") {
        "write one whole object on one line, without NaN or Infinity"
    } else {
        "write notes for people to standard error"
    };
    format!("it is not JSON ({problem}); {help}")
}

fn check_lifetime(seconds: u64) -> Result<Duration, String> {
    if (1..=LONGEST_LIFETIME).contains(&seconds) {
        return Ok(Duration::from_secs(seconds));
    }
    Err(format!(
        "`lifetime` is {seconds}; write seconds from 1 to {LONGEST_LIFETIME}, and say it again \
         before they are over"
    ))
}

/// Kinds that a program can know of.
fn check_kind(kind: CandidateKind) -> Result<CandidateKind, String> {
    match kind {
        CandidateKind::Host | CandidateKind::Mapped | CandidateKind::Reflexive => Ok(kind),
        // The source of an authenticated packet, which only natpunch sees; a port of a relay, which
        // needs an agreement between both sides.
        CandidateKind::PeerReflexive | CandidateKind::Relay => Err(format!(
            "`kind` is \"{kind}\"; write \"host\", \"mapped\" or \"reflexive\""
        )),
    }
}

#[cfg(test)]
mod tests;
