//! Routes and policy rules by rtnetlink: what is ours, and the single changes.
//!
//! Networks behind peers are routed in the main table, with a metric so high that a route of the
//! host to the same network wins: who sits in the network that a peer offers keeps his own way into
//! it.
//!
//! A default route ([`DefaultRoute`]) has a table of its own and rules that lead there, as wg-quick
//! makes them: everything goes into the tunnel, except what the main table knows more exactly than
//! by its default route (the LAN), and except WireGuard's own packets, which carry its mark. Behind
//! the default route the table has an unreachable one: when the interface goes, nothing leaks.
//!
//! Where a peer's path lets no packet of the interface's MTU pass, each network of the peer has a
//! *limit*: one more route to it, of the next better metric, with an MTU of its own. The other
//! routes stay as they are, and so do all other peers.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use futures_util::TryStreamExt as _;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netlink_packet_route::IpProtocol;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
    RouteScope, RouteType,
};
use netlink_packet_route::rule::{
    RuleAction, RuleAttribute, RuleFlags, RuleMessage, RulePortRange,
};
use rtnetlink::{IpVersion, RouteMessageBuilder};
use serde::{Deserialize, Serialize};

use crate::error::WgError;
use crate::links::{NETWORK_METRIC, errno, with_netlink};
use crate::spec::{DefaultRoute, IPV6_MTU, InterfaceSpec, RouteMtu};

/// The protocol number that marks our routes and rules (`ip route show proto 78`): "N". No other
/// program of iproute2's rt_protos has it.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(0x4e);
/// The main table.
const MAIN: u32 = RouteHeader::RT_TABLE_MAIN as u32;
/// The metric of a default route in its own table, where it is alone with the unreachable one.
const DEFAULT_METRIC: u32 = 1_024;
/// The metrics of limits: next to those of the routes that they stand before.
const LIMIT_METRIC: u32 = NETWORK_METRIC - 1;
const DEFAULT_LIMIT_METRIC: u32 = DEFAULT_METRIC - 1;
/// The metric of the unreachable route behind it.
const UNREACHABLE_METRIC: u32 = u32::MAX;
/// The first priority of our rules: "NP". wg-quick and `ip rule add` take 32765 and less, Tailscale
/// 5210 to 5270.
const FIRST_PRIORITY: u32 = 0x4e50;

/// A route of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Route {
    pub(crate) net: IpNet,
    pub(crate) table: u32,
    metric: u32,
    pub(crate) unreachable: bool,
    /// Of a limit: its MTU.
    pub(crate) mtu: Option<u32>,
}

impl Route {
    fn network(net: IpNet) -> Self {
        Self {
            net,
            table: MAIN,
            metric: NETWORK_METRIC,
            unreachable: false,
            mtu: None,
        }
    }

    /// Whether it only limits the size of packets on a way that is there anyway.
    pub(crate) fn is_limit(&self) -> bool {
        matches!(self.metric, LIMIT_METRIC | DEFAULT_LIMIT_METRIC) && !self.unreachable
    }

    pub(crate) fn is_in_main(&self) -> bool {
        self.table == MAIN
    }
}

/// A policy rule of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Rule {
    /// Where it stands among the rules of its address family.
    pub priority: u32,
    /// Whether it is for IPv6.
    pub ipv6: bool,
    /// Only packets to this network.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub to: Option<IpNet>,
    /// Only UDP packets from this port.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub source_port: Option<u16>,
    /// Only packets without this mark.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub not_mark: Option<u32>,
    /// The table that they go by.
    pub table: u32,
    /// Whether a default route of the table does not count.
    pub suppress_default: bool,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.ipv6 { "IPv6:" } else { "IPv4:" })?;
        if let Some(to) = self.to {
            write!(f, " to {to}")?;
        }
        if let Some(port) = self.source_port {
            write!(f, " from UDP port {port}")?;
        }
        if let Some(mark) = self.not_mark {
            write!(f, " not fwmark {mark:#x}")?;
        }
        match self.table {
            MAIN => f.write_str(" lookup main")?,
            table => write!(f, " lookup {table}")?,
        }
        f.write_str(if self.suppress_default {
            ", without its default route"
        } else {
            ""
        })
    }
}

