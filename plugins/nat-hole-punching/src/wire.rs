//! The bytes.

use std::net::{Ipv4Addr, SocketAddrV4};

use natpunch_types::PeerKey;

pub(crate) const REQUEST_LEN: usize = 64;

/// Says "I am `own`, where is `wanted`?".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) own: PeerKey,
    pub(crate) wanted: PeerKey,
}

impl Request {
    /// `None` for any other length, and for an all-zero key of the asking side.
    pub(crate) fn parse(datagram: &[u8]) -> Option<Self> {
        let datagram: &[u8; REQUEST_LEN] = datagram.try_into().ok()?;
        let (own, rest) = datagram.split_first_chunk::<32>()?;
        let wanted = rest.first_chunk::<32>()?;
        (own != &[0; 32]).then_some(Self {
            own: PeerKey::from_bytes(*own),
            wanted: PeerKey::from_bytes(*wanted),
        })
    }

    pub(crate) fn encode(&self) -> [u8; REQUEST_LEN] {
        let mut datagram = [0; REQUEST_LEN];
        let (own, wanted) = datagram.split_at_mut(32);
        own.copy_from_slice(self.own.as_bytes());
        wanted.copy_from_slice(self.wanted.as_bytes());
        datagram
    }
}

/// An answer: an address, or not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answer(pub(crate) Option<SocketAddrV4>);

impl Answer {
    /// `None` for what is not an answer. What can't be an address (port 0, address 0) reads as not
    /// known.
    pub(crate) fn parse(datagram: &[u8]) -> Option<Self> {
        if datagram.is_empty() {
            return Some(Self(None));
        }
        let datagram: &[u8; 6] = datagram.try_into().ok()?;
        let (ip, port) = datagram.split_first_chunk::<4>()?;
        let address = SocketAddrV4::new(
            Ipv4Addr::from(*ip),
            u16::from_be_bytes(port.try_into().ok()?),
        );
        Some(Self(
            (address.port() != 0 && !address.ip().is_unspecified()).then_some(address),
        ))
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        self.0.map_or_else(Vec::new, |address| {
            [&address.ip().octets()[..], &address.port().to_be_bytes()].concat()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_parses_back() {
        let request = Request {
            own: PeerKey::from_bytes([1; 32]),
            wanted: PeerKey::from_bytes([2; 32]),
        };
        assert_eq!(Request::parse(&request.encode()), Some(request));
        for answer in [
            Answer(None),
            Answer(Some("203.0.113.1:51820".parse().unwrap())),
        ] {
            assert_eq!(Answer::parse(&answer.encode()), Some(answer));
        }
    }

    #[test]
    fn an_address_of_zeros_reads_as_not_known() {
        for zeros in [
            [0, 0, 0, 0, 0, 0],
            [203, 0, 113, 1, 0, 0],
            [0, 0, 0, 0, 0, 9],
        ] {
            assert_eq!(Answer::parse(&zeros), Some(Answer(None)));
        }
    }
}
