//! Raw sockets on real ones: loopback and cables between network namespaces.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use common::{Neighbour, SOON, ip, on_a_host};
use natpunch_net::{MAX_SOURCES, NetError, RawPort, Received};
use natpunch_types::{PROBE_MAGIC, Travel};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

const PORT: u16 = 21_000;

fn probe(tail: &[u8]) -> Vec<u8> {
    [&PROBE_MAGIC, tail].concat()
}

fn stun() -> Vec<u8> {
    let mut message = vec![0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42];
    message.resize(20, 7);
    message
}

/// The first bytes of WireGuard's messages.
fn wireguard(kind: u8) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0];
    message.resize(148, 0xaa);
    message
}

/// The socket that owns a port, as WireGuard would.
fn owner(address: &str, port: u16) -> UdpSocket {
    let socket = UdpSocket::bind((address, port)).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    socket
}

fn next(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = [0; 65_536];
    let (length, from) = socket.recv_from(&mut buffer).expect("a datagram arrives");
    (buffer[..length].to_vec(), from)
}

async fn received(port: &RawPort) -> Received {
    tokio::time::timeout(SOON, port.recv())
        .await
        .expect("a datagram passes")
        .unwrap()
}

/// Nothing but `payloads` came: then this probe is the next.
async fn only_a_sentinel_is_left(port: &RawPort, sender: &UdpSocket, to: SocketAddr) {
    sender.send_to(&probe(b"sentinel"), to).unwrap();
    assert_eq!(received(port).await.payload, probe(b"sentinel"));
}

#[test]
fn the_owner_of_the_port_keeps_all_its_packets_and_the_raw_socket_gets_copies_of_ours() {
    on_a_host(|| async {
        for host in ["127.0.0.1", "::1"] {
            let owner = owner(host, PORT);
            let sender = UdpSocket::bind((host, 0)).unwrap();
            let (from, to) = (sender.local_addr().unwrap(), owner.local_addr().unwrap());
            let port = RawPort::open(PORT, 0).unwrap();
            let ours = [probe(b"1"), stun(), probe(b""), probe(&[0x5a; 1400])];
            let foreign = [
                wireguard(1),
                wireguard(2),
                wireguard(3),
                wireguard(4),
                vec![],
                vec![1],
                b"NPc".to_vec(),
            ];
            for payload in foreign.iter().chain(&ours).chain(&foreign) {
                sender.send_to(payload, to).unwrap();
                assert_eq!(next(&owner), (payload.clone(), from));
            }
            for payload in ours {
                let expected = Received {
                    source: from,
                    destination: to.ip(),
                    ttl: Some(64),
                    payload,
                };
                assert_eq!(received(&port).await, expected);
            }
            only_a_sentinel_is_left(&port, &sender, to).await;
        }
    });
}

#[test]
fn other_ports_and_other_sockets_are_none_of_our_business() {
    on_a_host(|| async {
        let port = RawPort::open(PORT, 0).unwrap();
        let owner = owner("127.0.0.1", PORT);
        let other = UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..10 {
            owner
                .send_to(
                    &probe(b"from the port, not to it"),
                    other.local_addr().unwrap(),
                )
                .unwrap();
            other
                .send_to(
                    &probe(b"to a port without a socket"),
                    ("127.0.0.1", PORT + 1),
                )
                .unwrap();
        }
        only_a_sentinel_is_left(&port, &other, owner.local_addr().unwrap()).await;
    });
}

#[test]
fn what_is_sent_leaves_from_the_owners_port_with_a_checksum_that_the_other_host_accepts() {
    on_a_host(|| async {
        let neighbour = Neighbour::new();
        neighbour.cable(
            ("np-a", &["192.0.2.1/24", "2001:db8::1/64"]),
            ("np-b", &["192.0.2.2/24", "2001:db8::2/64"]),
        );
        let port = RawPort::open(PORT, 0).unwrap();
        for (us, them) in [("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8::2")] {
            let _owner = owner(us, PORT);
            let socket = neighbour.run(move || owner(them, PORT));
            let to = socket.local_addr().unwrap();
            for length in [0, 1, 2, 3, 100, 1401] {
                let payload = vec![0xff; length];
                port.send(None, to, Travel::Usual, &payload).unwrap();
                assert_eq!(
                    next(&socket),
                    (payload, SocketAddr::new(us.parse().unwrap(), PORT))
                );
            }
            // And back: the neighbour answers to where it came from.
            socket
                .send_to(&probe(b"pong"), SocketAddr::new(us.parse().unwrap(), PORT))
                .unwrap();
            let answer = received(&port).await;
            assert_eq!((answer.source, answer.payload), (to, probe(b"pong")));
        }
    });
}

