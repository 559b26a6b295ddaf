//! The device's UDP sockets: dual stack, kept over a reconfiguration, with segmentation offload in
//! both directions.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gotatun::packet::{Packet, PacketBufPool};
use gotatun::udp::socket::{SockOpt, UdpSocket};
use gotatun::udp::{UdpRecv, UdpSend, UdpTransportFactory, UdpTransportFactoryParams};
use natpunch_os::allow_fragments;
use natpunch_types::{canonical, lock};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt,
    sockopt,
};
use tokio::io::Interest;
use tokio::sync::watch;

use super::evidence::{Witness, clean};
use super::pinned::{Pinned, Pins, any_readable, changed, socket_to};

/// Room for bursts while the device is scheduled out; the same on both sides.
const SOCKET_BUFFER: usize = 7 << 20;
/// The kernel refuses more segments per call (UDP_MAX_SEGMENTS).
const MAX_SEGMENTS: usize = 64;
/// The largest UDP payload, with a margin for headers.
const MAX_BATCH_BYTES: usize = 65_000;

/// Makes the sockets, and hands out the one that is there when gotatun reconfigures: binding the
/// same port again while the old socket is still being dropped would fail and leave the device
/// without any.
#[derive(Clone, Default)]
pub(super) struct Sockets {
    cached: Arc<Mutex<Option<Socket>>>,
    pub(super) witness: Witness,
    pub(super) pins: Pins,
}

impl Sockets {
    /// Binds `port` before gotatun is told of it, so that a failure changes nothing.
    pub(super) fn prepare(&self, port: u16, fwmark: u32) -> io::Result<()> {
        let mut cached = lock(&self.cached);
        if !cached.as_ref().is_some_and(|socket| socket.has_port(port)) {
            *cached = Some(self.socket(port, fwmark)?);
        }
        Ok(())
    }

    fn socket(&self, port: u16, fwmark: u32) -> io::Result<Socket> {
        Ok(Socket {
            inner: open(port, fwmark)?,
            segmentation: Arc::new(AtomicBool::new(true)),
            witness: self.witness.clone(),
            pinned: self.pins.watch(),
        })
    }
}

impl UdpTransportFactory for Sockets {
    type Send = Socket;
    type Recv = Socket;

    async fn bind(&mut self, params: &UdpTransportFactoryParams) -> io::Result<(Socket, Socket)> {
        let mark = params.fwmark.unwrap_or(0);
        let mut cached = lock(&self.cached);
        let socket = match cached.as_ref() {
            Some(socket) if params.port == 0 || socket.has_port(params.port) => socket.clone(),
            _ => cached.insert(self.socket(params.port, mark)?).clone(),
        };
        socket.set_fwmark(mark)?;
        self.pins.set_fwmark(mark)?;
        Ok((socket.clone(), socket))
    }
}

/// A UDP socket on a port, for both address families.
pub(super) fn open(port: u16, fwmark: u32) -> io::Result<UdpSocket> {
    let options = SockOpt {
        fwmark: None,
        recv_buffer_size: None,
        send_buffer_size: None,
        only_v6: Some(false),
    };
    let socket = match UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port).into(), options) {
        // A kernel without IPv6.
        Err(e)
            if matches!(
                e.raw_os_error(),
                Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)
            ) =>
        {
            UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port).into(), options)?
        }
        other => other?,
    };
    let fd = socket.as_fd();
    allow_fragments(&fd)?;
    // Each of these makes it faster; none is needed.
    let _ = setsockopt(&fd, sockopt::RcvBufForce, &SOCKET_BUFFER);
    let _ = setsockopt(&fd, sockopt::SndBufForce, &SOCKET_BUFFER);
    let _ = socket.enable_udp_gro();
    if fwmark != 0 {
        setsockopt(&fd, sockopt::Mark, &fwmark)?;
    }
    Ok(socket)
}

