//! Pairs on demand: what they cost at rest, and that the first packet of a conversation arrives.

use std::time::Duration;

use natpunch_core::{Event, PeerState};
use natpunch_sim::{HostId, NatConfig, Purpose};
use natpunch_types::Connect;

use crate::lab::{Lab, MINUTE, MS, NEAR, SECOND, Side, UPLINK};

/// The first packet is answered so soon after the path is proven.
const AFTER_PATH: Duration = Duration::from_millis(300);
/// A pair rests at most so long after the last packet.
const RESTS_AFTER: Duration = Duration::from_secs(330);

fn on_demand(mut lab: Lab) -> Lab {
    lab.world.set_connect(lab.a, Connect::OnDemand);
    lab.world.set_connect(lab.b, Connect::OnDemand);
    lab.start()
}

/// Two nodes with a server of natpunch's own, which have registered and rest.
fn at_rest(seed: u64, a: impl Into<Side>, b: impl Into<Side>) -> Lab {
    let mut lab = on_demand(Lab::with_servers(seed, a, b, &[NEAR]));
    run(&mut lab, 10 * SECOND);
    expect_rest(&lab);
    lab
}

fn run(lab: &mut Lab, time: Duration) {
    lab.world.run_until(lab.world.now() + time);
}

fn expect_rest(lab: &Lab) {
    if lab.states() != [PeerState::Resting, PeerState::Resting] {
        lab.fail("the pair does not rest");
    }
}

/// Runs until the pair rests.
fn rest(lab: &mut Lab) {
    let (a, b, end) = (lab.a, lab.b, lab.world.now() + RESTS_AFTER);
    let rests = |world: &natpunch_sim::World, node| {
        let peers = world.status(node).map(|status| status.peers);
        peers.is_some_and(|peers| peers.iter().all(|peer| peer.state == PeerState::Resting))
    };
    let done = lab
        .world
        .run_until_done(end, |world| rests(world, a) && rests(world, b));
    if done.is_none() {
        lab.fail("the pair does not come to rest");
    }
}

/// When a node's core first chose a path since then.
fn path_since(lab: &Lab, node: HostId, since: Duration) -> Option<Duration> {
    let events = lab.world.events(node).iter();
    let mut later = events.filter(|(at, _)| *at >= since);
    later.find_map(|(at, event)| matches!(event, Event::PathSelected { .. }).then_some(*at))
}

/// Datagrams that a node has sent for its peer.
fn for_the_peer(lab: &Lab, node: HostId) -> u64 {
    let sent = lab.world.sent(node).iter();
    let of = [Purpose::WireGuard, Purpose::Probe, Purpose::Bind];
    sent.filter(|((purpose, _), _)| of.contains(purpose))
        .map(|(_, count)| count)
        .sum()
}

/// Each of these has one packet for the other. How long it took until all arrived, from the first
/// packet and from when either side had a path.
fn first_packets(lab: &mut Lab, from: &[HostId], patience: Duration) -> (Duration, Duration) {
    let start = lab.world.now();
    let other = |node| if node == lab.a { lab.b } else { lab.a };
    let received = |world: &natpunch_sim::World, from: HostId| {
        let hearer = if from == lab.a { lab.b } else { lab.a };
        world.device(hearer).received_data(&world.key(from))
    };
    let before: Vec<u64> = from.iter().map(|n| received(&lab.world, *n)).collect();
    for node in from {
        let to = other(*node);
        lab.world.send(*node, to);
    }
    let ways: Vec<(HostId, HostId)> = from.iter().map(|node| (*node, other(*node))).collect();
    let arrived = lab.world.run_until_done(start + patience, |world| {
        let mut all = ways.iter().zip(&before);
        all.all(|((from, to), before)| world.device(*to).received_data(&world.key(*from)) > *before)
    });
    let Some(arrived) = arrived else {
        lab.fail("the first packet was lost")
    };
    let path = [lab.a, lab.b].map(|node| path_since(lab, node, start));
    let path = path.into_iter().flatten().min().unwrap_or(arrived);
    (arrived - start, arrived.saturating_sub(path))
}