#[test]
fn a_ttl_of_its_own_is_the_ttl_that_arrives() {
    on_a_host(|| async {
        for to in ["127.0.0.1", "::1"] {
            let port = RawPort::open(PORT, 0).unwrap();
            let to = SocketAddr::new(to.parse().unwrap(), PORT);
            for ttl in [Some(1), Some(3), Some(255), None] {
                port.send(None, to, ttl.into(), &probe(b"")).unwrap();
                assert_eq!(received(&port).await.ttl, ttl.or(Some(64)));
            }
        }
    });
}

#[test]
fn an_explicit_source_is_used_and_one_that_is_not_ours_is_a_soft_error() {
    on_a_host(|| async {
        let neighbour = Neighbour::new();
        let ours = [
            "192.0.2.1/24",
            "192.0.2.9/24",
            "2001:db8::1/64",
            "2001:db8::9/64",
        ];
        neighbour.cable(
            ("np-a", &ours),
            ("np-b", &["192.0.2.2/24", "2001:db8::2/64"]),
        );
        let port = RawPort::open(PORT, 0).unwrap();
        for (us, them, foreign) in [
            ("192.0.2.9", "192.0.2.2", "192.0.2.77"),
            ("2001:db8::9", "2001:db8::2", "2001:db8::77"),
        ] {
            let (us, foreign): (IpAddr, IpAddr) = (us.parse().unwrap(), foreign.parse().unwrap());
            let socket = neighbour.run(move || owner(them, PORT));
            port.send(Some(us), socket.local_addr().unwrap(), Travel::Usual, b"x")
                .unwrap();
            assert_eq!(next(&socket).1, SocketAddr::new(us, PORT));
            let error = port
                .send(
                    Some(foreign),
                    socket.local_addr().unwrap(),
                    Travel::Usual,
                    b"x",
                )
                .unwrap_err();
            assert!(error.is_soft(), "{error:?}");
        }
        let wrong_family = port.send(
            Some("::1".parse().unwrap()),
            "192.0.2.2:1".parse().unwrap(),
            Travel::Usual,
            b"x",
        );
        assert!(wrong_family.unwrap_err().is_soft());
    });
}

/// A socket of the neighbour that hears only what comes in over one of its links.
fn listener(neighbour: &Neighbour, link: &'static str, domain: Domain) -> UdpSocket {
    neighbour.run(move || {
        let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP)).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.bind_device(Some(link.as_bytes())).unwrap();
        let any = if domain == Domain::IPV4 {
            "0.0.0.0"
        } else {
            "::"
        };
        socket
            .bind(&SocketAddr::new(any.parse().unwrap(), PORT).into())
            .unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        socket.into()
    })
}

#[test]
fn a_call_to_all_of_a_lan_leaves_through_the_link_that_owns_its_source() {
    on_a_host(|| async {
        let neighbour = Neighbour::new();
        neighbour.cable(
            ("np-a1", &["10.1.0.1/24", "fd01::1/64"]),
            ("np-b1", &["10.1.0.2/24", "fd01::2/64"]),
        );
        neighbour.cable(
            ("np-a2", &["10.2.0.1/24", "fd02::1/64"]),
            ("np-b2", &["10.2.0.2/24", "fd02::2/64"]),
        );
        let port = RawPort::open(PORT, 0).unwrap();
        for (domain, all, sources) in [
            (Domain::IPV4, "255.255.255.255", ["10.1.0.1", "10.2.0.1"]),
            (Domain::IPV6, "ff02::1", ["fd01::1", "fd02::1"]),
        ] {
            let all = SocketAddr::new(all.parse().unwrap(), PORT);
            let heard = ["np-b1", "np-b2"].map(|link| listener(&neighbour, link, domain));
            for source in sources {
                port.send(
                    Some(source.parse().unwrap()),
                    all,
                    Travel::Usual,
                    source.as_bytes(),
                )
                .unwrap();
            }
            for (socket, source) in heard.iter().zip(sources) {
                let (payload, from) = next(socket);
                assert_eq!(payload, source.as_bytes());
                assert_eq!(from, SocketAddr::new(source.parse().unwrap(), PORT));
                socket.set_nonblocking(true).unwrap();
                assert!(
                    socket.recv(&mut [0; 64]).is_err(),
                    "only the calls of its own link are heard"
                );
            }
        }
    });
}

