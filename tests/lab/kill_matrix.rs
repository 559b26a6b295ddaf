//! The agent killed at every step of a change: the next one finishes the job, and the peer that the
//! change is not about notices nothing. The steps are the failpoints of the program, by number,
//! until a run passes them all; and at each of them the disk is left in three states.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use natpunch_lab::lab_test;

use crate::disk::{Disk, Fault};
use crate::disks::pair_on_a_disk;
use crate::mesh::Mesh;
use crate::safety::revision;
use crate::world::{Discovery, Node, World, soon};

/// What the next agent finds on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    /// All that was written.
    Written,
    /// What was flushed, as after a power cut.
    Flushed,
    /// All that was written, and no writes are taken until it has started.
    Unwritable,
}

const FOUND: [Found; 3] = [Found::Written, Found::Flushed, Found::Unwritable];
const FAULTS: [Fault; 4] = [Fault::Full, Fault::ReadOnly, Fault::Flush, Fault::Broken];

/// A change that is not about `b`. The number makes it another each time.
type Step = fn(&mut Mesh, u8);

const CHANGES: [(&str, Step); 8] = [
    ("a route of another peer", |mesh, n| {
        mesh.member("third").more = format!("routes = [\"172.20.{n}.0/24\"]\n")
    }),
    ("an address of another peer", |mesh, n| {
        mesh.member("third").address = [10, 77, 0, 100 + n].into()
    }),
    ("a peer added", |mesh, n| {
        let key = mesh.member("spare").public_key.clone();
        mesh.members.retain(|member| member.name != "spare");
        mesh.add(&format!("spare-{n}"), &key, "");
        mesh.member(&format!("spare-{n}")).address = [10, 77, 0, 60].into();
    }),
    ("a peer removed, or back", |mesh, n| {
        mesh.member("third").more = format!("routes = [\"172.22.{n}.0/24\"]\n");
        if n % 2 == 0 {
            mesh.members.retain(|member| member.name != "spare");
        }
    }),
    ("a keepalive", |mesh, n| {
        mesh.member("third").more = format!("persistent_keepalive = {}\n", 30 + n)
    }),
    ("the MTU of this node", |mesh, n| {
        mesh.member("a").more = format!("[peers.a.interface]\nmtu = {}\n", 1300 + u32::from(n));
    }),
    ("the firewall mark of this node", |mesh, n| {
        mesh.member("a").more = format!("[peers.a.interface]\nfwmark = {}\n", 100 + u32::from(n));
    }),
    ("many things at once", |mesh, n| {
        mesh.member("third").more =
            format!("routes = [\"172.21.{n}.0/24\"]\npersistent_keepalive = 9\n");
        mesh.member("spare").address = [10, 77, 0, 200].into();
    }),
];

