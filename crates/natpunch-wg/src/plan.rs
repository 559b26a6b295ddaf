//! What a change does, in words and in JSON.

use std::fmt;

use ipnet::IpNet;
use natpunch_types::PeerKey;
use serde::{Deserialize, Serialize};

use crate::backend::BackendKind;
use crate::routing::Rule;

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
    /// Take over an interface that somebody else made.
    Adopt {
        /// Its name.
        name: String,
        /// On which backend.
        backend: BackendKind,
        /// Peers of somebody else, which stay as they are.
        peers: Vec<PeerKey>,
        /// Routes of somebody else through it, which stay as long as it does.
        routes: Vec<IpNet>,
    },
    /// Give the interface its name back.
    Rename {
        /// The name that somebody gave it.
        from: String,
        /// Its own.
        to: String,
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
    /// Limit the size of packets to a network, or end that.
    LimitRoute {
        /// The network.
        route: IpNet,
        /// The MTU that its route has in the one case, and had in the other.
        mtu: u32,
        /// Whether it has it afterwards.
        present: bool,
    },
    /// Add a route to a table of the interface's own.
    AddTableRoute {
        /// Its destination.
        route: IpNet,
        /// The table.
        table: u32,
        /// Whether it leads nowhere, so that nothing leaks.
        unreachable: bool,
    },
    /// Remove a route from a table of the interface's own.
    RemoveTableRoute {
        /// Its destination.
        route: IpNet,
        /// The table.
        table: u32,
        /// Whether it leads nowhere.
        unreachable: bool,
    },
    /// Add a policy rule.
    AddRule {
        /// The rule.
        rule: Rule,
    },
    /// Remove a policy rule.
    RemoveRule {
        /// The rule.
        rule: Rule,
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

/// What a change does to packets that flow through the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Effect {
    /// Nothing: what flows goes on.
    None,
    /// The next handshake decides: the session goes on until then, at most 180 s
    /// (REJECT_AFTER_TIME), and fails after that if the other side did not follow.
    Rehandshake,
    /// Packets are lost: for good where something goes, until a new handshake or path otherwise.
    Interruption,
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Rehandshake => "re-handshake",
            Self::Interruption => "interruption",
        })
    }
}

/// The sign of a change in a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sign {
    /// `+`
    Add,
    /// `-`
    Remove,
    /// `~`
    Modify,
}

impl fmt::Display for Sign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Add => "+",
            Self::Remove => "-",
            Self::Modify => "~",
        })
    }
}

impl Change {
    /// What it does to packets that flow now.
    pub fn effect(&self) -> Effect {
        match self {
            // The public key is what peers know this node by, and the port is where they and NATs
            // expect it.
            Self::SetPrivateKey { .. } | Self::SetListenPort { .. } => Effect::Interruption,
            Self::RemovePeer { .. } | Self::RemoveAddress { .. } | Self::RemoveRoute { .. } => {
                Effect::Interruption
            }
            Self::SetAllowedIps { removed, .. } if !removed.is_empty() => Effect::Interruption,
            // What went outside goes through the tunnel from now on, or the other way round.
            Self::AddRule { rule } | Self::RemoveRule { rule } if rule.diverts() => {
                Effect::Interruption
            }
            Self::RemoveTableRoute {
                unreachable: false, ..
            } => Effect::Interruption,
            Self::SetPresharedKey { .. } => Effect::Rehandshake,
            Self::CreateInterface { .. }
            | Self::Adopt { .. }
            | Self::Rename { .. }
            | Self::SetFwmark { .. }
            | Self::AddPeer { .. }
            | Self::SetKeepalive { .. }
            | Self::SetAllowedIps { .. }
            | Self::SetMtu { .. }
            | Self::AddAddress { .. }
            | Self::BringUp
            | Self::AddRoute { .. }
            | Self::LimitRoute { .. }
            | Self::AddTableRoute { .. }
            | Self::RemoveTableRoute { .. }
            | Self::AddRule { .. }
            | Self::RemoveRule { .. } => Effect::None,
        }
    }

