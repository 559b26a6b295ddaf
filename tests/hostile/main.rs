//! A rendezvous server that holds the real keys and means harm, against real nodes: client and core
//! together, in virtual time. It withholds, swaps, repeats and alters records, lies about addresses
//! and NATs, names moments at will, and offers relays that are none. What is asserted is what the
//! nodes believe, and what they send to whom.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    unreachable_pub
)]

mod world;

use std::time::Duration;

use world::{Conduct, World, address, victim};

const SECOND: Duration = Duration::from_secs(1);

/// All that it can do, by chance.
fn harmful(seed: u64) -> World {
    World::new(
        seed,
        Conduct {
            harm: true,
            ..Conduct::default()
        },
    )
}

#[test]
fn an_honest_server_connects_the_two_or_else_nothing_here_means_anything() {
    let mut world = World::new(1, Conduct::default());
    world.run(30 * SECOND);
    assert_eq!(world.endpoints(0), [address(1)]);
    assert_eq!(world.endpoints(1), [address(0)]);
    assert!(world.fired > 0, "they met");
}

#[test]
fn a_hostile_server_moves_no_endpoint_to_where_the_peer_has_not_answered() {
    for seed in 0..5 {
        let mut world = harmful(seed);
        world.run(120 * SECOND);
        for n in [0, 1] {
            for endpoint in world.endpoints(n) {
                assert_eq!(endpoint, address(1 - n), "seed {seed}");
            }
        }
        assert!(
            world.lies > 50,
            "seed {seed}: it has tried ({})",
            world.lies
        );
    }
}

#[test]
fn a_hostile_server_does_not_turn_nodes_on_a_victim() {
    let (mut datagrams, mut bytes, mut most) = (0, 0, 0.0_f64);
    for seed in 100..103 {
        let mut world = harmful(seed);
        world.run(300 * SECOND);
        datagrams += world.to_victims.0;
        bytes += world.to_victims.1;
        // What its lies cost the server, in bytes that it sent.
        most = most.max(world.to_victims.1 as f64 / world.from_server as f64);
        assert!(
            world.to_victims.0 < 2 * 300 * 10,
            "seed {seed}: {:?}",
            world.to_victims
        );
    }
    println!(
        "measured: {datagrams} datagrams, {bytes} bytes to victims in 1,800 node seconds; at most {most:.2} of what it sent"
    );
    assert!(
        most < 1.0,
        "the server would have done better to send them itself: {most:.2}"
    );
}

#[test]
fn an_older_record_or_one_of_another_mailbox_is_not_believed() {
    let mut world = World::new(
        3,
        Conduct {
            withhold: true,
            ..Conduct::default()
        },
    );
    let [old, new] = [victim(1), victim(2)];
    // The first node is at an address of which its record tells, then at another.
    world.observe(0, old);
    world.run(SECOND * 2);
    world.observe(0, new);
    world.run(SECOND * 2);
    let records = world.server.of(0);
    assert!(records.len() >= 2, "{} records", records.len());
    let (newest, earlier) = records.split_last().unwrap();
    world.tell(1, newest.0, &newest.1);
    world.run(SECOND);
    assert!(
        world.candidates(1).contains(&new),
        "the newest is believed: {:?}",
        world.candidates(1)
    );
    for (tag, blob) in earlier {
        world.tell(1, *tag, blob);
        // And what it wrote itself, under the other's tag.
        for (_, own) in world.server.of(1) {
            world.tell(1, *tag, &own);
        }
        for at in 0..blob.len() {
            let mut altered = newest.1.clone();
            if let Some(byte) = altered.get_mut(at) {
                *byte ^= 1;
            }
            world.tell(1, *tag, &altered);
        }
        world.run(SECOND);
    }
    assert!(
        !world.candidates(1).contains(&old),
        "{:?}",
        world.candidates(1)
    );
}

#[test]
fn a_moment_that_nobody_asked_for_makes_nobody_fire() {
    let mut world = World::new(
        4,
        Conduct {
            withhold: true,
            ..Conduct::default()
        },
    );
    world.run(SECOND * 20);
    let before = world.fired;
    for n in [0, 1] {
        for tag in world.server.tags() {
            world.say(n, &[&[11, 0, 18][..], &tag, &[0, 10]].concat());
        }
        // And one that would be too far away.
        for tag in world.server.tags() {
            world.say(n, &[&[11, 0, 18][..], &tag, &[0xff, 0xff]].concat());
        }
    }
    assert!(
        world.fired - before <= 2,
        "at most what each waits for: {}",
        world.fired - before
    );
}
