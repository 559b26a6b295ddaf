//! The relay's shell: the sockets of its ports, spread over threads of their own, which pass
//! datagrams on by the batch.
//!
//! Each port has a socket on every address that the server listens on, so that a pair may meet on
//! it from IPv4 and IPv6. A port belongs to one thread. Its lock is taken once for a batch, and by
//! others only to do what the rendezvous says, which is rare; the rendezvous' own lock is never
//! taken to pass something on.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::ops::RangeInclusive;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use natpunch_net::{Ends, Inbox, Outbox, want_local_address};
use natpunch_os::allow_fragments;
use natpunch_rendezvous::relay::{Budget, Command, Counters, Event, Own, Port, Verdict};
use natpunch_rendezvous::server::Via;
use natpunch_rendezvous::wire::BIND_LEN;
use natpunch_types::{Time, lock, with_help};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Protocol, Socket, Type};

use super::heartbeats::{BEAT, Heartbeat};
use super::protocols::Protocols;
use super::settings::{RelayPorts, RelaySettings};
use super::streams::STREAM;
use super::streams::mailbox::Mailbox;
use super::udp::control;
use super::worker::Shared;
use super::{Backoff, ServeError};

/// Longer than any packet of WireGuard's on a usual path, and than those that fit in one of
/// Ethernet's jumbo frames.
const LONGEST: usize = 9_216;
/// What is asked of the kernel for each socket; it gives what net.core.rmem_max and wmem_max allow.
const BUFFERS: usize = 2 << 20;
/// How many ports there are unless the settings say it.
const DEFAULT_PORTS: usize = 32;
/// How often another free port is tried, where any will do and one is needed on several addresses.
const FREE_PORT_TRIES: usize = 16;

/// The ports' states, told by the rendezvous what to do.
pub(super) struct Ports {
    ports: Vec<Mutex<Port>>,
}

impl Ports {
    /// Does what the rendezvous says of the port with this number, counted from 0.
    pub(super) fn command(&self, port: usize, command: Command, now: Time) {
        if let Some(port) = self.ports.get(port) {
            lock(port).handle_command(command, now);
        }
    }

    /// What all ports did so far, together.
    pub(super) fn counters(&self) -> Counters {
        let mut sum = Counters::default();
        self.ports
            .iter()
            .for_each(|port| sum += lock(port).counters());
        sum
    }
}

/// The sockets of all ports, opened.
pub(super) struct Sockets {
    /// The UDP port numbers.
    pub(super) numbers: Vec<u16>,
    /// For each port one socket on each address.
    of_ports: Vec<Vec<UdpSocket>>,
}

impl Sockets {
    /// Opens the sockets of the settings' ports on the addresses that the server listens on.
    /// `mark`: their firewall mark, or 0.
    ///
    /// # Errors
    /// A port that was asked for by number can't be had. Without that, one that can't be had is
    /// left out.
    pub(super) fn bind(
        listen: &[SocketAddr],
        ports: &RelayPorts,
        mark: u32,
    ) -> Result<Self, ServeError> {
        let addresses: BTreeSet<IpAddr> = listen.iter().map(SocketAddr::ip).collect();
        let taken: BTreeSet<u16> = listen.iter().map(SocketAddr::port).collect();
        let mut sockets = Self {
            numbers: Vec::new(),
            of_ports: Vec::new(),
        };
        let Some(first) = listen.first().map(SocketAddr::port) else {
            return Ok(sockets);
        };
        let mut bind = |port: u16| -> Result<(), ServeError> {
            let bound = bind_port(&addresses, port, mark)?;
            sockets.numbers.extend(
                bound
                    .iter()
                    .take(1)
                    .filter_map(|socket| Some(socket.local_addr().ok()?.port())),
            );
            sockets.of_ports.push(bound);
            Ok(())
        };
        let mut refused = None;
        match ports {
            RelayPorts::Range(range) => {
                range
                    .clone()
                    .filter(|port| !taken.contains(port))
                    .try_for_each(&mut bind)?;
            }
            RelayPorts::Any => refused = (0..DEFAULT_PORTS).filter_map(|_| bind(0).err()).last(),
            RelayPorts::Next => {
                let next = (first.saturating_add(1)..u16::MAX).filter(|port| !taken.contains(port));
                refused = next
                    .take(DEFAULT_PORTS)
                    .filter_map(|port| bind(port).err())
                    .last();
            }
        }
        if let Some(error) = refused {
            let problem = format!(
                "the relay has only {} ports: {error}",
                sockets.numbers.len()
            );
            let help = "relay_ports = \"FIRST-LAST\" in the --config file chooses others";
            tracing::warn!("{}", with_help(problem, [help]));
        }
        Ok(sockets)
    }

