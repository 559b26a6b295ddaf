//! What a session does for its client besides mailboxes: moments to fire at, what its NAT is like,
//! new keys, and relays.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use common::{Net, Raw, address, blob, frame, key, public, rng};
use natpunch_rendezvous::client::{self, Client, Event};
use natpunch_rendezvous::server::{Admission, Limits};
use natpunch_types::{Mapping, PresharedKey, Time};

const SECOND: Duration = Duration::from_secs(1);
const PAIR: common::Tag = [9; 16];

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn meet(net: &mut Net, n: u16) {
    let now = net.now;
    let client = net.clients.get_mut(&n).unwrap();
    client.meet(PAIR, mailbox(n), now);
    client.handle_timeout(now);
}

/// Where this client leaves its record for the other.
fn mailbox(n: u16) -> common::Tag {
    [n as u8; 16]
}

/// When this client fires.
fn fires(net: &Net, n: u16) -> Vec<Time> {
    let events = net.events[&n].iter().zip(&net.times[&n]);
    events
        .filter_map(|(event, at)| match event {
            Event::Fire { tag, after } => {
                assert_eq!(*tag, PAIR);
                Some(*at + *after)
            }
            _ => None,
        })
        .collect()
}

#[test]
fn both_sides_of_a_pair_fire_at_one_moment_and_once_however_far_they_are() {
    for (near, far, wait) in [(10, 10, 0), (2, 150, 300), (80, 5, 4_000)] {
        let mut net = Net::open();
        net.distance.extend([(1, ms(near)), (2, ms(far))]);
        net.join(1, None);
        net.join(2, None);
        net.run(SECOND * 2);
        meet(&mut net, 1);
        net.run(ms(wait));
        meet(&mut net, 2);
        let said = net.now;
        net.run(SECOND * 20);
        let ([a], [b]) = (&fires(&net, 1)[..], &fires(&net, 2)[..]) else {
            panic!("{:?}", net.events)
        };
        let skew = a.since(*b).max(b.since(*a));
        assert!(skew < ms(3), "{near} and {far}: {skew:?}");
        assert!(
            *a < said + ms(far + near.max(far) + 70),
            "{near} {far}: {:?}",
            a.since(said)
        );
        assert_eq!(net.server.counters().met, 1);
    }
}

#[test]
fn a_wish_to_meet_reaches_the_other_side_in_one_way_time() {
    let mut net = Net::open();
    net.distance.extend([(1, ms(20)), (2, ms(30))]);
    for n in [1, 2, 3] {
        net.join(n, None);
    }
    let now = net.now;
    net.clients
        .get_mut(&1)
        .unwrap()
        .set_records([(mailbox(1), common::blob(1))], now);
    for n in [2, 3] {
        net.clients
            .get_mut(&n)
            .unwrap()
            .set_watches([mailbox(1)], now);
    }
    net.run(SECOND * 2);
    let wanted = |net: &Net, n: u16| {
        let told = net.events[&n].iter().zip(&net.times[&n]);
        told.filter(|(event, _)| **event == Event::Wanted { tag: mailbox(1) })
            .map(|(_, at)| *at)
            .collect::<Vec<_>>()
    };
    // It is not client 3's record that is there: it can't ring.
    let now = net.now;
    net.clients
        .get_mut(&3)
        .unwrap()
        .meet([8; 16], mailbox(1), now);
    net.clients.get_mut(&3).unwrap().handle_timeout(now);
    net.run(SECOND * 3);
    assert_eq!(wanted(&net, 2), []);
    meet(&mut net, 1);
    let said = net.now;
    net.run(ms(100));
    assert_eq!(wanted(&net, 2), [said + ms(50)]);
    // Whoever does not watch it is not told.
    let now = net.now;
    net.clients.get_mut(&2).unwrap().set_watches([], now);
    net.run(SECOND * 6);
    let told = wanted(&net, 2).len();
    assert!(told <= 3, "as often as the wish is said: {told}");
}

#[test]
fn whoever_waits_alone_or_longer_than_five_seconds_fires_not_at_all() {
    let mut net = Net::open();
    for n in 1..=3 {
        net.join(n, None);
    }
    net.run(SECOND);
    meet(&mut net, 1);
    net.run(SECOND * 7);
    meet(&mut net, 2);
    net.run(SECOND * 20);
    assert_eq!(
        (fires(&net, 1), fires(&net, 2), fires(&net, 3)),
        (vec![], vec![], vec![])
    );
}

