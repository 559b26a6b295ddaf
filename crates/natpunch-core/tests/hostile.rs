//! Whatever arrives from outside: garbage, replays, forgeries, lies. No panic, no reply, no change.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use common::*;
use natpunch_core::{Event, Mesh, PeerState, Time};
use natpunch_types::{
    InstanceName, PROBE_LEN, PROBE_MAGIC, PathId, PresharedKey, RecordTag, SealedRecord, SecretKey,
};
use proptest::prelude::*;

/// A mesh that is quiet, and datagrams that its peer sealed for it: pings and pongs.
fn captured() -> (World, Vec<Vec<u8>>) {
    let mut world = World::pair();
    world.tell_both();
    world.connect();
    let datagrams: Vec<Vec<u8>> = world.nodes[1]
        .sent
        .iter()
        .map(|(_, transmit)| transmit.payload.clone())
        .collect();
    assert!(datagrams.len() > 4);
    (world, datagrams)
}

/// What must not change.
fn fingerprint(mesh: &mut Mesh, now: Time) -> (String, Option<Time>) {
    (format!("{:?}", mesh.status(now)), mesh.poll_timeout())
}

fn assert_ignored(world: &mut World, source: &str, payload: &[u8]) {
    let now = world.now;
    let mesh = &mut world.nodes[0].mesh;
    let before = fingerprint(mesh, now);
    mesh.handle_datagram(PathId::wireguard(addr(source)), None, payload, now);
    assert!(
        mesh.poll_transmit().is_none(),
        "answered {} bytes",
        payload.len()
    );
    assert!(mesh.poll_command().is_none() && mesh.poll_event().is_none());
    assert_eq!(before, fingerprint(mesh, now));
}

#[test]
fn every_truncation_and_every_flipped_bit_of_a_probe_is_ignored() {
    let (mut world, datagrams) = captured();
    for datagram in &datagrams[..4] {
        for length in 0..datagram.len() {
            assert_ignored(&mut world, "203.0.113.2:9", &datagram[..length]);
        }
        for bit in 0..datagram.len() * 8 {
            let mut flipped = datagram.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_ignored(&mut world, "203.0.113.2:9", &flipped);
        }
        let mut longer = datagram.clone();
        longer.push(0);
        assert_ignored(&mut world, "203.0.113.2:9", &longer);
    }
}

#[test]
fn every_length_of_every_kind_of_packet_is_survived_in_silence() {
    let (mut world, datagrams) = captured();
    let stun = [0x01, 0x01, 0, 0, 0x21, 0x12, 0xa4, 0x42];
    let starts: [&[u8]; 8] = [
        &PROBE_MAGIC,
        &datagrams[0][..16],
        &stun,
        &[1, 0, 0, 0],
        &[2, 0, 0, 0],
        &[3, 0, 0, 0],
        &[4, 0, 0, 0],
        &[0xff],
    ];
    for start in starts {
        for length in 0..=2048 {
            for filler in [0x00, 0xff] {
                let mut datagram = vec![filler; length];
                let head = length.min(start.len());
                datagram[..head].copy_from_slice(&start[..head]);
                assert_ignored(&mut world, "203.0.113.2:9", &datagram);
            }
        }
    }
}

#[test]
fn a_replayed_probe_of_the_running_session_is_ignored() {
    let (mut world, _) = captured();
    let start = world.now;
    world.run(secs(180));
    let since: Vec<_> = world.nodes[1]
        .sent
        .iter()
        .filter(|(at, _)| *at >= start)
        .cloned()
        .collect();
    assert!(since.len() >= 8, "pings and pongs");
    for (_, transmit) in since {
        assert_ignored(&mut world, "198.51.100.66:666", &transmit.payload);
    }
}

