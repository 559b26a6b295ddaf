//! Probes: authenticated datagrams from WireGuard's port to a peer's, by which a path is proven.
//!
//! Ping and pong have the same fixed length, so that an answer is never larger than what it answers
//! and a sealed probe tells an onlooker nothing. Layout (integers big-endian):
//!
//! ```text
//!   0  magic "NPch"          16  nonce (24, random)
//!   4  version 1, 3 x zero   40  sealed: plaintext (136) and tag (16), XChaCha20-Poly1305
//!   8  tag of the pair and direction; bytes 0..16 are authenticated with it
//!
//!   plaintext
//!   0  kind: 1 ping, 2 pong          12  session of the receiver as far as known, or 0
//!   1  flags, see below              20  sequence number of the sender towards the receiver
//!   2  number of hosts, zero         28  transaction (12)
//!   4  session of the sender         40  pong: source address of the ping;
//!                                        ping: what the sender says of itself
//!                                    58  ping: up to 4 host addresses; zeros up to 136
//! ```
//!
//! What the sender says of itself: version 1 (0: nothing), profile of its IPv4 NAT (6), the
//! strategy under way (0: none), its stage, round (2), seed (2), the silence that its NAT's mappings
//! are known to outlive in seconds (0: not known), how its NAT and its firewall of IPv6 filter, the
//! number of its addresses and its hops, the silence of IPv6, zero. A version that does not know a
//! field ignores it.
//!
//! Flags: 1 heard (the sender got a pong on this path), 2 in use (the sender has chosen this path;
//! from the side that decides for the pair, this nominates it), 4 checking (the sender's WireGuard
//! uses this path and waits for a sign of life of the receiver's), 8 deaf (the sender's WireGuard
//! has heard nothing on this path, which it has left for that: the receiver shall leave it too), 16
//! unheard (the sender's WireGuard has received nothing for a while: if the receiver's has sent
//! something all the time, the path does not let it through), 32 at ease (the sender has nothing for
//! the receiver: as far as it is concerned, a pair that is on demand may rest).
//! Flags that a version does not know it ignores.
//!
//! A receiver believes flags only in a fresh message: a pong answers a random transaction of its
//! own; a ping names the receiver's session, which is random per start, and a sequence number that
//! was not seen before.

use std::net::SocketAddr;

pub(crate) use natpunch_types::PROBE_LEN;
use natpunch_types::ProbeTag;
use rand_core::RngCore;

use crate::keys::Direction;
use crate::messages::about::About;
use crate::messages::wire::{ADDRESS_LEN, Reader, put_address, read_address};
use crate::messages::{Stamp, envelope};

/// A ping tells at most this many host addresses.
pub(crate) const MAX_HOSTS: usize = 4;

const FORM: envelope::Form = [1, 0, 0, 0];
const FIELDS_LEN: usize = 40 + (1 + MAX_HOSTS) * ADDRESS_LEN;
const PLAINTEXT_LEN: usize = FIELDS_LEN.next_multiple_of(8);
const _: () = assert!(PROBE_LEN == envelope::AROUND + PLAINTEXT_LEN);
const FLAG_HEARD: u8 = 1;
const FLAG_IN_USE: u8 = 2;
const FLAG_CHECKING: u8 = 4;
const FLAG_DEAF: u8 = 8;
const FLAG_UNHEARD: u8 = 16;
const FLAG_AT_EASE: u8 = 32;

/// Identifies one ping; random, so that only who has received the ping can answer it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Transaction([u8; 12]);

impl Transaction {
    pub(crate) fn random(rng: &mut impl RngCore) -> Self {
        let mut bytes = [0; 12];
        rng.fill_bytes(&mut bytes);
        Self(bytes)
    }

    pub(crate) fn from_bytes(bytes: [u8; 12]) -> Self {
        Self(bytes)
    }

