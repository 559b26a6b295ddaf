//! The simulator's WireGuard beside the real ones: the same happens to both, and both begin their
//! handshakes at the same times.
//!
//! What matters to natpunch is when a device begins a handshake by itself, when it gives up, and
//! what wakes it again. The simulator's scenarios are worth nothing where its model is kinder there
//! than the devices.

use std::net::{SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use natpunch_sim::{GivesUp, Random, WireGuard as Model, WireGuardOutgoing as Outgoing};
use natpunch_types::{DevicePeer, PeerKey};
use natpunch_wg::BackendChoice;

use crate::traffic::{Pair, connect};

/// What happens to a pair that has a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Happens {
    /// The cable is pulled.
    Down,
    /// The cable is plugged in again.
    Up,
    /// The host of a sends something to b, which has no answer to it.
    Data,
    /// natpunch kicks the peer.
    Kick,
}

type Script = &'static [(u64, Happens)];

/// The size of an initiation, by which it is told from data and keepalives.
const INITIATION: u64 = 148;
/// By how much a device may be off: gotatun looks at its timers four times a second, jitter is a
/// third of one, and the tests' machine may be busy.
const SLACK: f64 = 1.2;

/// Handshakes while nobody answers, and what a kick does then.
const UNANSWERED: Script = &[(0, Happens::Down), (1, Happens::Data), (24, Happens::Up)];
/// Attempts end after 90 s; a kick after that begins anew, and finds the peer.
const GIVEN_UP: Script = &[
    (0, Happens::Down),
    (1, Happens::Data),
    (125, Happens::Up),
    (126, Happens::Kick),
    (128, Happens::Data),
];
/// Long after the session has expired, without anything to say.
const LONG_IDLE: Script = &[
    (0, Happens::Down),
    (300, Happens::Up),
    (301, Happens::Kick),
    (303, Happens::Data),
];

#[test]
fn embedded_begins_handshakes_when_the_model_does() {
    same(BackendChoice::Userspace, UNANSWERED, 26);
}

#[test]
#[ignore = "a campaign of eight minutes: `make outage`"]
fn outage_embedded_wakes_when_the_model_does() {
    same(BackendChoice::Userspace, GIVEN_UP, 130);
    same(BackendChoice::Userspace, LONG_IDLE, 305);
}

/// Run by `make test-vm`, whose kernel has WireGuard.
#[test]
#[ignore = "needs kernel WireGuard: `make test-vm` runs it"]
fn kernel_begins_handshakes_when_the_model_does() {
    same(BackendChoice::Kernel, UNANSWERED, 26);
    same(BackendChoice::Kernel, GIVEN_UP, 130);
}

/// Plays a script on a real device and on the model, for so many seconds.
fn same(backend: BackendChoice, script: Script, seconds: u64) {
    let gives_up = match backend {
        BackendChoice::Kernel => GivesUp::ByCount,
        _ => GivesUp::ByTime,
    };
    let (real, alive) = play_real(backend, script, seconds);
    let (model, model_alive) = play_model(script, seconds, gives_up);
    eprintln!("{backend}: handshakes begun at {real:.1?}, by the model at {model:.1?}");
    assert_eq!(alive, model_alive, "{backend}: a new handshake was done");
    assert_eq!(
        real.len(),
        model.len(),
        "{backend}: {real:.1?}, {model:.1?}"
    );
    // From one to the next, since what a device is late by adds up.
    let steps = |times: &[f64]| -> Vec<f64> {
        let before = std::iter::once(0.0).chain(times.iter().copied());
        times
            .iter()
            .zip(before)
            .map(|(at, last)| at - last)
            .collect()
    };
    // The step that ends with an event of the script takes up what has added up.
    let drift = 0.25 * real.len() as f64;
    for (number, (real_step, model_step)) in steps(&real).iter().zip(steps(&model)).enumerate() {
        let slack = if model_step > 6.0 && number > 0 {
            SLACK + drift
        } else {
            SLACK
        };
        assert!(
            (real_step - model_step).abs() < slack,
            "{backend}: {real:.1?}, {model:.1?}"
        );
    }
}

