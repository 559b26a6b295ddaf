//! The way to the server by a stream of TLS, where no UDP gets through: when it is taken, and what
//! the client in it sends and hears.
//!
//! The host has a forwarder, which gives a port of the server an address on this host
//! ([`Host::open_stream`]). The client thinks of the server as a host with the forwarder's address
//! and the server's own port numbers; this is where one is made of the other.

use std::collections::BTreeMap;
use std::future::pending;
use std::net::SocketAddr;
use std::time::Duration;

use natpunch_plugin::{BoxFuture, Host, State, StreamPort, Upstream};
use natpunch_rendezvous::client::{Client, Outgoing, To};
use natpunch_rendezvous::stream::SERVER;
use natpunch_types::{FORWARDER, Time};
use rand_chacha::ChaCha20Rng;
use tracing::{debug, info};

/// A stream is made when UDP has been silent for this long, or for the second time where an answer
/// is awaited in a session that worked until now: the server answers at once, and was asked three
/// times.
const SILENCE: Duration = Duration::from_secs(3);
const UNANSWERED: Duration = Duration::from_secs(2);
/// An answer that is not there after this time is late.
const LATE: Duration = Duration::from_secs(1);
/// UDP has to work for this long before the stream is left. Meanwhile a direct path may be found,
/// and no relay has to be changed.
const RETURN: Duration = Duration::from_secs(6);
/// How often the forwarder is told that it is needed, and how often it is asked while there is no
/// stream yet.
const REFRESH: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(200);
/// Ports of the server that are opened at one time.
const MAX_PORTS: usize = 128;

/// The server, as the client in the stream knows it.
const ALIAS: u16 = 1;

/// How UDP to the server does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Udp {
    /// It answers.
    Works,
    /// An answer is late, since this time on.
    Late(Time),
    /// There is no session.
    Down,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Nothing.
    Stay,
    /// There is a stream: make a client for it.
    Begin,
    /// UDP works again.
    End,
}

type Opening<'a> = BoxFuture<'a, (u16, Result<StreamPort, String>)>;

/// The stream to one server.
pub(crate) struct Stream<'a> {
    server: Option<&'a Upstream>,
    host: &'a dyn Host,
    pub(crate) client: Option<Client<ChaCha20Rng>>,
    /// How the server does in it.
    pub(crate) state: State,
    /// Why there is none.
    pub(crate) problem: Option<String>,
    /// Since when UDP is as it is.
    silent: Option<Time>,
    works: Option<Time>,
    is_wanted: bool,
    /// The server's ports, as they are on this host, and what waits for one that is being opened.
    ports: BTreeMap<u16, SocketAddr>,
    waiting: BTreeMap<u16, Vec<u8>>,
    is_connected: bool,
    opening: Option<Opening<'a>>,
    due: Time,
}

impl<'a> Stream<'a> {
    /// No stream, to a server that has or has not such a way.
    pub(crate) fn new(server: Option<&'a Upstream>, host: &'a dyn Host) -> Self {
        Self {
            server,
            host,
            client: None,
            state: State::Unknown,
            problem: None,
            silent: None,
            works: None,
            is_wanted: false,
            ports: BTreeMap::new(),
            waiting: BTreeMap::new(),
            is_connected: false,
            opening: None,
            due: Time::ZERO,
        }
    }

    /// The address by which the client knows the server.
    pub(crate) fn alias() -> SocketAddr {
        SocketAddr::from((FORWARDER, ALIAS))
    }

    /// Whether the server answers in it.
    pub(crate) fn is_up(&self) -> bool {
        self.client.is_some() && matches!(self.state, State::Up(_))
    }

    /// Whether UDP gets no answer, so that the stream is used if there is one.
    pub(crate) fn is_needed(&self) -> bool {
        self.is_wanted && self.silent.is_some()
    }

    /// How UDP does at this time; what is to be done.
    pub(crate) fn handle(&mut self, udp: Udp, now: Time) -> Turn {
        if self.server.is_none() {
            return Turn::Stay;
        }
        let late = match udp {
            Udp::Works => false,
            Udp::Late(since) => now.since(since) >= LATE,
            Udp::Down => true,
        };
        if !late {
            self.silent = None;
            let works = *self.works.get_or_insert(now);
            if self.is_wanted && now.since(works) >= RETURN {
                self.end();
                return Turn::End;
            }
            return Turn::Stay;
        }
        self.works = None;
        let since = *self.silent.get_or_insert(now);
        let is_due = match udp {
            Udp::Late(asked) => now.since(asked) >= UNANSWERED,
            Udp::Works | Udp::Down => now.since(since) >= SILENCE,
        };
        if is_due && !self.is_wanted {
            info!("no answer by UDP, so the server is asked by TLS");
            (self.is_wanted, self.due) = (true, now);
        }
        if self.is_wanted && now >= self.due && self.opening.is_none() {
            self.open(SERVER, now);
        }
        if self.is_connected && self.client.is_none() {
            return Turn::Begin;
        }
        Turn::Stay
    }

    /// When [`handle`](Self::handle) wants to be called.
    pub(crate) fn poll_timeout(&self, udp: Udp) -> Option<Time> {
        self.server?;
        let turns = match udp {
            Udp::Late(asked) => Some(
                asked
                    + if self.silent.is_some() {
                        UNANSWERED
                    } else {
                        LATE
                    },
            ),
            Udp::Works | Udp::Down => self.silent.map(|since| since + SILENCE),
        };
        let turns = turns.filter(|_| !self.is_wanted);
        let back = self.works.map(|works| works + RETURN);
        let back = back.filter(|_| self.is_wanted);
        let due = (self.is_wanted && self.opening.is_none()).then_some(self.due);
        [turns, back, due].into_iter().flatten().min()
    }

