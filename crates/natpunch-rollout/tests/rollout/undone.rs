//! How a change is undone: when, by what, and what is tried again if the device or the disk fails.

use std::time::Duration;

use crate::support::shell::{MOMENT, Shell, key, names, s, watched};
use crate::support::{Version, peer, route};
use natpunch_rollout::{Change, Notice, Phase, Settings};

fn mesh() -> Version {
    Version::new(1, (1..=4).map(peer))
}

fn routed(hash: u8, number: u8) -> Version {
    let net = format!("172.20.{number}.0/24");
    mesh().with(hash, |v| route(v.peer(number), &net))
}

fn shell() -> Shell {
    Shell::running(Settings::default(), &mesh())
}

/// A node whose change of peer 1 was undone at 11 s, on its way back.
fn going_back() -> Shell {
    let mut shell = shell();
    shell.make(&routed(2, 1), &[1], s(1));
    shell.told();
    shell.rollout.handle_timeout(s(11));
    assert_eq!(shell.rollout.phase(), Phase::GoingBack);
    assert!(shell.rollout.is_busy());
    shell
}

/// How a change of the whole node ends whose deadline comes while some peers are not back.
fn stays(critical: &[u8], all: u8, silent: &[u8]) -> bool {
    let before = Version::new(1, (1..=all).map(peer)).with(1, |v| {
        for number in critical {
            v.peer(*number).critical = true;
        }
    });
    let after = before.with(2, |v| v.facts.node.mtu = 1300);
    let mut shell = Shell::running(Settings::default(), &before);
    let alive: Vec<u8> = (1..=all).collect();
    shell.make(&after, &alive, s(1));
    shell.rollout.handle_timeout(s(1));
    let back: Vec<u8> = alive.into_iter().filter(|n| !silent.contains(n)).collect();
    shell.answered_by(&back, s(2));
    shell.rollout.handle_timeout(s(11) - MOMENT);
    shell.rollout.handle_timeout(s(11));
    match shell.rollout.phase() {
        Phase::Steady => true,
        Phase::GoingBack => false,
        other => panic!("{other:?}"),
    }
}

#[test]
fn of_those_that_may_be_lost_half_have_to_be_back() {
    for (all, silent, expected) in [
        (2, &[1][..], true),
        (2, &[1, 2], false),
        (3, &[1], true),
        (3, &[1, 2], false),
        (6, &[1, 2, 3], true),
        (6, &[1, 2, 3, 4], false),
    ] {
        assert_eq!(stays(&[], all, silent), expected, "{silent:?} of {all}");
    }
    // Those that must be back don't count among them.
    assert!(!stays(&[3], 3, &[3]));
    assert!(stays(&[3], 3, &[1]));
    assert!(!stays(&[3], 3, &[1, 2]));
    assert!(!stays(&[2, 3, 4], 4, &[1]), "the only one of the others");
}

#[test]
fn who_is_missing_and_not_needed_is_told() {
    let after = mesh().with(2, |v| v.facts.node.mtu = 1300);
    let mut shell = shell();
    shell.make(&after, &[1, 2, 3, 4], s(1));
    shell.rollout.handle_timeout(s(1));
    shell.answered_by(&[1, 3, 4], s(2));
    shell.told();
    shell.rollout.handle_timeout(s(11));
    shell.write_lands(s(11));
    let good = Notice::Good {
        version: [2; 32],
        was_watched: true,
        missing: vec!["p2".into()],
    };
    assert_eq!(shell.told(), [good]);
}

#[test]
fn what_nobody_confirms_is_undone_at_the_deadline() {
    let settings = Settings {
        confirm: Some(Duration::from_secs(60)),
        ..Settings::default()
    };
    let mut shell = Shell::running(settings, &mesh());
    shell.read(&routed(2, 1), &[1], s(1)).unwrap();
    shell.write_lands(s(1));
    shell.apply_lands(s(1));
    shell.told();
    assert_eq!(shell.rollout.poll_timeout(), Some(s(1)));
    shell.rollout.handle_timeout(s(1));
    shell.assert_idle();
    assert_eq!(shell.rollout.poll_timeout(), Some(s(61)));
    shell.rollout.handle_timeout(s(61));
    let reason = "it was not confirmed with `natpunch confirm`";
    assert_eq!(shell.rollout.held(), Some(([2; 32], reason)));
}

