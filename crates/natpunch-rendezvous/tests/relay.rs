//! The relay: clients, the server and its ports together, on a network with delay, loss and NATs,
//! in virtual time.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use common::{address, key, public, rng, server_address, server_with};
use natpunch_rendezvous::client::{Client, Config, Event, To};
use natpunch_rendezvous::relay::{self, Own, Port, Verdict};
use natpunch_rendezvous::server::{Admission, Limits, Server, Via};
use natpunch_rendezvous::wire::{Kind, Tag};
use natpunch_types::{PeerKey, RelayUse, SecretKey, Time};
use proptest::prelude::*;
use rand_chacha::ChaCha20Rng;

const SECOND: Duration = Duration::from_secs(1);
const FIRST_PORT: u16 = 9_100;
const TAG: Tag = [5; 16];

/// To whom a datagram is on its way.
#[derive(Clone, Copy)]
enum Whither {
    Server,
    Port(usize),
    Client(u16),
}

struct Net {
    now: Time,
    delay: Duration,
    server: Server<ChaCha20Rng>,
    ports: Vec<Port>,
    clients: BTreeMap<u16, Client<ChaCha20Rng>>,
    places: BTreeMap<u16, SocketAddr>,
    /// Whose NAT uses another port for each destination.
    symmetric: BTreeSet<u16>,
    in_flight: BTreeMap<(Time, u64), (Whither, SocketAddr, Vec<u8>)>,
    sent: u64,
    lose: Box<dyn FnMut(u64) -> bool>,
    events: Vec<(Time, u16, Event)>,
    /// What ports answered: how long what they answer was, and the answer.
    answered: Vec<(usize, usize)>,
}

fn identity(n: u16) -> SecretKey {
    let mut bytes = [7; 32];
    bytes[..2].copy_from_slice(&n.to_be_bytes());
    SecretKey::from_bytes(bytes)
}

impl Net {
    fn new(ports: u16, limits: Limits) -> Self {
        let mut net = Self {
            now: Time::from_millis(1_000_000),
            delay: Duration::from_millis(50),
            server: server_with(key(200), Admission::default(), limits),
            ports: Vec::new(),
            clients: BTreeMap::new(),
            places: BTreeMap::new(),
            symmetric: BTreeSet::new(),
            in_flight: BTreeMap::new(),
            sent: 0,
            lose: Box::new(|_| false),
            events: Vec::new(),
            answered: Vec::new(),
        };
        net.add_ports(ports);
        net
    }

    fn add_ports(&mut self, ports: u16) {
        let numbers: Vec<u16> = (FIRST_PORT..).take(ports.into()).collect();
        let own = Own {
            addresses: [server_address().ip()].into(),
            ports: numbers.iter().copied().collect(),
        };
        self.ports = numbers
            .iter()
            .map(|n| {
                Port::new(
                    relay::Limits::default(),
                    own.clone(),
                    [n.to_be_bytes()[1] ^ self.sent as u8; 32],
                )
            })
            .collect();
        self.server.set_relay_ports(numbers);
    }

    /// The server process ends, and another one starts.
    fn restart_server(&mut self) {
        self.server = server_with(key(200), Admission::default(), Limits::default());
        self.add_ports(self.ports.len() as u16);
    }

    fn join(&mut self, n: u16, relays: &[(Tag, RelayUse)]) {
        let config = Config {
            identity: identity(n),
            servers: vec![public(&key(200))],
            admission: None,
        };
        let mut client = Client::new(config, server_address(), rng(n.into()), self.now).unwrap();
        client.set_relays(relays.iter().copied(), self.now);
        self.clients.insert(n, client);
        self.places.insert(n, address(n));
    }

    fn pair(&mut self, wants: RelayUse) {
        self.join(1, &[(TAG, wants)]);
        self.join(2, &[(TAG, wants)]);
    }

    fn want(&mut self, n: u16, relays: &[(Tag, RelayUse)]) {
        self.clients
            .get_mut(&n)
            .unwrap()
            .set_relays(relays.iter().copied(), self.now);
    }

