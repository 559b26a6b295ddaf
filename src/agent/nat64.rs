//! Networks with IPv6 alone, from which IPv4 is reached through a NAT64 (RFC 6146).
//!
//! The core and the plugins go on to speak of IPv4 addresses. They are translated where packets
//! leave and arrive (`natpunch-net`), and where WireGuard is told of them and says them: what a
//! 464XLAT does for a whole host (RFC 6877), which hosts other than phones seldom have.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use natpunch_types::{DeviceSnapshot, HostNetwork, IPV4_ONLY_NAME, IcmpError, Nat64};
use natpunch_wg::PinSet;
use tokio::net::lookup_host;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::{Agent, now};

/// How long the name server has for its answer.
const DEADLINE: Duration = Duration::from_secs(5);
/// It is asked again after this time: a network gets or loses a NAT64 seldom, but a name server that
/// did not answer may do so soon.
const AGAIN: Duration = Duration::from_secs(30);

/// Looks for the NAT64 of the network that this host is in, as long as it has no IPv4.
pub(super) struct Search {
    is_wanted: watch::Sender<bool>,
    task: JoinHandle<()>,
    /// What was found last.
    pub(super) found: Option<Nat64>,
}

impl Search {
    /// Begins to search. Each other result than the one before arrives through the receiver; none is
    /// the first.
    pub(super) fn start(network: &HostNetwork) -> (Self, mpsc::Receiver<Option<Nat64>>) {
        let (is_wanted, wanted) = watch::channel(network.is_ipv6_only());
        let (results, found) = mpsc::channel(1);
        let search = Self {
            is_wanted,
            task: tokio::spawn(run(wanted, results)),
            found: None,
        };
        (search, found)
    }

    /// The network changed: what is known of it has to be looked for anew.
    pub(super) fn network_changed(&self, network: &HostNetwork) {
        self.is_wanted.send_replace(network.is_ipv6_only());
    }

    /// Where packets for an address go.
    pub(super) fn outward(&self, address: SocketAddr) -> SocketAddr {
        self.found.map_or(address, |nat64| nat64.outward(address))
    }

    /// Whom an address means that packets come from.
    pub(super) fn inward(&self, address: SocketAddr) -> SocketAddr {
        self.found.map_or(address, |nat64| nat64.inward(address))
    }

    /// The device's state in the addresses that the core knows.
    pub(super) fn snapshot<'a>(&self, snapshot: &'a DeviceSnapshot) -> Cow<'a, DeviceSnapshot> {
        if self.found.is_none() {
            return Cow::Borrowed(snapshot);
        }
        let mut snapshot = snapshot.clone();
        for endpoint in snapshot
            .peers
            .iter_mut()
            .filter_map(|peer| peer.endpoint.as_mut())
        {
            *endpoint = self.inward(*endpoint);
        }
        Cow::Owned(snapshot)
    }

    /// What a router says, in the addresses that the core knows.
    pub(super) fn error(&self, error: IcmpError) -> IcmpError {
        match self.found {
            Some(nat64) => error.inward(&nat64),
            None => error,
        }
    }

    /// Pins as WireGuard's packets need them.
    pub(super) fn pins_outward(&self, pins: PinSet) -> PinSet {
        let outward = |(remote, port)| (self.outward(remote), port);
        pins.into_iter().map(outward).collect()
    }

    /// The same as the core knows them.
    pub(super) fn pins_inward(&self, pins: PinSet) -> PinSet {
        let inward = |(remote, port)| (self.inward(remote), port);
        pins.into_iter().map(inward).collect()
    }
}

impl Drop for Search {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Works until either end of the channels is gone.
async fn run(mut wanted: watch::Receiver<bool>, results: mpsc::Sender<Option<Nat64>>) {
    let mut last = None;
    loop {
        let is_wanted = *wanted.borrow_and_update();
        let found = match is_wanted {
            true => look_up().await,
            // The host's own IPv4 is better than any translation.
            false => None,
        };
        if found != last {
            last = found;
            if results.send(found).await.is_err() {
                return;
            }
        }
        let changed = match is_wanted {
            true => tokio::time::timeout(AGAIN, wanted.changed()).await,
            false => Ok(wanted.changed().await),
        };
        if let Ok(Err(_)) = changed {
            return;
        }
    }
}

/// Asks the network's name server for the name that has no IPv6 address but by a NAT64 (RFC 7050).
async fn look_up() -> Option<Nat64> {
    let found = tokio::time::timeout(DEADLINE, lookup_host((IPV4_ONLY_NAME, 0))).await;
    let mut addresses = found.ok()?.ok()?;
    addresses.find_map(|address| match address.ip() {
        IpAddr::V6(ip) => Nat64::learn(ip),
        IpAddr::V4(_) => None,
    })
}

impl Agent {
    /// This host's network, with its NAT64.
    pub(super) fn network(&self) -> HostNetwork {
        HostNetwork {
            nat64: self.nat64.found,
            ..self.sources.links.network().clone()
        }
    }

    /// Has the raw sockets translate as the network wants it.
    pub(super) fn translate_raw(&self) {
        if let Err(error) = self.raw.set_nat64(self.nat64.found) {
            tracing::warn!(%error, "can't widen the packet filter; replies will not be seen");
        }
    }

    /// The network has another NAT64 than before, or none any more.
    pub(super) fn on_nat64(&mut self, found: Option<Nat64>) {
        match found {
            Some(_) => tracing::info!("this network has IPv6 alone; IPv4 is reached by its NAT64"),
            None => tracing::info!("IPv4 is no longer reached by a NAT64"),
        }
        self.nat64.found = found;
        self.translate_raw();
        self.pins.set_nat64(found);
        let network = self.network();
        self.mesh.handle_local_addresses(&network, now());
        for plugin in &self.plugins {
            plugin.tell_network_changed(&network);
        }
    }
}