impl Rule {
    /// Whether it is the one that sends traffic into the tunnel.
    pub(crate) fn diverts(&self) -> bool {
        self.table != MAIN
    }
}

fn any(ipv6: bool) -> IpNet {
    if ipv6 {
        IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0))
    } else {
        IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0))
    }
}

/// Whether this network namespace has IPv6 at all.
fn has_ipv6() -> bool {
    Path::new("/proc/thread-self/net/if_inet6").exists()
}

fn families() -> impl Iterator<Item = bool> {
    [false, true].into_iter().filter(|ipv6| !ipv6 || has_ipv6())
}

/// The routes that an interface shall have.
pub(crate) fn wanted_routes(spec: &InterfaceSpec) -> BTreeSet<Route> {
    let on_link: BTreeSet<IpNet> = spec.addresses.iter().map(IpNet::trunc).collect();
    let networks = spec
        .routes
        .iter()
        .map(IpNet::trunc)
        .filter(|net| !on_link.contains(net));
    let mut routes: BTreeSet<Route> = networks.map(Route::network).collect();
    if let Some(DefaultRoute {
        table, ipv4, ipv6, ..
    }) = &spec.default_route
    {
        for family in families() {
            let net = any(family);
            routes.insert(Route {
                net,
                table: *table,
                metric: UNREACHABLE_METRIC,
                unreachable: true,
                mtu: None,
            });
            if (family && *ipv6) || (!family && *ipv4) {
                routes.insert(Route {
                    net,
                    table: *table,
                    metric: DEFAULT_METRIC,
                    unreachable: false,
                    mtu: None,
                });
            }
        }
    }
    routes
}

/// The limits that an interface shall have, `present` being those that it has.
pub(crate) fn wanted_limits(spec: &InterfaceSpec, present: &BTreeSet<Route>) -> BTreeSet<Route> {
    let mut wanted = BTreeSet::new();
    for peer in &spec.peers {
        for net in peer.allowed_ips.iter().map(IpNet::trunc) {
            match peer.route_mtu {
                RouteMtu::AsIs => wanted.extend(present.iter().filter(|r| r.net == net)),
                RouteMtu::Interface => {}
                RouteMtu::AtMost(mtu) => wanted.extend(limit(spec, net, mtu)),
            }
        }
    }
    wanted
}

/// The limit of one network; `None` if its route is the host's own, or has no larger MTU.
fn limit(spec: &InterfaceSpec, net: IpNet, mtu: u32) -> Option<Route> {
    let ipv6 = net.addr().is_ipv6();
    let mtu = if ipv6 { mtu.max(IPV6_MTU) } else { mtu };
    let (table, metric) = match &spec.default_route {
        Some(default) if net.prefix_len() == 0 => {
            let is_ours = if ipv6 { default.ipv6 } else { default.ipv4 };
            (is_ours.then_some(default.table)?, DEFAULT_LIMIT_METRIC)
        }
        None if net.prefix_len() == 0 => return None,
        _ => (MAIN, LIMIT_METRIC),
    };
    (mtu < spec.mtu).then_some(Route {
        net,
        table,
        metric,
        unreachable: false,
        mtu: Some(mtu),
    })
}

