//! The relay of the real server: two clients in this process push packets of WireGuard's form
//! through it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use natpunch_rendezvous::client::{Client, Config, Event, To};
use natpunch_types::{PeerKey, RelayUse, SecretKey, Time};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;

use crate::process::Server;

const TAG: [u8; 16] = [9; 16];
/// Long, for a busy machine; what is waited for comes in milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// A node: its socket stands for WireGuard's.
struct Node {
    socket: UdpSocket,
    server: SocketAddr,
    client: Client<ChaCha20Rng>,
    start: Instant,
    relay: Option<SocketAddr>,
    /// What came through the relay.
    received: Vec<(SocketAddr, Vec<u8>)>,
    /// What came from the server itself.
    heard: Vec<(SocketAddr, Vec<u8>)>,
}

impl Node {
    fn new(number: u8, local: IpAddr, server: SocketAddr, key: PeerKey) -> Self {
        let socket = UdpSocket::bind((local, 0)).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(5)))
            .unwrap();
        let config = Config {
            identity: SecretKey::from_bytes([number; 32]),
            servers: vec![key],
            admission: None,
        };
        let client = Client::new(
            config,
            server,
            ChaCha20Rng::from_seed([number; 32]),
            Time::ZERO,
        )
        .unwrap();
        Self {
            socket,
            server,
            client,
            start: Instant::now(),
            relay: None,
            received: Vec::new(),
            heard: Vec::new(),
        }
    }

    fn want(&mut self, wants: RelayUse) {
        self.client
            .set_relays([(TAG, wants)], Time::from_origin(self.start.elapsed()));
    }

    fn turn(&mut self) {
        let mut buffer = [0; 2_048];
        self.client
            .handle_timeout(Time::from_origin(self.start.elapsed()));
        while let Some(outgoing) = self.client.poll_transmit() {
            let to = match outgoing.to {
                To::Server => self.server,
                To::Address(address) => address,
            };
            self.socket.send_to(&outgoing.payload, to).unwrap();
        }
        while let Ok((length, source)) = self.socket.recv_from(&mut buffer) {
            let payload = &buffer[..length];
            if natpunch_rendezvous::wire::Kind::of(payload).is_some() {
                self.client.handle_datagram(
                    source,
                    payload,
                    Time::from_origin(self.start.elapsed()),
                );
                self.heard.push((source, payload.to_vec()));
            } else {
                self.received.push((source, payload.to_vec()));
            }
        }
        while let Some(event) = self.client.poll_event() {
            if let Event::Relay { tag, address } = event {
                assert_eq!(tag, TAG);
                self.relay = address;
            }
        }
    }

    fn send(&self, payload: &[u8]) {
        self.socket.send_to(payload, self.relay.unwrap()).unwrap();
    }
}

/// Lets both do their work until this holds.
fn until(nodes: &mut [Node; 2], what: &str, mut holds: impl FnMut(&mut [Node; 2]) -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds(nodes) {
        assert!(Instant::now() < end, "{what}");
        nodes.iter_mut().for_each(Node::turn);
    }
}

fn pair(server: &Server, addresses: [SocketAddr; 2]) -> [Node; 2] {
    let mut number = 0;
    addresses.map(|address| {
        number += 1;
        let local: IpAddr = if address.is_ipv4() {
            Ipv4Addr::LOCALHOST.into()
        } else {
            Ipv6Addr::LOCALHOST.into()
        };
        let mut node = Node::new(number, local, address, server.public_key);
        node.want(RelayUse::Carry);
        node
    })
}

/// Two clients at two processes that share a store have a relay, and reach each other by it. `at`
/// says the port of the process that has it.
pub(crate) fn talk_between(servers: [&Server; 2]) -> SocketAddr {
    let [mut a, b] = servers.map(|server| pair(server, [server.udp[0]; 2]));
    let [_, second] = b;
    a[1] = second;
    let mut nodes = a;
    until(&mut nodes, "both are bound", |nodes| {
        nodes.iter().all(|node| node.relay.is_some())
    });
    assert_eq!(nodes[0].relay, nodes[1].relay, "one port for both");
    talk(&mut nodes, 10);
    nodes[0].relay.unwrap()
}

