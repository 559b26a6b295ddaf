//! A server and nodes in a lab, and questions to them.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use natpunch_lab::{Follower, Host, Lab, Nat, Ping, Process, Router, sandbox};
use nix::mount::{MsFlags, mount};
use serde_json::Value;

use crate::mesh::Mesh;

pub(crate) const NATPUNCH: &str = env!("CARGO_BIN_EXE_natpunch");
/// The interface of every node: `wg-` and the name of the mesh.
pub(crate) const INTERFACE: &str = "wg-lab";
pub(crate) const UDP_PORT: u16 = 51_900;
const HTTP_PORT: u16 = 8080;
const REDIS_PORT: u16 = 6379;

/// A deadline for what should come at once, but on a busy machine.
pub(crate) fn soon() -> Instant {
    within(20)
}

/// A deadline in some seconds; later on slow machines.
pub(crate) fn within(seconds: u64) -> Instant {
    Instant::now() + Duration::from_secs(seconds) * sandbox::patience()
}

/// How nodes find each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Discovery {
    /// By natpunch's own rendezvous, which asks for the mesh's admission secret.
    Rendezvous,
    /// By the natpunch-go protocol.
    NatpunchGo,
    /// By records on a web server, with STUN.
    Http,
    /// By records in a directory that all nodes see, with STUN.
    File,
    /// By records in a Redis server, with STUN.
    Redis,
    /// By records in a DNS zone of Knot DNS on the server's host, with STUN.
    Dns,
    /// By a program that keeps records in a directory, with STUN.
    Program,
}

impl Discovery {
    /// Starts what it needs on the server's host, and gives what the mesh file says of it.
    fn section(self, lab: &Lab, server: &mut Server) -> String {
        let address = server.address();
        match self {
            Discovery::Rendezvous => server.section("rendezvous"),
            Discovery::NatpunchGo => format!(
                "[discovery.rendezvous]\nplugin = \"natpunch-go\"\nserver = \"{address}:{UDP_PORT}\"\npublic_key = \"{}\"\n",
                server.public_key
            ),
            Discovery::Http => format!(
                "[discovery.web]\nplugin = \"http\"\nurl = \"http://{address}:{HTTP_PORT}/v1\"\n\
                 stun = [\"{address}:{UDP_PORT}\"]\n"
            ),
            Discovery::File => {
                let directory = lab.directory().join("records");
                std::fs::create_dir(&directory).unwrap();
                format!(
                    "[discovery.files]\nplugin = \"file\"\ndirectory = \"{}\"\n\
                     stun = [\"{address}:{UDP_PORT}\"]\n",
                    directory.display()
                )
            }
            Discovery::Program => {
                let directory = lab.directory().join("programs-records");
                std::fs::create_dir(&directory).unwrap();
                let program = install_program("file.py");
                format!(
                    "[discovery.program]\nplugin = \"exec\"\ncommand = [\"{}\"]\nuser = \"root\"\n\
                     write_paths = [\"{at}\"]\nsettings = {{ directory = \"{at}\" }}\n\
                     [stun]\nservers = [\"{address}:{UDP_PORT}\"]\n",
                    program.display(),
                    at = directory.display(),
                )
            }
            Discovery::Redis => {
                server.start_redis();
                format!(
                    "[discovery.redis]\nplugin = \"redis\"\nurl = \"redis://{address}:{REDIS_PORT}\"\n\
                     stun = [\"{address}:{UDP_PORT}\"]\n"
                )
            }
            Discovery::Dns => server.serve_zone(),
        }
    }
}

/// A lab with a server and a mesh file that all nodes share.
pub(crate) struct World {
    pub(crate) lab: Lab,
    pub(crate) mesh: Mesh,
    pub(crate) server: Server,
}

impl World {
    pub(crate) fn new(lab: Lab, discovery: Discovery) -> Self {
        let (mut world, sections) = World::with_all(lab, &[discovery]);
        world.mesh.discovery = sections.concat();
        world
    }

