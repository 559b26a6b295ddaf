//! The addresses of this host, and when they, or the way out of it, change.

use std::io;
use std::time::Duration;

use natpunch_types::HostNetwork;
use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::RouteNetlinkMessage;
use socket2::Socket;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until};

use crate::clock::SuspendWatch;
use crate::readable::readable;
use crate::snapshot::Snapshot;
use crate::{NetError, netlink};

/// Changes come in bursts: one is told when it has been quiet for this long ...
const QUIET: Duration = Duration::from_millis(200);
/// ... or has gone on for this long.
const LONGEST_BURST: Duration = Duration::from_secs(1);
/// The unicast addresses by which others might reach this host, best first: what the kernel would
/// leave by comes before networks without a way out and those of containers, stable addresses
/// before temporary ones (RFC 8981).
///
/// Left out are links that are down or in `exclude`, loopback, IPv6 link-local addresses (they mean
/// nothing without their link), and addresses that are not in use yet (RFC 4862, 5.4) or no more.
/// At most 256 are named.
pub fn host_network(exclude: &[&str]) -> Result<HostNetwork, NetError> {
    Snapshot::take(exclude)
        .map(|snapshot| snapshot.network())
        .map_err(NetError::socket("list the local addresses"))
}

/// What [`LinkWatch::changed`] tells: everything that hangs on the way out of this host should be
/// checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// All local addresses as they are now, as by [`host_network`].
    pub network: HostNetwork,
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
    network: HostNetwork,
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
                network: snapshot.network(),
                snapshot,
                burst: None,
                buffer: Vec::new(),
            })
        };
        open().map_err(NetError::socket("watch links and addresses"))
    }

    /// The local addresses as they were last told.
    pub fn network(&self) -> &HostNetwork {
        &self.network
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
        let addresses_changed = !snapshot.has_addresses_of(&self.snapshot);
        self.snapshot = snapshot;
        self.network = self.snapshot.network();
        (addresses_changed || burst.routes || burst.lost || burst.suspended).then(|| Change {
            network: self.network.clone(),
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
