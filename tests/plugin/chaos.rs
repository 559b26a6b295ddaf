//! A program that crashes in every way, floods or lies, beside a plugin that works: what the node
//! pays for it has a bound, and what the other says arrives as soon as before.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use natpunch::plugins::host::{Instance, NodeFacts, Pauses, PluginEvent, Said, channel};
use natpunch_forwarder::Forwarder;
use natpunch_plugin::{
    Ask, BoxFuture, Candidate, CandidateKind, Description, Discovery, Host, Input, Interest, News,
    PeerKey, PluginError, SecretKey, Time,
};
use natpunch_plugin_exec::{OwnSettings, Plugin, Program};
use natpunch_types::{HostNetwork, InstanceName};
use nix::unistd::{Uid, User};
use tokio::sync::mpsc::Sender;

const PEER: PeerKey = PeerKey::from_bytes([2; 32]);

/// Crashes in one way after the other. Its argument is a directory; it counts its starts there.
const CRASHES: &str = r#"
echo >>"$0/starts"
hello() { read -r welcome; echo '{"natpunch":1,"name":"chaos","abilities":["candidates"]}'; }
case $(($(wc -l <"$0/starts") % 9)) in
0) exit 1 ;;
1) hello; exit 1 ;;
2) hello; kill -SEGV $$ ;;
3) hello; printf '{"type":'; exit 1 ;;
4) hello; while :; do echo junk; done ;;
5) hello; exec yes '{"type":"health","ok":true,"note":"x"}' | head -c 100000 ;;
6) hello; head -c 100000000 /dev/zero; exit 1 ;;
7) head -c 300000 /dev/zero | tr '\0' '\n' >&2; exit 1 ;;
8) hello; sleep 60 & kill -KILL $$ ;;
esac
"#;

/// Writes without end to both outputs. It counts what was read of it, in pieces of 64 KiB.
const FLOOD: &str = r#"
read -r welcome
echo '{"natpunch":1,"name":"chaos","abilities":["candidates"]}'
piece() { head -c 65536 /dev/zero | tr '\0' 'x' && echo >>"$0/starts"; }
while :; do piece >&2; done &
while :; do piece; echo; done
"#;

/// Says as many candidates as are read, each at another address.
const LIES: &str = r#"
read -r welcome
echo '{"natpunch":1,"name":"chaos","abilities":["candidates"]}'
read -r peers
while :; do
  i=0
  while [ $i -lt 1000 ]; do
    i=$((i + 1))
    echo '{"type":"candidate","peer":"AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=","address":"198.51.100.'$((i % 250))':'$((i + 1000))'","kind":"host","lifetime":60}'
  done
  echo >>"$0/starts"
done
"#;

/// What the flood writes at once, in bytes.
const PIECE: usize = 65_536;

/// Says a candidate every few milliseconds. The port says when.
struct Working;

impl Discovery for Working {
    fn run<'a>(&'a mut self, host: Arc<dyn Host>) -> BoxFuture<'a, Result<(), PluginError>> {
        Box::pin(async move {
            loop {
                let pause = tokio::time::sleep(Duration::from_millis(5));
                tokio::select! {
                    input = host.next() => if matches!(input, Input::Shutdown) { return Ok(()) },
                    () = pause => {
                        // The lifetime carries the time at which it was said.
                        let lifetime = host.now().since(Time::ZERO);
                        let address = ([192, 0, 2, 1], 7).into();
                        let kind = CandidateKind::Host;
                        let candidate = Candidate { address, kind, lifetime };
                        host.tell(News::Candidate { peer: PEER, candidate });
                    }
                }
            }
        })
    }
}

fn facts() -> NodeFacts {
    NodeFacts {
        own_key: PeerKey::from_bytes([1; 32]),
        private_key: SecretKey::from_bytes([2; 32]),
        listen_port: 20_000,
        fwmark: 0,
        forwarder: Arc::new(Forwarder::new(
            "/nonexistent".into(),
            Path::new("/nonexistent"),
            "np0",
        )),
        network: HostNetwork::default(),
    }
}

/// What this process holds: file descriptors, threads, and MiB of memory.
fn held() -> (usize, usize, u64) {
    let count = |what: &str| fs::read_dir(format!("/proc/self/{what}")).unwrap().count();
    let memory = fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = memory.split(' ').nth(1).unwrap().parse().unwrap();
    (count("fd"), count("task"), (pages * 4_096) >> 20)
}

fn counted(directory: &Path) -> usize {
    fs::read(directory.join("starts")).map_or(0, |lines| lines.len())
}

/// What was seen of a program and of the plugin beside it.
struct Seen {
    took: Duration,
    /// What the program counted.
    counted: usize,
    /// How long what the other plugin said was on its way, sorted.
    latencies: Vec<Duration>,
    /// News that came from the program.
    lies: usize,
    /// MiB of memory before, at most, and afterwards.
    memory: [u64; 3],
    /// File descriptors before and afterwards.
    files: [usize; 2],
}

impl Seen {
    fn latency(&self, percent: usize) -> Duration {
        self.latencies[(self.latencies.len() - 1) * percent / 100]
    }

    fn text(&self) -> String {
        let [half, most] = [50, 99].map(|percent| self.latency(percent).as_secs_f64() * 1e3);
        let [before, peak, after] = self.memory;
        format!(
            "{:.1} s; {} news of the other, on their way for {half:.2} ms (p50), {most:.2} ms \
             (p99); {before} MiB before, {peak} at most, {after} after; {} files before, {} after",
            self.took.as_secs_f64(),
            self.latencies.len(),
            self.files[0],
            self.files[1],
        )
    }

