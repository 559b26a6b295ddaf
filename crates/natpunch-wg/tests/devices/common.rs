//! Namespaces and devices for the tests of this package.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use natpunch_types::SecretKey;
use natpunch_wg::{
    BackendChoice, Device, DeviceChange, DeviceState, InterfaceSpec, KernelDevice, PeerSpec,
    RouteMtu, UapiDevice, WgError,
};

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace, and the thread that lives in it. It goes with the value.
pub(crate) struct Netns {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<thread::JoinHandle<()>>,
    tid: i32,
}

impl Netns {
    pub(crate) fn new() -> Self {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (tid_sender, tid) = mpsc::channel();
        let thread = thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
                .expect("these tests need root: they make network namespaces");
            tid_sender.send(nix::unistd::gettid().as_raw()).unwrap();
            queue.into_iter().for_each(|job| job());
        });
        let tid = tid.recv().expect("the namespace's thread");
        let netns = Self {
            jobs: Some(jobs),
            thread: Some(thread),
            tid,
        };
        netns.sh("ip link set lo up");
        netns
    }

    /// Runs `f` in the namespace and returns what it returns; a panic of it is a panic here.
    pub(crate) fn run<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> T {
        let (sender, result) = mpsc::channel();
        let job = move || {
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f));
            let _ = sender.send(outcome);
        };
        self.jobs.as_ref().unwrap().send(Box::new(job)).unwrap();
        result
            .recv()
            .unwrap()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Runs a command line (words split at spaces), which must succeed, and returns what it
    /// printed.
    pub(crate) fn sh(&self, line: &str) -> String {
        let line = line.to_owned();
        self.run(move || {
            let mut words = line.split(' ');
            let output = Command::new(words.next().unwrap())
                .args(words)
                .output()
                .expect("run");
            assert!(
                output.status.success(),
                "{line}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            String::from_utf8_lossy(&output.stdout).into_owned()
        })
    }

    /// A cable to another namespace: `veth0` at both ends, with these addresses.
    pub(crate) fn cable(&self, other: &Self, here: &str, there: &str) {
        self.sh(&format!(
            "ip link add veth0 type veth peer name veth0 netns {}",
            other.tid
        ));
        for (netns, address) in [(self, here), (other, there)] {
            netns.sh(&format!("ip address add {address} dev veth0"));
            netns.sh("ip link set veth0 up");
        }
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        drop(self.jobs.take());
        let _ = self.thread.take().map(thread::JoinHandle::join);
    }
}

/// A name that no other test of this machine has: UAPI sockets are not per namespace.
pub(crate) fn unique_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!(
        "npt{}x{}",
        std::process::id() % 1_000_000,
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}

pub(crate) fn device_program() -> PathBuf {
    env!("CARGO_BIN_EXE_natpunch-wg-device").into()
}

/// A spec with nothing in it but a key.
pub(crate) fn spec(name: &str, runtime_dir: &std::path::Path, private_key: u8) -> InterfaceSpec {
    InterfaceSpec {
        name: name.into(),
        private_key: SecretKey::from_bytes([private_key; 32]),
        listen_port: 51820,
        fwmark: 0,
        mtu: 1420,
        addresses: Vec::new(),
        routes: Vec::new(),
        default_route: None,
        peers: Vec::new(),
        backend: BackendChoice::Userspace,
        owner: "test".into(),
        adopt: false,
        device_program: device_program(),
        runtime_dir: runtime_dir.into(),
    }
}

pub(crate) fn peer(of: &InterfaceSpec, allowed_ips: &[&str]) -> PeerSpec {
    PeerSpec {
        key: of.private_key.public_key(),
        preshared_key: None,
        allowed_ips: allowed_ips.iter().map(|net| net.parse().unwrap()).collect(),
        persistent_keepalive: None,
        adapts_keepalive: false,
        route_mtu: RouteMtu::AsIs,
        endpoint: None,
        rests: false,
    }
}

/// A process that is killed with the value, and a device behind its UAPI socket.
pub(crate) struct Running {
    device: UapiDevice,
    child: Child,
    name: String,
}

impl Running {
    /// wireguard-go, in the namespace of the calling thread.
    pub(crate) fn wireguard_go() -> Self {
        let name = unique_name();
        let child = Command::new("wireguard-go")
            .args(["-f", &name])
            .env("LOG_LEVEL", "silent")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("wireguard-go must be installed (Debian package wireguard-go)");
        Self::wait(name, child)
    }

    /// The embedded device, in the namespace of the calling thread, without a link that is up.
    pub(crate) fn embedded(runtime_dir: &std::path::Path) -> Self {
        let name = unique_name();
        let child = Command::new(device_program())
            .args(["device", &name, "--socket"])
            .arg(runtime_dir.join(format!("{name}.device.sock")))
            .spawn()
            .expect("start the device");
        Self::wait(name, child)
    }

    fn wait(name: String, child: Child) -> Self {
        let mut running = Self {
            device: UapiDevice::external(&name),
            child,
            name,
        };
        until("the device answers", || running.device.get().is_ok());
        let up = Command::new("ip")
            .args(["link", "set", &running.name, "up"])
            .status()
            .unwrap();
        assert!(up.success());
        running
    }
}

impl Device for Running {
    fn kind(&self) -> natpunch_wg::BackendKind {
        self.device.kind()
    }
    fn get(&mut self) -> Result<DeviceState, WgError> {
        self.device.get()
    }
    fn configure(&mut self, change: &DeviceChange) -> Result<(), WgError> {
        self.device.configure(change)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(format!("/var/run/wireguard/{}.sock", self.name));
    }
}

/// Waits for a condition, for at most ten seconds.
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "never came true: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// A kernel interface that goes with the value.
pub(crate) struct KernelLink(KernelDevice, String);

impl KernelLink {
    pub(crate) fn new() -> Self {
        let name = unique_name();
        ip(&["link", "add", &name, "type", "wireguard"]);
        ip(&["link", "set", &name, "up"]);
        Self(KernelDevice::new(&name).unwrap(), name)
    }
}

fn ip(args: &[&str]) {
    assert!(
        Command::new("ip").args(args).status().unwrap().success(),
        "ip {args:?}"
    );
}

impl Drop for KernelLink {
    fn drop(&mut self) {
        ip(&["link", "del", &self.1]);
    }
}

impl Device for KernelLink {
    fn kind(&self) -> natpunch_wg::BackendKind {
        self.0.kind()
    }
    fn get(&mut self) -> Result<DeviceState, WgError> {
        self.0.get()
    }
    fn configure(&mut self, change: &DeviceChange) -> Result<(), WgError> {
        self.0.configure(change)
    }
}

/// Runs wireguard-go as `name` in a namespace; the caller ends it.
pub(crate) fn start_wireguard_go(netns: &Netns, name: &str) -> Child {
    let (name, socket) = (name.to_owned(), format!("/var/run/wireguard/{name}.sock"));
    let child = netns.run(move || {
        Command::new("wireguard-go")
            .args(["-f", &name])
            .env("LOG_LEVEL", "silent")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("wireguard-go must be installed (Debian package wireguard-go)")
    });
    until("wireguard-go answers", || {
        std::path::Path::new(&socket).exists()
    });
    child
}

/// The process that runs `device NAME`.
pub(crate) fn device_pid(name: &str) -> Option<i32> {
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .find_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let line = std::fs::read(entry.path().join("cmdline")).ok()?;
            let words: Vec<_> = line.split(|b| *b == 0).collect();
            (words.get(1) == Some(&b"device".as_slice()) && words.get(2) == Some(&name.as_bytes()))
                .then_some(pid)
        })
}
