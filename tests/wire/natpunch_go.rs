//! natpunch-go.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use natpunch_plugin_natpunch_go::client::Event;
use natpunch_plugin_natpunch_go::server::Config;
use natpunch_plugin_natpunch_go::{Client, Server};
use natpunch_types::{PeerKey, SecretKey, Time};
use rand_core::{CryptoRng, RngCore};
use serde::Deserialize;

use crate::{array, bytes, key, vectors};

#[derive(Deserialize)]
pub(crate) struct Session {
    server_private: String,
    server_public: String,
    clients: Vec<Handshake>,
    exchanges: Vec<Exchange>,
}

#[derive(Deserialize)]
struct Handshake {
    address: SocketAddr,
    private: String,
    public: String,
    ephemeral: String,
    server_ephemeral: String,
    timestamp: u64,
    wished_index: u32,
    index: u32,
    init: String,
    response: String,
}

#[derive(Deserialize)]
struct Exchange {
    from: String,
    wanted: String,
    request: String,
    found: Option<SocketAddr>,
    answer: String,
}

impl Session {
    fn client(&self, public: &str) -> &Handshake {
        self.clients
            .iter()
            .find(|client| client.public == public)
            .unwrap()
    }
}

/// "Random" ephemeral keys and numbers, as the vectors have them.
#[derive(Default)]
struct Scripted {
    keys: VecDeque<[u8; 32]>,
    numbers: VecDeque<u32>,
}

impl RngCore for Scripted {
    fn next_u32(&mut self) -> u32 {
        self.numbers.pop_front().unwrap_or(0)
    }

    /// Keys of hash tables, which no byte depends on.
    fn next_u64(&mut self) -> u64 {
        0x5a5a
    }

    fn fill_bytes(&mut self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.keys.pop_front().expect("no more keys in the script"));
    }
}

impl CryptoRng for Scripted {}

#[test]
fn the_server_answers_a_whole_session_with_the_bytes_of_the_vectors() {
    let session = vectors().natpunch_go;
    let script = Scripted {
        keys: session
            .clients
            .iter()
            .map(|client| array(&client.server_ephemeral))
            .collect(),
        numbers: session.clients.iter().map(|client| client.index).collect(),
    };
    let config = Config::new(SecretKey::from_bytes(array(&session.server_private)));
    let mut server = Server::new(config, script).unwrap();
    assert_eq!(server.public_key(), key(&session.server_public));

    let now = Duration::from_secs(1);
    for client in &session.clients {
        let response = server
            .handle_datagram(client.address, &bytes(&client.init), Time::from_origin(now))
            .unwrap();
        assert_eq!(response.to_vec(), bytes(&client.response));
    }
    for exchange in &session.exchanges {
        let source = session.client(&exchange.from).address;
        let answer = server
            .handle_datagram(source, &bytes(&exchange.request), Time::from_origin(now))
            .unwrap();
        assert_eq!(
            answer.to_vec(),
            bytes(&exchange.answer),
            "{} asks for {}",
            exchange.from,
            exchange.wanted
        );
    }
}

/// The next datagram of the client, which asks again when it is time to.
fn next_datagram(client: &mut Client<Scripted>) -> Vec<u8> {
    loop {
        if let Some(datagram) = client.poll_transmit() {
            return datagram;
        }
        client.handle_timeout(client.poll_timeout().unwrap());
    }
}

fn next_found(client: &mut Client<Scripted>) -> Option<(PeerKey, SocketAddr)> {
    std::iter::from_fn(|| client.poll_event()).find_map(|event| match event {
        Event::Found { peer, address } => Some((peer, address)),
        Event::Up { .. } | Event::Down => None,
    })
}

#[test]
fn the_client_asks_with_the_bytes_of_the_vectors_and_reads_their_answers() {
    let session = vectors().natpunch_go;
    for vector in &session.clients {
        let script = Scripted {
            keys: [array(&vector.ephemeral)].into(),
            // The first number jitters the time of the next try.
            numbers: [0, vector.wished_index].into(),
        };
        let private = SecretKey::from_bytes(array(&vector.private));
        let unix_time = Duration::from_nanos(vector.timestamp);
        let mut client = Client::new(
            &private,
            key(&session.server_public),
            script,
            unix_time,
            Time::ZERO,
        )
        .unwrap();
        let mut now = Time::ZERO;
        let mut connected = false;
        for exchange in session
            .exchanges
            .iter()
            .filter(|exchange| exchange.from == vector.public)
        {
            client.set_peers([(key(&exchange.wanted), true)], now);
            if !connected {
                assert_eq!(client.poll_transmit(), Some(bytes(&vector.init)));
                client.handle_datagram(&bytes(&vector.response), now);
                connected = true;
            }
            assert_eq!(next_datagram(&mut client), bytes(&exchange.request));
            client.handle_datagram(&bytes(&exchange.answer), now);
            let found = next_found(&mut client);
            assert_eq!(
                found,
                exchange
                    .found
                    .map(|address| (key(&exchange.wanted), address))
            );
            now = client.poll_timeout().unwrap_or(now);
        }
        assert!(connected);
    }
}
