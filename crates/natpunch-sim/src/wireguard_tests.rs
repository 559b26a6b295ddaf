use super::*;

const MS: Duration = Duration::from_millis(1);

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

struct Pair {
    a: Device,
    b: Device,
    a_at: SocketAddr,
    b_at: SocketAddr,
    wire_up: bool,
    sent: usize,
}

impl Pair {
    fn new(keepalive: Option<Duration>) -> Self {
        let (key_a, key_b) = (PeerKey::from_bytes([1; 32]), PeerKey::from_bytes([2; 32]));
        let mut a = Device::new(key_a, 1, Random::new(1, 1));
        let mut b = Device::new(key_b, 2, Random::new(1, 2));
        a.set_peer(key_b, keepalive, at(0));
        b.set_peer(key_a, keepalive, at(0));
        let (a_at, b_at) = ("10.0.0.1:1".parse().unwrap(), "10.0.0.2:2".parse().unwrap());
        Self {
            a,
            b,
            a_at,
            b_at,
            wire_up: true,
            sent: 0,
        }
    }

    fn exchange(&mut self, now: Duration) {
        for _ in 0..10 {
            while let Some(out) = self.a.poll_transmit() {
                self.sent += 1;
                if self.wire_up && out.to == self.b_at {
                    self.b.handle_message(self.a_at, out.message, now);
                }
            }
            while let Some(out) = self.b.poll_transmit() {
                self.sent += 1;
                if self.wire_up && out.to == self.a_at {
                    self.a.handle_message(self.b_at, out.message, now);
                }
            }
        }
    }

    fn run_until(&mut self, end: Duration) {
        while let Some(now) = [self.a.poll_timeout(), self.b.poll_timeout()]
            .into_iter()
            .flatten()
            .min()
        {
            if now > end {
                break;
            }
            self.a.handle_timeout(now);
            self.b.handle_timeout(now);
            self.exchange(now);
        }
    }
}

#[test]
fn a_handshake_gives_both_a_session_and_the_responder_an_endpoint() {
    let mut pair = Pair::new(None);
    assert!(pair.a.set_endpoint(pair.b.key, pair.b_at, true, at(1)));
    pair.exchange(at(1));
    assert!(pair.a.has_session(&pair.b.key, at(1)) && pair.b.has_session(&pair.a.key, at(1)));
    assert_eq!(pair.b.endpoint(&pair.a.key), Some(pair.a_at));
    pair.b.send_data(pair.a.key, 100, at(2));
    pair.exchange(at(2));
    assert_eq!(pair.a.received_data(&pair.b.key), 1);
    assert_eq!(
        pair.b.snapshot().peers[0].last_handshake,
        Some(at(1_700_000_001))
    );
}

#[test]
fn attempts_come_every_five_seconds_and_end_after_ninety() {
    let mut pair = Pair::new(None);
    pair.wire_up = false;
    pair.a.set_endpoint(pair.b.key, pair.b_at, true, at(0));
    pair.run_until(at(1_000));
    assert!((17..=19).contains(&pair.sent), "{}", pair.sent);
}

#[test]
fn the_endpoint_roams_to_the_source_of_authenticated_data_only() {
    let mut pair = Pair::new(None);
    pair.a.set_endpoint(pair.b.key, pair.b_at, true, at(1));
    pair.exchange(at(1));
    let old = pair.a_at;
    pair.a_at = "10.0.0.9:9".parse().unwrap();
    let forged = Content::Data {
        session: 12345,
        counter: 9,
        length: 1,
    };
    pair.b.handle_message(
        pair.a_at,
        Message {
            from: pair.a.key,
            to: pair.b.key,
            content: forged,
        },
        at(2),
    );
    assert_eq!(pair.b.endpoint(&pair.a.key), Some(old));
    pair.a.send_data(pair.b.key, 1, at(2));
    pair.exchange(at(2));
    assert_eq!(pair.b.endpoint(&pair.a.key), Some(pair.a_at));
}

#[test]
fn a_replayed_packet_counts_once() {
    let mut pair = Pair::new(None);
    pair.a.set_endpoint(pair.b.key, pair.b_at, true, at(1));
    pair.exchange(at(1));
    pair.a.send_data(pair.b.key, 1, at(2));
    let out = pair.a.poll_transmit().unwrap();
    for _ in 0..3 {
        pair.b.handle_message(pair.a_at, out.message, at(2));
    }
    assert_eq!(pair.b.received_data(&pair.a.key), 1);
}

#[test]
fn a_session_with_keepalives_is_renewed_for_ever_and_one_without_dies() {
    for (keepalive, alive) in [(Some(25_000 * MS), true), (None, false)] {
        let mut pair = Pair::new(keepalive);
        pair.a.set_endpoint(pair.b.key, pair.b_at, true, at(1));
        pair.exchange(at(1));
        pair.run_until(at(3_600));
        assert_eq!(pair.a.has_session(&pair.b.key, at(3_600)), alive);
    }
}

#[test]
fn data_without_an_answer_leads_to_a_new_handshake() {
    let mut pair = Pair::new(None);
    pair.a.set_endpoint(pair.b.key, pair.b_at, true, at(1));
    pair.exchange(at(1));
    pair.wire_up = false;
    pair.a.send_data(pair.b.key, 1, at(2));
    pair.exchange(at(2));
    pair.run_until(at(16));
    pair.wire_up = true;
    pair.run_until(at(30));
    assert!(pair.b.last_handshake(&pair.a.key).unwrap() > at(16));
}

#[test]
fn an_attempt_without_an_endpoint_delays_the_next_unless_kicked() {
    for (kick, quick) in [(false, false), (true, true)] {
        let mut pair = Pair::new(Some(at(25)));
        pair.a.set_endpoint(pair.b.key, pair.b_at, kick, at(1));
        pair.exchange(at(1));
        assert_eq!(pair.a.has_session(&pair.b.key, at(1)), quick);
        pair.run_until(at(7));
        assert!(pair.a.has_session(&pair.b.key, at(7)));
    }
}

#[test]
fn initiations_that_cross_come_to_nothing_and_are_repeated() {
    let mut pair = Pair::new(None);
    pair.a.set_endpoint(pair.b.key, pair.b_at, true, at(1));
    pair.b.set_endpoint(pair.a.key, pair.a_at, true, at(1));
    let (from_a, from_b) = (
        pair.a.poll_transmit().unwrap(),
        pair.b.poll_transmit().unwrap(),
    );
    pair.b.handle_message(pair.a_at, from_a.message, at(1));
    pair.a.handle_message(pair.b_at, from_b.message, at(1));
    pair.exchange(at(1));
    assert!(!pair.a.has_session(&pair.b.key, at(1)) && !pair.b.has_session(&pair.a.key, at(1)));
    pair.run_until(at(7));
    assert!(pair.a.has_session(&pair.b.key, at(7)) && pair.b.has_session(&pair.a.key, at(7)));
}
