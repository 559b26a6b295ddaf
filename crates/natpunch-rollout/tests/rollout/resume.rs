//! What an agent does first: with each journal that the last one may have left.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::support::shell::{MOMENT, Shell, addresses, key, names, s, watched};
use crate::support::{Version, peer, route};
use natpunch_rollout::{
    Change, Hash, Phase, Recorded, Refused, Resumed, Rollout, Settings, Start, Watch,
};
use natpunch_types::{DeviceSnapshot, PeerKey, Time};

const BOOT: &str = "this boot";

/// The version that works.
fn good() -> Version {
    Version::new(1, (1..=4).map(peer))
}

/// Another, with another route of peer 1.
fn other(hash: u8) -> Version {
    good().with(hash, |v| route(v.peer(1), "172.20.1.0/24"))
}

fn watch(number: u8) -> Watch {
    Watch {
        name: format!("p{number}"),
        key: Some(key(number)),
        addresses: addresses(&[number]),
        must: true,
        echo: true,
        full: false,
        handshake: false,
    }
}

fn where_they_were() -> BTreeMap<PeerKey, SocketAddr> {
    [(key(1), "192.0.2.1:1".parse().unwrap())].into()
}

/// A change to version 2 that may be tried until 20 s.
fn open(boot: &str, watched: &[Watch], by_person: bool) -> Change {
    Change::Open {
        to: [2; 32],
        boot: boot.into(),
        deadline_ms: 20_000,
        settled_ms: 15_000,
        by_person,
        watched: watched.to_vec(),
        endpoints: where_they_were(),
    }
}

fn held(to: u8) -> Change {
    Change::Held {
        to: [to; 32],
        reason: "no sign of life".into(),
    }
}

/// An agent that starts at `now`, with a journal by which version 1 works.
fn start(file: &Version, change: Option<Change>, now: Time) -> Resumed<Version> {
    let start = Start {
        file: Arc::new(file.clone()),
        recorded: Some(Recorded {
            good: [1; 32],
            change,
        }),
        is_ours: true,
    };
    let settings = Settings {
        boot: BOOT.into(),
        ..Settings::default()
    };
    Rollout::resume(settings, start, || Some(good()), now).unwrap()
}

/// The version that runs, the one that works, and the one that is held.
fn versions(rollout: &Rollout<Version>) -> (u8, u8, Option<u8>) {
    let held = rollout.held().map(|(hash, _)| hash[0]);
    (rollout.runs().hash[0], rollout.good().hash[0], held)
}

#[test]
fn an_open_change_is_watched_on_to_its_own_deadline() {
    let mut removed = watch(3);
    removed.key = None;
    let change = open(BOOT, &[watch(1), removed], false);
    let resumed = start(&other(2), Some(change), s(18));
    assert_eq!(resumed.endpoints, where_they_were());
    assert_eq!(resumed.undone, None);
    let mut shell = Shell::of(resumed.rollout);
    assert_eq!(versions(&shell.rollout), (2, 1, None));
    let open = shell.rollout.open().unwrap();
    assert_eq!((open.version, open.deadline), ([2; 32], s(20)));
    assert_eq!(open.waiting_for, ["p1"], "not by who was removed");
    shell.assert_idle();
    assert_eq!(shell.rollout.poll_timeout(), Some(s(18)));
    shell.rollout.handle_timeout(s(20));
    shell.write_lands(s(20));
    assert_eq!(shell.apply().endpoints, where_they_were());
}

#[test]
fn peers_are_not_asked_before_an_open_change_has_settled() {
    let change = open(BOOT, &[watch(1)], false);
    let resumed = start(&other(2), Some(change), s(12));
    assert_eq!(resumed.rollout.poll_timeout(), Some(s(15)));
}

#[test]
fn an_open_change_that_waits_for_a_person_waits_on() {
    let change = open(BOOT, &[], true);
    let mut rollout = start(&other(2), Some(change), s(18)).rollout;
    assert_eq!(rollout.phase(), Phase::Watching);
    assert!(rollout.open().unwrap().by_person);
    assert!(rollout.handle_confirm(s(18)).is_err(), "from before");
    assert_eq!(rollout.handle_confirm(s(18) + MOMENT), Ok([2; 32]));
}

#[test]
fn a_change_whose_time_ran_out_without_an_agent_is_undone() {
    let overdue = "its time ran out while no agent ran";
    let restarted = "the host was restarted before it was confirmed";
    for (boot, now, reason) in [
        (BOOT, s(20) - MOMENT, None),
        (BOOT, s(20), Some(overdue)),
        ("another boot", s(18), Some(restarted)),
        ("", s(18), Some(restarted)),
    ] {
        let change = open(boot, &[watch(1)], false);
        let resumed = start(&other(2), Some(change), now);
        let undone: Option<(Hash, &str)> = reason.map(|reason| ([2; 32], reason));
        assert_eq!(resumed.undone, undone, "{boot} {now:?}");
        if reason.is_none() {
            continue;
        }
        let mut shell = Shell::of(resumed.rollout);
        assert_eq!(versions(&shell.rollout), (1, 1, Some(2)));
        assert!(shell.rollout.is_settled(), "the file says what is held");
        assert!(matches!(shell.write_lands(now), Some(Change::Held { .. })));
        let again = shell.read(&other(2), &[], now);
        assert!(matches!(again, Err(Refused::Held(_))));
    }
}

