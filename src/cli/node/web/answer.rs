//! What the page asks for, as JSON.

use std::collections::BTreeMap;

use natpunch_picture::{Kind, Picture, draw};
use serde::Serialize;

use crate::agent::{ChangeStatus, DiscoveryStatus, HeldStatus};
use crate::cli::node::live::picture::{kind, of, reason};
use crate::cli::node::live::{Away, Event, Live, Rate, summary};
use crate::cli::node::status::view::{Peer, View};

/// The state of all.
#[derive(Serialize)]
pub(super) struct Now<'a> {
    /// Seconds since 1970.
    now_s: f64,
    away: Option<&'a Away>,
    node: Option<Node<'a>>,
    /// The number of the picture that belongs to it.
    picture: u64,
    peers: Vec<Row<'a>>,
    /// The newest first.
    events: Vec<&'a Event>,
}

#[derive(Serialize)]
struct Node<'a> {
    mesh: &'a str,
    node: &'a str,
    interface: &'a str,
    backend: &'a str,
    revision: &'a str,
    runs_for_s: f64,
    summary: String,
    change: Option<&'a ChangeStatus>,
    held: Option<&'a HeldStatus>,
    reload_error: Option<&'a str>,
    warnings: &'a [String],
    discovery: &'a [DiscoveryStatus],
}

#[derive(Serialize)]
struct Row<'a> {
    name: &'a str,
    kind: Kind,
    path: String,
    addresses: Vec<String>,
    routes: Vec<String>,
    endpoint: Option<&'a str>,
    nat: Option<&'static str>,
    rtt_ms: Option<f64>,
    loss_percent: Option<u8>,
    handshake_age_s: Option<f64>,
    rate: Rate,
    rx_bytes: u64,
    tx_bytes: u64,
    reason: Option<String>,
}

impl<'a> Now<'a> {
    pub(super) fn of(live: &'a Live, picture: u64, now_s: f64) -> Self {
        let view = live.view.as_ref();
        Self {
            now_s,
            away: live.away.as_ref(),
            node: view.map(node),
            picture,
            peers: view.map_or_else(Vec::new, |view| {
                view.core
                    .peers
                    .iter()
                    .map(|peer| row(live, view, peer))
                    .collect()
            }),
            events: live.events.iter().rev().take(100).collect(),
        }
    }
}

fn node(view: &View) -> Node<'_> {
    Node {
        mesh: &view.mesh,
        node: &view.node,
        interface: &view.interface,
        backend: &view.backend,
        revision: &view.revision,
        runs_for_s: view.runs_for_s,
        summary: summary(view),
        change: view.change.as_ref(),
        held: view.held.as_ref(),
        reload_error: view.reload_error.as_deref(),
        warnings: &view.warnings,
        discovery: &view.discovery,
    }
}

fn row<'a>(live: &Live, view: &'a View, peer: &'a Peer) -> Row<'a> {
    let member = view.members.get(&peer.name).cloned().unwrap_or_default();
    Row {
        name: &peer.name,
        kind: kind(view, peer),
        path: peer.shown_path(view.pins.peers.get(&peer.name)),
        addresses: member.addresses.iter().map(ToString::to_string).collect(),
        routes: member.routes.iter().map(ToString::to_string).collect(),
        endpoint: peer.endpoint.as_deref(),
        nat: peer.shown_nat(),
        rtt_ms: peer.rtt_ms,
        loss_percent: peer.loss_percent,
        handshake_age_s: peer.handshake_age_s,
        rate: live.rate(&peer.name),
        rx_bytes: peer.rx_bytes,
        tx_bytes: peer.tx_bytes,
        reason: reason(view, peer),
    }
}

/// The last picture, drawn again only when it differs.
#[derive(Default)]
pub(super) struct Drawn {
    /// Counts the pictures.
    pub(super) number: u64,
    picture: Option<Picture>,
    /// What it was drawn from.
    from: BTreeMap<String, (Kind, Option<String>)>,
    revision: String,
    pub(super) json: Vec<u8>,
}

impl Drawn {
    /// Draws what is new in a status. Round trips are in the picture of a small mesh only, rounded
    /// there; pointing at a peer tells them in any.
    pub(super) fn renew(&mut self, view: &View) {
        let is_large = view.core.peers.len() >= natpunch_picture::MOST_CARDS;
        if is_large {
            let peers = view.core.peers.iter();
            let from = peers.map(|peer| (peer.name.clone(), (kind(view, peer), peer.relay())));
            let from = from.collect();
            if self.from == from && self.revision == view.revision {
                return;
            }
            self.from = from;
            self.revision.clone_from(&view.revision);
        }
        let mut mesh = of(view);
        for pair in &mut mesh.pairs {
            let rounded = |ms: f64| if ms < 10.0 { ms } else { ms.round() };
            pair.rtt_ms = pair.rtt_ms.filter(|_| !is_large).map(rounded);
        }
        let picture = draw(&mesh);
        if self.picture.as_ref() != Some(&picture) {
            self.number += 1;
            self.json = serde_json::to_vec(&picture).unwrap_or_default();
            self.picture = Some(picture);
        }
    }
}
