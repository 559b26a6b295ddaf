//! One snapshot of everything, which `status`, metrics and the simulator's assertions all read.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use natpunch_types::{CandidateKind, LocalSocket, Mapping, PeerKey, RelayPolicy, RelayUse};
use serde::{Deserialize, Serialize, Serializer};

/// The mesh at one moment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MeshStatus {
    /// This node's public key.
    pub public_key: PeerKey,
    /// The port that WireGuard listens on.
    pub listen_port: u16,
    /// How the NAT before this node maps WireGuard's port, if some server could tell.
    pub mapping: Option<Mapping>,
    /// What is known of the NAT before this node.
    pub nat: NatStatus,
    /// What is known of the NAT's ports, and how much of the punch budget is used.
    pub punch: PunchStatus,
    /// Probes since the start.
    pub probes: ProbeStatus,
    /// Where this node may be reached, as published to its peers.
    pub local: Vec<LocalStatus>,
    /// Port mappings of this node's router that are not published: servers see this node at another
    /// address than the router believes to have, so it is behind a NAT itself.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub refuted: Vec<LocalStatus>,
    /// The peers, sorted by name, then key.
    pub peers: Vec<PeerStatus>,
}

/// The NAT before a node, of IPv4 unless it says otherwise, and what the node can do about it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NatStatus {
    /// How it maps, if some server could tell.
    pub mapping: Option<Mapping>,
    /// How it hands out ports.
    pub ports: PortPattern,
    /// Whose packets it lets in, if some server could tell.
    #[serde(default)]
    pub filtering: Option<Filtering>,
    /// The same of the firewall of IPv6.
    #[serde(default)]
    pub filtering_v6: Option<Filtering>,
    /// Whether an unexpected packet takes the port of a flow that this node wants, if that was
    /// measured.
    #[serde(default)]
    pub poison_prone: Option<bool>,
    /// Servers see the node at several addresses.
    pub several_addresses: bool,
    /// At how many, if any server has answered; 15 stands for more, too.
    #[serde(default)]
    pub addresses: Option<u8>,
    /// Routers up to the first one with a public address, that one included, if they told.
    #[serde(default)]
    pub hops: Option<u8>,
    /// The node can join another source port to WireGuard's.
    pub pins: bool,
    /// The node guesses ports: its mesh file does not forbid it.
    pub guesses: bool,
    /// The silence that its mappings are known to outlive, in seconds, if it was measured.
    #[serde(default)]
    pub mapping_lifetime_s: Option<u8>,
    /// The same of the firewall of IPv6.
    #[serde(default)]
    pub mapping_lifetime_v6_s: Option<u8>,
}

/// Whose packets a NAT, or a stateful firewall, lets in on a mapping (RFC 4787, 5), as far as a
/// server could show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Filtering {
    /// Anybody's.
    EndpointIndependent,
    /// Those from an address that the mapping has sent to, whatever their port.
    AddressDependent,
    /// Those from an address that it has sent to, whatever their port; a server with one address
    /// can't tell whether those from other addresses, too.
    NotByPort,
    /// Those from an address and port that it has sent to.
    AddressAndPortDependent,
}

impl Filtering {
    /// Whether whatever comes from an address that was sent to is let in, from any port.
    pub fn lets_in_any_port(self) -> bool {
        match self {
            Self::EndpointIndependent | Self::AddressDependent | Self::NotByPort => true,
            Self::AddressAndPortDependent => false,
        }
    }
}

impl fmt::Display for Filtering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EndpointIndependent => "endpoint-independent",
            Self::AddressDependent => "address-dependent",
            Self::NotByPort => "port-independent",
            Self::AddressAndPortDependent => "address- and port-dependent",
        })
    }
}

/// How a NAT chooses the outside port of a new mapping (RFC 4787, 4.2), as samples show it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PortPattern {
    /// Too few samples.
    #[default]
    Unknown,
    /// The port of the host.
    Preserved,
    /// One after the other.
    Sequential,
    /// Any port of a small range.
    Block,
    /// Any port.
    Random,
}

/// The punch budget of this node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct PunchStatus {
    /// What is known of the NAT before this node, of IPv4, in words.
    pub nat: String,
    /// Whether this host can join another source port to WireGuard's.
    pub pins: bool,
    /// Packets to guessed ports in the last ten minutes.
    pub used: u32,
    /// How many they may be.
    pub allowed: u32,
    /// Why no port is guessed at this moment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub barred: Option<String>,
}