#[test]
fn replays_from_an_earlier_run_move_nothing() {
    let (mut world, datagrams) = captured();
    world.restart_agent(0, 77);
    world.run(secs(30));
    let before = (
        world.nodes[0].endpoint(world.nodes[1].number),
        world.nodes[0].sets.len(),
    );
    let start = world.now;
    for round in 0..20 {
        for datagram in &datagrams {
            world.inject(0, addr(&format!("198.51.100.{}:666", round + 1)), datagram);
        }
        world.run(secs(1));
    }
    let replies = world.nodes[0]
        .sent
        .iter()
        .filter(|(at, _)| *at >= start)
        .count();
    let injected = datagrams.len() * 20;
    assert!(
        replies <= injected + 16 * 8 + 40,
        "{replies} datagrams for {injected} replayed ones"
    );
    world.run(secs(60));
    assert_eq!(
        before,
        (
            world.nodes[0].endpoint(world.nodes[1].number),
            world.nodes[0].sets.len()
        )
    );
    assert_eq!(world.status(0).state, PeerState::Connected);
}

#[test]
fn a_reply_is_never_larger_than_what_it_answers() {
    /// Of the answer to a question about the size of packets, which is never shorter (protocol.md).
    const SIZE_ANSWER: usize = 96;
    let (world, _) = captured();
    let sent = world.nodes.iter().flat_map(|node| &node.sent);
    let lengths: Vec<usize> = sent.map(|(_, sent)| sent.payload.len()).collect();
    let (plain, sizes): (Vec<usize>, Vec<usize>) =
        lengths.into_iter().partition(|length| *length == PROBE_LEN);
    assert!(!plain.is_empty() && !sizes.is_empty());
    assert_eq!(sizes.iter().min(), Some(&SIZE_ANSWER), "{sizes:?}");
    assert!(
        sizes.iter().any(|length| *length > SIZE_ANSWER),
        "{sizes:?}"
    );
}

#[test]
fn wireguard_takes_no_probe_for_its_own() {
    let (_, datagrams) = captured();
    for datagram in datagrams {
        let word = u32::from_le_bytes(datagram[..4].try_into().unwrap());
        assert!(!(1..=4).contains(&word));
    }
}

#[test]
fn a_probe_under_another_preshared_key_is_not_known() {
    let mut world = World::pair();
    let (own, other) = (world.nodes[0].number, world.nodes[1].number);
    let mut spec = spec(own, &[other]);
    spec.peers[0].preshared_key = Some(PresharedKey::from_bytes([5; 32]));
    world.with(0, |mesh, now| mesh.handle_spec(spec, now));
    world.tell_both();
    world.run(secs(20));
    assert!(world.nodes.iter().all(|node| node.sets.is_empty()));
}

#[test]
fn addresses_that_no_peer_can_have_are_never_sent_to() {
    let mut world = World::pair();
    world.with(0, |mesh, now| {
        mesh.handle_local_addresses(&host(&["203.0.113.1"]), now)
    });
    let own = world.address(0).to_string();
    for bad in [
        "127.0.0.1:1",
        "0.0.0.0:1",
        "224.0.0.1:1",
        "255.255.255.255:1",
        "10.77.0.9:1",
        "[::ffff:127.0.0.1]:1",
        &own,
    ] {
        world.tell_address(0, 1, addr(bad));
    }
    world.run(secs(10));
    assert!(world.nodes[0].sent.is_empty(), "{:?}", world.nodes[0].sent);
    assert!(world.status(0).candidates.is_empty());
}

#[test]
fn a_lying_discovery_source_neither_starves_others_nor_floods() {
    let mut world = World::pair();
    let start = world.now;
    for number in 0..1000_u32 {
        world.tell_address(
            0,
            1,
            addr(&format!(
                "198.51.{}.{}:1000",
                number / 250,
                number % 250 + 1
            )),
        );
    }
    // The truth comes last, from another source.
    let address = world.address(1);
    let key = public(world.nodes[1].number);
    let honest = Candidate {
        origin: InstanceName::new("honest"),
        ..candidate(address)
    };
    world.with(0, |mesh, now| mesh.handle_candidate(key, honest, now));
    world.tell(1, 0);
    world.connect();
    assert!(world.status(0).candidates.len() <= 16);
    world.run(secs(3600));
    let sent = world.sent_since(0, start);
    assert!(sent < 3600 * 2, "{sent}");
}

