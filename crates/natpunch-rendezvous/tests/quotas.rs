//! Quotas: at each of them the new is refused and what is there stays, also under attack.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use common::{Net, Raw, Tag, frame, put};
use natpunch_rendezvous::server::{Admission, Limits};

const SECOND: Duration = Duration::from_secs(1);
const PING: u8 = 1;
const PONG: u8 = 2;
const CHALLENGE: u8 = 6;

fn net(limits: Limits) -> Net {
    Net::new(
        Admission::default(),
        Limits {
            hellos_per_second: 1_000_000,
            ..limits
        },
    )
}

/// A client of a network, of IPv4 or IPv6.
fn place(network: u16, v6: bool, n: u16) -> SocketAddr {
    if v6 {
        SocketAddr::from(([0x2001, 0xdb8, 0, network, n, 0, 0, n], 1_000))
    } else {
        SocketAddr::from(([198, 18, (network >> 8) as u8, network as u8], 1_000 + n))
    }
}

fn tag(a: u32, b: u32) -> Tag {
    let mut tag = [9; 16];
    tag[..4].copy_from_slice(&a.to_be_bytes());
    tag[4..8].copy_from_slice(&b.to_be_bytes());
    tag
}

#[test]
fn one_network_has_so_many_sessions_and_who_is_there_stays_and_gets_new_keys() {
    for v6 in [false, true] {
        let mut net = net(Limits {
            sessions_per_network: 3,
            ..Limits::default()
        });
        let mut inside: Vec<Raw> = (0..3)
            .map(|n| Raw::register(&mut net, n, place(1, v6, n as u16), None).unwrap())
            .collect();
        assert!(Raw::register(&mut net, 3, place(1, v6, 3), None).is_none());
        assert_eq!(net.server.counters().full, 1);
        assert!(
            Raw::register(&mut net, 4, place(2, v6, 0), None).is_some(),
            "another network"
        );
        assert!(
            Raw::register(&mut net, 0, place(1, v6, 9), None).is_some(),
            "new keys, and another port"
        );
        assert_eq!(net.server.sessions(), 4);
        assert_eq!(inside[2].say(&mut net, &frame(PING, &[])).len(), 1);
        net.run(SECOND * 151);
        assert_eq!(net.server.sessions(), 0);
        assert!(
            Raw::register(&mut net, 3, place(1, v6, 3), None).is_some(),
            "all is given back"
        );
    }
}

#[test]
fn nobody_moves_into_a_network_that_is_full() {
    let mut net = net(Limits {
        sessions_per_network: 1,
        ..Limits::default()
    });
    let (home, full) = (place(1, false, 1), place(2, false, 1));
    let mut one = Raw::register(&mut net, 1, home, None).unwrap();
    let _other = Raw::register(&mut net, 2, full, None).unwrap();
    let moves = |net: &mut Net, one: &mut Raw, to: SocketAddr| {
        one.place = to;
        let said = one.say(net, &frame(PING, &[]));
        let (_, token) = said.iter().find(|(kind, _)| *kind == CHALLENGE).unwrap();
        let pong = one.say(net, &frame(5, &[token]));
        pong.iter().any(|(kind, _)| *kind == PONG)
    };
    assert!(!moves(&mut net, &mut one, full));
    assert_eq!(
        (net.server.counters().roamed, net.server.counters().full),
        (0, 1)
    );
    assert!(
        Raw::register(&mut net, 1, full, None).is_none(),
        "nor by a new hello"
    );
    one.place = home;
    assert_eq!(
        one.say(&mut net, &frame(PING, &[]))[0].0,
        PONG,
        "it is where it was"
    );
    assert!(
        moves(&mut net, &mut one, place(3, false, 1)),
        "elsewhere is room"
    );
    assert!(
        Raw::register(&mut net, 3, home, None).is_some(),
        "and where it was now"
    );
}

