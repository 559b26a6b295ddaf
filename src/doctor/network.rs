//! What servers on the internet see of this host: reach, NAT, families, path MTU; and what stands in
//! the way there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _, UdpSocket};
use std::time::{Duration, Instant};

use natpunch_core::filtering::Found;
use natpunch_core::stun::{self, Answer, TransactionId};
use natpunch_types::canonical;
use nix::sys::socket::{getsockopt, sockopt};

use crate::config::NodeConfig;
use crate::plugins::fill_random;

use super::{Check, Server, filter, sizes};

/// How long answers are awaited, and how often a request is repeated meanwhile.
const PATIENCE: Duration = Duration::from_secs(2);
const REPEAT: Duration = Duration::from_millis(400);
/// Bytes that WireGuard adds to a packet: over IPv6, the most.
pub(super) const OVERHEAD: u32 = 80;
/// The MTU of a tunnel that nobody set.
pub(super) const USUAL_MTU: u32 = 1420;
/// Most addresses that are asked.
const MOST: usize = 16;

/// Where servers were found to be, and what they answered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Asked {
    /// The port that the requests left from.
    pub(super) port: u16,
    /// What each address answered: how this host is seen, and how long it took.
    pub(super) seen: BTreeMap<SocketAddr, (SocketAddr, Duration)>,
    /// Whether what is sent to the own outside address comes back, if that was tried.
    pub(super) hairpin: Option<bool>,
}

pub(super) fn examine(servers: &[Server], node: Option<&NodeConfig>) -> Vec<Check> {
    let mut checks = Vec::new();
    let mut addresses: Vec<(String, Vec<SocketAddr>)> = Vec::new();
    for server in servers {
        let Server {
            name,
            endpoint,
            is_stun,
        } = server;
        let label = format!("server {name} ({endpoint})");
        match (endpoint.host.as_str(), endpoint.port).to_socket_addrs() {
            Ok(found) => {
                let found: Vec<SocketAddr> = found.map(canonical).collect();
                if *is_stun {
                    addresses.push((label, found));
                } else {
                    checks.push(Check::good("DNS", format!("{endpoint} has an address")));
                }
            }
            Err(error) => checks.push(name_lost(&label, &error.to_string())),
        }
    }
    let all: BTreeSet<SocketAddr> = addresses.iter().flat_map(|(_, all)| all).copied().collect();
    let all: Vec<SocketAddr> = all.into_iter().take(MOST).collect();
    let (v4, v6): (Vec<_>, Vec<_>) = all.into_iter().partition(SocketAddr::is_ipv4);
    let ipv4 = ask(Ipv4Addr::UNSPECIFIED.into(), &v4);
    let ipv6 = ask(Ipv6Addr::UNSPECIFIED.into(), &v6);
    for (label, at) in &addresses {
        let seen = |address: &SocketAddr| {
            let family = if address.is_ipv4() { &ipv4 } else { &ipv6 };
            family.seen.get(address).map(|(_, rtt)| *rtt)
        };
        let answers: Vec<_> = at.iter().map(|address| (*address, seen(address))).collect();
        checks.push(reach(
            label,
            &answers,
            has_way(Ipv6Addr::UNSPECIFIED.into()),
        ));
    }
    if addresses.is_empty() {
        let text =
            "no server was named, so nothing is known of the way to the internet and of the NAT";
        let help =
            "name the mesh file, or a STUN server of yours: `natpunch doctor --stun HOST:PORT`";
        checks.push(Check::unknown("UDP", text).help(help));
    }
    checks.extend(nat("NAT of IPv4", &ipv4, is_own));
    let found = measured(&v4, &ipv4);
    checks.extend(found.map(|found| filter::filtering("filter of IPv4", found)));
    checks.extend(found.and_then(filter::poison));
    checks.extend(hairpin(&ipv4, is_own));
    checks.push(family_v6(has_way(Ipv6Addr::UNSPECIFIED.into()), &ipv6));
    checks.extend(nat("NAT of IPv6", &ipv6, is_own));
    let found = measured(&v6, &ipv6);
    checks.extend(found.map(|found| filter::filtering("filter of IPv6", found)));
    let first = v4.first().copied();
    checks.extend(
        first
            .and_then(path_mtu)
            .map(|found| mtu(found, node.map(|node| node.mtu))),
    );
    let answering = v4.iter().chain(&v6).copied();
    let answers = |at: &SocketAddr| {
        [&ipv4, &ipv6]
            .iter()
            .any(|asked| asked.seen.contains_key(at))
    };
    let answering = answering.filter(answers).collect();
    checks.extend(sizes::checks(&answering, node.map(|node| node.mtu)));
    let own = node.map(|node| node.interface.as_str());
    checks.push(tunnels(
        &other_tunnels(own),
        first.and_then(way_out).as_deref(),
    ));
    checks
}

