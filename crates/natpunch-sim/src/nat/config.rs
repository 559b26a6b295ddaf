//! What a NAT may do, by the axes of RFC 4787 and what routers do beside it.

use std::time::Duration;

use natpunch_types::IcmpKind;

/// The lowest port that a NAT hands out.
pub(super) const LOWEST_PORT: u16 = 1024;

/// To how many destinations one external port is reused (RFC 4787, 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mapping {
    /// One external port for all destinations ("cone").
    EndpointIndependent,
    /// One external port per destination address.
    AddressDependent,
    /// One external port per destination address and port ("symmetric").
    AddressAndPortDependent,
}

/// Whose packets a mapping lets in (RFC 4787, 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Filtering {
    /// Anybody's.
    EndpointIndependent,
    /// Those from an address to which the mapping has sent.
    AddressDependent,
    /// Those from an address and port to which the mapping has sent.
    AddressAndPortDependent,
}

/// Which external port a new mapping gets (RFC 4787, 4.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allocation {
    /// The internal port; a random one if it is taken.
    Preserve,
    /// The internal port, which a neighbour has, too: two WireGuard nodes of one mesh with one
    /// listen port behind one Linux router. Towards their servers the neighbour's session is in the
    /// way, and ours gets a random port. Any other destination sees the internal one. The port is
    /// the one that sends first.
    Contended {
        /// The first three bytes of the servers' IPv4 addresses.
        servers: [u8; 3],
    },
    /// Any free port in this range.
    Random {
        /// First port.
        low: u16,
        /// Last port.
        high: u16,
    },
    /// The last port plus this step.
    Sequential {
        /// Distance from one mapping to the next.
        step: u16,
    },
    /// A random port in one block of this size: a carrier's deterministic share (RFC 7422).
    Block {
        /// Ports of the block.
        size: u16,
    },
}

/// The outside addresses of a NAT (RFC 4787, 4.1: "IP address pooling").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pool {
    /// One.
    Single,
    /// So many consecutive ones; an inside host keeps the one that it got (REQ-2).
    Paired(u8),
    /// So many consecutive ones; each new mapping gets any of them.
    Arbitrary(u8),
}

impl Pool {
    /// How many addresses there are.
    pub const fn size(self) -> u8 {
        match self {
            Self::Single => 1,
            Self::Paired(size) | Self::Arbitrary(size) => size,
        }
    }
}

/// How long state lives, and what keeps it alive (RFC 4787, 4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timers {
    /// Lifetime of a session that has seen packets in one direction only.
    pub one_way: Duration,
    /// Lifetime of a session that has seen both directions.
    pub two_way: Duration,
    /// Whether packets from inside refresh a session (RFC 4787 says that they must).
    pub refresh_outbound: bool,
    /// Whether packets from outside refresh a session (RFC 4787 says that they may).
    pub refresh_inbound: bool,
}

impl Timers {
    /// Linux conntrack: 30 s and 120 s, refreshed from both sides.
    pub const LINUX: Self = Self {
        one_way: Duration::from_secs(30),
        two_way: Duration::from_secs(120),
        refresh_outbound: true,
        refresh_inbound: true,
    };
}

/// What happens to a packet from outside that no session or mapping lets in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsolicited {
    /// Nothing is remembered.
    Drop,
    /// Nothing is remembered, and the sender is told by ICMP.
    Reject(IcmpKind),
    /// It is taken as the router's own, and so leaves a session that occupies the very five-tuple
    /// that an inside host is about to use: Linux with an accepting INPUT chain on the outside
    /// ("poison").
    CreateState,
    /// After more than so many of one address within a second, nothing from this address is let in
    /// for a while, not even answers: a router's guard against floods.
    Blacklist {
        /// Packets of one second that are still borne.
        per_second: u32,
        /// How long the address is shut out.
        duration: Duration,
    },
}

