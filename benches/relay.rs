//! What the relay costs: packets per CPU second and latency at half load, against a bare forwarder
//! between two sockets.
//!
//! `cargo bench --bench relay`, about 30 seconds. Both are processes of their own under the same
//! load, in turn: packets of WireGuard's form and 1,452 bytes from several pairs, through UDP
//! sockets of the same type and the same recvmmsg and sendmmsg with batches of up to 64. The bare
//! forwarder has one socket for each side and knows where the other one is; it looks at nothing.
//! CPU time is read from the scheduler's own account.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    unreachable_pub,
    dead_code,
    missing_docs
)]

#[path = "../tests/server/process.rs"]
mod process;
mod shared;

use std::io::Write as _;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use natpunch_net::{Ends, Inbox, Outbox};
use natpunch_rendezvous::client::{Client, Config, Event, To};
use natpunch_types::{RelayUse, SecretKey, Time};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use process::Server;
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;
use shared::{Baseline, cpu_of, median, percentiles, verdict};
use std::os::fd::AsFd as _;

const PAIRS: usize = 4;
const ROUNDS: usize = 7;
/// Packets that one pair sends in one direction before the other end takes them.
const BURST: usize = 64;
const PACKETS: usize = 60_000;
const LENGTH: usize = 1_452;

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("forwarder") => forwarder(),
        // Not `cargo bench`, but `cargo test` on all targets: nothing to test here.
        _ if !std::env::args().any(|argument| argument == "--bench") => {}
        _ => compare(),
    }
}

/// Forwards between pairs of sockets: what comes to one leaves by the other, to where the other was
/// first called from.
fn forwarder() {
    let sockets: Vec<UdpSocket> = (0..2 * PAIRS)
        .map(|_| UdpSocket::bind("127.0.0.1:0").unwrap())
        .collect();
    for socket in &sockets {
        socket2::SockRef::from(socket)
            .set_recv_buffer_size(2 << 20)
            .unwrap();
        println!("{}", socket.local_addr().unwrap());
    }
    let mut callers: Vec<Option<SocketAddr>> = vec![None; sockets.len()];
    let (mut inbox, mut outbox) = (Inbox::new(2_048), Outbox::default());
    loop {
        let mut files: Vec<_> = sockets
            .iter()
            .map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN))
            .collect();
        poll(&mut files, PollTimeout::NONE).unwrap();
        for (n, socket) in sockets
            .iter()
            .enumerate()
            .filter(|(n, _)| files[*n].any() == Some(true))
        {
            if inbox.receive(socket).is_err() {
                continue;
            }
            let mut outgoing: Vec<(Ends, &[u8])> = Vec::new();
            for (ends, payload) in inbox.datagrams() {
                callers[n] = Some(ends.remote);
                outgoing.extend(callers[n ^ 1].map(|to| (to.into(), payload)));
            }
            outbox.send(&sockets[n ^ 1], &outgoing);
        }
    }
}

/// One end of a pair: a socket that stands for WireGuard's, and where it sends.
struct End {
    socket: UdpSocket,
    to: SocketAddr,
}

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket2::SockRef::from(&socket)
        .set_recv_buffer_size(2 << 20)
        .unwrap();
    socket
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    socket
}

fn message(kind: u8, length: usize, words: [u32; 2]) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0];
    words
        .iter()
        .for_each(|word| message.extend(word.to_le_bytes()));
    message.resize(length, 0xab);
    message
}

/// Registers both ends of a pair, and has them bound.
fn bind(server: &Server, pair: u8) -> [End; 2] {
    let start = Instant::now();
    let mut ends = [0, 1].map(|side| {
        let config = Config {
            identity: SecretKey::from_bytes([2 * pair + side + 1; 32]),
            servers: vec![server.public_key],
            admission: None,
        };
        let rng = ChaCha20Rng::from_seed([2 * pair + side + 1; 32]);
        let mut client = Client::new(config, server.udp[0], rng, Time::ZERO).unwrap();
        client.set_relays([([pair + 1; 16], RelayUse::Carry)], Time::ZERO);
        let socket = socket();
        socket
            .set_read_timeout(Some(Duration::from_millis(2)))
            .unwrap();
        (socket, client, None)
    });
    let mut buffer = [0; 2_048];
    while ends.iter().any(|(.., relay)| relay.is_none()) {
        assert!(start.elapsed() < Duration::from_secs(10), "no relay");
        for (socket, client, relay) in &mut ends {
            client.handle_timeout(Time::from_origin(start.elapsed()));
            while let Some(outgoing) = client.poll_transmit() {
                let to = match outgoing.to {
                    To::Server => server.udp[0],
                    To::Address(address) => address,
                };
                socket.send_to(&outgoing.payload, to).unwrap();
            }
            while let Ok((length, source)) = socket.recv_from(&mut buffer) {
                client.handle_datagram(
                    source,
                    &buffer[..length],
                    Time::from_origin(start.elapsed()),
                );
            }
            while let Some(event) = client.poll_event() {
                if let Event::Relay { address, .. } = event {
                    *relay = address;
                }
            }
        }
    }
    ends.map(|(socket, _, relay)| {
        socket
            .set_read_timeout(Some(Duration::from_millis(200)))
            .unwrap();
        End {
            socket,
            to: relay.unwrap(),
        }
    })
}

