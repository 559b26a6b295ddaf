use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use natpunch_core::stun;

use crate::go_client::{GoClient, Keys, exchange, init, socket};
use crate::process::Server;

const GO: [&str; 2] = ["--compat", "natpunch-go"];
pub(crate) const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn both() -> Server {
    Server::start(&[&GO[..], &["--listen", "127.0.0.1:0", "--listen", "[::1]:0"]].concat())
}

pub(crate) fn stun_answer(socket: &UdpSocket) -> Option<SocketAddr> {
    let id = stun::TransactionId([3; 12]);
    let answer = exchange(socket, &stun::request(id)).ok()?;
    match stun::parse_answer(&answer)? {
        (found, stun::Answer::Mapped(address)) if found == id => Some(address),
        _ => None,
    }
}

#[test]
fn stun_tells_a_client_its_address_over_both_families() {
    let server = both();
    for (local, server) in [
        (LOCAL, server.udp[0]),
        (Ipv6Addr::LOCALHOST.into(), server.udp[1]),
    ] {
        let socket = socket(local, server);
        assert_eq!(stun_answer(&socket), Some(socket.local_addr().unwrap()));
    }
}

#[test]
fn a_server_on_all_addresses_answers_from_the_one_that_was_asked() {
    let server = Server::start(&[&GO[..], &["--listen", "0.0.0.0:0"]].concat());
    // The route to 127.0.0.1 prefers 127.0.0.1 as the source; a connected socket takes answers only
    // from where it asks.
    let asked = SocketAddr::from(([127, 0, 0, 2], server.udp[0].port()));
    let socket = socket(LOCAL, asked);
    assert_eq!(stun_answer(&socket), Some(socket.local_addr().unwrap()));
    assert!(
        GoClient::register(socket, &server.public_key).is_ok(),
        "handshakes, too"
    );
}

#[test]
fn two_clients_of_natpunch_go_find_each_other() {
    let server = both();
    for (local, address) in [
        (LOCAL, server.udp[0]),
        (Ipv6Addr::LOCALHOST.into(), server.udp[1]),
    ] {
        let mut a = GoClient::register(socket(local, address), &server.public_key).unwrap();
        let mut b = GoClient::register(socket(local, address), &server.public_key).unwrap();
        let (a_key, b_key) = (a.keys.public, b.keys.public);
        a.look_up(&b_key);
        assert_eq!(b.look_up(&a_key), Some(a.socket.local_addr().unwrap()));
        assert_eq!(a.look_up(&b_key), Some(b.socket.local_addr().unwrap()));
        assert_eq!(a.look_up(&Keys::new().public), None);
    }
}

#[test]
fn clients_are_found_again_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let first = Server::start_in(
        directory.path(),
        &[&GO[..], &["--listen", "127.0.0.1:0"]].concat(),
    );
    let address = first.udp[0];
    let (mut a, mut b) = (
        GoClient::register(socket(LOCAL, address), &first.public_key).unwrap(),
        GoClient::register(socket(LOCAL, address), &first.public_key).unwrap(),
    );
    a.look_up(&b.keys.public);
    assert!(b.look_up(&a.keys.public).is_some());
    drop(first);
    let second = Server::start_in(
        directory.path(),
        &[&GO[..], &["--listen", &address.to_string()]].concat(),
    );
    let mut a = GoClient::register_as(a.keys, a.socket, &second.public_key).unwrap();
    let mut b = GoClient::register_as(b.keys, b.socket, &second.public_key).unwrap();
    a.look_up(&b.keys.public);
    assert_eq!(
        b.look_up(&a.keys.public),
        Some(a.socket.local_addr().unwrap())
    );
}

#[test]
fn a_handshake_captured_before_a_restart_moves_nothing_after_it() {
    let directory = tempfile::tempdir().unwrap();
    let first = Server::start_in(
        directory.path(),
        &[&GO[..], &["--listen", "127.0.0.1:0"]].concat(),
    );
    let address = first.udp[0];
    let victim = Keys::new();
    let (captured, _) = init(&victim, &first.public_key, &[0; 8]);
    exchange(&socket(LOCAL, address), &captured).unwrap();
    drop(first);
    let second = Server::start_in(
        directory.path(),
        &[&GO[..], &["--listen", &address.to_string()]].concat(),
    );
    let mut victim =
        GoClient::register_as(victim, socket(LOCAL, address), &second.public_key).unwrap();
    let mut peer = GoClient::register(socket(LOCAL, address), &second.public_key).unwrap();
    victim.look_up(&peer.keys.public);
    let replayer = socket(LOCAL, address);
    replayer.send(&captured).unwrap();
    assert!(stun_answer(&socket(LOCAL, address)).is_some());
    assert_eq!(
        peer.look_up(&victim.keys.public),
        Some(victim.socket.local_addr().unwrap())
    );
}