#[test]
fn an_unreachable_peer_costs_little_and_says_why() {
    let mut world = World::pair();
    world.nodes[1].up = false;
    for last in 1..9 {
        world.tell_address(0, 1, addr(&format!("198.51.100.{last}:1000")));
    }
    world.run(secs(60));
    let PeerState::Unreachable { reason, retry_in } = world.status(0).state else {
        panic!("{:?}", world.status(0).state)
    };
    assert!(
        reason.contains("no probe was answered at any of 8 addresses"),
        "{reason}"
    );
    assert!(retry_in > secs(10));
    let start = world.now;
    world.run(secs(3600));
    let sent = world.sent_since(0, start);
    assert!(sent <= 1_200, "{sent} datagrams in an hour");
    let start = world.now;
    world.run(secs(24 * 3600));
    assert!(
        world.sent_since(0, start) <= 24 * 900,
        "{}",
        world.sent_since(0, start)
    );
    // A new candidate is tried at once.
    let start = world.now;
    world.tell_address(0, 1, addr("203.0.113.50:5"));
    world.run(secs(3));
    assert!(world.sent_since(0, start) >= 8);
}

#[test]
fn many_peers_share_one_probe_budget() {
    let numbers: Vec<u8> = (2..102).collect();
    let mut mesh = Mesh::new(spec(1, &numbers), [0; 32], Time::ZERO);
    let now = Time::from_millis(5);
    for number in &numbers {
        for port in 1000..1008 {
            mesh.handle_candidate(
                public(*number),
                candidate(addr(&format!("198.51.100.{number}:{port}"))),
                now,
            );
        }
    }
    let mut now = now;
    let mut sent = 0;
    while now < Time::from_millis(2005) {
        mesh.handle_timeout(now);
        sent += std::iter::from_fn(|| mesh.poll_transmit()).count();
        assert!(mesh.poll_timeout().is_some());
        now += ms(5);
    }
    assert!((250..=750).contains(&sent), "{sent} pings in 2 s");
}

#[test]
fn each_address_is_asked_in_the_first_round_however_many_peers_are_found_at_once() {
    const PEERS: u8 = 200;
    let numbers: Vec<u8> = (2..2 + PEERS).collect();
    let mut mesh = Mesh::new(spec(1, &numbers), [0; 32], Time::ZERO);
    let mut now = Time::from_millis(5);
    for number in &numbers {
        for port in 1000..1003 {
            let address = addr(&format!("198.51.100.{number}:{port}"));
            mesh.handle_candidate(public(*number), candidate(address), now);
        }
    }
    let addresses = usize::from(PEERS) * 3;
    let mut asked: BTreeMap<SocketAddr, usize> = BTreeMap::new();
    let mut run_until = |asked: &mut BTreeMap<SocketAddr, usize>, end: u64| {
        while now < Time::from_millis(end) {
            mesh.handle_timeout(now);
            for transmit in std::iter::from_fn(|| mesh.poll_transmit()) {
                *asked.entry(transmit.path.remote).or_default() += 1;
            }
            now = mesh.poll_timeout().unwrap().max(now + ms(1));
        }
    };
    // 600 first pings at 250 a second, of which 250 may leave at once.
    run_until(&mut asked, 3_000);
    assert_eq!(asked.len(), addresses, "each has been asked once");
    run_until(&mut asked, 15_000);
    let (least, most) = (asked.values().min(), asked.values().max());
    assert!(least >= Some(&6) && most <= Some(&8), "{least:?} {most:?}");
    // A burst has eight.
    run_until(&mut asked, 21_000);
    assert!(asked.values().all(|pings| *pings >= 8), "{asked:?}");
    run_until(&mut asked, 60_000);
    let sent: usize = asked.values().sum();
    assert!(sent <= 250 * 61, "{sent} pings in a minute");
}

