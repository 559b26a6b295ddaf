//! The WireGuard device on a thread of its own: its calls block (netlink, sockets), the agent never
//! does.
//!
//! Requests are done in order. Results come back through one channel, so the agent sees them as
//! events ([`Agent::on_device`]).

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::mpsc as blocking;
use std::time::{Duration, Instant};

use natpunch_types::{DeviceSnapshot, PathId, PeerKey};
use natpunch_wg::{
    Applied, DeviceProcess, EndpointUpdate, Interface, InterfaceSpec, PinError, PinMethod, PinSet,
    Plan, WgError,
};
use tokio::sync::{mpsc, oneshot};

use super::rollout::journal::{Entry, Journal};
use super::rollout::with_endpoints;
use super::{Agent, AgentError, clash, now};

/// Requests that wait for the device; the agent never has more than a few under way.
const QUEUE: usize = 256;

/// What the agent asks of the device.
enum Request {
    Apply {
        id: u64,
        spec: Box<InterfaceSpec>,
    },
    Note {
        id: u64,
        journal: Journal,
        entry: Box<Entry>,
    },
    Drift {
        spec: Box<InterfaceSpec>,
        heal: bool,
    },
    Compare {
        spec: Box<InterfaceSpec>,
        answer: oneshot::Sender<Result<Plan, WgError>>,
    },
    SetEndpoint {
        peer: PeerKey,
        path: PathId,
        /// Where its packets go from this network.
        endpoint: SocketAddr,
        kick: bool,
        /// All pins, and how they are made, if they change with it.
        pins: Option<(PinMethod, PinSet)>,
    },
    Rest {
        peer: PeerKey,
    },
    LeaveRest(BTreeMap<PeerKey, SocketAddr>),
    SetKeepalive {
        peer: PeerKey,
        interval: Duration,
    },
    LimitRoutes(Box<InterfaceSpec>),
    SetPins(PinMethod, PinSet),
    CheckPins,
    Snapshot,
    Done(oneshot::Sender<()>),
}

/// What the device says.
#[derive(Debug)]
pub(super) enum DeviceEvent {
    /// An [`DeviceThread::apply`] ended.
    Applied {
        /// The number that `apply` was given.
        id: u64,
        /// What changed, or what went wrong.
        result: Result<Applied, WgError>,
    },
    /// A [`DeviceThread::drift`] ended.
    Drift {
        /// The changes that others made.
        found: Plan,
        /// Whether it was undone.
        healed: Option<Result<(), WgError>>,
    },
    /// A [`DeviceThread::note`] ended.
    Noted {
        /// The number that `note` was given.
        id: u64,
        /// Whether it is on the disk.
        result: io::Result<()>,
    },
    /// A [`DeviceThread::set_endpoint`] ended.
    EndpointSet {
        /// The peer.
        peer: PeerKey,
        /// The path that it was told.
        path: PathId,
        /// Whether it was set.
        result: Result<EndpointUpdate, NotSet>,
    },
    /// The pins were changed to these, or could not be.
    PinsSet(Result<PinSet, PinError>),
    /// A [`DeviceThread::check_pins`] ended: whether they had to be put back.
    PinsChecked(Result<bool, PinError>),
    /// The device's state, after a [`DeviceThread::snapshot`] or any change.
    Snapshot {
        /// What it is.
        result: Result<DeviceSnapshot, WgError>,
        /// How long the device was read. What waited before it, for a program perhaps, is no cost
        /// of snapshots, and must not make them seldom.
        took: Duration,
    },
}

/// Why an endpoint was not set.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotSet {
    /// The device refused it.
    #[error(transparent)]
    Device(#[from] WgError),
    /// WireGuard's packets would have left from another port than the one that the peer awaits.
    #[error("the path's pin is not in force: {0}")]
    NoPin(String),
}

/// The handle of the thread. The thread ends when this is dropped; the interface stays.
pub(super) struct DeviceThread {
    requests: blocking::SyncSender<Request>,
    snapshot_asked: bool,
    snapshot_cost: Duration,
}

