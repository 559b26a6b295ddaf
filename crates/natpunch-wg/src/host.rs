//! What of an interface is the host's: link, addresses, routes, policy rules.

use std::collections::BTreeSet;

use ipnet::IpNet;
use natpunch_os::failpoint;

use crate::error::WgError;
use crate::links::{self, Link};
use crate::plan::Change;
use crate::routing::{self, Route, Rule, wanted_limits, wanted_routes, wanted_rules};
use crate::spec::InterfaceSpec;
use crate::state_file::StateFile;

/// Changes of link, addresses, routes and rules.
#[derive(Debug, Default)]
pub(crate) struct HostChanges {
    mtu: Option<(u32, u32)>,
    bring_up: bool,
    add_addresses: Vec<IpNet>,
    remove_addresses: Vec<IpNet>,
    add_routes: Vec<Route>,
    remove_routes: Vec<Route>,
    limits: LimitChanges,
    add_rules: Vec<Rule>,
    remove_rules: Vec<Rule>,
    /// Whether a default route stays, so that nothing may leak meanwhile.
    diverted: bool,
}

/// Changes of the MTU of routes to peers.
#[derive(Debug, Default)]
pub(crate) struct LimitChanges {
    add: Vec<Route>,
    remove: Vec<Route>,
}

impl LimitChanges {
    /// What leads from `present`, of which only limits count, to `spec`.
    fn find(spec: &InterfaceSpec, present: &BTreeSet<Route>) -> Self {
        let present: BTreeSet<Route> = present.iter().filter(|r| r.is_limit()).copied().collect();
        let wanted = wanted_limits(spec, &present);
        Self {
            add: wanted.difference(&present).copied().collect(),
            remove: present.difference(&wanted).copied().collect(),
        }
    }

    /// The same of an interface that is up, by its link.
    pub(crate) fn of_link(spec: &InterfaceSpec, link: u32) -> Result<Self, WgError> {
        let present = routing::routes(Some(link), &BTreeSet::new())?;
        Ok(Self::find(spec, &present))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.add.is_empty() && self.remove.is_empty()
    }

    fn words(&self) -> impl Iterator<Item = Change> {
        let change = |route: &Route, present: bool| Change::LimitRoute {
            route: route.net,
            mtu: route.mtu.unwrap_or_default(),
            present,
        };
        let removed = self.remove.iter().map(move |route| change(route, false));
        removed.chain(self.add.iter().map(move |route| change(route, true)))
    }

    /// Makes the changes. A limit that becomes another one is gone for a moment, in which packets
    /// that are too large vanish as they did before.
    pub(crate) fn make(&self, link: u32) -> Result<(), WgError> {
        if !self.remove.is_empty() {
            routing::remove_routes(link, &self.remove)?;
        }
        if !self.add.is_empty() {
            routing::add_routes(link, &self.add)?;
        }
        Ok(())
    }
}

impl HostChanges {
    /// What leads from what is there to `spec`. `ours` says what of it is ours.
    pub(crate) fn find(
        spec: &InterfaceSpec,
        link: Option<&Link>,
        ours: &StateFile,
    ) -> Result<Self, WgError> {
        let mut tables = ours.tables();
        tables.extend(spec.default_route.as_ref().map(|default| default.table));
        let addresses = link
            .map(|link| links::addresses(link.index))
            .transpose()?
            .unwrap_or_default();
        let routes = routing::routes(link.map(|link| link.index), &tables)?;
        let rules = if tables.is_empty() {
            BTreeSet::new()
        } else {
            routing::rules()?
        };
        let want_addresses: BTreeSet<IpNet> = spec.addresses.iter().copied().collect();
        let limits = LimitChanges::find(spec, &routes);
        let routes: BTreeSet<Route> = routes.into_iter().filter(|r| !r.is_limit()).collect();
        let (want_routes, want_rules) = (wanted_routes(spec), wanted_rules(spec));
        Ok(Self {
            mtu: link
                .filter(|link| link.mtu != spec.mtu)
                .map(|link| (link.mtu, spec.mtu)),
            bring_up: link.is_none_or(|link| !link.up),
            add_addresses: want_addresses.difference(&addresses).copied().collect(),
            remove_addresses: addresses
                .difference(&want_addresses)
                .filter(|address| ours.addresses.contains(address))
                .copied()
                .collect(),
            add_routes: want_routes.difference(&routes).copied().collect(),
            remove_routes: routes.difference(&want_routes).copied().collect(),
            limits,
            add_rules: want_rules.difference(&rules).copied().collect(),
            remove_rules: rules
                .intersection(&ours.rules)
                .filter(|rule| !want_rules.contains(rule))
                .copied()
                .collect(),
            diverted: spec.default_route.is_some(),
        })
    }

