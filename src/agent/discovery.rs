//! The discovery instances of this node: started and stopped as the mesh file says, told what the
//! core wants, and what they offer handed to it.

use std::net::SocketAddr;

use natpunch_types::{Ask, InstanceName, Travel};

use super::{Agent, now};
use crate::plugins::host::{Instance, NodeFacts, PluginEvent, Said};
use crate::plugins::registry;

impl Agent {
    /// Takes what a plugin says.
    pub(super) fn on_plugin(&mut self, event: PluginEvent) {
        if !self.plugins.iter().any(|plugin| plugin.said(&event)) {
            return;
        }
        match event.said {
            Said::News(news) => self.mesh.handle_news(&event.from, news, now()),
            Said::Send {
                destination,
                payload,
            } => self.send_for(&event.from, destination, &payload),
            Said::ToPeer { peer, payload } => self.mesh.send_message(&peer, &payload, now()),
        }
    }

    /// Sends a datagram of an instance from WireGuard's port, and lets the answers in.
    fn send_for(&mut self, instance: &InstanceName, destination: SocketAddr, payload: &[u8]) {
        let sent = self
            .correspondents
            .sent(instance, destination, payload, now());
        match sent {
            None => {
                tracing::debug!(
                    discovery = %instance, %destination, "too many servers at one time; not sent"
                );
                return;
            }
            Some(true) => {
                if let Err(error) = self.raw.allow_source(destination) {
                    tracing::warn!(
                        %error, "can't widen the packet filter; replies will not be seen"
                    );
                }
            }
            Some(false) => {}
        }
        if let Err(error) = self.raw.send(None, destination, Travel::Usual, payload) {
            tracing::debug!(discovery = %instance, %destination, %error, "not sent");
        }
    }

    /// Brings the running plugins to what the file says: those that it no longer names are stopped,
    /// new or changed ones are started, the others are left alone.
    pub(super) async fn sync_plugins(&mut self) {
        let network = self.network();
        let facts = || NodeFacts {
            own_key: self.node.public_key,
            private_key: self.node.private_key.clone(),
            listen_port: self.node.listen_port,
            fwmark: self.node.fwmark,
            forwarder: self.forwarder.clone(),
            network: network.clone(),
        };
        let mut started = Vec::new();
        for discovery in &self.node.discovery {
            let is_it = |plugin: &&Instance| plugin.name().as_str() == discovery.name;
            if let Some(plugin) = self.plugins.iter().find(is_it) {
                plugin.set_places(discovery.places.clone());
                continue;
            }
            let Some(plugin) = registry::build(&discovery.settings, &discovery.secrets) else {
                tracing::error!(discovery = %discovery.name, "no plugin of this build");
                continue;
            };
            self.plugin_runs += 1;
            let instance = Instance::start(
                (InstanceName::new(&discovery.name), self.plugin_runs),
                &discovery.about,
                plugin,
                facts(),
                self.to_plugins.clone(),
            );
            instance.set_places(discovery.places.clone());
            started.push(instance);
        }
        self.plugins.extend(started);
        let running = self
            .plugins
            .iter()
            .map(|plugin| (plugin.name().clone(), plugin.running()))
            .collect();
        self.mesh.handle_instances(running, now());
        for plugin in &self.plugins {
            plugin.ask(Ask::Peers(self.interest.clone()));
            plugin.ask(Ask::Records(self.records.clone()));
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

    /// Asks all plugins, and keeps what those that start later are to be asked.
    pub(super) fn ask_plugins(&mut self, ask: Ask) {
        match &ask {
            Ask::Peers(peers) => self.interest = peers.clone(),
            Ask::Records(records) => {
                self.store.used(self.mesh.record_counter());
                self.records = records.clone();
            }
            Ask::Meet(_) => {}
        }
        for plugin in &self.plugins {
            plugin.ask(ask.clone());
        }
    }

    /// Lets no more datagrams in of servers that no plugin has spoken to for a while.
    pub(super) fn forget_correspondents(&mut self) {
        for address in self.correspondents.expire(now()) {
            if let Err(error) = self.raw.forbid_source(address) {
                tracing::warn!(%error, "can't narrow the packet filter");
            }
        }
    }
}
