//! The ancestors' protocols, WireGuard's text protocol, mesh files, and the answers of a record
//! store.

use std::cell::RefCell;

use natpunch_plugin_nat_hole_punching as hole_punching;
use natpunch_plugin_natpunch_go as go;
use natpunch_types::{PeerKey, SecretKey, Time};

use super::{Program, address, rng};

/// Datagrams at both sides of natpunch-go's protocol. Noise is spoken for real: the first message
/// of a client is among what the fuzzer alters.
pub(super) fn natpunch_go(data: &[u8]) {
    let config = go::server::Config::new(SecretKey::from_bytes([200; 32]));
    let mut server = go::Server::new(config, rng(1)).expect("a key");
    let mut now = Time::from_millis(1_000);
    let client = |n: u8| {
        go::Client::new(
            &SecretKey::from_bytes([n; 32]),
            server.public_key(),
            rng(n.into()),
            now.since_origin(),
            now,
        )
    };
    let mut clients = [1, 2].map(|n| client(n).expect("a key"));
    let keys: [PeerKey; 2] = [PeerKey::from_bytes([1; 32]), PeerKey::from_bytes([2; 32])];
    for client in &mut clients {
        client.set_peers(keys.map(|key| (key, true)), now);
    }
    let mut program = Program::new(data, 100);
    while let Some(operation) = program.operation() {
        let n = operation >> 4 & 1;
        let Some(client) = clients.get_mut(usize::from(n)) else {
            return;
        };
        match operation & 0x0f {
            0..=9 => {
                client.handle_timeout(now);
                while let Some(mut datagram) = client.poll_transmit() {
                    if operation & 8 != 0 {
                        let at = usize::from(program.byte()) % datagram.len().max(1);
                        if let Some(byte) = datagram.get_mut(at) {
                            *byte ^= program.byte();
                        }
                    }
                    let reply = server.handle_datagram(address(n), &datagram, now);
                    if let Some(reply) = reply {
                        let mut reply = reply.to_vec();
                        if operation & 4 != 0 {
                            let at = usize::from(program.byte()) % reply.len().max(1);
                            if let Some(byte) = reply.get_mut(at) {
                                *byte ^= program.byte();
                            }
                        }
                        client.handle_datagram(&reply, now);
                    }
                }
            }
            10 => drop(server.handle_datagram(address(n), program.chunk(), now)),
            11 => client.handle_datagram(program.chunk(), now),
            12 => client.handle_network_change(now),
            _ => now += program.time(),
        }
        server.handle_timeout(now);
        while client.poll_event().is_some() {}
        assert!(server.registered() <= 2);
    }
}

/// Datagrams at both sides of nat-hole-punching's protocol.
pub(super) fn nat_hole_punching(data: &[u8]) {
    let config = hole_punching::server::Config {
        max_keys: 8,
        ..hole_punching::server::Config::default()
    };
    let mut server = hole_punching::Server::new(config);
    let mut now = Time::from_millis(1_000);
    let mut client = hole_punching::Client::new(PeerKey::from_bytes([1; 32]), now);
    client.set_peers([(PeerKey::from_bytes([2; 32]), true)], now);
    let mut program = Program::new(data, 100);
    while let Some(operation) = program.operation() {
        match operation & 0x07 {
            0..=2 => {
                let chunk = program.chunk();
                let reply = server.handle_datagram(address(operation >> 4), chunk, now);
                assert!(reply.is_none_or(|reply| reply.len() <= chunk.len()));
            }
            3 => {
                let mut request = vec![0; 64];
                request
                    .iter_mut()
                    .zip(program.chunk())
                    .for_each(|(to, from)| *to = *from);
                let _ = server.handle_datagram(address(operation >> 4), &request, now);
            }
            4 | 5 => client.handle_datagram(program.chunk(), now),
            _ => now += program.time(),
        }
        client.handle_timeout(now);
        server.handle_timeout(now);
        while client.poll_transmit().is_some() {}
        while client.poll_event().is_some() {}
        assert!(server.registered() <= 8);
    }
}

/// What a device answers, and what somebody asks of the device that natpunch serves.
pub(super) fn uapi(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        assert!(natpunch_wg::uapi::holds(text));
    }
}

/// A mesh file, and the places of its errors.
pub(super) fn mesh_file(data: &[u8]) {
    thread_local! {
        static PATH: RefCell<std::path::PathBuf> = RefCell::new("/nonexistent/mesh.toml".into());
    }
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let path = PATH.with_borrow(Clone::clone);
    match natpunch::config::load_texts(vec![(path, text.to_owned())]) {
        Ok(mesh) => drop(natpunch::config::lint(&mesh)),
        Err(errors) => {
            for error in errors.iter() {
                assert!(!error.message().is_empty());
                let _ = (errors.location(error), errors.excerpts(error));
            }
            let _ = errors.to_string();
        }
    }
}

/// The body that a record store answers a poll with.
pub(super) fn http_answer(data: &[u8]) {
    natpunch_plugin_http::testing::read_answer(data);
}

/// What a Redis server says to a client that has asked for a record and stored one.
pub(super) fn redis_server(data: &[u8]) {
    natpunch_plugin_redis::testing::hear(data);
}