#[test]
fn a_client_says_so_much_in_a_second_and_the_rest_is_not_heard() {
    let mut net = net(Limits {
        messages_per_second: 5,
        ..Limits::default()
    });
    let mut one = Raw::register(&mut net, 1, place(1, false, 1), None).unwrap();
    let mut other = Raw::register(&mut net, 2, place(1, false, 2), None).unwrap();
    let heard = |net: &mut Net, one: &mut Raw| {
        (0..20)
            .filter(|_| !one.say(net, &frame(PING, &[])).is_empty())
            .count()
    };
    assert_eq!(
        (heard(&mut net, &mut one), net.server.counters().limited),
        (5, 15)
    );
    assert_eq!(heard(&mut net, &mut other), 5, "each has its own share");
    net.run(SECOND);
    assert_eq!(heard(&mut net, &mut one), 5);
}

#[test]
fn when_all_mailboxes_are_taken_new_ones_are_refused_and_the_old_work() {
    let mut net = net(Limits {
        mailboxes: 4,
        ..Limits::default()
    });
    let mut one = Raw::register(&mut net, 1, place(1, false, 1), None).unwrap();
    let mut other = Raw::register(&mut net, 2, place(2, false, 1), None).unwrap();
    assert!((0..4).all(|n| one.put(&mut net, tag(0, n), b"old")));
    assert!(!other.put(&mut net, tag(1, 0), b"new") && !other.watch(&mut net, tag(1, 0)).0);
    assert_eq!((net.server.mailboxes(), net.server.counters().full), (4, 2));
    assert!(one.put(&mut net, tag(0, 3), b"newer"));
    assert_eq!(
        other.watch(&mut net, tag(0, 3)),
        (true, Some(b"newer".to_vec()))
    );
}

#[test]
fn a_mailbox_has_four_watchers_who_are_told_and_a_fifth_is_refused() {
    let mut net = net(Limits::default());
    let mut clients: Vec<Raw> = (0..5)
        .map(|n| Raw::register(&mut net, n, place(n as u16, false, 1), None).unwrap())
        .collect();
    let watching: Vec<bool> = clients
        .iter_mut()
        .map(|client| client.watch(&mut net, tag(0, 0)).0)
        .collect();
    assert_eq!(watching, [true, true, true, true, false]);
    let said = clients[4].session.say(&put(tag(0, 0), b"blob"));
    let told: Vec<SocketAddr> = net
        .answers(clients[4].place, &said)
        .iter()
        .map(|(to, _)| *to)
        .collect();
    assert!(
        clients[..4]
            .iter()
            .all(|client| told.contains(&client.place)),
        "{told:?}"
    );
    assert!(clients[0].watch(&mut net, tag(0, 0)).0, "and watches again");
}

#[test]
fn the_clients_of_one_network_have_so_many_mailboxes_together() {
    for v6 in [false, true] {
        let mut net = net(Limits {
            mailboxes_per_network: 4,
            ..Limits::default()
        });
        let mut near =
            [1, 2].map(|n| Raw::register(&mut net, n.into(), place(1, v6, n), None).unwrap());
        let mut far = Raw::register(&mut net, 3, place(2, v6, 1), None).unwrap();
        assert!((0..2).all(
            |n| near[0].put(&mut net, tag(0, n), b"x") && near[1].watch(&mut net, tag(0, n)).0
        ));
        assert!(!near[0].put(&mut net, tag(0, 2), b"x") && !near[1].watch(&mut net, tag(0, 2)).0);
        assert!(
            near[0].put(&mut net, tag(0, 1), b"y"),
            "what is there may be said again"
        );
        assert!(
            far.put(&mut net, tag(0, 2), b"x"),
            "another network has its own share"
        );
        assert!(far.put(&mut net, tag(0, 1), b"z"));
        assert!(
            near[0].put(&mut net, tag(0, 3), b"x"),
            "what another one holds now counts there"
        );
        net.run(SECOND * 910);
        assert_eq!(net.server.mailboxes(), 0);
        let mut near = Raw::register(&mut net, 1, place(1, v6, 1), None).unwrap();
        assert!(
            (0..4).all(|n| near.put(&mut net, tag(0, n), b"x")),
            "all is given back"
        );
    }
}

/// Puts records under so many tags of its own, as many in a message as fit.
fn flood(net: &mut Net, attacker: &mut Raw, number: u32, records: u32) {
    for (count, first) in (0..records).step_by(40).enumerate() {
        let tags = (first..records.min(first + 40)).map(|n| tag(number, n));
        let text: Vec<u8> = tags.flat_map(|tag| put(tag, b"flood")).collect();
        attacker.say(net, &text);
        if count % 200 == 199 {
            net.run(SECOND);
        }
    }
}

