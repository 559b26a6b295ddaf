//! Peers on demand, with real devices: the first packet wakes the pair and is answered.

use std::time::{Duration, Instant};

use natpunch_lab::{Nat, Router, lab_test};

use crate::measure::median;
use crate::world::{Discovery, Node, World, soon, within};

pub(crate) const ON_DEMAND: &str = "connect = \"on-demand\"\n";

/// A router for each side of a pair.
fn routers(world: &mut World, nats: [Nat; 2], number: usize) -> [Router; 2] {
    [("a", nats[0]), ("b", nats[1])].map(|(side, nat)| {
        let name = format!("nat-{side}{number}");
        world.lab.router(&name, nat).unwrap()
    })
}

/// A new pair behind these routers: both nodes have started, are registered, and rest.
fn pair_at_rest(world: &mut World, routers: &[Router; 2], number: usize) -> [Node; 2] {
    world.mesh.members.clear();
    let [behind_a, behind_b] = routers;
    let mut nodes = [("a", behind_a), ("b", behind_b)]
        .map(|(side, router)| world.node_at(router, &format!("{side}{number}")));
    for member in &mut world.mesh.members {
        member.more.push_str(ON_DEMAND);
    }
    let file = world.lab.directory().join(format!("mesh{number}.toml"));
    world.mesh.write(&file);
    for node in &mut nodes {
        node.file.clone_from(&file);
        node.start();
    }
    for node in &nodes {
        node.wait(
            &format!("{} is registered and rests", node.name()),
            soon(),
            |status| {
                let registered = status["discovery"][0]["ok"] == true
                    && status["local"]
                        .as_array()?
                        .iter()
                        .any(|own| own["kind"] == "reflexive");
                let rests = status["peers"][0]["state"] == "resting";
                (registered && rests).then_some(())
            },
        );
    }
    nodes
}

/// One packet, and the time until it is answered; its answer's number.
pub(crate) fn first_ping(from: &Node, to: &Node) -> (Duration, u64) {
    let start = Instant::now();
    let ping = from.ping(to.address, Duration::from_millis(200));
    let (at, answer) = ping.first(soon()).expect("a ping is answered");
    (at.duration_since(start), answer.sequence)
}

fn runs(world: &mut World, nats: [Nat; 2], count: usize) -> Vec<Duration> {
    // A lab has addresses for so many.
    let routers: Vec<[Router; 2]> = (0..count.min(10))
        .map(|number| routers(world, nats, number))
        .collect();
    let mut times = Vec::new();
    for number in 0..count {
        let mut nodes = pair_at_rest(world, &routers[number % routers.len()], number);
        let (from, to) = if number % 2 == 0 { (0, 1) } else { (1, 0) };
        let (took, sequence) = first_ping(&nodes[from], &nodes[to]);
        assert_eq!(sequence, 1, "run {number}: the first packet was lost");
        times.push(took);
        for node in &mut nodes {
            node.stop();
            node.natpunch(&["down"]);
        }
    }
    times
}

fn report(what: &str, times: &[Duration]) {
    let (least, most) = (times.iter().min().unwrap(), times.iter().max().unwrap());
    println!(
        "measured: {what}: {} first packets, all answered, after {:.3} s (median; {:.3} to {:.3})",
        times.len(),
        median(times).unwrap().as_secs_f64(),
        least.as_secs_f64(),
        most.as_secs_f64()
    );
}

lab_test!(
    the_first_packet_wakes_a_pair_on_demand_and_is_answered,
    90,
    |lab| {
        let mut world = World::new(lab, Discovery::Rendezvous);
        let times = runs(&mut world, [Nat::PortPreserving; 2], 2);
        report("two port-preserving NATs, on demand", &times);
    }
);

lab_test!(
    #[ignore = "a measurement: make measure"]
    measure_first_packets_on_demand,
    600,
    |lab| {
        let mut world = World::new(lab, Discovery::Rendezvous);
        let times = runs(&mut world, [Nat::PortPreserving; 2], 50);
        report("two port-preserving NATs, on demand", &times);
    }
);

lab_test!(
    a_pair_on_demand_connects_by_a_relay_and_is_left_a_path_when_its_agent_stops,
    90,
    |lab| {
        let mut world = World::new(lab, Discovery::Rendezvous);
        let routers = routers(&mut world, [Nat::Symmetric; 2], 0);
        let [mut a, b] = pair_at_rest(&mut world, &routers, 0);
        let (_, sequence) = first_ping(&a, &b);
        assert_eq!(sequence, 1, "the first packet was lost");
        // What is awake when the agent stops goes on without it.
        a.stop();
        assert!(a.reaches(b.address));
    }
);

/// Datagrams that a host has sent on all its links but the loopback one and the mesh's.
fn sent(node: &Node) -> u64 {
    let output = node.host.output("cat", &["/proc/net/dev"]).unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let links = text.lines().filter_map(|line| line.split_once(':'));
    let outer = links.filter(|(name, _)| !["lo", "wg-lab"].contains(&name.trim()));
    outer
        .filter_map(|(_, counts)| counts.split_whitespace().nth(9)?.parse::<u64>().ok())
        .sum()
}

