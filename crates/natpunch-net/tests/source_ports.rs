//! Probes from many ports of one host, on real sockets between network namespaces.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};
use std::num::NonZeroU16;
use std::time::{Duration, Instant};

use common::{Neighbour, SOON, ip, on_a_host};
use natpunch_net::{NetError, Probed, SourcePorts};
use natpunch_types::{PROBE_MAGIC, Travel};

/// No port is shared with another process.
const NONE: BTreeSet<NonZeroU16> = BTreeSet::new();

fn probe(tail: &[u8]) -> Vec<u8> {
    [&PROBE_MAGIC, tail].concat()
}

fn port(number: u16) -> NonZeroU16 {
    NonZeroU16::new(number).unwrap()
}

async fn heard(ports: &SourcePorts) -> Probed {
    tokio::time::timeout(SOON, ports.recv())
        .await
        .expect("a probe arrives")
}

/// A host at the end of a cable, with a socket that answers for its port.
fn neighbour() -> (Neighbour, [SocketAddr; 2]) {
    let neighbour = Neighbour::new();
    neighbour.cable(
        ("eth0", &["192.0.2.1/24", "2001:db8::1/64"]),
        ("eth0", &["192.0.2.2/24", "2001:db8::2/64"]),
    );
    let there = ["192.0.2.2:7000", "[2001:db8::2]:7000"].map(|there| there.parse().unwrap());
    (neighbour, there)
}

/// What the neighbour's socket gets next, and from where.
fn next_at(neighbour: &Neighbour, at: SocketAddr, count: usize) -> Vec<(Vec<u8>, SocketAddr)> {
    neighbour.run(move || {
        let socket = UdpSocket::bind(at).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        let mut buffer = [0; 2048];
        let mut next = || {
            let (length, from) = socket.recv_from(&mut buffer).expect("a datagram");
            (buffer[..length].to_vec(), from)
        };
        (0..count).map(|_| next()).collect()
    })
}

#[test]
fn two_hundred_and_fifty_six_ports_speak_and_hear_in_both_families() {
    on_a_host(|| async {
        let (neighbour, theres) = neighbour();
        let mut ports = SourcePorts::new(0);
        let wanted: Vec<_> = (61_000..61_256).map(port).collect();
        assert!(ports.set(&wanted, &NONE).is_empty());
        assert_eq!(ports.len(), 256);
        for there in theres {
            // An echo at the other end, which answers each port once.
            let echo = neighbour.run(move || UdpSocket::bind(there).unwrap());
            neighbour.start(move || {
                echo.set_read_timeout(Some(SOON)).unwrap();
                let mut buffer = [0; 2048];
                for _ in 0..256 {
                    let (length, from) = echo.recv_from(&mut buffer).unwrap();
                    echo.send_to(&buffer[..length], from).unwrap();
                }
            });
            let mut left: BTreeSet<_> = wanted.iter().copied().collect();
            for number in &wanted {
                let payload = probe(&number.get().to_be_bytes());
                ports.send(*number, there, Travel::Usual, &payload).unwrap();
                let answer = heard(&ports).await;
                assert_eq!(answer.source, there);
                assert_eq!(answer.payload, probe(&answer.port.get().to_be_bytes()));
                left.remove(&answer.port);
            }
            assert!(left.is_empty(), "{left:?}");
        }
    });
}

#[test]
fn each_datagram_has_its_own_ttl_in_both_families() {
    on_a_host(|| async {
        let (neighbour, theres) = neighbour();
        // A probe that is to die on the way would not reach beyond a router.
        neighbour.run(|| {
            for line in [
                "add table inet t",
                "add chain inet t input { type filter hook input priority 0 ; }",
                "add rule inet t input ip ttl 3 drop",
                "add rule inet t input ip6 hoplimit 3 drop",
            ] {
                let done = std::process::Command::new("nft")
                    .args(line.split(' '))
                    .status();
                assert!(done.unwrap().success(), "{line}");
            }
        });
        let mut ports = SourcePorts::new(0);
        assert!(ports.set(&[port(61_001)], &NONE).is_empty());
        for there in theres {
            let receiver = std::thread::scope(|scope| {
                let receive = scope.spawn(|| next_at(&neighbour, there, 1));
                while !receive.is_finished() {
                    for (ttl, tail) in [(Some(3), b"short"), (Some(64), b"whole")] {
                        let _ = ports.send(port(61_001), there, ttl.into(), &probe(tail));
                    }
                    std::thread::yield_now();
                }
                receive.join().unwrap()
            });
            assert_eq!(receiver[0].0, probe(b"whole"));
            assert_eq!(receiver[0].1.port(), 61_001);
        }
    });
}

