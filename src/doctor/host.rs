//! What the machine has: privileges, WireGuard devices, nftables, its clock, and what it is beside.

use std::fs;
use std::io;
use std::net::UdpSocket;
use std::path::Path;
use std::time::SystemTime;

use natpunch_net::surroundings;

use crate::agent::clash::{self, Clash};
use crate::config::{Backend, NodeConfig};
use crate::{agent, control};

use super::Check;

/// Numbers of the capabilities that the agent needs (linux/capability.h).
const CAP_NET_ADMIN: u32 = 12;
const CAP_NET_RAW: u32 = 13;

/// What this process may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Privileges {
    pub(super) is_root: bool,
    pub(super) net_admin: bool,
    pub(super) net_raw: bool,
}

impl Privileges {
    pub(super) fn read() -> Self {
        let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
        Self::of(&text, nix::unistd::geteuid().is_root())
    }

    /// By the text of `/proc/self/status`.
    pub(super) fn of(text: &str, is_root: bool) -> Self {
        let line = text.lines().find_map(|line| line.strip_prefix("CapEff:"));
        let bits = line.and_then(|line| u64::from_str_radix(line.trim(), 16).ok());
        let has = |bit: u32| bits.is_some_and(|bits| bits >> bit & 1 == 1);
        Self {
            is_root,
            net_admin: has(CAP_NET_ADMIN),
            net_raw: has(CAP_NET_RAW),
        }
    }
}

pub(super) fn privileges(found: &Privileges) -> Check {
    let lacks: Vec<&str> = [
        (found.net_admin, "CAP_NET_ADMIN"),
        (found.net_raw, "CAP_NET_RAW"),
    ]
    .iter()
    .filter(|(has, _)| !has)
    .map(|(_, name)| *name)
    .collect();
    let lacks = lacks.join(" and ");
    match (lacks.is_empty(), found.is_root) {
        (true, _) => Check::good("privileges", "CAP_NET_ADMIN and CAP_NET_RAW are there"),
        (false, true) => Check::bad(
            "privileges",
            format!("root lacks {lacks} here, as in a container"),
            "give the container both: --cap-add NET_ADMIN --cap-add NET_RAW",
        ),
        (false, false) => Check::unknown(
            "privileges",
            format!("this user lacks {lacks}, which the agent needs; whether root has them is not seen from here"),
        )
        .help("run `natpunch doctor` as root, or as the user that runs the agent"),
    }
}

/// Which WireGuard devices this host can have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Backends {
    pub(super) kernel: bool,
    /// Whether a TUN device can be made; `None`: not for this user to tell.
    pub(super) tun: Option<Result<(), String>>,
}

impl Backends {
    pub(super) fn read(privileges: &Privileges) -> Self {
        let path = "/dev/net/tun";
        let opened = fs::OpenOptions::new().read(true).write(true).open(path);
        let tun = match opened {
            Ok(_) => Some(Ok(())),
            Err(error)
                if error.kind() == io::ErrorKind::PermissionDenied && !privileges.is_root =>
            {
                None
            }
            Err(error) => Some(Err(format!("{path}: {error}"))),
        };
        Self {
            kernel: natpunch_wg::kernel_has_wireguard(),
            tun,
        }
    }
}

pub(super) fn backends(found: &Backends) -> Vec<Check> {
    let kernel = if found.kernel {
        Check::good("kernel WireGuard", "this kernel has it")
    } else {
        Check::unknown(
            "kernel WireGuard",
            "this kernel seems not to have it; the embedded device does its work, at more CPU",
        )
        .help("install the module if there is one: `modprobe wireguard`")
    };
    let tun = match &found.tun {
        Some(Ok(())) => Check::good("TUN", "the embedded device can be made"),
        Some(Err(problem)) if found.kernel => Check::unknown(
            "TUN",
            format!("{problem}; it is not needed with kernel WireGuard"),
        ),
        Some(Err(problem)) => Check::bad(
            "TUN",
            format!("no WireGuard device can be made: {problem}"),
            "load it: `modprobe tun`; give a container the device: --device /dev/net/tun",
        ),
        None => Check::unknown("TUN", "this user may not open /dev/net/tun")
            .help("run `natpunch doctor` as root"),
    };
    vec![kernel, tun]
}

