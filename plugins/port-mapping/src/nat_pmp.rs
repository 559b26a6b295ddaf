//! The NAT Port Mapping Protocol (RFC 6886).

use std::net::Ipv4Addr;
use std::time::Duration;

use crate::bytes::{array, u16_at, u32_at};

const VERSION: u8 = 0;
const ADDRESS: u8 = 0;
const MAP_UDP: u8 = 1;
/// Set in the opcode of a response.
const RESPONSE: u8 = 0x80;
const UNSUPPORTED_VERSION: u16 = 1;

/// The question for the router's own address outside.
pub(crate) const ADDRESS_REQUEST: [u8; 2] = [VERSION, ADDRESS];

/// The wish for a mapping. A lifetime of zero deletes it.
pub(crate) fn map_request(internal_port: u16, suggested_port: u16, lifetime: Duration) -> Vec<u8> {
    let seconds = u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX);
    let mut bytes = vec![VERSION, MAP_UDP, 0, 0];
    bytes.extend(internal_port.to_be_bytes());
    bytes.extend(suggested_port.to_be_bytes());
    bytes.extend(seconds.to_be_bytes());
    bytes
}

/// What a router says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Its address outside.
    Address(Ipv4Addr),
    /// It maps from this port outside for so long.
    Granted {
        internal_port: u16,
        external_port: u16,
        lifetime: Duration,
    },
    /// It speaks this protocol only: the answer to a request of PCP.
    OnlyThis,
    /// It does not: a result code of RFC 6886, 3.5.
    Refused(u16),
}

/// Reads an answer; `None` for anything else.
pub(crate) fn answer(datagram: &[u8]) -> Option<Answer> {
    let [version, opcode] = array::<2>(datagram, 0)?;
    if version != VERSION || opcode & RESPONSE == 0 {
        return None;
    }
    match (u16_at(datagram, 2)?, opcode & !RESPONSE) {
        (UNSUPPORTED_VERSION, _) => Some(Answer::OnlyThis),
        (0, ADDRESS) => Some(Answer::Address(Ipv4Addr::from(array::<4>(datagram, 8)?))),
        (0, MAP_UDP) => Some(Answer::Granted {
            internal_port: u16_at(datagram, 8)?,
            external_port: u16_at(datagram, 10)?,
            lifetime: Duration::from_secs(u32_at(datagram, 12)?.into()),
        }),
        (0, _) => None,
        (code, _) => Some(Answer::Refused(code)),
    }
}

/// Why a router does not map, in words.
pub(crate) fn reason(code: u16) -> &'static str {
    match code {
        2 => "it does not allow it",
        3 => "it has no address itself",
        4 => "it has no room for more",
        5 => "it does not know how",
        _ => "it could not",
    }
}

/// Whether a router says that it has an address, which it does when it has started or has another
/// one.
pub(crate) fn is_announcement(datagram: &[u8]) -> bool {
    matches!(answer(datagram), Some(Answer::Address(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_answers_are_laid_out_as_in_rfc_6886() {
        let lifetime = Duration::from_secs(3600);
        assert_eq!(
            map_request(51_820, 4000, lifetime),
            [0, 1, 0, 0, 0xca, 0x6c, 0x0f, 0xa0, 0, 0, 0x0e, 0x10]
        );
        let address = [0, 128, 0, 0, 0, 0, 0, 9, 203, 0, 113, 6];
        let granted = [
            0, 129, 0, 0, 0, 0, 0, 9, 0xca, 0x6c, 0x0f, 0xa0, 0, 0, 0x0e, 0x10,
        ];
        assert_eq!(
            answer(&address),
            Some(Answer::Address(Ipv4Addr::new(203, 0, 113, 6)))
        );
        let expected = Answer::Granted {
            internal_port: 51_820,
            external_port: 4000,
            lifetime,
        };
        assert_eq!(answer(&granted), Some(expected));
        for (whole, cut) in [(&address[..], 12), (&granted[..], 16)] {
            assert!((0..cut).all(|length| answer(&whole[..length]).is_none()));
        }
        assert_eq!(answer(&[0, 129, 0, 1, 0, 0, 0, 9]), Some(Answer::OnlyThis));
        assert_eq!(answer(&[0, 129, 0, 2]), Some(Answer::Refused(2)));
        assert_eq!(answer(&ADDRESS_REQUEST), None);
        assert!(is_announcement(&address) && !is_announcement(&granted));
    }
}
