//! Sockets of pins: ports beside WireGuard's from which the device sends to one remote address each,
//! and on which it hears that address and no other.

use std::collections::BTreeMap;
use std::future::{Future as _, pending, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::task::Poll;

use gotatun::udp::UdpSend;
use gotatun::udp::socket::UdpSocket;
use natpunch_types::canonical;
use tokio::sync::watch;

use super::udp::open;
use crate::pins::PinSet;

/// The sockets by the remote address that each leads to.
pub(super) type Pinned = BTreeMap<SocketAddr, UdpSocket>;

/// The pins of the device: set by the driver, seen by all of gotatun's senders and receivers.
/// Clones are the same pins.
#[derive(Clone, Default)]
pub(super) struct Pins(watch::Sender<Arc<Pinned>>);

impl Pins {
    /// Holds exactly these pins. A port that stays keeps its socket, and what waits in it. After an
    /// error all is as before.
    pub(super) fn set(&self, pins: &PinSet, fwmark: u32) -> io::Result<()> {
        let before: BTreeMap<NonZeroU16, UdpSocket> = self
            .0
            .borrow()
            .values()
            .filter_map(|socket| Some((port_of(socket)?, socket.clone())))
            .collect();
        let socket = |port: &NonZeroU16| match before.get(port) {
            Some(socket) => Ok(socket.clone()),
            None => open(port.get(), fwmark),
        };
        let pinned: io::Result<Pinned> = pins
            .iter()
            .map(|(remote, port)| Ok((*remote, socket(port)?)))
            .collect();
        self.0.send_replace(Arc::new(pinned?));
        Ok(())
    }

    /// The pins that are held.
    pub(super) fn get(&self) -> PinSet {
        let pinned = self.0.borrow();
        let pin = |(remote, socket): (&SocketAddr, &UdpSocket)| Some((*remote, port_of(socket)?));
        pinned.iter().filter_map(pin).collect()
    }

    /// Takes WireGuard's new mark.
    pub(super) fn set_fwmark(&self, mark: u32) -> io::Result<()> {
        let pinned = Arc::clone(&self.0.borrow());
        pinned
            .values()
            .try_for_each(|socket| UdpSend::set_fwmark(socket, mark))
    }

    pub(super) fn watch(&self) -> watch::Receiver<Arc<Pinned>> {
        self.0.subscribe()
    }
}

fn port_of(socket: &UdpSocket) -> Option<NonZeroU16> {
    NonZeroU16::new(socket.local_addr().ok()?.port())
}

/// The socket of the pin that leads to an address.
pub(super) fn socket_to(pinned: &Pinned, destination: SocketAddr) -> Option<&UdpSocket> {
    if pinned.is_empty() {
        return None;
    }
    let destination = canonical(destination);
    pinned.get(&SocketAddr::new(destination.ip(), destination.port()))
}

/// Waits until any of the sockets may have something.
pub(super) async fn any_readable(pinned: &Pinned) {
    let mut waits: Vec<_> = pinned
        .values()
        .map(|socket| Box::pin(socket.socket().readable()))
        .collect();
    poll_fn(|cx| {
        let is_ready = waits
            .iter_mut()
            .any(|wait| wait.as_mut().poll(cx).is_ready());
        if is_ready {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
}

/// Waits until there are other pins.
pub(super) async fn changed(pins: &mut watch::Receiver<Arc<Pinned>>) {
    if pins.changed().await.is_err() {
        // The device ends.
        pending().await
    }
}
