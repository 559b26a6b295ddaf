//! The internet of a scenario: a tree of segments joined by gateways, with hosts at the segments.
//!
//! The root segment is the public internet. A packet goes up until some segment knows its
//! destination, then down; each gateway on the way translates and filters. No clock of its own:
//! [`Network::handle_timeout`] moves it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use natpunch_types::{AddressClass, Route, classify};

use crate::link::{Link, LinkConfig, Way};
use crate::nat::{Nat, NatConfig, Refusal, Timers};
use crate::packet::{Packet, is_multicast};
use crate::random::Random;
use crate::trace::{Trace, What};

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
    name: String,
    uplink: Option<GatewayId>,
    hosts: BTreeMap<IpAddr, HostId>,
    gateways: BTreeMap<IpAddr, GatewayId>,
}

#[derive(Debug)]
struct Gateway {
    name: String,
    inside: SegmentId,
    outside: SegmentId,
    v4: Option<Nat>,
    v6: Option<Nat>,
    link: Link,
}

#[derive(Debug)]
struct Attachment {
    name: String,
    segment: SegmentId,
    addresses: Vec<IpAddr>,
    link: Link,
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
            name: "internet".to_owned(),
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
            name: format!("{name}-lan"),
            uplink: Some(id),
            hosts: BTreeMap::new(),
            gateways: BTreeMap::new(),
        });
        let v4 = config
            .v4
            .map(|(nat, address)| Nat::new(nat, address, &mut self.random));
        if let Some(nat) = &v4 {
            self.segments[outside.0].gateways.insert(nat.outside(), id);
        }
        let v6 = config
            .v6
            .map(|firewall| Nat::new(firewall, IpAddr::from([0; 16]), &mut self.random));
        let link = Link::new(config.uplink);
        self.gateways.push(Gateway {
            name: name.to_owned(),
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
            name: name.to_owned(),
            segment,
            addresses: addresses.to_vec(),
            link,
        });
        for address in addresses {
            self.segments[segment.0].hosts.insert(*address, id);
        }
        id
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
            gateways.remove(&nat.outside());
            nat.reboot(new_outside.unwrap_or(nat.outside()), &mut self.random);
            gateways.insert(nat.outside(), gateway);
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

    /// Changes the timers of a gateway's IPv4 NAT.
    pub(crate) fn set_timers(&mut self, gateway: GatewayId, timers: Timers) {
        if let Some(nat) = &mut self.gateways[gateway.0].v4 {
            nat.set_timers(timers);
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
        let Attachment {
            name,
            segment,
            addresses,
            link,
        } = &mut self.hosts[host.0];
        self.trace.record(now, name, What::Sent, Some(&packet));
        if !addresses.contains(&packet.source.ip()) {
            self.trace.record(
                now,
                name,
                What::Dropped("not an address of the host"),
                Some(&packet),
            );
            return;
        }
        let to = Place::Segment(*segment);
        let (times, hops) = (link.carry(Way::Up, now, &mut self.random), link.config.hops);
        let place = name.clone();
        self.fly(
            times,
            hops,
            Flight {
                to,
                from: Some(host),
                packet,
            },
            &place,
            now,
        );
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

    /// The next packet that arrived at a host.
    pub fn poll_delivery(&mut self) -> Option<(HostId, Packet)> {
        self.delivered.pop_front()
    }

    fn at_host(&mut self, host: HostId, packet: Packet, now: Duration) {
        let attachment = &self.hosts[host.0];
        let at_home = is_multicast(packet.destination.ip())
            || attachment.addresses.contains(&packet.destination.ip());
        let what = if at_home {
            What::Delivered
        } else {
            What::Dropped("the host has moved")
        };
        self.trace
            .record(now, &attachment.name, what, Some(&packet));
        if at_home {
            self.delivered.push_back((host, packet));
        }
    }

    fn at_segment(&mut self, id: SegmentId, from: Option<HostId>, packet: Packet, now: Duration) {
        let segment = &self.segments[id.0];
        let destination = packet.destination.ip();
        if id == Self::INTERNET && self.broken.contains(&(packet.source.ip(), destination)) {
            self.trace
                .record(now, &segment.name, What::Dropped("no route"), Some(&packet));
            return;
        }
        let is_wireguard = matches!(packet.payload, crate::packet::Payload::WireGuard(_));
        let way = (packet.source.ip(), destination);
        if id == Self::INTERNET && is_wireguard && self.without_wireguard.contains(&way) {
            let why = What::Dropped("WireGuard is not let through");
            self.trace.record(now, &segment.name, why, Some(&packet));
            return;
        }
        if is_multicast(destination) {
            let family = destination.is_ipv4();
            let hosts = segment
                .hosts
                .iter()
                .filter(|(address, _)| address.is_ipv4() == family);
            // A link-layer broadcast exists on a LAN; the internet has none.
            let mut receivers: Vec<_> = hosts
                .map(|(_, host)| *host)
                .filter(|host| Some(*host) != from)
                .collect();
            receivers.dedup();
            if id != Self::INTERNET {
                for host in receivers {
                    self.over_access(host, packet.clone(), now);
                }
            }
        } else if let Some(host) = segment.hosts.get(&destination) {
            self.over_access(*host, packet, now);
        } else if let Some(gateway) = segment
            .gateways
            .get(&destination)
            .copied()
            .or(self.route_down(id, destination))
        {
            self.over_uplink(gateway, Way::Down, packet, now);
        } else if let Some(gateway) = segment.uplink {
            self.at_gateway_inside(gateway, packet, now);
        } else {
            let why = match classify(destination) {
                AddressClass::Global => "no such host",
                _ => "a private address on the internet",
            };
            self.trace
                .record(now, &segment.name, What::Dropped(why), Some(&packet));
        }
    }

    /// The gateway of this segment behind which an IPv6 host is.
    fn route_down(&self, segment: SegmentId, destination: IpAddr) -> Option<GatewayId> {
        if destination.is_ipv4() {
            return None;
        }
        let host = self
            .hosts
            .iter()
            .find(|host| host.addresses.contains(&destination))?;
        let above = self.gateways_above(host.segment);
        above
            .into_iter()
            .find(|gateway| self.gateways[gateway.0].outside == segment)
    }

    fn at_gateway_inside(&mut self, id: GatewayId, mut packet: Packet, now: Duration) {
        let Gateway {
            name,
            inside,
            v4,
            v6,
            ..
        } = &mut self.gateways[id.0];
        let nat = if packet.destination.is_ipv4() { v4 } else { v6 };
        let Some(nat) = nat else {
            self.trace.record(
                now,
                name,
                What::Dropped("address family not forwarded"),
                Some(&packet),
            );
            return;
        };
        if !packet.cross(1) {
            // Connection tracking comes before that.
            nat.refresh(packet.source, packet.destination, now, &mut self.random);
            self.trace
                .record(now, name, What::Dropped("TTL expired"), Some(&packet));
            return;
        }
        let hairpin = nat.config().translates && packet.destination.ip() == nat.outside();
        let result = if hairpin {
            let turned = nat.hairpin(packet.source, packet.destination, now, &mut self.random);
            turned.map(|(source, destination)| (source, Some(destination)))
        } else {
            nat.outbound(packet.source, packet.destination, now, &mut self.random)
                .map(|source| (source, None))
        };
        match result {
            Err(refusal) => self.trace.record(
                now,
                name,
                What::Dropped(refusal_text(refusal)),
                Some(&packet),
            ),
            Ok((source, turned_to)) => {
                self.trace
                    .record(now, name, What::Translated(source), Some(&packet));
                packet.source = source;
                match turned_to {
                    Some(destination) => {
                        packet.destination = destination;
                        let inside = *inside;
                        self.at_segment(inside, None, packet, now);
                    }
                    None => self.over_uplink(id, Way::Up, packet, now),
                }
            }
        }
    }

    fn at_gateway_outside(&mut self, id: GatewayId, mut packet: Packet, now: Duration) {
        let Gateway {
            name,
            inside,
            v4,
            v6,
            ..
        } = &mut self.gateways[id.0];
        let nat = if packet.destination.is_ipv4() { v4 } else { v6 };
        let Some(nat) = nat else {
            self.trace.record(
                now,
                name,
                What::Dropped("address family not forwarded"),
                Some(&packet),
            );
            return;
        };
        match nat.inbound(packet.source, packet.destination, now) {
            Err(refusal) => self.trace.record(
                now,
                name,
                What::Dropped(refusal_text(refusal)),
                Some(&packet),
            ),
            Ok(_) if !packet.cross(1) => {
                self.trace
                    .record(now, name, What::Dropped("TTL expired"), Some(&packet));
            }
            Ok(destination) => {
                self.trace
                    .record(now, name, What::Translated(destination), Some(&packet));
                packet.destination = destination;
                let inside = *inside;
                self.at_segment(inside, None, packet, now);
            }
        }
    }

    fn over_access(&mut self, host: HostId, packet: Packet, now: Duration) {
        let Attachment { name, link, .. } = &mut self.hosts[host.0];
        let (times, hops) = (
            link.carry(Way::Down, now, &mut self.random),
            link.config.hops,
        );
        let place = name.clone();
        self.fly(
            times,
            hops,
            Flight {
                to: Place::Host(host),
                from: None,
                packet,
            },
            &place,
            now,
        );
    }

    fn over_uplink(&mut self, id: GatewayId, way: Way, packet: Packet, now: Duration) {
        let Gateway {
            name,
            outside,
            link,
            ..
        } = &mut self.gateways[id.0];
        let to = match way {
            Way::Up => Place::Segment(*outside),
            Way::Down => Place::GatewayOutside(id),
        };
        let times = match packet.size() > link.mtu {
            true => Vec::new(),
            false => link.carry(way, now, &mut self.random),
        };
        let hops = link.config.hops;
        let place = name.clone();
        self.fly(
            times,
            hops,
            Flight {
                to,
                from: None,
                packet,
            },
            &place,
            now,
        );
    }

    fn fly(
        &mut self,
        times: Vec<Duration>,
        hops: u8,
        mut flight: Flight,
        place: &str,
        now: Duration,
    ) {
        if !flight.packet.cross(hops) {
            self.trace.record(
                now,
                place,
                What::Dropped("TTL expired"),
                Some(&flight.packet),
            );
            return;
        }
        if times.is_empty() {
            self.trace
                .record(now, place, What::Dropped("lost"), Some(&flight.packet));
        }
        for at in times {
            self.flown += 1;
            let copy = Flight {
                to: flight.to,
                from: flight.from,
                packet: flight.packet.clone(),
            };
            self.flights.insert((at, self.flown), copy);
        }
    }

    /// Writes a line into the trace.
    pub fn note(&mut self, place: &str, text: String, now: Duration) {
        self.trace.record(now, place, What::Note(text), None);
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

fn refusal_text(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::NoMapping => "no mapping",
        Refusal::Filtered => "filtered",
        Refusal::TableFull => "table full",
        Refusal::NoHairpin => "no hairpin",
    }
}

#[cfg(test)]
#[path = "network_tests.rs"]
mod tests;
