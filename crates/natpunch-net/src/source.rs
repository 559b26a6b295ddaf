//! Which address of this host a packet leaves from.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use natpunch_types::lock;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::if_nametoindex;
use socket2::{Domain, Protocol, Socket, Type};

const LIFETIME: Duration = Duration::from_secs(1);
const MAX_ENTRIES: usize = 256;

/// Source addresses by destination, as the routing rules had it up to a second ago.
#[derive(Debug, Default)]
pub(crate) struct SourceCache(Mutex<BTreeMap<SocketAddr, (IpAddr, Instant)>>);

impl SourceCache {
    pub(crate) fn clear(&self) {
        self.entries().clear();
    }

    pub(crate) fn lookup(&self, destination: SocketAddr, fwmark: u32) -> io::Result<IpAddr> {
        if let Some((source, at)) = self.entries().get(&destination)
            && at.elapsed() < LIFETIME
        {
            return Ok(*source);
        }
        let source = route_source(destination, fwmark)?;
        let mut entries = self.entries();
        if entries.len() >= MAX_ENTRIES {
            entries.clear();
        }
        entries.insert(destination, (source, Instant::now()));
        Ok(source)
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<SocketAddr, (IpAddr, Instant)>> {
        lock(&self.0)
    }
}

/// Asks the kernel by connecting a UDP socket, which sends nothing.
fn route_source(destination: SocketAddr, fwmark: u32) -> io::Result<IpAddr> {
    let socket = Socket::new(
        Domain::for_address(destination),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    if fwmark != 0 {
        socket.set_mark(fwmark)?;
    }
    if destination.is_ipv4() {
        socket.set_broadcast(true)?;
    }
    socket.connect(&destination.into())?;
    let local = socket.local_addr()?.as_socket().map(|local| local.ip());
    local
        .filter(|ip| !ip.is_unspecified())
        .ok_or_else(|| io::Error::from_raw_os_error(libc::EADDRNOTAVAIL))
}

/// The index of the interface that has this address; 0, which leaves the choice to the kernel, if
/// none has.
pub(crate) fn interface_of(address: IpAddr) -> u32 {
    let Ok(interfaces) = getifaddrs() else {
        return 0;
    };
    interfaces
        .filter(|interface| {
            let Some(found) = &interface.address else {
                return false;
            };
            let v4 = found.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            let v6 = found.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip()));
            v4.or(v6) == Some(address)
        })
        .find_map(|interface| if_nametoindex(interface.interface_name.as_str()).ok())
        .unwrap_or(0)
}
