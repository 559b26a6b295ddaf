//! The Port Control Protocol (RFC 6887), as much of it as one UDP mapping takes: the opcode MAP for
//! a client of IPv4.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::time::Duration;

use crate::bytes::{array, u16_at, u32_at};

const VERSION: u8 = 2;
const MAP: u8 = 1;
const ANNOUNCE: u8 = 0;
/// Set in the opcode of a response.
const RESPONSE: u8 = 0x80;
const UDP: u8 = 17;

/// What binds a mapping to who made it: without it nobody may renew or delete it.
pub(crate) type Nonce = [u8; 12];

/// A wish for a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) nonce: Nonce,
    /// This host's address, as the router sees it.
    pub(crate) client: Ipv4Addr,
    pub(crate) internal_port: u16,
    /// The address and port outside that would be best; zeros for any.
    pub(crate) suggested: SocketAddrV4,
    /// Zero deletes the mapping.
    pub(crate) lifetime: Duration,
}

/// What the router says to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It maps this address for so long.
    Granted(SocketAddrV4, Duration),
    /// It does not: a result code of RFC 6887, 7.4.
    Refused(u8),
}

impl Request {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let seconds = u32::try_from(self.lifetime.as_secs()).unwrap_or(u32::MAX);
        let mut bytes = vec![VERSION, MAP, 0, 0];
        bytes.extend(seconds.to_be_bytes());
        bytes.extend(self.client.to_ipv6_mapped().octets());
        bytes.extend(self.nonce);
        bytes.extend([UDP, 0, 0, 0]);
        bytes.extend(self.internal_port.to_be_bytes());
        bytes.extend(self.suggested.port().to_be_bytes());
        bytes.extend(self.suggested.ip().to_ipv6_mapped().octets());
        bytes
    }

    /// The answer to this request; `None` for anything else.
    pub(crate) fn answer(&self, datagram: &[u8]) -> Option<Answer> {
        let [version, opcode, _, result, ..] = array::<4>(datagram, 0)?;
        if version != VERSION || opcode != MAP | RESPONSE {
            return None;
        }
        let is_ours = array::<12>(datagram, 24)? == self.nonce
            && datagram.get(36) == Some(&UDP)
            && u16_at(datagram, 40)? == self.internal_port;
        if !is_ours {
            return None;
        }
        if result != 0 {
            return Some(Answer::Refused(result));
        }
        let lifetime = Duration::from_secs(u32_at(datagram, 4)?.into());
        let external = Ipv6Addr::from(array::<16>(datagram, 44)?);
        let IpAddr::V4(external) = external.to_canonical() else {
            return None;
        };
        let external = SocketAddrV4::new(external, u16_at(datagram, 42)?);
        Some(Answer::Granted(external, lifetime))
    }
}

/// Why a router does not map, in words.
pub(crate) fn reason(code: u8) -> &'static str {
    match code {
        1 => "it speaks another version",
        2 => "it does not allow it",
        4 | 5 | 9 | 13 => "it does not know how",
        7 | 8 | 10 => "it has no room for more",
        11 => "it can't give a port",
        12 => "another NAT is between it and this host",
        _ => "it could not",
    }
}

/// Whether a router says that it has lost its mappings or has another address: the response of
/// ANNOUNCE that nobody asked for.
pub(crate) fn is_announcement(datagram: &[u8]) -> bool {
    datagram.starts_with(&[VERSION, ANNOUNCE | RESPONSE]) && datagram.len() >= 24
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        Request {
            nonce: *b"twelve bytes",
            client: Ipv4Addr::new(192, 168, 1, 10),
            internal_port: 51_820,
            suggested: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 51_820),
            lifetime: Duration::from_secs(3600),
        }
    }

    /// What a router answers: the request with a response's header and another address.
    fn response(result: u8, external: SocketAddrV4) -> Vec<u8> {
        let mut bytes = request().encode();
        bytes[1] |= RESPONSE;
        bytes[3] = result;
        bytes[8..24].fill(0);
        bytes[42..44].copy_from_slice(&external.port().to_be_bytes());
        bytes[44..60].copy_from_slice(&external.ip().to_ipv6_mapped().octets());
        bytes
    }

    #[test]
    fn a_request_is_laid_out_as_in_figures_2_and_9_of_rfc_6887() {
        let bytes = request().encode();
        assert_eq!(bytes.len(), 60);
        assert_eq!(bytes[..8], [2, 1, 0, 0, 0, 0, 0x0e, 0x10]);
        assert_eq!(bytes[18..24], [0xff, 0xff, 192, 168, 1, 10]);
        assert_eq!(bytes[24..36], *b"twelve bytes");
        assert_eq!(bytes[36..44], [17, 0, 0, 0, 0xca, 0x6c, 0xca, 0x6c]);
        assert_eq!(bytes[54..60], [0xff, 0xff, 0, 0, 0, 0]);
    }

    #[test]
    fn an_answer_is_one_to_this_request_and_no_other() {
        let external = "203.0.113.6:4000".parse().unwrap();
        let granted = response(0, external);
        let expected = Answer::Granted(external, Duration::from_secs(3600));
        assert_eq!(request().answer(&granted), Some(expected));
        assert_eq!(
            request().answer(&response(2, external)),
            Some(Answer::Refused(2))
        );
        for other in [
            Request {
                nonce: *b"other twelve",
                ..request()
            },
            Request {
                internal_port: 7,
                ..request()
            },
        ] {
            assert_eq!(other.answer(&granted), None);
        }
        assert_eq!(request().answer(&request().encode()), None, "no response");
        for length in 0..granted.len() {
            assert_eq!(request().answer(&granted[..length]), None, "{length}");
        }
        let mut of_ipv6 = granted;
        of_ipv6[44] = 0x20;
        assert_eq!(request().answer(&of_ipv6), None);
    }
}
