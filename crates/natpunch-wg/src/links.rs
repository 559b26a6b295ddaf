//! Links and addresses by rtnetlink: what is there, and the single changes.
//!
//! Each call opens its own netlink socket in the network namespace of the calling thread and runs
//! to its end on a private runtime, so a thread that moves between namespaces (as tests do) is
//! never surprised.

use std::collections::BTreeSet;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use futures_util::TryStreamExt as _;
use ipnet::IpNet;
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::{Error, Handle, LinkUnspec, LinkWireguard};

use crate::error::WgError;

/// The metric of networks behind peers: more than what DHCP clients and NetworkManager give to any
/// link.
pub(crate) const NETWORK_METRIC: u32 = 30_000;

/// A link as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) kind: LinkKind,
    pub(crate) alias: Option<String>,
    pub(crate) mtu: u32,
    pub(crate) up: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LinkKind {
    Wireguard,
    Tun,
    Other(String),
}

impl std::fmt::Display for LinkKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Wireguard => f.write_str("a WireGuard interface"),
            Self::Tun => f.write_str("a TUN interface"),
            Self::Other(kind) if kind.is_empty() => f.write_str("a physical or loopback interface"),
            Self::Other(kind) => write!(f, "of type {kind}"),
        }
    }
}

pub(crate) fn with_netlink<T, F: Future<Output = Result<T, Error>>>(
    what: &str,
    f: impl FnOnce(Handle) -> F,
) -> Result<T, WgError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build();
    let result = runtime.and_then(|runtime| {
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection()?;
            let driver = tokio::spawn(connection);
            let result = f(handle).await.map_err(to_io);
            driver.abort();
            result
        })
    });
    result.map_err(|e: io::Error| WgError::io(what, e))
}

fn to_io(error: Error) -> io::Error {
    match error {
        Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other.to_string()),
    }
}

pub(crate) fn errno(error: &Error) -> Option<i32> {
    match error {
        Error::NetlinkError(message) => message.to_io().raw_os_error(),
        _ => None,
    }
}

/// The link of this name, if there is one.
pub(crate) fn find(name: &str) -> Result<Option<Link>, WgError> {
    with_netlink("list interfaces", async |handle| {
        match handle
            .link()
            .get()
            .match_name(name.to_owned())
            .execute()
            .try_next()
            .await
        {
            Ok(message) => Ok(message.map(read_link)),
            Err(e) if errno(&e) == Some(libc::ENODEV) => Ok(None),
            Err(e) => Err(e),
        }
    })
}

/// The link of this index, whatever its name is now.
pub(crate) fn by_index(index: u32) -> Result<Option<Link>, WgError> {
    with_netlink("look at the interface", async |handle| {
        let mut found = std::pin::pin!(handle.link().get().match_index(index).execute());
        match found.try_next().await {
            Ok(message) => Ok(message.map(read_link)),
            Err(e) if errno(&e) == Some(libc::ENODEV) => Ok(None),
            Err(e) => Err(e),
        }
    })
}

/// The link with this alias, whatever its name is.
pub(crate) fn by_alias(alias: &str) -> Result<Option<Link>, WgError> {
    with_netlink("list interfaces", async |handle| {
        let mut all = std::pin::pin!(handle.link().get().execute());
        while let Some(message) = all.try_next().await? {
            let link = read_link(message);
            if link.alias.as_deref() == Some(alias) {
                return Ok(Some(link));
            }
        }
        Ok(None)
    })
}

/// Gives a link another name. Kernels before 6.2 do so only while it is down; its routes go then,
/// and the apply that follows makes them again.
pub(crate) fn rename(index: u32, name: &str) -> Result<(), WgError> {
    let message = LinkUnspec::new_with_index(index)
        .name(name.to_owned())
        .build();
    with_netlink(
        &format!("rename the interface to {name}"),
        async |handle| match handle.link().set(message.clone()).execute().await {
            Err(e) if errno(&e) == Some(libc::EBUSY) => {
                let down = LinkUnspec::new_with_index(index).down().build();
                handle.link().set(down).execute().await?;
                handle.link().set(message).execute().await
            }
            other => other,
        },
    )
}

fn read_link(message: LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        kind: LinkKind::Other(String::new()),
        alias: None,
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    if let LinkInfo::Kind(kind) = info {
                        link.kind = match kind {
                            InfoKind::Wireguard => LinkKind::Wireguard,
                            InfoKind::Tun => LinkKind::Tun,
                            other => LinkKind::Other(other.to_string()),
                        };
                    }
                }
            }
            _ => {}
        }
    }
    link
}

