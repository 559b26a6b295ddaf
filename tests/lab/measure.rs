//! How long it takes from the start of both nodes to the first ping. `make measure` prints it.

use std::time::{Duration, Instant};

use natpunch_lab::{Host, Lab, Nat, Router, lab_test, sandbox};

use crate::world::{Discovery, Node, World, soon, within};

const RUNS: usize = 15;
/// The goal, and what natpunch-go needs, are printed beside the result; a busy machine is no
/// failure.
const GENEROUS: Duration = Duration::from_secs(3);

/// Whether somebody pings from the first moment, or only once the nodes say that they are
/// connected.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Traffic {
    Quiet,
    Pinging,
}

/// Starts both nodes; the time to the first answered ping, if it came within the deadline.
fn first_ping(nodes: &mut [Node; 2], traffic: Traffic, deadline: Instant) -> Option<Duration> {
    let [a, b] = nodes;
    let start = Instant::now();
    a.start();
    b.start();
    let pings = match traffic {
        Traffic::Pinging => {
            a.wait_log("joined the mesh", deadline)?;
            a.ping(b.address, Duration::from_millis(10))
        }
        Traffic::Quiet => {
            a.wait_log("connected at", deadline)?;
            a.ping(b.address, Duration::from_millis(10))
        }
    };
    let (at, _) = pings.first(deadline)?;
    Some(at.duration_since(start))
}

/// Two nodes behind two routers, in a mesh of their own.
fn pair(
    world: &mut World,
    router: fn(&mut Lab, &str) -> Router,
    number: usize,
) -> ([Node; 2], Vec<Router>) {
    let mut routers = Vec::new();
    world.mesh.members.clear();
    let mut nodes = ["a", "b"].map(|name| {
        let name = format!("{name}{number}");
        let router = router(&mut world.lab, &format!("nat-{name}"));
        let node = world.node_at(&router, &name);
        routers.push(router);
        node
    });
    let file = world.lab.directory().join(format!("mesh{number}.toml"));
    world.mesh.write(&file);
    for node in &mut nodes {
        node.file.clone_from(&file);
    }
    (nodes, routers)
}

/// A new pair, started and stopped; the time to its first ping.
pub(crate) fn run(world: &mut World, traffic: Traffic, number: usize) -> Option<Duration> {
    let (mut nodes, _routers) = pair(world, port_preserving, number);
    let time = first_ping(&mut nodes, traffic, within(20));
    for node in &mut nodes {
        node.stop();
        node.natpunch(&["down"]);
    }
    time
}

/// One pair after the other.
fn runs(lab: Lab, discovery: Discovery, traffic: Traffic) -> Vec<Option<Duration>> {
    let mut world = World::new(lab, discovery);
    (0..RUNS)
        .map(|number| run(&mut world, traffic, number))
        .collect()
}

/// All pairs at a time: what they mostly do is wait.
fn runs_at_once(
    lab: Lab,
    router: fn(&mut Lab, &str) -> Router,
    limit: u64,
) -> Vec<Option<Duration>> {
    let mut world = World::new(lab, Discovery::NatpunchGo);
    let mut pairs: Vec<_> = (0..RUNS)
        .map(|number| pair(&mut world, router, number))
        .collect();
    std::thread::scope(|scope| {
        let runs: Vec<_> = pairs
            .iter_mut()
            .map(|(nodes, _)| scope.spawn(move || first_ping(nodes, Traffic::Quiet, within(limit))))
            .collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    })
}

pub(crate) fn median(times: &[Duration]) -> Option<Duration> {
    let mut times = times.to_vec();
    times.sort_unstable();
    times.get(times.len() / 2).copied()
}

fn report(what: &str, times: &[Option<Duration>]) -> Option<Duration> {
    let connected: Vec<Duration> = times.iter().flatten().copied().collect();
    let median = median(&connected);
    let seconds = |time: Option<Duration>| {
        time.map_or("-".to_owned(), |time| format!("{:.3}", time.as_secs_f64()))
    };
    let (least, most) = (
        connected.iter().min().copied(),
        connected.iter().max().copied(),
    );
    println!(
        "measured: {what}: {} of {} connected, first ping after {} s (median; {} to {})",
        connected.len(),
        times.len(),
        seconds(median),
        seconds(least),
        seconds(most)
    );
    median
}

