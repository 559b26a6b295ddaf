//! The course of a change, step by step: whom it asks, what it writes first, how long it waits.

use std::time::Duration;

use crate::support::shell::{MOMENT, Shell, addresses, answers, key, names, s, watched};
use crate::support::{Version, moment, peer, route};
use natpunch_rollout::{Change, ConfirmError, Notice, Phase, Refused, Settings};
use natpunch_types::{PresharedKey, RelayPolicy, SecretKey};

fn mesh() -> Version {
    Version::new(1, (1..=4).map(peer))
}

/// A route behind peer 1: it touches that peer alone.
fn routed(hash: u8) -> Version {
    mesh().with(hash, |v| route(v.peer(1), "172.20.1.0/24"))
}

fn shell() -> Shell {
    Shell::running(Settings::default(), &mesh())
}

#[test]
fn a_change_is_in_the_journal_before_it_is_in_the_device() {
    let mut shell = shell();
    assert!(shell.rollout.is_settled() && !shell.rollout.is_busy());
    shell.read(&routed(2), &[1], s(1)).unwrap();
    assert_eq!(shell.rollout.phase(), Phase::Asking);
    assert!(shell.rollout.is_busy() && !shell.rollout.is_settled());
    let ask = shell.answered_by(&[1], s(1));
    assert_eq!((&ask.small, ask.mtu), (&addresses(&[1]), 1420));
    assert_eq!(ask.small, ask.full, "both sizes are to pass afterwards");
    assert_eq!(shell.rollout.phase(), Phase::Noting);
    assert!(shell.rollout.is_busy());
    let (id, entry) = shell.write();
    assert_eq!(entry.good.hash, [1; 32]);
    let Some(Change::Open {
        to, deadline_ms, ..
    }) = entry.change
    else {
        panic!("not open");
    };
    assert_eq!((to, deadline_ms), ([2; 32], 11_000));
    shell.assert_idle();
    shell.rollout.handle_written(id + 1, Ok(()), s(1));
    shell.assert_idle();
    shell.rollout.handle_written(id, Ok(()), s(1));
    assert_eq!(shell.rollout.phase(), Phase::Applying);
    assert!(shell.rollout.is_busy());
    assert_eq!(
        shell.rollout.poll_timeout(),
        None,
        "the device has its time"
    );
    let apply = shell.apply();
    assert_eq!(apply.version, [2; 32]);
    shell.rollout.handle_applied(apply.id + 1, Ok(()), s(1));
    shell.assert_idle();
    shell.rollout.handle_applied(apply.id, Ok(()), s(2));
    let waiting = Notice::Waiting {
        by_person: false,
        peers: vec!["p1".into()],
        left: Duration::from_secs(9),
    };
    assert_eq!(shell.told(), [Notice::Changed, waiting]);
    assert_eq!(shell.followed, Some([2; 32]));
    assert_eq!(shell.rollout.phase(), Phase::Watching);
    assert!(!shell.rollout.is_busy() && !shell.rollout.is_settled());
    let open = shell.rollout.open().unwrap();
    assert_eq!((open.version, open.deadline), ([2; 32], s(11)));
    assert!(!open.by_person);
    assert_eq!(open.waiting_for, ["p1"]);
    assert_eq!(shell.rollout.good().hash, [1; 32]);
    assert_eq!(shell.rollout.runs().hash, [2; 32]);
    shell.rollout.handle_timeout(s(2));
    shell.answered_by(&[1], s(3));
    assert_eq!(shell.write_lands(s(3)), None);
    let good = Notice::Good {
        version: [2; 32],
        was_watched: true,
        missing: Vec::new(),
    };
    assert_eq!(shell.told(), [good]);
    assert_eq!(shell.rollout.good().hash, [2; 32]);
    assert!(shell.rollout.open().is_none() && shell.rollout.is_settled());
}

#[test]
fn a_change_that_touches_nobody_alive_is_good_at_once() {
    let mut shell = shell();
    shell.read(&routed(2), &[2, 3], s(1)).unwrap();
    assert!(watched(shell.write_lands(s(1))).is_empty());
    shell.apply_lands(s(1));
    assert_eq!(shell.write_lands(s(1)), None);
    let good = Notice::Good {
        version: [2; 32],
        was_watched: false,
        missing: Vec::new(),
    };
    assert_eq!(shell.told(), [Notice::Changed, good]);
    assert_eq!(shell.rollout.phase(), Phase::Steady);
}

#[test]
fn nobody_is_watched_where_the_file_says_so() {
    let after = routed(2).with(2, |v| v.facts.rules.confirm = Duration::ZERO);
    let mut shell = shell();
    shell.read(&after, &[1], s(1)).unwrap();
    assert!(watched(shell.write_lands(s(1))).is_empty());
}

