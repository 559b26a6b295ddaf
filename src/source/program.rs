//! Runs a program of this machine with bounds: no shell, no terminal, a time, an amount of output,
//! memory and file size.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use rustix::process::{Resource, Rlimit, prlimit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;
use tokio::time::{Instant, timeout_at};

/// Where programs are looked for: what only root writes to. The last two are where NixOS and Guix
/// have them.
const DIRECTORIES: &[&str] = &[
    "/usr/local/bin",
    "/usr/bin",
    "/bin",
    "/run/current-system/sw/bin",
    "/run/current-system/profile/bin",
];

/// Most bytes of standard error that are kept.
const MOST_COMPLAINT: u64 = 16 << 10;

/// Longest file that a program may write, in bytes.
pub(super) const LONGEST_FILE: u64 = 64 << 20;

/// Most address space of a process, in bytes.
const MOST_MEMORY: u64 = 2 << 30;

/// How often the directory of a running program is measured.
const MEASURE: Duration = Duration::from_millis(100);

/// Why a program gave no result.
#[derive(Debug)]
pub(super) enum Failure {
    /// It is not installed, or does not start.
    NotStarted(String),
    /// It ended with an error, and said this.
    Failed(String),
    /// It was ended at its deadline.
    TooSlow,
    /// It was ended because it wrote too much.
    TooMuch,
}

/// The path of an installed program.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    DIRECTORIES
        .iter()
        .map(|directory| Path::new(directory).join(name))
        .find(|path| path.is_file())
}

/// A program, its surroundings and its bounds.
pub(super) struct Program<'a> {
    pub(super) path: &'a Path,
    /// Beside PATH, HOME and LC_ALL, all that it sees of the environment.
    pub(super) environment: &'a [(&'a str, &'a OsStr)],
    /// Where it writes to, at most [`LONGEST_FILE`] in all.
    pub(super) directory: &'a Path,
    pub(super) deadline: Instant,
}

impl Program<'_> {
    /// Runs it to its end and gives what it printed, at most `most` bytes. Dropping the future ends
    /// it.
    pub(super) async fn run(
        &self,
        arguments: &[&OsStr],
        input: &[u8],
        most: u64,
    ) -> Result<Vec<u8>, Failure> {
        let mut command = Command::new(self.path);
        command
            .args(arguments)
            .env_clear()
            .env("PATH", DIRECTORIES.join(":"))
            .env("LC_ALL", "C")
            .envs(self.environment.iter().copied())
            .current_dir(self.directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Its helpers (ssh, git's own) are ended with it.
            .process_group(0)
            .kill_on_drop(true);
        for kept in ["HOME", "SSH_AUTH_SOCK"] {
            if let Some(value) = std::env::var_os(kept) {
                command.env(kept, value);
            }
        }
        let failed = |error: std::io::Error| {
            Failure::NotStarted(format!("can't run {}: {error}", self.path.display()))
        };
        let mut child = command.spawn().map_err(failed)?;
        let group = Group::of(&child);
        group.limit();
        let (stdin, stdout, stderr) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let feed = async {
            if let Some(mut stdin) = stdin {
                // It may end without having read all.
                let _ = stdin.write_all(input).await;
            }
        };
        let complaint = async {
            let mut text = Vec::new();
            if let Some(mut stderr) = stderr {
                let _ = (&mut stderr)
                    .take(MOST_COMPLAINT)
                    .read_to_end(&mut text)
                    .await;
                let _ = tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await;
            }
            text
        };
        let output = async {
            let mut bytes = Vec::new();
            if let Some(stdout) = stdout {
                let _ = stdout.take(most + 1).read_to_end(&mut bytes).await;
            }
            if bytes.len() as u64 > most {
                Err(Failure::TooMuch)
            } else {
                Ok(bytes)
            }
        };
        let work = async {
            // The first that fails ends the others, and with them the program.
            let (bytes, ended) = tokio::try_join!(output, async {
                let ((), text) = tokio::join!(feed, complaint);
                let status = child.wait().await.map_err(failed)?;
                if status.success() {
                    Ok(())
                } else {
                    Err(Failure::Failed(clean(&text)))
                }
            })?;
            let () = ended;
            Ok(bytes)
        };
        let result = tokio::select! {
            result = timeout_at(self.deadline, work) => result.unwrap_or(Err(Failure::TooSlow)),
            () = grown(self.directory) => Err(Failure::TooMuch),
        };
        drop(group);
        match result {
            // The limit of the file size ends it in ways that each program words differently.
            Err(Failure::Failed(_)) if size(self.directory) >= LONGEST_FILE => {
                Err(Failure::TooMuch)
            }
            result => result,
        }
    }
}

/// The processes that a program consists of. Dropping this ends them.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &tokio::process::Child) -> Self {
        Self(
            child
                .id()
                .and_then(|id| i32::try_from(id).ok())
                .map(Pid::from_raw),
        )
    }

    /// Limits what the program and everything that it starts from now on can take.
    fn limit(&self) {
        let Some(pid) = self
            .0
            .and_then(|pid| rustix::process::Pid::from_raw(pid.as_raw()))
        else {
            return;
        };
        for (resource, most) in [
            (Resource::Fsize, LONGEST_FILE),
            (Resource::As, MOST_MEMORY),
            (Resource::Core, 0),
        ] {
            // An error is a program that has ended already.
            let _ = prlimit(
                Some(pid),
                resource,
                Rlimit {
                    current: Some(most),
                    maximum: Some(most),
                },
            );
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            // An error is a group that is empty already, which is the rule.
            let _ = killpg(pid, Signal::SIGKILL);
        }
    }
}

