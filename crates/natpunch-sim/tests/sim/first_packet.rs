//! What was sent before there was a path: it waits in WireGuard, and arrives when there is one.

use std::time::Duration;

use natpunch_core::Event;
use natpunch_sim::{HostId, NatConfig};

use crate::lab::{Discovery, Lab, MS, NEAR, SECOND, Side, UPLINK};

const DIRECT: Duration = Duration::from_millis(41);
const BY_RELAY: Duration = Duration::from_millis(81);

/// When a node's WireGuard was first told of a path.
fn told(lab: &Lab, node: HostId) -> Option<Duration> {
    let events = lab.world.events(node);
    let selected = |(at, event): &(Duration, Event)| {
        matches!(event, Event::PathSelected { .. }).then_some(*at)
    };
    events.iter().find_map(selected)
}

/// Runs until each of `to` has as many packets of its peer's as were sent; how long that took since
/// the first side had a path.
fn arrival(lab: &mut Lab, to: &[(HostId, HostId)], sent: u64, patience: Duration) -> Duration {
    let end = lab.world.now() + patience;
    let arrived = lab.world.run_until_done(end, |world| {
        to.iter()
            .all(|(node, from)| world.device(*node).received_data(&world.key(*from)) >= sent)
    });
    let Some(arrived) = arrived else {
        lab.fail("the first packets were lost")
    };
    let path = [lab.a, lab.b].map(|node| told(lab, node));
    arrived - path.into_iter().flatten().min().unwrap()
}

/// Which sides have something to say.
fn speakers(lab: &Lab, which: u64) -> Vec<(HostId, HostId)> {
    let (a, b) = (lab.a, lab.b);
    match which % 3 {
        0 => vec![(a, b)],
        1 => vec![(b, a)],
        _ => vec![(a, b), (b, a)],
    }
}

#[test]
fn first_packets_arrive_within_two_round_trips_of_the_path_and_none_is_lost() {
    const PACKETS: u64 = 100;
    let sides: [fn() -> Side; 4] = [
        || Side::Public,
        || NatConfig::home().into(),
        || NatConfig::symmetric().into(),
        || Side::Ipv6,
    ];
    let mut worst = Duration::ZERO;
    for seed in 0..60 {
        let side = |number: u64| sides[(number % 2) as usize]();
        let mut lab = match seed % 4 {
            0 => Lab::usual(seed, side(seed / 4), side(seed / 8)),
            1 => Lab::new(seed, Side::Ipv6, Side::Ipv6, UPLINK, Discovery::Records),
            2 => Lab::with_servers(seed, sides[1](), sides[1](), &[NEAR]),
            _ => Lab::with_servers(seed, sides[2](), sides[2](), &[NEAR]),
        };
        // One node may be there seconds before the other, and then has waited longer than for one
        // initiation.
        let later = SECOND * u32::try_from(seed / 12 * 2).unwrap();
        lab.world.start_at(lab.a, Duration::ZERO);
        lab.world.start_at(lab.b, later);
        let speakers = speakers(&lab, seed);
        for number in 0..PACKETS {
            for (from, to) in &speakers {
                lab.world.send(*from, *to);
            }
            let next = MS * u32::try_from(number).unwrap();
            lab.world.run_until(next);
        }
        let hearers: Vec<_> = speakers.iter().map(|(from, to)| (*to, *from)).collect();
        let took = arrival(&mut lab, &hearers, PACKETS, 60 * SECOND);
        worst = worst.max(took);
        let round_trip = if seed % 4 < 2 { DIRECT } else { BY_RELAY };
        assert!(took <= round_trip * 2, "{took:?}\n{}", lab.world.report());
        lab.expect_sound();
    }
    println!("first packets: all arrived, {worst:?} after the path at worst");
}

#[test]
fn a_handshake_on_a_lossy_path_seldom_takes_wireguards_five_seconds() {
    let lossy = UPLINK.with_loss(0.1);
    let mut times = Vec::new();
    for seed in 0..200 {
        let nat = NatConfig::home();
        let mut lab = Lab::new(seed, nat, nat, lossy, Discovery::Rendezvous).start();
        let (from, to) = speakers(&lab, seed % 2)[0];
        let end = 60 * SECOND;
        let has_arrived = |lab: &Lab| lab.world.device(to).received_data(&lab.world.key(from)) > 0;
        while !has_arrived(&lab) && lab.world.now() < end {
            lab.world.send(from, to);
            let next = lab.world.now() + MS * 20;
            lab.world.run_until(next);
        }
        let path = [lab.a, lab.b].map(|node| told(&lab, node));
        let path = path.into_iter().flatten().min().unwrap();
        times.push(lab.world.now() - path);
        lab.expect_sound();
    }
    times.sort_unstable();
    let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
    let slow = times.iter().filter(|time| **time > SECOND).count();
    println!(
        "first packets with a fifth lost each way: {median:?} after the path (median; {worst:?} at \
         worst), {slow} of {} after more than a second",
        times.len()
    );
    // A peer that has nothing to say confirms the handshake once, which is lost in a fifth of those.
    let repeated = times.iter().filter(|time| **time > 3 * SECOND).count();
    assert!(repeated <= 24, "{times:?}");
}

#[test]
fn a_lossy_path_delays_the_handshake_by_a_copy_of_its_beginning() {
    let lossy = UPLINK.with_loss(0.1);
    let mut times = Vec::new();
    for seed in 0..100 {
        let nat = NatConfig::home();
        let mut lab = Lab::new(seed, nat, nat, lossy, Discovery::Rendezvous).start();
        let connected = lab.connect(60 * SECOND);
        let path = [lab.a, lab.b].map(|node| told(&lab, node));
        let path = path.into_iter().flatten().min();
        times.push(connected.unwrap() - path.unwrap());
    }
    times.sort_unstable();
    let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
    let slow = times.iter().filter(|time| **time > SECOND).count();
    println!(
        "session with a fifth lost each way: {median:?} after the path (median; {worst:?} at \
         worst), {slow} of {} after more than a second",
        times.len()
    );
    assert!(median <= DIRECT * 4, "{times:?}");
}
