//! Pins on real devices: packets leave from another port than WireGuard's and come back to it.
//!
//! The two ends are those of `traffic.rs`. Where b has a firewall, it stands for a NAT that lets in
//! one port of a only.

use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroU16;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use natpunch_wg::{BackendChoice, Interface, PinMethod, PinSet, PinWatch, can_pin};

use crate::common::until;
use crate::traffic::{Pair, Pinger, connect, seen_by_b};

#[test]
fn embedded_pins() {
    claims(BackendChoice::Userspace);
}

#[test]
fn embedded_pins_by_the_device_itself() {
    claims_without_nftables(BackendChoice::Userspace, PinMethod::Device);
}

/// wireguard-go behaves as the kernel does: nothing but its endpoint leads to the forwarder.
#[test]
fn external_pins_by_a_forwarder() {
    claims_without_nftables(BackendChoice::External, PinMethod::Forwarder);
    a_forwarder_that_was_killed_is_told_and_replaced(BackendChoice::External);
}

#[test]
#[ignore = "needs kernel WireGuard: `make test-vm` runs it"]
fn kernel_pins_by_a_forwarder() {
    claims_without_nftables(BackendChoice::Kernel, PinMethod::Forwarder);
    a_forwarder_that_was_killed_is_told_and_replaced(BackendChoice::Kernel);
}

/// Run by `make test-vm`, whose kernel has WireGuard.
#[test]
#[ignore = "needs kernel WireGuard: `make test-vm` runs it"]
fn kernel_pins() {
    claims(BackendChoice::Kernel);
}

/// Run by `make test-vm`: more than three minutes, which is what a session lives at most.
#[test]
#[ignore = "takes 200 s: `make test-vm` runs it"]
fn kernel_rekeys_over_a_pin() {
    sessions_are_renewed_over_a_pin(BackendChoice::Kernel);
}

#[test]
#[ignore = "takes 200 s"]
fn embedded_rekeys_over_a_pin() {
    sessions_are_renewed_over_a_pin(BackendChoice::Userspace);
}

#[test]
#[ignore = "needs kernel WireGuard: `make test-vm` runs it"]
fn kernel_carries_as_much_over_a_pin() {
    throughput_is_that_without_a_pin(BackendChoice::Kernel);
}

#[test]
#[ignore = "a measurement of 20 s"]
fn embedded_carries_as_much_over_a_pin() {
    throughput_is_that_without_a_pin(BackendChoice::Userspace);
}

fn claims(backend: BackendChoice) {
    a_pinned_port_is_the_only_one_that_the_peer_meets(backend);
    the_side_without_a_pin_may_begin(backend);
    a_pin_holds_over_ipv6(backend);
    other_peers_meet_wireguards_own_port(backend);
    a_pin_follows_wireguard_to_another_port(backend);
    a_flush_of_the_rule_set_is_told_and_healed_without_a_handshake(backend);
    the_pins_of_a_dead_agent_go_on_and_are_taken_over(backend);
    a_table_that_is_not_there_is_made_or_forgotten(backend);
    down_removes_the_table_and_no_other(backend);
}

fn pins(list: &[(&str, u16)]) -> PinSet {
    let pin = |(remote, port): &(&str, u16)| {
        let remote: SocketAddr = remote.parse().unwrap();
        (remote, NonZeroU16::new(*port).unwrap())
    };
    list.iter().map(pin).collect()
}

fn set(pair: &mut Pair, list: &[(&str, u16)]) {
    set_by(PinMethod::Nftables, pair, list);
}

fn set_by(method: PinMethod, pair: &mut Pair, list: &[(&str, u16)]) {
    let pins = pins(list);
    pair.with(move |interface| interface.set_pins(method, &pins))
        .unwrap();
}

/// From which port b sees a.
fn port_at_b(pair: &Pair) -> u16 {
    seen_by_b(pair).endpoint.expect("b has heard of a").port()
}

/// b lets in nothing but what comes from this port of a.
fn only_from(pair: &Pair, port: u16) {
    for line in [
        "nft add table inet nat",
        "nft add chain inet nat input { type filter hook input priority 0 ; }",
        &format!("nft add rule inet nat input ip saddr 192.0.2.1 udp sport != {port} drop"),
    ] {
        pair.b.sh(line);
    }
}

