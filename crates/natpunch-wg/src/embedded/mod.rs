//! The embedded userspace device: `gotatun` with a TUN and UDP sockets that use the kernel's
//! offloads, in a process of its own.
//!
//! The process is started detached (`PROGRAM device NAME --socket PATH`), outlives the agent, and
//! ends when it is told to, when it gets SIGTERM, or when its TUN interface is removed. (A systemd
//! unit of the agent therefore has `KillMode=process`.) It serves WireGuard's configuration
//! protocol on two sockets: the conventional one, for `wg`, and its control socket (mode 0600),
//! which also knows `hello`, `stop`, and what pins the device
//! holds. There is at most one process per control socket, held by a
//! lock.
//!
//! A `set` that reaches it is made in place through gotatun's own interface: a peer that is changed
//! keeps its session and counters, as in the kernel. (gotatun's own UAPI server removes and re-adds
//! the peer.)

mod control;
mod driver;
mod evidence;
mod kicks;
mod pinned;
mod process;
mod server;
mod tun;
mod udp;

pub use control::DeviceProcess;
pub(crate) use control::{Control, start};
pub use process::run_device;
pub(crate) use server::read_request;

/// Version of the control protocol: a newer agent keeps using a device of the same version that an
/// older one started.
pub(crate) const PROTOCOL_VERSION: u32 = 1;
