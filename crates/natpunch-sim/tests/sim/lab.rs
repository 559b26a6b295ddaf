//! The usual scenario: two nodes somewhere, a server on the internet, and what to expect of them.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use natpunch_core::{PathKind, PeerState};
use natpunch_sim::{
    DiscoveryConfig, GatewayConfig, GatewayId, HostId, LinkConfig, NatConfig, Network, SegmentId,
    ServerAddress, World,
};

pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const MINUTE: Duration = Duration::from_secs(60);
pub(crate) const MS: Duration = Duration::from_millis(1);

/// Between a host and its router.
pub(crate) const LAN: LinkConfig = LinkConfig::wire(Duration::from_micros(200));
/// Between a router and the middle of the internet: 20 ms from node to node, three hops to each
/// side.
pub(crate) const UPLINK: LinkConfig = LinkConfig::wire(Duration::from_millis(10)).with_hops(3);

/// Between a server and the middle of the internet.
pub(crate) const NEAR: LinkConfig = LinkConfig::wire(Duration::from_millis(10));

/// The outside addresses of the two sides' outermost routers.
pub(crate) const OUTSIDE_A: &str = "203.0.113.1";
pub(crate) const OUTSIDE_B: &str = "203.0.113.2";

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Where a node sits.
#[derive(Debug, Clone)]
pub(crate) enum Side {
    /// On the internet.
    Public,
    /// The same, behind a firewall of the host's own, which lets in answers only.
    Firewalled,
    /// Behind these routers, from the outermost to the innermost.
    Behind(Vec<NatConfig>),
    /// IPv6 only, behind a stateful firewall.
    Ipv6,
}

impl From<NatConfig> for Side {
    fn from(nat: NatConfig) -> Self {
        Self::Behind(vec![nat])
    }
}

/// Two nodes and a server.
pub(crate) struct Lab {
    pub(crate) world: World,
    pub(crate) server: HostId,
    /// The servers of natpunch's own rendezvous.
    pub(crate) servers: Vec<HostId>,
    pub(crate) a: HostId,
    pub(crate) b: HostId,
    /// The innermost routers.
    pub(crate) gateway_a: Option<GatewayId>,
    pub(crate) gateway_b: Option<GatewayId>,
}

/// Which discovery the nodes of a lab use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Discovery {
    /// A rendezvous server that tells the source address it saw.
    Rendezvous,
    /// STUN and sealed records.
    Records,
}

pub(crate) const SERVER_V4: &str = "198.51.100.1";
pub(crate) const SERVER_V6: &str = "2001:db8:ffff::1";

pub(crate) fn discovery(world: &World, server: HostId, which: Discovery) -> DiscoveryConfig {
    let servers: Vec<_> = world
        .network
        .addresses(server)
        .iter()
        .map(|ip| SocketAddr::new(*ip, 3478))
        .collect();
    match which {
        Discovery::Rendezvous => DiscoveryConfig {
            rendezvous: servers.first().copied(),
            ..Default::default()
        },
        Discovery::Records => DiscoveryConfig {
            stun: servers,
            records: true,
            ..Default::default()
        },
    }
}

/// Builds the routers of one side; returns where its hosts go, and the innermost router.
pub(crate) fn side(
    world: &mut World,
    name: &str,
    number: u8,
    side: &Side,
    uplink: LinkConfig,
) -> Place {
    match side {
        Side::Public | Side::Firewalled => {
            let address = IpAddr::from([203, 0, 113, 100 + number]);
            Place {
                segment: Network::INTERNET,
                addresses: vec![address],
                gateway: None,
                link: uplink,
                firewall: matches!(side, Side::Firewalled).then(NatConfig::firewall),
            }
        }
        Side::Ipv6 => {
            let firewall = GatewayConfig {
                v4: None,
                v6: Some(NatConfig::firewall()),
                uplink,
            };
            let (segment, gateway) = world.add_gateway(name, Network::INTERNET, firewall);
            let address = IpAddr::from([0x2001, 0xdb8, u16::from(number), 0, 0, 0, 0, 2]);
            Place {
                segment,
                addresses: vec![address],
                gateway: Some(gateway),
                link: LAN,
                firewall: None,
            }
        }
        Side::Behind(nats) => {
            let (mut segment, mut gateway) = (Network::INTERNET, None);
            for (depth, nat) in nats.iter().enumerate() {
                let outside = match depth {
                    0 if nat.pool.size() > 1 => IpAddr::from([203, 0, 113, 16 * number]),
                    0 => IpAddr::from([203, 0, 113, number]),
                    _ => IpAddr::from([100, 64, depth as u8, number]),
                };
                let link = if depth == 0 { uplink } else { LAN };
                let config = GatewayConfig {
                    v4: Some((*nat, outside)),
                    v6: None,
                    uplink: link,
                };
                let (inside, id) = world.add_gateway(&format!("{name}{depth}"), segment, config);
                (segment, gateway) = (inside, Some(id));
            }
            let address = IpAddr::from([192, 168, number, 2]);
            Place {
                segment,
                addresses: vec![address],
                gateway,
                link: LAN,
                firewall: None,
            }
        }
    }
}

