//! The agent: one task owns the mesh. Events come in, the core decides, effects go out.
//!
//! [`run`] is the whole of `natpunch apply`. The loop in `Agent::turn` takes one event, hands it to
//! the core, and drains what the core wants done, so nothing is decided here that the simulator
//! could not see. What the agent does with an event has a file by its source: `start`, `device`,
//! `discovery`, `drift`, `status`; `rollout` executes what the rollout machine decides of
//! versions, and `services` has what a node does beside its tunnels.

pub(crate) mod clash;
mod device;
mod discovery;
mod drift;
mod error;
pub mod guard;
mod metrics;
mod nat64;
mod ping;
mod pins;
pub mod plan;
mod resolver;
mod responses;
mod resting;
pub(crate) mod rollout;
pub(crate) mod services;
mod sizes;
pub(crate) mod spec;
mod start;
mod status;
mod store;
#[cfg(test)]
mod testing;
mod waiting;
mod warm;
mod why;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use natpunch_core::{Command, Event, Mesh, PeerState, Time, Transmit};
use natpunch_forwarder::Forwarder;
use natpunch_net::{LinkWatch, RawPort, now};
use natpunch_rollout::Answers;
use natpunch_types::{
    Consent, Interest, LocalSocket, Nat64, PeerKey, Route, SealedRecord, is_forwarder,
};
use natpunch_wg::{Applied, DeviceProcess};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::config::{Local, NodeConfig};
use crate::control::{self, Call, Readers, Request};
use crate::plugins::correspondents::Correspondents;
use crate::plugins::host::{Instance, PluginEvent};
use crate::source::{self, Source};

use clash::Clash;
use device::{DeviceEvent, DeviceThread};
use drift::{DRIFT_INTERVAL, DRIFT_SHARE, DriftStatus};
pub use error::AgentError;
use guard::Guard;
use metrics::Metrics;
pub use ping::Pinged;
use ping::Pings;
use pins::Pins;
pub use pins::{PinStatus, PinnedPath};
use resolver::Resolver;
use responses::Responses;
use resting::Resting;
use rollout::journal::Journal;
use rollout::names::Names;
use rollout::{Loaded, Loading, Rollout};
use services::Services;
pub use services::revisions::{PeerRevision, Runs, Standing};
pub use services::serving::ServingStatus;
pub use services::views::{PeerView, Tried};
use sizes::RouteMtus;
pub(crate) use start::hold_signals;
pub use status::{ChangeStatus, DiscoveryStatus, HeldStatus, Member, MeshRevisions, Status};
use store::CounterStore;
pub use waiting::Waiting;
use warm::Warm;
pub use why::Why;
pub use why::causes::Cause;
use why::causes::Flips;
use why::history::History;
pub use why::history::{Replaced, Since, Step, StrategyRun};

/// How often the device is read while nothing happens.
const SNAPSHOT_INTERVAL: Duration = Duration::from_secs(1);
/// How often it is read while a handshake is awaited, and for how long.
const EAGER_SNAPSHOT: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// Reading a device takes at most one part in this many of the agent's time: with 10,000 peers it
/// is slow.
const SNAPSHOT_SHARE: u32 = 20;

/// How long the device may take to end what it was asked before the agent stops.
const STOP_DEADLINE: Duration = Duration::from_secs(2);

/// What the log calls the search for paths, for `--log info,natpunch::paths=debug`.
const PATHS: &str = "natpunch::paths";

/// What `natpunch apply` was asked to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the mesh comes from.
    pub source: source::Options,
    /// What the command line says of this host's secrets.
    pub local: Local,
    /// With `--once`: stop when every reachable peer is connected, or after this time.
    pub once: Option<Duration>,
    /// Where sockets go.
    pub runtime_dir: PathBuf,
    /// Where counters and the journal are kept.
    pub state_dir: PathBuf,
    /// What changes may do beyond what the mesh file allows.
    pub allow: Vec<Consent>,
    /// How long a person has to confirm each change; `None`: the peers' signs of life confirm it.
    pub confirm: Option<Duration>,
    /// Do this plan at the start, or stop.
    pub plan: Option<String>,
    /// Take over a running interface that another program made.
    pub adopt: bool,
    /// Where collectors of metrics are answered.
    pub metrics: Option<SocketAddr>,
    /// The group that may ask for the status.
    pub control_group: Option<Readers>,
}