/// Ends when the directory holds more than may be.
async fn grown(directory: &Path) {
    while size(directory) <= LONGEST_FILE {
        tokio::time::sleep(MEASURE).await;
    }
}

/// Bytes of the files in a directory and below. What vanishes meanwhile counts nothing.
fn size(directory: &Path) -> u64 {
    let mut sum = 0;
    let mut todo = vec![directory.to_owned()];
    while let Some(directory) = todo.pop() {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(meta) if meta.is_dir() => todo.push(entry.path()),
                Ok(meta) => sum += meta.len(),
                Err(_) => {}
            }
        }
    }
    sum
}

/// What a program said, on few lines and without anything that steers a terminal.
fn clean(text: &[u8]) -> String {
    const MOST_LINES: usize = 6;
    let text = String::from_utf8_lossy(text);
    let lines: Vec<String> = text
        .lines()
        .map(|line| {
            line.chars()
                .filter(|c| !c.is_control())
                .take(300)
                .collect::<String>()
        })
        .filter(|line| !line.trim().is_empty())
        .take(MOST_LINES)
        .collect();
    lines.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn run(
        program: &str,
        arguments: &[&str],
        most: u64,
        limit: Duration,
    ) -> Result<Vec<u8>, Failure> {
        let directory = tempfile::tempdir().unwrap();
        let path = find(program).unwrap();
        let deadline = Instant::now() + limit;
        let program = Program {
            path: &path,
            environment: &[],
            directory: directory.path(),
            deadline,
        };
        let arguments: Vec<&OsStr> = arguments.iter().map(OsStr::new).collect();
        program.run(&arguments, b"in", most).await
    }

    const LONG: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_program_gets_its_input_and_nothing_of_the_environment() {
        assert_eq!(run("cat", &[], 10, LONG).await.unwrap(), b"in");
        let seen = String::from_utf8(run("env", &[], 10_000, LONG).await.unwrap()).unwrap();
        assert!(
            seen.contains("LC_ALL=C") && !seen.contains("CARGO"),
            "{seen}"
        );
    }

    #[tokio::test]
    async fn a_program_is_ended_at_its_bounds() {
        let start = Instant::now();
        assert!(matches!(
            run("sleep", &["60"], 10, Duration::from_millis(200)).await,
            Err(Failure::TooSlow)
        ));
        assert!(matches!(
            run("cat", &["/dev/zero"], 1000, LONG).await,
            Err(Failure::TooMuch)
        ));
        let copy = ["if=/dev/zero", "of=big", "bs=1M", "count=100000"];
        assert!(matches!(
            run("dd", &copy, 1000, LONG).await,
            Err(Failure::TooMuch)
        ));
        assert!(start.elapsed() < LONG);
        assert!(
            matches!(run("cat", &["gone"], 10, LONG).await, Err(Failure::Failed(text)) if text.contains("gone"))
        );
    }
}
