//! What the core wants done. Effects are data: the shell executes them and feeds back what came of
//! it.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use crate::peer::Waker;
use natpunch_types::{Ask, CandidateKind, Origin, PathId, PeerKey, Travel};

/// A datagram to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// The socket that it leaves from and where it goes. The remote address `255.255.255.255` is a
    /// LAN beacon: the link of `source` only.
    pub path: PathId,
    /// From which local address; `None` leaves it to routing, as WireGuard does.
    pub source: Option<IpAddr>,
    /// How far it goes, and whether it may be split.
    pub travel: Travel,
    /// The UDP payload.
    pub payload: Vec<u8>,
}

impl Transmit {
    /// A datagram as most are: from the address that routing gives, with nothing special about it.
    pub(crate) fn new(path: PathId, payload: Vec<u8>) -> Self {
        Self {
            path,
            source: None,
            travel: Travel::Usual,
            payload,
        }
    }
}

/// Something for the shell to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Tell WireGuard where the peer is, and report the result to `Mesh::handle_endpoint_set`.
    ///
    /// A path from another port than WireGuard's needs its *pin* first: until both directions of it
    /// are in force, the endpoint must not be set. A peer has the pin of its last `SetEndpoint` and
    /// no other: one that this path does not name is taken away. A peer that is removed loses its
    /// one, too.
    SetEndpoint {
        /// Whose endpoint.
        peer: PeerKey,
        /// On which path the peer is; [`PathId::endpoint`] is what WireGuard is told.
        path: PathId,
        /// Make WireGuard send something to it at once: there is no session yet and no initiation
        /// that could be sent, or the session moved.
        kick: bool,
        /// Why, for the log.
        reason: EndpointReason,
    },
    /// Put the peer to rest: its endpoint in WireGuard is its
    /// [resting endpoint](natpunch_types::resting_endpoint) from now on, without keepalives. The
    /// device's snapshots tell when that is so; then the peer has no endpoint there.
    Rest {
        /// The peer.
        peer: PeerKey,
    },
    /// Make WireGuard's persistent keepalive to the peer so long, in whole seconds; zero is off. The
    /// device's snapshots tell what it is.
    SetKeepalive {
        /// The peer.
        peer: PeerKey,
        /// From one to the next.
        interval: Duration,
    },
    /// Let no packet to the peer through the tunnel be larger than this, in bytes: larger ones do not
    /// pass the path in use. `None`: no more than the interface's MTU. Before the first word nothing
    /// is known, and what an earlier run has set may stay.
    SetMtu {
        /// The peer.
        peer: PeerKey,
        /// The largest packet, at least 1,200.
        mtu: Option<u16>,
    },
    /// Ask discovery.
    Ask(Ask),
    /// Tell the discovery instances that exchange messages with peers what their like says at this
    /// one, on its honour.
    TakeMessage {
        /// Who says it.
        peer: PeerKey,
        /// What, at most [`PEER_MESSAGE_MAX`](natpunch_types::PEER_MESSAGE_MAX) bytes.
        payload: Vec<u8>,
    },
    /// Tell the discovery instances that the network changed: a server has answered after all of them
    /// were silent while no peer was connected. A router was away, say, and nothing of this host
    /// tells of that. What waits for its next try need not wait any longer, and servers may see this
    /// node elsewhere than before.
    TellReturn,
    /// Hear the handshake responses of WireGuard that leave this host, and tell
    /// `Mesh::handle_response`; or hear them no more. A host that can't hear them loses time where
    /// one is lost.
    HearResponses(bool),
    /// Ask the kernel which way it sends to an address, and tell `Mesh::handle_route`.
    FindRoute {
        /// The peer that may be there.
        peer: PeerKey,
        /// The address.
        destination: IpAddr,
    },
    /// Receive on these source ports beside WireGuard's, complete and in order, and on no others:
    /// at most [`MAX_SOURCE_PORTS`](natpunch_types::MAX_SOURCE_PORTS) of
    /// [`SOURCE_PORTS`](natpunch_types::SOURCE_PORTS). The host must not answer what arrives there
    /// by itself (ICMP port unreachable). A port that can't be used is told to
    /// `Mesh::handle_source_port_refused`.
    SourcePorts(Arc<[NonZeroU16]>),
}

