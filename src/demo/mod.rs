//! `natpunch demo`: the main job on one machine, where anyone can watch it.
//!
//! A small internet of network namespaces, a server, two nodes behind two NATs: real processes of
//! this very binary. The process that the user started only waits; the demo itself runs in a
//! sandbox (see [`natpunch_lab::sandbox`]), which the kernel takes down with all that is in it when
//! the demo ends, is interrupted, or is killed.

mod mesh;
mod node;
mod play;
mod timeline;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use natpunch_lab::sandbox;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::args::DemoArgs;

/// Exit code when the nodes did not connect: as `apply --once`.
const NOT_CONNECTED: u8 = 3;

/// Exit code after Ctrl-C, as a shell has it for a program that SIGINT ended.
const INTERRUPTED: u8 = 130;

/// How long the sandbox may take to end after Ctrl-C, which it gets as well.
const GRACE: Duration = Duration::from_secs(2);

/// Why the demo did not get to its end.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The lab can't be built.
    #[error(transparent)]
    Lab(#[from] natpunch_lab::Error),
    /// The system refused something.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The mesh file can't be used.
    #[error("the demo cannot use {}: {problem}", file.display())]
    Mesh {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A process of the demo ended or stayed silent.
    #[error("{who} {problem}")]
    Process {
        /// Which one.
        who: String,
        /// What it did.
        problem: String,
    },
}

impl DemoError {
    fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| DemoError::System { what, source }
    }

    fn process(who: &str, problem: impl Into<String>) -> Self {
        DemoError::Process {
            who: who.to_owned(),
            problem: problem.into(),
        }
    }
}

/// Runs the demo. Exit codes: 0 connected and reloaded without a lost ping, 1 something failed, 3
/// the two NATs let no path through, 130 interrupted.
///
/// # Errors
/// The lab can't be built here, or a process of the demo failed.
pub fn run(args: &DemoArgs) -> Result<ExitCode, DemoError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(DemoError::system("cannot start the runtime"))?;
    if sandbox::is_inside() {
        // The first process of a PID namespace ignores signals that it does not ask for.
        let interrupt = runtime.block_on(async { signal(SignalKind::interrupt()) });
        let mut interrupt = interrupt.map_err(DemoError::system("cannot listen for Ctrl-C"))?;
        std::thread::spawn(move || {
            runtime.block_on(interrupt.recv());
            timeline::interrupted();
            std::process::exit(INTERRUPTED.into());
        });
        play::play(args)
    } else {
        sandbox::check()?;
        runtime.block_on(wait_for_sandbox())
    }
}

/// Starts this program again in a sandbox, with the same arguments, and passes its exit code on.
async fn wait_for_sandbox() -> Result<ExitCode, DemoError> {
    let program = std::env::current_exe().map_err(DemoError::system("cannot find this program"))?;
    let mut command = sandbox::command(program);
    command.args(std::env::args_os().skip(1));
    let mut interrupt =
        signal(SignalKind::interrupt()).map_err(DemoError::system("cannot listen for Ctrl-C"))?;
    let mut terminate =
        signal(SignalKind::terminate()).map_err(DemoError::system("cannot listen for SIGTERM"))?;
    let mut child = tokio::process::Command::from(command)
        .kill_on_drop(true)
        .spawn()
        .map_err(DemoError::system("cannot start the sandbox"))?;
    let failed = DemoError::system("cannot wait for the sandbox");
    let status = tokio::select! {
        status = child.wait() => status.map_err(failed)?,
        _ = interrupt.recv() => {
            // A terminal's Ctrl-C went to the sandbox, too; a signal sent to this process alone did
            // not.
            let _ = tokio::time::timeout(GRACE, child.wait()).await;
            let _ = child.kill().await;
            return Ok(ExitCode::from(INTERRUPTED));
        }
        _ = terminate.recv() => {
            let _ = child.kill().await;
            return Ok(ExitCode::FAILURE);
        }
    };
    Ok(status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .map_or(ExitCode::FAILURE, ExitCode::from))
}
