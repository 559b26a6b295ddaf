//! The agent: one task owns the mesh. Events come in, the core decides, effects go out.
//!
//! [`run`] is the whole of `natpunch apply`. The loop in `Agent::turn` takes one event, hands it to the core, and
//! drains what the core wants done, so nothing is decided here that the simulator could not see: this file only knows
//! how to send a datagram, set an endpoint, tell a plugin, and reload.

pub(crate) mod caps;
mod change;
mod device;
mod error;
mod forwarding;
pub(crate) mod hosts;
pub(crate) mod journal;
mod names;
pub mod plan;
mod reload;
mod revision;
mod revisions;
mod serving;
pub(crate) mod spec;
mod store;
#[cfg(test)]
mod testing;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use natpunch_core::{Command, Interest, Mesh, MeshStatus, PeerState, Time, Transmit};
use natpunch_net::{LinkWatch, RawPort, boot_time};
use natpunch_plugin::{Health, RecordTag, SealedRecord};
use natpunch_types::{DeviceSnapshot, Origin, PeerKey};
use natpunch_wg::{EndpointUpdate, Interface};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::config::{self, Consent, Local, NodeConfig};
use crate::control::{self, Call, Reply, Request};
use crate::plugins::host::{self, Correspondents, Instance, NodeFacts, PluginEvent};
use crate::plugins::{fill_random, registry};
use crate::source::{self, Source, SourceStatus};

pub use caps::Refusal;
use change::{Good, Guard};
use device::{DeviceEvent, DeviceThread};
pub use error::AgentError;
use journal::{Change, Entry, Journal, Version};
use names::Resolver;
use reload::{Beginning, DRIFT_INTERVAL, PendingReload};
pub use revision::{PeerRevision, Runs, Standing};
use revisions::Revisions;
use serving::Serving;
pub use serving::ServingStatus;
use store::CounterStore;

/// How often the device is read while nothing happens.
const SNAPSHOT_INTERVAL: Duration = Duration::from_secs(1);
/// How often it is read while a handshake is awaited, and for how long.
const EAGER_SNAPSHOT: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// Reading a device takes at most one part in this many of the agent's time: with 10,000 peers it is slow.
const SNAPSHOT_SHARE: u32 = 20;
/// The same for the search for drift, which reads more.
const DRIFT_SHARE: u32 = 200;

/// How long the device may take to end what it was asked before the agent stops.
const STOP_DEADLINE: Duration = Duration::from_secs(2);

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
    /// How long a person has to confirm each change; `None`: nobody has to, the peers' signs of life do.
    pub confirm: Option<Duration>,
    /// Do this plan at the start, or stop.
    pub plan: Option<String>,
    /// Take over a running interface that somebody else made.
    pub adopt: bool,
}

/// How a run of the agent ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was told to stop, or `--once` saw every reachable peer connected.
    Done,
    /// The deadline of `--once` passed.
    DeadlinePassed,
}

/// What `status` prints.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// Name of the mesh.
    pub mesh: String,
    /// This node's name.
    pub node: String,
    /// Its interface.
    pub interface: String,
    /// Which WireGuard device carries the packets.
    pub backend: String,
    /// Process id of the agent.
    pub pid: u32,
    /// Hash of the mesh file's content that is applied, in hex, shortened.
    pub revision: String,
    /// Hash of what the mesh says, in hex, shortened: the same on all nodes that run the same mesh.
    pub mesh_hash: String,
    /// The generation that the mesh file states.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// For how long this version has run, in seconds.
    pub runs_for_s: f64,
    /// Reloads that were applied since start.
    pub reloads: u64,
    /// Why the newest mesh file is not applied, if it isn't.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reload_error: Option<String>,
    /// Why the journal can't be written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub journal_error: Option<String>,
    /// Where the mesh comes from, if not from a path of this machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceStatus>,
    /// The change that is tried and not yet known to work.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub change: Option<ChangeStatus>,
    /// The version that was tried and undone, and is not tried again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held: Option<HeldStatus>,
    /// What somebody else changed at the interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drift: Option<DriftStatus>,
    /// The server of this node, if it serves the mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serving: Option<ServingStatus>,
    /// Why the peers' names are not in the hosts file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hosts_error: Option<String>,
    /// Discovery instances.
    pub discovery: Vec<DiscoveryStatus>,
    /// What the core knows: candidates of this node, peers and their paths.
    #[serde(flatten)]
    pub core: MeshStatus,
}

