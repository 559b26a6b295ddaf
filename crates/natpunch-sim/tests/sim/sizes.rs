//! Paths on which large packets vanish: found by probes, on direct paths and by a relay.

use natpunch_core::PathKind;
use natpunch_sim::{NatConfig, Purpose};

use crate::lab::{Lab, MINUTE, MS, NEAR, SECOND, UPLINK};

/// The interface's MTU in the simulator.
const WHOLE: u16 = 1_420;

fn lab(seed: u64, a: NatConfig, b: NatConfig, path: PathKind) -> Lab {
    let mut lab = Lab::with_servers(seed, a, b, &[NEAR]).start();
    lab.expect_connected(10 * SECOND);
    lab.reach(path, 20 * SECOND);
    lab.world.run_until(lab.world.now() + 5 * SECOND);
    lab
}

fn direct(seed: u64) -> Lab {
    let home = NatConfig::home();
    lab(seed, home, home, PathKind::Direct)
}

/// Both nodes send full packets, 20 a second, until `done` or for `long`; how long it took.
fn transfer(
    lab: &mut Lab,
    long: std::time::Duration,
    done: impl Fn(&Lab) -> bool,
) -> std::time::Duration {
    let start = lab.world.now();
    while lab.world.now() < start + long && !done(lab) {
        lab.world.send_large(lab.a, lab.b);
        lab.world.send_large(lab.b, lab.a);
        let next = lab.world.now() + 50 * MS;
        lab.world.run_until(next);
    }
    lab.world.now() - start
}

fn mtus(lab: &Lab) -> [Option<u16>; 2] {
    [(lab.a, lab.b), (lab.b, lab.a)].map(|(node, peer)| lab.world.mtu(node, peer))
}

fn measured(lab: &Lab) -> Vec<Option<(u16, bool)>> {
    let statuses = [lab.a, lab.b].map(|node| lab.world.status(node).unwrap());
    let of = |status: &natpunch_core::MeshStatus| {
        let mtu = status.peers[0].path_mtu?;
        Some((mtu.mtu, mtu.is_limited))
    };
    statuses.iter().map(of).collect()
}

fn probes(lab: &Lab) -> u64 {
    let sent = [lab.a, lab.b].map(|node| lab.world.sent(node));
    let sent = sent.iter().flat_map(|sent| sent.iter());
    sent.filter(|((purpose, _), _)| *purpose == Purpose::Probe)
        .map(|(_, count)| count)
        .sum()
}

#[test]
fn a_black_hole_is_found_within_ten_seconds_of_traffic_and_what_is_sent_then_passes() {
    for seed in 0..10 {
        let mut lab = direct(seed);
        assert_eq!(measured(&lab), [Some((WHOLE, false)); 2], "seed {seed}");
        assert_eq!(mtus(&lab), [None; 2]);
        transfer(&mut lab, 20 * SECOND, |_| false);

        lab.world
            .network
            .set_uplink_mtu(lab.gateway_a.unwrap(), 1_300);
        let took = transfer(&mut lab, MINUTE, |lab| {
            mtus(lab).iter().all(Option::is_some)
        });
        assert!(took <= 10 * SECOND, "seed {seed}: {took:?}");
        assert_eq!(mtus(&lab), [Some(1_232); 2], "seed {seed}");
        assert_eq!(measured(&lab), [Some((1_232, true)); 2]);

        let received = |lab: &Lab| lab.world.device(lab.b).received_data(&lab.world.key(lab.a));
        let before = received(&lab);
        transfer(&mut lab, 10 * SECOND, |_| false);
        assert!(received(&lab) >= before + 190, "seed {seed}");
        assert_eq!(lab.paths(), [PathKind::Direct; 2]);
        lab.expect_sound();
    }
}

#[test]
fn a_narrow_path_is_found_before_anybody_sends_and_a_wide_one_used_again() {
    let mut lab = Lab::with_servers(1, NatConfig::home(), NatConfig::home(), &[NEAR]);
    let narrow = lab.gateway_b.unwrap();
    lab.world.network.set_uplink_mtu(narrow, 1_400);
    let mut lab = lab.start();
    lab.expect_connected(10 * SECOND);
    lab.reach(PathKind::Direct, 20 * SECOND);
    lab.world.run_until(lab.world.now() + 6 * SECOND);
    assert_eq!(mtus(&lab), [Some(1_328); 2]);

    lab.world.network.set_uplink_mtu(narrow, 1_500);
    transfer(&mut lab, 9 * MINUTE, |_| false);
    assert_eq!(mtus(&lab), [Some(1_328); 2], "not to and fro");
    transfer(&mut lab, 2 * MINUTE, |_| false);
    assert_eq!(mtus(&lab), [None; 2]);
}

#[test]
fn a_relayed_path_is_measured_from_end_to_end() {
    let mut lab = lab(
        1,
        NatConfig::symmetric(),
        NatConfig::symmetric(),
        PathKind::Relay,
    );
    assert_eq!(measured(&lab), [Some((WHOLE, false)); 2]);
    lab.world
        .network
        .set_uplink_mtu(lab.gateway_a.unwrap(), 1_360);
    let took = transfer(&mut lab, MINUTE, |lab| {
        mtus(lab).iter().all(Option::is_some)
    });
    assert!(took <= 10 * SECOND, "{took:?}");
    assert_eq!(mtus(&lab), [Some(1_296); 2]);
}

#[test]
fn a_path_costs_one_question_each_way_and_loss_is_no_black_hole() {
    let mut lab = direct(3);
    let before = probes(&lab);
    transfer(&mut lab, MINUTE, |_| false);
    // A ping and its answer, and a question and its answer, each way every five seconds.
    let each = (probes(&lab) - before) / 12;
    assert!(each <= 11, "{each} in five seconds");

    for seed in 0..3 {
        let uplink = UPLINK.with_loss(0.01);
        let home = NatConfig::home();
        let mut lab = Lab::punching(seed, home, home, uplink, NEAR).start();
        lab.expect_connected(20 * SECOND);
        lab.reach(PathKind::Direct, 40 * SECOND);
        transfer(&mut lab, 5 * MINUTE, |_| false);
        assert_eq!(mtus(&lab), [None; 2], "seed {seed}");
    }
}
