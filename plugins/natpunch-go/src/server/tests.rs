use std::net::Ipv4Addr;

use rand_chacha::ChaCha20Rng;

use super::*;
use crate::testing::rng;

const SECOND: Duration = Duration::from_secs(1);
const VICTIM: &str = "203.0.113.66:6";

fn at(n: u32) -> SocketAddr {
    (Ipv4Addr::from(0x0b00_0000 + n), 51820).into()
}

/// The same, each in a /24 of its own.
fn far(n: u32) -> SocketAddr {
    (Ipv4Addr::from(0x0c00_0000 + (n << 8)), 51820).into()
}

fn secret(n: u32) -> SecretKey {
    let mut bytes = [9; 32];
    bytes[..4].copy_from_slice(&n.to_be_bytes());
    SecretKey::from_bytes(bytes)
}

fn config() -> Config {
    Config {
        handshakes_per_source: 1_000_000,
        handshakes_of_strangers: 1_000_000,
        ..Config::new(secret(0))
    }
}

fn server() -> Server<ChaCha20Rng> {
    Server::new(config(), rng(0)).unwrap()
}

/// A client as small as the protocol allows, which can also misbehave.
struct Caller {
    identity: Identity,
    rng: ChaCha20Rng,
    transport: Option<Transport>,
    index: u32,
    nonce: u64,
}

impl Caller {
    fn new(n: u32) -> Self {
        let identity = Identity::new(&secret(n)).unwrap();
        Self {
            identity,
            rng: rng(n as u8),
            transport: None,
            index: 0,
            nonce: 0,
        }
    }

    fn key(&self) -> PeerKey {
        self.identity.public()
    }

    fn init(&mut self, index: u32, payload: &[u8]) -> (natpunch_noise::HandshakeState, Vec<u8>) {
        let server = Identity::new(&secret(0)).unwrap().public();
        let mut handshake = self.identity.initiate(&server, &mut self.rng).unwrap();
        let mut noise = [0; 1024];
        let length = handshake.write_message(payload, &mut noise).unwrap();
        (
            handshake,
            [&[1], &index.to_be_bytes()[..], &noise[..length]].concat(),
        )
    }

    fn accept(&mut self, mut handshake: natpunch_noise::HandshakeState, response: &[u8]) {
        assert_eq!((response.len(), response[0]), (53, 2));
        assert_eq!(
            handshake
                .read_message(&response[5..], &mut [0; 64])
                .unwrap(),
            0
        );
        self.index = u32::from_be_bytes(response[1..5].try_into().unwrap());
        self.transport = Transport::new(handshake);
        self.nonce = 0;
    }

    fn connect<R: RngCore + CryptoRng>(
        &mut self,
        server: &mut Server<R>,
        from: SocketAddr,
        now: Duration,
    ) -> bool {
        let (handshake, datagram) = self.init(77, &now.as_nanos().to_be_bytes()[8..]);
        let Some(reply) = server.handle_datagram(from, &datagram, Time::from_origin(now)) else {
            return false;
        };
        assert!(reply.len() <= datagram.len());
        self.accept(handshake, &reply);
        true
    }

    fn data(&mut self, inside: &[u8]) -> Vec<u8> {
        let mut sealed = vec![0; inside.len() + 16];
        self.transport
            .as_ref()
            .unwrap()
            .seal(self.nonce, inside, &mut sealed)
            .unwrap();
        self.nonce += 1;
        [
            &[3],
            &self.index.to_be_bytes()[..],
            &(self.nonce - 1).to_be_bytes(),
            &sealed,
        ]
        .concat()
    }

    fn request(&mut self, wanted: PeerKey) -> Vec<u8> {
        self.data(&[self.key().as_bytes().as_slice(), wanted.as_bytes()].concat())
    }

