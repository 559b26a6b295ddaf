//! natpunch's own rendezvous.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::time::Duration;

use natpunch_rendezvous::client::{self, Client, Event, To};
use natpunch_rendezvous::server::{self, Admission, Limits, Server, Via};
use natpunch_rendezvous::testing::{RawHello, RawSession, frames_hold, welcome};
use natpunch_rendezvous::wire::Kind;
use natpunch_types::{PeerKey, RelayUse, SecretKey, Time};
use rand_chacha::ChaCha20Rng;

use super::{Program, address, rng};

const ALTERNATE: u16 = 9001;

fn key(n: u8) -> SecretKey {
    SecretKey::from_bytes([n; 32])
}

fn server_address() -> SocketAddr {
    SocketAddr::from(([198, 51, 100, 1], 9000))
}

fn server_key() -> PeerKey {
    let config = client::Config {
        identity: key(200),
        servers: vec![PeerKey::from_bytes([9; 32])],
        admission: None,
    };
    Client::new(config, server_address(), rng(0), Time::ZERO)
        .expect("a key")
        .identity()
}

fn new_server() -> Server<ChaCha20Rng> {
    let limits = Limits {
        mailboxes: 64,
        mailboxes_per_client: 40,
        bytes: 20_000,
        relays: 8,
        ..Limits::default()
    };
    let config = server::Config {
        keys: vec![key(200)],
        admission: Admission::default(),
        limits,
        alternate_port: Some(ALTERNATE),
    };
    let mut server = Server::new(config, rng(1)).expect("a key");
    server.set_relay_ports(vec![9002, 9003]);
    server
}

/// A registered client of a server that says what the fuzzer wants.
fn registered_client(now: Time) -> (Client<ChaCha20Rng>, RawSession) {
    let config = client::Config {
        identity: key(1),
        servers: vec![server_key()],
        admission: None,
    };
    let mut client = Client::new(config, server_address(), rng(2), now).expect("a key");
    client.set_watches([[1; 16], [2; 16]], now);
    client.set_relays([([3; 16], RelayUse::Carry)], now);
    client.handle_timeout(now);
    let hello = client.poll_transmit().expect("a hello").payload;
    let (_, welcome, mut session) =
        welcome(&key(200), None, &hello, 77, address(1), &mut rng(3)).expect("a good hello");
    client.handle_datagram(server_address(), &welcome, now);
    let accepted = session.say(&[1, 0, 2, 0, 25]);
    client.handle_datagram(server_address(), &accepted, now);
    while client.poll_transmit().is_some() {}
    assert!(
        std::iter::from_fn(|| client.poll_event()).any(|event| matches!(event, Event::Up { .. }))
    );
    (client, session)
}

/// Datagrams of no session: they move neither side and get no answer.
pub(super) fn wire(data: &[u8]) {
    thread_local! {
        static STATE: RefCell<(Server<ChaCha20Rng>, Client<ChaCha20Rng>)> = RefCell::new({
            let now = Time::from_millis(1_000);
            (new_server(), registered_client(now).0)
        });
    }
    let now = Time::from_millis(1_000);
    STATE.with_borrow_mut(|(server, client)| {
        let mut datagrams = vec![data.to_vec()];
        if let Some((kind, rest)) = data.split_first() {
            datagrams.push([&[0xd4, b'n', 1, *kind], rest].concat());
        }
        for datagram in datagrams {
            Kind::of(&datagram);
            server.handle_datagram(Via::default(), address(1), &datagram, now);
            assert!(server.poll_transmit().is_none());
            for port in [9000, ALTERNATE, 9002] {
                client.handle_datagram(
                    SocketAddr::new(server_address().ip(), port),
                    &datagram,
                    now,
                );
            }
            assert!(client.poll_transmit().is_none() && client.poll_event().is_none());
        }
        assert_eq!((server.sessions(), server.mailboxes()), (0, 0));
    });
}

/// What is understood of a text is said and understood again as the same.
pub(super) fn frames(data: &[u8]) {
    assert!(frames_hold(data));
}

