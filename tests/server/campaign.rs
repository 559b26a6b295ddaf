//! What the server bears: floods, and everybody at once. Short here; at full size by `make flood`
//! and `make restart`.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use natpunch_core::stun;
use natpunch_net::{Ends, Inbox, Outbox};
use natpunch_rendezvous::client::{Client, Config};
use natpunch_rendezvous::wire::{HELLO_LEN, Kind};
use natpunch_types::{PeerKey, Time};
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore as _, SeedableRng as _};

use crate::go_client::socket;
use crate::process::{Server, serve};
use crate::swarm::{Swarm, address, any_loopback, key, readable};

/// A server with these settings on a port of its own.
fn server(directory: &std::path::Path, listen: &str, more: &str) -> Server {
    let file = directory.join("serve.toml");
    let key = directory.join("server.key");
    let text =
        format!("listen = [{listen:?}]\nkey_file = {key:?}\nopen = true\nrelay = false\n{more}");
    std::fs::write(&file, text).unwrap();
    Server::spawn(serve(&["--config", file.to_str().unwrap()]), directory)
}

/// Memory of a process in bytes.
fn resident(pid: u32) -> i64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
    text.split(' ').nth(1).unwrap().parse::<i64>().unwrap() * 4_096
}

/// Hellos as the server likes them, of different clients.
fn hellos(count: u32, server: SocketAddr, public_key: PeerKey) -> Vec<Vec<u8>> {
    let hello = |n| {
        let config = Config {
            identity: key(1_000_000 + n),
            servers: vec![public_key],
            admission: None,
        };
        let mut client = Client::new(
            config,
            server,
            ChaCha20Rng::from_seed([n as u8; 32]),
            Time::ZERO,
        )
        .unwrap();
        client.handle_timeout(Time::ZERO);
        client.poll_transmit().unwrap().payload
    };
    (0..count).map(hello).collect()
}

/// What a flood sent, and what came back for it.
#[derive(Default)]
struct Flood {
    sent: AtomicU64,
    sent_bytes: AtomicU64,
    answered_bytes: AtomicU64,
}

/// Sends a third garbage, a third hellos of strangers (wrong mac1) and a third right ones, from
/// ever new sources, at this rate, until it is told to stop.
fn flood(flood: &Flood, rate: f64, server: SocketAddr, public_key: PeerKey, stop: &AtomicBool) {
    let right = hellos(64, server, public_key);
    let stranger = hellos(64, server, key(77).public_key());
    let mut rng = ChaCha20Rng::from_seed([5; 32]);
    let (socket, mut inbox, mut outbox) = (any_loopback(), Inbox::new(2_048), Outbox::default());
    let start = Instant::now();
    let mut count = 0_u32;
    while !stop.load(Ordering::Relaxed) {
        if f64::from(count) > start.elapsed().as_secs_f64() * rate {
            readable(&socket, Duration::from_millis(1));
        } else {
            let batch: Vec<(Ends, Vec<u8>)> = (0..64)
                .map(|_| {
                    count += 1;
                    let payload = match count % 3 {
                        0 => {
                            let mut payload = vec![0; HELLO_LEN];
                            rng.fill_bytes(&mut payload);
                            payload[..4].copy_from_slice(&right[0][..4]);
                            payload
                        }
                        1 => stranger[count as usize % 64].clone(),
                        _ => right[count as usize % 64].clone(),
                    };
                    // 2²⁰ sources, none of which is a client's.
                    let source = Ipv4Addr::from_bits(
                        address(1 << 22).to_bits() + rng.next_u32() % (1 << 20),
                    );
                    (
                        Ends {
                            remote: server,
                            local: Some((source.into(), 0)),
                        },
                        payload,
                    )
                })
                .collect();
            let sent = outbox.send(&socket, &batch);
            flood.sent.fetch_add(sent as u64, Ordering::Relaxed);
            flood
                .sent_bytes
                .fetch_add((sent * HELLO_LEN) as u64, Ordering::Relaxed);
        }
        while inbox.receive(&socket).is_ok() {
            let bytes: usize = inbox.datagrams().map(|(_, payload)| payload.len()).sum();
            flood
                .answered_bytes
                .fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }
}

/// What clients had of a server under flood.
struct Served {
    /// How many clients needed how many tries.
    tries: BTreeMap<usize, usize>,
    /// Bytes by which the server's memory grew.
    grown: i64,
    /// Packets of the flood in a second.
    rate: f64,
    /// Bytes sent back to the flood for each of its bytes.
    amplification: f64,
}

/// Floods a server for a time while clients come and go one after the other, at least so many.
fn clients_under_flood(rate: f64, time: Duration, least: usize) -> Served {
    let directory = tempfile::tempdir().unwrap();
    let server = server(directory.path(), "127.0.0.1:0", "");
    let (to, public_key) = (server.udp[0], server.public_key);
    let (counts, stop) = (Flood::default(), AtomicBool::new(false));
    let mut tries: BTreeMap<usize, usize> = BTreeMap::new();
    let mut grown = 0;
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| flood(&counts, rate, to, public_key, &stop));
        let mut next = 0;
        let mut before = None;
        let mut come_and_go = || {
            while start.elapsed() < time || (next as usize) < least {
                // The memory that a first flood touches is there before; from then on it must not
                // grow.
                if start.elapsed() > time / 4 && next as usize >= least / 2 {
                    before.get_or_insert_with(|| resident(server.id()));
                }
                *tries.entry(register(next, to, public_key)).or_default() += 1;
                next += 1;
            }
            grown = resident(server.id()) - before.unwrap();
        };
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(&mut come_and_go));
        stop.store(true, Ordering::Relaxed);
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    let sent = counts.sent.load(Ordering::Relaxed) as f64;
    let bytes = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
    let rate = sent / start.elapsed().as_secs_f64();
    Served {
        tries,
        grown,
        rate,
        amplification: bytes(&counts.answered_bytes) / bytes(&counts.sent_bytes),
    }
}