#[test]
fn a_question_whose_answer_is_lost_counts_as_unanswered_after_ten_seconds() {
    let mut shell = shell();
    shell.read(&routed(2), &[1], s(1)).unwrap();
    let lost = shell.ask();
    assert_eq!(shell.rollout.poll_timeout(), Some(s(11)));
    shell.rollout.handle_timeout(s(11) - MOMENT);
    shell.assert_idle();
    shell.rollout.handle_timeout(s(11));
    let watch = &watched(shell.write_lands(s(11)))[0];
    assert!(!watch.echo && !watch.full, "it did not answer");
    shell.apply_lands(s(11));
    shell.told();
    // An answer that comes after all is none to the question of now.
    shell.rollout.handle_timeout(s(11));
    shell.ask();
    shell
        .rollout
        .handle_answers(lost.id, &answers(&[1], &[1]), s(12));
    assert_eq!(shell.rollout.phase(), Phase::Watching);
}

#[test]
fn the_version_that_is_asked_about_is_not_asked_about_again() {
    let mut shell = shell();
    shell.read(&routed(2), &[1], s(1)).unwrap();
    let ask = shell.ask();
    shell.read(&routed(2), &[1], s(2)).unwrap();
    shell.assert_idle();
    assert_eq!(shell.rollout.poll_timeout(), Some(s(11)));
    let answered = answers(&[1], &[1]);
    shell.rollout.handle_answers(ask.id, &answered, s(2));
    assert_eq!(names(&watched(shell.write_lands(s(2)))), ["p1"]);
}

#[test]
fn a_newer_version_takes_the_place_of_one_that_nothing_was_done_for() {
    let mut shell = shell();
    shell.read(&routed(2), &[1], s(1)).unwrap();
    let old = shell.ask();
    let newer = mesh().with(3, |v| route(v.peer(2), "172.20.2.0/24"));
    shell.read(&newer, &[1, 2], s(2)).unwrap();
    let new = shell.ask();
    assert_eq!(new.small, addresses(&[2]));
    let answered = answers(&[1, 2], &[1, 2]);
    shell.rollout.handle_answers(old.id, &answered, s(2));
    shell.assert_idle();
    shell.rollout.handle_answers(new.id, &answered, s(2));
    shell.write_lands(s(2));
    assert_eq!(shell.apply().version, [3; 32]);
}

#[test]
fn a_version_that_comes_while_the_device_is_busy_is_begun_afterwards() {
    let mut shell = shell();
    shell.read(&routed(2), &[], s(1)).unwrap();
    for number in [3, 4] {
        shell.read(&routed(number), &[], s(1)).unwrap();
    }
    assert!(!shell.rollout.is_settled());
    shell.write_lands(s(1));
    shell.apply_lands(s(1));
    assert_eq!(shell.write_lands(s(1)), None);
    // The version between was never begun.
    shell.write_lands(s(1));
    assert_eq!(shell.apply_lands(s(1)).version, [4; 32]);
    shell.write_lands(s(1));
    shell.told();
    assert!(shell.rollout.is_settled());
}

#[test]
fn a_version_that_waited_for_the_device_is_held_to_the_caps_too() {
    let mut shell = shell();
    shell.read(&routed(2), &[], s(1)).unwrap();
    let empty = routed(3).with(3, |v| v.facts.peers.clear());
    shell.read(&empty, &[], s(1)).unwrap();
    shell.write_lands(s(1));
    shell.apply_lands(s(1));
    shell.write_lands(s(1));
    let told = shell.told();
    assert!(
        matches!(told.last(), Some(Notice::Refused(Refused::Caps(_)))),
        "{told:?}"
    );
    assert_eq!(shell.rollout.runs().hash, [2; 32]);
}