/// A client whose server says anything.
pub(super) fn client(data: &[u8]) {
    let mut now = Time::from_millis(1_000);
    let (mut client, mut session) = registered_client(now);
    let mut program = Program::new(data, 200);
    let mut met = Vec::new();
    while let Some(operation) = program.operation() {
        let from = SocketAddr::new(server_address().ip(), 9000 + u16::from(operation >> 4));
        match operation & 0x0f {
            0..=5 => {
                let notice = session.say(program.chunk());
                client.handle_datagram(server_address(), &notice, now);
            }
            6 => {
                let answer = session.say_as(Kind::ProbeAnswer, program.chunk());
                client.handle_datagram(from, &answer, now);
            }
            7 => client.handle_datagram(from, program.chunk(), now),
            8 => {
                let tag = [program.byte() & 3; 16];
                met.push(tag);
                client.meet(tag, tag, now);
            }
            9 => client.set_watches((0..program.byte() & 7).map(|n| [n; 16]), now),
            10 => {
                let blob = program.chunk();
                client.set_records([([program.byte() & 3; 16], blob.into())], now);
            }
            11 => client.set_relays(
                [
                    ([3; 16], RelayUse::Carry),
                    ([program.byte() & 7; 16], RelayUse::Standby),
                ],
                now,
            ),
            12 => client.handle_network_change(now),
            13 => session.counter = session.counter.wrapping_add(1 << (program.byte() & 0x3f)),
            _ => now += program.time(),
        }
        client.handle_timeout(now);
        let mut sent = 0;
        while let Some(outgoing) = client.poll_transmit() {
            sent += 1;
            if let To::Address(to) = outgoing.to {
                assert_eq!(to.ip(), server_address().ip(), "no server aims a client");
            }
            // The server has lost its keys, perhaps: another session begins.
            if Kind::of(&outgoing.payload) == Some(Kind::Hello) && program.byte() & 1 == 0 {
                let seen = welcome(
                    &key(200),
                    None,
                    &outgoing.payload,
                    now.since_origin().as_secs(),
                    address(1),
                    &mut rng(program.steps),
                );
                let (_, welcome, next) = seen.expect("a good hello");
                client.handle_datagram(server_address(), &welcome, now);
                session = next;
            }
        }
        assert!(sent < 300, "{sent} datagrams at once");
        while let Some(event) = client.poll_event() {
            if let Event::Fire { tag, after } = event {
                assert!(met.contains(&tag) && after < Duration::from_secs(5));
            }
        }
        let _ = client.poll_timeout();
    }
}

/// A server with members that say anything, from anywhere.
pub(super) fn server(data: &[u8]) {
    let mut server = new_server();
    let mut now = Time::from_millis(1_000);
    let mut members: Vec<RawSession> = Vec::new();
    for n in 1..=2_u8 {
        let hello = RawHello::new(&key(n), &server_key(), None, &mut rng(n.into())).expect("keys");
        server.handle_datagram(Via::default(), address(n), &hello.datagram, now);
        let welcome = server.poll_transmit().expect("a welcome").payload;
        let (confirm, session) = hello.confirm(&welcome, &[]).expect("a good welcome");
        server.handle_datagram(Via::default(), address(n), &confirm, now);
        assert!(server.poll_transmit().is_some());
        members.push(session);
    }
    let mut program = Program::new(data, 200);
    while let Some(operation) = program.operation() {
        let who = usize::from(operation >> 4 & 1);
        let Some(member) = members.get_mut(who) else {
            return;
        };
        let elsewhere = operation & 0x20 != 0;
        let source = if elsewhere {
            address(99)
        } else {
            address(who as u8 + 1)
        };
        let datagram = match operation & 0x0f {
            0..=8 => member.say(program.chunk()),
            9 => member.say_as(Kind::Probe, program.chunk()),
            10 => {
                member.counter = member.counter.wrapping_add(1 << (program.byte() & 0x3f));
                Vec::new()
            }
            11 => member.say_as(Kind::Confirm, program.chunk()),
            12 => program.chunk().to_vec(),
            _ => {
                now += program.time();
                Vec::new()
            }
        };
        server.handle_datagram(
            Via {
                socket: 0,
                local: None,
            },
            source,
            &datagram,
            now,
        );
        server.handle_timeout(now);
        while let Some(transmit) = server.poll_transmit() {
            assert!([address(1), address(2), source].contains(&transmit.destination));
            // An address that was not proven gets nothing that is longer than what came from there.
            // It may have been proven by a path response, which takes a token that the fuzzer can't
            // open.
            if transmit.destination == address(99) {
                assert!(transmit.payload.len() <= datagram.len());
            }
        }
        while let Some((port, _)) = server.poll_relay_command() {
            assert!(port < 2);
        }
        let _ = server.poll_timeout();
        assert!(server.sessions() <= 2 && server.mailboxes() <= 64);
    }
    server.handle_timeout(now + Duration::from_secs(200));
    for n in 0..20 {
        server.handle_timeout(now + Duration::from_secs(2_000 + n));
    }
    assert_eq!(
        (server.sessions(), server.mailboxes()),
        (0, 0),
        "everything expires"
    );
}