/// So many clients come again and again, since a server keeps the sessions of those that went for a
/// while.
const REGULARS: u32 = 1_024;

/// Registers one client: how often it had to say something, once being the least.
fn register(visit: u32, server: SocketAddr, public_key: PeerKey) -> usize {
    let n = visit % REGULARS;
    let config = Config {
        identity: key(n),
        servers: vec![public_key],
        admission: None,
    };
    let mut seed = [8; 32];
    seed[..4].copy_from_slice(&visit.to_be_bytes());
    let mut client = Client::new(config, server, ChaCha20Rng::from_seed(seed), Time::ZERO).unwrap();
    let socket = socket(address(n).into(), server);
    let start = Instant::now();
    let mut said: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
    loop {
        client.handle_timeout(Time::from_origin(start.elapsed()));
        while let Some(sent) = client.poll_transmit() {
            socket.send(&sent.payload).unwrap();
            *said.entry(sent.payload).or_default() += 1;
        }
        if std::iter::from_fn(|| client.poll_event())
            .any(|event| matches!(event, natpunch_rendezvous::client::Event::Up { .. }))
        {
            return said.into_values().max().unwrap();
        }
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "client {n} was never served"
        );
        socket
            .set_read_timeout(Some(Duration::from_millis(5)))
            .unwrap();
        let mut buffer = [0; 2_048];
        if let Ok(length) = socket.recv(&mut buffer) {
            client.handle_datagram(
                server,
                &buffer[..length],
                Time::from_origin(start.elapsed()),
            );
        }
    }
}

#[test]
fn clients_are_served_and_memory_stays_while_strangers_flood() {
    // Each one is served, else this panics; how fast is the campaign's question.
    let Served {
        tries,
        grown,
        rate,
        amplification,
    } = clients_under_flood(5_000.0, Duration::from_secs(2), 30);
    println!(
        "by tries {tries:?}; {rate:.0} packets/s; {grown} bytes; {amplification:.3} out for in"
    );
    assert!(
        amplification <= 1.0 && grown <= 1 << 20,
        "{amplification} {grown}"
    );
}