fn tables(pair: &Pair) -> String {
    pair.a.sh("nft list tables")
}

fn a_pinned_port_is_the_only_one_that_the_peer_meets(backend: BackendChoice) {
    let mut pair = Pair::new(backend);
    only_from(&pair, 61_201);
    set(&mut pair, &[("192.0.2.2:51820", 61_201)]);
    let pinger = Pinger::start(&pair);
    pair.set_endpoint("192.0.2.2:51820", true);
    pinger.next_reply();
    assert_eq!(port_at_b(&pair), 61_201);
    assert_eq!(pair.peer().endpoint.unwrap().port(), 51_820);
    // Another one in its place: both directions move at once.
    pair.b.sh("nft flush ruleset");
    only_from(&pair, 65_535);
    set(&mut pair, &[("192.0.2.2:51820", 65_535)]);
    pinger.next_reply();
    assert_eq!(port_at_b(&pair), 65_535);
}

fn the_side_without_a_pin_may_begin(backend: BackendChoice) {
    let mut pair = Pair::new(backend);
    only_from(&pair, 61_201);
    set(&mut pair, &[("192.0.2.2:51820", 61_201)]);
    let (spec, key) = (pair.spec_b.clone(), pair.spec_b.peers[0].key);
    pair.b
        .run(move || {
            let mut b = Interface::open(&spec)?;
            b.set_endpoint(&key, "192.0.2.1:61201".parse().unwrap(), true)
        })
        .unwrap();
    until("b has shaken hands with a through the pin", || {
        seen_by_b(&pair).last_handshake.is_some()
    });
    assert_eq!(port_at_b(&pair), 61_201);
}

fn a_pin_holds_over_ipv6(backend: BackendChoice) {
    let mut pair = Pair::new(backend);
    pair.a.sh("ip address add fd01::1/64 dev veth0 nodad");
    pair.b.sh("ip address add fd01::2/64 dev veth0 nodad");
    let pinger = Pinger::start(&pair);
    set(&mut pair, &[("[fd01::2]:51820", 61_206)]);
    pair.set_endpoint("[fd01::2]:51820", true);
    pinger.next_reply();
    assert_eq!(
        seen_by_b(&pair).endpoint,
        Some("[fd01::1]:61206".parse().unwrap())
    );
}

fn other_peers_meet_wireguards_own_port(backend: BackendChoice) {
    let mut pair = Pair::new(backend);
    let others = [
        ("192.0.2.3:51820", 61_203),
        ("192.0.2.2:51821", 61_204),
        ("192.0.2.77:51820", 61_203),
    ];
    set(&mut pair, &others);
    let pinger = Pinger::start(&pair);
    pair.set_endpoint("192.0.2.2:51820", true);
    pinger.next_reply();
    assert_eq!(port_at_b(&pair), 51_820);
    // Among them it has its own.
    let all = [&others[..], &[("192.0.2.2:51820", 61_202)]].concat();
    set(&mut pair, &all);
    until("b follows to the pin", || port_at_b(&pair) == 61_202);
    pinger.next_reply();
    set(&mut pair, &others);
    until("b follows back", || port_at_b(&pair) == 51_820);
    pinger.next_reply();
}

fn a_pin_follows_wireguard_to_another_port(backend: BackendChoice) {
    let mut pair = Pair::new(backend);
    only_from(&pair, 61_201);
    set(&mut pair, &[("192.0.2.2:51820", 61_201)]);
    connect(&mut pair);
    pair.spec_a.listen_port = 51_999;
    pair.apply();
    let pinger = Pinger::start(&pair);
    pinger.next_reply();
    assert_eq!(port_at_b(&pair), 61_201);
}

