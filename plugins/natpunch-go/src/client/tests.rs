use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use rand_chacha::ChaCha20Rng;

use super::*;
use crate::Server;
use crate::server::Config;
use crate::testing::rng;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const UNIX: Duration = Duration::from_secs(1_800_000_000);

fn secret(n: u8) -> SecretKey {
    SecretKey::from_bytes([n; 32])
}

fn key(n: u8) -> PeerKey {
    Identity::new(&secret(n)).unwrap().public()
}

fn client(n: u8, seed: u8) -> Client<ChaCha20Rng> {
    Client::new(&secret(n), key(200), rng(seed), UNIX, Time::ZERO).unwrap()
}

fn server(seed: u8) -> Server<ChaCha20Rng> {
    let open = Config {
        handshakes_per_source: 1000,
        ..Config::new(secret(200))
    };
    Server::new(open, rng(seed)).unwrap()
}

enum Arrival {
    AtServer(u8),
    AtClient(u8),
}

/// A server and its clients on a network in virtual time.
struct Network {
    now: Duration,
    server: Option<Server<ChaCha20Rng>>,
    clients: BTreeMap<u8, Client<ChaCha20Rng>>,
    addresses: BTreeMap<u8, SocketAddr>,
    in_flight: BTreeMap<(Duration, u64), (Arrival, Vec<u8>)>,
    sent: u64,
    rng: ChaCha20Rng,
    delay: Duration,
    jitter: Duration,
    loss: f64,
    found: Vec<(Duration, u8, PeerKey, SocketAddr)>,
    /// When each client sent what type of datagram.
    log: Vec<(Duration, u8, u8)>,
}

impl Network {
    fn new(seed: u8, clients: u8) -> Self {
        Self {
            now: Duration::ZERO,
            server: Some(server(seed)),
            clients: (1..=clients).map(|n| (n, client(n, seed ^ n))).collect(),
            addresses: (1..=clients)
                .map(|n| (n, (Ipv4Addr::new(11, 0, 0, n), 51820).into()))
                .collect(),
            in_flight: BTreeMap::new(),
            sent: 0,
            rng: rng(seed),
            delay: 10 * MS,
            jitter: Duration::ZERO,
            loss: 0.0,
            found: Vec::new(),
            log: Vec::new(),
        }
    }

    /// All want all.
    fn start(&mut self) {
        let everybody: Vec<u8> = self.clients.keys().copied().collect();
        for n in &everybody {
            self.set_peers(*n, &everybody, true);
        }
    }

    fn set_peers(&mut self, n: u8, peers: &[u8], wanted: bool) {
        let now = self.now;
        self.clients.get_mut(&n).unwrap().set_peers(
            peers.iter().map(|peer| (key(*peer), wanted)),
            Time::from_origin(now),
        );
    }

    fn dice(&mut self) -> f64 {
        f64::from(self.rng.next_u32()) / f64::from(u32::MAX)
    }

    fn send(&mut self, to: Arrival, datagram: Vec<u8>) {
        if self.dice() < self.loss {
            return;
        }
        let at = self.now + self.delay + self.jitter.mul_f64(self.dice());
        self.sent += 1;
        self.in_flight.insert((at, self.sent), (to, datagram));
    }

    fn drain(&mut self) {
        let mut out = Vec::new();
        for (n, client) in &mut self.clients {
            while let Some(event) = client.poll_event() {
                if let Event::Found { peer, address } = event {
                    self.found.push((self.now, *n, peer, address));
                }
            }
            while let Some(datagram) = client.poll_transmit() {
                self.log.push((self.now, *n, datagram[0]));
                out.push((*n, datagram));
            }
        }
        for (n, datagram) in out {
            self.send(Arrival::AtServer(n), datagram);
        }
    }