impl DeviceThread {
    /// Starts the thread for an interface that was opened.
    pub(super) fn start(interface: Interface) -> (Self, mpsc::Receiver<DeviceEvent>) {
        let (requests, todo) = blocking::sync_channel(QUEUE);
        let (events, results) = mpsc::channel(QUEUE);
        let worker = move || run(interface, &todo, &events);
        if let Err(error) = std::thread::Builder::new()
            .name("wireguard".to_owned())
            .spawn(worker)
        {
            tracing::error!(%error, "can't start a thread for the WireGuard device");
        }
        (
            Self {
                requests,
                snapshot_asked: false,
                snapshot_cost: Duration::ZERO,
            },
            results,
        )
    }

    /// Brings the device to `spec`, after what was asked before.
    pub(super) fn apply(&self, id: u64, spec: InterfaceSpec) {
        let spec = Box::new(spec);
        self.send(Request::Apply { id, spec });
    }

    /// Writes the journal, after what was asked before.
    pub(super) fn note(&self, id: u64, journal: Journal, entry: Entry) {
        self.send(Request::Note {
            id,
            journal,
            entry: Box::new(entry),
        });
    }

    /// Looks for changes that others made, and undoes them with `heal`.
    pub(super) fn drift(&self, spec: InterfaceSpec, heal: bool) {
        self.send(Request::Drift {
            spec: Box::new(spec),
            heal,
        });
    }

    /// Resolves when everything that was asked before is done.
    pub(super) fn done(&self) -> oneshot::Receiver<()> {
        let (answer, answered) = oneshot::channel();
        self.send(Request::Done(answer));
        answered
    }

    /// How the device differs from `spec`.
    pub(super) fn compare(&self, spec: InterfaceSpec) -> oneshot::Receiver<Result<Plan, WgError>> {
        let (answer, answered) = oneshot::channel();
        self.send(Request::Compare {
            spec: Box::new(spec),
            answer,
        });
        answered
    }

    /// Tells WireGuard where a peer is, when these pins are in force: the path, and where packets go
    /// that take it.
    pub(super) fn set_endpoint(
        &mut self,
        peer: PeerKey,
        (path, endpoint): (PathId, SocketAddr),
        kick: bool,
        pins: Option<(PinMethod, PinSet)>,
    ) {
        self.send(Request::SetEndpoint {
            peer,
            path,
            endpoint,
            kick,
            pins,
        });
    }

    /// Puts a peer to rest. The next snapshot shows it.
    pub(super) fn rest(&self, peer: PeerKey) {
        self.send(Request::Rest { peer });
    }

    /// Gives endpoints to peers at rest that nobody will wake. It is not told how that ended.
    pub(super) fn leave_rest(&self, endpoints: BTreeMap<PeerKey, SocketAddr>) {
        self.send(Request::LeaveRest(endpoints));
    }

    /// Makes WireGuard's keepalives to a peer so long. The next snapshot shows it.
    pub(super) fn set_keepalive(&self, peer: PeerKey, interval: Duration) {
        self.send(Request::SetKeepalive { peer, interval });
    }

    /// Sets the MTU of the routes to peers as `spec` has it.
    pub(super) fn limit_routes(&self, spec: InterfaceSpec) {
        self.send(Request::LimitRoutes(Box::new(spec)));
    }

    /// Brings exactly these pins in force, in this way.
    pub(super) fn set_pins(&self, method: PinMethod, pins: PinSet) {
        self.send(Request::SetPins(method, pins));
    }

    /// Puts the pins back if others removed them.
    pub(super) fn check_pins(&self) {
        self.send(Request::CheckPins);
    }

    /// Asks for the device's state, unless that was asked already and not yet answered.
    pub(super) fn snapshot(&mut self) {
        if !self.snapshot_asked {
            self.snapshot_asked = true;
            self.send(Request::Snapshot);
        }
    }

    /// To be called with each snapshot event, so that the next one may be asked for.
    pub(super) fn snapshot_arrived(&mut self, took: Duration) {
        self.snapshot_asked = false;
        self.snapshot_cost = took;
    }

