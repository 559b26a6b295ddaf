//! One network namespace with a mount namespace of its own, held by a thread that runs what it is
//! given.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::{Error, Result, sandbox};

type Job = Box<dyn FnOnce() + Send>;

/// Directories that a machine of its own would have for itself.
const PRIVATE_DIRECTORIES: [&str; 2] = ["/run/natpunch", "/run/wireguard"];

/// How long a link may take to carry packets.
const CARRIER: Duration = Duration::from_secs(10);

/// A namespace. It lives until this is dropped and no process or socket is left in it.
#[derive(Debug)]
pub(crate) struct Namespace {
    thread_id: i32,
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Namespace {
    /// Makes one, with its loopback up. `forward`: it passes packets between its links.
    pub(crate) fn new(name: &str, forward: bool) -> Result<Self> {
        let (jobs, work) = mpsc::channel::<Job>();
        let (ready, is_ready) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name(format!("ns {name}"))
            .spawn(move || {
                let entered = enter(forward);
                let ok = entered.is_ok();
                if ready
                    .send(entered.map(|()| nix::unistd::gettid().as_raw()))
                    .is_ok()
                    && ok
                {
                    work.iter().for_each(|job| job());
                }
            })
            .map_err(|source| Error::System {
                what: "cannot start a thread",
                source,
            })?;
        let thread_id = is_ready.recv().map_err(|_| Error::Gone)??;
        Ok(Namespace {
            thread_id,
            jobs: Some(jobs),
            thread: Some(thread),
        })
    }

    /// The thread in it, by which `ip link ... netns` names the namespace.
    pub(crate) fn thread_id(&self) -> i32 {
        self.thread_id
    }

    /// Runs `f` in the namespace and waits for its result. A socket or process that `f` makes stays
    /// in the namespace.
    pub(crate) fn run<R: Send + 'static>(
        &self,
        f: impl FnOnce() -> R + Send + 'static,
    ) -> Result<R> {
        let (answer, result) = mpsc::channel();
        let job: Job = Box::new(move || {
            // The caller waits below, so that it is there to receive.
            let _ = answer.send(f());
        });
        self.jobs
            .as_ref()
            .ok_or(Error::Gone)?
            .send(job)
            .map_err(|_| Error::Gone)?;
        result.recv().map_err(|_| Error::Gone)
    }

    /// Runs `ip -batch` with these lines.
    pub(crate) fn ip(&self, lines: impl Into<String>) -> Result<()> {
        let lines = lines.into();
        self.run(move || feed("ip", &["-batch", "-"], &lines))?
    }

    /// Waits until a link carries packets: the kernel sees a carrier a moment after both ends are
    /// up, and until then drops what is sent.
    pub(crate) fn wait_for_carrier(&self, link: &str) -> Result<()> {
        let link = link.to_owned();
        self.run(move || wait_for_carrier(&link))?
    }

    /// Runs `nft -f` with these rules.
    pub(crate) fn nft(&self, rules: impl Into<String>) -> Result<()> {
        let rules = rules.into();
        self.run(move || feed("nft", &["-f", "-"], &rules))?
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            // A panic in a job was the caller's and has been seen there.
            let _ = thread.join();
        }
    }
}

/// Moves the calling thread into new namespaces.
fn enter(forward: bool) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).map_err(|e| Error::System {
        what: "cannot make a network namespace",
        source: e.into(),
    })?;
    for directory in PRIVATE_DIRECTORIES {
        mount(
            Some("natpunch-lab"),
            directory,
            Some("tmpfs"),
            MsFlags::empty(),
            Some("mode=755"),
        )
        .map_err(|e| Error::System {
            what: "cannot mount a private directory",
            source: e.into(),
        })?;
    }
    // /sys shows the links of the namespace that mounted it. Where a container forbids the mount,
    // nothing here needs it.
    let _ = mount(
        Some("sysfs"),
        "/sys",
        Some("sysfs"),
        MsFlags::empty(),
        None::<&str>,
    );
    // Addresses must be usable at once: no duplicate address detection.
    sysctl("net/ipv6/conf/all/accept_dad", "0")?;
    sysctl("net/ipv6/conf/default/accept_dad", "0")?;
    if forward {
        sysctl("net/ipv4/ip_forward", "1")?;
        sysctl("net/ipv6/conf/all/forwarding", "1")?;
    }
    feed("ip", &["-batch", "-"], "link set lo up\n")
}

fn wait_for_carrier(link: &str) -> Result<()> {
    let deadline = Instant::now() + CARRIER * sandbox::patience();
    loop {
        let output = Command::new("ip")
            .args(["-oneline", "link", "show", "dev", link])
            .output()
            .map_err(|source| Error::Program {
                program: "ip".into(),
                source,
            })?;
        if String::from_utf8_lossy(&output.stdout).contains("state UP") {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Error::NoCarrier {
                link: link.to_owned(),
            });
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Sets a kernel setting of the calling thread's network namespace.
fn sysctl(key: &str, value: &str) -> Result<()> {
    std::fs::write(format!("/proc/sys/{key}"), value).map_err(|source| Error::System {
        what: "cannot write a network setting below /proc/sys",
        source,
    })
}

/// Runs a program with `input` on its standard input.
fn feed(program: &str, arguments: &[&str], input: &str) -> Result<()> {
    let failed = |source| Error::Program {
        program: program.to_owned(),
        source,
    };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that has stopped reading has printed why.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Failed {
        program: program.to_owned(),
        message: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        input: input.to_owned(),
    })
}
