//! Pairs that one port on each side does not join: strategies, pins and the punch budget.

use std::net::SocketAddr;
use std::time::Duration;

use natpunch_core::{Event, PathKind, PunchSpec};
use natpunch_sim::{Allocation, HostId, LinkConfig, NatConfig, Packet, Payload, What, World};
use natpunch_types::{IcmpError, IcmpKind};

use crate::kinds::{busy, hard};
use crate::lab::{Lab, MINUTE, MS, NEAR, OUTSIDE_A, OUTSIDE_B, SECOND, Side, UPLINK, ip};
use crate::matrix::seeds_or;

/// Most entries of any NAT, whatever is tried.
pub(crate) const MOST_ENTRIES: usize = 2_300;

/// The links of the nodes and of the server.
pub(crate) const USUAL: [LinkConfig; 2] = [UPLINK, NEAR];

const SEQUENTIAL: NatConfig = hard(Allocation::Sequential { step: 1 });
const BLOCK: NatConfig = hard(Allocation::Block { size: 1_024 });

/// What a run of one pair came to.
pub(crate) struct Run {
    pub(crate) direct: Option<Duration>,
    /// WireGuard uses another source port.
    pub(crate) pinned: bool,
    /// The strategy that was begun first.
    pub(crate) strategy: Option<&'static str>,
    /// Packets that the two sides sent to guessed ports.
    pub(crate) guesses: u32,
    /// Pings of both sides that were lost from the first path on, of how many.
    pub(crate) lost: (u64, u64),
}

/// Runs until both are direct, for at most this long, and then as long as that again to see that
/// they stay so. A ping each way goes all the time.
pub(crate) fn run(
    seed: u64,
    a: impl Into<Side>,
    b: impl Into<Side>,
    [uplink, server]: [LinkConfig; 2],
    patience: Duration,
) -> (Run, Lab) {
    let lab = Lab::punching(seed, a, b, uplink, server).start();
    run_lab(lab, patience, true)
}

/// The same of this lab, whose direct path need not stay unless `stays`.
pub(crate) fn run_lab(mut lab: Lab, patience: Duration, stays: bool) -> (Run, Lab) {
    let start = lab.world.now();
    lab.expect_flow(5 * SECOND);
    let pairs = [(lab.a, lab.b), (lab.b, lab.a)];
    let received = |lab: &Lab| -> u64 {
        let of = |(node, from)| lab.world.device(node).received_data(&lab.world.key(from));
        pairs.into_iter().map(of).sum()
    };
    let (before, mut sent) = (received(&lab), 0);
    let mut direct = None;
    while direct.is_none() && lab.world.now() < start + patience {
        sent += step(&mut lab);
        let is_direct = lab.paths() == [PathKind::Direct; 2];
        direct = is_direct.then(|| lab.world.now() - start);
    }
    let (settled, paths) = (lab.world.now() + 20 * SECOND, lab.paths());
    while lab.world.now() < settled {
        sent += step(&mut lab);
        if stays && direct.is_some() && lab.paths() != paths {
            lab.fail("the path was left again");
        }
    }
    // The last ones arrive.
    let end = lab.world.now() + SECOND;
    lab.world.run_until(end);
    let lost = sent - (received(&lab) - before).min(sent);
    lab.expect_sound();
    let peak = lab.most_entries();
    if peak > MOST_ENTRIES {
        lab.fail(&format!("{peak} entries in one NAT"));
    }
    let run = Run {
        direct,
        pinned: pairs
            .iter()
            .any(|(node, peer)| lab.world.pin(*node, *peer).is_some()),
        strategy: strategies(&lab, lab.a).first().copied(),
        guesses: [lab.a, lab.b]
            .into_iter()
            .map(|node| guesses(&lab, node))
            .sum(),
        lost: (lost, sent),
    };
    (run, lab)
}

/// 20 ms, with a ping each way; how many pings.
fn step(lab: &mut Lab) -> u64 {
    lab.world.ping(lab.a, lab.b);
    let next = lab.world.now() + 20 * MS;
    lab.world.run_until(next);
    2
}

/// The strategies that a node began, in order.
fn strategies(lab: &Lab, node: HostId) -> Vec<&'static str> {
    let begun = |event: &Event| match event {
        Event::StrategyBegun { strategy, .. } => Some(*strategy),
        _ => None,
    };
    let events = lab.world.events(node).iter();
    events.filter_map(|(_, event)| begun(event)).collect()
}

pub(crate) fn guesses(lab: &Lab, node: HostId) -> u32 {
    let status = lab.world.status(node);
    status.map_or(0, |status| status.punch.used)
}

