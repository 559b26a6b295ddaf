//! A device in memory, for the tests of everything above it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use ipnet::IpNet;
use natpunch_types::{DevicePeer, PeerKey, canonical, lock};

use crate::backend::BackendKind;
use crate::device::{Device, DeviceChange, DeviceState, PeerAction, PeerChange};
use crate::error::WgError;

/// A device in memory. Clones are the same device.
#[derive(Debug, Clone, Default)]
pub struct FakeDevice(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    state: DeviceState,
    log: Vec<DeviceChange>,
}

impl FakeDevice {
    /// A device without key and peers.
    pub fn new() -> Self {
        Self::default()
    }

    /// The changes so far, oldest first.
    pub fn log(&self) -> Vec<DeviceChange> {
        self.lock().log.clone()
    }

    /// Changes a peer as traffic would: its handshake, counters, endpoint. False if there is no
    /// such peer.
    pub fn touch(&self, key: &PeerKey, f: impl FnOnce(&mut DevicePeer)) -> bool {
        let mut inner = self.lock();
        let peer = inner
            .state
            .snapshot
            .peers
            .iter_mut()
            .find(|p| p.key == *key);
        peer.map(f).is_some()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        lock(&self.0)
    }
}

impl Device for FakeDevice {
    fn kind(&self) -> BackendKind {
        BackendKind::Userspace
    }

    fn get(&mut self) -> Result<DeviceState, WgError> {
        Ok(self.lock().state.clone())
    }

    fn configure(&mut self, change: &DeviceChange) -> Result<(), WgError> {
        let mut inner = self.lock();
        inner.log.push(change.clone());
        let state = &mut inner.state;
        if let Some(key) = &change.private_key {
            state.snapshot.public_key = Some(key.public_key());
        }
        if let Some(port) = change.listen_port {
            state.snapshot.listen_port = port;
        }
        if let Some(mark) = change.fwmark {
            state.snapshot.fwmark = mark;
        }
        let mut peers: BTreeMap<PeerKey, DevicePeer> = std::mem::take(&mut state.snapshot.peers)
            .into_iter()
            .map(|p| (p.key, p))
            .collect();
        for change in &change.peers {
            change_peer(&mut peers, &mut state.preshared, change);
        }
        state.snapshot.peers = peers.into_values().collect();
        Ok(())
    }
}

fn change_peer(
    peers: &mut BTreeMap<PeerKey, DevicePeer>,
    preshared: &mut BTreeMap<PeerKey, natpunch_types::PresharedKey>,
    change: &PeerChange,
) {
    let absent = !peers.contains_key(&change.key);
    match change.action {
        PeerAction::Remove => {
            peers.remove(&change.key);
            preshared.remove(&change.key);
            return;
        }
        PeerAction::Update if absent => return,
        PeerAction::Update | PeerAction::Upsert => {}
    }
    // A network belongs to one peer: to the last one that asked for it.
    let taken: Vec<IpNet> = change.allowed_ips.iter().map(IpNet::trunc).collect();
    if !taken.is_empty() {
        let others = peers.values_mut().filter(|p| p.key != change.key);
        others.for_each(|p| p.allowed_ips.retain(|net| !taken.contains(net)));
    }
    let peer = peers
        .entry(change.key)
        .or_insert_with(|| DevicePeer::new(change.key));
    if let Some(key) = &change.preshared_key {
        peer.has_preshared_key = key.is_some();
        match key {
            Some(key) => preshared.insert(change.key, key.clone()),
            None => preshared.remove(&change.key),
        };
    }
    if let Some(endpoint) = change.endpoint {
        peer.endpoint = Some(canonical(endpoint));
    }
    if let Some(interval) = change.persistent_keepalive {
        peer.persistent_keepalive =
            (interval != 0).then(|| std::time::Duration::from_secs(interval.into()));
    }
    if change.replace_allowed_ips {
        peer.allowed_ips.clear();
    }
    peer.allowed_ips.extend(taken);
    peer.allowed_ips.sort_unstable();
    peer.allowed_ips.dedup();
}
