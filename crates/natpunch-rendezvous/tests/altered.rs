//! Every message of the protocol, cut, extended or with one bit turned, at clients and servers in
//! every state: nothing comes of it. Each net has a twin of the same randomness that is left in
//! peace; afterwards both say the same bytes, send them at the same time, and tell the same.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use common::{Net, Sent, address, alternate_address, blob, relay_address, server_address};
use natpunch_rendezvous::relay::Verdict;
use natpunch_rendezvous::server::{Admission, Limits, Via};
use natpunch_rendezvous::wire::{HELLO_LEN, Kind};
use natpunch_types::RelayUse;

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);
const TAG: [u8; 16] = [5; 16];
/// How long a net goes on after what was done to it: pings, refreshed wishes and new keys are in
/// it.
const AFTERWARDS: Duration = Duration::from_secs(130);
/// The last 16 bytes of a hello, which are not looked at unless a cookie was asked for.
const MAC2: std::ops::Range<usize> = HELLO_LEN - 16..HELLO_LEN;

/// What is one sample: kind, length, and whether it was sent before the state that is tested.
type Sample = (u8, usize, bool);

/// A datagram of each kind and length, of what was sent last and of what will be sent next.
fn samples(wire: &[Sent], sent_before: usize) -> Vec<Sent> {
    let mut samples: BTreeMap<Sample, Sent> = BTreeMap::new();
    for (n, sent) in wire.iter().enumerate() {
        let (.., payload) = sent;
        let sample = (payload[3], payload.len(), n < sent_before);
        if n < sent_before {
            samples.insert(sample, sent.clone());
        } else {
            samples.entry(sample).or_insert_with(|| sent.clone());
        }
    }
    samples.into_values().collect()
}

/// Each is wrong in one way. Only bits of mac2 are left out.
fn wrong(payload: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let is_hello = Kind::of(payload) == Some(Kind::Hello);
    let cut = (0..payload.len()).map(|length| payload[..length].to_vec());
    let turned = (0..payload.len() * 8)
        .filter(move |bit| !(is_hello && MAC2.contains(&(bit / 8))))
        .map(|bit| {
            let mut payload = payload.to_vec();
            payload[bit / 8] ^= 1 << (bit % 8);
            payload
        });
    cut.chain([[payload, &[0]].concat()]).chain(turned)
}

fn counts(net: &Net) -> (usize, usize, (usize, usize), Vec<usize>, [u64; 6]) {
    let counters = net.server.counters();
    let done = [
        counters.welcomed,
        counters.registered,
        counters.roamed,
        counters.stored,
        counters.pushed,
        counters.probed,
    ];
    let allocations = net.ports.iter().map(|port| port.allocations()).collect();
    (
        net.server.sessions(),
        net.server.mailboxes(),
        net.server.relays(),
        allocations,
        done,
    )
}

/// Gives this to every socket of the server, as from its sender, a stranger and the server itself,
/// and to every client, as from every socket of the server and from a stranger.
fn nobody_minds(net: &mut Net, at: SocketAddr, payload: &[u8]) {
    let now = net.now;
    for source in [at, address(500), server_address()] {
        for socket in 0..2 {
            net.server.handle_datagram(
                Via {
                    socket,
                    local: None,
                },
                source,
                payload,
                now,
            );
            assert_eq!(
                net.server.poll_transmit(),
                None,
                "to {source}: {payload:02x?}"
            );
            assert_eq!(net.server.poll_relay_command(), None, "{payload:02x?}");
        }
        for (index, port) in net.ports.iter_mut().enumerate() {
            let verdict = port.handle_datagram(
                Via {
                    socket: 2 + index,
                    local: None,
                },
                source,
                payload,
                now,
            );
            assert_eq!(
                (verdict, port.poll_event()),
                (Verdict::Drop, None),
                "{source}: {payload:02x?}"
            );
        }
    }
    let relays: Vec<SocketAddr> = (0..net.ports.len()).map(relay_address).collect();
    for client in net.clients.values_mut() {
        for source in [server_address(), alternate_address(), address(500)]
            .iter()
            .chain(&relays)
        {
            client.handle_datagram(*source, payload, now);
            assert_eq!(
                (client.poll_event(), client.poll_transmit()),
                (None, None),
                "{source}: {payload:02x?}"
            );
        }
    }
}