pub(crate) fn at(mut times: Vec<Duration>, percent: usize) -> Duration {
    times.sort();
    let place = (times.len() * percent / 100).min(times.len().saturating_sub(1));
    times.get(place).copied().unwrap_or_default()
}

/// Runs a pair over these seeds, each side in turns; the times to direct and the runs.
fn times(name: &str, a: NatConfig, b: NatConfig, seeds: u64, patience: Duration) -> Vec<Duration> {
    let (mut times, mut guesses) = (Vec::new(), Vec::new());
    let seeds = seeds_or(seeds);
    let count = seeds.end - seeds.start;
    for seed in seeds {
        let (a, b) = if seed % 2 == 0 { (a, b) } else { (b, a) };
        let (run, _) = run(seed, a, b, USUAL, patience);
        times.extend(run.direct);
        guesses.push(run.guesses);
    }
    guesses.sort();
    println!(
        "{name}: {} of {count} direct, p50 {:?} p95 {:?} worst {:?}; packets to guessed ports, both \
         sides, p50 {:?} most {:?}",
        times.len(),
        at(times.clone(), 50),
        at(times.clone(), 95),
        times.iter().max(),
        guesses.get(guesses.len() / 2),
        guesses.last(),
    );
    times
}

#[test]
fn a_symmetric_nat_and_a_port_filtering_one_become_direct_by_a_pinned_port() {
    let (symmetric, home) = (NatConfig::symmetric(), NatConfig::home());
    let times = times(
        "symmetric, port-restricted",
        symmetric,
        home,
        60,
        15 * SECOND,
    );
    assert!(times.len() >= 58, "{} of 60", times.len());
    assert!(at(times.clone(), 50) <= 5 * SECOND);
    let (run, _) = run(0, symmetric, home, USUAL, 15 * SECOND);
    assert!(run.pinned && run.strategy == Some("birthday"));
}

#[test]
fn a_sequence_of_ports_and_a_block_of_them_are_found_within_five_seconds() {
    for (name, nat) in [
        ("sequential", SEQUENTIAL),
        ("sequential, step 2, 20 flows/s", busy(2, 20)),
        ("sequential, 35 flows/s", busy(1, 35)),
        ("block of 512", hard(Allocation::Block { size: 512 })),
        ("block of 1,024", BLOCK),
    ] {
        let times = times(name, nat, NatConfig::home(), 20, 5 * SECOND);
        assert!(times.len() >= 18, "{name}: {} of 20", times.len());
    }
}

#[test]
fn two_sequences_of_ports_meet_where_nobody_else_takes_any() {
    let times = times("both sequential", SEQUENTIAL, SEQUENTIAL, 10, MINUTE);
    // What the nodes themselves send elsewhere takes ports of the sequence, too.
    assert!(times.len() >= 8, "{} of 10", times.len());
}

#[test]
fn two_routers_that_accept_on_their_outside_and_share_a_wire_become_direct_by_another_port() {
    let wire = LinkConfig::wire(Duration::from_micros(150));
    // The moments at which the two are told to fire are further apart than their wire is long.
    let jittery = NEAR.with_disorder(3 * MS, 0.0, 0.0);
    let poisoned = NatConfig::home().poisoned();
    let (mut times, mut rotated) = (Vec::new(), 0);
    for seed in 0..20 {
        let (run, lab) = run(seed, poisoned, poisoned, [wire, jittery], 15 * SECOND);
        let Some(took) = run.direct else {
            lab.fail("no direct path");
        };
        times.push(took);
        rotated += u32::from(run.pinned);
    }
    println!(
        "poisoned neighbours: {rotated} of 20 by another port, worst {:?}",
        times.iter().max()
    );
    assert!(rotated > 0, "the strategy was never needed");
}

#[test]
fn nobody_guesses_where_either_mesh_file_forbids_it() {
    for which in 0..2 {
        let (symmetric, home) = (NatConfig::symmetric(), NatConfig::home());
        let mut lab = Lab::punching(1, symmetric, home, UPLINK, NEAR);
        let node = [lab.a, lab.b][which];
        let forbidden = PunchSpec {
            spray: false,
            ..PunchSpec::default()
        };
        lab.world.set_punch(node, forbidden);
        let (run, _) = run_lab(lab.start(), 30 * SECOND, true);
        assert_eq!((run.direct, run.guesses), (None, 0));
    }
}

