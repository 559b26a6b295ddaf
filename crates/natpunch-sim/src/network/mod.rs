//! The internet of a scenario: a tree of segments joined by gateways, with hosts at the segments.
//!
//! The root segment is the public internet. A packet goes up until some segment knows its
//! destination, then down; each gateway on the way translates and filters. No clock of its own:
//! [`Network::handle_timeout`] moves it.

mod forwarding;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use natpunch_types::{AddressClass, IcmpError, IcmpKind, Route, classify};

use crate::link::{Link, LinkConfig, Way};
use crate::nat::{Nat, NatConfig, Refusal, Unsolicited};
use crate::packet::{Packet, Payload, is_multicast};
use crate::random::Random;
use crate::trace::{Trace, What};

use forwarding::Leg;

/// A place where hosts reach each other directly: a LAN, a carrier's inner network, the internet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SegmentId(pub(crate) usize);

/// A router between two segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct GatewayId(pub(crate) usize);

/// A host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostId(pub(crate) usize);

/// A router to build: what it does with IPv4 and IPv6, and the link to its outer segment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GatewayConfig {
    /// Its NAT for IPv4, and its address outside.
    pub v4: Option<(NatConfig, IpAddr)>,
    /// Its firewall for IPv6; `None` forwards no IPv6. Inside addresses are routed, never
    /// translated.
    pub v6: Option<NatConfig>,
    /// The link to the outer segment.
    pub uplink: LinkConfig,
}

#[derive(Debug)]
struct Segment {
    name: Arc<str>,
    uplink: Option<GatewayId>,
    hosts: BTreeMap<IpAddr, HostId>,
    gateways: BTreeMap<IpAddr, GatewayId>,
}

#[derive(Debug)]
struct Gateway {
    name: Arc<str>,
    inside: SegmentId,
    outside: SegmentId,
    v4: Option<Nat>,
    v6: Option<Nat>,
    link: Link,
}

#[derive(Debug)]
struct Attachment {
    name: Arc<str>,
    segment: SegmentId,
    addresses: Vec<IpAddr>,
    link: Link,
    /// The host's own firewall, which its raw sockets pass, too.
    firewall: Option<Nat>,
}

#[derive(Debug, Clone, Copy)]
enum Place {
    Segment(SegmentId),
    GatewayOutside(GatewayId),
    Host(HostId),
}

#[derive(Debug)]
struct Flight {
    to: Place,
    from: Option<HostId>,
    packet: Packet,
}

/// The network with everything that is in flight.
#[derive(Debug)]
pub struct Network {
    segments: Vec<Segment>,
    gateways: Vec<Gateway>,
    hosts: Vec<Attachment>,
    flights: BTreeMap<(Duration, u64), Flight>,
    flown: u64,
    sent: u64,
    delivered: VecDeque<(HostId, Packet)>,
    /// From which address to which the internet drops everything.
    broken: BTreeSet<(IpAddr, IpAddr)>,
    /// The same for WireGuard's packets only.
    without_wireguard: BTreeSet<(IpAddr, IpAddr)>,
    random: Random,
    /// What happened so far.
    pub trace: Trace,
}

impl Network {
    /// The public internet, empty.
    pub const INTERNET: SegmentId = SegmentId(0);

    /// An internet without hosts.
    pub fn new(seed: u64) -> Self {
        let internet = Segment {
            name: "internet".into(),
            uplink: None,
            hosts: BTreeMap::new(),
            gateways: BTreeMap::new(),
        };
        Self {
            segments: vec![internet],
            gateways: Vec::new(),
            hosts: Vec::new(),
            flights: BTreeMap::new(),
            flown: 0,
            sent: 0,
            delivered: VecDeque::new(),
            broken: BTreeSet::new(),
            without_wireguard: BTreeSet::new(),
            random: Random::new(seed, 1),
            trace: Trace::default(),
        }
    }

    /// Adds a segment inside of `outside`, behind a new gateway.
    pub fn add_gateway(
        &mut self,
        name: &str,
        outside: SegmentId,
        config: GatewayConfig,
    ) -> (SegmentId, GatewayId) {
        let (inside, id) = (
            SegmentId(self.segments.len()),
            GatewayId(self.gateways.len()),
        );
        self.segments.push(Segment {
            name: format!("{name}-lan").into(),
            uplink: Some(id),
            hosts: BTreeMap::new(),
            gateways: BTreeMap::new(),
        });
        let v4 = config
            .v4
            .map(|(nat, address)| Nat::new(nat, address, &mut self.random));
        let addresses = v4.iter().flat_map(Nat::addresses).map(|ip| (ip, id));
        self.segments[outside.0].gateways.extend(addresses);
        let v6 = config
            .v6
            .map(|firewall| Nat::new(firewall, IpAddr::from([0; 16]), &mut self.random));
        let link = Link::new(config.uplink);
        self.gateways.push(Gateway {
            name: name.into(),
            inside,
            outside,
            v4,
            v6,
            link,
        });
        (inside, id)
    }