/// When a began handshakes, in seconds, by the steps of its counter; and whether one was done.
fn play_real(backend: BackendChoice, script: Script, seconds: u64) -> (Vec<f64>, bool) {
    let mut pair = Pair::new(backend);
    connect(&mut pair);
    let sink = pair.b.run(|| UdpSocket::bind("10.5.0.2:9").unwrap());
    let sender = pair.a.run(|| UdpSocket::bind("10.5.0.1:0").unwrap());
    let first = pair.peer();
    let (start, mut last) = (Instant::now(), first.tx_bytes);
    let (mut begun, mut script) = (Vec::new(), script.iter().peekable());
    while start.elapsed() < Duration::from_secs(seconds) {
        while let Some((_, happens)) =
            script.next_if(|(at, _)| start.elapsed() >= Duration::from_secs(*at))
        {
            match happens {
                Happens::Down => _ = pair.b.sh("ip link set veth0 down"),
                Happens::Up => _ = pair.b.sh("ip link set veth0 up"),
                Happens::Data => _ = sender.send_to(&[7; 16], ("10.5.0.2", 9)),
                Happens::Kick => pair.set_endpoint("192.0.2.2:51820", true),
            }
        }
        let DevicePeer { tx_bytes, .. } = pair.peer();
        if tx_bytes - last >= INITIATION && tx_bytes - last < 2 * INITIATION + 64 {
            begun.push(start.elapsed().as_secs_f64());
        }
        last = tx_bytes;
        thread::sleep(Duration::from_millis(100));
    }
    drop(sink);
    (begun, pair.peer().last_handshake != first.last_handshake)
}

fn play_model(script: Script, seconds: u64, gives_up: GivesUp) -> (Vec<f64>, bool) {
    let (key_a, key_b) = (PeerKey::from_bytes([1; 32]), PeerKey::from_bytes([2; 32]));
    let at: [SocketAddr; 2] = [
        "192.0.2.1:51820".parse().unwrap(),
        "192.0.2.2:51820".parse().unwrap(),
    ];
    let mut a = Model::new(key_a, 51_820, Random::new(1, 1)).giving_up(gives_up);
    let mut b = Model::new(key_b, 51_820, Random::new(1, 2)).giving_up(gives_up);
    let start = Duration::from_secs(1_000);
    a.set_peer(key_b, None, start);
    b.set_peer(key_a, None, start);
    a.set_endpoint(key_b, at[1], true, start);
    let mut is_up = true;
    let mut begun = Vec::new();
    let mut exchange = |a: &mut Model, b: &mut Model, is_up: bool, now: Duration| {
        let mut news = true;
        while std::mem::take(&mut news) {
            while let Some(Outgoing { message, .. }) = a.poll_transmit() {
                news = true;
                if message.to_string().starts_with("initiation") && now > start {
                    begun.push((now - start).as_secs_f64());
                }
                if is_up {
                    b.handle_message(at[0], message, now);
                }
            }
            while let Some(Outgoing { message, .. }) = b.poll_transmit() {
                news = true;
                if is_up {
                    a.handle_message(at[1], message, now);
                }
            }
        }
    };
    exchange(&mut a, &mut b, is_up, start);
    let first = a.last_handshake(&key_b);
    assert!(first.is_some());
    // In steps of a tick: the script and the timers, in their order.
    for tick in 1..=seconds * 20 {
        let now = start + Duration::from_millis(tick * 50);
        for (_, happens) in script.iter().filter(|(at, _)| at * 20 + 1 == tick) {
            match happens {
                Happens::Down => is_up = false,
                Happens::Up => is_up = true,
                Happens::Data => a.send_data(key_b, 48, now),
                Happens::Kick => _ = a.set_endpoint(key_b, at[1], true, now),
            }
        }
        a.handle_timeout(now);
        b.handle_timeout(now);
        exchange(&mut a, &mut b, is_up, now);
    }
    let done = a.last_handshake(&key_b) != first;
    (begun, done)
}
