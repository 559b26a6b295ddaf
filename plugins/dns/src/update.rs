//! Updates of the zone (RFC 2136), signed with TSIG (RFC 8945), and what their answers mean. Pure.

use std::fmt;
use std::sync::Arc;

use domain::base::iana::{Class, Opcode, Rcode};
use domain::base::message_builder::PushError;
use domain::base::wire::ParseError;
use domain::base::{Message, MessageBuilder, Rtype, StaticCompressor, Ttl, UnknownRecordData};
use domain::rdata::tsig::Time48;
use domain::tsig::{ClientTransaction, Key, NewKeyError, ValidationError};
use natpunch_plugin::{RecordTag, SealedRecord};
use natpunch_types::PresharedKey;

use crate::names::Zone;
use crate::settings::Primary;
use crate::text;

/// For how long others may keep a record, in seconds: what is new is seen as much later at most.
const TTL: Ttl = Ttl::from_secs(5);
/// Seconds by which the clocks of both sides may differ (RFC 8945, 10).
const FUDGE: u16 = 300;

/// What one update changes. Nothing but the records of this node's own tags.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    /// Records that take the place of whatever is under their tags.
    pub(crate) put: Vec<SealedRecord>,
    /// Tags under which this node had a record and has none now.
    pub(crate) remove: Vec<RecordTag>,
}

/// Signs updates of a zone.
#[derive(Debug, Clone)]
pub(crate) struct Signer {
    zone: Zone,
    key: Arc<Key>,
}

impl Signer {
    /// # Errors
    /// The library's, of lengths of signatures that are not set here.
    pub(crate) fn new(
        zone: Zone,
        primary: &Primary,
        secret: &PresharedKey,
    ) -> Result<Self, NewKeyError> {
        let name = primary.key_name.name().clone();
        let key = Key::new(primary.algorithm, secret.expose(), name, None, None)?;
        Ok(Self {
            zone,
            key: Arc::new(key),
        })
    }

    /// The message for these changes; `now` is in seconds since 1970, by this host's clock.
    ///
    /// # Errors
    /// It is longer than 64 KiB.
    pub(crate) fn sign(&self, changes: &Changes, id: u16, now: u64) -> Result<Update, PushError> {
        let mut builder = MessageBuilder::from_target(StaticCompressor::new(Vec::new()))
            .map_err(|_| PushError::ShortBuf)?;
        builder.header_mut().set_id(id);
        builder.header_mut().set_opcode(Opcode::UPDATE);
        let mut zone = builder.question();
        zone.push((self.zone.name(), Rtype::SOA, Class::IN))?;
        let mut update = zone.authority();
        let nothing = UnknownRecordData::from_octets(Rtype::TXT, [0_u8; 0])
            .map_err(|_| PushError::ShortBuf)?;
        // RFC 2136, 2.5.2: of class ANY and without data it deletes all TXT records of the name. A
        // server applies the changes of a message in their order, and all or none.
        let replaced = changes.put.iter().map(|record| record.tag);
        for tag in replaced.chain(changes.remove.iter().copied()) {
            update.push((self.zone.record(tag), Class::ANY, Ttl::ZERO, &nothing))?;
        }
        for record in &changes.put {
            let strings = text::write(&record.blob).map_err(|_| PushError::ShortBuf)?;
            update.push((self.zone.record(record.tag), Class::IN, TTL, strings))?;
        }
        let mut whole = update.additional();
        let transaction =
            ClientTransaction::request_with_fudge(self.key.clone(), &mut whole, time(now), FUDGE)?;
        Ok(Update {
            bytes: whole.finish().into_target(),
            transaction,
        })
    }
}

/// As the library has it, of 48 bits.
fn time(now: u64) -> Time48 {
    Time48::from_u64(now & 0xffff_ffff_ffff)
}

/// A signed update.
#[derive(Debug)]
pub(crate) struct Update {
    pub(crate) bytes: Vec<u8>,
    transaction: ClientTransaction<Arc<Key>>,
}

