//! The processes of the demo: this very binary, as a server and as two agents.

use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use natpunch_lab::{Follower, Host, Process};
use natpunch_types::PeerKey;
use serde_json::Value;

use super::DemoError;
use super::timeline::Timeline;

/// How often a status is asked for while something in it is awaited.
const POLL: Duration = Duration::from_millis(50);

/// How long to wait for the last lines of a process that has ended: its children may hold its
/// output open.
const LAST_LINES: Duration = Duration::from_millis(500);

/// This binary, to be started with `arguments`.
fn natpunch<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Result<Command, DemoError> {
    let program = std::env::current_exe().map_err(DemoError::system("cannot find this program"))?;
    let mut command = Command::new(program);
    command.args(arguments);
    Ok(command)
}

/// Keeps what `natpunch keygen` makes in a new file, as a person would.
fn new_secret(path: &Path) -> Result<PathBuf, DemoError> {
    let keygen = natpunch(["keygen"])?
        .output()
        .map_err(DemoError::system("cannot run keygen"))?;
    let file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    file.and_then(|mut file| file.write_all(&keygen.stdout))
        .map_err(DemoError::system("cannot write a key file"))?;
    Ok(path.to_owned())
}

/// The rendezvous server.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    pub(super) public_key: String,
    pub(super) secret_file: PathBuf,
    _process: Process,
    _host: Host,
}

impl Server {
    /// Starts it and waits until it has said its public key.
    pub(super) fn start(host: Host, port: u16, deadline: Instant) -> Result<Self, DemoError> {
        let address = host
            .ipv4()
            .ok_or_else(|| DemoError::process("server", "has no address"))?;
        let directory = host
            .directory()
            .map_err(DemoError::system("cannot make a directory"))?;
        let secret_file = new_secret(&directory.join("admission.secret"))?;
        let mut command = natpunch(["serve", "--compat", "natpunch-go", "--listen"])?;
        command
            .arg(format!("0.0.0.0:{port}"))
            .arg("--key-file")
            .arg(directory.join("server.key"));
        command.arg("--admission-secret-file").arg(&secret_file);
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = host.spawn(command)?;
        let stdout = process
            .child()
            .stdout
            .take()
            .ok_or_else(|| DemoError::process("server", "has no output"))?;
        let lines = Follower::start(stdout, |_, line| Some(line.to_owned()))
            .map_err(DemoError::system("cannot read the server's output"))?;
        // The key comes first, and the line after it when the socket is open.
        let public_key = lines.wait(deadline, |lines| {
            let key = lines
                .iter()
                .find_map(|(_, line)| line.strip_prefix("public key: ").map(str::to_owned))?;
            lines
                .iter()
                .any(|(_, line)| line.starts_with("listening on"))
                .then_some(key)
        });
        let public_key = public_key.ok_or_else(|| DemoError::process("server", "did not start"))?;
        let address = SocketAddr::from((address, port));
        Ok(Server {
            address,
            public_key,
            secret_file,
            _process: process,
            _host: host,
        })
    }
}

/// A node before its agent runs: a machine with a key.
pub(super) struct Machine {
    pub(super) host: Host,
    pub(super) public_key: PeerKey,
    key_file: PathBuf,
}

impl Machine {
    /// Makes the node's key, as a person would: `natpunch keygen` and `natpunch pubkey`.
    pub(super) fn with_new_key(host: Host) -> Result<Self, DemoError> {
        let failed = |_| DemoError::process(host.name(), "could not make its key");
        let directory = host
            .directory()
            .map_err(DemoError::system("cannot make a directory"))?;
        let key_file = new_secret(&directory.join("node.key"))?;
        let file =
            std::fs::File::open(&key_file).map_err(DemoError::system("cannot read a key file"))?;
        let pubkey = natpunch(["pubkey"])?
            .stdin(file)
            .output()
            .map_err(DemoError::system("cannot run pubkey"))?;
        let public_key = String::from_utf8_lossy(&pubkey.stdout)
            .trim()
            .parse()
            .map_err(failed)?;
        Ok(Machine {
            host,
            public_key,
            key_file,
        })
    }

