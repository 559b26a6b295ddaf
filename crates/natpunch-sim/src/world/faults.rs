//! What goes wrong in a world: restarts, moves, sleeps, servers that fail or lie.

use super::*;
use crate::Timers;

impl World {
    /// Kills the agent, and starts it again after this long. The device runs on.
    pub fn restart_agent(&mut self, node: HostId, after: Duration) {
        let at = self.now + after;
        self.network
            .note("agent", format!("host {} agent killed", node.0), self.now);
        self.records.forget_watcher(node);
        let (addresses, now) = (self.network.addresses(node).to_vec(), self.now);
        let node = self.node_mut(node);
        node.stop_agent(&addresses, now);
        node.start_at = Some(at);
    }

    /// A pin of a node is taken away and can't be made again; its agent is told.
    pub fn lose_pin(&mut self, node: HostId, peer: HostId) {
        let (key, now) = (self.key(peer), self.now);
        let node = self.node_mut(node);
        let time = node.clock(now);
        let pins = node.pins.iter_mut();
        let lost: Vec<_> = pins
            .flat_map(|pins| pins.extract_if(.., |_, (of, _)| *of == key))
            .collect();
        if let Some(agent) = &mut node.agent {
            for (remote, (peer, port)) in lost {
                let path = path_from(port, remote);
                agent.mesh.handle_pins(Pins::Lost { peer, path }, time);
            }
        }
        self.drain();
    }

    /// The device of a node goes down with all its sessions, and is made anew after this long. The
    /// agent runs on.
    pub fn restart_device(&mut self, node: HostId, after: Duration) {
        let at = self.now + after;
        self.network
            .note("device", format!("host {} device gone", node.0), self.now);
        self.node_mut(node).device_back_at = Some(at);
        let now = self.now;
        self.node_mut(node).make_device(now);
    }

    /// Lets the firewall of a node drop what WireGuard receives, but not what raw sockets do.
    pub fn set_wireguard_blocked(&mut self, node: HostId, blocked: bool) {
        self.node_mut(node).wireguard_blocked = blocked;
    }

    /// The host sleeps for this long: it neither sends nor receives, and notices on waking up.
    pub fn suspend(&mut self, node: HostId, duration: Duration) {
        let until = self.now + duration;
        self.node_mut(node).asleep_until = Some(until);
        self.network.set_host_connected(node, false);
    }

    /// Moves a node to another network; its agent is told by the kernel.
    pub fn move_node(&mut self, node: HostId, segment: SegmentId, addresses: &[IpAddr]) {
        self.learn_addresses();
        self.network.move_host(node, segment, addresses);
        self.learn_addresses();
        let now = self.now;
        self.network
            .note("move", format!("host {} moved", node.0), now);
        let node = self.node_mut(node);
        let time = node.clock(now);
        if let Some(agent) = &mut node.agent {
            let network = host_network(addresses, &node.bridges);
            agent.mesh.handle_local_addresses(&network, time);
            agent.mesh.handle_network_change(time);
            agent.register_anew(now);
        }
    }

    /// Power-cycles a gateway.
    pub fn reboot_gateway(&mut self, gateway: GatewayId, new_outside: Option<IpAddr>) {
        self.learn_addresses();
        self.network.note(
            "reboot",
            format!("gateway {} rebooted", gateway.0),
            self.now,
        );
        self.network.reboot_gateway(gateway, new_outside);
        self.learn_addresses();
    }

    /// Puts another router in the place of a gateway's: its state is gone, and it has these timers.
    pub fn replace_router(&mut self, gateway: GatewayId, timers: Timers) {
        self.network.reconfigure(gateway, |nat| nat.timers = timers);
        self.reboot_gateway(gateway, None);
    }

    /// Changes the mesh file of a node: WireGuard's keepalive to its peers, which natpunch leaves as
    /// it is.
    pub fn set_keepalive(&mut self, node: HostId, keepalive: Option<Duration>) {
        let mut spec = self.nodes[&node].spec.clone();
        for peer in &mut spec.peers {
            (peer.persistent_keepalive, peer.adapts_keepalive) = (keepalive, false);
        }
        self.reload(node, spec);
    }

    /// Changes the mesh file of a node: whether it keeps a path to its peers at all times. Before its
    /// agent starts, as if the device had been made with it.
    pub fn set_connect(&mut self, node: HostId, connect: Connect) {
        let mut spec = self.nodes[&node].spec.clone();
        spec.peers
            .iter_mut()
            .for_each(|peer| peer.connect = connect);
        self.reload(node, spec);
        let now = self.now;
        let node = self.node_mut(node);
        if node.agent.is_none() {
            node.rested.clear();
            node.make_device(now);
        }
    }

    /// Stops a server, or starts it again without its memory.
    pub fn set_server_down(&mut self, server: HostId, down: bool) {
        if let Some(server) = self.servers.get_mut(&server) {
            server.set_down(down);
        } else if let Some(server) = self.model_servers.get_mut(&server) {
            server.down = down;
            server.rendezvous.restart();
        }
    }

    /// Lets a server deceive, or be honest again.
    pub fn set_lie(&mut self, server: HostId, lie: Option<Lie>) {
        if let Some(server) = self.servers.get_mut(&server) {
            server.set_lie(lie);
        }
    }

    /// WireGuard's packets that a server's relay has forwarded.
    pub fn carried_by(&self, server: HostId) -> u64 {
        self.servers.get(&server).map_or(0, |server| server.carried)
    }

    /// Changes whether a peer may be reached through relays.
    pub fn set_relay_policy(&mut self, node: HostId, relay: RelayPolicy) {
        let mut spec = self.nodes[&node].spec.clone();
        spec.peers.iter_mut().for_each(|peer| peer.relay = relay);
        self.reload(node, spec);
    }

    /// Writes `relay = false` into the section of this server, and reloads.
    pub fn stop_relaying(&mut self, node: HostId, server: ServerAddress) {
        let now = self.now;
        let node = self.node_mut(node);
        for known in &mut node.discovery.servers {
            known.relays &= known.key != server.key;
        }
        let (time, instances) = (node.clock(now), node.discovery.instances(2));
        if let Some(agent) = &mut node.agent {
            agent.clients.stop_relaying(server.address, now);
            agent.mesh.handle_instances(instances, time);
        }
        self.drain();
    }

    /// Changes by whose relays peers may be reached, best first.
    pub fn set_relays(&mut self, node: HostId, servers: &[HostId]) {
        let relays = servers
            .iter()
            .flat_map(|server| self.network.addresses(*server))
            .map(|ip| client::origin(*ip));
        let relays: Arc<[InstanceName]> = relays.collect();
        let mut spec = self.nodes[&node].spec.clone();
        spec.peers
            .iter_mut()
            .for_each(|peer| peer.relays = Some(relays.clone()));
        self.reload(node, spec);
    }

    /// Makes the record store unreachable, or reachable again.
    pub fn set_record_store_down(&mut self, down: bool) {
        self.records.down = down;
    }
}