/// The device's way to the network: WireGuard's port, and those of its pins.
#[derive(Clone)]
pub(super) struct Socket {
    inner: UdpSocket,
    /// Cleared when an interface turns out not to do segmentation offload.
    segmentation: Arc<AtomicBool>,
    witness: Witness,
    pinned: watch::Receiver<Arc<Pinned>>,
}

impl Socket {
    fn pinned(&self) -> Arc<Pinned> {
        Arc::clone(&self.pinned.borrow())
    }

    fn has_port(&self, port: u16) -> bool {
        self.inner
            .local_addr()
            .is_ok_and(|address| address.port() == port)
    }

    /// Sends packets of one size (the last may be shorter) to one destination in one call.
    async fn send_segments(
        &self,
        pinned: &Pinned,
        packets: &[(Packet, SocketAddr)],
    ) -> io::Result<()> {
        let Some((first, destination)) = packets.first() else {
            return Ok(());
        };
        let socket = socket_to(pinned, *destination).unwrap_or(&self.inner);
        let size = u16::try_from(first.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let address = SockaddrStorage::from(*destination);
        let slices: Vec<IoSlice<'_>> = packets
            .iter()
            .map(|(packet, _)| IoSlice::new(packet))
            .collect();
        let control = [ControlMessage::UdpGsoSegments(&size)];
        let control = if packets.len() > 1 {
            control.as_slice()
        } else {
            &[]
        };
        let fd = socket.socket().as_raw_fd();
        let send = || {
            sendmsg(fd, &slices, control, MsgFlags::MSG_DONTWAIT, Some(&address))
                .map_err(io::Error::from)
        };
        socket
            .socket()
            .async_io(Interest::WRITABLE, send)
            .await
            .map(|_| ())
    }
}

/// The length of the run at the start of `packets` that one call can send.
fn run_length(packets: &[(Packet, SocketAddr)]) -> usize {
    let Some((first, destination)) = packets.first() else {
        return 0;
    };
    let size = first.len();
    let mut bytes = size;
    let mut count = 1;
    for (packet, to) in packets.iter().skip(1).take(MAX_SEGMENTS - 1) {
        bytes += packet.len();
        if to != destination || packet.len() > size || packet.is_empty() || bytes > MAX_BATCH_BYTES
        {
            break;
        }
        count += 1;
        if packet.len() < size {
            break;
        }
    }
    count
}

impl UdpSend for Socket {
    type SendManyBuf = ();

    async fn send_to(&self, packet: Packet, destination: SocketAddr) -> io::Result<()> {
        self.witness.sending(&packet);
        let (pinned, destination) = (self.pinned(), clean(destination));
        let socket = socket_to(&pinned, destination).unwrap_or(&self.inner);
        socket.send_to(packet, destination).await
    }

    fn max_number_of_packets_to_send(&self) -> usize {
        2 * MAX_SEGMENTS
    }

    async fn send_many_to(
        &self,
        _: &mut (),
        packets: &mut Vec<(Packet, SocketAddr)>,
    ) -> io::Result<()> {
        for (packet, destination) in packets.iter_mut() {
            self.witness.sending(packet);
            *destination = clean(*destination);
        }
        let pinned = self.pinned();
        let mut rest = packets.as_slice();
        while !rest.is_empty() {
            let count = if self.segmentation.load(Ordering::Relaxed) {
                run_length(rest)
            } else {
                1
            };
            let (run, after) = rest.split_at_checked(count).unwrap_or((rest, &[]));
            rest = after;
            let Err(error) = self.send_segments(&pinned, run).await else {
                continue;
            };
            if run.len() > 1 {
                // EIO: the way out does no checksum offload, so never segments. Others are about
                // this run.
                if error.raw_os_error() == Some(libc::EIO) {
                    self.segmentation.store(false, Ordering::Relaxed);
                }
                for one in run {
                    let _ = self.send_segments(&pinned, std::slice::from_ref(one)).await;
                }
            }
        }
        packets.clear();
        Ok(())
    }