    /// One with all that these ways need, and what the mesh file says of each. The mesh file does
    /// not say it yet.
    pub(crate) fn with_all(mut lab: Lab, ways: &[Discovery]) -> (Self, Vec<String>) {
        let mut server = Server::start(lab.public_host("server").unwrap());
        let sections = ways
            .iter()
            .map(|way| way.section(&lab, &mut server))
            .collect();
        let mesh = Mesh {
            discovery: String::new(),
            ..Mesh::default()
        };
        (World { lab, mesh, server }, sections)
    }

    /// One whose nodes reach natpunch's own rendezvous over IPv6 alone.
    pub(crate) fn over_ipv6(lab: Lab) -> Self {
        let mut world = World::new(lab, Discovery::Rendezvous);
        let (ipv4, ipv6) = (world.server.address(), world.server.ipv6());
        world.mesh.discovery = world.mesh.discovery.replace(
            &format!("{ipv4}:{UDP_PORT}"),
            &format!("[{ipv6}]:{UDP_PORT}"),
        );
        world
    }

    /// Another server, which the mesh file names so.
    pub(crate) fn add_server(&mut self, name: &str) -> Server {
        let server = Server::start(self.lab.public_host(name).unwrap());
        self.mesh.discovery.push_str(&server.section(name));
        server
    }

    /// The mesh file.
    pub(crate) fn file(&self) -> PathBuf {
        self.lab.directory().join("mesh.toml")
    }

    /// Puts the mesh file in place as it is now.
    pub(crate) fn write_mesh(&self) {
        self.mesh.write(&self.file());
    }

    /// A node on this machine, in the mesh but not running yet.
    pub(crate) fn node(&mut self, host: Host) -> Node {
        let file = self.file();
        Node::new(host, &mut self.mesh, file, "")
    }

    /// A node behind a router of its own.
    pub(crate) fn node_behind(&mut self, nat: Nat, name: &str) -> (Node, Router) {
        let router = self.lab.router(&format!("nat-{name}"), nat).unwrap();
        (self.node_at(&router, name), router)
    }

    /// A node behind this router.
    pub(crate) fn node_at(&mut self, router: &Router, name: &str) -> Node {
        let host = self.lab.host_behind(router, name).unwrap();
        self.node(host)
    }

    /// One with a node `a` on a host with a public address, which is alone in the mesh file, and not
    /// started.
    pub(crate) fn with_one_node(lab: Lab, discovery: Discovery) -> (Self, Node) {
        let mut world = Self::new(lab, discovery);
        let host = world.lab.public_host("a").unwrap();
        let node = world.node(host);
        world.write_mesh();
        (world, node)
    }

    /// Two nodes behind two NATs, started, not yet connected.
    pub(crate) fn pair(&mut self, nats: [Nat; 2]) -> ([Node; 2], [Router; 2]) {
        let (mut a, nat_a) = self.node_behind(nats[0], "a");
        let (mut b, nat_b) = self.node_behind(nats[1], "b");
        self.write_mesh();
        a.start();
        b.start();
        ([a, b], [nat_a, nat_b])
    }
}

/// Puts an example of a plugin where mesh files may name programs, in this lab alone.
fn install_program(name: &str) -> PathBuf {
    let parent = std::path::Path::new("/usr/local/lib");
    mount(
        Some("tmpfs"),
        parent,
        Some("tmpfs"),
        MsFlags::empty(),
        Some("mode=0755"),
    )
    .unwrap();
    let directory = parent.join("natpunch");
    std::fs::create_dir(&directory).unwrap();
    let example = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/plugins");
    let program = directory.join(name);
    std::fs::copy(example.join(name), &program).unwrap();
    program
}

/// Makes a key with the product's own commands.
pub(crate) fn new_key(host: &Host) -> (PathBuf, String) {
    let key_file = new_secret(host, "node.key");
    let public = public_key(&key_file);
    (key_file, public)
}

/// The public key of a private one.
pub(crate) fn public_key(key_file: &std::path::Path) -> String {
    let mut pubkey = Command::new(NATPUNCH);
    pubkey
        .arg("pubkey")
        .stdin(std::fs::File::open(key_file).unwrap());
    let public = pubkey.output().unwrap().stdout;
    String::from_utf8(public).unwrap().trim().to_owned()
}

/// Makes a private key in a file of this host.
fn new_secret(host: &Host, name: &str) -> PathBuf {
    new_file(host, name, &["keygen"])
}