impl Update {
    /// What the server answers. Only a signed answer says that the zone has changed.
    ///
    /// # Errors
    /// It has not, or nobody knows.
    pub(crate) fn outcome(&self, answer: Vec<u8>, now: u64) -> Result<(), Refusal> {
        let mut answer = Message::from_octets(answer).map_err(|_| Refusal::Garbled)?;
        if !answer.header().qr() {
            return Err(Refusal::Garbled);
        }
        let rcode = answer.header().rcode();
        match self.transaction.answer(&mut answer, time(now)) {
            Ok(()) if rcode == Rcode::NOERROR => Ok(()),
            Ok(()) => Err(Refusal::Answered(rcode)),
            // A server that refuses need not sign why. Nothing is done for it but waiting.
            Err(ValidationError::ServerUnsigned) if rcode != Rcode::NOERROR => {
                Err(Refusal::Answered(rcode))
            }
            Err(ValidationError::ServerBadKey | ValidationError::BadAlg) => Err(Refusal::BadKey),
            Err(ValidationError::ServerBadSig) => Err(Refusal::BadSig),
            Err(ValidationError::ServerBadTime { client, server }) => {
                let (client, server) = (seconds(client), seconds(server));
                Err(Refusal::BadTime(client.abs_diff(server)))
            }
            Err(ValidationError::BadTime) => Err(Refusal::BadTime(u64::from(FUDGE))),
            Err(ValidationError::FormErr) => Err(Refusal::Garbled),
            // Not signed, or with another key than ours: somebody else's answer.
            Err(_) => Err(Refusal::Unsigned),
        }
    }
}

/// Seconds since 1970.
fn seconds(time: Time48) -> u64 {
    u64::from(time)
}

/// Why an update was not made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The server has no such key, or one of another algorithm, or does not let it update.
    BadKey,
    /// The server's secret is another.
    BadSig,
    /// The clocks differ by so many seconds.
    BadTime(u64),
    /// Another reason.
    Answered(Rcode),
    /// The answer is not signed with the key.
    Unsigned,
    /// The answer is no DNS message.
    Garbled,
}

impl From<ParseError> for Refusal {
    fn from(_: ParseError) -> Self {
        Self::Garbled
    }
}

impl Refusal {
    /// It in words: what happened, and what to do.
    pub(crate) fn explain(self, zone: &Zone, primary: &Primary) -> impl fmt::Display {
        let (server, key) = (&primary.server, &primary.key_name);
        match self {
            // Knot DNS says the same of a key that it knows and does not allow.
            Self::BadKey => format!(
                "{server} takes no updates of {zone} by the TSIG key `{key}` (BADKEY): it must have \
                 a key of this name and `algorithm`, and its access rules must allow the key"
            ),
            Self::BadSig => format!(
                "{server} has another secret for the TSIG key `{key}` (BADSIG): put the secret that \
                 it has into `key_file`"
            ),
            Self::BadTime(by) => format!(
                "the clocks of this host and of {server} are {by} s apart, and {FUDGE} s is the \
                 most that a signed update may be off (BADTIME): set the clock, as by \
                 `timedatectl set-ntp true`"
            ),
            Self::Answered(Rcode::REFUSED) => format!(
                "{server} does not let the TSIG key `{key}` change TXT records of {zone} (REFUSED): \
                 allow it in the server's access rules"
            ),
            Self::Answered(rcode @ (Rcode::NOTAUTH | Rcode::NOTZONE)) => format!(
                "{server} takes no updates of a zone {zone} by the TSIG key `{key}` ({rcode}): \
                 `update_server` must be the zone's primary, `zone` its name there, and its access \
                 rules must name the key"
            ),
            Self::Answered(rcode) => format!("{server} answers an update of {zone} with {rcode}"),
            Self::Unsigned => format!(
                "the answer of {server} to an update is not signed with the TSIG key `{key}`: is \
                 `update_server` the zone's primary?"
            ),
            Self::Garbled => format!("the answer of {server} to an update is no DNS message"),
        }
    }
}

#[cfg(test)]
mod tests;
