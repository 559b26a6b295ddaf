//! Fields of datagrams and records: read off the front of what may be too short, and written.
//! Numbers are big-endian.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::canonical;

/// Bytes of an address on the wire: 16 of IPv6 (IPv4 as IPv4-mapped), 2 of port.
pub const ADDRESS_LEN: usize = 18;

/// Takes fields off the front of a slice; `None` when it is too short for one.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    /// So many bytes.
    pub fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    /// `N` bytes.
    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*taken)
    }

    /// One byte.
    pub fn u8(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    /// Two bytes.
    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    /// Four bytes.
    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// An address in canonical form; its port may be 0.
    pub fn address(&mut self) -> Option<SocketAddr> {
        let ip = Ipv6Addr::from(self.array::<16>()?);
        Some(canonical(SocketAddr::new(IpAddr::V6(ip), self.u16()?)))
    }

    /// All that is left, if it is no more than this.
    pub fn rest(&mut self, most: usize) -> Option<&'a [u8]> {
        let rest = std::mem::take(&mut self.0);
        (rest.len() <= most).then_some(rest)
    }
}

/// Writes an address as [`Reader::address`] reads it.
pub fn put_address(out: &mut Vec<u8>, address: SocketAddr) {
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    out.extend(ip.octets());
    out.extend(address.port().to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_off_the_front_and_a_short_one_is_none() {
        let bytes = [1, 0, 2, 0, 0, 0, 3, 9, 9];
        let mut reader = Reader(&bytes);
        assert_eq!(
            (reader.u8(), reader.u16(), reader.u32()),
            (Some(1), Some(2), Some(3))
        );
        let mut again = reader;
        assert_eq!((reader.u64(), again.take(3)), (None, None));
        assert_eq!((again.rest(1), reader.rest(2)), (None, Some(&bytes[7..])));
    }

    #[test]
    fn addresses_are_read_as_they_were_written() {
        for text in ["192.0.2.1:7", "[2001:db8::1]:65535", "[::]:0"] {
            let address: SocketAddr = text.parse().unwrap();
            let mut bytes = Vec::new();
            put_address(&mut bytes, address);
            assert_eq!(bytes.len(), ADDRESS_LEN);
            assert_eq!(Reader(&bytes).address(), Some(address));
            bytes.pop();
            assert_eq!(Reader(&bytes).address(), None);
        }
    }
}