/// Keeps what a command prints in a file of this host that is its owner's only.
pub(crate) fn new_file(host: &Host, name: &str, command: &[&str]) -> PathBuf {
    let secret = Command::new(NATPUNCH)
        .args(command)
        .output()
        .unwrap()
        .stdout;
    let path = host.directory().unwrap().join(name);
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .unwrap();
    file.write_all(&secret).unwrap();
    path
}

/// The rendezvous server.
pub(crate) struct Server {
    host: Host,
    pub(crate) public_key: String,
    pub(crate) secret_file: PathBuf,
    /// More arguments of `serve`.
    pub(crate) arguments: Vec<String>,
    process: Option<Process>,
    log: Option<Follower<String>>,
    /// A Redis server on the same host.
    redis: Option<Process>,
    /// The name server beside it.
    knot: Option<Process>,
}

impl Server {
    fn start(host: Host) -> Self {
        let secret_file = new_secret(&host, "admission.key");
        let mut server = Server {
            host,
            public_key: String::new(),
            secret_file,
            arguments: Vec::new(),
            process: None,
            log: None,
            redis: None,
            knot: None,
        };
        server.restart();
        server
    }

    pub(crate) fn address(&self) -> Ipv4Addr {
        self.host.ipv4().unwrap()
    }

    pub(crate) fn ipv6(&self) -> Ipv6Addr {
        self.host.ipv6().unwrap()
    }

    /// What the mesh file says of its own rendezvous.
    fn section(&self, name: &str) -> String {
        let (address, key, secret) = (self.address(), &self.public_key, self.secret_file.display());
        format!(
            "[discovery.{name}]\nplugin = \"rendezvous\"\nserver = \"{address}:{UDP_PORT}\"\npublic_key = \"{key}\"\n\
             admission_secret_file = \"{secret}\"\n"
        )
    }

    /// Starts a name server with a zone that nodes update; what the mesh file says of it.
    fn serve_zone(&mut self) -> String {
        let key_file = new_secret(&self.host, "dns.key");
        let secret = std::fs::read_to_string(&key_file).unwrap();
        let directory = self.host.directory().unwrap().join("knot");
        std::fs::create_dir(&directory).unwrap();
        let (at, address) = (directory.display(), self.address());
        let zone = format!(
            "$ORIGIN natpunch.test.\n$TTL 5\n@ SOA ns hostmaster 1 3600 600 86400 1\n@ NS ns\n\
             ns A {address}\n"
        );
        std::fs::write(directory.join("zone"), zone).unwrap();
        let config = format!(
            "server:\n  rundir: \"{at}\"\n  listen: {address}@53\n\
             log:\n  - target: stderr\n    any: info\n\
             database:\n  storage: \"{at}\"\n\
             key:\n  - id: natpunch\n    algorithm: hmac-sha256\n    secret: {}\n\
             acl:\n  - id: nodes\n    key: natpunch\n    action: update\n    update-type: [TXT]\n\
             zone:\n  - domain: natpunch.test\n    storage: \"{at}\"\n    file: zone\n    acl: nodes\n    \
             zonefile-sync: -1\n    zonefile-load: difference-no-serial\n    journal-content: all\n",
            secret.trim()
        );
        std::fs::write(directory.join("knot.conf"), config).unwrap();
        let mut knotd = Command::new("knotd");
        knotd.arg("-c").arg(directory.join("knot.conf"));
        knotd.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = self.host.spawn(knotd).unwrap();
        let stderr = process.child().stderr.take().unwrap();
        let lines = Follower::start(stderr, |_, line| Some(line.to_owned())).unwrap();
        let started = lines.wait(soon(), |lines| {
            let is_started = lines
                .iter()
                .any(|(_, line)| line.contains("server started"));
            is_started.then_some(())
        });
        started.unwrap();
        self.knot = Some(process);
        format!(
            "[discovery.zone]\nplugin = \"dns\"\nzone = \"natpunch.test\"\nname_servers = [\"{address}\"]\n\
             update_server = \"{address}\"\nkey_name = \"natpunch\"\nkey_file = \"{}\"\n\
             stun = [\"{address}:{UDP_PORT}\"]\n",
            key_file.display()
        )
    }

