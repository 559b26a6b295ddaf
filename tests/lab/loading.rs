//! A mesh that takes long to read, and the node that runs meanwhile.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use natpunch::control::{Client, Request};
use natpunch_lab::lab_test;
use natpunch_types::SecretKey;

use crate::mesh::replace;
use crate::safety::pair;
use crate::world::{Discovery, INTERFACE, World, within};

/// Peers of the huge mesh: some 6 MB of text.
const PEERS: u32 = 60_000;

lab_test!(
    a_node_answers_and_keeps_its_path_while_a_huge_mesh_is_read,
    300,
    |lab| {
        let mut world = World::new(lab, Discovery::Rendezvous);
        let (a, b, _routers) = pair(&mut world, "");
        for (node, peer) in [(&a, &b), (&b, &a)] {
            node.wait_path(peer, "direct", within(60));
        }
        // It is read to its end, and refused for what its last lines say: what is measured is the
        // loading alone.
        let mut text = world.mesh.text();
        for number in 1..=PEERS {
            let [.., high, low] = number.to_be_bytes();
            let mut bytes = [9; 32];
            bytes[..4].copy_from_slice(&number.to_be_bytes());
            let key = SecretKey::from_bytes(bytes).public_key();
            writeln!(
                text,
                "[peers.p{number}]\npublic_key = \"{key}\"\naddresses = [\"10.78.{high}.{low}\"]"
            )
            .unwrap();
        }
        text = text.replacen("10.77.0.0/24\"", "10.77.0.0/24\", \"10.78.0.0/16\"", 1);
        text.push_str("[peers.last]\npublic_key = \"nonsense\"\naddresses = [\"10.77.0.9\"]\n");
        let file = a.file.clone();
        let questions = move || {
            let connect = || {
                let mut client = Client::connect(Path::new("/run/natpunch"), INTERFACE).unwrap();
                client.set_patience(Duration::from_secs(200)).unwrap();
                client
            };
            let (mut asks, mut reloads) = (connect(), connect());
            replace(&file, &text);
            let start = Instant::now();
            let reload = std::thread::spawn(move || reloads.ask(Request::Reload));
            let (mut longest, mut asked) = (Duration::ZERO, 0);
            while !reload.is_finished() {
                let at = Instant::now();
                asks.ask(Request::Status).unwrap();
                longest = longest.max(at.elapsed());
                asked += 1;
                std::thread::sleep(Duration::from_millis(10));
            }
            let took = start.elapsed();
            let error = reload.join().unwrap().unwrap_err().to_string();
            assert!(error.contains("last"), "{error}");
            (took, longest, asked)
        };
        let (took, longest, asked) = a.host.run(questions).unwrap();
        println!(
            "measured: a mesh of {PEERS} peers was read in {took:.1?}; of {asked} questions for the \
             status meanwhile the slowest was answered after {longest:.1?}"
        );
        assert!(
            longest * 4 < took,
            "{longest:?} for an answer, of {took:?} that the load took"
        );
        // b asks a every few seconds whether the path lives, and leaves it where no answer comes.
        let left = b.wait_log("stopped answering", Instant::now());
        assert!(left.is_none(), "the path was given up meanwhile");
        b.wait_path(&a, "direct", within(1));
    }
);
