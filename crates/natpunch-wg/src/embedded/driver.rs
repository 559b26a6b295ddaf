//! gotatun, driven through its own interface: every change of a live peer is made in place.

use std::collections::{HashMap, HashSet};
use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use gotatun::device::configure::DeviceWrite;
use gotatun::device::{Device, DeviceBuilder, Error, Peer};
use gotatun::x25519::{PublicKey, StaticSecret};
use ipnet::IpNet;
use natpunch_types::{DevicePeer, PeerKey, PresharedKey, SecretKey, canonical};
use nix::errno::Errno;
use nix::time::{ClockId, clock_gettime};
use tokio::sync::watch;

use super::tun::{Tun, TunRecv, TunSend};
use super::udp::Sockets;
use crate::device::{PeerAction, PeerChange};
use crate::uapi::codec::{GetAnswer, SetRequest};

type Transports = (Sockets, TunSend, TunRecv);

/// The WireGuard device of this process.
pub(super) struct Driver {
    device: Device<Transports>,
    sockets: Sockets,
    tun: Tun,
    mtu: watch::Sender<u16>,
    clock: Clock,
    handshakes: HashMap<PeerKey, Duration>,
    /// Bytes of keepalives received, which gotatun does not count.
    keepalives: HashMap<PeerKey, u64>,
}

impl Driver {
    /// Builds the device. It opens no socket before it gets a private key.
    pub(super) async fn start(tun: Tun, mtu: watch::Sender<u16>) -> Result<Self, Error> {
        let sockets = Sockets::default();
        let (send, receive) = tun.halves();
        let device = DeviceBuilder::new()
            .with_udp(sockets.clone())
            .with_ip_pair(send, receive)
            .build()
            .await?;
        let (handshakes, keepalives) = (HashMap::new(), HashMap::new());
        Ok(Self {
            device,
            sockets,
            tun,
            mtu,
            clock: Clock::start(),
            handshakes,
            keepalives,
        })
    }

    /// The state, with the private key.
    pub(super) async fn get(&mut self) -> GetAnswer {
        self.follow_mtu();
        let (private, port, fwmark, peers) = self
            .device
            .read(async |device| {
                let private = device
                    .private_key()
                    .map(|key| SecretKey::from_bytes(key.to_bytes()));
                (
                    private,
                    device.listen_port(),
                    device.fwmark(),
                    device.peers().await,
                )
            })
            .await;
        let mut answer = GetAnswer::default();
        let mut seen = HashMap::with_capacity(peers.len());
        let (mut keepalives, mut endpoints) = (
            HashMap::with_capacity(peers.len()),
            HashSet::with_capacity(peers.len()),
        );
        for entry in peers {
            let key = PeerKey::from_bytes(*entry.peer.public_key.as_bytes());
            let handshake = self.handshake(&key, entry.stats.last_handshake);
            seen.extend(handshake.map(|time| (key, time)));
            let endpoint = entry.peer.endpoint.map(canonical);
            endpoints.extend(endpoint);
            let kept_alive = endpoint.map_or(0, |endpoint| self.sockets.1.take(endpoint));
            let kept_alive = self.keepalives.get(&key).copied().unwrap_or_default()
                + handshake.map_or(0, |_| kept_alive);
            keepalives.insert(key, kept_alive);
            if let Some(preshared) = entry.peer.preshared_key {
                answer
                    .state
                    .preshared
                    .insert(key, PresharedKey::from_bytes(preshared));
            }
            let mut allowed_ips: Vec<IpNet> = entry
                .peer
                .allowed_ips
                .iter()
                .filter_map(|net| IpNet::new(net.ip(), net.prefix()).ok())
                .map(|net| net.trunc())
                .collect();
            allowed_ips.sort_unstable();
            answer.state.snapshot.peers.push(DevicePeer {
                key,
                endpoint,
                last_handshake: handshake,
                rx_bytes: entry.stats.rx_bytes as u64 + kept_alive,
                tx_bytes: entry.stats.tx_bytes as u64,
                persistent_keepalive: entry
                    .peer
                    .keepalive
                    .map(|seconds| Duration::from_secs(seconds.into())),
                allowed_ips,
                has_preshared_key: entry.peer.preshared_key.is_some(),
            });
        }
        self.handshakes = seen;
        self.keepalives = keepalives;
        self.sockets.1.retain(&endpoints);
        let snapshot = &mut answer.state.snapshot;
        snapshot.peers.sort_unstable_by_key(|peer| peer.key);
        snapshot.listen_port = port;
        snapshot.fwmark = fwmark.unwrap_or(0);
        snapshot.public_key = private.as_ref().map(SecretKey::public_key);
        answer.private_key = private;
        answer
    }