    /// How long the last snapshot took.
    pub(super) fn snapshot_cost(&self) -> Duration {
        self.snapshot_cost
    }

    fn send(&self, request: Request) {
        if self.requests.try_send(request).is_err() {
            tracing::error!("the WireGuard device does not keep up; a request was dropped");
        }
    }
}

fn run(
    mut interface: Interface,
    todo: &blocking::Receiver<Request>,
    events: &mpsc::Sender<DeviceEvent>,
) {
    // Why the interface could not be compared, the last time.
    let mut incomparable = None;
    while let Ok(request) = todo.recv() {
        let event = match request {
            Request::Apply { id, spec } => {
                let result = interface.apply(&spec);
                DeviceEvent::Applied { id, result }
            }
            Request::Note { id, journal, entry } => {
                let result = journal.write(&entry);
                DeviceEvent::Noted { id, result }
            }
            Request::Drift { spec, heal } => match interface.drift(&spec) {
                Err(error) => {
                    // Once for each reason: this is asked every ten seconds.
                    let error = error.to_string();
                    if incomparable.as_ref() != Some(&error) {
                        tracing::warn!(
                            %error,
                            "can't compare the interface with the mesh file; what others change \
                             at it goes unnoticed until this is mended"
                        );
                        incomparable = Some(error);
                    }
                    continue;
                }
                Ok(found) => {
                    incomparable = None;
                    let undo = heal && !found.is_empty();
                    let healed = undo.then(|| interface.apply(&spec).map(|_| ()));
                    DeviceEvent::Drift { found, healed }
                }
            },
            Request::Done(answer) => {
                let _ = answer.send(());
                continue;
            }
            Request::Compare { spec, answer } => {
                let _ = answer.send(interface.drift(&spec));
                continue;
            }
            Request::SetEndpoint {
                peer,
                path,
                endpoint,
                kick,
                pins,
            } => {
                let pinned =
                    pins.map(|(method, pins)| interface.set_pins(method, &pins).map(|()| pins));
                let result = match &pinned {
                    Some(Err(error)) if path.pin().is_some() => {
                        Err(NotSet::NoPin(error.to_string()))
                    }
                    // An old pin that could not be removed leads to another address, and does no
                    // harm.
                    _ => interface
                        .set_endpoint(&peer, endpoint, kick)
                        .map_err(NotSet::from),
                };
                if let Some(pinned) = pinned
                    && events.blocking_send(DeviceEvent::PinsSet(pinned)).is_err()
                {
                    return;
                }
                DeviceEvent::EndpointSet { peer, path, result }
            }
            Request::Rest { peer } => {
                if let Err(error) = interface.rest(&peer) {
                    tracing::warn!(%error, "can't put a peer to rest; it is tried again");
                }
                continue;
            }
            Request::LeaveRest(endpoints) => {
                if let Err(error) = interface.leave_rest(&endpoints) {
                    tracing::warn!(%error, "can't set the endpoints of peers at rest");
                }
                continue;
            }
            Request::SetKeepalive { peer, interval } => {
                if let Err(error) = interface.set_keepalive(&peer, interval) {
                    tracing::warn!(%error, "can't change the interval of a peer's keepalives");
                }
                continue;
            }
            Request::LimitRoutes(spec) => {
                if let Err(error) = interface.limit_routes(&spec) {
                    tracing::warn!(
                        %error,
                        "can't set the MTU of a route to a peer; large packets to it may vanish"
                    );
                }
                continue;
            }
            Request::SetPins(method, pins) => {
                DeviceEvent::PinsSet(interface.set_pins(method, &pins).map(|()| pins))
            }
            Request::CheckPins => DeviceEvent::PinsChecked(interface.heal_pins()),
            Request::Snapshot => {
                let before = Instant::now();
                let result = interface.snapshot();
                let took = before.elapsed();
                DeviceEvent::Snapshot { result, took }
            }
        };
        if events.blocking_send(event).is_err() {
            return;
        }
    }
}