    fn run(&mut self, until: Duration) {
        let mut steps = 0;
        loop {
            self.drain();
            let timer = self
                .clients
                .values()
                .filter_map(Client::poll_timeout)
                .map(Time::since_origin)
                .min();
            let arrival = self.in_flight.first_key_value().map(|((at, _), _)| *at);
            let Some(next) = timer
                .into_iter()
                .chain(arrival)
                .min()
                .filter(|next| *next <= until)
            else {
                break;
            };
            steps += 1;
            assert!(steps < 2_000_000, "busy at {next:?}");
            self.now = self.now.max(next);
            while let Some(entry) = self
                .in_flight
                .first_entry()
                .filter(|entry| entry.key().0 <= self.now)
            {
                match entry.remove() {
                    (Arrival::AtServer(n), datagram) => {
                        let source = self.addresses[&n];
                        let now = self.now;
                        let reply = self.server.as_mut().and_then(|s| {
                            s.handle_datagram(source, &datagram, Time::from_origin(now))
                        });
                        if let Some(reply) = reply {
                            self.send(Arrival::AtClient(n), reply.to_vec());
                        }
                    }
                    (Arrival::AtClient(n), datagram) => {
                        let now = self.now;
                        self.clients
                            .get_mut(&n)
                            .unwrap()
                            .handle_datagram(&datagram, Time::from_origin(now));
                    }
                }
            }
            let now = self.now;
            self.clients
                .values_mut()
                .for_each(|client| client.handle_timeout(Time::from_origin(now)));
        }
        self.now = until;
    }

    fn first_found(&self, n: u8, peer: u8, since: Duration) -> Option<Duration> {
        self.found
            .iter()
            .find(|(at, who, whom, _)| *at >= since && *who == n && *whom == key(peer))
            .map(|f| f.0)
    }
}

#[test]
fn two_nodes_that_start_together_know_each_other_within_five_round_trips() {
    let mut network = Network::new(1, 2);
    network.start();
    network.run(SECOND);
    for (n, peer) in [(1, 2), (2, 1)] {
        let at = network.first_found(n, peer, Duration::ZERO).unwrap();
        assert!(at <= 100 * MS, "{at:?}");
    }
}

#[test]
fn a_peer_that_comes_later_is_found_with_little_added_delay() {
    for late in [1, 5, 60] {
        let mut network = Network::new(1, 2);
        network.set_peers(1, &[2], true);
        network.run(SECOND * late);
        network.set_peers(2, &[1], true);
        network.run(SECOND * (late + 10));
        let at = network.first_found(1, 2, Duration::ZERO).unwrap() - SECOND * late;
        assert!(
            at <= 60 * MS + (SECOND * late / 8).min(2 * SECOND),
            "{late}: {at:?}"
        );
    }
}

/// H3.
#[test]
fn an_answer_is_never_taken_for_another_peers() {
    let mut found = 0;
    for seed in 0..60 {
        let mut network = Network::new(seed, 5);
        network.loss = 0.15;
        network.jitter = 3 * SECOND * u32::from(seed % 3) + 300 * MS;
        network.start();
        network.run(40 * SECOND);
        found += network.found.len();
        for (at, n, peer, address) in &network.found {
            let (owner, _) = network
                .addresses
                .iter()
                .find(|(_, known)| *known == address)
                .unwrap();
            assert_eq!(key(*owner), *peer, "seed {seed}, client {n}, {at:?}");
        }
    }
    assert!(found > 1000, "{found}");
}

#[test]
fn everybody_finds_everybody_through_loss_and_reordering() {
    for seed in 0..40 {
        let mut network = Network::new(seed, 4);
        network.loss = 0.1;
        network.jitter = 60 * MS;
        network.start();
        network.run(20 * SECOND);
        for n in 1..=4 {
            for peer in (1..=4).filter(|peer| *peer != n) {
                assert!(
                    network.first_found(n, peer, Duration::ZERO).is_some(),
                    "seed {seed}: {n} {peer}"
                );
            }
        }
    }
}

#[test]
fn a_round_trip_of_a_second_is_no_hindrance() {
    let mut network = Network::new(3, 2);
    network.delay = 500 * MS;
    network.start();
    network.run(10 * SECOND);
    assert!(network.first_found(1, 2, Duration::ZERO).unwrap() <= 5 * SECOND);
    assert!(network.first_found(2, 1, Duration::ZERO).unwrap() <= 5 * SECOND);
}

#[test]
fn after_a_restart_of_the_server_all_are_registered_again_within_seconds() {
    let mut network = Network::new(1, 3);
    network.start();
    network.run(10 * SECOND);
    network.server = Some(server(99));
    network.run(16 * SECOND);
    for (n, peer) in [(1, 2), (2, 3), (3, 1)] {
        assert!(
            network.first_found(n, peer, 10 * SECOND + MS).is_some(),
            "{n} {peer}"
        );
    }
}