/// Kills the agent at every `stride`th step of a change, with the disk in each state, or with a
/// stride in one after the other; gives the places and states.
fn kill_at_every_step(
    a: &mut Node,
    disk: &Disk,
    good: &Mesh,
    change: Step,
    stride: usize,
) -> BTreeSet<(String, String)> {
    let log = a.host.directory().unwrap().join("places");
    let mut places = BTreeSet::new();
    let mut passed = BTreeSet::new();
    for turn in 0.. {
        let (at, found) = match stride {
            1 => (1 + turn / FOUND.len(), FOUND[turn % FOUND.len()]),
            stride => (1 + turn * stride, FOUND[turn % FOUND.len()]),
        };
        a.stop();
        let mut mesh = good.clone();
        change(&mut mesh, u8::try_from(turn % 50).unwrap());
        mesh.write(&a.file);
        let _ = std::fs::remove_file(&log);
        a.environment = vec![
            ("NATPUNCH_FAIL_AT", at.to_string()),
            ("NATPUNCH_FAIL_LOG", log.to_str().unwrap().to_owned()),
        ];
        a.start();
        let deadline = soon();
        let mut settled = None;
        let killed = loop {
            if a.has_ended() {
                break true;
            }
            // A last note of the journal may come a moment after the change.
            match (
                a.status().is_some_and(|status| status["change"].is_null()),
                settled,
            ) {
                (true, None) => settled = Some(Instant::now()),
                (true, Some(since)) if since.elapsed() > Duration::from_millis(700) => break false,
                _ => {}
            }
            assert!(
                Instant::now() < deadline,
                "step {at}: neither killed nor done"
            );
            std::thread::sleep(Duration::from_millis(10));
        };
        a.environment.clear();
        if !killed {
            // Its counter goes on.
            a.stop();
        }
        let place = std::fs::read_to_string(&log)
            .unwrap_or_default()
            .lines()
            .last()
            .unwrap_or_default()
            .to_owned();
        match found {
            Found::Written => {}
            Found::Flushed => disk.cut_power(),
            Found::Unwritable => disk.set(FAULTS[turn / FOUND.len() % FAULTS.len()]),
        }
        a.start();
        if found == Found::Unwritable {
            a.wait_up();
            disk.set(Fault::None);
        }
        a.wait(
            &format!("the new version after a kill at {place}, {found:?}"),
            soon(),
            |status| {
                if status["reload_error"].is_string() {
                    // By itself it would take some seconds.
                    a.natpunch(&["reload"]);
                }
                (status["change"].is_null()
                    && status["held"].is_null()
                    && status["reload_error"].is_null())
                .then_some(())
            },
        );
        let (file, key) = (a.file.to_str().unwrap(), a.key_file.to_str().unwrap());
        let deadline = soon();
        while a
            .natpunch(&["plan", file, "--private-key-file", key])
            .status
            .code()
            != Some(0)
        {
            assert!(
                Instant::now() < deadline,
                "killed at {place}, {found:?}: the next start does not converge"
            );
        }
        if killed {
            places.insert((place, format!("{found:?}")));
        } else {
            passed.insert(format!("{found:?}"));
        }
        // The states come in turn, and each of them has to pass all steps once.
        if passed.len() == FOUND.len() || (stride > 1 && !passed.is_empty()) {
            break;
        }
    }
    places
}

fn matrix(lab: natpunch_lab::Lab, changes: &[(&str, Step)], stride: usize) -> usize {
    let mut world = World::new(lab, Discovery::NatpunchGo);
    for name in ["third", "spare"] {
        let (_, key) = crate::world::new_key(&world.lab.public_host(name).unwrap());
        world.mesh.add(name, &key, "");
    }
    let (mut a, b, _routers, disk, ping) = pair_on_a_disk(&mut world);
    let before = a.wg_peer(&b);
    let mut points = 0;
    for (name, change) in changes {
        let good = world.mesh.clone();
        let places = kill_at_every_step(&mut a, &disk, &good, *change, stride);
        println!("{name}: killed at {} places and states", places.len());
        points += places.len();
        let last = revision(&a);
        good.write(&a.file);
        a.wait("the version to begin from", soon(), |status| {
            (status["revision"] != *last).then_some(())
        });
    }
    let after = a.wg_peer(&b);
    // Keys last two minutes, then WireGuard itself shakes hands again.
    if points < 20 {
        assert_eq!(after.latest_handshake, before.latest_handshake);
    }
    assert_eq!(after.endpoint, before.endpoint);
    assert!(
        after.received > before.received && after.sent > before.sent,
        "the counters went on"
    );
    let pings = ping.stop();
    assert_eq!(pings.lost(), 0, "packets were lost");
    points
}

lab_test!(
    an_agent_killed_within_a_change_leaves_it_to_the_next_one,
    120,
    |lab| {
        matrix(lab, &CHANGES[..1], 5);
    }
);

lab_test!(
    #[ignore = "takes minutes: `make kill-matrix`"]
    an_agent_killed_at_every_step_of_every_change_leaves_it_to_the_next_one,
    1800,
    |lab| {
        let points = matrix(lab, &CHANGES, 1);
        println!(
            "measured: killed at {points} points and states of the disk, no packet of an untouched peer lost"
        );
        assert!(points >= 600, "{points}");
    }
);