#[test]
fn a_sweep_ends_when_the_relay_falls_silent_under_it() {
    let mut lab = Lab::punching(3, NatConfig::symmetric(), NatConfig::home(), UPLINK, NEAR);
    for (from, to) in [(OUTSIDE_A, OUTSIDE_B), (OUTSIDE_B, OUTSIDE_A)] {
        lab.world.network.set_route(ip(from), ip(to), false);
    }
    let mut lab = lab.start();
    let (sweeper, patience) = (lab.b, 30 * SECOND);
    let sweeps = |world: &World| {
        let status = world.status(sweeper);
        status.is_some_and(|status| status.punch.used > 50)
    };
    if lab.world.run_until_done(patience, sweeps).is_none() {
        lab.fail("no sweep");
    }
    lab.world.network.set_host_loss(lab.server, 1.0);
    let next = lab.world.now() + 5 * SECOND;
    lab.world.run_until(next);
    let punch = lab.world.status(sweeper).map(|status| status.punch);
    let punch = punch.unwrap_or_default();
    assert!(punch.used < 550, "{punch:?}");
    assert!(punch.barred.is_some_and(|why| why.contains("harm")));
}

/// A sweep that finds nothing, under way; and what a router would quote of its newest packet.
fn sweep_in_vain() -> (Lab, IcmpError) {
    let mut lab = Lab::punching(3, NatConfig::symmetric(), NatConfig::home(), UPLINK, NEAR);
    for (from, to) in [(OUTSIDE_A, OUTSIDE_B), (OUTSIDE_B, OUTSIDE_A)] {
        lab.world.network.set_route(ip(from), ip(to), false);
    }
    let mut lab = lab.start();
    let sweeper = lab.b;
    let sweeps = |world: &World| guesses_of(world, sweeper) > 50;
    if lab.world.run_until_done(30 * SECOND, sweeps).is_none() {
        lab.fail("no sweep");
    }
    let inside = lab.world.network.addresses(sweeper)[0];
    let entries = lab.world.network.trace.entries();
    let sent = entries.filter_map(|entry| match entry.what {
        What::Sent => entry.packet.as_ref(),
        _ => None,
    });
    let is_shot =
        |packet: &&Packet| packet.source.ip() == inside && packet.destination.ip() == ip(OUTSIDE_A);
    let shot = sent.filter(is_shot).last().unwrap();
    let Payload::Raw(payload) = &shot.payload else {
        lab.fail("the newest packet is no shot");
    };
    let error = IcmpError {
        kind: IcmpKind::Prohibited,
        from: ip("198.18.0.1"),
        source_port: shot.source.port(),
        destination: shot.destination,
        payload: payload.clone(),
    };
    (lab, error)
}

fn guesses_of(world: &World, node: HostId) -> u32 {
    world.status(node).map_or(0, |status| status.punch.used)
}

/// Why the sweeper guesses no port five seconds later, and how many it has guessed.
fn barred(lab: &mut Lab) -> (Option<String>, u32) {
    let next = lab.world.now() + 5 * SECOND;
    lab.world.run_until(next);
    let punch = lab.world.status(lab.b).unwrap().punch;
    (punch.barred, punch.used)
}

#[test]
fn a_sweep_ends_when_a_router_on_the_way_says_that_it_is_forbidden() {
    // A quote of the whole packet, and of as much as shows whose it is.
    for quoted in [usize::MAX, 24] {
        let (mut lab, mut error) = sweep_in_vain();
        error.payload.truncate(quoted);
        lab.world.tell_icmp(lab.b, &error);
        let (why, used) = barred(&mut lab);
        assert!(used < 100, "{used}");
        assert!(why.is_some_and(|why| why.contains("harm")));
    }
    // Quotes of the ports alone: one may be a guess, three are not.
    let (mut lab, mut error) = sweep_in_vain();
    error.payload.clear();
    for _ in 0..3 {
        assert!(lab.world.status(lab.b).unwrap().punch.barred.is_none());
        lab.world.tell_icmp(lab.b, &error);
    }
    assert!(barred(&mut lab).0.is_some_and(|why| why.contains("harm")));
}

#[test]
fn what_quotes_nothing_of_a_sweep_or_comes_from_its_target_does_not_end_it() {
    let (mut lab, genuine) = sweep_in_vain();
    let bystander = SocketAddr::new(ip("203.0.113.77"), genuine.destination.port());
    let unprobed = SocketAddr::new(genuine.destination.ip(), 1);
    let mut bytes = genuine.payload.clone();
    bytes[10] ^= 1;
    let forged = [
        IcmpError {
            source_port: genuine.source_port ^ 1,
            ..genuine.clone()
        },
        IcmpError {
            destination: bystander,
            ..genuine.clone()
        },
        IcmpError {
            destination: unprobed,
            ..genuine.clone()
        },
        IcmpError {
            payload: bytes,
            ..genuine.clone()
        },
        IcmpError {
            kind: IcmpKind::TimeExceeded,
            ..genuine.clone()
        },
        // The peer's own router, of a port that is closed.
        IcmpError {
            from: ip(OUTSIDE_A),
            ..genuine
        },
    ];
    for error in forged.iter().cycle().take(60) {
        lab.world.tell_icmp(lab.b, error);
    }
    let (why, used) = barred(&mut lab);
    assert!(used > 500, "{used}");
    assert!(why.is_none_or(|why| !why.contains("harm")));
}