    fn local_addr(&self) -> io::Result<Option<SocketAddr>> {
        self.inner.local_addr().map(Some)
    }

    fn set_fwmark(&self, mark: u32) -> io::Result<()> {
        UdpSend::set_fwmark(&self.inner, mark)
    }
}

/// Pause after a failed receive, so that a lasting error does not spin.
const RECEIVE_PAUSE: Duration = Duration::from_millis(10);
/// Reads per wake-up: enough to empty a burst, few enough to let others run.
const READS_PER_WAKE: usize = 32;

/// Room for one read: up to 64 datagrams of one sender that the kernel joined (UDP_GRO).
pub(super) struct ReceiveBuffer {
    data: Vec<u8>,
    control: Vec<u8>,
}

impl Default for ReceiveBuffer {
    fn default() -> Self {
        Self {
            data: vec![0; 65_536],
            control: nix::cmsg_space!(i32),
        }
    }
}

impl ReceiveBuffer {
    /// Reads what is there, as far as others need not wait for it: of a pin's socket what its remote
    /// address sent.
    fn read_burst(
        &mut self,
        socket: &UdpSocket,
        only_from: Option<SocketAddr>,
        pool: &PacketBufPool,
        packets: &mut Vec<(Packet, SocketAddr)>,
    ) -> io::Result<()> {
        let socket = socket.socket();
        let fd = socket.as_raw_fd();
        let before = packets.len();
        let mut outcome = Ok(());
        for _ in 0..READS_PER_WAKE {
            outcome = socket.try_io(Interest::READABLE, || self.read(fd, pool, packets));
            if outcome.is_err() {
                break;
            }
        }
        if let Some(remote) = only_from {
            let mut place = 0;
            packets.retain(|(_, source)| {
                place += 1;
                place <= before || SocketAddr::new(source.ip(), source.port()) == remote
            });
        }
        match outcome {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(()),
        }
    }

    /// One read: appends its datagrams to `packets`.
    fn read(
        &mut self,
        fd: std::os::fd::RawFd,
        pool: &PacketBufPool,
        packets: &mut Vec<(Packet, SocketAddr)>,
    ) -> io::Result<()> {
        let mut slices = [IoSliceMut::new(&mut self.data)];
        let message = recvmsg::<SockaddrStorage>(
            fd,
            &mut slices,
            Some(&mut self.control),
            MsgFlags::MSG_DONTWAIT,
        )?;
        let segment = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::UdpGroSegments(size) => {
                usize::try_from(size).ok().filter(|size| *size > 0)
            }
            _ => None,
        });
        let (bytes, source) = (
            message.bytes,
            message.address.as_ref().and_then(source_address),
        );
        let Some((source, data)) = source.zip(self.data.get(..bytes)) else {
            return Ok(());
        };
        for datagram in data.chunks(segment.unwrap_or(bytes).max(1)) {
            let mut packet = pool.get();
            let buffer = packet.buf_mut();
            buffer.clear();
            buffer.extend_from_slice(datagram);
            packets.push((packet, source));
        }
        Ok(())
    }
}

/// On a socket for both families, IPv4 comes as mapped IPv6.
fn source_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address
        .as_sockaddr_in()
        .map(|address| SocketAddr::from(*address));
    v4.or_else(|| address.as_sockaddr_in6().map(|address| (*address).into()))
        .map(canonical)
}

/// gotatun's own receiver reads a hundred messages at a time, which costs most where packets come
/// one by one; with UDP_GRO a single message already carries a burst.
impl UdpRecv for Socket {
    type RecvManyBuf = ReceiveBuffer;

    async fn recv_from(&mut self, pool: &mut PacketBufPool) -> io::Result<(Packet, SocketAddr)> {
        let (packet, mut source) = self.inner.recv_from(pool).await?;
        self.witness
            .mark(std::iter::once((&packet[..], &mut source)));
        Ok((packet, source))
    }