    /// How the world sees a client that sends to a port of the server.
    fn outside(&self, n: u16, port: u16) -> SocketAddr {
        let mut place = self.places[&n];
        if self.symmetric.contains(&n) && port != server_address().port() {
            place.set_port(20_000 + port);
        }
        place
    }

    fn whose(&self, outside: SocketAddr) -> Option<u16> {
        let mut all = self
            .places
            .iter()
            .filter(|(_, place)| place.ip() == outside.ip());
        all.find(|(n, place)| **place == outside || self.symmetric.contains(n))
            .map(|(n, _)| *n)
    }

    fn send(&mut self, whither: Whither, source: SocketAddr, payload: Vec<u8>) {
        self.sent += 1;
        if !(self.lose)(self.sent) {
            self.in_flight.insert(
                (self.now + self.delay, self.sent),
                (whither, source, payload),
            );
        }
    }

    /// A client's WireGuard says something to a port of the relay.
    fn say(&mut self, n: u16, payload: &[u8]) {
        let to = self.relay(n).unwrap();
        self.send(
            Whither::Port(usize::from(to.port() - FIRST_PORT)),
            self.outside(n, to.port()),
            payload.to_vec(),
        );
    }

    fn collect(&mut self) {
        let now = self.now;
        while let Some((port, command)) = self.server.poll_relay_command() {
            self.ports[port].handle_command(command, now);
        }
        while let Some(transmit) = self.server.poll_transmit() {
            if let Some(n) = self.whose(transmit.destination) {
                self.send(Whither::Client(n), server_address(), transmit.payload);
            }
        }
        for n in self.clients.keys().copied().collect::<Vec<_>>() {
            let client = self.clients.get_mut(&n).unwrap();
            let events: Vec<Event> = std::iter::from_fn(|| client.poll_event()).collect();
            let outgoing: Vec<_> = std::iter::from_fn(|| client.poll_transmit()).collect();
            self.events
                .extend(events.into_iter().map(|event| (now, n, event)));
            for outgoing in outgoing {
                let (whither, port) = match outgoing.to {
                    To::Server => (Whither::Server, server_address().port()),
                    // The alternate port, which has nothing to do with relays.
                    To::Address(to) if to.port() < FIRST_PORT => continue,
                    To::Address(to) => {
                        assert_eq!(to.ip(), server_address().ip());
                        (
                            Whither::Port(usize::from(to.port() - FIRST_PORT)),
                            to.port(),
                        )
                    }
                };
                self.send(whither, self.outside(n, port), outgoing.payload);
            }
        }
    }

    fn arrive(&mut self, whither: Whither, source: SocketAddr, payload: &[u8]) {
        let now = self.now;
        match whither {
            Whither::Server => self
                .server
                .handle_datagram(Via::default(), source, payload, now),
            Whither::Client(n) if Kind::of(payload).is_some() => {
                self.clients
                    .get_mut(&n)
                    .unwrap()
                    .handle_datagram(source, payload, now);
            }
            // WireGuard's.
            Whither::Client(_) => {}
            Whither::Port(index) => {
                let port = SocketAddr::new(server_address().ip(), FIRST_PORT + index as u16);
                match self.ports[index].handle_datagram(Via::default(), source, payload, now) {
                    Verdict::Drop | Verdict::Queued => {}
                    Verdict::Answer(answer) => {
                        self.answered.push((payload.len(), answer.len()));
                        if let Some(n) = self.whose(source) {
                            self.send(Whither::Client(n), port, answer.to_vec());
                        }
                    }
                    Verdict::Forward { to, .. } => {
                        let n = self.whose(to).unwrap();
                        self.send(Whither::Client(n), port, payload.to_vec());
                    }
                }
            }
        }
    }

