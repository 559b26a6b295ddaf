//! The agent's own costs, in a sandbox of its own, each against a baseline measured in the same
//! run:
//!
//! - `check` and `plan` of meshes of 1,000 and 10,000 peers: time and memory, which shall grow as
//!   the mesh does;
//! - a reload of meshes of 1,000 and 10,000 peers in which one peer changed: time from the write of
//!   the file to the device being changed, peers written, CPU time of agent and device; against
//!   `wg syncconf` of the same change on the same device, without an agent that reads it meanwhile;
//! - memory of the agent with 1 and 100 peers, against wireguard-go with the same peers.
//!
//! `cargo bench --bench agent`; needs root, wireguard-tools and wireguard-go. Ends by itself within
//! three minutes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    missing_docs
)]

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

use natpunch_lab::sandbox;
use natpunch_types::{PeerKey, SecretKey};

const NATPUNCH: &str = env!("CARGO_BIN_EXE_natpunch");
const ROUNDS: usize = 10;
const DIRECTORY: &str = "/run/natpunch-bench";
const SIZES: [u32; 2] = [1_000, 10_000];
/// `wg` may find a device with many peers too slow, and is asked again, for this long at most.
const TRIES: usize = 10;
const BASELINE: Duration = Duration::from_secs(60);

fn main() {
    // `cargo test --benches` only asks whether it builds and starts.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    if !sandbox::is_inside() {
        let status = sandbox::command(std::env::current_exe().unwrap())
            .status()
            .unwrap();
        assert!(status.success(), "{}", sandbox::HELP);
        return;
    }
    let _lab = sandbox::lab().unwrap();
    fs::create_dir(DIRECTORY).unwrap();
    fs::write(
        path("key"),
        SecretKey::from_bytes([0x42; 32]).expose_base64().as_bytes(),
    )
    .unwrap();
    fs::set_permissions(path("key"), fs::Permissions::from_mode(0o600)).unwrap();
    memory();
    let looks = SIZES.map(looks);
    grown(
        "check",
        looks.map(|look| look[0].0),
        looks.map(|look| look[0].1),
    );
    grown(
        "plan",
        looks.map(|look| look[1].0),
        looks.map(|look| look[1].1),
    );
    let reloads = SIZES.map(reload);
    grown(
        "reload, without the 0.15 s",
        reloads.map(|(time, _)| time - 0.15),
        reloads.map(|(_, memory)| memory),
    );
}

