//! The faults of the campaign: each strikes a pair for some seconds, and is mended.

use std::net::{IpAddr, SocketAddr};

use natpunch_sim::{
    GatewayConfig, GatewayId, HostId, Lie, LinkConfig, NatConfig, Network, Packet, Payload, Random,
    Timers, Unsolicited, WhenFull,
};
use natpunch_types::IcmpKind;

use crate::lab::{LAN, Lab, MS, SECOND, UPLINK, ip};
use crate::servers::{add_victim, expect_victim_spared, expect_victim_spared_from_the_start};

/// One kind of fault.
#[derive(Clone, Copy)]
pub(crate) struct Fault {
    pub(crate) name: &'static str,
    strike: fn(&mut Scene),
    /// Whether the nodes are told to probe somebody else, which they do a few times.
    names_a_victim: bool,
}

const fn fault(name: &'static str, strike: fn(&mut Scene)) -> Fault {
    Fault {
        name,
        strike,
        names_a_victim: false,
    }
}

/// Every kind of fault.
pub(crate) const FAULTS: [Fault; 38] = [
    fault("none", |_| ()),
    // Routers.
    fault("a router reboots", |scene| scene.reboot(true, false)),
    fault("a router reboots with another address", |scene| {
        scene.reboot(true, true)
    }),
    fault("both routers reboot", |scene| {
        scene.reboot(true, false);
        scene.reboot(false, false);
    }),
    fault("both routers reboot with other addresses", |scene| {
        scene.reboot(true, true);
        scene.reboot(false, true);
    }),
    fault("a router's timers are short", |scene| {
        scene.reconfigure(|nat| nat.timers = SHORT)
    }),
    fault("a router's table is full", |scene| {
        scene.reconfigure(|nat| (nat.table_size, nat.when_full) = (6, WhenFull::Refuse))
    }),
    fault("a router's table overflows", |scene| {
        scene.reconfigure(|nat| (nat.table_size, nat.when_full) = (6, WhenFull::EvictAny))
    }),
    fault("a router accepts on its outside", |scene| {
        scene.reconfigure(|nat| nat.unsolicited = Unsolicited::CreateState)
    }),
    fault("a router rejects and the other ends sessions", |scene| {
        scene.reconfigure(|nat| {
            nat.unsolicited = Unsolicited::Reject(IcmpKind::Prohibited);
            nat.icmp_closes = true;
        })
    }),
    fault("a router blacklists", |scene| {
        scene.reconfigure(|nat| {
            nat.unsolicited = Unsolicited::Blacklist {
                per_second: 20,
                duration: 10 * SECOND,
            }
        })
    }),
    // Links.
    fault("an uplink is cut", |scene| scene.cut(true)),
    fault("both uplinks are cut", |scene| {
        scene.cut(true);
        scene.cut(false);
    }),
    fault("a host is unplugged", |scene| {
        let (host, network) = (scene.struck(), &mut scene.lab.world.network);
        network.set_host_connected(host, false);
    }),
    fault("a host's link loses a third", |scene| {
        let (host, network) = (scene.struck(), &mut scene.lab.world.network);
        network.set_host_loss(host, 0.33);
    }),
    fault("the links are slow", |scene| {
        scene.relink(|link| LinkConfig {
            delay: link.delay + 150 * MS,
            ..link
        })
    }),
    fault("packets are doubled and overtake each other", |scene| {
        scene.relink(|link| link.with_disorder(20 * MS, 0.2, 0.2))
    }),
    fault("one way is broken", |scene| scene.break_route(true)),
    fault("both ways are broken", |scene| {
        scene.break_route(true);
        scene.break_route(false);
    }),
    fault("WireGuard is dropped one way", |scene| {
        scene.drop_wireguard(true)
    }),
    fault("WireGuard is dropped both ways", |scene| {
        scene.drop_wireguard(true);
        scene.drop_wireguard(false);
    }),
    // Hosts.
    fault("an agent is killed", |scene| scene.kill_agent(true)),
    fault("both agents are killed", |scene| {
        scene.kill_agent(true);
        scene.kill_agent(false);
    }),
    fault("a device is made anew", |scene| {
        let (host, after) = (scene.struck(), scene.random.duration(5 * SECOND));
        scene.lab.world.restart_device(host, after);
    }),
    fault("a node moves", Scene::move_away),
    fault("a node sleeps", |scene| {
        let (host, time) = (scene.struck(), SECOND + scene.random.duration(SECOND));
        scene.lab.world.suspend(host, time);
    }),
    fault("a host's firewall drops WireGuard", |scene| {
        let host = scene.struck();
        scene.lab.world.set_wireguard_blocked(host, true);
    }),
    fault("the pins are lost", |scene| {
        let (a, b) = (scene.lab.a, scene.lab.b);
        scene.lab.world.lose_pin(a, b);
        scene.lab.world.lose_pin(b, a);
    }),
    fault("a peer is removed and comes back", |scene| {
        let (host, other) = (scene.struck(), scene.other());
        scene.lab.world.unpeer(host, other);
        scene.is_unpeered = true;
    }),
    fault("an administrator sets another endpoint", |scene| {
        let (host, other) = (scene.struck(), scene.other());
        let endpoint = SocketAddr::new(ip("203.0.113.200"), 9);
        scene.lab.world.configure_endpoint(host, other, endpoint);
    })
    .naming_a_victim(),
    fault("a stranger sends garbage", Scene::garbage),
    // Servers.
    fault("a server is down", |scene| scene.server_down()),
    fault("a server tells wrong addresses", |scene| {
        scene.lie(Lie::WrongAddresses)
    })
    .naming_a_victim(),
    fault("a server tells old records", |scene| {
        scene.lie(Lie::OldRecords)
    }),
    fault("a server says when to fire all the time", |scene| {
        scene.lie(Lie::Fires)
    }),
    fault("a server tells wrong ports of its relay", |scene| {
        scene.lie(Lie::WrongPorts)
    }),
    fault("a relay is dead", |scene| scene.lie(Lie::DeadPorts)),
    fault("a relay passes probes only", |scene| {
        scene.lie(Lie::ProbesOnly)
    }),
];