#[test]
fn a_pair_that_guesses_in_vain_for_an_hour_keeps_its_budget_and_its_relay() {
    let mut lab = Lab::punching(3, NatConfig::symmetric(), NatConfig::home(), UPLINK, NEAR);
    for (from, to) in [(OUTSIDE_A, OUTSIDE_B), (OUTSIDE_B, OUTSIDE_A)] {
        lab.world.network.set_route(ip(from), ip(to), false);
    }
    let (_, mut lab) = run_lab(lab.start(), 30 * SECOND, true);
    let mut used = 0;
    for _ in 0..60 {
        let next = lab.world.now() + MINUTE;
        lab.world.ping(lab.a, lab.b);
        lab.world.run_until(next);
        assert_eq!(lab.paths(), [PathKind::Relay; 2]);
        used = used.max(guesses(&lab, lab.a)).max(guesses(&lab, lab.b));
    }
    lab.expect_flow(5 * SECOND);
    println!("in vain: at most {used} packets to guessed ports in ten minutes");
    assert!((1_000..=2_048).contains(&used), "{used}");
}

#[test]
fn a_pin_outlives_the_agent_and_the_session_over_it_goes_on() {
    let (run, mut lab) = run(
        4,
        NatConfig::symmetric(),
        NatConfig::home(),
        USUAL,
        15 * SECOND,
    );
    assert!(run.pinned);
    let pin = lab.world.pin(lab.a, lab.b);
    lab.world.restart_agent(lab.a, 10 * SECOND);
    let (lost, _) = lab.pings_lost(30 * SECOND);
    assert_eq!((lost, lab.world.pin(lab.a, lab.b)), (0, pin));
    assert_eq!(lab.paths(), [PathKind::Direct; 2]);
    lab.expect_sound();
}

#[test]
fn a_pin_that_is_lost_for_good_is_replaced_by_the_relay_and_then_by_another() {
    let (symmetric, home) = (NatConfig::symmetric(), NatConfig::home());
    let (run, mut lab) = run(6, symmetric, home, USUAL, 15 * SECOND);
    assert!(run.pinned);
    let before = lab.world.pin(lab.a, lab.b);
    lab.world.lose_pin(lab.a, lab.b);
    let gap = lab.longest_gap(60 * SECOND, |_| ());
    println!("a pin is lost: {gap:?} without a packet");
    let now = lab.world.pin(lab.a, lab.b);
    if gap > 5 * SECOND || now.is_none() || now == before {
        lab.fail(&format!(
            "{gap:?} without a packet, {before:?} and then {now:?}"
        ));
    }
    lab.expect_sound();
}

#[test]
fn a_router_that_forgets_the_mapping_of_a_pin_costs_seconds() {
    let (run, mut lab) = run(
        5,
        NatConfig::symmetric(),
        NatConfig::home(),
        USUAL,
        15 * SECOND,
    );
    assert!(run.pinned);
    if let Some(gateway) = lab.gateway_a {
        lab.world.network.reboot_gateway(gateway, None);
    }
    let gap = lab.longest_gap(40 * SECOND, |_| ());
    println!("the mapping of a pin is lost: {gap:?} without a packet");
    assert!(gap <= 10 * SECOND, "{gap:?}");
    if lab.paths() != [PathKind::Direct; 2] {
        lab.fail("no direct path again");
    }
    lab.expect_sound();
}

#[test]
fn what_a_side_does_against_the_nats_is_told_while_it_does_it() {
    let mut lab = Lab::punching(1, NatConfig::symmetric(), NatConfig::home(), UPLINK, NEAR).start();
    let mut told = [const { Vec::<String>::new() }; 2];
    let end = lab.world.now() + MINUTE;
    while lab.paths() != [PathKind::Direct; 2] && lab.world.now() < end {
        step(&mut lab);
        for (node, told) in [lab.a, lab.b].into_iter().zip(&mut told) {
            let status = lab.world.status(node).unwrap();
            told.extend(status.peers[0].strategy.clone());
        }
    }
    let [opener, sweeper] = told;
    assert!(
        opener
            .iter()
            .any(|text| text.starts_with("birthday: opens ports")),
        "{opener:?}"
    );
    assert!(
        sweeper
            .iter()
            .any(|text| text.starts_with("birthday: probes the peer's ports")),
        "{sweeper:?}"
    );
}
