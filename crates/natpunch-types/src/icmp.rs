//! What routers say of packets that this host has sent.

use std::net::{IpAddr, SocketAddr};

/// What an ICMP error says, as far as it is of use (RFC 792, RFC 1812, RFC 4443).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IcmpKind {
    /// The packet has used up its hops on the way.
    TimeExceeded,
    /// Somebody has forbidden it: communication with the network, with the host, or at all (type 3,
    /// codes 9, 10 and 13; of IPv6 type 1, code 1).
    Prohibited,
}

/// An ICMP error about a UDP datagram of this host. Anybody may have made it up: what it quotes has
/// to be compared with what was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IcmpError {
    /// What it says.
    pub kind: IcmpKind,
    /// Who says it, in canonical form.
    pub from: IpAddr,
    /// The port that the datagram left from.
    pub source_port: u16,
    /// Where the datagram went, in canonical form.
    pub destination: SocketAddr,
    /// The beginning of its payload, as far as it is quoted: nothing, or more (RFC 792, RFC 1812,
    /// 4.3.2.3).
    pub payload: Vec<u8>,
}