    fn run_until(&mut self, end: Time) {
        loop {
            for index in 0..self.ports.len() {
                while let Some(event) = self.ports[index].poll_event() {
                    self.server.handle_relay_event(event, self.now);
                }
            }
            self.collect();
            let timeouts = self.clients.values().filter_map(Client::poll_timeout);
            let timeouts = timeouts
                .chain(self.server.poll_timeout())
                .chain(self.ports.iter().filter_map(Port::poll_timeout));
            let next = timeouts
                .chain(self.in_flight.keys().next().map(|(at, _)| *at))
                .min();
            let Some(next) = next.filter(|next| *next <= end) else {
                break;
            };
            self.now = self.now.max(next);
            let now = self.now;
            while let Some(entry) = self
                .in_flight
                .first_entry()
                .filter(|entry| entry.key().0 <= now)
            {
                let (whither, source, payload) = entry.remove();
                self.arrive(whither, source, &payload);
            }
            self.server.handle_timeout(now);
            self.clients
                .values_mut()
                .for_each(|client| client.handle_timeout(now));
            self.ports
                .iter_mut()
                .for_each(|port| port.handle_timeout(now));
        }
        self.now = end;
    }

    fn run(&mut self, time: Duration) {
        self.run_until(self.now + time);
    }

    /// Where a client's relay is, by what it said last.
    fn relay(&self, n: u16) -> Option<SocketAddr> {
        self.relay_of(n, TAG)
    }

    fn relay_of(&self, n: u16, tag: Tag) -> Option<SocketAddr> {
        let mut events = self.events.iter().rev().filter(|(_, of, _)| *of == n);
        events.find_map(|(.., event)| match event {
            Event::Relay {
                tag: found,
                address,
            } if *found == tag => Some(*address),
            _ => None,
        })?
    }

    /// When a client said that it is registered, first.
    fn up(&self, n: u16) -> Time {
        let up = |event: &Event| matches!(event, Event::Up { .. });
        self.events
            .iter()
            .find(|(_, of, event)| *of == n && up(event))
            .map(|(at, ..)| *at)
            .unwrap()
    }

    /// When a client said where its relay is: with its bind, when both sides are bound, and so on.
    fn told(&self, n: u16) -> Vec<Time> {
        let told = |event: &Event| {
            matches!(
                event,
                Event::Relay {
                    address: Some(_),
                    ..
                }
            )
        };
        self.events
            .iter()
            .filter(|(_, of, event)| *of == n && told(event))
            .map(|(at, ..)| *at)
            .collect()
    }

    fn forwarded(&self) -> u64 {
        self.ports
            .iter()
            .map(|port| port.counters().forwarded)
            .sum()
    }
}

fn initiation(n: u8) -> Vec<u8> {
    let mut message = vec![1, 0, 0, 0, n];
    message.resize(148, n);
    message
}

/// Links of 50 ms: "up" is that the server has accepted the later of the two.
#[test]
fn a_pair_has_its_relay_one_round_trip_after_the_later_one_is_up_and_two_behind_a_symmetric_nat() {
    for (symmetric, round_trips) in [(vec![], 1), (vec![1], 2), (vec![1, 2], 2)] {
        let mut net = Net::new(4, Limits::default());
        net.symmetric = symmetric.into_iter().collect();
        net.join(1, &[(TAG, RelayUse::Carry)]);
        net.run(SECOND * 5);
        net.join(2, &[(TAG, RelayUse::Carry)]);
        net.run(SECOND * 5);
        let up = net.up(2);
        assert_eq!([1, 2].map(|n| net.told(n)[0]), [up; 2], "with the binds");
        let challenged = net.symmetric.clone();
        let there = [1, 2]
            .map(|n| net.told(n)[if challenged.contains(&n) { 2 } else { 1 }])
            .into_iter()
            .max()
            .unwrap();
        println!(
            "{:?}: the relay is there {:?} after the later one is up",
            net.symmetric,
            there.since(up)
        );
        assert_eq!(there.since(up), 2 * net.delay * round_trips);
        assert!(there.since(up) <= 2 * net.delay + Duration::from_millis(200));
        assert_eq!(net.relay(1), net.relay(2));
        net.say(1, &initiation(1));
        net.run(SECOND);
        assert_eq!(net.forwarded(), 1);
    }
}

