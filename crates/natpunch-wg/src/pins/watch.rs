//! What somebody does to the table of an interface, told by the kernel as it happens.

use std::io;

use netlink_packet_core::NlasIterator;
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket};

use super::table::table_name;

/// The multicast group of nftables (linux/netfilter/nfnetlink.h).
const NFNLGRP_NFTABLES: u32 = 7;
/// The subsystem number of nftables: the upper byte of a message's type.
const NFNL_SUBSYS_NFTABLES: u16 = 10;
/// A netlink header, and netfilter's own behind it.
const HEADERS: usize = 16 + 4;
/// The name of the table is the first attribute of every object of nftables: `NFTA_TABLE_NAME`,
/// `NFTA_CHAIN_TABLE`, `NFTA_RULE_TABLE`, `NFTA_SET_TABLE`, `NFTA_SET_ELEM_LIST_TABLE`.
const TABLE_OF: u16 = 1;
/// Messages that are read at most before a change is told: removing a table says so for each chain
/// and rule.
const BURST: usize = 64;

/// Tells when something was done to the table of an interface, by whomever.
pub struct PinWatch {
    socket: TokioSocket,
    table: String,
}

impl PinWatch {
    /// Begins to watch, in the network namespace of the calling thread. Must be called within a
    /// tokio runtime.
    ///
    /// # Errors
    /// The kernel has no nftables, or the process lacks the privilege (CAP_NET_ADMIN).
    pub fn open(interface: &str) -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
        socket.socket_mut().bind_auto()?;
        socket.socket_mut().add_membership(NFNLGRP_NFTABLES)?;
        Ok(Self {
            socket,
            table: table_name(interface),
        })
    }

    /// Waits for the next change. It may be one of our own: whoever waits compares. Dropping the
    /// future loses nothing.
    ///
    /// # Errors
    /// The socket is broken.
    pub async fn changed(&mut self) -> io::Result<()> {
        loop {
            let received = self.socket.recv_from_full().await;
            if self.is_ours(received)? {
                break;
            }
        }
        // What belongs to the same change is there already.
        for _ in 0..BURST {
            if self.socket.socket_ref().recv_from_full().is_err() {
                break;
            }
        }
        Ok(())
    }

    /// Whether what was received tells of our table.
    fn is_ours(&self, received: io::Result<(Vec<u8>, SocketAddr)>) -> io::Result<bool> {
        match received {
            // Anything else than the kernel is an imposter.
            Ok((datagram, sender)) => {
                Ok(sender.port_number() == 0 && names_table(&datagram, &self.table))
            }
            // The kernel had more to say than fits: it may have been of our table.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(true),
            Err(error) => Err(error),
        }
    }
}

/// Whether a datagram of netlink has a message about an object of this table.
fn names_table(mut datagram: &[u8], table: &str) -> bool {
    while let Some((length, rest)) = datagram.split_first_chunk::<4>() {
        let length = u32::from_ne_bytes(*length) as usize;
        let Some(message) = datagram
            .get(..length)
            .filter(|message| message.len() >= HEADERS)
        else {
            // The last message of a batch may be a bare header.
            return false;
        };
        let kind = rest
            .first_chunk::<2>()
            .map(|kind| u16::from_ne_bytes(*kind));
        let attributes = message.get(HEADERS..).unwrap_or_default();
        let of_nftables = kind.is_some_and(|kind| kind >> 8 == NFNL_SUBSYS_NFTABLES);
        let named = NlasIterator::new(attributes)
            .map_while(Result::ok)
            .any(|attribute| {
                let name = attribute.value();
                attribute.kind() == TABLE_OF
                    && name.strip_suffix(&[0]).unwrap_or(name) == table.as_bytes()
            });
        if of_nftables && named {
            return true;
        }
        datagram = datagram
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message of nftables (subsystem 10) with its first attribute.
    fn message(kind: u16, name: &str) -> Vec<u8> {
        let mut value = name.as_bytes().to_vec();
        value.push(0);
        let attribute = (4 + value.len()) as u16;
        value.resize(value.len().next_multiple_of(4), 0);
        let length = (HEADERS + 4 + value.len()) as u32;
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend([1, 0, 0, 0]);
        bytes.extend(attribute.to_ne_bytes());
        bytes.extend(TABLE_OF.to_ne_bytes());
        bytes.extend(value);
        bytes
    }

    #[test]
    fn a_change_is_of_the_table_that_it_names() {
        let deleted = NFNL_SUBSYS_NFTABLES << 8 | 2;
        let ours = message(deleted, "natpunch_wg0");
        assert!(names_table(&ours, "natpunch_wg0"));
        assert!(!names_table(&ours, "natpunch_wg"));
        assert!(!names_table(&message(deleted, "filter"), "natpunch_wg0"));
        // Another subsystem: connection tracking.
        assert!(!names_table(
            &message(1 << 8, "natpunch_wg0"),
            "natpunch_wg0"
        ));
        let both = [message(deleted, "filter"), ours.clone()].concat();
        assert!(names_table(&both, "natpunch_wg0"));
        for length in 0..ours.len() {
            names_table(&ours[..length], "natpunch_wg0");
        }
    }
}