#[test]
fn a_call_to_all_of_a_lan_is_received() {
    on_a_host(|| async {
        let neighbour = Neighbour::new();
        neighbour.cable(
            ("np-a", &["10.1.0.1/24", "fd01::1/64"]),
            ("np-b", &["10.1.0.2/24", "fd01::2/64"]),
        );
        let port = RawPort::open(PORT, 0).unwrap();
        for (all, them) in [("255.255.255.255", "10.1.0.2"), ("ff02::1", "fd01::2")] {
            neighbour.run(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                let _guard = runtime.enter();
                let port = RawPort::open(PORT, 0).unwrap();
                let all = SocketAddr::new(all.parse().unwrap(), PORT);
                port.send(
                    Some(them.parse().unwrap()),
                    all,
                    Travel::Usual,
                    &probe(b"who is there"),
                )
                .unwrap();
            });
            let call = received(&port).await;
            assert_eq!(
                (call.source.ip(), call.destination),
                (them.parse().unwrap(), all.parse().unwrap())
            );
        }
    });
}

#[test]
fn a_marked_port_takes_the_route_and_the_source_of_its_mark() {
    on_a_host(|| async {
        let neighbour = Neighbour::new();
        neighbour.cable(
            ("np-a1", &["10.1.0.1/24", "fd01::1/64"]),
            ("np-b1", &["10.1.0.2/24", "fd01::2/64"]),
        );
        neighbour.cable(
            ("np-a2", &["10.2.0.1/24", "fd02::1/64"]),
            ("np-b2", &["10.2.0.2/24", "fd02::2/64"]),
        );
        for (family, network) in [("-4", "10."), ("-6", "fd0")] {
            let gateway = |n| {
                if family == "-4" {
                    format!("{network}{n}.0.2")
                } else {
                    format!("{network}{n}::2")
                }
            };
            ip(&format!("{family} route add default via {}", gateway(1)));
            ip(&format!(
                "{family} route add default via {} table 100",
                gateway(2)
            ));
            ip(&format!("{family} rule add fwmark 0x4e table 100"));
        }
        neighbour.run(|| {
            ip("address add 203.0.113.9/32 dev lo");
            ip("address add 2001:db8::9/128 dev lo nodad");
        });
        let port = RawPort::open(PORT, 0x4e).unwrap();
        for (them, marked, plain) in [
            ("203.0.113.9", "10.2.0.1", "10.1.0.1"),
            ("2001:db8::9", "fd02::1", "fd01::1"),
        ] {
            let socket = neighbour.run(move || owner(them, PORT));
            let to = socket.local_addr().unwrap();
            port.set_fwmark(0x4e).unwrap();
            port.send(None, to, Travel::Usual, b"x").unwrap();
            assert_eq!(next(&socket).1.ip(), marked.parse::<IpAddr>().unwrap());
            port.set_fwmark(0).unwrap();
            port.send(None, to, Travel::Usual, b"x").unwrap();
            assert_eq!(next(&socket).1.ip(), plain.parse::<IpAddr>().unwrap());
        }
    });
}

#[test]
fn the_source_follows_the_host_to_another_network() {
    on_a_host(|| async {
        let neighbour = Neighbour::new();
        neighbour.cable(
            ("np-a", &["10.1.0.1/24"]),
            ("np-b", &["10.1.0.2/24", "10.2.0.2/24"]),
        );
        neighbour.run(|| ip("address add 203.0.113.9/32 dev lo"));
        ip("route add default via 10.1.0.2");
        let port = RawPort::open(PORT, 0).unwrap();
        let socket = neighbour.run(|| owner("203.0.113.9", PORT));
        let to = socket.local_addr().unwrap();
        port.send(None, to, Travel::Usual, b"x").unwrap();
        assert_eq!(
            next(&socket).1.ip(),
            IpAddr::from(Ipv4Addr::new(10, 1, 0, 1))
        );

        ip("address flush dev np-a");
        ip("address add 10.2.0.7/24 dev np-a");
        ip("route add default via 10.2.0.2");
        port.forget_routes();
        port.send(None, to, Travel::Usual, b"x").unwrap();
        assert_eq!(
            next(&socket).1.ip(),
            IpAddr::from(Ipv4Addr::new(10, 2, 0, 7))
        );
    });
}

