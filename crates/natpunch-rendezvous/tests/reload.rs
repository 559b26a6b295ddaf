//! A server that gets other settings while it runs.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::time::Duration;

use common::{Net, Raw, address, frame, key, public};
use natpunch_rendezvous::relay::Command;
use natpunch_rendezvous::server::{Admission, Limits, Via};
use natpunch_rendezvous::testing::RawHello;
use natpunch_types::PresharedKey;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn who_is_taken_off_the_list_is_gone_at_once_with_its_mailboxes_and_cannot_come_back() {
    let mut net = Net::open();
    for n in 0..3 {
        let now = net.now;
        let client = net.join(n, None);
        client.set_records([([n as u8; 16], common::blob(n as u8))], now);
    }
    net.run(2 * SECOND);
    assert_eq!((net.server.sessions(), net.server.mailboxes()), (3, 3));
    assert_eq!(net.server.counters().stored, 3);
    let allowed = [key(1), key(2)].iter().map(public).collect();
    let ended = net.server.reconfigure(
        Admission {
            secrets: vec![],
            allowed: Some(allowed),
        },
        Limits::default(),
    );
    assert_eq!(
        (ended, net.server.sessions(), net.server.mailboxes()),
        (1, 2, 2)
    );
    assert_eq!(net.server.counters().revoked, 1);
    net.run(120 * SECOND);
    assert_eq!(net.server.sessions(), 2);
    assert!(net.server.counters().not_allowed > 0, "it has tried");
    assert!(net.is_up(0) && net.is_up(1) && !net.is_up(2));
}

#[test]
fn who_came_in_by_a_secret_that_is_taken_away_is_gone_and_who_came_by_another_stays() {
    let secrets = [1, 2, 3].map(|n| PresharedKey::from_bytes([n; 32]));
    let [first, second, third] = secrets.clone();
    let mut net = Net::new(
        Admission {
            secrets: vec![first.clone(), second.clone()],
            allowed: None,
        },
        Limits::default(),
    );
    net.join(0, Some(first));
    net.join(1, Some(second.clone()));
    net.run(2 * SECOND);
    assert_eq!(net.server.sessions(), 2);
    let ended = net.server.reconfigure(
        Admission {
            secrets: vec![third.clone(), second],
            allowed: None,
        },
        Limits::default(),
    );
    assert_eq!((ended, net.server.sessions()), (1, 1));
    net.join(2, Some(third));
    net.run(120 * SECOND);
    assert_eq!(net.server.sessions(), 2);
    assert!(!net.is_up(0) && net.is_up(1) && net.is_up(2));
}

/// A server that admits by two secrets, the later clients by the second one.
fn two_secrets() -> (Net, [PresharedKey; 2]) {
    let secrets = [1, 2].map(|n| PresharedKey::from_bytes([n; 32]));
    let mut net = Net::new(
        Admission {
            secrets: secrets.to_vec(),
            allowed: None,
        },
        Limits::default(),
    );
    net.server.set_relay_ports(vec![9_100, 9_101]);
    (net, secrets)
}

fn withdraw_all_but(net: &mut Net, secret: &PresharedKey) -> usize {
    net.server.reconfigure(
        Admission {
            secrets: vec![secret.clone()],
            allowed: None,
        },
        Limits::default(),
    )
}

#[test]
fn what_outlived_its_session_goes_with_the_secret_by_which_its_owner_came() {
    let (mut net, [first, second]) = two_secrets();
    let mut gone = Raw::register(&mut net, 1, address(1), Some(&first)).unwrap();
    let mut stays = Raw::register(&mut net, 2, address(2), Some(&second)).unwrap();
    assert!(gone.put(&mut net, [1; 16], b"x") && gone.watch(&mut net, [2; 16]).0);
    assert!(stays.put(&mut net, [3; 16], b"x") && stays.watch(&mut net, [1; 16]).0);
    for client in [&mut gone, &mut stays] {
        client.say(&mut net, &frame(6, &[&[5; 16], &[2]]));
    }
    assert_eq!(net.server.relays(), (1, 1));
    while net.server.poll_relay_command().is_some() {}
    // The relay has its own signs of life, and goes on.
    net.run(SECOND * 200);
    assert_eq!(
        (
            net.server.sessions(),
            net.server.mailboxes(),
            net.server.relays()
        ),
        (0, 3, (1, 1))
    );
    assert_eq!(
        withdraw_all_but(&mut net, &second),
        0,
        "there is no session to end"
    );
    assert_eq!((net.server.mailboxes(), net.server.relays()), (2, (1, 0)));
    assert!(matches!(
        net.server.poll_relay_command(),
        Some((_, Command::Close { .. }))
    ));
    let mut stays = Raw::register(&mut net, 2, address(2), Some(&second)).unwrap();
    assert_eq!(
        stays.watch(&mut net, [1; 16]),
        (true, None),
        "the record is gone"
    );
    assert_eq!(stays.watch(&mut net, [3; 16]).1.unwrap(), b"x");
}