#[test]
fn what_a_change_is_watched_by_is_watched_on_when_another_follows() {
    let mut shell = shell();
    let first = shell.make(&routed(2), &[1], s(1));
    assert!(first[0].must && first[0].echo && first[0].full);
    shell.told();
    // Cut off by the first change, peer 1 is not alive any more; peer 2 never took a full packet.
    let second = routed(3).with(3, |v| route(v.peer(2), "172.20.2.0/24"));
    shell.read(&second, &[2], s(2)).unwrap();
    assert_eq!(shell.rollout.open().unwrap().version, [2; 32]);
    let ask = shell.ask();
    assert_eq!(ask.small, addresses(&[2]), "peer 1 was asked before");
    shell
        .rollout
        .handle_answers(ask.id, &answers(&[2], &[]), s(2));
    assert_eq!(shell.rollout.open().unwrap().version, [2; 32]);
    let watched = watched(shell.write_lands(s(2)));
    let answered: Vec<_> = watched.iter().map(|w| (w.echo, w.full)).collect();
    assert_eq!(names(&watched), ["p1", "p2"]);
    assert_eq!(answered, [(true, true), (true, false)]);
    assert_eq!(shell.rollout.open().unwrap().version, [2; 32]);
    shell.apply_lands(s(2));
    shell.told();
    assert_eq!(shell.rollout.open().unwrap().version, [3; 32]);
    // Each is asked by what it took before.
    shell.rollout.handle_timeout(s(2));
    let ask = shell.ask();
    assert_eq!(ask.small, addresses(&[2]));
    assert_eq!(ask.full, addresses(&[1]));
}

#[test]
fn a_change_that_can_not_be_noted_is_not_made_and_the_one_before_is_watched_on() {
    let mut shell = shell();
    shell.make(&routed(2), &[1], s(1));
    shell.told();
    let second = mesh().with(3, |v| route(v.peer(1), "172.20.2.0/24"));
    shell.read(&second, &[], s(2)).unwrap();
    shell.write_fails("no space left", s(2));
    let error = "no space left".to_owned();
    let expected = [Notice::JournalFails(error.clone()), Notice::NotBegun(error)];
    assert_eq!(shell.told(), expected);
    assert_eq!(shell.rollout.open().unwrap().version, [2; 32]);
    assert_eq!(shell.rollout.phase(), Phase::Watching);
    assert!(!shell.reloads());
    // As soon as it can be written, the file is read once more.
    shell.rollout.handle_timeout(s(2));
    shell.answered_by(&[1], s(2));
    assert_eq!(shell.write_lands(s(2)), None);
    assert!(shell.reloads());
    assert!(!shell.reloads());
}

#[test]
fn peers_that_are_not_back_are_asked_again_and_again_until_the_deadline() {
    let mut shell = shell();
    let after = mesh().with(2, |v| {
        route(v.peer(1), "172.20.1.0/24");
        route(v.peer(2), "172.20.2.0/24");
        v.facts.rules.confirm = Duration::from_secs(30);
    });
    shell.make(&after, &[1, 2], s(1));
    assert_eq!(shell.rollout.poll_timeout(), Some(s(1)), "now");
    shell.rollout.handle_timeout(s(1));
    let first = shell.ask();
    assert_eq!(first.full, addresses(&[1, 2]));
    shell.told();
    // One question at a time.
    shell.rollout.handle_timeout(s(2));
    shell.assert_idle();
    assert_eq!(shell.rollout.poll_timeout(), Some(s(11)));
    let answered = answers(&[], &[1]);
    shell.rollout.handle_answers(first.id, &answered, s(3));
    assert_eq!(shell.rollout.open().unwrap().waiting_for, ["p2"]);
    let again = s(3) + Duration::from_millis(300);
    assert_eq!(shell.rollout.poll_timeout(), Some(again));
    shell.rollout.handle_timeout(again - MOMENT);
    shell.assert_idle();
    shell.rollout.handle_timeout(again);
    assert_eq!(shell.ask().full, addresses(&[2]));
    // Its answer is lost, and so the question is put once more.
    let lost = again + Duration::from_secs(10);
    assert_eq!(shell.rollout.poll_timeout(), Some(lost));
    shell.rollout.handle_timeout(lost - MOMENT);
    shell.assert_idle();
    shell.rollout.handle_timeout(lost);
    let last = shell.ask();
    assert!(last.id > first.id);
    shell
        .rollout
        .handle_answers(last.id, &answers(&[], &[]), lost);
    shell.rollout.handle_timeout(s(31) - MOMENT);
    assert_eq!(shell.rollout.phase(), Phase::Watching);
    shell.rollout.handle_timeout(s(31));
    assert_eq!(shell.rollout.phase(), Phase::GoingBack);
}

#[test]
fn a_full_packet_that_passed_before_has_to_pass_afterwards() {
    let mut shell = shell();
    shell.make(&routed(2), &[1], s(1));
    shell.rollout.handle_timeout(s(1));
    let ask = shell.ask();
    shell
        .rollout
        .handle_answers(ask.id, &answers(&[1], &[]), s(1));
    assert_eq!(shell.rollout.open().unwrap().waiting_for, ["p1"]);
}

