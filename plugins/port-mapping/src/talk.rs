//! The talk with a router's port 5351, where PCP and NAT-PMP live: which datagrams go there next,
//! and what an answer means. Pure.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use crate::pcp::Nonce;
use crate::{nat_pmp, pcp};

/// How long a router is asked to map. Whoever dies without a word leaves nothing for longer.
pub(crate) const LIFETIME: Duration = Duration::from_secs(3600);
/// When a question is asked again without an answer, and when it is given up.
pub(crate) const TRIES: [Duration; 3] = [
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_millis(1000),
];

/// How a router is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Pcp,
    NatPmp,
    Upnp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pcp => "PCP",
            Self::NatPmp => "NAT-PMP",
            Self::Upnp => "UPnP",
        })
    }
}

/// A mapping that a router grants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Granted {
    pub(crate) by: Protocol,
    pub(crate) external: SocketAddrV4,
    /// For how long.
    pub(crate) lifetime: Duration,
}

/// How asking ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Granted(Granted),
    /// By a router that can be asked, with its reason in words.
    Refused(Protocol, &'static str),
    /// By one that is behind a NAT itself, as it seems to itself: on the internet that address is
    /// nobody's.
    Useless(Ipv4Addr),
}

/// What comes of a datagram.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// It is none of this talk.
    Ignored,
    /// There is another question now.
    GoOn,
    Done(Outcome),
}

/// One talk for one mapping.
#[derive(Debug)]
pub(crate) struct Talk {
    request: pcp::Request,
    state: State,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// PCP, and the harmless question of NAT-PMP for routers that know no other.
    Both,
    /// NAT-PMP: its address first.
    Address,
    /// Then the mapping.
    Map(Ipv4Addr),
}

impl Talk {
    /// Asks for a mapping of `port`, best from `suggested`, for this host's address `own`.
    pub(crate) fn new(nonce: Nonce, own: Ipv4Addr, port: u16, suggested: SocketAddrV4) -> Self {
        let request = pcp::Request {
            nonce,
            client: own,
            internal_port: port,
            suggested,
            lifetime: LIFETIME,
        };
        Self {
            request,
            state: State::Both,
        }
    }

    /// The datagrams of the try of this number, from 0.
    pub(crate) fn datagrams(&self, tried: usize) -> Vec<Vec<u8>> {
        let port = self.request.suggested.port();
        match self.state {
            State::Both if tried == 0 => vec![self.request.encode()],
            State::Both => vec![self.request.encode(), nat_pmp::ADDRESS_REQUEST.into()],
            State::Address => vec![nat_pmp::ADDRESS_REQUEST.into()],
            State::Map(_) => vec![nat_pmp::map_request(
                self.request.internal_port,
                port,
                LIFETIME,
            )],
        }
    }

    /// Takes what came from the router.
    pub(crate) fn handle(&mut self, datagram: &[u8]) -> Step {
        if let Some(answer) = self.request.answer(datagram) {
            return Step::Done(match answer {
                pcp::Answer::Granted(external, lifetime) => {
                    granted(Protocol::Pcp, external, lifetime)
                }
                pcp::Answer::Refused(code) => Outcome::Refused(Protocol::Pcp, pcp::reason(code)),
            });
        }
        match (self.state, nat_pmp::answer(datagram)) {
            (State::Both, Some(nat_pmp::Answer::OnlyThis)) => {
                self.state = State::Address;
                Step::GoOn
            }
            (State::Both | State::Address, Some(nat_pmp::Answer::Address(address))) => {
                self.state = State::Map(address);
                Step::GoOn
            }
            (
                State::Map(address),
                Some(nat_pmp::Answer::Granted {
                    internal_port,
                    external_port,
                    lifetime,
                }),
            ) if internal_port == self.request.internal_port => {
                let external = SocketAddrV4::new(address, external_port);
                Step::Done(granted(Protocol::NatPmp, external, lifetime))
            }
            (State::Address | State::Map(_), Some(nat_pmp::Answer::Refused(code))) => {
                Step::Done(Outcome::Refused(Protocol::NatPmp, nat_pmp::reason(code)))
            }
            _ => Step::Ignored,
        }
    }

