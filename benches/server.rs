//! What the server costs, in CPU time, each figure against a baseline measured in the same run.
//!
//! `cargo bench --bench server`, about a minute. natpunch's own rendezvous: packets of lookups and
//! of pushes for each second of CPU time, against an echo server with the same batches on the same
//! kind of socket, and the time that they take at half of the load that the server bears;
//! registrations against the Diffie-Hellman operations in them. The lookups of natpunch-go: CPU
//! time per datagram of the real binary, against a bare echo server (`recv_from`, `send_to`,
//! nothing else) and one on tokio, under the same load, in turn. Handshakes: CPU time per
//! handshake, against the four X25519 operations and the one key generation that it can't do
//! without. Wall-clock time means little on a shared machine; CPU time is read from the scheduler's
//! own account.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    unreachable_pub,
    dead_code,
    missing_docs
)]

#[path = "../tests/server/go_client.rs"]
mod go_client;
#[path = "../tests/server/process.rs"]
mod process;
mod shared;
#[path = "../tests/server/swarm.rs"]
mod swarm;

use std::hint::black_box;
use std::io::Write as _;
use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};
use go_client::{GoClient, Keys, init, socket};
use natpunch_net::Ends;
use natpunch_rendezvous::client::Event;
use natpunch_types::Time;
use process::Server;
use shared::{Baseline, cpu_of, median, percentiles, verdict};
use swarm::Swarm;

const ROUNDS: usize = 9;
const CLIENTS: u8 = 16;
/// Datagrams in flight of each client.
const WINDOW: usize = 4;
const DATAGRAMS: usize = 16_384;
const HANDSHAKES: usize = 1_500;

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("bare-echo") => bare_echo(),
        Some("tokio-echo") => tokio_echo(),
        Some("batch-echo") => batch_echo(),
        // Not `cargo bench`, but `cargo test` on all targets: nothing to test here.
        _ if !std::env::args().any(|argument| argument == "--bench") => {}
        _ => {
            rendezvous();
            lookups();
            handshakes();
        }
    }
}

fn own_thread_cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

fn bare_echo() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    println!("{}", socket.local_addr().unwrap());
    let mut buffer = [0; 2048];
    loop {
        let (length, source) = socket.recv_from(&mut buffer).unwrap();
        let _ = socket.send_to(&buffer[..length], source);
    }
}

fn tokio_echo() {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(async {
            let task = tokio::spawn(async {
                let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
                println!("{}", socket.local_addr().unwrap());
                let mut buffer = [0; 2048];
                loop {
                    let (length, source) = socket.recv_from(&mut buffer).await.unwrap();
                    let _ = socket.send_to(&buffer[..length], source).await;
                }
            });
            task.await.unwrap();
        });
}

/// Answers each datagram by itself, with the batches of the server.
fn batch_echo() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_nonblocking(true).unwrap();
    println!("{}", socket.local_addr().unwrap());
    let (mut inbox, mut outbox) = (
        natpunch_net::Inbox::new(2_048),
        natpunch_net::Outbox::default(),
    );
    loop {
        swarm::readable(&socket, Duration::from_secs(1));
        if inbox.receive(&socket).is_ok() {
            let answers: Vec<(Ends, Vec<u8>)> = inbox
                .datagrams()
                .map(|(ends, payload)| (ends, payload.to_vec()))
                .collect();
            outbox.send(&socket, &answers);
        }
    }
}

/// Clients of natpunch's own rendezvous.
const NODES: u32 = 512;
/// How long each load lasts, and how often they take turns.
const LOAD: Duration = Duration::from_secs(2);
const TURNS: usize = 5;

/// What a load cost: packets in and out for each second of CPU time, and what was done, for each
/// second of the clock.
struct Cost {
    packets_per_cpu_second: f64,
    done_per_second: f64,
}