#[test]
fn a_peer_without_an_address_is_not_asked() {
    let before = mesh().with(1, |v| {
        v.peer(1).addresses.clear();
        v.peer(1).allowed_ips.clear();
    });
    let mut shell = Shell::running(Settings::default(), &before);
    let after = before.with(2, |v| v.peer(1).relay = RelayPolicy::Never);
    shell.read(&after, &[1], s(1)).unwrap();
    assert_eq!(names(&watched(shell.write_lands(s(1)))), ["p1"]);
    shell.apply_lands(s(1));
    shell.told();
    shell.rollout.handle_timeout(s(6));
    shell.assert_idle();
    assert_eq!(shell.rollout.poll_timeout(), Some(s(11)), "the deadline");
}

/// The deadline of a change, and from when on peers are asked, in seconds after its beginning.
fn times(confirm: u64, change: impl FnOnce(&mut Version)) -> (Duration, Duration) {
    let mut shell = shell();
    let after = mesh().with(2, |v| {
        v.facts.rules.confirm = Duration::from_secs(confirm);
        change(v);
    });
    shell.make(&after, &[1, 2], s(100));
    let deadline = shell.rollout.open().unwrap().deadline;
    let asked = shell.rollout.poll_timeout().unwrap();
    (deadline.since(s(100)), asked.since(s(100)))
}

#[test]
fn what_discovery_does_gets_five_seconds_or_half_of_the_time_to_show() {
    let seconds = Duration::from_secs;
    let stun = |v: &mut Version| v.facts.node.stun.push("stun.example.org:3478".into());
    assert_eq!(times(60, stun), (seconds(60), seconds(5)));
    assert_eq!(times(4, stun), (seconds(4), seconds(2)));
    let mtu = |v: &mut Version| v.facts.node.mtu = 1300;
    assert_eq!(times(60, mtu), (seconds(60), Duration::ZERO));
    let mixed = |v: &mut Version| {
        v.peer(1).relay = RelayPolicy::Never;
        route(v.peer(2), "172.20.2.0/24");
    };
    assert_eq!(times(60, mixed), (seconds(60), seconds(5)));
}

#[test]
fn a_key_shows_in_the_next_handshake_which_may_be_200_seconds_away() {
    let seconds = Duration::from_secs;
    let own = |v: &mut Version| v.facts.node.private_key = SecretKey::from_bytes([201; 32]);
    assert_eq!(times(10, own).0, seconds(200));
    assert_eq!(times(300, own).0, seconds(300));
    let shared = |v: &mut Version| {
        v.peer(1).preshared_key = Some(PresharedKey::from_bytes([1; 32]));
        route(v.peer(2), "172.20.2.0/24");
    };
    assert_eq!(times(10, shared).0, seconds(200));
}

#[test]
fn a_large_mesh_is_watched_by_64_peers_and_never_without_those_that_must_live() {
    let peers = (1..=100).map(peer);
    let before = Version::new(1, peers).with(1, |v| v.peer(90).critical = true);
    let after = before.with(2, |v| v.facts.node.mtu = 1300);
    let alive: Vec<u8> = (1..=100).collect();
    let all = moment(&alive, &[]);
    let watched = natpunch_rollout::watched(&before.facts, &after.facts, &all);
    assert_eq!(watched.len(), 64);
    assert_eq!(watched.iter().filter(|w| w.must).count(), 1);
    assert_eq!(watched[0].name, "p90");
}

fn by_person() -> Settings {
    Settings {
        confirm: Some(Duration::from_secs(60)),
        ..Settings::default()
    }
}

#[test]
fn a_person_confirms_over_a_connection_that_is_younger_than_the_change() {
    let mut shell = Shell::running(by_person(), &mesh());
    let confirm = |shell: &mut Shell, at| shell.rollout.handle_confirm(at);
    assert_eq!(confirm(&mut shell, s(0)), Err(ConfirmError::Nothing));
    shell.read(&routed(2), &[1], s(1)).unwrap();
    // No peer's word is needed.
    assert!(watched(shell.write_lands(s(1))).is_empty());
    assert_eq!(confirm(&mut shell, s(1)), Err(ConfirmError::Busy));
    shell.apply_lands(s(5));
    shell.told();
    let open = shell.rollout.open().unwrap();
    assert_eq!((open.by_person, open.deadline), (true, s(61)));
    assert_eq!(confirm(&mut shell, s(5)), Err(ConfirmError::OldConnection));
    shell.rollout.handle_timeout(s(50));
    assert_eq!(shell.rollout.phase(), Phase::Watching);
    assert_eq!(confirm(&mut shell, s(5) + MOMENT), Ok([2; 32]));
    assert_eq!(shell.write_lands(s(50)), None);
    let good = Notice::Good {
        version: [2; 32],
        was_watched: true,
        missing: Vec::new(),
    };
    assert_eq!(shell.told(), [good]);
    assert_eq!(confirm(&mut shell, s(51)), Err(ConfirmError::Nothing));
}

