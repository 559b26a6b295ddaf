//! What somebody does to the pins of an interface, told as it happens.

use std::io::{self, Write as _};
use std::path::Path;

use natpunch_os::private;
use netlink_packet_core::NlasIterator;
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket};
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;

use super::PinMethod;
use super::forwarder::socket_path;
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

/// Tells when somebody may have taken away the pins of an interface.
pub struct PinWatch(Watched);

enum Watched {
    /// nftables says what is done to the table.
    Table(TableWatch),
    /// The forwarder says nothing until it ends.
    Forwarder(UnixStream),
}

impl PinWatch {
    /// Begins to watch, in the network namespace of the calling thread. `None`: the pins go with
    /// the device only, whose end is seen anyway. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// The kernel has no nftables, the process lacks the privilege (CAP_NET_ADMIN), or there is no
    /// forwarder.
    pub fn open(
        method: PinMethod,
        interface: &str,
        runtime_dir: &Path,
    ) -> io::Result<Option<Self>> {
        let watched = match method {
            PinMethod::Nftables => Watched::Table(TableWatch::open(interface)?),
            PinMethod::Device => return Ok(None),
            PinMethod::Forwarder => {
                let mut stream =
                    std::os::unix::net::UnixStream::connect(socket_path(runtime_dir, interface))?;
                private::check_listener(&stream)?;
                stream.set_nonblocking(true)?;
                stream.write_all(b"watch=1\n\n")?;
                Watched::Forwarder(UnixStream::from_std(stream)?)
            }
        };
        Ok(Some(Self(watched)))
    }

    /// Waits for the next change. It may be one of our own: whoever waits compares. Dropping the
    /// future loses nothing.
    ///
    /// # Errors
    /// Nothing is told any more; for pins of a forwarder: it has ended.
    pub async fn changed(&mut self) -> io::Result<()> {
        match &mut self.0 {
            Watched::Table(table) => table.changed().await,
            Watched::Forwarder(stream) => {
                let ended = stream.read(&mut [0]).await;
                Err(ended.err().unwrap_or(io::ErrorKind::UnexpectedEof.into()))
            }
        }
    }
}

/// Tells when something was done to the table of an interface, by whomever.
struct TableWatch {
    socket: TokioSocket,
    table: String,
}

impl TableWatch {
    fn open(interface: &str) -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
        socket.socket_mut().bind_auto()?;
        socket.socket_mut().add_membership(NFNLGRP_NFTABLES)?;
        Ok(Self {
            socket,
            table: table_name(interface),
        })
    }

    async fn changed(&mut self) -> io::Result<()> {
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