/// A router that forgets soon, and that only its inside keeps from that.
const SHORT: Timers = Timers {
    one_way: SECOND.saturating_mul(20),
    two_way: SECOND.saturating_mul(30),
    refresh_inbound: false,
    ..Timers::LINUX
};

impl Fault {
    const fn naming_a_victim(self) -> Self {
        Self {
            names_a_victim: true,
            ..self
        }
    }
}

/// A lab, what strikes it, and what it was like before.
pub(crate) struct Scene {
    pub(crate) lab: Lab,
    pub(crate) random: Random,
    fault: Fault,
    /// The nodes: the one that is struck, and the other.
    nodes: [HostId; 2],
    victim: Option<HostId>,
    gateways: Vec<(GatewayId, NatConfig, LinkConfig)>,
    links: [LinkConfig; 2],
    is_unpeered: bool,
    down: Option<HostId>,
}

impl Scene {
    pub(crate) fn new(mut lab: Lab, fault: Fault, mut random: Random) -> Self {
        let mut nodes = [lab.a, lab.b];
        if random.chance(0.5) {
            nodes.reverse();
        }
        let victim = fault.names_a_victim.then(|| add_victim(&mut lab));
        let network = &lab.world.network;
        let gateways = network
            .gateways()
            .filter_map(|id| Some((id, *network.nat_v4(id)?.config(), network.uplink(id))))
            .collect();
        let links = nodes.map(|node| network.host_link(node));
        Self {
            lab,
            random,
            fault,
            nodes,
            victim,
            gateways,
            links,
            is_unpeered: false,
            down: None,
        }
    }

    /// The fault begins.
    pub(crate) fn strike(&mut self) {
        let now = self.lab.world.now();
        let text = self.fault.name.to_owned();
        self.lab.world.network.note("FAULT", text, now);
        (self.fault.strike)(self);
    }

    /// The fault ends: whatever it was, all is as it was before.
    pub(crate) fn mend(&mut self) {
        let world = &mut self.lab.world;
        let now = world.now();
        world.network.note("FAULT", "mended".to_owned(), now);
        for (gateway, nat, uplink) in &self.gateways {
            world.network.reconfigure(*gateway, |config| *config = *nat);
            world.network.set_uplink(*gateway, *uplink);
            world.network.set_uplink_connected(*gateway, true);
        }
        for (node, link) in self.nodes.into_iter().zip(self.links) {
            world.network.set_host_link(node, link);
            world.network.set_host_connected(node, true);
            world.set_wireguard_blocked(node, false);
        }
        world.network.mend_routes();
        world.network.pass_wireguard();
        if let Some(server) = self.down.take() {
            world.set_server_down(server, false);
        }
        for server in &self.lab.servers {
            world.set_lie(*server, None);
        }
        if std::mem::take(&mut self.is_unpeered) {
            let [struck, other] = self.nodes;
            world.peer_one_way(struck, other, true);
        }
    }

    /// Somebody who was named to the nodes gets a few probes, and nobody else gets any.
    pub(crate) fn expect_third_party_spared(&self, is_early: bool) {
        let Some(victim) = self.victim else {
            return;
        };
        match is_early {
            true => expect_victim_spared_from_the_start(&self.lab, victim),
            false => expect_victim_spared(&self.lab, victim),
        }
    }

    fn struck(&self) -> HostId {
        self.nodes[0]
    }

    fn other(&self) -> HostId {
        self.nodes[1]
    }

