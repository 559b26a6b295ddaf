//! Pins by a forwarder: a process of this host between WireGuard and the pinned ports, for every
//! WireGuard, that of the kernel, too.
//!
//! WireGuard's endpoint for a pinned peer is a port of the forwarder at a loopback address,
//! [`ADDRESS`]. The forwarder sends what comes there from the pinned port to the peer, and what the
//! peer sends to the pinned port on to WireGuard's. It passes WireGuard's messages only: probes are
//! the agent's, which shares the port by raw sockets.
//!
//! The process outlives the agent, exists only while there is a pin, and has no privileges once it
//! is up. The next agent finds it by its control socket.

mod carry;
mod process;

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use natpunch_os::{Sole, detached};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::holding::{HeldPin, Holder, Holding};
use super::{PinError, PinSet, Pinner};
use crate::spec::InterfaceSpec;
use crate::uapi::{Client, hung};

pub use process::run as run_forwarder;

/// Where a forwarder listens: a loopback address that nothing else uses.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 78, 82, 1);
/// What is said on the control socket; a forwarder of another version is replaced.
const VERSION: u32 = 1;
/// How long a process may take to appear or to go, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often is looked.
const POLL: Duration = Duration::from_millis(5);

/// Where the forwarder of an interface is asked.
pub(super) fn socket_path(runtime_dir: &Path, interface: &str) -> PathBuf {
    runtime_dir.join(format!("{interface}.pins.sock"))
}

/// Whether this host can have one.
pub(super) fn is_possible() -> bool {
    UdpSocket::bind(SocketAddr::from((ADDRESS, 0))).is_ok()
}

/// The pins that a forwarder holds.
#[derive(Debug)]
pub(super) struct ForwarderPins {
    program: PathBuf,
    socket: PathBuf,
    fwmark: u32,
    listen_port: u16,
    holder: Holder,
    held: Vec<HeldPin>,
    pins: PinSet,
}

impl ForwarderPins {
    /// Those of an interface, as they are held now; none where there is no forwarder.
    pub(super) fn find(spec: &InterfaceSpec) -> Self {
        let socket = socket_path(&spec.runtime_dir, &spec.name);
        let holder = Holder::at(&socket);
        let held = holder.holding().unwrap_or_default();
        Self {
            program: spec.device_program.clone(),
            socket,
            fwmark: spec.fwmark,
            listen_port: spec.listen_port,
            holder,
            pins: held.set(),
            held: held.pins,
        }
    }

    /// Takes WireGuard's new port and mark.
    pub(super) fn follow(&mut self, listen_port: u16, fwmark: u32) -> Result<(), PinError> {
        if (listen_port, fwmark) == (self.listen_port, self.fwmark) {
            return Ok(());
        }
        (self.listen_port, self.fwmark) = (listen_port, fwmark);
        if self.pins.is_empty() {
            return Ok(());
        }
        self.hold(&self.pins.clone()).map_err(error)
    }

    /// Where WireGuard has to send for a remote address, if it is pinned.
    pub(super) fn local(&self, remote: SocketAddr) -> Option<SocketAddr> {
        let pin = self.held.iter().find(|pin| pin.remote == remote)?;
        pin.local
    }

    /// What an endpoint of WireGuard's stands for: a port of the forwarder for the remote address
    /// that it leads to, and for nothing where it leads nowhere any more.
    pub(super) fn remote(&self, endpoint: SocketAddr) -> Option<SocketAddr> {
        if endpoint.ip() != ADDRESS {
            return Some(endpoint);
        }
        let of_it = |pin: &&HeldPin| pin.local == Some(endpoint);
        self.held.iter().find(of_it).map(|pin| pin.remote)
    }

