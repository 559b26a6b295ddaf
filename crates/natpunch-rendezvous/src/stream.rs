//! Datagrams in a stream, for networks that let no UDP through.
//!
//! Client and server speak WebSocket (RFC 6455) at [`PATH`], over TLS. Each binary message is one
//! datagram of the [rendezvous](crate::Server) or of a [relay's port](crate::relay::Port), behind
//! the number of the port: 0 for the server itself. To the server such a datagram has a source
//! address like any other.

/// The path at which a server speaks it.
pub const PATH: &str = "/natpunch/v1";
/// The port that means the server itself, and none of its relay's.
pub const SERVER: u16 = 0;
/// The longest message: a datagram of Ethernet's jumbo frames, and the port.
pub const LONGEST: usize = 9_216 + PORT;
/// Bytes of the port's number.
const PORT: usize = 2;

/// The message of a datagram to or from this port.
pub fn message(port: u16, datagram: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(PORT + datagram.len());
    message.extend(port.to_be_bytes());
    message.extend(datagram);
    message
}

/// The port and the datagram of a message; `None`: it is none, or too long.
pub fn parse(message: &[u8]) -> Option<(u16, &[u8])> {
    let (port, datagram) = message.split_first_chunk::<PORT>()?;
    (message.len() <= LONGEST).then_some((u16::from_be_bytes(*port), datagram))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_the_port_and_the_datagram() {
        assert_eq!(message(0x1234, b"ab"), [0x12, 0x34, b'a', b'b']);
        assert_eq!(parse(&message(7, b"")), Some((7, &b""[..])));
        assert_eq!(parse(&[1]), None);
        assert_eq!(parse(&vec![0; LONGEST + 1]), None);
    }
}
