//! What an operator does with a running server: change its settings, ask it, collect its metrics.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use natpunch::server::status::Status;
use natpunch_types::{PeerKey, PresharedKey, RelayUse, SecretKey, Time};
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::process::{Server, serve};
use crate::rendezvous::{Node, key};

/// Longer than anything takes that works.
const PATIENCE: Duration = Duration::from_secs(30);

/// A directory with a server's settings, and the server.
struct Operated {
    directory: tempfile::TempDir,
    server: Server,
}

impl Operated {
    fn start(settings: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        write_settings(directory.path(), settings);
        let path = directory.path().join("serve.toml");
        let server = Server::spawn(
            serve(&["--config", path.to_str().unwrap()]),
            directory.path(),
        );
        Self { directory, server }
    }

    fn control(&self) -> PathBuf {
        self.directory.path().join("control.sock")
    }

    fn write(&self, settings: &str) {
        write_settings(self.directory.path(), settings);
    }

    fn status(&self) -> Status {
        let mut command = Command::new(env!("CARGO_BIN_EXE_natpunch"));
        let output = command
            .args(["serve", "status", "--json", "--control"])
            .arg(self.control())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Asks until the answer is right.
    fn wait_for(&self, is_right: impl Fn(&Status) -> bool) -> Status {
        let end = Instant::now() + PATIENCE;
        loop {
            let status = self.status();
            if is_right(&status) {
                return status;
            }
            assert!(Instant::now() < end, "{status:?} {}", self.server.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn node(&self, n: u32, admission: Option<PresharedKey>) -> Node {
        let mut node = Node::new(
            n,
            ([127, 0, 0, 1], 0).into(),
            self.server.udp[0],
            self.server.public_key,
            admission,
        );
        assert!(
            node.live_until(PATIENCE, Node::is_up),
            "{}",
            self.server.log()
        );
        node
    }
}

/// Writes these settings as an editor does, with what all servers need.
fn write_settings(directory: &Path, settings: &str) {
    let path = |name: &str| directory.join(name);
    let mut common = format!(
        "listen = [\"127.0.0.1:0\"]\ncontrol = {:?}\n",
        path("control.sock")
    );
    if !settings.starts_with("key_file") {
        common += &format!("key_file = {:?}\n", path("server.key"));
    }
    std::fs::write(path("serve.toml.new"), common + settings).unwrap();
    std::fs::rename(path("serve.toml.new"), path("serve.toml")).unwrap();
}

fn public(key: &SecretKey) -> PeerKey {
    key.public_key()
}

fn allowed(nodes: &[u32]) -> String {
    let keys: Vec<String> = nodes
        .iter()
        .map(|n| format!("\"{}\"", public(&key(*n))))
        .collect();
    format!("allowed_identities = [{}]\n", keys.join(", "))
}

#[test]
fn who_is_taken_off_the_list_is_gone_within_a_second_of_the_change() {
    let operated = Operated::start(&allowed(&[1, 2]));
    let (_one, mut two) = (operated.node(1, None), operated.node(2, None));
    operated.wait_for(|status| status.rendezvous.as_ref().unwrap().sessions == 2);
    let before = Instant::now();
    operated.write(&allowed(&[2, 3]));
    let status = operated.wait_for(|status| status.rendezvous.as_ref().unwrap().sessions == 1);
    // The change is seen after 0.15 s of quiet and done at once; the rest is this machine's.
    assert!(
        before.elapsed() < Duration::from_secs(5),
        "{:?}",
        before.elapsed()
    );
    assert_eq!((status.reloads.taken, status.reloads.problem), (1, None));
    assert_eq!(
        status
            .events
            .iter()
            .find(|event| event.event == "revoked")
            .unwrap()
            .total,
        1
    );
    let _three = operated.node(3, None);
    assert!(
        two.live_until(Duration::from_millis(300), |_| false) || two.is_up(),
        "who stays is not disturbed"
    );
}

#[test]
fn a_broken_file_changes_nothing_and_is_named_with_its_line_until_it_is_mended() {
    let operated = Operated::start(&allowed(&[1]));
    let _one = operated.node(1, None);
    operated.write("allowed_identities = []\n[limits]\nsesions = 5\n");
    let status = operated.wait_for(|status| status.reloads.refused > 0);
    let problem = status.reloads.problem.unwrap();
    assert!(
        problem.contains("line 6") && problem.contains("sesions"),
        "{problem}"
    );
    assert_eq!(
        status.rendezvous.unwrap().sessions,
        1,
        "nothing has changed"
    );
    assert!(operated.server.log().contains("line 6"));
    operated.write(&format!(
        "{}workers = 7\n[limits]\nsessions = 5\n",
        allowed(&[1])
    ));
    let status = operated.wait_for(|status| status.reloads.taken > 0);
    assert_eq!(status.reloads.problem, None);
    assert_eq!(
        status.reloads.needs_restart,
        ["workers"],
        "what can't be changed is said"
    );
    assert_eq!(
        status
            .rendezvous
            .map(|rendezvous| (rendezvous.sessions, rendezvous.max_sessions)),
        Some((1, 5))
    );
}

/// A record and a relay that both want, while both live.
const TAG: [u8; 16] = [9; 16];

#[test]
fn what_a_withdrawn_secret_let_in_is_gone_within_a_second_of_the_change_relays_and_records_too() {
    let directory = tempfile::tempdir().unwrap();
    let secrets = [1, 2].map(|n| PresharedKey::from_bytes([n; 32]));
    let files = [
        "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=",
        "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=",
    ];
    let files: Vec<PathBuf> = (1..)
        .zip(files)
        .map(|(n, text)| secret_file(directory.path(), n, text))
        .collect();
    let both = format!("admission_secret_files = {files:?}\n");
    let operated = Operated::start(&both);
    let round = |n: u32| {
        let mut nodes =
            [0, 1].map(|side| operated.node(2 * n + side, Some(secrets[side as usize].clone())));
        for (side, node) in nodes.iter_mut().enumerate() {
            let now = node.now();
            node.client.set_records(
                [([side as u8 + 1; 16], Arc::from([7; 100]))],
                Time::from_origin(now),
            );
            node.client
                .set_relays([(TAG, RelayUse::Carry)], Time::from_origin(now));
        }
        let end = Instant::now() + PATIENCE;
        let usage = || {
            operated
                .status()
                .rendezvous
                .map(|at| (at.sessions, at.mailboxes, at.relays, at.allocations))
        };
        while usage() != Some((2, 2, 1, 1)) {
            assert!(
                Instant::now() < end,
                "{:?} {}",
                usage(),
                operated.server.log()
            );
            for node in &mut nodes {
                node.live_until(Duration::from_millis(20), |_| false);
            }
        }
        let before = Instant::now();
        operated.write(&format!("admission_secret_files = [{:?}]\n", files[1]));
        while usage() != Some((1, 1, 1, 0)) {
            assert!(
                Instant::now() < end,
                "{:?} {}",
                usage(),
                operated.server.log()
            );
        }
        let took = before.elapsed();
        // Nobody is left for the next round.
        operated.write(&allowed(&[]));
        operated.wait_for(|status| status.rendezvous.as_ref().unwrap().mailboxes == 0);
        let taken = operated.status().reloads.taken;
        operated.write(&both);
        operated.wait_for(|status| status.reloads.taken > taken);
        took
    };
    // The machine may be busy with something else, once.
    let fastest = (0..3).map(round).min().unwrap();
    assert!(fastest < Duration::from_secs(1), "{fastest:?}");
}

#[test]
fn a_server_changes_its_key_while_it_runs_and_no_session_ends() {
    let operated = Operated::start("open = true\n");
    let (server, old) = (operated.server.udp[0], operated.server.public_key);
    let next_file = operated.directory.path().join("next.key");
    let node = |n: u32, keys: &[PeerKey], within: Duration| {
        let mut node = Node::knowing(n, ([127, 0, 0, 1], 0).into(), server, keys, None);
        let is_up = node.live_until(within, Node::is_up);
        (is_up, node)
    };
    let (is_up, mut first) = node(1, &[old], PATIENCE);
    assert!(is_up, "{}", operated.server.log());

    operated.write(&format!("open = true\nnext_key_file = {next_file:?}\n"));
    operated.wait_for(|status| status.reloads.taken == 1);
    let next: SecretKey = std::fs::read_to_string(&next_file)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    let next = public(&next);
    assert!(
        operated.server.log().contains(&next.to_string()),
        "the operator is told its public key"
    );
    let (by_old, _second) = node(2, &[old, next], PATIENCE);
    let (by_next, _third) = node(3, &[next], PATIENCE);
    assert!(by_old && by_next, "either key opens: {by_old} {by_next}");

    operated.write(&format!("key_file = {next_file:?}\nopen = true\n"));
    let status = operated.wait_for(|status| status.reloads.taken == 2);
    assert_eq!(
        (status.reloads.problem, status.reloads.needs_restart),
        (None, vec![])
    );
    assert_eq!(
        status.rendezvous.unwrap().sessions,
        3,
        "nobody had to come again"
    );
    let now = first.now();
    first
        .client
        .set_records([(TAG, Arc::from([7; 100]))], Time::from_origin(now));
    let stored = first.live_until(PATIENCE, |_| {
        operated.status().rendezvous.unwrap().mailboxes == 1
    });
    assert!(stored && first.is_up(), "{}", operated.server.log());
    let status = operated.status();
    assert_eq!(
        status
            .events
            .iter()
            .find(|event| event.event == "registered")
            .unwrap()
            .total,
        3,
        "by its session"
    );
    let (by_both, _fourth) = node(4, &[old, next], PATIENCE);
    let (by_old, _fifth) = node(5, &[old], Duration::from_secs(3));
    assert!(
        by_both && !by_old,
        "the old key opens nothing any more: {by_both} {by_old}"
    );

    // What is no key changes nothing.
    std::fs::write(&next_file, "nonsense\n").unwrap();
    let status = operated.wait_for(|status| status.reloads.refused > 0);
    assert!(status.reloads.problem.unwrap().contains("next.key"));
    let (still, _sixth) = node(6, &[next], PATIENCE);
    assert!(still);
}

#[test]
fn another_key_for_clients_of_natpunch_go_needs_a_restart_and_that_is_said_until_then() {
    let operated = Operated::start("compat = [\"natpunch-go\"]\nopen = true\n");
    let other = secret_file(
        operated.directory.path(),
        1,
        "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=",
    );
    operated.write(&format!(
        "key_file = {other:?}\ncompat = [\"natpunch-go\"]\nopen = true\n"
    ));
    let status = operated.wait_for(|status| status.reloads.taken == 1);
    assert_eq!(
        status.reloads.needs_restart,
        ["key_file, for clients of natpunch-go"]
    );
    operated.server.signal(Signal::SIGHUP);
    let status = operated.wait_for(|status| status.reloads.taken == 2);
    assert_eq!(status.reloads.needs_restart.len(), 1);
}

/// Keeps a secret in a file that is its owner's only.
fn secret_file(directory: &Path, n: u32, text: &str) -> PathBuf {
    let path = directory.join(format!("secret-{n}"));
    std::fs::write(&path, format!("{text}\n")).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    path
}

#[test]
fn a_new_admission_secret_is_taken_and_a_hang_up_reads_all_again() {
    let directory = tempfile::tempdir().unwrap();
    let [old, new] = [1, 2].map(|n| PresharedKey::from_bytes([n; 32]));
    let old_file = secret_file(
        directory.path(),
        1,
        "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=",
    );
    let new_file = secret_file(
        directory.path(),
        2,
        "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=",
    );
    let operated = Operated::start(&format!("admission_secret_files = [{old_file:?}]\n"));
    let _one = operated.node(1, Some(old));
    operated.write(&format!(
        "admission_secret_files = [{old_file:?}, {new_file:?}]\n"
    ));
    operated.wait_for(|status| status.reloads.taken == 1);
    let _two = operated.node(2, Some(new));
    operated.write(&format!("admission_secret_files = [{new_file:?}]\n"));
    let status = operated.wait_for(|status| status.reloads.taken == 2);
    assert_eq!(
        status.rendezvous.unwrap().sessions,
        1,
        "who knows the old one only is gone"
    );
    operated.server.signal(Signal::SIGHUP);
    operated.wait_for(|status| status.reloads.taken == 3);
}

pub(crate) fn get(address: SocketAddr, path: &str, host: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn metrics_count_what_happens_and_name_nobody() {
    let operated = Operated::start("open = true\nmetrics = \"127.0.0.1:0\"\n");
    let address = operated.server.metrics.unwrap();
    let node = operated.node(1, None);
    let metrics = get(address, "/metrics", "127.0.0.1");
    assert!(
        metrics.starts_with("HTTP/1.1 200") && metrics.contains("version=0.0.4"),
        "{metrics}"
    );
    assert!(metrics.contains("\nnatpunch_sessions 1\n"), "{metrics}");
    for event in [
        "registered\"} 1",
        "pairs_met\"} 0",
        "not_sent_queue_full\"} 0",
    ] {
        assert!(
            metrics.contains(&format!(
                "\nnatpunch_events_total{{protocol=\"rendezvous\",event=\"{event}\n"
            )),
            "{metrics}"
        );
    }
    for gauge in [
        "relays 0",
        "max_relays 8192",
        "meetings 0",
        "handshakes_waiting 0",
        "threads_stuck 0",
    ] {
        assert!(
            metrics.contains(&format!("\nnatpunch_{gauge}\n")),
            "{metrics}"
        );
    }
    let own = public(&key(1)).to_string();
    assert!(!metrics.contains(&own) && !metrics.contains(&operated.server.public_key.to_string()));
    assert!(get(address, "/health", "localhost").ends_with("ok\n"));
    assert!(
        get(address, "/metrics", "evil.example").starts_with("HTTP/1.1 403"),
        "a name that somebody else made"
    );
    drop(node);
}

/// Stops one thread of a process, as if it were stuck, until it is let go or this test's thread
/// ends.
struct Stuck(Pid);

impl Stuck {
    fn new(process: u32, thread: &str) -> Self {
        let task_of = || {
            std::fs::read_dir(format!("/proc/{process}/task"))
                .unwrap()
                .map(|task| task.unwrap().path())
                // A thread may have ended since it was listed.
                .find(|task| {
                    std::fs::read_to_string(task.join("comm"))
                        .is_ok_and(|name| name.trim() == thread)
                })
        };
        // A thread names itself, which on a busy machine is some time after it was made.
        let start = Instant::now();
        let task = loop {
            match task_of() {
                Some(task) => break task,
                None if start.elapsed() < PATIENCE => std::thread::yield_now(),
                None => panic!("no thread {thread}"),
            }
        };
        let thread = Pid::from_raw(task.file_name().unwrap().to_str().unwrap().parse().unwrap());
        ptrace::seize(thread, ptrace::Options::empty()).unwrap();
        ptrace::interrupt(thread).unwrap();
        waitpid(thread, Some(WaitPidFlag::__WALL)).unwrap();
        Self(thread)
    }

    fn let_go(self) {
        ptrace::detach(self.0, None).unwrap();
    }
}

#[test]
fn a_thread_that_is_stuck_makes_the_server_unwell_and_the_watchdog_bite() {
    for thread in ["relay-0", "worker-0"] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify.sock");
        let systemd = UnixDatagram::bind(&path).unwrap();
        systemd.set_read_timeout(Some(PATIENCE)).unwrap();
        let told = || {
            let mut buffer = [0; 512];
            systemd
                .recv(&mut buffer)
                .ok()
                .map(|length| String::from_utf8_lossy(&buffer[..length]).trim().to_owned())
        };
        write_settings(
            directory.path(),
            "open = true\nworkers = 1\nmetrics = \"127.0.0.1:0\"\n",
        );
        let mut command = serve(&[
            "--config",
            directory.path().join("serve.toml").to_str().unwrap(),
        ]);
        command
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", "3000000");
        let operated = Operated {
            server: Server::spawn(command, directory.path()),
            directory,
        };
        let health = || get(operated.server.metrics.unwrap(), "/health", "localhost");
        // Signs of life may begin before it is ready.
        while told().unwrap() != "READY=1" {}
        assert_eq!(told().unwrap(), "WATCHDOG=1");
        assert!(health().ends_with("ok\n"));

        let stuck = Stuck::new(operated.server.id(), thread);
        let status = operated.wait_for(|status| !status.stuck.is_empty());
        assert_eq!(status.stuck, [thread]);
        let said = health();
        assert!(
            said.starts_with("HTTP/1.1 503") && said.ends_with(&format!("stuck: {thread}\n")),
            "{said}"
        );
        // What it said before it was missed is read; then there is silence for longer than it was
        // ever silent.
        systemd.set_nonblocking(true).unwrap();
        while told().is_some() {}
        systemd.set_nonblocking(false).unwrap();
        systemd
            .set_read_timeout(Some(Duration::from_secs(2)))
            .unwrap();
        assert_eq!(told(), None);

        stuck.let_go();
        systemd.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(told().unwrap(), "WATCHDOG=1");
        operated.wait_for(|status| status.stuck.is_empty());
        assert!(health().ends_with("ok\n"));
    }
}

#[test]
fn the_status_is_for_the_owner_of_the_server_and_readable() {
    use std::os::unix::fs::MetadataExt as _;
    let operated = Operated::start("open = true\n");
    assert_eq!(
        std::fs::metadata(operated.control()).unwrap().mode() & 0o777,
        0o600
    );
    let status = operated.status();
    assert_eq!(status.listen, operated.server.udp);
    assert_eq!(status.alternate_port, operated.server.alternate_port);
    assert!(status.workers >= 1 && status.resident_bytes > 0);
    let mut command = Command::new(env!("CARGO_BIN_EXE_natpunch"));
    let output = command
        .args(["serve", "status", "--control"])
        .arg(operated.control())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("0 of 65536 sessions") && text.contains("workers"),
        "{text}"
    );
    let mut command = Command::new(env!("CARGO_BIN_EXE_natpunch"));
    let output = command
        .args(["serve", "status", "--control", "/nonexistent"])
        .output()
        .unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        !output.status.success() && error.contains("no natpunch server answers"),
        "{error}"
    );
}

fn example(path: &str) -> String {
    std::fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// What docs/how-to/server.md says to do, with the unit's own words for where its secrets are.
#[test]
fn the_sample_settings_run_under_the_unit_with_their_secret_as_a_credential() {
    let unit = example("dist/systemd/natpunch-serve.service");
    let credential = unit
        .lines()
        .find_map(|line| line.strip_prefix("LoadCredential="))
        .unwrap();
    let (name, source) = credential.split_once(':').unwrap();
    let settings = example("examples/server/serve.toml");
    assert!(settings.contains(&format!("\"credential:{name}\"")));
    assert!(example("docs/how-to/server.md").contains(source));

    let directory = tempfile::tempdir().unwrap();
    let credentials = directory.path().join("credentials");
    std::fs::create_dir(&credentials).unwrap();
    let secret = key(7).expose_base64();
    std::fs::write(credentials.join(name), format!("{}\n", secret.as_str())).unwrap();
    // As systemd leaves it: an access list shows as the group's bits.
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::Permissions::from_mode(0o440);
    std::fs::set_permissions(credentials.join(name), mode).unwrap();
    let settings = settings
        .replace("[\"0.0.0.0:51900\", \"[::]:51900\"]", "[\"127.0.0.1:0\"]")
        .replace(
            "/var/lib/natpunch-serve",
            directory.path().to_str().unwrap(),
        );
    let path = directory.path().join("serve.toml");
    std::fs::write(&path, settings).unwrap();
    let arguments = ["--config", path.to_str().unwrap()];

    let (code, _, error) = crate::process::fails({
        let mut command = serve(&arguments);
        command.env_remove("CREDENTIALS_DIRECTORY");
        command
    });
    assert_eq!(code, Some(1));
    assert!(
        error.contains(&format!("LoadCredential={name}:")),
        "{error}"
    );

    let mut command = serve(&arguments);
    command.env("CREDENTIALS_DIRECTORY", &credentials);
    let operated = Operated {
        server: Server::spawn(command, directory.path()),
        directory,
    };
    let secret = PresharedKey::from_bytes(*key(7).expose());
    operated.node(1, Some(secret));
}

#[test]
fn the_unit_gives_the_server_what_its_own_bounds_take() {
    let unit = example("dist/systemd/natpunch-serve.service");
    let value = |key: &str| {
        let line = |line: &str| line.strip_prefix(key).map(str::to_owned);
        unit.lines()
            .find_map(line)
            .unwrap_or_else(|| panic!("no {key}"))
    };
    let memory = match value("MemoryMax=").split_at(value("MemoryMax=").len() - 1) {
        (number, "G") => number.parse::<usize>().unwrap() << 30,
        (number, "M") => number.parse::<usize>().unwrap() << 20,
        other => panic!("{other:?}"),
    };
    // The record store's bytes and bookkeeping, and 20 KiB for each connection.
    let records = (64 << 20) + 100_000 * 400 + 4_096 * (20 << 10);
    let bound = natpunch_rendezvous::server::Limits::default().memory() + records;
    assert!(memory >= bound + (64 << 20), "{bound} of {memory}");
    // Two threads for each core. The share is of what Linux has room for, which grows with the cores.
    let share = value("TasksMax=");
    let percent: usize = share.strip_suffix('%').unwrap().parse().unwrap();
    for cores in [1, 2, 64, 256] {
        let room = (1024 * cores).max(32_768);
        assert!(room * percent / 100 >= 2 * cores + 16, "{cores} cores");
    }
    assert_eq!(value("LimitCORE="), "0");
}

/// A revocation has to open files, and somebody who wants it not to happen may have taken them all.
#[test]
fn a_revocation_works_while_connections_take_all_open_files() {
    let directory = tempfile::tempdir().unwrap();
    let common = "http = \"127.0.0.1:0\"\nhttp_max_connections = 100000\nworkers = 1\n";
    write_settings(directory.path(), &(allowed(&[1, 2]) + common));
    let path = directory.path().join("serve.toml");
    let mut command = Command::new("prlimit");
    command
        .args(["--nofile=220:220", env!("CARGO_BIN_EXE_natpunch")])
        .args(["serve", "--config", path.to_str().unwrap()])
        .stdin(std::process::Stdio::null())
        .env_remove("NATPUNCH_LOG")
        .env_remove("NOTIFY_SOCKET");
    let operated = Operated {
        server: Server::spawn(command, directory.path()),
        directory,
    };
    let (_one, _two) = (operated.node(1, None), operated.node(2, None));
    operated.wait_for(|status| status.rendezvous.as_ref().unwrap().sessions == 2);
    let http = operated.server.http.unwrap();
    let held: Vec<TcpStream> = (0..300)
        .filter_map(|_| TcpStream::connect_timeout(&http, Duration::from_secs(1)).ok())
        .collect();
    operated.write(&(allowed(&[2]) + common));
    operated.wait_for(|status| status.rendezvous.as_ref().unwrap().sessions == 1);
    drop(held);
}
