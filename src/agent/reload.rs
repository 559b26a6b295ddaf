//! Reload: the newest mesh file becomes the running mesh, or nothing changes; and a version that
//! cuts this node off is undone.
//!
//! The way of a change: loaded and checked ([`Agent::reload`]); refused without a consent that it
//! needs; the peers that it touches asked whether they answer; the journal written; the device
//! brought to it (the last three on the device's thread, in this order); the agent follows
//! ([`Agent::on_applied`]); the guard watches ([`Agent::judge`]); the journal closed, or the way
//! back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use natpunch_core::{Mesh, PeerState};
use natpunch_net::boot_time;
use natpunch_types::PeerKey;
use natpunch_wg::{Applied, InterfaceSpec};
use tokio::time::Instant;

use super::change::{self, Good, Guard, Held, Verdict};
use super::device::{ChangeError, Prepared};
use super::journal::{Change, Entry, Version, boot_id, revision};
use super::start::{key_files, load};
use super::{Agent, AgentError, caps, forwarding, notify_systemd, now, plan, spec};
use crate::config::NodeConfig;
use crate::control::Reply;
use crate::plugins::{fill_random, registry};
use crate::source;

/// How long after a failure the journal is written again.
pub(super) const JOURNAL_RETRY: Duration = Duration::from_secs(5);

/// A version that the device is being brought to.
pub(super) struct PendingReload {
    serial: u64,
    node: NodeConfig,
    version: Arc<Version>,
    /// It is the way back from this version.
    back_from: Option<[u8; 32]>,
    by_person: bool,
    endpoints: BTreeMap<PeerKey, SocketAddr>,
}

impl Agent {
    /// The source has something to load, or somebody asked.
    pub(super) async fn on_mesh_change(&mut self, change: source::Change) {
        self.reload().await;
        if let Some(answer) = change.answer {
            let _ = answer.send(match &self.reload_error {
                None => Reply::Ok(serde_json::Value::Null),
                Some(error) => Reply::Error(error.clone()),
            });
        }
    }

    /// Reads the mesh file again and starts to apply it. What is wrong with it is reported, and the
    /// running mesh stays.
    pub(super) async fn reload(&mut self) {
        self.waits_for_journal = false;
        let result = match load(&self.source, &self.options).await {
            Ok((node, version)) => {
                self.source.watch_keys(key_files(&node, &version));
                self.begin(node, version)
            }
            Err(error) => Err(error),
        };
        self.reload_error = match result {
            Ok(()) => None,
            Err(error) => {
                let help = error
                    .help()
                    .map(|help| format!("\nhelp: {help}"))
                    .unwrap_or_default();
                let text = format!("{error}{help}");
                // A version that is held was reported when it was undone.
                if matches!(error, AgentError::Held(_)) {
                    tracing::debug!("{text}");
                } else {
                    tracing::error!(
                        "the new version of the mesh file is not applied, the mesh stays as it was\n{text}"
                    );
                }
                Some(text)
            }
        };
    }

