//! Hosts for tests: threads in network namespaces of their own, which go when the threads do.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]

use std::future::Future;
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};

/// Longest that a test waits for something that should happen.
pub const SOON: Duration = Duration::from_secs(5);

/// Runs a test on a host with nothing but loopback.
pub fn on_a_host<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let body = move || {
        enter_new_host();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            tokio::time::timeout(6 * SOON, test())
                .await
                .expect("the test ends")
        });
    };
    if let Err(panic) = std::thread::spawn(body).join() {
        std::panic::resume_unwind(panic);
    }
}

fn enter_new_host() {
    unshare(CloneFlags::CLONE_NEWNET)
        .expect("a network namespace of its own: these tests need root");
    ip("link set lo up");
}

/// Runs `ip` of iproute2 on the host of the calling thread.
pub fn ip(arguments: &str) {
    let output = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .expect("iproute2 is installed");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {error}");
}

type Job = Box<dyn FnOnce() + Send>;

/// Another host, which does what it is told.
pub struct Neighbour {
    jobs: mpsc::Sender<Job>,
    thread: i32,
}

impl Neighbour {
    pub fn new() -> Self {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (ready, started) = mpsc::channel();
        std::thread::spawn(move || {
            enter_new_host();
            ready.send(nix::unistd::gettid().as_raw()).unwrap();
            for job in queue {
                job();
            }
        });
        Self {
            jobs,
            thread: started.recv().expect("the other host starts"),
        }
    }

    /// A cable from this host's `here` to the neighbour's `there`, with addresses as
    /// `ip address add` takes them.
    pub fn cable(&self, (here, our): (&str, &[&str]), (there, their): (&str, &[&str])) {
        ip(&format!(
            "link add {here} type veth peer name {there} netns {}",
            self.thread
        ));
        let there = there.to_owned();
        let their: Vec<String> = their.iter().map(|address| address.to_string()).collect();
        let far_end = there.clone();
        self.run(move || bring_up(&far_end, their.iter().map(String::as_str)));
        bring_up(here, our.iter().copied());
        wait_for_carrier(here);
        self.run(move || wait_for_carrier(&there));
    }

    /// Runs a closure on the neighbour and waits for what it returns.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        self.start(move || done.send(job()).unwrap());
        result.recv().expect("the neighbour's job does not panic")
    }

    /// Runs a closure on the neighbour and goes on.
    pub fn start(&self, job: impl FnOnce() + Send + 'static) {
        self.jobs
            .send(Box::new(job))
            .expect("the neighbour is there");
    }
}

fn bring_up<'a>(link: &str, addresses: impl Iterator<Item = &'a str>) {
    ip(&format!("link set {link} up"));
    for address in addresses {
        let no_detection = if address.contains(':') { "nodad" } else { "" };
        ip(&format!("address add {address} dev {link} {no_detection}"));
    }
}

/// The kernel notices a carrier a moment after both ends are up, and drops what is sent before.
fn wait_for_carrier(link: &str) {
    let start = Instant::now();
    loop {
        let output = Command::new("ip")
            .args(["-o", "link", "show", "dev", link])
            .output()
            .expect("iproute2 is installed");
        let state = String::from_utf8_lossy(&output.stdout);
        if state.contains("state UP") {
            return;
        }
        assert!(start.elapsed() < SOON, "the cable is dead: {state}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
