//! The embedded device against wireguard-go, in one run: two namespaces, a cable (MTU 1500), one
//! device in each.
//!
//! `cargo bench -p natpunch-wg --bench dataplane`. Needs root, wireguard-go, iperf3, ping. Rounds
//! are interleaved and medians are shown. On a shared machine trust the CPU figures, which are of
//! the two device processes. NATPUNCH_BENCH_ROUNDS (3) and NATPUNCH_BENCH_SECONDS (5) set the
//! length.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr
)]

#[path = "../tests/devices/common.rs"]
#[allow(dead_code)]
mod common;

use std::fs;
use std::process::{Child, Command, Stdio};

use common::{Netns, peer, spec, start_wireguard_go, unique_name, until};
use natpunch_wg::{BackendChoice, Interface, InterfaceSpec};

/// Small packets per second: far below what any device can carry.
const SMALL_RATE: u64 = 20_000;
const SMALL_BYTES: u64 = 64;

fn main() {
    // `cargo test --benches` passes arguments of the test harness; this takes none.
    let rounds = setting("NATPUNCH_BENCH_ROUNDS", 3);
    let seconds = setting("NATPUNCH_BENCH_SECONDS", 5);
    let kinds = [
        ("embedded", BackendChoice::Userspace),
        ("wireguard-go", BackendChoice::External),
    ];
    let mut samples = kinds.map(|_| Vec::new());
    for round in 1..=rounds {
        for ((name, backend), samples) in kinds.iter().zip(&mut samples) {
            let sample = measure(*backend, seconds);
            eprintln!("round {round}, {name}: {sample:?}");
            samples.push(sample);
        }
    }
    println!("{:<40}{:>14}{:>14}   goal", "", kinds[0].0, kinds[1].0);
    type Figure = (&'static str, fn(&Sample) -> f64, Option<f64>);
    let figures: [Figure; 7] = [
        ("TCP, 1 stream, Gbit/s", |s| s.tcp_gbit, None),
        (
            "TCP, CPU s per GB, both devices",
            |s| s.cpu_per_gb,
            Some(1.0),
        ),
        (
            "small UDP, CPU s per million packets",
            |s| s.cpu_per_million,
            Some(1.0 / 3.0),
        ),
        ("small UDP lost, %", |s| s.lost_percent, None),
        ("ping, median, us", |s| s.ping_median, None),
        ("ping, p99, us", |s| s.ping_p99, None),
        ("memory, peak MB, larger device", |s| s.memory_mb, None),
    ];
    for (label, figure, goal) in figures {
        let [ours, theirs] = [0, 1].map(|kind| median(samples[kind].iter().map(figure).collect()));
        let goal = match goal {
            Some(share) if ours <= share * theirs => {
                format!("met: at most {share:.2} of wireguard-go")
            }
            Some(share) => format!("MISSED: at most {share:.2} of wireguard-go"),
            None if label.starts_with("memory") && ours <= 40.0 => "met: at most 40 MB".into(),
            None if label.starts_with("memory") => "MISSED: at most 40 MB".into(),
            None if label.starts_with("TCP, 1") && ours >= theirs => {
                "met: at least wireguard-go".into()
            }
            None if label.starts_with("TCP, 1") => "MISSED: at least wireguard-go".into(),
            None => String::new(),
        };
        println!("{label:<40}{ours:>14.2}{theirs:>14.2}   {goal}");
    }
}

fn setting(variable: &str, default: u64) -> u64 {
    std::env::var(variable)
        .ok()
        .and_then(|value| value.parse().ok())
        .unwrap_or(default)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[derive(Debug)]
struct Sample {
    tcp_gbit: f64,
    cpu_per_gb: f64,
    cpu_per_million: f64,
    lost_percent: f64,
    ping_median: f64,
    ping_p99: f64,
    memory_mb: f64,
}

/// Two devices of one kind and the processes that run them.
struct Pair {
    ends: [(Netns, InterfaceSpec); 2],
    external: Vec<Child>,
    pids: Vec<i32>,
    _directory: tempfile::TempDir,
}

impl Pair {
    fn new(backend: BackendChoice) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let namespaces = [Netns::new(), Netns::new()];
        namespaces[0].cable(&namespaces[1], "192.0.2.1/24", "192.0.2.2/24");
        let mut specs = [0x41, 0x42].map(|key| spec(&unique_name(), directory.path(), key));
        for spec in &mut specs {
            spec.backend = backend;
        }
        let ends = [
            ("10.5.0.1/24", 1, "192.0.2.2:51820"),
            ("10.5.0.2/24", 0, "192.0.2.1:51820"),
        ];
        for (i, (address, other, endpoint)) in ends.into_iter().enumerate() {
            let other = specs[other].clone();
            specs[i].addresses = vec![address.parse().unwrap()];
            let allowed = if i == 0 { "10.5.0.2/32" } else { "10.5.0.1/32" };
            let mut peer = peer(&other, &[allowed]);
            peer.endpoint = Some(endpoint.parse().unwrap());
            specs[i].peers = vec![peer];
        }
        let mut external = Vec::new();
        for (netns, spec) in namespaces.iter().zip(&specs) {
            if backend == BackendChoice::External {
                external.push(start_wireguard_go(netns, &spec.name));
            }
            let spec = spec.clone();
            netns.run(move || Interface::open(&spec)).unwrap();
        }
        let pids = match external.as_slice() {
            [] => specs
                .iter()
                .map(|spec| common::device_pid(&spec.name).expect("a device process"))
                .collect(),
            children => children
                .iter()
                .map(|child| i32::try_from(child.id()).unwrap())
                .collect(),
        };
        let [a, b] = namespaces;
        let [spec_a, spec_b] = specs;
        Self {
            ends: [(a, spec_a), (b, spec_b)],
            external,
            pids,
            _directory: directory,
        }
    }

    fn cpu_seconds(&self) -> f64 {
        let ticks = |pid: &i32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            let fields: Vec<_> = stat
                .rsplit_once(')')
                .unwrap()
                .1
                .split_whitespace()
                .collect();
            // utime and stime, proc(5).
            fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()
        };
        self.pids.iter().map(ticks).sum::<f64>() / 100.0
    }

    fn peak_memory_mb(&self) -> f64 {
        let peak = |pid: &i32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix("VmHWM:"))
                .unwrap();
            line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
        };
        self.pids.iter().map(peak).fold(0.0, f64::max)
    }

    /// iperf3 from a to b, and the CPU time that the devices used meanwhile.
    fn iperf(&self, args: &str) -> (serde_json::Value, f64) {
        let mut server = self.ends[1].0.run(|| {
            Command::new("iperf3")
                .args(["-s", "-1", "-B", "10.5.0.2"])
                .stdout(Stdio::null())
                .spawn()
                .unwrap()
        });
        let namespace = &self.ends[0].0;
        until("iperf3 listens", || {
            self.ends[1].0.sh("ss -Htln sport = :5201").contains("5201")
        });
        let before = self.cpu_seconds();
        let answer = namespace.sh(&format!("iperf3 -J -c 10.5.0.2 {args}"));
        let used = self.cpu_seconds() - before;
        server.wait().unwrap();
        (serde_json::from_str(&answer).unwrap(), used)
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for (netns, spec) in &self.ends {
            let spec = spec.clone();
            let _ =
                netns.run(move || natpunch_wg::down(&spec.name, &spec.owner, &spec.runtime_dir));
        }
        for (child, (_, spec)) in self.external.iter_mut().zip(&self.ends) {
            let _ = child.kill();
            let _ = child.wait();
            let _ = fs::remove_file(format!("/var/run/wireguard/{}.sock", spec.name));
        }
    }
}

