//! How many bytes a server sends for each that it gets, in each state that a client can be in.
//! Lengths are those of datagrams; headers make every figure smaller.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::print_stdout)]

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use common::{Net, Raw, Tag, frame, key, public, put, rng};
use natpunch_rendezvous::server::{Admission, Limits, Via};
use natpunch_rendezvous::testing::RawHello;

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);
/// What may go to one client in a second, and at once (half of that), of records and of answers.
const RATE: u64 = 64 << 10;
/// What may go to a client that is not heard.
const UNHEARD: u64 = 32 << 10;
const HOME: &str = "198.51.100.1:1000";
const ELSEWHERE: &str = "203.0.113.9:1000";
const MAILBOXES: u32 = 200;

/// Bytes in, and bytes out to each address.
#[derive(Default)]
struct Traffic {
    taken: u64,
    home: u64,
    elsewhere: u64,
    others: u64,
}

impl Traffic {
    fn out(&self) -> u64 {
        self.home + self.elsewhere + self.others
    }

    fn ratio(&self) -> f64 {
        self.out() as f64 / self.taken.max(1) as f64
    }
}

fn tag(n: u32) -> Tag {
    let mut tag = [9; 16];
    tag[..4].copy_from_slice(&n.to_be_bytes());
    tag
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A server with full mailboxes, whose owners are elsewhere.
fn net() -> Net {
    let limits = Limits {
        hellos_per_second: 1_000_000,
        ..Limits::default()
    };
    let mut net = Net::new(Admission::default(), limits);
    let mut owner = Raw::register(&mut net, 1_000, at("192.0.2.1:1"), None).unwrap();
    for n in 0..MAILBOXES {
        assert!(owner.put(&mut net, tag(n), &[n as u8; 1_000]));
        net.run(MS * 20);
    }
    net
}

/// Lets the server hear this, and counts what it sends to that.
fn hear(net: &mut Net, traffic: &mut Traffic, from: SocketAddr, datagram: &[u8]) {
    traffic.taken += datagram.len() as u64;
    net.server
        .handle_datagram(Via::default(), from, datagram, net.now);
    count(net, traffic);
}

fn count(net: &mut Net, traffic: &mut Traffic) {
    while let Some(sent) = net.server.poll_transmit() {
        let counter = match sent.destination {
            to if to == at(HOME) => &mut traffic.home,
            to if to == at(ELSEWHERE) => &mut traffic.elsewhere,
            _ => &mut traffic.others,
        };
        *counter += sent.payload.len() as u64;
    }
}

/// Lets time pass in small steps, and counts what the server sends by itself.
fn wait(net: &mut Net, traffic: &mut Traffic, time: Duration) {
    let end = net.now + time;
    while net.now < end {
        net.now += MS * 10;
        net.server.handle_timeout(net.now);
        count(net, traffic);
    }
}

/// Frames that ask for everything: what is in all mailboxes, as if nothing were known.
fn watches(first: u32) -> Vec<u8> {
    (first..first + 40)
        .flat_map(|n| frame(3, &[&tag(n % MAILBOXES), &[0; 8]]))
        .collect()
}

fn register(net: &mut Net) -> Raw {
    Raw::register(net, 1, at(HOME), None).unwrap()
}

#[test]
fn without_proof_nothing_is_amplified() {
    let mut net = net();
    let hello = RawHello::new(&key(3), &public(&key(200)), None, &mut rng(1)).unwrap();
    let mut door = Traffic::default();
    for _ in 0..100 {
        hear(&mut net, &mut door, at(ELSEWHERE), &hello.datagram);
    }
    assert!(
        door.out() > 0 && door.ratio() <= 1.0,
        "hello {:.3}",
        door.ratio()
    );

    // Half open: a confirm that is repeated from an address that its ticket is not of.
    let hello = RawHello::new(&key(4), &public(&key(200)), None, &mut rng(2)).unwrap();
    let welcome = net.answers(at(HOME), &hello.datagram).pop().unwrap().1;
    let (confirm, _) = hello.confirm(&welcome, &watches(0)).unwrap();
    let mut half_open = Traffic::default();
    for _ in 0..100 {
        hear(&mut net, &mut half_open, at(ELSEWHERE), &confirm);
    }
    wait(&mut net, &mut half_open, SECOND * 10);
    assert_eq!(half_open.out(), 0);
    println!(
        "hello {:.3}, half open {:.3}",
        door.ratio(),
        half_open.ratio()
    );
}

#[test]
fn a_client_that_has_left_its_address_has_nothing_sent_there_from_elsewhere() {
    let mut net = net();
    let mut client = register(&mut net);
    let mut traffic = Traffic::default();
    for n in 0..256 {
        let said = client.session.say(&watches(n * 40));
        hear(&mut net, &mut traffic, at(ELSEWHERE), &said);
        wait(&mut net, &mut traffic, MS * 10);
    }
    wait(&mut net, &mut traffic, SECOND * 160);
    println!(
        "from elsewhere: {} B in, {} B home",
        traffic.taken, traffic.home
    );
    assert_eq!(traffic.home, 0);
    assert!(traffic.ratio() <= 1.0, "{:.3}", traffic.ratio());
}

#[test]
fn a_client_that_asks_and_leaves_gets_some_bytes_and_then_nothing() {
    let mut net = net();
    let mut client = register(&mut net);
    let mut traffic = Traffic::default();
    for n in 0..5 {
        let said = client.session.say(&watches(n * 40));
        hear(&mut net, &mut traffic, at(HOME), &said);
    }
    let mut left = Traffic::default();
    wait(&mut net, &mut left, SECOND * 6);
    assert!(left.home <= UNHEARD, "{} bytes", left.home);
    let mut silent = Traffic::default();
    wait(&mut net, &mut silent, SECOND * 155);
    println!(
        "asked: {} B in, {} B out; left: {} B",
        traffic.taken, traffic.home, left.home
    );
    assert_eq!(silent.home, 0, "nobody was heard there");
}

#[test]
fn a_client_at_its_address_gets_no_more_than_its_rate_however_often_it_asks() {
    let mut net = net();
    let mut client = register(&mut net);
    let mut traffic = Traffic::default();
    for n in 0..2_560 {
        let said = client.session.say(&watches(n * 40));
        hear(&mut net, &mut traffic, at(HOME), &said);
        wait(&mut net, &mut traffic, MS * 10);
    }
    // Answers and records, each at the rate, and once half a second's worth at once.
    let most = 2 * RATE * 26 + RATE;
    println!("at home: {} B in, {} B out", traffic.taken, traffic.home);
    assert!(traffic.home <= most, "{} of {most}", traffic.home);
    assert!(traffic.home > RATE, "it gets what it asks for");
}

#[test]
fn a_watch_that_is_repeated_is_told_no_more_often() {
    let mut net = net();
    let mut client = register(&mut net);
    let records = |net: &mut Net, client: &mut Raw, repeat: bool| {
        let mut count = 0;
        for _ in 0..50 {
            if repeat {
                let watch = frame(3, &[&tag(1), &[0; 8]]);
                let frames = client.say(net, &watch);
                count += frames.iter().filter(|(kind, _)| *kind == 5).count();
            }
            net.now += MS * 100;
            net.server.handle_timeout(net.now);
            while let Some(sent) = net.server.poll_transmit() {
                let frames = client.hear(&sent.payload);
                count += frames.iter().filter(|(kind, _)| *kind == 5).count();
            }
        }
        count
    };
    let repeated = records(&mut net, &mut client, true);
    assert!((1..=5).contains(&repeated), "told {repeated} times in 5 s");
}

#[test]
fn pings_and_puts_of_one_client_are_no_weapon_either() {
    let mut net = net();
    let mut client = register(&mut net);
    let pings: Vec<u8> = (0..380).flat_map(|_| frame(1, &[])).collect();
    let mut traffic = Traffic::default();
    for _ in 0..100 {
        let said = client.session.say(&pings);
        hear(&mut net, &mut traffic, at(HOME), &said);
    }
    assert!(traffic.ratio() <= 1.0, "pings {:.3}", traffic.ratio());
    let mut puts = Traffic::default();
    for n in 0..100 {
        let said = client.session.say(&put(tag(500 + n), b"x"));
        hear(&mut net, &mut puts, at(HOME), &said);
    }
    assert!(puts.ratio() <= 1.0, "puts {:.3}", puts.ratio());
}

#[test]
fn all_clients_of_one_network_get_no_more_together_than_its_rate() {
    let limits = Limits {
        hellos_per_second: 1_000_000,
        network_bytes_per_second: 100_000,
        ..Limits::default()
    };
    let mut net = Net::new(Admission::default(), limits);
    let mut owner = Raw::register(&mut net, 1_000, at("192.0.2.1:1"), None).unwrap();
    for n in 0..40 {
        assert!(owner.put(&mut net, tag(n), &[n as u8; 1_000]));
        net.run(MS * 100);
    }
    let clients = (1..=20).map(|n| {
        let place = SocketAddr::from(([198, 51, 100, n as u8], 1_000));
        Raw::register(&mut net, n, place, None).unwrap()
    });
    let mut clients: Vec<Raw> = clients.collect();
    net.run(SECOND * 2);
    let mut traffic = Traffic::default();
    for client in &mut clients {
        let said = client.session.say(&watches(0)[..27 * 30]);
        hear(&mut net, &mut traffic, client.place, &said);
    }
    wait(&mut net, &mut traffic, SECOND);
    let out = traffic.out();
    assert!(out <= 160_000, "{out} bytes in a second");
}
