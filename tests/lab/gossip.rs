//! Peers that help each other when every server is gone.

use std::time::{Duration, Instant};

use natpunch_lab::{Lab, Nat, Router, lab_test};
use serde_json::Value;

use crate::world::{Discovery, Node, World, soon, within};

const INTERVAL: Duration = Duration::from_millis(50);
const GOSSIP: &str = "[discovery.gossip]\nplugin = \"gossip\"\n";

/// Two nodes behind NATs and a helper on the internet, all connected, and then no server any more.
struct Serverless {
    world: World,
    mover: Node,
    other: Node,
    helper: Node,
    /// Where the mover goes.
    office: Router,
    _routers: [Router; 2],
}

impl Serverless {
    fn start(lab: Lab, sections: &str) -> Self {
        let mut world = World::new(lab, Discovery::Rendezvous);
        world.mesh.discovery.push_str(sections);
        let (mover, nat_mover) = world.node_behind(Nat::PortPreserving, "mover");
        let (other, nat_other) = world.node_behind(Nat::PortPreserving, "other");
        let helper = world.lab.public_host("helper").unwrap();
        let helper = world.node(helper);
        let office = world.lab.router("office", Nat::PortPreserving).unwrap();
        world.write_mesh();
        let mut nodes = [mover, other, helper];
        nodes.iter_mut().for_each(Node::start);
        for (node, peer) in [(0, 1), (0, 2), (1, 0), (1, 2)] {
            nodes[node].wait_path(&nodes[peer], "direct", soon());
        }
        world.server.kill();
        let [mover, other, helper] = nodes;
        Self {
            world,
            mover,
            other,
            helper,
            office,
            _routers: [nat_mover, nat_other],
        }
    }

    /// Moves the mover; when.
    fn moves(&mut self) -> Instant {
        let moved = Instant::now();
        let host = &mut self.mover.host;
        self.world.lab.move_behind(host, &self.office).unwrap();
        moved
    }
}

/// The origins of the candidate of this peer at an address of this router.
fn origins_at(peer: &Value, router: &Router) -> Option<Vec<String>> {
    let start = format!("{}:", router.address());
    let is_there = |candidate: &&Value| {
        let address = candidate["address"].as_str();
        address.is_some_and(|address| address.starts_with(&start))
    };
    let candidate = peer["candidates"].as_array()?.iter().find(is_there)?;
    let origins = candidate["origins"].as_array()?.iter();
    Some(
        origins
            .filter_map(|origin| Some(origin.as_str()?.to_owned()))
            .collect(),
    )
}

lab_test!(
    a_node_that_moves_is_found_by_a_peer_when_every_server_is_gone,
    90,
    |lab| {
        let mut all = Serverless::start(lab, GOSSIP);
        let ping = all.mover.ping(all.other.address, INTERVAL);
        assert!(ping.wait_for(3, soon()));
        let moved = all.moves();
        assert!(
            ping.wait_for(1, within(40)),
            "no ping was answered after the move"
        );
        println!(
            "pings again {:.2} s after the move, with no server",
            moved.elapsed().as_secs_f64()
        );
        let office = &all.office;
        all.other
            .wait_peer("mover", "a candidate of the gossip", soon(), |peer| {
                let origins = origins_at(peer, office)?;
                origins.contains(&"gossip".to_owned()).then_some(())
            });
        let why = all.other.natpunch(&["why", "mover", "--verbose"]).stdout;
        let why = String::from_utf8(why).unwrap();
        assert!(why.contains("gossip"), "{why}");
        let from_helper = all.helper.ping(all.mover.address, INTERVAL);
        assert!(from_helper.wait_for(1, soon()), "the helper keeps its path");
    }
);

lab_test!(
    without_gossip_the_same_move_ends_a_pair_until_gossip_is_added,
    90,
    |lab| {
        let mut all = Serverless::start(lab, "");
        let ping = all.mover.ping(all.other.address, INTERVAL);
        assert!(ping.wait_for(3, soon()));
        all.moves();
        let to_helper = all.mover.ping(all.helper.address, INTERVAL);
        assert!(
            to_helper.wait_for(3, soon()),
            "the helper is on the internet"
        );
        assert!(
            !ping.wait_for(1, Instant::now() + Duration::from_secs(8)),
            "nobody can have told the new address"
        );
        all.world.mesh.discovery.push_str(GOSSIP);
        all.world.write_mesh();
        let added = Instant::now();
        assert!(
            ping.wait_for(1, within(40)),
            "no ping was answered with gossip"
        );
        println!(
            "pings again {:.2} s after gossip was added",
            added.elapsed().as_secs_f64()
        );
    }
);