#[test]
fn a_server_that_is_gone_is_tried_with_backoff_and_found_when_it_is_back() {
    let mut network = Network::new(1, 2);
    network.start();
    network.run(10 * SECOND);
    network.server = None;
    network.log.clear();
    network.run(310 * SECOND);
    let tries = network.log.iter().filter(|(_, n, _)| *n == 1).count();
    assert!((60..110).contains(&tries), "{tries}");
    network.server = Some(server(98));
    network.run(320 * SECOND);
    assert!(network.first_found(1, 2, 310 * SECOND).is_some());
}

#[test]
fn a_registration_without_wanted_peers_is_kept_alive_and_rekeyed_every_five_minutes() {
    let mut network = Network::new(1, 2);
    network.start();
    network.run(SECOND);
    network.set_peers(1, &[2], false);
    network.set_peers(2, &[1], false);
    network.log.clear();
    network.run(1801 * SECOND);
    let of_first: Vec<_> = network.log.iter().filter(|(_, n, _)| *n == 1).collect();
    for pair in of_first.windows(2) {
        assert!(pair[1].0 - pair[0].0 <= KEEPALIVE);
    }
    assert_eq!(of_first.iter().filter(|(_, _, kind)| *kind == 1).count(), 6);
    assert!(of_first.len() < 110, "{}", of_first.len());
}

/// H9: the address that is published is that of the last handshake, so a lost path leads to a new
/// one at once.
#[test]
fn a_node_whose_nat_forgot_it_is_found_at_its_new_address() {
    let mut network = Network::new(1, 2);
    network.start();
    network.run(SECOND);
    network.set_peers(1, &[2], false);
    network.set_peers(2, &[1], false);
    network.run(60 * SECOND);
    let moved: SocketAddr = "11.0.0.1:7777".parse().unwrap();
    network.addresses.insert(1, moved);
    network.set_peers(1, &[2], true);
    network.set_peers(2, &[1], true);
    network.run(61 * SECOND);
    assert!(
        network
            .found
            .iter()
            .any(|(_, n, _, address)| *n == 2 && *address == moved)
    );
}

/// H9.
#[test]
fn a_changed_network_leads_to_a_new_handshake_at_once() {
    let mut network = Network::new(1, 2);
    network.start();
    network.run(10 * SECOND);
    network.log.clear();
    let now = network.now;
    network
        .clients
        .get_mut(&1)
        .unwrap()
        .handle_network_change(Time::from_origin(now));
    network.run(10 * SECOND + MS);
    assert_eq!(network.log.first(), Some(&(10 * SECOND, 1, 1)));
}

/// H8.
#[test]
fn a_client_without_peers_is_silent() {
    let mut network = Network::new(1, 1);
    network.set_peers(1, &[], true);
    network
        .clients
        .get_mut(&1)
        .unwrap()
        .set_peers([(PeerKey::from_bytes([0; 32]), true)], Time::ZERO);
    network.set_peers(1, &[1], true);
    network.run(1000 * SECOND);
    assert!(network.log.is_empty());
    assert_eq!(network.clients[&1].poll_timeout(), None);
}

#[test]
fn one_question_is_open_at_a_time() {
    let mut network = Network::new(1, 6);
    network.delay = 100 * MS;
    network.start();
    network.run(5 * SECOND);
    let asked: Vec<_> = network
        .log
        .iter()
        .filter(|(_, n, kind)| *n == 1 && *kind == 3)
        .map(|(at, ..)| *at)
        .collect();
    assert!(asked.windows(2).all(|pair| pair[1] - pair[0] >= 200 * MS) && asked.len() > 20);
}