fn a_flush_of_the_rule_set_is_told_and_healed_without_a_handshake(backend: BackendChoice) {
    let mut pair = Pair::new(backend);
    only_from(&pair, 61_201);
    set(&mut pair, &[("192.0.2.2:51820", 61_201)]);
    connect(&mut pair);
    let name = pair.spec_a.name.clone();
    let intact = pair.with(|interface| interface.heal_pins()).unwrap();
    assert!(!intact, "nothing is to be healed");
    let told = pair.a.run(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let watch = PinWatch::open(PinMethod::Nftables, &name, Path::new(""));
            let mut watch = watch.unwrap().unwrap();
            let flushed = std::process::Command::new("nft")
                .args(["flush", "ruleset"])
                .status();
            assert!(flushed.unwrap().success());
            tokio::time::timeout(Duration::from_secs(5), watch.changed()).await
        })
    });
    told.expect("the kernel tells at once").unwrap();
    let before = pair.peer().last_handshake;
    assert!(pair.with(|interface| interface.heal_pins()).unwrap());
    Pinger::start(&pair).next_reply();
    assert_eq!(pair.peer().last_handshake, before);
    // One direction is no pin.
    let table = format!("natpunch_{}", pair.spec_a.name);
    pair.a.sh(&format!("nft flush map inet {table} in4"));
    assert!(pair.with(|interface| interface.heal_pins()).unwrap());
    pair.a.sh(&format!("nft flush chain inet {table} leaving"));
    assert!(pair.with(|interface| interface.heal_pins()).unwrap());
    assert!(!pair.with(|interface| interface.heal_pins()).unwrap());
}

fn the_pins_of_a_dead_agent_go_on_and_are_taken_over(backend: BackendChoice) {
    let mut pair = Pair::new(backend);
    only_from(&pair, 61_201);
    set(&mut pair, &[("192.0.2.2:51820", 61_201)]);
    connect(&mut pair);
    // The next agent opens what the dead one has left.
    let spec = pair.spec_a.clone();
    let pinger = Pinger::start(&pair);
    let found = pair.with(move |interface| {
        *interface = Interface::open(&spec).unwrap();
        interface.pins().clone()
    });
    assert_eq!(found, pins(&[("192.0.2.2:51820", 61_201)]));
    pinger.next_reply();
    // It keeps them, or it takes them away.
    set(&mut pair, &[("192.0.2.2:51820", 61_201)]);
    assert!(!pair.with(|interface| interface.heal_pins()).unwrap());
    pinger.next_reply();
    set(&mut pair, &[]);
    assert!(!tables(&pair).contains("natpunch"), "{}", tables(&pair));
}

/// As when the host lost power between the note that pins are ours and their table, or somebody
/// flushed the rule set while no agent ran.
fn a_table_that_is_not_there_is_made_or_forgotten(backend: BackendChoice) {
    let mut pair = Pair::new(backend);
    for again in [false, true] {
        set(&mut pair, &[("192.0.2.2:51820", 61_201)]);
        pair.a.sh("nft flush ruleset");
        let spec = pair.spec_a.clone();
        let found = pair.with(move |interface| {
            *interface = Interface::open(&spec).unwrap();
            interface.pins().clone()
        });
        assert_eq!(found, PinSet::new());
        if again {
            set(&mut pair, &[("192.0.2.2:51820", 61_202)]);
            assert!(tables(&pair).contains("natpunch"));
        }
        set(&mut pair, &[]);
        assert_eq!(tables(&pair), "");
    }
}

fn down_removes_the_table_and_no_other(backend: BackendChoice) {
    for without_file in [false, true] {
        let mut pair = Pair::new(backend);
        for line in [
            "nft add table ip filter",
            "nft add table inet natpunch_other",
            "nft add map inet natpunch_other in4 { type ipv4_addr : inet_service ; }",
        ] {
            pair.a.sh(line);
        }
        let before = pair.a.sh("nft list ruleset");
        pair.a.run(can_pin).unwrap();
        assert_eq!(
            pair.a.sh("nft list ruleset"),
            before,
            "a trial writes nothing"
        );
        set(&mut pair, &[("192.0.2.2:51820", 61_201)]);
        assert_ne!(pair.a.sh("nft list ruleset"), before);
        let spec = pair.spec_a.clone();
        if without_file {
            let file = format!("{}.state.json", spec.name);
            std::fs::remove_file(spec.runtime_dir.join(file)).unwrap();
        }
        let removed = pair
            .a
            .run(move || natpunch_wg::down(&spec.name, &spec.owner, &spec.runtime_dir))
            .unwrap();
        assert_eq!(removed.pins, 1);
        assert!(removed.to_string().contains("1 pins"), "{removed}");
        assert_eq!(pair.a.sh("nft list ruleset"), before);
    }
}

