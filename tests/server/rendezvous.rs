//! A client of natpunch's own rendezvous over a real socket.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use natpunch_rendezvous::client::{Client, Config, Event};
use natpunch_types::{PeerKey, PresharedKey, SecretKey, Time};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;

/// A node that wants to be registered.
pub(crate) struct Node {
    pub(crate) client: Client<ChaCha20Rng>,
    socket: UdpSocket,
    server: SocketAddr,
    start: Instant,
    /// What it was told.
    pub(crate) events: Vec<Event>,
}

/// An identity that no other number has.
pub(crate) fn key(n: u32) -> SecretKey {
    let mut bytes = [7; 32];
    bytes[..4].copy_from_slice(&n.to_be_bytes());
    SecretKey::from_bytes(bytes)
}

impl Node {
    /// Starts at this address.
    pub(crate) fn new(
        n: u32,
        local: SocketAddr,
        server: SocketAddr,
        public_key: PeerKey,
        admission: Option<PresharedKey>,
    ) -> Self {
        Self::knowing(n, local, server, &[public_key], admission)
    }

    /// Starts, and takes a server of any of these keys, of which it expects the first.
    pub(crate) fn knowing(
        n: u32,
        local: SocketAddr,
        server: SocketAddr,
        public_keys: &[PeerKey],
        admission: Option<PresharedKey>,
    ) -> Self {
        let config = Config {
            identity: key(n),
            servers: public_keys.to_vec(),
            admission,
        };
        let seed = std::array::from_fn(|i| (n.to_be_bytes()[i % 4]).wrapping_add(i as u8));
        let client = Client::new(config, server, ChaCha20Rng::from_seed(seed), Time::ZERO).unwrap();
        let socket = UdpSocket::bind(local).unwrap();
        Self {
            client,
            socket,
            server,
            start: Instant::now(),
            events: Vec::new(),
        }
    }

    /// The time, as its client sees it.
    pub(crate) fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Lives until this is true; false if it does not come true in time.
    pub(crate) fn live_until(&mut self, within: Duration, is_true: impl Fn(&Self) -> bool) -> bool {
        let end = Instant::now() + within;
        while !is_true(self) && Instant::now() < end {
            self.live();
        }
        is_true(self)
    }

    /// Does what is due and waits for a little.
    fn live(&mut self) {
        let now = self.start.elapsed();
        self.client.handle_timeout(Time::from_origin(now));
        while let Some(sent) = self.client.poll_transmit() {
            self.socket.send_to(&sent.payload, self.server).unwrap();
        }
        let wait = self
            .client
            .poll_timeout()
            .map_or(Duration::MAX, |at| at.since(Time::from_origin(now)));
        let wait = wait.clamp(Duration::from_millis(1), Duration::from_millis(50));
        self.socket.set_read_timeout(Some(wait)).unwrap();
        let mut buffer = [0; 2_048];
        if let Ok((length, from)) = self.socket.recv_from(&mut buffer) {
            self.client.handle_datagram(
                from,
                &buffer[..length],
                Time::from_origin(self.start.elapsed()),
            );
        }
        self.events
            .extend(std::iter::from_fn(|| self.client.poll_event()));
    }

    /// Whether the last thing that it was told about the server is good.
    pub(crate) fn is_up(&self) -> bool {
        let mut states = self
            .events
            .iter()
            .filter(|event| matches!(event, Event::Up { .. } | Event::Down));
        matches!(states.next_back(), Some(Event::Up { .. }))
    }
}
