//! `[discovery.NAME]`, and the instances that are there without being written.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::serve::Server;
use super::{Check, relays, serve};
use crate::file::kind::{Kind, is_kept};
use crate::file::merge::twice;
use crate::file::raw::{Named, RawDiscovery};
use crate::file::reader::Field;
use crate::mesh::model::{Discovery, InterfaceConfig, KeyPlaces, PeerConfig};
use crate::report::error::ConfigError;
use crate::report::source::Place;
use crate::report::wording::Quoted;

impl Check<'_> {
    pub(super) fn discovery(
        &mut self,
        raw: Field<Named<RawDiscovery>>,
        peers: &BTreeMap<String, PeerConfig>,
        interface: &InterfaceConfig,
    ) -> Vec<Discovery> {
        let mut seen: BTreeMap<String, Place> = BTreeMap::new();
        let mut instances = Vec::new();
        for (name, instance) in raw.map(|raw| raw.value.0).unwrap_or_default() {
            match seen.entry(name.clone()) {
                Entry::Occupied(first) => {
                    self.errors.push(twice(
                        &format!("discovery.{}", Quoted(&name)),
                        instance.key,
                        *first.get(),
                    ));
                    continue;
                }
                Entry::Vacant(entry) => entry.insert(instance.key),
            };
            let RawDiscovery {
                plugin,
                settings,
                keys,
            } = instance.value;
            if name != plugin && is_kept(self.kinds, &name) {
                let message = format!("the name `{name}` is kept for the plugin of this name");
                let error = ConfigError::at(instance.key, message)
                    .label("another plugin can't have this name");
                self.errors
                    .push(error.help("name the instance otherwise, such as [discovery.web]"));
            }
            let keys = keys.into_iter().chain([(String::new(), instance.key)]);
            let places = keys.filter_map(|(key, place)| Some((key, self.sources.locate(place)?)));
            let places = KeyPlaces(places.collect());
            instances.push(Discovery {
                places,
                ..Discovery::new(&name, plugin, settings)
            });
        }
        self.places.discovery = seen.clone();
        let have_endpoints = peers.values().any(|peer| peer.endpoint.is_some());
        let implied = |kind: &Kind| {
            let instance = kind.implied()?;
            let is_written = instances.iter().any(|one| one.plugin == kind.id());
            let implied = Discovery::new(kind.id(), kind.id(), instance);
            let is_of_use = have_endpoints || !implied.about.offers_endpoints;
            (is_of_use && !is_written).then_some(implied)
        };
        let implied: Vec<Discovery> = self.kinds.iter().filter_map(implied).collect();
        instances.extend(implied);
        let servers = std::mem::take(&mut self.servers);
        let servers_by_name = servers.iter().map(Server::name).collect();
        let known = relays::Known::new(&instances, &seen, servers_by_name, &self.places.peers);
        let unread = |name: &str| {
            let keys = [
                format!("discovery.{name}"),
                format!("peers.{name}"),
                format!("peers.{name}.serve"),
            ];
            !self.complete || keys.iter().any(|key| self.unusable.contains(key))
        };
        self.relays
            .iter()
            .for_each(|list| known.check(list, unread, &mut self.suggestions, self.errors));
        let unreadable = |name: &str| self.unusable.contains(&format!("peers.{name}.endpoint"));
        instances.extend(serve::instances(
            self.kinds,
            &servers,
            peers,
            interface,
            &seen,
            unreadable,
            self.errors,
        ));
        instances
    }
}