/// What holds of pins that nftables does not make: of a device whose process binds the ports, and of
/// a forwarder.
fn claims_without_nftables(backend: BackendChoice, method: PinMethod) {
    let mut pair = Pair::new(backend);
    let pinger = Pinger::start(&pair);
    only_from(&pair, 61_201);
    set_by(method, &mut pair, &[("192.0.2.2:51820", 61_201)]);
    connect(&mut pair);
    assert_eq!(port_at_b(&pair), 61_201);
    assert_eq!(tables(&pair), "", "nftables is left alone");
    // As anybody sees it the endpoint is the peer's.
    let endpoint = pair.peer().endpoint;
    assert_eq!(endpoint, Some("192.0.2.2:51820".parse().unwrap()));
    // Another port in its place: both directions move at once.
    pair.b.sh("nft flush ruleset");
    only_from(&pair, 65_535);
    let before = pair.peer().last_handshake;
    set_by(method, &mut pair, &[("192.0.2.2:51820", 65_535)]);
    pair.set_endpoint("192.0.2.2:51820", true);
    pinger.next_reply();
    assert_eq!(port_at_b(&pair), 65_535);
    // WireGuard's own port may change beneath it.
    pair.spec_a.listen_port = 51_999;
    pair.apply();
    pinger.next_reply();
    assert_eq!(port_at_b(&pair), 65_535);
    assert_eq!(pair.peer().last_handshake, before, "the session goes on");
    // The next agent finds the pin, however it was made.
    let spec = pair.spec_a.clone();
    let found = pair.with(move |interface| {
        *interface = Interface::open(&spec).unwrap();
        (interface.pin_method(), interface.pins().clone())
    });
    assert_eq!(found, (method, pins(&[("192.0.2.2:51820", 65_535)])));
    assert!(!pair.with(|interface| interface.heal_pins()).unwrap());
    pinger.next_reply();
    a_port_of_another_program_is_refused(&mut pair, method);
    pinger.next_reply();
    // From another way to make them to nftables, and to nothing.
    set(&mut pair, &[("192.0.2.2:51820", 65_535)]);
    pair.set_endpoint("192.0.2.2:51820", true);
    pinger.next_reply();
    set_by(method, &mut pair, &[("192.0.2.2:51820", 65_535)]);
    pair.set_endpoint("192.0.2.2:51820", true);
    pinger.next_reply();
    assert_eq!(tables(&pair), "");
    pair.b.sh("nft flush ruleset");
    set_by(method, &mut pair, &[]);
    pair.set_endpoint("192.0.2.2:51820", true);
    until("b sees WireGuard's own port", || {
        port_at_b(&pair) == pair.spec_a.listen_port
    });
    assert_eq!(pin_sockets(&pair), "", "no port is held any more");
}

/// The sockets of a on pinned ports, and on a forwarder's address.
fn pin_sockets(pair: &Pair) -> String {
    let all = pair.a.sh("ss -Huan");
    let of_pins = |line: &&str| line.contains(":61201 ") || line.contains(":65535 ");
    let lines = all.lines();
    let left: Vec<_> = lines
        .filter(|line| of_pins(line) || line.contains("127.78.82.1"))
        .collect();
    left.join("\n")
}

fn a_port_of_another_program_is_refused(pair: &mut Pair, method: PinMethod) {
    let other = pair
        .a
        .run(|| std::net::UdpSocket::bind("[::]:61300").unwrap());
    let before = pair.with(|interface| interface.pins().clone());
    let more = pins(&[("192.0.2.2:51820", 65_535), ("192.0.2.3:51820", 61_300)]);
    let refused = pair.with(move |interface| interface.set_pins(method, &more));
    let text = refused.unwrap_err().to_string();
    assert!(text.contains("Address already in use"), "{text}");
    assert_eq!(pair.with(|interface| interface.pins().clone()), before);
    drop(other);
}

