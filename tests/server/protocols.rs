//! All protocols on one port, and what no server of any of them answers.

use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use natpunch_core::stun;
use natpunch_rendezvous::testing::RawHello;
use natpunch_types::{PresharedKey, SecretKey};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;

use crate::go_client::{GoClient, Keys, Session, exchange, init, socket};
use crate::process::Server;
use crate::relay::heard_by_a_relayed_pair;
use crate::rendezvous::Node;
use crate::udp::{LOCAL, change, stun_answer};

const PATIENCE: Duration = Duration::from_secs(20);
const EVERYTHING: [&str; 6] = [
    "--compat",
    "natpunch-go",
    "--compat",
    "nat-hole-punching",
    "--listen",
    "127.0.0.1:0",
];

/// A request of nat-hole-punching.
fn hole_punching(own: u8, wanted: u8) -> Vec<u8> {
    [[own; 32], [wanted; 32]].concat()
}

/// The address in an answer of nat-hole-punching.
fn found(address: SocketAddr) -> Vec<u8> {
    [&[127, 0, 0, 1][..], &address.port().to_be_bytes()].concat()
}

#[test]
fn one_port_serves_a_client_of_each_protocol_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let (secret, file) = (
        SecretKey::from_bytes([5; 32]),
        directory.path().join("admission.key"),
    );
    std::fs::write(&file, secret.expose_base64().as_bytes()).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let own = ["--admission-secret-file", file.to_str().unwrap()];
    let server = Server::start_in(directory.path(), &[&own[..], &EVERYTHING].concat());
    let port = server.udp[0];

    let node = |n, secret| Node::new(n, (LOCAL, 0).into(), port, server.public_key, secret);
    let admission = PresharedKey::from_bytes(*secret.expose());
    let (mut member, mut stranger) = (node(1, Some(admission)), node(2, None));
    let [old, other_old] =
        [(), ()].map(|()| GoClient::register(socket(LOCAL, port), &server.public_key).unwrap());
    let (mut old, mut other_old) = (old, other_old);
    let (oldest, other_oldest) = (socket(LOCAL, port), socket(LOCAL, port));
    // Twice: none of them disturbs another.
    for _ in 0..2 {
        assert!(member.live_until(PATIENCE, Node::is_up), "natpunch's own");
        old.look_up(&other_old.keys.public);
        assert_eq!(
            other_old.look_up(&old.keys.public),
            Some(old.socket.local_addr().unwrap()),
            "natpunch-go"
        );
        exchange(&oldest, &hole_punching(1, 2)).unwrap();
        let answer = exchange(&other_oldest, &hole_punching(2, 1)).unwrap();
        assert_eq!(
            answer,
            found(oldest.local_addr().unwrap()),
            "nat-hole-punching"
        );
        assert_eq!(
            stun_answer(&oldest),
            Some(oldest.local_addr().unwrap()),
            "STUN"
        );
    }
    assert!(
        !stranger.live_until(Duration::from_secs(2), Node::is_up),
        "it does not know the secret"
    );
}

#[test]
fn a_server_of_natpunchs_own_protocol_alone_ignores_the_old_ones_and_other_versions() {
    let server = Server::start(&["--open", "--listen", "127.0.0.1:0"]);
    let client = socket(LOCAL, server.udp[0]);
    let mut rng = ChaCha20Rng::from_seed([3; 32]);
    let hello = RawHello::new(
        &SecretKey::from_bytes([4; 32]),
        &server.public_key,
        None,
        &mut rng,
    )
    .unwrap()
    .datagram;
    let keys = Keys::new();
    let (go, _) = init(
        &keys,
        &server.public_key,
        &1_700_000_000_000_000_000_u64.to_be_bytes(),
    );
    client.send(&go).unwrap();
    client.send(&hole_punching(1, 2)).unwrap();
    // A request in a session of natpunch-go that began at a server which speaks it.
    let former = Server::start(&["--compat", "natpunch-go", "--listen", "127.0.0.1:0"]);
    let (begin, handshake) = init(&keys, &former.public_key, &[0; 8]);
    let answer = exchange(&socket(LOCAL, former.udp[0]), &begin).unwrap();
    client
        .send(&Session::of(&answer, handshake).request(&keys.public, &[2; 32]))
        .unwrap();
    for (at, byte) in [(2, 0), (2, 2), (2, 255), (1, b'N'), (0, 0xd5)] {
        let mut other = hello.clone();
        other[at] = byte;
        client.send(&other).unwrap();
    }
    // Of one sender the datagrams are handled in turn; hellos and handshakes wait for the others.
    assert!(stun_answer(&client).is_some(), "the first answer is STUN's");
    assert_eq!(
        exchange(&client, &hello).unwrap()[..4],
        [0xd4, b'n', 1, 2],
        "and the next is the welcome"
    );
}