    fn read(&self, reply: &[u8]) -> Option<SocketAddr> {
        let nonce = u64::from_be_bytes(reply[1..9].try_into().unwrap());
        let mut inside = [0; 64];
        let length = self
            .transport
            .as_ref()
            .unwrap()
            .open(nonce, &reply[9..], &mut inside)
            .unwrap();
        wire::decode_address(&inside[..length])
    }

    /// The answer of the server, if it answers: an address, or that none is known.
    fn ask<R: RngCore + CryptoRng>(
        &mut self,
        server: &mut Server<R>,
        from: SocketAddr,
        wanted: PeerKey,
        now: Duration,
    ) -> Option<Option<SocketAddr>> {
        let datagram = self.request(wanted);
        let reply = server.handle_datagram(from, &datagram, Time::from_origin(now))?;
        assert!(reply.len() <= datagram.len());
        Some(self.read(&reply))
    }
}

/// Two clients at 11.0.0.1 and 11.0.0.2 that have asked for each other.
fn pair(server: &mut Server<ChaCha20Rng>) -> (Caller, Caller) {
    let (mut a, mut b) = (Caller::new(1), Caller::new(2));
    assert!(a.connect(server, at(1), SECOND));
    assert!(b.connect(server, at(2), SECOND));
    assert_eq!(a.ask(server, at(1), b.key(), SECOND), Some(None));
    assert_eq!(b.ask(server, at(2), a.key(), SECOND), Some(Some(at(1))));
    assert_eq!(a.ask(server, at(1), b.key(), SECOND), Some(Some(at(2))));
    (a, b)
}

/// What must not change by bad input.
fn state<R>(server: &Server<R>) -> (usize, usize, usize, usize) {
    (
        server.sessions.len(),
        server.clients.len(),
        server.expiry.len(),
        server.asked,
    )
}

#[test]
fn two_clients_find_each_other() {
    pair(&mut server());
}

/// G1.
#[test]
fn an_empty_datagram_gets_silence() {
    let mut server = server();
    assert!(
        server
            .handle_datagram(at(1), &[], Time::from_origin(SECOND))
            .is_none()
    );
    pair(&mut server);
}

/// G2.
#[test]
fn every_length_of_every_type_gets_silence_and_changes_nothing() {
    let mut server = server();
    let (a, mut b) = pair(&mut server);
    let before = state(&server);
    let index = a.index.to_be_bytes();
    for kind in 0..=255 {
        for length in 0..=2048 {
            let mut datagram = vec![0x5a; length];
            datagram
                .iter_mut()
                .zip([&[kind][..], &index].concat())
                .for_each(|(to, from)| *to = from);
            assert!(
                server
                    .handle_datagram(at(1), &datagram, Time::from_origin(SECOND))
                    .is_none(),
                "{kind} {length}"
            );
        }
    }
    assert_eq!(state(&server), before);
    assert_eq!(
        b.ask(&mut server, at(2), a.key(), SECOND),
        Some(Some(at(1)))
    );
}

/// G2.
#[test]
fn every_truncation_and_bit_flip_of_a_message_gets_silence() {
    let mut server = server();
    let (mut a, mut b) = pair(&mut server);
    let before = state(&server);
    let (handshake, init) = a.init(5, &[1; 8]);
    let request = a.request(b.key());
    for message in [&init, &request] {
        for length in 0..message.len() {
            assert!(
                server
                    .handle_datagram(at(1), &message[..length], Time::from_origin(SECOND))
                    .is_none()
            );
        }
        // The index that a client wishes for is outside the Noise message and means nothing here.
        let ignored = if message[0] == 1 { 8..40 } else { 0..0 };
        for bit in (0..message.len() * 8).filter(|bit| !ignored.contains(bit)) {
            let mut flipped = message.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(
                server
                    .handle_datagram(at(1), &flipped, Time::from_origin(SECOND))
                    .is_none(),
                "bit {bit}"
            );
        }
        assert!(
            server
                .handle_datagram(
                    at(1),
                    &[&message[..], &[0]].concat(),
                    Time::from_origin(SECOND)
                )
                .is_none()
        );
    }
    assert_eq!(state(&server), before);
    assert!(
        server
            .handle_datagram(at(1), &request, Time::from_origin(SECOND))
            .is_some()
    );
    let response = server
        .handle_datagram(at(1), &init, Time::from_origin(SECOND))
        .unwrap();
    a.accept(handshake, &response);
    assert_eq!(
        b.ask(&mut server, at(2), a.key(), SECOND),
        Some(Some(at(1)))
    );
}