    /// Lets nothing reach these UDP ports of its host, as a firewall in front of it.
    pub(crate) fn close_ports(&self, ports: &str) {
        let file = self.host.directory().unwrap().join("closed.nft");
        let rules = format!(
            "table inet closed {{\n  chain in {{\n    type filter hook input priority 0\n    \
             udp dport {ports} drop\n  }}\n}}\n"
        );
        std::fs::write(&file, rules).unwrap();
        let output = self.host.output("nft", &["-f".as_ref(), file.as_os_str()]);
        assert!(output.unwrap().status.success());
    }

    /// What it has logged since it started.
    pub(crate) fn logged(&self) -> Vec<String> {
        lines(self.log.as_ref().unwrap())
    }

    /// Kills it, so that it has no chance to say goodbye.
    pub(crate) fn kill(&mut self) {
        self.process.take().unwrap().kill().unwrap();
    }

    /// Starts a Redis server beside it, which answers whoever asks.
    fn start_redis(&mut self) {
        let mut command = Command::new("redis-server");
        command
            .args(["--port", &REDIS_PORT.to_string(), "--protected-mode", "no"])
            .args(["--save", "", "--dir"])
            .arg(self.host.directory().unwrap())
            .stdout(Stdio::piped());
        let mut process = self.host.spawn(command).unwrap();
        let stdout = process.child().stdout.take().unwrap();
        let lines = Follower::start(stdout, |_, line| Some(line.to_owned())).unwrap();
        let is_ready = |line: &str| line.contains("Ready to accept connections");
        let ready = lines.wait(soon(), |lines| {
            lines.iter().any(|(_, line)| is_ready(line)).then_some(())
        });
        ready.unwrap();
        self.redis = Some(process);
    }

    /// Starts it, with the key of the first start.
    pub(crate) fn restart(&mut self) {
        let mut command = Command::new(NATPUNCH);
        command
            .args([
                "serve",
                "--listen",
                &format!("0.0.0.0:{UDP_PORT}"),
                "--listen",
                &format!("[::]:{UDP_PORT}"),
            ])
            .args(["--compat", "natpunch-go"])
            .arg("--admission-secret-file")
            .arg(&self.secret_file)
            .args(["--http", &format!("0.0.0.0:{HTTP_PORT}"), "--key-file"])
            .arg(self.host.directory().unwrap().join("server.key"))
            .args(&self.arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut process = self.host.spawn(command).unwrap();
        let name = self.host.name().to_owned();
        let log = Follower::start(process.child().stderr.take().unwrap(), move |_, line| {
            // Shown if the test fails.
            eprintln!("{name} {line}");
            Some(line.to_owned())
        });
        self.log = Some(log.unwrap());
        let stdout = process.child().stdout.take().unwrap();
        let lines = Follower::start(stdout, |_, line| Some(line.to_owned())).unwrap();
        let ready = lines.wait(soon(), |lines| {
            let (_, first) = lines.first()?;
            lines
                .iter()
                .any(|(_, line)| line.contains("listening on http"))
                .then(|| first.clone())
        });
        self.public_key = ready
            .unwrap()
            .strip_prefix("public key: ")
            .unwrap()
            .to_owned();
        self.process = Some(process);
    }
}

/// A node of the mesh.
pub(crate) struct Node {
    pub(crate) host: Host,
    pub(crate) key_file: PathBuf,
    /// Its age identity, which it is started with instead of its key file.
    pub(crate) age_identity: Option<PathBuf>,
    pub(crate) public_key: String,
    /// Its address in the mesh.
    pub(crate) address: Ipv4Addr,
    /// Its mesh file: the world's, unless a test gives it another.
    pub(crate) file: PathBuf,
    /// The program that it runs.
    pub(crate) program: PathBuf,
    /// More arguments of `apply`.
    pub(crate) arguments: Vec<String>,
    /// More of the environment of `apply`.
    pub(crate) environment: Vec<(&'static str, String)>,
    /// What it logs.
    pub(crate) log: &'static str,
    agent: Option<Agent>,
}

/// A running `natpunch apply`.
struct Agent {
    process: Process,
    log: Follower<String>,
}

impl Node {
    /// A new member of a mesh that is in this file, with these lines of its own in it.
    pub(crate) fn new(host: Host, mesh: &mut Mesh, file: PathBuf, more: &str) -> Self {
        let (key_file, public_key) = new_key(&host);
        let address = mesh.add(host.name(), &public_key, more);
        let (arguments, environment) = (Vec::new(), Vec::new());
        Self {
            host,
            key_file,
            age_identity: None,
            public_key,
            address,
            file,
            program: NATPUNCH.into(),
            arguments,
            environment,
            log: "info,natpunch=debug",
            agent: None,
        }
    }

