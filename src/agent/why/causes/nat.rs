//! A NAT in plain words.

use natpunch_core::{LocalStatus, MeshStatus, NatStatus, PeerStatus, PortPattern};
use natpunch_types::{AddressClass, CandidateKind, Mapping, classify};

/// The NAT before this node.
pub(in crate::agent) fn own(own: &MeshStatus) -> String {
    if has_public_address(own) {
        return "none: this host has a public address".to_owned();
    }
    words(&own.nat)
}

/// The NAT before a peer, as it says.
pub(in crate::agent) fn of_peer(peer: &PeerStatus) -> String {
    if !peer.managed {
        return "not known: plain WireGuard says nothing of it".to_owned();
    }
    if is_public(peer) {
        return "none: it has a public address".to_owned();
    }
    match &peer.nat {
        Some(nat) => words(nat),
        None => "not known: the peer has not told yet".to_owned(),
    }
}

pub(super) fn has_public_address(own: &MeshStatus) -> bool {
    let is_public = |local: &LocalStatus| {
        local.kind == CandidateKind::Host
            && local.address.is_ipv4()
            && classify(local.address.ip()) == AddressClass::Global
    };
    own.local.iter().any(is_public)
}

pub(super) fn is_public(peer: &PeerStatus) -> bool {
    peer.candidates.iter().any(|candidate| {
        candidate.kind == CandidateKind::Host
            && candidate.address.is_ipv4()
            && classify(candidate.address.ip()) == AddressClass::Global
    })
}

fn words(nat: &NatStatus) -> String {
    let mut text = match (nat.mapping, nat.ports) {
        (None, PortPattern::Unknown) => return "not known: no server could tell".to_owned(),
        (None, PortPattern::Preserved) => {
            "keeps the port of the host; whether it does so for every destination is \
                                           not known"
                .to_owned()
        }
        (None, _) => {
            "changes ports; whether it does so for every destination is not known".to_owned()
        }
        (Some(Mapping::EndpointIndependent), PortPattern::Preserved) => {
            "easy: one port for all destinations, the same as inside".to_owned()
        }
        (Some(Mapping::EndpointIndependent), _) => "easy: one port for all destinations".to_owned(),
        (Some(Mapping::EndpointDependent), ports) => {
            let order = match ports {
                PortPattern::Unknown => "",
                PortPattern::Preserved => ", the same as inside where it is free",
                PortPattern::Sequential => ", one after the other",
                PortPattern::Block => ", of a small range",
                PortPattern::Random => ", at random",
            };
            format!("hard: another port for every destination{order}")
        }
    };
    if nat.several_addresses {
        text.push_str(", on several addresses");
    }
    if nat.poison_prone == Some(true) {
        text.push_str("; an unexpected packet costs the flow its port");
    }
    text
}