/// G3.
#[test]
fn a_handshake_with_another_payload_than_a_timestamp_gets_silence() {
    let mut server = server();
    let mut a = Caller::new(1);
    for length in (0..64).filter(|length| *length != 8) {
        let (_, datagram) = a.init(1, &vec![1; length]);
        assert!(
            server
                .handle_datagram(at(1), &datagram, Time::from_origin(SECOND))
                .is_none(),
            "{length}"
        );
    }
    assert_eq!(state(&server), (0, 0, 0, 0));
    pair(&mut server);
}

/// G4.
#[test]
fn authentic_data_of_another_length_gets_silence() {
    let mut server = server();
    let (mut a, mut b) = pair(&mut server);
    for length in (0..200).filter(|length| *length != 64) {
        let datagram = a.data(&vec![7; length]);
        assert!(
            server
                .handle_datagram(at(1), &datagram, Time::from_origin(SECOND))
                .is_none(),
            "{length}"
        );
    }
    let key = b.key();
    assert_eq!(a.ask(&mut server, at(1), key, SECOND), Some(Some(at(2))));
    let foreign = a.data(&[key.as_bytes().as_slice(), key.as_bytes()].concat());
    assert!(
        server
            .handle_datagram(at(1), &foreign, Time::from_origin(SECOND))
            .is_none(),
        "asked in another's name"
    );
    assert!(b.ask(&mut server, at(2), a.key(), SECOND).is_some());
}

/// G5.
#[test]
fn the_server_chooses_the_index_and_an_unknown_one_is_silence() {
    let mut server = server();
    let mut a = Caller::new(1);
    let mut granted = BTreeSet::new();
    for _ in 0..50 {
        assert!(a.connect(&mut server, at(1), SECOND));
        assert!(a.index != 77 && a.index != 78 && granted.insert(a.index));
    }
    a.index = 77;
    let key = a.key();
    assert_eq!(a.ask(&mut server, at(1), key, SECOND), None);
}

/// G6.
#[test]
fn a_handshake_that_names_anothers_index_changes_nothing_of_the_other() {
    let mut server = server();
    let (mut a, mut b) = pair(&mut server);
    let mut evil = Caller::new(3);
    for index in [a.index, b.index, a.index.wrapping_sub(1)] {
        let (handshake, datagram) = evil.init(index, &[2; 8]);
        let response = server
            .handle_datagram(at(3), &datagram, Time::from_origin(SECOND))
            .unwrap();
        evil.accept(handshake, &response);
        assert!(evil.index != a.index && evil.index != b.index);
    }
    assert_eq!(
        a.ask(&mut server, at(1), b.key(), SECOND),
        Some(Some(at(2)))
    );
    assert_eq!(
        b.ask(&mut server, at(2), a.key(), SECOND),
        Some(Some(at(1)))
    );
}

/// G7.
#[test]
fn made_up_keys_fill_the_table_and_evict_nobody() {
    let mut server = Server::new(
        Config {
            max_keys: 50,
            max_pending: 20,
            ..config()
        },
        rng(0),
    )
    .unwrap();
    let (mut a, mut b) = pair(&mut server);
    for n in 10..200 {
        let mut made_up = Caller::new(n);
        if made_up.connect(&mut server, far(n), SECOND) && n % 2 == 0 {
            let key = a.key();
            made_up.ask(&mut server, far(n), key, SECOND);
        }
        assert!(
            server.pending.len() <= 20 && server.clients.len() <= 50 && server.sessions.len() <= 70
        );
    }
    assert_eq!(server.registered(), 50);
    assert!(server.counters().full > 0);
    assert_eq!(
        a.ask(&mut server, at(1), b.key(), SECOND),
        Some(Some(at(2)))
    );
    assert!(
        b.connect(&mut server, at(2), SECOND),
        "who is registered can handshake anew"
    );
    assert_eq!(
        b.ask(&mut server, at(2), a.key(), SECOND),
        Some(Some(at(1)))
    );
}

