//! Addresses that may be missing, in probes and records.

use std::net::{Ipv6Addr, SocketAddr};

pub(crate) use natpunch_types::wire::{ADDRESS_LEN, Reader};

/// Stands for no address.
const NONE: SocketAddr = SocketAddr::new(std::net::IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0);

/// An address, or that there is none; outside, `None` where the text is too short.
pub(crate) fn read_address(reader: &mut Reader<'_>) -> Option<Option<SocketAddr>> {
    let address = reader.address()?;
    Some((address.port() != 0).then_some(address))
}

/// Writes an address, or that there is none.
pub(crate) fn put_address(out: &mut Vec<u8>, address: Option<SocketAddr>) {
    natpunch_types::wire::put_address(out, address.unwrap_or(NONE));
}
