//! Many clients of natpunch's own rendezvous in one process, each with an address of its own in
//! 127.0.0.0/8, behind one socket: the real client state machine, real packets.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::ops::Range;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use natpunch_net::{Ends, Inbox, Outbox, want_local_address};
use natpunch_rendezvous::client::{Client, Config, Event};
use natpunch_types::{PeerKey, SecretKey, Time};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;

/// One socket on all addresses, by which datagrams can leave from any address in 127.0.0.0/8.
pub(crate) fn any_loopback() -> UdpSocket {
    let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None).unwrap();
    want_local_address(&socket, any).unwrap();
    // What the kernel drops here would be measured as the server's loss.
    setsockopt(&socket, sockopt::RcvBufForce, &(64 << 20)).expect("root is needed for this test");
    socket.bind(&any.into()).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket.into()
}

/// The address of a client, or of a made-up one.
pub(crate) fn address(n: u32) -> Ipv4Addr {
    let [_, high, middle, low] = n.to_be_bytes();
    Ipv4Addr::new(127, 16 + high, middle, low)
}

fn number(ip: Ipv4Addr) -> Option<u32> {
    let [net, high, middle, low] = ip.octets();
    (net == 127 && high >= 16).then(|| u32::from_be_bytes([0, high - 16, middle, low]))
}

/// A client's private key.
pub(crate) fn key(n: u32) -> SecretKey {
    let mut bytes = [9; 32];
    bytes[..4].copy_from_slice(&n.to_be_bytes());
    SecretKey::from_bytes(bytes)
}

/// Waits until a socket can be read, at most this long.
pub(crate) fn readable(socket: &UdpSocket, longest: Duration) {
    let milliseconds = u16::try_from(longest.as_millis()).unwrap_or(u16::MAX);
    let _ = poll(
        &mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)],
        PollTimeout::from(milliseconds),
    );
}

/// Timers that are taken before what has come gets its turn again: a client whose answer has come
/// does not ask again.
const TIMERS_AT_ONCE: usize = 64;

/// The clients.
pub(crate) struct Swarm {
    /// The number of the first one.
    first: u32,
    pub(crate) clients: Vec<Client<ChaCha20Rng>>,
    /// Who is registered, as far as it knows.
    pub(crate) is_up: Vec<bool>,
    pub(crate) ups: usize,
    /// Datagrams sent and received.
    pub(crate) sent: u64,
    pub(crate) received: u64,
    /// How long a turn waits for something to come.
    pub(crate) patience: Duration,
    server: SocketAddr,
    socket: UdpSocket,
    start: Instant,
    timers: BinaryHeap<Reverse<(Duration, u32)>>,
    scheduled: Vec<Duration>,
    inbox: Inbox,
    outbox: Outbox,
    outgoing: Vec<(Ends, Vec<u8>)>,
}

impl Swarm {
    /// The clients of these numbers, each of which begins at some time.
    pub(crate) fn new(
        numbers: Range<u32>,
        server: SocketAddr,
        public_key: PeerKey,
        begins: impl Fn(u32) -> Duration,
    ) -> Self {
        let client = |n: u32| {
            let config = Config {
                identity: key(n),
                servers: vec![public_key],
                admission: None,
            };
            let mut seed = [3; 32];
            seed[..4].copy_from_slice(&n.to_be_bytes());
            Client::new(
                config,
                server,
                ChaCha20Rng::from_seed(seed),
                Time::from_origin(begins(n)),
            )
            .unwrap()
        };
        Self {
            first: numbers.start,
            clients: numbers.clone().map(client).collect(),
            is_up: vec![false; numbers.len()],
            ups: 0,
            sent: 0,
            received: 0,
            patience: Duration::from_millis(20),
            server,
            socket: any_loopback(),
            start: Instant::now(),
            timers: numbers.clone().map(|n| Reverse((begins(n), n))).collect(),
            scheduled: numbers.map(begins).collect(),
            inbox: Inbox::new(2_048),
            outbox: Outbox::default(),
            outgoing: Vec::new(),
        }
    }

    pub(crate) fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn index(&self, n: u32) -> usize {
        (n - self.first) as usize
    }

    /// Forgets who is registered, since their server went.
    pub(crate) fn all_down(&mut self) {
        self.ups = 0;
        self.is_up.fill(false);
    }

    /// Does what is due and takes what has come; waits a little for it if there is nothing.
    pub(crate) fn turn(&mut self, mut on_event: impl FnMut(u32, Event, Duration)) {
        let now = self.now();
        for _ in 0..TIMERS_AT_ONCE {
            let due = self
                .timers
                .peek()
                .filter(|Reverse((due, _))| *due <= now)
                .copied();
            let Some(Reverse((_, n))) = due else { break };
            self.timers.pop();
            let index = self.index(n);
            self.scheduled[index] = Duration::MAX;
            self.clients[index].handle_timeout(Time::from_origin(now));
            self.settle(n, now, &mut on_event);
        }
        self.flush();
        let wait = self
            .timers
            .peek()
            .map_or(Duration::MAX, |Reverse((due, _))| {
                due.saturating_sub(self.now())
            });
        readable(&self.socket, wait.min(self.patience));
        // Not for ever: timers are due, too.
        for _ in 0..64 {
            let mut inbox = std::mem::replace(&mut self.inbox, Inbox::new(0));
            let received = inbox.receive(&self.socket);
            let now = self.now();
            for (ends, payload) in inbox.datagrams() {
                let Some((IpAddr::V4(ip), _)) = ends.local else {
                    continue;
                };
                let Some(n) = number(ip).filter(|n| *n >= self.first) else {
                    continue;
                };
                let index = self.index(n);
                let Some(client) = self.clients.get_mut(index) else {
                    continue;
                };
                self.received += 1;
                client.handle_datagram(ends.remote, payload, Time::from_origin(now));
                self.settle(n, now, &mut on_event);
            }
            self.inbox = inbox;
            self.flush();
            if received.is_err() {
                break;
            }
        }
    }

    /// Sends what a client says, after something was done with it.
    pub(crate) fn settle(
        &mut self,
        n: u32,
        now: Duration,
        on_event: &mut impl FnMut(u32, Event, Duration),
    ) {
        let index = self.index(n);
        let client = &mut self.clients[index];
        while let Some(sent) = client.poll_transmit() {
            let ends = Ends {
                remote: self.server,
                local: Some((address(n).into(), 0)),
            };
            self.outgoing.push((ends, sent.payload));
        }
        while let Some(event) = client.poll_event() {
            let is_up = match event {
                Event::Up { .. } => true,
                Event::Down => false,
                _ => self.is_up[index],
            };
            self.ups = self.ups + usize::from(is_up) - usize::from(self.is_up[index]);
            self.is_up[index] = is_up;
            on_event(n, event, now);
        }
        if let Some(due) = client
            .poll_timeout()
            .map(Time::since_origin)
            .filter(|due| *due < self.scheduled[index])
        {
            self.scheduled[index] = due;
            self.timers.push(Reverse((due, n)));
        }
        if self.outgoing.len() >= 512 {
            self.flush();
        }
    }

    pub(crate) fn flush(&mut self) {
        self.sent += self.outbox.send(&self.socket, &self.outgoing) as u64;
        self.outgoing.clear();
    }
}
