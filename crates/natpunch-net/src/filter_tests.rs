//! The program as data, run by an interpreter of classic BPF over frames that are put together byte
//! by byte.

use super::*;
use crate::packet::{parse_ipv4, parse_udp};

const PORT: u16 = 51820;
const SERVER_V4: &str = "198.51.100.7:3478";
const SERVER_V6: &str = "[2001:db8:ffff::7]:3478";

/// Runs a program over a packet; `start` is where the socket's view of it begins (0 with IPv4, the
/// UDP header with IPv6). True if it passes. A load that leaves the packet drops it, as in the
/// kernel (bpf_helpers of net/core/filter.c).
fn passes(program: &[Instruction], packet: &[u8], start: usize) -> bool {
    let view = &packet[start.min(packet.len())..];
    let load = |offset: u32, size: usize| -> Option<u32> {
        if offset == PACKET_TYPE {
            return Some(OUTGOING);
        }
        let bytes = match offset.checked_sub(NETWORK_HEADER) {
            Some(offset) => packet.get(offset as usize..offset as usize + size)?,
            None => view.get(offset as usize..offset as usize + size)?,
        };
        Some(
            bytes
                .iter()
                .fold(0, |word, byte| word << 8 | u32::from(*byte)),
        )
    };
    let (mut a, mut x, mut scratch, mut at) = (0_u32, 0_u32, [0_u32; 16], 0);
    loop {
        let Instruction { code, jt, jf, k } = program[at];
        at += 1;
        let mut branch = |condition: bool| at += usize::from(if condition { jt } else { jf });
        let loaded = match code {
            0x06 => return k != 0,
            0x15 => {
                branch(a == k);
                continue;
            }
            0x35 => {
                branch(a >= k);
                continue;
            }
            0x45 => {
                branch(a & k != 0);
                continue;
            }
            0x01 => {
                x = k;
                continue;
            }
            0x02 => {
                scratch[k as usize] = a;
                continue;
            }
            0xb1 => {
                let Some(byte) = load(k, 1) else { return false };
                x = (byte & 0xf) * 4;
                continue;
            }
            0x20 => load(k, 4),
            0x28 => load(k, 2),
            0x30 => load(k, 1),
            0x40 => load(x.wrapping_add(k), 4),
            0x48 => load(x.wrapping_add(k), 2),
            0x60 => Some(scratch[k as usize]),
            0x80 => Some(view.len() as u32),
            0x1c => Some(a.wrapping_sub(x)),
            code => panic!("no such instruction: {code:#x}"),
        };
        let Some(value) = loaded else { return false };
        a = value;
    }
}

fn rules(sources: &[&str]) -> Rules {
    Rules {
        port: PORT,
        sources: sources
            .iter()
            .map(|source| source.parse().unwrap())
            .collect(),
        nat64: None,
    }
}

fn udp(source: u16, destination: u16, payload: &[u8]) -> Vec<u8> {
    let mut segment = Vec::new();
    for field in [source, destination, 8 + payload.len() as u16, 0] {
        segment.extend(field.to_be_bytes());
    }
    segment.extend(payload);
    segment
}

/// An IPv4 packet with `options` words of options, from [`SERVER_V4`].
fn ipv4(options: usize, segment: &[u8]) -> Vec<u8> {
    let header = 20 + options * 4;
    let mut packet = vec![0x45 + options as u8, 0];
    packet.extend(((header + segment.len()) as u16).to_be_bytes());
    packet.extend([0x12, 0x34, 0x40, 0x00, 64, 17, 0, 0]);
    packet.extend([198, 51, 100, 7, 192, 0, 2, 1]);
    packet.resize(header, 1);
    packet.extend(segment);
    packet
}

/// An IPv6 packet from [`SERVER_V6`] with `extension` bytes of extension headers.
fn ipv6(extension: usize, segment: &[u8]) -> (Vec<u8>, usize) {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(((extension + segment.len()) as u16).to_be_bytes());
    packet.extend([17, 64]);
    for ip in ["2001:db8:ffff::7", "2001:db8::1"] {
        packet.extend(ip.parse::<std::net::Ipv6Addr>().unwrap().octets());
    }
    packet.resize(40 + extension, 0);
    packet.extend(segment);
    (packet, 40 + extension)
}

fn v4_passes(rules: &Rules, packet: &[u8]) -> bool {
    passes(&rules.program(Family::V4), packet, 0)
}