fn port_preserving(lab: &mut Lab, name: &str) -> Router {
    lab.router(name, Nat::PortPreserving).unwrap()
}

fn accepting(lab: &mut Lab, name: &str) -> Router {
    lab.accepting_router(name, Nat::PortPreserving).unwrap()
}

lab_test!(
    #[ignore = "a measurement: make measure"]
    measure_the_first_ping,
    300,
    |lab| {
        let times = runs(lab, Discovery::NatpunchGo, Traffic::Quiet);
        let median = report("two port-preserving NATs (natpunch-go: 2.1 s)", &times).unwrap();
        assert!(times.iter().all(Option::is_some));
        assert!(median < GENEROUS * sandbox::patience());
    }
);

lab_test!(
    #[ignore = "a measurement: make measure"]
    measure_the_first_ping_by_the_rendezvous,
    300,
    |lab| {
        let times = runs(lab, Discovery::Rendezvous, Traffic::Quiet);
        let median = report(
            "two port-preserving NATs, natpunch's own rendezvous",
            &times,
        )
        .unwrap();
        assert!(times.iter().all(Option::is_some));
        assert!(median < GENEROUS * sandbox::patience());
    }
);

lab_test!(
    #[ignore = "a measurement: make measure"]
    measure_the_first_ping_while_somebody_pings,
    300,
    |lab| {
        let times = runs(lab, Discovery::NatpunchGo, Traffic::Pinging);
        let median = report(
            "the same while somebody already pings (natpunch-go: 5.1 s)",
            &times,
        )
        .unwrap();
        assert!(times.iter().all(Option::is_some));
        assert!(median < GENEROUS * sandbox::patience());
    }
);

lab_test!(
    #[ignore = "a measurement: make measure"]
    measure_two_routers_that_accept_on_their_wan,
    200,
    |lab| {
        // No claim: what it takes to undo a poisoned tuple depends on how the two happen to start.
        let times = runs_at_once(lab, accepting, 120);
        report(
            "two routers that accept on their WAN (natpunch-go: 0 of 15)",
            &times,
        );
    }
);

/// One step on the way, seen in the log of the first node.
struct Step {
    what: &'static str,
    /// What its line contains.
    line: String,
}

/// Starts both nodes and gives the time to each step, and to the first ping that was sent once the
/// nodes say that they are connected.
fn steps(nodes: &mut [Node; 2], steps: &[Step]) -> Vec<Option<Duration>> {
    let [a, b] = nodes;
    let deadline = within(20);
    let start = Instant::now();
    a.start();
    b.start();
    let connected = a.wait_log("connected at", deadline);
    let ping = a.ping(b.address, Duration::from_millis(2));
    let first = connected
        .and_then(|_| ping.first(deadline))
        .map(|(at, _)| at);
    let times = steps
        .iter()
        .map(|step| a.wait_log(&step.line, deadline))
        .chain([first]);
    times
        .map(|at| at.map(|at| at.duration_since(start)))
        .collect()
}

/// Prints the medians of all steps of so many pairs, one after the other.
fn report_steps(lab: Lab, nat: Nat, title: &str, of: impl Fn(&World, &Router) -> Vec<Step>) {
    const PAIRS: usize = 9;
    let mut world = World::new(lab, Discovery::Rendezvous);
    let mut names = Vec::new();
    let mut times: Vec<Vec<Duration>> = Vec::new();
    for number in 0..PAIRS {
        let router = match nat {
            Nat::Symmetric => symmetric,
            _ => port_preserving,
        };
        let (mut nodes, routers) = pair(&mut world, router, number);
        let wanted = of(&world, &routers[1]);
        let found = steps(&mut nodes, &wanted);
        names = wanted
            .iter()
            .map(|step| step.what)
            .chain(["first ping answered"])
            .collect();
        times.resize(names.len(), Vec::new());
        times
            .iter_mut()
            .zip(found)
            .for_each(|(all, time)| all.extend(time));
        for node in &mut nodes {
            node.stop();
            node.natpunch(&["down"]);
        }
    }
    for (name, all) in names.iter().zip(&times) {
        let middle = median(all).map_or("-".to_owned(), |time| {
            format!("{:.0} ms", time.as_secs_f64() * 1e3)
        });
        println!(
            "measured: {title}: {name}: {middle} (median of {} of {PAIRS})",
            all.len()
        );
    }
    assert!(
        times.iter().all(|all| all.len() == PAIRS),
        "a step was not seen"
    );
}