fn a_forwarder_that_was_killed_is_told_and_replaced(backend: BackendChoice) {
    let mut pair = Pair::new(backend);
    only_from(&pair, 61_201);
    set_by(
        PinMethod::Forwarder,
        &mut pair,
        &[("192.0.2.2:51820", 61_201)],
    );
    connect(&mut pair);
    let before = pair.peer().last_handshake;
    let (name, directory) = (pair.spec_a.name.clone(), pair.spec_a.runtime_dir.clone());
    let socket = directory.join(format!("{name}.pins.sock"));
    let told = pair.a.run(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let watch = PinWatch::open(PinMethod::Forwarder, &name, &directory);
            let mut watch = watch.unwrap().unwrap();
            kill_listener(&socket);
            tokio::time::timeout(Duration::from_secs(5), watch.changed()).await
        })
    });
    assert!(told.expect("it is told at once").is_err());
    assert!(pair.with(|interface| interface.heal_pins()).unwrap());
    Pinger::start(&pair).next_reply();
    assert_eq!(port_at_b(&pair), 61_201);
    assert_eq!(pair.peer().last_handshake, before);
}

/// Kills the process that listens at a Unix socket.
fn kill_listener(socket: &Path) {
    use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
    let stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
    let pid = getsockopt(&stream, PeerCredentials).unwrap().pid();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL).unwrap();
}

fn sessions_are_renewed_over_a_pin(backend: BackendChoice) {
    const TIME: Duration = Duration::from_secs(200);
    let mut pair = Pair::new(backend);
    only_from(&pair, 61_201);
    set(&mut pair, &[("192.0.2.2:51820", 61_201)]);
    connect(&mut pair);
    let first = pair.peer().last_handshake;
    let pinger = Pinger::start(&pair);
    let start = Instant::now();
    while start.elapsed() < TIME {
        // It fails after 30 s without a reply.
        pinger.next_reply();
        thread::sleep(Duration::from_millis(200));
    }
    let last = pair.peer().last_handshake;
    let later = last.zip(first).map(|(last, first)| last - first);
    eprintln!("measured: {backend}: the last handshake over a pin came {later:?} after the first");
    assert!(later > Some(Duration::from_secs(100)), "{later:?}");
    assert_eq!(port_at_b(&pair), 61_201);
}

/// Bytes a second of one TCP connection through the tunnel, from a to b or back.
fn throughput(pair: &Pair, to_b: bool) -> f64 {
    const TIME: Duration = Duration::from_secs(1);
    let listener = pair.b.run(|| TcpListener::bind("10.5.0.2:0").unwrap());
    let at_b = listener.local_addr().unwrap();
    let at_a = pair.a.run(move || TcpStream::connect(at_b).unwrap());
    let (at_b, _) = listener.accept().unwrap();
    let (mut from, mut to) = if to_b { (at_a, at_b) } else { (at_b, at_a) };
    let received = thread::spawn(move || io::copy(&mut to, &mut io::sink()).unwrap());
    let start = Instant::now();
    let bytes = vec![0x5a; 64 << 10];
    while start.elapsed() < TIME {
        from.write_all(&bytes).unwrap();
    }
    drop(from);
    received.join().unwrap() as f64 / start.elapsed().as_secs_f64()
}

fn throughput_is_that_without_a_pin(backend: BackendChoice) {
    let mut pair = Pair::new(backend);
    connect(&mut pair);
    for to_b in [true, false] {
        // Alternating, since the machine is not always as busy; the median of the ratios.
        let mut ratios: Vec<f64> = (0..7)
            .map(|_| {
                set(&mut pair, &[]);
                let without = throughput(&pair, to_b);
                set(&mut pair, &[("192.0.2.2:51820", 61_201)]);
                let pinned = throughput(&pair, to_b);
                assert_eq!(port_at_b(&pair), 61_201);
                pinned / without
            })
            .collect();
        ratios.sort_by(f64::total_cmp);
        eprintln!("measured: {backend}, to b {to_b}: pinned / unpinned {ratios:.2?}");
        // Wide, for busy machines; what a pin costs is some rule of nftables per packet.
        assert!(ratios[3] > 0.8, "{ratios:?}");
    }
}
