//! Several processes that share a store are one rendezvous: the real binary, and a real
//! redis-server.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use natpunch_rendezvous::client::Event;
use natpunch_types::Time;
use nix::sys::signal::Signal;

use crate::process::Server;
use crate::redis::Redis;
use crate::rendezvous::Node;

/// Long, for a busy machine; what is waited for comes in milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);
const TAG: [u8; 16] = [0xa7; 16];

/// A directory with the secret of the processes.
fn directory() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    let secret = directory.path().join("store.secret");
    std::fs::write(&secret, "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n").unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    directory
}

/// A process of the cluster.
fn process(directory: &Path, redis: &Redis, more: &[&str]) -> Server {
    let secret = directory.join("store.secret");
    let url = redis.url();
    let common = ["--open", "--listen", "127.0.0.1:0", "--store", &url];
    let secret = ["--store-secret-file", secret.to_str().unwrap()];
    let arguments = [&common[..], &secret, more].concat();
    Server::start_in(directory, &arguments)
}

fn node(n: u32, server: &Server) -> Node {
    let local = SocketAddr::from(([127, 0, 0, 1], 0));
    Node::new(n, local, server.udp[0], server.public_key, None)
}

fn puts(node: &mut Node, blob: &[u8]) {
    let now = Time::from_origin(node.now());
    node.client.set_records([(TAG, Arc::from(blob))], now);
}

fn watches(node: &mut Node) {
    let now = Time::from_origin(node.now());
    node.client.set_watches([TAG], now);
}

/// The last record that it was told.
fn told(node: &Node) -> Option<&[u8]> {
    let records = node.events.iter().filter_map(|event| match event {
        Event::Record { blob, .. } => Some(&**blob),
        _ => None,
    });
    records.last()
}

/// Lets all live until this is true.
fn live(nodes: &mut [&mut Node], is_true: impl Fn(&[&mut Node]) -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_true(nodes) {
        assert!(
            Instant::now() < end,
            "{:?}",
            nodes.iter().map(|it| &it.events).collect::<Vec<_>>()
        );
        for node in nodes.iter_mut() {
            node.live_until(Duration::from_millis(1), |_| false);
        }
    }
}

#[test]
fn nodes_at_two_processes_find_each_other_and_the_store_learns_nothing() {
    let redis = Redis::start(&[]);
    let directory = directory();
    let [a, b] = [(); 2].map(|()| process(directory.path(), &redis, &["--no-relay"]));
    let (mut owner, mut reader) = (node(1, &a), node(2, &b));
    // What was left before somebody watched.
    puts(&mut owner, b"the first record of the owner");
    live(&mut [&mut owner], |nodes| nodes[0].is_up());
    watches(&mut reader);
    live(&mut [&mut owner, &mut reader], |nodes| {
        told(nodes[1]) == Some(b"the first record of the owner")
    });
    // What is left while somebody watches.
    let begun = Instant::now();
    puts(&mut owner, b"the second record of the owner");
    live(&mut [&mut owner, &mut reader], |nodes| {
        told(nodes[1]) == Some(b"the second record of the owner")
    });
    println!("pushed within {:?}", begun.elapsed());
    // Names are hashes, values are sealed, and all have an expiry.
    let dump = redis.ask("KEYS *");
    assert!(dump.contains("natpunch-serve:"), "{dump}");
    let values = redis.ask("EVAL \"local t = {} for _, k in ipairs(redis.call('KEYS', '*')) do if redis.call('TYPE', k).ok == 'string' then t[#t+1] = redis.call('GET', k) end t[#t+1] = redis.call('PTTL', k) end return t\" 0");
    assert!(!values.contains("record of the owner"), "{values}");
    assert!(!values.contains(":-1\r\n"), "without expiry: {values}");
    drop((a, b));
}

#[test]
fn a_store_that_was_away_costs_no_client_of_one_process_anything_and_is_told_all_again() {
    let mut redis = Redis::start(&[]);
    let directory = directory();
    let [a, b] = [(); 2].map(|()| process(directory.path(), &redis, &["--no-relay"]));
    let (mut owner, mut near, mut far) = (node(1, &a), node(2, &a), node(3, &b));
    puts(&mut owner, b"one");
    watches(&mut near);
    watches(&mut far);
    live(&mut [&mut owner, &mut near, &mut far], |nodes| {
        told(nodes[1]) == Some(b"one") && told(nodes[2]) == Some(b"one")
    });
    for stops in [false, true] {
        match stops {
            true => redis.signal(Signal::SIGSTOP),
            false => redis.kill(),
        }
        let blob: &[u8] = if stops { b"three" } else { b"two" };
        puts(&mut owner, blob);
        let begun = Instant::now();
        live(&mut [&mut owner, &mut near], |nodes| {
            told(nodes[1]) == Some(blob)
        });
        println!("at the same process: within {:?}", begun.elapsed());
        match stops {
            true => redis.signal(Signal::SIGCONT),
            false => redis.restart(),
        }
        let begun = Instant::now();
        live(&mut [&mut owner, &mut far], |nodes| {
            told(nodes[1]) == Some(blob)
        });
        println!(
            "at the other one: {:?} after the store was back",
            begun.elapsed()
        );
    }
    drop((a, b));
}