/// The rules that an interface shall have.
pub(crate) fn wanted_rules(spec: &InterfaceSpec) -> BTreeSet<Rule> {
    let Some(default) = &spec.default_route else {
        return BTreeSet::new();
    };
    let mut rules = BTreeSet::new();
    for ipv6 in families() {
        let [outside, own, lan, tunnel] = [0, 1, 2, 3].map(|n| Rule {
            priority: FIRST_PRIORITY + n,
            ipv6,
            to: None,
            source_port: None,
            not_mark: None,
            table: MAIN,
            suppress_default: false,
        });
        let except = default
            .except
            .iter()
            .filter(|net| net.addr().is_ipv6() == ipv6);
        rules.extend(except.map(|net| Rule {
            to: Some(net.trunc()),
            ..outside
        }));
        // What comes in carries no mark. Where the kernel asks for the way back (rp_filter = 1), it
        // asks with the ports exchanged: the way back of WireGuard's packets is the one outside.
        // IPv6 has no such question.
        if !ipv6 {
            rules.insert(Rule {
                source_port: Some(spec.listen_port),
                ..own
            });
        }
        rules.insert(Rule {
            not_mark: Some(spec.fwmark),
            suppress_default: true,
            ..lan
        });
        rules.insert(Rule {
            not_mark: Some(spec.fwmark),
            table: default.table,
            ..tunnel
        });
    }
    rules
}

fn route_message(index: u32, route: &Route) -> RouteMessage {
    let kind = if route.unreachable {
        RouteType::Unreachable
    } else {
        RouteType::Unicast
    };
    let mut message = match route.net {
        IpNet::V4(net) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(net.network(), net.prefix_len())
            .scope(if route.unreachable {
                RouteScope::Universe
            } else {
                RouteScope::Link
            })
            .kind(kind)
            .table_id(route.table)
            .priority(route.metric)
            .protocol(PROTOCOL)
            .build(),
        IpNet::V6(net) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(net.network(), net.prefix_len())
            .kind(kind)
            .table_id(route.table)
            .priority(route.metric)
            .protocol(PROTOCOL)
            .build(),
    };
    if !route.unreachable {
        message.attributes.push(RouteAttribute::Oif(index));
    }
    if let Some(mtu) = route.mtu {
        let metrics = vec![RouteMetric::Mtu(mtu)];
        message.attributes.push(RouteAttribute::Metrics(metrics));
    }
    message
}

/// Our routes: those through a link, and those of `tables` that lead nowhere.
pub(crate) fn routes(
    index: Option<u32>,
    tables: &BTreeSet<u32>,
) -> Result<BTreeSet<Route>, WgError> {
    with_netlink("list routes", async |handle| {
        let mut found = BTreeSet::new();
        for message in [
            RouteMessageBuilder::<Ipv4Addr>::new().build(),
            RouteMessageBuilder::<Ipv6Addr>::new().build(),
        ] {
            let mut dump = std::pin::pin!(handle.route().get(message).execute());
            while let Some(route) = dump.try_next().await? {
                let through = route.attributes.iter().find_map(|a| match a {
                    RouteAttribute::Oif(index) => Some(*index),
                    _ => None,
                });
                let ours = |route: &Route| match route.unreachable {
                    true => tables.contains(&route.table),
                    false => index.is_some() && through == index,
                };
                found.extend(read_route(&route).filter(ours));
            }
        }
        Ok(found)
    })
}

/// Destinations of routes through a link that somebody else made: programs and people, not the
/// kernel.
pub(crate) fn routes_of_others(index: u32) -> Result<BTreeSet<IpNet>, WgError> {
    with_netlink("list routes", async |handle| {
        let mut found = BTreeSet::new();
        for message in [
            RouteMessageBuilder::<Ipv4Addr>::new().build(),
            RouteMessageBuilder::<Ipv6Addr>::new().build(),
        ] {
            let mut dump = std::pin::pin!(handle.route().get(message).execute());
            while let Some(route) = dump.try_next().await? {
                let through = route
                    .attributes
                    .iter()
                    .any(|a| matches!(a, RouteAttribute::Oif(i) if *i == index));
                let theirs = route.header.protocol != PROTOCOL
                    && route.header.protocol != RouteProtocol::Kernel;
                if through && theirs && route.header.kind == RouteType::Unicast {
                    found.extend(destination(&route));
                }
            }
        }
        Ok(found)
    })
}

fn destination(message: &RouteMessage) -> Option<IpNet> {
    let length = message.header.destination_prefix_length;
    let stated = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(ip)) => Some(IpAddr::from(*ip)),
            RouteAttribute::Destination(RouteAddress::Inet6(ip)) => Some(IpAddr::from(*ip)),
            _ => None,
        });
    match stated {
        Some(ip) => IpNet::new(ip, length).ok(),
        None => Some(any(
            message.header.address_family == netlink_packet_route::AddressFamily::Inet6
        )),
    }
}