    fn open(&mut self, port: u16, now: Time) {
        let Some(server) = self.server else { return };
        self.due = now + if self.is_connected { REFRESH } else { LOOK };
        let opened = self.host.open_stream(server, port);
        self.opening = Some(Box::pin(async move { (port, opened.await) }));
    }

    /// Waits until a port is opened.
    pub(crate) async fn opened(&mut self) -> (u16, Result<StreamPort, String>) {
        let opened = match &mut self.opening {
            Some(opening) => opening.await,
            None => pending().await,
        };
        self.opening = None;
        opened
    }

    /// A port was opened, or not. What waited for it is sent.
    pub(crate) fn handle_opened(
        &mut self,
        port: u16,
        opened: Result<StreamPort, String>,
        now: Time,
    ) {
        match opened {
            Ok(opened) => {
                self.problem = opened.problem;
                self.is_connected = opened.is_connected;
                if self.ports.len() < MAX_PORTS {
                    self.ports.insert(port, opened.address);
                }
                if let Some(payload) = self.waiting.remove(&port) {
                    self.host.send_from_wireguard_port(opened.address, payload);
                }
            }
            Err(problem) => {
                debug!(port, problem, "no stream");
                self.problem = Some(problem);
                self.waiting.remove(&port);
            }
        }
        if !self.is_wanted {
            return;
        }
        if let Some(port) = self.waiting.keys().next().copied() {
            self.open(port, now);
        } else {
            self.due = now + if self.is_connected { REFRESH } else { LOOK };
        }
    }

    /// Sends what the client has to send.
    pub(crate) fn send(&mut self, outgoing: Outgoing, now: Time) {
        let port = match outgoing.to {
            To::Server => SERVER,
            To::Address(address) => address.port(),
        };
        if let Some(address) = self.ports.get(&port) {
            self.host
                .send_from_wireguard_port(*address, outgoing.payload);
        } else if self.waiting.len() < MAX_PORTS {
            // What is said again takes the place of what waits.
            self.waiting.insert(port, outgoing.payload);
            if self.opening.is_none() {
                self.open(port, now);
            }
        }
    }

    /// From where a datagram came, as the client knows it, if it came in the stream.
    pub(crate) fn source(&self, source: SocketAddr) -> Option<SocketAddr> {
        let mut ports = self.ports.iter();
        let (port, _) = ports.find(|(_, address)| **address == source)?;
        let port = if *port == SERVER { ALIAS } else { *port };
        Some(SocketAddr::from((FORWARDER, port)))
    }

    /// Where a relay's port that the client names is on this host.
    pub(crate) fn local(&self, relay: SocketAddr) -> Option<SocketAddr> {
        self.ports.get(&relay.port()).copied()
    }

    fn end(&mut self) {
        info!("UDP works again, so TLS is left");
        *self = Self::new(self.server, self.host);
    }
}

#[cfg(test)]
mod tests {
    use natpunch_plugin::testing::FakeHost;
    use natpunch_plugin::{PeerKey, SecretKey};

    use super::*;

    fn at(millis: u64) -> Time {
        Time::from_millis(1_000_000 + millis)
    }

    fn upstream() -> Upstream {
        Upstream {
            url: "https://relay.example".to_owned(),
            ca_file: None,
            proxy: None,
        }
    }

    #[test]
    fn a_stream_is_wanted_after_two_to_three_seconds_of_silence_and_left_when_udp_has_worked_for_a_while()
     {
        let (host, server) = (
            FakeHost::new(
                PeerKey::from_bytes([1; 32]),
                Some(SecretKey::from_bytes([1; 32])),
                1,
            ),
            upstream(),
        );
        let mut stream = Stream::new(Some(&server), &*host);
        assert_eq!(stream.handle(Udp::Down, at(0)), Turn::Stay);
        assert_eq!(stream.poll_timeout(Udp::Down), Some(at(3_000)));
        stream.handle(Udp::Down, at(2_999));
        assert!(!stream.is_wanted);
        stream.handle(Udp::Down, at(3_000));
        assert!(stream.is_wanted && stream.opening.is_some());
        let port = StreamPort {
            address: SocketAddr::from((FORWARDER, 40_000)),
            is_connected: true,
            problem: None,
        };
        stream.opening = None;
        stream.handle_opened(SERVER, Ok(port), at(3_100));
        assert_eq!(stream.handle(Udp::Down, at(3_100)), Turn::Begin);
        assert_eq!(stream.handle(Udp::Works, at(9_000)), Turn::Stay);
        stream.handle(Udp::Late(at(9_000)), at(10_000));
        assert_eq!(stream.handle(Udp::Works, at(11_000)), Turn::Stay);
        assert_eq!(stream.handle(Udp::Works, at(16_999)), Turn::Stay);
        assert_eq!(stream.handle(Udp::Works, at(17_000)), Turn::End);
        assert!(!stream.is_wanted);
        assert_eq!(stream.handle(Udp::Late(at(20_000)), at(21_999)), Turn::Stay);
        assert!(!stream.is_wanted);
        stream.handle(Udp::Late(at(20_000)), at(22_000));
        assert!(stream.is_wanted);
    }

    #[test]
    fn a_server_without_such_a_way_is_never_asked_by_it() {
        let host = FakeHost::new(PeerKey::from_bytes([1; 32]), None, 1);
        let mut stream = Stream::new(None, &*host);
        for n in 0..100 {
            assert_eq!(stream.handle(Udp::Down, at(n * 1_000)), Turn::Stay);
        }
        assert!(!stream.is_wanted && stream.poll_timeout(Udp::Down).is_none());
    }
}
