//! Strangers, eavesdroppers, and members that do not follow the protocol.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use common::{Net, Sent, address, alternate_address, blob, key, public, rng, server_address};
use natpunch_rendezvous::client::Event;
use natpunch_rendezvous::relay::Verdict;
use natpunch_rendezvous::server::{Admission, Limits, Via};
use natpunch_rendezvous::testing::RawHello;
use natpunch_rendezvous::wire::Kind;
use natpunch_types::{PresharedKey, RelayUse};
use proptest::prelude::*;

const SECOND: Duration = Duration::from_secs(1);

/// A net in which everything has happened at least once, and one datagram of each kind that passed
/// in it. The last hello and confirm are of a client that is not registered.
fn busy_net() -> (Net, Vec<Sent>) {
    let mut net = Net::new(
        Admission::default(),
        Limits {
            hellos_per_second: 24,
            ..Limits::default()
        },
    );
    let now = net.now;
    for n in 0..8 {
        net.join(n, None)
            .set_records([([n as u8; 16], blob(n as u8))], now);
    }
    net.join(9, None).set_watches([[1; 16], [2; 16]], now);
    net.run(SECOND * 40);
    net.places.insert(9, address(99));
    let now = net.now;
    net.clients.get_mut(&9).unwrap().handle_network_change(now);
    net.run(SECOND);
    let mut samples: Vec<Sent> = Vec::new();
    for sample in net.wire.iter().rev() {
        let same = |other: &&Sent| {
            Kind::of(&other.2) == Kind::of(&sample.2) && other.2.len() == sample.2.len()
        };
        if !samples.iter().any(|other| same(&other)) {
            samples.push(sample.clone());
        }
    }
    for kind in [
        Kind::Hello,
        Kind::Welcome,
        Kind::Cookie,
        Kind::Confirm,
        Kind::Request,
        Kind::Notice,
        Kind::Probe,
        Kind::ProbeAnswer,
    ] {
        assert!(
            samples
                .iter()
                .any(|(_, _, payload)| Kind::of(payload) == Some(kind)),
            "{kind:?}"
        );
    }
    (net, samples)
}

fn state(net: &Net) -> (usize, usize, u64, u64) {
    let counters = net.server.counters();
    (
        net.server.sessions(),
        net.server.mailboxes(),
        counters.registered,
        counters.roamed,
    )
}

/// Gives this to the server from a stranger's and the sender's address, and to every client:
/// nothing comes of it.
fn moves_nothing(net: &mut Net, from: SocketAddr, payload: &[u8]) {
    let before = state(net);
    for source in [address(500), from] {
        assert_eq!(net.answers(source, payload), [], "{payload:02x?}");
    }
    assert_eq!(state(net), before);
    let now = net.now;
    for client in net.clients.values_mut() {
        for source in [server_address(), alternate_address(), address(500)] {
            client.handle_datagram(source, payload, now);
            assert_eq!(
                (client.poll_event(), client.poll_transmit()),
                (None, None),
                "{payload:02x?}"
            );
        }
    }
}

#[test]
fn no_short_datagram_moves_anything_or_gets_an_answer() {
    let (mut net, _) = busy_net();
    moves_nothing(&mut net, address(1), &[]);
    for first in 0..=255 {
        moves_nothing(&mut net, address(1), &[first]);
    }
    for (a, b) in (0..=255).flat_map(|a| (0..=255).map(move |b| (a, b))) {
        assert_eq!(net.answers(address(1), &[a, b]), []);
        assert_eq!(net.answers(address(1), &[0xd4, a, b]), []);
        assert_eq!(net.answers(address(1), &[a, b, 1]), []);
    }
}

