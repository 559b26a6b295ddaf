use std::net::SocketAddr;
use std::time::Duration;

use natpunch_types::{PROBE_LEN, PROBE_MAGIC, Time};
use proptest::prelude::*;
use rand_core::{RngCore as _, SeedableRng as _};

use super::*;
use crate::wire::MAC_LEN;

const SECOND: Duration = Duration::from_secs(1);
const START: Time = Time::from_millis(10_000_000);
const ALLOCATION: u64 = 0x1234_5678_9abc_def0;

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Where the two sides' sessions are.
fn homes() -> [SocketAddr; 2] {
    [address("198.51.100.1:1000"), address("[2001:db8::2]:2000")]
}

fn key(n: u8) -> Key {
    Key::new([n; 32])
}

fn port() -> Port {
    port_with(Limits::default())
}

fn port_with(limits: Limits) -> Port {
    let own = Own {
        addresses: ["203.0.113.1".parse().unwrap()].into(),
        ports: [51_900, 51_901].into(),
    };
    let mut port = Port::new(limits, own, [9; 32]);
    open(&mut port, ALLOCATION, [1, 2], homes());
    port
}

fn open(port: &mut Port, allocation: u64, keys: [u8; 2], registered: [SocketAddr; 2]) {
    port.handle_command(
        Command::Open {
            allocation,
            keys: keys.map(key),
            registered,
        },
        START,
    );
    port.handle_command(
        Command::Carry {
            allocation,
            carry: true,
        },
        START,
    );
}

fn bind(allocation: u64, key: &Key, cookie: CookieBytes) -> Vec<u8> {
    Message {
        allocation,
        nonce: [7; 8],
        cookie,
        state: State::default(),
    }
    .seal(Kind::Bind, key)
    .to_vec()
}

/// What the port answers to a bind, opened.
fn say(
    port: &mut Port,
    source: SocketAddr,
    allocation: u64,
    n: u8,
    cookie: CookieBytes,
    now: Time,
) -> Option<Message> {
    match port.handle_datagram(
        Via::default(),
        source,
        &bind(allocation, &key(n), cookie),
        now,
    ) {
        Verdict::Answer(answer) => Some(Message::open(&key(n), &answer).unwrap()),
        Verdict::Drop => None,
        Verdict::Forward { .. } | Verdict::Queued => panic!("a bind was forwarded"),
    }
}

/// Binds from an address, with the cookie if one is asked for.
fn prove(port: &mut Port, source: SocketAddr, allocation: u64, n: u8, now: Time) -> Option<State> {
    let first = say(port, source, allocation, n, [0; MAC_LEN], now)?;
    if first.state != State::Unproven {
        return Some(first.state);
    }
    say(port, source, allocation, n, first.cookie, now).map(|answer| answer.state)
}

fn bound_port(limits: Limits) -> Port {
    let mut port = port_with(limits);
    assert_eq!(
        prove(&mut port, homes()[0], ALLOCATION, 1, START),
        Some(State::Bound)
    );
    assert_eq!(
        prove(&mut port, homes()[1], ALLOCATION | 1, 2, START),
        Some(State::Both)
    );
    assert_eq!(port.poll_event(), Some(Event::Bound(ALLOCATION)));
    port
}

/// Whether a datagram of side 0 or 1 reaches the other side.
fn passes(port: &mut Port, from: usize, payload: &[u8], now: Time) -> bool {
    match port.handle_datagram(Via::default(), homes()[from], payload, now) {
        Verdict::Drop | Verdict::Queued => false,
        Verdict::Forward { to, .. } => {
            assert_eq!(to, homes()[1 - from]);
            true
        }
        Verdict::Answer(_) => panic!("an answer"),
    }
}

/// How many of so many datagrams of side 0 reach the other side now, with those that waited.
fn pass_now(port: &mut Port, count: usize, now: Time) -> usize {
    let released = std::iter::from_fn(|| port.poll_transmit(now)).count();
    let passed = (0..count)
        .filter(|_| passes(port, 0, &data(1), now))
        .count();
    released + passed
}

fn message(kind: u8, length: usize, words: &[u32]) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0];
    words
        .iter()
        .for_each(|word| message.extend(word.to_le_bytes()));
    message.resize(length, 0x5a);
    message
}

fn initiation(sender: u32) -> Vec<u8> {
    message(1, 148, &[sender])
}