/// Why an endpoint is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndpointReason {
    /// The first path on which both sides saw an answer.
    FirstPath,
    /// A proven path that is better than the one in use.
    BetterPath,
    /// The path in use stopped answering; this one is proven.
    PathLost,
    /// The other side, which decides for this pair, chose this proven path.
    Nominated,
    /// The device has lost the endpoint that was set before.
    Restored,
    /// The peer's WireGuard has not answered yet: the same endpoint again, with a push.
    Retry,
    /// The endpoint that it has, with a push only: the peer's WireGuard asks for a sign of life on
    /// its new path.
    Asked,
    /// A plain WireGuard peer: the address is taken as offered.
    Plain,
}

impl fmt::Display for EndpointReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FirstPath => "first proven path",
            Self::BetterPath => "better proven path",
            Self::PathLost => "path in use stopped answering",
            Self::Nominated => "chosen by the peer and proven",
            Self::Restored => "device has lost it",
            Self::Retry => "WireGuard has not answered yet",
            Self::Asked => "the peer asks for a sign of life",
            Self::Plain => "plain WireGuard peer",
        })
    }
}

/// Something that happened, for logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A new place where the peer may answer.
    CandidateLearned {
        /// The peer.
        peer: PeerKey,
        /// The path.
        path: PathId,
        /// How it was found.
        kind: CandidateKind,
        /// Who says so.
        origin: Origin,
    },
    /// A path on which both sides saw an answer.
    PathProven {
        /// The peer.
        peer: PeerKey,
        /// On which the peer answers.
        path: PathId,
        /// Round-trip time.
        rtt: Duration,
    },
    /// The path that WireGuard is told to use has changed.
    PathSelected {
        /// The peer.
        peer: PeerKey,
        /// On which the peer is reached now.
        path: PathId,
        /// Why.
        reason: EndpointReason,
    },
    /// WireGuard itself works over the path.
    Connected {
        /// The peer.
        peer: PeerKey,
        /// On which the peer is reached.
        path: PathId,
    },
    /// WireGuard moved to another endpoint by itself, with authentic traffic from there.
    Roamed {
        /// The peer.
        peer: PeerKey,
        /// On which it sends now.
        path: PathId,
    },
    /// A device that ran before we started has a session with the peer, which is kept as it is.
    Adopted {
        /// The peer.
        peer: PeerKey,
        /// On which the peer is reached.
        path: PathId,
    },
    /// Nobody has talked: the pair, which is on demand, rests.
    Rests {
        /// The peer.
        peer: PeerKey,
    },
    /// Somebody has something to say: a path is looked for.
    Woken {
        /// The peer.
        peer: PeerKey,
        /// What has shown that.
        by: Waker,
    },
    /// The path in use no longer answers; the endpoint stays until another one is proven.
    PathLost {
        /// The peer.
        peer: PeerKey,
        /// The path that was in use.
        path: PathId,
    },
    /// The path in use passes through a relay that no allowed instance offers any more.
    RelayWithdrawn {
        /// The peer.
        peer: PeerKey,
        /// The path through the relay.
        path: PathId,
    },
    /// Probes are answered there but WireGuard's handshake is not.
    WireGuardBlocked {
        /// The peer.
        peer: PeerKey,
        /// The path.
        path: PathId,
    },
    /// How large packets may be on the path in use has changed.
    PathMtu {
        /// The peer.
        peer: PeerKey,
        /// The path in use.
        path: PathId,
        /// The largest packet inside of the tunnel that passes, in bytes.
        mtu: u16,
        /// That is less than the interface's MTU.
        is_limited: bool,
    },
    /// What is tried where one port on each side is not enough.
    StrategyBegun {
        /// The peer.
        peer: PeerKey,
        /// Its name.
        strategy: &'static str,
        /// This side opens ports; else it looks for the peer's.
        opens: bool,
    },
    /// It has led to no path.
    StrategyFailed {
        /// The peer.
        peer: PeerKey,
        /// Its name.
        strategy: &'static str,
        /// Packets that this side has sent.
        sent: u32,
    },
    /// No path was found; the next try comes later or when something changes.
    Unreachable {
        /// The peer.
        peer: PeerKey,
        /// What is known of the cause.
        reason: String,
        /// When the next try comes.
        retry_in: Duration,
    },
    /// A server told under which address the world sees us.
    ReflexiveLearned {
        /// The STUN server's address, or the discovery instance whose server it is.
        server: String,
        /// Our address as it sees it.
        address: SocketAddr,
    },
}

