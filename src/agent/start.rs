//! The start of a node: what the mesh file and the journal say is to run, and everything that the
//! agent opens for it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use natpunch_core::Mesh;
use natpunch_net::{LinkWatch, RawPort, boot_time};
use natpunch_wg::Interface;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::causes::Flips;
use super::change::{Good, Guard, Held};
use super::device::DeviceThread;
use super::drift::DRIFT_INTERVAL;
use super::journal::{Change, Entry, Journal, Version, boot_id, revision};
use super::names::Resolver;
use super::reload::with_endpoints;
use super::revisions::Revisions;
use super::serving::Serving;
use super::store::CounterStore;
use super::{
    Agent, AgentError, EAGER_SNAPSHOT, Options, Sources, forwarding, hosts, notify_systemd, now,
    plan, spec, waiting,
};
use crate::config::{self, NodeConfig};
use crate::control;
use crate::plugins::host::{self, Correspondents};
use crate::plugins::{fill_random, registry};
use crate::source::Source;

/// Loads a mesh file and finds this host in it, off the agent's thread: a large mesh takes a
/// moment.
pub(super) async fn load(
    source: &Source,
    options: &Options,
) -> Result<(NodeConfig, Arc<Version>), AgentError> {
    let (path, local) = (source.path(), options.local.clone());
    tokio::task::spawn_blocking(move || -> Result<_, AgentError> {
        let mesh = config::load(&path)?;
        let node = config::resolve_node_at(&mesh, &local)?;
        let version = Version {
            hash: mesh.content_hash,
            files: mesh.texts(),
            local: local.absolute(),
        };
        Ok((node, Arc::new(version)))
    })
    .await
    .map_err(|error| AgentError::Internal(error.to_string()))?
}

/// Loads what there is to start with: the newest version, or the last good one if that can't be
/// used.
async fn load_first(
    source: &Source,
    options: &Options,
) -> Result<(NodeConfig, Arc<Version>), AgentError> {
    match load(source, options).await {
        Err(error) if source.fall_back() => {
            tracing::error!(
                "the newest version can't be used, starting with the last good one\n{error}"
            );
            load(source, options).await
        }
        loaded => loaded,
    }
}

/// Checks that the plan that somebody has read is the one that would be done.
async fn check_plan(options: &Options, node: &NodeConfig) -> Result<(), AgentError> {
    let Some(wanted) = options.plan.clone() else {
        return Ok(());
    };
    let mut spec = spec::interface(node, &options.runtime_dir).map_err(AgentError::Program)?;
    spec.adopt = options.adopt;
    let plan = tokio::task::spawn_blocking(move || Interface::plan(&spec))
        .await
        .map_err(|error| AgentError::Internal(error.to_string()))??;
    let found = plan::id(node, &plan);
    if found == wanted {
        Ok(())
    } else {
        Err(AgentError::PlanChanged { wanted, found })
    }
}

/// The key files among the files that a node was read from.
pub(super) fn key_files<'a>(node: &'a NodeConfig, version: &Version) -> &'a [PathBuf] {
    node.files.get(version.files.len()..).unwrap_or_default()
}

/// The start of a node: which version it runs first, and what is open.
struct Beginning {
    /// The version to run.
    node: NodeConfig,
    version: Arc<Version>,
    /// The version to go back to, if it is another.
    good: Option<Good>,
    guard: Option<Guard>,
    held: Option<Held>,
    /// Whether the mesh file says something else, which is to be applied as any change is.
    differs: bool,
}

impl Beginning {
    /// Resolves what the journal says against what the file says.
    fn resolve(node: NodeConfig, version: Arc<Version>, journal: &Journal, is_up: bool) -> Self {
        let plain = |node, version| Self {
            node,
            version,
            good: None,
            guard: None,
            held: None,
            differs: false,
        };
        let Some(Entry { good, change }) = journal.read() else {
            return plain(node, version);
        };
        // Nothing runs that the change could be from. An open change is still undone: the reboot
        // may be its doing.
        let open = matches!(&change, Some(Change::Open { watched, by_person, .. }) if *by_person || !watched.is_empty());
        if good.hash == version.hash {
            // What is held stays so: a source may come with its last good version first, and with
            // the held one later. A change of key files alone has nothing in the journal to go back
            // to: what they hold now runs.
            let held = match change.filter(|change| change.to() != version.hash) {
                Some(Change::Held { to, reason }) => Some(Held::noted(to, reason)),
                Some(Change::Open {
                    to,
                    boot,
                    deadline_ms,
                    ..
                }) if open => overdue(&boot, Duration::from_millis(deadline_ms))
                    .map(|why| Held::noted(to, why.to_owned())),
                _ => None,
            };
            return Self {
                held,
                ..plain(node, version)
            };
        }
        if !is_up && !open && !matches!(change, Some(Change::Held { .. })) {
            return plain(node, version);
        }
        let before = match good.load() {
            Ok(before) if before.interface == node.interface && before.mesh == node.mesh => before,
            Ok(_) => return plain(node, version),
            Err(error) => {
                tracing::warn!(
                    revision = good.revision(),
                    "the version before can't be used any more\n{error}"
                );
                return plain(node, version);
            }
        };
        let back = |held: Option<Held>, differs| Self {
            node: before.clone(),
            version: Arc::new(good.clone()),
            good: None,
            guard: None,
            held,
            differs,
        };
        match change {
            Some(Change::Held { to, reason }) if to == version.hash => {
                back(Some(Held::noted(to, reason)), false)
            }
            Some(Change::Open {
                to,
                boot,
                deadline_ms,
                by_person,
                watched,
                endpoints,
            }) if open => {
                let deadline = Duration::from_millis(deadline_ms);
                let Some(reason) = overdue(&boot, deadline) else {
                    if to != version.hash {
                        return back(None, true);
                    }
                    let guard = Guard::new(to, deadline, by_person, watched, endpoints);
                    let good = Some(Good {
                        node: before,
                        version: Arc::new(good),
                    });
                    return Self {
                        node,
                        version,
                        good,
                        guard: Some(guard),
                        held: None,
                        differs: false,
                    };
                };
                tracing::error!(
                    revision = revision(&to),
                    reason,
                    "going back to the version before"
                );
                back(Some(Held::noted(to, reason.to_owned())), to != version.hash)
            }
            _ => back(None, true),
        }
    }
}

