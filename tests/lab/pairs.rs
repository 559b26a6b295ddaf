//! The pairs of networks that tell the most, each on real NATs: which of them become direct, how
//! soon, and what that costs routers and third parties.
//!
//! Each pair is tried once by `make test`, and many times by `make pairs`.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use natpunch_lab::{Lab, Nat, Router, lab_test};

use crate::world::{Discovery, Node, World, peer_in, soon, within};

/// A round of guesses finds nothing in one of sixty cases, and the next may only begin half a minute
/// later; a path on which WireGuard shows nothing at first is not tried again at once either.
pub(crate) const PATIENCE: u64 = 150;
/// Most entries that the table of any router may have: the budget of ten minutes, and what a pair
/// has anyway.
const MOST_CONNECTIONS: u32 = 2_300;
/// How often a campaign tries a pair.
const RUNS: usize = 20;
/// The same of pairs that guess, whose share of success is wanted to a percent or two.
const RUNS_WITH_GUESSES: usize = 60;
/// How long a campaign waits for one of them.
const PATIENCE_OF_CAMPAIGN: Duration = Duration::from_secs(45);

/// What is between a node and the internet.
#[derive(Debug, Clone, Copy)]
enum Side {
    Public,
    /// A home's router that drops what it does not expect.
    Home(Nat),
    /// One that lets it reach itself, as a bare Linux gateway does: the poisoned tuple.
    Accepting(Nat),
    /// A home's router behind a carrier's of this kind.
    Behind(Nat),
    /// A firewall, and no IPv4 but on its other side.
    Ipv6,
    /// No IPv4 but by a NAT64.
    Nat64,
}

/// Two sides, and what leads from one to the other in the end.
#[derive(Debug, Clone, Copy)]
enum Pair {
    /// Each has an address of its own: a direct path.
    Direct(Side, Side),
    /// The same, by ports that are guessed.
    Guessed(Side, Side),
    /// No direct path is there, or none that is worth its price.
    Relayed(Side, Side),
    /// Two homes behind one carrier, whose address they share. If it hairpins, a direct path.
    OneAddress { hairpins: bool },
}

/// Nobody was harmed: no router's table is full, and nothing went to anybody else.
pub(crate) fn assert_harmless(routers: &[Router]) {
    for router in routers {
        let connections = router.connections().unwrap();
        println!("measured: {connections} entries in a router's table");
        assert!(connections <= MOST_CONNECTIONS, "{connections} entries");
        assert_eq!(router.counted().unwrap(), 0, "packets to third parties");
    }
}

/// A pair in a lab, not started yet.
struct Trial {
    world: World,
    nodes: [Node; 2],
    routers: Vec<Router>,
    path: &'static str,
    runs: usize,
}

impl Pair {
    fn sides(self) -> [Side; 2] {
        match self {
            Pair::Direct(a, b) | Pair::Guessed(a, b) | Pair::Relayed(a, b) => [a, b],
            // Their carrier is made once, for both.
            Pair::OneAddress { .. } => [Side::Behind(Nat::PortPreserving); 2],
        }
    }

    fn build(self, lab: Lab) -> Trial {
        let is_ipv6 = self.sides().iter().any(|side| matches!(side, Side::Ipv6));
        let mut world = match is_ipv6 {
            true => World::over_ipv6(lab),
            false => World::new(lab, Discovery::Rendezvous),
        };
        let mut routers = Vec::new();
        let mut addresses = Vec::new();
        let shared = match self {
            Pair::OneAddress { hairpins } => {
                let carrier = world.lab.carrier("carrier", Nat::PortPreserving, hairpins);
                Some(carrier.unwrap())
            }
            _ => None,
        };
        let nodes = [("a", self.sides()[0]), ("b", self.sides()[1])].map(|(name, side)| {
            let (node, outermost, own) = match &shared {
                Some(carrier) => {
                    let home = format!("home-{name}");
                    let home = world.lab.home_behind(carrier, &home, Nat::PortPreserving);
                    let home = home.unwrap();
                    (world.node_at(&home, name), carrier.address(), vec![home])
                }
                None => side.build(&mut world, name),
            };
            addresses.push(outermost);
            routers.extend(own);
            node
        });
        routers.extend(shared);
        let server = world.server.address();
        for router in &routers {
            let expected: Vec<Ipv4Addr> = addresses.iter().copied().chain([server]).collect();
            router.count_except(&expected).unwrap();
        }
        world.write_mesh();
        let (path, runs) = match self {
            Pair::Direct(..) | Pair::OneAddress { hairpins: true } => ("direct", RUNS),
            Pair::Guessed(..) => ("direct", RUNS_WITH_GUESSES),
            Pair::Relayed(..) | Pair::OneAddress { hairpins: false } => ("relay", 1),
        };
        Trial {
            world,
            nodes,
            routers,
            path,
            runs,
        }
    }
}