    pub(crate) fn bytes(self) -> [u8; 12] {
        self.0
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Ping,
    Pong,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Probe {
    pub(crate) kind: Kind,
    /// The sender has received a pong on this path.
    pub(crate) heard: bool,
    /// The sender has chosen this path; if it decides for the pair, so shall the receiver.
    pub(crate) in_use: bool,
    /// The sender's WireGuard waits for a sign of life of the receiver's.
    pub(crate) checking: bool,
    /// The sender's WireGuard hears nothing here, though probes pass.
    pub(crate) deaf: bool,
    /// The sender's WireGuard has received nothing for a while.
    pub(crate) unheard: bool,
    /// The sender has nothing for the receiver.
    pub(crate) at_ease: bool,
    /// Random per start of the sender.
    pub(crate) session: u64,
    /// The receiver's session as the sender knows it; 0 if it does not.
    pub(crate) to_session: u64,
    pub(crate) sequence: u64,
    pub(crate) transaction: Transaction,
    /// In a ping: the sender's NAT, and what it does about the pair's.
    pub(crate) about: Option<About>,
    /// In a pong: where the ping came from.
    pub(crate) observed: Option<SocketAddr>,
    /// In a ping: interface addresses of the sender.
    pub(crate) hosts: Vec<SocketAddr>,
}

/// The tag of a datagram that has the form of a probe, by which its peer is found.
pub(crate) fn tag(datagram: &[u8]) -> Option<ProbeTag> {
    envelope::tag(datagram, FORM).filter(|_| datagram.len() == PROBE_LEN)
}

/// How much a part of a datagram, from its beginning on, shows that it is one of our probes sealed
/// with these keys: `None` if it is not, true if it has the tag, which nobody knows who has not seen
/// one.
pub(crate) fn quote(part: &[u8], keys: &Direction) -> Option<bool> {
    let header = envelope::header(FORM, keys);
    let length = part.len().min(header.len());
    let is_ours = part.get(..length) == header.get(..length);
    is_ours.then_some(length == header.len())
}

impl Probe {
    pub(crate) fn stamp(&self) -> Stamp {
        Stamp {
            session: self.session,
            to_session: self.to_session,
            sequence: self.sequence,
        }
    }

    pub(crate) fn seal(&self, keys: &Direction, rng: &mut impl RngCore) -> Vec<u8> {
        let mut plaintext = Vec::with_capacity(PLAINTEXT_LEN);
        plaintext.push(match self.kind {
            Kind::Ping => 1,
            Kind::Pong => 2,
        });
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        plaintext.push(
            flag(self.heard, FLAG_HEARD)
                | flag(self.in_use, FLAG_IN_USE)
                | flag(self.checking, FLAG_CHECKING)
                | flag(self.deaf, FLAG_DEAF)
                | flag(self.unheard, FLAG_UNHEARD)
                | flag(self.at_ease, FLAG_AT_EASE),
        );
        let hosts = self.hosts.iter().take(MAX_HOSTS);
        plaintext.push(hosts.len() as u8);
        plaintext.push(0);
        self.stamp().put(&mut plaintext);
        plaintext.extend(self.transaction.0);
        match self.about {
            Some(about) if self.kind == Kind::Ping => plaintext.extend(about.to_bytes()),
            _ => put_address(&mut plaintext, self.observed),
        }
        for host in hosts {
            put_address(&mut plaintext, Some(*host));
        }
        plaintext.resize(PLAINTEXT_LEN, 0);

        // The cipher refuses only plaintexts of more than 256 GiB.
        envelope::seal(FORM, plaintext, keys, rng).unwrap_or_default()
    }

    /// `None` for anything that the peer did not seal for us in this form.
    pub(crate) fn open(keys: &Direction, datagram: &[u8]) -> Option<Self> {
        let plaintext = envelope::open(tag(datagram)?, keys, datagram)?;
        let mut reader = Reader(&plaintext);
        let kind = match reader.u8()? {
            1 => Kind::Ping,
            2 => Kind::Pong,
            _ => return None,
        };
        let flags = reader.u8()?;
        let hosts = usize::from(reader.u8()?).min(MAX_HOSTS);
        reader.u8()?;
        let Stamp {
            session,
            to_session,
            sequence,
        } = Stamp::read(&mut reader)?;
        Some(Self {
            kind,
            heard: flags & FLAG_HEARD != 0,
            in_use: flags & FLAG_IN_USE != 0,
            checking: flags & FLAG_CHECKING != 0,
            deaf: flags & FLAG_DEAF != 0,
            unheard: flags & FLAG_UNHEARD != 0,
            at_ease: flags & FLAG_AT_EASE != 0,
            session,
            to_session,
            sequence,
            transaction: Transaction(reader.array()?),
            about: About::from_bytes(reader.0).filter(|_| kind == Kind::Ping),
            observed: read_address(&mut reader)?.filter(|_| kind == Kind::Pong),
            hosts: (0..hosts)
                .map_while(|_| read_address(&mut reader)?)
                .collect(),
        })
    }
}