/// G7.
#[test]
fn only_allowed_keys_register_and_a_removed_one_ends_at_once() {
    let (mut a, mut b, mut c) = (Caller::new(1), Caller::new(2), Caller::new(3));
    let allowed = BTreeSet::from([a.key(), b.key()]);
    let mut server = Server::new(
        Config {
            allowed: Some(allowed),
            ..config()
        },
        rng(0),
    )
    .unwrap();
    assert!(!c.connect(&mut server, at(3), SECOND));
    assert!(a.connect(&mut server, at(1), SECOND) && b.connect(&mut server, at(2), SECOND));
    let (a_key, b_key) = (a.key(), b.key());
    a.ask(&mut server, at(1), b_key, SECOND);
    assert_eq!(b.ask(&mut server, at(2), a_key, SECOND), Some(Some(at(1))));
    server.set_allowed(Some([b_key].into()));
    assert_eq!(b.ask(&mut server, at(2), a_key, SECOND), Some(None));
    assert_eq!(a.ask(&mut server, at(1), b_key, SECOND), None);
}

/// G7.
#[test]
fn silence_ends_a_registration_and_nothing_remains() {
    let mut server = server();
    let (mut a, b) = pair(&mut server);
    a.ask(&mut server, at(1), b.key(), SECOND * 600);
    server.handle_timeout(Time::from_origin(SECOND * 910));
    assert_eq!(a.ask(&mut server, at(1), b.key(), SECOND * 910), Some(None));
    server.handle_timeout(Time::from_origin(SECOND * 3000));
    assert_eq!(state(&server), (0, 0, 0, 0));
    assert_eq!((server.pending.len(), server.poll_timeout()), (0, None));
}

/// G7: outlives the five minutes between the handshakes of a client that found all its peers.
#[test]
fn a_registration_outlives_two_rekey_intervals() {
    let mut server = server();
    let (mut a, b) = pair(&mut server);
    a.ask(&mut server, at(1), b.key(), SECOND * 600);
    assert_eq!(
        a.ask(&mut server, at(1), b.key(), SECOND * 601),
        Some(Some(at(2)))
    );
}

/// G8.
#[test]
fn a_captured_handshake_moves_nothing_even_after_a_restart() {
    let mut before = server();
    let mut a = Caller::new(1);
    a.rng = rng(99);
    let (handshake, captured) = a.init(1, &[1; 8]);
    let response = before
        .handle_datagram(at(1), &captured, Time::from_origin(SECOND))
        .unwrap();
    a.accept(handshake, &response);
    let captured_request = a.request(Caller::new(2).key());
    before
        .handle_datagram(at(1), &captured_request, Time::from_origin(SECOND))
        .unwrap();
    let counted = before.counters().replayed;
    assert!(
        before
            .handle_datagram(at(6), &captured, Time::from_origin(SECOND))
            .is_none(),
        "known, so not even answered"
    );
    assert!(
        before
            .handle_datagram(at(1), &captured_request, Time::from_origin(SECOND))
            .is_none()
    );
    assert_eq!(before.counters().replayed, counted + 2);

    let mut restarted = Server::new(config(), rng(1)).unwrap();
    let (_, mut b) = pair(&mut restarted);
    assert!(
        restarted
            .handle_datagram(at(6), &captured, Time::from_origin(SECOND))
            .is_some()
    );
    assert!(
        restarted
            .handle_datagram(at(6), &captured_request, Time::from_origin(SECOND))
            .is_none()
    );
    assert_eq!(
        b.ask(&mut restarted, at(2), a.key(), SECOND),
        Some(Some(at(1)))
    );
}

