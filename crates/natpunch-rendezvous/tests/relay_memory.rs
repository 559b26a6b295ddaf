//! What a relayed pair costs at the server and at its port, read from the kernel. One test in a
//! process of its own.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]
// The pure crate under test has no files; the kernel's account of this process is in one.
#![allow(clippy::disallowed_methods)]

mod common;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use common::{key, public, rng, server_address, server_with};
use natpunch_rendezvous::client::{Client, Config, To};
use natpunch_rendezvous::relay::{self, Own, Port, Verdict};
use natpunch_rendezvous::server::{Admission, Limits, Via};
use natpunch_types::{RelayUse, SecretKey, Time};

const CLIENTS: u32 = 200;
const PAIRS: usize = 3_200;
const PORTS: u16 = 64;

fn resident() -> usize {
    let pages: usize = std::fs::read_to_string("/proc/self/statm")
        .unwrap()
        .split(' ')
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    pages * 4_096
}

#[test]
fn a_relayed_pair_takes_no_more_than_the_stated_bound_counts_for_it() {
    let now = Time::from_millis(1_000);
    let limits = Limits {
        hellos_per_second: 1_000_000,
        messages_per_second: 1_000_000,
        ..Limits::default()
    };
    let mut server = server_with(key(200), Admission::default(), limits);
    server.set_relay_ports((9_100..9_100 + PORTS).collect());
    let mut ports: Vec<Port> = (0..PORTS)
        .map(|n| Port::new(relay::Limits::default(), Own::default(), [n as u8; 32]))
        .collect();
    let source = |n: u32| SocketAddr::from((Ipv4Addr::from(0xc633_6400 | n), 1_000));
    let mut clients: Vec<Client<_>> = (0..CLIENTS)
        .map(|n| {
            let mut identity = [7; 32];
            identity[..4].copy_from_slice(&n.to_be_bytes());
            let config = Config {
                identity: SecretKey::from_bytes(identity),
                servers: vec![public(&key(200))],
                admission: None,
            };
            Client::new(config, server_address(), rng(n.into()), now).unwrap()
        })
        .collect();
    let mut now = now;
    let mut turn = |clients: &mut [Client<_>], server: &mut natpunch_rendezvous::Server<_>| {
        now += Duration::from_millis(100);
        for n in 0..CLIENTS {
            let client = &mut clients[n as usize];
            client.handle_timeout(now);
            while let Some(outgoing) = client.poll_transmit() {
                match outgoing.to {
                    To::Server => {
                        server.handle_datagram(Via::default(), source(n), &outgoing.payload, now)
                    }
                    To::Address(to) if to.port() >= 9_100 => {
                        let port = &mut ports[usize::from(to.port() - 9_100)];
                        if let Verdict::Answer(answer) =
                            port.handle_datagram(Via::default(), source(n), &outgoing.payload, now)
                        {
                            client.handle_datagram(to, &answer, now);
                        }
                        while let Some(event) = port.poll_event() {
                            server.handle_relay_event(event, now);
                        }
                    }
                    To::Address(_) => {}
                }
            }
            while let Some((port, command)) = server.poll_relay_command() {
                ports[port].handle_command(command, now);
            }
            while let Some(transmit) = server.poll_transmit() {
                let SocketAddr::V4(to) = transmit.destination else {
                    continue;
                };
                let to = u32::from(*to.ip()) & 0xff;
                clients[to as usize].handle_datagram(server_address(), &transmit.payload, now);
            }
            while clients[n as usize].poll_event().is_some() {}
        }
    };
    (0..3).for_each(|_| turn(&mut clients, &mut server));
    // What the clients take for it is measured with it, so the figure is too high rather than too
    // low.
    let before = resident();
    for (n, client) in clients.iter_mut().enumerate() {
        let pairs = (1..=16).flat_map(|by| [(n, (n + by) % 200), ((n + 200 - by) % 200, n)]);
        let tags = pairs.map(|(a, b)| {
            let mut tag = [0; 16];
            (tag[0], tag[1]) = (a as u8, b as u8);
            (tag, RelayUse::Carry)
        });
        client.set_relays(tags, Time::from_millis(1_000));
    }
    for _ in 0..40 {
        turn(&mut clients, &mut server);
    }
    let each = (resident() - before) / PAIRS;
    assert_eq!(server.relays(), (PAIRS, PAIRS));
    let counted = (Limits::default().memory()
        - Limits {
            relays: 0,
            ..Limits::default()
        }
        .memory())
        / 8_192;
    println!(
        "{each} bytes for each pair, {counted} counted; in all {} MiB",
        Limits::default().memory() >> 20
    );
    assert!(each <= counted, "{each}");
}