fn response(sender: u32, receiver: u32) -> Vec<u8> {
    message(2, 92, &[sender, receiver])
}

fn data(receiver: u32) -> Vec<u8> {
    message(4, 1_452, &[receiver])
}

fn probe() -> Vec<u8> {
    let mut probe = PROBE_MAGIC.to_vec();
    probe.resize(PROBE_LEN, 3);
    probe
}

#[test]
fn a_side_binds_at_once_where_its_session_is_and_elsewhere_after_a_challenge() {
    let mut port = port();
    assert_eq!(
        say(&mut port, homes()[0], ALLOCATION, 1, [0; MAC_LEN], START)
            .unwrap()
            .state,
        State::Bound
    );
    let symmetric = address("198.51.100.1:4711");
    let mut port = self::port();
    let challenge = say(&mut port, symmetric, ALLOCATION, 1, [0; MAC_LEN], START).unwrap();
    assert_eq!(challenge.state, State::Unproven);
    assert!(
        port.by_source.is_empty(),
        "nothing is bound before the proof"
    );
    let answer = say(
        &mut port,
        symmetric,
        ALLOCATION,
        1,
        challenge.cookie,
        START + SECOND,
    )
    .unwrap();
    assert_eq!((answer.state, answer.nonce), (State::Bound, [7; 8]));
}

#[test]
fn a_bind_copied_to_another_address_binds_nothing_there() {
    let mut port = port();
    let mine = address("198.51.100.1:4711");
    let challenge = say(&mut port, mine, ALLOCATION, 1, [0; MAC_LEN], START).unwrap();
    let proof = bind(ALLOCATION, &key(1), challenge.cookie);
    for thief in [
        "203.0.113.66:4711",
        "198.51.100.1:4712",
        "[2001:db8::66]:4711",
    ] {
        let verdict = port.handle_datagram(Via::default(), address(thief), &proof, START);
        let Verdict::Answer(answer) = verdict else {
            panic!("{verdict:?}")
        };
        assert!(answer.len() <= proof.len());
        assert_eq!(
            Message::open(&key(1), &answer).unwrap().state,
            State::Unproven
        );
    }
    assert!(port.by_source.is_empty());
}

#[test]
fn a_replayed_bind_does_not_move_a_side_back() {
    let mut port = bound_port(Limits::default());
    let elsewhere = address("203.0.113.50:5000");
    let first = bind(ALLOCATION, &key(1), [0; MAC_LEN]);
    assert_eq!(
        prove(&mut port, elsewhere, ALLOCATION, 1, START + SECOND),
        Some(State::Both)
    );
    let challenge = say(
        &mut port,
        homes()[0],
        ALLOCATION,
        1,
        [0; MAC_LEN],
        START + SECOND,
    )
    .unwrap();
    assert_eq!(
        challenge.state,
        State::Unproven,
        "where the session is counts as a proof only once"
    );
    // Moved once more: what proved the way back is void.
    let back = bind(ALLOCATION, &key(1), challenge.cookie);
    let third = address("203.0.113.51:5000");
    assert_eq!(
        prove(&mut port, third, ALLOCATION, 1, START + SECOND),
        Some(State::Both)
    );
    for replayed in [first, back] {
        port.handle_datagram(Via::default(), homes()[0], &replayed, START + 2 * SECOND);
    }
    assert_eq!(port.by_source.keys().copied().collect::<Vec<_>>(), {
        let mut both = vec![third, homes()[1]];
        both.sort();
        both
    });
}