#[test]
fn a_pair_at_rest_costs_nothing_and_its_node_what_its_server_does() {
    for seed in 0..4 {
        let mut lab = at_rest(seed, NatConfig::home(), NatConfig::symmetric());
        run(&mut lab, 5 * MINUTE);
        let total = |lab: &Lab, node| lab.world.sent(node).values().sum::<u64>();
        let before = [lab.a, lab.b].map(|node| (for_the_peer(&lab, node), total(&lab, node)));
        run(&mut lab, 60 * MINUTE);
        expect_rest(&lab);
        for (node, (peer, all)) in [lab.a, lab.b].into_iter().zip(before) {
            assert_eq!(for_the_peer(&lab, node), peer, "seed {seed}");
            let a_minute = (total(&lab, node) - all) as f64 / 60.0;
            println!("at rest: {a_minute:.2} datagrams a minute, all to the server");
            assert!(a_minute <= 4.0, "{a_minute}");
        }
        lab.expect_sound();
    }
}

#[test]
fn the_first_packet_of_a_pair_at_rest_arrives_and_the_pair_rests_again() {
    let sides: [fn() -> Side; 4] = [
        || Side::Public,
        || NatConfig::home().into(),
        || NatConfig::symmetric().into(),
        || Side::Firewalled,
    ];
    let (mut all, mut after_path) = (Vec::new(), Duration::ZERO);
    for seed in 0..36_u64 {
        let side = |number: u64| sides[(number % 4) as usize]();
        let mut lab = at_rest(seed, side(seed / 3), side(seed / 9));
        let (a, b) = (lab.a, lab.b);
        let speakers: &[HostId] = match seed % 3 {
            0 => &[a],
            1 => &[b],
            _ => &[a, b],
        };
        for round in 0..2 {
            let (took, after) = first_packets(&mut lab, speakers, 20 * SECOND);
            all.push(took);
            after_path = after_path.max(after);
            if after > AFTER_PATH {
                lab.fail(&format!("{after:?} after the path, in round {round}"));
            }
            rest(&mut lab);
        }
        lab.expect_sound();
    }
    all.sort_unstable();
    println!(
        "first packets: {:?} in the median, {:?} at worst; {after_path:?} after the path at worst",
        all[all.len() / 2],
        all[all.len() - 1]
    );
}

#[test]
fn with_a_fifth_lost_the_first_packet_arrives_all_the_same() {
    let mut all = Vec::new();
    for seed in 0..40 {
        let mut lab = at_rest(seed, NatConfig::home(), NatConfig::home());
        let lossy = UPLINK.with_loss(0.1);
        for gateway in [lab.gateway_a, lab.gateway_b].into_iter().flatten() {
            lab.world.network.set_uplink(gateway, lossy);
        }
        // A packet that is lost once there is a session is not WireGuard's to repeat.
        let (a, b) = (lab.a, lab.b);
        let start = lab.world.now();
        lab.world.send(a, b);
        let connected = lab
            .world
            .run_until_done(start + 30 * SECOND, |world| world.has_sessions(a, b));
        let Some(connected) = connected else {
            lab.fail("no session")
        };
        all.push(connected - start);
    }
    all.sort_unstable();
    let (median, worst) = (all[all.len() / 2], all[all.len() - 1]);
    println!("session with a fifth lost each way: {median:?} (median), {worst:?} at worst");
    assert!(median <= SECOND && worst <= 12 * SECOND, "{all:?}");
}

#[test]
fn a_conversation_keeps_the_pair_awake_and_loses_nothing_when_it_pauses() {
    for seed in 0..6 {
        let mut lab = at_rest(seed, NatConfig::home(), NatConfig::home());
        let (a, b) = (lab.a, lab.b);
        // Pauses before, at and after the end of the rest's conditions.
        for pause in [
            1, 20, 100, 119, 121, 130, 170, 179, 181, 185, 240, 290, 300, 310,
        ] {
            let (_, after) = first_packets(&mut lab, &[a], 10 * SECOND);
            if after > AFTER_PATH {
                lab.fail(&format!("after {after:?}, before a pause of {pause} s"));
            }
            let (took, _) = first_packets(&mut lab, &[b], SECOND);
            if took > AFTER_PATH {
                lab.fail(&format!(
                    "the answer took {took:?}, before a pause of {pause} s"
                ));
            }
            run(&mut lab, pause * SECOND);
        }
        lab.expect_sound();
    }
}

