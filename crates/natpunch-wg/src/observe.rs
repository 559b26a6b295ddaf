//! Reading an interface that anybody made.

use ipnet::IpNet;

use crate::backend::BackendKind;
use crate::device::{Device as _, DeviceState};
use crate::error::WgError;
use crate::kernel::KernelDevice;
use crate::links::{self, LinkKind};
use crate::uapi::UapiDevice;

/// A WireGuard interface of this host, as it is.
#[derive(Debug)]
pub struct Observed {
    /// What the device says, with preshared keys.
    pub state: DeviceState,
    /// Its addresses, with the length of the on-link prefix; link-local ones are left out.
    pub addresses: Vec<IpNet>,
    /// Who runs it: the kernel, or a program.
    pub backend: BackendKind,
    /// Its MTU, in bytes.
    pub mtu: u32,
}

/// Reads a WireGuard interface, whoever made it, and changes nothing.
///
/// # Errors
/// There is no such interface, it is none of WireGuard, or it can't be read.
pub fn observe(name: &str) -> Result<Observed, WgError> {
    crate::spec::check_name(name)?;
    let link = links::find(name)?.ok_or_else(|| WgError::Gone {
        name: name.into(),
        reason: "there is no such link".into(),
    })?;
    let (backend, mut state) = match link.kind {
        LinkKind::Wireguard => (BackendKind::Kernel, KernelDevice::new(name)?.get()?),
        LinkKind::Tun => (BackendKind::External, UapiDevice::external(name).get()?),
        LinkKind::Other(_) => {
            let problem = format!("it is {}, not one of WireGuard", link.kind);
            return Err(WgError::Invalid {
                name: name.into(),
                problem,
            });
        }
    };
    state.snapshot = state.snapshot.without_resting();
    let link_local =
        |net: &IpNet| matches!(net, IpNet::V6(net) if net.addr().is_unicast_link_local());
    let addresses = links::addresses(link.index)?
        .into_iter()
        .filter(|net| !link_local(net))
        .collect();
    Ok(Observed {
        state,
        addresses,
        backend,
        mtu: link.mtu,
    })
}
