//! Paths on which probes pass and WireGuard does not, where only one side has anything to say: what
//! it notices has to reach the side that decides.

use std::time::Duration;

use natpunch_core::PathKind;
use natpunch_sim::{HostId, Lie, NatConfig};

use crate::lab::{Lab, MINUTE, MS, NEAR, OUTSIDE_A, OUTSIDE_B, SECOND, ip};

/// Runs on while `from` asks ten times a second, and `to` answers what arrives; the longest time
/// without an answer.
fn longest_silence(lab: &mut Lab, from: HostId, to: HostId, duration: Duration) -> Duration {
    let world = &mut lab.world;
    let (key_from, key_to) = (world.key(from), world.key(to));
    let mut asked = world.device(to).received_data(&key_from);
    let mut answered = world.device(from).received_data(&key_to);
    let (mut since, mut longest) = (world.now(), Duration::ZERO);
    let end = world.now() + duration;
    while world.now() < end {
        world.send(from, to);
        // Two steps, so that an answer does not wait for the next question.
        for _ in 0..2 {
            world.run_until(world.now() + 50 * MS);
            let arrived = world.device(to).received_data(&key_from);
            (asked..arrived).for_each(|_| world.send(to, from));
            asked = arrived;
        }
        let now = world.device(from).received_data(&key_to);
        if now > answered {
            (answered, since) = (now, world.now());
        }
        longest = longest.max(world.now() - since);
    }
    longest
}

/// A pair whose first packets have passed, with the side that asks and the one that answers.
fn pair(seed: u64, nat: NatConfig, path: PathKind, decider: bool) -> (Lab, [HostId; 2]) {
    let mut lab = Lab::with_servers(seed, nat, nat, &[NEAR, NEAR]).start();
    lab.reach(path, MINUTE);
    lab.run_with_pings(30 * SECOND);
    let (low, high) = if lab.world.key(lab.a) < lab.world.key(lab.b) {
        (lab.a, lab.b)
    } else {
        (lab.b, lab.a)
    };
    let sides = if decider { [low, high] } else { [high, low] };
    (lab, sides)
}

#[test]
fn a_relay_that_drops_wireguard_and_passes_probes_is_left_whoever_sends() {
    for decider in [true, false] {
        for seed in 0..4 {
            let (mut lab, [from, to]) =
                pair(seed, NatConfig::symmetric(), PathKind::Relay, decider);
            let endpoint = lab.world.device(from).endpoint(&lab.world.key(to)).unwrap();
            let servers = lab.servers.clone();
            let used = servers
                .into_iter()
                .find(|server| lab.world.network.addresses(*server) == [endpoint.ip()]);
            lab.world.set_lie(used.unwrap(), Some(Lie::ProbesOnly));
            let gap = longest_silence(&mut lab, from, to, 2 * MINUTE);
            println!("relay, the side that decides sends: {decider}, seed {seed}: {gap:?}");
            assert!(gap <= 12 * SECOND, "decider sends: {decider}, {gap:?}");
            lab.expect_sound();
        }
    }
}

#[test]
fn a_direct_path_that_drops_wireguard_and_passes_probes_is_left_whoever_sends() {
    for decider in [true, false] {
        // Which way is shut: that of the questions, of the answers, or both.
        for (questions, answers) in [(true, true), (true, false), (false, true)] {
            for seed in 0..4 {
                let (mut lab, [from, to]) =
                    pair(seed, NatConfig::home(), PathKind::Direct, decider);
                let (here, there) = if from == lab.a {
                    (ip(OUTSIDE_A), ip(OUTSIDE_B))
                } else {
                    (ip(OUTSIDE_B), ip(OUTSIDE_A))
                };
                if questions {
                    lab.world.network.drop_wireguard(here, there);
                }
                if answers {
                    lab.world.network.drop_wireguard(there, here);
                }
                let gap = longest_silence(&mut lab, from, to, 2 * MINUTE);
                println!(
                    "direct, the side that decides sends: {decider}, questions dropped: \
                     {questions}, answers: {answers}, seed {seed}: {gap:?}"
                );
                assert!(
                    gap <= 12 * SECOND,
                    "decider sends: {decider}, questions dropped: {questions}, answers: \
                     {answers}: {gap:?}"
                );
                lab.expect_sound();
            }
        }
    }
}