fn rendezvous() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("serve.toml");
    let settings = "open = true\nrelay = false\nworkers = 1\n[limits]\nhellos_per_second = 1000000\nmessages_per_second = 1000000\n\
                    client_bytes_per_second = 1000000000\nnetwork_bytes_per_second = 10000000000\n";
    let key = directory.path().join("server.key");
    std::fs::write(
        &file,
        format!("listen = [\"127.0.0.1:0\"]\nkey_file = {key:?}\n{settings}"),
    )
    .unwrap();
    let server = Server::spawn(
        process::serve(&["--config", file.to_str().unwrap()]),
        directory.path(),
    );
    let to = server.udp[0];
    let mut swarm = Swarm::new(0..NODES, to, server.public_key, |_| Duration::ZERO);
    let bare = bare_agreements();
    let before = cpu_of(server.id());
    while swarm.ups < NODES as usize {
        swarm.turn(|_, _, _| {});
    }
    let each = (cpu_of(server.id()) - before).as_secs_f64() * 1e6 / f64::from(NODES);
    println!("registrations: {NODES} clients at once");
    println!("  4 agreements, 1 key    {bare:7.1} us of CPU time");
    println!(
        "  natpunch               {each:7.1} us = {:.0} for each CPU second; {:.2} of bare",
        1e6 / each,
        each / bare
    );

    swarm.patience = Duration::from_millis(1);
    let echo = Baseline::start("batch-echo", 1);
    let turns: Vec<[Cost; 3]> = (0..TURNS)
        .map(|_| {
            [
                echo_load(&echo, None).0,
                swarm_load(&mut swarm, &server, Load::LookUp, None).0,
                swarm_load(&mut swarm, &server, Load::Push, None).0,
            ]
        })
        .collect();
    let of = |what: fn(&[Cost; 3]) -> f64| median(turns.iter().map(what).collect());
    println!(
        "packets in and out for each CPU second, {NODES} clients, one worker; medians of {TURNS} turns"
    );
    println!(
        "  echo, same batches     {:9.0}",
        of(|[echo, ..]| echo.packets_per_cpu_second)
    );
    let looked_up = of(|[_, cost, _]| cost.done_per_second);
    let pushed = of(|[.., cost]| cost.done_per_second);
    for (name, packets, part, done) in [
        (
            "lookups",
            of(|[_, cost, _]| cost.packets_per_cpu_second),
            of(|[echo, cost, _]| cost.packets_per_cpu_second / echo.packets_per_cpu_second),
            looked_up,
        ),
        (
            "pushes",
            of(|[.., cost]| cost.packets_per_cpu_second),
            of(|[echo, _, cost]| cost.packets_per_cpu_second / echo.packets_per_cpu_second),
            pushed,
        ),
    ] {
        let verdict = verdict(part >= 0.5);
        println!(
            "  {name:8}               {packets:9.0}   {part:4.2} of the echo; goal >= 0.50: {verdict}   ({done:.0} {name} a second)"
        );
    }
    println!("time from question to answer at half of these loads");
    let echoed = echo_load(&echo, Some(of(|[echo, ..]| echo.done_per_second) / 2.0)).1;
    let times = [
        ("echo", echoed),
        (
            "lookups",
            swarm_load(&mut swarm, &server, Load::LookUp, Some(looked_up / 2.0)).1,
        ),
        (
            "pushes",
            swarm_load(&mut swarm, &server, Load::Push, Some(pushed / 2.0)).1,
        ),
    ];
    for (name, times) in times {
        let (middle, most) = percentiles(times);
        println!("  {name:8}  p50 {middle:8.0} us   p99 {most:8.0} us");
    }
}