/// A change that is not yet known to work.
#[derive(Debug, Clone, Serialize)]
pub struct ChangeStatus {
    /// Its version.
    pub revision: String,
    /// When it will be undone, in seconds.
    pub undone_in_s: f64,
    /// Whether a person has to confirm it.
    pub by_person: bool,
    /// The peers whose sign of life is awaited.
    pub waiting_for: Vec<String>,
}

/// A version that was undone.
#[derive(Debug, Clone, Serialize)]
pub struct HeldStatus {
    /// The version.
    pub revision: String,
    /// Why it was undone.
    pub reason: String,
}

/// What somebody else changed at the interface.
#[derive(Debug, Clone, Serialize)]
pub struct DriftStatus {
    /// What was found last, as the changes that put it right.
    pub changes: Vec<String>,
    /// Whether it was put right.
    pub healed: bool,
    /// How often something was found since the start.
    pub times: u64,
}

/// A version that was tried and undone.
#[derive(Debug, Clone)]
struct Held {
    to: [u8; 32],
    reason: String,
    /// As this agent tried it; `None`: another one did.
    tried: Option<Box<NodeConfig>>,
}

impl Held {
    /// What the journal says. It knows no keys.
    fn noted(to: [u8; 32], reason: String) -> Self {
        Self { to, reason, tried: None }
    }

    /// Whether this is the version: the same files, and the same keys and secrets as far as these are known.
    fn is(&self, node: &NodeConfig) -> bool {
        let keys = |of: &NodeConfig| of.peers.iter().map(|peer| peer.preshared_key.clone()).collect::<Vec<_>>();
        let same_keys = |tried: &NodeConfig| {
            tried.private_key == node.private_key && keys(tried) == keys(node) && tried.discovery == node.discovery
        };
        self.to == node.content_hash && self.tried.as_deref().is_none_or(same_keys)
    }
}

/// What `status --mesh` prints.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MeshRevisions {
    /// Name of the mesh.
    pub mesh: String,
    /// This node's name.
    pub node: String,
    /// What it runs.
    #[serde(flatten)]
    pub runs: Runs,
    /// The other peers, by name.
    pub peers: Vec<PeerRevision>,
}

/// One discovery instance in `status`.
#[derive(Debug, Clone, Serialize)]
pub struct DiscoveryStatus {
    /// NAME of `[discovery.NAME]`.
    pub name: String,
    /// Whether it works.
    pub ok: bool,
    /// What it did last, or what is wrong.
    pub note: String,
    /// Offers that were dropped because there were too many.
    pub dropped: u64,
}

/// Runs the agent until it is told to stop. Tunnels stay up afterwards.
///
/// # Errors
/// The mesh file is wrong, or the host can't do what it asks for. Nothing was changed in the first case.
pub async fn run(options: Options) -> Result<Outcome, AgentError> {
    let mut agent = Agent::start(options).await?;
    let outcome = agent.work().await;
    agent.stop().await;
    outcome
}

/// Loads a mesh file and finds this host in it, off the agent's thread: a large mesh takes a moment.
async fn load(source: &Source, options: &Options) -> Result<(NodeConfig, Arc<Version>), AgentError> {
    let (path, local) = (source.path(), options.local.clone());
    tokio::task::spawn_blocking(move || -> Result<_, AgentError> {
        let mesh = config::load(&path)?;
        let node = config::resolve_node_at(&mesh, &local)?;
        let version = Version { hash: mesh.content_hash, files: mesh.texts(), local: local.absolute() };
        Ok((node, Arc::new(version)))
    })
    .await
    .map_err(|error| AgentError::Internal(error.to_string()))?
}

/// The key files among the files that a node was read from.
fn key_files<'a>(node: &'a NodeConfig, version: &Version) -> &'a [PathBuf] {
    node.files.get(version.files.len()..).unwrap_or_default()
}