#[test]
#[ignore = "a minute of flood, in a release build: make flood"]
fn campaign_flood() {
    let Served {
        tries,
        grown,
        rate,
        amplification,
    } = clients_under_flood(60_000.0, Duration::from_secs(60), 100);
    let clients: usize = tries.values().sum();
    println!(
        "measured flood: {rate:.0} packets/s for 60 s, {clients} clients came and went, by tries {tries:?}; the server's \
         memory grew by {} KiB; {amplification:.3} bytes out for each byte in",
        grown >> 10
    );
    assert!(tries.keys().all(|tries| *tries <= 3), "{tries:?}");
    assert!(
        amplification <= 1.0 && grown <= 1 << 20,
        "{amplification} {grown}"
    );
}

#[test]
fn no_message_of_a_stranger_is_answered_by_more_bytes_than_it_has() {
    let directory = tempfile::tempdir().unwrap();
    let server = server(
        directory.path(),
        "127.0.0.1:0",
        "[limits]\nhellos_per_second = 8\n",
    );
    let to = server.udp[0];
    let hello = hellos(2, to, server.public_key);
    let kind = |kind: u8, length: usize| {
        let mut payload = vec![0x5a; length];
        payload[..4].copy_from_slice(&[&hello[0][..3], &[kind]].concat());
        payload
    };
    let mut messages = vec![
        ("hello, welcomed", hello[0].clone()),
        ("hello, asked for a cookie", hello[1].clone()),
        ("STUN, padded", stun::request(stun::TransactionId([1; 12]))),
        (
            "STUN, bare",
            stun::request(stun::TransactionId([1; 12]))[..20].to_vec(),
        ),
        ("hole punching's", vec![1; 64]),
        ("natpunch-go's handshake", [vec![1], vec![9; 108]].concat()),
    ];
    messages[3].1[2..4].copy_from_slice(&[0, 0]);
    for (name, number, lengths) in [
        ("hello, forged", 1, &[256][..]),
        ("welcome", 2, &[254]),
        ("cookie", 3, &[60]),
        ("confirm, forged", 4, &[256, 512, 1_200]),
        ("request, forged", 5, &[96, 256, 512, 1_200]),
        ("notice", 6, &[96, 256, 512, 1_200]),
        ("bind, forged", 7, &[natpunch_rendezvous::wire::BIND_LEN]),
        ("bound", 8, &[natpunch_rendezvous::wire::BIND_LEN]),
        ("probe, forged", 9, &[natpunch_rendezvous::wire::PROBE_LEN]),
        ("probe answer", 10, &[natpunch_rendezvous::wire::PROBE_LEN]),
    ] {
        messages.extend(lengths.iter().map(|length| (name, kind(number, *length))));
    }
    for ports in [to.port(), server.alternate_port.unwrap()] {
        for (name, message) in &messages {
            let socket = socket([127, 0, 0, 1].into(), SocketAddr::new(to.ip(), ports));
            socket.send(message).unwrap();
            // Answered after it, on the same socket of the same worker: what comes before is for
            // the message.
            socket
                .send(&stun::request(stun::TransactionId([7; 12])))
                .unwrap();
            let mut answered = 0;
            let mut buffer = [0; 2_048];
            // A welcome takes longer than STUN.
            let wait = if Kind::of(message) == Some(Kind::Hello) {
                300
            } else {
                0
            };
            let mut seen = false;
            socket
                .set_read_timeout(Some(Duration::from_secs(10)))
                .unwrap();
            while let Ok(length) = socket.recv(&mut buffer) {
                if length >= 20 && buffer[8..20] == [7; 12] {
                    seen = true;
                    if wait == 0 {
                        break;
                    }
                    socket
                        .set_read_timeout(Some(Duration::from_millis(wait)))
                        .unwrap();
                } else {
                    answered += length;
                }
            }
            assert!(seen, "{name}: the server is silent");
            println!("{name}: {} bytes in, {answered} out", message.len());
            assert!(
                answered <= message.len(),
                "{name}: {answered} for {}",
                message.len()
            );
        }
    }
}

/// How a server was found again by all its clients.
struct Return {
    first: Duration,
    back: Duration,
    /// Bytes of the server's memory for each idle client.
    each: i64,
    storm: u64,
}

