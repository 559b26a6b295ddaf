use super::*;
use crate::wire::REQUEST_LEN;

fn key(n: u32) -> PeerKey {
    let mut bytes = [7; 32];
    bytes[..4].copy_from_slice(&n.to_be_bytes());
    PeerKey::from_bytes(bytes)
}

fn request(own: PeerKey, wanted: PeerKey) -> [u8; REQUEST_LEN] {
    Request { own, wanted }.encode()
}

fn at(n: u32, port: u16) -> SocketAddr {
    (Ipv4Addr::from(0x0b00_0000 + n), port).into()
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn two_clients_find_each_other() {
    let mut server = Server::new(Config::default());
    assert_eq!(
        server.handle_datagram(
            at(1, 51820),
            &request(key(1), key(2)),
            Time::from_origin(SECOND)
        ),
        Some(vec![])
    );
    let answer = server.handle_datagram(
        at(2, 40000),
        &request(key(2), key(1)),
        Time::from_origin(SECOND),
    );
    assert_eq!(answer, Some(vec![11, 0, 0, 1, 0xca, 0x6c]));
    let answer = server.handle_datagram(
        at(1, 51820),
        &request(key(1), key(2)),
        Time::from_origin(SECOND),
    );
    assert_eq!(answer, Some(vec![11, 0, 0, 2, 0x9c, 0x40]));
}

#[test]
fn only_datagrams_of_64_bytes_are_answered() {
    let mut server = Server::new(Config {
        max_keys_per_source: 256,
        ..Config::default()
    });
    for length in 0..=2048 {
        for first in 0..=255u8 {
            let mut datagram = vec![0x5a; length];
            if let Some(byte) = datagram.first_mut() {
                *byte = first;
            }
            let now = SECOND * (length as u32 * 256 + u32::from(first));
            let reply = server.handle_datagram(at(1, 9), &datagram, Time::from_origin(now));
            assert_eq!(reply.is_some(), length == REQUEST_LEN, "{length} {first}");
        }
    }
    let v6 = "[2001:db8::1]:9".parse().unwrap();
    assert_eq!(
        server.handle_datagram(
            v6,
            &request(key(1), key(2)),
            Time::from_origin(SECOND * 600_000)
        ),
        None
    );
}

#[test]
fn a_key_of_zeros_neither_registers_nor_is_found() {
    let mut server = Server::new(Config::default());
    let zero = PeerKey::from_bytes([0; 32]);
    assert_eq!(
        server.handle_datagram(at(1, 9), &request(zero, key(1)), Time::from_origin(SECOND)),
        None
    );
    assert_eq!(
        server.handle_datagram(at(1, 9), &request(key(1), zero), Time::from_origin(SECOND)),
        Some(vec![])
    );
    assert_eq!(server.registered(), 1);
}

#[test]
fn a_live_registration_is_not_moved_by_another_source() {
    let mut server = Server::new(Config::default());
    server.handle_datagram(
        at(1, 9),
        &request(key(1), key(2)),
        Time::from_origin(SECOND),
    );
    assert_eq!(
        server.handle_datagram(
            at(6, 6),
            &request(key(1), key(2)),
            Time::from_origin(SECOND * 20)
        ),
        None
    );
    let found = server.handle_datagram(
        at(2, 9),
        &request(key(2), key(1)),
        Time::from_origin(SECOND * 20),
    );
    assert_eq!(found, Some(vec![11, 0, 0, 1, 0, 9]));
    // It moved networks: after the hold, from there.
    server.handle_datagram(
        at(3, 3),
        &request(key(1), key(2)),
        Time::from_origin(SECOND * 40),
    );
    let found = server.handle_datagram(
        at(2, 9),
        &request(key(2), key(1)),
        Time::from_origin(SECOND * 41),
    );
    assert_eq!(found, Some(vec![11, 0, 0, 3, 0, 3]));
    assert_eq!(server.sources.len(), 2);
}

#[test]
fn a_hundred_thousand_made_up_keys_evict_nobody() {
    let mut server = Server::new(Config {
        max_keys: 1000,
        ..Config::default()
    });
    server.handle_datagram(
        at(1, 9),
        &request(key(1), key(2)),
        Time::from_origin(SECOND),
    );
    for n in 0..100_000 {
        server.handle_datagram(
            at(1000 + n, 9),
            &request(key(1000 + n), key(1)),
            Time::from_origin(SECOND * 2),
        );
    }
    assert_eq!(server.registered(), 1000);
    assert!(server.sources.len() <= 1000 && server.expiry.len() <= 1000);
    let found = server.handle_datagram(
        at(1005, 9),
        &request(key(1005), key(1)),
        Time::from_origin(SECOND * 3),
    );
    assert_eq!(found, Some(vec![11, 0, 0, 1, 0, 9]));
}

#[test]
fn the_keys_of_one_site_leave_room_for_others() {
    let mut server = Server::new(Config {
        max_keys: 100,
        ..Config::default()
    });
    for n in 0..200 {
        server.handle_datagram(
            at(n, 9),
            &request(key(n), key(1)),
            Time::from_origin(SECOND),
        );
    }
    assert_eq!(server.registered(), 50);
    server.handle_datagram(
        at(256, 9),
        &request(key(1000), key(1)),
        Time::from_origin(SECOND),
    );
    assert_eq!(server.registered(), 51, "no room for another site");
    server.handle_timeout(Time::from_origin(SECOND * 2_000));
    assert_eq!(server.sites.len(), 0);
}

#[test]
fn one_source_holds_few_keys_and_asks_at_a_bounded_rate() {
    let mut server = Server::new(Config::default());
    for n in 0..800 {
        server.handle_datagram(
            at(1, 9),
            &request(key(n), key(1)),
            Time::from_origin(SECOND * n),
        );
    }
    assert_eq!(server.registered(), 64);
    let answered = (0..1000).filter(|_| {
        server
            .handle_datagram(
                at(1, 9),
                &request(key(1), key(2)),
                Time::from_origin(SECOND * 800),
            )
            .is_some()
    });
    assert_eq!(answered.count(), 200);
}

#[test]
fn silence_ends_a_registration_and_nothing_remains() {
    let mut server = Server::new(Config::default());
    for n in 0..100 {
        server.handle_datagram(
            at(n, 9),
            &request(key(n), key(1)),
            Time::from_origin(SECOND * n),
        );
    }
    server.handle_datagram(
        at(0, 9),
        &request(key(0), key(1)),
        Time::from_origin(SECOND * 800),
    );
    server.handle_timeout(Time::from_origin(SECOND * 1000));
    assert_eq!(server.registered(), 1);
    server.handle_timeout(server.poll_timeout().unwrap());
    assert_eq!(
        (
            server.registered(),
            server.sources.len(),
            server.expiry.len()
        ),
        (0, 0, 0)
    );
}

#[test]
fn only_allowed_keys_register() {
    let mut server = Server::new(Config {
        allowed: Some([key(1), key(2)].into()),
        ..Config::default()
    });
    assert_eq!(
        server.handle_datagram(
            at(3, 9),
            &request(key(3), key(1)),
            Time::from_origin(SECOND)
        ),
        None
    );
    assert!(
        server
            .handle_datagram(
                at(1, 9),
                &request(key(1), key(3)),
                Time::from_origin(SECOND)
            )
            .is_some()
    );
    server.set_allowed(Some([key(2)].into()));
    assert_eq!(server.registered(), 0);
}
