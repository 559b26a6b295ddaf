//! The seam between what an interface shall be and the four ways to make it so.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use ipnet::IpNet;
use natpunch_types::{DeviceSnapshot, PeerKey, PresharedKey, SecretKey, is_resting};

use crate::backend::BackendKind;
use crate::error::WgError;
use crate::spec::{PeerSpec, seconds};

/// A WireGuard device, whoever runs it.
pub trait Device {
    /// Which kind it is.
    fn kind(&self) -> BackendKind;

    /// Everything the device says of itself. Peers come merged, each once, sorted.
    fn get(&mut self) -> Result<DeviceState, WgError>;

    /// Makes exactly these changes, in their order. What is not named is not touched.
    fn configure(&mut self, change: &DeviceChange) -> Result<(), WgError>;
}

impl<D: Device + ?Sized> Device for Box<D> {
    fn kind(&self) -> BackendKind {
        (**self).kind()
    }
    fn get(&mut self) -> Result<DeviceState, WgError> {
        (**self).get()
    }
    fn configure(&mut self, change: &DeviceChange) -> Result<(), WgError> {
        (**self).configure(change)
    }
}

/// A device at one moment, with the secrets that a comparison needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceState {
    /// What anyone may see.
    pub snapshot: DeviceSnapshot,
    /// The preshared keys that are set.
    pub preshared: BTreeMap<PeerKey, PresharedKey>,
}

/// A change of a device: only what is named is touched.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceChange {
    /// A new private key.
    pub private_key: Option<SecretKey>,
    /// A new UDP port.
    pub listen_port: Option<u16>,
    /// A new firewall mark; 0 removes it.
    pub fwmark: Option<u32>,
    /// Changes of peers, in order. Those of one peer that follow each other are made at once.
    pub peers: Vec<PeerChange>,
}

impl DeviceChange {
    /// True if nothing is named.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// True if something other than peers is named.
    pub(crate) fn has_settings(&self) -> bool {
        self.private_key.is_some() || self.listen_port.is_some() || self.fwmark.is_some()
    }
}

/// What a [`PeerChange`] does if the peer is there, and if it is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerAction {
    /// Changes the peer, or adds it.
    Upsert,
    /// Changes the peer; does nothing if it is not there, so that a removed peer stays removed.
    Update,
    /// Removes the peer.
    Remove,
}

/// A change of one peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerChange {
    /// The peer.
    pub key: PeerKey,
    /// What to do.
    pub action: PeerAction,
    /// A new preshared key; `Some(None)` removes it.
    pub preshared_key: Option<Option<PresharedKey>>,
    /// A new endpoint.
    pub endpoint: Option<SocketAddr>,
    /// A new interval of the persistent keepalive, in seconds; 0 switches it off.
    pub persistent_keepalive: Option<u16>,
    /// Whether `allowed_ips` replace those that are there, or are added to them.
    pub replace_allowed_ips: bool,
    /// Networks that the peer may use.
    pub allowed_ips: Vec<IpNet>,
}

impl PeerChange {
    /// A change that names nothing yet.
    pub fn new(key: PeerKey, action: PeerAction) -> Self {
        Self {
            key,
            action,
            preshared_key: None,
            endpoint: None,
            persistent_keepalive: None,
            replace_allowed_ips: false,
            allowed_ips: Vec::new(),
        }
    }

    /// The change that removes a peer.
    pub fn remove(key: PeerKey) -> Self {
        Self::new(key, PeerAction::Remove)
    }

    /// The change that adds a peer.
    pub fn add(spec: &PeerSpec) -> Self {
        Self {
            preshared_key: Some(spec.preshared_key.clone()),
            endpoint: spec.endpoint.or(spec.resting_endpoint()),
            persistent_keepalive: Some(spec.keepalive_seconds()),
            replace_allowed_ips: true,
            allowed_ips: spec.allowed_ips.clone(),
            ..Self::new(spec.key, PeerAction::Upsert)
        }
    }
}

/// What became of [`set_endpoint`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndpointUpdate {
    /// The peer now has the endpoint.
    Updated,
    /// The device has no such peer, and still has none.
    NoSuchPeer,
}

/// How long a keepalive is switched on to make a device send one at once; the value itself never
/// counts.
const PULSE_SECONDS: u16 = 25;

/// Moves a peer to an endpoint; with `kick`, makes WireGuard send there at once.
///
/// A peer that has, or ever had, a session keeps it and its counters: only its endpoint moves, and
/// a kick pulses the keepalive so that the peer hears of the new path. A peer that never shook
/// hands has nothing to lose, and WireGuard would not start a handshake within 5 s of the last
/// attempt (REKEY_TIMEOUT), even of one that had nowhere to go: a kick then removes and re-adds it
/// in one message, which forgets that attempt. The settings are the same afterwards.
pub fn set_endpoint(
    device: &mut (impl Device + ?Sized),
    key: &PeerKey,
    endpoint: SocketAddr,
    kick: bool,
) -> Result<EndpointUpdate, WgError> {
    let state = device.get()?;
    let Some(peer) = state.snapshot.peer(key) else {
        return Ok(EndpointUpdate::NoSuchPeer);
    };
    let keepalive = seconds(peer.persistent_keepalive);
    let pulse = if keepalive == 0 {
        PULSE_SECONDS
    } else {
        keepalive
    };
    let update = PeerChange::new(*key, PeerAction::Update);
    let mut peers = Vec::new();
    if !kick {
        peers.push(PeerChange {
            endpoint: Some(endpoint),
            ..update
        });
    } else {
        if peer.last_handshake.is_none() && peer.rx_bytes == 0 {
            peers.push(PeerChange::remove(*key));
            peers.push(PeerChange {
                preshared_key: state.preshared.get(key).cloned().map(Some),
                endpoint: Some(endpoint),
                persistent_keepalive: Some(pulse),
                replace_allowed_ips: true,
                allowed_ips: peer.allowed_ips.clone(),
                ..PeerChange::new(*key, PeerAction::Upsert)
            });
        } else {
            if keepalive != 0 {
                peers.push(PeerChange {
                    persistent_keepalive: Some(0),
                    ..update.clone()
                });
            }
            peers.push(PeerChange {
                endpoint: Some(endpoint),
                persistent_keepalive: Some(pulse),
                ..update.clone()
            });
        }
        if keepalive == 0 {
            peers.push(PeerChange {
                persistent_keepalive: Some(0),
                ..update
            });
        }
    }
    device.configure(&DeviceChange {
        peers,
        ..DeviceChange::default()
    })?;
    Ok(EndpointUpdate::Updated)
}

/// Gives these endpoints to those of the peers that are at their resting endpoint, and touches no
/// other; how many that were.
pub(crate) fn leave_rest(
    device: &mut (impl Device + ?Sized),
    endpoints: &BTreeMap<PeerKey, SocketAddr>,
) -> Result<usize, WgError> {
    let snapshot = device.get()?.snapshot;
    let at_rest = snapshot
        .peers
        .iter()
        .filter(|peer| peer.endpoint.is_some_and(is_resting));
    let to_change = at_rest.filter_map(|peer| {
        let change = PeerChange::new(peer.key, PeerAction::Update);
        Some(PeerChange {
            endpoint: Some(*endpoints.get(&peer.key)?),
            ..change
        })
    });
    let peers: Vec<PeerChange> = to_change.collect();
    let count = peers.len();
    if count > 0 {
        device.configure(&DeviceChange {
            peers,
            ..DeviceChange::default()
        })?;
    }
    Ok(count)
}
