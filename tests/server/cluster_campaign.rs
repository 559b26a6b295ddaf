//! Many clients at three processes that share a store: how soon a record is pushed within a process
//! and between two, and how soon all is well after the store was gone. `make cluster`.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use natpunch_rendezvous::client::Event;
use natpunch_types::Time;
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore as _, SeedableRng as _};

use crate::cluster::directory;
use crate::process::{Server, serve};
use crate::redis::Redis;
use crate::swarm::Swarm;

const PROCESSES: u32 = 3;
/// Bytes of a record, as a node's has with some addresses.
const RECORD: usize = 480;
/// Records that change in a second at each process, while pushes are measured.
const CHANGES: u32 = 200;
const MEASURED: Duration = Duration::from_secs(20);
/// How long the store is away.
const AWAY: Duration = Duration::from_secs(10);

fn tag(n: u32) -> [u8; 16] {
    let mut tag = [0xc1; 16];
    tag[..4].copy_from_slice(&n.to_be_bytes());
    tag
}

fn number(tag: &[u8; 16]) -> u32 {
    u32::from_be_bytes(tag[..4].try_into().unwrap())
}

/// A record that says when it was left.
fn record(clock: Instant) -> Arc<[u8]> {
    let mut blob = vec![0x5a; RECORD];
    let nanos = u64::try_from(clock.elapsed().as_nanos()).unwrap();
    blob[..8].copy_from_slice(&nanos.to_be_bytes());
    blob.into()
}

fn left_at(blob: &[u8]) -> Duration {
    Duration::from_nanos(u64::from_be_bytes(blob[..8].try_into().unwrap()))
}

/// What all players share.
struct Game {
    clock: Instant,
    each: u32,
    ready: AtomicUsize,
    phase: AtomicUsize,
    is_over: AtomicBool,
    /// Times from a change to its reader, within a process and between two.
    pushes: [Mutex<Vec<Duration>>; 2],
    /// Changes during the absence of the store that a reader elsewhere has yet to hear of.
    owed: AtomicUsize,
}