    /// Adds a host with these addresses to a segment.
    pub fn add_host(
        &mut self,
        name: &str,
        segment: SegmentId,
        addresses: &[IpAddr],
        link: LinkConfig,
    ) -> HostId {
        let id = HostId(self.hosts.len());
        let link = Link::new(link);
        self.hosts.push(Attachment {
            name: name.into(),
            segment,
            addresses: addresses.to_vec(),
            link,
            firewall: None,
        });
        for address in addresses {
            self.segments[segment.0].hosts.insert(*address, id);
        }
        id
    }

    /// Gives a host a firewall of its own, without state.
    pub fn set_host_firewall(&mut self, host: HostId, config: NatConfig) {
        let firewall = Nat::new(config, IpAddr::from([0; 4]), &mut self.random);
        self.hosts[host.0].firewall = Some(firewall);
    }

    /// A host's own firewall.
    pub fn host_firewall(&self, host: HostId) -> Option<&Nat> {
        self.hosts[host.0].firewall.as_ref()
    }

    /// Moves a host to another segment with other addresses. What is in flight to the old ones is
    /// lost.
    pub fn move_host(&mut self, host: HostId, segment: SegmentId, addresses: &[IpAddr]) {
        let attachment = &mut self.hosts[host.0];
        self.segments[attachment.segment.0]
            .hosts
            .retain(|_, id| *id != host);
        attachment.segment = segment;
        attachment.addresses = addresses.to_vec();
        for address in addresses {
            self.segments[segment.0].hosts.insert(*address, host);
        }
    }

    /// Plugs or unplugs a host.
    pub fn set_host_connected(&mut self, host: HostId, connected: bool) {
        self.hosts[host.0].link.connected = connected;
    }

    /// Plugs or unplugs a gateway's uplink.
    pub fn set_uplink_connected(&mut self, gateway: GatewayId, connected: bool) {
        self.gateways[gateway.0].link.connected = connected;
    }

    /// Lets larger packets than this, IP header included, vanish on a gateway's uplink.
    pub fn set_uplink_mtu(&mut self, gateway: GatewayId, mtu: u64) {
        self.gateways[gateway.0].link.mtu = mtu;
    }

    /// Power-cycles a gateway: all state is gone. With an address, its outside address changes,
    /// too.
    pub fn reboot_gateway(&mut self, gateway: GatewayId, new_outside: Option<IpAddr>) {
        let Gateway {
            outside, v4, v6, ..
        } = &mut self.gateways[gateway.0];
        if let Some(nat) = v4 {
            let gateways = &mut self.segments[outside.0].gateways;
            gateways.retain(|_, id| *id != gateway);
            nat.reboot(new_outside.unwrap_or(nat.outside()), &mut self.random);
            gateways.extend(nat.addresses().map(|ip| (ip, gateway)));
        }
        if let Some(firewall) = v6 {
            firewall.reboot(firewall.outside(), &mut self.random);
        }
    }

    /// Addresses of a host.
    pub fn addresses(&self, host: HostId) -> &[IpAddr] {
        &self.hosts[host.0].addresses
    }

    /// The segment of a host.
    pub fn segment_of(&self, host: HostId) -> SegmentId {
        self.hosts[host.0].segment
    }

    /// Which way a host sends to an address.
    pub(crate) fn route(&self, host: HostId, to: IpAddr) -> Route {
        let attachment = &self.hosts[host.0];
        if attachment.addresses.contains(&to) {
            return Route::Unusable;
        }
        let on_link = attachment.segment != Self::INTERNET
            && self.segments[attachment.segment.0].hosts.contains_key(&to);
        if on_link {
            Route::OnLink
        } else {
            Route::Routed
        }
    }

    /// The gateways between a segment and the internet, from inside to outside.
    pub fn gateways_above(&self, segment: SegmentId) -> Vec<GatewayId> {
        let mut path = Vec::new();
        let mut at = segment;
        while let Some(gateway) = self.segments[at.0].uplink {
            path.push(gateway);
            at = self.gateways[gateway.0].outside;
        }
        path
    }

    /// Changes the behaviour of a gateway's IPv4 NAT; what it knows stays.
    pub fn reconfigure(&mut self, gateway: GatewayId, change: impl FnOnce(&mut NatConfig)) {
        if let Some(nat) = &mut self.gateways[gateway.0].v4 {
            nat.reconfigure(change);
        }
    }

    /// The IPv4 NAT of a gateway.
    pub fn nat_v4(&self, gateway: GatewayId) -> Option<&Nat> {
        self.gateways[gateway.0].v4.as_ref()
    }