#[test]
fn a_wish_to_meet_survives_loss_and_still_nobody_fires_twice() {
    for lost in 0..4 {
        let mut net = Net::open();
        net.join(1, None);
        net.join(2, None);
        net.run(SECOND * 2);
        let mut sent = 0;
        net.lose = Box::new(move |_| {
            sent += 1;
            sent == lost + 1 && lost < 2
        });
        meet(&mut net, 1);
        meet(&mut net, 2);
        net.run(SECOND * 10);
        assert_eq!(
            (fires(&net, 1).len(), fires(&net, 2).len()),
            (1, 1),
            "{lost}"
        );
    }
}

fn mappings(net: &Net, n: u16) -> Vec<Mapping> {
    let mapping = |event: &Event| {
        if let Event::Mapping(mapping) = event {
            Some(*mapping)
        } else {
            None
        }
    };
    net.events[&n].iter().filter_map(mapping).collect()
}

#[test]
fn a_client_learns_how_its_nat_maps_in_three_round_trips_and_again_where_it_moves() {
    let elsewhere: SocketAddr = "192.0.0.2:7777".parse().unwrap();
    let mut net = Net::open();
    net.seen_elsewhere.insert(2, elsewhere);
    net.join(1, None);
    net.join(2, None);
    net.run(ms(61));
    assert_eq!(mappings(&net, 1), [Mapping::EndpointIndependent]);
    assert_eq!(mappings(&net, 2), [Mapping::EndpointDependent]);
    net.run(SECOND * 600);
    assert_eq!(
        (mappings(&net, 1).len(), mappings(&net, 2).len()),
        (1, 1),
        "not asked again, whatever the keys"
    );
    // It moves behind another NAT.
    net.seen_elsewhere.clear();
    net.places.insert(2, address(77));
    let now = net.now;
    net.clients.get_mut(&2).unwrap().handle_network_change(now);
    net.run(ms(100));
    assert_eq!(
        mappings(&net, 2),
        [Mapping::EndpointDependent, Mapping::EndpointIndependent]
    );
    // And the answers are no longer than the probes, for who copies them to another address.
    let probe = net
        .wire
        .iter()
        .rev()
        .find(|(by, _, p)| *by == Some(1) && p[3] == 9)
        .unwrap();
    let answer = net
        .wire
        .iter()
        .find(|(by, _, p)| by.is_none() && p[3] == 10)
        .unwrap();
    assert_eq!((probe.2.len(), answer.2.len()), (96, 96));
}

#[test]
fn another_address_of_the_server_shows_a_nat_that_maps_by_address() {
    let mut net = Net::open();
    net.seen_by_other
        .insert(2, "192.0.0.2:7777".parse().unwrap());
    for n in [1, 2] {
        net.join(n, None);
        let now = net.now;
        net.clients
            .get_mut(&n)
            .unwrap()
            .set_other_address(Some(common::other_address()), now);
    }
    net.run(SECOND * 30);
    assert_eq!(mappings(&net, 1), [Mapping::EndpointIndependent]);
    assert_eq!(
        mappings(&net, 2).last(),
        Some(&Mapping::EndpointDependent),
        "whatever the second port says"
    );
    // A moved client is asked anew, and behind a better NAT says so.
    net.seen_by_other.clear();
    net.places.insert(2, address(77));
    let now = net.now;
    net.clients.get_mut(&2).unwrap().handle_network_change(now);
    net.run(SECOND * 5);
    assert_eq!(
        mappings(&net, 2).last(),
        Some(&Mapping::EndpointIndependent)
    );
}

#[test]
fn a_second_port_that_does_not_answer_says_nothing_of_the_nat() {
    let mut net = Net::open();
    net.join(1, None);
    // What the second port answers goes astray.
    net.seen_elsewhere.insert(1, address(400));
    net.places.insert(0, address(400));
    net.run(SECOND * 300);
    let probes = net
        .wire
        .iter()
        .filter(|(by, _, p)| *by == Some(1) && p[3] == 9)
        .count();
    assert_eq!((mappings(&net, 1), probes), (vec![], 4));
}

fn rekeyed(net: &Net) -> u64 {
    net.server.counters().registered
}

#[test]
fn an_idle_session_gets_new_keys_every_hour_without_a_gap() {
    let mut net = Net::open();
    net.join(1, None);
    net.join(2, None);
    net.run(SECOND * 3_500);
    assert_eq!(rekeyed(&net), 2);
    net.run(SECOND * 150);
    assert_eq!((rekeyed(&net), net.server.sessions()), (4, 2));
    assert!(!net.events[&1].contains(&Event::Down) && !net.events[&2].contains(&Event::Down));
}