fn v6_passes(rules: &Rules, segment: &[u8]) -> bool {
    let (packet, start) = ipv6(0, segment);
    passes(&rules.program(Family::V6), &packet, start)
}

fn probe() -> Vec<u8> {
    let mut probe = PROBE_MAGIC.to_vec();
    probe.resize(96, 0xaa);
    probe
}

fn stun() -> Vec<u8> {
    let mut message = vec![1, 1, 0, 12];
    message.extend(STUN_COOKIE.to_be_bytes());
    message.resize(32, 0xaa);
    message
}

fn rendezvous() -> Vec<u8> {
    let mut message = RENDEZVOUS_MAGIC.to_vec();
    message.resize(60, 0xaa);
    message
}

/// Messages of WireGuard, type 1 to 4, in their lengths.
fn wireguard() -> impl Iterator<Item = Vec<u8>> {
    [(1, 148), (2, 92), (3, 64), (4, 32), (4, 1452)]
        .into_iter()
        .map(|(kind, length)| {
            let mut message = vec![0xaa; length];
            message[..4].copy_from_slice(&[kind, 0, 0, 0]);
            message
        })
}

#[test]
fn probes_and_stun_pass_and_wireguard_does_not() {
    let rules = rules(&[]);
    for payload in [probe(), stun(), rendezvous()] {
        assert!(v4_passes(&rules, &ipv4(0, &udp(3478, PORT, &payload))));
        assert!(v6_passes(&rules, &udp(3478, PORT, &payload)));
        assert!(
            !v4_passes(&rules, &ipv4(0, &udp(3478, PORT + 1, &payload))),
            "another port's"
        );
        assert!(
            !v6_passes(&rules, &udp(3478, PORT + 1, &payload)),
            "another port's"
        );
        assert!(
            !v4_passes(&rules, &ipv4(0, &udp(PORT, 3478, &payload))),
            "from the port, not to it"
        );
    }
    for message in wireguard() {
        assert!(!v4_passes(&rules, &ipv4(0, &udp(51820, PORT, &message))));
        assert!(!v6_passes(&rules, &udp(51820, PORT, &message)));
    }
}

#[test]
fn ip_options_move_the_udp_header_and_the_filter_with_it() {
    let rules = rules(&[]);
    for options in 0..=10 {
        for payload in [probe(), stun()] {
            assert!(
                v4_passes(&rules, &ipv4(options, &udp(3478, PORT, &payload))),
                "{options} words of options"
            );
        }
        for message in wireguard() {
            assert!(!v4_passes(
                &rules,
                &ipv4(options, &udp(3478, PORT, &message))
            ));
        }
        if options > 0 {
            // A probe that begins where it would without the options, in a packet to another port.
            let mut forged = ipv4(options, &udp(3478, PORT + 1, &probe()));
            forged[20..24].copy_from_slice(&udp(3478, PORT, b"")[..4]);
            assert!(!v4_passes(&rules, &forged));
        }
    }
    for extension in [0, 8, 16, 64] {
        let (packet, start) = ipv6(extension, &udp(3478, PORT, &probe()));
        assert!(passes(&rules.program(Family::V6), &packet, start));
    }
}

#[test]
fn fragments_other_protocols_and_impossible_headers_never_pass() {
    let rules = rules(&[SERVER_V4]);
    let whole = ipv4(0, &udp(3478, PORT, &probe()));
    assert!(v4_passes(&rules, &whole));
    for flags_and_offset in [0x2000_u16, 0x0001, 0x1fff, 0x2001, 0x6000, 0x4001] {
        let mut fragment = whole.clone();
        fragment[6..8].copy_from_slice(&flags_and_offset.to_be_bytes());
        assert!(!v4_passes(&rules, &fragment), "{flags_and_offset:#06x}");
    }
    for protocol in (0..=255).filter(|protocol| *protocol != 17) {
        let mut other = whole.clone();
        other[9] = protocol;
        assert!(!v4_passes(&rules, &other), "protocol {protocol}");
    }
    for first in (0..=255_u8).filter(|first| !(0x45..=0x4f).contains(first)) {
        let mut other = whole.clone();
        other[0] = first;
        assert!(!v4_passes(&rules, &other), "first byte {first:#04x}");
    }
}

