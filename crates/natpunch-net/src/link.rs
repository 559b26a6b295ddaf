//! The addresses of this host, and when they, or the way out of it, change.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use natpunch_types::{AddressClass, canonical_ip, classify};
use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteMessage, RouteProtocol, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use socket2::Socket;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until};

use crate::clock::SuspendWatch;
use crate::readable::readable;
use crate::{NetError, netlink};

/// Changes come in bursts: one is told when it has been quiet for this long ...
const QUIET: Duration = Duration::from_millis(200);
/// ... or has gone on for this long.
const LONGEST_BURST: Duration = Duration::from_secs(1);
/// Most addresses that a host is said to have.
const MAX_ADDRESSES: usize = 64;
/// The protocol number of the routes that natpunch sets itself.
const OUR_ROUTES: RouteProtocol = RouteProtocol::Other(0x4e);

/// The unicast addresses by which others might reach this host, stable ones before temporary ones
/// (RFC 8981).
///
/// Left out are links that are down or in `exclude`, loopback, IPv6 link-local addresses (they mean
/// nothing without their link), and addresses that are not in use yet (RFC 4862, 5.4) or no more.
/// At most 64 are named.
pub fn local_addresses(exclude: &[&str]) -> Result<Vec<IpAddr>, NetError> {
    Snapshot::take(exclude)
        .map(|snapshot| snapshot.addresses())
        .map_err(NetError::socket("list the local addresses"))
}

/// What [`LinkWatch::changed`] tells: everything that hangs on the way out of this host should be
/// checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// All local addresses as they are now, as by [`local_addresses`].
    pub addresses: Vec<IpAddr>,
    /// True if these, or the links that have them, are not the same as before; else it was a route,
    /// or sleep.
    pub addresses_changed: bool,
    /// True if the machine has slept for more than five seconds.
    pub suspended: bool,
}

/// Watches links, addresses, routes and sleep. Changes of natpunch's own interface and routes are
/// none.
#[derive(Debug)]
pub struct LinkWatch {
    exclude: String,
    announcements: AsyncFd<Socket>,
    suspend: SuspendWatch,
    snapshot: Snapshot,
    addresses: Vec<IpAddr>,
    burst: Option<Burst>,
    buffer: Vec<u8>,
}

impl LinkWatch {
    /// Starts to watch this network namespace, except for the interface `exclude`. Must be called
    /// within a tokio runtime.
    pub async fn new(exclude: &str) -> Result<Self, NetError> {
        let open = || {
            // Subscribe first, look second: what changes in between is announced.
            let announcements = netlink::socket(
                (libc::RTMGRP_LINK
                    | libc::RTMGRP_IPV4_IFADDR
                    | libc::RTMGRP_IPV6_IFADDR
                    | libc::RTMGRP_IPV4_ROUTE
                    | libc::RTMGRP_IPV6_ROUTE) as u32,
            )?;
            announcements.set_nonblocking(true)?;
            let snapshot = Snapshot::take(&[exclude])?;
            Ok(Self {
                exclude: exclude.to_owned(),
                announcements: readable(announcements)?,
                suspend: SuspendWatch::new()?,
                addresses: snapshot.addresses(),
                snapshot,
                burst: None,
                buffer: Vec::new(),
            })
        };
        open().map_err(NetError::socket("watch links and addresses"))
    }

    /// The local addresses as they were last told.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// The next change; a burst of them is one. Dropping the future loses nothing.
    pub async fn changed(&mut self) -> Change {
        loop {
            let told = self.burst.as_ref().map(Burst::end);
            let buffer = &mut self.buffer;
            tokio::select! {
                messages = self.announcements.async_io(Interest::READABLE, |socket| netlink::receive(socket, buffer)) => {
                    self.announced(messages);
                }
                () = self.suspend.woke() => self.note(|burst| burst.suspended = true),
                () = sleep_until(told.unwrap_or_else(Instant::now)), if told.is_some() => {
                    if let Some(change) = self.settle() {
                        return change;
                    }
                }
            }
        }
    }

