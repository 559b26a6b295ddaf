//! The TUN side of the device: super-packets in, coalesced packets out (`IFF_VNET_HDR`), behind
//! gotatun's traits.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use gotatun::packet::{Ip, Packet, PacketBufPool};
use gotatun::tun::{IpRecv, IpSend, MtuWatcher};
use tokio::sync::{Notify, mpsc, watch};
use tun_rs::{AsyncDevice, GROTable, IDEAL_BATCH_SIZE, VIRTIO_NET_HDR_LEN};

/// Decrypted packets that wait to be written together.
const QUEUE: usize = 512;
/// The most that one read returns: one super-packet and its header.
const READ_BYTES: usize = VIRTIO_NET_HDR_LEN + 65_535;
/// Pause after a failed read or write, so that a lasting error does not spin.
const PAUSE: Duration = Duration::from_millis(20);

/// A TUN interface, and whether it still is one.
#[derive(Clone)]
pub(super) struct Tun {
    device: Arc<AsyncDevice>,
    gone: Arc<Notify>,
    mtu: watch::Receiver<u16>,
}

impl Tun {
    /// Creates the interface, down. It vanishes with the process.
    pub(super) fn create(name: &str) -> io::Result<(Self, watch::Sender<u16>)> {
        let device = tun_rs::DeviceBuilder::new()
            .name(name)
            .offload(true)
            .enable(false)
            .build_async()?;
        let (mtu_sender, mtu) = watch::channel(device.mtu()?);
        Ok((
            Self {
                device: Arc::new(device),
                gone: Arc::new(Notify::new()),
                mtu,
            },
            mtu_sender,
        ))
    }

    /// The MTU that the link has now; padding must not exceed it.
    pub(super) fn mtu(&self) -> io::Result<u16> {
        self.device.mtu()
    }

    /// Ends when the interface was removed.
    pub(super) async fn gone(&self) {
        self.gone.notified().await;
    }

    pub(super) fn halves(&self) -> (TunSend, TunRecv) {
        (TunSend::new(self.clone()), TunRecv::new(self.clone()))
    }

    /// After an error: an interface that was removed ends the device, anything else passes. (A link
    /// that is down, for one, refuses writes.)
    async fn survive(&self, error: &io::Error) -> bool {
        if self.device.name().is_err()
            || matches!(error.raw_os_error(), Some(libc::EBADF | libc::EBADFD))
        {
            self.gone.notify_one();
            return false;
        }
        tokio::time::sleep(PAUSE).await;
        true
    }
}

/// A pooled packet as a buffer for tun-rs.
struct Buffer(Packet);

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl AsMut<[u8]> for Buffer {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

/// Packets from the host.
pub(super) struct TunRecv {
    tun: Tun,
    read: Vec<u8>,
    buffers: Vec<Buffer>,
    sizes: Vec<usize>,
    packets: Vec<Packet<Ip>>,
}

impl TunRecv {
    fn new(tun: Tun) -> Self {
        let sizes = vec![0; IDEAL_BATCH_SIZE];
        Self {
            tun,
            read: vec![0; READ_BYTES],
            buffers: Vec::new(),
            sizes,
            packets: Vec::new(),
        }
    }
}

impl IpRecv for TunRecv {
    async fn recv<'a>(
        &'a mut self,
        pool: &mut PacketBufPool,
    ) -> io::Result<impl Iterator<Item = Packet<Ip>> + Send + 'a> {
        while self.buffers.len() < IDEAL_BATCH_SIZE {
            self.buffers.push(Buffer(pool.get()));
        }
        let device = &self.tun.device;
        let count = loop {
            match device
                .recv_multiple(&mut self.read, &mut self.buffers, &mut self.sizes, 0)
                .await
            {
                Ok(count) => break count,
                Err(error) if self.tun.survive(&error).await => {}
                Err(error) => return Err(error),
            }
        };
        for (Buffer(mut packet), size) in self.buffers.drain(..count).zip(&self.sizes) {
            packet.truncate(*size);
            self.packets.extend(packet.try_into_ip());
        }
        Ok(self.packets.drain(..))
    }

    fn mtu(&self) -> MtuWatcher {
        self.tun.mtu.clone().into()
    }
}

/// Packets to the host. They are written by a task of their own, which coalesces what has queued up
/// meanwhile.
pub(super) struct TunSend(mpsc::Sender<Packet<Ip>>);

impl TunSend {
    fn new(tun: Tun) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE);
        tokio::spawn(write_packets(tun, receiver));
        Self(sender)
    }
}

async fn write_packets(tun: Tun, mut queue: mpsc::Receiver<Packet<Ip>>) {
    let mut table = GROTable::default();
    let mut packets = Vec::new();
    let mut buffers: Vec<BytesMut> = Vec::new();
    while queue.recv_many(&mut packets, IDEAL_BATCH_SIZE).await > 0 {
        let count = packets.len();
        buffers.resize_with(buffers.len().max(count), || {
            BytesMut::with_capacity(READ_BYTES)
        });
        for (buffer, packet) in buffers.iter_mut().zip(packets.drain(..)) {
            buffer.clear();
            buffer.resize(VIRTIO_NET_HDR_LEN, 0);
            buffer.extend_from_slice(&packet.into_bytes());
        }
        let batch = buffers.get_mut(..count).unwrap_or_default();
        if let Err(error) = tun
            .device
            .send_multiple(&mut table, batch, VIRTIO_NET_HDR_LEN)
            .await
            && !tun.survive(&error).await
        {
            return;
        }
    }
}

impl IpSend for TunSend {
    async fn send(&mut self, packet: Packet<Ip>) -> io::Result<()> {
        self.0
            .send(packet)
            .await
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}