#[test]
fn a_destination_that_cannot_be_reached_now_is_a_soft_error() {
    on_a_host(|| async {
        let neighbour = Neighbour::new();
        neighbour.cable(("np-a", &["10.1.0.1/24"]), ("np-b", &["10.1.0.2/24"]));
        let port = RawPort::open(PORT, 0).unwrap();
        let soft = |to: &str| {
            let error = port
                .send(None, to.parse().unwrap(), Travel::Usual, b"x")
                .unwrap_err();
            assert!(error.is_soft(), "{to}: {error:?}");
            assert!(error.to_string().contains(to), "{error}");
        };
        soft("203.0.113.1:1");
        soft("[2001:db8::1]:1");
        for kind in ["unreachable", "prohibit", "blackhole"] {
            ip(&format!("route add {kind} 203.0.113.0/24"));
            soft("203.0.113.1:1");
            ip(&format!("route del {kind} 203.0.113.0/24"));
        }
        let too_long = port
            .send(
                None,
                "10.1.0.2:1".parse().unwrap(),
                Travel::Usual,
                &vec![0; 65_528],
            )
            .unwrap_err();
        assert!(too_long.is_soft(), "{too_long:?}");
    });
}

#[test]
fn only_an_allowed_server_may_send_what_looks_like_wireguard() {
    on_a_host(|| async {
        for host in ["127.0.0.1", "::1"] {
            let owner = owner(host, PORT);
            let to = owner.local_addr().unwrap();
            let (server, other) = (
                UdpSocket::bind((host, 0)).unwrap(),
                UdpSocket::bind((host, 0)).unwrap(),
            );
            let port = RawPort::open(PORT, 0).unwrap();
            server.send_to(&wireguard(2), to).unwrap();
            port.allow_source(server.local_addr().unwrap()).unwrap();
            for payload in [wireguard(1), wireguard(4), vec![], vec![0; 3]] {
                other.send_to(&payload, to).unwrap();
                server.send_to(&payload, to).unwrap();
                let passed = received(&port).await;
                assert_eq!(
                    (passed.source, passed.payload),
                    (server.local_addr().unwrap(), payload)
                );
            }
            port.forbid_source(server.local_addr().unwrap()).unwrap();
            server.send_to(&wireguard(2), to).unwrap();
            only_a_sentinel_is_left(&port, &server, to).await;
        }
    });
}

#[test]
fn the_set_of_servers_is_bounded_and_the_kernel_takes_it_whole() {
    on_a_host(|| async {
        let port = RawPort::open(PORT, 0).unwrap();
        let address =
            |n: usize| -> SocketAddr { format!("[2001:db8::{n:x}]:3478").parse().unwrap() };
        for n in 0..MAX_SOURCES {
            port.allow_source(address(n)).unwrap();
        }
        port.allow_source(address(3)).unwrap();
        let error = port.allow_source(address(MAX_SOURCES)).unwrap_err();
        assert!(matches!(
            error,
            NetError::TooManySources {
                limit: MAX_SOURCES,
                ..
            }
        ));
        port.forbid_source(address(3)).unwrap();
        port.allow_source(address(MAX_SOURCES)).unwrap();
    });
}

/// A packet of the neighbour, from its IPv4 header on.
fn ipv4(options: usize, fragment: u16, length_of_udp: u16, payload: &[u8]) -> Vec<u8> {
    let header = 20 + options * 4;
    let mut packet = vec![0x45 + options as u8, 0];
    packet.extend(((header + 8 + payload.len()) as u16).to_be_bytes());
    packet.extend([0x77, 0x77]);
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, 17, 0, 0, 10, 1, 0, 2, 10, 1, 0, 1]);
    // The kernel writes the checksum; option 1 does nothing.
    packet.resize(header, 1);
    for field in [9999, PORT, length_of_udp, 0] {
        packet.extend(field.to_be_bytes());
    }
    packet.extend(payload);
    packet
}

