//! The discovery instances of this node: started and stopped as the mesh file says, told what the
//! core wants, and what they offer handed to it.

use std::sync::Arc;

use natpunch_net::boot_time;
use natpunch_types::Origin;

use super::{Agent, now, spec};
use crate::plugins::host::{Instance, NodeFacts, PluginEvent};
use crate::plugins::registry;

impl Agent {
    /// Takes what a plugin offers.
    pub(super) fn on_plugin(&mut self, event: PluginEvent) {
        match event {
            PluginEvent::Candidate { peer, candidate } => {
                self.mesh.handle_candidate(peer, candidate, now())
            }
            PluginEvent::OwnAddress {
                origin,
                address,
                lifetime,
            } => {
                self.mesh
                    .handle_reflexive(&origin, address, lifetime, now());
            }
            PluginEvent::Fire {
                origin,
                peer,
                after,
            } => self.mesh.handle_fire(&origin, peer, after, now()),
            PluginEvent::Wanted { peer } => self.mesh.handle_wanted(peer, now()),
            PluginEvent::Mapping { origin, mapping } => {
                self.mesh.handle_mapping(&origin, mapping, now())
            }
            PluginEvent::Record { origin, record } => {
                self.mesh
                    .handle_record(&origin, record.tag, &record.blob, now());
            }
            PluginEvent::Send {
                origin,
                destination,
                payload,
            } => {
                match self
                    .correspondents
                    .sent(&origin, destination, &payload, boot_time())
                {
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

    /// Brings the running plugins to what the file says: those that it no longer names are stopped,
    /// new or changed ones are started, the others are left alone.
    pub(super) async fn sync_plugins(&mut self) {
        let facts = || NodeFacts {
            own_key: self.node.public_key,
            private_key: self.node.private_key.clone(),
            listen_port: self.node.listen_port,
        };
        let mut started = Vec::new();
        for discovery in &self.node.discovery {
            if self
                .plugins
                .iter()
                .any(|plugin| plugin.origin().as_str() == discovery.name)
            {
                continue;
            }
            match registry::build(&discovery.settings) {
                Ok(plugin) => {
                    let origin = Origin::new(&discovery.name);
                    started.push(Instance::start(
                        origin,
                        plugin,
                        facts(),
                        self.to_plugins.clone(),
                    ));
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

    /// Stops the plugins but these.
    pub(super) async fn stop_plugins(&mut self, keep: impl Fn(&Instance) -> bool) {
        let (kept, ended) = std::mem::take(&mut self.plugins)
            .into_iter()
            .partition(keep);
        self.plugins = kept;
        for plugin in ended {
            plugin.stop().await;
        }
    }

    /// Tells the plugins which peers the core looks for.
    pub(super) fn tell_interest(&self) {
        let interests: Arc<[_]> = spec::interests(&self.node, &self.interest).into();
        for plugin in &self.plugins {
            plugin.tell_peers(spec::interests_at(
                plugin.origin(),
                &interests,
                &self.interest,
            ));
        }
    }

    /// Lets no more datagrams in of servers that no plugin has spoken to for a while.
    pub(super) fn forget_correspondents(&mut self) {
        for address in self.correspondents.expire(boot_time()) {
            if let Err(error) = self.raw.forbid_source(address) {
                tracing::warn!(%error, "can't narrow the packet filter");
            }
        }
    }
}
