//! The least change from what a device is to what it shall be.

use std::collections::BTreeSet;

use ipnet::IpNet;
use natpunch_types::{DevicePeer, PeerKey};

use crate::device::{DeviceChange, DeviceState, PeerAction, PeerChange};
use crate::plan::Change;
use crate::spec::{InterfaceSpec, PeerSpec, seconds};

/// What to write to the device, and the same in words. `ours` are the peers that we once added:
/// only those are removed.
///
/// Removals come first and additions last, so that a network that moves from one peer to another is
/// free before it is taken again.
pub(crate) fn device_changes(
    spec: &InterfaceSpec,
    state: &DeviceState,
    ours: &BTreeSet<PeerKey>,
) -> (DeviceChange, Vec<Change>) {
    let mut change = DeviceChange::default();
    let mut words = Vec::new();
    let now = &state.snapshot;
    let public_key = spec.private_key.public_key();
    if now.public_key != Some(public_key) {
        change.private_key = Some(spec.private_key.clone());
        words.push(Change::SetPrivateKey { public_key });
    }
    if spec.listen_port != 0 && now.listen_port != spec.listen_port {
        change.listen_port = Some(spec.listen_port);
        words.push(Change::SetListenPort {
            from: now.listen_port,
            to: spec.listen_port,
        });
    }
    if now.fwmark != spec.fwmark {
        change.fwmark = Some(spec.fwmark);
        words.push(Change::SetFwmark {
            from: now.fwmark,
            to: spec.fwmark,
        });
    }
    let wanted: BTreeSet<PeerKey> = spec.peers.iter().map(|p| p.key).collect();
    for peer in &now.peers {
        if ours.contains(&peer.key) && !wanted.contains(&peer.key) {
            change.peers.push(PeerChange::remove(peer.key));
            words.push(Change::RemovePeer { peer: peer.key });
        }
    }
    let mut added = Vec::new();
    for want in &spec.peers {
        match now
            .peers
            .binary_search_by_key(&want.key, |p| p.key)
            .ok()
            .and_then(|i| now.peers.get(i))
        {
            Some(have) => update(want, have, state, &mut change.peers, &mut words),
            None => {
                added.push(PeerChange::add(want));
                words.push(Change::AddPeer {
                    peer: want.key,
                    allowed_ips: want.allowed_ips.clone(),
                });
            }
        }
    }
    change.peers.extend(added);
    (change, words)
}

fn update(
    want: &PeerSpec,
    have: &DevicePeer,
    state: &DeviceState,
    changes: &mut Vec<PeerChange>,
    words: &mut Vec<Change>,
) {
    let mut change = PeerChange::new(want.key, PeerAction::Update);
    let before = words.len();
    if state.preshared.get(&want.key) != want.preshared_key.as_ref() {
        change.preshared_key = Some(want.preshared_key.clone());
        words.push(Change::SetPresharedKey {
            peer: want.key,
            present: want.preshared_key.is_some(),
        });
    }
    let (from, to) = (seconds(have.persistent_keepalive), want.keepalive_seconds());
    let is_adapted = want.adapts_keepalive && (from != 0 || to == 0);
    if from != to && !is_adapted {
        change.persistent_keepalive = Some(to);
        words.push(Change::SetKeepalive {
            peer: want.key,
            from,
            to,
        });
    }
    let want_ips: BTreeSet<IpNet> = want.allowed_ips.iter().map(IpNet::trunc).collect();
    let have_ips: BTreeSet<IpNet> = have.allowed_ips.iter().map(IpNet::trunc).collect();
    if want_ips != have_ips {
        let added: Vec<IpNet> = want_ips.difference(&have_ips).copied().collect();
        let removed: Vec<IpNet> = have_ips.difference(&want_ips).copied().collect();
        // An addition alone leaves the rest in place: packets of this peer keep flowing meanwhile.
        change.replace_allowed_ips = !removed.is_empty();
        change.allowed_ips = if removed.is_empty() {
            added.clone()
        } else {
            want_ips.into_iter().collect()
        };
        words.push(Change::SetAllowedIps {
            peer: want.key,
            added,
            removed,
        });
    }
    if have.endpoint.is_none() {
        // Nothing of what a person has set is touched, so no word is made of it.
        change.endpoint = want.resting_endpoint();
    }
    if words.len() > before || change.endpoint.is_some() {
        changes.push(change);
    }
}
