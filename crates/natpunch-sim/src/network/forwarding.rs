//! What becomes of a packet at each place that it comes to, and of the ICMP errors about it.

use super::*;

/// One link that a packet enters.
#[derive(Debug)]
pub(super) struct Leg {
    /// Where it enters.
    pub(super) place: Arc<str>,
    /// When it leaves at the other end.
    pub(super) times: Vec<Duration>,
    pub(super) config: LinkConfig,
    /// Where an error about it goes.
    pub(super) back: Place,
}

/// So much of a datagram's payload is quoted: an error has at most 576 bytes (RFC 1812, 4.3.2.3).
const QUOTED: usize = 576 - 2 * 28;
/// The routers of links, by their address.
const ROUTER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

impl Network {
    pub(super) fn at_host(&mut self, host: HostId, packet: Packet, now: Duration) {
        let attachment = &mut self.hosts[host.0];
        let at_home = is_multicast(packet.destination.ip())
            || attachment.addresses.contains(&packet.destination.ip());
        let passed = attachment.firewall.as_mut().is_none_or(|firewall| {
            let (source, destination) = (packet.source, packet.destination);
            let passed = match &packet.payload {
                Payload::Icmp(error) => firewall.inbound_error(destination, error.destination, now),
                _ => firewall.inbound(source, destination, now),
            };
            passed.is_ok()
        });
        let what = match (at_home, passed) {
            (true, true) => What::Delivered,
            (true, false) => What::Dropped("host firewall"),
            (false, _) => What::Dropped("the host has moved"),
        };
        let is_delivered = what == What::Delivered;
        self.trace
            .record(now, &attachment.name, what, Some(&packet));
        if is_delivered {
            self.delivered.push_back((host, packet));
        }
    }

    pub(super) fn at_segment(
        &mut self,
        id: SegmentId,
        from: Option<HostId>,
        packet: Packet,
        now: Duration,
    ) {
        let segment = &self.segments[id.0];
        let destination = packet.destination.ip();
        if id == Self::INTERNET && self.broken.contains(&(packet.source.ip(), destination)) {
            self.trace
                .record(now, &segment.name, What::Dropped("no route"), Some(&packet));
            return;
        }
        let is_wireguard = matches!(packet.payload, Payload::WireGuard(_));
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
        let mut note = |what, packet: &Packet| self.trace.record(now, name, what, Some(packet));
        let Some(nat) = nat else {
            return note(What::Dropped("address family not forwarded"), &packet);
        };
        let inside = *inside;
        if !packet.cross(1) {
            // Connection tracking comes before that.
            nat.refresh(packet.source, packet.destination, now, &mut self.random);
            note(What::Dropped("TTL expired"), &packet);
            let back = Place::Segment(inside);
            return self.answer_by_error(IcmpKind::TimeExceeded, id, &packet, back, now);
        }
        if let Payload::Icmp(error) = &mut packet.payload {
            let about = nat.outbound_error(error.destination, packet.destination, now);
            let Ok(about) = about else {
                return note(What::Dropped("an error about no session"), &packet);
            };
            error.destination = about;
            if nat.config().translates {
                packet.source.set_ip(about.ip());
            }
            note(What::SentAs(packet.source), &packet);
            return self.over_uplink(id, Way::Up, packet, now);
        }
        let (source, destination) = (packet.source, packet.destination);
        let is_hairpin =
            nat.config().translates && nat.addresses().any(|ip| ip == destination.ip());
        let result = if is_hairpin {
            let turned = nat.hairpin(source, destination, now, &mut self.random);
            turned.map(|(source, receiver)| (source, Some(receiver)))
        } else {
            let sent_as = nat.outbound(source, destination, now, &mut self.random);
            sent_as.map(|source| (source, None))
        };
        match result {
            Err(refusal) => note(What::Dropped(refusal_text(refusal)), &packet),
            Ok((source, turned_to)) => {
                note(What::SentAs(source), &packet);
                packet.source = source;
                match turned_to {
                    Some(receiver) => {
                        packet.destination = receiver;
                        self.at_segment(inside, None, packet, now);
                    }
                    None => self.over_uplink(id, Way::Up, packet, now),
                }
            }
        }
    }