impl Event {
    /// Whether it is a step towards a path, of which there are many, and not the path itself.
    pub fn is_step(&self) -> bool {
        matches!(
            self,
            Self::CandidateLearned { .. }
                | Self::PathProven { .. }
                | Self::StrategyBegun { .. }
                | Self::StrategyFailed { .. }
        )
    }

    /// The path that it is about, if it is about one.
    pub fn path(&self) -> Option<&PathId> {
        match self {
            Self::CandidateLearned { path, .. }
            | Self::PathProven { path, .. }
            | Self::PathSelected { path, .. }
            | Self::Connected { path, .. }
            | Self::Roamed { path, .. }
            | Self::Adopted { path, .. }
            | Self::PathLost { path, .. }
            | Self::RelayWithdrawn { path, .. }
            | Self::PathMtu { path, .. }
            | Self::WireGuardBlocked { path, .. } => Some(path),
            Self::StrategyBegun { .. }
            | Self::StrategyFailed { .. }
            | Self::Rests { .. }
            | Self::Woken { .. }
            | Self::Unreachable { .. }
            | Self::ReflexiveLearned { .. } => None,
        }
    }

    /// The peer that it is about, if it is about one.
    pub fn peer(&self) -> Option<&PeerKey> {
        match self {
            Self::CandidateLearned { peer, .. }
            | Self::PathProven { peer, .. }
            | Self::PathSelected { peer, .. }
            | Self::Connected { peer, .. }
            | Self::Roamed { peer, .. }
            | Self::Adopted { peer, .. }
            | Self::PathLost { peer, .. }
            | Self::RelayWithdrawn { peer, .. }
            | Self::WireGuardBlocked { peer, .. }
            | Self::PathMtu { peer, .. }
            | Self::StrategyBegun { peer, .. }
            | Self::StrategyFailed { peer, .. }
            | Self::Rests { peer }
            | Self::Woken { peer, .. }
            | Self::Unreachable { peer, .. } => Some(peer),
            Self::ReflexiveLearned { .. } => None,
        }
    }
}

/// What happened, without the peer: a log has that in a field of its own ([`Event::peer`]).
impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CandidateLearned {
                path, kind, origin, ..
            } => write!(f, "{kind} candidate {path} from {origin}"),
            Self::PathProven { path, rtt, .. } => {
                let milliseconds = rtt.as_secs_f64() * 1e3;
                write!(f, "answers at {path} in {milliseconds:.1} ms")
            }
            Self::PathSelected { path, reason, .. } => write!(f, "endpoint {path}: {reason}"),
            Self::Connected { path, .. } => write!(f, "connected at {path}"),
            Self::Roamed { path, .. } => write!(f, "WireGuard roamed to {path}"),
            Self::Adopted { path, .. } => {
                write!(f, "running session at {path} kept")
            }
            Self::Rests { .. } => f.write_str("at rest: nobody has talked"),
            Self::Woken { by, .. } => write!(f, "woken: {by}"),
            Self::PathLost { path, .. } => write!(f, "{path} stopped answering"),
            Self::RelayWithdrawn { path, .. } => {
                write!(f, "the relay at {path} may no longer be used")
            }
            Self::WireGuardBlocked { path, .. } => write!(
                f,
                "probes are answered at {path} but WireGuard's handshake is not"
            ),
            Self::PathMtu {
                path,
                mtu,
                is_limited: true,
                ..
            } => write!(
                f,
                "packets of more than {mtu} bytes do not pass {path}: larger ones are not sent"
            ),
            Self::PathMtu { path, mtu, .. } => {
                write!(f, "packets of {mtu} bytes pass {path}")
            }
            Self::StrategyBegun {
                strategy, opens, ..
            } => {
                let part = if *opens {
                    "opens ports"
                } else {
                    "looks for the peer's ports"
                };
                write!(f, "{strategy}: this side {part}")
            }
            Self::StrategyFailed { strategy, sent, .. } => {
                write!(
                    f,
                    "{strategy} found no path ({sent} packets from this side)"
                )
            }
            Self::Unreachable {
                reason, retry_in, ..
            } => write!(
                f,
                "not reachable: {reason}; next try in {} s",
                retry_in.as_secs()
            ),
            Self::ReflexiveLearned { server, address } => {
                write!(f, "this node is {address} as {server} sees it")
            }
        }
    }
}