/// Datagrams of a lookup's size echoed: as many as can be, or at this rate.
fn echo_load(echo: &Baseline, rate: Option<f64>) -> (Cost, Vec<f64>) {
    let socket = swarm::any_loopback();
    let (mut inbox, mut outbox) = (
        natpunch_net::Inbox::new(2_048),
        natpunch_net::Outbox::default(),
    );
    let mut asked = vec![None; NODES as usize];
    let (mut next, mut done, mut due, mut times) = (0_u32, 0_u64, 0.0, Vec::new());
    let before = cpu_of(echo.id());
    let start = Instant::now();
    while start.elapsed() < LOAD {
        let mut batch = Vec::new();
        while asked.contains(&None)
            && batch.len() < 64
            && rate.is_none_or(|rate| due < start.elapsed().as_secs_f64() * rate)
        {
            while asked[next as usize].is_some() {
                next = (next + 1) % NODES;
            }
            asked[next as usize] = Some(Instant::now());
            let mut payload = vec![0; 96];
            payload[..4].copy_from_slice(&next.to_be_bytes());
            batch.push((
                Ends {
                    remote: echo.addresses[0],
                    local: Some((swarm::address(next).into(), 0)),
                },
                payload,
            ));
            due += 1.0;
        }
        outbox.send(&socket, &batch);
        swarm::readable(&socket, Duration::from_millis(1));
        while inbox.receive(&socket).is_ok() {
            for (_, payload) in inbox.datagrams() {
                let n = u32::from_be_bytes(payload[..4].try_into().unwrap()) as usize;
                times.extend(
                    asked[n]
                        .take()
                        .map(|asked: Instant| asked.elapsed().as_secs_f64() * 1e6),
                );
                done += 1;
            }
        }
    }
    let elapsed = start.elapsed().as_secs_f64();
    let cpu = (cpu_of(echo.id()) - before).as_secs_f64();
    (
        Cost {
            packets_per_cpu_second: 2.0 * done as f64 / cpu,
            done_per_second: done as f64 / elapsed,
        },
        times,
    )
}

/// What clients do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Load {
    /// Each asks for a record that is there.
    LookUp,
    /// Each leaves a new record for its neighbour, who watches.
    Push,
}

/// All clients do this: as often as they can, each once at a time, or at this rate together.
fn swarm_load(
    swarm: &mut Swarm,
    server: &Server,
    load: Load,
    rate: Option<f64>,
) -> (Cost, Vec<f64>) {
    let tag = |n: u32| {
        [&n.to_be_bytes()[..], &[0x77; 12]]
            .concat()
            .try_into()
            .unwrap()
    };
    let blob = |n: u32, version: u32| -> Arc<[u8]> {
        Arc::from([&n.to_be_bytes()[..], &version.to_be_bytes(), &[1; 142]].concat())
    };
    let quiet = &mut |_, _, _| {};
    let now = swarm.now();
    for n in 0..NODES {
        let client = &mut swarm.clients[n as usize];
        client.set_records([(tag(n), blob(n, 0))], Time::from_origin(now));
        client.set_watches(
            (load == Load::Push).then(|| tag(n ^ 1)),
            Time::from_origin(now),
        );
        client.handle_timeout(Time::from_origin(now));
        swarm.settle(n, now, quiet);
    }
    let settled = Instant::now();
    while settled.elapsed() < Duration::from_secs(1) {
        swarm.turn(|_, _, _| {});
    }

    let mut asked: Vec<Option<Duration>> = vec![None; NODES as usize];
    let (mut next, mut version, mut due, mut done, mut times) =
        (0_u32, 1_u32, 0.0, 0_u64, Vec::new());
    let packets = |swarm: &Swarm| swarm.sent + swarm.received;
    let (before, packets_before, start) = (cpu_of(server.id()), packets(swarm), swarm.now());
    while swarm.now() - start < LOAD {
        for _ in 0..64 {
            let waits = rate.is_some_and(|rate| due >= (swarm.now() - start).as_secs_f64() * rate);
            let now = swarm.now();
            // One that was lost is given up, so that its client goes on.
            let is_free = |asked: &Option<Duration>| {
                asked.is_none_or(|asked| now - asked > Duration::from_secs(1))
            };
            if waits || !is_free(&asked[next as usize]) {
                break;
            }
            let client = &mut swarm.clients[next as usize];
            match load {
                Load::LookUp => {
                    client.set_watches([], Time::from_origin(now));
                    client.set_watches([tag(next ^ 1)], Time::from_origin(now));
                }
                Load::Push => {
                    version += 1;
                    client.set_records([(tag(next), blob(next, version))], Time::from_origin(now));
                }
            }
            client.handle_timeout(Time::from_origin(now));
            swarm.settle(next, now, quiet);
            asked[next as usize] = Some(now);
            next = (next + 1) % NODES;
            due += 1.0;
        }
        swarm.flush();
        swarm.turn(|n, event, now| {
            if matches!(event, Event::Record { .. }) {
                let from = if load == Load::Push { n ^ 1 } else { n };
                if let Some(asked) = asked[from as usize].take() {
                    times.push((now - asked).as_secs_f64() * 1e6);
                    done += 1;
                }
            }
        });
    }
    let elapsed = (swarm.now() - start).as_secs_f64();
    let cpu = (cpu_of(server.id()) - before).as_secs_f64();
    let packets = (packets(swarm) - packets_before) as f64;
    (
        Cost {
            packets_per_cpu_second: packets / cpu,
            done_per_second: done as f64 / elapsed,
        },
        times,
    )
}