/// How a run of the agent ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It was told to stop, or `--once` saw every reachable peer connected.
    Done,
    /// The deadline of `--once` passed; what is missing, a line for each peer and open change.
    DeadlinePassed(Vec<String>),
}

/// Runs the agent until it is told to stop. Tunnels stay up afterwards.
///
/// # Errors
/// The mesh file is wrong, or the host can't do what it asks for. Nothing was changed in the first
/// case.
pub async fn run(options: Options) -> Result<Outcome, AgentError> {
    let Some(mut agent) = Agent::start(options).await? else {
        return Ok(Outcome::Done);
    };
    let outcome = agent.work().await;
    agent.stop().await;
    outcome
}

struct Agent {
    options: Options,
    /// This node's part of the version that runs.
    node: NodeConfig,
    /// Which version runs, and which is to.
    rollout: Rollout,
    /// How the versions that were loaded are called.
    names: Names,
    journal: Journal,
    to_answers: mpsc::Sender<(u64, Answers)>,
    loading: Loading,
    /// What the device did last, until it is told.
    applied: Option<Applied>,
    drift: Option<DriftStatus>,
    drift_at: Instant,
    /// How they moved lately.
    flips: Flips,
    /// What happened to the peers' paths.
    history: History,
    metrics: Metrics,
    /// Answers of the device that clients of the control socket wait for.
    pings: Pings,
    mesh: Mesh,
    backend: String,
    device_process: Option<DeviceProcess>,
    /// Where a network of the mesh is also one of a LAN that this host is in.
    clashes: Vec<Clash>,
    device: DeviceThread,
    raw: RawPort,
    resting: Resting,
    guard: Guard,
    responses: Responses,
    pins: Pins,
    route_mtus: RouteMtus,
    /// What carries WireGuard's packets where no UDP gets through.
    forwarder: Arc<Forwarder>,
    plugins: Vec<Instance>,
    /// How many were started.
    plugin_runs: u64,
    services: Services,
    correspondents: Correspondents,
    interest: Arc<[Interest]>,
    records: Arc<[SealedRecord]>,
    resolver: Resolver,
    nat64: nat64::Search,
    store: CounterStore,
    /// What worked in the networks that this host was in.
    warm: Warm,
    /// When the version that runs began to, since boot.
    since: Time,
    reloads: u64,
    reload_error: Option<String>,
    /// Where this node was last seen from outside, by IPv4 and by IPv6, as the log has it.
    seen_at: [Option<SocketAddr>; 2],
    eager_until: Instant,
    started: Instant,
    to_plugins: mpsc::Sender<PluginEvent>,
    source: Source,
    sources: Sources,
}

/// Where events come from.
struct Sources {
    device: mpsc::Receiver<DeviceEvent>,
    plugins: mpsc::Receiver<PluginEvent>,
    stun: mpsc::Receiver<Vec<SocketAddr>>,
    nat64: mpsc::Receiver<Option<Nat64>>,
    calls: mpsc::Receiver<Call>,
    links: LinkWatch,
    mesh_changes: mpsc::Receiver<source::Change>,
    answers: mpsc::Receiver<(u64, Answers)>,
    loaded: mpsc::Receiver<Loaded>,
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
    snapshot_at: Instant,
    _control: control::Server,
    /// Until it is dropped, collectors of metrics are answered.
    _metrics: Option<watch::Sender<bool>>,
}

impl Agent {
    async fn work(&mut self) -> Result<Outcome, AgentError> {
        loop {
            if let Some(deadline) = self.options.once {
                let changes = self.loading.is_running() || !self.rollout.is_settled();
                if self.settled() && !changes {
                    return Ok(Outcome::Done);
                }
                if self.started.elapsed() >= deadline {
                    return Ok(Outcome::DeadlinePassed(self.missing()));
                }
            }
            if !self.turn().await? {
                return Ok(Outcome::Done);
            }
            self.execute().await;
            self.drain();
            self.answer_pings();
        }
    }