// Records.

/// Node 0's records as node 1 can fetch them, and both nodes.
fn published() -> (World, SealedRecord) {
    let mut world = World::pair();
    world.run(secs(1));
    let record = world.nodes[0].records[0].clone();
    (world, record)
}

fn take(world: &mut World, index: usize, record: &SealedRecord) -> usize {
    let now = world.now;
    let mesh = &mut world.nodes[index].mesh;
    mesh.handle_record(&InstanceName::new("http"), record, now);
    mesh.status(now).peers[0].candidates.len()
}

#[test]
fn a_record_tells_the_peer_where_we_are_and_nobody_else() {
    let (mut world, record) = published();
    assert_eq!(world.nodes[1].interest[0].inbound_tag, record.tag);
    assert_eq!(
        take(&mut world, 0, &record),
        0,
        "our own record is not for us"
    );
    assert_eq!(take(&mut world, 1, &record), 1);
    let candidates = world.status(1).candidates;
    assert_eq!(
        (candidates[0].address, candidates[0].origins.as_slice()),
        (world.address(0), ["http".to_owned()].as_slice())
    );
    world.connect();
}

#[test]
fn an_older_record_is_dropped_and_a_newer_one_replaces_it() {
    let (mut world, first) = published();
    let counter = world.nodes[0].mesh.record_counter();
    world.with(0, |mesh, now| {
        mesh.handle_local_addresses(&host(&["203.0.113.77"]), now)
    });
    world.run(secs(1));
    let second = world.nodes[0].records[0].clone();
    assert!(world.nodes[0].mesh.record_counter() > counter);
    assert_eq!(take(&mut world, 1, &first), 1);
    assert_eq!(take(&mut world, 1, &second), 1, "replaced");
    let moved = world.status(1).candidates[0].address;
    assert_eq!(moved.ip().to_string(), "203.0.113.77");
    assert_eq!(take(&mut world, 1, &first), 1, "rollback");
    assert_eq!(world.status(1).candidates[0].address, moved);
}

#[test]
fn a_record_read_again_does_not_live_longer() {
    let (mut world, record) = published();
    world.nodes[0].mesh_up = false;
    for _ in 0..11 {
        take(&mut world, 1, &record);
        world.run(secs(60));
    }
    assert_eq!(take(&mut world, 1, &record), 0, "ten minutes are over");
    assert!(
        matches!(world.status(1).state, PeerState::Waiting { .. }),
        "{:?}",
        world.status(1).state
    );
}

#[test]
fn a_forged_mixed_or_damaged_record_is_dropped() {
    let (mut world, record) = published();
    let other = world.nodes[1].records[0].clone();
    assert_eq!(
        take(
            &mut world,
            1,
            &SealedRecord {
                tag: record.tag,
                blob: other.blob
            }
        ),
        0,
        "mixed"
    );
    assert_eq!(
        take(
            &mut world,
            1,
            &SealedRecord {
                tag: RecordTag::NONE,
                blob: record.blob.clone()
            }
        ),
        0,
        "foreign tag"
    );
    for bit in 0..record.blob.len() * 8 {
        let mut blob = record.blob.to_vec();
        blob[bit / 8] ^= 1 << (bit % 8);
        let blob = blob.into();
        assert_eq!(
            take(
                &mut world,
                1,
                &SealedRecord {
                    tag: record.tag,
                    blob
                }
            ),
            0,
            "bit {bit}"
        );
    }
    for length in 0..=2048 {
        let mut blob = record.blob.to_vec();
        blob.resize(length, 0);
        let blob = blob.into();
        if length != record.blob.len() {
            assert_eq!(
                take(
                    &mut world,
                    1,
                    &SealedRecord {
                        tag: record.tag,
                        blob
                    }
                ),
                0,
                "length {length}"
            );
        }
    }
}