/// Puts a record each half second that another client watches, for so many seconds: how long each
/// took to arrive.
fn traffic(net: &mut Net, seconds: u64) -> Vec<Duration> {
    let tag = [7; 16];
    let mut took = Vec::new();
    for n in 0..seconds * 2 {
        let now = net.now;
        let client = net.clients.get_mut(&1).unwrap();
        let text: Vec<u8> = (n + now.since_origin().as_millis() as u64)
            .to_be_bytes()
            .repeat(20);
        client.set_records([(tag, text.clone().into())], now);
        client.handle_timeout(now);
        net.run(ms(500));
        let (events, times) = (&net.events[&2], &net.times[&2]);
        let arrived = events
            .iter()
            .zip(times)
            .rfind(|(event, _)| matches!(event, Event::Record { .. }));
        let (Event::Record { blob, .. }, at) = arrived.unwrap() else {
            unreachable!()
        };
        assert_eq!(blob[..], text[..], "{n}: lost or late at {now:?}");
        took.push(at.since(now));
    }
    took
}

#[test]
fn a_session_in_use_gets_new_keys_within_two_minutes_and_no_message_is_lost_or_late() {
    let mut net = Net::open();
    let now = net.now;
    net.join(1, None);
    net.join(2, None).set_watches([[7; 16]], now);
    net.run(SECOND);
    let took = traffic(&mut net, 600);
    assert!(
        took.iter().all(|took| *took <= ms(21)),
        "{:?}",
        took.iter().max()
    );
    assert!((12..=14).contains(&rekeyed(&net)), "{}", rekeyed(&net));
    assert!(!net.events[&1].contains(&Event::Down) && !net.events[&2].contains(&Event::Down));
    assert_eq!(net.server.counters().forged, 0);
    assert_eq!(net.server.counters().no_session, 0);
    // What the server had, it was not told again: a watch for each time it would be forgotten, and
    // the first.
    let put_or_watch = net.server.mailboxes();
    assert_eq!(put_or_watch, 1);
}

#[test]
fn new_keys_under_loss_lose_no_record() {
    let mut net = Net::open();
    let now = net.now;
    net.join(1, None);
    net.join(2, None).set_watches([[7; 16]], now);
    net.run(SECOND * 2);
    let mut luck = rng(5);
    net.lose = Box::new(move |_| rand_core::RngCore::next_u32(&mut luck).is_multiple_of(5));
    for n in 0..150_u8 {
        let now = net.now;
        let client = net.clients.get_mut(&1).unwrap();
        client.set_records([([7; 16], blob(n))], now);
        client.handle_timeout(now);
        net.run(SECOND * 5);
    }
    net.lose = Box::new(|_| false);
    net.run(SECOND * 60);
    assert_eq!(net.records(2).last().unwrap().1, blob(149));
    assert!(rekeyed(&net) >= 10);
}

#[test]
fn after_a_restart_of_the_server_in_the_middle_of_new_keys_all_is_said_again() {
    let mut net = Net::open();
    let now = net.now;
    net.join(1, None).set_records([([7; 16], blob(1))], now);
    net.run(SECOND * 80);
    // The server restarts, and the session gets its new keys from it before it has noticed.
    for _ in 0..30 {
        net.server = common::server_with(key(200), Admission::default(), Limits::default());
        net.run(SECOND);
        if rekeyed(&net) > 0 {
            break;
        }
    }
    net.run(SECOND * 2);
    assert_eq!((net.server.sessions(), net.server.mailboxes()), (1, 1));
}

#[test]
fn a_server_that_has_restarted_is_told_all_again_three_seconds_after_its_first_silence() {
    let mut net = Net::open();
    let now = net.now;
    net.join(1, None).set_records([([7; 16], blob(1))], now);
    net.run(SECOND);
    net.server = common::server_with(key(200), Admission::default(), Limits::default());
    let now = net.now;
    net.clients
        .get_mut(&1)
        .unwrap()
        .set_records([([7; 16], blob(2))], now);
    net.run(ms(2_900));
    assert_eq!(net.server.sessions(), 0);
    net.run(ms(700));
    assert_eq!((net.server.sessions(), net.server.mailboxes()), (1, 1));
    assert!(
        !net.events[&1].contains(&Event::Down),
        "the old session was kept until the new one was there"
    );
}