impl Side {
    /// A node there, the address from which others hear it, and the routers that it is behind.
    fn build(self, world: &mut World, name: &str) -> (Node, Ipv4Addr, Vec<Router>) {
        let nat = format!("nat-{name}");
        let router = match self {
            Side::Public => {
                let host = world.lab.public_host(name).unwrap();
                let address = host.ipv4().unwrap();
                return (world.node(host), address, Vec::new());
            }
            Side::Behind(of_carrier) => {
                let carrier = format!("carrier-{name}");
                let carrier = world.lab.carrier(&carrier, of_carrier, false).unwrap();
                let home = world.lab.home_behind(&carrier, &nat, Nat::PortPreserving);
                let home = home.unwrap();
                let address = carrier.address();
                return (world.node_at(&home, name), address, vec![home, carrier]);
            }
            Side::Home(kind) => world.lab.router(&nat, kind).unwrap(),
            Side::Accepting(kind) => world.lab.accepting_router(&nat, kind).unwrap(),
            Side::Ipv6 => world.lab.dual_router(&nat, Nat::Symmetric).unwrap(),
            Side::Nat64 => world.lab.nat64_router(&nat).unwrap(),
        };
        let host = match self {
            Side::Ipv6 | Side::Nat64 => world.lab.ipv6_host_behind(&router, name),
            _ => world.lab.host_behind(&router, name),
        };
        (world.node(host.unwrap()), router.address(), vec![router])
    }
}

impl Trial {
    /// Tries it once, and looks whether anybody was harmed.
    fn once(mut self) {
        let start = Instant::now();
        self.nodes.iter_mut().for_each(Node::start);
        let [a, b] = &self.nodes;
        let deadline = within(PATIENCE);
        a.wait_path(b, self.path, deadline);
        b.wait_path(a, self.path, deadline);
        println!(
            "measured: {} after {:.1} s",
            self.path,
            start.elapsed().as_secs_f64()
        );
        assert!(a.reaches(b.address) && b.reaches(a.address));
        if self.path == "relay" {
            // As long as most searches would take.
            let ping = a.ping(b.address, Duration::from_millis(200));
            assert!(ping.wait_for(40, within(30)));
            let status = a.wait_path(b, "relay", soon());
            assert!(status["relay_reason"].is_string(), "{status:#}");
        }
        assert_harmless(&self.routers);
    }

    /// Tries it once over links that delay packets by 30 to 50 ms and lose 2 % of them, each way and at
    /// each router, and looks what becomes of pings on the path.
    fn roughly(self) {
        let [delay, jitter] = [40, 10].map(Duration::from_millis);
        for router in &self.routers {
            router.roughen(delay, jitter, 2).unwrap();
        }
        let (path, [a, b]) = (self.path, self.nodes);
        let mut nodes = [a, b];
        let start = Instant::now();
        nodes.iter_mut().for_each(Node::start);
        let [a, b] = &nodes;
        a.wait_path(b, path, within(PATIENCE));
        b.wait_path(a, path, within(PATIENCE));
        let found = start.elapsed();
        let ping = a.ping(b.address, Duration::from_millis(50));
        assert!(ping.wait_for(300, within(40)));
        let pings = ping.stop();
        println!(
            "measured: rough links: {path} after {:.1} s, {} of {} pings lost",
            found.as_secs_f64(),
            pings.lost(),
            pings.answers.len()
        );
        // Two rough links each way lose 8 of 100; a path that flaps would lose many more.
        let most = u64::try_from(pings.answers.len() * 16 / 100).unwrap();
        assert!(pings.lost() <= most, "{} lost", pings.lost());
        a.wait_path(b, path, soon());
    }

    /// Tries it again and again, each time as if the nodes had never met and the routers had just
    /// been switched on.
    fn many(mut self, what: &str) {
        let (mut times, mut most) = (Vec::new(), 0);
        for _ in 0..self.runs {
            let start = Instant::now();
            self.nodes.iter_mut().for_each(Node::start);
            let mut time = None;
            while time.is_none() && start.elapsed() < PATIENCE_OF_CAMPAIGN {
                std::thread::sleep(Duration::from_millis(20));
                time = self.is_there().then(|| start.elapsed());
                for router in &self.routers {
                    most = most.max(router.connections().unwrap());
                }
            }
            times.push(time);
            for node in &mut self.nodes {
                node.stop();
                assert!(node.natpunch(&["down"]).status.success());
                std::fs::remove_dir_all(node.host.directory().unwrap().join("state")).unwrap();
            }
            for router in &self.routers {
                self.world.lab.forget(router).unwrap();
            }
        }
        let mut found: Vec<f64> = times.iter().flatten().map(Duration::as_secs_f64).collect();
        found.sort_by(f64::total_cmp);
        let at = |share: usize| {
            let index = (found.len() * share).div_ceil(100).saturating_sub(1);
            found.get(index).copied().unwrap_or(f64::NAN)
        };
        let strays: u64 = self
            .routers
            .iter()
            .map(|router| router.counted().unwrap())
            .sum();
        println!(
            "measured: {what}: {} of {} {}, {} within 15 s; median {:.2} s, 95 % {:.2} s, most {:.2} s; at most \
             {most} entries in a router's table, {strays} packets to third parties",
            found.len(),
            self.runs,
            self.path,
            found.iter().filter(|time| **time <= 15.0).count(),
            at(50),
            at(95),
            at(100),
        );
        assert!(found.len() * 10 >= self.runs * 9, "{times:?}");
        assert!(most <= MOST_CONNECTIONS && strays == 0);
    }

