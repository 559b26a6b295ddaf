//! The program as a process: a user of its own, no new privileges, a fence, an empty environment,
//! limits, and a process group that ends with it.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Stdio;

use natpunch_plugin::PluginError;
use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Gid, Pid, Uid, User};
use rustix::process::{Resource, Rlimit, prlimit};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::{Program, fence};

/// All that a program sees of the environment.
const ENVIRONMENT: [(&str, &str); 2] = [
    ("PATH", "/usr/local/bin:/usr/bin:/bin"),
    ("LANG", "C.UTF-8"),
];

/// What a process of the program may take at most.
const LIMITS: [(Resource, u64); 4] = [
    // Bytes of address space.
    (Resource::As, 1 << 30),
    // Bytes of one file.
    (Resource::Fsize, 64 << 20),
    // Open files.
    (Resource::Nofile, 256),
    (Resource::Core, 0),
];

/// A running program, and the pipes to it.
pub(crate) struct Running {
    pub(crate) child: Child,
    pub(crate) group: Group,
    pub(crate) stdin: ChildStdin,
    pub(crate) stdout: ChildStdout,
    pub(crate) stderr: ChildStderr,
}

/// The processes that a program consists of. Dropping this ends them, but for those that left the
/// group.
pub(crate) struct Group(Pid);

impl Drop for Group {
    fn drop(&mut self) {
        match killpg(self.0, Signal::SIGKILL) {
            // It is empty already.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => tracing::warn!(
                %error,
                "can't kill a plugin's program; natpunch needs CAP_KILL for one of another user"
            ),
        }
    }
}

/// Starts the program.
///
/// # Errors
/// Why not, and what would help.
pub(crate) async fn start(program: &Program) -> Result<Running, PluginError> {
    let (program, runtime) = (program.clone(), Handle::current());
    let (sender, receiver) = oneshot::channel();
    // A thread of its own: that it can gain no privileges, and the fence, are properties of a
    // thread, which the process that it starts inherits and can't undo. And a look for a user may
    // wait for a server.
    std::thread::Builder::new()
        .name("plugin-start".to_owned())
        .spawn(move || {
            let _runtime = runtime.enter();
            // An error is a plugin that was stopped meanwhile.
            let _ = sender.send(spawn(&program));
        })
        .map_err(|error| format!("can't start a thread: {error}"))?;
    receiver
        .await
        .unwrap_or_else(|_| Err("the thread that starts it ended".to_owned().into()))
}

fn spawn(program: &Program) -> Result<Running, PluginError> {
    let Some((file, arguments)) = program.command.split_first() else {
        return Err("`command` is empty".to_owned().into());
    };
    check_file(Path::new(file))?;
    let ids = ids_of(&program.user)?;
    nix::sys::prctl::set_no_new_privs()
        .map_err(|error| format!("can't take away the way to new privileges: {error}"))?;
    fence::enter(program)?;
    let mut command = Command::new(file);
    command
        .args(arguments)
        .env_clear()
        .envs(ENVIRONMENT)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    if let Some((user, group)) = ids {
        // Supplementary groups are dropped with them.
        command.uid(user.as_raw()).gid(group.as_raw());
    }
    let mut child = command
        .spawn()
        .map_err(|error| not_started(file, &error, ids.is_some()))?;
    let pid = child.id().and_then(|id| i32::try_from(id).ok());
    let pid = pid.ok_or_else(|| "it ended before it had begun".to_owned())?;
    let group = Group(Pid::from_raw(pid));
    limit(pid);
    let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (Some(stdin), Some(stdout), Some(stderr)) = pipes else {
        return Err("it has no pipes".to_owned().into());
    };
    Ok(Running {
        child,
        group,
        stdin,
        stdout,
        stderr,
    })
}

fn not_started(file: &str, error: &std::io::Error, is_other_user: bool) -> String {
    let help = match error.kind() {
        ErrorKind::PermissionDenied if is_other_user => {
            "; let its user read and run the file, and give natpunch CAP_SETUID and CAP_SETGID: \
             docs/reference/plugin-protocol.md has the drop-in for systemd"
        }
        ErrorKind::PermissionDenied => "; run `chmod +x` on it",
        _ => "",
    };
    format!("can't start {file}: {error}{help}")
}

/// A user that can write to the program can have natpunch run anything.
fn check_file(file: &Path) -> Result<(), String> {
    let shown = file.display();
    let metadata = std::fs::metadata(file).map_err(|error| {
        format!("can't start {shown}: {error}; install the program on this node")
    })?;
    if !metadata.is_file() {
        return Err(format!("can't start {shown}: it is not a file"));
    }
    let owner = Uid::from_raw(metadata.uid());
    if !owner.is_root() && owner != Uid::effective() {
        return Err(format!(
            "does not start {shown}: it belongs to user {owner}, who could change it; \
             run `chown root {shown}`"
        ));
    }
    if metadata.mode() & 0o022 != 0 {
        return Err(format!(
            "does not start {shown}: others than its owner can write to it; \
             run `chmod go-w {shown}`"
        ));
    }
    Ok(())
}

/// The ids to change to; `None` if the program keeps those of natpunch.
fn ids_of(name: &str) -> Result<Option<(Uid, Gid)>, String> {
    let found =
        User::from_name(name).map_err(|error| format!("can't look for user `{name}`: {error}"))?;
    let user = found.ok_or_else(|| {
        format!(
            "there is no user `{name}` on this host; run `useradd --system {name}`, or write \
             another one as `user`"
        )
    })?;
    let own = Uid::effective();
    if user.uid == own {
        return Ok(None);
    }
    if !own.is_root() {
        return Err(format!(
            "only root can start a program as `{name}`, and natpunch runs as user {own}; write \
             that one's name as `user`"
        ));
    }
    Ok(Some((user.uid, user.gid)))
}

fn limit(pid: i32) {
    let Some(process) = rustix::process::Pid::from_raw(pid) else {
        return;
    };
    for (resource, most) in LIMITS {
        let limit = Rlimit {
            current: Some(most),
            maximum: Some(most),
        };
        match prlimit(Some(process), resource, limit) {
            // It has ended already.
            Ok(_) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => {
                tracing::warn!(
                    %error,
                    "can't limit what a plugin's program takes; \
                     natpunch needs CAP_SYS_RESOURCE for one of another user"
                );
                return;
            }
        }
    }
}
