//! The course of a world: what happens next, and what devices and cores want done.

use super::*;

/// Most probes of one host in one second.
const PROBES_PER_SECOND: u64 = 250;
/// Most flows (source port and destination) of one host in ten minutes: the punch budget's 2,048,
/// and what ordinary probing needs, with answers to all that the other side opens.
const FLOWS_PER_TEN_MINUTES: usize = 2_048 + 512;
/// Steps without any progress of time: a busy loop is a failure, not a hang.
const MOST_STEPS_AT_ONCE: u64 = 10_000;

impl World {
    pub(super) fn run_while(&mut self, end: Duration, mut go_on: impl FnMut(&Self) -> bool) {
        self.drain();
        loop {
            let nodes = self.nodes.values().filter_map(Node::poll_timeout);
            let servers = self.servers.values().filter_map(Server::poll_timeout);
            let others = [self.network.poll_timeout(), self.records.poll_timeout()];
            let next = nodes
                .chain(servers)
                .chain(others.into_iter().flatten())
                .min();
            let Some(next) = next.filter(|next| *next <= end) else {
                break;
            };
            self.steps_at_once = if next > self.now {
                0
            } else {
                self.steps_at_once + 1
            };
            assert!(
                self.steps_at_once < MOST_STEPS_AT_ONCE,
                "a busy loop:\n{}",
                self.report()
            );
            self.now = self.now.max(next);
            self.step();
            if !go_on(self) {
                return;
            }
        }
        self.now = self.now.max(end);
    }

    fn step(&mut self) {
        let now = self.now;
        self.network.handle_timeout(now);
        while let Some((host, packet)) = self.network.poll_delivery() {
            self.deliver(host, packet);
            self.drain();
        }
        for (host, record) in self.records.handle_timeout(now) {
            if let Some(node) = self.nodes.get_mut(&host) {
                let time = node.clock(now);
                if let Some(agent) = &mut node.agent {
                    let records = InstanceName::new(node::RECORDS);
                    agent.mesh.handle_news(&records, News::Record(record), time);
                }
            }
        }
        for (host, server) in &mut self.servers {
            if server.poll_timeout().is_some_and(|at| at <= now) {
                let packets = server.handle_timeout(now);
                packets
                    .into_iter()
                    .for_each(|packet| self.network.send(*host, packet, now));
            }
        }
        let hosts: Vec<_> = self.nodes.keys().copied().collect();
        for host in hosts {
            self.wake_or_start(host);
            let Some(node) = self.nodes.get_mut(&host) else {
                continue;
            };
            if !node.awake() || node.poll_timeout().is_none_or(|at| at > now) {
                continue;
            }
            let requests = node.handle_timeout(now);
            self.send_requests(host, requests);
        }
        self.drain();
    }

    fn wake_or_start(&mut self, host: HostId) {
        let now = self.now;
        let addresses = self.network.addresses(host).to_vec();
        let Some(node) = self.nodes.get_mut(&host) else {
            return;
        };
        if node.asleep_until.take_if(|until| *until <= now).is_some() {
            self.network.set_host_connected(host, true);
            let time = node.clock(now);
            if let Some(agent) = &mut node.agent {
                agent.mesh.handle_network_change(time);
                agent.register_anew(now);
            }
        }
        if node.awake() && node.start_at.is_some_and(|at| at <= now) {
            node.start_agent(&addresses, now);
        }
    }

