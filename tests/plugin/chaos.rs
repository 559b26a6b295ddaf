//! A program that crashes in every way, again and again, beside a plugin that works: what the node
//! pays for it has a bound.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use natpunch::plugins::host::{Instance, NodeFacts, Pauses, Said, channel};
use natpunch_forwarder::Forwarder;
use natpunch_plugin::{
    BoxFuture, Candidate, CandidateKind, Description, Discovery, Host, Input, News, PeerKey,
    PluginError, SecretKey,
};
use natpunch_plugin_exec::{OwnSettings, Plugin, Program};
use natpunch_types::{HostNetwork, InstanceName};
use nix::unistd::{Uid, User};

const PEER: PeerKey = PeerKey::from_bytes([2; 32]);

/// Crashes in one way after the other. Its argument is a directory; it counts its starts there.
const SCRIPT: &str = r#"
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

/// Says a candidate every few milliseconds. The port says when.
struct Working;

impl Discovery for Working {
    fn run<'a>(&'a mut self, host: Arc<dyn Host>) -> BoxFuture<'a, Result<(), PluginError>> {
        Box::pin(async move {
            let start = host.now();
            loop {
                let pause = tokio::time::sleep(Duration::from_millis(5));
                tokio::select! {
                    input = host.next() => if matches!(input, Input::Shutdown) { return Ok(()) },
                    () = pause => {
                        // The lifetime carries the time at which it was said.
                        let lifetime = host.now().since(start) + Duration::from_secs(1);
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

fn starts(directory: &Path) -> usize {
    fs::read(directory.join("starts")).map_or(0, |lines| lines.len())
}

/// Lets the program crash so many times; how late what the other says arrives, and what is held
/// more than before.
async fn crash(times: usize) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_str().unwrap().to_owned();
    let program = Program {
        command: ["/bin/sh", "-c", SCRIPT, &path].map(str::to_owned).to_vec(),
        user: User::from_uid(Uid::effective()).unwrap().unwrap().name,
        meetings: false,
        read_paths: vec![],
        write_paths: vec![directory.path().to_owned()],
        settings: OwnSettings::new(),
    };
    let (events, mut received) = channel();
    let start = |name: &str, run, plugin, pauses, events| {
        let about = Description::default();
        let name = (InstanceName::new(name), run);
        Instance::start_with(name, &about, plugin, facts(), events, pauses)
    };
    let working = start(
        "working",
        1,
        Box::new(Working),
        Pauses::default(),
        events.clone(),
    );
    let short = Pauses {
        first: Duration::from_millis(2),
        longest: Duration::from_millis(20),
    };
    let before = held();
    let chaos = start("chaos", 2, Box::new(Plugin::new(program)), short, events);
    let began = Instant::now();
    let (mut heard, mut most) = (0, before.2);
    while starts(directory.path()) < times {
        let event = tokio::time::timeout(Duration::from_secs(60), received.recv());
        let event = event.await.expect("the other one says nothing").unwrap();
        if let Said::News(News::Candidate { .. }) = event.said {
            heard += 1;
        }
        most = most.max(held().2);
    }
    let took = began.elapsed();
    assert!(heard > 0);
    assert_eq!(working.health().1, 0, "of the other none was dropped");
    chaos.stop().await;
    working.stop().await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let after = held();
    println!(
        "measured: {times} crashes in {:.1} s, {heard} news of the other; {} MiB before, {most} at \
         most, {} after; {} files before, {} after",
        took.as_secs_f64(),
        before.2,
        after.2,
        before.0,
        after.0
    );
    assert!(most < before.2 + 64, "{before:?}, {most} MiB");
    assert!(after.0 <= before.0 + 2, "{before:?}, {after:?}");
}

/// The variable that says how many crashes.
const CRASHES: &str = "NATPUNCH_TEST_CRASHES";

/// In a process of its own, whose files and memory no other test changes.
#[test]
fn a_program_that_crashes_in_every_way_costs_no_more_than_its_bounds() {
    let mut alone = std::process::Command::new(std::env::current_exe().unwrap());
    alone
        .args(["--ignored", "--nocapture", "--exact"])
        .arg("chaos::a_thousand_crashes_cost_no_more_than_their_bounds")
        .env(CRASHES, "18");
    let output = alone.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{errors}");
    assert!(said.contains("measured: 18 crashes"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a campaign: make chaos"]
async fn a_thousand_crashes_cost_no_more_than_their_bounds() {
    let crashes = std::env::var(CRASHES).map_or(1_000, |text| text.parse().unwrap());
    crash(crashes).await;
}
