//! What a change does, in words and in JSON.

use std::fmt;

use ipnet::IpNet;
use natpunch_types::PeerKey;
use serde::Serialize;

use crate::spec::BackendKind;

/// One step of a plan. Secrets are named, never shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "change", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Change {
    /// Create the interface.
    CreateInterface {
        /// Its name.
        name: String,
        /// On which backend.
        backend: BackendKind,
        /// With which MTU.
        mtu: u32,
    },
    /// Set the private key.
    SetPrivateKey {
        /// The public key that belongs to it.
        public_key: PeerKey,
    },
    /// Set the UDP port.
    SetListenPort {
        /// Before.
        from: u16,
        /// After.
        to: u16,
    },
    /// Set the firewall mark.
    SetFwmark {
        /// Before.
        from: u32,
        /// After.
        to: u32,
    },
    /// Add a peer.
    AddPeer {
        /// Its key.
        peer: PeerKey,
        /// Its networks.
        allowed_ips: Vec<IpNet>,
    },
    /// Remove a peer.
    RemovePeer {
        /// Its key.
        peer: PeerKey,
    },
    /// Set, change or remove the preshared key of a peer.
    SetPresharedKey {
        /// The peer.
        peer: PeerKey,
        /// Whether it has one afterwards.
        present: bool,
    },
    /// Change a peer's keepalive.
    SetKeepalive {
        /// The peer.
        peer: PeerKey,
        /// Seconds before; 0 is off.
        from: u16,
        /// Seconds after.
        to: u16,
    },
    /// Change a peer's networks.
    SetAllowedIps {
        /// The peer.
        peer: PeerKey,
        /// New ones.
        added: Vec<IpNet>,
        /// Those that go.
        removed: Vec<IpNet>,
    },
    /// Set the MTU.
    SetMtu {
        /// Before.
        from: u32,
        /// After.
        to: u32,
    },
    /// Add an address.
    AddAddress {
        /// The address with its prefix length.
        address: IpNet,
    },
    /// Remove an address.
    RemoveAddress {
        /// The address with its prefix length.
        address: IpNet,
    },
    /// Bring the link up.
    BringUp,
    /// Add a route.
    AddRoute {
        /// Its destination.
        route: IpNet,
    },
    /// Remove a route.
    RemoveRoute {
        /// Its destination.
        route: IpNet,
    },
}

struct Nets<'a>(&'a [IpNet]);
impl fmt::Display for Nets<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 8;
        for (i, net) in self.0.iter().take(SHOWN).enumerate() {
            write!(f, "{}{net}", if i == 0 { "" } else { ", " })?;
        }
        match self.0.len().checked_sub(SHOWN) {
            Some(more) if more > 0 => write!(f, " and {more} more"),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CreateInterface { name, backend, mtu } => {
                write!(f, "+ interface {name} ({backend}, MTU {mtu})")
            }
            Self::SetPrivateKey { public_key } => write!(f, "~ private key (public key {public_key})"),
            Self::SetListenPort { from, to } => write!(f, "~ listen port {from} -> {to}"),
            Self::SetFwmark { from, to } => write!(f, "~ fwmark {from:#x} -> {to:#x}"),
            Self::AddPeer { peer, allowed_ips } => write!(f, "+ peer {peer} ({})", Nets(allowed_ips)),
            Self::RemovePeer { peer } => write!(f, "- peer {peer}"),
            Self::SetPresharedKey { peer, present: true } => write!(f, "~ peer {peer}: preshared key"),
            Self::SetPresharedKey { peer, present: false } => write!(f, "~ peer {peer}: no preshared key"),
            Self::SetKeepalive { peer, from, to } => write!(f, "~ peer {peer}: keepalive {from} s -> {to} s"),
            Self::SetAllowedIps { peer, added, removed } => {
                write!(f, "~ peer {peer}: allowed IPs")?;
                if !added.is_empty() {
                    write!(f, " +{}", Nets(added))?;
                }
                if !removed.is_empty() {
                    write!(f, " -{}", Nets(removed))?;
                }
                Ok(())
            }
            Self::SetMtu { from, to } => write!(f, "~ MTU {from} -> {to}"),
            Self::AddAddress { address } => write!(f, "+ address {address}"),
            Self::RemoveAddress { address } => write!(f, "- address {address}"),
            Self::BringUp => f.write_str("~ link up"),
            Self::AddRoute { route } => write!(f, "+ route {route}"),
            Self::RemoveRoute { route } => write!(f, "- route {route}"),
        }
    }
}

/// What would change, in the order in which it would be done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// The steps.
    pub changes: Vec<Change>,
}

impl Plan {
    /// True if nothing would change.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for change in &self.changes {
            writeln!(f, "  {change}")?;
        }
        Ok(())
    }
}
