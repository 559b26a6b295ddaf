//! Streams: what a server takes by WebSocket, of a client without UDP and of everybody else.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use natpunch_rendezvous::client::{Client, Config, Event};
use natpunch_rendezvous::stream::{self, PATH, SERVER};
use natpunch_types::{Network, Time};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;
use tokio_tungstenite::tungstenite::{self, Message, WebSocket};

use crate::process::Server;
use crate::rendezvous::key;

const PATIENCE: Duration = Duration::from_secs(20);
/// What one source may have.
const CONNECTIONS: usize = 64;

fn start() -> (Server, SocketAddr) {
    let directory = tempfile::tempdir().unwrap();
    let settings = directory.path().join("serve.toml");
    // Nobody here is a proxy that speaks for others.
    let text = "open = true\nlisten = ['127.0.0.1:0']\nwebsocket = '127.0.0.1:0'\n\
                websocket_trusted_proxies = []\n";
    std::fs::write(&settings, text).unwrap();
    let server = Server::start(&["--config", settings.to_str().unwrap()]);
    let address = server.websocket.unwrap();
    (server, address)
}

fn connect(server: SocketAddr) -> Option<WebSocket<TcpStream>> {
    let tcp = TcpStream::connect(server).unwrap();
    tcp.set_read_timeout(Some(PATIENCE)).unwrap();
    let (socket, _) = tungstenite::client(format!("ws://{server}{PATH}"), tcp).ok()?;
    socket
        .get_ref()
        .set_read_timeout(Some(Duration::from_millis(20)))
        .unwrap();
    Some(socket)
}

#[test]
fn a_client_registers_in_a_stream_and_counts_for_the_network_that_it_comes_from() {
    let (server, address) = start();
    let mut socket = connect(address).unwrap();
    // None of them is a datagram for anybody; the stream goes on.
    for junk in [&[][..], &[0], &[0xff, 0xff, 1], &[0, 0, 7]] {
        socket.send(Message::binary(junk.to_vec())).unwrap();
    }
    let config = Config {
        identity: key(1),
        servers: vec![server.public_key],
        admission: None,
    };
    let alias = SocketAddr::from(([192, 0, 2, 1], 1));
    let rng = ChaCha20Rng::from_seed([1; 32]);
    let mut client = Client::new(config, alias, rng, Time::ZERO).unwrap();
    let (begin, mut seen) = (Instant::now(), None);
    let mut is_up = false;
    while !is_up || seen.is_none() {
        assert!(begin.elapsed() < PATIENCE, "not registered");
        let now = Time::from_origin(begin.elapsed());
        client.handle_timeout(now);
        while let Some(sent) = client.poll_transmit() {
            let message = stream::message(SERVER, &sent.payload);
            socket.send(Message::binary(message)).unwrap();
        }
        if let Ok(Message::Binary(message)) = socket.read() {
            let (port, datagram) = stream::parse(&message).unwrap();
            assert_eq!(port, SERVER);
            client.handle_datagram(alias, datagram, Time::from_origin(begin.elapsed()));
        }
        while let Some(event) = client.poll_event() {
            match event {
                Event::Up { .. } => is_up = true,
                Event::Observed(address) => seen = Some(address),
                _ => {}
            }
        }
    }
    assert_eq!(
        Network::of(seen.unwrap().ip()),
        Network::of(address.ip()),
        "{seen:?}"
    );
}

#[test]
fn whoever_asks_for_anything_but_a_stream_gets_a_404() {
    let (_server, address) = start();
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n";
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    for request in [
        "GET / HTTP/1.1\r\n".to_owned(),
        format!("GET {PATH} HTTP/1.1\r\n"),
        format!("POST {PATH} HTTP/1.1\r\n{upgrade}{key}"),
        format!("GET {PATH}/more HTTP/1.1\r\n{upgrade}{key}"),
        format!("GET {PATH} HTTP/1.1\r\n{upgrade}"),
    ] {
        let mut tcp = TcpStream::connect(address).unwrap();
        tcp.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(tcp, "{request}Host: a\r\n\r\n").unwrap();
        let mut head = [0; 12];
        tcp.read_exact(&mut head).unwrap();
        assert_eq!(&head, b"HTTP/1.1 404", "{request}");
    }
}

#[test]
fn one_source_has_so_many_streams_and_no_more_until_one_ends() {
    let (_server, address) = start();
    let mut streams: Vec<_> = (0..CONNECTIONS).map(|_| connect(address)).collect();
    assert!(streams.iter().all(Option::is_some));
    assert!(connect(address).is_none(), "one more");
    streams.pop();
    let end = Instant::now() + PATIENCE;
    while connect(address).is_none() {
        assert!(Instant::now() < end, "its place is not free");
    }
}