    pub(crate) fn name(&self) -> &str {
        self.host.name()
    }

    /// Starts the agent.
    pub(crate) fn start(&mut self) {
        let mut command = Command::new(&self.program);
        let (option, file) = match &self.age_identity {
            Some(identity) => ("--age-identity", identity),
            None => ("--private-key-file", &self.key_file),
        };
        command
            .args(["--log", self.log, "apply"])
            .arg(&self.file)
            .arg(option)
            .arg(file)
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .env(
                "NATPUNCH_STATE_DIR",
                self.host.directory().unwrap().join("state"),
            )
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut process = self.host.spawn(command).unwrap();
        let name = self.name().to_owned();
        let start = Instant::now();
        let log = Follower::start(process.child().stderr.take().unwrap(), move |at, line| {
            // Shown if the test fails.
            eprintln!(
                "{name} +{:.3} {line}",
                at.duration_since(start).as_secs_f64()
            );
            Some(line.to_owned())
        });
        self.agent = Some(Agent {
            process,
            log: log.unwrap(),
        });
    }

    /// Kills the agent with SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.agent.take().unwrap().process.kill().unwrap();
    }

    /// The agent's process.
    pub(crate) fn pid(&mut self) -> nix::unistd::Pid {
        let id = self.agent.as_mut().unwrap().process.child().id();
        nix::unistd::Pid::from_raw(i32::try_from(id).unwrap())
    }

    /// Whether the agent has ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.agent
            .as_mut()
            .is_none_or(|agent| agent.process.child().try_wait().unwrap().is_some())
    }

    /// A mesh file of this node alone, with these lines more: what changes in it, the others do not
    /// follow.
    pub(crate) fn own_file(&mut self, mesh: &mut Mesh, lines: &str) {
        mesh.discovery.push_str(lines);
        self.file = self.host.directory().unwrap().join("mesh.toml");
        mesh.write(&self.file);
    }

    /// Stops the agent with SIGTERM.
    pub(crate) fn stop(&mut self) {
        let status = self.agent.take().unwrap().process.terminate().unwrap();
        assert!(
            status.success(),
            "the agent of {} ended with {status}",
            self.name()
        );
    }

    /// What the agent has logged since it started.
    pub(crate) fn logged(&self) -> Vec<String> {
        lines(&self.agent.as_ref().unwrap().log)
    }

    /// Waits for a line of the agent's log; when it came.
    pub(crate) fn wait_log(&self, text: &str, deadline: Instant) -> Option<Instant> {
        let log = &self.agent.as_ref().unwrap().log;
        log.wait(deadline, |lines| {
            lines
                .iter()
                .find(|(_, line)| line.contains(text))
                .map(|(at, _)| *at)
        })
    }

