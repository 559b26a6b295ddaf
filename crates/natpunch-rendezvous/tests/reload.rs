//! A server that gets other settings while it runs.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::time::Duration;

use common::{Net, key, public};
use natpunch_rendezvous::server::{Admission, Limits};
use natpunch_types::PresharedKey;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn who_is_taken_off_the_list_is_gone_at_once_with_its_mailboxes_and_cannot_come_back() {
    let mut net = Net::open();
    for n in 0..3 {
        let now = net.now;
        let client = net.join(n, None);
        client.set_records([([n as u8; 16], common::blob(n as u8))], now);
    }
    net.run(2 * SECOND);
    assert_eq!((net.server.sessions(), net.server.mailboxes()), (3, 3));
    let allowed = [key(1), key(2)].iter().map(public).collect();
    let ended = net.server.reconfigure(Admission { secrets: vec![], allowed: Some(allowed) }, Limits::default());
    assert_eq!((ended, net.server.sessions(), net.server.mailboxes()), (1, 2, 2));
    assert_eq!(net.server.counters().revoked, 1);
    net.run(120 * SECOND);
    assert_eq!(net.server.sessions(), 2);
    assert!(net.server.counters().not_allowed > 0, "it has tried");
    assert!(net.is_up(0) && net.is_up(1) && !net.is_up(2));
}

#[test]
fn who_came_in_by_a_secret_that_is_taken_away_is_gone_and_who_came_by_another_stays() {
    let secrets = [1, 2, 3].map(|n| PresharedKey::from_bytes([n; 32]));
    let [first, second, third] = secrets.clone();
    let mut net =
        Net::new(Admission { secrets: vec![first.clone(), second.clone()], allowed: None }, Limits::default());
    net.join(0, Some(first));
    net.join(1, Some(second.clone()));
    net.run(2 * SECOND);
    assert_eq!(net.server.sessions(), 2);
    let ended =
        net.server.reconfigure(Admission { secrets: vec![third.clone(), second], allowed: None }, Limits::default());
    assert_eq!((ended, net.server.sessions()), (1, 1));
    net.join(2, Some(third));
    net.run(120 * SECOND);
    assert_eq!(net.server.sessions(), 2);
    assert!(!net.is_up(0) && net.is_up(1) && net.is_up(2));
}

#[test]
fn settings_that_change_nothing_end_nothing() {
    let mut net = Net::open();
    net.join(0, None);
    net.run(2 * SECOND);
    assert_eq!(net.server.reconfigure(Admission::default(), Limits { sessions: 0, ..Limits::default() }), 0);
    net.run(60 * SECOND);
    assert!(net.is_up(0), "a lower limit refuses the new and keeps the old");
    net.join(1, None);
    net.run(2 * SECOND);
    assert_eq!(net.server.sessions(), 1);
    assert_eq!(net.server.reconfigure(Admission::default(), Limits::default()), 0);
    net.run(90 * SECOND);
    assert_eq!(net.server.sessions(), 2);
}
