//! What a plugin is told in the conformance suite.

use std::net::SocketAddr;
use std::sync::Arc;

use natpunch_types::{
    Abilities, Ask, Interest, PEER_MESSAGE_MAX, PairTag, PeerKey, RecordTag, RelayUse, SealedRecord,
};

use crate::Input;

/// The node on side A.
const OWN: PeerKey = PeerKey::from_bytes([1; 32]);
/// Two peers: one with natpunch, and one with plain WireGuard.
pub(super) const PEERS: [PeerKey; 2] = [PeerKey::from_bytes([2; 32]), PeerKey::from_bytes([3; 32])];
/// A mesh that no pipe holds.
const MANY: usize = 2_000;

/// A side of the pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    A,
    B,
}

impl Side {
    fn tags(self) -> (RecordTag, RecordTag) {
        let tags = (RecordTag([0xa1; 16]), RecordTag([0xa2; 16]));
        match self {
            Self::A => tags,
            Self::B => (tags.1, tags.0),
        }
    }

    /// The key of this side.
    pub(super) fn key(self) -> PeerKey {
        match self {
            Self::A => OWN,
            Self::B => PEERS[0],
        }
    }

    fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// The peers, as this side is told of them.
    pub(super) fn peers(self) -> Input {
        let (inbound_tag, outbound_tag) = self.tags();
        let far = Interest {
            inbound_tag,
            outbound_tag,
            pair_tag: PairTag([0xa3; 16]),
            ..Interest::new(self.other().key())
        };
        let plain = Interest {
            wanted: false,
            endpoint: Some("127.0.0.1:9".into()),
            ..Interest::new(PEERS[1])
        };
        Input::Ask(Ask::Peers(Arc::from([far, plain])))
    }

    /// A record of this side for the other.
    pub(super) fn record(self, version: u8) -> SealedRecord {
        SealedRecord {
            tag: self.tags().1,
            blob: Arc::from([version; 300]),
        }
    }
}

pub(super) fn records<const N: usize>(records: [SealedRecord; N]) -> Input {
    Input::Ask(Ask::Records(Arc::from(records)))
}

/// Everything that a plugin may be told, with the peers of side A at the end.
pub(super) fn all(abilities: &Abilities) -> Vec<Input> {
    let longest = SealedRecord {
        blob: Arc::from([0xff; SealedRecord::MAX]),
        ..Side::A.record(0)
    };
    let many = (0..MANY).map(|n| {
        let mut key = [7; 32];
        let number = n.to_be_bytes();
        for (byte, digit) in key.iter_mut().zip(number) {
            *byte = digit;
        }
        Interest::new(PeerKey::from_bytes(key))
    });
    let relayed = Interest {
        relay: RelayUse::Carry,
        ..Interest::new(PEERS[0])
    };
    let mut all = vec![
        records([]),
        Input::Ask(Ask::Peers(Arc::from([]))),
        Input::NetworkChanged,
        Input::Ask(Ask::Peers(Arc::from([relayed]))),
        records([longest]),
        Input::Ask(Ask::Peers(many.collect())),
        Input::NetworkChanged,
    ];
    if abilities.meetings {
        // One who was never a peer, too: it may have left.
        let strangers = [PEERS[0], PEERS[1], PeerKey::from_bytes([9; 32])];
        all.extend(strangers.map(|peer| Input::Ask(Ask::Meet(peer))));
    }
    if abilities.wireguard_port {
        let source = SocketAddr::from(([192, 0, 2, 9], 9));
        let payloads = [vec![], vec![0; 1], vec![0xff; 148], vec![0x7f; 1_500]];
        all.extend(payloads.map(|payload| Input::Datagram { source, payload }));
    }
    if abilities.peer_messages {
        let payloads = [
            vec![],
            vec![0; 1],
            vec![0xff; 34],
            vec![1; PEER_MESSAGE_MAX],
        ];
        for peer in [PEERS[0], PEERS[1], PeerKey::from_bytes([9; 32])] {
            let messages = payloads.clone().into_iter();
            all.extend(messages.map(|payload| Input::FromPeer { peer, payload }));
        }
    }
    all.extend([Side::A.peers(), records([Side::A.record(0)])]);
    all
}