#[test]
fn a_server_changes_its_key_and_no_client_notices() {
    let keys = [200, 201].map(key);
    let mut net = Net::open();
    let now = net.now;
    for n in [1, 2] {
        let config = client::Config {
            identity: key(n as u8),
            servers: keys.iter().map(public).collect(),
            admission: None,
        };
        let mut client =
            Client::new(config, common::server_address(), rng(u64::from(n)), now).unwrap();
        if n == 2 {
            client.set_watches([[7; 16]], now);
        }
        net.places.insert(n, address(n));
        net.clients.insert(n, client);
    }
    net.run(SECOND);
    traffic(&mut net, 100);
    // The next key beside the current one; then the next alone, which a restart could not do
    // better.
    net.server.set_keys(&keys).unwrap();
    traffic(&mut net, 150);
    net.server.set_keys(&keys[1..]).unwrap();
    let before = rekeyed(&net);
    let took = traffic(&mut net, 300);
    assert!(rekeyed(&net) >= before + 4, "{} {before}", rekeyed(&net));
    assert!(
        took.iter().all(|took| *took <= ms(21)),
        "{:?}",
        took.iter().max()
    );
    assert!(!net.events[&1].contains(&Event::Down) && !net.events[&2].contains(&Event::Down));
    assert!(net.server.set_keys(&[]).is_err() && net.server.set_keys(&[key(0)]).is_err());
}

/// Client 1 leaves a record. What it says a minute later, of another one, is held back while its
/// keys are soon to change.
fn held_back(net: &mut Net) -> Vec<Vec<u8>> {
    let now = net.now;
    net.join(1, None).set_records([([7; 16], blob(1))], now);
    net.run(SECOND * 60);
    let now = net.now;
    let client = net.clients.get_mut(&1).unwrap();
    client.set_records([([8; 16], blob(2))], now);
    client.handle_timeout(now);
    let held = std::iter::from_fn(|| client.poll_transmit()).map(|outgoing| outgoing.payload);
    let held = held.collect();
    client.set_records([], now);
    held
}

#[test]
fn a_message_under_keys_that_were_just_replaced_is_heard() {
    let mut net = Net::open();
    let held = held_back(&mut net);
    while rekeyed(&net) < 2 {
        net.run(SECOND);
    }
    assert_eq!(net.server.mailboxes(), 1);
    for payload in held {
        net.answers(address(1), &payload);
    }
    assert_eq!(net.server.mailboxes(), 2);
}

#[test]
fn keys_that_were_replaced_open_nothing_after_a_quarter_of_a_minute() {
    let mut net = Net::open();
    let held = held_back(&mut net);
    net.run(SECOND * 46);
    assert_eq!((rekeyed(&net), net.server.mailboxes()), (2, 1));
    net.run(SECOND * 20);
    for payload in held {
        assert_eq!(net.answers(address(1), &payload), []);
    }
    assert_eq!(net.server.mailboxes(), 1);
}

#[test]
fn admission_by_the_next_secret_needs_no_new_session() {
    let [old, new] = [1, 2].map(|n| PresharedKey::from_bytes([n; 32]));
    let mut net = Net::new(
        Admission {
            secrets: vec![old.clone()],
            allowed: None,
        },
        Limits::default(),
    );
    net.join(1, Some(old.clone()));
    net.run(SECOND);
    net.server.reconfigure(
        Admission {
            secrets: vec![old, new],
            allowed: None,
        },
        Limits::default(),
    );
    net.run(SECOND * 60);
    assert!(net.is_up(1) && rekeyed(&net) == 1);
}

#[test]
fn what_a_client_takes_back_over_one_family_leaves_what_it_asked_over_the_other() {
    let mut net = Net::open();
    net.server.set_relay_ports(vec![9_100]);
    let v6 = "[2001:db8::1]:7".parse().unwrap();
    let mut ipv4 = Raw::register(&mut net, 1, address(1), None).unwrap();
    let mut ipv6 = Raw::register(&mut net, 1, v6, None).unwrap();
    let mut other = Raw::register(&mut net, 2, address(2), None).unwrap();
    let says = |wants: u8| frame(6, &[&[5; 16][..], &[wants]]);
    ipv4.say(&mut net, &says(1));
    ipv6.say(&mut net, &says(2));
    other.say(&mut net, &says(2));
    assert_eq!(net.server.relays(), (1, 1));
    ipv4.say(&mut net, &says(0));
    assert_eq!(
        net.server.relays(),
        (1, 1),
        "the relay is the other family's now"
    );
    ipv6.say(&mut net, &says(0));
    assert_eq!(net.server.relays(), (1, 0));
}
