//! What this host's WireGuard answers to handshakes: a packet socket on all interfaces, behind a
//! packet filter.
//!
//! Nobody but the kernel sees WireGuard's packets leave, and a raw socket hears only what arrives. A
//! packet socket that hears what leaves is shown every packet of the host, if only to drop it, so
//! one should live for moments.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use natpunch_types::is_response;

use crate::NetError;
use crate::ear::PacketEar;
use crate::filter::responses;
use crate::packet::{parse_ipv4, parse_udp};

const IPV6_HEADER: usize = 40;

/// A handshake response that left this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SentResponse {
    /// The port that it left from, behind this host's own rewriting of packets.
    pub source_port: u16,
    /// Where it went.
    pub destination: SocketAddr,
    /// WireGuard's message.
    pub datagram: Vec<u8>,
}

/// Hears the handshake responses that leave this host.
#[derive(Debug)]
pub struct SentResponses(PacketEar);

impl SentResponses {
    /// Listens from now on. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// natpunch may not open the socket, or the kernel has none of this kind.
    pub fn open() -> Result<Self, NetError> {
        let words = (
            "listen to WireGuard's handshake responses",
            "hear WireGuard's handshake responses",
        );
        // Only a socket for all protocols is shown what leaves.
        let ear = PacketEar::open(&responses(), libc::ETH_P_ALL, None, words)?;
        Ok(Self(ear))
    }

    /// The next response. Dropping the future loses nothing.
    ///
    /// # Errors
    /// The socket is broken.
    pub async fn recv(&self) -> Result<SentResponse, NetError> {
        self.0.recv(parse).await
    }
}

/// Judges a packet as the filter does.
fn parse(packet: &[u8]) -> Option<SentResponse> {
    let (destination, udp) = match packet.first()? >> 4 {
        4 => {
            let packet = parse_ipv4(packet)?;
            (IpAddr::V4(packet.destination), packet.udp)
        }
        _ => {
            let (header, segment) = packet.split_at_checked(IPV6_HEADER)?;
            let destination = <[u8; 16]>::try_from(header.get(24..)?).ok()?;
            (Ipv6Addr::from(destination).into(), parse_udp(segment)?)
        }
    };
    is_response(udp.payload).then(|| SentResponse {
        source_port: udp.source,
        destination: SocketAddr::new(destination, udp.destination),
        datagram: udp.payload.to_vec(),
    })
}