/// Where hosts of one side go.
pub(crate) struct Place {
    pub(crate) segment: SegmentId,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) gateway: Option<GatewayId>,
    pub(crate) link: LinkConfig,
    pub(crate) firewall: Option<NatConfig>,
}

impl Drop for Lab {
    /// Whatever made a test fail: what happened in its run is printed, and how to run it again.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let (world, seed) = (&self.world, self.world.seed());
        let thread = std::thread::current();
        let test = thread.name().unwrap_or("TEST");
        eprintln!(
            "{}again: NATPUNCH_SIM_SEED={seed} cargo test -p natpunch-sim --test sim -- \
             --include-ignored --exact {test}",
            world.report(),
        );
        let Some(directory) = std::env::var_os("NATPUNCH_PCAP") else {
            eprintln!("with NATPUNCH_PCAP=DIRECTORY before it, captures are left there");
            return;
        };
        let directory = std::path::Path::new(&directory).join(format!("seed-{seed}"));
        let mut done = std::fs::create_dir_all(&directory);
        for (place, capture) in world.captures() {
            let file = directory.join(format!("{place}.pcap"));
            done = done.and_then(|()| std::fs::write(file, capture));
        }
        eprintln!("captures: {} {done:?}", directory.display());
    }
}

impl Lab {
    /// Two nodes that are peers, whose agents have not started yet.
    pub(crate) fn new(
        seed: u64,
        a: impl Into<Side>,
        b: impl Into<Side>,
        uplink: LinkConfig,
        which: Discovery,
    ) -> Self {
        let mut world = World::new(seed);
        let server = world.add_model_server(
            "server",
            &[ip(SERVER_V4), ip(SERVER_V6)],
            LinkConfig::wire(10 * MS),
        );
        let place_a = side(&mut world, "gw-a", 1, &a.into(), uplink);
        let place_b = side(&mut world, "gw-b", 2, &b.into(), uplink);
        let config = discovery(&world, server, which);
        let a = world.add_node(
            "a",
            place_a.segment,
            &place_a.addresses,
            place_a.link,
            config.clone(),
        );
        let b = world.add_node(
            "b",
            place_b.segment,
            &place_b.addresses,
            place_b.link,
            config,
        );
        world.peer(a, b);
        for (node, place) in [(a, &place_a), (b, &place_b)] {
            if let Some(firewall) = place.firewall {
                world.network.set_host_firewall(node, firewall);
            }
        }
        let (gateway_a, gateway_b) = (place_a.gateway, place_b.gateway);
        Self {
            world,
            server,
            servers: Vec::new(),
            a,
            b,
            gateway_a,
            gateway_b,
        }
    }

    /// The same with servers of natpunch's own rendezvous, one on each of these links.
    pub(crate) fn with_servers(
        seed: u64,
        a: impl Into<Side>,
        b: impl Into<Side>,
        links: &[LinkConfig],
    ) -> Self {
        let config = |servers: &[ServerAddress]| DiscoveryConfig {
            servers: servers.to_vec(),
            ..DiscoveryConfig::default()
        };
        Self::with_servers_and(seed, (a.into(), b.into()), UPLINK, links, config)
    }

    /// The same of nodes that ask the servers by STUN, too, and can pin other source ports to
    /// WireGuard's.
    pub(crate) fn punching(
        seed: u64,
        a: impl Into<Side>,
        b: impl Into<Side>,
        uplink: LinkConfig,
        server: LinkConfig,
    ) -> Self {
        Self::punching_by(seed, (a.into(), b.into()), uplink, &[server])
    }

    /// The same with a server on each of these links.
    pub(crate) fn punching_by(
        seed: u64,
        sides: (Side, Side),
        uplink: LinkConfig,
        servers: &[LinkConfig],
    ) -> Self {
        let mut lab = Self::with_stun(seed, sides, uplink, servers);
        lab.world.enable_pins(lab.a);
        lab.world.enable_pins(lab.b);
        lab
    }