/// A dump returns the routes of all tables, and the header has room for table numbers up to 255
/// only: the attribute has the real one.
fn read_route(message: &RouteMessage) -> Option<Route> {
    let unreachable = match message.header.kind {
        RouteType::Unicast => false,
        RouteType::Unreachable => true,
        _ => return None,
    };
    if message.header.protocol != PROTOCOL {
        return None;
    }
    let mut route = Route {
        net: destination(message)?,
        table: message.header.table.into(),
        metric: 0,
        unreachable,
        mtu: None,
    };
    let mut mtu = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(table) => route.table = *table,
            RouteAttribute::Priority(metric) => route.metric = *metric,
            RouteAttribute::Metrics(metrics) => {
                mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    // What others do to our other routes' MTU is theirs.
    route.mtu = mtu.filter(|_| route.is_limit());
    Some(route)
}

/// Adds routes. A route of somebody else is never replaced.
pub(crate) fn add_routes(index: u32, routes: &[Route]) -> Result<(), WgError> {
    let mut taken = None;
    with_netlink("add routes", async |handle| {
        for route in routes {
            match handle
                .route()
                .add(route_message(index, route))
                .execute()
                .await
            {
                Err(e) if errno(&e) == Some(libc::EEXIST) => {
                    taken = Some(route.net);
                    break;
                }
                other => other?,
            }
        }
        Ok(())
    })?;
    taken.map_or(Ok(()), |route| Err(WgError::RouteInUse(route)))
}

/// Removes routes of ours; one that is already gone is fine.
pub(crate) fn remove_routes(index: u32, routes: &[Route]) -> Result<(), WgError> {
    with_netlink("remove routes", async |handle| {
        for route in routes {
            match handle
                .route()
                .del(route_message(index, route))
                .execute()
                .await
            {
                Err(e) if errno(&e) == Some(libc::ESRCH) => {}
                other => other?,
            }
        }
        Ok(())
    })
}

fn rule_message(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = if rule.ipv6 {
        netlink_packet_route::AddressFamily::Inet6
    } else {
        netlink_packet_route::AddressFamily::Inet
    };
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Priority(rule.priority),
        RuleAttribute::Protocol(PROTOCOL),
        RuleAttribute::Table(rule.table),
    ];
    if let Some(to) = rule.to {
        message.header.dst_len = to.prefix_len();
        message
            .attributes
            .push(RuleAttribute::Destination(to.network()));
    }
    if let Some(port) = rule.source_port {
        message
            .attributes
            .push(RuleAttribute::IpProtocol(IpProtocol::Udp));
        message
            .attributes
            .push(RuleAttribute::SourcePortRange(RulePortRange {
                start: port,
                end: port,
            }));
    }
    if let Some(mark) = rule.not_mark {
        message.header.flags = RuleFlags::Invert;
        message.attributes.push(RuleAttribute::FwMark(mark));
        message.attributes.push(RuleAttribute::FwMask(u32::MAX));
    }
    if rule.suppress_default {
        message.attributes.push(RuleAttribute::SuppressPrefixLen(0));
    }
    message
}

/// All rules of this host that natpunch made, for whichever interface.
pub(crate) fn rules() -> Result<BTreeSet<Rule>, WgError> {
    with_netlink("list rules", async |handle| {
        let mut found = BTreeSet::new();
        for ipv6 in families() {
            let version = if ipv6 { IpVersion::V6 } else { IpVersion::V4 };
            let mut dump = std::pin::pin!(handle.rule().get(version).execute());
            while let Some(message) = dump.try_next().await? {
                found.extend(read_rule(&message, ipv6));
            }
        }
        Ok(found)
    })
}

