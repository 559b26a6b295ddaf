//! What can go wrong with an interface, and what to do about it.

use std::io;
use std::path::PathBuf;

use natpunch_types::PeerKey;

use crate::backend::BackendKind;
use crate::plan::Plan;

/// Why an operation on a WireGuard interface failed. Where something helps, the text says so, in the form of
/// [`natpunch_types::with_help`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WgError {
    /// The specification itself cannot work.
    #[error("interface {name}: {problem}")]
    Invalid {
        /// The interface.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The process lacks the privilege.
    #[error("{what}: not permitted; help: run as root or give the program CAP_NET_ADMIN")]
    NotPermitted {
        /// What was tried.
        what: String,
    },
    /// The owner or mode of a file or directory forbids it, which no capability need be missing for.
    #[error(
        "{what}: permission denied by its owner or mode; help: run as the user that it belongs to"
    )]
    Denied {
        /// What was tried, with the path.
        what: String,
    },
    /// An interface of this name exists and is not ours.
    #[error(
        "interface {name} exists and is not ours ({found}); help: take it over with `natpunch \
         apply --adopt`, choose another name in [interface], or remove it with `ip link del {name}`"
    )]
    Foreign {
        /// The interface.
        name: String,
        /// What it is.
        found: String,
    },
    /// The interface is ours but runs on another backend than the one asked for.
    #[error(
        "interface {name} runs on the {present} backend, the file asks for {wanted}; help: run \
         `natpunch down` first"
    )]
    BackendDiffers {
        /// The interface.
        name: String,
        /// What it runs on.
        present: BackendKind,
        /// What was asked for.
        wanted: String,
    },
    /// An interface that shall be taken over is another node's.
    #[error(
        "interface {name} can't be taken over: its public key is {found}, and this node's is \
         {wanted}; help: give this node the key of the interface (`natpunch import --interface \
         {name}`)"
    )]
    OtherKey {
        /// The interface.
        name: String,
        /// The key that it has.
        found: String,
        /// The key of this node.
        wanted: PeerKey,
    },
    /// An interface that shall be taken over is run by a program.
    #[error(
        "interface {name} can't be taken over: a program runs it in userspace; help: write \
         `backend = \"external\"` in [interface], and natpunch uses it as it is"
    )]
    RunByProgram {
        /// The interface.
        name: String,
    },
    /// The kernel has no WireGuard.
    #[error(
        "this kernel has no WireGuard; help: load the module `wireguard`, or use backend = \
         \"userspace\""
    )]
    NoKernelWireguard,
    /// There is no TUN driver.
    #[error(
        "/dev/net/tun cannot be opened ({0}); help: load the module `tun`, or give the container \
         that device"
    )]
    NoTun(io::Error),
    /// backend = "external", but nobody runs such a device.
    #[error(
        "no device answers at {socket}; help: start it first (such as `wireguard-go {name}`), or \
         use backend = \"auto\""
    )]
    NoExternalDevice {
        /// The interface.
        name: String,
        /// Where it was looked for.
        socket: PathBuf,
    },
    /// The UDP port is taken.
    #[error("UDP port {0} is in use by another program; help: choose another `listen_port`")]
    PortInUse(u16),
    /// A route that we need exists and belongs to someone else.
    #[error(
        "a route to {0} exists that is not ours; help: remove it or change the peer's addresses"
    )]
    RouteInUse(ipnet::IpNet),
    /// The table of pins could not be removed.
    #[error(
        "the pins of {name} are still in nftables: {reason}; help: remove them with `nft delete \
         table inet {table}`"
    )]
    PinsLeft {
        /// The interface.
        name: String,
        /// Their table.
        table: String,
        /// Why.
        reason: String,
    },
    /// The embedded device did not start.
    #[error("the embedded device of {name} did not start: {reason}")]
    DeviceStart {
        /// The interface.
        name: String,
        /// What it said.
        reason: String,
    },
    /// A running device speaks another protocol version.
    #[error(
        "the embedded device of {name} speaks version {found} of the control protocol, this \
         program {ours}; help: run `natpunch down` and start again"
    )]
    DeviceVersion {
        /// The interface.
        name: String,
        /// Its version.
        found: u32,
        /// Ours.
        ours: u32,
    },
    /// The device is gone.
    #[error("interface {name} is gone: {reason}")]
    Gone {
        /// The interface.
        name: String,
        /// How that was seen.
        reason: String,
    },
    /// The process of the embedded device takes requests and does not answer them.
    #[error(
        "the device process of {name} (process {pid}) does not answer; help: `kill -9 {pid}` ends \
         it, and the agent then makes the device anew"
    )]
    Hung {
        /// The interface.
        name: String,
        /// The process.
        pid: i32,
    },
    /// A directory of ours is one where others could put what they like.
    #[error(transparent)]
    NotPrivate(#[from] natpunch_os::private::NotPrivate),
    /// A device answered something that is not its protocol.
    #[error("unexpected answer from the device at {place}: {problem}")]
    Protocol {
        /// Which device.
        place: String,
        /// What was wrong.
        problem: String,
    },
    /// What was read back differs from what was written.
    #[error(
        "interface {name} did not take the configuration; still to be done after the \
         change:\n{remaining}"
    )]
    ReadBack {
        /// The interface.
        name: String,
        /// The difference.
        remaining: Plan,
    },
    /// The system refused.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Its answer.
        source: io::Error,
    },
}

impl WgError {
    /// The error for a system call, with the cases that have a cure told apart.
    pub(crate) fn io(what: impl Into<String>, source: io::Error) -> Self {
        let what = what.into();
        match source.raw_os_error() {
            // Netlink and device calls say EPERM, paths say EACCES.
            Some(libc::EPERM) => Self::NotPermitted { what },
            Some(libc::EACCES) => Self::Denied { what },
            _ => Self::Io { what, source },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_of_another_user_is_not_reported_as_a_missing_capability() {
        let error = |number| {
            let source = io::Error::from_raw_os_error(number);
            WgError::io("listen at /var/run/wireguard/wg0.sock", source).to_string()
        };
        let of_path = error(libc::EACCES);
        assert!(
            of_path.contains("/var/run/wireguard") && !of_path.contains("CAP_"),
            "{of_path}"
        );
        assert!(error(libc::EPERM).contains("CAP_NET_ADMIN"));
    }
}
