//! What needs a peer at the other end: sessions, counters, kicks. Two namespaces and a cable:
//!
//! ```text
//!   a: 192.0.2.1 --------- veth --------- 192.0.2.2, 192.0.2.3 :b
//!      10.5.0.1  the backend under test     embedded  10.5.0.2
//! ```

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Child;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use natpunch_types::{DevicePeer, INITIATION_LEN, PeerKey, PresharedKey, resting_endpoint};
use natpunch_wg::{
    BackendChoice, Device as _, EndpointUpdate, Interface, InterfaceSpec, UapiDevice,
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::common::{Netns, peer, spec, start_wireguard_go, unique_name, until};

#[test]
fn embedded() {
    claims(BackendChoice::Userspace);
}

#[test]
fn external() {
    claims(BackendChoice::External);
}

/// Run by `make test-vm`, whose kernel has WireGuard.
#[test]
#[ignore = "needs kernel WireGuard: `make test-vm` runs it"]
fn kernel() {
    claims(BackendChoice::Kernel);
}

fn claims(backend: BackendChoice) {
    a_kick_connects_at_once_while_somebody_pings(backend);
    a_copy_of_what_went_to_a_resting_peer_connects_and_loses_nothing(backend);
    a_session_survives_every_change_but_its_own_removal(backend);
    a_kick_of_an_idle_session_reaches_the_peer_and_counts_there(backend);
    kicks_of_both_ends_at_once_are_both_heard(backend);
    a_handshake_that_the_other_cannot_finish_is_none(backend);
    forged_datagrams_change_nothing(backend);
}

/// The two ends. Their interfaces and processes go with the value.
pub(crate) struct Pair {
    pub(crate) a: Netns,
    pub(crate) b: Netns,
    pub(crate) spec_a: InterfaceSpec,
    pub(crate) spec_b: InterfaceSpec,
    interface: Option<Interface>,
    external: Option<Child>,
    _directory: tempfile::TempDir,
}

impl Pair {
    pub(crate) fn new(backend: BackendChoice) -> Self {
        let (a, b) = (Netns::new(), Netns::new());
        a.cable(&b, "192.0.2.1/24", "192.0.2.2/24");
        b.sh("ip address add 192.0.2.3/24 dev veth0");
        let directory = tempfile::tempdir().unwrap();
        let mut spec_a = spec(&unique_name(), directory.path(), 0x41);
        let mut spec_b = spec(&unique_name(), directory.path(), 0x42);
        spec_a.addresses = vec!["10.5.0.1/24".parse().unwrap()];
        spec_b.addresses = vec!["10.5.0.2/24".parse().unwrap()];
        spec_a.backend = backend;
        spec_a.peers = vec![peer(&spec_b, &["10.5.0.2/32"])];
        spec_b.peers = vec![peer(&spec_a, &["10.5.0.1/32"])];
        let external =
            (backend == BackendChoice::External).then(|| start_wireguard_go(&a, &spec_a.name));
        let (open_a, open_b) = (spec_a.clone(), spec_b.clone());
        b.run(move || Interface::open(&open_b)).unwrap();
        let interface = a.run(move || Interface::open(&open_a)).unwrap();
        Self {
            a,
            b,
            spec_a,
            spec_b,
            interface: Some(interface),
            external,
            _directory: directory,
        }
    }

    /// Does something with the interface of a, in its namespace.
    pub(crate) fn with<T: Send + 'static>(
        &mut self,
        f: impl FnOnce(&mut Interface) -> T + Send + 'static,
    ) -> T {
        let mut interface = self.interface.take().unwrap();
        let (interface, result) = self.a.run(move || {
            let result = f(&mut interface);
            (interface, result)
        });
        self.interface = Some(interface);
        result
    }

    fn peer_key(&self) -> PeerKey {
        self.spec_a.peers[0].key
    }

    pub(crate) fn set_endpoint(&mut self, endpoint: &str, kick: bool) {
        let (key, endpoint) = (self.peer_key(), endpoint.parse().unwrap());
        let outcome = self.with(move |interface| interface.set_endpoint(&key, endpoint, kick));
        assert_eq!(outcome.unwrap(), EndpointUpdate::Updated);
    }

    pub(crate) fn peer(&mut self) -> DevicePeer {
        let key = self.peer_key();
        self.with(|interface| interface.snapshot())
            .unwrap()
            .peer(&key)
            .unwrap()
            .clone()
    }

    pub(crate) fn apply(&mut self) {
        let spec = self.spec_a.clone();
        self.with(move |interface| interface.apply(&spec)).unwrap();
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for (netns, spec) in [
            (&self.a, self.spec_a.clone()),
            (&self.b, self.spec_b.clone()),
        ] {
            let _ =
                netns.run(move || natpunch_wg::down(&spec.name, &spec.owner, &spec.runtime_dir));
        }
        if let Some(mut child) = self.external.take() {
            let _ = child.kill();
            let _ = child.wait();
            let _ = std::fs::remove_file(format!("/var/run/wireguard/{}.sock", self.spec_a.name));
        }
    }
}