#[test]
fn a_packet_cut_off_anywhere_passes_only_with_all_that_the_filter_looks_at() {
    for (rules, needed_probe, needed_stun) in [
        (rules(&[]), 8 + 4, 8 + 20),
        (rules(&[SERVER_V4, SERVER_V6]), 8, 8),
    ] {
        for (payload, needed) in [(probe(), needed_probe), (stun(), needed_stun)] {
            let segment = udp(3478, PORT, &payload);
            for options in [0, 1, 10] {
                let packet = ipv4(options, &segment);
                for length in 0..=packet.len() {
                    let expected = length >= 20 + options * 4 + needed;
                    assert_eq!(
                        v4_passes(&rules, &packet[..length]),
                        expected,
                        "{length} of {}",
                        packet.len()
                    );
                }
            }
            for length in 0..=segment.len() {
                assert_eq!(
                    v6_passes(&rules, &segment[..length]),
                    length >= needed,
                    "{length}"
                );
            }
        }
    }
}

#[test]
fn the_rendezvous_passes_by_its_three_bytes_and_not_by_its_source() {
    let rules = rules(&[]);
    for bit in 0..32 {
        let mut message = rendezvous();
        message[bit / 8] ^= 1 << (bit % 8);
        let expected = bit >= 24;
        assert_eq!(
            v4_passes(&rules, &ipv4(0, &udp(1, PORT, &message))),
            expected,
            "bit {bit}"
        );
        assert_eq!(
            v6_passes(&rules, &udp(1, PORT, &message)),
            expected,
            "bit {bit}"
        );
        assert_eq!(
            rules.accept(SERVER_V4.parse().unwrap(), PORT, &message),
            expected,
            "bit {bit}"
        );
    }
}

#[test]
fn the_two_zero_bits_and_the_cookie_make_it_stun() {
    let rules = rules(&[]);
    for bit in 0..32 * 8 {
        let mut message = stun();
        message[bit / 8] ^= 1 << (bit % 8);
        let is_stun = !matches!(bit, 6 | 7) && !(32..64).contains(&bit);
        assert_eq!(
            v4_passes(&rules, &ipv4(0, &udp(1, PORT, &message))),
            is_stun,
            "bit {bit}"
        );
        assert_eq!(
            v6_passes(&rules, &udp(1, PORT, &message)),
            is_stun,
            "bit {bit}"
        );
    }
    for bit in 0..32 {
        let mut message = probe();
        message[bit / 8] ^= 1 << (bit % 8);
        assert!(
            !v4_passes(&rules, &ipv4(0, &udp(1, PORT, &message))),
            "bit {bit} of the magic"
        );
        assert!(
            !v6_passes(&rules, &udp(1, PORT, &message)),
            "bit {bit} of the magic"
        );
    }
}

#[test]
fn whatever_an_allowed_server_sends_passes_and_from_nobody_else() {
    let allowed = rules(&[SERVER_V4, SERVER_V6]);
    let payloads = wireguard().chain([vec![], vec![1], vec![0xff; 19], stun(), probe()]);
    for payload in payloads {
        let from_server = ipv4(0, &udp(3478, PORT, &payload));
        assert!(v4_passes(&allowed, &from_server), "{} bytes", payload.len());
        assert!(
            v6_passes(&allowed, &udp(3478, PORT, &payload)),
            "{} bytes",
            payload.len()
        );
        if payload == stun() || payload == probe() {
            continue;
        }
        assert!(
            !v4_passes(&allowed, &ipv4(0, &udp(3479, PORT, &payload))),
            "another port of the server"
        );
        assert!(
            !v6_passes(&allowed, &udp(3479, PORT, &payload)),
            "another port of the server"
        );
        for bit in 0..32 {
            let mut other = from_server.clone();
            other[12 + bit / 8] ^= 1 << (bit % 8);
            assert!(!v4_passes(&allowed, &other), "another address");
        }
        for bit in 0..128 {
            let (mut other, start) = ipv6(0, &udp(3478, PORT, &payload));
            other[8 + bit / 8] ^= 1 << (bit % 8);
            assert!(
                !passes(&allowed.program(Family::V6), &other, start),
                "another address"
            );
        }
        assert!(
            !v4_passes(&allowed, &ipv4(0, &udp(3478, PORT + 1, &payload))),
            "to another port"
        );
    }
}

