//! How large packets may be on the way to each server: requests of several sizes, which no router
//! may split.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use natpunch_core::stun::{self, TransactionId};
use natpunch_os::without_fragments;
use natpunch_types::canonical;

use crate::plugins::fill_random;

use super::Check;
use super::network::{OVERHEAD, USUAL_MTU};

/// The sizes of whole packets that are tried: of Ethernet, PPPoE (RFC 2516), tunnels, and the least
/// of IPv6.
const SIZES: [u32; 7] = [1_500, 1_492, 1_480, 1_460, 1_420, 1_360, 1_280];
/// How often they are sent, and for how long answers are awaited.
const REPEAT: Duration = Duration::from_millis(400);
const PATIENCE: Duration = Duration::from_millis(1_500);

/// The largest packet that each server has answered. One that has answered none is left out: it may
/// not take long requests.
pub(super) fn measure(servers: &[SocketAddr]) -> BTreeMap<SocketAddr, u32> {
    let (v4, v6): (Vec<_>, Vec<_>) = servers.iter().partition(|server| server.is_ipv4());
    let mut found = of_family(Ipv4Addr::UNSPECIFIED.into(), &v4, 28);
    found.append(&mut of_family(Ipv6Addr::UNSPECIFIED.into(), &v6, 48));
    found
}

/// `headers`: the bytes of IP and UDP.
fn of_family(from: IpAddr, servers: &[SocketAddr], headers: u32) -> BTreeMap<SocketAddr, u32> {
    let mut found: BTreeMap<SocketAddr, u32> = BTreeMap::new();
    let Ok(socket) = UdpSocket::bind((from, 0)) else {
        return found;
    };
    if servers.is_empty() || socket.set_read_timeout(Some(REPEAT / 8)).is_err() {
        return found;
    }
    let mut waiting: BTreeMap<(SocketAddr, u32), TransactionId> = BTreeMap::new();
    for server in servers {
        for size in SIZES {
            let mut id = [0; 12];
            fill_random(&mut id);
            waiting.insert((*server, size), TransactionId(id));
        }
    }
    let (begin, mut ask_at) = (Instant::now(), Instant::now());
    let mut buffer = [0; 2048];
    while !waiting.is_empty() && begin.elapsed() < PATIENCE {
        if Instant::now() >= ask_at {
            ask_at += REPEAT;
            for ((server, size), id) in &waiting {
                let request = stun::request_of_length(*id, (size - headers) as usize);
                // What the link itself does not take is not sent.
                let _ = without_fragments(&socket, |socket| {
                    socket.send_to(&request, server).map(|_| ())
                });
            }
        }
        let Ok((length, from)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let Some((id, _)) = buffer.get(..length).and_then(stun::parse_answer) else {
            continue;
        };
        let from = canonical(from);
        let answered = waiting
            .extract_if(.., |(server, _), waits| (*server, *waits) == (from, id))
            .map(|((_, size), _)| size)
            .max();
        if let Some(size) = answered {
            let best = found.entry(from).or_insert(size);
            *best = (*best).max(size);
        }
    }
    found
}

/// What the largest packet to a server means for the tunnel.
pub(super) fn check(server: SocketAddr, size: Option<u32>, of_mesh: Option<u32>) -> Check {
    let (label, wanted) = (format!("MTU to {server}"), of_mesh.unwrap_or(USUAL_MTU));
    match size {
        None => Check::unknown(
            &label,
            "the server answers no long request, so how large packets may be is not known",
        ),
        Some(size) if size >= wanted + OVERHEAD => Check::good(
            &label,
            format!("packets of {size} bytes pass, enough for a tunnel of {wanted}"),
        ),
        Some(size) => Check::bad(
            &label,
            format!(
                "packets of {size} bytes pass, larger ones vanish, and a tunnel of {wanted} needs {}",
                wanted + OVERHEAD
            ),
            format!(
                "nothing, if all peers run natpunch, which finds the size for each path; else write \
                 `mtu = {}` in [interface] for this node",
                size.saturating_sub(OVERHEAD)
            ),
        ),
    }
}

/// Each of those that answer.
pub(super) fn checks(servers: &BTreeSet<SocketAddr>, of_mesh: Option<u32>) -> Vec<Check> {
    let servers: Vec<SocketAddr> = servers.iter().copied().collect();
    let found = measure(&servers);
    let of = |server: &SocketAddr| check(*server, found.get(server).copied(), of_mesh);
    servers.iter().map(of).collect()
}