    /// The states of these ports.
    ///
    /// # Errors
    /// The system has no randomness.
    pub(super) fn ports(
        &self,
        listen: &[SocketAddr],
        settings: &RelaySettings,
    ) -> io::Result<Arc<Ports>> {
        let own = Own {
            addresses: listen.iter().map(SocketAddr::ip).collect(),
            ports: listen
                .iter()
                .map(SocketAddr::port)
                .chain(self.numbers.iter().copied())
                .collect(),
        };
        let budget = Arc::new(Budget::new(settings.total_bytes_per_second));
        let port = || {
            let mut key = [0; 32];
            getrandom::fill(&mut key).map_err(|error| io::Error::other(error.to_string()))?;
            Ok(Mutex::new(
                Port::new(settings.limits, own.clone(), key).within(budget.clone()),
            ))
        };
        let ports = self
            .numbers
            .iter()
            .map(|_| port())
            .collect::<io::Result<_>>()?;
        Ok(Arc::new(Ports { ports }))
    }
}

/// One port on all addresses; 0 for any that is free on all of them.
fn bind_port(
    addresses: &BTreeSet<IpAddr>,
    port: u16,
    mark: u32,
) -> Result<Vec<UdpSocket>, ServeError> {
    let tries = if port == 0 { FREE_PORT_TRIES } else { 1 };
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..tries {
        let (mut number, mut bound) = (port, Vec::new());
        let result = addresses.iter().try_for_each(|ip| {
            let socket = open_socket(SocketAddr::new(*ip, number), mark)?;
            number = socket.local_addr()?.port();
            bound.push(socket);
            Ok(())
        });
        match result {
            Ok(()) => return Ok(bound),
            Err(error) => last = error,
        }
    }
    let address = addresses
        .first()
        .map_or(IpAddr::from([0, 0, 0, 0]), |ip| *ip);
    Err(ServeError::Listen {
        protocol: "UDP",
        address: SocketAddr::new(address, port),
        source: last,
    })
}

fn open_socket(address: SocketAddr, mark: u32) -> io::Result<UdpSocket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    allow_fragments(&socket)?;
    if mark != 0 {
        socket.set_mark(mark)?;
    }
    // A smaller buffer than asked for only drops earlier.
    let _ = socket.set_recv_buffer_size(BUFFERS);
    let _ = socket.set_send_buffer_size(BUFFERS);
    socket.set_nonblocking(true)?;
    want_local_address(&socket, address)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Opens the relay of a server that listens at these addresses; its rendezvous offers it from now
/// on.
///
/// # Errors
/// As [`Sockets::bind`]; or the system has no randomness.
pub(super) fn open(
    protocols: &mut Protocols,
    listen: &[SocketAddr],
    settings: &RelaySettings,
    mark: u32,
) -> Result<Relay, ServeError> {
    let sockets = Sockets::bind(listen, &settings.ports, mark)?;
    let ports = sockets.ports(listen, settings)?;
    if let (Some(first), Some(last)) = (sockets.numbers.iter().min(), sockets.numbers.iter().max())
    {
        tracing::info!(
            "the relay has {} UDP ports, {first} to {last}",
            sockets.numbers.len()
        );
    }
    protocols.set_relay(sockets.numbers.clone(), ports.clone());
    Ok(Relay { sockets, ports })
}

/// A relay whose sockets are open, but that passes nothing on yet.
pub(super) struct Relay {
    sockets: Sockets,
    ports: Arc<Ports>,
}

impl Relay {
    /// The first and the last of its UDP ports; `None`: it has none.
    pub(super) fn range(&self) -> Option<RangeInclusive<u16>> {
        let numbers = &self.sockets.numbers;
        Some(*numbers.iter().min()?..=*numbers.iter().max()?)
    }