/// What a server says to two clients until they have a relay and know how their NAT maps, and from
/// where.
pub(crate) fn heard_by_a_relayed_pair(server: &Server) -> Vec<(SocketAddr, Vec<u8>)> {
    let mut nodes = pair(server, [server.udp[0]; 2]);
    let alternate = server.alternate_port.unwrap();
    until(&mut nodes, "both are bound", |nodes| {
        nodes.iter().all(|node| node.relay.is_some())
    });
    until(&mut nodes, "the alternate port answers", |nodes| {
        nodes.iter().all(|node| {
            node.heard
                .iter()
                .any(|(source, _)| source.port() == alternate)
        })
    });
    nodes.into_iter().flat_map(|node| node.heard).collect()
}

fn message(kind: u8, length: usize, words: [u32; 2]) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0];
    words
        .iter()
        .for_each(|word| message.extend(word.to_le_bytes()));
    message.resize(length, 0xab);
    message
}

/// A handshake through the relay, and then so many packets of data each way; each must arrive as it
/// was sent.
fn talk(nodes: &mut [Node; 2], packets: usize) {
    let initiation = message(1, 148, [100, 0]);
    nodes[0].send(&initiation);
    until(nodes, "the initiation arrives", |nodes| {
        !nodes[1].received.is_empty()
    });
    assert_eq!(
        nodes[1].received.pop(),
        Some((nodes[1].relay.unwrap(), initiation))
    );
    let response = message(2, 92, [200, 100]);
    nodes[1].send(&response);
    until(nodes, "the response arrives", |nodes| {
        !nodes[0].received.is_empty()
    });
    assert_eq!(
        nodes[0].received.pop(),
        Some((nodes[0].relay.unwrap(), response))
    );
    for n in 0..packets {
        let length = 32 + n * 4 % 1_400;
        let there = message(4, length, [200, n as u32]);
        let back = message(4, length, [100, n as u32]);
        nodes[0].send(&there);
        nodes[1].send(&back);
        until(nodes, "data arrives", |nodes| {
            nodes.iter().all(|node| !node.received.is_empty())
        });
        assert_eq!(nodes[1].received.pop().unwrap().1, there);
        assert_eq!(nodes[0].received.pop().unwrap().1, back);
    }
}

#[test]
fn two_clients_reach_each_other_through_the_relay_and_a_stranger_reaches_nobody() {
    let server = Server::start(&["--open", "--listen", "127.0.0.1:0"]);
    let mut nodes = pair(&server, [server.udp[0]; 2]);
    until(&mut nodes, "both are bound", |nodes| {
        nodes.iter().all(|node| node.relay.is_some())
    });
    assert_eq!(nodes[0].relay, nodes[1].relay, "one port for both");
    talk(&mut nodes, 30);

    // Neither what is not WireGuard's, nor what comes from elsewhere.
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    stranger
        .send_to(&message(1, 148, [7, 0]), nodes[0].relay.unwrap())
        .unwrap();
    nodes[0].send(b"GET / HTTP/1.1\r\n\r\n");
    nodes[0].send(&message(4, 64, [201, 0]));
    nodes[0].send(&message(1, 148, [101, 0]));
    until(&mut nodes, "the last one arrives", |nodes| {
        !nodes[1].received.is_empty()
    });
    nodes.iter_mut().for_each(Node::turn);
    assert_eq!(
        nodes[1].received,
        [(nodes[1].relay.unwrap(), message(1, 148, [101, 0]))]
    );
    assert_eq!(nodes[0].received, []);

    // Both on standby: the next packet does not pass, probes do.
    nodes
        .iter_mut()
        .for_each(|node| node.want(RelayUse::Standby));
    let mut probe = natpunch_types::PROBE_MAGIC.to_vec();
    probe.resize(natpunch_types::PROBE_LEN, 1);
    nodes[1].received.clear();
    until(&mut nodes, "only probes pass", |nodes| {
        nodes[1].received.clear();
        nodes[0].send(&message(1, 148, [102, 0]));
        nodes[0].send(&probe);
        let end = Instant::now() + PATIENCE;
        while !nodes[1]
            .received
            .iter()
            .any(|(_, payload)| *payload == probe)
            && Instant::now() < end
        {
            nodes.iter_mut().for_each(Node::turn);
        }
        nodes[1].received.len() == 1
    });
}