fn path(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

fn peer(number: u32) -> (PeerKey, Ipv4Addr) {
    let mut bytes = [7; 32];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    (
        PeerKey::from_bytes(bytes),
        Ipv4Addr::from(0x0a40_0002 + number),
    )
}

/// A mesh with this many other peers; `changed` gives the first one a route.
fn mesh(peers: u32, changed: bool) -> String {
    let output = Command::new(NATPUNCH)
        .arg("pubkey")
        .stdin(fs::File::open(path("key")).unwrap())
        .output()
        .unwrap();
    let own = String::from_utf8(output.stdout).unwrap();
    let mut text = format!(
        "[mesh]\nname = \"bench\"\nnetworks = [\"10.64.0.0/10\"]\n[interface]\nname = \"wg-bench\"\n\
         private_key_file = \"{DIRECTORY}/key\"\nbackend = \"userspace\"\n\
         [peers.me]\npublic_key = \"{}\"\naddresses = [\"10.64.0.1\"]\n",
        own.trim()
    );
    for number in 0..peers {
        let (key, address) = peer(number);
        writeln!(
            text,
            "[peers.p{number}]\npublic_key = \"{key}\"\naddresses = [\"{address}\"]"
        )
        .unwrap();
        if changed && number == 0 {
            text.push_str("routes = [\"192.168.77.0/24\"]\n");
        }
    }
    text
}

/// Gives a device the peers of [`mesh`] by `wg`, and says how long that took and whether `wg` was
/// content: it sends every peer, and may find the device too slow.
fn wg(command: &str, interface: &str, peers: u32, changed: bool) -> (f64, bool) {
    let mut text = "[Interface]\n".to_owned();
    if interface == "wg-bench" {
        let key = fs::read_to_string(path("key")).unwrap();
        let port = Command::new("wg")
            .args(["show", interface, "listen-port"])
            .output()
            .unwrap();
        let port = String::from_utf8(port.stdout).unwrap();
        writeln!(
            text,
            "PrivateKey = {}\nListenPort = {}",
            key.trim(),
            port.trim()
        )
        .unwrap();
    }
    for number in 0..peers {
        let (key, address) = peer(number);
        let route = if changed && number == 0 {
            ", 192.168.77.0/24"
        } else {
            ""
        };
        writeln!(
            text,
            "[Peer]\nPublicKey = {key}\nAllowedIPs = {address}/32{route}\nPersistentKeepalive = 25"
        )
        .unwrap();
    }
    fs::write(path("wg.conf"), text).unwrap();
    let start = Instant::now();
    let status = Command::new("wg")
        .args([command, interface])
        .arg(path("wg.conf"))
        .stdout(Stdio::null())
        .status()
        .unwrap();
    (start.elapsed().as_secs_f64(), status.success())
}

/// An agent and what it says.
struct Agent {
    process: Child,
    log: BufReader<ChildStderr>,
}

impl Agent {
    fn start(file: &Path) -> Self {
        let mut process = Command::new(NATPUNCH)
            .arg("apply")
            .arg(file)
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let log = BufReader::new(process.stderr.take().unwrap());
        let mut agent = Self { process, log };
        agent.wait_for("joined the mesh");
        agent
    }

    /// Reads the log up to a line that has these words.
    fn wait_for(&mut self, words: &str) -> String {
        let mut line = String::new();
        while self.log.read_line(&mut line).unwrap() > 0 {
            if line.contains(words) {
                return line;
            }
            line.clear();
        }
        panic!("the agent ended before it said {words:?}");
    }

    fn down(mut self) {
        assert!(
            Command::new(NATPUNCH)
                .arg("down")
                .stdout(Stdio::null())
                .status()
                .unwrap()
                .success()
        );
        self.process.wait().unwrap();
    }
}

/// Resident memory in MB.
fn resident(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS"))
        .unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<f64>()
        .unwrap()
        / 1e3
}

/// CPU seconds of a process so far.
fn cpu(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let after_name = stat.rsplit(')').next().unwrap();
    let ticks: u64 = after_name
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|n| n.parse::<u64>().unwrap())
        .sum();
    ticks as f64 / 100.0
}

fn device_pid() -> u32 {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let mut pids =
        processes.filter_map(|entry| entry.file_name().to_string_lossy().parse::<u32>().ok());
    let is_device = |pid: &u32| {
        let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        command.contains("\0device\0wg-bench")
    };
    pids.find(is_device).expect("no device process")
}

fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn grown(what: &str, times: [f64; 2], memory: [f64; 2]) {
    println!(
        "{what}: ten times the peers take {:.1} times the time and {:.1} times the memory",
        times[1] / times[0],
        memory[1] / memory[0]
    );
}

/// Runs a command that looks and ends: seconds, and MB of memory at most (as far as it could be
/// watched).
fn look(command: &str, file: &Path) -> (f64, f64) {
    let start = Instant::now();
    let mut child = Command::new(NATPUNCH)
        .arg(command)
        .arg(file)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut most = 0.0_f64;
    let ended = loop {
        if let Some(ended) = child.try_wait().unwrap() {
            break ended;
        }
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let peak = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
        most = most.max(peak.unwrap_or_default() / 1e3);
        std::thread::sleep(Duration::from_millis(1));
    };
    // `plan` ends with 2 where there is something to do.
    assert!(
        [Some(0), Some(2)].contains(&ended.code()),
        "{command}: {ended}"
    );
    (start.elapsed().as_secs_f64(), most)
}

