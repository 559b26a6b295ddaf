//! What peers at rest cost the core.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    missing_docs
)]

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::time::{Duration, Instant};

use natpunch_core::{Command, KnownPath, Mesh, MeshSpec, PeerSpec, PeerState, PunchSpec, Time};
use natpunch_types::{
    Abilities, Ask, Candidate, CandidateKind, Connect, DevicePeer, DeviceSnapshot, HostAddress,
    HostNetwork, INITIATION_LEN, InstanceName, LinkRole, News, PathId, PeerKey, Pins, Running,
    SecretKey, resting_endpoint, sign_handshake,
};

fn key(number: u32) -> PeerKey {
    let mut bytes = [7; 32];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    SecretKey::from_bytes(bytes).public_key()
}

/// A node with this many peers on demand, which is on the internet.
fn mesh(peers: u32, now: Time) -> (Mesh, DeviceSnapshot) {
    let keys: Vec<PeerKey> = (0..peers).map(key).collect();
    let spec = MeshSpec {
        private_key: SecretKey::from_bytes([9; 32]),
        listen_port: 51_820,
        mtu: 1_420,
        overlay: Vec::new(),
        peers: keys
            .iter()
            .map(|key| PeerSpec {
                connect: Connect::OnDemand,
                persistent_keepalive: Some(Duration::from_secs(25)),
                adapts_keepalive: true,
                ..PeerSpec::new("peer", *key)
            })
            .collect(),
        punch: PunchSpec::default(),
    };
    let mut mesh = Mesh::new(spec, [1; 32], now);
    let snapshot = DeviceSnapshot {
        peers: keys.iter().map(|key| DevicePeer::new(*key)).collect(),
        ..DeviceSnapshot::default()
    };
    mesh.handle_device(&snapshot, now);
    let address = HostAddress {
        ip: "198.51.100.1".parse().unwrap(),
        role: LinkRole::DefaultRoute,
    };
    let network = HostNetwork {
        addresses: vec![address],
        ..HostNetwork::default()
    };
    mesh.handle_local_addresses(&network, now);
    (mesh, snapshot)
}

/// What was sent and asked until nothing is left: datagrams, and records in the last publication.
fn drain(mesh: &mut Mesh) -> (usize, Option<usize>) {
    let (mut sent, mut published) = (0, None);
    while mesh.poll_transmit().is_some() {
        sent += 1;
    }
    while let Some(command) = mesh.poll_command() {
        if let Command::Ask(Ask::Records(records)) = command {
            published = Some(records.len());
        }
    }
    while mesh.poll_event().is_some() {}
    (sent, published)
}

#[test]
fn only_the_peer_that_is_woken_is_told_where_this_node_is_and_only_it_is_probed() {
    let mut now = Time::from_millis(1_000);
    let (mut mesh, snapshot) = mesh(200, now);
    assert_eq!(drain(&mut mesh).1, Some(0), "nobody is told");
    for _ in 0..600 {
        now += Duration::from_secs(1);
        mesh.handle_device(&snapshot, now);
        mesh.handle_timeout(now);
        assert_eq!(drain(&mut mesh).0, 0);
    }
    // Records were renewed at this very moment, and go out at most every 50 ms.
    now += Duration::from_secs(1);
    let woken = key(7);
    let mut initiation = vec![0; INITIATION_LEN];
    initiation[0] = 1;
    sign_handshake(&woken, &mut initiation);
    mesh.handle_initiation(resting_endpoint(&woken), &initiation, now);
    assert_eq!(
        drain(&mut mesh).1,
        Some(1),
        "the woken peer is told, at once"
    );
    let status = mesh.status(now).peers;
    let awake: Vec<_> = status
        .iter()
        .filter(|peer| peer.state != PeerState::Resting)
        .collect();
    assert_eq!((awake.len(), awake[0].key), (1, woken));
    // Nobody answers, and nobody talks: it rests again.
    for _ in 0..125 {
        now += Duration::from_secs(1);
        mesh.handle_device(&snapshot, now);
        mesh.handle_timeout(now);
        drain(&mut mesh);
    }
    assert!(
        mesh.status(now)
            .peers
            .iter()
            .all(|peer| peer.state == PeerState::Resting)
    );
}