/// Checks that the plan that somebody has read is the one that would be done.
async fn check_plan(options: &Options, node: &NodeConfig) -> Result<(), AgentError> {
    let Some(wanted) = options.plan.clone() else { return Ok(()) };
    let mut spec = spec::interface(node, &options.runtime_dir).map_err(AgentError::Program)?;
    spec.adopt = options.adopt;
    let plan = tokio::task::spawn_blocking(move || Interface::plan(&spec))
        .await
        .map_err(|error| AgentError::Internal(error.to_string()))??;
    let found = plan::id(node, &plan);
    if found == wanted { Ok(()) } else { Err(AgentError::PlanChanged { wanted, found }) }
}

/// Loads what there is to start with: the newest version, or the last good one if that can't be used.
async fn load_first(source: &Source, options: &Options) -> Result<(NodeConfig, Arc<Version>), AgentError> {
    match load(source, options).await {
        Err(error) if source.fall_back() => {
            tracing::error!("the newest version can't be used, starting with the last good one\n{error}");
            load(source, options).await
        }
        loaded => loaded,
    }
}

struct Agent {
    options: Options,
    /// The version that runs.
    node: NodeConfig,
    version: Arc<Version>,
    /// The version that is known to work: the one that runs, or the one before.
    good: Good,
    guard: Option<Guard>,
    held: Option<Held>,
    retry_back: Option<(Instant, [u8; 32])>,
    journal: Journal,
    /// Why it can't be written, and when to try again.
    journal_error: Option<(String, Instant)>,
    waits_for_journal: bool,
    checking: bool,
    to_checks: mpsc::Sender<BTreeSet<IpAddr>>,
    drift: Option<DriftStatus>,
    drift_at: Instant,
    /// The mesh file says something else than what runs since the start.
    catch_up: bool,
    /// Where the device has its peers.
    endpoints: BTreeMap<PeerKey, SocketAddr>,
    mesh: Mesh,
    backend: String,
    device: DeviceThread,
    raw: RawPort,
    plugins: Vec<Instance>,
    serving: Serving,
    correspondents: Correspondents,
    interest: Vec<Interest>,
    records: Arc<[SealedRecord]>,
    resolver: Resolver,
    store: CounterStore,
    revisions: Revisions,
    /// `None` at the end.
    hosts: Option<hosts::Keeper>,
    /// When the version that runs began to, since boot.
    since: Duration,
    pending: Option<PendingReload>,
    reloads: u64,
    reload_error: Option<String>,
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
    calls: mpsc::Receiver<Call>,
    links: LinkWatch,
    mesh_changes: mpsc::Receiver<source::Change>,
    checks: mpsc::Receiver<BTreeSet<IpAddr>>,
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
    snapshot_at: Instant,
    _control: control::Server,
}

fn now() -> Time {
    Time::from_origin(boot_time())
}