    /// The ports, spread over at most so many threads. `control` are the server's own sockets: what
    /// the rendezvous says when ports have something to tell leaves by them.
    ///
    /// # Errors
    /// The system has no files left.
    pub(super) fn forwarders(
        self,
        threads: usize,
        control: &[UdpSocket],
        shared: &Arc<Shared>,
    ) -> io::Result<Vec<Forwarder>> {
        let mailboxes: Vec<Arc<Mailbox>> = (0..threads.max(1))
            .map(|_| Mailbox::new().map(Arc::new))
            .collect::<io::Result<_>>()?;
        let mut shares: Vec<Vec<(usize, Vec<UdpSocket>)>> =
            mailboxes.iter().map(|_| Vec::new()).collect();
        let count = shares.len();
        let mut by_number = BTreeMap::new();
        let ports = self.sockets.of_ports.into_iter();
        for (index, (sockets, udp)) in ports.zip(&self.sockets.numbers).enumerate() {
            let mailbox = mailboxes.get(index % count);
            if let Some((share, mailbox)) = shares.get_mut(index % count).zip(mailbox) {
                by_number.insert(*udp, (mailbox.clone(), share.len()));
                share.push((index, sockets));
            }
        }
        shared.streams.set_relay(by_number);
        let numbers = &self.sockets.numbers;
        let forwarder = |(share, mailbox): (Vec<(usize, Vec<UdpSocket>)>, Arc<Mailbox>)| {
            let udp_ports = share.iter().map(|(index, _)| numbers.get(*index).copied());
            let udp_ports = udp_ports.map(Option::unwrap_or_default).collect();
            let control = control
                .iter()
                .map(UdpSocket::try_clone)
                .collect::<io::Result<_>>()?;
            Ok(Forwarder::new(
                share,
                (udp_ports, mailbox),
                self.ports.clone(),
                control,
                shared.clone(),
            ))
        };
        shares
            .into_iter()
            .zip(mailboxes)
            .filter(|(share, _)| !share.is_empty())
            .map(forwarder)
            .collect()
    }
}

/// What is to be sent: by each of so many sockets, and last what goes into streams.
fn outgoing_of<'a>(sockets: &[UdpSocket]) -> Vec<Vec<(Ends, Payload<'a>)>> {
    (0..=sockets.len()).map(|_| Vec::new()).collect()
}

/// Adds what may leave a port's queues to what goes out by each of its sockets.
fn release_into(port: &mut Port, outgoing: &mut [Vec<(Ends, Payload<'_>)>], now: Time) {
    while let Some((via, to, payload)) = port.poll_transmit(now) {
        let ends = Ends {
            remote: to,
            local: via.local,
        };
        let streams = outgoing.len().saturating_sub(1);
        if let Some(outgoing) = outgoing.get_mut(via.socket.min(streams)) {
            outgoing.push((ends, Payload::Released(payload)));
        }
    }
}

/// One thread, with its ports.
pub(super) struct Forwarder {
    /// Which port each socket is of, and the number of it there.
    places: Vec<(usize, usize)>,
    sockets: Vec<Vec<UdpSocket>>,
    numbers: Vec<usize>,
    /// The UDP port of each.
    udp_ports: Vec<u16>,
    /// What came in streams.
    mailbox: Arc<Mailbox>,
    ports: Arc<Ports>,
    /// The server's own sockets.
    control: Vec<UdpSocket>,
    /// When something may leave the queues of each of its ports.
    releases: Vec<Option<Time>>,
    shared: Arc<Shared>,
}

/// What is sent: what came, or an answer of the port's own.
enum Payload<'a> {
    Forwarded(&'a [u8]),
    Released(Vec<u8>),
    Answer([u8; BIND_LEN]),
}

impl AsRef<[u8]> for Payload<'_> {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Forwarded(payload) => payload,
            Self::Released(payload) => payload,
            Self::Answer(answer) => answer,
        }
    }
}