    /// Starts `natpunch apply`, whose log goes into the timeline; in it, `names` replace public
    /// keys.
    pub(super) fn join(
        self,
        mesh: &Path,
        timeline: Timeline,
        names: Vec<(String, String)>,
    ) -> Result<Node, DemoError> {
        let mut command = natpunch([
            "--log-format",
            "json",
            "--log",
            "info,natpunch::paths=debug",
            "apply",
        ])?;
        let state = self
            .host
            .directory()
            .map_err(DemoError::system("cannot make a directory"))?
            .join("state");
        command
            .arg(mesh)
            .arg("--private-key-file")
            .arg(&self.key_file)
            .env("NATPUNCH_STATE_DIR", state);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let name = self.host.name().to_owned();
        let mut process = self.host.spawn(command)?;
        let stderr = process
            .child()
            .stderr
            .take()
            .ok_or_else(|| DemoError::process(&name, "has no output"))?;
        let log = Follower::start(stderr, move |at, line| {
            let text = names
                .iter()
                .fold(readable(line), |text, (key, name)| text.replace(key, name));
            timeline.say(at, &name, &text);
            Some(text)
        });
        let log = log.map_err(DemoError::system("cannot read a node's log"))?;
        Ok(Node {
            host: self.host,
            process,
            log,
        })
    }
}

/// A node whose agent runs.
pub(super) struct Node {
    pub(super) host: Host,
    process: Process,
    log: Follower<String>,
}

impl Node {
    pub(super) fn name(&self) -> &str {
        self.host.name()
    }

    /// `natpunch status` as it prints it.
    pub(super) fn status_text(&self) -> Result<String, DemoError> {
        Ok(String::from_utf8_lossy(&self.natpunch(&["status"])?.stdout).into_owned())
    }

    /// `natpunch status --json`; `None` while the agent does not answer.
    pub(super) fn status(&self) -> Result<Option<Value>, DemoError> {
        let output = self.natpunch(&["status", "--json"])?;
        let answered = output.status.success().then_some(output.stdout);
        Ok(answered.and_then(|answer| serde_json::from_slice(&answer).ok()))
    }

    fn natpunch(&self, arguments: &[&str]) -> Result<std::process::Output, DemoError> {
        let program =
            std::env::current_exe().map_err(DemoError::system("cannot find this program"))?;
        Ok(self.host.output(&program.to_string_lossy(), arguments)?)
    }

    /// What its status says of a peer.
    pub(super) fn peer(&self, name: &str) -> Result<Option<Value>, DemoError> {
        let status = self.status()?;
        let peers = status
            .as_ref()
            .and_then(|status| status.get("peers")?.as_array());
        Ok(peers
            .and_then(|peers| peers.iter().find(|peer| text(peer, "name") == name))
            .cloned())
    }

    /// Asks for the status until `check` finds in it what it looks for.
    pub(super) fn wait<R>(
        &mut self,
        deadline: Instant,
        what: &str,
        mut check: impl FnMut(&Value) -> Option<R>,
    ) -> Result<R, DemoError> {
        loop {
            if let Some(found) = self.status()?.as_ref().and_then(&mut check) {
                return Ok(found);
            }
            let ended = self
                .process
                .child()
                .try_wait()
                .map_err(DemoError::system("cannot look after a node"))?;
            if let Some(status) = ended {
                // Its last lines may still be on their way into the timeline.
                let _: Option<()> = self.log.wait(Instant::now() + LAST_LINES, |_| None);
                return Err(DemoError::process(
                    self.name(),
                    format!("ended with {status} (see its log above)"),
                ));
            }
            if Instant::now() >= deadline {
                return Err(DemoError::process(self.name(), what));
            }
            std::thread::sleep(POLL);
        }
    }
}

/// A text in a JSON object; empty if there is none.
pub(super) fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// A line of the JSON log for people: the message, then the other fields. A line that is something
/// else stays as it is.
fn readable(line: &str) -> String {
    let Ok(Value::Object(record)) = serde_json::from_str(line) else {
        return line.to_owned();
    };
    let plain = |value: &Value| {
        value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned)
    };
    let level = record.get("level").map(plain).unwrap_or_default();
    let mut text = if level == "INFO" {
        String::new()
    } else {
        format!("{}: ", level.to_lowercase())
    };
    text += &record.get("message").map(plain).unwrap_or_default();
    let known = ["timestamp", "level", "target", "message"];
    let fields: Vec<String> = record
        .iter()
        .filter(|(key, _)| !known.contains(&key.as_str()))
        .map(|(key, value)| format!("{key} {}", plain(value)))
        .collect();
    if !fields.is_empty() {
        text += &format!(" ({})", fields.join(", "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_line_is_shown_as_its_message_and_fields() {
        let line = r#"{"timestamp":"2026-01-01T00:00:00Z","level":"INFO","message":"joined","port":7,"target":"natpunch"}"#;
        assert_eq!(readable(line), "joined (port 7)");
        assert_eq!(readable(r#"{"level":"WARN","message":"odd"}"#), "warn: odd");
        assert_eq!(readable("thread 'main' panicked"), "thread 'main' panicked");
    }
}
