//! A mesh that serves itself: `serve = true`, and no server but its own node.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use natpunch_lab::{Lab, Nat, Router, lab_test};

use crate::mesh::Mesh;
use crate::world::{Node, soon};

/// A public hub that serves, and two nodes behind NATs.
pub(crate) struct SelfServed {
    mesh: Mesh,
    /// The hub's own copy of the mesh file.
    hub_file: PathBuf,
    pub(crate) hub: Node,
    pub(crate) nodes: [Node; 2],
    _routers: [Router; 2],
}

impl SelfServed {
    pub(crate) fn new(lab: &mut Lab, nats: [Nat; 2]) -> Self {
        let file = lab.directory().join("mesh.toml");
        let mut mesh = Mesh::default();
        let hub = lab.public_host("hub").unwrap();
        let more = format!(
            "endpoint = \"{}:51820\"\nserve = true\n",
            hub.ipv4().unwrap()
        );
        let hub_file = hub.directory().unwrap().join("mesh.toml");
        let hub = Node::new(hub, &mut mesh, hub_file.clone(), &more);
        let mut routers = Vec::new();
        let nodes = [("a", nats[0]), ("b", nats[1])].map(|(name, nat)| {
            let router = lab.router(&format!("nat-{name}"), nat).unwrap();
            let host = lab.host_behind(&router, name).unwrap();
            routers.push(router);
            Node::new(host, &mut mesh, file.clone(), "")
        });
        mesh.write(&file);
        mesh.write(&hub_file);
        SelfServed {
            mesh,
            hub_file,
            hub,
            nodes,
            _routers: routers.try_into().ok().unwrap(),
        }
    }

    pub(crate) fn start(&mut self) {
        self.hub.start();
        self.nodes.iter_mut().for_each(Node::start);
    }
}

/// Waits until so many sessions are on the hub.
fn wait_sessions(hub: &Node, sessions: u64, deadline: Instant) {
    hub.wait(&format!("{sessions} sessions"), deadline, |status| {
        (status["serving"]["sessions"] == sessions).then_some(())
    });
}

lab_test!(
    a_node_that_serves_connects_its_mesh_without_any_other_server,
    90,
    |lab| {
        let mut served = SelfServed::new(&mut lab, [Nat::PortPreserving; 2]);
        served.start();
        let [a, b] = &served.nodes;
        for (node, peer) in [(a, b), (b, a)] {
            node.wait_path(peer, "direct", soon());
            assert!(node.reaches(peer.address));
            assert!(node.reaches(served.hub.address));
        }
        wait_sessions(&served.hub, 2, soon());
        let status = String::from_utf8(served.hub.natpunch(&["status"]).stdout).unwrap();
        assert!(
            status.contains("serves the mesh on UDP port 51900, 2 registered"),
            "{status}"
        );

        // Whoever is taken out of the file is out at once.
        let mut without_b = served.mesh.clone();
        without_b.members.retain(|member| member.name != "b");
        without_b.write(&served.hub_file);
        wait_sessions(&served.hub, 1, soon());

        // The hub's agent may end: the tunnels of the others stay.
        let ping = a.ping(b.address, Duration::from_millis(50));
        served.hub.kill();
        assert!(ping.wait_for(ping.so_far().answers.len() + 20, soon()));
        let pings = ping.stop();
        assert_eq!(pings.lost(), 0, "longest pause {:?}", pings.longest_gap());
    }
);

lab_test!(
    a_node_that_serves_relays_for_two_symmetric_nats,
    60,
    |lab| {
        let mut served = SelfServed::new(&mut lab, [Nat::Symmetric; 2]);
        served.start();
        let [a, b] = &served.nodes;
        for (node, peer) in [(a, b), (b, a)] {
            let status = node.wait_path(peer, "relay", soon());
            let hub = served.hub.host.ipv4().unwrap().to_string();
            assert!(
                status["endpoint"].as_str().unwrap().starts_with(&hub),
                "{status:#}"
            );
            assert!(node.reaches(peer.address));
        }
        let status = String::from_utf8(a.natpunch(&["status"]).stdout).unwrap();
        assert!(status.contains("relay (hub)"), "{status}");
    }
);