/// What a server that speaks everything says to its clients, and from where.
fn everything_said(server: &Server) -> Vec<(SocketAddr, Vec<u8>)> {
    let port = server.udp[0];
    let mut said = heard_by_a_relayed_pair(server);
    let mut ask = |socket: &UdpSocket, datagram: &[u8]| {
        let answer = exchange(socket, datagram).unwrap();
        said.push((port, answer.clone()));
        answer
    };
    let keys = [Keys::new(), Keys::new()];
    let mut clients = keys.each_ref().map(|keys| {
        let (datagram, handshake) = init(
            keys,
            &server.public_key,
            &1_700_000_000_000_000_000_u64.to_be_bytes(),
        );
        let socket = socket(LOCAL, port);
        (Session::of(&ask(&socket, &datagram), handshake), socket)
    });
    for (one, other) in [(0, 1), (1, 0), (0, 1)] {
        let (session, socket) = &mut clients[one];
        ask(
            socket,
            &session.request(&keys[one].public, &keys[other].public),
        );
    }
    let oldest = [socket(LOCAL, port), socket(LOCAL, port)];
    ask(&oldest[0], &hole_punching(1, 2));
    ask(&oldest[1], &hole_punching(2, 1));
    ask(&oldest[0], &stun::request(stun::TransactionId([3; 12])));
    ask(&oldest[0], &change(4));
    said
}

#[test]
fn nothing_that_a_server_says_is_answered_by_any_server() {
    let directory = tempfile::tempdir().unwrap();
    let flags = [&["--open"][..], &EVERYTHING].concat();
    let first = Server::start_in(directory.path(), &flags);
    let said = everything_said(&first);
    let kinds: BTreeSet<u8> = said
        .iter()
        .filter(|(_, payload)| payload.starts_with(b"\xd4n\x01"))
        .map(|(_, payload)| payload[3])
        .collect();
    assert_eq!(
        kinds,
        [2, 6, 8, 10].into(),
        "welcomes, notices, bounds and probe answers"
    );
    drop(first);
    // One with the same key, and another one.
    for server in [
        Server::start_in(directory.path(), &flags),
        Server::start(&flags),
    ] {
        let (main, alternate) = (
            server.udp[0],
            SocketAddr::new(LOCAL, server.alternate_port.unwrap()),
        );
        let sources: BTreeSet<SocketAddr> = said.iter().map(|(source, _)| *source).collect();
        assert_eq!(
            sources.len(),
            3,
            "the port, the alternate one and the relay's: {sources:?}"
        );
        for source in sources {
            // In the place of the first server.
            let socket = UdpSocket::bind(source).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            let relays = (1..=32).map(|n| SocketAddr::new(LOCAL, main.port().wrapping_add(n)));
            for to in relays.chain([alternate, main]) {
                for (_, payload) in &said {
                    socket.send_to(payload, to).unwrap();
                }
                if ![alternate, main].contains(&to) {
                    continue;
                }
                // Of one sender the datagrams are handled in turn.
                socket
                    .send_to(&stun::request(stun::TransactionId([7; 12])), to)
                    .unwrap();
                let mut buffer = [0; 2_048];
                let (length, from) = socket.recv_from(&mut buffer).unwrap();
                let answer = stun::parse_answer(&buffer[..length]);
                assert_eq!(
                    (from, answer.map(|(id, _)| id)),
                    (to, Some(stun::TransactionId([7; 12])))
                );
            }
        }
    }
}