impl Agent {
    async fn start(options: Options) -> Result<Self, AgentError> {
        let (source, mesh_changes) = Source::open(options.source.clone()).await?;
        let (file, version) = load_first(&source, &options).await?;
        let plugins_ok: Result<Vec<_>, _> = file.discovery.iter().map(|d| registry::build(&d.settings)).collect();
        plugins_ok.map_err(AgentError::Plugin)?;
        check_plan(&options, &file).await?;
        source.watch_keys(key_files(&file, &version));

        let (calls_in, calls) = mpsc::channel(16);
        let socket = control::socket_path(&options.runtime_dir, &file.interface);
        let control = control::Server::listen(&socket, calls_in)
            .await
            .map_err(|source| AgentError::Control { path: socket, source })?;
        // What was open when the last agent ended comes first.
        let journal = Journal::new(&options.state_dir, &file.interface);
        let name = file.interface.clone();
        let is_up = tokio::task::spawn_blocking(move || natpunch_wg::exists(&name))
            .await
            .map_err(|error| AgentError::Internal(error.to_string()))??;
        let Beginning { node, version, good, guard, held, differs } =
            Beginning::resolve(file, version, &journal, is_up);
        let mut wanted = spec::interface(&node, &options.runtime_dir).map_err(AgentError::Program)?;
        if let Some(Entry { change: Some(Change::Open { endpoints, .. }), .. }) = journal.peek() {
            wanted = reload::with_endpoints(wanted, &endpoints);
        }
        wanted.adopt = options.adopt;
        let (interface, applied) = tokio::task::spawn_blocking(move || Interface::open_reporting(&wanted))
            .await
            .map_err(|error| AgentError::Internal(error.to_string()))??;
        if matches!(applied.plan.changes.first(), Some(natpunch_wg::Change::Adopt { .. })) {
            for change in plan::report(&node, None, &applied.plan, &[]).changes {
                tracing::info!("{} {}", change.sign, change.text);
            }
        }
        let mut first_note = Ok(());
        if guard.is_none() {
            let change = held.clone().map(|Held { to, reason, .. }| Change::Held { to, reason });
            first_note = journal.write(&Entry { good: (*version).clone(), change });
        }
        let backend = interface.backend().to_string();
        let (mut device, device_events) = DeviceThread::start(interface);
        device.snapshot();

        let raw = RawPort::open(node.listen_port, node.fwmark)?;
        let links = LinkWatch::new(&node.interface).await?;
        let (to_plugins, plugin_events) = host::channel();
        let (to_checks, checks) = mpsc::channel(4);
        let (resolver, stun) = Resolver::start();
        let (store, floor) = CounterStore::open(&options.state_dir, &node.interface);

        let mut seed = [0; 32];
        fill_random(&mut seed);
        let mut mesh = Mesh::new(spec::mesh(&node), seed, now());
        mesh.set_record_counter_floor(floor);
        mesh.handle_local_addresses(links.addresses(), now());
        resolver.set(spec::stun_servers(&node));
        let signals = |kind| signal(kind).map_err(|error| AgentError::Internal(error.to_string()));

        let good = good.unwrap_or_else(|| Good { node: node.clone(), version: Arc::clone(&version) });
        let mut agent = Self {
            good,
            version,
            guard,
            reload_error: held.as_ref().map(|held| AgentError::Held(held.reason.clone()).to_string()),
            held,
            retry_back: None,
            journal,
            journal_error: None,
            waits_for_journal: false,
            checking: false,
            to_checks,
            drift: None,
            drift_at: Instant::now() + DRIFT_INTERVAL,
            catch_up: differs,
            endpoints: BTreeMap::new(),
            mesh,
            backend,
            device,
            raw,
            plugins: Vec::new(),
            serving: Serving::default(),
            correspondents: Correspondents::default(),
            interest: Vec::new(),
            records: Arc::from([]),
            resolver,
            store,
            revisions: Revisions::start(),
            hosts: Some(hosts::Keeper::start()),
            since: boot_time(),
            pending: None,
            reloads: 0,
            eager_until: Instant::now() + EAGER_SNAPSHOT.1,
            started: Instant::now(),
            to_plugins,
            source,
            sources: Sources {
                device: device_events,
                plugins: plugin_events,
                stun,
                calls,
                links,
                mesh_changes,
                checks,
                terminate: signals(SignalKind::terminate())?,
                interrupt: signals(SignalKind::interrupt())?,
                hangup: signals(SignalKind::hangup())?,
                snapshot_at: Instant::now(),
                _control: control,
            },
            options,
            node,
        };
        agent.on_noted(first_note.map_err(|error| error.to_string()));
        tracing::info!(
            mesh = %agent.node.mesh, node = %agent.node.name, interface = %agent.node.interface,
            port = agent.node.listen_port, backend = %agent.backend, peers = agent.node.peers.len(),
            "joined the mesh"
        );
        forwarding::warn(&agent.node);
        agent.source.applied(agent.good.node.content_hash);
        agent.serving.sync(&agent.node).await;
        agent.sync_plugins().await;
        agent.tell_revision();
        agent.put_names();
        agent.drain();
        crate::agent::notify_systemd(&[sd_notify::NotifyState::Ready]);
        Ok(agent)
    }

    async fn work(&mut self) -> Result<Outcome, AgentError> {
        loop {
            if let Some(deadline) = self.options.once {
                if self.settled() && !self.catch_up && self.pending.is_none() && self.guard.is_none() {
                    return Ok(Outcome::Done);
                }
                if self.started.elapsed() >= deadline {
                    return Ok(Outcome::DeadlinePassed);
                }
            }
            if !self.turn().await? {
                return Ok(Outcome::Done);
            }
            self.drain();
        }
    }