#[test]
fn nat_hole_punching_is_spoken_only_if_named() {
    let request = |own: u8, wanted: u8| [[own; 32], [wanted; 32]].concat();
    let named = Server::start(&[
        "--listen",
        "127.0.0.1:0",
        "--compat",
        "natpunch-go,nat-hole-punching",
    ]);
    let (a, b) = (socket(LOCAL, named.udp[0]), socket(LOCAL, named.udp[0]));
    assert_eq!(
        exchange(&a, &request(1, 2)).unwrap().len(),
        0,
        "not known yet"
    );
    let found = exchange(&b, &request(2, 1)).unwrap();
    assert_eq!(
        found,
        [
            &[127, 0, 0, 1][..],
            &a.local_addr().unwrap().port().to_be_bytes()
        ]
        .concat()
    );

    let default = Server::start(&[&GO[..], &["--listen", "127.0.0.1:0"]].concat());
    let a = socket(LOCAL, default.udp[0]);
    a.send(&request(1, 2)).unwrap();
    assert!(
        stun_answer(&a).is_some(),
        "the next answer is STUN's: the request had none"
    );
}

#[test]
fn handshakes_with_any_payload_length_leave_it_alive() {
    let mut server = both();
    let socket = socket(LOCAL, server.udp[0]);
    for length in (0..8).chain(9..300) {
        let (datagram, _) = init(&Keys::new(), &server.public_key, &vec![0; length]);
        socket.send(&datagram).unwrap();
    }
    assert!(
        stun_answer(&socket).is_some(),
        "STUN's answer is the only one"
    );
    assert!(server.is_alive());
}

/// Every length from 0 to 2,048 with every first byte, and random bytes after it.
/// Also G12 of docs/compat.md: what is junk is counted, not logged.
#[test]
fn no_datagram_is_answered_or_does_harm() {
    let mut server = both();
    let (junk, judge) = (socket(LOCAL, server.udp[0]), socket(LOCAL, server.udp[0]));
    let mut state = 1_u64;
    let mut noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    })
    .take(4_096)
    .collect();
    for length in 0..=2_048_usize {
        for first in 0..=255_u8 {
            let at = usize::from(first);
            noise[at] = first;
            junk.send(&noise[at..at + length]).unwrap();
            // The server has seen all before when it answers the judge; its buffer never overflows
            // so.
            if first % 16 == 15 {
                assert!(
                    stun_answer(&judge).is_some(),
                    "no answer after length {length}"
                );
            }
        }
    }
    junk.set_nonblocking(true).unwrap();
    assert_eq!(
        junk.recv(&mut [0; 2048]).unwrap_err().kind(),
        std::io::ErrorKind::WouldBlock,
        "junk was answered"
    );
    assert!(server.is_alive());
    let mut client = GoClient::register(socket(LOCAL, server.udp[0]), &server.public_key).unwrap();
    assert_eq!(client.look_up(&[7; 32]), None);
    let log = server.log();
    assert!(log.len() < 20_000 && !log.contains("panicked"), "{log}");
}