#[test]
fn what_is_undone_is_noted_then_the_device_goes_back_and_all_follow() {
    let mut shell = going_back();
    let reason = "no sign of life after it from p1".to_owned();
    let held = Change::Held {
        to: [2; 32],
        reason: reason.clone(),
    };
    assert_eq!(shell.write_lands(s(11)), Some(held));
    assert_eq!(shell.rollout.runs().hash, [2; 32], "until it is back");
    let apply = shell.apply();
    assert_eq!(apply.version, [1; 32]);
    shell.rollout.handle_applied(apply.id + 1, Ok(()), s(12));
    assert_eq!(shell.rollout.phase(), Phase::GoingBack);
    shell.rollout.handle_applied(apply.id, Ok(()), s(12));
    let undone = Notice::Undone {
        version: [2; 32],
        reason,
    };
    assert_eq!(shell.told(), [undone, Notice::Back]);
    assert_eq!(shell.followed, Some([1; 32]));
    assert_eq!(shell.rollout.runs().hash, [1; 32]);
    assert_eq!(shell.rollout.phase(), Phase::Steady);
}

#[test]
fn a_way_back_that_fails_is_tried_each_second() {
    let mut shell = going_back();
    shell.write_lands(s(11));
    shell.apply_fails("busy", s(12));
    let told = shell.told();
    assert_eq!(told.last(), Some(&Notice::CantGoBack("busy".into())));
    assert_eq!(shell.rollout.poll_timeout(), Some(s(13)));
    shell.rollout.handle_timeout(s(13) - MOMENT);
    shell.assert_idle();
    shell.rollout.handle_timeout(s(13));
    assert_eq!(
        shell.rollout.poll_timeout(),
        None,
        "the device has its time"
    );
    assert_eq!(shell.apply_lands(s(13)).version, [1; 32]);
    assert_eq!(shell.rollout.phase(), Phase::Steady);
}

#[test]
fn a_device_that_is_lost_on_the_way_back_is_sent_back_anew() {
    let mut shell = going_back();
    shell.write_lands(s(11));
    let lost = shell.apply();
    shell.rollout.handle_device_lost(s(12));
    let anew = shell.apply();
    assert_eq!(anew.version, [1; 32]);
    shell.rollout.handle_applied(lost.id, Ok(()), s(12));
    assert_eq!(shell.rollout.phase(), Phase::GoingBack);
    shell.rollout.handle_applied(anew.id, Ok(()), s(12));
    assert_eq!(shell.rollout.phase(), Phase::Steady);
}

#[test]
fn peers_go_back_to_where_they_were_while_all_was_well() {
    let mut shell = shell();
    shell.device_has(&[(1, "192.0.2.1:1"), (2, "192.0.2.2:2")], s(1));
    shell.make(&routed(2, 1), &[1], s(1));
    shell.device_has(&[(1, "203.0.113.1:1"), (3, "203.0.113.3:3")], s(1) + MOMENT);
    shell.ask();
    shell.rollout.handle_timeout(s(11));
    shell.write_lands(s(11));
    let endpoints = shell.apply_fails("busy", s(11)).endpoints;
    let at = |number, text: &str| (key(number), text.parse().unwrap());
    let expected = [
        at(1, "192.0.2.1:1"),
        at(2, "192.0.2.2:2"),
        at(3, "203.0.113.3:3"),
    ];
    assert_eq!(endpoints, expected.into());
    // A version that comes before it is back is a change of the same peers.
    shell.read(&routed(3, 2), &[], s(11)).unwrap();
    let Some(Change::Open {
        endpoints, watched, ..
    }) = shell.write_lands(s(11))
    else {
        panic!("not open");
    };
    assert_eq!(names(&watched), Vec::<&str>::new());
    assert_eq!(endpoints[&key(2)], "192.0.2.2:2".parse().unwrap());
}

#[test]
fn a_version_that_comes_on_the_way_back_is_begun_once_the_device_is_back() {
    let mut shell = going_back();
    shell.read(&routed(3, 2), &[], s(11)).unwrap();
    shell.write_lands(s(11));
    shell.apply_fails("busy", s(11));
    // The way back failed: the newest version goes before another try.
    assert_eq!(shell.rollout.phase(), Phase::Noting);
    shell.write_lands(s(11));
    assert_eq!(shell.apply_lands(s(11)).version, [3; 32]);

    let mut shell = going_back();
    shell.read(&routed(3, 2), &[], s(11)).unwrap();
    shell.write_lands(s(11));
    shell.apply_lands(s(11));
    shell.write_lands(s(11));
    assert_eq!(shell.apply_lands(s(11)).version, [3; 32]);
}

