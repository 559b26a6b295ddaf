//! The rollout's shell: [`natpunch_rollout::Rollout`] decides, and this executes. The newest mesh
//! file is read beside the agent's task ([`loading`]) and handed in ([`Agent::on_loaded`]); what
//! the machine wants done is done ([`Agent::execute`]): peers are asked, the journal is written and
//! the device changed (both on the device's thread, in order), the rest of the node follows
//! ([`Agent::follow`]).

pub(crate) mod journal;
mod loading;
mod logins;
pub(crate) mod names;
mod release;
#[cfg(test)]
mod reload_tests;
#[cfg(test)]
mod schema_tests;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use natpunch_core::PeerState;
use natpunch_net::echo;
use natpunch_rollout::{Answers, Ask, Moment, Notice, Output, Refusal};
use natpunch_types::{Consent, Help as _, PeerKey, Time};
use natpunch_wg::{Applied, InterfaceSpec, WgError};
use tokio::sync::oneshot;

use self::journal::Entry;
pub(super) use self::loading::{Loaded, Loading, load};
pub(super) use self::logins::logins;
use self::names::revision_of;
pub(crate) use self::release::{Release, facts};
use super::spec::Anew;
use super::start::new_mesh;
use super::{Agent, AgentError, clash, notify_systemd, now, plan, spec};
use crate::config::NodeConfig;
use crate::control::Reply;

/// The machine with this node's versions.
pub(super) type Rollout = natpunch_rollout::Rollout<Release>;

/// How long a peer may take to answer an echo.
const ECHO: Duration = Duration::from_millis(650);
/// An echo of this many bytes passes everywhere.
const SMALL: usize = 64;

/// The consents that a change needs and does not have. `before` is `None` at the first apply.
pub(crate) fn refusals(
    before: Option<&NodeConfig>,
    after: &NodeConfig,
    allowed: &[Consent],
) -> Vec<Refusal> {
    let before = before.map(facts);
    natpunch_rollout::refusals(before.as_ref(), &facts(after), &logins(), allowed)
}

/// [`refusals`] as far as they depend on nothing but the mesh: not on who is logged in here.
pub(crate) fn refusals_without_logins(before: &NodeConfig, after: &NodeConfig) -> Vec<Refusal> {
    natpunch_rollout::refusals(Some(&facts(before)), &facts(after), &[], &[])
}

/// Asks peers whether they answer. Blocks for at most [`ECHO`] twice.
fn ask(question: &Ask) -> Answers {
    let small = echo(&question.small, SMALL, ECHO);
    // A peer that does not answer a small packet answers no full one.
    let in_vain: BTreeSet<&IpAddr> = question
        .small
        .iter()
        .filter(|address| !small.contains(address))
        .collect();
    let full: Vec<IpAddr> = question
        .full
        .iter()
        .filter(|address| !in_vain.contains(address))
        .copied()
        .collect();
    let full = echo(&full, question.mtu as usize, ECHO);
    Answers { small, full }
}

impl Agent {
    /// The source has something to load, or somebody asked: it comes back by
    /// [`Agent::on_loaded`].
    pub(super) fn load(&mut self, answer: Option<oneshot::Sender<Reply>>) {
        self.loading.ask(answer, &self.source, &self.options);
    }

    /// The mesh file was read: the version goes to the machine. What is wrong with it is reported,
    /// and the running mesh stays.
    pub(super) fn on_loaded(&mut self, loaded: Loaded) {
        let Loaded { release, logins } = loaded;
        let mut revision = None;
        let result = release.and_then(|release| {
            revision = Some(revision_of(&release.node));
            self.source.watch_keys(&release.node.key_files);
            self.names.learn(&release.node);
            let moment = Moment {
                alive: self.alive(),
                logins,
            };
            self.rollout
                .handle_version(Arc::new(release), moment, now())
                .map_err(AgentError::from)
        });
        self.reload_error = None;
        if let Err(error) = result {
            self.not_applied(&error);
        }
        let reply = match &self.reload_error {
            None => Reply::Ok(serde_json::json!({ "revision": revision })),
            Some(error) => Reply::Error(error.clone()),
        };
        self.loading.judged(&reply, &self.source, &self.options);
    }

