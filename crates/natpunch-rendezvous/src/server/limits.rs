//! What a server may use, and how much memory that is at most.

use super::relays::Relays;
use crate::relay::Budget;

/// Bounds of a server. At each of them new ones are refused; what is there is never evicted for
/// them. Of sessions, mailboxes, bytes and relays, one IPv4 /24 or IPv6 /48 never has more than is
/// left for all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Registered clients. A node that uses IPv4 and IPv6 counts twice.
    pub sessions: usize,
    /// Those of one IPv4 address or IPv6 /64.
    pub sessions_per_network: usize,
    /// Mailboxes.
    pub mailboxes: usize,
    /// Mailboxes written and watched by one client.
    pub mailboxes_per_client: usize,
    /// Records and wishes of the clients of one IPv4 address or IPv6 /64.
    pub mailboxes_per_network: usize,
    /// Bytes of all blobs.
    pub bytes: usize,
    /// Pairs where a side wants a relay.
    pub relays: usize,
    /// Those of one client.
    pub relays_per_client: usize,
    /// Those of the clients of one IPv4 address or IPv6 /64, each counted.
    pub relays_per_network: usize,
    /// Messages of one session in a second.
    pub messages_per_second: u32,
    /// Hellos worked on in a second, four X25519 operations each. From an eighth of it on,
    /// addresses must be proven by a cookie first.
    pub hellos_per_second: u32,
    /// Bytes that go to one client in a second: of records, and as many of all else.
    pub client_bytes_per_second: u64,
    /// Bytes that go to all clients of one IPv4 /24 or IPv6 /48 in a second.
    pub network_bytes_per_second: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sessions: 65_536,
            sessions_per_network: 4_096,
            mailboxes: 262_144,
            mailboxes_per_client: 4_096,
            mailboxes_per_network: 65_536,
            bytes: 64 << 20,
            relays: 8_192,
            relays_per_client: 256,
            relays_per_network: 2_048,
            messages_per_second: 256,
            hellos_per_second: 2_000,
            client_bytes_per_second: 64 << 10,
            network_bytes_per_second: 4 << 20,
        }
    }
}

impl Limits {
    /// What a session takes, at most and with its share of all maps.
    const SESSION: usize = 1_024;
    /// What a mailbox takes besides its blob, with four watchers that are to be told of it.
    const MAILBOX: usize = 1_280;
    /// What does not grow with the others: queues, tables, and the meetings of a few seconds.
    const FIXED: usize = 32 << 20;

    /// Bytes of memory that a server with these limits keeps at most.
    pub fn memory(&self) -> usize {
        let queues = if self.relays > 0 {
            Budget::MAX_QUEUED as usize
        } else {
            0
        };
        self.sessions
            .saturating_mul(Self::SESSION)
            .saturating_add(self.mailboxes.saturating_mul(Self::MAILBOX))
            .saturating_add(self.relays.saturating_mul(Relays::PAIR))
            .saturating_add(self.bytes)
            .saturating_add(queues)
            .saturating_add(Self::FIXED)
    }
}
