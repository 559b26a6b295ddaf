//! Checked reading and writing of fixed fields, shared by probes and records.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use natpunch_types::canonical;

/// Bytes of an address on the wire: 16 of IPv6 (IPv4 as IPv4-mapped), 2 of port, big-endian.
pub(crate) const ADDRESS_LEN: usize = 18;

/// Takes fields off the front of a slice; `None` when it is too short.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl Reader<'_> {
    pub(crate) fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.bytes().map(|[byte]| byte)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.bytes().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.bytes().map(u64::from_be_bytes)
    }

    /// An address in canonical form; `[::]:0` stands for none.
    pub(crate) fn address(&mut self) -> Option<Option<SocketAddr>> {
        let ip = Ipv6Addr::from(self.bytes::<16>()?);
        let port = self.bytes().map(u16::from_be_bytes)?;
        Some((port != 0).then(|| canonical(SocketAddr::new(IpAddr::V6(ip), port))))
    }
}

pub(crate) fn put_address(out: &mut Vec<u8>, address: Option<SocketAddr>) {
    let (ip, port) = match address {
        Some(address) => (address.ip(), address.port()),
        None => (IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0),
    };
    let ip = match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    out.extend(ip.octets());
    out.extend(port.to_be_bytes());
}