    /// Whether each node says that it reaches the other one by the path that is expected.
    fn is_there(&self) -> bool {
        let [a, b] = &self.nodes;
        [(a, b), (b, a)].into_iter().all(|(node, peer)| {
            let status = node.status();
            let peer = status
                .as_ref()
                .and_then(|status| peer_in(status, peer.name()));
            peer.is_some_and(|peer| peer["path"] == self.path && !peer["handshake_age_s"].is_null())
        })
    }
}

/// A test of each pair, and a campaign of the same name.
macro_rules! pairs {
    ($($name:ident: $pair:expr;)*) => {
        $(lab_test!($name, 300, |lab| {
            $pair.build(lab).once();
        });)*

        mod campaign {
            use super::*;

            $(lab_test!(
                #[ignore = "a campaign: make pairs"]
                $name,
                3600,
                |lab| {
                    $pair.build(lab).many(stringify!($name));
                }
            );)*
        }
    };
}

/// Five of them over rough links, which only a kernel with netem can make.
macro_rules! rough {
    ($($name:ident: $pair:expr;)*) => {
        mod rough {
            use super::*;

            $(lab_test!(
                #[ignore = "needs netem: tests/vm/run"]
                $name,
                300,
                |lab| {
                    $pair.build(lab).roughly();
                }
            );)*
        }
    };
}

use Nat::{FullCone, PortBlock, PortPreserving, Restricted, Sequential, Symmetric};
use Pair::{Direct, Guessed, OneAddress, Relayed};
use Side::{Accepting, Behind, Home, Ipv6, Nat64, Public};

pairs! {
    port_restricted_and_port_restricted: Direct(Home(PortPreserving), Home(PortPreserving));
    both_accept_on_their_wan: Direct(Accepting(PortPreserving), Accepting(PortPreserving));
    one_accepts_on_its_wan: Direct(Accepting(PortPreserving), Home(PortPreserving));
    restricted_and_port_restricted: Direct(Home(Restricted), Home(PortPreserving));
    full_cone_and_port_restricted: Direct(Home(FullCone), Home(PortPreserving));
    full_cone_and_symmetric: Direct(Home(FullCone), Home(Symmetric));
    restricted_and_symmetric: Direct(Home(Restricted), Home(Symmetric));
    restricted_and_sequential: Direct(Home(Restricted), Home(Sequential));
    public_and_symmetric: Direct(Public, Home(Symmetric));
    public_and_port_restricted: Direct(Public, Home(PortPreserving));
    ipv6_firewalls: Direct(Ipv6, Ipv6);
    double_nat_and_port_restricted: Direct(Behind(PortPreserving), Home(PortPreserving));
    ipv4_and_nat64: Direct(Home(PortPreserving), Nat64);
    one_address_that_hairpins: OneAddress { hairpins: true };
    one_address_that_does_not_hairpin: OneAddress { hairpins: false };
    symmetric_and_port_restricted: Guessed(Home(Symmetric), Home(PortPreserving));
    symmetric_and_one_that_accepts: Guessed(Home(Symmetric), Accepting(PortPreserving));
    behind_a_symmetric_carrier_and_port_restricted:
        Guessed(Behind(Symmetric), Home(PortPreserving));
    sequential_and_port_restricted: Guessed(Home(Sequential), Home(PortPreserving));
    sequential_and_sequential: Guessed(Home(Sequential), Home(Sequential));
    port_block_and_port_restricted: Guessed(Home(PortBlock), Home(PortPreserving));
    symmetric_and_symmetric: Relayed(Home(Symmetric), Home(Symmetric));
    symmetric_and_sequential: Relayed(Home(Symmetric), Home(Sequential));
}

rough! {
    port_restricted_and_port_restricted: Direct(Home(PortPreserving), Home(PortPreserving));
    restricted_and_symmetric: Direct(Home(Restricted), Home(Symmetric));
    symmetric_and_port_restricted: Guessed(Home(Symmetric), Home(PortPreserving));
    sequential_and_port_restricted: Guessed(Home(Sequential), Home(PortPreserving));
    symmetric_and_symmetric: Relayed(Home(Symmetric), Home(Symmetric));
}
