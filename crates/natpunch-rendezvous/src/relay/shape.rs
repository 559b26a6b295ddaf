//! What a relay lets through: datagrams that have the form of WireGuard's messages, and natpunch's
//! probes.

use natpunch_types::{PROBE_LEN, PROBE_MAGIC, SIZE_PROBE_FORM, SIZE_PROBE_LEN};

/// An index by which a receiver finds a session of WireGuard.
pub(super) type Index = u32;

/// The form of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// WireGuard's first handshake message (type 1), with the index that its sender chose.
    Initiation { sender: Index },
    /// WireGuard's second (type 2), with the index that its sender chose, and the index of the
    /// initiation that it answers.
    Response { sender: Index, receiver: Index },
    /// WireGuard under load (type 3).
    CookieReply { receiver: Index },
    /// WireGuard's transport data (type 4).
    Data { receiver: Index },
    /// natpunch's own, by which a path is proven.
    Probe,
    /// natpunch's own, by which it is measured how large datagrams may be on a path.
    SizeProbe,
}

impl Shape {
    /// Whether it is natpunch's own.
    pub(super) fn is_probe(self) -> bool {
        matches!(self, Self::Probe | Self::SizeProbe)
    }

    /// The form of a datagram; nothing for all that is neither.
    ///
    /// Transport data has 16 bytes of header and 16 of tag, and is *not* always a multiple of 16:
    /// the kernel pads a packet up to the interface's MTU only, and some implementations don't pad.
    pub(super) fn of(datagram: &[u8]) -> Option<Self> {
        let (first, rest) = datagram.split_first_chunk::<4>()?;
        if *first == PROBE_MAGIC {
            let measures = datagram.get(4..8) == Some(&SIZE_PROBE_FORM);
            return match datagram.len() {
                length if measures && SIZE_PROBE_LEN.contains(&length) => Some(Self::SizeProbe),
                PROBE_LEN => Some(Self::Probe),
                _ => None,
            };
        }
        let (one, rest) = rest.split_first_chunk()?;
        let (one, two) = (
            Index::from_le_bytes(*one),
            rest.first_chunk().map(|two| Index::from_le_bytes(*two)),
        );
        match (first, datagram.len()) {
            ([1, 0, 0, 0], 148) => Some(Self::Initiation { sender: one }),
            ([2, 0, 0, 0], 92) => Some(Self::Response {
                sender: one,
                receiver: two?,
            }),
            ([3, 0, 0, 0], 64) => Some(Self::CookieReply { receiver: one }),
            ([4, 0, 0, 0], 32..) => Some(Self::Data { receiver: one }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn datagram(first: [u8; 4], length: usize) -> Vec<u8> {
        let mut datagram = vec![7; length];
        datagram[..4].copy_from_slice(&first);
        datagram
    }

    #[test]
    fn only_wireguards_messages_and_probes_have_a_form() {
        for (kind, lengths) in [(1, 148..149), (2, 92..93), (3, 64..65), (4, 32..2_000)] {
            for length in 4..2_000 {
                let found = Shape::of(&datagram([kind, 0, 0, 0], length)).is_some();
                assert_eq!(
                    found,
                    lengths.contains(&length),
                    "type {kind}, {length} bytes"
                );
                for reserved in 1..4 {
                    let mut first = [kind, 0, 0, 0];
                    first[reserved] = 1;
                    assert_eq!(Shape::of(&datagram(first, length)), None);
                }
            }
        }
        for length in 4..2_000 {
            let found = Shape::of(&datagram(PROBE_MAGIC, length));
            assert_eq!(
                found,
                (length == PROBE_LEN).then_some(Shape::Probe),
                "{length}"
            );
        }
        for length in 8..10_000 {
            let mut probe = datagram(PROBE_MAGIC, length);
            probe[4..8].copy_from_slice(&SIZE_PROBE_FORM);
            let found = Shape::of(&probe) == Some(Shape::SizeProbe);
            assert_eq!(found, SIZE_PROBE_LEN.contains(&length), "{length}");
        }
        for kind in (0..=255).filter(|kind| !(1..=4).contains(kind)) {
            assert_eq!(Shape::of(&datagram([kind, 0, 0, 0], 148)), None);
        }
        for length in 0..4 {
            assert_eq!(Shape::of(&[1, 0, 0][..length.min(3)]), None);
        }
    }
}