/// Probes of this node since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ProbeStatus {
    /// Pings that left, guesses apart.
    pub sent: u64,
    /// Pings to guessed ports that left.
    pub guessed: u64,
    /// Pings and volleys that a budget left out or put off.
    pub held_back: u64,
}

/// A candidate of this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LocalStatus {
    /// The address.
    pub address: SocketAddr,
    /// How it was found.
    pub kind: CandidateKind,
}

/// One peer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PeerStatus {
    /// Its public key.
    pub key: PeerKey,
    /// Its name in the mesh file.
    pub name: String,
    /// `false` for a plain WireGuard peer.
    pub managed: bool,
    /// What kind of path is in use.
    pub path: PathKind,
    /// The socket or transport on this host that the path in use leaves from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local: Option<LocalSocket>,
    /// Who offered the relay, if the path passes through one: names of discovery instances.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub relayed_by: Vec<String>,
    /// What the mesh file says of relays for this pair.
    pub relay_policy: RelayPolicy,
    /// The NAT before the peer, as the peer says; nothing if it has said nothing yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nat: Option<NatStatus>,
    /// What the pair wants of relays.
    pub relay: RelayUse,
    /// WireGuard's endpoint.
    pub endpoint: Option<SocketAddr>,
    /// How large packets may be on the path in use, if that was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_mtu: Option<PathMtuStatus>,
    /// Smoothed round-trip time of the path in use.
    #[serde(rename = "rtt_ms", serialize_with = "option_millis")]
    pub rtt: Option<Duration>,
    /// How many of the last 32 pings on the path in use were not answered, in percent; nothing before
    /// there were five.
    pub loss_percent: Option<u8>,
    /// How long ago the last handshake was, as far as it is of use: not one that ended long before
    /// our start.
    #[serde(rename = "handshake_age_s", serialize_with = "option_seconds")]
    pub handshake_age: Option<Duration>,
    /// Bytes received from the peer.
    pub rx_bytes: u64,
    /// Bytes sent to the peer.
    pub tx_bytes: u64,
    /// Where the peer sees this node.
    pub seen_as: Option<SocketAddr>,
    /// The peer's natpunch does not answer, though WireGuard's session with it is live: it has
    /// ended or was stopped, or the path has just died.
    pub probes_unanswered: bool,
    /// Two hosts answer in turns with the peer's key.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub has_twins: bool,
    /// How things stand.
    #[serde(flatten)]
    pub state: PeerState,
    /// Why the path in use passes through a relay, unless the mesh file wants it so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relay_reason: Option<String>,
    /// The strategy that is under way to get past the pair's NATs, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strategy: Option<String>,
    /// Where the peer may be.
    pub candidates: Vec<CandidateStatus>,
}

/// What a packet between two nodes is, WireGuard's own apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PacketKind {
    /// A ping.
    Probe,
    /// A ping that ends before the other side's NAT, to open this side's.
    Opener,
    /// A ping to a port that may be the peer's.
    Guess,
    /// A ping to all of the LAN.
    Beacon,
    /// The answer to a ping.
    Answer,
    /// A copy of WireGuard's handshake initiation, on a path that WireGuard does not know yet.
    HandshakeCopy,
    /// A question whether a packet of this size passes, or the answer.
    Size,
    /// A message of a discovery plugin.
    Message,
}

impl PacketKind {
    /// A peer answers it.
    pub(crate) const fn is_answered(self) -> bool {
        matches!(
            self,
            Self::Probe | Self::Opener | Self::Guess | Self::Beacon
        )
    }
}

impl fmt::Display for PacketKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Probe => "probe",
            Self::Opener => "opener",
            Self::Guess => "guess",
            Self::Beacon => "beacon",
            Self::Answer => "answer",
            Self::HandshakeCopy => "handshake copy",
            Self::Size => "size",
            Self::Message => "message",
        })
    }
}