/// CPU seconds that a process has used, and its memory in MB.
fn cost(pid: i64) -> (f64, u64) {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, rest) = stat.rsplit_once(')').unwrap();
    let field = |n: usize| rest.split_whitespace().nth(n)?.parse::<f64>().ok();
    let ticks = field(11).unwrap() + field(12).unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let memory = status.lines().find(|line| line.starts_with("VmRSS"));
    let memory = memory.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    (ticks / 100.0, memory.unwrap() / 1000)
}

/// What a node has used of its links, and its agent and its device of the machine.
struct Used {
    at: Instant,
    sent: u64,
    processes: [(f64, u64); 2],
}

impl Used {
    fn by(node: &mut Node) -> Self {
        let deadline = within(120);
        let device = node.wait("its device", deadline, |status| {
            status["device"]["pid"].as_i64()
        });
        let pids = [i64::from(node.pid().as_raw()), device];
        Self {
            at: Instant::now(),
            sent: sent(node),
            processes: pids.map(cost),
        }
    }

    /// What has come to it since.
    fn report_since(node: &mut Node, what: &str, before: &Self) {
        let now = Self::by(node);
        let hours = now.at.duration_since(before.at).as_secs_f64() / 3600.0;
        println!(
            "measured: {what}: {:.1} packets a minute, ARP included",
            (now.sent - before.sent) as f64 / hours / 60.0
        );
        let processes = now.processes.iter().zip(&before.processes);
        for ((now, before), name) in processes.zip(["agent", "device"]) {
            println!(
                "measured: {what}: {name}: {:.0} s of CPU an hour, {} MB",
                (now.0 - before.0) / hours,
                now.1
            );
        }
    }
}

lab_test!(
    #[ignore = "a measurement: make measure"]
    measure_ten_thousand_peers_on_demand,
    1_800,
    |lab| {
        const PEERS: usize = 10_000;
        const ACTIVE: usize = 20;
        const COUNTED: Duration = Duration::from_secs(120);
        // What comes at the start is over then.
        const SETTLED: Duration = Duration::from_secs(60);
        let mut world = World::new(lab, Discovery::Rendezvous);
        world.mesh.networks = "10.77.0.0/16".to_owned();
        let (mut a, _router) = world.node_behind(Nat::PortPreserving, "a");
        let routers: Vec<Router> = (0..5)
            .map(|number| {
                let name = format!("nat{number}");
                world.lab.router(&name, Nat::PortPreserving).unwrap()
            })
            .collect();
        let mut others: Vec<Node> = (0..ACTIVE)
            .map(|number| world.node_at(&routers[number % routers.len()], &format!("n{number}")))
            .collect();
        for number in others.len()..PEERS {
            let mut bytes = [7; 32];
            bytes[..8].copy_from_slice(&number.to_be_bytes());
            let key = natpunch_types::PeerKey::from_bytes(bytes);
            let name = format!("p{number}");
            world.mesh.add(&name, &key.to_string(), "");
        }
        for member in &mut world.mesh.members {
            member.more.push_str(ON_DEMAND);
        }
        world.write_mesh();
        // The machine carries one node with all peers. The others have it alone in their file.
        for node in &mut others {
            let mut mesh = world.mesh.clone();
            mesh.members
                .retain(|member| ["a", node.name()].contains(&member.name.as_str()));
            node.file = node.host.directory().unwrap().join("mesh.toml");
            mesh.write(&node.file);
            node.log = "warn";
            node.start();
        }
        a.log = "info";
        a.start();
        let is_up =
            |status: &serde_json::Value| (status["discovery"][0]["ok"] == true).then_some(());
        for node in others.iter().chain([&a]) {
            node.wait("registered", within(200), is_up);
        }
        std::thread::sleep(SETTLED);
        let before = Used::by(&mut a);
        std::thread::sleep(COUNTED);
        Used::report_since(&mut a, "10,000 peers at rest", &before);
        let mut times = Vec::new();
        for node in &others {
            let (took, sequence) = first_ping(&a, node);
            assert_eq!(sequence, 1, "the first packet was lost");
            times.push(took);
        }
        report("10,000 peers, 20 are woken in turn", &times);
        let pings: Vec<_> = others
            .iter()
            .map(|node| a.ping(node.address, Duration::from_secs(1)))
            .collect();
        std::thread::sleep(SETTLED);
        let before = Used::by(&mut a);
        std::thread::sleep(COUNTED);
        let what = "10,000 peers, 20 of them pinged each second";
        Used::report_since(&mut a, what, &before);
        let lost: u64 = pings.into_iter().map(|ping| ping.stop().lost()).sum();
        println!("measured: {what}: {lost} pings lost");
        let direct = a.wait("its peers", within(120), |status| {
            let peers = status["peers"].as_array()?.iter();
            Some(peers.filter(|peer| peer["path"] == "direct").count())
        });
        println!("measured: {what}: {direct} paths are direct");
    }
);