    fn begin(&mut self, node: NodeConfig, version: Arc<Version>) -> Result<(), AgentError> {
        let newest = self
            .pending
            .as_ref()
            .map_or(&self.node, |pending| &pending.node);
        // The same files may be named by another path.
        if (NodeConfig {
            files: newest.files.clone(),
            ..node.clone()
        }) == *newest
        {
            tracing::debug!("the mesh file says what it said before");
            if self.guard.is_none() {
                self.source.applied(node.content_hash);
            }
            if self.pending.is_none() && self.guard.is_none() && self.held.take().is_some() {
                let entry = Entry {
                    good: (*self.good.version).clone(),
                    change: None,
                };
                self.device.note(self.journal.clone(), entry);
            }
            return Ok(());
        }
        if let Some(held) = self.held.as_ref().filter(|held| held.is(&node)) {
            return Err(AgentError::Held(held.reason.clone()));
        }
        let fixed = [
            (
                "the interface's name",
                self.node.interface != node.interface,
            ),
            ("the backend", self.node.backend != node.backend),
            ("the name of the mesh", self.node.mesh != node.mesh),
        ];
        if let Some((what, _)) = fixed.iter().find(|(_, changed)| *changed) {
            return Err(AgentError::Fixed(what));
        }
        let refusals = caps::refusals(&self.node, &node, &self.options.allow);
        if !refusals.is_empty() {
            return Err(AgentError::Refused(refusals));
        }
        for discovery in &node.discovery {
            registry::build(&discovery.settings).map_err(AgentError::Plugin)?;
        }
        let wanted =
            spec::interface(&node, &self.options.runtime_dir).map_err(AgentError::Program)?;
        let by_person = self.options.confirm.is_some();
        let confirm = self.options.confirm.unwrap_or(node.apply.confirm);
        let earlier = self
            .guard
            .as_ref()
            .map(|guard| guard.watched.clone())
            .unwrap_or_default();
        let candidates = if by_person || confirm.is_zero() {
            Vec::new()
        } else {
            let mut alive = self.alive();
            alive.extend(earlier.iter().map(|watch| watch.name.clone()));
            let operators = change::operators(&self.good.node);
            change::candidates(&self.good.node, &node, &alive, &operators, &earlier)
        };
        let mut endpoints = self
            .guard
            .as_ref()
            .map(|guard| guard.endpoints.clone())
            .unwrap_or_default();
        endpoints.extend(
            self.endpoints
                .iter()
                .map(|(key, endpoint)| (*key, *endpoint)),
        );
        let (journal, good, to) = (
            self.journal.clone(),
            (*self.good.version).clone(),
            version.hash,
        );
        let noted = endpoints.clone();
        let prepare = move || {
            let watched = change::baseline(candidates);
            let deadline = boot_time() + change::window(confirm, &watched);
            let change = Change::Open {
                to,
                boot: boot_id(),
                deadline_ms: u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX),
                by_person,
                watched: watched.clone(),
                endpoints: noted,
            };
            journal.write(&Entry {
                good,
                change: Some(change),
            })?;
            Ok(Prepared { watched, deadline })
        };
        let serial = self.device.apply(wanted, Box::new(prepare));
        self.pending = Some(PendingReload {
            serial,
            node,
            version,
            back_from: None,
            by_person,
            endpoints,
        });
        Ok(())
    }

    /// The device was lost with a change on its way to it: the change begins anew on the new one.
    pub(super) fn begin_again(&mut self) {
        let Some(PendingReload {
            node,
            version,
            back_from,
            ..
        }) = self.pending.take()
        else {
            return;
        };
        match back_from {
            Some(from) => self.apply_good(from),
            None => {
                if let Err(error) = self.begin(node, version) {
                    tracing::error!(%error, "the change that was under way is given up; the mesh stays as it was");
                    self.reload_error = Some(error.to_string());
                }
            }
        }
    }

    /// The peers, by name, that are connected now.
    pub(super) fn alive(&self) -> BTreeSet<String> {
        let peers = self.mesh.status(now()).peers;
        peers
            .into_iter()
            .filter(|peer| peer.state == PeerState::Connected)
            .map(|peer| peer.name)
            .collect()
    }

    /// The device answered. Only the answer to the newest request counts: an older one is about a
    /// version that was overtaken.
    pub(super) async fn on_applied(
        &mut self,
        serial: u64,
        result: Result<(Applied, Prepared), ChangeError>,
    ) {
        let Some(pending) = self.pending.take_if(|pending| pending.serial == serial) else {
            return;
        };
        let PendingReload {
            node,
            version,
            back_from,
            by_person,
            endpoints,
            ..
        } = pending;
        match (result, back_from) {
            (Ok((applied, _)), Some(_)) => {
                self.guard = None;
                tracing::warn!(
                    revision = version.revision(),
                    changes = applied.plan.changes.len(),
                    "back at the version before: the interface was read back and is as it was"
                );
                self.adopt(node, version).await;
                notify_systemd(&[sd_notify::NotifyState::Status(
                    "the newest mesh file was rolled back",
                )]);
            }
            (Err(error), Some(from)) => {
                tracing::error!(%error, "can't go back to the version before; trying again");
                self.retry_back = Some((Instant::now() + Duration::from_secs(1), from));
            }
            (Ok((applied, prepared)), None) => {
                self.reloads += 1;
                tracing::info!(
                    changes = applied.plan.changes.len(),
                    peers_written = applied.peers_touched,
                    reload = self.reloads,
                    "reloaded the mesh file"
                );
                for change in plan::report(&node, Some(&self.node), &applied.plan, &[]).changes {
                    tracing::info!("{} {}", change.sign, change.text);
                }
                self.held = None;
                self.adopt(node, version).await;
                let Prepared { watched, deadline } = prepared;
                if watched.is_empty() && !by_person {
                    self.confirm(&[]);
                } else {
                    let guard = Guard::new(
                        self.node.content_hash,
                        deadline,
                        by_person,
                        watched,
                        endpoints,
                    );
                    let left = deadline.saturating_sub(boot_time()).as_secs();
                    if by_person {
                        tracing::warn!(
                            "run `natpunch confirm` within {left} s, or this change is undone"
                        );
                    } else {
                        tracing::info!(peers = %guard.missing().join(", "), "waiting up to {left} s for a sign of life");
                    }
                    self.guard = Some(guard);
                }
                notify_systemd(&[sd_notify::NotifyState::Status(&format!(
                    "reload {} applied",
                    self.reloads
                ))]);
            }
            (Err(ChangeError::Journal(error)), None) => {
                self.on_noted(Err(error.to_string()));
                self.reload_error = Some(ChangeError::Journal(error).to_string());
                self.waits_for_journal = true;
            }
            (Err(error), None) => self.go_back(node, error.to_string()),
        }
    }

    /// The journal was written, or not: then it is tried again. True: a change waits for it, which
    /// can be made now.
    pub(super) fn on_noted(&mut self, result: Result<(), String>) -> bool {
        match result {
            Ok(()) => {
                if self.journal_error.take().is_some() {
                    tracing::info!("the journal can be written again");
                }
                std::mem::take(&mut self.waits_for_journal)
            }
            Err(error) => {
                if self
                    .journal_error
                    .as_ref()
                    .is_none_or(|(known, _)| *known != error)
                {
                    tracing::error!(
                        %error, directory = %self.options.state_dir.display(),
                        "can't write the journal: changes have to wait, and after a crash this node would begin with an \
                         old version; trying again"
                    );
                }
                self.journal_error = Some((error, Instant::now() + JOURNAL_RETRY));
                false
            }
        }
    }

    /// Writes the journal again after a failure, if `now` is the time.
    pub(super) fn retry_journal(&mut self, now: Instant) {
        // While a change is tried, the journal says so.
        let is_quiet = self.pending.is_none() && self.guard.is_none();
        let due = self
            .journal_error
            .as_mut()
            .filter(|(_, at)| is_quiet && now >= *at);
        let Some((_, at)) = due else { return };
        *at = now + JOURNAL_RETRY;
        let held = self.held.clone();
        let change = held.map(|Held { to, reason, .. }| Change::Held { to, reason });
        self.device.note(
            self.journal.clone(),
            Entry {
                good: (*self.good.version).clone(),
                change,
            },
        );
    }

    /// Begins the way back to the version that works.
    fn go_back(&mut self, tried: NodeConfig, reason: String) {
        let from = tried.content_hash;
        tracing::error!(revision = revision(&from), %reason, "the new version is undone");
        self.held = Some(Held {
            to: from,
            reason: reason.clone(),
            tried: Some(Box::new(tried)),
        });
        self.reload_error = Some(AgentError::Held(reason.clone()).to_string());
        // On disk first: whoever starts next goes on with the way back.
        let entry = Entry {
            good: (*self.good.version).clone(),
            change: Some(Change::Held { to: from, reason }),
        };
        self.device.note(self.journal.clone(), entry);
        self.apply_good(from);
    }

    fn apply_good(&mut self, from: [u8; 32]) {
        match spec::interface(&self.good.node, &self.options.runtime_dir) {
            Ok(before) => {
                let mut endpoints = self.endpoints.clone();
                endpoints.extend(self.guard.iter().flat_map(|guard| guard.endpoints.clone()));
                let before = with_endpoints(before, &endpoints);
                let serial = self
                    .device
                    .apply(before, Box::new(|| Ok(Prepared::default())));
                let Good { node, version } = self.good.clone();
                let back_from = Some(from);
                self.pending = Some(PendingReload {
                    serial,
                    node,
                    version,
                    back_from,
                    by_person: false,
                    endpoints,
                });
            }
            Err(error) => tracing::error!(%error, "can't go back"),
        }
    }

    /// The version that runs is known to work.
    fn confirm(&mut self, missing: &[String]) {
        if !missing.is_empty() {
            tracing::warn!(peers = %missing.join(", "), "the change stays; these peers did not come back yet");
        }
        if self.guard.take().is_some() {
            tracing::info!(revision = self.version.revision(), "the new version works");
        }
        self.good = Good {
            node: self.node.clone(),
            version: Arc::clone(&self.version),
        };
        self.source.applied(self.node.content_hash);
        self.device.note(
            self.journal.clone(),
            Entry {
                good: (*self.version).clone(),
                change: None,
            },
        );
    }

    /// A person says that the change is good. It has to come over a connection that was made after
    /// it.
    pub(super) fn confirm_by_person(&mut self, connected: std::time::Instant) -> Reply {
        match &self.guard {
            _ if self.pending.is_some() => {
                Reply::Error("a change is being applied; confirm it afterwards".into())
            }
            None => Reply::Error("no change waits for a confirmation".into()),
            Some(guard) if connected <= guard.began => Reply::Error(
                "this connection is from before the change: confirm over a new one".into(),
            ),
            Some(_) => {
                self.confirm(&[]);
                Reply::Ok(serde_json::json!({ "revision": self.version.revision() }))
            }
        }
    }

    /// Looks how the change stands that is not confirmed yet, and what the peers answer.
    pub(super) fn judge(&mut self) {
        if let Some((at, from)) = self.retry_back
            && self.pending.is_none()
            && Instant::now() >= at
        {
            self.retry_back = None;
            self.apply_good(from);
        }
        if self.pending.is_some() {
            return;
        }
        let Some(guard) = &self.guard else { return };
        match guard.verdict(boot_time()) {
            Verdict::Good(missing) => self.confirm(&missing),
            Verdict::Bad(reason) => self.go_back(self.node.clone(), reason),
            Verdict::Wait => {
                let Some(check) = guard.check(self.node.mtu).filter(|_| !self.checking) else {
                    return;
                };
                self.checking = true;
                let tell = self.to_checks.clone();
                tokio::task::spawn_blocking(move || {
                    let _ = tell.blocking_send(check.run());
                });
            }
        }
    }

    /// The answers of peers to echoes.
    pub(super) fn on_check(&mut self, answered: &BTreeSet<IpAddr>) {
        self.checking = false;
        if let Some(guard) = self.guard.as_mut().filter(|_| self.pending.is_none()) {
            guard.answered(answered);
        }
        self.judge();
    }

    /// Makes `node`, which the device has already, the running version for the core and the
    /// plugins.
    async fn adopt(&mut self, node: NodeConfig, version: Arc<Version>) {
        self.version = version;
        let before = std::mem::replace(&mut self.node, node);
        if before.mesh_hash != self.node.mesh_hash {
            self.since = boot_time();
        }
        if before.forwards != self.node.forwards {
            forwarding::warn(&self.node);
        }
        let moved =
            before.listen_port != self.node.listen_port || before.fwmark != self.node.fwmark;
        let renamed = before.public_key != self.node.public_key;
        if moved && let Err(error) = self.open_raw() {
            tracing::error!(%error, "can't speak from WireGuard's new port");
        }
        if renamed {
            let mut seed = [0; 32];
            fill_random(&mut seed);
            let floor = self.mesh.record_counter();
            let mut mesh = Mesh::new(spec::mesh(&self.node), seed, now());
            mesh.inherit_relay_hosts(&self.mesh);
            self.mesh = mesh;
            self.mesh.set_record_counter_floor(floor);
            self.mesh
                .handle_local_addresses(self.sources.links.network(), now());
        } else {
            self.mesh.handle_spec(spec::mesh(&self.node), now());
            if moved {
                self.mesh.handle_network_change(now());
            }
        }
        self.resolver.set(spec::stun_servers(&self.node));
        if moved || renamed {
            self.stop_plugins(|_| false).await;
        } else {
            let unchanged: Vec<String> = self
                .node
                .discovery
                .iter()
                .filter(|discovery| before.discovery.contains(discovery))
                .map(|discovery| discovery.name.clone())
                .collect();
            self.stop_plugins(|plugin| {
                unchanged
                    .iter()
                    .any(|name| name == plugin.origin().as_str())
            })
            .await;
        }
        self.serving.sync(&self.node).await;
        self.drain();
        self.sync_plugins().await;
        self.device.snapshot();
        self.tell_revision();
        self.put_names();
    }
}

/// The specification, with peers that have to be added anew where they were.
pub(super) fn with_endpoints(
    mut spec: InterfaceSpec,
    endpoints: &BTreeMap<PeerKey, SocketAddr>,
) -> InterfaceSpec {
    for peer in &mut spec.peers {
        peer.endpoint = endpoints.get(&peer.key).copied();
    }
    spec
}