    /// The router of a node that the internet sees: of the one that is struck, or of the other.
    fn gateway(&self, struck: bool) -> Option<GatewayId> {
        let network = &self.lab.world.network;
        let node = self.nodes[usize::from(!struck)];
        let above = network.gateways_above(network.segment_of(node));
        above.last().copied()
    }

    /// Where the internet sees a node.
    fn outsides(&self, struck: bool) -> Vec<IpAddr> {
        let network = &self.lab.world.network;
        let nat = self.gateway(struck).and_then(|id| network.nat_v4(id));
        match nat {
            Some(nat) => nat.addresses().collect(),
            None => network.addresses(self.nodes[usize::from(!struck)]).to_vec(),
        }
    }

    fn reboot(&mut self, struck: bool, moves: bool) {
        let Some(gateway) = self.gateway(struck) else {
            return;
        };
        let address = if struck { 144 } else { 160 };
        let outside = moves.then(|| IpAddr::from([203, 0, 113, address]));
        self.lab.world.reboot_gateway(gateway, outside);
    }

    /// Changes the router of the node that is struck. One that makes sessions end on ICMP errors
    /// does so on both sides, since it is the other's errors that end them.
    fn reconfigure(&mut self, change: fn(&mut NatConfig)) {
        for struck in [true, false] {
            let Some(gateway) = self.gateway(struck) else {
                continue;
            };
            let network = &mut self.lab.world.network;
            network.reconfigure(gateway, |nat| {
                let mut changed = *nat;
                change(&mut changed);
                if struck {
                    *nat = changed;
                } else {
                    nat.icmp_closes = changed.icmp_closes;
                }
            });
        }
    }

    fn cut(&mut self, struck: bool) {
        let node = self.nodes[usize::from(!struck)];
        let gateway = self.gateway(struck);
        let network = &mut self.lab.world.network;
        match gateway {
            Some(gateway) => network.set_uplink_connected(gateway, false),
            None => network.set_host_connected(node, false),
        }
    }

    fn relink(&mut self, change: fn(LinkConfig) -> LinkConfig) {
        let host = self.struck();
        let gateway = self.gateway(true);
        let network = &mut self.lab.world.network;
        match gateway {
            Some(gateway) => network.set_uplink(gateway, change(network.uplink(gateway))),
            None => network.set_host_link(host, change(network.host_link(host))),
        }
    }

    /// The ways between the outside addresses, from the one that is struck or to it.
    fn ways(&self, from: bool) -> Vec<(IpAddr, IpAddr)> {
        let (sources, destinations) = (self.outsides(from), self.outsides(!from));
        let from = |source: IpAddr| destinations.iter().map(move |to| (source, *to));
        sources.into_iter().flat_map(from).collect()
    }

    fn break_route(&mut self, from: bool) {
        for (source, destination) in self.ways(from) {
            let network = &mut self.lab.world.network;
            network.set_route(source, destination, false);
        }
    }

    fn drop_wireguard(&mut self, from: bool) {
        for (source, destination) in self.ways(from) {
            let network = &mut self.lab.world.network;
            network.drop_wireguard(source, destination);
        }
    }

    fn kill_agent(&mut self, struck: bool) {
        let after = self.random.duration(8 * SECOND);
        let node = self.nodes[usize::from(!struck)];
        self.lab.world.restart_agent(node, after);
    }

    fn move_away(&mut self) {
        let hotel = GatewayConfig {
            v4: Some((NatConfig::home(), ip("203.0.113.150"))),
            v6: None,
            uplink: UPLINK,
        };
        let (segment, _) = self
            .lab
            .world
            .add_gateway("hotel", Network::INTERNET, hotel);
        let host = self.struck();
        // The host's link was perhaps the one to the internet.
        self.links[0] = LAN;
        self.lab.world.network.set_host_link(host, LAN);
        self.lab
            .world
            .move_node(host, segment, &[ip("10.20.30.40")]);
    }

    fn garbage(&mut self) {
        let address = ip("198.51.100.66");
        let world = &mut self.lab.world;
        let stranger = world.add_bystander("stranger", Network::INTERNET, &[address], LAN);
        let port = self.lab.world.listen_port(self.struck());
        for outside in self.outsides(true) {
            for number in 0..200_u16 {
                let length = self.random.below(200) as usize;
                let bytes = self.random.bytes32().into_iter().cycle().take(length);
                let packet = Packet::new(
                    SocketAddr::new(address, 1_024 + number),
                    SocketAddr::new(outside, port),
                    Payload::Raw(bytes.collect()),
                );
                self.lab.world.inject(stranger, packet);
            }
        }
    }

    fn server(&mut self) -> HostId {
        let servers = self.lab.servers.clone();
        self.random.pick(&servers)
    }

    fn server_down(&mut self) {
        let server = self.server();
        self.lab.world.set_server_down(server, true);
        self.down = Some(server);
    }

    fn lie(&mut self, lie: Lie) {
        let server = self.server();
        self.lab.world.set_lie(server, Some(lie));
    }
}