    /// gotatun tells ages, and forgets them when a session expires. Told is a time that changes
    /// only with a handshake, and that stays, as in the kernel.
    fn handshake(&self, key: &PeerKey, age: Option<Duration>) -> Option<Duration> {
        /// Two readings of one handshake differ by the time between reading the age and the clock.
        const JITTER: Duration = Duration::from_millis(500);
        let known = self.handshakes.get(key).copied();
        let Some(age) = age else { return known };
        let time = self.clock.now().saturating_sub(age);
        Some(
            known
                .filter(|known| known.abs_diff(time) < JITTER)
                .unwrap_or(time),
        )
    }

    /// Makes the changes in order. The errors are those of the protocol: an errno.
    pub(super) async fn set(&mut self, request: SetRequest) -> Result<(), Errno> {
        self.follow_mtu();
        let change = request.change;
        let (has_key, mark) = self
            .device
            .read(async |device| (device.private_key().is_some(), device.fwmark()))
            .await;
        if !has_key && change.private_key.is_none() && !change.peers.is_empty() {
            // gotatun cannot hold peers without a key.
            return Err(Errno::EINVAL);
        }
        if let Some(port) = change.listen_port {
            let mark = change.fwmark.or(mark).unwrap_or(0);
            self.sockets.prepare(port, mark).map_err(errno)?;
        }
        for peer in change
            .peers
            .iter()
            .filter(|peer| peer.action == PeerAction::Remove)
        {
            self.handshakes.remove(&peer.key);
            self.keepalives.remove(&peer.key);
        }
        if request.replace_peers {
            self.handshakes.clear();
            self.keepalives.clear();
        }
        // Before the change: the first sign of life on a new path may come before the next reading.
        change
            .peers
            .iter()
            .filter_map(|peer| peer.endpoint)
            .for_each(|endpoint| self.sockets.1.count(endpoint));
        let kicked = kicked(&change.peers);
        let outcome = self
            .device
            .write(async move |device| {
                if let Some(key) = &change.private_key {
                    device
                        .set_private_key(StaticSecret::from(*key.expose()))
                        .await;
                }
                if let Some(port) = change.listen_port {
                    device.set_listen_port(port);
                }
                if let Some(mark) = change.fwmark {
                    device.set_fwmark(mark)?;
                }
                if request.replace_peers {
                    device.clear_peers();
                }
                for peer in &change.peers {
                    change_peer(device, peer).await;
                }
                let taken = change
                    .peers
                    .iter()
                    .filter(|p| p.action != PeerAction::Remove);
                release_taken(device, taken.collect()).await;
                Ok::<(), Error>(())
            })
            .await;
        match outcome {
            Ok(Ok(())) => {}
            Ok(Err(error)) | Err(error) => return Err(device_errno(error)),
        }
        for key in kicked {
            // The initiation goes out at once; that this then waits for the answer is nothing to
            // us.
            let _ =
                tokio::time::timeout(Duration::from_millis(5), self.device.force_handshake(&key))
                    .await;
        }
        Ok(())
    }

    fn follow_mtu(&self) {
        if let Ok(mtu) = self.tun.mtu() {
            self.mtu
                .send_if_modified(|known| std::mem::replace(known, mtu) != mtu);
        }
    }
}