/// Brings a net into the same state twice. `kinds` have to be among what was sent before and will
/// be sent after it.
fn holds(state: impl Fn() -> Net, kinds: &[Kind]) {
    let again = || {
        common::same_randomness_again();
        state()
    };
    let mut twin = again();
    let sent_before = twin.wire.len();
    twin.run(AFTERWARDS);

    let mut net = again();
    assert_eq!(net.wire.len(), sent_before);
    let samples = samples(&twin.wire, sent_before);
    for kind in kinds {
        assert!(
            samples
                .iter()
                .any(|(.., payload)| Kind::of(payload) == Some(*kind)),
            "no {kind:?}"
        );
    }
    let before = counts(&net);
    for (_, at, payload) in &samples {
        wrong(payload).for_each(|payload| nobody_minds(&mut net, *at, &payload));
    }
    assert_eq!(counts(&net), before);
    net.run(AFTERWARDS);
    assert!(net.wire == twin.wire, "something else was said afterwards");
    assert_eq!((&net.events, &net.times), (&twin.events, &twin.times));
    assert_eq!(counts(&net), counts(&twin));
}

/// Client 1 keeps records for client 2, and both want a relay; nothing was sent yet.
fn pair_with(limits: Limits) -> Net {
    let mut net = Net::new(Admission::default(), limits);
    net.add_relay(2);
    let now = net.now;
    for n in [1, 2] {
        let client = net.join(n, None);
        client.set_records([([n as u8; 16], blob(n as u8))], now);
        client.set_watches([[3 - n as u8; 16]], now);
        client.set_relays([(TAG, RelayUse::Carry)], now);
    }
    net
}

fn pair() -> Net {
    pair_with(Limits::default())
}

/// And this time later; a datagram takes 10 ms.
fn pair_after(time: Duration) -> Net {
    let mut net = pair();
    net.run(time);
    net
}

const HANDSHAKE: [Kind; 4] = [Kind::Hello, Kind::Welcome, Kind::Confirm, Kind::Notice];
const SESSION: [Kind; 4] = [Kind::Request, Kind::Notice, Kind::Bind, Kind::Bound];

#[test]
fn at_a_fresh_server_and_clients_that_say_hello() {
    holds(
        || pair_after(5 * MS),
        &[&HANDSHAKE[..], &SESSION, &[Kind::Probe, Kind::ProbeAnswer]].concat(),
    );
}

#[test]
fn at_clients_that_have_the_welcome_on_its_way_or_confirm() {
    for time in [15, 25, 35] {
        holds(|| pair_after(MS * time), &HANDSHAKE);
    }
}

#[test]
fn at_clients_that_wait_for_the_next_attempt() {
    let waiting = || {
        let mut net = pair();
        net.lose = Box::new(|_| true);
        net.run(MS * 4_750);
        net.lose = Box::new(|_| false);
        net
    };
    assert_eq!(
        waiting()
            .wire
            .iter()
            // Beside its hellos it asks by STUN whether UDP gets there.
            .filter(|(by, _, payload)| *by == Some(1) && Kind::of(payload).is_some())
            .count(),
        4,
        "it gave up"
    );
    holds(waiting, &HANDSHAKE);
}

#[test]
fn at_a_loaded_server_and_clients_that_have_or_await_a_cookie() {
    // One hello in a second needs none.
    for time in [15, 25, 35] {
        let loaded = || {
            let mut net = pair_with(Limits {
                hellos_per_second: 8,
                ..Limits::default()
            });
            net.run(MS * time);
            net
        };
        holds(loaded, &[&HANDSHAKE[..], &[Kind::Cookie]].concat());
    }
}

#[test]
fn at_registered_clients_while_their_relay_is_offered_bound_by_one_and_bound_by_both() {
    for time in [45, 55, 65, 75, 2_000] {
        holds(
            || pair_after(MS * time),
            &[&HANDSHAKE[..], &SESSION].concat(),
        );
    }
    assert_eq!(pair_after(SECOND * 2).server.relays(), (1, 1));
}

