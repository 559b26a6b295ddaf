//! What a world is made of: routers, servers, nodes, and who is whose peer.

use super::*;

impl World {
    /// Adds a segment behind a gateway.
    pub fn add_gateway(
        &mut self,
        name: &str,
        outside: SegmentId,
        config: GatewayConfig,
    ) -> (SegmentId, GatewayId) {
        self.network.add_gateway(name, outside, config)
    }

    /// Adds a model of a server for rendezvous and STUN, on the internet.
    pub fn add_model_server(
        &mut self,
        name: &str,
        addresses: &[IpAddr],
        link: LinkConfig,
    ) -> HostId {
        let id = self
            .network
            .add_host(name, Network::INTERNET, addresses, link);
        self.model_servers.insert(id, ModelServer::default());
        id
    }

    /// Adds a server of natpunch's own rendezvous, on the internet; what a mesh file says of it.
    pub fn add_server(
        &mut self,
        name: &str,
        ip: IpAddr,
        link: LinkConfig,
    ) -> (HostId, ServerAddress) {
        let id = self.network.add_host(name, Network::INTERNET, &[ip], link);
        let private_key = SecretKey::from_bytes(self.keys.bytes32());
        let spec = MeshSpec {
            private_key,
            listen_port: 0,
            mtu: MTU.into(),
            overlay: Vec::new(),
            peers: Vec::new(),
            punch: PunchSpec::default(),
        };
        let (key, address) = (
            spec.private_key.public_key(),
            SocketAddr::new(ip, server::PORT),
        );
        self.servers.insert(
            id,
            Server::new(
                spec.private_key,
                Random::new(self.seed, 10_000 + id.0 as u64),
            ),
        );
        let relays = true;
        (
            id,
            ServerAddress {
                address,
                key,
                relays,
            },
        )
    }

    /// Adds a host that takes part in nothing.
    pub fn add_bystander(
        &mut self,
        name: &str,
        segment: SegmentId,
        addresses: &[IpAddr],
        link: LinkConfig,
    ) -> HostId {
        self.network.add_host(name, segment, addresses, link)
    }

    /// Adds a host with a WireGuard device, still without peers and without an agent.
    pub fn add_node(
        &mut self,
        name: &str,
        segment: SegmentId,
        addresses: &[IpAddr],
        link: LinkConfig,
        discovery: DiscoveryConfig,
    ) -> HostId {
        let id = self.network.add_host(name, segment, addresses, link);
        let private_key = SecretKey::from_bytes(self.keys.bytes32());
        let mut spec = MeshSpec {
            private_key,
            listen_port: 0,
            mtu: MTU.into(),
            overlay: Vec::new(),
            peers: Vec::new(),
            punch: PunchSpec::default(),
        };
        let key = spec.private_key.public_key();
        spec.listen_port = derive_listen_port(&key);
        let random = Random::new(self.seed, 100 + id.0 as u64);
        self.nodes
            .insert(id, Node::new(key, spec, discovery, random, self.now));
        id
    }

    /// Gives a node bridges to containers, of lower index than its other links. To be called
    /// before its agent starts.
    pub fn set_bridges(&mut self, node: HostId, addresses: &[IpAddr]) {
        self.node_mut(node).bridges = addresses.to_vec();
    }

    /// Lets a node join other source ports to WireGuard's. To be called before its agent starts.
    pub fn enable_pins(&mut self, node: HostId) {
        self.node_mut(node).pins.get_or_insert_default();
    }

    /// Lets a node believe, and tell, that its NAT is another one than it is
    /// ([`Mesh::distort_profile`](natpunch_core::Mesh::distort_profile)). To be called before its
    /// agent starts.
    pub fn distort_profile(&mut self, node: HostId, bits: [u8; 3]) {
        self.node_mut(node).distortion = bits;
    }

    /// Lets a node use other servers. To be called before its agent starts.
    pub fn set_discovery(&mut self, node: HostId, discovery: DiscoveryConfig) {
        self.node_mut(node).discovery = discovery;
    }

    /// Gives a host another address in its segment.
    pub fn add_address(&mut self, host: HostId, address: IpAddr) {
        let mut addresses = self.network.addresses(host).to_vec();
        addresses.push(address);
        let segment = self.network.segment_of(host);
        self.network.move_host(host, segment, &addresses);
    }

    /// Lets a node hear what some router says of a packet.
    pub fn tell_icmp(&mut self, node: HostId, error: &IcmpError) {
        let now = self.now;
        let node = self.node_mut(node);
        let time = node.clock(now);
        if let Some(agent) = &mut node.agent {
            agent.mesh.handle_icmp(error, time);
        }
    }

    /// Sets a node's punch budget. To be called before its agent starts.
    pub fn set_punch(&mut self, node: HostId, punch: PunchSpec) {
        self.node_mut(node).spec.punch = punch;
    }

    /// Makes two nodes peers of each other.
    pub fn peer(&mut self, a: HostId, b: HostId) {
        self.peer_one_way(a, b, true);
        self.peer_one_way(b, a, true);
    }

    /// Puts `peer` into the mesh file of `node`.
    pub fn peer_one_way(&mut self, node: HostId, peer: HostId, managed: bool) {
        let (key, listen_port) = (self.key(peer), self.listen_port(peer));
        let mut spec = self.nodes[&node].spec.clone();
        spec.peers.retain(|peer| peer.key != key);
        let persistent_keepalive = Some(Duration::from_secs(25));
        let named = PeerSpec::new(format!("peer-{}", peer.0), key);
        spec.peers.push(PeerSpec {
            managed,
            persistent_keepalive,
            adapts_keepalive: true,
            listen_port,
            ..named
        });
        self.reload(node, spec);
    }

    /// Takes `peer` out of the mesh file of `node`.
    pub fn unpeer(&mut self, node: HostId, peer: HostId) {
        let key = self.key(peer);
        let mut spec = self.nodes[&node].spec.clone();
        spec.peers.retain(|peer| peer.key != key);
        self.reload(node, spec);
    }

    pub(super) fn reload(&mut self, node: HostId, spec: MeshSpec) {
        let now = self.now;
        let Some(node) = self.nodes.get_mut(&node) else {
            return;
        };
        for peer in &node.spec.peers {
            if !spec.peers.iter().any(|kept| kept.key == peer.key) {
                node.device.remove_peer(&peer.key);
                // The agent takes its pins away, too.
                if let Some(pins) = &mut node.pins {
                    pins.retain(|_, (of, _)| *of != peer.key);
                }
            }
        }
        node::add_peers(&mut node.device, &spec, now);
        node.spec = spec.clone();
        let time = node.clock(now);
        if let Some(agent) = &mut node.agent {
            agent.mesh.handle_spec(spec, time);
            agent.mesh.handle_device(&node.device.snapshot(), time);
        }
    }

    /// Lets the agent of a node start at this time.
    pub fn start_at(&mut self, node: HostId, at: Duration) {
        self.node_mut(node).start_at = Some(at);
    }
}