#[test]
fn only_the_secret_of_a_side_binds_it_and_others_are_not_answered() {
    let mut port = port();
    for (allocation, n) in [
        (ALLOCATION, 2),
        (ALLOCATION | 1, 1),
        (ALLOCATION, 3),
        (ALLOCATION + 2, 1),
    ] {
        assert_eq!(
            say(&mut port, homes()[0], allocation, n, [0; MAC_LEN], START),
            None
        );
    }
    let good = bind(ALLOCATION, &key(1), [0; MAC_LEN]);
    for bit in 0..good.len() * 8 {
        let mut altered = good.clone();
        altered[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(
            port.handle_datagram(Via::default(), homes()[0], &altered, START),
            Verdict::Drop,
            "bit {bit}"
        );
    }
    for length in 0..good.len() {
        assert_eq!(
            port.handle_datagram(Via::default(), homes()[0], &good[..length], START),
            Verdict::Drop
        );
    }
    assert!(port.by_source.is_empty() && port.poll_event().is_none());
}

#[test]
fn an_answer_is_never_longer_than_the_bind() {
    let mut port = port();
    let unproven = bind(ALLOCATION, &key(1), [0; MAC_LEN]);
    let Verdict::Answer(challenge) =
        port.handle_datagram(Via::default(), address("203.0.113.9:9"), &unproven, START)
    else {
        panic!("no challenge")
    };
    assert!(challenge.len() <= unproven.len());
}

#[test]
fn an_address_names_one_allocation_of_a_port() {
    let mut port = bound_port(Limits::default());
    open(
        &mut port,
        40,
        [4, 5],
        [homes()[0], address("203.0.113.3:3")],
    );
    assert_eq!(
        prove(&mut port, homes()[0], 40, 4, START),
        None,
        "the address is another allocation's"
    );
    assert_eq!(port.counters().refused, 1);
}

#[test]
fn no_side_is_ever_at_a_special_address_in_any_encoding_but_where_its_session_is() {
    let v4 = [
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.1",
        "10.255.255.255",
        "100.64.0.1",
        "100.127.255.255",
        "127.0.0.1",
        "127.9.9.9",
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.1",
        "192.168.1.1",
        "224.0.0.1",
        "239.1.1.1",
        "240.0.0.1",
        "255.255.255.255",
    ];
    let mut special: Vec<String> = Vec::new();
    for ip in v4 {
        let number = u32::from(ip.parse::<std::net::Ipv4Addr>().unwrap());
        let (high, low) = (number >> 16, number & 0xffff);
        special.push(format!("{ip}:7"));
        special.push(format!("[::ffff:{high:x}:{low:x}]:7"));
        special.push(format!("[::{high:x}:{low:x}]:7"));
        special.push(format!("[64:ff9b::{high:x}:{low:x}]:7"));
        special.push(format!("[2002:{high:x}:{low:x}::1]:7"));
    }
    special.extend(
        [
            "[::]:7",
            "[::1]:7",
            "[fe80::1]:7",
            "[fec0::1]:7",
            "[fc00::1]:7",
            "[fdff::1]:7",
            "[ff02::1]:7",
            "[100::1]:7",
        ]
        .map(str::to_owned),
    );
    for source in &special {
        let mut port = port();
        assert_eq!(
            prove(&mut port, address(source), ALLOCATION, 1, START),
            None,
            "{source}"
        );
        assert_eq!(port.counters().refused, 1, "{source}");
    }
    // Whom the server serves there anyway.
    let mut port = Port::new(Limits::default(), Own::default(), [9; 32]);
    open(
        &mut port,
        ALLOCATION,
        [1, 2],
        [address("10.0.0.5:1"), homes()[1]],
    );
    assert_eq!(
        prove(&mut port, address("10.0.0.6:1"), ALLOCATION, 1, START),
        None
    );
    assert_eq!(
        prove(
            &mut port,
            address("[::ffff:10.0.0.5]:2"),
            ALLOCATION,
            1,
            START
        ),
        Some(State::Bound)
    );
}

#[test]
fn the_server_is_never_a_side_of_its_own_relay() {
    for (source, local) in [
        ("203.0.113.1:51900", None),
        ("[::ffff:203.0.113.1]:51901", None),
        ("127.0.0.1:51901", None),
        (
            "198.51.100.77:51900",
            Some(("198.51.100.77".parse().unwrap(), 0)),
        ),
        ("203.0.113.1:0", None),
    ] {
        let mut port = port();
        let via = Via { socket: 0, local };
        // Even where its session seems to be.
        port.handle_command(
            Command::Registered {
                allocation: ALLOCATION,
                address: address(source),
            },
            START,
        );
        let verdict = port.handle_datagram(
            via,
            address(source),
            &bind(ALLOCATION, &key(1), [0; MAC_LEN]),
            START,
        );
        assert_eq!(verdict, Verdict::Drop, "{source}");
    }
    assert_eq!(
        prove(&mut port(), address("203.0.113.1:7"), ALLOCATION, 1, START),
        Some(State::Bound),
        "a neighbour"
    );
}

/// A port whose two sides have finished WireGuard's handshake by it, with the indices 100 and 200.
fn port_in_use() -> Port {
    let mut port = bound_port(Limits::default());
    assert!(
        passes(&mut port, 0, &initiation(100), START)
            && passes(&mut port, 1, &response(200, 100), START)
    );
    assert!(passes(&mut port, 0, &data(200), START) && passes(&mut port, 1, &data(100), START));
    port
}

#[test]
fn dns_quic_http_and_other_protocols_do_not_pass() {
    let mut port = port_in_use();
    let question = b"\0\x01\0\0\0\0\0\0\x07example\x03com\0\0\x01\0\x01";
    let dns = [&b"\x12\x34\x01\0"[..], question].concat();
    // With an id and flags of which WireGuard's data could begin, and room for its header and tag.
    let sly_dns = [&b"\x04\0\0\0"[..], question, &[0; 16]].concat();
    let sized = |first: &[u8], length| {
        let mut payload = first.to_vec();
        payload.resize(length, 0);
        payload
    };
    let payloads = [
        dns,
        sly_dns,
        sized(b"\xc3\0\0\0\x01\x08", 1_200), // QUIC, version 1: Initial
        sized(b"\xe3\0\0\0\x01\x08", 1_200), // Handshake
        sized(b"\xc0\0\0\0\0\x08", 40),      // Version Negotiation
        sized(b"\x41\x99\x88\x77", 128),     // and a short header
        b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        b"M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\n\r\n".to_vec(),
        sized(b"\x16\xfe\xfd\0\0", 200),                  // DTLS
        sized(&[0x23], 48),                               // NTP
        sized(&[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42], 20), // STUN
        sized(b"\x17\0\x03\x2a", 8),                      // NTP's monlist
        vec![],
        vec![4],
        vec![4, 0, 0, 0],
    ];
    for payload in payloads {
        for from in [0, 1] {
            assert!(!passes(&mut port, from, &payload, START), "{payload:02x?}");
        }
    }
    assert!(
        passes(&mut port, 0, &data(200), START),
        "what is WireGuard's still does"
    );
}

#[test]
fn ten_thousand_random_payloads_of_all_lengths_do_not_pass_with_or_without_wireguards_first_bytes()
{
    let mut port = port_in_use();
    let mut random = rand_chacha::ChaCha20Rng::from_seed([20; 32]);
    let mut dropped = 0;
    for n in 0..10_000 {
        let mut payload = vec![0; n % 1_600];
        random.fill_bytes(&mut payload);
        assert!(
            !passes(&mut port, n & 1, &payload, START),
            "{n}: {payload:02x?}"
        );
        dropped += 1;
        // Data, a response or a cookie of a session that no handshake of this pair began.
        if let Some(first) = payload.first_chunk_mut() {
            *first = [2 + (n % 3) as u8, 0, 0, 0];
            assert!(
                !passes(&mut port, n & 1, &payload, START),
                "{n}: {payload:02x?}"
            );
            dropped += 1;
        }
    }
    assert_eq!(
        port.counters().misshapen,
        dropped,
        "each was dropped for its form"
    );
}

#[test]
fn data_passes_only_to_an_index_of_a_relayed_handshake_while_its_keys_live() {
    let mut port = bound_port(Limits::default());
    assert!(
        !passes(&mut port, 1, &response(200, 100), START),
        "it answers nothing"
    );
    assert!(passes(&mut port, 0, &initiation(100), START));
    assert!(!passes(&mut port, 1, &message(3, 64, &[101]), START));
    assert!(passes(&mut port, 1, &message(3, 64, &[100]), START));
    assert!(passes(&mut port, 1, &response(200, 100), START));
    assert!(passes(&mut port, 0, &data(200), START));
    assert!(passes(&mut port, 1, &data(100), START));
    assert!(
        passes(&mut port, 0, &message(4, 32, &[200]), START),
        "a keepalive"
    );
    assert!(
        passes(&mut port, 0, &message(4, 1_452, &[200]), START),
        "a full packet, which no padding made a multiple of 16"
    );
    for unknown in [0, 100, 201, u32::MAX] {
        assert!(!passes(&mut port, 0, &data(unknown), START), "{unknown}");
    }
    let keep =
        |port: &mut Port, now| (0..2).for_each(|side| assert!(passes(port, side, &probe(), now)));
    for second in 0..240 {
        if second == 200 {
            keep(&mut port, START + 200 * SECOND);
        }
        assert!(passes(&mut port, 0, &data(200), START + SECOND * second));
    }
    assert!(
        !passes(&mut port, 0, &data(200), START + 240 * SECOND),
        "no key lives so long"
    );
}

#[test]
fn a_session_that_began_on_a_direct_path_goes_on_at_the_relay_but_only_a_few() {
    let mut port = bound_port(Limits::default());
    for index in 0..4 {
        assert!(passes(&mut port, 0, &data(index), START), "{index}");
    }
    assert!(passes(&mut port, 0, &data(2), START), "again");
    assert!(
        !passes(&mut port, 0, &data(4), START),
        "no pair has so many sessions"
    );
    assert!(
        passes(&mut port, 1, &data(77), START),
        "each side has its own"
    );
    for second in 0..=180 {
        assert!(passes(&mut port, 0, &data(2), START + SECOND * second));
    }
    assert!(
        !passes(&mut port, 0, &data(5), START + 180 * SECOND),
        "no session is that old"
    );
}

#[test]
fn a_session_that_began_at_another_relay_goes_on_at_this_one_where_handshakes_passed_before() {
    let mut port = port_in_use();
    // WireGuard takes the other relay, which carries as this one does, for a minute or for an hour.
    let mut now = START;
    for pause in [60, 3_600] {
        for _ in (0..pause).step_by(60) {
            now += SECOND * 60;
            (0..2).for_each(|side| assert!(passes(&mut port, side, &probe(), now)));
        }
        assert!(
            passes(&mut port, 0, &data(pause), now) && passes(&mut port, 1, &data(pause + 1), now)
        );
        now += SECOND;
        assert!(
            passes(&mut port, 0, &initiation(101), now)
                && passes(&mut port, 1, &response(201, 101), now)
        );
        assert!(
            !passes(&mut port, 0, &data(3), now),
            "all that is new has its handshake here"
        );
        now += SECOND * 4;
        assert!(passes(&mut port, 0, &data(201), now) && !passes(&mut port, 0, &data(3), now));
    }
}

#[test]
fn without_a_word_of_either_side_only_probes_pass_and_not_many() {
    let mut port = bound_port(Limits::default());
    port.handle_command(
        Command::Carry {
            allocation: ALLOCATION,
            carry: false,
        },
        START,
    );
    assert!(!passes(&mut port, 0, &initiation(1), START));
    let passed = (0..1_000)
        .filter(|_| passes(&mut port, 0, &probe(), START))
        .count();
    assert_eq!(passed, 60, "what may come at once");
    assert!(
        passes(&mut port, 1, &probe(), START),
        "the other side has its own share"
    );
    let passed = (0..1_000_u32)
        .filter(|n| passes(&mut port, 0, &probe(), START + SECOND * *n / 100))
        .count();
    assert!(
        (190..=210).contains(&passed),
        "20 in each of 10 s, not {passed}"
    );
    let mut long = probe();
    long.push(0);
    assert!(!passes(&mut port, 1, &long, START), "not of its length");
}

#[test]
fn modified_wireguard_passes_where_the_settings_say_so_and_only_if_carried() {
    let mut port = bound_port(Limits {
        any_payload: true,
        ..Limits::default()
    });
    assert!(passes(&mut port, 0, b"anything", START));
    port.handle_command(
        Command::Carry {
            allocation: ALLOCATION,
            carry: false,
        },
        START,
    );
    assert!(!passes(&mut port, 0, b"anything", START));
    assert!(passes(&mut port, 0, &probe(), START));
}

#[test]
fn an_allocation_keeps_to_its_rate_and_its_share_of_an_hour() {
    let each = 1_452 + OVERHEAD;
    let limits = Limits {
        bytes_per_second: each * 100,
        bytes_per_hour: each * 250,
        any_payload: false,
    };
    let mut port = bound_port(limits);
    let send = |port: &mut Port, now| pass_now(port, 1_000, now);
    assert_eq!(send(&mut port, START), 100);
    assert_eq!(send(&mut port, START), 0);
    assert_eq!(send(&mut port, START + SECOND / 2), 50);
    assert_eq!(send(&mut port, START + 2 * SECOND), 100);
    assert_eq!(
        send(&mut port, START + 4 * SECOND),
        0,
        "the hour's share is used"
    );
    assert!(port.counters().pair_rate > 0 && port.counters().pair_hour > 0);
}

#[test]
fn ports_that_share_a_budget_pass_no_more_than_it_together() {
    let each = 1_452 + OVERHEAD;
    let budget = Arc::new(Budget::new(each * 100));
    let mut ports = [(); 2].map(|()| bound_port(Limits::default()).within(budget.clone()));
    let mut send = |now| ports.each_mut().map(|port| pass_now(port, 70, now));
    assert_eq!(send(START), [70, 30]);
    let later: usize = (1..=50)
        .map(|n| send(START + n * SECOND / 10).iter().sum::<usize>())
        .sum();
    assert!((400..=510).contains(&later), "{later} in five seconds");
    let counted = ports.map(|port| port.counters());
    assert_eq!(
        counted.iter().map(|counted| counted.forwarded).sum::<u64>(),
        100 + later as u64,
        "what was dropped is not counted as forwarded"
    );
    assert!(counted.iter().all(|counted| counted.total_rate > 0));
}

#[test]
fn what_the_budget_of_all_refuses_is_not_taken_from_a_pairs_own_share() {
    let each = 1_452 + OVERHEAD;
    let limits = Limits {
        bytes_per_hour: each * 30,
        ..Limits::default()
    };
    let mut port = bound_port(limits).within(Arc::new(Budget::new(each * 10)));
    let mut send = |second: u32| pass_now(&mut port, 100, START + second * SECOND);
    assert_eq!([0, 1, 2, 3].map(&mut send), [10, 10, 10, 0]);
}

#[test]
fn an_allocation_ends_when_it_is_not_bound_in_time_and_when_it_is_idle() {
    let mut port = port();
    assert_eq!(
        prove(&mut port, homes()[0], ALLOCATION, 1, START),
        Some(State::Bound)
    );
    port.handle_timeout(START + 29 * SECOND);
    assert_eq!(port.poll_event(), None);
    port.handle_timeout(START + 30 * SECOND);
    assert_eq!(port.poll_event(), Some(Event::Over(ALLOCATION)));
    assert!(port.allocations.is_empty() && port.by_source.is_empty());
    assert_eq!(port.poll_timeout(), None);

    let mut port = bound_port(Limits::default());
    let later = START + 250 * SECOND;
    assert!(passes(&mut port, 0, &probe(), later));
    port.handle_timeout(START + 299 * SECOND);
    assert_eq!(port.poll_event(), None);
    port.handle_timeout(START + 301 * SECOND);
    assert_eq!(
        port.poll_event(),
        Some(Event::Over(ALLOCATION)),
        "the other side was silent"
    );
}

#[test]
fn the_same_address_on_another_way_of_ours_is_another_path() {
    let mut port = bound_port(Limits::default());
    let other = Via {
        socket: 1,
        local: None,
    };
    assert_eq!(
        port.handle_datagram(other, homes()[0], &initiation(1), START),
        Verdict::Drop
    );
    assert!(passes(&mut port, 0, &initiation(1), START));
}

/// What an attacker or a member may do.
#[derive(Debug, Clone)]
enum Step {
    /// Somebody who knows these secrets binds from one of its own addresses, with a cookie that it
    /// has got.
    Honest {
        member: usize,
    },
    /// A bind, of this member's secret, from any address, with a cookie that was given to any.
    Spoofed {
        member: usize,
        source: usize,
        cookie: usize,
    },
    /// What was sent at some time, from any address.
    Replay {
        sent: usize,
        source: usize,
    },
    /// A packet of WireGuard's form, or a probe.
    Packet {
        source: usize,
        kind: u8,
        index: u32,
    },
    Garbage {
        source: usize,
        payload: Vec<u8>,
    },
    /// The server's word.
    Carry(bool),
    Close(usize),
    Later(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0..4_usize).prop_map(|member| Step::Honest { member }),
        3 => (0..4_usize, 0..9_usize, any::<usize>())
            .prop_map(|(member, source, cookie)| Step::Spoofed { member, source, cookie }),
        3 => (any::<usize>(), 0..9_usize).prop_map(|(sent, source)| Step::Replay { sent, source }),
        6 => (0..9_usize, 0..5_u8, 0..3_u32).prop_map(|(source, kind, index)| Step::Packet { source, kind, index }),
        2 => (0..9_usize, prop::collection::vec(any::<u8>(), 0..200))
            .prop_map(|(source, payload)| Step::Garbage { source, payload }),
        1 => any::<bool>().prop_map(Step::Carry),
        1 => (0..2_usize).prop_map(Step::Close),
        1 => (0..70_u64).prop_map(Step::Later),
    ];
    prop::collection::vec(step, 0..60)
}