#[test]
fn the_version_before_may_be_begun_by_the_file_while_the_way_back_fails() {
    let mut shell = shell();
    shell.read(&routed(2, 1), &[], s(1)).unwrap();
    shell.write_lands(s(1));
    shell.apply_fails("no such device", s(1));
    shell.write_lands(s(1));
    shell.apply_fails("busy", s(1));
    // What runs is the version before by name, and a part of the other by the device.
    shell.read(&mesh(), &[], s(1)).unwrap();
    shell.write_lands(s(1));
    assert_eq!(shell.apply_lands(s(1)).version, [1; 32]);
    assert_eq!(shell.write_lands(s(1)), None);
    assert_eq!(shell.rollout.phase(), Phase::Steady);
}

#[test]
fn who_was_cut_off_counts_as_alive_for_a_minute_after_it_is_undone() {
    for (after, expected) in [
        (Duration::from_secs(60) - MOMENT, &["p1"][..]),
        (Duration::from_secs(60), &[]),
    ] {
        let mut shell = going_back();
        shell.write_lands(s(11));
        shell.apply_lands(s(12));
        let next = mesh().with(3, |v| route(v.peer(1), "172.20.9.0/24"));
        shell.read(&next, &[], s(12) + after).unwrap();
        let watched = watched(shell.write_lands(s(12) + after));
        assert_eq!(names(&watched), expected, "{after:?}");
    }
    // One that follows and works ends it.
    let mut shell = going_back();
    shell.write_lands(s(11));
    shell.apply_lands(s(12));
    shell.make(&routed(3, 2), &[], s(13));
    shell.write_lands(s(13));
    let next = mesh().with(4, |v| route(v.peer(1), "172.20.9.0/24"));
    shell.read(&next, &[], s(14)).unwrap();
    assert!(watched(shell.write_lands(s(14))).is_empty());
}

#[test]
fn a_journal_that_can_not_be_closed_is_tried_again_each_five_seconds() {
    let mut shell = shell();
    shell.make(&routed(2, 1), &[], s(1));
    shell.write_fails("no space left", s(1));
    let fails = |error: &str| Notice::JournalFails(error.into());
    assert_eq!(shell.told().last(), Some(&fails("no space left")));
    assert_eq!(shell.rollout.journal_error(), Some("no space left"));
    assert_eq!(shell.rollout.poll_timeout(), Some(s(6)));
    shell.rollout.handle_timeout(s(6) - MOMENT);
    shell.assert_idle();
    shell.rollout.handle_timeout(s(6));
    // While it is written, it is not written twice.
    assert_eq!(shell.rollout.poll_timeout(), Some(s(11)));
    shell.write_fails("no space left", s(7));
    shell.assert_idle();
    assert_eq!(shell.rollout.poll_timeout(), Some(s(12)));
    shell.rollout.handle_timeout(s(12));
    shell.write_fails("read-only", s(12));
    assert_eq!(shell.told(), [fails("read-only")], "another reason");
    // The agent ends: a last try, at once.
    shell.rollout.handle_stop(s(13));
    assert_eq!(shell.write_lands(s(13)), None);
    assert_eq!(shell.told(), [Notice::JournalWorks]);
    assert!(!shell.reloads(), "no change waits for it");
    assert_eq!(shell.rollout.journal_error(), None);
    assert_eq!(shell.rollout.poll_timeout(), None);
    shell.rollout.handle_stop(s(14));
    shell.assert_idle();
}

#[test]
fn a_change_that_was_not_noted_is_tried_again_when_the_journal_works_unless_the_file_was_read() {
    for read_meanwhile in [false, true] {
        let mut shell = shell();
        shell.read(&routed(2, 1), &[], s(1)).unwrap();
        shell.write_fails("no space left", s(1));
        shell.told();
        assert_eq!(shell.rollout.phase(), Phase::Steady);
        if read_meanwhile {
            shell.read(&mesh(), &[], s(2)).unwrap();
        }
        shell.rollout.handle_timeout(s(6));
        shell.write_lands(s(6));
        assert_eq!(shell.reloads(), !read_meanwhile);
    }
}