    /// The same of nodes that only ask the servers by STUN, too.
    pub(crate) fn with_stun(
        seed: u64,
        sides: (Side, Side),
        uplink: LinkConfig,
        servers: &[LinkConfig],
    ) -> Self {
        let config = |servers: &[ServerAddress]| DiscoveryConfig {
            servers: servers.to_vec(),
            stun: servers.iter().map(|server| server.address).collect(),
            ..DiscoveryConfig::default()
        };
        Self::with_servers_and(seed, sides, uplink, servers, config)
    }

    /// The same with a server at this address.
    pub(crate) fn punching_at(
        seed: u64,
        a: impl Into<Side>,
        b: impl Into<Side>,
        server: IpAddr,
    ) -> Self {
        let mut lab = Self::punching(seed, a, b, UPLINK, NEAR);
        let (host, address) = lab.world.add_server("server-v6", server, NEAR);
        lab.server = host;
        let config = DiscoveryConfig {
            servers: vec![address],
            stun: vec![address.address],
            ..DiscoveryConfig::default()
        };
        for node in [lab.a, lab.b] {
            lab.world.set_discovery(node, config.clone());
        }
        lab
    }

    fn with_servers_and(
        seed: u64,
        (a, b): (Side, Side),
        uplink: LinkConfig,
        links: &[LinkConfig],
        config: impl Fn(&[ServerAddress]) -> DiscoveryConfig,
    ) -> Self {
        let mut world = World::new(seed);
        let add = |(number, link): (usize, &LinkConfig)| {
            let address = IpAddr::from([198, 51, 100, 1 + number as u8]);
            world.add_server(&format!("server{number}"), address, *link)
        };
        let (servers, addresses): (Vec<_>, Vec<_>) = links.iter().enumerate().map(add).unzip();
        let place_a = side(&mut world, "gw-a", 1, &a, uplink);
        let place_b = side(&mut world, "gw-b", 2, &b, uplink);
        let config = config(&addresses);
        let a = world.add_node(
            "a",
            place_a.segment,
            &place_a.addresses,
            place_a.link,
            config.clone(),
        );
        let b = world.add_node(
            "b",
            place_b.segment,
            &place_b.addresses,
            place_b.link,
            config,
        );
        world.peer(a, b);
        for (node, place) in [(a, &place_a), (b, &place_b)] {
            if let Some(firewall) = place.firewall {
                world.network.set_host_firewall(node, firewall);
            }
        }
        let (gateway_a, gateway_b) = (place_a.gateway, place_b.gateway);
        Self {
            world,
            server: servers[0],
            servers,
            a,
            b,
            gateway_a,
            gateway_b,
        }
    }

    /// The kinds of path that both nodes' statuses show.
    pub(crate) fn paths(&self) -> Vec<PathKind> {
        let statuses = [self.a, self.b]
            .into_iter()
            .filter_map(|node| self.world.status(node));
        statuses
            .flat_map(|status| status.peers)
            .map(|peer| peer.path)
            .collect()
    }

    /// Runs until both nodes use such a path, for at most this long; how long it took. A ping each
    /// way goes every 10 ms.
    pub(crate) fn reach(&mut self, path: PathKind, patience: Duration) -> Duration {
        let start = self.world.now();
        while self.paths() != [path; 2] {
            if self.world.now() >= start + patience {
                self.fail(&format!("no {path} path: {:?}", self.paths()));
            }
            self.world.ping(self.a, self.b);
            let next = self.world.now() + 10 * MS;
            self.world.run_until(next);
        }
        self.world.now() - start
    }

    /// Runs on with a ping each way every 10 ms; how many of each side's were lost.
    pub(crate) fn pings_lost(&mut self, duration: Duration) -> (u64, u64) {
        let received = |lab: &Self| {
            let of = |node, from| lab.world.device(node).received_data(&lab.world.key(from));
            (of(lab.a, lab.b), of(lab.b, lab.a))
        };
        let (start, end) = (self.world.now(), self.world.now() + duration);
        let (before, mut sent) = (received(self), 0);
        while self.world.now() < end {
            self.world.ping(self.a, self.b);
            sent += 1;
            let next = self.world.now() + 10 * MS;
            self.world.run_until(next);
        }
        // The last ones arrive.
        self.world.run_until(end + SECOND);
        let after = received(self);
        assert!(start < end);
        (
            sent - (after.0 - before.0).min(sent),
            sent - (after.1 - before.1).min(sent),
        )
    }