#[test]
#[ignore = "16.8 million datagrams: make exhaust"]
fn no_datagram_of_up_to_three_bytes_moves_anything_or_gets_an_answer() {
    let (mut net, _) = busy_net();
    let (before, now) = (state(&net), net.now);
    let mut count = 0_u32;
    for number in 0_u32..1 << 24 {
        let bytes = number.to_be_bytes();
        // Of each length those that are no shorter datagram with zeros before it.
        let lengths = if number < 1 << 8 {
            0..4
        } else if number < 1 << 16 {
            2..4
        } else {
            3..4
        };
        for length in lengths {
            let payload = &bytes[4 - length..];
            for source in [address(500), address(1)] {
                net.server
                    .handle_datagram(Via::default(), source, payload, now);
                assert_eq!(net.server.poll_transmit(), None, "{payload:02x?}");
            }
            for client in net.clients.values_mut() {
                client.handle_datagram(server_address(), payload, now);
                assert_eq!(
                    (client.poll_event(), client.poll_transmit()),
                    (None, None),
                    "{payload:02x?}"
                );
            }
            count += 1;
        }
    }
    assert_eq!(state(&net), before);
    println!("measured: {count} datagrams of 1 to 3 bytes, and the empty one");
}

#[test]
fn a_confirm_is_good_only_from_the_address_that_got_its_ticket() {
    let mut net = Net::open();
    let hello = RawHello::new(&key(7), &public(&key(200)), None, &mut rng(1)).unwrap();
    let welcome = net.answers(address(1), &hello.datagram).pop().unwrap().1;
    let (confirm, _) = hello.confirm(&welcome, &[]).unwrap();
    let same_host = SocketAddr::new(address(1).ip(), address(1).port() + 1);
    for elsewhere in [address(2), same_host] {
        assert_eq!(
            net.answers(elsewhere, &confirm),
            [],
            "who owns the key may have read this elsewhere"
        );
        assert_eq!(net.server.sessions(), 0);
    }
    assert_eq!(net.answers(address(1), &confirm).len(), 1);
    assert_eq!(net.server.sessions(), 1);
}

#[test]
fn every_replayed_datagram_moves_nothing_now_and_after_a_restart() {
    let (mut net, _) = busy_net();
    let wire = net.wire.clone();
    for restarted in [false, true] {
        if restarted {
            net.server = common::server_with(key(200), Admission::default(), Limits::default());
        }
        let before = state(&net);
        for (_, from, payload) in &wire {
            for source in [*from, address(500)] {
                for (to, answer) in net.answers(source, payload) {
                    // A hello may be answered: that proves nothing, and costs whoever asks more
                    // than us.
                    assert_eq!((Kind::of(payload), to), (Some(Kind::Hello), source));
                    assert!(answer.len() <= payload.len());
                }
            }
        }
        assert_eq!(state(&net), before);
    }
}

/// Of a busy net with a relay, over all sockets, as from each place of a server: the same server,
/// one that was restarted with its key, and another.
#[test]
fn nothing_that_a_server_says_is_answered_by_any_server() {
    let (mut net, _) = busy_net();
    net.add_relay(2);
    let now = net.now;
    for n in [1, 2] {
        net.clients
            .get_mut(&n)
            .unwrap()
            .set_relays([([5; 16], RelayUse::Carry)], now);
    }
    net.run(SECOND * 2);
    let said: Vec<Vec<u8>> = net
        .wire
        .iter()
        .filter(|(by, ..)| by.is_none())
        .map(|(.., payload)| payload.clone())
        .collect();
    for kind in [
        Kind::Welcome,
        Kind::Cookie,
        Kind::Notice,
        Kind::Bound,
        Kind::ProbeAnswer,
    ] {
        assert!(
            said.iter().any(|payload| Kind::of(payload) == Some(kind)),
            "{kind:?}"
        );
    }
    let places = [
        server_address(),
        alternate_address(),
        common::relay_address(0),
        common::relay_address(1),
        address(1),
    ];
    let mut same = common::server_with(key(200), Admission::default(), Limits::default());
    let mut other = common::server_with(key(201), Admission::default(), Limits::default());
    let before = state(&net);
    for payload in &said {
        for source in places {
            for socket in 0..2 {
                for server in [&mut net.server, &mut same, &mut other] {
                    server.handle_datagram(
                        Via {
                            socket,
                            local: None,
                        },
                        source,
                        payload,
                        now,
                    );
                    assert_eq!(server.poll_transmit(), None, "{payload:02x?}");
                }
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
                assert_eq!(verdict, Verdict::Drop, "{payload:02x?}");
            }
        }
    }
    assert_eq!(
        (state(&net), same.sessions(), other.sessions()),
        (before, 0, 0)
    );
}

