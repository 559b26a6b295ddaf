//! Options that every socket which carries WireGuard's packets has.

use std::io;
use std::os::fd::AsFd;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::Ipv6DontFrag;
use rustix::net::AddressFamily;
use rustix::net::sockopt::{
    Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover,
    socket_domain,
};

/// Sends without "don't fragment", as kernel WireGuard does. WireGuard's packets already have the
/// size that the tunnel's MTU allows, so on a path of a smaller MTU whose routers drop ICMP they
/// would vanish, the short ones too, where a fragment gets through.
///
/// # Errors
/// The system's, if the socket is none of IP.
pub fn allow_fragments(socket: &impl AsFd) -> io::Result<()> {
    if socket_domain(socket)? == AddressFamily::INET {
        return Ok(set_ip_mtu_discover(socket, Ipv4PathMtuDiscovery::DONT)?);
    }
    // A raw socket of IPv6 has no options of IPv4; one of UDP has, for IPv4 in mapped addresses.
    let _ = set_ip_mtu_discover(socket, Ipv4PathMtuDiscovery::DONT);
    setsockopt(socket, Ipv6DontFrag, &false)?;
    Ok(set_ipv6_mtu_discover(socket, Ipv6PathMtuDiscovery::DONT)?)
}

/// Sends something by a socket that [allows fragments](allow_fragments), but that one without any:
/// with "don't fragment", and refused if it is larger than the link's MTU (`EMSGSIZE`). For
/// probes that measure how large packets may be. What the kernel has been told of the path's MTU
/// does not count, since the probes are to find it out (RFC 8899, 3). Nobody else may send by the
/// socket meanwhile.
///
/// # Errors
/// Those of `send`, or the system's, if the socket is none of IP.
pub fn without_fragments<S: AsFd>(
    socket: &S,
    send: impl FnOnce(&S) -> io::Result<()>,
) -> io::Result<()> {
    let sent = refuse_fragments(socket).and_then(|()| send(socket));
    sent.and(allow_fragments(socket))
}

fn refuse_fragments(socket: &impl AsFd) -> io::Result<()> {
    if socket_domain(socket)? == AddressFamily::INET {
        return Ok(set_ip_mtu_discover(socket, Ipv4PathMtuDiscovery::PROBE)?);
    }
    // A raw socket of IPv6 has no options of IPv4; one of UDP has, for IPv4 in mapped addresses.
    let _ = set_ip_mtu_discover(socket, Ipv4PathMtuDiscovery::PROBE);
    set_ipv6_mtu_discover(socket, Ipv6PathMtuDiscovery::PROBE)?;
    // Without it the kernel splits here what is larger than the link's MTU.
    Ok(setsockopt(socket, Ipv6DontFrag, &true)?)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use rustix::net::sockopt::{ip_mtu_discover, ipv6_mtu_discover};

    use super::*;

    #[test]
    fn no_socket_asks_routers_to_drop_what_they_could_split() {
        let v4 = UdpSocket::bind("127.0.0.1:0").unwrap();
        allow_fragments(&v4).unwrap();
        assert_eq!(ip_mtu_discover(&v4).unwrap(), Ipv4PathMtuDiscovery::DONT);
        let v6 = UdpSocket::bind("[::]:0").unwrap();
        allow_fragments(&v6).unwrap();
        assert_eq!(ip_mtu_discover(&v6).unwrap(), Ipv4PathMtuDiscovery::DONT);
        assert_eq!(ipv6_mtu_discover(&v6).unwrap(), Ipv6PathMtuDiscovery::DONT);
        for socket in [&v4, &v6] {
            refuse_fragments(socket).unwrap();
            assert_eq!(
                ip_mtu_discover(socket).unwrap(),
                Ipv4PathMtuDiscovery::PROBE
            );
            allow_fragments(socket).unwrap();
            assert_eq!(ip_mtu_discover(socket).unwrap(), Ipv4PathMtuDiscovery::DONT);
        }
    }
}