#[test]
fn an_attack_with_65_536_entries_evicts_nobody() {
    // Room for the honest and for no more than the attack.
    let limits = Limits {
        mailboxes: 80_000,
        sessions: 700,
        ..Limits::default()
    };
    let mut net = net(limits);
    let mut honest: Vec<Raw> = (0..50)
        .map(|n| Raw::register(&mut net, n, place(n as u16, false, 1), None).unwrap())
        .collect();
    for (n, client) in honest.iter_mut().enumerate() {
        assert!(client.put(&mut net, tag(n as u32, 0), b"honest"));
        assert!(client.watch(&mut net, tag((n as u32 + 1) % 50, 0)).0);
    }

    let mut attacker = Raw::register(&mut net, 1_000, place(60_000, false, 0), None).unwrap();
    flood(&mut net, &mut attacker, 1_000, 65_536);
    assert_eq!(net.server.mailboxes(), 50 + 4_096, "one client");
    let mut many: Vec<Raw> = (1..20)
        .map(|n| Raw::register(&mut net, 1_000 + n, place(60_000, false, n as u16), None).unwrap())
        .collect();
    (1_001..)
        .zip(&mut many)
        .for_each(|(number, attacker)| flood(&mut net, attacker, number, 4_096));
    assert_eq!(
        net.server.mailboxes(),
        (50 + 80_000) / 2,
        "one network, and as many are left for all others"
    );
    // Each in a /24 of its own.
    for network in (0..9).map(|n| 50_000 + n * 256) {
        let mut attacker =
            Raw::register(&mut net, network.into(), place(network, false, 0), None).unwrap();
        flood(&mut net, &mut attacker, network.into(), 4_096);
    }
    let mailboxes = net.server.mailboxes();
    assert!((70_000..80_000).contains(&mailboxes), "many networks");
    let refused = (0..800_u32).filter(|n| {
        let network = 61_000 + (n / 400) as u16;
        Raw::register(
            &mut net,
            100_000 + n,
            place(network, false, *n as u16),
            None,
        )
        .is_none()
    });
    assert!(refused.count() > 0);
    let sessions = net.server.sessions();
    assert!((300..600).contains(&sessions), "{sessions} sessions");
    let mut newcomer = Raw::register(&mut net, 200_000, place(40_000, false, 0), None).unwrap();
    assert!(
        newcomer.put(&mut net, tag(200_000, 0), b"new"),
        "there is room for the next one"
    );

    for (n, client) in honest.iter_mut().enumerate() {
        let next = (n as u32 + 1) % 50;
        // New keys: in one session a watch that is repeated is told by the schedule only.
        *client = Raw::register(&mut net, n as u32, place(n as u16, false, 1), None).unwrap();
        assert_eq!(
            client.watch(&mut net, tag(next, 0)).1.unwrap(),
            if next < n as u32 {
                b"newer!"
            } else {
                b"honest"
            }
        );
        assert!(client.put(&mut net, tag(n as u32, 0), b"newer!"), "{n}");
    }
}

#[test]
fn sixteen_networks_of_one_open_server_leave_room_for_the_seventeenth() {
    for v6 in [false, true] {
        let mut net = net(Limits {
            sessions: 1_600,
            sessions_per_network: 100,
            ..Limits::default()
        });
        // Sixteen /64s of one /48, or sixteen addresses of one /24, as many as they can.
        for network in 0..16 {
            for n in 0..100 {
                let number = u32::from(network) * 1_000 + u32::from(n);
                let at = if v6 {
                    SocketAddr::from(([0x2001, 0xdb8, 1, network, 0, 0, 0, n], 1_000))
                } else {
                    SocketAddr::from(([203, 0, 113, network as u8], 1_000 + n))
                };
                let _ = Raw::register(&mut net, number, at, None);
            }
        }
        assert_eq!(net.server.sessions(), 800);
        let others = (0..100).filter(|n| {
            let at = SocketAddr::from(([198, 51, 100, 1], 1_000 + n));
            Raw::register(&mut net, 100_000 + u32::from(*n), at, None).is_some()
        });
        assert_eq!(others.count(), 100);
    }
}