#[test]
fn the_longest_set_of_servers_fits_and_each_of_them_is_found() {
    let sources: Vec<SocketAddr> = (0..64)
        .map(|n| {
            if n % 2 == 0 {
                format!("198.51.100.{n}:{}", 1000 + n)
            } else {
                format!("[2001:db8::{n}]:{}", 1000 + n)
            }
        })
        .map(|source| source.parse().unwrap())
        .collect();
    let rules = Rules {
        port: PORT,
        sources: sources.iter().copied().collect(),
        nat64: None,
    };
    for family in [Family::V4, Family::V6] {
        let program = rules.program(family);
        assert!(program.len() < 4096, "BPF_MAXINSNS");
        for (at, line) in program.iter().enumerate() {
            let jumps = matches!(line.code, 0x15 | 0x35 | 0x45);
            assert!(jumps || (line.jt, line.jf) == (0, 0));
            assert!(
                at + 1 + usize::from(line.jt.max(line.jf)) < program.len() || line.code == 0x06
            );
        }
        for source in &sources {
            let mut packet = match (family, source.ip()) {
                (Family::V4, IpAddr::V4(ip)) => {
                    let mut packet = ipv4(3, &udp(source.port(), PORT, b"x"));
                    packet[12..16].copy_from_slice(&ip.octets());
                    (packet, 0)
                }
                (Family::V6, IpAddr::V6(ip)) => {
                    let mut packet = ipv6(8, &udp(source.port(), PORT, b"x"));
                    packet.0[8..24].copy_from_slice(&ip.octets());
                    packet
                }
                _ => continue,
            };
            assert!(passes(&program, &packet.0, packet.1), "{source}");
            let sport = packet.0.len() - 9;
            packet.0[sport] ^= 1;
            assert!(
                !passes(&program, &packet.0, packet.1),
                "{source}, but another port"
            );
        }
    }
}

#[test]
fn a_server_of_ipv4_is_heard_from_behind_the_nat64_of_the_network() {
    let server: SocketAddr = "198.51.100.7:1000".parse().unwrap();
    let nat64 = Nat64::learn("64:ff9b::192.0.0.170".parse().unwrap()).unwrap();
    let mut packet = ipv6(0, &udp(server.port(), PORT, b"x"));
    let IpAddr::V6(outside) = nat64.outward(server).ip() else {
        panic!("it is translated");
    };
    packet.0[8..24].copy_from_slice(&outside.octets());
    let mut rules = rules(&["198.51.100.7:1000"]);
    assert!(!passes(&rules.program(Family::V6), &packet.0, packet.1));
    rules.nat64 = Some(nat64);
    assert!(passes(&rules.program(Family::V6), &packet.0, packet.1));
    let arrived = nat64.inward(SocketAddr::new(outside.into(), server.port()));
    assert!(rules.accept(arrived, PORT, b"x"));
}

#[test]
fn the_closed_door_lets_nothing_through() {
    for payload in wireguard().chain([probe(), stun(), vec![]]) {
        assert!(!passes(
            &drop_all(),
            &ipv4(0, &udp(3478, PORT, &payload)),
            0
        ));
    }
}

/// The kernel and the check in Rust agree on every frame that is well formed; on others the program
/// may be the more generous, since it does not look at lengths that headers state.
#[test]
fn program_and_rust_agree_on_a_hundred_thousand_mutated_frames() {
    let rules = rules(&[SERVER_V4, SERVER_V6]);
    let (v4, v6) = (rules.program(Family::V4), rules.program(Family::V6));
    let mut seed = 0x5eed_u64;
    let mut random = move |below: usize| {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % below
    };
    let payloads: Vec<Vec<u8>> = wireguard()
        .chain([probe(), stun(), vec![], vec![0; 7]])
        .collect();
    let mut passed = 0;
    for round in 0..100_000 {
        let payload = &payloads[random(payloads.len())];
        let segment = udp([3478, 3478, 1][random(3)], PORT, payload);
        let (mut packet, start) = if round % 2 == 0 {
            (ipv4(random(11), &segment), 0)
        } else {
            ipv6(random(3) * 8, &segment)
        };
        for _ in 0..random(3) {
            let at = random(packet.len().min(100));
            packet[at] ^= 1 << random(8);
        }
        if random(4) == 0 {
            packet.truncate(random(packet.len() + 1));
        }
        let view = &packet[start.min(packet.len())..];
        let (filter, rust, exact) = if round % 2 == 0 {
            let read = parse_ipv4(view);
            let accepted = read.as_ref().is_some_and(|ip| {
                rules.accept(
                    SocketAddr::new(ip.source.into(), ip.udp.source),
                    ip.udp.destination,
                    ip.udp.payload,
                )
            });
            let exact = read.is_some_and(|ip| {
                usize::from(view[0] & 0xf) * 4 + 8 + ip.udp.payload.len() == view.len()
            });
            (passes(&v4, view, 0), accepted, exact)
        } else {
            let read = parse_udp(view);
            let accepted = read.as_ref().is_some_and(|udp| {
                let ip: [u8; 16] = packet[8..24].try_into().unwrap();
                rules.accept(
                    SocketAddr::new(ip.into(), udp.source),
                    udp.destination,
                    udp.payload,
                )
            });
            let exact = read.is_some_and(|udp| 8 + udp.payload.len() == view.len());
            (passes(&v6, &packet, start), accepted, exact)
        };
        assert!(
            filter || !rust,
            "the program dropped what should pass: {packet:02x?}"
        );
        assert!(
            filter == rust || !exact,
            "the program passed what should not: {packet:02x?}"
        );
        passed += usize::from(rust);
    }
    assert!(
        (10_000..90_000).contains(&passed),
        "the frames are no test: {passed} passed"
    );
}