    /// The datagram that takes a mapping back, if this port can.
    pub(crate) fn goodbye(&self, by: Protocol) -> Option<Vec<u8>> {
        let port = self.request.internal_port;
        match by {
            Protocol::Pcp => Some(
                pcp::Request {
                    suggested: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0),
                    lifetime: Duration::ZERO,
                    ..self.request
                }
                .encode(),
            ),
            Protocol::NatPmp => Some(nat_pmp::map_request(port, 0, Duration::ZERO)),
            Protocol::Upnp => None,
        }
    }
}

fn granted(by: Protocol, external: SocketAddrV4, lifetime: Duration) -> Outcome {
    if lifetime.is_zero() || external.port() == 0 {
        return Outcome::Refused(by, "it maps nothing");
    }
    Outcome::Granted(Granted {
        by,
        external,
        lifetime,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn talk() -> Talk {
        let suggested = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 51_820);
        Talk::new([7; 12], Ipv4Addr::new(192, 168, 1, 10), 51_820, suggested)
    }

    const ADDRESS: [u8; 12] = [0, 128, 0, 0, 0, 0, 0, 9, 203, 0, 113, 6];
    const GRANTED: [u8; 16] = [
        0, 129, 0, 0, 0, 0, 0, 9, 0xca, 0x6c, 0x0f, 0xa0, 0, 0, 0x0e, 0x10,
    ];

    #[test]
    fn a_router_of_nat_pmp_alone_is_asked_in_its_own_words() {
        let map = nat_pmp::map_request(51_820, 51_820, LIFETIME);
        let granted = Step::Done(Outcome::Granted(Granted {
            by: Protocol::NatPmp,
            external: "203.0.113.6:4000".parse().unwrap(),
            lifetime: Duration::from_secs(3600),
        }));
        // It says so ...
        let mut told = talk();
        assert_eq!(told.datagrams(0).len(), 1);
        assert_eq!(told.handle(&[0, 129, 0, 1, 0, 0, 0, 9]), Step::GoOn);
        assert_eq!(told.datagrams(0), [nat_pmp::ADDRESS_REQUEST.to_vec()]);
        assert_eq!(told.handle(&GRANTED), Step::Ignored, "not asked yet");
        assert_eq!(told.handle(&ADDRESS), Step::GoOn);
        assert_eq!(told.datagrams(0), std::slice::from_ref(&map));
        assert_eq!(told.handle(&GRANTED), granted);
        // ... or does not know what PCP is.
        let mut silent = talk();
        assert_eq!(silent.datagrams(1).len(), 2);
        assert_eq!(silent.handle(&ADDRESS), Step::GoOn);
        assert_eq!(silent.datagrams(0), [map]);
        assert_eq!(silent.handle(&GRANTED), granted);
    }

    #[test]
    fn a_refusal_of_either_protocol_ends_the_talk() {
        let mut pcp = talk().datagrams(0).remove(0);
        (pcp[1], pcp[3]) = (0x81, 2);
        let refused = |by| Step::Done(Outcome::Refused(by, "it does not allow it"));
        assert_eq!(talk().handle(&pcp), refused(Protocol::Pcp));
        let mut told = talk();
        told.handle(&ADDRESS);
        assert_eq!(told.handle(&[0, 129, 0, 2]), refused(Protocol::NatPmp));
    }

    #[test]
    fn a_grant_of_nothing_is_none() {
        let mut told = talk();
        told.handle(&ADDRESS);
        let mut nothing = GRANTED;
        nothing[12..].fill(0);
        assert!(matches!(
            told.handle(&nothing),
            Step::Done(Outcome::Refused(..))
        ));
    }
}