#[test]
fn who_came_again_by_the_new_secret_keeps_what_it_left_under_the_old_one() {
    let (mut net, [first, second]) = two_secrets();
    let mut client = Raw::register(&mut net, 1, address(1), Some(&first)).unwrap();
    assert!(client.put(&mut net, [1; 16], b"x"));
    client.say(&mut net, &frame(6, &[&[5; 16], &[2]]));
    let mut client = Raw::register(&mut net, 1, address(1), Some(&second)).unwrap();
    assert_eq!(withdraw_all_but(&mut net, &second), 0);
    assert_eq!(
        (
            net.server.sessions(),
            net.server.mailboxes(),
            net.server.relays()
        ),
        (1, 1, (1, 0))
    );
    assert_eq!(client.watch(&mut net, [1; 16]).1.unwrap(), b"x");
}

#[test]
fn settings_that_change_nothing_end_nothing() {
    let mut net = Net::open();
    net.join(0, None);
    net.run(2 * SECOND);
    assert_eq!(
        net.server.reconfigure(
            Admission::default(),
            Limits {
                sessions: 0,
                ..Limits::default()
            }
        ),
        0
    );
    net.run(60 * SECOND);
    assert!(
        net.is_up(0),
        "a lower limit refuses the new and keeps the old"
    );
    net.join(1, None);
    net.run(2 * SECOND);
    assert_eq!(net.server.sessions(), 1);
    assert_eq!(
        net.server
            .reconfigure(Admission::default(), Limits::default()),
        0
    );
    net.run(90 * SECOND);
    assert_eq!(net.server.sessions(), 2);
}

#[test]
fn a_server_that_changes_its_key_hears_hellos_to_the_new_one_and_none_to_the_old_one() {
    let mut net = Net::open();
    let answers = |net: &mut Net, server: u8, n: u16| {
        let mut rng = common::rng(n.into());
        let hello = RawHello::new(&key(7), &public(&key(server)), None, &mut rng).unwrap();
        net.answers(address(n), &hello.datagram).len()
    };
    let before = [200, 201].map(|server| answers(&mut net, server, server.into()));
    net.server.set_keys(&[key(201)]).unwrap();
    let after = [200, 201].map(|server| answers(&mut net, server, u16::from(server) + 100));
    assert_eq!((before, after), ([1, 0], [0, 1]));
}

#[test]
fn a_ticket_from_before_a_reload_that_ends_nobody_opens_a_session() {
    let mut net = Net::open();
    let hello = RawHello::new(&key(7), &public(&key(200)), None, &mut common::rng(1)).unwrap();
    let welcome = net.answers(address(1), &hello.datagram).pop().unwrap().1;
    let (confirm, _session) = hello.confirm(&welcome, &[]).unwrap();
    let open = Admission {
        secrets: vec![],
        allowed: None,
    };
    assert_eq!(net.server.reconfigure(open, Limits::default()), 0);
    assert_eq!(net.answers(address(1), &confirm).len(), 1);
    assert_eq!(net.server.sessions(), 1);
}

#[test]
fn a_ticket_from_before_a_revocation_opens_nothing_also_if_its_owner_may_come_again() {
    let mut net = Net::open();
    let identity = key(7);
    let hello = RawHello::new(&identity, &public(&key(200)), None, &mut common::rng(1)).unwrap();
    let welcome = net.answers(address(1), &hello.datagram).pop().unwrap().1;
    let (confirm, session) = hello.confirm(&welcome, &[]).unwrap();
    let first = net.answers(address(1), &confirm);
    assert_eq!((net.server.sessions(), first.len()), (1, 1));
    // Taken off the list by one commit, and on it again by the next, within the ticket's life.
    for allowed in [vec![], vec![public(&identity)]] {
        let allowed = Some(allowed.into_iter().collect());
        net.server.reconfigure(
            Admission {
                secrets: vec![],
                allowed,
            },
            Limits::default(),
        );
    }
    let second = net.answers(address(1), &confirm);
    assert_eq!(
        (net.server.sessions(), second),
        (0, vec![]),
        "its keys have sealed other texts under the same counters"
    );
    drop(session);
    assert!(
        Raw::register_as(&mut net, &identity, address(1), None).is_some(),
        "a new hello is welcome"
    );
}

#[test]
fn a_secret_that_is_withdrawn_while_a_confirm_is_opened_admits_nobody() {
    let (mut net, [first, second]) = two_secrets();
    let hello = RawHello::new(
        &key(7),
        &public(&key(200)),
        Some(&first),
        &mut common::rng(1),
    )
    .unwrap();
    let welcome = net.answers(address(1), &hello.datagram).pop().unwrap().1;
    let (confirm, _) = hello.confirm(&welcome, &[]).unwrap();
    let opened = net
        .server
        .responder()
        .open_confirm(address(1), &confirm, net.now)
        .unwrap();
    withdraw_all_but(&mut net, &second);
    net.server
        .handle_opened(Via::default(), address(1), opened, net.now);
    assert_eq!(net.server.sessions(), 0);
}