#[test]
fn only_probes_are_heard() {
    on_a_host(|| async {
        let mut ports = SourcePorts::new(0);
        assert!(ports.set(&[port(61_001), port(61_002)], &NONE).is_empty());
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        for payload in [
            &b""[..],
            b"NPc",
            b"\x01\0\0\0 of WireGuard",
            &[0xd4, b'n', 2, 0, 0],
        ] {
            sender.send_to(payload, "127.0.0.1:61001").unwrap();
        }
        sender.send_to(&probe(b"1"), "127.0.0.1:61002").unwrap();
        let expected = Probed {
            port: port(61_002),
            source: sender.local_addr().unwrap(),
            payload: probe(b"1"),
        };
        assert_eq!(heard(&ports).await, expected);
    });
}

/// Waits for it. A socket that was closed is still open in a program that another test is just
/// starting, which nothing tells.
fn comes_true(mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < deadline, "the port is not free");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_port_that_another_program_has_is_refused_and_the_others_open() {
    on_a_host(|| async {
        let other = UdpSocket::bind("0.0.0.0:61001").unwrap();
        let mut ports = SourcePorts::new(0);
        let refused = ports.set(&[port(61_000), port(61_001), port(61_002)], &NONE);
        assert_eq!(refused.len(), 1);
        assert_eq!(refused[0].0, port(61_001));
        assert_eq!(ports.len(), 2);
        let error = ports
            .send(
                port(61_001),
                "127.0.0.1:9".parse().unwrap(),
                Travel::Usual,
                b"x",
            )
            .unwrap_err();
        assert!(error.is_soft(), "{error}");
        // What is not wanted any more is free for others, and the rest stays open.
        drop(other);
        comes_true(|| ports.set(&[port(61_001), port(61_002)], &NONE).is_empty());
        comes_true(|| UdpSocket::bind("0.0.0.0:61000").is_ok());
        UdpSocket::bind("0.0.0.0:61002").unwrap_err();
        assert!(ports.set(&[], &NONE).is_empty());
        assert!(ports.is_empty());
    });
}

#[test]
fn the_kernel_answers_no_probe_with_port_unreachable() {
    on_a_host(|| async {
        let mut ports = SourcePorts::new(0);
        assert!(ports.set(&[port(61_001)], &NONE).is_empty());
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.set_read_timeout(Some(SOON)).unwrap();
        sender.connect("127.0.0.1:61001").unwrap();
        // No filter lets it through, and still nobody is told that it was refused.
        sender.send(b"no probe").unwrap();
        sender.send(&probe(b"1")).unwrap();
        let probe = heard(&ports).await;
        let to = probe.source;
        ports
            .send(probe.port, to, Travel::Usual, &probe.payload)
            .unwrap();
        assert!(sender.recv(&mut [0; 2048]).is_ok(), "no error came before");
    });
}

#[test]
fn a_host_without_ipv6_has_the_ports_in_ipv4() {
    on_a_host(|| async {
        std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap();
        let mut ports = SourcePorts::new(7);
        let refused: Vec<(NonZeroU16, NetError)> = ports.set(&[port(61_001)], &NONE);
        assert!(refused.is_empty(), "{refused:?}");
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.send_to(&probe(b"1"), "127.0.0.1:61001").unwrap();
        assert_eq!(heard(&ports).await.payload, probe(b"1"));
        ip("link show");
    });
}

#[test]
fn a_shared_port_is_spoken_from_and_heard_beside_the_process_that_has_bound_it() {
    on_a_host(|| async {
        let (neighbour, theres) = neighbour();
        let mut ports = SourcePorts::new(0);
        let number = port(61_001);
        assert!(ports.set(&[number], &NONE).is_empty());
        // From now on it is left to another process, which can bind it at once.
        assert!(ports.set(&[number], &BTreeSet::from([number])).is_empty());
        let owner = UdpSocket::bind(("::", number.get())).unwrap();
        owner.set_read_timeout(Some(SOON)).unwrap();
        for there in theres {
            let end = neighbour.run(move || UdpSocket::bind(there).unwrap());
            end.set_read_timeout(Some(SOON)).unwrap();
            let mut buffer = [0; 2048];
            ports
                .send(number, there, Travel::Usual, &probe(b"out"))
                .unwrap();
            let (length, from) = end.recv_from(&mut buffer).unwrap();
            assert_eq!(buffer[..length], probe(b"out"));
            assert_eq!(from.port(), number.get());
            for payload in [&[4, 0, 0, 0][..], &probe(b"in")] {
                end.send_to(payload, from).unwrap();
            }
            let probed = heard(&ports).await;
            assert_eq!((probed.port, probed.source), (number, there));
            assert_eq!(probed.payload, probe(b"in"));
            // What is no probe is the owner's alone.
            let (length, _) = owner.recv_from(&mut buffer).unwrap();
            assert_eq!(buffer[..length], [4, 0, 0, 0]);
            let _ = owner.recv_from(&mut buffer).unwrap();
        }
        // It stays shared, also when nobody shares it any more.
        assert!(ports.set(&[number], &NONE).is_empty());
    });
}
