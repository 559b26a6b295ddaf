//! A port of the relay.

use std::net::SocketAddr;
use std::time::Duration;

use natpunch_rendezvous::relay::{Command, Limits, Own, Port, Verdict};
use natpunch_rendezvous::server::Via;
use natpunch_rendezvous::testing::{bind, relay_secret};
use natpunch_types::Time;

use super::{Program, address};

const KEYS: [[u8; 32]; 2] = [[1; 32], [2; 32]];

/// Whatever arrives, from whomever: it is dropped, answered by no more to where it came from, or
/// passed on, unchanged, to the other of two addresses that were bound.
pub(super) fn port(data: &[u8]) {
    let mut port = Port::new(Limits::default(), Own::default(), [7; 32]);
    let mut now = Time::from_millis(1_000);
    let mut cookies = [[0; 16]; 2];
    let sides = [address(1), address(2)];
    let mut program = Program::new(data, 400);
    while let Some(operation) = program.operation() {
        let side = usize::from(operation >> 4 & 1);
        let (Some(own), Some(key), Some(cookie)) = (
            sides.get(side).copied(),
            KEYS.get(side),
            cookies.get_mut(side),
        ) else {
            return;
        };
        let from = if operation & 0x60 == 0x60 {
            address(99)
        } else {
            own
        };
        let datagram = match operation & 0x0f {
            0 => {
                let keys = KEYS.map(relay_secret);
                port.handle_command(
                    Command::Open {
                        allocation: 4,
                        keys,
                        registered: sides,
                    },
                    now,
                );
                continue;
            }
            1 => {
                port.handle_command(
                    Command::Carry {
                        allocation: 4,
                        carry: program.byte() & 1 == 0,
                    },
                    now,
                );
                continue;
            }
            2 if program.byte() & 7 == 0 => {
                port.handle_command(Command::Close { allocation: 4 }, now);
                continue;
            }
            3..=6 => bind(*key, 4 | side as u64, [operation; 8], *cookie),
            7 => bind(*key, 4 | side as u64, [operation; 8], [program.byte(); 16]),
            8..=11 => {
                // Of WireGuard's form.
                let (kind, length) = [(1, 148), (2, 92), (3, 64), (4, 32)]
                    .get(usize::from(program.byte() & 3))
                    .copied()
                    .unwrap_or((4, 96));
                let mut packet = vec![program.byte() & 3; length];
                packet.splice(..4, [kind, 0, 0, 0]);
                packet
            }
            12 | 13 => program.chunk().to_vec(),
            _ => {
                now += program.time();
                port.handle_timeout(now);
                continue;
            }
        };
        match port.handle_datagram(Via::default(), from, &datagram, now) {
            Verdict::Drop | Verdict::Queued => {}
            Verdict::Answer(answer) => {
                assert!(answer.len() <= datagram.len());
                if let Some(given) = answer.get(20..36).and_then(|bytes| bytes.try_into().ok()) {
                    *cookie = given;
                }
            }
            Verdict::Forward { to, .. } => {
                let known: [SocketAddr; 3] = [address(1), address(2), address(99)];
                assert!(known.contains(&to) && to != from);
            }
        }
        while port.poll_event().is_some() {}
    }
    for n in 0..3 {
        port.handle_timeout(now + Duration::from_secs(1_000 * (n + 1)));
    }
    assert_eq!(port.allocations(), 0, "everything ends");
}
