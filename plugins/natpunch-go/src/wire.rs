//! The bytes of natpunch-go's protocol. All integers are big-endian.
//!
//! | type | direction | after the type byte |
//! |---|---|---|
//! | 1 handshake init | to the server | index u32; Noise message 1, its payload a timestamp u64 (Unix nanoseconds) |
//! | 2 handshake response | to the client | index u32, granted; Noise message 2, empty payload |
//! | 3 data | to the server | index u32; nonce u64; sealed: own key, key asked for |
//! | 3 data | to the client | nonce u64; sealed: address 4 and port 2, or nothing when not known |
//!
//! An extension: to a client that came by IPv6, an answer is address 16 and port 2. Over IPv4 the
//! bytes are exactly natpunch-go's.
//!
//! Each message has one length, so that parsing is a comparison of lengths: there is nothing to go
//! wrong.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const INIT: u8 = 1;
const RESPONSE: u8 = 2;
const DATA: u8 = 3;

pub(crate) const TAG: usize = 16;
/// Ephemeral key, sealed static key, sealed timestamp.
pub(crate) const NOISE_INIT: usize = 32 + (32 + TAG) + (8 + TAG);
/// Ephemeral key, sealed nothing.
pub(crate) const NOISE_RESPONSE: usize = 32 + TAG;
/// The asking key and the key asked for, sealed.
pub(crate) const SEALED_REQUEST: usize = 64 + TAG;

pub(crate) const INIT_LEN: usize = 1 + 4 + NOISE_INIT;
pub(crate) const RESPONSE_LEN: usize = 1 + 4 + NOISE_RESPONSE;
pub(crate) const REQUEST_LEN: usize = 1 + 4 + 8 + SEALED_REQUEST;
pub(crate) const SEALED_ANSWER_MAX: usize = 18 + TAG;
/// The longest datagram that a server sends. Shorter than each that it answers.
pub(crate) const REPLY_MAX: usize = RESPONSE_LEN;

/// A datagram to the server.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ToServer<'a> {
    /// The index is left out: it is the client's wish, and the server chooses.
    Init { noise: &'a [u8; NOISE_INIT] },
    Request {
        index: u32,
        nonce: u64,
        sealed: &'a [u8; SEALED_REQUEST],
    },
}

impl<'a> ToServer<'a> {
    pub(crate) fn parse(datagram: &'a [u8]) -> Option<Self> {
        let (kind, rest) = datagram.split_first()?;
        match *kind {
            INIT => {
                let (_, noise) = take::<4>(rest)?;
                Some(Self::Init {
                    noise: noise.try_into().ok()?,
                })
            }
            DATA => {
                let (index, rest) = take(rest)?;
                let (nonce, sealed) = take(rest)?;
                Some(Self::Request {
                    index: u32::from_be_bytes(*index),
                    nonce: u64::from_be_bytes(*nonce),
                    sealed: sealed.try_into().ok()?,
                })
            }
            _ => None,
        }
    }
}

/// A datagram to the client.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ToClient<'a> {
    Response {
        index: u32,
        noise: &'a [u8; NOISE_RESPONSE],
    },
    Answer {
        nonce: u64,
        sealed: &'a [u8],
    },
}

impl<'a> ToClient<'a> {
    pub(crate) fn parse(datagram: &'a [u8]) -> Option<Self> {
        let (kind, rest) = datagram.split_first()?;
        match *kind {
            RESPONSE => {
                let (index, noise) = take(rest)?;
                Some(Self::Response {
                    index: u32::from_be_bytes(*index),
                    noise: noise.try_into().ok()?,
                })
            }
            DATA => {
                let (nonce, sealed) = take(rest)?;
                matches!(sealed.len().checked_sub(TAG)?, 0 | 6 | 18).then_some(Self::Answer {
                    nonce: u64::from_be_bytes(*nonce),
                    sealed,
                })
            }
            _ => None,
        }
    }
}

fn take<const N: usize>(bytes: &[u8]) -> Option<(&[u8; N], &[u8])> {
    bytes.split_first_chunk::<N>()
}

/// A datagram that is being written: at most `N` bytes, no allocation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Packet<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Packet<N> {
    fn new(parts: &[&[u8]]) -> Self {
        let mut packet = Self {
            bytes: [0; N],
            len: 0,
        };
        for part in parts {
            if let Some(room) = packet.room().get_mut(..part.len()) {
                room.copy_from_slice(part);
                packet.grow(part.len());
            }
        }
        packet
    }

    /// What is not written yet.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.len..).unwrap_or_default()
    }

    /// Counts `n` bytes of [`room`](Self::room) as written.
    pub(crate) fn grow(&mut self, n: usize) {
        self.len = (self.len + n).min(N);
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

/// The header of a handshake init.
pub(crate) fn init(index: u32) -> Packet<INIT_LEN> {
    Packet::new(&[&[INIT], &index.to_be_bytes()])
}

/// The header of a handshake response.
pub(crate) fn response(index: u32) -> Packet<REPLY_MAX> {
    Packet::new(&[&[RESPONSE], &index.to_be_bytes()])
}

/// The header of a request.
pub(crate) fn request(index: u32, nonce: u64) -> Packet<REQUEST_LEN> {
    Packet::new(&[&[DATA], &index.to_be_bytes(), &nonce.to_be_bytes()])
}

/// The header of an answer.
pub(crate) fn answer(nonce: u64) -> Packet<REPLY_MAX> {
    Packet::new(&[&[DATA], &nonce.to_be_bytes()])
}

/// The inside of an answer.
pub(crate) fn encode_address(address: Option<SocketAddr>) -> Packet<18> {
    match address {
        None => Packet::new(&[]),
        Some(SocketAddr::V4(address)) => {
            Packet::new(&[&address.ip().octets(), &address.port().to_be_bytes()])
        }
        Some(SocketAddr::V6(address)) => {
            Packet::new(&[&address.ip().octets(), &address.port().to_be_bytes()])
        }
    }
}

/// The address in an answer. `None` if not known, and for what can't be an address: another length,
/// port 0, address 0.
pub(crate) fn decode_address(inside: &[u8]) -> Option<SocketAddr> {
    let (ip, port) = inside.split_last_chunk::<2>()?;
    let ip: IpAddr = match ip.len() {
        4 => Ipv4Addr::from(<[u8; 4]>::try_from(ip).ok()?).into(),
        16 => Ipv6Addr::from(<[u8; 16]>::try_from(ip).ok()?).into(),
        _ => return None,
    };
    let port = u16::from_be_bytes(*port);
    (port != 0 && !ip.is_unspecified())
        .then(|| natpunch_types::canonical(SocketAddr::new(ip, port)))
}