    fn not_applied(&mut self, error: &AgentError) {
        let text = error.in_full();
        // A version that is held was reported when it was undone.
        if matches!(error, AgentError::Held(_)) {
            tracing::debug!("{text}");
        } else {
            tracing::error!(
                "the new version of the mesh file is not applied, the mesh stays as it was\n{text}"
            );
        }
        self.reload_error = Some(text);
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

    /// Does what the machine wants done.
    pub(super) async fn execute(&mut self) {
        while let Some(output) = self.rollout.poll_output() {
            match output {
                Output::Ask(question) => {
                    let tell = self.to_answers.clone();
                    tokio::task::spawn_blocking(move || {
                        let _ = tell.blocking_send((question.id, ask(&question)));
                    });
                }
                Output::Write { id, entry } => {
                    let entry = Entry {
                        good: entry.good.text.clone(),
                        change: entry.change,
                    };
                    self.device.note(id, self.journal.clone(), entry);
                }
                Output::Apply {
                    id,
                    version,
                    endpoints,
                } => match clash::interface(&version.node, &self.options.runtime_dir) {
                    Ok(wanted) => {
                        let wanted = self.route_mtus.apply(wanted, &self.clashes);
                        self.device.apply(id, with_endpoints(wanted, &endpoints));
                    }
                    Err(error) => self
                        .rollout
                        .handle_applied(id, Err(error.to_string()), now()),
                },
                Output::Follow(version) => self.follow(&version).await,
                Output::Reload => self.load(None),
                Output::Tell(notice) => self.tell(notice),
            }
        }
    }

    /// The device has a version, or refuses it.
    pub(super) fn on_applied(&mut self, id: u64, result: Result<Applied, WgError>) {
        let result = result.map(|applied| self.applied = Some(applied));
        let result = result.map_err(|error| error.to_string());
        self.rollout.handle_applied(id, result, now());
    }

    fn tell(&mut self, notice: Notice) {
        match notice {
            Notice::Changed => {
                self.reloads += 1;
                let applied = self.applied.take().unwrap_or_default();
                tracing::info!(
                    changes = applied.plan.changes.len(),
                    peers_written = applied.peers_touched,
                    reload = self.reloads,
                    revision = %revision_of(&self.rollout.runs().node),
                    "reloaded the mesh file"
                );
                let node = &self.rollout.runs().node;
                for change in plan::report(node, Some(&self.node), &applied.plan, &[]).changes {
                    tracing::info!("{} {}", change.sign, change.text);
                }
                let status = format!("reload {} applied", self.reloads);
                notify_systemd(&[sd_notify::NotifyState::Status(&status)]);
            }
            Notice::Waiting {
                by_person,
                peers,
                left,
            } => {
                let left = left.as_secs();
                if by_person {
                    tracing::warn!(
                        "run `natpunch confirm` within {left} s, or this change is undone"
                    );
                } else {
                    tracing::info!(peers = %peers.join(", "), "waiting up to {left} s for a sign of life");
                }
            }
            Notice::Good {
                version,
                was_watched,
                missing,
            } => {
                if !missing.is_empty() {
                    tracing::warn!(peers = %missing.join(", "), "the change stays; these peers did not come back yet");
                }
                if was_watched {
                    tracing::info!(revision = %self.names.of(&version), "the new version works");
                }
                self.source.applied(version);
            }
            Notice::Undone { version, reason } => {
                tracing::error!(revision = %self.names.of(&version), %reason, "the new version is undone");
                self.reload_error = Some(AgentError::Held(reason).to_string());
            }
            Notice::Back => {
                let applied = self.applied.take().unwrap_or_default();
                tracing::warn!(
                    revision = %revision_of(&self.rollout.runs().node),
                    changes = applied.plan.changes.len(),
                    "back at the version before: the interface was read back and is as it was"
                );
                notify_systemd(&[sd_notify::NotifyState::Status(
                    "the newest mesh file was rolled back",
                )]);
            }
            Notice::CantGoBack(error) => {
                tracing::error!(%error, "can't go back to the version before; trying again");
            }
            Notice::NotBegun(error) => {
                self.reload_error = Some(AgentError::Journal(error).to_string());
            }
            Notice::Refused(refused) => self.not_applied(&refused.into()),
            Notice::JournalFails(error) => tracing::error!(
                %error, directory = %self.options.state_dir.display(),
                "can't write the journal: changes have to wait, and after a crash this node would \
                 begin with an old version; trying again"
            ),
            Notice::JournalWorks => tracing::info!("the journal can be written again"),
        }
    }

    /// A person says that the change is good, over a connection made at this time.
    pub(super) fn confirm(&mut self, connected: Time) -> Reply {
        match self.rollout.handle_confirm(connected) {
            Ok(version) => Reply::Ok(serde_json::json!({ "revision": self.names.of(&version) })),
            Err(error) => Reply::Error(error.to_string()),
        }
    }

    /// The device has this version: it becomes that of the core, the plugins and the services.
    async fn follow(&mut self, version: &Release) {
        let before = std::mem::replace(&mut self.node, version.node.clone());
        if before.mesh_hash != self.node.mesh_hash {
            self.since = now();
        }
        let anew = Anew::between(&before, &self.node);
        if anew.sockets
            && let Err(error) = self.open_raw()
        {
            tracing::error!(%error, "can't speak from WireGuard's new port");
        }
        if anew.core {
            let floor = self.mesh.record_counter();
            let network = self.network();
            self.mesh = new_mesh(&self.node, floor, &network, Some(&self.mesh));
            self.tell_pins();
            self.warm.restore_lifetimes(&mut self.mesh);
            self.offer_remembered();
        } else {
            self.mesh.handle_spec(spec::mesh(&self.node), now());
            if anew.sockets {
                self.mesh.handle_network_change(now());
            }
        }
        self.stop_plugins(|plugin| anew.kept_plugins.contains(plugin.name().as_str()))
            .await;
        self.drop_pins_of_others();
        // A missing program may have been installed meanwhile.
        self.try_pins();
        self.drain();
        self.sync_plugins().await;
        self.device.snapshot();
        self.node_changed().await;
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