pub(super) fn nftables(can_pin: Result<(), String>, privileges: &Privileges) -> Check {
    match can_pin {
        Ok(()) => Check::good("nftables", "WireGuard can be joined to other source ports"),
        Err(problem) if !privileges.net_admin => {
            Check::unknown("nftables", format!("this user may not try it: {problem}"))
                .help("run `natpunch doctor` as root")
        }
        Err(problem) => Check::unknown(
            "nftables",
            format!(
                "{problem}; where WireGuard needs another source port, its device or a forwarder \
                 sends from there, at more CPU"
            ),
        )
        .help("install nftables: `nft` 1.0 or newer, and a kernel with nf_tables"),
    }
}

/// What is known of the clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Clock {
    /// Something on this host keeps it, as it says.
    pub(super) is_kept: bool,
    /// It is before this program was made.
    pub(super) is_behind: bool,
}

impl Clock {
    pub(super) fn read() -> Self {
        let made = std::env::current_exe().and_then(|path| fs::metadata(path)?.modified());
        Self {
            is_kept: [
                "/run/systemd/timesync/synchronized",
                "/run/chrony/chronyd.pid",
                "/var/run/ntpd.pid",
            ]
            .iter()
            .any(|path| Path::new(path).exists()),
            is_behind: made.is_ok_and(|made| SystemTime::now() < made),
        }
    }
}

pub(super) fn clock(found: &Clock) -> Check {
    match (found.is_behind, found.is_kept) {
        (true, _) => Check::bad(
            "clock",
            "it is before this program was installed, and WireGuard refuses handshakes of a clock that went back",
            "set it, and let something keep it: `timedatectl set-ntp true`",
        ),
        (false, true) => Check::good("clock", "a time service keeps it"),
        (false, false) => Check::unknown("clock", "no time service was found, and no server of the mesh tells the time")
            .help("compare `date` with another clock; a clock that goes back stops WireGuard's handshakes"),
    }
}

/// What the mesh needs of this host.
pub(super) fn node(node: &NodeConfig, runtime_dir: &Path) -> Vec<Check> {
    let bound = UdpSocket::bind(("0.0.0.0", node.listen_port)).map(drop);
    let agent = control::running(runtime_dir).contains(&node.interface);
    let device = natpunch_wg::exists(&node.interface).unwrap_or(false);
    let mut checks = vec![port(
        node.listen_port,
        &node.interface,
        bound,
        agent || device,
    )];
    let wanted = agent::spec::interface(node, runtime_dir);
    let found = wanted.map(|wanted| clash::clashes(&wanted, &surroundings(&node.interface)));
    checks.push(clashes(&found.unwrap_or_default()));
    if node.backend == Backend::Kernel && !natpunch_wg::kernel_has_wireguard() {
        checks.push(Check::bad(
            "backend",
            "the mesh file wants kernel WireGuard, which this kernel seems not to have",
            "write `backend = \"auto\"` in [interface], or install the module",
        ));
    }
    checks
}

pub(super) fn no_node(problem: &str) -> Check {
    Check::unknown(
        "this node",
        format!("this host's part of the mesh can't be read: {problem}"),
    )
    .help("run `natpunch doctor` as root, or name the key with --private-key-file")
}

pub(super) fn port(port: u16, interface: &str, bound: io::Result<()>, is_up: bool) -> Check {
    match bound {
        Ok(()) if is_up => Check::bad(
            "listen port",
            format!(
                "{interface} is up, and nothing listens on UDP port {port}, which the mesh file gives it"
            ),
            "`natpunch plan` shows what differs",
        ),
        Ok(()) => Check::good("listen port", format!("UDP port {port} is free")),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_up => Check::good(
            "listen port",
            format!("UDP port {port} is in use by {interface}"),
        ),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Check::bad(
            "listen port",
            format!("UDP port {port} is in use by another program"),
            format!(
                "`ss -ulpn sport = :{port}` names it; or write another `listen_port` for this node"
            ),
        ),
        Err(error) => Check::unknown(
            "listen port",
            format!("UDP port {port} can't be tried: {error}"),
        ),
    }
}

pub(super) fn clashes(found: &[Clash]) -> Check {
    match found {
        [] => Check::good(
            "networks",
            "no network of the mesh is one of this host's LANs",
        ),
        [first, more @ ..] => {
            let more = match more.len() {
                0 => String::new(),
                count => format!("; and {count} more"),
            };
            Check::bad(
                "networks",
                format!("{first}{more}"),
                "choose other `networks` for the mesh, and list the LAN in `mesh.lans`, so that `check` warns",
            )
        }
    }
}