/// G9.
#[test]
fn no_timestamp_bars_a_key() {
    let mut server = server();
    let (mut a, mut b) = pair(&mut server);
    for timestamp in [u64::MAX, 0, 1, u64::MAX - 1, 5, 5] {
        let (handshake, datagram) = a.init(1, &timestamp.to_be_bytes());
        let response = server
            .handle_datagram(at(9), &datagram, Time::from_origin(SECOND))
            .unwrap();
        a.accept(handshake, &response);
        assert_eq!(
            a.ask(&mut server, at(9), b.key(), SECOND),
            Some(Some(at(2)))
        );
        assert_eq!(
            b.ask(&mut server, at(2), a.key(), SECOND),
            Some(Some(at(9)))
        );
    }
}

/// G10.
#[test]
fn a_key_without_a_proven_address_is_not_known() {
    let mut server = server();
    let (mut a, _) = pair(&mut server);
    let mut shy = Caller::new(3);
    assert_eq!(
        a.ask(&mut server, at(1), shy.key(), SECOND),
        Some(None),
        "never seen"
    );
    assert!(shy.connect(&mut server, at(3), SECOND));
    assert_eq!(
        a.ask(&mut server, at(1), shy.key(), SECOND),
        Some(None),
        "only a handshake"
    );
    assert_eq!(
        a.ask(&mut server, at(1), PeerKey::from_bytes([0; 32]), SECOND),
        Some(None)
    );
    let key = a.key();
    shy.ask(&mut server, at(3), key, SECOND);
    assert_eq!(
        a.ask(&mut server, at(1), shy.key(), SECOND),
        Some(Some(at(3)))
    );
}

/// G11: what can be done without a cookie. Who is registered is served whatever strangers send.
#[test]
fn a_flood_from_made_up_addresses_does_not_take_the_turn_of_the_registered() {
    let limited = Config {
        handshakes_per_source: 20,
        handshakes_of_strangers: 200,
        ..config()
    };
    let mut server = Server::new(limited, rng(0)).unwrap();
    let (mut a, b) = pair(&mut server);
    let junk = [&[1][..], &[0x5a; 108]].concat();
    for n in 0..20_000 {
        server.handle_datagram(
            at(1000 + n),
            &junk,
            Time::from_origin(SECOND * 2 + Duration::from_micros(50) * n),
        );
    }
    assert!(server.counters().limited > 19_700 && server.counters().forged < 300);
    let now = SECOND * 3;
    assert!(a.connect(&mut server, at(1), now));
    assert_eq!(a.ask(&mut server, at(1), b.key(), now), Some(Some(at(2))));
}

/// G11.
#[test]
fn a_source_that_floods_is_limited_before_any_key_is_computed() {
    let mut server = Server::new(Config::new(secret(0)), rng(0)).unwrap();
    let junk = [&[1][..], &[0x5a; 108]].concat();
    for n in 0..60_000 {
        server.handle_datagram(
            at(1),
            &junk,
            Time::from_origin(SECOND + Duration::from_nanos(16_667) * n),
        );
    }
    assert!(server.counters().forged <= 40, "{:?}", server.counters());
    assert!(Caller::new(2).connect(&mut server, at(2), SECOND * 2));
}

/// G13.
#[test]
fn a_private_key_of_zeros_makes_no_server() {
    let config = Config::new(SecretKey::from_bytes([0; 32]));
    assert_eq!(Server::new(config, rng(0)).err(), Some(InvalidKey));
}