    /// Takes one event. False means: stop.
    async fn turn(&mut self) -> Result<bool, AgentError> {
        let core_wakes = match self.mesh.poll_timeout() {
            Some(at) => Instant::now() + at.since(now()),
            None => Instant::now() + SNAPSHOT_INTERVAL,
        };
        let sources = &mut self.sources;
        tokio::select! {
            _ = sources.terminate.recv() => return Ok(false),
            _ = sources.interrupt.recv() => return Ok(false),
            // As `natpunch reload`, with nobody to hear the answer.
            _ = sources.hangup.recv() => self.source.ask(tokio::sync::oneshot::channel().0),
            received = self.raw.recv() => match received {
                Ok(received) => self.on_datagram(received),
                Err(error) => {
                    tracing::warn!(%error, "the raw sockets failed; opening them again");
                    self.open_raw()?;
                }
            },
            Some(event) = sources.device.recv() => self.on_device(event).await?,
            Some(event) = sources.plugins.recv() => self.on_plugin(event),
            Some(servers) = sources.stun.recv() => self.mesh.handle_stun_servers(&servers, now()),
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
            Some(answered) = sources.checks.recv() => self.on_check(&answered),
            change = sources.links.changed() => {
                if change.suspended {
                    tracing::info!("the machine slept; looking for paths again");
                }
                self.raw.forget_routes();
                self.mesh.handle_local_addresses(&change.addresses, now());
                self.mesh.handle_network_change(now());
                self.resolver.set(spec::stun_servers(&self.node));
                for plugin in &self.plugins {
                    plugin.tell_network_changed();
                }
            }
            Some(change) = sources.mesh_changes.recv() => self.on_mesh_change(change).await,
            () = tokio::time::sleep_until(sources.snapshot_at) => {
                let eager = Instant::now() < self.eager_until;
                let interval = if eager { EAGER_SNAPSHOT.0 } else { SNAPSHOT_INTERVAL };
                sources.snapshot_at = Instant::now() + interval.max(self.device.snapshot_cost() * SNAPSHOT_SHARE);
                self.device.snapshot();
                if Instant::now() >= self.drift_at {
                    self.drift_at = Instant::now() + DRIFT_INTERVAL.max(self.device.snapshot_cost() * DRIFT_SHARE);
                    self.look_for_drift();
                    if let Some(hosts) = self.hosts.as_ref().filter(|_| self.node.apply.heal) {
                        hosts.heal();
                    }
                }
                self.revisions.set_not_newest(self.reload_error.is_some());
                self.judge();
                self.retry_journal(Instant::now());
                self.forget_correspondents();
                self.serving.retry(&self.node).await;
                notify_systemd(&[sd_notify::NotifyState::Watchdog]);
            }
            () = tokio::time::sleep_until(core_wakes) => self.mesh.handle_timeout(now()),
        }
        Ok(true)
    }

    /// Does what the core wants done.
    fn drain(&mut self) {
        while let Some(transmit) = self.mesh.poll_transmit() {
            let Transmit { destination, source, ttl, payload } = transmit;
            if let Err(error) = self.raw.send(source, destination, ttl, &payload) {
                tracing::trace!(%destination, %error, "not sent");
            }
        }
        while let Some(command) = self.mesh.poll_command() {
            match command {
                Command::SetEndpoint { peer, endpoint, kick, reason } => {
                    tracing::debug!(peer = %self.name_of(&peer), %endpoint, %reason, kick, "setting the endpoint");
                    self.device.set_endpoint(peer, endpoint, kick);
                    self.eager_until = Instant::now() + EAGER_SNAPSHOT.1;
                    self.sources.snapshot_at = Instant::now() + EAGER_SNAPSHOT.0;
                }
                Command::PublishRecords(records) => {
                    self.store.used(self.mesh.record_counter());
                    self.records = records
                        .into_iter()
                        .map(|record| SealedRecord { tag: RecordTag(record.tag), blob: Arc::from(record.blob) })
                        .collect();
                    for plugin in &self.plugins {
                        plugin.tell_records(self.records.clone());
                    }
                }
                Command::Meet { peer } => self.plugins.iter().for_each(|plugin| plugin.tell_meet(peer)),
                Command::Interest(interest) => {
                    self.interest = interest;
                    self.tell_interest();
                }
            }
        }
        while let Some(event) = self.mesh.poll_event() {
            // The core writes keys; people know names.
            let text = event.to_string();
            match event.peer() {
                Some(key) => tracing::info!("{}", text.replacen(&key.short(), &self.name_of(key), 1)),
                None => tracing::info!("{text}"),
            }
        }
    }