    /// Whether something comes, goes or becomes another.
    pub fn sign(&self) -> Sign {
        match self {
            Self::CreateInterface { .. }
            | Self::AddPeer { .. }
            | Self::AddAddress { .. }
            | Self::AddRoute { .. }
            | Self::LimitRoute { present: true, .. }
            | Self::AddTableRoute { .. }
            | Self::AddRule { .. } => Sign::Add,
            Self::RemovePeer { .. }
            | Self::RemoveAddress { .. }
            | Self::RemoveRoute { .. }
            | Self::LimitRoute { present: false, .. }
            | Self::RemoveTableRoute { .. }
            | Self::RemoveRule { .. } => Sign::Remove,
            _ => Sign::Modify,
        }
    }

    /// The peer that it is about, if it is about one.
    pub fn peer(&self) -> Option<&PeerKey> {
        match self {
            Self::AddPeer { peer, .. }
            | Self::RemovePeer { peer }
            | Self::SetPresharedKey { peer, .. }
            | Self::SetKeepalive { peer, .. }
            | Self::SetAllowedIps { peer, .. } => Some(peer),
            _ => None,
        }
    }

    /// The change in words, without its sign, with the peer by this name.
    pub fn words(&self, peer: &str) -> String {
        match self {
            Self::CreateInterface { name, backend, mtu } => {
                format!("interface {name} ({backend}, MTU {mtu})")
            }
            Self::Adopt {
                name,
                backend,
                peers,
                routes,
            } => {
                let mut text = format!("interface {name} ({backend}) taken over as it runs");
                let keys: Vec<String> = peers.iter().map(ToString::to_string).collect();
                if !keys.is_empty() {
                    text.push_str(&format!(
                        "; not in the mesh file, and staying as they are: peers {}",
                        keys.join(", ")
                    ));
                }
                if !routes.is_empty() {
                    text.push_str(&format!(
                        "; staying until the interface goes: routes of others {}",
                        Nets(routes)
                    ));
                }
                text
            }
            Self::Rename { from, to } => format!("interface {from} renamed to {to}"),
            Self::SetPrivateKey { public_key } => format!("private key (public key {public_key})"),
            Self::SetListenPort { from, to } => format!("listen port {from} -> {to}"),
            Self::SetFwmark { from, to } => format!("fwmark {from:#x} -> {to:#x}"),
            Self::AddPeer { allowed_ips, .. } => format!("peer {peer} ({})", Nets(allowed_ips)),
            Self::RemovePeer { .. } => format!("peer {peer}"),
            Self::SetPresharedKey { present: true, .. } => format!("peer {peer}: preshared key"),
            Self::SetPresharedKey { present: false, .. } => {
                format!("peer {peer}: no preshared key")
            }
            Self::SetKeepalive { from, to, .. } => {
                format!("peer {peer}: keepalive {from} s -> {to} s")
            }
            Self::SetAllowedIps { added, removed, .. } => {
                let part = |sign, nets: &Vec<IpNet>| {
                    if nets.is_empty() {
                        String::new()
                    } else {
                        format!(" {sign}{}", Nets(nets))
                    }
                };
                format!(
                    "peer {peer}: allowed IPs{}{}",
                    part('+', added),
                    part('-', removed)
                )
            }
            Self::SetMtu { from, to } => format!("MTU {from} -> {to}"),
            Self::AddAddress { address } | Self::RemoveAddress { address } => {
                format!("address {address}")
            }
            Self::BringUp => "link up".to_owned(),
            Self::AddRoute { route } | Self::RemoveRoute { route } => format!("route {route}"),
            Self::LimitRoute { route, mtu, .. } => format!("route {route} with MTU {mtu}"),
            Self::AddTableRoute {
                route,
                table,
                unreachable,
            }
            | Self::RemoveTableRoute {
                route,
                table,
                unreachable,
            } => {
                let what = if *unreachable {
                    " unreachable, if the interface is gone"
                } else {
                    ""
                };
                format!("route {route} in table {table}{what}")
            }
            Self::AddRule { rule } | Self::RemoveRule { rule } => format!("rule {rule}"),
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let peer = self.peer().map(ToString::to_string).unwrap_or_default();
        write!(f, "{} {}", self.sign(), self.words(&peer))
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