    fn announced(
        &mut self,
        messages: io::Result<Vec<netlink_packet_core::NetlinkMessage<RouteNetlinkMessage>>>,
    ) {
        let messages = match messages {
            Ok(messages) => messages,
            // ENOBUFS: there were more than the socket could hold. Whatever else it is, looking
            // again is right.
            Err(error) => {
                tracing::debug!(%error, "announcements of link changes were lost");
                return self.note(|burst| burst.lost = true);
            }
        };
        for message in messages {
            let NetlinkPayload::InnerMessage(message) = message.payload else {
                continue;
            };
            match message {
                RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route)
                    if self.snapshot.is_way_out(&route) =>
                {
                    self.note(|burst| burst.routes = true);
                }
                RouteNetlinkMessage::NewLink(_)
                | RouteNetlinkMessage::DelLink(_)
                | RouteNetlinkMessage::NewAddress(_)
                | RouteNetlinkMessage::DelAddress(_) => self.note(|_| {}),
                _ => {}
            }
        }
    }

    fn note(&mut self, what: impl FnOnce(&mut Burst)) {
        let now = Instant::now();
        let burst = self.burst.get_or_insert_with(|| Burst::new(now));
        burst.last = now;
        what(burst);
    }

    /// What has become of a burst; nothing, if all is as it was.
    fn settle(&mut self) -> Option<Change> {
        let burst = self.burst.take()?;
        let snapshot = match Snapshot::take(&[&self.exclude]) {
            Ok(snapshot) => snapshot,
            Err(error) => {
                tracing::warn!(%error, "cannot list the local addresses; trying again");
                self.burst = Some(Burst {
                    first: Instant::now(),
                    last: Instant::now() + LONGEST_BURST,
                    ..burst
                });
                return None;
            }
        };
        let addresses_changed = snapshot != self.snapshot;
        self.snapshot = snapshot;
        self.addresses = self.snapshot.addresses();
        (addresses_changed || burst.routes || burst.lost || burst.suspended).then(|| Change {
            addresses: self.addresses.clone(),
            addresses_changed,
            suspended: burst.suspended,
        })
    }
}

/// What was announced since the last change was told.
#[derive(Debug)]
struct Burst {
    first: Instant,
    last: Instant,
    routes: bool,
    lost: bool,
    suspended: bool,
}

impl Burst {
    fn new(now: Instant) -> Self {
        Self {
            first: now,
            last: now,
            routes: false,
            lost: false,
            suspended: false,
        }
    }

    fn end(&self) -> Instant {
        (self.last + QUIET).min(self.first + LONGEST_BURST)
    }
}

/// An address that is in use, on a link that is up.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct LocalAddress {
    temporary: bool,
    link: u32,
    ip: IpAddr,
}

/// All that matters here of the links and addresses of a host. Links without an address of use,
/// like those that come and go with containers, are not part of it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Snapshot(BTreeSet<LocalAddress>);

impl Snapshot {
    fn take(exclude: &[&str]) -> io::Result<Self> {
        let links = netlink::dump(&RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
        let addresses = netlink::dump(&RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
        Ok(Self::from_messages(&links, &addresses, exclude))
    }

    fn from_messages(
        links: &[RouteNetlinkMessage],
        addresses: &[RouteNetlinkMessage],
        exclude: &[&str],
    ) -> Self {
        let usable: BTreeSet<u32> = links
            .iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewLink(link) if is_usable_link(link, exclude) => {
                    Some(link.header.index)
                }
                _ => None,
            })
            .collect();
        let addresses = addresses.iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewAddress(address) => local_address(address),
            _ => None,
        });
        Self(
            addresses
                .filter(|address| usable.contains(&address.link))
                .collect(),
        )
    }

    fn addresses(&self) -> Vec<IpAddr> {
        let mut addresses = Vec::new();
        for LocalAddress { ip, .. } in &self.0 {
            if addresses.len() < MAX_ADDRESSES && !addresses.contains(ip) {
                addresses.push(*ip);
            }
        }
        addresses
    }

    /// True if packets to others may take this route. The kernel's own routes come and go with the
    /// addresses; routes over links without an address, our own WireGuard interface among them,
    /// carry nothing of WireGuard's.
    fn is_way_out(&self, route: &RouteMessage) -> bool {
        let derived = matches!(
            route.header.kind,
            RouteType::Local | RouteType::Broadcast | RouteType::Anycast | RouteType::Multicast
        ) || route.header.protocol == RouteProtocol::Kernel
            || route.header.flags.contains(RouteFlags::Cloned);
        let link = route
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                RouteAttribute::Oif(link) => Some(*link),
                _ => None,
            });
        !derived
            && route.header.protocol != OUR_ROUTES
            && link.is_none_or(|link| self.0.iter().any(|address| address.link == link))
    }
}

