//! WireGuard's datagrams from one socket to another, many at a time.

use std::cell::RefCell;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::rc::Rc;
use std::time::Duration;

use natpunch_types::canonical;
use nix::sys::socket::{
    ControlMessage, MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmsg,
};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// Datagrams that are read at once.
const BATCH: usize = 32;
/// The longest datagram; longer ones are dropped.
const LONGEST: usize = 16 << 10;
/// The kernel refuses more bytes in one call, its headers included.
const MOST_AT_ONCE: usize = 65_000;
/// Pause after a failed receive, so that a lasting error does not spin.
const PAUSE: Duration = Duration::from_millis(10);

/// Room for what is read at once. All sockets of the process share one.
pub(super) struct Batch {
    bytes: Vec<u8>,
    /// The place, length and sender of what was read.
    read: Vec<(usize, usize, Option<SocketAddr>)>,
    /// Cleared when an interface turns out not to do segmentation offload.
    segmentation: bool,
}

impl Default for Batch {
    fn default() -> Self {
        Self {
            bytes: vec![0; BATCH * LONGEST],
            read: Vec::with_capacity(BATCH),
            segmentation: true,
        }
    }
}

/// Where the datagrams of one direction come from and go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// From WireGuard, which the socket is connected to, to this address.
    Out(SocketAddr),
    /// From this address, and from no other, to WireGuard.
    In(SocketAddr),
}

/// Carries datagrams until it is dropped.
pub(super) async fn carry(
    from: Rc<UdpSocket>,
    to: Rc<UdpSocket>,
    batch: Rc<RefCell<Batch>>,
    way: impl Fn() -> Way,
) {
    loop {
        let carried = match from.readable().await {
            Ok(()) => from.try_io(Interest::READABLE, || {
                let batch = &mut *batch.borrow_mut();
                batch.receive(&from)?;
                batch.send(&to, way());
                Ok(())
            }),
            Err(error) => Err(error),
        };
        match carried {
            Ok(()) => tokio::task::yield_now().await,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // WireGuard does not listen at this moment, or the kernel is out of memory.
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

impl Batch {
    fn receive(&mut self, socket: &UdpSocket) -> io::Result<()> {
        self.read.clear();
        let slots = self.bytes.chunks_exact_mut(LONGEST);
        let mut slots: Vec<_> = slots.map(|slot| [IoSliceMut::new(slot)]).collect();
        let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(BATCH, None);
        let messages = recvmmsg(
            socket.as_raw_fd(),
            &mut headers,
            slots.iter_mut(),
            MsgFlags::MSG_DONTWAIT,
            None,
        )?;
        for (place, message) in messages.enumerate() {
            if !message.flags.contains(MsgFlags::MSG_TRUNC) {
                let sender = message.address.as_ref().and_then(address);
                self.read.push((place, message.bytes, sender));
            }
        }
        Ok(())
    }

    /// Sends on what goes this way. What can't be sent is lost, as a network might have lost it.
    fn send(&mut self, socket: &UdpSocket, way: Way) {
        let destination = match way {
            Way::Out(remote) => Some(SockaddrStorage::from(remote)),
            Way::In(_) => None,
        };
        let datagrams: Vec<&[u8]> = self
            .read
            .iter()
            .filter(|(.., sender)| match way {
                Way::Out(_) => true,
                Way::In(remote) => *sender == Some(remote),
            })
            .filter_map(|(place, length, _)| {
                let start = place * LONGEST;
                self.bytes.get(start..start + length)
            })
            .filter(|datagram| is_wireguards(datagram))
            .collect();
        let mut rest = datagrams.as_slice();
        while !rest.is_empty() {
            let count = if self.segmentation {
                run_length(rest)
            } else {
                1
            };
            let (run, after) = rest.split_at_checked(count).unwrap_or((rest, &[]));
            rest = after;
            let Err(error) = send_run(socket, run, destination.as_ref()) else {
                continue;
            };
            if run.len() > 1 {
                // EIO: the way out does no checksum offload, so never segments.
                if error.raw_os_error() == Some(libc::EIO) {
                    self.segmentation = false;
                }
                for one in run {
                    let _ = send_run(socket, &[one], destination.as_ref());
                }
            }
        }
    }
}

/// Sends datagrams of one size (the last may be shorter) in one call.
fn send_run(
    socket: &UdpSocket,
    run: &[&[u8]],
    destination: Option<&SockaddrStorage>,
) -> io::Result<()> {
    let slices: Vec<IoSlice<'_>> = run.iter().map(|datagram| IoSlice::new(datagram)).collect();
    let size = run.first().map_or(0, |first| first.len());
    let size = u16::try_from(size).map_err(|_| io::ErrorKind::InvalidInput)?;
    let segments = [ControlMessage::UdpGsoSegments(&size)];
    let control: &[_] = if run.len() > 1 { &segments } else { &[] };
    let flags = MsgFlags::MSG_DONTWAIT;
    sendmsg(socket.as_raw_fd(), &slices, control, flags, destination)?;
    Ok(())
}

/// How many datagrams at the start one call can send.
fn run_length(datagrams: &[&[u8]]) -> usize {
    let Some(first) = datagrams.first() else {
        return 0;
    };
    let mut bytes = first.len();
    let mut count = 1;
    for datagram in datagrams.iter().skip(1) {
        bytes += datagram.len();
        if datagram.len() > first.len() || bytes > MOST_AT_ONCE {
            break;
        }
        count += 1;
        if datagram.len() < first.len() {
            break;
        }
    }
    count
}

/// Whether it is a message of WireGuard's: its type, 1 to 4, in four bytes (whitepaper, 5.4).
fn is_wireguards(datagram: &[u8]) -> bool {
    matches!(datagram, [1..=4, 0, 0, 0, ..])
}

/// On a socket for both families, IPv4 comes as mapped IPv6.
fn address(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| SocketAddr::from(*v4));
    let found = v4.or_else(|| address.as_sockaddr_in6().map(|v6| (*v6).into()));
    // The scope of a link-local sender is no part of a pin.
    found.map(|found| {
        let found = canonical(found);
        SocketAddr::new(found.ip(), found.port())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_messages_of_wireguards_pass() {
        for good in [&[1, 0, 0, 0][..], &[4, 0, 0, 0, 9]] {
            assert!(is_wireguards(good));
        }
        for bad in [
            &[][..],
            &[1, 0, 0],
            &[0, 0, 0, 0],
            &[5, 0, 0, 0],
            &[4, 0, 1, 0],
        ] {
            assert!(!is_wireguards(bad), "{bad:?}");
        }
    }

    #[test]
    fn a_run_is_of_one_size_and_its_last_datagram_may_be_shorter() {
        let datagram = [4; LONGEST];
        let run = |sizes: &[usize]| {
            let datagrams: Vec<_> = sizes.iter().map(|size| &datagram[..*size]).collect();
            run_length(&datagrams)
        };
        assert_eq!(run(&[100, 100, 60, 100]), 3);
        assert_eq!(run(&[100, 101]), 1);
        assert_eq!(run(&[9_000; 32]), MOST_AT_ONCE / 9_000);
        assert_eq!(run(&[]), 0);
    }
}