    /// Takes one event. False means: stop.
    async fn turn(&mut self) -> Result<bool, AgentError> {
        let wake = |at: Option<Time>| {
            let wait = at.map_or(SNAPSHOT_INTERVAL, |at| at.since(now()));
            Instant::now() + wait
        };
        let core_wakes = wake(self.mesh.poll_timeout());
        let rollout_wakes = wake(self.rollout.poll_timeout());
        let sources = &mut self.sources;
        tokio::select! {
            _ = sources.terminate.recv() => return Ok(false),
            _ = sources.interrupt.recv() => return Ok(false),
            // As `natpunch reload`, without a client for the answer.
            _ = sources.hangup.recv() => self.source.ask(tokio::sync::oneshot::channel().0),
            received = self.raw.recv() => match received {
                Ok(received) => self.on_datagram(received),
                Err(error) => {
                    tracing::warn!(%error, "the raw sockets failed; opening them again");
                    self.open_raw()?;
                }
            },
            rested = self.resting.next() => self.on_rested(rested),
            sent = self.responses.next() => self.on_response(sent),
            event = self.pins.next() => self.on_pin_event(event),
            Some(event) = sources.device.recv() => self.on_device(event).await?,
            Some(event) = sources.plugins.recv() => self.on_plugin(event),
            Some(servers) = sources.stun.recv() => self.mesh.handle_stun_servers(&servers, now()),
            Some(found) = sources.nat64.recv() => self.on_nat64(found),
            Some(call) = sources.calls.recv() => {
                if call.request == Request::Reload {
                    // It comes back as a change, when the source was asked.
                    self.source.ask(call.answer);
                    return Ok(true);
                }
                let stop = call.request == Request::Stop;
                self.on_call(call).await;
                if stop {
                    return Ok(false);
                }
            }
            Some((id, answers)) = sources.answers.recv() => {
                self.rollout.handle_answers(id, &answers, now());
            }
            change = sources.links.changed() => {
                if change.suspended {
                    tracing::info!("the machine slept; looking for paths again");
                }
                self.raw.forget_routes();
                self.nat64.network_changed(&change.network);
                let network = self.network();
                self.mesh.handle_local_addresses(&network, now());
                self.mesh.handle_network_change(now());
                self.warm.moved();
                self.tend_memory();
                self.look_for_clashes();
                self.resolver.set(spec::stun_servers(&self.node));
                for plugin in &self.plugins {
                    plugin.tell_network_changed(&network);
                }
            }
            Some(change) = sources.mesh_changes.recv() => self.load(change.answer),
            Some(loaded) = sources.loaded.recv() => self.on_loaded(loaded),
            () = tokio::time::sleep_until(sources.snapshot_at) => {
                let eager = Instant::now() < self.eager_until;
                let interval = if eager { EAGER_SNAPSHOT.0 } else { SNAPSHOT_INTERVAL };
                let interval = interval.max(self.device.snapshot_cost() * SNAPSHOT_SHARE);
                sources.snapshot_at = Instant::now() + interval;
                self.mesh.set_reading_interval(interval);
                self.device.snapshot();
                self.limit_routes();
                self.tend_memory();
                self.tend_guard();
                if Instant::now() >= self.drift_at {
                    self.drift_at = Instant::now() + DRIFT_INTERVAL.max(self.device.snapshot_cost() * DRIFT_SHARE);
                    self.look_for_clashes();
                    self.look_for_drift();
                    self.look_after_pins();
                    self.guard.look_again();
                    if self.node.apply.heal {
                        self.services.hosts.heal();
                    }
                }
                self.metrics.reload(self.reload_error.as_ref());
                self.services.revisions.set_not_newest(self.reload_error.is_some());
                self.rollout.handle_timeout(now());
                self.forget_correspondents();
                self.services.serving.retry(&self.node).await;
                notify_systemd(&[sd_notify::NotifyState::Watchdog]);
            }
            () = tokio::time::sleep_until(core_wakes) => self.mesh.handle_timeout(now()),
            () = tokio::time::sleep_until(rollout_wakes) => self.rollout.handle_timeout(now()),
        }
        Ok(true)
    }