#[test]
fn a_boot_without_a_name_is_never_the_same() {
    let start = Start {
        file: Arc::new(other(2)),
        recorded: Some(Recorded {
            good: [1; 32],
            change: Some(open("", &[watch(1)], false)),
        }),
        is_ours: true,
    };
    let resumed = Rollout::resume(Settings::default(), start, || Some(good()), s(18)).unwrap();
    assert!(resumed.undone.is_some());
}

#[test]
fn whom_an_undone_change_cut_off_counts_as_alive_for_a_minute() {
    let minute = s(78);
    for (now, expected) in [(minute - MOMENT, &["p1"][..]), (minute, &[])] {
        // Overdue, and another version in the file since.
        let change = open("another boot", &[watch(1)], false);
        let mut shell = Shell::of(start(&other(3), Some(change), s(18)).rollout);
        shell.write_lands(s(18));
        assert!(!shell.rollout.is_settled(), "the file is read first");
        shell.read(&other(3), &[], now).unwrap();
        assert_eq!(names(&watched(shell.write_lands(now))), expected);
    }
}

#[test]
fn another_version_in_the_file_is_a_change_once_it_is_known_who_is_alive() {
    let open = open(BOOT, &[watch(1)], false);
    for change in [None, Some(held(9)), Some(open)] {
        let mut shell = Shell::of(start(&other(3), change.clone(), s(18)).rollout);
        assert_eq!(versions(&shell.rollout), (1, 1, None), "{change:?}");
        assert!(!shell.rollout.is_settled());
        assert_eq!(shell.write_lands(s(18)), None);
        assert!(!shell.reloads());
        shell
            .rollout
            .handle_snapshot(&DeviceSnapshot::default(), s(18));
        assert!(shell.reloads());
        assert!(shell.rollout.is_settled());
        shell
            .rollout
            .handle_snapshot(&DeviceSnapshot::default(), s(19));
        assert!(!shell.reloads(), "once");
        // Who was watched counts as alive.
        shell.read(&other(3), &[], s(19)).unwrap();
        let watched = watched(shell.write_lands(s(19)));
        let was_watched = matches!(change, Some(Change::Open { .. }));
        assert_eq!(names(&watched), if was_watched { &["p1"][..] } else { &[] });
    }
}

#[test]
fn a_change_that_nobody_had_to_confirm_is_no_open_one() {
    // It died between the entry and the device: version 2 is read as any change.
    for boot in [BOOT, "another boot"] {
        let resumed = start(&other(2), Some(open(boot, &[], false)), s(18));
        assert_eq!(resumed.undone, None);
        assert_eq!(versions(&resumed.rollout), (1, 1, None));
        assert!(!resumed.rollout.is_settled());
    }
}

#[test]
fn what_was_undone_stays_so_over_a_restart() {
    let mut shell = Shell::of(start(&other(2), Some(held(2)), s(18)).rollout);
    assert_eq!(versions(&shell.rollout), (1, 1, Some(2)));
    assert!(shell.rollout.is_settled());
    assert_eq!(shell.write_lands(s(18)), Some(held(2)));
    let again = shell.read(&other(2), &[], s(19));
    assert_eq!(again, Err(Refused::Held("no sign of life".into())));
}

#[test]
fn the_file_that_says_what_works_keeps_what_is_held() {
    let restarted = open("another boot", &[watch(1)], false);
    let nobody = open("another boot", &[], false);
    for (change, expected) in [
        (None, None),
        (Some(held(2)), Some(2)),
        // A change of key files alone: its hash is that of the version that works.
        (Some(held(1)), None),
        (Some(restarted), Some(2)),
        (Some(nobody), None),
        (Some(open(BOOT, &[watch(1)], false)), None),
    ] {
        let mut shell = Shell::of(start(&good(), change.clone(), s(18)).rollout);
        assert_eq!(versions(&shell.rollout), (1, 1, expected), "{change:?}");
        assert!(shell.rollout.is_settled());
        let written = shell.write_lands(s(18)).map(|change| change.to()[0]);
        assert_eq!(written, expected, "{change:?}");
    }
}

#[test]
fn without_a_version_to_go_back_to_the_file_is_what_runs() {
    let fixed = good().with(1, |v| v.facts.node.interface = "wg1".into());
    for before in [None, Some(fixed)] {
        let start = Start {
            file: Arc::new(other(2)),
            recorded: Some(Recorded {
                good: [1; 32],
                change: Some(open(BOOT, &[watch(1)], false)),
            }),
            is_ours: true,
        };
        let settings = Settings {
            boot: BOOT.into(),
            ..Settings::default()
        };
        let resumed = Rollout::resume(settings, start, || before, s(18)).unwrap();
        assert_eq!(versions(&resumed.rollout), (2, 2, None));
        assert_eq!(resumed.endpoints, where_they_were());
        assert!(resumed.rollout.is_settled());
    }
}
