//! What a node knows of its mesh, as pictures have it.

use natpunch_picture::{Kind, Mesh, Node, Pair, sites_of};

use crate::cli::node::status::view::{Peer, View};

/// The node in the middle, and its pairs.
pub(in crate::cli::node) fn of(view: &View) -> Mesh {
    let names: Vec<&str> = std::iter::once(view.node.as_str())
        .chain(view.core.peers.iter().map(|peer| peer.name.as_str()))
        .collect();
    let sites = sites_of(names.iter().copied());
    let mut relays: Vec<String> = Vec::new();
    let mut nodes = Vec::new();
    let mut pairs = Vec::new();
    for (index, (name, site)) in names.iter().zip(sites).enumerate() {
        let member = view.members.get(*name).cloned().unwrap_or_default();
        let peer = index
            .checked_sub(1)
            .and_then(|index| view.core.peers.get(index));
        nodes.push(Node {
            name: (*name).to_owned(),
            site,
            is_plain: peer.is_some_and(|peer| !peer.managed),
            has_endpoint: false,
            serves: peer.is_none() && view.serving.is_some(),
            is_exit: member.routes.iter().any(|route| route.prefix_len() == 0),
            routes: member.routes.iter().map(ToString::to_string).collect(),
            nat: peer.and_then(Peer::shown_nat).map(str::to_owned),
            lines: member.addresses.iter().map(ToString::to_string).collect(),
        });
        let Some(peer) = peer else { continue };
        let relay = peer.relay().map(|relay| {
            let known = relays.iter().position(|known| *known == relay);
            known.unwrap_or_else(|| {
                relays.push(relay);
                relays.len() - 1
            })
        });
        pairs.push(Pair {
            a: 0,
            b: index,
            kind: kind(view, peer),
            relay,
            rtt_ms: peer.rtt_ms.map(|rtt| (rtt * 10.0).round() / 10.0),
            reason: reason(view, peer),
        });
    }
    Mesh {
        title: format!("mesh {}", view.mesh),
        subtitle: format!("as {} sees it · revision {}", view.node, view.revision),
        nodes,
        pairs,
        relays,
        center: Some(0),
    }
}

/// How a peer is connected.
pub(in crate::cli::node) fn kind(view: &View, peer: &Peer) -> Kind {
    if peer.rests() {
        return Kind::Resting;
    }
    if !peer.is_connected() {
        return match peer.state.as_str() {
            "punching" => Kind::Searching,
            _ if peer.managed => Kind::Down,
            // A phone may well be off.
            _ => Kind::Resting,
        };
    }
    let pin = view.pins.peers.get(&peer.name);
    let is_pinned =
        pin.is_some_and(|pin| peer.endpoint.as_deref() == Some(pin.remote.to_string().as_str()));
    match peer.path.as_str() {
        "lan" => Kind::Lan,
        "relay" => Kind::Relayed,
        _ if is_pinned => Kind::Pinned,
        _ => Kind::Direct,
    }
}

/// Why a peer's path is what it is, as far as the status tells.
pub(in crate::cli::node) fn reason(view: &View, peer: &Peer) -> Option<String> {
    let likely = view.likely.get(&peer.name);
    let reasons = [likely, peer.reason.as_ref(), peer.relay_reason.as_ref()];
    reasons.into_iter().flatten().next().cloned()
}