proptest! {
    /// Two pairs, whose members each read only what comes to their own addresses; the last
    /// addresses are victims', who never said anything. Whatever is sent from wherever: no port
    /// sends more than an answer, not longer than what it answers, to whoever has not proven with
    /// its own secret that it is there.
    #[test]
    fn no_input_makes_a_port_send_to_a_third_address(steps in steps()) {
        let sources: Vec<SocketAddr> = [
            "198.51.100.1:1000", "198.51.100.2:1000", "198.51.100.3:1000", "[2001:db8::4]:1000",
            "203.0.113.7:53", "[2001:db8::7]:53", "10.0.0.1:22", "127.0.0.1:80", "203.0.113.1:51901",
        ].map(address).into();
        let members = [(ALLOCATION, 1_u8), (ALLOCATION | 1, 2), (2, 3), (3, 4)];
        let mut port = Port::new(
            Limits::default(),
            Own { addresses: ["203.0.113.1".parse().unwrap()].into(), ports: [51_901].into() },
            [9; 32],
        );
        let elsewhere = address("198.51.100.200:1");
        open(&mut port, ALLOCATION, [1, 2], [sources[0], elsewhere]);
        open(&mut port, 2, [3, 4], [elsewhere, sources[3]]);
        let mut now = START;
        let (mut sent, mut cookies) = (vec![vec![0; BIND_LEN]], vec![[0; MAC_LEN]]);
        for step in steps {
            let mut mine = None;
            let (source, payload) = match step {
                Step::Honest { member } => {
                    mine = Some(member);
                    let (allocation, n) = members[member];
                    (sources[member], bind(allocation, &key(n), *cookies.last().unwrap()))
                }
                Step::Spoofed { member, source, cookie } => {
                    let (allocation, n) = members[member];
                    (sources[source], bind(allocation, &key(n), cookies[cookie % cookies.len()]))
                }
                Step::Replay { sent: which, source } => (sources[source], sent[which % sent.len()].clone()),
                Step::Packet { source, kind, index } => (sources[source], match kind {
                    0 => probe(),
                    1 => initiation(index),
                    2 => response(index, index),
                    3 => message(3, 64, &[index]),
                    _ => data(index),
                }),
                Step::Garbage { source, payload } => {
                    prop_assert_eq!(port.handle_datagram(Via::default(), sources[source], &payload, now), Verdict::Drop);
                    continue;
                }
                Step::Carry(carry) => {
                    port.handle_command(Command::Carry { allocation: ALLOCATION, carry }, now);
                    continue;
                }
                Step::Close(which) => {
                    port.handle_command(Command::Close { allocation: [ALLOCATION, 2][which] }, now);
                    continue;
                }
                Step::Later(seconds) => {
                    now += Duration::from_secs(seconds);
                    port.handle_timeout(now);
                    continue;
                }
            };
            sent.push(payload.clone());
            match port.handle_datagram(Via::default(), source, &payload, now) {
                Verdict::Drop | Verdict::Queued => {}
                Verdict::Answer(answer) => {
                    prop_assert!(answer.len() <= payload.len());
                    // Only who is at an address reads what is sent there; members tell each other
                    // everything.
                    let reader = sources[..4].iter().position(|own| *own == source);
                    let opened = members.iter().find_map(|(_, n)| Message::open(&key(*n), &answer));
                    if let (Some(_), Some(opened)) = (reader.or(mine), opened) {
                        cookies.push(opened.cookie);
                    }
                }
                Verdict::Forward { to, .. } => {
                    let from = sources.iter().position(|known| *known == source).unwrap();
                    let to = sources.iter().position(|known| *known == to);
                    prop_assert!(to.is_some_and(|to| to < 4), "sent to {to:?}");
                    prop_assert!(from < 4, "from {from}");
                }
            }
        }
        prop_assert!(port.by_source.keys().all(|bound| sources[..4].contains(bound)));
    }
}
