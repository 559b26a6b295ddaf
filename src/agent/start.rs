//! The start of a node: what the mesh file and the journal say is to run, and everything that the
//! agent opens for it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use natpunch_core::Mesh;
use natpunch_forwarder::Forwarder;
use natpunch_net::{LinkWatch, RawPort};
use natpunch_os::private::{self, NotPrivate};
use natpunch_rollout::{Recorded, Resumed, Settings, Start};
use natpunch_types::{Help as _, HostNetwork, PeerKey};
use natpunch_wg::{Applied, Interface};
use nix::sys::signal::{SigSet, Signal};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::device::DeviceThread;
use super::drift::DRIFT_INTERVAL;
use super::guard::Guard;
use super::metrics::{self, Metrics};
use super::ping::Pings;
use super::pins::Pins;
use super::resolver::Resolver;
use super::responses::Responses;
use super::resting::Resting;
use super::rollout::journal::{Journal, boot_id};
use super::rollout::names::{Names, revision_of};
use super::rollout::{Loading, Release, Rollout, load, with_endpoints};
use super::services::Services;
use super::sizes::RouteMtus;
use super::store::CounterStore;
use super::warm::Warm;
use super::why::causes::Flips;
use super::why::history::History;
use super::{
    Agent, AgentError, EAGER_SNAPSHOT, Options, Sources, clash, device, nat64, notify_systemd, now,
    pins, plan, spec, waiting,
};
use crate::config::NodeConfig;
use crate::control;
use crate::plugins::correspondents::Correspondents;
use crate::plugins::fill_random;
use crate::plugins::host;
use crate::source::Source;

/// Demands that no other user can write to the directory of the journal and the last good version:
/// this program believes them as root.
fn check_state_dir(directory: &Path) -> Result<(), AgentError> {
    match private::check_directory(directory) {
        Err(error @ (NotPrivate::Owner { .. } | NotPrivate::Writable { .. })) => {
            Err(AgentError::StateDir(error))
        }
        // One that is not there is made for its owner only. A disk that fails is waited for where
        // it is needed.
        Ok(()) | Err(NotPrivate::Io { .. } | NotPrivate::NotADirectory { .. }) => Ok(()),
    }
}

/// Loads what there is to start with: the newest version, or the last good one if that can't be
/// used.
async fn load_first(source: &Source, options: &Options) -> Result<Release, AgentError> {
    match load(source, options).await {
        Err(error) if source.fall_back() => {
            tracing::error!(
                "the newest version can't be used, starting with the last good one\n{}",
                error.in_full()
            );
            load(source, options).await
        }
        loaded => loaded,
    }
}

/// Checks that the plan that a person has read is the one that would be executed.
async fn check_plan(options: &Options, node: &NodeConfig) -> Result<(), AgentError> {
    let Some(wanted) = options.plan.clone() else {
        return Ok(());
    };
    let mut spec = clash::interface(node, &options.runtime_dir).map_err(AgentError::Program)?;
    spec.adopt = options.adopt;
    let plan = blocking(move || Interface::plan(&spec)).await??;
    let found = plan::id(node, &plan);
    if found == wanted {
        Ok(())
    } else {
        Err(AgentError::PlanChanged { wanted, found })
    }
}

/// Runs what blocks off the agent's thread.
async fn blocking<R: Send + 'static>(
    work: impl FnOnce() -> R + Send + 'static,
) -> Result<R, AgentError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| AgentError::Internal(error.to_string()))
}

/// Goes on with what the last agent left, or begins with the file.
async fn resume(
    options: &Options,
    file: Release,
    journal: &Journal,
) -> Result<Resumed<Release>, AgentError> {
    let settings = Settings {
        allow: options.allow.clone(),
        confirm: options.confirm,
        boot: boot_id(),
    };
    let (journal, adopt) = (journal.clone(), options.adopt);
    blocking(move || {
        let entry = journal.read();
        let start = Start {
            is_ours: !adopt && natpunch_wg::exists(&file.node.interface)?,
            file: Arc::new(file),
            recorded: entry.as_ref().map(|entry| Recorded {
                good: entry.good.hash,
                change: entry.change.clone(),
            }),
        };
        let load = || {
            let good = entry?.good;
            let loaded = Release::load(good).inspect_err(|error| {
                tracing::warn!("the version before can't be used any more\n{error}");
            });
            loaded.ok()
        };
        Ok(Rollout::resume(settings, start, load, now())?)
    })
    .await?
}