    /// Has a process hold these, one that runs or a new one. WireGuard goes on sending where it
    /// did.
    fn hold(&mut self, pins: &PinSet) -> io::Result<()> {
        self.ensure()?;
        let mut holding = Holding::of(self.listen_port, pins);
        for pin in &mut holding.pins {
            let before = self.held.iter().find(|held| held.port == pin.port);
            pin.local = before.and_then(|held| held.local);
        }
        let held = self.holder.hold(&holding)?;
        self.pins = held.set();
        self.held = held.pins;
        Ok(())
    }

    /// Starts the process, unless one of this version and with this mark answers.
    fn ensure(&self) -> io::Result<()> {
        match self.hello() {
            Ok(hello) if hello == greeting(self.fwmark) => return Ok(()),
            Ok(_) => stop_at(&self.socket)?,
            Err(_) => {}
        }
        let log = self.socket.with_extension("log");
        let opened = detached::open_log(&log, 0)?;
        let fwmark = self.fwmark.to_string();
        let arguments = [
            "pin-forwarder".as_ref(),
            "--socket".as_ref(),
            self.socket.as_os_str(),
            "--fwmark".as_ref(),
            fwmark.as_ref(),
        ];
        let mut child = detached::start(&self.program, &arguments, "info", opened)?;
        let deadline = Instant::now() + PATIENCE;
        while self.hello().is_err() {
            let has_ended = !matches!(child.try_wait(), Ok(None));
            if has_ended || Instant::now() > deadline {
                detached::give_up(&mut child);
                let problem = format!("it did not start; see {}", log.display());
                return Err(io::Error::other(problem));
            }
            std::thread::sleep(POLL);
        }
        detached::reap(child);
        Ok(())
    }

    fn hello(&self) -> io::Result<String> {
        let hello = Client::new(self.socket.clone()).request("hello", "")?;
        Ok(hello.as_str().to_owned())
    }
}

impl Pinner for ForwarderPins {
    fn pins(&self) -> &PinSet {
        &self.pins
    }

    fn set(&mut self, pins: &PinSet) -> Result<(), PinError> {
        if *pins == self.pins {
            return Ok(());
        }
        if pins.is_empty() {
            stop_at(&self.socket).map_err(error)?;
            self.pins.clear();
            self.held.clear();
            return Ok(());
        }
        self.hold(pins).map_err(error)
    }

    fn heal(&mut self) -> Result<bool, PinError> {
        let held = self.holder.holding();
        if self.pins.is_empty() || held.is_ok_and(|held| held.pins == self.held) {
            return Ok(false);
        }
        self.hold(&self.pins.clone()).map_err(error)?;
        Ok(true)
    }
}

fn error(source: io::Error) -> PinError {
    PinError::Process {
        what: "a forwarder",
        source,
    }
}

/// What a forwarder says of itself.
fn greeting(fwmark: u32) -> String {
    format!("protocol={VERSION}\nfwmark={fwmark}")
}

/// Ends the forwarder of an interface, if one runs, whether it answers or not; gives how many pins
/// it held. Returns when it has let go of its ports.
pub(super) fn stop(runtime_dir: &Path, interface: &str) -> io::Result<usize> {
    let socket = socket_path(runtime_dir, interface);
    let held = Holder::at(&socket).holding().unwrap_or_default();
    stop_at(&socket)?;
    Ok(held.pins.len())
}

fn stop_at(socket: &Path) -> io::Result<()> {
    use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotFound, UnexpectedEof};
    match Client::new(socket.to_owned()).request("stop", "") {
        Ok(_) => {}
        Err(gone) if matches!(gone.kind(), NotFound | ConnectionRefused) => {}
        // It may end before it has answered.
        Err(gone) if matches!(gone.kind(), BrokenPipe | ConnectionReset | UnexpectedEof) => {}
        Err(error) => match hung(&error) {
            Some(pid) => kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap_or_default(),
            None => return Err(error),
        },
    }
    Sole::wait_for(&socket.with_extension("lock"), PATIENCE)?;
    for left in ["lock", "log", "sock"] {
        let _ = fs::remove_file(socket.with_extension(left));
    }
    Ok(())
}