/// What crashed natpunch-go: replies cut short, behind IP options, or in pieces.
#[test]
fn short_frames_options_fragments_and_false_lengths_are_survived_and_refused() {
    on_a_host(|| async {
        let neighbour = Neighbour::new();
        neighbour.cable(("np-a", &["10.1.0.1/24"]), ("np-b", &["10.1.0.2/24"]));
        let port = RawPort::open(PORT, 0).unwrap();
        port.allow_source("10.1.0.2:9999".parse().unwrap()).unwrap();
        for length in 0..=40 {
            let payload = probe(&[7; 40])[..length].to_vec();
            let whole = 8 + length as u16;
            let mut frames = Vec::new();
            let mut expected = Vec::new();
            for options in [0, 1, 10] {
                frames.push(ipv4(options, 0x4000, whole, &payload));
                expected.push(payload.clone());
            }
            for false_length in [0, 7, whole + 1, 0xffff] {
                frames.push(ipv4(0, 0, false_length, &payload));
            }
            // Bytes after the datagram are none of it.
            if length > 0 {
                frames.push(ipv4(0, 0, whole - 1, &payload));
                expected.push(payload[..length - 1].to_vec());
            }
            // A first fragment that stays alone; a later one must not be taken for a datagram.
            frames.push(ipv4(0, 0x2000, whole, &payload));
            frames.push(ipv4(0, 0x0100, whole, &payload));
            neighbour.run(move || {
                let socket = Socket::new(
                    Domain::IPV4,
                    Type::RAW,
                    Some(Protocol::from(libc::IPPROTO_RAW)),
                )
                .unwrap();
                let to = SockAddr::from("10.1.0.1:0".parse::<SocketAddr>().unwrap());
                for frame in frames {
                    socket.send_to(&frame, &to).unwrap();
                }
            });
            for payload in expected {
                assert_eq!(received(&port).await.payload, payload);
            }
        }
        let sender = neighbour.run(|| UdpSocket::bind("10.1.0.2:0").unwrap());
        only_a_sentinel_is_left(&port, &sender, format!("10.1.0.1:{PORT}").parse().unwrap()).await;
    });
}

#[test]
fn a_host_without_ipv6_still_has_a_port() {
    on_a_host(|| async {
        std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1")
            .expect("the sysctls of the namespace");
        let port = RawPort::open(PORT, 0).unwrap();
        let to = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), PORT);
        port.send(None, to, Travel::Usual, &probe(b"")).unwrap();
        assert_eq!(received(&port).await.source, to);
        assert_eq!(port.port(), PORT);
        assert!(
            port.send(
                None,
                "[2001:db8::1]:1".parse().unwrap(),
                Travel::Usual,
                b"x"
            )
            .unwrap_err()
            .is_soft()
        );
    });
}

#[test]
fn what_must_arrive_whole_is_never_split_and_what_is_sent_otherwise_still_may_be() {
    on_a_host(|| async {
        let neighbour = Neighbour::new();
        let (here, there) = (["10.1.0.1/24", "fd01::1/64"], ["10.1.0.2/24", "fd01::2/64"]);
        neighbour.cable(("here", &here), ("there", &there));
        let port = RawPort::open(PORT, 0).unwrap();
        let headers = neighbour.run(|| {
            let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::UDP)).unwrap();
            socket.set_read_timeout(Some(SOON)).unwrap();
            socket
        });
        for (to, overhead) in [("10.1.0.2:9", 28), ("[fd01::2]:9", 48)] {
            let to: SocketAddr = to.parse().unwrap();
            let socket = neighbour.run(move || owner(&to.ip().to_string(), 9));
            port.send(None, to, Travel::Whole, &vec![1; 1_500 - overhead])
                .unwrap();
            assert_eq!(next(&socket).0.len(), 1_500 - overhead);
            let refused = port.send(None, to, Travel::Whole, &vec![2; 1_501 - overhead]);
            assert!(refused.unwrap_err().is_soft());
            port.send(None, to, Travel::Usual, &vec![3; 1_501 - overhead])
                .unwrap();
            assert_eq!(next(&socket).0, vec![3; 1_501 - overhead]);
        }
        // Bits of the IPv4 header: "don't fragment" is the second of its seventh byte.
        let forbids = || {
            let mut packet = [0; 64];
            assert!((&headers).read(&mut packet).unwrap() > 20);
            packet[6] & 0x40 != 0
        };
        assert!(forbids());
        assert!(!forbids(), "the one that was split");
    });
}
