//! Peers on demand, with real devices: the first packet wakes the pair and is answered.

use std::time::{Duration, Instant};

use natpunch_lab::{Nat, Router, lab_test};

use crate::measure::median;
use crate::world::{Discovery, Node, World, soon};

const ON_DEMAND: &str = "connect = \"on-demand\"\n";

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
fn first_ping(from: &Node, to: &Node) -> (Duration, u64) {
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
