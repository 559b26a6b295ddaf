//! What a registered client costs, read from the kernel. One test in a process of its own.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]
// The pure crate under test has no files; the kernel's account of this process is in one.
#![allow(clippy::disallowed_methods)]

mod common;

use natpunch_rendezvous::client::{Client, Config, Outgoing};
use natpunch_rendezvous::server::{Admission, Limits, Via};
use natpunch_types::{SecretKey, Time};

const CLIENTS: u32 = 4_000;

/// Resident memory in bytes.
fn resident() -> usize {
    let pages: usize = std::fs::read_to_string("/proc/self/statm")
        .unwrap()
        .split(' ')
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    pages * 4096
}

#[test]
fn an_idle_client_takes_at_most_a_kibibyte() {
    let mut server = common::server_with(
        common::key(200),
        Admission::default(),
        Limits {
            hellos_per_second: 1_000_000,
            sessions_per_network: 65_536,
            ..Limits::default()
        },
    );
    let now = Time::from_millis(1_000);
    let mut register = |n: u32| {
        let mut identity = [7; 32];
        identity[..4].copy_from_slice(&n.to_be_bytes());
        let config = Config {
            identity: SecretKey::from_bytes(identity),
            servers: vec![common::public(&common::key(200))],
            admission: None,
        };
        let mut client =
            Client::new(config, common::server_address(), common::rng(n.into()), now).unwrap();
        client.handle_timeout(now);
        let source = std::net::SocketAddr::from((std::net::Ipv4Addr::from(0x0a00_0000 | n), 1000));
        while let Some(Outgoing {
            payload: datagram, ..
        }) = client.poll_transmit()
        {
            server.handle_datagram(Via::default(), source, &datagram, now);
            while let Some(transmit) = server.poll_transmit() {
                client.handle_datagram(common::server_address(), &transmit.payload, now);
            }
        }
    };
    (0..200).for_each(&mut register);
    let before = resident();
    (200..200 + CLIENTS).for_each(&mut register);
    let each = (resident() - before) / CLIENTS as usize;
    assert_eq!(server.sessions(), 200 + CLIENTS as usize);
    println!("{each} bytes for each idle client");
    assert!(each <= 1024, "{each}");
}