#[test]
fn a_confirm_that_is_repeated_at_once_is_answered_and_an_older_one_is_not() {
    let mut net = Net::open();
    net.join(1, None);
    net.run(Duration::from_millis(45));
    let confirm = net
        .wire
        .iter()
        .find(|(_, _, p)| Kind::of(p) == Some(Kind::Confirm))
        .unwrap()
        .2
        .clone();
    let answers = net.answers(address(1), &confirm);
    assert_eq!(answers.len(), 1);
    assert!(answers[0].1.len() <= confirm.len());
    assert_eq!(net.server.counters().registered, 1);
    assert_eq!(
        net.answers(address(2), &confirm),
        [],
        "the ticket is of another address"
    );
    net.join(1, None);
    net.run(Duration::from_millis(45));
    assert_eq!(net.server.counters().registered, 2);
    assert_eq!(net.answers(address(1), &confirm), []);
    assert!(net.is_up(1) && net.server.counters().replayed > 0);
    // And none that is older than ten seconds, though it never was used.
    net.join(3, None);
    net.lose = Box::new(|_| false);
    net.run(Duration::from_millis(21));
    let late = net
        .wire
        .iter()
        .rev()
        .find(|(n, _, p)| *n == Some(3) && Kind::of(p) == Some(Kind::Confirm))
        .unwrap()
        .2
        .clone();
    net.clients.remove(&3);
    net.server.handle_timeout(net.now);
    net.now += SECOND * 11;
    let before = state(&net);
    assert_eq!(net.answers(address(3), &late), []);
    assert_eq!(state(&net), before);
}

#[test]
fn before_proof_no_answer_is_longer_than_what_it_answers() {
    let (net, _) = busy_net();
    let mut last: Option<(SocketAddr, usize, Option<Kind>)> = None;
    let mut seen = [0; 2];
    for (from, at, payload) in &net.wire {
        match (from, Kind::of(payload)) {
            (None, Some(kind @ (Kind::Welcome | Kind::Cookie))) => {
                seen[usize::from(kind == Kind::Cookie)] += 1;
                assert!(payload.len() <= natpunch_rendezvous::wire::HELLO_LEN);
                assert!(kind != Kind::Cookie || payload.len() <= 64);
            }
            (None, _) => {}
            (Some(_), kind) => last = Some((*at, payload.len(), kind)),
        }
    }
    assert!(
        last.is_some() && seen.iter().all(|count| *count > 0),
        "{seen:?}"
    );
}

#[test]
fn a_spoofed_source_gets_a_challenge_no_longer_than_the_packet_and_the_session_stays() {
    let mut net = Net::open();
    let now = net.now;
    net.join(1, None);
    net.join(2, None).set_watches([[7; 16]], now);
    net.run(SECOND);
    let client = net.clients.get_mut(&1).unwrap();
    client.set_records([([7; 16], blob(1))], now + SECOND);
    client.handle_timeout(now + SECOND);
    let packet = client.poll_transmit().unwrap().payload;
    let answers = net.answers(address(666), &packet);
    let to_victim: Vec<_> = answers
        .iter()
        .filter(|(to, _)| *to == address(666))
        .collect();
    assert_eq!(to_victim.len(), 1);
    assert!(to_victim[0].1.len() <= packet.len() && to_victim[0].1.len() == 96);
    // What it asked for is not done: nothing goes to those who were proven.
    assert_eq!(answers.len(), 1);
    // The original, which comes later, is no replay.
    let answers = net.answers(address(1), &packet);
    assert!(
        answers.iter().any(|(to, _)| *to == address(2))
            && answers.iter().any(|(to, _)| *to == address(1))
    );
    assert_eq!(net.server.counters().roamed, 0);
}

#[test]
fn a_member_cannot_touch_the_session_of_another() {
    let mut net = Net::open();
    net.join(1, None);
    net.join(2, None);
    net.run(SECOND * 30);
    let of = |n: u16| {
        net.wire
            .iter()
            .rev()
            .find(|(by, _, p)| *by == Some(n) && Kind::of(p) == Some(Kind::Request))
            .unwrap()
    };
    let (victims, mine) = (of(1).2.clone(), of(2).2.clone());
    // Its session number in my packet, and fresh counters.
    let forged = [
        &mine[..4],
        &victims[4..12],
        &[0, 0, 0, 0, 0, 1, 0, 0],
        &mine[20..],
    ]
    .concat();
    let before = state(&net);
    assert_eq!(net.answers(address(2), &forged), []);
    assert_eq!(net.answers(address(1), &forged), []);
    assert_eq!(state(&net), before);
    net.run(SECOND * 60);
    assert!(net.is_up(1) && !net.events[&1].contains(&Event::Down));
}