/// A handshake, after which both ends know each other's index; to a bare forwarder, the first
/// packets.
fn shake_hands([a, b]: &[End; 2]) {
    let mut buffer = [0; 2_048];
    for _ in 0..2 {
        a.socket.send_to(&message(1, 148, [100, 0]), a.to).unwrap();
        let _ = b.socket.recv(&mut buffer);
        b.socket.send_to(&message(2, 92, [200, 100]), b.to).unwrap();
        let _ = a.socket.recv(&mut buffer);
    }
}

struct Load {
    inbox: Inbox,
    outbox: Outbox,
}

impl Load {
    /// Sends bursts through all pairs, one direction and then the other: microseconds of the
    /// process's CPU for each packet that arrived.
    fn run(&mut self, pid: u32, pairs: &[[End; 2]]) -> f64 {
        let before = cpu_of(pid);
        let mut arrived = 0;
        let mut turn = 0;
        while arrived < PACKETS {
            let (from, index) = (turn % 2, [200, 100][turn % 2]);
            turn += 1;
            let packet = message(4, LENGTH, [index, turn as u32]);
            for pair in pairs {
                let burst: Vec<(Ends, &[u8])> = (0..BURST)
                    .map(|_| (pair[from].to.into(), &packet[..]))
                    .collect();
                self.outbox.send(&pair[from].socket, &burst);
            }
            for pair in pairs {
                let mut here = 0;
                while here < BURST {
                    if pair[1 - from].socket.peek_from(&mut [0]).is_err() {
                        break; // lost
                    }
                    here += self.inbox.receive(&pair[1 - from].socket).unwrap_or(0);
                }
                arrived += here;
            }
            assert!(turn < 10 * PACKETS / BURST / pairs.len(), "nothing arrives");
        }
        (cpu_of(pid) - before).as_secs_f64() * 1e6 / arrived as f64
    }

    /// Packets at this rate, one at a time: the times until each arrives, in microseconds.
    fn latency(&mut self, pair: &[End; 2], rate: f64, packets: usize) -> Vec<f64> {
        let [a, b] = pair;
        let mut buffer = [0; 2_048];
        let start = Instant::now();
        let sender = a.socket.try_clone().unwrap();
        let (to, origin) = (a.to, start);
        let thread = std::thread::spawn(move || {
            for n in 0..packets {
                let due = Duration::from_secs_f64(n as f64 / rate);
                while origin.elapsed() < due {
                    std::thread::yield_now();
                }
                let mut packet = message(4, LENGTH, [200, 0]);
                packet[16..24].copy_from_slice(&(origin.elapsed().as_nanos() as u64).to_le_bytes());
                let _ = sender.send_to(&packet, to);
            }
        });
        let mut times = Vec::with_capacity(packets);
        while let Ok(length) = b.socket.recv(&mut buffer) {
            if length == LENGTH {
                let sent = u64::from_le_bytes(buffer[16..24].try_into().unwrap());
                times.push((start.elapsed().as_nanos() as u64 - sent) as f64 / 1e3);
            }
            if times.len() == packets {
                break;
            }
        }
        thread.join().unwrap();
        times
    }
}

fn compare() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("serve.toml");
    let key = directory.path().join("key");
    // The load is beyond what one pair may use otherwise.
    let text = format!(
        "listen = [\"127.0.0.1:0\"]\nkey_file = {key:?}\nopen = true\nrelay_bytes_per_second = 100000000000\n\
         relay_bytes_per_hour = 100000000000000\nrelay_total_bytes_per_second = 100000000000\n"
    );
    std::fs::write(&config, text).unwrap();
    let server = Server::spawn(
        process::serve(&["--config", config.to_str().unwrap()]),
        directory.path(),
    );
    let forwarder = Baseline::start("forwarder", 2 * PAIRS);
    let relayed: Vec<[End; 2]> = (0..PAIRS as u8).map(|pair| bind(&server, pair)).collect();
    let bare: Vec<[End; 2]> = forwarder
        .addresses
        .chunks_exact(2)
        .map(|addresses| {
            [addresses[0], addresses[1]].map(|to| End {
                socket: socket(),
                to,
            })
        })
        .collect();
    relayed.iter().chain(&bare).for_each(shake_hands);

    let mut load = Load {
        inbox: Inbox::new(2_048),
        outbox: Outbox::default(),
    };
    let (mut ours, mut bares) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ours.push(load.run(server.id(), &relayed));
        bares.push(load.run(forwarder.id(), &bare));
    }
    let ratio = median(
        bares
            .iter()
            .zip(&ours)
            .map(|(bare, ours)| bare / ours)
            .collect(),
    );
    let (ours, bares) = (median(ours), median(bares));
    println!(
        "relay: {ROUNDS} rounds of {PACKETS} packets of {LENGTH} bytes, {PAIRS} pairs, median CPU time"
    );
    println!(
        "  bare forwarder   {bares:6.2} us, {:9.0} packets per CPU second",
        1e6 / bares
    );
    println!(
        "  natpunch         {ours:6.2} us, {:9.0} packets per CPU second",
        1e6 / ours
    );
    println!(
        "  natpunch / bare  {ratio:6.2}     goal >= 0.50: {}",
        verdict(ratio >= 0.5)
    );

    let rate = 0.5e6 / ours;
    let packets = (rate * 2.0) as usize;
    for (name, pair) in [("bare forwarder", &bare[0]), ("natpunch", &relayed[0])] {
        let times = load.latency(pair, rate, packets);
        let arrived = times.len();
        let (middle, most) = percentiles(times);
        println!(
            "  latency at {rate:.0} packets a second, {name:14}: p50 {middle:6.1} us, p99 {most:7.1} us, {arrived} of {packets} arrived"
        );
    }
    std::io::stdout().flush().unwrap();
}
