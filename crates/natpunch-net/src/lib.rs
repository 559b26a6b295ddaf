//! Raw sockets, packet filters and link watching for natpunch.
//!
//! [`RawPort`] speaks from the UDP port that WireGuard owns, [`SourcePorts`] from others beside it;
//! [`RestingPeers`] hears what WireGuard sends to peers without a path; [`LinkWatch`] tells when the way out of this host changes; [`now`] is the clock that both the core
//! and the shell live by; [`surroundings`] names the networks that this host is in; [`place`](fn@place) names the one
//! that it leaves by; [`echo`] asks
//! hosts whether they answer; [`IcmpErrors`] hears what routers say; [`Inbox`] and [`Outbox`] move datagrams of ordinary sockets by the
//! batch.

mod batch;
mod clock;
mod ear;
mod echo;
mod error;
mod filter;
mod icmp;
mod link;
mod netlink;
mod packet;
mod place;
mod raw;
mod readable;
mod response;
mod rest;
mod route;
mod snapshot;
mod source;
mod source_ports;
mod surroundings;

pub use batch::{BATCH, Ends, Inbox, Outbox, want_local_address};
pub use clock::{Stopwatch, now};
pub use echo::{echo, echo_once};
pub use error::NetError;
pub use icmp::IcmpErrors;
pub use link::{Change, LinkWatch, host_network};
pub use place::{Place, place};
pub use raw::{MAX_SOURCES, RawPort, Received};
pub use response::{SentResponse, SentResponses};
pub use rest::{Rested, RestingPeers};
pub use source_ports::{Probed, SourcePorts};
pub use surroundings::{Lan, Surroundings, surroundings};