/// Holds SIGHUP back, or lets it come: one that comes before it is listened to would end the
/// process, and it asks for a reload. To be called on the main thread.
pub(crate) fn hold_signals(hold: bool) {
    let mut hangup = SigSet::empty();
    hangup.add(Signal::SIGHUP);
    let done = if hold {
        hangup.thread_block()
    } else {
        hangup.thread_unblock()
    };
    if let Err(error) = done {
        tracing::warn!(%error, "can't hold back SIGHUP");
    }
}

/// An interface that this start has made. A start that fails afterwards takes it down again:
/// otherwise an unused interface, and the process of its device, would stay for ever.
struct Made(Option<(String, String, PathBuf)>);

impl Made {
    fn note(applied: &Applied, node: &NodeConfig, runtime_dir: &Path) -> Self {
        let is_new = |change| matches!(change, &natpunch_wg::Change::CreateInterface { .. });
        let created = applied.plan.changes.iter().any(is_new);
        let names = || {
            let (interface, mesh) = (node.interface.clone(), node.mesh.clone());
            (interface, mesh, runtime_dir.to_owned())
        };
        Self(created.then(names))
    }

    /// The start succeeded.
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        let Some((name, owner, runtime_dir)) = self.0.take() else {
            return;
        };
        // Its calls block, and none of them may be made on a thread of the runtime.
        let interface = name.clone();
        let down = std::thread::spawn(move || natpunch_wg::down(&name, &owner, &runtime_dir));
        let problem = match down.join() {
            Ok(Ok(_)) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it panicked".to_owned(),
        };
        tracing::error!(%interface, problem, "can't take down what this start has made");
    }
}

/// Makes or takes over the interface, and brings it to the version that runs first.
async fn open_interface(
    options: &Options,
    node: &NodeConfig,
    endpoints: &BTreeMap<PeerKey, SocketAddr>,
) -> Result<(Interface, Made, Pins), AgentError> {
    let wanted = clash::interface(node, &options.runtime_dir).map_err(AgentError::Program)?;
    let mut wanted = with_endpoints(wanted, endpoints);
    wanted.adopt = options.adopt;
    let opened = blocking(move || {
        let (mut interface, applied) = Interface::open_reporting(&wanted)?;
        let found = pins::found(&mut interface);
        let pins = (interface.pin_method(), found);
        Ok::<_, natpunch_wg::WgError>((interface, applied, pins))
    });
    let (interface, applied, (method, found)) = opened.await??;
    let made = Made::note(&applied, node, &options.runtime_dir);
    let first = applied.plan.changes.first();
    if matches!(first, Some(natpunch_wg::Change::Adopt { .. })) {
        for change in plan::report(node, None, &applied.plan, &[]).changes {
            tracing::info!("{} {}", change.sign, change.text);
        }
    }
    Ok((interface, made, Pins::new(node.fwmark, method, found)))
}

/// A core that knows nothing but this node's part of the mesh, and what its predecessor under
/// another key knew of the world.
pub(super) fn new_mesh(
    node: &NodeConfig,
    counter_floor: u64,
    network: &HostNetwork,
    predecessor: Option<&Mesh>,
) -> Mesh {
    let mut seed = [0; 32];
    fill_random(&mut seed);
    let mut mesh = Mesh::new(spec::mesh(node), seed, now());
    if let Some(predecessor) = predecessor {
        mesh.inherit_relay_hosts(predecessor);
    }
    mesh.set_record_counter_floor(counter_floor);
    mesh.handle_local_addresses(network, now());
    mesh
}