/// Peers that are removed and added again: they shall shake hands now, not at the next tick of
/// gotatun's timer.
fn kicked(peers: &[PeerChange]) -> Vec<PublicKey> {
    let again = |pair: &[PeerChange]| match pair {
        [old, new] if old.key == new.key && old.action == PeerAction::Remove => {
            (new.action == PeerAction::Upsert && new.endpoint.is_some())
                .then(|| PublicKey::from(*new.key.as_bytes()))
        }
        _ => None,
    };
    peers.windows(2).filter_map(again).collect()
}

type Write<'a> = DeviceWrite<'a, Transports>;

fn network(net: &IpNet) -> Option<ipnetwork::IpNetwork> {
    ipnetwork::IpNetwork::new(net.network(), net.prefix_len()).ok()
}

async fn change_peer(device: &mut Write<'_>, change: &PeerChange) {
    let key = PublicKey::from(*change.key.as_bytes());
    if change.action == PeerAction::Remove {
        device.remove_peer(&key).await;
        return;
    }
    let preshared = change
        .preshared_key
        .as_ref()
        .map(|key| key.as_ref().map(|key| *key.expose()));
    let keepalive = change
        .persistent_keepalive
        .map(|seconds| (seconds != 0).then_some(seconds));
    let changed = device
        .modify_peer(&key, |peer| {
            if let Some(preshared) = preshared {
                peer.set_preshared_key(preshared);
            }
            if let Some(endpoint) = change.endpoint {
                peer.set_endpoint(Some(endpoint));
            }
            if let Some(keepalive) = keepalive {
                peer.set_keepalive(keepalive);
            }
            if change.replace_allowed_ips {
                peer.clear_allowed_ips();
            }
            peer.add_allowed_ips(change.allowed_ips.iter().filter_map(network));
        })
        .await;
    if !changed && change.action == PeerAction::Upsert {
        let mut peer =
            Peer::new(key).with_allowed_ips(change.allowed_ips.iter().filter_map(network));
        peer.endpoint = change.endpoint;
        peer.preshared_key = preshared.flatten();
        peer.keepalive = keepalive.flatten();
        device.add_peer(peer);
    }
}

/// A network belongs to the last peer that asked for it. gotatun routes it so, but goes on listing
/// it on the peer that had it before; there it is taken off the list.
async fn release_taken(device: &mut Write<'_>, changes: Vec<&PeerChange>) {
    let owners: HashMap<IpNet, PeerKey> = changes
        .iter()
        .flat_map(|p| p.allowed_ips.iter().map(|net| (net.trunc(), p.key)))
        .collect();
    if owners.is_empty() {
        return;
    }
    let mut stale = Vec::new();
    for entry in device.peers().await {
        let key = PeerKey::from_bytes(*entry.peer.public_key.as_bytes());
        let (lost, kept): (Vec<_>, Vec<_>) = entry.peer.allowed_ips.into_iter().partition(|net| {
            IpNet::new(net.ip(), net.prefix())
                .is_ok_and(|net| owners.get(&net.trunc()).is_some_and(|o| *o != key))
        });
        if !lost.is_empty() {
            stale.push((entry.peer.public_key, kept));
        }
    }
    for (key, kept) in stale {
        device
            .modify_peer(&key, |peer| {
                peer.clear_allowed_ips();
                peer.add_allowed_ips(kept);
            })
            .await;
    }
}

fn errno(error: io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

fn device_errno(error: Error) -> Errno {
    match error {
        Error::IoError(e) | Error::Bind(e, _) => errno(e),
        _ => Errno::EIO,
    }
}

/// Time since the epoch that no step of the wall clock changes and that counts suspended time.
struct Clock {
    epoch_at_boot: Duration,
}

impl Clock {
    fn start() -> Self {
        let wall = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            epoch_at_boot: wall.saturating_sub(boot_time()),
        }
    }

    fn now(&self) -> Duration {
        self.epoch_at_boot + boot_time()
    }
}

fn boot_time() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}
