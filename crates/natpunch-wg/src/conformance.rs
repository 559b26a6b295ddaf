//! The claims that every [`Device`] keeps. Each backend's tests run all of them by [`run`].
//!
//! They are about configuration only. What needs a peer at the other end (sessions, counters,
//! kicks) is tested with traffic in `tests/traffic.rs`.

#![allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use natpunch_types::{DevicePeer, PeerKey, PresharedKey, SecretKey};

use crate::backend::BackendChoice;
use crate::device::{Device, DeviceChange, EndpointUpdate, PeerAction, PeerChange, set_endpoint};
use crate::diff::device_changes;
use crate::spec::{InterfaceSpec, PeerSpec};

type Claim = fn(&mut dyn Device);

/// Runs every claim on a device of its own; `make` gives one that has neither key nor peers.
///
/// # Panics
/// With the claim that the device breaks.
pub fn run<D: Device>(make: impl Fn() -> D) {
    let claims: [(&str, Claim); 12] = [
        (
            "what was written is read back",
            what_was_written_is_read_back,
        ),
        (
            "one peer added touches one peer",
            one_peer_added_touches_one_peer,
        ),
        (
            "a removed peer takes nothing with it",
            a_removed_peer_takes_nothing_with_it,
        ),
        (
            "an endpoint never resurrects a removed peer",
            an_endpoint_never_resurrects_a_removed_peer,
        ),
        (
            "an endpoint changes nothing but itself",
            an_endpoint_changes_nothing_but_itself,
        ),
        (
            "a kick leaves every setting as it was",
            a_kick_leaves_every_setting_as_it_was,
        ),
        (
            "a peer may have hundreds of networks",
            a_peer_may_have_hundreds_of_networks,
        ),
        (
            "a network belongs to the last that asked",
            a_network_belongs_to_the_last_that_asked,
        ),
        (
            "a preshared key is set, changed and removed",
            a_preshared_key_is_set_changed_and_removed,
        ),
        (
            "a keepalive is changed and switched off",
            a_keepalive_is_changed_and_switched_off,
        ),
        (
            "key, port and mark change under peers",
            key_port_and_mark_change_under_peers,
        ),
        ("two thousand peers", two_thousand_peers),
    ];
    for (claim, check) in claims {
        let mut device = make();
        tracing::info!(claim, kind = %device.kind(), "conformance");
        check(&mut device);
    }
}

/// A key that is told apart by a number.
fn key(n: u32) -> PeerKey {
    let mut bytes = [7; 32];
    bytes[..4].copy_from_slice(&n.to_be_bytes());
    // The kernel takes any 32 bytes for a public key, except its own.
    PeerKey::from_bytes(bytes)
}

fn peer(n: u32) -> PeerSpec {
    let [_, b, c, d] = n.to_be_bytes();
    PeerSpec {
        key: key(n),
        preshared_key: None,
        allowed_ips: vec![format!("10.{b}.{c}.{d}/32").parse().expect("an address")],
        persistent_keepalive: None,
        adapts_keepalive: false,
        route_mtu: crate::spec::RouteMtu::AsIs,
        endpoint: None,
        rests: false,
    }
}

fn spec(peers: Vec<PeerSpec>) -> InterfaceSpec {
    InterfaceSpec {
        name: "conformance".into(),
        private_key: SecretKey::from_bytes([0x48; 32]),
        // 0: devices of tests that run at the same time must not fight for a port.
        listen_port: 0,
        fwmark: 0,
        mtu: 1420,
        addresses: Vec::new(),
        routes: Vec::new(),
        default_route: None,
        peers,
        backend: BackendChoice::Auto,
        owner: "conformance".into(),
        adopt: false,
        device_program: PathBuf::new(),
        runtime_dir: PathBuf::new(),
    }
}

/// Applies as an interface does, and demands that nothing remains to be done.
fn apply(device: &mut dyn Device, spec: &InterfaceSpec) -> DeviceChange {
    let before = device.get().expect("get");
    let ours: BTreeSet<_> = before.snapshot.peers.iter().map(|p| p.key).collect();
    let (change, _) = device_changes(spec, &before, &ours);
    device.configure(&change).expect("configure");
    let after = device.get().expect("get");
    let (rest, words) = device_changes(spec, &after, &ours);
    assert!(rest.is_empty(), "read back differs: {words:?}");
    change
}

fn peers(device: &mut dyn Device) -> Vec<DevicePeer> {
    device.get().expect("get").snapshot.peers
}

