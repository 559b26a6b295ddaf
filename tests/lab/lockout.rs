//! Changes that break the way to the peer, and the way back: within two seconds after the deadline,
//! also with the agent killed in between.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use natpunch_lab::{lab_test, sandbox};

use crate::mesh::Mesh;
use crate::safety::{CONFIRM, pair, revision};
use crate::world::{Discovery, Node, World, soon};

/// [`CONFIRM`].
const DEADLINE: Duration = Duration::from_secs(3);

/// A kind of mistake, with a number that makes each of them another.
type Mistake = fn(&mut Mesh, u8, &[String]);

const MISTAKES: [(&str, Mistake); 6] = [
    ("wrong peer key", |mesh, n, keys| {
        mesh.member("b").public_key = keys[usize::from(n) % keys.len()].clone();
    }),
    ("wrong address of the peer", |mesh, n, _| {
        mesh.member("b").address = Ipv4Addr::new(10, 77, 0, 100 + n)
    }),
    ("wrong own address", |mesh, n, _| {
        mesh.member("a").address = Ipv4Addr::new(10, 77, 0, 150 + n)
    }),
    (
        "the peer's address at a peer that is not there",
        |mesh, n, keys| {
            let address = std::mem::replace(
                &mut mesh.member("b").address,
                Ipv4Addr::new(10, 77, 0, 200 + n),
            );
            let key = keys[usize::from(n) % keys.len()].clone();
            mesh.add("thief", &key, "");
            mesh.member("thief").address = address;
        },
    ),
    ("two keys exchanged", |mesh, n, keys| {
        let key = std::mem::replace(
            &mut mesh.member("b").public_key,
            keys[usize::from(n) % keys.len()].clone(),
        );
        mesh.add("other", &key, "");
        mesh.member("other").address = Ipv4Addr::new(10, 77, 0, 60);
    }),
    ("wrong addresses of both", |mesh, n, _| {
        mesh.member("a").address = Ipv4Addr::new(10, 77, 0, 100 + n);
        mesh.member("b").address = Ipv4Addr::new(10, 77, 0, 200 + n);
    }),
];

/// Makes mistakes, and sees each undone; gives the longest time from the deadline to the way back.
fn undone(
    world: &mut World,
    a: &mut Node,
    b: &Node,
    mistakes: &[(usize, u8, bool)],
    keys: &[String],
) -> Duration {
    let good = world.mesh.clone();
    let before = revision(a);
    let mut slowest = Duration::ZERO;
    for (kind, n, killed) in mistakes {
        let (name, mistake) = MISTAKES[*kind];
        let mut mesh = good.clone();
        mistake(&mut mesh, *n, keys);
        mesh.write(&a.file);
        a.wait(&format!("{name} {n}"), soon(), |status| {
            (!status["change"].is_null()).then_some(())
        });
        let left = a.status().unwrap()["change"]["undone_in_s"]
            .as_f64()
            .unwrap_or_default();
        let deadline = Instant::now() + Duration::from_secs_f64(left);
        if *killed {
            a.kill();
            a.start();
        }
        a.wait(&format!("the way back from {name} {n}"), soon(), |status| {
            (status["revision"] == *before && !status["held"].is_null()).then_some(())
        });
        let late = Instant::now().saturating_duration_since(deadline);
        assert!(
            late < Duration::from_secs(2) * sandbox::patience(),
            "{name} {n}, killed: {killed}: {late:?} late"
        );
        slowest = slowest.max(late);
        let end = soon();
        while !a.reaches(b.address) {
            assert!(
                Instant::now() < end,
                "{name} {n}, killed: {killed}: b is not reached any more"
            );
        }
        a.wait_connected("b");
    }
    slowest
}

fn strangers(world: &mut World, count: usize) -> Vec<String> {
    (0..count)
        .map(|n| crate::world::new_key(&world.lab.public_host(&format!("s{n}")).unwrap()).1)
        .collect()
}

lab_test!(a_handful_of_mistakes_is_undone, 120, |lab| {
    let mut world = World::new(lab, Discovery::NatpunchGo);
    let (mut a, b, _routers) = pair(&mut world, CONFIRM);
    let keys = strangers(&mut world, 1);
    undone(
        &mut world,
        &mut a,
        &b,
        &[(2, 1, false), (3, 2, true)],
        &keys,
    );
});

lab_test!(
    #[ignore = "takes four minutes: `make lockout`"]
    every_mistake_of_the_matrix_is_undone,
    900,
    |lab| {
        let mut world = World::new(lab, Discovery::NatpunchGo);
        let (mut a, b, _routers) = pair(&mut world, CONFIRM);
        let keys = strangers(&mut world, 10);
        // No two are alike: a version that was undone is not tried again.
        let all: Vec<(usize, u8, bool)> = (0..MISTAKES.len())
            .flat_map(|kind| (0..10).map(move |n| (kind, n, n % 2 == 1)))
            .collect();
        let slowest = undone(&mut world, &mut a, &b, &all, &keys);
        println!(
            "measured: {} mistakes undone with a deadline of {DEADLINE:?}, at most {slowest:?} after it",
            all.len()
        );
    }
);
