//! What the protocol promises to those who follow it.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use common::{Net, address, blob, key, public, rng};
use natpunch_rendezvous::client::{self, Client, Event};
use natpunch_rendezvous::server::{Admission, Config, Limits, Server};
use natpunch_rendezvous::{identity, wire};
use natpunch_types::PresharedKey;

const SECOND: Duration = Duration::from_secs(1);

fn secret(n: u8) -> PresharedKey {
    PresharedKey::from_bytes([n; 32])
}

#[test]
fn a_client_is_registered_and_knows_its_address_after_two_round_trips() {
    let mut net = Net::open();
    net.join(1, None);
    net.run(Duration::from_millis(41));
    assert!(net.is_up(1));
    assert_eq!(net.observed(1), Some(address(1)));
    assert_eq!(net.server.sessions(), 1);
}

#[test]
fn a_record_reaches_its_watcher_in_one_way_time_each_whoever_comes_first() {
    for late in [1, 2] {
        let mut net = Net::open();
        let tag = [7; 16];
        let start = |net: &mut Net, n: u16| {
            let now = net.now;
            let client = net.join(n, None);
            match n {
                1 => client.set_records([(tag, blob(1))], now),
                _ => client.set_watches([tag], now),
            }
        };
        start(&mut net, 3 - late);
        net.run(SECOND);
        start(&mut net, late);
        // Hello, welcome, confirm (with the request), record.
        net.run(Duration::from_millis(41));
        assert_eq!(net.records(2), [(tag, blob(1))]);
        // Pushed, not polled, and once.
        net.run(SECOND * 100);
        assert_eq!(
            net.server.counters().pushed,
            1,
            "it was told that it arrived"
        );
        let now = net.now;
        net.clients
            .get_mut(&1)
            .unwrap()
            .set_records([(tag, blob(2))], now);
        net.clients.get_mut(&1).unwrap().handle_timeout(now);
        net.run(Duration::from_millis(21));
        assert_eq!(net.records(2), [(tag, blob(1)), (tag, blob(2))]);
    }
}

#[test]
fn records_arrive_also_where_a_third_of_all_datagrams_is_lost() {
    let mut net = Net::open();
    let mut luck = rng(9);
    net.lose = Box::new(move |_| rand_core::RngCore::next_u32(&mut luck).is_multiple_of(3));
    let tags: Vec<_> = (0..40).map(|n| [n; 16]).collect();
    let now = net.now;
    net.join(1, None)
        .set_records(tags.iter().map(|tag| (*tag, blob(tag[0]))), now);
    net.join(2, None).set_watches(tags.clone(), now);
    net.run(SECOND * 60);
    let found: BTreeSet<_> = net.records(2).into_iter().map(|(tag, _)| tag).collect();
    assert_eq!(found, tags.into_iter().collect());
}

#[test]
fn an_idle_client_sends_one_small_datagram_per_ping_interval() {
    let mut net = Net::open();
    net.join(1, None);
    net.run(SECOND * 10);
    let before = net.wire.len();
    net.run(SECOND * 1000);
    let sent = &net.wire[before..];
    assert!((80..=110).contains(&sent.len()), "{}", sent.len());
    assert!(sent.iter().all(|(_, _, payload)| payload.len() == 96));
    assert_eq!(net.server.sessions(), 1);
}

#[test]
fn a_client_that_falls_silent_is_forgotten_and_its_records_later() {
    let mut net = Net::open();
    let now = net.now;
    net.join(1, None).set_records([([7; 16], blob(1))], now);
    net.run(SECOND);
    net.clients.clear();
    net.run(SECOND * 160);
    assert_eq!((net.server.sessions(), net.server.mailboxes()), (0, 1));
    net.run(SECOND * 1_000);
    assert_eq!(net.server.mailboxes(), 0);
    assert_eq!(net.server.poll_timeout(), None);
}

#[test]
fn a_roaming_client_is_found_after_one_packet_and_a_challenge() {
    let mut net = Net::open();
    net.join(1, None);
    net.run(SECOND);
    net.places.insert(1, address(99));
    let now = net.now;
    net.clients.get_mut(&1).unwrap().handle_network_change(now);
    net.run(Duration::from_millis(41));
    assert_eq!(net.observed(1), Some(address(99)));
    assert_eq!(
        (net.server.sessions(), net.server.counters().roamed),
        (1, 1)
    );
}

#[test]
fn after_a_restart_of_the_server_everybody_is_back_within_a_minute_and_not_at_once() {
    let mut net = Net::open();
    let tag = |n: u16| [n as u8; 16];
    for n in 0..60 {
        let now = net.now;
        let client = net.join(n, None);
        client.set_records([(tag(n), blob(n as u8))], now);
        client.set_watches([tag((n + 1) % 60)], now);
    }
    net.run(SECOND * 50);
    net.server = common::server_with(key(200), Admission::default(), Limits::default());
    let mut most = 0;
    for _ in 0..60 {
        let before = net.server.counters().registered;
        net.run(SECOND);
        most = most.max(net.server.counters().registered - before);
    }
    assert_eq!(net.server.sessions(), 60);
    assert_eq!(net.server.mailboxes(), 60);
    assert!(most <= 30, "{most} in one second");
    assert_eq!(net.records(5).len(), 1, "what is known is not told again");
}