#[test]
fn a_third_client_with_the_tag_is_refused_and_disturbs_nobody() {
    let mut net = Net::new(4, Limits::default());
    net.pair(RelayUse::Carry);
    net.run(SECOND);
    let relay = net.relay(1);
    assert!(relay.is_some());
    net.join(3, &[(TAG, RelayUse::Carry)]);
    net.run(SECOND * 200);
    assert_eq!(net.relay(3), None);
    assert_eq!((net.relay(1), net.relay(2)), (relay, relay));
    assert_eq!(net.server.relays(), (1, 1));
    // Nor can it take the relay away.
    net.want(3, &[(TAG, RelayUse::Standby)]);
    net.run(SECOND);
    net.want(3, &[]);
    net.run(SECOND);
    assert_eq!((net.relay(1), net.relay(2)), (relay, relay));
}

#[test]
fn one_who_asks_alone_gets_nothing_and_takes_no_port() {
    let mut net = Net::new(1, Limits::default());
    net.join(1, &[(TAG, RelayUse::Carry)]);
    net.run(SECOND * 300);
    assert_eq!(net.server.relays(), (1, 0));
    assert_eq!(net.ports[0].allocations(), 0);
    net.clients.clear();
    net.run(SECOND * 300);
    assert_eq!(
        net.server.relays(),
        (0, 0),
        "a wish that nobody repeats is forgotten"
    );
}

#[test]
fn a_client_never_has_two_peers_at_one_port() {
    let mut net = Net::new(4, Limits::default());
    let tag = |a: u16, b: u16| [a.min(b) as u8 * 16 + a.max(b) as u8; 16];
    for n in 1..=4 {
        let others: Vec<_> = (1..=4)
            .filter(|m| *m != n)
            .map(|m| (tag(n, m), RelayUse::Standby))
            .collect();
        net.join(n, &others);
    }
    net.run(SECOND * 5);
    for n in 1..=4 {
        let relays: Vec<_> = (1..=4)
            .filter(|m| *m != n)
            .map(|m| net.relay_of(n, tag(n, m)).unwrap())
            .collect();
        assert_eq!(
            relays.iter().collect::<BTreeSet<_>>().len(),
            3,
            "{n}: {relays:?}"
        );
    }
    assert_eq!(net.server.relays(), (6, 6));
    // A fifth one's fifth peer finds no port; nobody loses one for it.
    net.join(
        5,
        &[(tag(1, 5), RelayUse::Carry), (tag(2, 5), RelayUse::Carry)],
    );
    net.want(
        1,
        &(2..=5)
            .map(|m| (tag(1, m), RelayUse::Standby))
            .collect::<Vec<_>>(),
    );
    net.run(SECOND * 2);
    assert!(net.relay_of(5, tag(1, 5)).is_some());
    assert_eq!(
        net.relay_of(5, tag(2, 5)),
        None,
        "only one of the two has asked"
    );
    let mut crowded = Net::new(2, Limits::default());
    for n in 2..=4 {
        crowded.join(n, &[(tag(1, n), RelayUse::Carry)]);
    }
    crowded.join(
        1,
        &[
            (tag(1, 2), RelayUse::Carry),
            (tag(1, 3), RelayUse::Carry),
            (tag(1, 4), RelayUse::Carry),
        ],
    );
    crowded.run(SECOND * 5);
    assert_eq!(crowded.server.relays(), (3, 2));
}

#[test]
fn quotas_of_a_client_a_network_and_in_total_refuse_the_new_and_keep_the_old() {
    let tags: Vec<(Tag, RelayUse)> = (0..10).map(|n| ([n; 16], RelayUse::Carry)).collect();
    for limits in [
        Limits {
            relays_per_client: 3,
            ..Limits::default()
        },
        Limits {
            relays_per_network: 3,
            ..Limits::default()
        },
        Limits {
            relays: 3,
            ..Limits::default()
        },
    ] {
        let mut net = Net::new(16, limits);
        net.join(1, &tags);
        net.run(SECOND * 2);
        assert_eq!(net.server.relays().0, 3, "{limits:?}");
        net.join(2, &tags);
        net.run(SECOND * 2);
        assert_eq!(net.server.relays(), (3, 3), "{limits:?}");
        net.want(1, &[]);
        net.run(SECOND * 2);
        net.want(2, &[]);
        net.run(SECOND * 2);
        assert_eq!(net.server.relays(), (0, 0), "all is given back");
        assert!(net.ports.iter().all(|port| port.allocations() == 0));
    }
}