/// G14, as far as the protocol allows: consent is that the other side asked too.
#[test]
fn a_key_learns_only_where_those_are_who_asked_for_it() {
    let mut server = server();
    let (a, b) = pair(&mut server);
    let mut stranger = Caller::new(3);
    assert!(stranger.connect(&mut server, at(3), SECOND));
    for key in [a.key(), b.key()] {
        assert_eq!(stranger.ask(&mut server, at(3), key, SECOND), Some(None));
    }
    let own = stranger.key();
    assert_eq!(
        stranger.ask(&mut server, at(3), own, SECOND),
        Some(Some(at(3)))
    );
}

#[test]
fn made_up_keys_of_one_site_leave_room_for_others() {
    let mut server = Server::new(
        Config {
            max_keys: 100,
            ..config()
        },
        rng(0),
    )
    .unwrap();
    let mut register = |n: u32, from: SocketAddr| {
        let mut caller = Caller::new(n);
        if caller.connect(&mut server, from, SECOND) {
            caller.ask(&mut server, from, PeerKey::from_bytes([1; 32]), SECOND);
        }
        server.registered()
    };
    // As many keys as it takes, from all addresses of one /24.
    let taken = (0..200).map(|n| register(n, at(n))).max();
    assert_eq!(taken, Some(50));
    assert_eq!(register(1_000, far(1)), 51, "no room for another site");
}

/// G14: what is remembered of consent has a bound too.
#[test]
fn what_is_asked_for_is_remembered_up_to_a_bound() {
    let mut server = Server::new(
        Config {
            max_keys: 4,
            ..config()
        },
        rng(0),
    )
    .unwrap();
    let (mut a, _) = pair(&mut server);
    for n in 0..5000u32 {
        let mut key = [1; 32];
        key[..4].copy_from_slice(&n.to_be_bytes());
        a.ask(&mut server, at(1), PeerKey::from_bytes(key), SECOND);
    }
    let remembered: usize = server
        .clients
        .values()
        .map(|client| client.asked.len())
        .sum();
    assert_eq!(remembered, server.asked);
    assert!(remembered <= 4 * MEAN_ASKED);
}

/// G15.
#[test]
fn an_address_is_published_only_after_a_round_trip_to_it() {
    let mut server = server();
    let (mut a, mut b) = pair(&mut server);
    let victim: SocketAddr = VICTIM.parse().unwrap();
    // From the start: the response goes to the victim, so no request can follow.
    let (_, datagram) = a.init(1, &[9; 8]);
    assert!(
        server
            .handle_datagram(victim, &datagram, Time::from_origin(SECOND))
            .is_some()
    );
    assert_eq!(
        b.ask(&mut server, at(2), a.key(), SECOND),
        Some(Some(at(1)))
    );
    // Later, within a session that was proven elsewhere: answered, as after a NAT forgot, but not
    // published.
    assert_eq!(
        a.ask(&mut server, victim, b.key(), SECOND),
        Some(Some(at(2)))
    );
    assert_eq!(
        b.ask(&mut server, at(2), a.key(), SECOND),
        Some(Some(at(1)))
    );
    // And never for a first proof.
    assert!(a.connect(&mut server, at(1), SECOND));
    assert_eq!(a.ask(&mut server, victim, b.key(), SECOND), None);
    assert_eq!(
        b.ask(&mut server, at(2), a.key(), SECOND),
        Some(Some(at(1)))
    );
    // A new handshake moves it.
    assert!(a.connect(&mut server, at(7), SECOND));
    assert!(a.ask(&mut server, at(7), b.key(), SECOND).is_some());
    assert_eq!(
        b.ask(&mut server, at(2), a.key(), SECOND),
        Some(Some(at(7)))
    );
}

/// G15.
#[test]
fn an_address_from_which_nothing_came_for_long_is_not_told_though_its_session_lives() {
    let mut server = server();
    let (mut a, mut b) = pair(&mut server);
    let elsewhere: SocketAddr = VICTIM.parse().unwrap();
    for minute in 1..=20 {
        assert!(
            a.ask(&mut server, elsewhere, b.key(), SECOND * 60 * minute)
                .is_some()
        );
        assert!(
            b.ask(&mut server, at(2), a.key(), SECOND * 60 * minute)
                .is_some()
        );
    }
    assert_eq!(
        b.ask(&mut server, at(2), a.key(), SECOND * 1200),
        Some(None)
    );
    assert_eq!(
        a.ask(&mut server, elsewhere, b.key(), SECOND * 1200),
        Some(Some(at(2)))
    );
}

