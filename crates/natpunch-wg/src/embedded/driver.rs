//! gotatun, driven through its own interface: every change of a live peer is made in place.

use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::task::Poll;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use gotatun::device::configure::{DeviceWrite, PeerStats};
use gotatun::device::{Device, DeviceBuilder, Error, Peer};
use gotatun::x25519::{PublicKey, StaticSecret};
use ipnet::IpNet;
use natpunch_os::boot_time;
use natpunch_types::{DevicePeer, PeerKey, PresharedKey, SecretKey};
use nix::errno::Errno;
use tokio::sync::watch;

use super::evidence::{self, Shown};
use super::kicks::{Followed, Kicks, Woken};
use super::tun::{Tun, TunRecv, TunSend};
use super::udp::Sockets;
use crate::device::{PeerAction, PeerChange};
use crate::pins::PinSet;
use crate::uapi::codec::{GetAnswer, SetRequest};

/// How often [`Driver::tick`] has something to do.
const TICK: Duration = Duration::from_secs(1);
/// How long is waited for initiations to leave; what answers them is nothing to us.
const LEAVING: Duration = Duration::from_millis(5);
/// How often is looked whether what a kick is to send has left ...
const KICK_STEP: Duration = Duration::from_millis(50);
/// ... and how many times as long as the looking takes is waited at least.
const KICK_SHARE: u32 = 4;

type Transports = (Sockets, TunSend, TunRecv);

/// The WireGuard device of this process.
pub(super) struct Driver {
    device: Device<Transports>,
    sockets: Sockets,
    tun: Tun,
    mtu: watch::Sender<u16>,
    clock: Clock,
    /// What the peers have proven, which gotatun does not tell.
    shown: HashMap<PeerKey, Shown>,
    /// Peers that a keepalive is on its way to.
    kicks: Kicks,
    /// When the next whole [`Driver::tick`] is due, since boot.
    tick_at: Duration,
    /// Since when peers with a keepalive have no session, or when one was last asked for.
    sessionless: HashMap<PeerKey, Duration>,
    /// Whether any peer may have a keepalive.
    has_keepalives: bool,
}