/// What those servers that answer tell of the filter; `None` if there is none.
fn measured(servers: &[SocketAddr], asked: &Asked) -> Option<Option<Found>> {
    let answers = |server: &&SocketAddr| asked.seen.contains_key(server);
    let answering: Vec<SocketAddr> = servers.iter().filter(answers).copied().collect();
    (!answering.is_empty()).then(|| filter::measure(&answering))
}

fn name_lost(label: &str, error: &str) -> Check {
    Check::bad(
        label,
        format!("its name has no address: {error}"),
        "correct the name, or see that this host's resolver answers (/etc/resolv.conf)",
    )
}

/// Asks all servers from one socket how they see it.
fn ask(from: IpAddr, servers: &[SocketAddr]) -> Asked {
    let mut asked = Asked::default();
    if servers.is_empty() {
        return asked;
    }
    let Ok(socket) = UdpSocket::bind((from, 0)) else {
        return asked;
    };
    asked.port = socket.local_addr().map_or(0, |address| address.port());
    let mut waiting: BTreeMap<SocketAddr, TransactionId> = BTreeMap::new();
    for server in servers {
        let mut id = [0; 12];
        fill_random(&mut id);
        waiting.insert(*server, TransactionId(id));
    }
    converse(&socket, &mut waiting, &mut asked.seen);
    // Another port of a server that has one tells more of the mapping than a second answer of it.
    let mut more: BTreeMap<SocketAddr, TransactionId> = asked
        .seen
        .keys()
        .filter_map(|server| {
            let mut id = [0; 12];
            fill_random(&mut id);
            let port = server.port().checked_add(1)?;
            Some((SocketAddr::new(server.ip(), port), TransactionId(id)))
        })
        .filter(|(other, _)| !servers.contains(other))
        .collect();
    converse(&socket, &mut more, &mut asked.seen);
    let outside = asked.seen.values().map(|(outside, _)| *outside).next();
    asked.hairpin = outside
        .filter(|outside| !is_own(outside.ip()))
        .and_then(|outside| comes_back(&socket, outside));
    asked
}