impl Agent {
    /// Begins what the mesh file says, or goes on with what the last agent left. `None`: it was
    /// told to stop while it waited for a mesh.
    pub(super) async fn start(options: Options) -> Result<Option<Self>, AgentError> {
        // First, since without anybody who listens to it the signal ends the process.
        let signals = |kind| signal(kind).map_err(|error| AgentError::Internal(error.to_string()));
        let hangup = signals(SignalKind::hangup())?;
        hold_signals(false);
        check_state_dir(&options.state_dir)?;
        let Some((source, mesh_changes)) = waiting::open(&options).await? else {
            return Ok(None);
        };
        let file = load_first(&source, &options).await?;
        check_plan(&options, &file.node).await?;
        source.watch_keys(&file.node.key_files);

        let (calls_in, calls) = mpsc::channel(16);
        let socket = control::socket_path(&options.runtime_dir, &file.node.interface);
        let metrics = match options.metrics {
            Some(address) => {
                let listening = metrics::listen(address, calls_in.clone()).await;
                Some(listening.map_err(|source| AgentError::Metrics { address, source })?)
            }
            None => None,
        };
        let services = Services::start(&calls_in);
        let control = control::Server::listen(&socket, options.control_group, calls_in)
            .await
            .map_err(|source| AgentError::Control {
                path: socket,
                source,
            })?;
        let journal = Journal::new(&options.state_dir, &file.node.interface);
        let mut names = Names::default();
        names.learn(&file.node);
        let Resumed {
            rollout,
            endpoints,
            undone,
        } = resume(&options, file, &journal).await?;
        if let Some((version, reason)) = undone {
            tracing::error!(
                revision = %names.of(&version),
                reason,
                "going back to the version before"
            );
        }
        let node = rollout.runs().node.clone();
        names.learn(&rollout.good().node);
        names.learn(&node);
        // Before the device, whose first initiations are heard then.
        let resting = Resting::open(node.listen_port);
        let (interface, made, pins) = open_interface(&options, &node, &endpoints).await?;
        let backend = interface.backend().to_string();
        let device_process = device::process(&interface, &options.runtime_dir);
        let (mut device, device_events) = DeviceThread::start(interface);
        device.snapshot();

        let raw = RawPort::open(node.listen_port, node.fwmark)?;
        let links = LinkWatch::new(&node.interface).await?;
        let (to_plugins, plugin_events) = host::channel();
        let (to_answers, answers) = mpsc::channel(4);
        let (loading, loaded) = Loading::channel();
        let (resolver, stun) = Resolver::start();
        let (nat64, nat64_found) = nat64::Search::start(links.network());
        let (store, floor) = CounterStore::open(&options.state_dir, &node.interface);
        let warm = Warm::open(&options.state_dir, &node.interface);

        let mut agent = Self {
            mesh: new_mesh(&node, floor, links.network(), None),
            reload_error: rollout
                .held()
                .map(|(_, reason)| AgentError::Held(reason.to_owned()).to_string()),
            rollout,
            names,
            journal,
            to_answers,
            loading,
            applied: None,
            forwarder: Arc::new(Forwarder::new(
                std::env::current_exe().map_err(AgentError::Program)?,
                &options.runtime_dir,
                &node.interface,
            )),
            flips: Flips::default(),
            history: History::default(),
            metrics: Metrics::default(),
            pings: Pings::default(),
            drift: None,
            drift_at: Instant::now() + DRIFT_INTERVAL,
            backend,
            device_process,
            clashes: Vec::new(),
            device,
            raw,
            resting,
            guard: Guard::default(),
            responses: Responses::default(),
            pins,
            route_mtus: RouteMtus::default(),
            plugins: Vec::new(),
            services,
            correspondents: Correspondents::default(),
            plugin_runs: 0,
            interest: Arc::from([]),
            records: Arc::from([]),
            resolver,
            nat64,
            store,
            warm,
            since: now(),
            reloads: 0,
            seen_at: [None; 2],
            eager_until: Instant::now() + EAGER_SNAPSHOT.1,
            started: Instant::now(),
            to_plugins,
            source,
            sources: Sources {
                device: device_events,
                plugins: plugin_events,
                stun,
                nat64: nat64_found,
                calls,
                links,
                mesh_changes,
                answers,
                loaded,
                terminate: signals(SignalKind::terminate())?,
                interrupt: signals(SignalKind::interrupt())?,
                hangup,
                snapshot_at: Instant::now(),
                _control: control,
                _metrics: metrics,
            },
            options,
            node,
        };
        made.keep();
        tracing::info!(
            mesh = %agent.node.mesh, node = %agent.node.name, interface = %agent.node.interface,
            port = agent.node.listen_port, backend = %agent.backend, peers = agent.node.peers.len(),
            revision = %revision_of(&agent.node),
            "joined the mesh"
        );
        agent.tell_pins();
        agent.warm.restore_lifetimes(&mut agent.mesh);
        agent.tend_memory();
        agent.reset_pins();
        agent.try_pins();
        agent.look_for_clashes();
        agent.source.applied(agent.rollout.good().node.content_hash);
        agent.execute().await;
        agent.sync_plugins().await;
        agent.node_changed().await;
        agent.drain();
        notify_systemd(&[
            sd_notify::NotifyState::Status(""),
            sd_notify::NotifyState::Ready,
        ]);
        Ok(Some(agent))
    }
}
