//! The real binary as a child process.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use natpunch_types::PeerKey;

/// A running `natpunch serve`.
pub(crate) struct Server {
    child: Child,
    pub(crate) public_key: PeerKey,
    pub(crate) udp: Vec<SocketAddr>,
    pub(crate) http: Option<SocketAddr>,
    pub(crate) alternate_port: Option<u16>,
    pub(crate) metrics: Option<SocketAddr>,
    #[allow(dead_code, reason = "not for the benchmarks")]
    pub(crate) websocket: Option<SocketAddr>,
    #[allow(dead_code, reason = "not for the benchmarks")]
    pub(crate) relay_ports: Option<String>,
    log: PathBuf,
    _directory: Option<tempfile::TempDir>,
}

/// `natpunch serve` with these arguments, not started.
pub(crate) fn serve(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_natpunch"));
    // No place for a control socket, unless a test gives one.
    command.env("NATPUNCH_RUNTIME_DIR", "/dev/null");
    command
        .arg("serve")
        .args(arguments)
        .stdin(Stdio::null())
        .env_remove("NATPUNCH_LOG")
        .env_remove("NOTIFY_SOCKET");
    command
}

impl Server {
    /// Starts one with a key of its own and these further arguments, and waits until it listens.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut server = Self::start_in(directory.path(), arguments);
        server._directory = Some(directory);
        server
    }

    /// Starts one whose key is `server.key` in this directory.
    pub(crate) fn start_in(directory: &Path, arguments: &[&str]) -> Self {
        let key = directory.join("server.key");
        let mut command = serve(&["--key-file", key.to_str().unwrap()]);
        command.args(arguments);
        Self::spawn(command, directory)
    }

    pub(crate) fn spawn(mut command: Command, directory: &Path) -> Self {
        let log = directory.join(format!("log-{:?}", Instant::now()).replace(' ', ""));
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let first = lines
            .next()
            .unwrap_or_else(|| panic!("no output: {}", std::fs::read_to_string(&log).unwrap()))
            .unwrap();
        let public_key = first
            .strip_prefix("public key: ")
            .expect(&first)
            .parse()
            .unwrap();
        let mut server = Self {
            child,
            public_key,
            udp: vec![],
            http: None,
            alternate_port: None,
            metrics: None,
            websocket: None,
            relay_ports: None,
            log,
            _directory: None,
        };
        for line in lines {
            let line = line.unwrap();
            if line == "ready" {
                return server;
            } else if let Some(address) = line.strip_prefix("listening on udp ") {
                server.udp.push(address.parse().unwrap());
            } else if let Some(address) = line.strip_prefix("listening on http ") {
                server.http = Some(address.parse().unwrap());
            } else if let Some(address) = line.strip_prefix("listening on metrics ") {
                server.metrics = Some(address.parse().unwrap());
            } else if let Some(address) = line.strip_prefix("listening on websocket ") {
                server.websocket = Some(address.parse().unwrap());
            } else if let Some(port) = line.strip_prefix("alternate port ") {
                server.alternate_port = Some(port.parse().unwrap());
            } else if let Some(ports) = line.strip_prefix("relay ports ") {
                server.relay_ports = Some(ports.to_owned());
            } else {
                panic!("unexpected line: {line}");
            }
        }
        panic!("ended before it was ready: {}", server.log());
    }

    #[allow(dead_code, reason = "for the benchmark")]
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(self.child.id().cast_signed()),
            signal,
        )
        .unwrap();
    }

    pub(crate) fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for its end, at most this long.
    pub(crate) fn wait(&mut self, deadline: Duration) -> ExitStatus {
        wait(&mut self.child, deadline)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait(child: &mut Child, deadline: Duration) -> ExitStatus {
    let end = Instant::now() + deadline;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(Instant::now() < end, "still running");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Runs a server that is expected to end by itself: its exit code, standard output and standard
/// error.
pub(crate) fn fails(mut command: Command) -> (Option<i32>, String, String) {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let status = wait(&mut child, Duration::from_secs(10));
    let (mut out, mut error) = (String::new(), String::new());
    child.stdout.unwrap().read_to_string(&mut out).unwrap();
    child.stderr.unwrap().read_to_string(&mut error).unwrap();
    (status.code(), out, error)
}