fn converse(
    socket: &UdpSocket,
    waiting: &mut BTreeMap<SocketAddr, TransactionId>,
    seen: &mut BTreeMap<SocketAddr, (SocketAddr, Duration)>,
) {
    let begin = Instant::now();
    let mut ask_at = begin;
    let mut last_sent = begin;
    let mut buffer = [0; 2048];
    if socket
        .set_read_timeout(Some(Duration::from_millis(50)))
        .is_err()
    {
        return;
    }
    while !waiting.is_empty() && begin.elapsed() < PATIENCE {
        if Instant::now() >= ask_at {
            ask_at += REPEAT;
            last_sent = Instant::now();
            for (server, id) in waiting.iter() {
                let _ = socket.send_to(&stun::request(*id), server);
            }
        }
        let Ok((length, from)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let from = canonical(from);
        let answer = buffer.get(..length).and_then(stun::parse_answer);
        let Some((id, Answer::Mapped(outside))) = answer else {
            continue;
        };
        if waiting.get(&from) == Some(&id) {
            waiting.remove(&from);
            seen.insert(from, (outside, last_sent.elapsed()));
        }
    }
}

/// Whether what another socket of this host sends to its outside address arrives.
fn comes_back(socket: &UdpSocket, outside: SocketAddr) -> Option<bool> {
    let ip: IpAddr = match outside {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let other = UdpSocket::bind((ip, 0)).ok()?;
    let mut word = [0; 16];
    fill_random(&mut word);
    let begin = Instant::now();
    let mut buffer = [0; 64];
    while begin.elapsed() < REPEAT * 2 {
        let _ = other.send_to(&word, outside);
        let got = socket.recv_from(&mut buffer);
        if got.is_ok_and(|(length, _)| buffer.get(..length) == Some(&word)) {
            return Some(true);
        }
    }
    Some(false)
}

/// Whether an address is one of this host's own.
fn is_own(ip: IpAddr) -> bool {
    UdpSocket::bind((ip, 0)).is_ok()
}

/// Whether the kernel has a way to the internet in this family. Nothing is sent.
fn has_way(from: IpAddr) -> bool {
    // Any global address: the root servers' J, of which nothing is asked.
    let to: SocketAddr = match from {
        IpAddr::V4(_) => (Ipv4Addr::new(192, 58, 128, 30), 53).into(),
        IpAddr::V6(_) => (Ipv6Addr::new(0x2001, 0x503, 0xc27, 0, 0, 0, 2, 0x30), 53).into(),
    };
    UdpSocket::bind((from, 0)).is_ok_and(|socket| socket.connect(to).is_ok())
}

pub(super) fn reach(
    label: &str,
    answers: &[(SocketAddr, Option<Duration>)],
    has_ipv6: bool,
) -> Check {
    let times: Vec<String> = answers
        .iter()
        .filter_map(|(address, rtt)| {
            let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
            Some(format!("{family} in {:.1} ms", (*rtt)?.as_secs_f64() * 1e3))
        })
        .collect();
    if !times.is_empty() {
        return Check::good(label, format!("answers over UDP: {}", times.join(", ")));
    }
    if answers.iter().all(|(address, _)| address.is_ipv6()) && !has_ipv6 {
        return Check::bad(
            label,
            "it has IPv6 addresses only, and this host has no IPv6",
            "give the server an IPv4 address, or this host IPv6",
        );
    }
    let port = answers.first().map_or(0, |(address, _)| address.port());
    Check::bad(
        label,
        "no answer over UDP",
        format!(
            "see that it runs (`natpunch serve status` there), that its firewall lets UDP port {port} in, and that \
             this network lets UDP out"
        ),
    )
}

pub(super) fn nat(label: &str, asked: &Asked, is_own: impl Fn(IpAddr) -> bool) -> Option<Check> {
    let outside: BTreeSet<SocketAddr> = asked.seen.values().map(|(outside, _)| *outside).collect();
    let first = *outside.first()?;
    let forward = "peers behind easy NATs become direct all the same where nftables is there; others need a relay, a \
                   forwarded UDP port written as this node's `endpoint`, or IPv6";
    if outside.iter().all(|outside| is_own(outside.ip())) {
        return Some(Check::good(
            label,
            format!("none: this host has the public address {}", first.ip()),
        ));
    }
    let ips: BTreeSet<IpAddr> = outside.iter().map(SocketAddr::ip).collect();
    if ips.len() > 1 {
        return Some(Check::bad(
            label,
            "hard: servers see this host at several addresses",
            forward,
        ));
    }
    if outside.len() > 1 {
        return Some(Check::bad(
            label,
            "hard: another port for every destination",
            forward,
        ));
    }
    let port = match first.port() == asked.port {
        true => "the same as inside",
        false => "another than inside",
    };
    Some(match asked.seen.len() {
        1 => Check::unknown(
            label,
            format!("the port outside is {port}; whether it is one for all destinations takes a second server to tell"),
        )
        .help("name another STUN server with --stun HOST:PORT, or let the server have its alternate port"),
        _ => Check::good(label, format!("easy: one port for all destinations, {port}")),
    })
}

pub(super) fn hairpin(asked: &Asked, is_own: impl Fn(IpAddr) -> bool) -> Option<Check> {
    let (outside, _) = asked.seen.values().next()?;
    if is_own(outside.ip()) {
        return None;
    }
    Some(match asked.hairpin? {
        true => Check::good(
            "hairpin",
            "hosts behind this router reach each other at its outside address, too",
        ),
        false => Check::unknown(
            "hairpin",
            "this router does not lead back what is sent to its outside address; nodes behind it meet at their LAN \
             addresses instead",
        ),
    })
}

pub(super) fn family_v6(has_way: bool, asked: &Asked) -> Check {
    match (has_way, asked.seen.is_empty()) {
        (true, false) => Check::good("IPv6", "this host has it, and a server answers over it"),
        (true, true) => Check::unknown(
            "IPv6",
            "this host has a way out; no server was asked over it",
        ),
        (false, _) => Check::unknown(
            "IPv6",
            "this host has none; pairs of nodes with IPv6 pass most NATs by it",
        ),
    }
}

/// The MTU of the way to a server, as far as the kernel knows.
fn path_mtu(server: SocketAddr) -> Option<u32> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect(server).ok()?;
    let mtu = getsockopt(&socket, sockopt::IpMtu).ok()?;
    u32::try_from(mtu).ok()
}

pub(super) fn mtu(path: u32, of_mesh: Option<u32>) -> Check {
    let wanted = of_mesh.unwrap_or(USUAL_MTU);
    if path >= wanted + OVERHEAD {
        return Check::good(
            "MTU",
            format!("{path} bytes as far as this host knows, enough for a tunnel of {wanted}"),
        );
    }
    let fits = path.saturating_sub(OVERHEAD);
    Check::bad(
        "MTU",
        format!(
            "the way out takes {path} bytes, and a tunnel of {wanted} needs {}",
            wanted + OVERHEAD
        ),
        format!("write `mtu = {fits}` in [interface] for this node"),
    )
}

/// Tunnels of this host that are not the mesh's: point-to-point links, and WireGuard's by their name.
fn other_tunnels(own: Option<&str>) -> Vec<String> {
    let Ok(addresses) = nix::ifaddrs::getifaddrs() else {
        return Vec::new();
    };
    let is_tunnel = |flags: nix::net::if_::InterfaceFlags| {
        let wanted =
            nix::net::if_::InterfaceFlags::IFF_POINTOPOINT | nix::net::if_::InterfaceFlags::IFF_UP;
        flags.contains(wanted)
    };
    let named: BTreeSet<String> = addresses
        .filter(|entry| is_tunnel(entry.flags) && Some(entry.interface_name.as_str()) != own)
        .map(|entry| entry.interface_name)
        .collect();
    named.into_iter().collect()
}

/// The interface that packets to a server leave by.
fn way_out(server: SocketAddr) -> Option<String> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect(server).ok()?;
    let from = socket.local_addr().ok()?.ip();
    let mut addresses = nix::ifaddrs::getifaddrs().ok()?;
    let has = |storage: nix::sys::socket::SockaddrStorage| {
        storage
            .as_sockaddr_in()
            .is_some_and(|address| IpAddr::V4(address.ip()) == from)
    };
    addresses
        .find(|entry| entry.address.is_some_and(has))
        .map(|entry| entry.interface_name)
}

pub(super) fn tunnels(others: &[String], way_out: Option<&str>) -> Check {
    let names = others.join(", ");
    match (others, way_out) {
        ([], _) => Check::good("other tunnels", "there is none"),
        (_, Some(out)) if others.iter().any(|other| other == out) => Check::bad(
            "other tunnels",
            format!(
                "packets to the servers go through {out}, so peers would be reached through that VPN or not at all"
            ),
            format!(
                "let UDP of natpunch stay outside of {out}: an exception there, or a route to the peers"
            ),
        ),
        (_, Some(out)) => Check::good(
            "other tunnels",
            format!("{names}: packets to the servers leave by {out}, not by them"),
        ),
        (_, None) => Check::unknown(
            "other tunnels",
            format!("{names}: whether they take the mesh's way is not known"),
        ),
    }
}