fn symmetric(lab: &mut Lab, name: &str) -> Router {
    lab.router(name, Nat::Symmetric).unwrap()
}

fn steps_to_a_relay(world: &World) -> Vec<Step> {
    let server = world.server.address();
    vec![
        Step {
            what: "agent runs",
            line: "joined the mesh".to_owned(),
        },
        Step {
            what: "registered",
            line: "registered with".to_owned(),
        },
        Step {
            what: "relay bound by this side",
            line: format!("relay candidate {server}"),
        },
        Step {
            what: "relay proven and chosen",
            line: format!("endpoint {server}"),
        },
        Step {
            what: "WireGuard connected",
            line: "connected at".to_owned(),
        },
    ]
}

lab_test!(
    #[ignore = "a measurement: make measure"]
    measure_the_steps_to_a_relayed_ping,
    200,
    |lab| {
        report_steps(lab, Nat::Symmetric, "two symmetric NATs", |world, _| {
            steps_to_a_relay(world)
        });
    }
);

lab_test!(
    #[ignore = "a measurement: make measure"]
    measure_the_steps_to_a_direct_path,
    200,
    |lab| {
        report_steps(
            lab,
            Nat::PortPreserving,
            "two port-preserving NATs",
            |_, router| {
                vec![
                    Step {
                        what: "agent runs",
                        line: "joined the mesh".to_owned(),
                    },
                    Step {
                        what: "registered",
                        line: "registered with".to_owned(),
                    },
                    Step {
                        what: "direct path proven and chosen",
                        line: format!("endpoint {}", router.address()),
                    },
                    Step {
                        what: "WireGuard connected",
                        line: "connected at".to_owned(),
                    },
                ]
            },
        );
    }
);

/// What has left a host by its network card: packets and bytes.
fn sent(host: &Host) -> [u64; 2] {
    let shown = host
        .output("ip", &["-s", "-j", "link", "show", "dev", "eth0"])
        .unwrap();
    let links: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    let of = |what: &str| links[0]["stats64"]["tx"][what].as_u64().unwrap();
    [of("packets"), of("bytes")]
}

/// Packets and bytes of both nodes in a minute, while nobody talks.
fn report_idle(lab: Lab, nat: Nat, path: &str) {
    const MINUTES: u64 = 5;
    let mut world = World::new(lab, Discovery::Rendezvous);
    let ([a, b], _routers) = world.pair([nat; 2]);
    a.wait_path(&b, path, soon());
    // What is looked for at first has been found or not, the NATs are measured, and both sides know.
    std::thread::sleep(Duration::from_secs(240));
    let before = [&a, &b].map(|node| sent(&node.host));
    std::thread::sleep(Duration::from_secs(60 * MINUTES));
    let after = [&a, &b].map(|node| sent(&node.host));
    for (node, (before, after)) in [&a, &b].iter().zip(before.iter().zip(after)) {
        let [packets, bytes] = [0, 1].map(|n| (after[n] - before[n]) as f64 / MINUTES as f64);
        println!(
            "measured an idle {path} pair: node {} sends {packets:.1} packets and {bytes:.0} bytes \
             a minute, link layer and ARP included",
            node.name()
        );
    }
}

lab_test!(
    #[ignore = "a measurement: make measure"]
    measure_an_idle_direct_pair,
    700,
    |lab| {
        report_idle(lab, Nat::PortPreserving, "direct");
    }
);

lab_test!(
    #[ignore = "a measurement: make measure"]
    measure_an_idle_relayed_pair,
    700,
    |lab| {
        report_idle(lab, Nat::Symmetric, "relay");
    }
);