fn measure(backend: BackendChoice, seconds: u64) -> Sample {
    let pair = Pair::new(backend);
    let ping = pair.ends[0].0.sh("ping -q -c 3 -i 0.2 10.5.0.2");
    assert!(ping.contains("received"), "{ping}");

    let (tcp, tcp_cpu) = pair.iperf(&format!("-t {seconds}"));
    let received = &tcp["end"]["sum_received"];
    let gigabytes = received["bytes"].as_f64().unwrap() / 1e9;

    let rate = SMALL_RATE * SMALL_BYTES * 8;
    let (udp, udp_cpu) = pair.iperf(&format!("-u -l {SMALL_BYTES} -b {rate} -t {seconds}"));
    let sum = &udp["end"]["sum"];

    let times = pair.ends[0].0.sh("ping -c 500 -i 0.005 10.5.0.2");
    let mut times: Vec<f64> = times
        .lines()
        .filter_map(|line| {
            line.split_once("time=")?
                .1
                .trim_end_matches(" ms")
                .parse()
                .ok()
        })
        .map(|milliseconds: f64| milliseconds * 1e3)
        .collect();
    times.sort_by(f64::total_cmp);

    Sample {
        tcp_gbit: received["bits_per_second"].as_f64().unwrap() / 1e9,
        cpu_per_gb: tcp_cpu / gigabytes,
        cpu_per_million: udp_cpu / (sum["packets"].as_f64().unwrap() / 1e6),
        lost_percent: sum["lost_percent"].as_f64().unwrap(),
        ping_median: times[times.len() / 2],
        ping_p99: times[times.len() * 99 / 100],
        memory_mb: pair.peak_memory_mb(),
    }
}