fn what_was_written_is_read_back(device: &mut dyn Device) {
    let mut one = peer(1);
    one.preshared_key = Some(PresharedKey::from_bytes([3; 32]));
    one.persistent_keepalive = Some(Duration::from_secs(25));
    one.endpoint = Some("192.0.2.1:7".parse().expect("an endpoint"));
    one.allowed_ips
        .push("fd00::/64".parse().expect("a network"));
    let mut two = peer(2);
    two.endpoint = Some("[2001:db8::1]:7".parse().expect("an endpoint"));
    let spec = spec(vec![one.clone(), two.clone()]);
    apply(device, &spec);
    let state = device.get().expect("get");
    assert_eq!(
        state.snapshot.public_key,
        Some(spec.private_key.public_key())
    );
    let found = state.snapshot.peer(&one.key).expect("the first peer");
    assert_eq!(found.endpoint, one.endpoint);
    assert_eq!(found.persistent_keepalive, one.persistent_keepalive);
    assert!(found.has_preshared_key);
    assert_eq!(found.last_handshake, None);
    assert_eq!(
        state
            .snapshot
            .peer(&two.key)
            .expect("the second peer")
            .endpoint,
        two.endpoint
    );
    assert!(
        apply(device, &spec).is_empty(),
        "a second apply has nothing to do"
    );
}

fn one_peer_added_touches_one_peer(device: &mut dyn Device) {
    let mut spec = spec((1..=20).map(peer).collect());
    apply(device, &spec);
    let before = peers(device);
    spec.peers.insert(7, peer(100));
    let change = apply(device, &spec);
    assert_eq!(change.peers.len(), 1);
    let mut after = peers(device);
    after.retain(|p| p.key != key(100));
    assert_eq!(after, before);
}

fn a_removed_peer_takes_nothing_with_it(device: &mut dyn Device) {
    let mut spec = spec((1..=20).map(peer).collect());
    apply(device, &spec);
    let mut before = peers(device);
    spec.peers.retain(|p| p.key != key(5));
    let change = apply(device, &spec);
    assert_eq!(change.peers.len(), 1);
    before.retain(|p| p.key != key(5));
    assert_eq!(peers(device), before);
}

fn an_endpoint_never_resurrects_a_removed_peer(device: &mut dyn Device) {
    let mut spec = spec(vec![peer(1), peer(2)]);
    apply(device, &spec);
    spec.peers.retain(|p| p.key != key(2));
    apply(device, &spec);
    let endpoint = "192.0.2.1:7".parse().expect("an endpoint");
    for kick in [false, true] {
        let outcome = set_endpoint(device, &key(2), endpoint, kick).expect("set_endpoint");
        assert_eq!(outcome, EndpointUpdate::NoSuchPeer);
    }
    // And the message itself, for an update that was under way when the peer went.
    let update = PeerChange {
        endpoint: Some(endpoint),
        ..PeerChange::new(key(2), PeerAction::Update)
    };
    device
        .configure(&DeviceChange {
            peers: vec![update],
            ..DeviceChange::default()
        })
        .expect("configure");
    let keys: Vec<_> = peers(device).iter().map(|p| p.key).collect();
    assert_eq!(keys, [key(1)]);
}

fn an_endpoint_changes_nothing_but_itself(device: &mut dyn Device) {
    endpoint_update(device, false);
}

fn a_kick_leaves_every_setting_as_it_was(device: &mut dyn Device) {
    endpoint_update(device, true);
}

fn endpoint_update(device: &mut dyn Device, kick: bool) {
    let mut with_all = peer(1);
    with_all.preshared_key = Some(PresharedKey::from_bytes([3; 32]));
    with_all.persistent_keepalive = Some(Duration::from_secs(25));
    with_all.allowed_ips = (0..=255)
        .map(|i| format!("10.9.{i}.0/24").parse().expect("a network"))
        .collect();
    let spec = spec(vec![with_all, peer(2), peer(3)]);
    apply(device, &spec);
    let before = device.get().expect("get");
    for target in [key(1), key(2)] {
        for endpoint in ["192.0.2.1:7", "[2001:db8::1]:9"] {
            let endpoint = endpoint.parse().expect("an endpoint");
            assert_eq!(
                set_endpoint(device, &target, endpoint, kick).expect("set_endpoint"),
                EndpointUpdate::Updated
            );
            assert_eq!(
                device
                    .get()
                    .expect("get")
                    .snapshot
                    .peer(&target)
                    .expect("the peer")
                    .endpoint,
                Some(endpoint)
            );
        }
    }
    let mut after = device.get().expect("get");
    for peer in &mut after.snapshot.peers {
        peer.endpoint = None;
        // A kick may have sent an initiation already.
        peer.tx_bytes = 0;
    }
    assert_eq!(after, before);
}