#[test]
fn records_start_above_the_stored_counter() {
    let mut mesh = Mesh::new(spec(1, &[2]), [0; 32], Time::ZERO);
    mesh.set_record_counter_floor(500);
    mesh.handle_local_addresses(&host(&["203.0.113.1"]), Time::ZERO);
    assert!(mesh.record_counter() == 501, "{}", mesh.record_counter());
}

#[test]
fn a_peer_key_of_low_order_is_named_as_the_problem() {
    let mut spec = spec(1, &[2]);
    spec.peers[0].key = natpunch_types::PeerKey::from_bytes([0; 32]);
    let mesh = Mesh::new(spec, [0; 32], Time::ZERO);
    let status = mesh.status(Time::ZERO);
    assert!(
        status.peers[0].state.to_string().contains("public key"),
        "{}",
        status.peers[0].state
    );
}

#[test]
fn own_key_among_the_peers_is_no_peer() {
    let mut spec = spec(1, &[2]);
    spec.private_key = SecretKey::from_bytes([2; 32]);
    assert!(
        Mesh::new(spec, [0; 32], Time::ZERO)
            .status(Time::ZERO)
            .peers
            .is_empty()
    );
}

/// A node that knows nobody's address, and a ping of its peer that names no session: one that can
/// be replayed for ever.
fn replayable() -> (World, Vec<u8>) {
    let mut world = World::pair();
    world.nodes[0].mesh_up = false;
    world.tell(1, 0);
    world.run(secs(1));
    let ping = world.nodes[1].sent[0].1.payload.clone();
    world.nodes[1].up = false;
    world.nodes[0].mesh_up = true;
    (world, ping)
}

#[test]
fn a_replayed_ping_costs_one_answer_of_its_size_and_teaches_nothing() {
    let (mut world, ping) = replayable();
    let before = world.status(0);
    for round in 1..=240 {
        let start = world.now;
        world.inject(0, addr(&format!("198.51.100.{round}:9")), &ping);
        world.run(ms(250));
        let sent: usize = world.nodes[0]
            .sent
            .iter()
            .filter(|(at, _)| *at >= start)
            .map(|(_, t)| t.payload.len())
            .sum();
        assert!(sent <= ping.len(), "{sent} bytes for {}", ping.len());
    }
    let after = world.status(0);
    assert_eq!(
        (&before.state, &before.candidates),
        (&after.state, &after.candidates)
    );
}

#[test]
fn a_flood_of_replays_is_answered_at_a_bounded_rate_and_starves_nobody() {
    let (mut world, ping) = replayable();
    let start = world.now;
    for _ in 0..5000 {
        world.inject(0, addr("198.51.100.66:9"), &ping);
        world.run(ms(1));
    }
    let sent = world.sent_since(0, start);
    assert!(sent <= 32 + 5 * 8 + 1, "{sent} datagrams in 5 s");
    // The real peer comes, while the flood goes on.
    world.nodes[1].up = true;
    world.tell_both();
    for _ in 0..3000 {
        world.inject(0, addr("198.51.100.66:9"), &ping);
        world.run(ms(1));
    }
    assert_eq!(
        world.status(0).state,
        PeerState::Connected,
        "{:#?}",
        world.nodes[0].events
    );
}

#[test]
fn a_stun_server_that_names_the_peers_address_as_ours_silences_nobody() {
    let mut world = World::pair();
    let liar = addr("198.51.100.99:3478");
    let peers_address = world.address(1);
    world.with(0, |mesh, now| mesh.handle_stun_servers(&[liar], now));
    let request = world.nodes[0]
        .sent
        .iter()
        .find(|(_, sent)| sent.path.remote == liar)
        .unwrap()
        .1
        .payload
        .clone();
    let answer = natpunch_core::stun::respond(&request, peers_address).unwrap();
    world.with(0, |mesh, now| {
        mesh.handle_datagram(PathId::wireguard(liar), None, &answer, now)
    });
    assert!(
        world.nodes[0]
            .mesh
            .status(world.now)
            .local
            .iter()
            .any(|local| local.address == peers_address),
        "believed"
    );
    world.tell_both();
    world.connect();
}

