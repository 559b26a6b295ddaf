//! The mesh: owns the peers and routes every input to the one that it concerns.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use natpunch_types::{Candidate, DeviceSnapshot, Origin, PeerKey};
use x25519_dalek::{PublicKey, StaticSecret};

use crate::{Command, Event, MeshSpec, MeshStatus, PathKind, PeerState, PeerStatus, Time, Transmit};

/// One node's view of its mesh: inputs through `handle_*`, then drain `poll_transmit`, `poll_command`, `poll_event`
/// and call `handle_timeout` at `poll_timeout`.
pub struct Mesh {
    spec: MeshSpec,
    transmits: VecDeque<Transmit>,
    commands: VecDeque<Command>,
    events: VecDeque<Event>,
    record_counter: u64,
}

impl Mesh {
    /// A mesh that knows nothing but its spec.
    pub fn new(spec: MeshSpec, _seed: [u8; 32], _now: Time) -> Self {
        Self { spec, transmits: VecDeque::new(), commands: VecDeque::new(), events: VecDeque::new(), record_counter: 0 }
    }

    /// Reload: peers that are in both keep all state; removed ones are forgotten; nothing is re-punched.
    pub fn handle_spec(&mut self, spec: MeshSpec, _now: Time) {
        self.spec = spec;
    }

    /// This host's interface addresses, complete. A change starts a new round.
    pub fn handle_local_addresses(&mut self, _addresses: &[IpAddr], _now: Time) {}

    /// Route or link change, or a suspend gap: a new round for all peers; old paths are kept until replaced.
    pub fn handle_network_change(&mut self, _now: Time) {}

    /// STUN servers to learn reflexive addresses from, complete.
    pub fn handle_stun_servers(&mut self, _servers: &[SocketAddr], _now: Time) {}

    /// A place where a peer may answer.
    pub fn handle_candidate(&mut self, _peer: PeerKey, _candidate: Candidate, _now: Time) {}

    /// A sealed record that a discovery instance found.
    pub fn handle_record(&mut self, _origin: &Origin, _tag: [u8; 16], _blob: &[u8], _now: Time) {}

    /// A datagram that arrived raw on WireGuard's port; anything but probes and STUN is ignored.
    pub fn handle_datagram(&mut self, _source: SocketAddr, _destination: Option<IpAddr>, _payload: &[u8], _now: Time) {}

    /// The device's truth.
    pub fn handle_device(&mut self, _snapshot: &DeviceSnapshot, _now: Time) {}

    /// The result of a `SetEndpoint`.
    pub fn handle_endpoint_set(&mut self, _peer: PeerKey, _endpoint: SocketAddr, _ok: bool, _now: Time) {}

    /// To be called at `poll_timeout`.
    pub fn handle_timeout(&mut self, _now: Time) {}

    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// The next thing to do.
    pub fn poll_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// The next thing to log.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When `handle_timeout` wants to be called.
    pub fn poll_timeout(&self) -> Option<Time> {
        None
    }

    /// Everything that is to be seen.
    pub fn status(&self, _now: Time) -> MeshStatus {
        let public = PublicKey::from(&StaticSecret::from(*self.spec.private_key.expose()));
        MeshStatus {
            public_key: PeerKey::from_bytes(public.to_bytes()),
            listen_port: self.spec.listen_port,
            local: Vec::new(),
            peers: self
                .spec
                .peers
                .iter()
                .map(|peer| PeerStatus {
                    key: peer.key,
                    name: peer.name.clone(),
                    managed: peer.managed,
                    path: PathKind::None,
                    endpoint: None,
                    rtt: None,
                    handshake_age: None,
                    rx_bytes: 0,
                    tx_bytes: 0,
                    seen_as: None,
                    state: PeerState::Punching,
                    candidates: Vec::new(),
                })
                .collect(),
        }
    }

    /// The last counter used in a sealed record; the shell stores it and gives it back at start.
    pub fn record_counter(&self) -> u64 {
        self.record_counter
    }

    /// Records of this run use counters above this one.
    pub fn set_record_counter_floor(&mut self, floor: u64) {
        self.record_counter = self.record_counter.max(floor);
    }
}
