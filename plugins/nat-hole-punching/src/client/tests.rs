use super::*;
use crate::Server;
use crate::server::Config;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

fn key(n: u8) -> PeerKey {
    PeerKey::from_bytes([n; 32])
}

fn address(n: u8) -> SocketAddrV4 {
    SocketAddrV4::new([11, 0, 0, n].into(), 51820)
}

/// A server that knows peers 1 to 9, and a client of peer 1 with a network that loses and delays as
/// it is told.
struct Network {
    server: Server,
    client: Client,
    now: Duration,
    in_flight: Vec<(Duration, Vec<u8>)>,
    found: Vec<(Duration, PeerKey, SocketAddrV4)>,
    asked: Vec<(Duration, PeerKey)>,
}

impl Network {
    fn new() -> Self {
        let mut server = Server::new(Config {
            hold: Duration::ZERO,
            ..Config::default()
        });
        for n in 1..10 {
            let request = Request {
                own: key(n),
                wanted: key(0),
            };
            server.handle_datagram(address(n).into(), &request.encode(), Time::ZERO);
        }
        let client = Client::new(key(1), Time::ZERO);
        Self {
            server,
            client,
            now: Duration::ZERO,
            in_flight: vec![],
            found: vec![],
            asked: vec![],
        }
    }

    /// Runs until `until`. `fate` says how long the answer to the nth question takes; `None`: it is
    /// lost.
    fn run(&mut self, until: Duration, mut fate: impl FnMut(usize) -> Option<Duration>) {
        loop {
            while let Some(event) = self.client.poll_event() {
                if let Event::Found { peer, address } = event {
                    self.found.push((self.now, peer, address));
                }
            }
            while let Some(datagram) = self.client.poll_transmit() {
                self.asked
                    .push((self.now, Request::parse(&datagram).unwrap().wanted));
                if let Some(delay) = fate(self.asked.len()) {
                    let answer = self
                        .server
                        .handle_datagram(address(1).into(), &datagram, Time::from_origin(self.now))
                        .unwrap();
                    self.in_flight.push((self.now + delay, answer));
                }
            }
            self.in_flight.sort();
            let arrival = self.in_flight.first().map(|(at, _)| *at);
            let next = arrival
                .into_iter()
                .chain(self.client.poll_timeout().map(Time::since_origin))
                .min();
            let Some(next) = next.filter(|next| *next <= until) else {
                break;
            };
            assert!(self.asked.len() < 10_000, "busy at {next:?}");
            self.now = self.now.max(next);
            if arrival.is_some_and(|at| at <= self.now) {
                let (_, answer) = self.in_flight.remove(0);
                self.client
                    .handle_datagram(&answer, Time::from_origin(self.now));
            } else {
                self.client.handle_timeout(Time::from_origin(self.now));
            }
        }
        self.now = until;
    }
}

#[test]
fn all_peers_are_found_one_round_trip_after_the_other() {
    let mut network = Network::new();
    network
        .client
        .set_peers((2..10).map(|n| (key(n), true)), Time::ZERO);
    network.run(SECOND, |_| Some(10 * MS));
    for n in 2..10u8 {
        let first = network
            .found
            .iter()
            .find(|(_, peer, _)| *peer == key(n))
            .unwrap();
        assert_eq!((first.0, first.2), (10 * MS * u32::from(n - 1), address(n)));
    }
}

/// H3.
#[test]
fn an_answer_that_comes_within_the_quiet_time_is_never_taken_for_another_peers() {
    for seed in 0..200 {
        let mut network = Network::new();
        let mut random = fastrand(seed);
        network
            .client
            .set_peers((2..10).map(|n| (key(n), true)), Time::ZERO);
        network.run(60 * SECOND, |_| {
            let dice = random();
            (!dice.is_multiple_of(5)).then(|| MS * (dice / 5 % 2000))
        });
        assert!(network.found.len() > 10);
        for (at, peer, found) in &network.found {
            assert_eq!(key(found.ip().octets()[3]), *peer, "seed {seed}, {at:?}");
        }
    }
}

/// A few bits that are different each time (an LCG).
fn fastrand(seed: u64) -> impl FnMut() -> u32 {
    let mut state = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u32
    }
}

#[test]
fn a_lost_packet_is_no_end() {
    let mut network = Network::new();
    network.client.set_peers([(key(2), true)], Time::ZERO);
    network.run(SECOND, |n| (n > 2).then_some(10 * MS));
    assert_eq!(network.found.first(), Some(&(760 * MS, key(2), address(2))));
}

#[test]
fn a_silent_server_is_asked_every_two_seconds_and_reported_once() {
    let mut client = Client::new(key(1), Time::ZERO);
    client.set_peers([(key(2), true)], Time::ZERO);
    let (mut sent, mut down) = (0, 0);
    while let Some(at) = client
        .poll_timeout()
        .filter(|at| *at < Time::from_origin(100 * SECOND))
    {
        client.handle_timeout(at);
        sent += std::iter::from_fn(|| client.poll_transmit()).count();
        down += std::iter::from_fn(|| client.poll_event())
            .filter(|event| *event == Event::Down)
            .count();
    }
    assert_eq!(down, 1);
    assert!((50..55).contains(&sent), "{sent}");
}

#[test]
fn a_registration_without_wanted_peers_is_kept_alive() {
    let mut network = Network::new();
    network
        .client
        .set_peers([(key(2), false), (key(3), false)], Time::ZERO);
    network.run(1000 * SECOND, |_| Some(10 * MS));
    assert!(
        network
            .asked
            .windows(2)
            .all(|pair| pair[1].0 - pair[0].0 <= KEEPALIVE)
    );
    assert!(network.asked.len() < 70);
}

/// H8.
#[test]
fn a_client_without_peers_is_silent() {
    let mut client = Client::new(key(1), Time::ZERO);
    client.set_peers([(key(1), true), (key(0), true)], Time::ZERO);
    assert_eq!(client.poll_timeout(), None);
    assert_eq!(client.poll_transmit(), None);
}

/// H1.
#[test]
fn datagrams_that_are_no_answer_or_not_asked_for_change_nothing() {
    let mut client = Client::new(key(1), Time::ZERO);
    client.handle_datagram(&[203, 0, 113, 1, 0, 9], Time::ZERO);
    client.set_peers([(key(2), true)], Time::ZERO);
    client.poll_transmit().unwrap();
    let before = client.poll_timeout();
    for length in (0..=2048).filter(|length| ![0, 6].contains(length)) {
        for first in 0..=255 {
            let mut datagram = vec![0x5a; length];
            datagram[0] = first;
            client.handle_datagram(&datagram, Time::ZERO);
        }
    }
    assert_eq!(
        (
            client.poll_timeout(),
            client.poll_event(),
            client.poll_transmit()
        ),
        (before, None, None)
    );
    client.handle_datagram(&[203, 0, 113, 1, 0, 9], Time::ZERO);
    assert_eq!(client.poll_event(), Some(Event::Up));
    assert!(matches!(client.poll_event(), Some(Event::Found { .. })));
    client.handle_datagram(&[203, 0, 113, 1, 0, 8], Time::ZERO);
    assert_eq!(client.poll_event(), None, "one answer for one question");
}