/// Creates a kernel WireGuard link. False if this kernel has none.
pub(crate) fn create_wireguard(name: &str) -> Result<bool, WgError> {
    with_netlink(
        &format!("create interface {name}"),
        async |handle| match handle
            .link()
            .add(LinkWireguard::new(name).build())
            .execute()
            .await
        {
            Ok(()) => Ok(true),
            Err(e) if errno(&e) == Some(libc::EOPNOTSUPP) => Ok(false),
            Err(e) => Err(e),
        },
    )
}

/// Whether this kernel has WireGuard, as far as can be said without changing anything: loaded, or a
/// module that the kernel would load by itself. Creating the link is the proof.
pub fn kernel_has_wireguard() -> bool {
    if Path::new("/sys/module/wireguard").exists() {
        return true;
    }
    let Ok(release) = std::fs::read_to_string("/proc/sys/kernel/osrelease") else {
        return false;
    };
    let modules = Path::new("/lib/modules").join(release.trim());
    ["modules.dep", "modules.builtin"].iter().any(|list| {
        std::fs::read_to_string(modules.join(list))
            .is_ok_and(|text| text.contains("/net/wireguard/wireguard.ko"))
    })
}

/// Removes a link; one that is already gone is fine, as a TUN goes with its process.
pub(crate) fn remove(index: u32) -> Result<(), WgError> {
    with_netlink("remove the interface", async |handle| {
        match handle.link().del(index).execute().await {
            Err(e) if errno(&e) == Some(libc::ENODEV) => Ok(()),
            other => other,
        }
    })
}

/// Sets the alias, our mark.
pub(crate) fn set_alias(index: u32, alias: &str) -> Result<(), WgError> {
    let message = LinkUnspec::new_with_index(index)
        .append_extra_attribute(LinkAttribute::IfAlias(alias.into()))
        .build();
    with_netlink("mark the interface", async |handle| {
        handle.link().set(message).execute().await
    })
}

/// Sets the MTU.
pub(crate) fn set_mtu(index: u32, mtu: u32) -> Result<(), WgError> {
    let message = LinkUnspec::new_with_index(index).mtu(mtu).build();
    with_netlink(&format!("set MTU {mtu}"), async |handle| {
        handle.link().set(message).execute().await
    })
}

/// Brings the link up.
pub(crate) fn bring_up(index: u32) -> Result<(), WgError> {
    let message = LinkUnspec::new_with_index(index).up().build();
    with_netlink("bring the interface up", async |handle| {
        handle.link().set(message).execute().await
    })
}

/// The addresses of a link, without those that the kernel makes by itself (IPv6 link-local).
pub(crate) fn addresses(index: u32) -> Result<BTreeSet<IpNet>, WgError> {
    with_netlink("list addresses", async |handle| {
        let messages: Vec<_> = handle
            .address()
            .get()
            .set_link_index_filter(index)
            .execute()
            .try_collect()
            .await?;
        Ok(messages
            .iter()
            .filter_map(|m| Some((m, local_address(&m.attributes)?)))
            .filter_map(|(m, ip)| {
                let link_local = matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
                IpNet::new(ip, m.header.prefix_len)
                    .ok()
                    .filter(|_| !link_local)
            })
            .collect())
    })
}

/// IFA_LOCAL is the address itself; IFA_ADDRESS is the other end on a point-to-point link, and all
/// there is in IPv6.
fn local_address(attributes: &[AddressAttribute]) -> Option<IpAddr> {
    let local = attributes.iter().find_map(|a| match a {
        AddressAttribute::Local(ip) => Some(*ip),
        _ => None,
    });
    local.or_else(|| {
        attributes.iter().find_map(|a| match a {
            AddressAttribute::Address(ip) => Some(*ip),
            _ => None,
        })
    })
}

/// Adds an address. The route to its network, which the kernel makes with it, gets the metric of
/// all networks of the mesh: where a LAN has the same network, its route is the one that counts,
/// whichever was there first.
pub(crate) fn add_address(index: u32, address: IpNet) -> Result<(), WgError> {
    with_netlink(&format!("add address {address}"), async |handle| {
        let mut request = handle
            .address()
            .add(index, address.addr(), address.prefix_len())
            .replace();
        let metric = AddressAttribute::RoutePriority(NETWORK_METRIC);
        request.message_mut().attributes.push(metric);
        request.execute().await
    })
}

/// Removes an address; one that is already gone is fine.
pub(crate) fn remove_address(index: u32, address: IpNet) -> Result<(), WgError> {
    with_netlink(&format!("remove address {address}"), async |handle| {
        let message = handle
            .address()
            .add(index, address.addr(), address.prefix_len())
            .message_mut()
            .clone();
        match handle.address().del(message).execute().await {
            Err(e) if errno(&e) == Some(libc::EADDRNOTAVAIL) => Ok(()),
            other => other,
        }
    })
}