    /// Does what the core wants done.
    fn drain(&mut self) {
        // Before the datagrams: some wait for the answer to a command.
        while let Some(command) = self.mesh.poll_command() {
            match command {
                Command::FindRoute { peer, destination } if is_forwarder(destination) => {
                    // It leads beyond this host.
                    self.mesh
                        .handle_route(peer, destination, Route::Routed, now());
                }
                Command::FindRoute { peer, destination } => {
                    let route = self.raw.route(destination).unwrap_or_else(|error| {
                        tracing::debug!(%destination, %error, "no route is known");
                        Route::Routed
                    });
                    self.mesh.handle_route(peer, destination, route, now());
                }
                Command::SetEndpoint {
                    peer,
                    path,
                    kick,
                    reason,
                } => {
                    tracing::debug!(peer = %self.name_of(&peer), %path, %reason, kick, "setting the endpoint");
                    self.set_endpoint(peer, path, kick);
                    self.eager_until = Instant::now() + EAGER_SNAPSHOT.1;
                    self.sources.snapshot_at = Instant::now() + EAGER_SNAPSHOT.0;
                }
                Command::Rest { peer } => {
                    tracing::debug!(peer = %self.name_of(&peer), "putting it to rest");
                    self.device.rest(peer);
                }
                Command::SetKeepalive { peer, interval } => {
                    tracing::debug!(peer = %self.name_of(&peer), ?interval, "setting the keepalive");
                    self.device.set_keepalive(peer, interval);
                }
                Command::TellReturn => {
                    tracing::info!("servers answer again after an outage of the network");
                    let network = self.network();
                    for plugin in &self.plugins {
                        plugin.tell_network_changed(&network);
                    }
                }
                Command::HearResponses(hears) => self.hear_responses(hears),
                Command::SetMtu { peer, mtu } => self.route_mtus.set(peer, mtu),
                Command::Ask(ask) => self.ask_plugins(ask),
                Command::TakeMessage { peer, payload } => {
                    let plugins = self.plugins.iter();
                    plugins.for_each(|plugin| plugin.tell_message(peer, &payload));
                }
                Command::SourcePorts(ports) => self.open_source_ports(ports),
            }
        }
        let lifetime = self.mesh.mapping_lifetime();
        for plugin in &self.plugins {
            plugin.set_mapping_lifetime(lifetime);
        }
        while let Some(transmit) = self.mesh.poll_transmit() {
            let Transmit {
                path,
                source,
                travel,
                payload,
            } = transmit;
            let (remote, payload) = (path.remote, &payload);
            let sent = match path.local {
                LocalSocket::WireguardPort => self.raw.send(source, remote, travel, payload),
                LocalSocket::SourcePort(port) => {
                    self.pins.send(&self.raw, port, remote, travel, payload)
                }
            };
            if let Err(error) = sent {
                tracing::trace!(%path, %error, "not sent");
            }
        }
        while let Some(event) = self.mesh.poll_event() {
            // The core knows keys; people know names.
            let peer = event.peer().map(|key| self.name_of(key));
            self.note_event(&event);
            match peer {
                Some(peer) if event.is_step() => {
                    tracing::debug!(target: PATHS, %peer, "{event}");
                }
                Some(peer) => tracing::info!(target: PATHS, %peer, "{event}"),
                None if self.is_logged(&event) => tracing::debug!(target: PATHS, "{event}"),
                None => tracing::info!(target: PATHS, "{event}"),
            }
        }
    }

    /// Whether the log has this already: each server tells this node's address.
    fn is_logged(&mut self, event: &Event) -> bool {
        let Event::ReflexiveLearned { address, .. } = event else {
            return false;
        };
        let [v4, v6] = &mut self.seen_at;
        let seen_at = if address.is_ipv4() { v4 } else { v6 };
        seen_at.replace(*address) == Some(*address)
    }

    /// Keeps what happened, for later questions.
    fn note_event(&mut self, event: &Event) {
        let path = event.peer().zip(event.path());
        let kind = path.and_then(|(peer, path)| self.mesh.kind_of(peer, path));
        if matches!(event, Event::Rests { .. }) {
            self.guard.look_again();
        }
        self.history.note(event, kind, now());
        self.metrics.note(event, kind, now());
    }

    /// What is counted, for collectors.
    fn metrics_text(&self) -> String {
        metrics::text(&metrics::Scrape {
            counted: &self.metrics,
            status: &self.status(),
        })
    }