/// Sends all datagrams of all clients, a window at a time, and gives the CPU time of the server per
/// datagram in microseconds.
fn load(pid: u32, clients: &[(UdpSocket, Vec<Vec<u8>>)]) -> f64 {
    let before = cpu_of(pid);
    let mut count = 0_u32;
    let mut buffer = [0; 2048];
    for start in (0..clients[0].1.len()).step_by(WINDOW) {
        for (socket, datagrams) in clients {
            for datagram in &datagrams[start..start + WINDOW] {
                socket.send(datagram).unwrap();
            }
        }
        for (socket, _) in clients {
            for _ in 0..WINDOW {
                socket
                    .recv(&mut buffer)
                    .expect("an answer to each datagram");
                count += 1;
            }
        }
    }
    (cpu_of(pid) - before).as_secs_f64() * 1e6 / f64::from(count)
}

fn lookups() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("serve.toml");
    // One thread, as the bare echo has: two wake each other's core for half a batch each.
    std::fs::write(
        &file,
        "compat = [\"natpunch-go\"]\nlisten = [\"127.0.0.1:0\"]\nworkers = 1\n",
    )
    .unwrap();
    let server = Server::start(&["--config", file.to_str().unwrap()]);
    let bare = Baseline::start("bare-echo", 1);
    let tokio = Baseline::start("tokio-echo", 1);
    let source = |n: u8| IpAddr::from([127, 0, 3, n]);
    let mut clients: Vec<GoClient> = (1..=CLIENTS)
        .map(|n| GoClient::register(socket(source(n), server.udp[0]), &server.public_key).unwrap())
        .collect();
    let keys: Vec<[u8; 32]> = clients.iter().map(|client| client.keys.public).collect();
    // Each asks for its neighbour once, so that the neighbour is told where it is.
    for _ in 0..2 {
        for (n, client) in clients.iter_mut().enumerate() {
            client.look_up(&keys[n ^ 1]);
        }
    }
    assert!(clients[0].look_up(&keys[1]).is_some());

    let (mut ours, mut bares, mut tokios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let requests: Vec<(UdpSocket, Vec<Vec<u8>>)> = clients
            .iter_mut()
            .enumerate()
            .map(|(n, client)| {
                let requests = (0..DATAGRAMS / usize::from(CLIENTS))
                    .map(|_| client.request(&keys[n ^ 1]))
                    .collect();
                (client.socket.try_clone().unwrap(), requests)
            })
            .collect();
        ours.push(load(server.id(), &requests));
        for (echo, times) in [(&bare, &mut bares), (&tokio, &mut tokios)] {
            let same: Vec<_> = (1..=CLIENTS)
                .zip(&requests)
                .map(|(n, (_, datagrams))| {
                    (socket(source(n), echo.addresses[0]), datagrams.clone())
                })
                .collect();
            times.push(load(echo.id(), &same));
        }
    }
    let ratios = |base: &[f64]| {
        median(
            ours.iter()
                .zip(base)
                .map(|(ours, base)| ours / base)
                .collect(),
        )
    };
    let (to_bare, to_tokio) = (ratios(&bares), ratios(&tokios));
    println!(
        "lookups: {ROUNDS} rounds of {DATAGRAMS}, {CLIENTS} clients, median CPU time of the server"
    );
    println!("  bare echo     {:7.2} us", median(bares));
    println!("  tokio echo    {:7.2} us", median(tokios));
    println!("  natpunch      {:7.2} us", median(ours));
    println!(
        "  natpunch / bare echo   {to_bare:5.2}   goal <= 1.25: {}",
        verdict(to_bare <= 1.25)
    );
    println!("  natpunch / tokio echo  {to_tokio:5.2}");
    std::io::stdout().flush().unwrap();
}