impl Forwarder {
    fn new(
        share: Vec<(usize, Vec<UdpSocket>)>,
        (udp_ports, mailbox): (Vec<u16>, Arc<Mailbox>),
        ports: Arc<Ports>,
        control: Vec<UdpSocket>,
        shared: Arc<Shared>,
    ) -> Self {
        let (numbers, sockets): (Vec<_>, Vec<_>) = share.into_iter().unzip();
        let places = sockets
            .iter()
            .enumerate()
            .flat_map(|(port, sockets)| (0..sockets.len()).map(move |n| (port, n)));
        Self {
            releases: vec![None; sockets.len()],
            places: places.collect(),
            sockets,
            numbers,
            udp_ports,
            mailbox,
            ports,
            control,
            shared,
        }
    }

    /// Serves its ports until the other end of `stop` is closed.
    pub(super) fn run(mut self, heartbeat: &Heartbeat, stop: &UnixStream) {
        let (mut inbox, mut outbox) = (Inbox::new(LONGEST), Outbox::default());
        let mut backoff = Backoff::new();
        let mut ready = Vec::with_capacity(self.places.len());
        let mut next_tick = self.shared.start.now() + BEAT;
        while self.wait(stop, &mut ready) {
            heartbeat.show(self.shared.start.now());
            for (port, socket) in ready.iter().copied() {
                match self.pass(port, socket, &mut inbox, &mut outbox) {
                    Ok(()) => backoff.reset(),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => {
                        self.shared.counters.relay_receive_errors.add();
                        tracing::debug!(%error, "a relay port can't receive");
                        std::thread::sleep(backoff.next());
                    }
                }
            }
            self.pass_streams(&mut outbox);
            let now = self.shared.start.now();
            for port in 0..self.releases.len() {
                let release = self.releases.get(port).copied().flatten();
                if release.is_some_and(|release| release <= now) {
                    self.release(port, &mut outbox, now);
                }
            }
            if now >= next_tick {
                next_tick = now + BEAT;
                self.tick(&mut outbox, now);
            }
        }
    }

    /// Waits for datagrams or the next tick; false if the server is to stop.
    fn wait(&self, stop: &UnixStream, ready: &mut Vec<(usize, usize)>) -> bool {
        let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut files: Vec<PollFd<'_>> = self
            .sockets
            .iter()
            .flatten()
            .map(|socket| readable(socket.as_fd()))
            .collect();
        files.push(readable(self.mailbox.as_fd()));
        files.push(readable(stop.as_fd()));
        let next = self.releases.iter().flatten().min().copied();
        let wait = next.map_or(BEAT, |next| next.since(self.shared.start.now()).min(BEAT));
        // Rounded up, for else the last millisecond would be waited for in a busy loop. An
        // interrupted wait is a short one.
        let milliseconds = u16::try_from(wait.as_micros().div_ceil(1_000)).unwrap_or(u16::MAX);
        let _ = poll(&mut files, PollTimeout::from(milliseconds));
        let is_ready = |file: &PollFd<'_>| file.any() == Some(true);
        ready.clear();
        ready.extend(
            self.places
                .iter()
                .zip(&files)
                .filter(|(_, file)| is_ready(file))
                .map(|(place, _)| *place),
        );
        !files.last().is_some_and(is_ready)
    }

    /// Passes one batch on.
    fn pass(
        &mut self,
        port: usize,
        socket: usize,
        inbox: &mut Inbox,
        outbox: &mut Outbox,
    ) -> io::Result<()> {
        let from = self.sockets.get(port).and_then(|of| of.get(socket));
        let Some(from) = from else {
            return Ok(());
        };
        inbox.receive(from)?;
        self.take(port, socket, inbox.datagrams(), outbox);
        Ok(())
    }

    /// Passes on what came in streams.
    fn pass_streams(&mut self, outbox: &mut Outbox) {
        let mut arrived = self.mailbox.take();
        let arrived = arrived.make_contiguous();
        for of_port in arrived.chunk_by(|a, b| a.place == b.place) {
            let Some(port) = of_port.first().map(|arrived| arrived.place) else {
                continue;
            };
            let datagrams = of_port
                .iter()
                .map(|arrived| (arrived.source.into(), arrived.payload.as_slice()));
            self.take(port, STREAM, datagrams, outbox);
        }
    }

