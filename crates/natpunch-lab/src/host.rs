//! A machine of the lab, and the programs on it.

use std::ffi::OsStr;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::namespace::Namespace;
use crate::{Error, Result};

#[derive(Debug, Default)]
pub(crate) struct Network {
    pub(crate) addresses: Vec<IpAddr>,
}

/// A machine with a network, and `/run` directories, of its own.
#[derive(Debug)]
pub struct Host {
    name: String,
    pub(crate) namespace: Namespace,
    pub(crate) network: Network,
}

impl Host {
    pub(crate) fn new(name: &str, namespace: Namespace) -> Self {
        Host {
            name: name.to_owned(),
            namespace,
            network: Network::default(),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its IPv4 address on its link.
    pub fn ipv4(&self) -> Option<Ipv4Addr> {
        self.network
            .addresses
            .iter()
            .find_map(|address| match address {
                IpAddr::V4(ip) => Some(*ip),
                IpAddr::V6(_) => None,
            })
    }

    /// Its IPv6 address on its link.
    pub fn ipv6(&self) -> Option<Ipv6Addr> {
        self.network
            .addresses
            .iter()
            .find_map(|address| match address {
                IpAddr::V6(ip) => Some(*ip),
                IpAddr::V4(_) => None,
            })
    }

    /// A directory of this host, below the lab's shared one.
    pub fn directory(&self) -> io::Result<PathBuf> {
        let directory = PathBuf::from(crate::sandbox::SHARED_DIRECTORY).join(&self.name);
        std::fs::create_dir_all(&directory)?;
        Ok(directory)
    }

    /// Runs code on this host, in a thread of its own there: sockets that it makes are this host's.
    pub fn run<R: Send + 'static>(&self, f: impl FnOnce() -> R + Send + 'static) -> Result<R> {
        self.namespace.run(f)
    }

    /// Runs `ip -batch` with these lines.
    pub fn ip(&self, lines: impl Into<String>) -> Result<()> {
        self.namespace.ip(lines)
    }

    /// Starts a program.
    pub fn spawn(&self, command: Command) -> Result<Process> {
        Process::start(&self.namespace, command)
    }

    /// Runs a program to its end and gives what it printed.
    pub fn output<S: AsRef<OsStr>>(&self, program: &str, arguments: &[S]) -> Result<Output> {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null());
        let program = program.to_owned();
        self.namespace
            .run(move || command.output())?
            .map_err(|source| Error::Program { program, source })
    }

    pub(crate) fn detach(&self) -> Result<()> {
        self.namespace.ip("link delete eth0\n")
    }
}

/// A running program. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

impl Process {
    pub(crate) fn start(namespace: &Namespace, mut command: Command) -> Result<Self> {
        let program = command.get_program().to_string_lossy().into_owned();
        let child = namespace
            .run(move || command.stdin(Stdio::null()).spawn())?
            .map_err(|source| Error::Program { program, source })?;
        Ok(Process { child })
    }

    /// Its pipes and the rest of what the standard library offers.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Asks it to stop (SIGTERM) and waits for its end.
    pub fn terminate(mut self) -> io::Result<ExitStatus> {
        let id = i32::try_from(self.child.id()).map_err(io::Error::other)?;
        kill(Pid::from_raw(id), Signal::SIGTERM)?;
        self.child.wait()
    }

    /// Kills it (SIGKILL) and waits for its end.
    pub fn kill(mut self) -> io::Result<ExitStatus> {
        self.child.kill()?;
        self.child.wait()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