#[test]
fn wireguard_is_carried_while_one_side_says_so_and_what_is_said_last_counts() {
    let mut net = Net::new(4, Limits::default());
    net.pair(RelayUse::Standby);
    net.run(SECOND * 2);
    let passes = |net: &mut Net| {
        let before = net.forwarded();
        net.say(1, &initiation(9));
        net.run(SECOND);
        net.forwarded() > before
    };
    assert!(!passes(&mut net));
    net.want(2, &[(TAG, RelayUse::Carry)]);
    net.run(SECOND);
    assert!(passes(&mut net), "one of them is enough");
    net.want(2, &[(TAG, RelayUse::Standby)]);
    net.run(SECOND);
    assert!(!passes(&mut net));
}

#[test]
fn a_word_that_is_lost_is_repeated_until_it_is_heard() {
    let mut net = Net::new(4, Limits::default());
    net.pair(RelayUse::Standby);
    net.run(SECOND * 2);
    let until = net.sent + 6;
    net.lose = Box::new(move |n| n <= until);
    net.want(1, &[(TAG, RelayUse::Carry)]);
    net.run(SECOND * 8);
    net.say(1, &initiation(9));
    net.run(SECOND);
    assert_eq!(net.forwarded(), 1);
}

#[test]
fn a_challenge_is_answered_at_once_also_when_binds_before_it_were_lost() {
    let mut net = Net::new(4, Limits::default());
    net.symmetric = [1, 2].into();
    net.pair(RelayUse::Carry);
    while net.relay(1).is_none() || net.relay(2).is_none() {
        net.run(Duration::from_millis(10));
    }
    // The first three binds of both are lost, 1.2 s long.
    net.lose = Box::new(|_| true);
    net.in_flight.clear();
    net.run(Duration::from_millis(2_000));
    net.lose = Box::new(|_| false);
    // The fourth leaves 2.8 s after the first, and is challenged.
    net.run(Duration::from_millis(800 + 4 * 50 + 100));
    net.say(1, &initiation(1));
    net.run(SECOND);
    assert_eq!(net.forwarded(), 1);
}

#[test]
fn who_wants_no_relay_any_more_ends_it_for_both() {
    let mut net = Net::new(4, Limits::default());
    net.pair(RelayUse::Carry);
    net.run(SECOND);
    assert!(net.relay(2).is_some());
    net.want(1, &[]);
    assert_eq!(
        net.clients.get_mut(&1).unwrap().poll_event(),
        Some(Event::Relay {
            tag: TAG,
            address: None
        })
    );
    net.run(SECOND);
    assert_eq!(net.relay(2), None);
    assert_eq!(net.server.relays(), (1, 0));
    net.want(1, &[(TAG, RelayUse::Carry)]);
    net.run(SECOND * 8);
    assert!(
        net.relay(1).is_some() && net.relay(2).is_some(),
        "and again"
    );
}

#[test]
fn a_binding_is_kept_for_hours_and_said_again() {
    let mut net = Net::new(4, Limits::default());
    net.pair(RelayUse::Standby);
    net.run(SECOND * 7_200);
    let relays: Vec<_> = net
        .events
        .iter()
        .filter(|(.., event)| matches!(event, Event::Relay { .. }))
        .collect();
    assert!(
        relays.iter().all(|(.., event)| matches!(
            event,
            Event::Relay {
                address: Some(_),
                ..
            }
        )),
        "{relays:?}"
    );
    let of_one: Vec<Time> = relays
        .iter()
        .filter(|(_, n, _)| *n == 1)
        .map(|(at, ..)| *at)
        .collect();
    let longest = of_one
        .windows(2)
        .map(|pair| pair[1].since(pair[0]))
        .max()
        .unwrap();
    assert!(
        longest <= SECOND * 26,
        "{longest:?}: a NAT's mapping of 30 s would be lost"
    );
    assert!(
        net.answered
            .iter()
            .all(|(question, answer)| answer <= question)
    );
}