    /// gotatun takes any error for the end of the device; on an unconnected socket there is no such
    /// error.
    async fn recv_many_from(
        &mut self,
        buffer: &mut ReceiveBuffer,
        pool: &mut PacketBufPool,
        packets: &mut Vec<(Packet, SocketAddr)>,
    ) -> io::Result<()> {
        loop {
            let pinned = Arc::clone(&self.pinned.borrow_and_update());
            let mut outcome = buffer.read_burst(&self.inner, None, pool, packets);
            for (remote, socket) in pinned.iter() {
                outcome = outcome.and(buffer.read_burst(socket, Some(*remote), pool, packets));
            }
            if !packets.is_empty() {
                break;
            }
            if let Err(error) = outcome {
                tracing::debug!(%error, "receive");
                tokio::time::sleep(RECEIVE_PAUSE).await;
            }
            tokio::select! {
                _ = self.inner.socket().readable() => {}
                () = any_readable(&pinned) => {}
                () = changed(&mut self.pinned) => {}
            }
        }
        let received = packets.iter_mut();
        self.witness
            .mark(received.map(|(packet, source)| (&packet[..], source)));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;

    fn packets(sizes: &[usize]) -> Vec<(Packet, SocketAddr)> {
        let to = "127.0.0.1:9".parse().unwrap();
        sizes
            .iter()
            .map(|size| (Packet::from_bytes(BytesMut::zeroed(*size)), to))
            .collect()
    }

    #[test]
    fn a_run_is_of_one_size_and_its_last_packet_may_be_shorter() {
        assert_eq!(run_length(&packets(&[100, 100, 60, 100])), 3);
        assert_eq!(run_length(&packets(&[100, 101])), 1);
        assert_eq!(run_length(&packets(&[100; 200])), MAX_SEGMENTS);
        assert_eq!(run_length(&packets(&[1_400; 64])), MAX_BATCH_BYTES / 1_400);
        let mut two = packets(&[100, 100]);
        two[1].1 = "127.0.0.1:10".parse().unwrap();
        assert_eq!(run_length(&two), 1);
    }

    #[tokio::test]
    async fn a_receiver_gets_every_datagram_whole_and_survives_an_empty_one() {
        let mut sockets = Sockets::default();
        let (_, mut receiver) = sockets
            .bind(&UdpTransportFactoryParams {
                addr: None,
                port: 0,
                fwmark: None,
            })
            .await
            .unwrap();
        let port = receiver.local_addr().unwrap().unwrap().port();
        let sender = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        // Larger than a buffer of the pool, too: a reassembled fragment.
        let sizes = [0, 1, 1_400, 1_400, 20, 9_000];
        for size in sizes {
            sender
                .send_to(&vec![size as u8; size], ("127.0.0.1", port))
                .unwrap();
        }
        let (mut buffer, mut pool, mut packets) =
            (ReceiveBuffer::default(), PacketBufPool::new(8), Vec::new());
        while packets.len() < sizes.len() - 1 {
            let mut more = Vec::new();
            receiver
                .recv_many_from(&mut buffer, &mut pool, &mut more)
                .await
                .unwrap();
            packets.extend(more.into_iter().filter(|(packet, _)| !packet.is_empty()));
        }
        for ((packet, from), size) in packets.iter().zip(&sizes[1..]) {
            assert_eq!(packet.len(), *size);
            assert_eq!(clean(*from), sender.local_addr().unwrap());
        }
    }

    #[tokio::test]
    async fn a_reconfiguration_never_loses_the_socket() {
        let mut sockets = Sockets::default();
        let params = |port| UdpTransportFactoryParams {
            addr: None,
            port,
            fwmark: None,
        };
        let (send, _receive) = sockets.bind(&params(0)).await.unwrap();
        let port = send.local_addr().unwrap().unwrap().port();
        for _ in 0..20 {
            sockets.bind(&params(port)).await.unwrap();
        }
    }
}