    fn on_datagram(&mut self, received: natpunch_net::Received) {
        if let Some(origin) = self.correspondents.of(&received.source)
            && let Some(plugin) = self.plugins.iter().find(|plugin| plugin.origin() == origin)
        {
            plugin.tell_datagram(received.source, received.payload.clone());
        }
        self.mesh.handle_datagram(received.source, Some(received.destination), &received.payload, now());
    }

    async fn on_device(&mut self, event: DeviceEvent) -> Result<(), AgentError> {
        match event {
            DeviceEvent::Snapshot(Ok(snapshot)) => {
                self.on_snapshot(&snapshot);
                // Who is alive is known now, which the change has to keep so.
                if std::mem::take(&mut self.catch_up) {
                    self.reload().await;
                }
            }
            DeviceEvent::Drift { found, healed } => self.on_drift(&found, healed),
            DeviceEvent::Noted(result) => {
                if self.on_noted(result.map_err(|error| error.to_string())) {
                    self.reload().await;
                }
            }
            DeviceEvent::Snapshot(Err(error)) => {
                tracing::error!(%error, "the WireGuard device is gone; making it anew");
                self.open_device().await?;
            }
            DeviceEvent::EndpointSet { peer, endpoint, result } => {
                let ok = matches!(result, Ok(EndpointUpdate::Updated));
                match result {
                    Ok(EndpointUpdate::Updated) => {}
                    Ok(EndpointUpdate::NoSuchPeer) => {
                        tracing::debug!(peer = %self.name_of(&peer), "the peer was removed meanwhile");
                    }
                    Err(error) => {
                        tracing::warn!(peer = %self.name_of(&peer), %endpoint, %error, "can't set the endpoint");
                    }
                }
                self.mesh.handle_endpoint_set(peer, endpoint, ok, now());
                self.device.snapshot();
            }
            DeviceEvent::Applied { serial, result } => self.on_applied(serial, result).await,
        }
        Ok(())
    }

    /// Makes or adopts the interface again, after it was taken from under the agent.
    async fn open_device(&mut self) -> Result<(), AgentError> {
        let wanted = spec::interface(&self.node, &self.options.runtime_dir).map_err(AgentError::Program)?;
        let interface = tokio::task::spawn_blocking(move || Interface::open(&wanted))
            .await
            .map_err(|error| AgentError::Internal(error.to_string()))??;
        self.backend = interface.backend().to_string();
        (self.device, self.sources.device) = DeviceThread::start(interface);
        self.begin_again();
        self.device.snapshot();
        // Sockets on the old interface hear nothing any more.
        self.tell_revision();
        Ok(())
    }

    /// Opens the raw sockets anew, for another port or after they failed.
    fn open_raw(&mut self) -> Result<(), AgentError> {
        self.raw = RawPort::open(self.node.listen_port, self.node.fwmark)?;
        self.correspondents = Correspondents::default();
        Ok(())
    }

    fn on_snapshot(&mut self, snapshot: &DeviceSnapshot) {
        self.device.snapshot_arrived();
        self.endpoints = snapshot.peers.iter().filter_map(|peer| Some((peer.key, peer.endpoint?))).collect();
        self.mesh.handle_device(snapshot, now());
        if let Some(guard) = self.guard.as_mut().filter(|_| self.pending.is_none()) {
            guard.snapshot(snapshot);
        }
    }