#[test]
fn without_the_secret_a_scanner_sees_a_closed_port() {
    let secret = PresharedKey::from_bytes([3; 32]);
    let mut open = Net::open();
    open.join(1, None);
    open.run(SECOND);
    let mut net = Net::new(
        Admission {
            secrets: vec![secret],
            allowed: None,
        },
        Limits::default(),
    );
    for (_, from, payload) in open.wire.clone() {
        assert_eq!(net.answers(from, &payload), []);
    }
    assert_eq!(net.server.counters().welcomed, 0);
}

#[test]
fn a_flood_of_made_up_hellos_is_answered_by_cookies_and_keeps_nothing() {
    let mut net = Net::new(
        Admission::default(),
        Limits {
            hellos_per_second: 40,
            ..Limits::default()
        },
    );
    net.join(1, None);
    let now = net.now;
    net.clients.get_mut(&1).unwrap().handle_timeout(now);
    let hello = net
        .clients
        .get_mut(&1)
        .unwrap()
        .poll_transmit()
        .unwrap()
        .payload;
    for n in 0..20_000_u16 {
        for (to, answer) in net.answers(address(n), &hello) {
            assert_eq!(to, address(n));
            assert!(answer.len() <= hello.len());
        }
    }
    assert!(
        net.server.counters().welcomed <= 6,
        "{:?}",
        net.server.counters()
    );
    assert_eq!(
        (
            net.server.sessions(),
            net.server.mailboxes(),
            net.server.poll_timeout()
        ),
        (0, 0, None)
    );
    // Who has an address is served through it.
    net.clients.clear();
    net.join(2, None);
    net.run(SECOND);
    assert!(net.is_up(2));
}

#[test]
fn a_forged_welcome_or_cookie_does_not_end_an_attempt() {
    let (donor, samples) = busy_net();
    drop(donor);
    let mut net = Net::open();
    net.join(30, None);
    let now = net.now;
    let client = net.clients.get_mut(&30).unwrap();
    client.handle_timeout(now);
    for (_, _, payload) in samples.iter().filter(|(from, ..)| from.is_none()) {
        client.handle_datagram(server_address(), payload, now);
        let mut altered = payload.clone();
        altered[40] ^= 1;
        client.handle_datagram(server_address(), &altered, now);
    }
    net.run(Duration::from_millis(45));
    assert!(net.is_up(30));
}

/// What a server can do with blobs: withhold, mix, repeat. The nodes open only what their peer
/// sealed for them; here, that a client takes nothing that it did not ask for.
#[test]
fn a_server_cannot_give_a_client_a_mailbox_that_it_does_not_watch() {
    let mut net = Net::open();
    let now = net.now;
    net.join(1, None).set_records([([7; 16], blob(1))], now);
    net.join(2, None).set_watches([[7; 16]], now);
    net.run(SECOND);
    let now = net.now;
    net.clients.get_mut(&2).unwrap().set_watches([[8; 16]], now);
    net.clients
        .get_mut(&1)
        .unwrap()
        .set_records([([7; 16], blob(2))], now);
    net.run(SECOND * 5);
    assert_eq!(
        net.records(2).len(),
        1,
        "the server still told it, but nobody asks any more"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn datagrams_of_our_form_and_any_content_move_nothing(
        kind in 1u8..12,
        length in prop_oneof![Just(96usize), Just(256), Just(512), Just(1200), Just(60), Just(254), Just(44), 4usize..1300],
        seed in any::<u64>(),
    ) {
        let mut net = Net::open();
        net.join(1, None);
        net.run(SECOND);
        let mut payload = vec![0; length];
        rand_core::RngCore::fill_bytes(&mut common::rng(seed), &mut payload);
        payload[..4].copy_from_slice(&[0xd4, b'n', 1, kind]);
        moves_nothing(&mut net, address(1), &payload);
    }
}
