//! What mailboxes, meetings and queues cost, read from the kernel. One test in a process of its
//! own.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]
// The pure crate under test has no files; the kernel's account of this process is in one.
#![allow(clippy::disallowed_methods)]

mod common;

use std::net::SocketAddr;

use common::{Net, Raw, Tag, frame, put};
use natpunch_rendezvous::server::{Admission, Limits, Via};
use rand_core::RngCore as _;

const MAILBOXES: usize = 10_000;
const BLOB: usize = 100;

fn resident() -> usize {
    let pages: usize = std::fs::read_to_string("/proc/self/statm")
        .unwrap()
        .split(' ')
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    pages * 4_096
}

fn place(n: u16, v6: bool) -> SocketAddr {
    if v6 {
        ([0x2001, 0xdb8, 0, n, 0, 0, 0, 1], 1_000).into()
    } else {
        // Each at a site of its own, or their meetings would share what one site may have.
        ([198, 18, n as u8, 1], 1_000).into()
    }
}

/// Says these frames in as few messages as they fit.
fn say_all(net: &mut Net, client: &mut Raw, frames: &[Vec<u8>]) {
    let each = 1_150 / frames[0].len();
    frames
        .chunks(each)
        .for_each(|frames| drop(client.say(net, &frames.concat())));
}

#[test]
fn mailboxes_and_queues_take_no_more_than_the_stated_bound_counts_for_them() {
    let none = Limits {
        sessions: 0,
        mailboxes: 0,
        bytes: 0,
        relays: 0,
        ..Limits::default()
    };
    let limits = Limits {
        hellos_per_second: 1_000_000,
        messages_per_second: u32::MAX,
        mailboxes_per_client: usize::MAX,
        mailboxes_per_network: usize::MAX,
        ..Limits::default()
    };
    let mut net = Net::new(Admission::default(), limits);
    let mut rng = common::rng(1);
    let mut tags = |count: usize| -> Vec<Tag> {
        let mut tag = || {
            let mut tag = [0; 16];
            rng.fill_bytes(&mut tag);
            tag
        };
        (0..count).map(|_| tag()).collect()
    };
    let mut owner = Raw::register(&mut net, 0, place(0, false), None).unwrap();
    let watchers = [(1, false), (1, true), (2, false), (2, true)];
    let mut watchers =
        watchers.map(|(n, v6)| Raw::register(&mut net, n.into(), place(n, v6), None).unwrap());

    // Each has a record that four are told of, and that nobody has acknowledged: no mailbox takes
    // more.
    let tags_of_mailboxes = tags(MAILBOXES);
    let puts: Vec<_> = tags_of_mailboxes
        .iter()
        .map(|tag| put(*tag, &[7; BLOB]))
        .collect();
    let watches: Vec<_> = tags_of_mailboxes
        .iter()
        .map(|tag| frame(3, &[tag, &[0; 8]]))
        .collect();
    let before = resident();
    watchers
        .iter_mut()
        .for_each(|watcher| say_all(&mut net, watcher, &watches));
    say_all(&mut net, &mut owner, &puts);
    let each = (resident() - before) / MAILBOXES;
    assert_eq!(net.server.mailboxes(), MAILBOXES);
    let counted = (Limits {
        mailboxes: 1_000,
        ..none
    }
    .memory()
        - none.memory())
        / 1_000
        + BLOB;
    println!(
        "{each} bytes for each mailbox of four watchers, {counted} counted, both with {BLOB} of the record"
    );
    assert!(each <= counted, "{each}");

    // All meetings that fit, and a queue full of the longest datagrams.
    let mut clients: Vec<Raw> = (10..80)
        .map(|n| Raw::register(&mut net, n.into(), place(n, false), None).unwrap())
        .collect();
    let meetings: Vec<_> = tags(1_024 * clients.len())
        .iter()
        .map(|tag| frame(7, &[tag, &[0, 9], &[0; 16]]))
        .collect();
    let long = put([9; 16], &[7; 1_024]);
    say_all(&mut net, &mut owner, &[long]);
    let before = resident();
    clients
        .iter_mut()
        .zip(meetings.chunks(1_024))
        .for_each(|(client, wishes)| say_all(&mut net, client, wishes));
    // No site takes the last of them from the others.
    let meetings = net.server.meetings();
    assert!((65_000..=65_536).contains(&meetings), "{meetings}");
    let watcher = &mut watchers[0];
    for _ in 0..5_000 {
        let watch = watcher.session.say(&frame(3, &[&[9; 16], &[0; 8]]));
        net.server
            .handle_datagram(Via::default(), watcher.place, &watch, net.now);
    }
    // A repeated watch re-arms nothing, so no queue grows by it.
    assert_eq!(net.server.counters().unsent, 0);
    let (taken, counted) = (resident() - before, none.memory());
    println!(
        "{} KiB for meetings and queues, {} counted",
        taken >> 10,
        counted >> 10
    );
    assert!(taken <= counted, "{taken}");
}
