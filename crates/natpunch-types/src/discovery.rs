//! What crosses the seam between the core and discovery: [`News`] from an instance to the core, and
//! what the core [asks](Ask) of all instances.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::{
    Candidate, CandidateKind, Connect, InstanceName, Mapping, PairTag, PeerKey, RecordTag, RelayUse,
};

/// Something that a discovery instance has found out. A hint, never a fact: its origin is stamped
/// by the plugin host, and the core bounds how often and for how long it is believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// A place where a peer may answer.
    Candidate {
        /// The peer.
        peer: PeerKey,
        /// The place.
        candidate: Candidate,
    },
    /// The instance takes back its word for a place.
    Withdrawn {
        /// The peer.
        peer: PeerKey,
        /// The place.
        address: SocketAddr,
    },
    /// A sealed record that a peer left for this node.
    Record(SealedRecord),
    /// An address of this node's own WireGuard port outside of its network. A newer one of the same
    /// kind and family replaces it.
    OwnAddress {
        /// The address.
        address: SocketAddr,
        /// How it came to be known.
        kind: OwnAddressKind,
        /// For how long it may be believed, counted from now.
        lifetime: Duration,
    },
    /// How this node's NAT maps WireGuard's port, as servers see it.
    Mapping(Mapping),
    /// Probe the peer after this time, when it probes this node too.
    Fire {
        /// The peer.
        peer: PeerKey,
        /// In how long.
        after: Duration,
    },
    /// The peer wants to be probed now.
    Wanted {
        /// The peer.
        peer: PeerKey,
    },
}

/// How an address of this node's own WireGuard port came to be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OwnAddressKind {
    /// A server outside of the NAT saw packets come from it.
    Reflexive,
    /// This node's router granted a port mapping (PCP, NAT-PMP, UPnP).
    Mapped,
}

impl From<OwnAddressKind> for CandidateKind {
    fn from(kind: OwnAddressKind) -> Self {
        match kind {
            OwnAddressKind::Reflexive => Self::Reflexive,
            OwnAddressKind::Mapped => Self::Mapped,
        }
    }
}

/// What the core asks of discovery. Each is complete: a newer one replaces what an instance has not
/// fetched yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// Find these peers: all of the mesh, sent when it changes.
    Peers(Arc<[Interest]>),
    /// Make these records available to the peers, in place of all earlier ones.
    Records(Arc<[SealedRecord]>),
    /// A round of probing this peer begins: make both sides probe at the same moment, if you can
    /// ([`News::Fire`]).
    Meet(PeerKey),
}

/// How much discovery should care for a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interest {
    /// The peer.
    pub peer: PeerKey,
    /// True while the peer has no proven path: look it up eagerly.
    pub wanted: bool,
    /// Whether the pair keeps a path at all times.
    pub connect: Connect,
    /// The pair is on demand and neither side wants anything: the peer is not looked for, nothing
    /// is kept for it, and only its own word that it looks for this node counts.
    pub rests: bool,
    /// The `endpoint` of the mesh file, `HOST:PORT`, if any.
    pub endpoint: Option<Arc<str>>,
    /// The tag under which the peer leaves records for this node.
    pub inbound_tag: RecordTag,
    /// The tag under which this node leaves records for the peer.
    pub outbound_tag: RecordTag,
    /// Names the pair, the same on both sides; [`PairTag::NONE`] for a peer without a key in
    /// common with this node.
    pub pair_tag: PairTag,
    /// What the pair wants of a relay.
    pub relay: RelayUse,
    /// Whose relays it may use; `None`: any.
    pub relays: Option<Arc<[InstanceName]>>,
    /// A direct path is in use: messages reach the peer.
    pub is_direct: bool,
}

impl Interest {
    /// A peer without a path, of which nothing else is known.
    pub fn new(peer: PeerKey) -> Self {
        Self {
            peer,
            wanted: true,
            connect: Connect::Always,
            rests: false,
            endpoint: None,
            inbound_tag: RecordTag::NONE,
            outbound_tag: RecordTag::NONE,
            pair_tag: PairTag::NONE,
            relay: RelayUse::Off,
            relays: None,
            is_direct: false,
        }
    }

    /// What the pair wants of the relay of this discovery instance.
    pub fn relay_by(&self, instance: &InstanceName) -> RelayUse {
        let listed = self
            .relays
            .as_ref()
            .is_none_or(|relays| relays.contains(instance));
        if listed { self.relay } else { RelayUse::Off }
    }

    /// The same as this instance is told: it is asked for no relay of a pair that may not use its
    /// one, and learns nothing of other instances.
    pub fn told_to(&self, instance: &InstanceName) -> Self {
        Self {
            relay: self.relay_by(instance),
            relays: None,
            ..self.clone()
        }
    }
}

/// A list of one node's candidates, sealed for one peer. Opaque to plugins and servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedRecord {
    /// The mailbox.
    pub tag: RecordTag,
    /// The ciphertext, at most [`SealedRecord::MAX`] bytes.
    pub blob: Arc<[u8]>,
}

impl SealedRecord {
    /// The longest blob, in bytes.
    pub const MAX: usize = 2048;
}

