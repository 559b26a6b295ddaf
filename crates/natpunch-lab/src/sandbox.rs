//! The process that a lab lives in: number 1 of its own PID namespace, with mounts and a network of
//! its own.
//!
//! `unshare` and `setpriv` of util-linux do the work. The program is started again in there, which
//! [`is_inside`] tells it. A user who is not root is root of a new user namespace there.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use nix::mount::{MsFlags, mount};

use crate::lab::Lab;
use crate::{Error, Result};

/// Marks the process in the sandbox, together with its process number.
const MARK: &str = "NATPUNCH_LAB_SANDBOX";

/// Where hosts of a lab share files; on a file system in memory.
pub(crate) const SHARED_DIRECTORY: &str = "/run/natpunch-lab";

/// Whether this process is the first one of a sandbox.
pub fn is_inside() -> bool {
    std::process::id() == 1 && std::env::var_os(MARK).is_some()
}

/// A command that runs `program` in a sandbox. Killing it ends everything in there, and so does the
/// end of the thread that starts it.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "unshare"]);
    if !nix::unistd::Uid::effective().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command.args([
        "--fork",
        "--kill-child=KILL",
        "--pid",
        "--mount-proc",
        "--mount",
        "--net",
        "--",
    ]);
    command.arg(program).env(MARK, "1");
    command
}

/// Whether sandboxes work here.
///
/// # Errors
/// Why not.
pub fn check() -> Result<()> {
    let output = command("true")
        .stdin(Stdio::null())
        .output()
        .map_err(|source| Error::Program {
            program: "setpriv".into(),
            source,
        })?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::NoSandbox { message })
}

/// What helps where [`command`] failed.
pub const HELP: &str = "a lab needs root, or user namespaces for everybody (sysctl kernel.unprivileged_userns_clone=1; \
                        on Ubuntu also kernel.apparmor_restrict_unprivileged_userns=0), and the packages iproute2, \
                        nftables, iputils-ping and util-linux";

/// Builds an empty lab. Must run in a sandbox.
pub fn lab() -> Result<Lab> {
    if !is_inside() {
        let source = io::Error::other("this process is not in a sandbox");
        return Err(Error::System {
            what: "cannot build a lab",
            source,
        });
    }
    // Whatever the host keeps in /run is not for the lab, and what the lab keeps there vanishes
    // with it.
    mount(
        Some("natpunch-lab"),
        "/run",
        Some("tmpfs"),
        MsFlags::empty(),
        Some("mode=755"),
    )
    .map_err(|e| Error::System {
        what: "cannot mount /run",
        source: e.into(),
    })?;
    for directory in [SHARED_DIRECTORY, "/run/natpunch", "/run/wireguard"] {
        std::fs::create_dir(directory).map_err(|source| Error::System {
            what: "cannot make a directory",
            source,
        })?;
    }
    if !Path::new("/var/run/wireguard").exists() {
        // Not a symbolic link to /run here: WireGuard's sockets would be shared by all hosts.
        let source = io::Error::other("/var/run is not /run");
        return Err(Error::System {
            what: "cannot give each host its own /var/run/wireguard",
            source,
        });
    }
    Lab::new()
}

/// How many times longer than usual things may take here: `NATPUNCH_LAB_PATIENCE`, for slow
/// machines; else 1.
pub fn patience() -> u32 {
    std::env::var("NATPUNCH_LAB_PATIENCE")
        .ok()
        .and_then(|times| times.parse().ok())
        .unwrap_or(1)
}

/// Runs the test named `path` (as libtest names it) in a sandbox: the test binary starts itself
/// there for this test only, and `body` gets a lab. Panics as the test did, with its output, or
/// when `limit` has passed.
///
/// Use it through [`lab_test!`](crate::lab_test).
pub fn test(path: &str, limit: Duration, body: impl FnOnce(Lab)) {
    if is_inside() {
        match lab() {
            Ok(lab) => return body(lab),
            Err(error) => panic!("cannot build the lab: {error}"),
        }
    }
    let limit = limit * patience();
    let (outcome, output) = run_again(path, limit)
        .unwrap_or_else(|error| panic!("cannot run {path} in a sandbox: {error}; help: {HELP}"));
    // The inner run's own summary would be counted twice.
    let output: Vec<&str> = output
        .lines()
        .filter(|line| !line.starts_with("running ") && !line.starts_with("test "))
        .collect();
    let output = output.join("\n");
    match outcome {
        Outcome::Passed => print(&output),
        Outcome::Failed => panic!("{path} failed in its sandbox:\n{output}"),
        Outcome::TimedOut => panic!("{path} did not end within {limit:?}:\n{output}"),
    }
}

#[expect(
    clippy::print_stdout,
    reason = "a test's output, which libtest captures"
)]
fn print(output: &str) {
    println!("{output}");
}

enum Outcome {
    Passed,
    Failed,
    TimedOut,
}

fn run_again(path: &str, limit: Duration) -> io::Result<(Outcome, String)> {
    let (mut reader, writer) = io::pipe()?;
    let mut command = command(std::env::current_exe()?);
    command
        .args([
            path,
            "--exact",
            "--include-ignored",
            "--nocapture",
            "--test-threads=1",
        ])
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer);
    let mut child = command.spawn()?;
    // The command holds the writing end: without it, the pipe ends with the sandbox.
    drop(command);
    let (sender, read) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        let mut output = Vec::new();
        let result = reader.read_to_end(&mut output).map(|_| ());
        // The receiver may have given up waiting; it then reads the output from the thread's
        // result.
        let _ = sender.send(result);
        output
    });
    let timed_out = match read.recv_timeout(limit) {
        Ok(result) => result.map(|()| false)?,
        Err(_) => {
            child.kill()?;
            true
        }
    };
    let status = child.wait()?;
    let output = String::from_utf8_lossy(&thread.join().unwrap_or_default()).into_owned();
    // A name that matches no test would end well, too.
    let passed = status.success() && output.contains("test result: ok. 1 passed");
    let outcome = match (timed_out, passed) {
        (true, _) => Outcome::TimedOut,
        (false, true) => Outcome::Passed,
        (false, false) => Outcome::Failed,
    };
    Ok((outcome, output))
}

/// A test that gets a [`Lab`](crate::Lab): `lab_test!(name, seconds, |lab| { ... });`
#[macro_export]
macro_rules! lab_test {
    ($(#[$attribute:meta])* $name:ident, $seconds:expr, |$lab:ident| $body:block) => {
        #[test]
        $(#[$attribute])*
        fn $name() {
            let path = concat!(module_path!(), "::", stringify!($name));
            let path = path.split_once("::").map_or(path, |(_, path)| path);
            let limit = std::time::Duration::from_secs($seconds);
            #[allow(unused_mut)]
            $crate::sandbox::test(path, limit, |mut $lab| $body);
        }
    };
}
