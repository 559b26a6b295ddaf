use super::*;

/// An IPv4 packet with this protocol and content.
fn packet(source: [u8; 4], destination: [u8; 4], protocol: u8, content: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0];
    packet.extend(source);
    packet.extend(destination);
    packet.extend(content);
    packet
}

const US: [u8; 4] = [192, 168, 1, 2];
const ROUTER: [u8; 4] = [10, 0, 0, 1];
const PEER: [u8; 4] = [203, 0, 113, 9];

fn datagram(payload: &[u8]) -> Vec<u8> {
    let mut udp = [40_000_u16.to_be_bytes(), 50_000_u16.to_be_bytes()].concat();
    udp.extend([0, 8 + payload.len() as u8, 0xab, 0xcd]);
    udp.extend(payload);
    udp
}

fn icmp(kind: u8, code: u8, quoted: &[u8]) -> Vec<u8> {
    let mut icmp = vec![kind, code, 0, 0, 0, 0, 0, 0];
    icmp.extend(quoted);
    icmp
}

fn of_v4(kind: u8, code: u8, payload: &[u8]) -> Vec<u8> {
    let quoted = packet(US, PEER, UDP, &datagram(payload));
    packet(ROUTER, US, 1, &icmp(kind, code, &quoted))
}

fn of_v6(kind: u8, code: u8, next_header: u8) -> Vec<u8> {
    let mut quoted = vec![0x60, 0, 0, 0, 0, 0, next_header, 64];
    quoted.extend("2001:db8::1".parse::<Ipv6Addr>().unwrap().octets());
    quoted.extend("2001:db8::2".parse::<Ipv6Addr>().unwrap().octets());
    quoted.extend(datagram(b"NPch"));
    icmp(kind, code, &quoted)
}

/// What a program says to a packet: how much of it is kept.
fn judge(program: &[Instruction], packet: &[u8]) -> u32 {
    let (mut at, mut a, mut x) = (0, 0_u32, 0_u32);
    loop {
        let line = program[at];
        at += 1;
        let byte = |place: u32| packet.get(place as usize).copied().map(u32::from);
        match line.code {
            op::RETURN => return line.k,
            op::X_HEADER_LENGTH => x = (byte(line.k).unwrap_or(0) & 15) * 4,
            op::LOAD_BYTE | op::LOAD_BYTE_FROM_X => {
                let base = if line.code == op::LOAD_BYTE { 0 } else { x };
                let Some(value) = byte(base + line.k) else {
                    return 0;
                };
                a = value;
            }
            op::IF_EQUAL => at += usize::from(if a == line.k { line.jt } else { line.jf }),
            other => panic!("{other}"),
        }
    }
}

#[test]
fn the_kinds_that_are_of_use_are_read_with_what_they_quote_and_the_kernel_keeps_the_others() {
    let prohibited = [(3, 9), (3, 10), (3, 13)].map(|of| (of, IcmpKind::Prohibited));
    for ((kind, code), expected) in prohibited
        .into_iter()
        .chain([((11, 0), IcmpKind::TimeExceeded)])
    {
        let packet = of_v4(kind, code, b"NPch");
        let error = parse_v4(&packet).unwrap();
        let read = (error.kind, error.from, error.source_port, error.destination);
        let destination = SocketAddr::from((PEER, 50_000));
        assert_eq!(read, (expected, ROUTER.into(), 40_000, destination));
        assert_eq!(error.payload, b"NPch");
        assert!(judge(&program_v4(), &packet) > 0);
    }
    for (kind, code) in [(3, 3), (3, 4), (0, 0), (8, 0), (5, 9)] {
        let packet = of_v4(kind, code, b"NPch");
        assert_eq!(
            (parse_v4(&packet), judge(&program_v4(), &packet)),
            (None, 0)
        );
    }
    let of_tcp = packet(
        ROUTER,
        US,
        1,
        &icmp(11, 0, &packet(US, PEER, 6, &datagram(b""))),
    );
    assert_eq!(
        (parse_v4(&of_tcp), judge(&program_v4(), &of_tcp)),
        (None, 0)
    );

    let router: Ipv6Addr = "2001:db8::ff".parse().unwrap();
    for (kind, code, expected) in [
        (3, 0, Some(IcmpKind::TimeExceeded)),
        (1, 1, Some(IcmpKind::Prohibited)),
        (1, 4, None),
        (2, 0, None),
        (129, 0, None),
    ] {
        let packet = of_v6(kind, code, UDP);
        let error = parse_v6(router, &packet);
        assert_eq!(error.as_ref().map(|error| error.kind), expected);
        assert_eq!(judge(&program_v6(), &packet) > 0, expected.is_some());
        if let Some(error) = error {
            assert_eq!(error.destination, "[2001:db8::2]:50000".parse().unwrap());
            assert_eq!(error.source_port, 40_000);
        }
    }
    assert_eq!(parse_v6(router, &of_v6(3, 0, 6)), None);
}

#[test]
fn a_quote_may_end_with_the_ports_and_anything_shorter_is_nothing() {
    let whole = of_v4(11, 0, b"");
    assert_eq!(parse_v4(&whole).map(|error| error.payload), Some(vec![]));
    for length in 0..whole.len() {
        assert_eq!(parse_v4(&whole[..length]), None, "{length} bytes");
    }
    let v6 = of_v6(1, 1, UDP);
    for length in 0..v6.len() - 4 {
        assert_eq!(parse_v6(Ipv6Addr::LOCALHOST, &v6[..length]), None);
    }
}