/// Somebody who pings: a datagram each 5 ms from a to an echo in b, from now until the value goes.
pub(crate) struct Pinger {
    stop: Arc<AtomicBool>,
    replies: Arc<AtomicU64>,
    times: mpsc::Receiver<Instant>,
}

impl Pinger {
    const PORT: u16 = 7_777;

    pub(crate) fn start(pair: &Pair) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let replies = Arc::new(AtomicU64::new(0));
        let (sender, times) = mpsc::channel();
        let echo = pair
            .b
            .run(|| UdpSocket::bind(("10.5.0.2", Self::PORT)).unwrap());
        let ping = pair.a.run(|| UdpSocket::bind("10.5.0.1:0").unwrap());
        for socket in [&echo, &ping] {
            socket
                .set_read_timeout(Some(Duration::from_millis(5)))
                .unwrap();
        }
        let stopped = Arc::clone(&stop);
        thread::spawn(move || {
            let mut buffer = [0; 64];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((n, from)) = echo.recv_from(&mut buffer) {
                    let _ = echo.send_to(&buffer[..n], from);
                }
            }
        });
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&replies));
        thread::spawn(move || {
            let to: SocketAddr =
                ("10.5.0.2".parse::<std::net::IpAddr>().unwrap(), Self::PORT).into();
            let mut buffer = [0; 64];
            while !stopped.load(Ordering::Relaxed) {
                // Refused while there is no endpoint.
                let _ = ping.send_to(b"ping", to);
                if ping.recv(&mut buffer).is_ok() {
                    counted.fetch_add(1, Ordering::Relaxed);
                    let _ = sender.send(Instant::now());
                }
            }
        });
        Self {
            stop,
            replies,
            times,
        }
    }

    /// When the next reply came.
    pub(crate) fn next_reply(&self) -> Instant {
        while self.times.try_recv().is_ok() {}
        self.times
            .recv_timeout(Duration::from_secs(30))
            .expect("a reply within 30 s")
    }
}