/// Threads that play the clients.
const PLAYERS: u32 = 2;

/// Registers so many clients, restarts the server, and waits until all are back. `notice`: they
/// notice at once.
fn all_return(
    count: u32,
    spread: Duration,
    limits: &str,
    notice: bool,
    patience: Duration,
) -> Return {
    let directory = tempfile::tempdir().unwrap();
    let first = server(directory.path(), "127.0.0.1:0", limits);
    let (to, public_key) = (first.udp[0], first.public_key);
    let empty = resident(first.id());
    let begins = |n: u32| spread.mul_f64(f64::from(n) / f64::from(count));
    let wait = |swarm: &mut Swarm, what: &str| {
        let (start, all) = (Instant::now(), swarm.clients.len());
        while swarm.ups < all {
            swarm.turn(|_, _, _| {});
            assert!(start.elapsed() < patience, "{what}: {} of {all}", swarm.ups);
        }
        start.elapsed()
    };
    // The times that a player's clients took, and what they sent. Channels, for a player that
    // panics closes its ends.
    let play = |player: u32, registered: Sender<Duration>, restarted: Receiver<()>| {
        let numbers = count / PLAYERS * player..if player + 1 == PLAYERS {
            count
        } else {
            count / PLAYERS * (player + 1)
        };
        let mut swarm = Swarm::new(numbers.clone(), to, public_key, begins);
        registered.send(wait(&mut swarm, "registered")).unwrap();
        drop(registered);
        restarted.recv().unwrap();
        swarm.all_down();
        if notice {
            let now = swarm.now();
            for (n, index) in numbers.zip(0..) {
                swarm.clients[index].handle_network_change(Time::from_origin(now));
                swarm.settle(n, now, &mut |_, _, _| {});
            }
            swarm.flush();
        }
        let sent = swarm.sent;
        (wait(&mut swarm, "came back"), swarm.sent - sent)
    };
    std::thread::scope(|scope| {
        let (registered, all_registered) = channel();
        let players: Vec<_> = (0..PLAYERS)
            .map(|player| {
                let (go, restarted) = channel();
                let registered = registered.clone();
                (go, scope.spawn(move || play(player, registered, restarted)))
            })
            .collect();
        drop(registered);
        let times: Option<Vec<_>> = players.iter().map(|_| all_registered.recv().ok()).collect();
        let times = times.expect("all register");
        let each = (resident(first.id()) - empty) / i64::from(count);
        drop(first);
        let second = server(directory.path(), &to.to_string(), limits);
        players.iter().for_each(|(go, _)| go.send(()).unwrap());
        let results: Vec<_> = players
            .into_iter()
            .map(|(_, player)| player.join().unwrap())
            .collect();
        drop(second);
        Return {
            first: times.into_iter().max().unwrap(),
            back: results.iter().map(|(back, _)| *back).max().unwrap(),
            each,
            storm: results.iter().map(|(_, sent)| sent).sum::<u64>() / u64::from(count),
        }
    })
}

#[test]
fn everybody_is_back_after_a_restart() {
    let result = all_return(
        200,
        Duration::from_secs(1),
        "",
        true,
        Duration::from_secs(120),
    );
    assert!(
        result.storm < 20,
        "{} datagrams of each client",
        result.storm
    );
}

#[test]
#[ignore = "100,000 clients, in a release build: make restart"]
fn campaign_restart() {
    let limits = "[limits]\nsessions = 131072\nhellos_per_second = 6000\n";
    let Return {
        first,
        back,
        each,
        storm,
    } = all_return(
        100_000,
        Duration::from_secs(45),
        limits,
        false,
        Duration::from_secs(240),
    );
    println!(
        "measured restart: 100000 clients registered in {:.1} s (they began over 45 s), {each} bytes of the server's memory \
         each; all back {:.1} s after the restart, {storm} datagrams sent by each",
        first.as_secs_f64(),
        back.as_secs_f64()
    );
    assert!(back <= Duration::from_secs(60), "{back:?}");
    assert!(each <= 1_024, "{each}");
}