#[test]
fn where_a_peer_at_rest_was_is_known_from_earlier_runs_or_the_mesh_file() {
    let mut now = Time::from_millis(1_000);
    let (mut mesh, _) = mesh(4, now);
    let at = |text: &str| PathId::wireguard(text.parse().unwrap());
    let (lan, public) = (at("192.168.7.7:1"), at("203.0.113.7:1"));
    let pinned = PathId::from_port(NonZeroU16::new(61_000).unwrap(), at("203.0.113.8:1").remote);
    let known = |peer: u32, path| KnownPath {
        peer: key(peer),
        path,
        kind: CandidateKind::Reflexive,
    };
    let paths = [
        known(0, public),
        known(0, lan),
        known(1, public),
        known(2, pinned),
    ];
    mesh.handle_pins(Pins::Available, now);
    mesh.handle_remembered(&paths, now);
    let instance = InstanceName::new("static");
    let running = Running {
        abilities: Abilities::default(),
        run: 1,
    };
    mesh.handle_instances([(instance.clone(), running)].into(), now);
    for peer in [1, 3] {
        let candidate = Candidate {
            address: "203.0.113.9:1".parse().unwrap(),
            kind: CandidateKind::Mapped,
            lifetime: Duration::from_secs(86_400),
        };
        let peer = key(peer);
        mesh.handle_news(&instance, News::Candidate { peer, candidate }, now);
    }
    let stated = at("203.0.113.9:1");
    let expected = BTreeMap::from([(key(0), lan), (key(1), public), (key(3), stated)]);
    for _ in 0..2 {
        assert_eq!(mesh.last_paths().collect::<BTreeMap<_, _>>(), expected);
        // They are no candidates any more, and still the best that is known.
        now += Duration::from_secs(1_000);
        mesh.handle_timeout(now);
        assert_eq!(drain(&mut mesh).0, 0, "nobody is asked");
    }
}

/// Memory of this process, in MB.
fn memory() -> f64 {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: f64 = status.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096.0 / 1e6
}

#[test]
#[ignore = "a measurement: cargo test -p natpunch-core --test demand -- --ignored --nocapture"]
fn measure_ten_thousand_peers_at_rest() {
    let mut now = Time::from_millis(1_000);
    let (before, start) = (memory(), Instant::now());
    let (mut mesh, snapshot) = mesh(10_000, now);
    drain(&mut mesh);
    println!(
        "measured: core, 10,000 peers at rest: made in {:.2} s, {:.0} MB",
        start.elapsed().as_secs_f64(),
        memory() - before
    );
    let start = Instant::now();
    let mut sent = 0;
    for _ in 0..60 {
        now += Duration::from_secs(1);
        mesh.handle_device(&snapshot, now);
        mesh.handle_timeout(now);
        sent += drain(&mut mesh).0;
    }
    println!(
        "measured: a minute at rest: {:.1} ms for each reading of the device, {sent} datagrams",
        start.elapsed().as_secs_f64() * 1e3 / 60.0
    );
    let start = Instant::now();
    for number in 0..20 {
        let woken = key(number);
        let mut initiation = vec![0; INITIATION_LEN];
        initiation[0] = 1;
        sign_handshake(&woken, &mut initiation);
        mesh.handle_initiation(resting_endpoint(&woken), &initiation, now);
        drain(&mut mesh);
        now += Duration::from_millis(100);
    }
    println!(
        "measured: waking one of them: {:.1} ms",
        start.elapsed().as_secs_f64() * 1e3 / 20.0
    );
}