    /// Passes on datagrams that came to a port by one of its sockets, or in streams.
    fn take<'a>(
        &mut self,
        port: usize,
        socket: usize,
        datagrams: impl Iterator<Item = (Ends, &'a [u8])>,
        outbox: &mut Outbox,
    ) {
        let (Some(sockets), Some(number)) = (self.sockets.get(port), self.numbers.get(port)) else {
            return;
        };
        let Some(state) = self.ports.ports.get(*number) else {
            return;
        };
        let now = self.shared.start.now();
        let mut outgoing = outgoing_of(sockets);
        let (events, release): (Vec<Event>, _) = {
            let mut state = lock(state);
            // What waits comes before what arrives.
            release_into(&mut state, &mut outgoing, now);
            for (ends, payload) in datagrams {
                let via = Via {
                    socket,
                    local: ends.local,
                };
                let (to, ends, payload) =
                    match state.handle_datagram(via, ends.remote, payload, now) {
                        Verdict::Drop | Verdict::Queued => continue,
                        Verdict::Forward { via, to } => (
                            via.socket,
                            Ends {
                                remote: to,
                                local: via.local,
                            },
                            Payload::Forwarded(payload),
                        ),
                        Verdict::Answer(answer) => (socket, ends, Payload::Answer(answer)),
                    };
                if let Some(outgoing) = outgoing.get_mut(to.min(sockets.len())) {
                    outgoing.push((ends, payload));
                }
            }
            let events = std::iter::from_fn(|| state.poll_event()).collect();
            (events, state.poll_release())
        };
        self.send(port, sockets, &outgoing, outbox);
        if let Some(at) = self.releases.get_mut(port) {
            *at = release;
        }
        self.report(&events, outbox, now);
    }

    /// Sends what may leave a port's queues.
    fn release(&mut self, port: usize, outbox: &mut Outbox, now: Time) {
        let (Some(sockets), Some(number)) = (self.sockets.get(port), self.numbers.get(port)) else {
            return;
        };
        let Some(state) = self.ports.ports.get(*number) else {
            return;
        };
        let mut outgoing = outgoing_of(sockets);
        let release = {
            let mut state = lock(state);
            release_into(&mut state, &mut outgoing, now);
            state.poll_release()
        };
        self.send(port, sockets, &outgoing, outbox);
        if let Some(at) = self.releases.get_mut(port) {
            *at = release;
        }
    }

    /// Sends by each of a port's sockets, and in streams. What can't be sent is lost, as the network
    /// might have lost it.
    fn send(
        &self,
        port: usize,
        sockets: &[UdpSocket],
        outgoing: &[Vec<(Ends, Payload<'_>)>],
        outbox: &mut Outbox,
    ) {
        for (socket, outgoing) in sockets.iter().zip(outgoing) {
            if !outgoing.is_empty() {
                let sent = outbox.send(socket, outgoing);
                let errors = &self.shared.counters.relay_send_errors;
                errors.count(outgoing.len() - sent);
            }
        }
        let udp_port = self.udp_ports.get(port).copied().unwrap_or_default();
        for (ends, payload) in outgoing.get(sockets.len()).into_iter().flatten() {
            if !self
                .shared
                .streams
                .send(ends.remote, udp_port, payload.as_ref())
            {
                self.shared.counters.stream_unsent.add();
            }
        }
    }

    /// Ends what is over.
    fn tick(&self, outbox: &mut Outbox, now: Time) {
        let mut events = Vec::new();
        for state in self
            .numbers
            .iter()
            .filter_map(|number| self.ports.ports.get(*number))
        {
            let mut state = lock(state);
            state.handle_timeout(now);
            events.extend(std::iter::from_fn(|| state.poll_event()));
        }
        self.report(&events, outbox, now);
    }

    /// Tells the rendezvous what became of allocations, and sends what it says to that.
    fn report(&self, events: &[Event], outbox: &mut Outbox, now: Time) {
        let Some(rendezvous) = self
            .shared
            .protocols
            .rendezvous()
            .filter(|_| !events.is_empty())
        else {
            return;
        };
        let unsealed = rendezvous.handle_relay_events(events, now);
        let unsent = control::send(unsealed, &self.control, &self.shared, outbox);
        self.shared.counters.relay_send_errors.count(unsent);
    }
}