/// What gotatun says of itself.
struct Reading {
    private: Option<SecretKey>,
    port: u16,
    fwmark: u32,
    peers: Vec<PeerStats>,
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
        Ok(Self {
            device,
            sockets,
            tun,
            mtu,
            clock: Clock::start(),
            shown: HashMap::new(),
            kicks: Kicks::default(),
            tick_at: boot_time() + TICK,
            sessionless: HashMap::new(),
            has_keepalives: false,
        })
    }

    /// Reads the device, and takes over what its peers have shown since the last reading.
    async fn read(&mut self) -> Reading {
        let reading = self
            .device
            .read(async |device| Reading {
                private: device
                    .private_key()
                    .map(|key| SecretKey::from_bytes(key.to_bytes())),
                port: device.listen_port(),
                fwmark: device.fwmark().unwrap_or(0),
                peers: device.peers().await,
            })
            .await;
        let mut shown = HashMap::with_capacity(reading.peers.len());
        for entry in &reading.peers {
            let key = key_of(entry);
            let mut peer = self.shown.get(&key).copied().unwrap_or_default();
            peer.update(
                entry.peer.endpoint,
                entry.stats.rx_bytes as u64,
                &self.sockets.witness,
            );
            shown.insert(key, peer);
        }
        self.shown = shown;
        self.has_keepalives = reading.peers.iter().any(|e| e.peer.keepalive.is_some());
        reading
    }

    /// The state, with the private key.
    pub(super) async fn get(&mut self) -> GetAnswer {
        self.follow_mtu();
        let reading = self.read().await;
        let mut answer = GetAnswer::default();
        for entry in reading.peers {
            let key = key_of(&entry);
            let shown = self.shown.get(&key).copied().unwrap_or_default();
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
                endpoint: evidence::endpoint(entry.peer.endpoint),
                last_handshake: shown.handshake().map(|at| self.clock.since_epoch(at)),
                rx_bytes: shown.received(),
                tx_bytes: entry.stats.tx_bytes as u64,
                persistent_keepalive: entry
                    .peer
                    .keepalive
                    .filter(|_| !self.kicks.is_pulse(&key))
                    .map(|seconds| Duration::from_secs(seconds.into())),
                allowed_ips,
                has_preshared_key: entry.peer.preshared_key.is_some(),
            });
        }
        let snapshot = &mut answer.state.snapshot;
        snapshot.peers.sort_unstable_by_key(|peer| peer.key);
        snapshot.listen_port = reading.port;
        snapshot.fwmark = reading.fwmark;
        snapshot.public_key = reading.private.as_ref().map(SecretKey::public_key);
        answer.private_key = reading.private;
        answer
    }

    /// Makes the changes in order. The errors are those of the protocol: an errno.
    pub(super) async fn set(&mut self, request: SetRequest) -> Result<(), Errno> {
        self.follow_mtu();
        // Also so that what came before the change is never taken for a sign of life after it.
        let reading = self.read().await;
        let mut change = request.change;
        if reading.private.is_none() && change.private_key.is_none() && !change.peers.is_empty() {
            // gotatun cannot hold peers without a key.
            return Err(Errno::EINVAL);
        }
        if let Some(port) = change.listen_port {
            let mark = change.fwmark.unwrap_or(reading.fwmark);
            self.sockets.prepare(port, mark).map_err(errno)?;
        }
        let gone = change
            .peers
            .iter()
            .filter(|p| p.action == PeerAction::Remove);
        for peer in gone {
            self.shown.remove(&peer.key);
        }
        if request.replace_peers {
            self.shown.clear();
            self.kicks = Kicks::default();
        }
        let keepalives = reading
            .peers
            .iter()
            .filter(|entry| entry.peer.keepalive.is_some() && !request.replace_peers)
            .map(key_of)
            .filter(|key| !self.kicks.is_pulse(key))
            .collect();
        let Woken { woken, pulses } = Woken::by(&mut change.peers, keepalives);
        for peer in &change.peers {
            if peer.persistent_keepalive.is_some() || peer.action == PeerAction::Remove {
                self.kicks.forget(&peer.key);
            }
        }
        self.has_keepalives = true;
        let wake = woken.clone();
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
                    change_peer(device, peer, wake.contains(&peer.key)).await;
                }
                let taken = change
                    .peers
                    .iter()
                    .filter(|p| p.action != PeerAction::Remove);
                release_taken(device, taken.collect()).await;
                let all = match wake.is_empty() {
                    true => Vec::new(),
                    false => device.peers().await,
                };
                Ok::<_, Error>(all)
            })
            .await;
        let peers = match outcome {
            Ok(Ok(peers)) => peers,
            Ok(Err(error)) | Err(error) => return Err(device_errno(error)),
        };
        let now = boot_time();
        for entry in &peers {
            let key = key_of(entry);
            if woken.contains(&key) {
                let sent = entry.stats.tx_bytes as u64;
                self.kicks.begin(key, sent, pulses.contains(&key), now);
            }
        }
        self.start_handshakes(woken).await;
        Ok(())
    }

    /// The pins that the device holds.
    pub(super) fn pins(&self) -> PinSet {
        self.sockets.pins.get()
    }

    /// Holds exactly these pins.
    pub(super) async fn set_pins(&mut self, pins: &PinSet) -> Result<(), Errno> {
        let fwmark = self.device.read(async |device| device.fwmark()).await;
        let set = self.sockets.pins.set(pins, fwmark.unwrap_or(0));
        set.map_err(errno)
    }

    /// Does what is due, and says for how long nothing is.
    pub(super) async fn turn(&mut self) -> Duration {
        let began = boot_time();
        self.follow_kicks().await;
        if boot_time() >= self.tick_at {
            self.tick().await;
            self.tick_at = boot_time() + TICK;
        }
        let now = boot_time();
        let until_tick = self.tick_at.saturating_sub(now);
        if self.kicks.is_empty() {
            return until_tick;
        }
        // Reading 10,000 peers takes a while: not most of the time.
        let pause = KICK_STEP.max(now.saturating_sub(began) * KICK_SHARE);
        until_tick.min(pause)
    }

    /// Sees to it that everybody who was kicked hears of us, see [`Kicks`].
    async fn follow_kicks(&mut self) {
        if self.kicks.is_empty() {
            return;
        }
        let peers = self.device.peers().await;
        let peers: HashMap<PeerKey, PeerStats> = peers
            .into_iter()
            .map(|entry| (key_of(&entry), entry))
            .collect();
        let sent = |key: &PeerKey| peers.get(key).map(|entry| entry.stats.tx_bytes as u64);
        let Followed { again, over } = self.kicks.follow(sent, boot_time());
        if again.is_empty() && over.is_empty() {
            return;
        }
        let changed = self.device.write(async move |device| {
            for key in over {
                set_keepalive(device, &key, None).await;
            }
            for key in again {
                // As in `change_peer`: switched on anew it is due at once.
                let keepalive = peers.get(&key).and_then(|entry| entry.peer.keepalive);
                set_keepalive(device, &key, None).await;
                set_keepalive(device, &key, keepalive).await;
            }
        });
        if let Err(error) = changed.await {
            tracing::warn!(%error, "can't switch a keepalive");
        }
    }

    /// What kernel WireGuard does by itself and gotatun does not. There a keepalive that is due
    /// begins a handshake where there is no session, for as long as it takes; gotatun gives up when
    /// a peer has not answered for 90 s (REKEY_ATTEMPT_TIME), and then only something to send wakes
    /// it.
    async fn tick(&mut self) {
        if !self.has_keepalives {
            return;
        }
        let now = boot_time();
        let reading = self.read().await;
        let mut sessionless = HashMap::new();
        let mut due = Vec::new();
        for entry in &reading.peers {
            let Some(interval) = entry.peer.keepalive else {
                continue;
            };
            if entry.stats.last_handshake.is_some() || entry.peer.endpoint.is_none() {
                continue;
            }
            let key = key_of(entry);
            let mut since = self.sessionless.get(&key).copied().unwrap_or(now);
            if now.saturating_sub(since) >= Duration::from_secs(interval.into()) {
                due.push(key);
                since = now;
            }
            sessionless.insert(key, since);
        }
        self.sessionless = sessionless;
        self.start_handshakes(due).await;
    }

    /// Sends an initiation to each of these peers that has no session which is young enough to be
    /// used on, unless one is under way. Returns when they have left.
    async fn start_handshakes(&self, peers: Vec<PeerKey>) {
        let keys: Vec<_> = peers
            .iter()
            .map(|key| PublicKey::from(*key.as_bytes()))
            .collect();
        // Each sends at its first poll, and then waits for the answer.
        let mut handshakes: Vec<_> = keys
            .iter()
            .map(|key| Box::pin(self.device.force_handshake(key)))
            .collect();
        let all = poll_fn(|cx| {
            handshakes.retain_mut(|handshake| handshake.as_mut().poll(cx).is_pending());
            if handshakes.is_empty() {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        });
        let _ = tokio::time::timeout(LEAVING, all).await;
    }

    fn follow_mtu(&self) {
        if let Ok(mtu) = self.tun.mtu() {
            self.mtu
                .send_if_modified(|known| std::mem::replace(known, mtu) != mtu);
        }
    }
}

fn key_of(entry: &PeerStats) -> PeerKey {
    PeerKey::from_bytes(*entry.peer.public_key.as_bytes())
}

type Write<'a> = DeviceWrite<'a, Transports>;

async fn set_keepalive(device: &mut Write<'_>, key: &PeerKey, seconds: Option<u16>) {
    let key = PublicKey::from(*key.as_bytes());
    device
        .modify_peer(&key, |peer| peer.set_keepalive(seconds))
        .await;
}

fn network(net: &IpNet) -> Option<ipnetwork::IpNetwork> {
    ipnetwork::IpNetwork::new(net.network(), net.prefix_len()).ok()
}

/// `wake`: a keepalive that is on is switched off first, so that switching it on sends one.
async fn change_peer(device: &mut Write<'_>, change: &PeerChange, wake: bool) {
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
    if wake && keepalive.flatten().is_some() {
        set_keepalive(device, &change.key, None).await;
    }
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

    /// A time since boot.
    fn since_epoch(&self, at: Duration) -> Duration {
        self.epoch_at_boot + at
    }
}