/// A rule with our protocol number; with anything in it that we never write it is none of ours.
fn read_rule(message: &RuleMessage, ipv6: bool) -> Option<Rule> {
    let mut rule = Rule {
        priority: 0,
        ipv6,
        to: None,
        source_port: None,
        not_mark: None,
        table: message.header.table.into(),
        suppress_default: false,
    };
    let (mut ours, mut mark) = (false, None);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Protocol(protocol) => ours = *protocol == PROTOCOL,
            RuleAttribute::Priority(priority) => rule.priority = *priority,
            RuleAttribute::Table(table) => rule.table = *table,
            RuleAttribute::Destination(ip) => {
                rule.to = IpNet::new(*ip, message.header.dst_len).ok()
            }
            RuleAttribute::SourcePortRange(range) if range.start == range.end => {
                rule.source_port = Some(range.start)
            }
            RuleAttribute::FwMark(value) => mark = Some(*value),
            RuleAttribute::FwMask(u32::MAX) | RuleAttribute::IpProtocol(IpProtocol::Udp) => {}
            // The kernel writes all ones for "none".
            RuleAttribute::SuppressPrefixLen(length) => match *length {
                0 => rule.suppress_default = true,
                u32::MAX => {}
                _ => return None,
            },
            RuleAttribute::SuppressIfGroup(u32::MAX) => {}
            RuleAttribute::Other(_) => {}
            _ => return None,
        }
    }
    let inverted = message.header.flags.contains(RuleFlags::Invert);
    if !ours || inverted != mark.is_some() || message.header.action != RuleAction::ToTable {
        return None;
    }
    rule.not_mark = mark;
    Some(rule)
}

/// Adds rules; one that is there already is fine.
pub(crate) fn add_rules(rules: &[Rule]) -> Result<(), WgError> {
    with_netlink("add policy rules", async |handle| {
        for rule in rules {
            let mut request = handle.rule().add();
            *request.message_mut() = rule_message(rule);
            match request.execute().await {
                Err(e) if errno(&e) == Some(libc::EEXIST) => {}
                other => other?,
            }
        }
        Ok(())
    })
}

/// Removes rules; one that is already gone is fine.
pub(crate) fn remove_rules(rules: &[Rule]) -> Result<(), WgError> {
    with_netlink("remove policy rules", async |handle| {
        for rule in rules {
            match handle.rule().del(rule_message(rule)).execute().await {
                Err(e) if errno(&e) == Some(libc::ENOENT) => {}
                other => other?,
            }
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule() -> Rule {
        Rule {
            priority: FIRST_PRIORITY,
            ipv6: false,
            to: None,
            source_port: None,
            not_mark: Some(7),
            table: 0x4e50_ca6c,
            suppress_default: false,
        }
    }

    #[test]
    fn a_rule_is_read_as_it_was_written() {
        let main = Rule {
            not_mark: None,
            table: MAIN,
            ..rule()
        };
        for rule in [
            rule(),
            Rule {
                suppress_default: true,
                table: MAIN,
                ..rule()
            },
            Rule {
                to: Some("192.0.2.0/24".parse().unwrap()),
                ..main
            },
            Rule {
                source_port: Some(51820),
                ..main
            },
        ] {
            assert_eq!(read_rule(&rule_message(&rule), false), Some(rule));
        }
    }

    #[test]
    fn a_rule_of_somebody_else_is_none_of_ours() {
        let mut foreign = rule_message(&rule());
        foreign
            .attributes
            .retain(|attribute| !matches!(attribute, RuleAttribute::Protocol(_)));
        assert_eq!(read_rule(&foreign, false), None);
        foreign
            .attributes
            .push(RuleAttribute::Protocol(RouteProtocol::Other(3)));
        assert_eq!(read_rule(&foreign, false), None);
    }

    #[test]
    fn rules_say_in_words_what_they_do() {
        assert_eq!(rule().to_string(), "IPv4: not fwmark 0x7 lookup 1313917548");
        let lan = Rule {
            suppress_default: true,
            table: MAIN,
            ipv6: true,
            ..rule()
        };
        assert_eq!(
            lan.to_string(),
            "IPv6: not fwmark 0x7 lookup main, without its default route"
        );
    }
}