    /// Runs a natpunch command on this host and gives what it printed.
    pub(crate) fn natpunch(&self, arguments: &[&str]) -> std::process::Output {
        let mut command = Command::new(NATPUNCH);
        command
            .args(arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .env(
                "NATPUNCH_STATE_DIR",
                self.host.directory().unwrap().join("state"),
            );
        self.host
            .run(move || command.stdin(Stdio::null()).output())
            .unwrap()
            .unwrap()
    }

    /// `natpunch status --json`; `None` while no agent answers.
    pub(crate) fn status(&self) -> Option<Value> {
        let output = self.natpunch(&["status", "--json"]);
        let answered = output.status.success().then_some(output.stdout)?;
        serde_json::from_slice(&answered).ok()
    }

    /// Asks for the status until `check` finds in it what it looks for. Panics at the deadline.
    pub(crate) fn wait<R>(
        &self,
        what: &str,
        deadline: Instant,
        mut check: impl FnMut(&Value) -> Option<R>,
    ) -> R {
        loop {
            let status = self.status();
            if let Some(found) = status.as_ref().and_then(&mut check) {
                return found;
            }
            assert!(
                Instant::now() < deadline,
                "{}: {what} did not come; its status is\n{status:#?}",
                self.name()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until the agent answers.
    pub(crate) fn wait_up(&self) {
        self.wait("an answering agent", soon(), |_| Some(()));
    }

    /// Waits until the status says of a peer what `check` looks for.
    pub(crate) fn wait_peer<R>(
        &self,
        peer: &str,
        what: &str,
        deadline: Instant,
        mut check: impl FnMut(&Value) -> Option<R>,
    ) -> R {
        self.wait(&format!("{what} for {peer}"), deadline, |status| {
            check(peer_in(status, peer)?)
        })
    }

    /// Waits until a peer is connected, and gives what the status says of it.
    pub(crate) fn wait_connected(&self, peer: &str) -> Value {
        self.wait_peer(peer, "a connection", soon(), |peer| {
            (peer["state"] == "connected" && !peer["handshake_age_s"].is_null())
                .then(|| peer.clone())
        })
    }

    /// Waits until this node reaches another by this kind of path, and gives what the status says
    /// of it.
    pub(crate) fn wait_path(&self, peer: &Node, path: &str, deadline: Instant) -> Value {
        self.wait_peer(
            peer.name(),
            &format!("a path of the kind {path}"),
            deadline,
            |status| {
                let connected =
                    status["state"] == "connected" && !status["handshake_age_s"].is_null();
                (connected && status["path"] == path).then(|| status.clone())
            },
        )
    }

    /// Starts to ping another node.
    pub(crate) fn ping(&self, to: Ipv4Addr, interval: Duration) -> Ping {
        Ping::start(&self.host, IpAddr::V4(to), interval).unwrap()
    }

    /// Whether one ping of another node is answered within a second.
    pub(crate) fn reaches(&self, to: Ipv4Addr) -> bool {
        self.host
            .output("ping", &["-n", "-c1", "-W1", &to.to_string()])
            .unwrap()
            .status
            .success()
    }

    /// What `wg show` says of each peer.
    pub(crate) fn wg(&self) -> Vec<WgPeer> {
        wg_peers(&self.host, INTERFACE)
    }

    /// What `wg show` says of another node.
    pub(crate) fn wg_peer(&self, peer: &Node) -> WgPeer {
        self.wg()
            .into_iter()
            .find(|candidate| candidate.public_key == peer.public_key)
            .unwrap()
    }
}

fn lines(log: &Follower<String>) -> Vec<String> {
    log.so_far().into_iter().map(|(_, line)| line).collect()
}

/// The part of a status that is about a peer.
pub(crate) fn peer_in<'a>(status: &'a Value, peer: &str) -> Option<&'a Value> {
    status["peers"]
        .as_array()?
        .iter()
        .find(|candidate| candidate["name"] == peer)
}

/// A peer, as WireGuard itself has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WgPeer {
    pub(crate) public_key: String,
    pub(crate) endpoint: String,
    pub(crate) allowed_ips: String,
    /// Seconds since 1970; 0 is never.
    pub(crate) latest_handshake: u64,
    pub(crate) received: u64,
    pub(crate) sent: u64,
    pub(crate) keepalive: String,
}

/// Reads `wg show INTERFACE dump`.
pub(crate) fn wg_peers(host: &Host, interface: &str) -> Vec<WgPeer> {
    let output = host.output("wg", &["show", interface, "dump"]).unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).unwrap();
    let peers = text.lines().skip(1).map(|line| {
        let fields: Vec<&str> = line.split('\t').collect();
        WgPeer {
            public_key: fields[0].to_owned(),
            endpoint: fields[2].to_owned(),
            allowed_ips: fields[3].to_owned(),
            latest_handshake: fields[4].parse().unwrap(),
            received: fields[5].parse().unwrap(),
            sent: fields[6].parse().unwrap(),
            keepalive: fields[7].to_owned(),
        }
    });
    peers.collect()
}