    fn assert_bounds(&self) {
        let [before, peak, _] = self.memory;
        assert!(peak < before + 64, "{}", self.text());
        assert!(self.files[1] <= self.files[0] + 2, "{}", self.text());
    }
}

fn instance(
    name: &str,
    run: u64,
    plugin: Box<dyn Discovery>,
    pauses: Pauses,
    events: &Sender<PluginEvent>,
) -> Instance {
    let about = Description::default();
    let name = (InstanceName::new(name), run);
    Instance::start_with(name, &about, plugin, facts(), events.clone(), pauses)
}

/// Lets a plugin work, and a program beside it if there is one, until that has counted so much or
/// the time is over.
async fn beside(script: Option<&str>, until: usize, longest: Duration) -> Seen {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_str().unwrap().to_owned();
    let program = |script: &str| Program {
        command: ["/bin/sh", "-c", script, &path].map(str::to_owned).to_vec(),
        user: User::from_uid(Uid::effective()).unwrap().unwrap().name,
        meetings: false,
        read_paths: vec![],
        write_paths: vec![directory.path().to_owned()],
        settings: OwnSettings::new(),
    };
    let (events, mut received) = channel();
    let working = instance("working", 1, Box::new(Working), Pauses::default(), &events);
    let before = held();
    let short = Pauses {
        first: Duration::from_millis(2),
        longest: Duration::from_millis(20),
    };
    let chaos = script.map(|script| {
        let plugin = Box::new(Plugin::new(program(script)));
        let chaos = instance("chaos", 2, plugin, short, &events);
        chaos.ask(Ask::Peers([Interest::new(PEER)].into()));
        chaos
    });
    let (began, mut peak) = (Instant::now(), before.2);
    let (mut latencies, mut lies) = (Vec::new(), 0);
    while counted(directory.path()) < until && began.elapsed() < longest {
        let event = tokio::time::timeout(Duration::from_secs(60), received.recv());
        let event = event.await.expect("the other one says nothing").unwrap();
        let Said::News(News::Candidate { candidate, .. }) = event.said else {
            continue;
        };
        if event.run == 1 {
            let now = natpunch_net::now().since(Time::ZERO);
            latencies.push(now.saturating_sub(candidate.lifetime));
            peak = peak.max(held().2);
        } else {
            lies += 1;
        }
    }
    let took = began.elapsed();
    assert!(!latencies.is_empty(), "the other one says nothing");
    assert_eq!(working.health().1, 0, "of the other none was dropped");
    latencies.sort_unstable();
    if let Some(chaos) = chaos {
        chaos.stop().await;
    }
    working.stop().await;
    // What it started is ended by the kernel.
    let deadline = Instant::now() + Duration::from_secs(5);
    while held().0 > before.0 + 2 && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let after = held();
    Seen {
        took,
        counted: counted(directory.path()),
        latencies,
        lies,
        memory: [before.2, peak, after.2],
        files: [before.0, after.0],
    }
}

/// The variable that says how much a campaign is to be: 1 is whole.
const SHARE: &str = "NATPUNCH_TEST_CHAOS_SHARE";

fn share() -> usize {
    std::env::var(SHARE).map_or(1, |text| text.parse().unwrap())
}

/// Runs a campaign's short form in a process of its own, whose files and memory no other test
/// changes; what it measured.
fn short(campaign: &str) -> String {
    let mut alone = std::process::Command::new(std::env::current_exe().unwrap());
    alone
        .args(["--ignored", "--nocapture", "--exact"])
        .arg(format!("chaos::{campaign}"))
        .env(SHARE, "50");
    let output = alone.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{errors}");
    said.into_owned()
}

#[test]
fn a_program_that_crashes_in_every_way_costs_no_more_than_its_bounds() {
    let said = short("a_thousand_crashes_cost_no_more_than_their_bounds");
    assert!(said.contains("measured: 20 crashes"), "{said}");
}

#[test]
fn a_program_that_floods_or_lies_costs_no_more_than_its_bounds() {
    let said = short("floods_and_lies_cost_no_more_than_their_bounds");
    assert!(said.contains("measured: lies"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a campaign: make chaos"]
async fn a_thousand_crashes_cost_no_more_than_their_bounds() {
    let crashes = 1_000 / share();
    let seen = beside(Some(CRASHES), crashes, Duration::from_secs(600)).await;
    println!("measured: {crashes} crashes, {}", seen.text());
    assert!(seen.counted >= crashes);
    seen.assert_bounds();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a campaign: make chaos"]
async fn floods_and_lies_cost_no_more_than_their_bounds() {
    let each = Duration::from_secs(60) / share() as u32;
    let alone = beside(None, 1, each).await;
    println!("measured: alone, {}", alone.text());
    // Until 1 GiB was read.
    let flood = beside(Some(FLOOD), (1 << 30) / PIECE / share(), each * 20).await;
    let taken = flood.counted * PIECE / (1 << 20);
    println!("measured: flood, {taken} MiB were read; {}", flood.text());
    let lies = beside(Some(LIES), usize::MAX, each).await;
    let (said, heard) = (lies.counted * 1_000, lies.lies);
    println!(
        "measured: lies, {said} said, {heard} heard; {}",
        lies.text()
    );
    assert!(heard > 0 && taken >= 1_024 / share());
    for seen in [alone, flood, lies] {
        seen.assert_bounds();
    }
}