    fn on_plugin(&mut self, event: PluginEvent) {
        match event {
            PluginEvent::Candidate { peer, candidate } => self.mesh.handle_candidate(peer, candidate, now()),
            PluginEvent::OwnAddress { origin, address, lifetime } => {
                self.mesh.handle_reflexive(&origin, address, lifetime, now());
            }
            PluginEvent::Fire { peer, after } => self.mesh.handle_fire(peer, after, now()),
            PluginEvent::Wanted { peer } => self.mesh.handle_wanted(peer, now()),
            PluginEvent::Mapping { origin, mapping } => self.mesh.handle_mapping(&origin, mapping, now()),
            PluginEvent::Record { origin, record } => {
                self.mesh.handle_record(&origin, record.tag.0, &record.blob, now());
            }
            PluginEvent::Send { origin, destination, payload } => {
                match self.correspondents.sent(&origin, destination, &payload, boot_time()) {
                    None => {
                        tracing::debug!(discovery = %origin, %destination, "too many servers at one time; not sent");
                        return;
                    }
                    Some(true) => {
                        if let Err(error) = self.raw.allow_source(destination) {
                            tracing::warn!(%error, "can't widen the packet filter; replies will not be seen");
                        }
                    }
                    Some(false) => {}
                }
                if let Err(error) = self.raw.send(None, destination, None, &payload) {
                    tracing::debug!(discovery = %origin, %destination, %error, "not sent");
                }
            }
        }
    }

    async fn on_call(&mut self, call: Call) {
        match call.request {
            Request::Drift => return self.tell_drift(call),
            Request::Mesh => return self.tell_mesh(call),
            _ => {}
        }
        let reply = self.on_request(call.request, call.connected).await;
        let _ = call.answer.send(reply);
    }

    /// Compares on the device's thread, and answers from a task: the agent waits for neither.
    fn tell_drift(&self, call: Call) {
        let wanted = match spec::interface(&self.node, &self.options.runtime_dir) {
            Ok(wanted) => wanted,
            Err(error) => {
                let _ = call.answer.send(Reply::Error(error.to_string()));
                return;
            }
        };
        let compared = self.device.compare(wanted);
        let node = self.node.clone();
        tokio::spawn(async move {
            let reply = match compared.await {
                Ok(Ok(found)) => serde_json::to_value(plan::report(&node, None, &found, &[]))
                    .map_or_else(|error| Reply::Error(error.to_string()), Reply::Ok),
                Ok(Err(error)) => Reply::Error(error.to_string()),
                Err(_) => Reply::Error("the device does not answer".to_owned()),
            };
            let _ = call.answer.send(reply);
        });
    }

    /// Asks the nodes of the mesh what they run, and answers from a task.
    fn tell_mesh(&self, call: Call) {
        let asked = self.revisions.ask(self.alive());
        let (mesh, node) = (self.node.mesh.clone(), self.node.name.clone());
        tokio::spawn(async move {
            let reply = match asked.await {
                Ok((runs, peers)) => serde_json::to_value(MeshRevisions { mesh, node, runs, peers })
                    .map_or_else(|error| Reply::Error(error.to_string()), Reply::Ok),
                Err(_) => Reply::Error("too many questions at one time".to_owned()),
            };
            let _ = call.answer.send(reply);
        });
    }

    /// Keeps the names of the peers that run now.
    fn put_names(&self) {
        if let Some(hosts) = &self.hosts {
            hosts.set(&self.node);
        }
    }

    /// Tells the others what this node runs.
    fn tell_revision(&self) {
        self.revisions.set(&self.node, self.since, self.alive());
    }

    async fn on_request(&mut self, request: Request, connected: std::time::Instant) -> Reply {
        match request {
            Request::Confirm => self.confirm_by_person(connected),
            Request::Drift | Request::Mesh => Reply::Error("asked elsewhere".to_owned()),
            Request::Status => match serde_json::to_value(self.status()) {
                Ok(value) => Reply::Ok(value),
                Err(error) => Reply::Error(error.to_string()),
            },
            Request::Reload | Request::Stop => Reply::Ok(serde_json::Value::Null),
        }
    }