/// Registers the clients of one process, then changes records and listens to those of others.
fn play(game: &Game, process: u32, server: &Server) {
    let numbers = game.each * process..game.each * (process + 1);
    let spread = Duration::from_millis(u64::from(game.each) * 3 / 2);
    let first = numbers.start;
    let begins = |n: u32| spread.mul_f64(f64::from(n - first) / f64::from(game.each));
    let mut swarm = Swarm::new(numbers.clone(), server.udp[0], server.public_key, begins);
    swarm.patience = Duration::from_millis(1);
    for n in numbers.clone() {
        let client = &mut swarm.clients[(n - first) as usize];
        let beside = first + (n - first + 1) % game.each;
        let elsewhere = (n + game.each) % (game.each * PROCESSES);
        client.set_watches([tag(beside), tag(elsewhere)], Time::ZERO);
        client.set_records([(tag(n), record(game.clock))], Time::ZERO);
    }
    let mut heard = vec![[false; 2]; game.each as usize];
    let mut missing = 2 * heard.len();
    let mut rng = ChaCha20Rng::from_seed([process as u8; 32]);
    let (mut next, mut before, mut is_ready) = (Duration::ZERO, 0, false);
    while !game.is_over.load(Ordering::Relaxed) {
        let phase = game.phase.load(Ordering::Relaxed);
        let mut take = |n: u32, event: Event| {
            let Event::Record { tag, blob } = event else {
                return;
            };
            let is_between = number(&tag) / game.each != process;
            let slot = &mut heard[(n - first) as usize][usize::from(is_between)];
            missing -= usize::from(!std::mem::replace(slot, true));
            let took = game.clock.elapsed().saturating_sub(left_at(&blob));
            match phase {
                1 => game.pushes[usize::from(is_between)]
                    .lock()
                    .unwrap()
                    .push(took),
                2 | 3 if is_between => {
                    let less = |owed: usize| Some(owed.saturating_sub(1));
                    let _ = game
                        .owed
                        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
                }
                _ => {}
            }
        };
        swarm.turn(|n, event, _| take(n, event));
        let now = swarm.now();
        let wants = match phase {
            1 if now >= next => {
                next = now.max(next) + Duration::from_secs(1) / CHANGES;
                1
            }
            2 if before != 2 => {
                game.owed.fetch_add(100, Ordering::Relaxed);
                100
            }
            _ => 0,
        };
        before = phase;
        let mut changed = std::collections::BTreeSet::new();
        while changed.len() < wants {
            changed.insert(first + rng.next_u32() % game.each);
        }
        for n in changed {
            let client = &mut swarm.clients[(n - first) as usize];
            client.set_records([(tag(n), record(game.clock))], Time::from_origin(now));
            swarm.settle(n, now, &mut |n, event, _| take(n, event));
        }
        swarm.flush();
        if !is_ready && swarm.ups == swarm.clients.len() && missing == 0 {
            is_ready = true;
            game.ready.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Waits until this is true.
fn wait(patience: Duration, what: &str, is_true: impl Fn() -> bool) -> Duration {
    let start = Instant::now();
    while !is_true() {
        assert!(start.elapsed() < patience, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
    start.elapsed()
}

fn percentiles(times: &Mutex<Vec<Duration>>) -> String {
    let mut times = times.lock().unwrap();
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    let milliseconds = |time: Duration| time.as_secs_f64() * 1_000.0;
    format!(
        "{} pushes, p50 {:.1} ms, p99 {:.1} ms",
        times.len(),
        milliseconds(at(0.5)),
        milliseconds(at(0.99))
    )
}

#[test]
#[ignore = "100,000 clients, in a release build: make cluster"]
fn campaign_cluster() {
    let count = std::env::var("NATPUNCH_CLUSTER_CLIENTS").ok();
    let count: u32 = count.map_or(100_000, |count| count.parse().unwrap());
    let each = count / PROCESSES;
    let mut redis = Redis::start(&[]);
    let directory = directory();
    let (key, secret) = (
        directory.path().join("server.key"),
        directory.path().join("store.secret"),
    );
    let text = format!(
        "listen = [\"127.0.0.1:0\"]\nkey_file = {key:?}\nopen = true\nrelay = false\n\
         [limits]\nhellos_per_second = 6000\n[store]\nurl = {:?}\nsecret_file = {secret:?}\n",
        redis.url()
    );
    let file = directory.path().join("serve.toml");
    std::fs::write(&file, text).unwrap();
    let servers = [(); PROCESSES as usize].map(|()| {
        let command = serve(&["--config", file.to_str().unwrap()]);
        Server::spawn(command, directory.path())
    });
    let game = Game {
        clock: Instant::now(),
        each,
        ready: AtomicUsize::new(0),
        phase: AtomicUsize::new(0),
        is_over: AtomicBool::new(false),
        pushes: Default::default(),
        owed: AtomicUsize::new(0),
    };
    std::thread::scope(|scope| {
        for (process, server) in (0..).zip(&servers) {
            let game = &game;
            scope.spawn(move || play(game, process, server));
        }
        let conduct = || {
            let all = PROCESSES as usize;
            let took = wait(Duration::from_secs(600), "all found each other", || {
                game.ready.load(Ordering::Relaxed) == all
            });
            println!(
                "measured cluster: {} clients at {PROCESSES} processes; each has registered and has two records \
                 of others, one of them of another process, after {:.1} s",
                each * PROCESSES,
                took.as_secs_f64()
            );
            redis.ask("CONFIG RESETSTAT");
            game.phase.store(1, Ordering::Relaxed);
            std::thread::sleep(MEASURED);
            game.phase.store(4, Ordering::Relaxed);
            println!(
                "measured cluster: within a process {}; between two {}",
                percentiles(&game.pushes[0]),
                percentiles(&game.pushes[1])
            );
            for line in redis.ask("INFO commandstats").lines() {
                if line.starts_with("cmdstat_") {
                    println!("measured cluster: {line}");
                }
            }
            std::thread::sleep(Duration::from_secs(2));
            redis.kill();
            game.phase.store(2, Ordering::Relaxed);
            std::thread::sleep(AWAY);
            let owed = game.owed.load(Ordering::Relaxed);
            redis.restart();
            game.phase.store(3, Ordering::Relaxed);
            let took = wait(
                Duration::from_secs(400),
                "all hear what they missed",
                || game.owed.load(Ordering::Relaxed) == 0,
            );
            println!(
                "measured cluster: the store was killed, and back empty after {} s; {owed} changes of that time \
                 had reached their readers at other processes {:.1} s later",
                AWAY.as_secs(),
                took.as_secs_f64()
            );
        };
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(conduct));
        game.is_over.store(true, Ordering::Relaxed);
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}
