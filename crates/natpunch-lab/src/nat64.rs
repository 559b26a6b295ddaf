//! A NAT64 (RFC 6146): `tayga` gives each host an IPv4 address of its own, and the router's NAT hides
//! those.

use std::path::Path;
use std::process::{Command, Stdio};

use nix::mount::{MsFlags, mount};

use crate::namespace::Namespace;
use crate::{Error, Result};

const LINK: &str = "nat64";
/// The addresses that it gives to hosts: seen by the router alone.
const POOL: &str = "192.168.255.0/24";
const OWN: &str = "192.168.255.1";
/// Behind the well-known prefix tayga translates no addresses of the documentation's networks, which
/// are the lab's internet.
const PREFIX: &str = "2001:db8:64::";

pub(crate) fn configuration(directory: &Path) -> String {
    format!(
        "tun-device {LINK}\nipv4-addr {OWN}\nipv6-addr fd00:64::1\nprefix {PREFIX}/96\ndynamic-pool {POOL}\ndata-dir {}\n",
        directory.display()
    )
}

/// The translator, in the foreground.
pub(crate) fn tayga(file: &Path) -> Command {
    let mut command = Command::new("tayga");
    command.args(["--nodetach", "--config"]).arg(file);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Makes the link by which packets get to it.
pub(crate) fn make_link(namespace: &Namespace, file: &Path) -> Result<()> {
    let mut command = Command::new("tayga");
    command.args(["--mktun", "--config"]).arg(file);
    let output = namespace.run(move || command.output())?;
    let output = output.map_err(|source| Error::Program {
        program: "tayga".to_owned(),
        source,
    })?;
    if !output.status.success() {
        return Err(Error::Failed {
            program: "tayga".to_owned(),
            message: String::from_utf8_lossy(&output.stdout).into_owned(),
            input: String::new(),
        });
    }
    namespace.ip(format!(
        "link set {LINK} up\nroute add {POOL} dev {LINK}\nroute add {PREFIX}/96 dev {LINK}\n"
    ))
}

/// Has the resolver of a host know what the name server of such a network says (RFC 7050).
pub(crate) fn write_hosts(namespace: &Namespace, file: &Path) -> Result<()> {
    let failed = |source| Error::System {
        what: "cannot give a host its names",
        source,
    };
    let names = format!("127.0.0.1 localhost\n::1 localhost\n{PREFIX}192.0.0.170 ipv4only.arpa\n");
    std::fs::write(file, names).map_err(failed)?;
    let file = file.to_owned();
    let mounted = namespace.run(move || {
        let (from, none) = (Some(file.as_path()), None::<&str>);
        mount(from, "/etc/hosts", none, MsFlags::MS_BIND, none)
    })?;
    mounted.map_err(|error| failed(error.into()))
}