// Any sequence of anything.

#[derive(Debug, Clone)]
enum Input {
    Candidate(std::net::SocketAddr),
    Datagram(std::net::SocketAddr, Vec<u8>),
    Captured(std::net::SocketAddr, usize),
    Record(Vec<u8>),
    Device(Option<std::net::SocketAddr>, u64, u64),
    Network,
    Set(bool),
    Wait(u64),
}

fn input() -> impl Strategy<Value = Input> {
    let address = (any::<std::net::IpAddr>(), any::<u16>()).prop_map(std::net::SocketAddr::from);
    prop_oneof![
        address.clone().prop_map(Input::Candidate),
        (address.clone(), prop::collection::vec(any::<u8>(), 0..300))
            .prop_map(|(from, data)| Input::Datagram(from, data)),
        (address.clone(), any::<usize>()).prop_map(|(from, which)| Input::Captured(from, which)),
        prop::collection::vec(any::<u8>(), 0..400).prop_map(Input::Record),
        (prop::option::of(address), 0..5_u64, 0..5_u64)
            .prop_map(|(at, hs, rx)| Input::Device(at, hs, rx)),
        Just(Input::Network),
        any::<bool>().prop_map(Input::Set),
        (0..100_000_u64).prop_map(Input::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// No input in any order makes it panic, stand still, or send where no peer can be.
    #[test]
    fn any_sequence_of_inputs_is_survived(inputs in prop::collection::vec(input(), 1..80)) {
        let (low, high) = low_high();
        let (source, datagrams) = captured();
        drop(source);
        let mut mesh = Mesh::new(spec(low, &[high]), [9; 32], Time::ZERO);
        let key = public(high);
        let mut now = Time::from_millis(1);
        let mut last_set = None;
        for input in inputs {
            match input {
                Input::Candidate(address) => mesh.handle_candidate(key, candidate(address), now),
                Input::Datagram(from, data) => mesh.handle_datagram(PathId::wireguard(from), None, &data, now),
                Input::Captured(from, which) => mesh.handle_datagram(PathId::wireguard(from), None, &datagrams[which % datagrams.len()], now),
                Input::Record(blob) => {
                    let record = SealedRecord { tag: RecordTag([1; 16]), blob: blob.into() };
                    mesh.handle_record(&InstanceName::new("x"), &record, now)
                },
                Input::Device(endpoint, handshake, rx) => {
                    let mut row = row(key);
                    row.endpoint = endpoint;
                    row.last_handshake = (handshake > 0).then(|| secs(handshake));
                    row.rx_bytes = rx * 100;
                    mesh.handle_device(&natpunch_types::DeviceSnapshot { peers: vec![row], ..Default::default() }, now);
                }
                Input::Network => mesh.handle_network_change(now),
                Input::Set(ok) => if let Some(path) = last_set { mesh.handle_endpoint_set(key, path, ok, now) },
                Input::Wait(millis) => now += ms(millis),
            }
            for _ in 0..100 {
                mesh.handle_timeout(now);
                if mesh.poll_timeout().is_none_or(|at| at > now) { break }
            }
            prop_assert!(mesh.poll_timeout().is_none_or(|at| at > now), "time stands still");
            while let Some(transmit) = mesh.poll_transmit() {
                let class = natpunch_types::classify(transmit.path.remote.ip());
                prop_assert!(class != natpunch_types::AddressClass::Never, "{}", transmit.path.remote);
            }
            while let Some(command) = mesh.poll_command() {
                if let natpunch_core::Command::SetEndpoint { path, .. } = command { last_set = Some(path) }
            }
            while let Some(event) = mesh.poll_event() {
                let proven = matches!(event, Event::PathProven { .. });
                prop_assert!(!event.to_string().is_empty() && !proven);
            }
            let status = serde_json::to_string(&mesh.status(now)).unwrap();
            prop_assert!(status.contains("state"));
        }
    }
}
