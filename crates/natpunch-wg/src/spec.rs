//! What an interface shall be.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use natpunch_types::{PeerKey, PresharedKey, SecretKey, resting_endpoint};

use crate::backend::BackendChoice;
use crate::error::WgError;

/// Everything that nothing more exact says goes through the interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DefaultRoute {
    /// The routing table that it has for itself.
    pub table: u32,
    /// Whether IPv4 goes through the interface; else it is unreachable, not leaked.
    pub ipv4: bool,
    /// The same for IPv6.
    pub ipv6: bool,
    /// Networks that stay outside: they go by the main table.
    pub except: Vec<IpNet>,
}

/// A whole interface, as the mesh file wants it.
#[derive(Debug, Clone)]
pub struct InterfaceSpec {
    /// Its name, at most 15 bytes.
    pub name: String,
    /// Its private key.
    pub private_key: SecretKey,
    /// Its UDP port; 0 leaves the choice to the device.
    pub listen_port: u16,
    /// Its firewall mark; 0 is none.
    pub fwmark: u32,
    /// Its MTU, in bytes.
    pub mtu: u32,
    /// Its addresses, with the length of the on-link prefix.
    pub addresses: Vec<IpNet>,
    /// Networks to be routed into it. One that an address already makes on-link needs no route and
    /// gets none.
    pub routes: Vec<IpNet>,
    /// Everything else through it too; needs `fwmark` and `listen_port`.
    pub default_route: Option<DefaultRoute>,
    /// Its peers.
    pub peers: Vec<PeerSpec>,
    /// Which backend to use.
    pub backend: BackendChoice,
    /// The name of the mesh: the link's alias becomes `natpunch:OWNER`.
    pub owner: String,
    /// Whether an interface of this name and key that somebody else made is taken over.
    pub adopt: bool,
    /// The program that runs an embedded device when called as `PROGRAM device NAME --socket PATH`.
    pub device_program: PathBuf,
    /// Where state files and control sockets live, such as /run/natpunch.
    pub runtime_dir: PathBuf,
}

/// The MTU of the routes to a peer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RouteMtu {
    /// What an earlier run has measured stays.
    #[default]
    AsIs,
    /// The interface's.
    Interface,
    /// At most this, in bytes: larger packets do not pass the peer's path. A network of IPv6 gets
    /// no less than its 1,280 (RFC 8200, 5).
    AtMost(u32),
}

/// The least MTU of a route of IPv6.
pub(crate) const IPV6_MTU: u32 = 1_280;

/// One peer, as the mesh file wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerSpec {
    /// Its public key.
    pub key: PeerKey,
    /// The preshared key of the pair.
    pub preshared_key: Option<PresharedKey>,
    /// Networks that the peer may use.
    pub allowed_ips: Vec<IpNet>,
    /// Interval of the persistent keepalive, whole seconds; `None` is off.
    pub persistent_keepalive: Option<Duration>,
    /// That is only what it begins with: another one is as good, if it is on or this one is off, and is
    /// changed by [`Interface::set_keepalive`](crate::Interface::set_keepalive).
    pub adapts_keepalive: bool,
    /// The MTU of the routes to its networks.
    pub route_mtu: RouteMtu,
    /// Where to send first. Used only when the peer is added: later endpoints are moved by
    /// [`Interface::set_endpoint`](crate::Interface::set_endpoint) and by WireGuard's own roaming.
    pub endpoint: Option<SocketAddr>,
    /// Without any endpoint it is at its [resting endpoint](resting_endpoint), where what WireGuard
    /// sends to it is heard.
    pub rests: bool,
}

impl PeerSpec {
    /// Its resting endpoint, if it has one.
    pub(crate) fn resting_endpoint(&self) -> Option<SocketAddr> {
        self.rests.then(|| resting_endpoint(&self.key))
    }

    /// The keepalive in the form that devices have, 0 being off.
    pub(crate) fn keepalive_seconds(&self) -> u16 {
        seconds(self.persistent_keepalive)
    }
}

pub(crate) fn seconds(interval: Option<Duration>) -> u16 {
    interval.map_or(0, |i| u16::try_from(i.as_secs()).unwrap_or(u16::MAX))
}

/// The packet buffers of the embedded device have 4,096 bytes; this leaves room for WireGuard's
/// header and tag.
pub(crate) const EMBEDDED_MAX_MTU: u32 = 4_000;

impl InterfaceSpec {
    /// The alias that marks the link as ours.
    pub fn mark(&self) -> String {
        mark(&self.owner)
    }

    /// Refuses what can never work, before anything is touched.
    pub(crate) fn validate(&self) -> Result<(), WgError> {
        let fail = |problem: String| {
            Err(WgError::Invalid {
                name: self.name.clone(),
                problem,
            })
        };
        check_name(&self.name)?;
        if self
            .routes
            .iter()
            .chain(self.addresses.iter())
            .any(|net| net.prefix_len() == 0)
        {
            return fail(
                "a default route (0.0.0.0/0 or ::/0) is not a network behind a peer".into(),
            );
        }
        if self.default_route.is_some() && (self.fwmark == 0 || self.listen_port == 0) {
            return fail(
                "a default route needs a firewall mark and a port, to tell WireGuard's own packets"
                    .into(),
            );
        }
        if !(576..=65_535).contains(&self.mtu) {
            return fail(format!("MTU {} is not between 576 and 65535", self.mtu));
        }
        if self.addresses.iter().any(|a| a.addr().is_ipv6()) && self.mtu < 1_280 {
            return fail(format!(
                "MTU {} is less than the 1280 that IPv6 needs",
                self.mtu
            ));
        }
        let mut keys: Vec<_> = self.peers.iter().map(|p| p.key).collect();
        keys.sort_unstable();
        if let Some(twice) = keys.windows(2).find_map(|w| match w {
            [a, b] if a == b => Some(a),
            _ => None,
        }) {
            return fail(format!("peer {twice} is there twice"));
        }
        Ok(())
    }
}

pub(crate) fn mark(owner: &str) -> String {
    format!("natpunch:{owner}")
}

/// Interface names become file names and netlink attributes, so only what both allow passes.
pub(crate) fn check_name(name: &str) -> Result<(), WgError> {
    let good = !name.is_empty()
        && name.len() < libc::IFNAMSIZ
        && !name.starts_with('.')
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'='));
    if good {
        return Ok(());
    }
    Err(WgError::Invalid {
        name: name.into(),
        problem: "an interface name has 1 to 15 letters, digits, '-', '_', '.' or '='".into(),
    })
}