/// The longest message to a plugin at a peer, in bytes. With all around it, it fits into the smallest
/// MTU of IPv6 (1,280, RFC 8200), in which no router fragments.
pub const PEER_MESSAGE_MAX: usize = 512;

/// What a discovery instance can do, as its plugin describes it. Nobody infers it from what the
/// instance says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Abilities {
    /// Sends and receives on WireGuard's own port, so that servers see that port's address.
    pub wireguard_port: bool,
    /// Makes both sides of a pair probe at the same moment.
    pub meetings: bool,
    /// Offers relays.
    pub relays: bool,
    /// Carries sealed records.
    pub records: bool,
    /// Has the router grant port mappings.
    pub mappings: bool,
    /// Exchanges messages with the same plugin at peers to which there is a direct path. Those
    /// peers then also tell this node at which address they see it.
    pub peer_messages: bool,
}

impl Abilities {
    /// None: only to say where peers may be.
    pub const NONE: Self = Self {
        wireguard_port: false,
        meetings: false,
        relays: false,
        records: false,
        mappings: false,
        peer_messages: false,
    };

    /// Each that is there, by its name.
    pub fn names(&self) -> Vec<&'static str> {
        let all = [
            (self.wireguard_port, "wireguard_port"),
            (self.meetings, "meetings"),
            (self.relays, "relays"),
            (self.records, "records"),
            (self.mappings, "mappings"),
            (self.peer_messages, "peer_messages"),
        ];
        all.into_iter()
            .filter_map(|(is_there, name)| is_there.then_some(name))
            .collect()
    }

    /// Whether an instance with these abilities may say this. What it can't know is a mistake of
    /// the plugin, or the word of an instance that the mesh file has taken the ability from.
    pub fn cover(&self, news: &News) -> bool {
        match news {
            News::Candidate { candidate, .. } if candidate.kind == CandidateKind::Relay => {
                self.relays
            }
            // Anything may say where a peer is, and take it back.
            News::Candidate { .. } | News::Withdrawn { .. } => true,
            News::Record(record) => self.records && record.blob.len() <= SealedRecord::MAX,
            // Only packets from WireGuard's port show how the world sees that port.
            News::OwnAddress {
                kind: OwnAddressKind::Reflexive,
                ..
            }
            | News::Mapping(_) => self.wireguard_port,
            News::OwnAddress {
                kind: OwnAddressKind::Mapped,
                ..
            } => self.mappings,
            News::Fire { .. } | News::Wanted { .. } => self.meetings,
        }
    }
}

/// A discovery instance that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Running {
    /// What it can do, as long as it runs.
    pub abilities: Abilities,
    /// Tells it from an instance of the same name that ran before with other settings.
    pub run: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_is_asked_for_no_relay_of_a_pair_that_does_not_list_it() {
        let name = InstanceName::new;
        let interest = |relays| Interest {
            relay: RelayUse::Carry,
            relays,
            ..Interest::new(PeerKey::from_bytes([1; 32]))
        };
        let hub = interest(Some([name("hub")].into()));
        assert_eq!(hub.told_to(&name("hub")).relay, RelayUse::Carry);
        assert_eq!(hub.told_to(&name("rv")).relay, RelayUse::Off);
        assert_eq!(interest(None).told_to(&name("rv")).relay, RelayUse::Carry);
    }

    #[test]
    fn an_instance_says_nothing_that_it_cannot_know() {
        let peer = PeerKey::from_bytes([1; 32]);
        let address = SocketAddr::from(([192, 0, 2, 1], 1));
        let lifetime = Duration::from_secs(60);
        let candidate = |kind| News::Candidate {
            peer,
            candidate: Candidate {
                address,
                kind,
                lifetime,
            },
        };
        let own = |kind| News::OwnAddress {
            address,
            kind,
            lifetime,
        };
        let record = |len| {
            News::Record(SealedRecord {
                tag: RecordTag::NONE,
                blob: vec![0; len].into(),
            })
        };
        let none = Abilities::default();
        assert!(none.cover(&candidate(CandidateKind::Reflexive)));
        assert!(none.cover(&News::Withdrawn { peer, address }));
        let after = Duration::ZERO;
        type Enable = fn(&mut Abilities);
        let able: [(Enable, News); 8] = [
            (|a| a.relays = true, candidate(CandidateKind::Relay)),
            (|a| a.records = true, record(SealedRecord::MAX)),
            (|a| a.wireguard_port = true, own(OwnAddressKind::Reflexive)),
            (
                |a| a.wireguard_port = true,
                News::Mapping(Mapping::EndpointDependent),
            ),
            (|a| a.mappings = true, own(OwnAddressKind::Mapped)),
            (|a| a.meetings = true, News::Fire { peer, after }),
            (|a| a.meetings = true, News::Wanted { peer }),
            (|a| a.records = true, record(0)),
        ];
        for (enable, news) in able {
            assert!(!none.cover(&news), "{news:?}");
            let mut abilities = none;
            enable(&mut abilities);
            assert!(abilities.cover(&news), "{news:?}");
        }
        let all = Abilities {
            records: true,
            ..none
        };
        assert!(!all.cover(&record(SealedRecord::MAX + 1)));
    }
}