    pub(super) fn at_gateway_outside(&mut self, id: GatewayId, mut packet: Packet, now: Duration) {
        let Gateway {
            name,
            inside,
            outside,
            v4,
            v6,
            ..
        } = &mut self.gateways[id.0];
        let nat = if packet.destination.is_ipv4() { v4 } else { v6 };
        let mut note = |what, packet: &Packet| self.trace.record(now, name, what, Some(packet));
        let Some(nat) = nat else {
            return note(What::Dropped("address family not forwarded"), &packet);
        };
        let (inside, outside) = (*inside, Place::Segment(*outside));
        let result = match &packet.payload {
            Payload::Icmp(error) => nat.inbound_error(packet.destination, error.destination, now),
            _ => nat.inbound(packet.source, packet.destination, now),
        };
        match (result, nat.config().unsolicited) {
            (Err(why @ (Refusal::NoMapping | Refusal::Filtered)), Unsolicited::Reject(kind)) => {
                note(What::Dropped(refusal_text(why)), &packet);
                self.answer_by_error(kind, id, &packet, outside, now);
            }
            (Err(why), _) => note(What::Dropped(refusal_text(why)), &packet),
            (Ok(_), _) if !packet.cross(1) => {
                note(What::Dropped("TTL expired"), &packet);
                self.answer_by_error(IcmpKind::TimeExceeded, id, &packet, outside, now);
            }
            (Ok(destination), _) => {
                note(What::ForwardedTo(destination), &packet);
                packet.destination = destination;
                self.at_segment(inside, None, packet, now);
            }
        }
    }

    fn over_access(&mut self, host: HostId, packet: Packet, now: Duration) {
        let Attachment {
            name,
            segment,
            link,
            ..
        } = &mut self.hosts[host.0];
        let leg = Leg {
            place: name.clone(),
            times: match packet.payload {
                Payload::Icmp(_) => link.carry_error(now),
                _ => link.carry(Way::Down, now, &mut self.random),
            },
            config: link.config,
            back: Place::Segment(*segment),
        };
        let flight = Flight {
            to: Place::Host(host),
            from: None,
            packet,
        };
        self.fly(leg, flight, now);
    }

    fn over_uplink(&mut self, id: GatewayId, way: Way, packet: Packet, now: Duration) {
        let Gateway {
            name,
            outside,
            link,
            ..
        } = &mut self.gateways[id.0];
        let (outer, inner) = (Place::Segment(*outside), Place::GatewayOutside(id));
        let (to, back) = match way {
            Way::Up => (outer, inner),
            Way::Down => (inner, outer),
        };
        let leg = Leg {
            place: name.clone(),
            times: match packet.payload {
                Payload::Icmp(_) => link.carry_error(now),
                _ if packet.size() > link.mtu => Vec::new(),
                _ => link.carry(way, now, &mut self.random),
            },
            config: link.config,
            back,
        };
        let flight = Flight {
            to,
            from: None,
            packet,
        };
        self.fly(leg, flight, now);
    }

    pub(super) fn fly(&mut self, leg: Leg, mut flight: Flight, now: Duration) {
        let alive = flight.packet.cross(leg.config.hops);
        let mut note = |why| {
            let packet = Some(&flight.packet);
            self.trace.record(now, &leg.place, What::Lost(why), packet);
        };
        if !alive {
            note("TTL expired");
            let kind = IcmpKind::TimeExceeded;
            if let Some(packet) = self.error(kind, ROUTER, &flight.packet) {
                let at = now + leg.config.delay;
                self.start_flight(at, leg.back, None, packet);
            }
            return;
        }
        if leg.times.is_empty() {
            note("lost");
        }
        for at in leg.times {
            self.start_flight(at, flight.to, flight.from, flight.packet.clone());
        }
    }

    fn start_flight(&mut self, at: Duration, to: Place, from: Option<HostId>, packet: Packet) {
        self.flown += 1;
        self.flights
            .insert((at, self.flown), Flight { to, from, packet });
    }

    /// A gateway tells the sender of a packet what happened to it.
    fn answer_by_error(
        &mut self,
        kind: IcmpKind,
        by: GatewayId,
        packet: &Packet,
        back: Place,
        now: Duration,
    ) {
        let gateway = &self.gateways[by.0];
        let address = gateway.v4.as_ref().map_or(ROUTER, Nat::outside);
        let name = gateway.name.clone();
        if let Some(packet) = self.error(kind, address, packet) {
            self.trace.record(now, &name, What::Sent, Some(&packet));
            self.start_flight(now, back, None, packet);
        }
    }

    /// The ICMP error about a packet; none about an error or a broadcast (RFC 1122, 3.2.2).
    fn error(&mut self, kind: IcmpKind, by: IpAddr, packet: &Packet) -> Option<Packet> {
        let is_answered = !matches!(packet.payload, Payload::Icmp(_))
            && !is_multicast(packet.destination.ip())
            && packet.source.is_ipv4();
        self.sent += u64::from(is_answered);
        let id = self.sent;
        is_answered.then(|| {
            let mut payload = packet.payload.to_bytes().into_owned();
            payload.truncate(QUOTED);
            let error = IcmpError {
                kind,
                from: by,
                source_port: packet.source.port(),
                destination: packet.destination,
                payload,
            };
            let by = SocketAddr::new(by, 0);
            Packet {
                id,
                ..Packet::new(by, packet.source, Payload::Icmp(error.into()))
            }
        })
    }
}

fn refusal_text(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::NoMapping => "no mapping",
        Refusal::Filtered => "filtered",
        Refusal::TableFull => "table full",
        Refusal::NoHairpin => "no hairpin",
        Refusal::Blacklisted => "blacklisted",
    }
}