/// `check` and `plan` where nothing runs: medians.
fn looks(peers: u32) -> [(f64, f64); 2] {
    let file = path("mesh.toml");
    fs::write(&file, mesh(peers, false)).unwrap();
    ["check", "plan"].map(|command| {
        let runs: Vec<(f64, f64)> = (0..ROUNDS).map(|_| look(command, &file)).collect();
        let (time, memory) = (
            median(runs.iter().map(|run| run.0)),
            median(runs.iter().map(|run| run.1)),
        );
        println!("mesh of {peers} peers: {command} {time:.3} s, {memory:.1} MB");
        (time, memory)
    })
}

fn memory() {
    println!("memory, resident, MB");
    for peers in [1, 100] {
        fs::write(path("small.toml"), mesh(peers, false)).unwrap();
        let agent = Agent::start(&path("small.toml"));
        std::thread::sleep(Duration::from_secs(2)); // What it needs is allocated when its first rounds are over.
        let device = resident(device_pid());
        println!(
            "  {peers:>3} peers: agent {:.1}, embedded device {device:.1}",
            resident(agent.process.id())
        );
        agent.down();
    }
    let mut go = Command::new("wireguard-go")
        .args(["-f", "wggo"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("wireguard-go, the baseline, is not installed");
    while !Path::new("/var/run/wireguard/wggo.sock").exists() {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(
        wg("setconf", "wggo", 100, false).1,
        "wireguard-go refuses the peers"
    );
    std::thread::sleep(Duration::from_secs(2));
    println!(
        "  100 peers: wireguard-go {:.1} (baseline)",
        resident(go.id())
    );
    go.kill().unwrap();
    go.wait().unwrap();
}

/// A reload with one peer changed: seconds from the write, MB of the agent.
fn reload(peers: u32) -> (f64, f64) {
    let file = path("mesh.toml");
    let versions = [mesh(peers, true), mesh(peers, false)];
    fs::write(&file, &versions[1]).unwrap();
    let start = Instant::now();
    let mut agent = Agent::start(&file);
    println!(
        "mesh of {peers} peers: up after {:.2} s",
        start.elapsed().as_secs_f64()
    );
    let (own, device) = (agent.process.id(), device_pid());
    let (mut times, mut agent_cpu, mut device_cpu, mut said) =
        (vec![], vec![], vec![], String::new());
    for round in 0..ROUNDS {
        std::thread::sleep(Duration::from_secs(1)); // Let the regular reading of the device pass.
        let (agent_before, device_before, start) = (cpu(own), cpu(device), Instant::now());
        fs::write(&file, &versions[round % 2]).unwrap();
        said = agent.wait_for("reloaded the mesh file");
        times.push(start.elapsed().as_secs_f64());
        agent_cpu.push(cpu(own) - agent_before);
        device_cpu.push(cpu(device) - device_before);
    }
    let (time, memory) = (median(times), resident(own));
    println!(
        "  reload with one peer changed: {time:.2} s from the write (0.15 s of it to see that writes have settled); CPU: \
         agent {:.2} s, device {:.2} s\n  the last one said: {}\n  memory, resident: agent {memory:.1} MB, device {:.1} MB",
        median(agent_cpu),
        median(device_cpu),
        said.trim(),
        resident(device)
    );
    // The tunnels outlive the agent, and the baseline has the device for itself.
    agent.process.kill().unwrap();
    agent.process.wait().unwrap();
    let (mut baseline, mut failed, begun) = (vec![], 0, Instant::now());
    for round in (0..TRIES).take_while(|_| begun.elapsed() < BASELINE) {
        std::thread::sleep(Duration::from_millis(500));
        match wg("syncconf", "wg-bench", peers, round % 2 == 0) {
            (seconds, true) => baseline.push(seconds),
            (_, false) => failed += 1,
        }
    }
    match baseline.len() {
        0 => println!(
            "  wg syncconf of the same change on the same device (baseline): failed {failed} times of {failed}"
        ),
        runs => println!(
            "  wg syncconf of the same change on the same device (baseline): {:.2} s, median of {runs}; {failed} more failed",
            median(baseline)
        ),
    }
    assert!(
        Command::new(NATPUNCH)
            .arg("down")
            .stdout(Stdio::null())
            .status()
            .unwrap()
            .success()
    );
    (time, memory)
}
