//! The WireGuard device on a thread of its own: its calls block (netlink, sockets), the agent never does.
//!
//! Requests are done in order. Results come back through one channel, so the agent sees them as events.

use std::net::SocketAddr;
use std::sync::mpsc as blocking;
use std::time::{Duration, Instant};

use natpunch_types::{DeviceSnapshot, PeerKey};
use natpunch_wg::{Applied, EndpointUpdate, Interface, InterfaceSpec, WgError};
use tokio::sync::mpsc;

/// Requests that wait for the device; the agent never has more than a few under way.
const QUEUE: usize = 256;

/// What the agent asks of the device.
enum Request {
    Apply { spec: Box<InterfaceSpec>, serial: u64 },
    SetEndpoint { peer: PeerKey, endpoint: SocketAddr, kick: bool },
    Snapshot,
}

/// What the device says.
#[derive(Debug)]
pub(super) enum DeviceEvent {
    /// An [`DeviceThread::apply`] ended.
    Applied {
        /// The number that `apply` returned.
        serial: u64,
        /// What changed, or what went wrong.
        result: Result<Applied, WgError>,
    },
    /// A [`DeviceThread::set_endpoint`] ended.
    EndpointSet {
        /// The peer.
        peer: PeerKey,
        /// Its new endpoint.
        endpoint: SocketAddr,
        /// Whether it was set.
        result: Result<EndpointUpdate, WgError>,
    },
    /// The device's state, after a [`DeviceThread::snapshot`] or any change.
    Snapshot(Result<DeviceSnapshot, WgError>),
}

/// The handle of the thread. The thread ends when this is dropped; the interface stays.
pub(super) struct DeviceThread {
    requests: blocking::SyncSender<Request>,
    serial: u64,
    snapshot_asked: Option<Instant>,
    snapshot_cost: Duration,
}

impl DeviceThread {
    /// Starts the thread for an interface that was opened.
    pub(super) fn start(interface: Interface) -> (Self, mpsc::Receiver<DeviceEvent>) {
        let (requests, todo) = blocking::sync_channel(QUEUE);
        let (events, results) = mpsc::channel(QUEUE);
        let worker = move || run(interface, &todo, &events);
        if let Err(error) = std::thread::Builder::new().name("wireguard".to_owned()).spawn(worker) {
            tracing::error!(%error, "can't start a thread for the WireGuard device");
        }
        (Self { requests, serial: 0, snapshot_asked: None, snapshot_cost: Duration::ZERO }, results)
    }

    /// Brings the device to `spec`. The number names the [`DeviceEvent::Applied`] that answers.
    pub(super) fn apply(&mut self, spec: InterfaceSpec) -> u64 {
        self.serial += 1;
        self.send(Request::Apply { spec: Box::new(spec), serial: self.serial });
        self.serial
    }

    /// Tells WireGuard where a peer is.
    pub(super) fn set_endpoint(&mut self, peer: PeerKey, endpoint: SocketAddr, kick: bool) {
        self.send(Request::SetEndpoint { peer, endpoint, kick });
    }

    /// Asks for the device's state, unless that was asked already and not yet answered.
    pub(super) fn snapshot(&mut self) {
        if self.snapshot_asked.is_none() {
            self.snapshot_asked = Some(Instant::now());
            self.send(Request::Snapshot);
        }
    }

    /// To be called with each snapshot event, so that the next one may be asked for.
    pub(super) fn snapshot_arrived(&mut self) {
        if let Some(asked) = self.snapshot_asked.take() {
            self.snapshot_cost = asked.elapsed();
        }
    }

    /// How long the last snapshot took to arrive.
    pub(super) fn snapshot_cost(&self) -> Duration {
        self.snapshot_cost
    }

    fn send(&self, request: Request) {
        if self.requests.try_send(request).is_err() {
            tracing::error!("the WireGuard device does not keep up; a request was dropped");
        }
    }
}

fn run(mut interface: Interface, todo: &blocking::Receiver<Request>, events: &mpsc::Sender<DeviceEvent>) {
    while let Ok(request) = todo.recv() {
        let event = match request {
            Request::Apply { spec, serial } => DeviceEvent::Applied { serial, result: interface.apply(&spec) },
            Request::SetEndpoint { peer, endpoint, kick } => {
                let result = interface.set_endpoint(&peer, endpoint, kick);
                DeviceEvent::EndpointSet { peer, endpoint, result }
            }
            Request::Snapshot => DeviceEvent::Snapshot(interface.snapshot()),
        };
        if events.blocking_send(event).is_err() {
            return;
        }
    }
}
