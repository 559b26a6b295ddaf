//! What a pair costs while nobody talks, counted at its NATs, and that it keeps its path whatever the
//! NATs' timers are. `make idle` runs it: a quarter of an hour, all at once.

use std::process::Command;
use std::time::Duration;

use natpunch_lab::{Lab, Nat, Router, lab_test};
use serde_json::Value;

use crate::world::{Discovery, Node, World, within};

/// What is looked for at first has been found or not, the NATs are measured, and both sides know.
const SETTLED: Duration = Duration::from_secs(300);
/// For so long packets are counted.
const COUNTED: Duration = Duration::from_secs(600);

const COUNTERS: &str = "table inet natpunch_idle {
    counter out { }
    counter in { }
    chain forward { type filter hook forward priority 10;
        oifname wan meta l4proto udp counter name out
        iifname wan meta l4proto udp counter name in
    }
}";

/// How the pair is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Path {
    Direct,
    Pinned,
    Relayed,
}

impl Path {
    fn nats(self) -> [Nat; 2] {
        match self {
            Path::Direct => [Nat::PortPreserving, Nat::PortPreserving],
            Path::Pinned => [Nat::Symmetric, Nat::PortPreserving],
            Path::Relayed => [Nat::Symmetric, Nat::Symmetric],
        }
    }

    fn kind(self) -> &'static str {
        match self {
            Path::Direct | Path::Pinned => "direct",
            Path::Relayed => "relay",
        }
    }
}

/// Sets how long a router holds a mapping that nothing passes.
fn set_lifetime(router: &Router, seconds: u32) {
    let directory = "/proc/sys/net/netfilter";
    let script = format!(
        "echo {} > {directory}/nf_conntrack_udp_timeout && \
         echo {seconds} > {directory}/nf_conntrack_udp_timeout_stream",
        seconds.min(30)
    );
    let mut command = Command::new("sh");
    command.args(["-c", &script]);
    let status = router.spawn(command).unwrap().child().wait().unwrap();
    assert!(status.success());
}

/// Packets and bytes that its host has sent, and that came for it.
fn counted(router: &Router) -> [[u64; 2]; 2] {
    let rules = router.rules().unwrap();
    ["counter out {", "counter in {"].map(|counter| {
        let (_, rest) = rules.split_once(counter).unwrap();
        let mut numbers = rest.split_whitespace().filter_map(|word| word.parse().ok());
        [numbers.next().unwrap(), numbers.next().unwrap()]
    })
}

/// Where WireGuard sends to, and from which port.
fn path(node: &Node, peer: &Node) -> (Value, Value) {
    let status = node.status().unwrap();
    let of_peer = crate::world::peer_in(&status, peer.name()).unwrap();
    (of_peer["endpoint"].clone(), of_peer["local"].clone())
}

/// The paths that a node has lost in the time of the measurement.
fn lost(node: &Node, peer: &Node) -> Vec<String> {
    let output = node.natpunch(&["why", peer.name(), "--json"]);
    let why: Value = serde_json::from_slice(&output.stdout).unwrap();
    let steps = ["changes", "steps"].map(|what| why[what].as_array().unwrap().clone());
    let lately = |step: &Value| step["ago_s"].as_f64().unwrap() < COUNTED.as_secs_f64();
    let texts = steps.concat().into_iter().filter(lately);
    let texts = texts.map(|step| step["text"].as_str().unwrap().to_owned());
    texts
        .filter(|text| text.contains("stopped answering"))
        .collect()
}

/// An idle pair behind NATs of such timers: what it costs, and that it stays.
fn idle(lab: Lab, of: Path, seconds: u32) {
    let mut world = World::new(lab, Discovery::Rendezvous);
    let [one, other] = of.nats();
    let (mut a, nat_a) = world.node_behind(one, "a");
    let (mut b, nat_b) = world.node_behind(other, "b");
    for router in [&nat_a, &nat_b] {
        set_lifetime(router, seconds);
        router.nft(COUNTERS).unwrap();
    }
    world.write_mesh();
    a.start();
    b.start();
    a.wait_path(&b, of.kind(), within(200));
    b.wait_path(&a, of.kind(), within(200));
    std::thread::sleep(SETTLED);
    let before = [path(&a, &b), path(&b, &a)];
    let counts = [&nat_a, &nat_b].map(counted);
    std::thread::sleep(COUNTED);
    let after = [&nat_a, &nat_b].map(counted);
    let minutes = COUNTED.as_secs_f64() / 60.0;
    for (node, (before, after)) in [&a, &b].iter().zip(counts.iter().zip(after)) {
        let rate =
            |way: usize, what: usize| (after[way][what] - before[way][what]) as f64 / minutes;
        println!(
            "measured: an idle pair, {of:?}, NATs of {seconds} s, node {}: {:.1} packets and {:.0} \
             bytes out, {:.1} and {:.0} in, a minute",
            node.name(),
            rate(0, 0),
            rate(0, 1),
            rate(1, 0),
            rate(1, 1),
        );
    }
    let lost = [lost(&a, &b), lost(&b, &a)].concat();
    println!(
        "measured: an idle pair, {of:?}, NATs of {seconds} s: paths lost {lost:?}, pinned {}",
        before
            .iter()
            .any(|(_, local)| local.get("source-port").is_some())
    );
    assert!(lost.is_empty(), "{lost:?}");
    assert_eq!([path(&a, &b), path(&b, &a)], before);
    assert!(a.reaches(b.address) && b.reaches(a.address));
}

macro_rules! idle_pairs {
    ($($name:ident: $path:ident, $seconds:literal;)*) => {$(
        lab_test!(
            #[ignore = "a measurement of a quarter of an hour: make idle"]
            $name,
            1_400,
            |lab| { idle(lab, Path::$path, $seconds); }
        );
    )*};
}

idle_pairs! {
    idle_direct_behind_nats_of_15_s: Direct, 15;
    idle_direct_behind_nats_of_30_s: Direct, 30;
    idle_direct_behind_nats_of_60_s: Direct, 60;
    idle_direct_behind_nats_of_120_s: Direct, 120;
    idle_pinned_behind_nats_of_15_s: Pinned, 15;
    idle_pinned_behind_nats_of_30_s: Pinned, 30;
    idle_pinned_behind_nats_of_60_s: Pinned, 60;
    idle_pinned_behind_nats_of_120_s: Pinned, 120;
    idle_relayed_behind_nats_of_15_s: Relayed, 15;
    idle_relayed_behind_nats_of_30_s: Relayed, 30;
    idle_relayed_behind_nats_of_60_s: Relayed, 60;
    idle_relayed_behind_nats_of_120_s: Relayed, 120;
}