impl Drop for Pinger {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// How many times slower than usual this machine is (emulation).
fn patience() -> u32 {
    std::env::var("NATPUNCH_LAB_PATIENCE")
        .ok()
        .and_then(|p| p.parse().ok())
        .unwrap_or(1)
}

fn a_kick_connects_at_once_while_somebody_pings(backend: BackendChoice) {
    for wrong_first in [false, true] {
        let mut pair = Pair::new(backend);
        let pinger = Pinger::start(&pair);
        thread::sleep(Duration::from_millis(300));
        if wrong_first {
            // An attempt that nobody answers must not hold up the next one for REKEY_TIMEOUT (5 s).
            pair.set_endpoint("192.0.2.99:51820", true);
            thread::sleep(Duration::from_millis(300));
        }
        assert_eq!(pinger.replies.load(Ordering::Relaxed), 0);
        let start = Instant::now();
        pair.set_endpoint("192.0.2.2:51820", true);
        let took = pinger.next_reply() - start;
        eprintln!(
            "{backend}: {took:?} from endpoint to first reply (wrong one first: {wrong_first})"
        );
        assert!(
            took < Duration::from_millis(100) * patience(),
            "{backend}: took {took:?}"
        );
    }
}

/// The initiation of a peer without an endpoint is heard on this host, and its copy is as good as
/// the original.
fn a_copy_of_what_went_to_a_resting_peer_connects_and_loses_nothing(backend: BackendChoice) {
    let mut pair = Pair::new(backend);
    pair.spec_a.peers[0].rests = true;
    pair.apply();
    let resting = resting_endpoint(&pair.peer_key());
    let ear = pair.a.run(move || UdpSocket::bind(resting).unwrap());
    let echo = pair
        .b
        .run(|| UdpSocket::bind(("10.5.0.2", Pinger::PORT)).unwrap());
    let ping = pair.a.run(|| UdpSocket::bind("10.5.0.1:0").unwrap());
    for socket in [&ear, &echo, &ping] {
        let patience = Duration::from_secs(3) * patience();
        socket.set_read_timeout(Some(patience)).unwrap();
    }
    let mut buffer = [0; 256];
    ping.send_to(b"the first", ("10.5.0.2", Pinger::PORT))
        .unwrap();
    let (length, from) = ear.recv_from(&mut buffer).expect("WireGuard begins");
    let initiation = buffer[..length].to_vec();
    assert_eq!((length, from.port()), (INITIATION_LEN, 51_820));
    assert_eq!(
        pair.peer().endpoint,
        None,
        "{backend}: it shows in no snapshot"
    );

    pair.set_endpoint("192.0.2.2:51820", false);
    let start = Instant::now();
    pair.a.run(move || send_from_wireguards_port(&initiation));
    let (length, _) = echo.recv_from(&mut buffer).expect("the first is kept");
    assert_eq!(&buffer[..length], b"the first");
    let took = start.elapsed();
    eprintln!("{backend}: {took:?} from the copy to the first datagram");
    assert!(took < Duration::from_millis(100) * patience(), "{took:?}");
    pair.apply();
    assert_eq!(
        pair.peer().endpoint,
        Some("192.0.2.2:51820".parse().unwrap())
    );
}

/// Sends from a to b as WireGuard would, by a raw socket that makes the IP header itself.
fn send_from_wireguards_port(payload: &[u8]) {
    let [from, to] = ["192.0.2.1", "192.0.2.2"].map(|ip| ip.parse::<Ipv4Addr>().unwrap());
    let length = u16::try_from(20 + 8 + payload.len()).unwrap();
    // The kernel fills in the checksum; that of UDP may be left out (RFC 768).
    let mut packet = vec![0x45, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    for field in [51_820, 51_820, length - 20, 0] {
        packet.extend(field.to_be_bytes());
    }
    packet.extend(payload);
    let protocol = Protocol::from(libc::IPPROTO_RAW);
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(protocol)).unwrap();
    let sent = socket.send_to(&packet, &SocketAddr::from((to, 0)).into());
    assert_eq!(sent.unwrap(), packet.len());
}

fn a_session_survives_every_change_but_its_own_removal(backend: BackendChoice) {
    let mut pair = Pair::new(backend);
    let pinger = Pinger::start(&pair);
    pair.set_endpoint("192.0.2.2:51820", true);
    pinger.next_reply();
    let mut before = pair.peer();
    assert!(before.last_handshake.is_some());
    type Step = (&'static str, fn(&mut Pair));
    let steps: [Step; 9] = [
        ("endpoint", |p| p.set_endpoint("192.0.2.3:51820", false)),
        ("endpoint with kick", |p| {
            p.set_endpoint("192.0.2.2:51820", true)
        }),
        ("keepalive", |p| {
            p.spec_a.peers[0].persistent_keepalive = Some(Duration::from_secs(25))
        }),
        ("endpoint with kick under keepalive", |p| {
            p.set_endpoint("192.0.2.3:51820", true)
        }),
        ("more networks", |p| {
            p.spec_a.peers[0]
                .allowed_ips
                .push("10.6.0.0/24".parse().unwrap())
        }),
        ("fewer networks", |p| {
            p.spec_a.peers[0].allowed_ips.truncate(1)
        }),
        ("another peer", |p| {
            let other = spec("other", &p.spec_a.runtime_dir, 0x43);
            p.spec_a.peers.push(peer(&other, &["10.7.0.0/24"]));
        }),
        ("fwmark", |p| p.spec_a.fwmark = 0x4e),
        ("port", |p| p.spec_a.listen_port = 51_821),
    ];
    for (what, step) in steps {
        step(&mut pair);
        pair.apply();
        pinger.next_reply();
        let after = pair.peer();
        assert_eq!(
            after.last_handshake, before.last_handshake,
            "{backend}: {what} cost the session"
        );
        assert!(
            after.rx_bytes >= before.rx_bytes && after.tx_bytes >= before.tx_bytes,
            "{backend}: {what}"
        );
        before = after;
    }
    // The key of the pair is for the next handshake; both ends must have it by then.
    pair.spec_a.peers[0].preshared_key = Some(PresharedKey::from_bytes([5; 32]));
    pair.apply();
    pinger.next_reply();
    // Removal ends it, and a late endpoint does not bring it back.
    let key = pair.peer_key();
    pair.spec_a.peers.remove(0);
    pair.apply();
    let late = pair.with(move |interface| {
        interface.set_endpoint(&key, "192.0.2.2:51820".parse().unwrap(), true)
    });
    assert_eq!(late.unwrap(), EndpointUpdate::NoSuchPeer);
    assert!(
        pair.with(|interface| interface.snapshot())
            .unwrap()
            .peer(&key)
            .is_none()
    );
}

/// What b counts of a.
pub(crate) fn seen_by_b(pair: &Pair) -> DevicePeer {
    let name = pair.spec_b.name.clone();
    let state = pair
        .b
        .run(move || UapiDevice::external(&name).get())
        .unwrap();
    state
        .snapshot
        .peer(&pair.spec_b.peers[0].key)
        .unwrap()
        .clone()
}

/// Until both sides have a session.
pub(crate) fn connect(pair: &mut Pair) {
    pair.set_endpoint("192.0.2.2:51820", true);
    until("the handshake is done on both sides", || {
        pair.peer().last_handshake.is_some() && seen_by_b(pair).last_handshake.is_some()
    });
}

/// Where nobody talks, one keepalive is all that says that a path works.
fn a_kick_of_an_idle_session_reaches_the_peer_and_counts_there(backend: BackendChoice) {
    let mut pair = Pair::new(backend);
    connect(&mut pair);
    let before = seen_by_b(&pair);
    let own = pair.peer();
    pair.set_endpoint("192.0.2.3:51820", true);
    until("the keepalive of the kick counts at the peer", || {
        seen_by_b(&pair).rx_bytes > before.rx_bytes
    });
    assert_eq!(seen_by_b(&pair).last_handshake, before.last_handshake);
    let after = pair.peer();
    assert_eq!(after.persistent_keepalive, own.persistent_keepalive);
}

/// Each end shows the other that WireGuard works on a path, at the same moment: neither keepalive
/// may be left out because the other one has come in.
fn kicks_of_both_ends_at_once_are_both_heard(backend: BackendChoice) {
    for keepalive in [None, Some(Duration::from_secs(25))] {
        let mut pair = Pair::new(backend);
        pair.spec_a.peers[0].persistent_keepalive = keepalive;
        pair.spec_b.peers[0].persistent_keepalive = keepalive;
        pair.apply();
        let (spec_b, key_a) = (pair.spec_b.clone(), pair.spec_b.peers[0].key);
        let mut b = Some(pair.b.run(move || Interface::open(&spec_b)).unwrap());
        connect(&mut pair);
        for _ in 0..4 {
            let (at_a, at_b) = (pair.peer().rx_bytes, seen_by_b(&pair).rx_bytes);
            pair.set_endpoint("192.0.2.2:51820", true);
            let mut interface = b.take().unwrap();
            b = Some(pair.b.run(move || {
                let endpoint = "192.0.2.1:51820".parse().unwrap();
                interface.set_endpoint(&key_a, endpoint, true).unwrap();
                interface
            }));
            until("both keepalives count", || {
                pair.peer().rx_bytes > at_a && seen_by_b(&pair).rx_bytes > at_b
            });
        }
        assert_eq!(
            pair.peer().persistent_keepalive,
            keepalive,
            "{backend}: a kick leaves the settings"
        );
    }
}

/// With another preshared key on each side, the initiation of one is authentic for the other, and
/// the response of the other can't be opened: neither may take that for a handshake.
fn a_handshake_that_the_other_cannot_finish_is_none(backend: BackendChoice) {
    let mut pair = Pair::new(backend);
    pair.spec_a.peers[0].preshared_key = Some(PresharedKey::from_bytes([5; 32]));
    pair.apply();
    let spec_b = pair.spec_b.clone();
    let key_a = spec_b.peers[0].key;
    let kicked = pair.b.run(move || {
        let mut b = Interface::open(&spec_b)?;
        b.set_endpoint(&key_a, "192.0.2.1:51820".parse().unwrap(), true)
    });
    assert_eq!(kicked.unwrap(), EndpointUpdate::Updated);
    until("a has answered an initiation", || pair.peer().tx_bytes > 0);
    let answered = pair.peer();
    assert!(answered.rx_bytes > 0, "{backend}: an authentic initiation");
    // Until the next initiation and the answer to it.
    until("a has answered another", || {
        pair.peer().tx_bytes > answered.tx_bytes
    });
    assert_eq!(pair.peer().last_handshake, None, "{backend}");
    assert_eq!(seen_by_b(&pair).last_handshake, None, "{backend}");
}

/// Bytes that look like every message of WireGuard, from the peer's own address and with the
/// indices that were seen on the wire, are no sign of life.
fn forged_datagrams_change_nothing(backend: BackendChoice) {
    let mut pair = Pair::new(backend);
    connect(&mut pair);
    // In the place of b: its address, its port, and what a sends there.
    let b = pair.spec_b.clone();
    pair.b
        .run(move || natpunch_wg::down(&b.name, &b.owner, &b.runtime_dir))
        .unwrap();
    let forger = pair
        .b
        .run(|| UdpSocket::bind("192.0.2.2:51820").expect("the port of b is free"));
    forger
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let sender = pair.a.run(|| UdpSocket::bind("10.5.0.1:0").unwrap());
    let mut indices = vec![[0, 0, 0, 0], [1, 2, 3, 4]];
    let mut buffer = [0; 2_000];
    // Data of the session, and the initiation that follows since nobody answers: 15 s later.
    let a = loop {
        let _ = sender.send_to(b"something", ("10.5.0.2", 9));
        let (length, from) = forger.recv_from(&mut buffer).expect("what a sends");
        indices.push(buffer[4..8].try_into().unwrap());
        if (buffer[0], length) == (1, 148) {
            break from;
        }
        thread::sleep(Duration::from_millis(500));
    };
    let before = pair.peer();
    for index in indices {
        for kind in 0_u8..=5 {
            for length in [
                4, 16, 31, 32, 33, 48, 64, 65, 91, 92, 93, 147, 148, 149, 1_400,
            ] {
                let mut forged = vec![0x5a_u8; length];
                forged[..4].copy_from_slice(&[kind, 0, 0, 0]);
                for at in [4, 8] {
                    if let Some(place) = forged.get_mut(at..at + 4) {
                        place.copy_from_slice(&index);
                    }
                }
                forger.send_to(&forged, a).unwrap();
            }
        }
    }
    thread::sleep(Duration::from_millis(500));
    let after = pair.peer();
    let unanswered = DevicePeer {
        tx_bytes: before.tx_bytes,
        ..after.clone()
    };
    assert_eq!(unanswered, before, "{backend}");
}