#[test]
fn of_what_goes_to_resting_endpoints_only_wireguards_initiations_pass() {
    let program = rested(PORT, [127, 79], 9);
    let to = |destination: [u8; 4], segment: &[u8]| {
        let mut packet = ipv4(0, segment);
        packet[16..20].copy_from_slice(&destination);
        packet
    };
    let message = |first: [u8; 4], length: usize| {
        let mut message = vec![0xaa; length];
        message[..4].copy_from_slice(&first);
        message
    };
    let initiation = message([1, 0, 0, 0], INITIATION_LEN);
    let good = to([127, 79, 3, 4], &udp(PORT, 9, &initiation));
    assert!(passes(&program, &good, 0));
    let with_options = ipv4(3, &udp(PORT, 9, &initiation));
    let mut with_options: Vec<u8> = with_options;
    with_options[16..20].copy_from_slice(&[127, 79, 3, 4]);
    assert!(passes(&program, &with_options, 0));
    for bad in [
        to([127, 78, 3, 4], &udp(PORT, 9, &initiation)),
        to([127, 79, 3, 4], &udp(PORT + 1, 9, &initiation)),
        to([127, 79, 3, 4], &udp(PORT, 10, &initiation)),
        to(
            [127, 79, 3, 4],
            &udp(PORT, 9, &message([2, 0, 0, 0], INITIATION_LEN)),
        ),
        to(
            [127, 79, 3, 4],
            &udp(PORT, 9, &message([1, 0, 0, 1], INITIATION_LEN)),
        ),
        to(
            [127, 79, 3, 4],
            &udp(PORT, 9, &message([1, 0, 0, 0], INITIATION_LEN - 1)),
        ),
        to(
            [127, 79, 3, 4],
            &udp(PORT, 9, &message([1, 0, 0, 0], INITIATION_LEN + 1)),
        ),
        vec![],
    ] {
        assert!(!passes(&program, &bad, 0), "{bad:02x?}");
    }
    for length in 0..good.len() {
        assert!(!passes(&program, &good[..length], 0), "{length}");
    }
}

#[test]
fn of_what_leaves_only_wireguards_responses_pass() {
    let program = responses();
    let message = |first: [u8; 4], length: usize| {
        let mut message = vec![0xaa; length];
        message[..4].copy_from_slice(&first);
        udp(PORT, 9, &message)
    };
    let by_ipv6 = |segment: &[u8]| {
        let mut packet = vec![0; 40];
        (packet[0], packet[6]) = (0x60, 17);
        [&packet, segment].concat()
    };
    let good = message([2, 0, 0, 0], RESPONSE_LEN);
    let packets = [ipv4(0, &good), ipv4(3, &good), by_ipv6(&good)];
    assert!(packets.iter().all(|packet| passes(&program, packet, 0)));
    for packet in &packets {
        for length in 0..packet.len() {
            assert!(!passes(&program, &packet[..length], 0), "{length}");
        }
    }
    let mut by_tcp = by_ipv6(&good);
    by_tcp[6] = 6;
    assert!(!passes(&program, &by_tcp, 0));
    for bad in [
        message([1, 0, 0, 0], RESPONSE_LEN),
        message([2, 0, 0, 1], RESPONSE_LEN),
        message([2, 0, 0, 0], RESPONSE_LEN + 1),
        message([4, 0, 0, 0], RESPONSE_LEN),
    ] {
        assert!(!passes(&program, &ipv4(0, &bad), 0), "{bad:02x?}");
        assert!(!passes(&program, &by_ipv6(&bad), 0), "{bad:02x?}");
    }
}