#[test]
fn at_registered_clients_with_the_session_before_still_open() {
    let renewed = |more| {
        move || {
            let mut net = pair_after(SECOND * 5);
            while net.server.counters().registered == 2 {
                net.run(MS);
            }
            net.run(more);
            net
        }
    };
    // The confirm has come to the server, and its answer to the client.
    holds(renewed(MS), &[&HANDSHAKE[..], &SESSION].concat());
    holds(renewed(SECOND), &[&HANDSHAKE[..], &SESSION].concat());
}

#[test]
fn at_a_server_with_a_challenge_on_its_way_to_a_client_that_moved() {
    for time in [5, 15, 25, 35] {
        let moved = || {
            let mut net = pair_after(SECOND * 5);
            net.places.insert(1, address(99));
            let now = net.now;
            net.clients.get_mut(&1).unwrap().handle_network_change(now);
            net.run(MS * time);
            net
        };
        let mut net = moved();
        net.run(SECOND);
        assert_eq!(net.server.counters().roamed, 1);
        holds(moved, &SESSION);
    }
}

#[test]
fn at_a_full_server_and_a_client_that_is_refused() {
    for time in [5, 15, 25, 35, 1_000] {
        let full = || {
            let limits = Limits {
                sessions: 2,
                mailboxes: 3,
                bytes: 160,
                relays: 1,
                ..Limits::default()
            };
            let mut net = pair_with(limits);
            net.run(SECOND);
            let now = net.now;
            let client = net.join(3, None);
            client.set_records([([3; 16], blob(3))], now);
            client.set_relays([([6; 16], RelayUse::Carry)], now);
            net.run(MS * time);
            net
        };
        let mut net = full();
        net.run(SECOND);
        assert!(!net.is_up(3) && net.server.counters().full > 0);
        holds(full, &[&HANDSHAKE[..], &SESSION].concat());
    }
}

#[test]
fn at_a_restarted_server_that_knows_nobody() {
    for time in [MS, SECOND * 30] {
        let restarted = || {
            let mut net = pair_after(SECOND * 5);
            let fresh = Net::open();
            net.server = fresh.server;
            net.add_relay(2);
            net.run(time);
            net
        };
        holds(restarted, &HANDSHAKE);
    }
}

/// Mac2 is no part of what is authenticated unless a cookie is asked for, as in WireGuard: the
/// hello is answered, by a welcome or by a cookie, and forgotten.
#[test]
fn a_hello_whose_mac2_is_wrong_is_one_without_a_cookie() {
    for (hellos_per_second, kind) in [(20_000, Kind::Welcome), (8, Kind::Cookie)] {
        let loaded = || {
            let mut net = pair_with(Limits {
                hellos_per_second,
                ..Limits::default()
            });
            net.run(MS * 25);
            net
        };
        let mut net = loaded();
        let mut hellos = net
            .wire
            .iter()
            .filter(|(.., payload)| Kind::of(payload) == Some(Kind::Hello));
        let (_, at, hello) = hellos.next_back().cloned().unwrap();
        assert_eq!(
            hello[MAC2].iter().any(|byte| *byte != 0),
            kind == Kind::Cookie,
            "it has a cookie"
        );
        let (sessions, mailboxes, relays, allocations, _) = counts(&net);
        for bit in MAC2.start * 8..MAC2.end * 8 {
            let mut altered = hello.clone();
            altered[bit / 8] ^= 1 << (bit % 8);
            for source in [at, address(500)] {
                let answers = net.answers(source, &altered);
                assert_eq!(answers.len(), 1);
                assert_eq!(
                    (answers[0].0, Kind::of(&answers[0].1)),
                    (source, Some(kind))
                );
                assert!(answers[0].1.len() <= altered.len());
            }
        }
        let after = counts(&net);
        assert_eq!(
            (after.0, after.1, after.2, after.3),
            (sessions, mailboxes, relays, allocations)
        );
        net.run(SECOND * 10);
        assert!(
            net.is_up(1)
                && net.is_up(2)
                && net.records(1).len() == 1
                && net.server.relays() == (1, 1)
        );
    }
}