    fn deliver(&mut self, host: HostId, packet: Packet) {
        let now = self.now;
        if let Some(error) = packet.icmp_error() {
            if self.nodes.get(&host).is_some_and(Node::awake) {
                self.tell_icmp(host, &error);
            }
            return;
        }
        if let Some(server) = self.servers.get_mut(&host) {
            let addresses = self.network.addresses(host);
            let packets = server.handle(&packet, addresses, now);
            packets
                .into_iter()
                .for_each(|packet| self.network.send(host, packet, now));
            return;
        }
        if let Some(server) = self
            .model_servers
            .get_mut(&host)
            .filter(|server| !server.down)
        {
            let answer = match &packet.payload {
                Payload::Raw(bytes) => stun::respond(bytes, packet.source).map(Payload::Raw),
                Payload::Rendezvous(message) => server
                    .rendezvous
                    .handle(packet.source, *message, now)
                    .map(Payload::Rendezvous),
                Payload::WireGuard(_) | Payload::Icmp(_) => None,
            };
            if let Some(payload) = answer {
                self.network.send(
                    host,
                    Packet::new(packet.destination, packet.source, payload),
                    now,
                );
            }
            return;
        }
        let sender = packet
            .origin
            .and_then(|origin| self.nodes.get(&origin))
            .map(|node| node.key);
        let Some(node) = self.nodes.get_mut(&host) else {
            *self.received_by_bystanders.entry(host).or_default() += 1;
            self.check_third_party(host, &packet);
            return;
        };
        let port = packet.destination.port();
        let is_wireguards =
            port == node.device.listen_port() || port == node.port_towards(packet.source);
        if !node.awake() || !is_wireguards && !node.source_ports.contains(&port) {
            return;
        }
        let path = match is_wireguards {
            true => PathId::wireguard(packet.source),
            false => path_from(port, packet.source),
        };
        match packet.payload {
            Payload::WireGuard(_) if !is_wireguards => {}
            Payload::WireGuard(_) if node.device_back_at.is_some() || node.wireguard_blocked => {}
            Payload::WireGuard(message) => node.device.handle_message(packet.source, message, now),
            Payload::Raw(bytes) => {
                let time = node.clock(now);
                if let Some(sender) = sender {
                    node.heard.insert((sender, packet.source), now);
                }
                if let Some(agent) = &mut node.agent {
                    let destination = Some(packet.destination.ip()).filter(|ip| !is_multicast(*ip));
                    agent.clients.handle_datagram(packet.source, &bytes, now);
                    agent.mesh.handle_datagram(path, destination, &bytes, time);
                }
            }
            Payload::Rendezvous(message) => node.handle_answer(message, now),
            Payload::Icmp(_) => {}
        }
    }

    /// Executes all that devices and cores want, until nothing is left.
    pub(super) fn drain(&mut self) {
        let hosts: Vec<_> = self.nodes.keys().copied().collect();
        for host in hosts {
            loop {
                let mut idle = true;
                while let Some(command) = self.nodes.get_mut(&host).and_then(Node::poll_command) {
                    idle = false;
                    self.execute(host, command);
                }
                let now = self.now;
                for (to, payload) in self.node_mut(host).drive_clients(now) {
                    idle = false;
                    self.send_from(host, None, to, DEFAULT_TTL, Payload::Raw(payload));
                }
                idle &= !self.node_mut(host).drive_gossip(now);
                while let Some(transmit) = self
                    .node_mut(host)
                    .agent
                    .as_mut()
                    .and_then(|agent| agent.mesh.poll_transmit())
                {
                    idle = false;
                    self.send_probe(host, transmit);
                }
                while let Some(out) = self.node_mut(host).device.poll_transmit() {
                    idle = false;
                    let now = self.now;
                    if is_resting(out.to) {
                        self.node_mut(host).handle_rested(out, now);
                        continue;
                    }
                    self.node_mut(host).hear_response(out, now);
                    self.send_from(
                        host,
                        None,
                        out.to,
                        DEFAULT_TTL,
                        Payload::WireGuard(out.message),
                    );
                }
                let now = self.now;
                let node = self.node_mut(host);
                while let Some(event) = node
                    .agent
                    .as_mut()
                    .and_then(|agent| agent.mesh.poll_event())
                {
                    node.events.push((now, event));
                }
                if idle {
                    break;
                }
            }
        }
    }