/// What happens to a new session when the table is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenFull {
    /// It is refused.
    Refuse,
    /// The session that would end first makes room, in use or not.
    EvictAny,
    /// The one of those that were never answered makes room (Linux `early_drop`); if all were, the
    /// new one is refused.
    EvictUnanswered,
}

/// The behaviour of one NAT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NatConfig {
    /// False: a stateful firewall. Addresses and ports stay what they are, and mapping, allocation
    /// and pool mean nothing.
    pub translates: bool,
    /// Mapping behaviour.
    pub mapping: Mapping,
    /// Filtering behaviour.
    pub filtering: Filtering,
    /// Port allocation.
    pub allocation: Allocation,
    /// Outside addresses.
    pub pool: Pool,
    /// Lifetimes.
    pub timers: Timers,
    /// Treatment of the unexpected.
    pub unsolicited: Unsolicited,
    /// Whether an ICMP error that comes in ends the session that it is about (RFC 4787, REQ-12:
    /// must not).
    pub icmp_closes: bool,
    /// Whether inside hosts reach each other by their outside addresses (RFC 4787, 6).
    pub hairpin: bool,
    /// Most sessions at one time.
    pub table_size: usize,
    /// What becomes of one more.
    pub when_full: WhenFull,
    /// New mappings a second of hosts that are not simulated, which a sequence of ports shows.
    pub background: u32,
}

impl NatConfig {
    /// A NAT with these behaviours, Linux timers, and a drop policy.
    pub const fn new(mapping: Mapping, filtering: Filtering, allocation: Allocation) -> Self {
        Self {
            translates: true,
            mapping,
            filtering,
            allocation,
            pool: Pool::Single,
            timers: Timers::LINUX,
            unsolicited: Unsolicited::Drop,
            icmp_closes: false,
            hairpin: false,
            table_size: 4096,
            when_full: WhenFull::Refuse,
            background: 0,
        }
    }

    /// Linux `masquerade` behind a dropping INPUT chain: the home router.
    pub const fn home() -> Self {
        Self::new(
            Mapping::EndpointIndependent,
            Filtering::AddressAndPortDependent,
            Allocation::Preserve,
        )
    }

    /// Linux `masquerade random`: the usual "symmetric" NAT.
    pub const fn symmetric() -> Self {
        Self::new(
            Mapping::AddressAndPortDependent,
            Filtering::AddressAndPortDependent,
            Allocation::Random {
                low: LOWEST_PORT,
                high: u16::MAX,
            },
        )
    }

    /// Everything independent of the endpoint.
    pub const fn full_cone() -> Self {
        Self::new(
            Mapping::EndpointIndependent,
            Filtering::EndpointIndependent,
            Allocation::Preserve,
        )
    }

    /// A stateful firewall without translation: of a network, or of a host.
    pub const fn firewall() -> Self {
        Self {
            translates: false,
            ..Self::home()
        }
    }

    /// The same, accepting on its outside ([`Unsolicited::CreateState`]).
    pub const fn poisoned(self) -> Self {
        self.with_unsolicited(Unsolicited::CreateState)
    }

    /// The same, with this treatment of the unexpected.
    pub const fn with_unsolicited(self, unsolicited: Unsolicited) -> Self {
        Self {
            unsolicited,
            ..self
        }
    }

    /// The same, with these outside addresses.
    pub const fn with_pool(self, pool: Pool) -> Self {
        Self { pool, ..self }
    }

    /// The same, with hairpinning.
    pub const fn with_hairpin(self) -> Self {
        Self {
            hairpin: true,
            ..self
        }
    }
}

/// Why a NAT did not forward a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// No mapping has this port.
    NoMapping,
    /// The mapping does not let this sender in.
    Filtered,
    /// The session table or the port range is full.
    TableFull,
    /// An inside host sent to the NAT's outside address, and the NAT does not hairpin.
    NoHairpin,
    /// The sender is shut out ([`Unsolicited::Blacklist`]).
    Blacklisted,
}