#[test]
fn a_flood_of_handshakes_from_one_source_bars_no_other() {
    let server = both();
    let address = server.udp[0];
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let flood = socket([127, 0, 0, 66].into(), address);
            let mut datagram = [9; 109];
            datagram[0] = 1;
            let start = Instant::now();
            let mut sent = 0_u32;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                // 20,000 a second: what stops natpunch-go's server many times over.
                if f64::from(sent) < start.elapsed().as_secs_f64() * 20_000.0 {
                    let _ = flood.send(&datagram);
                    sent += 1;
                } else {
                    std::thread::sleep(Duration::from_micros(200));
                }
            }
        });
        for n in 1..=40 {
            let socket = socket([127, 0, 1, n].into(), address);
            socket
                .set_read_timeout(Some(Duration::from_millis(500)))
                .unwrap();
            let served = (0..3).any(|_| {
                GoClient::register(socket.try_clone().unwrap(), &server.public_key).is_ok()
            });
            if !served {
                stop.store(true, std::sync::atomic::Ordering::Relaxed);
                panic!("client {n} was not served in three tries");
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

/// A Binding request with these attributes.
fn binding(attributes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(attributes.len()).unwrap().to_be_bytes();
    [
        &[0, 1][..],
        &length,
        &stun::MAGIC_COOKIE.to_be_bytes(),
        &[5; 12],
        attributes,
    ]
    .concat()
}

/// CHANGE-REQUEST with these flags, and a PADDING of 60 bytes.
pub(crate) fn change(flags: u8) -> Vec<u8> {
    binding(&[&[0, 3, 0, 4, 0, 0, 0, flags, 0, 0x26, 0, 60][..], &[0; 60]].concat())
}

#[test]
fn the_alternate_port_answers_and_either_port_answers_from_the_other_one_when_asked() {
    for listen in ["0.0.0.0:0", "127.0.0.1:0"] {
        let server = Server::start(&["--open", "--no-relay", "--listen", listen]);
        let ports = [server.udp[0].port(), server.alternate_port.unwrap()];
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        for asked in [0, 1] {
            for (flags, from) in [(0, asked), (2, 1 - asked)] {
                client
                    .send_to(&change(flags), (LOCAL, ports[asked]))
                    .unwrap();
                let mut buffer = [0; 256];
                let (length, source) = client.recv_from(&mut buffer).unwrap();
                assert_eq!(
                    source,
                    SocketAddr::new(LOCAL, ports[from]),
                    "{listen} {asked} {flags}"
                );
                let own = client.local_addr().unwrap();
                assert!(
                    matches!(stun::parse_answer(&buffer[..length]), Some((_, stun::Answer::Mapped(seen))) if seen == own)
                );
            }
            client.send_to(&change(4), (LOCAL, ports[asked])).unwrap();
            let mut buffer = [0; 256];
            let length = client.recv(&mut buffer).unwrap();
            let refused = stun::parse_answer(&buffer[..length]);
            assert!(
                matches!(refused, Some((_, stun::Answer::Refused(420)))),
                "there is one address: {refused:?}"
            );
        }
    }
}

#[test]
fn a_server_with_two_addresses_answers_from_the_other_one_when_asked() {
    let server = Server::start(&[&GO[..], &["--listen", "127.0.0.1:0"]].concat());
    let port = server.udp[0].port();
    drop(server);
    let [first, second] = [1, 2].map(|n| SocketAddr::from(([127, 0, 0, n], port)));
    let server = Server::start(&[
        "--open",
        "--no-relay",
        "--listen",
        &first.to_string(),
        "--listen",
        &second.to_string(),
    ]);
    let alternate = server.alternate_port.unwrap();
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    for (flags, from) in [
        (4, second),
        (6, SocketAddr::new(second.ip(), alternate)),
        (0, first),
    ] {
        client.send_to(&change(flags), first).unwrap();
        let mut buffer = [0; 256];
        let (length, source) = client.recv_from(&mut buffer).unwrap();
        assert_eq!(source, from);
        let other = [
            &[0x80, 0x2c, 0, 8, 0, 1][..],
            &alternate.to_be_bytes(),
            &[127, 0, 0, 2],
        ]
        .concat();
        assert!(
            buffer[..length]
                .windows(other.len())
                .any(|window| window == other),
            "OTHER-ADDRESS is missing"
        );
    }
}

#[test]
fn a_stock_client_is_answered_only_where_that_was_said_and_only_so_often() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("serve.toml");
    let key = directory.path().join("server.key");
    for allowed in [false, true] {
        std::fs::write(
            &file,
            format!(
                "listen = [\"127.0.0.1:0\"]\nkey_file = {key:?}\nstun_unpadded = {allowed}\nalternate_port = false\n\
                 compat = []\n"
            ),
        )
        .unwrap();
        let server = Server::spawn(
            crate::process::serve(&["--config", file.to_str().unwrap()]),
            directory.path(),
        );
        assert_eq!(server.alternate_port, None);
        let client = socket(LOCAL, server.udp[0]);
        for _ in 0..100 {
            client.send(&binding(&[])).unwrap();
        }
        // The last one is padded, and refused in any case.
        client.send(&change(4)).unwrap();
        let mut answers = 0;
        loop {
            let mut buffer = [0; 256];
            let length = client.recv(&mut buffer).unwrap();
            match stun::parse_answer(&buffer[..length]) {
                Some((_, stun::Answer::Mapped(_))) => answers += 1,
                refused => break assert!(matches!(refused, Some((_, stun::Answer::Refused(420))))),
            }
        }
        if allowed {
            assert!((1..100).contains(&answers), "{answers}");
        } else {
            assert_eq!(answers, 0);
        }
    }
}