    fn execute(&mut self, host: HostId, command: Command) {
        let now = self.now;
        match command {
            Command::FindRoute { peer, destination } => {
                let route = self.network.route(host, destination);
                let node = self.node_mut(host);
                let time = node.clock(now);
                if let Some(agent) = &mut node.agent {
                    agent.mesh.handle_route(peer, destination, route, time);
                }
            }
            Command::SourcePorts(ports) => {
                self.node_mut(host).source_ports = ports.iter().map(|port| port.get()).collect();
            }
            Command::Ask(ask) => {
                let node = self.node_mut(host);
                let has_store = node.discovery.records;
                if let Some(agent) = &mut node.agent {
                    agent.clients.ask(&ask, now);
                    if let Some(gossip) = &mut agent.gossip {
                        gossip.ask(&ask, now);
                    }
                    if let (Ask::Peers(peers), Some(client)) = (&ask, &mut agent.client) {
                        client.set_interest(peers, now);
                    }
                }
                match ask {
                    Ask::Peers(peers) if has_store => self.records.watch(host, &peers, now),
                    Ask::Records(records) if has_store => {
                        self.records.publish(host, records, now);
                    }
                    _ => {}
                }
            }
            Command::TakeMessage { peer, payload } => {
                let agent = self.node_mut(host).agent.as_mut();
                if let Some(gossip) = agent.and_then(|agent| agent.gossip.as_mut()) {
                    gossip.handle_message(peer, &payload, now);
                }
            }
            Command::Rest { peer } => {
                self.node_mut(host).device.rest(peer);
            }
            Command::TellReturn => {
                if let Some(agent) = &mut self.node_mut(host).agent {
                    agent.register_anew(now);
                }
            }
            Command::HearResponses(hears) => self.node_mut(host).hears_responses = hears,
            Command::SetKeepalive { peer, interval } => {
                let node = self.node_mut(host);
                if node.device.has_peer(&peer) {
                    let interval = (!interval.is_zero()).then_some(interval);
                    node.device.set_peer(peer, interval, now);
                }
            }
            Command::SetMtu { peer, mtu } => {
                self.node_mut(host).mtus.insert(peer, mtu);
            }
            Command::SetEndpoint {
                peer,
                path,
                kick,
                reason,
            } => {
                let endpoint = path.endpoint();
                self.check_endpoint(host, peer, endpoint, reason);
                let place = self.network.name(host).clone();
                self.network.note(
                    &place,
                    format!("endpoint of {} is {endpoint}: {reason}", peer.short()),
                    now,
                );
                let node = self.node_mut(host);
                let done = node.device_back_at.is_none()
                    && node.pin(peer, path)
                    && node.device.set_endpoint(peer, endpoint, kick, now);
                let time = node.clock(now);
                if let Some(agent) = &mut node.agent {
                    agent.watch_device(now);
                    agent.mesh.handle_endpoint_set(peer, path, done, time);
                    agent.mesh.handle_device(&node.device.snapshot(), time);
                }
            }
        }
    }

    fn send_requests(&mut self, host: HostId, requests: Vec<(SocketAddr, rendezvous::Message)>) {
        for (to, message) in requests {
            self.send_from(host, None, to, DEFAULT_TTL, Payload::Rendezvous(message));
        }
    }

    fn send_probe(&mut self, host: HostId, transmit: Transmit) {
        let now = self.now;
        let node = self.node_mut(host);
        if let Some(message) = node.wireguards(&transmit.payload) {
            let to = transmit.path.remote;
            self.send_from(host, None, to, DEFAULT_TTL, Payload::WireGuard(message));
            return;
        }
        node.count_probe(transmit.path.remote, now);
        node.asked.insert(transmit.path.remote, now);
        let port = match transmit.path.pin() {
            Some(port) => port.get(),
            None => node.port_towards(transmit.path.remote),
        };
        let flows = node.count_flow(port, transmit.path.remote, now);
        let busiest = node.busiest_second;
        if busiest > PROBES_PER_SECOND {
            let text = format!(
                "host {}: more than {PROBES_PER_SECOND} probes a second",
                host.0
            );
            self.violate(text);
        }
        if flows > FLOWS_PER_TEN_MINUTES {
            let most = FLOWS_PER_TEN_MINUTES;
            self.violate(format!(
                "host {}: more than {most} flows in ten minutes",
                host.0
            ));
        }
        let ttl = transmit.travel.ttl().unwrap_or(DEFAULT_TTL);
        self.check_destination(host, transmit.path.remote);
        self.send_from_port(
            host,
            (transmit.source, port),
            transmit.path.remote,
            ttl,
            Payload::Raw(transmit.payload),
        );
    }

    /// Sends from WireGuard's port, or the one that is pinned to it on this way; the source address
    /// is that of the route unless given.
    fn send_from(
        &mut self,
        host: HostId,
        source: Option<IpAddr>,
        to: SocketAddr,
        ttl: u8,
        payload: Payload,
    ) {
        let port = self.nodes[&host].port_towards(to);
        self.send_from_port(host, (source, port), to, ttl, payload);
    }

    fn send_from_port(
        &mut self,
        host: HostId,
        (source, port): (Option<IpAddr>, u16),
        to: SocketAddr,
        ttl: u8,
        payload: Payload,
    ) {
        let routed = || {
            self.network
                .addresses(host)
                .iter()
                .find(|ip| ip.is_ipv4() == to.is_ipv4())
                .copied()
        };
        let Some(source) = source.or_else(routed) else {
            return;
        };
        let sent = &mut self.node_mut(host).sent;
        *sent.entry((payload.purpose(), to)).or_default() += 1;
        let packet = Packet {
            ttl,
            ..Packet::new(SocketAddr::new(source, port), to, payload)
        };
        self.network.send(host, packet, self.now);
    }
}