/// A packet to or from a peer, WireGuard's own apart.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PacketStatus {
    /// How long ago.
    #[serde(rename = "ago_s", serialize_with = "seconds")]
    pub ago: Duration,
    /// This node sent it; else the peer did.
    pub sent: bool,
    /// What it is.
    pub kind: PacketKind,
    /// The socket on this host that it left from or came to.
    pub local: LocalSocket,
    /// The address at the other end; of guesses in a row the last one.
    pub address: SocketAddr,
    /// How many, of guesses in a row.
    pub count: u32,
    /// How long its answer took, if one came.
    #[serde(rename = "answer_ms", serialize_with = "option_millis")]
    pub answer: Option<Duration>,
}

/// How large packets may be on a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathMtuStatus {
    /// The largest packet inside of the tunnel that passes, in bytes.
    pub mtu: u16,
    /// That is less than the interface's MTU: larger packets to the peer are split or refused
    /// before the tunnel.
    pub is_limited: bool,
}

/// One place where a peer may be.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CandidateStatus {
    /// The socket or transport on this host that leads there.
    pub local: LocalSocket,
    /// The address.
    pub address: SocketAddr,
    /// How it was found.
    pub kind: CandidateKind,
    /// Who offered it: names of discovery instances, `peer` (itself, authenticated), `wireguard`
    /// (roaming), `remembered` (it worked in this network before).
    pub origins: Vec<String>,
    /// For how long it has been known.
    #[serde(rename = "age_s", serialize_with = "seconds")]
    pub age: Duration,
    /// How long ago it was last probed.
    #[serde(rename = "last_probe_s", serialize_with = "option_seconds")]
    pub last_probe: Option<Duration>,
    /// Smoothed round-trip time.
    #[serde(rename = "rtt_ms", serialize_with = "option_millis")]
    pub rtt: Option<Duration>,
    /// Pings that left to it from this node, guesses apart.
    pub probes: u32,
    /// Answers that came.
    pub answers: u32,
    /// How long ago the last one came.
    #[serde(rename = "last_answer_s", serialize_with = "option_seconds")]
    pub last_answer: Option<Duration>,
    /// Why it is not probed, if it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_probed: Option<NotProbed>,
    /// Whether this node's pings were answered lately.
    pub answered: bool,
    /// Whether both sides saw an answer on it lately.
    pub proven: bool,
    /// Whether it answers probes while WireGuard's handshake does not pass.
    pub wireguard_blocked: bool,
}

/// Why a candidate is not probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NotProbed {
    /// It is behind a tunnel of this host that is no part of the mesh.
    BehindTunnel,
    /// This host has no route there.
    NoRoute,
    /// This host has no address of its family.
    NoAddressOfFamily,
}

/// The kind of path in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PathKind {
    /// Within one LAN.
    Lan,
    /// From node to node through the internet.
    Direct,
    /// Through a relay.
    Relay,
    /// No path.
    None,
}

impl fmt::Display for PathKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lan => "lan",
            Self::Direct => "direct",
            Self::Relay => "relay",
            Self::None => "none",
        })
    }
}

/// How things stand with a peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum PeerState {
    /// WireGuard has a live session, or the path in use answers.
    Connected,
    /// The pair is on demand, and nobody has talked for a while: the next packet wakes it.
    Resting,
    /// Candidates are being probed or WireGuard's handshake is awaited.
    Punching,
    /// There is nothing to do before something is learned.
    Waiting {
        /// What is missing.
        reason: String,
    },
    /// Every candidate was tried in vain.
    Unreachable {
        /// What is known of the cause.
        reason: String,
        /// When the next try comes, unless something changes before.
        #[serde(rename = "retry_in_s", serialize_with = "seconds")]
        retry_in: Duration,
    },
}

impl fmt::Display for PeerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connected => f.write_str("connected"),
            Self::Resting => f.write_str("resting"),
            Self::Punching => f.write_str("punching"),
            Self::Waiting { reason } => write!(f, "waiting: {reason}"),
            Self::Unreachable { reason, retry_in } => {
                write!(
                    f,
                    "unreachable: {reason}; next try in {} s",
                    retry_in.as_secs()
                )
            }
        }
    }
}

fn seconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_millis() as f64 / 1e3)
}

fn option_seconds<S: Serializer>(
    duration: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    duration
        .map(|d| d.as_millis() as f64 / 1e3)
        .serialize(serializer)
}

fn option_millis<S: Serializer>(
    duration: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    duration
        .map(|d| d.as_micros() as f64 / 1e3)
        .serialize(serializer)
}