/// Why a change whose agent died may not be tried any longer.
fn overdue(boot: &str, deadline: Duration) -> Option<&'static str> {
    if boot.is_empty() || boot != boot_id() {
        Some("the host was restarted before it was confirmed")
    } else if boot_time() >= deadline {
        Some("its time ran out while no agent ran")
    } else {
        None
    }
}

impl Agent {
    /// Begins what the mesh file says, or goes on with what the last agent left. `None`: it was told
    /// to stop while it waited for a mesh.
    pub(super) async fn start(options: Options) -> Result<Option<Self>, AgentError> {
        let Some((source, mesh_changes)) = waiting::open(&options).await? else {
            return Ok(None);
        };
        let (file, version) = load_first(&source, &options).await?;
        let plugins_ok: Result<Vec<_>, _> = file
            .discovery
            .iter()
            .map(|d| registry::build(&d.settings))
            .collect();
        plugins_ok.map_err(AgentError::Plugin)?;
        check_plan(&options, &file).await?;
        source.watch_keys(key_files(&file, &version));

        let (calls_in, calls) = mpsc::channel(16);
        let socket = control::socket_path(&options.runtime_dir, &file.interface);
        let control = control::Server::listen(&socket, calls_in)
            .await
            .map_err(|source| AgentError::Control {
                path: socket,
                source,
            })?;
        // What was open when the last agent ended comes first.
        let journal = Journal::new(&options.state_dir, &file.interface);
        let name = file.interface.clone();
        let is_up = tokio::task::spawn_blocking(move || natpunch_wg::exists(&name))
            .await
            .map_err(|error| AgentError::Internal(error.to_string()))??;
        let Beginning {
            node,
            version,
            good,
            guard,
            held,
            differs,
        } = Beginning::resolve(file, version, &journal, is_up);
        let mut wanted =
            spec::interface(&node, &options.runtime_dir).map_err(AgentError::Program)?;
        if let Some(Entry {
            change: Some(Change::Open { endpoints, .. }),
            ..
        }) = journal.peek()
        {
            wanted = with_endpoints(wanted, &endpoints);
        }
        wanted.adopt = options.adopt;
        let (interface, applied) =
            tokio::task::spawn_blocking(move || Interface::open_reporting(&wanted))
                .await
                .map_err(|error| AgentError::Internal(error.to_string()))??;
        if matches!(
            applied.plan.changes.first(),
            Some(natpunch_wg::Change::Adopt { .. })
        ) {
            for change in plan::report(&node, None, &applied.plan, &[]).changes {
                tracing::info!("{} {}", change.sign, change.text);
            }
        }
        let mut first_note = Ok(());
        if guard.is_none() {
            let change = held
                .clone()
                .map(|Held { to, reason, .. }| Change::Held { to, reason });
            first_note = journal.write(&Entry {
                good: (*version).clone(),
                change,
            });
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
        mesh.handle_local_addresses(links.network(), now());
        resolver.set(spec::stun_servers(&node));
        let signals = |kind| signal(kind).map_err(|error| AgentError::Internal(error.to_string()));

        let good = good.unwrap_or_else(|| Good {
            node: node.clone(),
            version: Arc::clone(&version),
        });
        let mut agent = Self {
            good,
            version,
            guard,
            reload_error: held
                .as_ref()
                .map(|held| AgentError::Held(held.reason.clone()).to_string()),
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
            flips: Flips::default(),
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
        notify_systemd(&[
            sd_notify::NotifyState::Status(""),
            sd_notify::NotifyState::Ready,
        ]);
        Ok(Some(agent))
    }
}
