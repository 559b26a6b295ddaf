//! Giving up privileges for good.

use std::io;

use nix::errno::Errno;
use nix::sys::prctl;
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

/// The user and group that own nothing, by convention.
const NOBODY: u32 = 65_534;

/// Takes every privilege from this process, but to administer networks (CAP_NET_ADMIN) if that is
/// kept, and makes it one of the user nobody. In a user namespace that has no such user it stays
/// one of its user, without privileges. It can't get them back, nor can a program that it starts.
///
/// To be called while the process has one thread: a privilege is a thread's.
///
/// # Errors
/// The system refuses.
pub fn drop_privileges(keep_net_admin: bool) -> io::Result<()> {
    prctl::set_no_new_privs()?;
    // Another user has none, unless they are kept for the moment.
    prctl::set_keepcaps(true)?;
    let nobody = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    let changed = setgroups(&[])
        .and_then(|()| setresgid(nobody.1, nobody.1, nobody.1))
        .and_then(|()| setresuid(nobody.0, nobody.0, nobody.0));
    match changed {
        Ok(()) | Err(Errno::EPERM | Errno::EINVAL) => {}
        Err(errno) => return Err(errno.into()),
    }
    let kept = match keep_net_admin {
        true => CapabilitySet::NET_ADMIN,
        false => CapabilitySet::empty(),
    };
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    Ok(set_capabilities(None, sets)?)
}
