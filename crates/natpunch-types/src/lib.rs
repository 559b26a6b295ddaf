//! The words of natpunch, shared by every other crate: keys, addresses, candidates and where they
//! came from; and the primitives of which there is one each: a moment ([`Time`]), a rate limit
//! ([`RateBudget`]), a replay window ([`ReplayWindow`]), the shares of a table ([`Usage`]).
//!
//! There is one [`Candidate`] type in the whole tree, and one canonical form of a transport
//! address, so that a comparison can never miss because of an encoding (`::ffff:10.0.0.1` and
//! `10.0.0.1` are the same address).

mod address;
mod candidate;
mod connect;
mod consent;
mod device;
mod discovery;
mod help;
mod icmp;
mod initiation;
mod keepalive;
mod key;
mod limits;
mod password;
mod path;
mod pins;
mod relay;
mod sync;
mod tag;
mod text;
mod time;
mod upstream;
pub mod wire;

pub use address::host::{HostAddress, HostNetwork, LinkRole, Route};
pub use address::nat64::{IPV4_ONLY_NAME, Nat64};
pub use address::network::{Network, Site};
pub use address::stream::{FORWARDER, is_forwarder, is_stream_address, stream_address};
pub use address::{
    AddressClass, canonical, canonical_ip, classify, embedded_v4, is_global, is_mesh_lan,
    is_special,
};
pub use candidate::{Candidate, CandidateKind, InstanceName, Origin};
pub use connect::Connect;
pub use consent::Consent;
pub use device::{DevicePeer, DeviceSnapshot};
pub use discovery::{
    Abilities, Ask, Interest, News, OwnAddressKind, PEER_MESSAGE_MAX, Running, SealedRecord,
};
pub use help::{Help, split_help, with_help};
pub use icmp::{IcmpError, IcmpKind};
pub use initiation::{
    INITIATION_LEN, RESPONSE_LEN, RESTING_NETWORK, RESTING_PORT, is_initiation, is_initiation_for,
    is_response, is_response_for, is_resting, resting_endpoint, sign_handshake,
};
pub use keepalive::keepalive_for;
pub use key::{KeyError, PeerKey, PresharedKey, SecretKey, derive_listen_port};
pub use limits::{
    Bucket, PunchSpec, Rate, RateBudget, ReplayWindow, Usage, backoff, jitter, spread,
};
pub use password::{Password, PasswordError};
pub use path::{LocalSocket, MAX_SOURCE_PORTS, PathId, SOURCE_PORTS, Travel};
pub use pins::Pins;
pub use relay::{Mapping, RelayPolicy, RelayUse};
pub use sync::lock;
pub use tag::{PairTag, ProbeTag, RecordTag};
pub use text::{Quoted, is_unprintable};
pub use time::Time;
pub use upstream::Upstream;

/// The first four bytes of every probe between nodes. As the little-endian word that WireGuard
/// reads it is no message type of WireGuard (1 to 4), so that a device drops a probe at once; its
/// first bit pair (01) is not that of STUN (00).
pub const PROBE_MAGIC: [u8; 4] = *b"NPch";

/// The first three bytes of every datagram of natpunch's own rendezvous and relay; the last is the
/// version. As the word that WireGuard reads it is no message type; its first bit pair (11) is not
/// that of STUN.
pub const RENDEZVOUS_MAGIC: [u8; 3] = [0xd4, b'n', 1];

/// Every probe between nodes has exactly this many bytes, except those that measure how large
/// datagrams may be.
pub const PROBE_LEN: usize = 192;

/// The second four bytes of a probe that measures how large datagrams may be on a path: version 1,
/// form 2.
pub const SIZE_PROBE_FORM: [u8; 4] = [1, 2, 0, 0];

/// So many bytes such a probe may have, as the payload of UDP.
pub const SIZE_PROBE_LEN: std::ops::RangeInclusive<usize> = 96..=2_048;