#[test]
fn a_device_that_was_lost_meanwhile_gets_the_newest_version_from_the_beginning() {
    // While the journal is written, and while the device is changed.
    for applying in [false, true] {
        let mut shell = shell();
        shell.read(&routed(2), &[1], s(1)).unwrap();
        shell.answered_by(&[1], s(1));
        let (id, _) = shell.write();
        if applying {
            shell.rollout.handle_written(id, Ok(()), s(1));
            shell.apply();
        }
        shell.rollout.handle_device_lost(s(2));
        assert_eq!(shell.rollout.phase(), Phase::Asking, "{applying}");
        shell.answered_by(&[1], s(2));
        shell.write_lands(s(2));
        assert_eq!(shell.apply_lands(s(2)).version, [2; 32]);
        assert_eq!(shell.rollout.phase(), Phase::Watching);
    }
    let mut shell = shell();
    shell.read(&routed(2), &[], s(1)).unwrap();
    shell.write();
    shell.read(&routed(3), &[], s(1)).unwrap();
    shell.rollout.handle_device_lost(s(2));
    shell.write_lands(s(2));
    assert_eq!(shell.apply().version, [3; 32], "a newer one came");
}

#[test]
fn a_device_that_is_lost_under_a_watched_change_is_watched_on() {
    let mut shell = shell();
    shell.make(&routed(2), &[1], s(1));
    shell.told();
    shell.rollout.handle_device_lost(s(2));
    shell.assert_idle();
    assert_eq!(shell.rollout.open().unwrap().version, [2; 32]);
}

#[test]
fn the_file_that_says_what_runs_changes_nothing_and_frees_what_was_held() {
    let mut shell = shell();
    shell.read(&mesh(), &[1], s(1)).unwrap();
    let same = Notice::Good {
        version: [1; 32],
        was_watched: false,
        missing: Vec::new(),
    };
    assert_eq!(shell.told(), std::slice::from_ref(&same));
    // A version that the device refuses.
    shell.read(&routed(2), &[], s(1)).unwrap();
    shell.write_lands(s(1));
    shell.apply_fails("no such device", s(1));
    let held = Some(Change::Held {
        to: [2; 32],
        reason: "no such device".into(),
    });
    assert_eq!(shell.write_lands(s(1)), held);
    shell.apply_lands(s(1));
    shell.told();
    assert_eq!(shell.rollout.held(), Some(([2; 32], "no such device")));
    let again = shell.read(&routed(2), &[], s(2));
    assert_eq!(again, Err(Refused::Held("no such device".into())));
    shell.read(&mesh(), &[], s(3)).unwrap();
    assert_eq!(shell.write_lands(s(3)), None);
    assert_eq!(shell.told(), [same]);
    assert_eq!(shell.rollout.held(), None);
    shell.read(&routed(2), &[], s(4)).unwrap();
    assert_eq!(shell.rollout.phase(), Phase::Noting);
}

#[test]
fn a_change_is_not_good_by_being_read_twice() {
    let mut shell = shell();
    shell.make(&routed(2), &[1], s(1));
    shell.told();
    shell.read(&routed(2), &[1], s(2)).unwrap();
    shell.assert_idle();
    assert_eq!(shell.rollout.phase(), Phase::Watching);
}

#[test]
fn a_held_version_whose_secrets_are_others_is_another_version() {
    let mut shell = shell();
    shell.read(&routed(2), &[], s(1)).unwrap();
    shell.write_lands(s(1));
    shell.apply_fails("refused", s(1));
    shell.write_lands(s(1));
    shell.apply_lands(s(1));
    // Its hash is of the mesh files, and a key file is none of them.
    let rekeyed = routed(2).with(2, |v| {
        v.facts.node.private_key = SecretKey::from_bytes([7; 32]);
    });
    assert_eq!(shell.read(&rekeyed, &[], s(2)), Ok(()));
}

#[test]
fn where_the_device_has_its_peers_is_known_and_noted_with_a_change() {
    let mut shell = shell();
    shell.device_has(&[(1, "192.0.2.1:1"), (2, "192.0.2.2:2")], s(1));
    assert_eq!(
        shell.rollout.endpoints()[&key(2)],
        "192.0.2.2:2".parse().unwrap()
    );
    shell.read(&routed(2), &[], s(1)).unwrap();
    let change = shell.write_lands(s(1));
    let Some(Change::Open { endpoints, .. }) = change else {
        panic!("not open");
    };
    assert_eq!(&endpoints, shell.rollout.endpoints());
}