#[test]
fn a_client_that_moves_keeps_its_relay() {
    let mut net = Net::new(4, Limits::default());
    net.pair(RelayUse::Carry);
    net.run(SECOND * 2);
    let relay = net.relay(1);
    net.places.insert(1, "198.51.100.200:4000".parse().unwrap());
    let now = net.now;
    net.clients.get_mut(&1).unwrap().handle_network_change(now);
    net.run(Duration::from_millis(4 * 50 + 1));
    net.say(2, &initiation(1));
    net.run(SECOND);
    assert_eq!(
        net.forwarded(),
        1,
        "bound at the new address within two round trips"
    );
    assert_eq!((net.relay(1), net.relay(2)), (relay, relay));
}

#[test]
fn a_client_that_is_elsewhere_without_knowing_it_is_bound_there_as_soon_as_its_node_probes_the_peer()
 {
    let mut net = Net::new(4, Limits::default());
    net.pair(RelayUse::Carry);
    net.run(SECOND * 2);
    net.places.insert(1, "9.9.9.9:4000".parse().unwrap());
    net.say(1, &initiation(1));
    net.run(Duration::from_millis(500));
    assert_eq!(net.forwarded(), 0, "nobody is bound there");
    let now = net.now;
    net.clients.get_mut(&1).unwrap().meet(TAG, [6; 16], now);
    net.run(Duration::from_millis(4 * 50 + 1));
    net.say(1, &initiation(1));
    net.run(Duration::from_millis(100));
    assert_eq!(net.forwarded(), 1, "bound there within two round trips");
}

#[test]
fn a_pair_is_at_the_relay_again_within_a_minute_of_the_servers_restart() {
    let mut net = Net::new(4, Limits::default());
    net.pair(RelayUse::Carry);
    net.run(SECOND * 10);
    net.restart_server();
    net.events.clear();
    net.run(SECOND * 60);
    assert!(net.relay(1).is_some() && net.relay(1) == net.relay(2));
    net.say(1, &initiation(1));
    net.run(SECOND);
    assert_eq!(net.forwarded(), 1);
}

#[test]
fn the_relay_of_one_who_is_taken_off_the_list_ends_at_once() {
    let mut net = Net::new(4, Limits::default());
    net.pair(RelayUse::Carry);
    net.run(SECOND * 2);
    let others: BTreeSet<PeerKey> = [net.clients[&2].identity()].into();
    net.server.reconfigure(
        Admission {
            secrets: vec![],
            allowed: Some(others),
        },
        Limits::default(),
    );
    net.run(Duration::from_millis(1));
    assert!(net.ports.iter().all(|port| port.allocations() == 0));
    assert_eq!(net.server.relays(), (1, 0));
    net.run(SECOND * 60);
    assert_eq!((net.relay(1), net.relay(2)), (None, None), "both know");
}

#[test]
fn the_data_path_outlives_the_clients_as_long_as_it_is_used() {
    let mut net = Net::new(4, Limits::default());
    net.pair(RelayUse::Carry);
    net.run(SECOND * 2);
    let sources = [1, 2].map(|n| (n, net.relay(n).unwrap(), net.outside(n, 0)));
    let agents = std::mem::take(&mut net.clients);
    for _ in 0..120 {
        for (_, to, source) in sources {
            net.send(
                Whither::Port(usize::from(to.port() - FIRST_PORT)),
                source,
                initiation(3),
            );
        }
        // Nobody is there to hear it; the NATs and WireGuard are.
        net.in_flight
            .retain(|_, (whither, ..)| !matches!(whither, Whither::Client(_)));
        let end = net.now + SECOND * 25;
        net.lose = Box::new(|_| false);
        net.run_until(end);
    }
    assert_eq!(net.forwarded(), 240);
    net.clients = agents;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// A third of all datagrams is lost, both ways, for good: the relay is there within a minute,
    /// and is said again.
    #[test]
    fn loss_delays_the_relay_but_does_not_prevent_it(seed in any::<u64>()) {
        let mut net = Net::new(4, Limits::default());
        let mut random = rng(seed);
        net.lose = Box::new(move |_| rand_core::RngCore::next_u32(&mut random) % 10 < 3);
        net.pair(RelayUse::Carry);
        net.run(SECOND * 90);
        let both_bound = |n: u16| net.told(n).len() > 2;
        prop_assert!(both_bound(1) && both_bound(2));
    }
}
