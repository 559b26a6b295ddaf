//! Reload: the newest mesh file becomes the running mesh, or nothing changes.

use natpunch_core::Mesh;
use natpunch_wg::{Applied, WgError};

use super::{Agent, AgentError, fill_random, load, notify_systemd, now, spec};
use crate::config::NodeConfig;
use crate::control::Reply;
use crate::plugins::registry;
use crate::source::Change;

/// A new version that the device is being brought to.
pub(super) struct PendingReload {
    serial: u64,
    node: NodeConfig,
}

impl Agent {
    /// The source has something to load, or somebody asked.
    pub(super) async fn on_mesh_change(&mut self, change: Change) {
        self.reload().await;
        if let Some(answer) = change.answer {
            let _ = answer.send(match &self.reload_error {
                None => Reply::Ok(serde_json::Value::Null),
                Some(error) => Reply::Error(error.clone()),
            });
        }
    }

    /// Reads the mesh file again and starts to apply it. What is wrong with it is reported, and the running mesh stays.
    pub(super) async fn reload(&mut self) {
        let result = match load(&self.source, &self.options).await {
            Ok(node) => self.begin(node),
            Err(error) => Err(error),
        };
        self.reload_error = match result {
            Ok(()) => None,
            Err(error) => {
                tracing::error!("the new version of the mesh file is not applied, the mesh stays as it was\n{error}");
                Some(error.to_string())
            }
        };
    }

    fn begin(&mut self, node: NodeConfig) -> Result<(), AgentError> {
        let newest = self.pending.as_ref().map_or(&self.node, |pending| &pending.node);
        if *newest == node {
            tracing::debug!("the mesh file says what it said before");
            self.source.applied(node.content_hash);
            return Ok(());
        }
        let fixed = [
            ("the interface's name", self.node.interface != node.interface),
            ("the backend", self.node.backend != node.backend),
            ("the name of the mesh", self.node.mesh != node.mesh),
        ];
        if let Some((what, _)) = fixed.iter().find(|(_, changed)| *changed) {
            return Err(AgentError::Fixed(what));
        }
        for discovery in &node.discovery {
            registry::build(&discovery.settings).map_err(AgentError::Plugin)?;
        }
        let wanted = spec::interface(&node, &self.options.runtime_dir).map_err(AgentError::Program)?;
        let serial = self.device.apply(wanted);
        self.pending = Some(PendingReload { serial, node });
        Ok(())
    }

    /// The device answered. Only the answer to the newest request counts: an older one is about a version that was
    /// overtaken.
    pub(super) async fn on_applied(&mut self, serial: u64, result: Result<Applied, WgError>) {
        let Some(pending) = self.pending.take_if(|pending| pending.serial == serial) else { return };
        match result {
            Ok(applied) => {
                self.reloads += 1;
                tracing::info!(
                    changes = applied.plan.changes.len(),
                    peers_written = applied.peers_touched,
                    reload = self.reloads,
                    "reloaded the mesh file"
                );
                for change in &applied.plan.changes {
                    tracing::info!("{change}");
                }
                self.adopt(pending.node).await;
                notify_systemd(&[sd_notify::NotifyState::Status(&format!("reload {} applied", self.reloads))]);
            }
            Err(error) => {
                tracing::error!(%error, "the device refuses the new version; going back to the version before");
                self.reload_error = Some(error.to_string());
                match spec::interface(&self.node, &self.options.runtime_dir) {
                    Ok(before) => {
                        self.device.apply(before);
                    }
                    Err(error) => tracing::error!(%error, "can't go back"),
                }
            }
        }
    }

    /// Makes `node`, which the device has already, the running version for the core and the plugins.
    async fn adopt(&mut self, node: NodeConfig) {
        let before = std::mem::replace(&mut self.node, node);
        let moved = before.listen_port != self.node.listen_port || before.fwmark != self.node.fwmark;
        let renamed = before.public_key != self.node.public_key;
        if moved && let Err(error) = self.open_raw() {
            tracing::error!(%error, "can't speak from WireGuard's new port");
        }
        if renamed {
            let mut seed = [0; 32];
            fill_random(&mut seed);
            let floor = self.mesh.record_counter();
            self.mesh = Mesh::new(spec::mesh(&self.node), seed, now());
            self.mesh.set_record_counter_floor(floor);
            self.mesh.handle_local_addresses(self.sources.links.addresses(), now());
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
            self.stop_plugins(|plugin| unchanged.iter().any(|name| name == plugin.origin().as_str())).await;
        }
        self.drain();
        self.sync_plugins().await;
        self.device.snapshot();
        self.source.applied(self.node.content_hash);
    }
}
