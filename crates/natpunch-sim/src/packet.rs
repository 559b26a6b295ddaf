//! What travels: UDP datagrams, with their payload either as bytes (whatever real code made) or as
//! a model's message.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use natpunch_rendezvous::wire::Kind;
use natpunch_types::IcmpError;

use crate::network::HostId;
use crate::{rendezvous, wireguard};

/// The TTL with which a host sends unless told otherwise.
pub const DEFAULT_TTL: u8 = 64;

/// The STUN magic cookie (RFC 8489, 5), at offset 4 of each message.
const STUN_COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];

/// What a datagram carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// Bytes that real code made or will parse: probes, STUN, and natpunch's own rendezvous.
    Raw(Vec<u8>),
    /// A message of the WireGuard model.
    WireGuard(wireguard::Message),
    /// A message of the rendezvous model.
    Rendezvous(rendezvous::Message),
    /// Not UDP: an ICMP error about a datagram that went from this packet's destination. Its sender
    /// and source port are as they were where it was made; NATs rewrite the packet's, and its
    /// destination to how the sender knows it.
    Icmp(Box<IcmpError>),
}

/// To what end a node sends a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// WireGuard's own: data, keepalives, handshakes.
    WireGuard,
    /// A ping or its answer, straight to the peer or by a relay.
    Probe,
    /// To a relay's port, which holds the mapping there.
    Bind,
    /// To a server of a rendezvous.
    Server,
    /// To a STUN server.
    Stun,
    /// Of a router, to whoever sent what it did not forward.
    Error,
}

impl Payload {
    /// The bytes, for a hash over everything that happened.
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::Raw(bytes) => bytes,
            Self::WireGuard(_) | Self::Rendezvous(_) | Self::Icmp(_) => &[],
        }
    }

    fn size(&self) -> u64 {
        match self {
            Self::WireGuard(message) => message.size(),
            Self::Raw(_) | Self::Rendezvous(_) => self.bytes().len() as u64,
            // What it quotes is the beginning of a packet (RFC 792).
            Self::Icmp(error) => 28 + error.payload.len() as u64,
        }
    }

    /// To what end it is sent.
    pub(crate) fn purpose(&self) -> Purpose {
        match self {
            Self::Raw(bytes) if bytes.get(4..8) == Some(&STUN_COOKIE) => Purpose::Stun,
            Self::Raw(bytes) => match Kind::of(bytes) {
                Some(Kind::Bind) => Purpose::Bind,
                Some(_) => Purpose::Server,
                None => Purpose::Probe,
            },
            Self::WireGuard(_) => Purpose::WireGuard,
            Self::Rendezvous(_) => Purpose::Server,
            Self::Icmp(_) => Purpose::Error,
        }
    }

    /// What a server that knows neither model sees of it.
    pub(crate) fn to_bytes(&self) -> Cow<'_, [u8]> {
        match self {
            Self::WireGuard(message) => message.outline().into(),
            Self::Raw(_) | Self::Rendezvous(_) | Self::Icmp(_) => self.bytes().into(),
        }
    }
}

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Raw(bytes) if bytes.get(4..8) == Some(&STUN_COOKIE) => {
                write!(f, "stun {} B", bytes.len())
            }
            Self::Raw(bytes) => match Kind::of(bytes) {
                Some(kind) => write!(f, "{kind:?} {} B", bytes.len()),
                None => write!(f, "probe {} B", bytes.len()),
            },
            Self::WireGuard(message) => write!(f, "wg {message}"),
            Self::Rendezvous(message) => write!(f, "rendezvous {message}"),
            Self::Icmp(error) => {
                let IcmpError {
                    kind, destination, ..
                } = &**error;
                write!(f, "icmp {kind:?} of what went to {destination}")
            }
        }
    }
}

/// A UDP datagram in flight, or an ICMP error about one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Where it says that it comes from: rewritten by NATs.
    pub source: SocketAddr,
    /// Where it goes: rewritten by NATs.
    pub destination: SocketAddr,
    /// Routers that it may still cross.
    pub ttl: u8,
    /// What it carries.
    pub payload: Payload,
    /// Which host really sent it: not on the wire, for assertions only.
    pub origin: Option<HostId>,
    /// Tells it apart from all others of the run: not on the wire, for traces only.
    pub id: u64,
}

impl Packet {
    /// The ICMP error that this is, as its receiver sees it.
    pub(crate) fn icmp_error(&self) -> Option<IcmpError> {
        let Payload::Icmp(error) = &self.payload else {
            return None;
        };
        Some(IcmpError {
            from: self.source.ip(),
            source_port: self.destination.port(),
            ..(**error).clone()
        })
    }

    /// A datagram with the default TTL.
    pub fn new(source: SocketAddr, destination: SocketAddr, payload: Payload) -> Self {
        Self {
            source,
            destination,
            ttl: DEFAULT_TTL,
            payload,
            origin: None,
            id: 0,
        }
    }

    /// Bytes of it with its headers of IP and UDP.
    pub(crate) fn size(&self) -> u64 {
        let headers = if self.destination.is_ipv4() { 28 } else { 48 };
        headers + self.payload.size()
    }

    /// Takes `hops` off the TTL. False if the packet dies on the way.
    pub(crate) fn cross(&mut self, hops: u8) -> bool {
        let alive = self.ttl > hops;
        self.ttl = self.ttl.saturating_sub(hops);
        alive
    }
}

/// True for an address that means all hosts of one link.
pub(crate) fn is_multicast(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_broadcast() || ip.is_multicast(),
        IpAddr::V6(ip) => ip.is_multicast(),
    }
}

/// Virtual time as text: seconds with microseconds.
pub(crate) fn clock(at: Duration) -> String {
    format!("{}.{:06}", at.as_secs(), at.subsec_micros())
}
