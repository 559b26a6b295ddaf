//! What is logged while nothing happens: nothing. Whoever reads a log looks for what happened.

use std::time::Duration;

use natpunch_lab::{Lab, Nat, lab_test, sandbox};

use crate::port_mapping::{self, Speaks};
use crate::serving::SelfServed;
use crate::world::{Discovery, Node, World, soon};

/// Until what is tried after the first path is over, on a machine that does nothing else: the last
/// line, that a router maps no ports, comes after five.
const START: Duration = Duration::from_secs(12);
/// Longer than from one renewal of a registration to the next.
const QUIET: Duration = Duration::from_secs(108);
/// An hour's log has fewer lines than this.
const MOST: usize = 20;

/// What somebody has logged until all was up, and in the quiet after it.
struct Log {
    of: &'static str,
    start: Vec<String>,
    quiet: Vec<String>,
}

impl Log {
    /// Reads logs now, and again after `quiet`.
    fn of<const N: usize>(
        quiet: Duration,
        names: [&'static str; N],
        read: impl Fn() -> [Vec<String>; N],
    ) -> [Self; N] {
        std::thread::sleep(START * sandbox::patience());
        let before = read().map(|lines| lines.len());
        std::thread::sleep(quiet);
        let mut logs = read().into_iter().zip(before).zip(names);
        std::array::from_fn(|_| {
            let ((mut start, length), of) = logs.next().unwrap();
            let quiet = start.split_off(length);
            Self { of, start, quiet }
        })
    }

    fn show(&self) {
        for (what, lines) in [("start", &self.start), ("quiet", &self.quiet)] {
            println!("measured: {}, {what}: {} lines", self.of, lines.len());
            for line in lines {
                println!("measured:     {line}");
            }
        }
    }
}

/// Two nodes behind NATs by a server. The router of one of them maps ports.
fn with_a_server(lab: Lab, quiet: Duration) -> [Log; 3] {
    let mut world = World::new(lab, Discovery::Rendezvous);
    let router = world.lab.global_router("nat-a", Nat::PortPreserving);
    let router = router.unwrap();
    let _daemon = port_mapping::serve(&world.lab, "a", &router, Speaks::Pcp, "");
    let mut a = world.node_at(&router, "a");
    let (mut b, _nat) = world.node_behind(Nat::PortPreserving, "b");
    world.write_mesh();
    for node in [&mut a, &mut b] {
        node.log = "info";
        node.start();
    }
    a.wait_path(&b, "direct", soon());
    b.wait_path(&a, "direct", soon());
    Log::of(quiet, ["node a", "node b", "server"], || {
        [a.logged(), b.logged(), world.server.logged()]
    })
}

/// A hub that serves two nodes behind NATs.
fn with_a_hub(mut lab: Lab, quiet: Duration) -> [Log; 3] {
    let mut served = SelfServed::new(&mut lab, [Nat::PortPreserving; 2]);
    let [a, b] = &mut served.nodes;
    for node in [&mut served.hub, a, b] {
        node.log = "info";
    }
    served.start();
    let [a, b] = &served.nodes;
    for (node, peer) in [(a, b), (b, a), (a, &served.hub), (b, &served.hub)] {
        node.wait_path(peer, "direct", soon());
    }
    Log::of(quiet, ["hub", "its node a", "its node b"], || {
        [&served.hub, a, b].map(Node::logged)
    })
}

fn assert_quiet(logs: [Log; 3]) {
    for log in logs {
        assert!(log.quiet.is_empty(), "{}: {:#?}", log.of, log.quiet);
        assert!(log.start.len() < MOST, "{}: {:#?}", log.of, log.start);
    }
}

lab_test!(
    nodes_and_their_server_log_nothing_while_nothing_happens,
    300,
    |lab| { assert_quiet(with_a_server(lab, QUIET)) }
);

lab_test!(
    a_hub_that_serves_and_its_nodes_log_nothing_while_nothing_happens,
    300,
    |lab| { assert_quiet(with_a_hub(lab, QUIET)) }
);

const HOUR: Duration = Duration::from_secs(3600);

fn assert_few(logs: [Log; 3]) {
    logs.iter().for_each(Log::show);
    for log in logs {
        assert!(log.start.len() + log.quiet.len() < MOST, "{}", log.of);
    }
}

lab_test!(
    #[ignore = "takes an hour: make quiet"]
    quiet_hour_of_nodes_and_a_server,
    3_800,
    |lab| { assert_few(with_a_server(lab, HOUR)) }
);

lab_test!(
    #[ignore = "takes an hour: make quiet"]
    quiet_hour_of_a_hub_that_serves,
    3_800,
    |lab| { assert_few(with_a_hub(lab, HOUR)) }
);