fn is_usable_link(link: &LinkMessage, exclude: &[&str]) -> bool {
    let flags = link.header.flags;
    let is_excluded = link.attributes.iter().any(|attribute| match attribute {
        LinkAttribute::IfName(name) => exclude.contains(&name.as_str()),
        _ => false,
    });
    flags.contains(LinkFlags::Up | LinkFlags::Running)
        && !flags.contains(LinkFlags::Loopback)
        && !is_excluded
}

fn local_address(message: &AddressMessage) -> Option<LocalAddress> {
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    let (mut local, mut address) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            // On a point-to-point link this is the other end, and `Local` is there too.
            AddressAttribute::Address(ip) => address = Some(*ip),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    let ip = canonical_ip(local.or(address)?);
    let is_reachable = match classify(ip) {
        AddressClass::Global | AddressClass::Private => true,
        AddressClass::LinkLocal => ip.is_ipv4(),
        AddressClass::Never => false,
    };
    let not_in_use = AddressFlags::Dadfailed | AddressFlags::Deprecated;
    let tentative =
        flags.contains(AddressFlags::Tentative) && !flags.contains(AddressFlags::Optimistic);
    // The flag means "secondary" on IPv4, where it is nothing special.
    let temporary =
        message.header.family == AddressFamily::Inet6 && flags.contains(AddressFlags::Secondary);
    (is_reachable && !flags.intersects(not_in_use) && !tentative).then_some(LocalAddress {
        temporary,
        link: message.header.index,
        ip,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, flags: LinkFlags) -> RouteNetlinkMessage {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.header.flags = flags;
        RouteNetlinkMessage::NewLink(link)
    }

    fn address(link: u32, ip: &str, flags: AddressFlags) -> RouteNetlinkMessage {
        let ip: IpAddr = ip.parse().unwrap();
        let mut address = AddressMessage::default();
        address.header.family = if ip.is_ipv4() {
            AddressFamily::Inet
        } else {
            AddressFamily::Inet6
        };
        address.header.index = link;
        address.attributes = vec![
            AddressAttribute::Address(ip),
            AddressAttribute::Flags(flags),
        ];
        RouteNetlinkMessage::NewAddress(address)
    }

    /// The addresses of a host with one link that is up (1), one without a carrier (2), and
    /// loopback (3).
    fn addresses(of: &[RouteNetlinkMessage]) -> Vec<String> {
        let up = LinkFlags::Up | LinkFlags::Running;
        let links = [
            link(1, up),
            link(2, LinkFlags::Up),
            link(3, up | LinkFlags::Loopback),
        ];
        Snapshot::from_messages(&links, of, &[])
            .addresses()
            .iter()
            .map(IpAddr::to_string)
            .collect()
    }

    #[test]
    fn temporary_addresses_come_last_and_those_not_in_use_not_at_all() {
        let none = AddressFlags::empty();
        let of = [
            address(1, "2001:db8::7e4", AddressFlags::Secondary),
            address(1, "2001:db8::1", none),
            address(1, "192.0.2.1", none),
            address(1, "192.0.2.2", AddressFlags::Secondary),
            address(1, "2001:db8::2", AddressFlags::Tentative),
            address(
                1,
                "2001:db8::3",
                AddressFlags::Tentative | AddressFlags::Optimistic,
            ),
            address(1, "2001:db8::4", AddressFlags::Deprecated),
            address(
                1,
                "2001:db8::5",
                AddressFlags::Tentative | AddressFlags::Dadfailed,
            ),
            address(1, "fe80::1", none),
            address(1, "169.254.7.7", none),
            address(2, "192.0.2.3", none),
            address(3, "192.0.2.4", none),
            address(4, "192.0.2.5", none),
        ];
        let expected = [
            "169.254.7.7",
            "192.0.2.1",
            "192.0.2.2",
            "2001:db8::1",
            "2001:db8::3",
            "2001:db8::7e4",
        ];
        assert_eq!(addresses(&of), expected);
    }

    #[test]
    fn the_list_of_addresses_is_bounded() {
        let many: Vec<_> = (0..=255)
            .map(|n| address(1, &format!("192.0.2.{n}"), AddressFlags::empty()))
            .collect();
        assert_eq!(addresses(&many).len(), MAX_ADDRESSES);
    }
}