#[test]
fn a_client_without_the_secret_gets_no_answer_at_all() {
    let admission = Admission {
        secrets: vec![secret(1), secret(2)],
        allowed: None,
    };
    let mut net = Net::new(admission, Limits::default());
    net.join(1, None);
    net.join(2, Some(secret(9)));
    net.join(3, Some(secret(1)));
    net.join(4, Some(secret(2)));
    net.run(SECOND * 20);
    assert_eq!(
        [1, 2, 3, 4].map(|n| net.is_up(n)),
        [false, false, true, true]
    );
    assert!(
        !net.wire
            .iter()
            .any(|(from, to, _)| from.is_none() && (*to == address(1) || *to == address(2)))
    );
}

#[test]
fn a_client_that_is_not_on_the_list_is_not_registered() {
    let allowed = BTreeSet::from([public(&key(2))]);
    let mut net = Net::new(
        Admission {
            secrets: vec![],
            allowed: Some(allowed),
        },
        Limits::default(),
    );
    net.join(1, None);
    net.join(2, None);
    net.run(SECOND * 10);
    assert!(net.is_up(1) && !net.is_up(2));
    assert!(net.server.counters().not_allowed > 0);
}

#[test]
fn clients_find_the_next_key_of_a_server_by_themselves() {
    for in_use in [200, 201] {
        let server = Server::new(
            Config {
                keys: vec![key(in_use)],
                admission: Admission::default(),
                limits: Limits::default(),
                alternate_port: None,
            },
            rng(1),
        );
        let mut net = Net::open();
        net.server = server.unwrap();
        let config = client::Config {
            identity: key(1),
            servers: vec![public(&key(200)), public(&key(201))],
            admission: None,
        };
        net.clients.insert(
            1,
            Client::new(config, common::server_address(), rng(5), net.now).unwrap(),
        );
        net.places.insert(1, address(1));
        net.run(SECOND * 10);
        assert!(net.is_up(1));
    }
}

#[test]
fn under_load_a_client_proves_its_address_first_and_is_served() {
    let limits = Limits {
        hellos_per_second: 8,
        ..Limits::default()
    };
    let mut net = Net::new(Admission::default(), limits);
    for n in 0..12 {
        net.join(n, None);
    }
    net.run(SECOND * 5);
    assert!((0..12).all(|n| net.is_up(n)));
    assert!(
        net.server.counters().cookies > 0,
        "{:?}",
        net.server.counters()
    );
    let cookie = net
        .wire
        .iter()
        .find(|(_, _, payload)| payload.len() == wire::COOKIE_LEN)
        .unwrap();
    assert!(cookie.2.len() <= 64);
}

#[test]
fn a_full_server_says_so_and_when_to_come_again_and_keeps_whom_it_has() {
    let mut net = Net::new(
        Admission::default(),
        Limits {
            sessions: 2,
            ..Limits::default()
        },
    );
    for n in 0..4 {
        net.join(n, None);
    }
    net.run(SECOND * 100);
    assert_eq!(net.server.sessions(), 2);
    assert_eq!((0..4).filter(|n| net.is_up(*n)).count(), 2);
    let refused: Vec<_> = net
        .wire
        .iter()
        .filter(|(from, _, payload)| from.is_none() && payload.len() == 96)
        .filter(|(_, _, payload)| payload[12..20] == (u64::MAX - 1).to_be_bytes())
        .collect();
    assert!((2..=12).contains(&refused.len()), "{}", refused.len());
}

#[test]
fn a_client_cannot_use_more_than_its_share_of_mailboxes() {
    let mut net = Net::new(
        Admission::default(),
        Limits {
            mailboxes_per_client: 10,
            ..Limits::default()
        },
    );
    let now = net.now;
    net.join(1, None)
        .set_records((0..50).map(|n| ([n; 16], blob(n))), now);
    net.join(2, None).set_records([([99; 16], blob(1))], now);
    net.run(SECOND * 20);
    assert_eq!(net.server.mailboxes(), 11);
    assert!(
        net.events[&1]
            .iter()
            .any(|event| matches!(event, Event::Full { .. }))
    );
    let limits = Limits {
        bytes: 1000,
        ..Limits::default()
    };
    let mut net = Net::new(Admission::default(), limits);
    let now = net.now;
    net.join(1, None)
        .set_records((0..50).map(|n| ([n; 16], blob(n))), now);
    net.run(SECOND * 20);
    assert_eq!(net.server.mailboxes(), 6);
}

#[test]
fn the_identity_is_not_the_wireguard_key_and_never_in_the_clear() {
    let wireguard = key(42);
    let own = identity(&wireguard);
    assert_ne!(public(&own), public(&wireguard));
    let mut net = Net::open();
    let now = net.now;
    net.join_as(1, own.clone(), None)
        .set_records([([7; 16], blob(0xaa))], now);
    net.run(SECOND * 60);
    for known in [
        &public(&own).as_bytes()[..],
        public(&wireguard).as_bytes(),
        &[7; 16],
        &[0xaa; 16],
    ] {
        for (_, _, payload) in &net.wire {
            assert!(!payload.windows(known.len()).any(|window| window == known));
        }
    }
}
