//! A question to a name server, and what its answer says. Pure. Whatever is in an answer is
//! anybody's, so all that is taken from it has a bound.

use std::net::{IpAddr, SocketAddr};

use domain::base::iana::{Class, Rcode};
use domain::base::message_builder::PushError;
use domain::base::{Message, MessageBuilder, ParsedName, Rtype};
use domain::rdata::{A, Aaaa, Srv, Txt};
use natpunch_plugin::{Endpoint, RecordTag, SealedRecord};

use crate::names::DnsName;
use crate::text;

/// Bytes of a UDP answer that no network cuts in pieces (the DNS flag day of 2020; RFC 9715). A
/// longer one is fetched over TCP.
const UDP_PAYLOAD: u16 = 1232;
/// Resource records of an answer that are looked at.
const MOST_LOOKED_AT: usize = 64;
/// Sealed records that are taken from one name. One is the peer's, the others are those of somebody
/// who may write to the zone.
pub(crate) const MOST_RECORDS: usize = 8;
/// Addresses of a peer that are taken from one answer.
pub(crate) const MOST_ADDRESSES: usize = 8;

/// A message as it came.
pub(crate) type Answer = Message<Vec<u8>>;

/// A question.
#[derive(Debug, Clone)]
pub(crate) struct Query {
    name: DnsName,
    message: Message<Vec<u8>>,
}

impl Query {
    /// Asks for what is of this type under a name. `id` has to be random: it is what a liar who
    /// does not see the question has to guess (RFC 5452).
    ///
    /// # Errors
    /// A message has no room for it, which is so for no name.
    pub(crate) fn new(name: DnsName, of: Rtype, id: u16) -> Result<Self, PushError> {
        let mut builder = MessageBuilder::new_vec();
        builder.header_mut().set_id(id);
        // What a resolver needs to be asked, and the zone's own server ignores.
        builder.header_mut().set_rd(true);
        let mut question = builder.question();
        question.push((&name, of, Class::IN))?;
        let mut additional = question.additional();
        additional.opt(|opt| {
            opt.set_udp_payload_size(UDP_PAYLOAD);
            Ok(())
        })?;
        let message = additional.into_message();
        Ok(Self { name, message })
    }

    /// What is sent.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.message.as_slice()
    }

    /// Takes what came, if it is the answer.
    pub(crate) fn answer(&self, bytes: &[u8]) -> Option<Answer> {
        let answer = Message::from_octets(bytes.to_vec()).ok()?;
        let is_it = answer.is_answer(&self.message)
            // A server that can't read the question can't repeat it (RFC 1035, 4.1.1).
            || answer.header().qr()
                && answer.header().id() == self.message.header().id()
                && answer.header().rcode() == Rcode::FORMERR;
        is_it.then_some(answer)
    }

    /// The sealed records in an answer, as those of this tag.
    pub(crate) fn records(&self, answer: &Answer, tag: RecordTag) -> Vec<SealedRecord> {
        let Ok(section) = answer.answer() else {
            return Vec::new();
        };
        // What an alias leads to has another name, and is left out.
        section
            .limit_to_in::<Txt<_>>()
            .take(MOST_LOOKED_AT)
            .map_while(Result::ok)
            .filter(|record| record.owner() == &self.name)
            .filter_map(|record| text::read(record.data()))
            .take(MOST_RECORDS)
            .map(|blob| SealedRecord {
                tag,
                blob: blob.into(),
            })
            .collect()
    }

    /// The places that SRV records in an answer name.
    pub(crate) fn places(&self, answer: &Answer) -> Vec<Place> {
        let Ok(section) = answer.answer() else {
            return Vec::new();
        };
        let places = section
            .limit_to_in::<Srv<ParsedName<_>>>()
            .take(MOST_LOOKED_AT)
            .map_while(Result::ok)
            .filter(|record| record.owner() == &self.name);
        places
            .filter_map(|record| {
                let target = record.data().target();
                // The root is the target of a service that is not there (RFC 2782), and no host.
                let text = format!("{target}:{}", record.data().port());
                let endpoint = text.parse::<Endpoint>().ok()?;
                let addresses = addresses(answer, target, endpoint.port);
                Some(Place {
                    endpoint,
                    addresses,
                })
            })
            .take(MOST_ADDRESSES)
            .collect()
    }
}

/// Where a person says that a peer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) endpoint: Endpoint,
    /// The addresses of its host, as far as the same answer has them.
    pub(crate) addresses: Vec<SocketAddr>,
}

/// The addresses of a name among what an answer adds.
fn addresses(answer: &Answer, name: &ParsedName<&[u8]>, port: u16) -> Vec<SocketAddr> {
    let Ok(section) = answer.additional() else {
        return Vec::new();
    };
    section
        .take(MOST_LOOKED_AT)
        .map_while(Result::ok)
        .filter(|record| record.class() == Class::IN && record.owner() == *name)
        .filter_map(|record| {
            let v4 = || record.to_record::<A>().ok().flatten();
            let v6 = || record.to_record::<Aaaa>().ok().flatten();
            let v4 = v4().map(|record| IpAddr::from(record.data().addr()));
            v4.or_else(|| v6().map(|record| IpAddr::from(record.data().addr())))
        })
        .map(|ip| SocketAddr::new(ip, port))
        .take(MOST_ADDRESSES)
        .collect()
}

#[cfg(test)]
mod tests;