    /// The IPv6 firewall of a gateway.
    pub fn firewall_v6(&self, gateway: GatewayId) -> Option<&Nat> {
        self.gateways[gateway.0].v6.as_ref()
    }

    /// A host sends. A packet from an address that is not the host's is dropped.
    pub fn send(&mut self, host: HostId, mut packet: Packet, now: Duration) {
        // A relay forwards what others have sent.
        packet.origin.get_or_insert(host);
        self.sent += 1;
        packet.id = self.sent;
        let Attachment {
            name,
            segment,
            addresses,
            link,
            firewall,
        } = &mut self.hosts[host.0];
        let mut note = |what| self.trace.record(now, name, what, Some(&packet));
        note(What::Sent);
        if !addresses.contains(&packet.source.ip()) {
            return note(What::Dropped("not an address of the host"));
        }
        if let Some(firewall) = firewall {
            let passed =
                firewall.outbound(packet.source, packet.destination, now, &mut self.random);
            if passed.is_err() {
                return note(What::Dropped("host firewall"));
            }
        }
        let to = Place::Segment(*segment);
        let times = link.carry(Way::Up, now, &mut self.random);
        let leg = Leg {
            place: name.clone(),
            times,
            config: link.config,
            back: Place::Host(host),
        };
        let flight = Flight {
            to,
            from: Some(host),
            packet,
        };
        self.fly(leg, flight, now);
    }

    /// When the next packet moves.
    pub fn poll_timeout(&self) -> Option<Duration> {
        self.flights.first_key_value().map(|((at, _), _)| *at)
    }

    /// Moves all packets that are due.
    pub fn handle_timeout(&mut self, now: Duration) {
        while let Some(entry) = self.flights.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let ((at, _), flight) = entry.remove_entry();
            match flight.to {
                Place::Segment(segment) => self.at_segment(segment, flight.from, flight.packet, at),
                Place::GatewayOutside(gateway) => {
                    self.at_gateway_outside(gateway, flight.packet, at)
                }
                Place::Host(host) => self.at_host(host, flight.packet, at),
            }
        }
    }

    /// Changes what share of packets a host's link loses.
    pub fn set_host_loss(&mut self, host: HostId, loss: f64) {
        self.hosts[host.0].link.config.loss = loss;
    }

    /// The link of a host.
    pub fn host_link(&self, host: HostId) -> LinkConfig {
        self.hosts[host.0].link.config
    }

    /// Changes the link of a host.
    pub fn set_host_link(&mut self, host: HostId, config: LinkConfig) {
        self.hosts[host.0].link.config = config;
    }

    /// Mends all routes of the internet.
    pub fn mend_routes(&mut self) {
        self.broken.clear();
    }

    /// Breaks the internet's route from one outside address to another, or mends it.
    pub fn set_route(&mut self, from: IpAddr, to: IpAddr, works: bool) {
        if works {
            self.broken.remove(&(from, to));
        } else {
            self.broken.insert((from, to));
        }
    }

    /// Lets the internet drop WireGuard's packets from one outside address to another, and nothing
    /// else.
    pub fn drop_wireguard(&mut self, from: IpAddr, to: IpAddr) {
        self.without_wireguard.insert((from, to));
    }

    /// Lets the internet pass all of WireGuard's packets again.
    pub fn pass_wireguard(&mut self) {
        self.without_wireguard.clear();
    }

    /// Changes the link between a gateway and its outer segment.
    pub fn set_uplink(&mut self, gateway: GatewayId, config: LinkConfig) {
        self.gateways[gateway.0].link.config = config;
    }

    /// The link between a gateway and its outer segment.
    pub fn uplink(&self, gateway: GatewayId) -> LinkConfig {
        self.gateways[gateway.0].link.config
    }

    /// All gateways.
    pub fn gateways(&self) -> impl Iterator<Item = GatewayId> + use<> {
        (0..self.gateways.len()).map(GatewayId)
    }

    /// The next packet that arrived at a host.
    pub fn poll_delivery(&mut self) -> Option<(HostId, Packet)> {
        self.delivered.pop_front()
    }

    /// Writes a line into the trace.
    pub fn note(&mut self, place: &str, text: String, now: Duration) {
        self.trace
            .record(now, &place.into(), What::Note(text), None);
    }

    /// The name of a host.
    pub fn name(&self, host: HostId) -> &Arc<str> {
        &self.hosts[host.0].name
    }

    /// The name of a gateway.
    pub fn gateway_name(&self, gateway: GatewayId) -> &Arc<str> {
        &self.gateways[gateway.0].name
    }

    /// Whether one of these hosts has this address at its own interface.
    pub(crate) fn is_address_of(
        &self,
        address: IpAddr,
        hosts: impl IntoIterator<Item = HostId>,
    ) -> bool {
        hosts
            .into_iter()
            .any(|host| self.hosts[host.0].addresses.contains(&address))
    }
}

#[cfg(test)]
mod tests;
