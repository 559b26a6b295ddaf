//! What the server costs, in CPU time, each figure against a baseline measured in the same run.
//!
//! `cargo bench --bench server`, about 20 seconds. Lookups: CPU time per datagram of the real binary, against a bare
//! echo server (`recv_from`, `send_to`, nothing else) and one on tokio, under the same load, in turn. Handshakes: CPU
//! time per handshake, against the four X25519 operations and the one key generation that it can't do without.
//! Wall-clock time means little on a shared machine; CPU time is read from the scheduler's own account.

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

use std::hint::black_box;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};
use go_client::{GoClient, Keys, init, socket};
use process::Server;

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
        // Not `cargo bench`, but `cargo test` on all targets: nothing to test here.
        _ if !std::env::args().any(|argument| argument == "--bench") => {}
        _ => {
            lookups();
            handshakes();
        }
    }
}

/// CPU time of a process, of all its threads, since its start.
fn cpu_of(pid: u32) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let of_task = |path: std::path::PathBuf| -> u64 {
        let text = std::fs::read_to_string(path.join("schedstat")).unwrap_or_default();
        text.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0)
    };
    Duration::from_nanos(tasks.map(|task| of_task(task.unwrap().path())).sum())
}

fn own_thread_cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
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
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(async {
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

struct Echo {
    child: Child,
    address: SocketAddr,
}

impl Echo {
    fn start(kind: &str) -> Self {
        let mut child =
            Command::new(std::env::current_exe().unwrap()).arg(kind).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { child, address: line.trim().parse().unwrap() }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends all datagrams of all clients, a window at a time, and gives the CPU time of the server per datagram in
/// microseconds.
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
                socket.recv(&mut buffer).expect("an answer to each datagram");
                count += 1;
            }
        }
    }
    (cpu_of(pid) - before).as_secs_f64() * 1e6 / f64::from(count)
}

fn lookups() {
    let server = Server::start(&["--listen", "127.0.0.1:0"]);
    let bare = Echo::start("bare-echo");
    let tokio = Echo::start("tokio-echo");
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
                let requests = (0..DATAGRAMS / usize::from(CLIENTS)).map(|_| client.request(&keys[n ^ 1])).collect();
                (client.socket.try_clone().unwrap(), requests)
            })
            .collect();
        ours.push(load(server.id(), &requests));
        for (echo, times) in [(&bare, &mut bares), (&tokio, &mut tokios)] {
            let same: Vec<_> = (1..=CLIENTS)
                .zip(&requests)
                .map(|(n, (_, datagrams))| (socket(source(n), echo.address), datagrams.clone()))
                .collect();
            times.push(load(echo.child.id(), &same));
        }
    }
    let ratios = |base: &[f64]| median(ours.iter().zip(base).map(|(ours, base)| ours / base).collect());
    let (to_bare, to_tokio) = (ratios(&bares), ratios(&tokios));
    println!("lookups: {ROUNDS} rounds of {DATAGRAMS}, {CLIENTS} clients, median CPU time of the server");
    println!("  bare echo     {:7.2} us", median(bares));
    println!("  tokio echo    {:7.2} us", median(tokios));
    println!("  natpunch      {:7.2} us", median(ours));
    println!("  natpunch / bare echo   {to_bare:5.2}   goal <= 1.25: {}", verdict(to_bare <= 1.25));
    println!("  natpunch / tokio echo  {to_tokio:5.2}");
    std::io::stdout().flush().unwrap();
}

fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "MISSED" }
}

/// What a responder of Noise IK can't do without: one ephemeral key, four agreements. CPU time in microseconds.
fn bare_agreements() -> f64 {
    let own = PrivateKey::generate(&X25519).unwrap();
    let public = PrivateKey::generate(&X25519).unwrap().compute_public_key().unwrap();
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
    let server = Server::start(&["--listen", "127.0.0.1:0"]);
    // One source may do only so many a second.
    let sockets: Vec<UdpSocket> = (0..HANDSHAKES)
        .map(|n| {
            let [_, _, high, low] = u32::try_from(n).unwrap().to_be_bytes();
            let socket = socket([127, 1, high, low].into(), server.udp[0]);
            socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            socket
        })
        .collect();
    let (mut ours, mut bares) = (Vec::new(), Vec::new());
    let mut buffer = [0; 2048];
    for _ in 0..5 {
        let datagrams: Vec<Vec<u8>> =
            (0..HANDSHAKES).map(|_| init(&Keys::new(), &server.public_key, &[0; 8]).0).collect();
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
        assert!(answered as usize > HANDSHAKES * 9 / 10, "only {answered} of {HANDSHAKES} were answered");
        ours.push((cpu_of(server.id()) - before).as_secs_f64() * 1e6 / f64::from(answered));
    }
    let ratio = median(ours.iter().zip(&bares).map(|(ours, bare)| ours / bare).collect());
    let ours = median(ours);
    println!("handshakes: 5 rounds of {HANDSHAKES}, median CPU time of the server");
    println!("  4 agreements, 1 key    {:7.1} us", median(bares));
    println!(
        "  natpunch               {ours:7.1} us = {ours:.0} CPU s per million; goal <= 165: {}",
        verdict(ours <= 165.0)
    );
    println!("  natpunch / bare        {ratio:7.2}");
}