#[test]
fn a_pair_at_rest_wakes_after_restarts_moves_and_reboots() {
    for seed in 0..12 {
        let mut lab = at_rest(seed, NatConfig::home(), NatConfig::home());
        let (a, b) = (lab.a, lab.b);
        first_packets(&mut lab, &[a], 10 * SECOND);
        rest(&mut lab);
        match seed % 4 {
            0 => lab.world.restart_agent(b, SECOND),
            1 => lab.world.restart_agent(a, SECOND),
            2 => {
                let outside = "203.0.113.77".parse().unwrap();
                lab.world
                    .reboot_gateway(lab.gateway_b.unwrap(), Some(outside));
            }
            _ => lab.world.restart_device(b, SECOND),
        }
        run(&mut lab, 40 * SECOND);
        // A ring of these minutes is still in the doorbell when the agent starts anew.
        rest(&mut lab);
        let from = if seed % 8 < 4 { a } else { b };
        let (took, after) = first_packets(&mut lab, &[from], 20 * SECOND);
        if after > AFTER_PATH {
            lab.fail(&format!("{after:?} after the path, {took:?} in all"));
        }
        rest(&mut lab);
        lab.expect_sound();
    }
}

#[test]
fn without_the_server_a_pair_wakes_where_the_peer_was() {
    for seed in 0..4 {
        let mut lab = at_rest(seed, Side::Public, NatConfig::home());
        let (a, b) = (lab.a, lab.b);
        first_packets(&mut lab, &[a], 10 * SECOND);
        rest(&mut lab);
        lab.world.set_server_down(lab.server, true);
        run(&mut lab, 20 * MINUTE);
        expect_rest(&lab);
        let (_, after) = first_packets(&mut lab, &[b], 10 * SECOND);
        if after > AFTER_PATH {
            lab.fail(&format!("{after:?} after the path"));
        }
        lab.expect_sound();
    }
}

#[test]
fn a_side_that_is_always_connected_keeps_the_other_awake() {
    for seed in 0..2 {
        let mut lab = Lab::with_servers(seed, NatConfig::home(), NatConfig::home(), &[NEAR]);
        lab.world.set_connect(lab.a, Connect::OnDemand);
        let mut lab = lab.start();
        // The side on demand has a packet, which wakes it.
        run(&mut lab, 5 * SECOND);
        let (a, b) = (lab.a, lab.b);
        first_packets(&mut lab, &[a], 10 * SECOND);
        run(&mut lab, 30 * MINUTE);
        if lab.states() != [PeerState::Connected, PeerState::Connected] {
            lab.fail("the pair rests");
        }
        let (took, _) = first_packets(&mut lab, &[a, b], SECOND);
        assert!(took < 100 * MS, "{took:?}");
        lab.expect_sound();
    }
}

#[test]
fn a_pair_that_is_made_on_demand_goes_on_and_one_that_is_not_any_more_connects() {
    let mut lab = Lab::with_servers(1, NatConfig::home(), NatConfig::home(), &[NEAR]).start();
    lab.expect_connected(10 * SECOND);
    let (a, b) = (lab.a, lab.b);
    for node in [a, b] {
        lab.world.set_connect(node, Connect::OnDemand);
        let (took, _) = first_packets(&mut lab, &[a, b], SECOND);
        assert!(took < 100 * MS, "{took:?}");
        run(&mut lab, 10 * SECOND);
    }
    rest(&mut lab);
    for node in [a, b] {
        lab.world.set_connect(node, Connect::Always);
    }
    lab.expect_connected(10 * SECOND);
}