/// G16.
#[test]
fn a_forged_header_neither_decrypts_nor_moves_the_window() {
    let mut server = server();
    let (mut a, b) = pair(&mut server);
    let mut forged = a.request(b.key());
    forged[5..13].copy_from_slice(&(u64::MAX - 1).to_be_bytes());
    assert!(
        server
            .handle_datagram(at(1), &forged, Time::from_origin(SECOND))
            .is_none()
    );
    forged[5..13].copy_from_slice(&u64::MAX.to_be_bytes());
    assert!(
        server
            .handle_datagram(at(1), &forged, Time::from_origin(SECOND))
            .is_none()
    );
    assert_eq!(
        a.ask(&mut server, at(1), b.key(), SECOND),
        Some(Some(at(2)))
    );
    let early: Vec<_> = (0..900).map(|_| a.request(b.key())).collect();
    for request in early.iter().rev() {
        assert!(
            server
                .handle_datagram(at(1), request, Time::from_origin(SECOND))
                .is_some(),
            "reordered"
        );
        assert!(
            server
                .handle_datagram(at(1), request, Time::from_origin(SECOND))
                .is_none(),
            "replayed"
        );
    }
}

/// G17.
#[test]
fn both_address_families_are_served_each_with_its_own() {
    let mut server = server();
    let (mut a, mut b) = pair(&mut server);
    let at6 = |n: u16| SocketAddr::new([0x2001, 0xdb8, 0, n, 0, 0, 0, 1].into(), 51820);
    let (mut a6, mut b6) = (Caller::new(1), Caller::new(2));
    a6.rng = rng(61);
    b6.rng = rng(62);
    assert!(a6.connect(&mut server, at6(1), SECOND));
    assert_eq!(
        a6.ask(&mut server, at6(1), b.key(), SECOND),
        Some(None),
        "b is not known by IPv6 yet"
    );
    assert!(b6.connect(&mut server, at6(2), SECOND));
    assert_eq!(
        b6.ask(&mut server, at6(2), a.key(), SECOND),
        Some(Some(at6(1)))
    );
    assert_eq!(
        a6.ask(&mut server, at6(1), b.key(), SECOND),
        Some(Some(at6(2)))
    );
    assert_eq!(
        a.ask(&mut server, at(1), b.key(), SECOND),
        Some(Some(at(2)))
    );
    assert_eq!(
        b.ask(&mut server, at(2), a.key(), SECOND),
        Some(Some(at(1)))
    );
    assert_eq!(server.registered(), 2);
    // An IPv4 client of a dual-stack socket is an IPv4 client.
    let mapped: SocketAddr = "[::ffff:11.0.0.1]:51820".parse().unwrap();
    assert_eq!(
        a.ask(&mut server, mapped, b.key(), SECOND),
        Some(Some(at(2)))
    );
}

#[test]
fn a_newer_session_replaces_the_older_of_its_key() {
    let mut server = server();
    let (mut a, b) = pair(&mut server);
    let old = (a.transport.take().unwrap(), a.index, a.nonce);
    assert!(a.connect(&mut server, at(1), SECOND * 2));
    assert_eq!(
        server.sessions.len(),
        3,
        "the old one serves until the new one is proven"
    );
    assert_eq!(
        a.ask(&mut server, at(1), b.key(), SECOND * 2),
        Some(Some(at(2)))
    );
    assert_eq!(server.sessions.len(), 2);
    (a.transport, a.index, a.nonce) = (Some(old.0), old.1, old.2);
    assert_eq!(a.ask(&mut server, at(1), b.key(), SECOND * 2), None);
}