fn a_peer_may_have_hundreds_of_networks(device: &mut dyn Device) {
    let mut large = peer(1);
    large.allowed_ips = (0..700u32).map(|i| net(10, i)).collect();
    let mut spec = spec(vec![large, peer(2_000)]);
    apply(device, &spec);
    // Change some of many: both directions, still one peer.
    spec.peers[0].allowed_ips.drain(100..200);
    assert_eq!(apply(device, &spec).peers.len(), 1);
    spec.peers[0]
        .allowed_ips
        .extend((0..300).map(|i| net(11, i)));
    assert_eq!(apply(device, &spec).peers.len(), 1);
    assert_eq!(
        peers(device)
            .iter()
            .find(|p| p.key == key(1))
            .expect("the peer")
            .allowed_ips
            .len(),
        900
    );
}

fn net(first: u8, i: u32) -> IpNet {
    let [.., c, d] = i.to_be_bytes();
    format!("{first}.77.{c}.{d}/32").parse().expect("a network")
}

fn a_network_belongs_to_the_last_that_asked(device: &mut dyn Device) {
    let mut spec = spec(vec![peer(1), peer(2)]);
    apply(device, &spec);
    let moved = spec.peers[0].allowed_ips.remove(0);
    spec.peers[1].allowed_ips.push(moved);
    apply(device, &spec);
    // And by a change of the winner alone, which must also take it off the loser's list.
    let mut taker = PeerChange::new(key(1), PeerAction::Update);
    taker.allowed_ips = vec![moved];
    device
        .configure(&DeviceChange {
            peers: vec![taker],
            ..DeviceChange::default()
        })
        .expect("configure");
    let owners: Vec<_> = peers(device)
        .into_iter()
        .filter(|p| p.allowed_ips.contains(&moved))
        .map(|p| p.key)
        .collect();
    assert_eq!(owners, [key(1)]);
}

fn a_preshared_key_is_set_changed_and_removed(device: &mut dyn Device) {
    let mut spec = spec(vec![peer(1), peer(2)]);
    apply(device, &spec);
    for preshared in [Some([1; 32]), Some([2; 32]), None] {
        spec.peers[0].preshared_key = preshared.map(PresharedKey::from_bytes);
        assert_eq!(apply(device, &spec).peers.len(), 1);
        let state = device.get().expect("get");
        assert_eq!(
            state.preshared.get(&key(1)),
            spec.peers[0].preshared_key.as_ref()
        );
        assert_eq!(
            state.snapshot.peers[0].has_preshared_key,
            preshared.is_some()
        );
    }
}

fn a_keepalive_is_changed_and_switched_off(device: &mut dyn Device) {
    let mut spec = spec(vec![peer(1), peer(2)]);
    apply(device, &spec);
    for interval in [Some(25), Some(7), None] {
        spec.peers[0].persistent_keepalive = interval.map(Duration::from_secs);
        assert_eq!(apply(device, &spec).peers.len(), 1);
    }
    // Where it is adapted, another one is as good as long as it is on.
    spec.peers[0].adapts_keepalive = true;
    spec.peers[0].persistent_keepalive = Some(Duration::from_secs(25));
    assert_eq!(apply(device, &spec).peers.len(), 1);
    let longer = PeerChange {
        persistent_keepalive: Some(80),
        ..PeerChange::new(spec.peers[0].key, PeerAction::Update)
    };
    let change = DeviceChange {
        peers: vec![longer],
        ..DeviceChange::default()
    };
    device.configure(&change).expect("change the keepalive");
    assert!(apply(device, &spec).peers.is_empty());
    spec.peers[0].adapts_keepalive = false;
    assert_eq!(apply(device, &spec).peers.len(), 1);
}

fn key_port_and_mark_change_under_peers(device: &mut dyn Device) {
    let mut spec = spec(vec![peer(1), peer(2)]);
    apply(device, &spec);
    let before = peers(device);
    spec.fwmark = 0x4e50;
    assert!(apply(device, &spec).peers.is_empty());
    spec.fwmark = 0;
    assert!(apply(device, &spec).peers.is_empty());
    for _ in 0..3 {
        spec.listen_port = free_port();
        assert!(apply(device, &spec).peers.is_empty());
    }
    spec.private_key = SecretKey::from_bytes([0x50; 32]);
    assert!(apply(device, &spec).peers.is_empty());
    assert_eq!(peers(device), before);
}

fn free_port() -> u16 {
    let socket = std::net::UdpSocket::bind(("::", 0)).expect("bind a UDP socket");
    socket.local_addr().expect("its address").port()
}

fn two_thousand_peers(device: &mut dyn Device) {
    let mut spec = spec((0..2_000).map(peer).collect());
    apply(device, &spec);
    assert_eq!(peers(device).len(), 2_000);
    spec.peers.swap_remove(1_000);
    spec.peers.push(peer(5_000));
    assert_eq!(apply(device, &spec).peers.len(), 2);
}
