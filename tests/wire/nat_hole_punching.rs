//! WireGuard's example.

use std::net::SocketAddr;

use natpunch_plugin_nat_hole_punching::client::Event;
use natpunch_plugin_nat_hole_punching::server::Config;
use natpunch_plugin_nat_hole_punching::{Client, Server};
use natpunch_types::Time;
use serde::Deserialize;

use crate::{bytes, key, vectors};

#[derive(Deserialize)]
pub(crate) struct Exchange {
    from: SocketAddr,
    own: String,
    wanted: String,
    request: String,
    found: Option<SocketAddr>,
    answer: String,
}

#[test]
fn the_server_answers_with_the_bytes_of_the_vectors() {
    let mut server = Server::new(Config::default());
    for exchange in vectors().nat_hole_punching {
        let answer = server.handle_datagram(exchange.from, &bytes(&exchange.request), Time::ZERO);
        assert_eq!(answer, Some(bytes(&exchange.answer)));
    }
}

#[test]
fn the_client_asks_with_the_bytes_of_the_vectors_and_reads_their_answers() {
    for exchange in vectors().nat_hole_punching {
        let mut client = Client::new(key(&exchange.own), Time::ZERO);
        client.set_peers([(key(&exchange.wanted), true)], Time::ZERO);
        assert_eq!(client.poll_transmit(), Some(bytes(&exchange.request)));
        client.handle_datagram(&bytes(&exchange.answer), Time::ZERO);
        assert_eq!(client.poll_event(), Some(Event::Up));
        let found = client.poll_event().map(|event| match event {
            Event::Found { peer, address } => {
                assert_eq!(peer, key(&exchange.wanted));
                SocketAddr::from(address)
            }
            other => panic!("{other:?}"),
        });
        assert_eq!(found, exchange.found);
    }
}