#[test]
fn a_pair_may_meet_at_the_relay_from_ipv4_and_ipv6() {
    let server = Server::start(&["--open", "--listen", "127.0.0.1:0", "--listen", "[::1]:0"]);
    let mut nodes = pair(&server, [server.udp[0], server.udp[1]]);
    until(&mut nodes, "both are bound", |nodes| {
        nodes.iter().all(|node| node.relay.is_some())
    });
    talk(&mut nodes, 5);
}

#[test]
fn a_server_on_all_addresses_relays_from_the_one_that_was_asked() {
    let server = Server::start(&["--open", "--listen", "0.0.0.0:0"]);
    let asked = SocketAddr::from(([127, 0, 0, 2], server.udp[0].port()));
    let mut nodes = pair(
        &server,
        [asked, SocketAddr::from(([127, 0, 0, 1], asked.port()))],
    );
    until(&mut nodes, "both are bound", |nodes| {
        nodes.iter().all(|node| node.relay.is_some())
    });
    assert_eq!(
        nodes
            .each_ref()
            .map(|node| node.relay.unwrap().ip().to_string()),
        ["127.0.0.2", "127.0.0.1"]
    );
    talk(&mut nodes, 5);
}

#[test]
fn a_pair_is_at_the_relay_again_after_the_server_restarted() {
    let directory = tempfile::tempdir().unwrap();
    let first = Server::start_in(directory.path(), &["--open", "--listen", "127.0.0.1:0"]);
    let address = first.udp[0];
    let mut nodes = pair(&first, [address; 2]);
    until(&mut nodes, "both are bound", |nodes| {
        nodes.iter().all(|node| node.relay.is_some())
    });
    drop(first);
    let _second = Server::start_in(
        directory.path(),
        &["--open", "--listen", &address.to_string()],
    );
    // The network's change spares the wait until the next ping.
    for node in &mut nodes {
        let now = node.start.elapsed();
        node.relay = None;
        node.client.handle_network_change(Time::from_origin(now));
    }
    let start = Instant::now();
    while nodes.iter().any(|node| node.relay.is_none()) {
        assert!(start.elapsed() < 3 * PATIENCE, "both are bound again");
        nodes.iter_mut().for_each(Node::turn);
    }
    talk(&mut nodes, 5);
}

#[test]
fn a_server_without_a_relay_refuses_and_says_what_is_wrong_with_its_ports() {
    let server = Server::start(&["--open", "--no-relay", "--listen", "127.0.0.1:0"]);
    let mut nodes = pair(&server, [server.udp[0]; 2]);
    let end = Instant::now() + Duration::from_millis(500);
    while Instant::now() < end {
        nodes.iter_mut().for_each(Node::turn);
    }
    assert!(nodes.iter().all(|node| node.relay.is_none()));
    let taken = UdpSocket::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let holder = UdpSocket::bind(taken).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let key = directory.path().join("key");
    let port = taken.port().to_string();
    let (code, _, error) = crate::process::fails(crate::process::serve(&[
        "--key-file",
        key.to_str().unwrap(),
        "--open",
        "--listen",
        "127.0.0.1:0",
        "--relay-ports",
        &port,
    ]));
    assert_eq!(code, Some(1));
    assert!(
        error.contains(&taken.to_string()) && error.contains("ss -lunp"),
        "{error}"
    );
    drop(holder);
}
