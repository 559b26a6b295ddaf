//! The plugin against real servers (Debian's redis-server) and false ones, on loopback.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout
)]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use natpunch_plugin::conformance::{Subject, check, check_records};
use natpunch_plugin::testing::{Effect, FakeHost};
use natpunch_plugin::{
    Ask, Health, Input, Instance as _, Interest, News, PeerKey, RecordTag, Runs as _, SealedRecord,
    Secret, Secrets, Settings as _,
};
use natpunch_plugin_redis::{Settings, Store};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// The tags of the two directions of a pair.
const TAGS: [RecordTag; 2] = [RecordTag([0xa1; 16]), RecordTag([0xa2; 16])];
/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server in a directory of its own, ended with it.
struct Server {
    directory: tempfile::TempDir,
    port: u16,
    arguments: Vec<String>,
    child: Child,
}

impl Server {
    fn start(arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let arguments: Vec<String> = arguments.iter().map(|it| (*it).to_owned()).collect();
        for _ in 0..5 {
            let port = free_port();
            if let Some(child) = spawn(directory.path(), port, &arguments) {
                return Self {
                    directory,
                    port,
                    arguments,
                    child,
                };
            }
        }
        panic!("redis-server does not start: {arguments:?}")
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again, empty, at the same port.
    fn restart(&mut self) {
        let child = spawn(self.directory.path(), self.port, &self.arguments);
        self.child = child.expect("its port is its own");
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// What it answers to a line, without a login.
    fn ask(&self, line: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream
            .write_all(format!("{line}\r\nQUIT\r\n").as_bytes())
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.trim_end_matches("+OK\r\n").to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// A server that is ready; `None` if it ended, as when its port is another's by now.
fn spawn(directory: &Path, port: u16, arguments: &[String]) -> Option<Child> {
    let mut command = Command::new("redis-server");
    if let Some(file) = arguments
        .iter()
        .find(|argument| !argument.starts_with("--"))
    {
        command.arg(file);
    }
    let mut child = command
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
        .args(["--save", "", "--appendonly", "no", "--dir"])
        .arg(directory)
        .args(
            arguments
                .iter()
                .filter(|argument| argument.starts_with("--"))
                .flat_map(|it| it.splitn(2, ' ')),
        )
        .stdout(Stdio::piped())
        .spawn()
        .expect("redis-server is missing: scripts/deps.sh test");
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let is_ready = lines.any(|line| line.unwrap().contains("Ready to accept connections"));
    if !is_ready {
        child.wait().unwrap();
        return None;
    }
    // What it says later must not fill the pipe.
    std::thread::spawn(move || lines.for_each(drop));
    Some(child)
}

fn settings(text: &str) -> Store {
    let settings: Settings = serde_json::from_str(text).unwrap();
    settings.check().unwrap()
}

fn store(url: &str) -> Store {
    settings(&format!("{{\"url\": \"{url}\"}}"))
}

fn password(text: &str) -> Secrets {
    let password = Secret::Password(text.parse().unwrap());
    Secrets([("password_file", Ok(password))].into())
}

/// A node that runs the plugin: one side of a pair.
struct Node {
    host: Arc<FakeHost>,
    task: JoinHandle<()>,
    side: usize,
}

impl Node {
    fn start(store: &Store, secrets: &Secrets, side: usize) -> Self {
        let host = FakeHost::new(PeerKey::from_bytes([side as u8 + 1; 32]), None, side as u64);
        let mut plugin = store.plugin(secrets);
        let its_host = host.clone();
        let task = tokio::spawn(async move { plugin.run(its_host).await.unwrap() });
        let far = Interest {
            inbound_tag: TAGS[1 - side],
            outbound_tag: TAGS[side],
            ..Interest::new(PeerKey::from_bytes([2 - side as u8; 32]))
        };
        host.put(Input::Ask(Ask::Peers(Arc::from([far]))));
        Self { host, task, side }
    }

    fn puts(&self, text: &str) {
        let records = Arc::from([record(self.side, text)]);
        self.host.put(Input::Ask(Ask::Records(records)));
    }

    /// Waits for what its peer wrote; others, older ones, may come before.
    async fn hears(&self, text: &str) {
        let wanted = Effect::Told(News::Record(record(1 - self.side, text)));
        let hears = async { while self.host.effect().await != wanted {} };
        let came = timeout(PATIENCE, hears).await;
        came.unwrap_or_else(|_| panic!("{text} does not come"));
    }

    /// Waits for a word about its health.
    async fn says(&self, is_good: bool, part: &str) -> String {
        let says = async {
            loop {
                match self.host.effect().await {
                    Effect::Reported(Health::Good(said)) if is_good && said.contains(part) => {
                        return said;
                    }
                    Effect::Reported(Health::Bad(said)) if !is_good && said.contains(part) => {
                        return said;
                    }
                    _ => {}
                }
            }
        };
        let said = timeout(PATIENCE, says).await;
        said.unwrap_or_else(|_| panic!("nothing of \"{part}\" is said"))
    }

    async fn stop(self) {
        self.host.put(Input::Shutdown);
        timeout(PATIENCE, self.task).await.unwrap().unwrap();
    }
}

fn record(side: usize, text: &str) -> SealedRecord {
    SealedRecord {
        tag: TAGS[side],
        blob: text.as_bytes().into(),
    }
}

fn pair(store: &Store) -> [Node; 2] {
    [0, 1].map(|side| Node::start(store, &Secrets::default(), side))
}

#[tokio::test]
async fn it_keeps_the_rules_of_plugins_and_carries_records() {
    let server = Server::start(&[]);
    let store = store(&server.url());
    let subject = Subject {
        about: store.describe(),
        plugin: &|| store.plugin(&Secrets::default()),
    };
    let mut report = check(&subject).await;
    assert!(report.is_good(), "{report}");
    check_records(&subject, &mut report).await;
    assert!(report.is_good(), "{report}");
}

#[tokio::test]
async fn a_record_is_pushed_at_once_and_found_by_who_comes_later() {
    let server = Server::start(&[]);
    let store = store(&server.url());
    let a = Node::start(&store, &Secrets::default(), 0);
    a.puts("first");
    a.says(true, "1 kept").await;
    let b = Node::start(&store, &Secrets::default(), 1);
    b.hears("first").await;

    let mut delays = Vec::new();
    for number in 0..50 {
        let text = format!("record {number}");
        let begin = Instant::now();
        a.puts(&text);
        b.hears(&text).await;
        delays.push(begin.elapsed());
    }
    delays.sort();
    println!(
        "measured: a record is pushed in {:?} (median of 50), {:?} at most",
        delays[25], delays[49]
    );
    assert!(delays[25] < Duration::from_millis(200), "{delays:?}");

    // Nothing else lies there, and all of it expires.
    assert_eq!(server.ask("DBSIZE"), ":1\r\n");
    let key = format!("natpunch:{}", TAGS[0]);
    let left: i64 = server.ask(&format!("TTL {key}"))[1..]
        .trim()
        .parse()
        .unwrap();
    assert!((3_500..=3_600).contains(&left), "{left}");
    for node in [a, b] {
        node.stop().await;
    }
}

#[tokio::test]
async fn a_server_that_comes_back_empty_has_all_records_again() {
    let mut server = Server::start(&[]);
    let [a, b] = pair(&store(&server.url()));
    a.puts("before");
    b.hears("before").await;
    server.kill();
    a.says(false, "").await;
    // What is new meanwhile is not lost.
    a.puts("meanwhile");
    server.restart();
    b.hears("meanwhile").await;
    b.puts("after");
    a.hears("after").await;
    a.says(true, "1 of 1 peers' records found, 1 kept").await;
    assert_eq!(server.ask("DBSIZE"), ":2\r\n");
}

#[tokio::test]
async fn a_server_that_stands_still_for_seconds_costs_no_record_and_no_connection() {
    let server = Server::start(&[]);
    let [a, b] = pair(&store(&server.url()));
    a.puts("before");
    b.hears("before").await;
    server.signal(Signal::SIGSTOP);
    a.puts("meanwhile");
    tokio::time::sleep(Duration::from_secs(3)).await;
    server.signal(Signal::SIGCONT);
    b.hears("meanwhile").await;
    // Two nodes, and this question.
    let clients = server.ask("INFO stats");
    assert!(
        clients.contains("total_connections_received:3\r\n"),
        "{clients}"
    );
}

#[tokio::test]
async fn a_server_that_is_full_is_said_and_still_pushes() {
    let server = Server::start(&["--maxmemory 2mb", "--maxmemory-policy noeviction"]);
    let value = "x".repeat(50_000);
    let full = (0..100).find(|n| server.ask(&format!("SET {n} {value}")).starts_with("-OOM"));
    assert!(full.is_some());
    let [a, b] = pair(&store(&server.url()));
    let channel = format!("natpunch:{}", TAGS[0]);
    let is_subscribed = async {
        while !server
            .ask(&format!("PUBSUB NUMSUB {channel}"))
            .ends_with(":1\r\n")
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, is_subscribed).await.unwrap();
    a.puts("pushed");
    b.hears("pushed").await;
    a.says(false, "maxmemory").await;
    assert_eq!(server.ask(&format!("EXISTS {channel}")), ":0\r\n");
}

#[tokio::test]
async fn a_replica_and_a_server_that_comes_later_are_said() {
    let replica = Server::start(&["--replicaof 127.0.0.1 1"]);
    let node = Node::start(&store(&replica.url()), &Secrets::default(), 0);
    node.puts("to nobody");
    node.says(false, "READONLY").await;

    let mut late = Server::start(&[]);
    late.kill();
    let node = Node::start(&store(&late.url()), &Secrets::default(), 0);
    node.says(false, "can't connect").await;
    late.restart();
    node.says(true, "0 of 1").await;
}

/// The rights that the how-to gives, of a user with this password.
fn acl(password: &str) -> Vec<String> {
    let page = include_str!("../../../docs/how-to/redis.md");
    let (_, block) = page.split_once("```conf\n").unwrap();
    let (block, _) = block.split_once("```").unwrap();
    block
        .lines()
        .map(|line| line.replace("PASSWORD", password))
        .collect()
}

#[tokio::test]
async fn the_user_of_the_how_to_can_do_all_that_is_needed_and_nobody_else_anything() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("redis.conf");
    std::fs::write(&file, acl("open-sesame").join("\n") + "\n").unwrap();
    let server = Server::start(&[file.to_str().unwrap()]);
    assert!(server.ask("DBSIZE").starts_with("-NOAUTH"));
    let as_user = |user: &str, more: &str| {
        let url = server.url();
        settings(&format!(
            "{{\"url\": \"{url}/1\", \"user\": \"{user}\"{more}}}"
        ))
    };
    let right = as_user("natpunch", "");
    let [a, b] = [0, 1].map(|side| Node::start(&right, &password("open-sesame"), side));
    a.puts("for b");
    b.hears("for b").await;
    b.says(true, "1 of 1").await;

    for (store, secrets, expected) in [
        (right.clone(), Secrets::default(), "NOAUTH"),
        (right.clone(), password("open"), "WRONGPASS"),
        (as_user("nobody", ""), password("open-sesame"), "`nobody`"),
        (
            as_user("natpunch", ", \"prefix\": \"other:\""),
            password("open-sesame"),
            "NOPERM",
        ),
    ] {
        let node = Node::start(&store, &secrets, 0);
        let said = node.says(false, expected).await;
        assert!(!said.contains("sesame"), "{said}");
    }
}

#[tokio::test]
async fn a_server_is_reached_by_tls_and_only_if_its_certificate_is_of_a_known_authority() {
    let directory = tempfile::tempdir().unwrap();
    let [certificate, key] = ["server.crt", "server.pem"].map(|name| directory.path().join(name));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt"])
        .args(["ec_paramgen_curve:P-256", "-nodes", "-days", "2"])
        .args([
            "-subj",
            "/CN=redis",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
        ])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .stderr(Stdio::null())
        .status();
    assert!(made.unwrap().success());
    let tls_port = free_port();
    let _server = Server::start(&[
        &format!("--tls-port {tls_port}"),
        &format!("--tls-cert-file {}", certificate.display()),
        &format!("--tls-key-file {}", key.display()),
        &format!("--tls-ca-cert-file {}", certificate.display()),
        "--tls-auth-clients no",
    ]);
    let url = format!("rediss://127.0.0.1:{tls_port}");
    let known = format!(
        "{{\"url\": \"{url}\", \"tls_ca_file\": \"{}\"}}",
        certificate.display()
    );
    let [a, b] = pair(&settings(&known));
    // More than one record of TLS.
    let long = "x".repeat(SealedRecord::MAX);
    a.puts(&long);
    b.hears(&long).await;
    let unknown = Node::start(&store(&url), &Secrets::default(), 0);
    unknown.says(false, "TLS failed").await;
    let plain = Node::start(
        &store(&format!("redis://127.0.0.1:{tls_port}")),
        &Secrets::default(),
        0,
    );
    plain.says(false, "").await;
}

/// A server that sends this, over and over, to whoever connects; how much the first one took.
fn flooding(greeting: &'static [u8], flood: Vec<u8>) -> (u16, JoinHandle<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let sent = tokio::task::spawn_blocking(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let mut sent = 0;
        if stream.write_all(greeting).is_err() {
            return sent;
        }
        while let Ok(written) = stream.write(&flood) {
            sent += written;
        }
        sent
    });
    (port, sent)
}

#[tokio::test]
async fn a_server_that_lies_or_floods_is_left_before_it_costs_anything() {
    const HELLO: &[u8] = b"%0\r\n";
    let message = format!(
        "$7\r\nmessage\r\n$41\r\nnatpunch:{}\r\n$1\r\nx\r\n",
        TAGS[1]
    );
    for (greeting, flood, words, most) in [
        // A gigabyte is announced; an endless line; no such server; messages without end.
        (
            &b"$1073741824\r\n"[..],
            vec![0; 1 << 16],
            "longer than any record",
            8 << 20,
        ),
        (b"+", vec![b'a'; 1 << 16], "longer than any record", 8 << 20),
        (
            b"HTTP/1.1 400 Bad Request\r\n",
            vec![0; 1 << 16],
            "no Redis or Valkey",
            8 << 20,
        ),
        (
            HELLO,
            format!(">3\r\n{message}").repeat(500).into(),
            "more messages",
            16 << 20,
        ),
    ] {
        let (port, sent) = flooding(greeting, flood);
        let node = Node::start(
            &store(&format!("redis://127.0.0.1:{port}")),
            &Secrets::default(),
            0,
        );
        node.says(false, words).await;
        let sent = timeout(PATIENCE, sent).await.unwrap().unwrap();
        assert!(sent < most, "{words}: {sent} bytes were taken");
        node.stop().await;
    }
}

#[tokio::test]
async fn what_somebody_else_writes_there_is_not_told() {
    let server = Server::start(&[]);
    let key = format!("natpunch:{}", TAGS[1]);
    server.ask(&format!("SET {key} {}", "x".repeat(5_000)));
    let a = Node::start(&store(&server.url()), &Secrets::default(), 0);
    a.says(false, "is no record").await;
    server.ask(&format!("DEL {key}"));
    server.ask(&format!("PUBLISH {key} garbage"));
    // It is nobody's record, which the host finds out; the plugin goes on.
    a.hears("garbage").await;
    server.ask(&format!("PUBLISH {key} {}", "x".repeat(5_000)));
    let b = Node::start(&store(&server.url()), &Secrets::default(), 1);
    b.puts("true");
    a.hears("true").await;
}