/// The process of the embedded device. One that an earlier version of natpunch left running, or
/// whose program was replaced since, is said to be so: it goes on as it is, faults included.
pub(super) fn process(interface: &Interface, runtime_dir: &Path) -> Option<DeviceProcess> {
    let process = interface.device_process(runtime_dir)?;
    if let Some(warning) = outdated(&process) {
        tracing::warn!("{warning}");
    }
    Some(process)
}

/// What is said of a device that runs another program than this agent.
pub(super) fn outdated(process: &DeviceProcess) -> Option<String> {
    let is_outdated = process.replaced || process.version != env!("CARGO_PKG_VERSION");
    is_outdated.then(|| {
        format!(
            "the WireGuard device (process {}, natpunch {}) still runs the program of before an \
             upgrade, faults included; `natpunch down` and a start of the agent move to the new \
             one, with an interruption of some seconds",
            process.pid, process.version
        )
    })
}

impl Agent {
    /// Takes what the device says.
    pub(super) async fn on_device(&mut self, event: DeviceEvent) -> Result<(), AgentError> {
        match event {
            DeviceEvent::Snapshot { result, took } => match result {
                Ok(snapshot) => {
                    self.device.snapshot_arrived(took);
                    self.on_snapshot(&snapshot);
                }
                Err(error) => {
                    tracing::error!(%error, "the WireGuard device is gone; making it again");
                    self.open_device().await?;
                }
            },
            DeviceEvent::Drift { found, healed } => self.on_drift(&found, healed),
            DeviceEvent::Noted { id, result } => {
                let result = result.map_err(|error| error.to_string());
                self.rollout.handle_written(id, result, now());
            }
            DeviceEvent::EndpointSet { peer, path, result } => {
                let ok = matches!(result, Ok(EndpointUpdate::Updated));
                match result {
                    Ok(EndpointUpdate::Updated) => {}
                    Ok(EndpointUpdate::NoSuchPeer) => {
                        tracing::debug!(peer = %self.name_of(&peer), "the peer was removed meanwhile");
                    }
                    Err(error) => {
                        tracing::warn!(peer = %self.name_of(&peer), %path, %error, "can't set the endpoint");
                    }
                }
                if !ok {
                    self.forget_pin(peer, path);
                }
                self.mesh.handle_endpoint_set(peer, path, ok, now());
                self.device.snapshot();
            }
            DeviceEvent::Applied { id, result } => self.on_applied(id, result),
            DeviceEvent::PinsSet(result) => self.on_pins_set(result),
            DeviceEvent::PinsChecked(result) => self.on_pins_checked(result),
        }
        Ok(())
    }

    /// Makes or adopts the interface again, after it was taken from under the agent.
    async fn open_device(&mut self) -> Result<(), AgentError> {
        let wanted =
            clash::interface(&self.node, &self.options.runtime_dir).map_err(AgentError::Program)?;
        // Peers that do not run natpunch are found again by nothing else than their last endpoint.
        let wanted = with_endpoints(wanted, self.rollout.endpoints());
        let interface = tokio::task::spawn_blocking(move || Interface::open(&wanted))
            .await
            .map_err(|error| AgentError::Internal(error.to_string()))??;
        self.backend = interface.backend().to_string();
        self.device_process = process(&interface, &self.options.runtime_dir);
        (self.device, self.sources.device) = DeviceThread::start(interface);
        self.rollout.handle_device_lost(now());
        // Its table has outlived it.
        self.reset_pins();
        self.route_mtus.reset();
        self.device.snapshot();
        // Sockets on the old interface hear nothing any more.
        self.node_changed().await;
        Ok(())
    }

    fn on_snapshot(&mut self, snapshot: &DeviceSnapshot) {
        // The core first: the machine may ask for the newest version, and who is alive then.
        let known = self.nat64.snapshot(snapshot);
        self.mesh.handle_device(&known, now());
        self.rollout.handle_snapshot(snapshot, now());
        self.flips.saw(self.rollout.endpoints(), now());
        for (peer, by_relay, bytes) in self.mesh.traffic() {
            self.metrics.traffic(peer, by_relay, bytes);
        }
    }
}
