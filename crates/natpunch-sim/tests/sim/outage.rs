//! Outages of minutes in which neither side has anything to say: what brings the pair back is
//! natpunch alone.

use std::time::Duration;

use natpunch_core::{PathKind, PeerState};
use natpunch_sim::{NatConfig, Random};

use crate::lab::{Lab, MINUTE, MS, NEAR, SECOND, UPLINK};

/// From shorter than WireGuard's keys live (REJECT_AFTER_TIME, 180 s) to longer than anything waits.
const OUTAGES: [u32; 5] = [60, 100, 200, 300, 1_200];
const SEEDS: u64 = 16;
/// From the network's return to a pair that works on both sides (docs/measurements.md): the time in
/// which a server is looked for, which is a 24th of the outage, spread by a fifth ...
const LOOK: (u32, Duration) = (20, Duration::from_secs(30));
/// ... and what comes after.
const SOON: Duration = Duration::from_secs(9);

fn pair(seed: u64, path: PathKind) -> Lab {
    let nat = match path {
        PathKind::Relay => NatConfig::symmetric(),
        _ => NatConfig::home(),
    };
    let mut lab = Lab::with_stun(seed, (nat.into(), nat.into()), UPLINK, &[NEAR]).start();
    lab.expect_connected(10 * SECOND);
    lab.reach(path, 20 * SECOND);
    // Some keys are fresh and some are nearly over when the network goes.
    let idle = Random::new(seed, 17).duration(2 * MINUTE);
    lab.world.run_until(lab.world.now() + idle);
    lab
}

/// Whether each side says that it is connected, by a handshake after this moment if `anew`.
fn is_back(lab: &Lab, since: Duration, anew: bool) -> bool {
    let nodes = [(lab.a, lab.b), (lab.b, lab.a)];
    nodes.into_iter().all(|(node, peer)| {
        let status = lab.world.status(node).unwrap();
        let handshake = lab.world.device(node).last_handshake(&lab.world.key(peer));
        let connected = |peer: &natpunch_core::PeerStatus| {
            peer.state == PeerState::Connected && !peer.probes_unanswered
        };
        let is_new = !anew || handshake.is_some_and(|at| at >= since);
        is_new && status.peers.iter().all(connected)
    })
}

#[test]
fn an_idle_pair_is_back_by_itself_however_long_one_router_was_cut_off() {
    for path in [PathKind::Direct, PathKind::Relay] {
        for seconds in OUTAGES {
            let limit = SOON + (SECOND * seconds / LOOK.0).min(LOOK.1);
            let mut times = Vec::new();
            for seed in 0..SEEDS {
                let mut lab = pair(seed, path);
                let cut = [lab.gateway_a, lab.gateway_b][(seed % 2) as usize].unwrap();
                lab.world.network.set_uplink_connected(cut, false);
                lab.world
                    .run_until(lab.world.now() + SECOND * seconds + MS * 37 * seed as u32);
                lab.world.network.set_uplink_connected(cut, true);
                let back = lab.world.now();
                // Keys that are older than this are not used any more.
                let anew = seconds >= 180;
                while !is_back(&lab, back, anew) {
                    if lab.world.now() >= back + limit {
                        lab.fail(&format!("{path:?} path, cut for {seconds} s: not back"));
                    }
                    lab.world.run_until(lab.world.now() + 100 * MS);
                }
                times.push(lab.world.now() - back);
                // The first word of either side is answered at once.
                lab.expect_flow(2 * SECOND);
            }
            times.sort();
            let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
            println!(
                "{path:?} path, idle, cut for {seconds} s: median {median:?}, worst {worst:?}"
            );
        }
    }
}
