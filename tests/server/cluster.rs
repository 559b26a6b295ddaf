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
pub(crate) fn directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let secret = directory.path().join("store.secret");
    write_secret(&secret, "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n");
    directory
}

fn write_secret(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// The settings of a process whose relay ports are at one address with those of others.
fn one_address(directory: &Path, redis: &Redis) -> Server {
    let (key, secret) = (directory.join("server.key"), directory.join("store.secret"));
    let password = directory.join("store.password");
    write_secret(&password, "PASSWORD\n");
    let text = format!(
        "listen = [\"127.0.0.1:0\"]\nkey_file = {key:?}\nopen = true\n\
         metrics = \"127.0.0.1:0\"\n[store]\nurl = {:?}\n\
         user = \"natpunch\"\npassword_file = {password:?}\n\
         secret_file = {secret:?}\none_address = true\n",
        redis.url()
    );
    let file = directory.join("serve.toml");
    std::fs::write(&file, text).unwrap();
    let command = crate::process::serve(&["--config", file.to_str().unwrap()]);
    Server::spawn(command, directory)
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
    let mut records = node.events.iter().filter_map(|event| match event {
        Event::Record { blob, .. } => Some(&**blob),
        _ => None,
    });
    records.next_back()
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

/// The moments at which it was told to fire, since its start.
fn fires(node: &Node) -> Option<Duration> {
    node.events.iter().find_map(|event| match event {
        Event::Fire { after, .. } => Some(*after),
        _ => None,
    })
}

#[test]
fn nodes_at_two_processes_meet_at_one_moment() {
    const PAIR: [u8; 16] = [0x5e; 16];
    let redis = Redis::start(&[]);
    let directory = directory();
    let [a, b] = [(); 2].map(|()| process(directory.path(), &redis, &["--no-relay"]));
    let (mut first, mut second) = (node(1, &a), node(2, &b));
    puts(&mut first, b"where the first one is");
    watches(&mut second);
    live(&mut [&mut first, &mut second], |nodes| {
        told(nodes[1]).is_some()
    });
    let now = Time::from_origin(first.now());
    first.client.meet(PAIR, TAG, now);
    let is_wanted = |node: &Node| {
        let mut events = node.events.iter();
        events.any(|event| matches!(event, Event::Wanted { tag } if *tag == TAG))
    };
    live(&mut [&mut first, &mut second], |nodes| is_wanted(nodes[1]));
    let now = Time::from_origin(second.now());
    second.client.meet(PAIR, [0xbb; 16], now);
    live(&mut [&mut first, &mut second], |nodes| {
        nodes.iter().all(|node| fires(node).is_some())
    });
    // Both processes are on one machine, so both are told about the same.
    let told = [&first, &second].map(|node| fires(node).unwrap());
    println!("{told:?}");
    assert!(
        told[0].abs_diff(told[1]) < Duration::from_millis(60),
        "{told:?}"
    );
    drop((a, b));
}

#[test]
fn nodes_at_two_processes_behind_one_address_get_a_relay_at_one_of_them() {
    // With the rights that the how-to gives.
    let conf = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/examples/server/cluster/valkey.conf"
    );
    let conf = std::fs::read_to_string(conf).unwrap();
    let user = conf.lines().find(|line| line.starts_with("user natpunch"));
    let user = user.unwrap().split(' ').skip(1);
    let mut redis = Redis::start(&["--user"].into_iter().chain(user).collect::<Vec<_>>());
    let directory = directory();
    let [a, b] = [(); 2].map(|()| one_address(directory.path(), &redis));
    crate::relay::talk_between([&a, &b]);
    let health =
        |server: &Server| crate::operation::get(server.metrics.unwrap(), "/health", "localhost");
    assert!(health(&a).ends_with("\nok\n"), "refused: {}", health(&a));
    redis.kill();
    let end = Instant::now() + PATIENCE;
    while !health(&a).contains("ok, but the store: ") {
        assert!(Instant::now() < end, "{}", health(&a));
        std::thread::sleep(Duration::from_millis(20));
    }
    drop((a, b));
}

#[test]
fn a_store_that_is_full_is_said_and_those_it_knows_are_told_on() {
    let redis = Redis::start(&[]);
    let directory = directory();
    let [a, b] = [(); 2].map(|()| process(directory.path(), &redis, &["--no-relay"]));
    let (mut owner, mut reader) = (node(1, &a), node(2, &b));
    puts(&mut owner, b"one");
    watches(&mut reader);
    live(&mut [&mut owner, &mut reader], |nodes| {
        told(nodes[1]) == Some(b"one")
    });
    redis.ask("CONFIG SET maxmemory 1");
    puts(&mut owner, b"two");
    live(&mut [&mut owner, &mut reader], |nodes| {
        told(nodes[1]) == Some(b"two")
    });
    drop((a, b));
}

#[test]
fn the_clients_of_a_process_that_died_are_found_where_they_come_back() {
    let redis = Redis::start(&[]);
    let directory = directory();
    let [a, b, c] = [(); 3].map(|()| process(directory.path(), &redis, &["--no-relay"]));
    let (mut owner, mut reader) = (node(1, &a), node(2, &b));
    puts(&mut owner, b"one");
    watches(&mut reader);
    live(&mut [&mut owner, &mut reader], |nodes| {
        told(nodes[1]) == Some(b"one")
    });
    drop(a);
    // A balancer sends it elsewhere.
    let mut owner = node(1, &c);
    puts(&mut owner, b"two");
    live(&mut [&mut owner, &mut reader], |nodes| {
        told(nodes[1]) == Some(b"two")
    });
    drop((b, c));
}