    fn status(&self) -> Status {
        Status {
            mesh: self.node.mesh.clone(),
            node: self.node.name.clone(),
            interface: self.node.interface.clone(),
            backend: self.backend.clone(),
            pid: std::process::id(),
            revision: journal::revision(&self.node.content_hash),
            mesh_hash: revision::short(&self.node.mesh_hash),
            generation: self.node.generation,
            runs_for_s: boot_time().saturating_sub(self.since).as_secs_f64(),
            reloads: self.reloads,
            reload_error: self.reload_error.clone(),
            journal_error: self.journal_error.as_ref().map(|(error, _)| error.clone()),
            source: self.source.status(),
            change: self.guard.as_ref().map(|guard| ChangeStatus {
                revision: journal::revision(&guard.to),
                undone_in_s: guard.deadline.saturating_sub(boot_time()).as_millis() as f64 / 1e3,
                by_person: guard.by_person,
                waiting_for: guard.missing(),
            }),
            held: self
                .held
                .as_ref()
                .map(|held| HeldStatus { revision: journal::revision(&held.to), reason: held.reason.clone() }),
            drift: self.drift.clone(),
            hosts_error: self.hosts.as_ref().and_then(hosts::Keeper::problem),
            serving: self.serving.status(),
            discovery: self
                .plugins
                .iter()
                .map(|plugin| {
                    let (health, dropped) = plugin.health();
                    let (ok, note) = match health {
                        Health::Good(note) => (true, note),
                        Health::Bad(problem) => (false, problem),
                    };
                    DiscoveryStatus { name: plugin.origin().as_str().to_owned(), ok, note, dropped }
                })
                .collect(),
            core: self.mesh.status(now()),
        }
    }

    /// True when every peer is connected, except those that the core has found to be out of reach.
    fn settled(&self) -> bool {
        let status = self.mesh.status(now());
        let mut connected = 0;
        let all = status.peers.iter().all(|peer| match peer.state {
            PeerState::Connected => {
                connected += 1;
                true
            }
            PeerState::Unreachable { .. } => true,
            _ => false,
        });
        all && (connected > 0 || status.peers.is_empty())
    }

    /// Brings the running plugins to what the file says: those that it no longer names are stopped, new or changed
    /// ones are started, the others are left alone.
    async fn sync_plugins(&mut self) {
        let facts = || NodeFacts {
            own_key: self.node.public_key,
            private_key: self.node.private_key.clone(),
            listen_port: self.node.listen_port,
        };
        let mut started = Vec::new();
        for discovery in &self.node.discovery {
            if self.plugins.iter().any(|plugin| plugin.origin().as_str() == discovery.name) {
                continue;
            }
            match registry::build(&discovery.settings) {
                Ok(plugin) => {
                    let origin = Origin::new(&discovery.name);
                    started.push(Instance::start(origin, plugin, facts(), self.to_plugins.clone()));
                }
                Err(error) => tracing::error!(discovery = %discovery.name, %error, "can't start"),
            }
        }
        self.plugins.extend(started);
        self.tell_interest();
        for plugin in &self.plugins {
            plugin.tell_records(self.records.clone());
        }
    }

    async fn stop_plugins(&mut self, keep: impl Fn(&Instance) -> bool) {
        let (kept, ended) = std::mem::take(&mut self.plugins).into_iter().partition(keep);
        self.plugins = kept;
        for plugin in ended {
            plugin.stop().await;
        }
    }

    fn tell_interest(&self) {
        let interests: Arc<[_]> = spec::interests(&self.node, &self.interest).into();
        for plugin in &self.plugins {
            plugin.tell_peers(spec::interests_at(plugin.origin(), &interests, &self.interest));
        }
    }

    fn forget_correspondents(&mut self) {
        for address in self.correspondents.expire(boot_time()) {
            if let Err(error) = self.raw.forbid_source(address) {
                tracing::warn!(%error, "can't narrow the packet filter");
            }
        }
    }

    fn name_of(&self, key: &PeerKey) -> String {
        let named = self.node.peers.iter().find(|peer| peer.key == *key);
        named.map_or_else(|| key.short(), |peer| peer.name.clone())
    }

    async fn stop(&mut self) {
        notify_systemd(&[sd_notify::NotifyState::Stopping]);
        self.stop_plugins(|_| false).await;
        self.serving.stop().await;
        // What was confirmed a moment ago must be in the journal before we end; a last try, if it was not to be had.
        self.retry_journal(Instant::now() + reload::JOURNAL_RETRY);
        if tokio::time::timeout(STOP_DEADLINE, self.device.done()).await.is_err() {
            tracing::warn!("the WireGuard device is still busy; the journal may lack the last confirmation");
        }
        if let Some(hosts) = self.hosts.take()
            && tokio::time::timeout(STOP_DEADLINE, hosts.stop()).await.is_err()
        {
            tracing::warn!("the hosts file is still being written");
        }
        tracing::info!(interface = %self.node.interface, "stopped; the tunnels stay up (`natpunch down` removes them)");
    }
}

fn notify_systemd(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "can't notify systemd");
    }
}