    fn on_datagram(&mut self, received: natpunch_net::Received) {
        let heard_by = self.correspondents.of(received.source, &received.payload);
        for plugin in self
            .plugins
            .iter()
            .filter(|plugin| heard_by.contains(plugin.name()))
        {
            plugin.tell_datagram(received.source, received.payload.clone());
        }
        self.mesh.handle_datagram(
            self.pins.path_to(received.source),
            Some(received.destination),
            &received.payload,
            now(),
        );
    }

    /// Opens the raw sockets anew, for another port or after they failed.
    fn open_raw(&mut self) -> Result<(), AgentError> {
        self.raw = RawPort::open(self.node.listen_port, self.node.fwmark)?;
        self.translate_raw();
        self.resting = Resting::open(self.node.listen_port);
        self.correspondents = Correspondents::default();
        self.reopen_source_ports();
        Ok(())
    }

    /// Tells whatever is beside the tunnels what the node runs now.
    async fn node_changed(&mut self) {
        self.resolver.set(spec::stun_servers(&self.node));
        let is_peer = |key: &PeerKey| self.node.peers.iter().any(|peer| peer.key == *key);
        self.history.keep(is_peer);
        self.route_mtus.keep(is_peer);
        self.warm.keep(is_peer);
        // It is to know no peer that is gone.
        self.guard.end();
        let peers = self.node.peers.iter().map(|peer| peer.key);
        self.metrics.peers(peers, now());
        let node = services::Node {
            config: &self.node,
            since: self.since,
            connected: self.alive(),
        };
        self.services.node_changed(&node).await;
    }

    /// True when every peer is connected, except those that the core has found to be out of reach.
    fn settled(&self) -> bool {
        let status = self.mesh.status(now());
        let (mut connected, mut resting) = (0, 0);
        let all = status.peers.iter().all(|peer| match peer.state {
            PeerState::Connected => {
                connected += 1;
                true
            }
            PeerState::Resting => {
                resting += 1;
                true
            }
            PeerState::Unreachable { .. } => true,
            _ => false,
        });
        all && (connected + resting > 0 || status.peers.is_empty())
    }

    /// What keeps `--once` from its end.
    fn missing(&self) -> Vec<String> {
        let mut missing: Vec<String> = self.reload_error.iter().cloned().collect();
        if self.loading.is_running() {
            missing.push("the newest version is still being read".to_owned());
        }
        if !self.rollout.is_settled() {
            missing.push("the change to the newest version is not confirmed yet".to_owned());
        }
        let status = self.status();
        let away = |peer: &&natpunch_core::PeerStatus| {
            !matches!(peer.state, PeerState::Connected | PeerState::Resting)
        };
        missing.extend(status.core.peers.iter().filter(away).map(|peer| {
            let likely = status.likely.get(&peer.name);
            let likely = likely.map_or(String::new(), |cause| format!("; most likely: {cause}"));
            format!("{}: {}{likely}", peer.name, peer.state)
        }));
        missing
    }

    fn name_of(&self, key: &PeerKey) -> String {
        let named = self.node.peers.iter().find(|peer| peer.key == *key);
        named.map_or_else(|| key.short(), |peer| peer.name.clone())
    }

    async fn stop(mut self) {
        notify_systemd(&[sd_notify::NotifyState::Stopping]);
        self.close_memory().await;
        self.stop_plugins(|_| false).await;
        // Nobody hears any more what WireGuard sends to a resting endpoint.
        self.device.leave_rest(self.last_endpoints());
        // What was confirmed a moment ago must be in the journal before we end.
        self.rollout.handle_stop(now());
        self.execute().await;
        if tokio::time::timeout(STOP_DEADLINE, self.device.done())
            .await
            .is_err()
        {
            tracing::warn!(
                "the WireGuard device is still busy; the journal may lack the last confirmation"
            );
        }
        // Last, lest this process be killed before it has done the same.
        self.guard.end();
        self.services.stop().await;
        tracing::info!(interface = %self.node.interface, "stopped; the tunnels stay up (`natpunch down` removes them)");
    }
}

fn notify_systemd(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "can't notify systemd");
    }
}