    /// Runs on with a ping each way every 100 ms, `each` before each of them; the longest time for
    /// which one side got nothing.
    pub(crate) fn longest_gap(
        &mut self,
        duration: Duration,
        mut each: impl FnMut(&mut Self),
    ) -> Duration {
        let end = self.world.now() + duration;
        let mut sides = [(self.a, self.b), (self.b, self.a)]
            .map(|(node, from)| (node, from, 0, self.world.now()));
        let mut longest = Duration::ZERO;
        while self.world.now() < end {
            each(self);
            self.world.ping(self.a, self.b);
            let next = self.world.now() + 100 * MS;
            self.world.run_until(next);
            for (node, from, count, since) in &mut sides {
                let received = self
                    .world
                    .device(*node)
                    .received_data(&self.world.key(*from));
                if received > *count {
                    (*count, *since) = (received, self.world.now());
                }
                longest = longest.max(self.world.now() - *since);
            }
        }
        longest
    }

    /// The usual lab: 20 ms, no loss, rendezvous.
    pub(crate) fn usual(seed: u64, a: impl Into<Side>, b: impl Into<Side>) -> Self {
        Self::new(seed, a, b, UPLINK, Discovery::Rendezvous)
    }

    /// Starts both agents at once.
    pub(crate) fn start(mut self) -> Self {
        let now = self.world.now();
        self.world.start_at(self.a, now);
        self.world.start_at(self.b, now);
        self
    }

    /// Runs until both devices have a session, for at most this long. How long it took.
    pub(crate) fn connect(&mut self, patience: Duration) -> Option<Duration> {
        let start = self.world.now();
        let (a, b) = (self.a, self.b);
        let at = self
            .world
            .run_until_done(start + patience, |world| world.has_sessions(a, b));
        at.map(|at| at - start)
    }

    /// The same until both have a session and a path without a relay.
    pub(crate) fn connect_directly(&mut self, patience: Duration) -> Option<Duration> {
        let start = self.world.now();
        let (a, b) = (self.a, self.b);
        let direct = |world: &World, node| {
            let peers = world
                .status(node)
                .map(|status| status.peers)
                .unwrap_or_default();
            peers.iter().any(|peer| peer.path == PathKind::Direct)
        };
        let done = |world: &World| world.has_sessions(a, b) && direct(world, a) && direct(world, b);
        self.world
            .run_until_done(start + patience, done)
            .map(|at| at - start)
    }

    /// Asserts that the nodes connect, that data flows both ways, and that nothing broke on the
    /// way.
    pub(crate) fn expect_connected(&mut self, patience: Duration) -> Duration {
        let Some(took) = self.connect(patience) else {
            self.fail("no sessions")
        };
        self.expect_flow(5 * SECOND);
        took
    }

    /// Asserts that data flows both ways.
    pub(crate) fn expect_flow(&mut self, patience: Duration) {
        let (a, b) = (self.a, self.b);
        if !self.world.data_flows(a, b, patience) {
            self.fail("no data flows");
        }
        self.expect_sound();
    }

    /// Runs on, with a ping each second, and asserts that data flows at the end.
    pub(crate) fn run_with_pings(&mut self, duration: Duration) {
        let end = self.world.now() + duration;
        while self.world.now() < end {
            self.world.ping(self.a, self.b);
            let next = (self.world.now() + SECOND).min(end);
            self.world.run_until(next);
        }
        self.expect_flow(5 * SECOND);
    }

    /// Asserts that nothing broke.
    pub(crate) fn expect_sound(&mut self) {
        self.world.check_memory();
        if !self.world.violations().is_empty() {
            self.fail("violations");
        }
    }

    /// Most entries that any NAT or firewall has had.
    pub(crate) fn most_entries(&self) -> usize {
        let network = &self.world.network;
        let gateways = network.gateways().filter_map(|id| network.nat_v4(id));
        let hosts = [self.a, self.b].into_iter();
        gateways
            .chain(hosts.filter_map(|host| network.host_firewall(host)))
            .map(|nat| nat.most_sessions())
            .max()
            .unwrap_or_default()
    }

    /// The state of the other node, as each node's status shows it.
    pub(crate) fn states(&self) -> Vec<PeerState> {
        let statuses = [self.a, self.b]
            .into_iter()
            .filter_map(|node| self.world.status(node));
        statuses
            .flat_map(|status| status.peers)
            .map(|peer| peer.state)
            .collect()
    }

    /// Ends the test with all that is known.
    pub(crate) fn fail(&self, why: &str) -> ! {
        panic!(
            "{why} at {:?}, states {:?}",
            self.world.now(),
            self.states()
        );
    }
}