/// What a responder of Noise IK can't do without: one ephemeral key, four agreements. CPU time in
/// microseconds.
fn bare_agreements() -> f64 {
    let own = PrivateKey::generate(&X25519).unwrap();
    let public = PrivateKey::generate(&X25519)
        .unwrap()
        .compute_public_key()
        .unwrap();
    let peer = UnparsedPublicKey::new(&X25519, public.as_ref());
    let times = 500;
    let before = own_thread_cpu();
    for _ in 0..times {
        let ephemeral = PrivateKey::generate(&X25519).unwrap();
        black_box(ephemeral.compute_public_key().unwrap());
        for key in [&own, &own, &ephemeral, &ephemeral] {
            agree(key, peer, (), |shared| {
                black_box(shared);
                Ok(())
            })
            .unwrap();
        }
    }
    (own_thread_cpu() - before).as_secs_f64() * 1e6 / f64::from(times)
}

fn handshakes() {
    let server = Server::start(&["--compat", "natpunch-go", "--listen", "127.0.0.1:0"]);
    // One source may do only so many a second.
    let sockets: Vec<UdpSocket> = (0..HANDSHAKES)
        .map(|n| {
            let [_, _, high, low] = u32::try_from(n).unwrap().to_be_bytes();
            let socket = socket([127, 1, high, low].into(), server.udp[0]);
            socket
                .set_read_timeout(Some(Duration::from_millis(200)))
                .unwrap();
            socket
        })
        .collect();
    let (mut ours, mut bares) = (Vec::new(), Vec::new());
    let mut buffer = [0; 2048];
    for _ in 0..5 {
        let datagrams: Vec<Vec<u8>> = (0..HANDSHAKES)
            .map(|_| init(&Keys::new(), &server.public_key, &[0; 8]).0)
            .collect();
        bares.push(bare_agreements());
        let before = cpu_of(server.id());
        let start = Instant::now();
        let mut answered = 0_u32;
        for (n, (sockets, datagrams)) in sockets.chunks(8).zip(datagrams.chunks(8)).enumerate() {
            for (socket, datagram) in sockets.iter().zip(datagrams) {
                socket.send(datagram).unwrap();
            }
            for socket in sockets {
                answered += u32::from(socket.recv(&mut buffer).is_ok_and(|length| length == 53));
            }
            // Below the rate at which the server starts to refuse strangers.
            let due = Duration::from_secs_f64((n as f64 + 1.0) * 8.0 / 3_000.0);
            std::thread::sleep(due.saturating_sub(start.elapsed()));
        }
        assert!(
            answered as usize > HANDSHAKES * 9 / 10,
            "only {answered} of {HANDSHAKES} were answered"
        );
        ours.push((cpu_of(server.id()) - before).as_secs_f64() * 1e6 / f64::from(answered));
    }
    let ratio = median(
        ours.iter()
            .zip(&bares)
            .map(|(ours, bare)| ours / bare)
            .collect(),
    );
    let ours = median(ours);
    println!("handshakes: 5 rounds of {HANDSHAKES}, median CPU time of the server");
    println!("  4 agreements, 1 key    {:7.1} us", median(bares));
    println!(
        "  natpunch               {ours:7.1} us = {ours:.0} CPU s per million; goal <= 165: {}",
        verdict(ours <= 165.0)
    );
    println!("  natpunch / bare        {ratio:7.2}");
}