    /// The changes in words.
    pub(crate) fn words(&self) -> Vec<Change> {
        let mut words = Vec::new();
        words.extend(self.mtu.map(|(from, to)| Change::SetMtu { from, to }));
        words.extend(
            self.remove_rules
                .iter()
                .map(|rule| Change::RemoveRule { rule: *rule }),
        );
        words.extend(
            self.remove_addresses
                .iter()
                .map(|a| Change::RemoveAddress { address: *a }),
        );
        words.extend(
            self.add_addresses
                .iter()
                .map(|a| Change::AddAddress { address: *a }),
        );
        words.extend(self.bring_up.then_some(Change::BringUp));
        words.extend(
            self.remove_routes
                .iter()
                .map(|r| match (r.net, r.is_in_main()) {
                    (route, true) => Change::RemoveRoute { route },
                    (route, false) => Change::RemoveTableRoute {
                        route,
                        table: r.table,
                        unreachable: r.unreachable,
                    },
                }),
        );
        words.extend(
            self.add_routes
                .iter()
                .map(|r| match (r.net, r.is_in_main()) {
                    (route, true) => Change::AddRoute { route },
                    (route, false) => Change::AddTableRoute {
                        route,
                        table: r.table,
                        unreachable: r.unreachable,
                    },
                }),
        );
        words.extend(self.limits.words());
        words.extend(
            self.add_rules
                .iter()
                .map(|rule| Change::AddRule { rule: *rule }),
        );
        words
    }

    /// What has to be done before the device gets another mark, which its packets are told by:
    /// without the rules they would go round and round through the tunnel. Where a default route
    /// stays, its table leads nowhere meanwhile instead: nothing leaks.
    pub(crate) fn prepare(&self, link: u32) -> Result<(), WgError> {
        if self.remove_rules.is_empty() {
            return Ok(());
        }
        if self.diverted {
            let diverting: Vec<Route> = self
                .remove_routes
                .iter()
                .filter(|r| !r.is_in_main() && !r.unreachable)
                .copied()
                .collect();
            routing::remove_routes(link, &diverting)?;
        } else {
            routing::remove_rules(&self.remove_rules)?;
        }
        failpoint("apply: rules prepared");
        Ok(())
    }

    /// Makes the changes, the device having its own.
    pub(crate) fn make(&self, link: u32) -> Result<(), WgError> {
        if let Some((_, mtu)) = self.mtu {
            links::set_mtu(link, mtu)?;
            failpoint("apply: the MTU");
        }
        for address in &self.remove_addresses {
            links::remove_address(link, *address)?;
            failpoint("apply: an address removed");
        }
        for address in &self.add_addresses {
            links::add_address(link, *address)?;
            failpoint("apply: an address added");
        }
        // Routes need a link that is up.
        if self.bring_up {
            links::bring_up(link)?;
        }
        if !self.add_routes.is_empty() {
            routing::add_routes(link, &self.add_routes)?;
            failpoint("apply: routes added");
        }
        self.limits.make(link)?;
        if !self.add_rules.is_empty() {
            routing::add_rules(&self.add_rules)?;
            failpoint("apply: rules added");
        }
        if !self.remove_rules.is_empty() {
            routing::remove_rules(&self.remove_rules)?;
            failpoint("apply: rules removed");
        }
        if !self.remove_routes.is_empty() {
            routing::remove_routes(link, &self.remove_routes)?;
            failpoint("apply: routes removed");
        }
        Ok(())
    }
}
