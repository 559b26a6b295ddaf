//! What peers say to each other of third ones.

use natpunch_gossip::{Effect, Gossip};
use natpunch_types::{Interest, PeerKey, RecordTag, Time};

use super::Program;

/// Members of the mesh, this node among them; one more key is a stranger's.
const MEMBERS: u8 = 7;

fn key(n: u8) -> PeerKey {
    PeerKey::from_bytes([n & 7; 32])
}

/// A node whose peers say what they like. Each message comes to two at most, and nothing goes to or
/// is about anybody who is no member, or to a peer without a path.
pub(super) fn peers(data: &[u8]) {
    let mut gossip = Gossip::new(key(0));
    let mut now = Time::ZERO;
    let mut direct = 0;
    let mut program = Program::new(data, 300);
    while let Some(operation) = program.operation() {
        let most = match operation & 3 {
            0 => {
                let wanted = program.byte();
                direct = program.byte();
                let interest = |n: u8| Interest {
                    wanted: wanted >> n & 1 == 1,
                    is_direct: direct >> n & 1 == 1,
                    inbound_tag: RecordTag([n; 16]),
                    ..Interest::new(key(n))
                };
                let peers: Vec<Interest> = (1..MEMBERS).map(interest).collect();
                gossip.handle_peers(&peers, now);
                usize::from(MEMBERS).pow(2)
            }
            1 => {
                now += program.time();
                gossip.handle_timeout(now);
                usize::from(MEMBERS).pow(2)
            }
            _ => {
                // The key of a member in the place of a third node's, else whatever the fuzzer has.
                let mut message = program.chunk().to_vec();
                if let Some(third) = message.get_mut(2..34)
                    && operation & 4 == 0
                {
                    third.fill(program.byte() & 7);
                }
                gossip.handle_message(key(operation >> 4), &message, now);
                2
            }
        };
        let mut effects = 0;
        while let Some(effect) = gossip.poll_effect() {
            effects += 1;
            match effect {
                Effect::Send { to, .. } => {
                    let [n, ..] = *to.as_bytes();
                    assert!((1..MEMBERS).contains(&n) && direct >> n & 1 == 1, "{n}");
                }
                Effect::Tell(record) => {
                    let [n, ..] = record.tag.0;
                    assert!((1..MEMBERS).contains(&n), "{n}");
                }
            }
        }
        assert!(effects <= most, "{effects}");
    }
}