#[test]
fn timestamps_rise_whatever_the_clock_said_at_the_start() {
    for unix_time in [Duration::ZERO, UNIX, Duration::MAX / 2] {
        let mut client = Client::new(&secret(1), key(200), rng(1), unix_time, Time::ZERO).unwrap();
        let server = Identity::new(&secret(200)).unwrap();
        let mut last = 0;
        client.set_peers([(key(2), true)], Time::ZERO);
        for _ in 0..10 {
            while let Some(datagram) = client.poll_transmit() {
                let mut payload = [0; 64];
                server
                    .respond(&mut rng(9))
                    .unwrap()
                    .read_message(&datagram[5..], &mut payload)
                    .unwrap();
                let timestamp = u64::from_be_bytes(payload[..8].try_into().unwrap());
                assert!(timestamp > last || timestamp == u64::MAX);
                last = timestamp;
            }
            client.handle_timeout(client.poll_timeout().unwrap());
        }
    }
}

/// What must not change by bad input.
fn state(client: &Client<ChaCha20Rng>) -> (Option<Time>, usize, Option<(u32, u64, u32)>) {
    let session = client
        .session
        .as_ref()
        .map(|session| (session.index, session.sent, session.unanswered));
    (client.poll_timeout(), client.tries.len(), session)
}

/// A client that waits for an answer of each kind, and that answer.
fn waiting(kind: u8) -> (Client<ChaCha20Rng>, Vec<u8>) {
    let mut server = server(1);
    let mut client = client(1, 1);
    client.set_peers([(key(2), true)], Time::ZERO);
    loop {
        let datagram = client.poll_transmit().unwrap();
        let source = (Ipv4Addr::new(11, 0, 0, 1), 1).into();
        let reply = server
            .handle_datagram(source, &datagram, Time::ZERO)
            .unwrap()
            .to_vec();
        if reply[0] == kind {
            while client.poll_event().is_some() {}
            return (client, reply);
        }
        client.handle_datagram(&reply, Time::ZERO);
    }
}

/// H1, H2.
#[test]
fn every_length_of_every_type_changes_nothing() {
    for waits_for in [2, 3] {
        let (mut client, _) = waiting(waits_for);
        let before = state(&client);
        for kind in 0..=255 {
            for length in 0..=2048 {
                let mut datagram = vec![0; length];
                if let Some(first) = datagram.first_mut() {
                    *first = kind;
                }
                client.handle_datagram(&datagram, Time::ZERO);
            }
        }
        assert_eq!(state(&client), before);
        assert!(client.poll_transmit().is_none() && client.poll_event().is_none());
    }
}

/// H1, H2.
#[test]
fn every_truncation_and_bit_flip_of_an_answer_changes_nothing_and_the_answer_still_counts() {
    for waits_for in [2, 3] {
        let (mut client, answer) = waiting(waits_for);
        let before = state(&client);
        for length in 0..answer.len() {
            client.handle_datagram(&answer[..length], Time::ZERO);
        }
        client.handle_datagram(&[&answer[..], &[0]].concat(), Time::ZERO);
        // The index is outside the Noise message: a flipped one makes a session that no server
        // knows.
        let unprotected = if waits_for == 2 { 8..40 } else { 0..0 };
        for bit in (0..answer.len() * 8).filter(|bit| !unprotected.contains(bit)) {
            let mut flipped = answer.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            client.handle_datagram(&flipped, Time::ZERO);
            assert_eq!(state(&client), before, "bit {bit}");
        }
        assert!(client.poll_transmit().is_none() && client.poll_event().is_none());
        client.handle_datagram(&answer, Time::ZERO);
        assert_ne!(state(&client), before);
        let after = state(&client);
        client.handle_datagram(&answer, Time::ZERO);
        assert_eq!(state(&client), after, "a copy");
    }
}

/// H7: an address that can't be one is no answer. Other impossible ones are dropped by the plugin
/// host.
#[test]
fn an_address_of_zeros_is_not_reported() {
    for inside in [&[0, 0, 0, 0, 0, 9][..], &[203, 0, 113, 1, 0, 0], &[0; 18]] {
        assert_eq!(wire::decode_address(inside), None);
    }
    assert_eq!(
        wire::decode_address(&[203, 0, 113, 1, 0, 9]),
        Some("203.0.113.1:9".parse().unwrap())
    );
    let mapped = [&[0; 10][..], &[255, 255, 203, 0, 113, 1, 0, 9]].concat();
    assert_eq!(
        wire::decode_address(&mapped),
        Some("203.0.113.1:9".parse().unwrap())
    );
}
