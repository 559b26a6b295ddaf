//! gotatun, driven through its own interface: every change of a live peer is made in place.

use std::collections::{HashMap, HashSet};
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
use super::tun::{Tun, TunRecv, TunSend};
use super::udp::Sockets;
use crate::device::{PeerAction, PeerChange};
use crate::uapi::codec::{GetAnswer, SetRequest};

/// How often [`Driver::tick`] is to be called.
pub(super) const TICK: Duration = Duration::from_secs(1);
/// How long is waited for initiations to leave; what answers them is nothing to us.
const LEAVING: Duration = Duration::from_millis(5);

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
    /// Peers whose keepalive is on only until the next tick, so that one is sent.
    pulses: HashSet<PeerKey>,
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
            pulses: HashSet::new(),
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
                    .filter(|_| !self.pulses.contains(&key))
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
        }
        let keepalives = reading
            .peers
            .iter()
            .filter(|entry| entry.peer.keepalive.is_some() && !request.replace_peers)
            .map(key_of)
            .filter(|key| !self.pulses.contains(key))
            .collect();
        let Woken { woken, pulses } = Woken::by(&mut change.peers, keepalives);
        for peer in &change.peers {
            if peer.persistent_keepalive.is_some() || peer.action == PeerAction::Remove {
                self.pulses.remove(&peer.key);
            }
        }
        self.pulses.extend(pulses);
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
                Ok::<(), Error>(())
            })
            .await;
        match outcome {
            Ok(Ok(())) => {}
            Ok(Err(error)) | Err(error) => return Err(device_errno(error)),
        }
        self.start_handshakes(woken).await;
        Ok(())
    }

    /// What kernel WireGuard does by itself and gotatun does not. There a keepalive that is due
    /// begins a handshake where there is no session, for as long as it takes; gotatun gives up when
    /// a peer has not answered for 90 s (REKEY_ATTEMPT_TIME), and then only something to send wakes
    /// it.
    pub(super) async fn tick(&mut self) {
        let pulses = std::mem::take(&mut self.pulses);
        if !pulses.is_empty() {
            let over = self.device.write(async move |device| {
                for key in pulses {
                    let key = PublicKey::from(*key.as_bytes());
                    device
                        .modify_peer(&key, |peer| peer.set_keepalive(None))
                        .await;
                }
            });
            if let Err(error) = over.await {
                tracing::warn!(%error, "can't switch off a keepalive");
            }
        }
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

/// Peers that shall hear of us now, not at the next tick of gotatun's timer: those that are removed
/// and made anew with an endpoint, and those whose keepalive was off and is switched on, of which
/// the kernel sends one at once.
#[derive(Debug, Default, PartialEq, Eq)]
struct Woken {
    woken: Vec<PeerKey>,
    /// Those of them whose keepalive is switched off again by the same request. gotatun would send
    /// none; so that is left out of the changes, to be done later.
    pulses: Vec<PeerKey>,
}

impl Woken {
    /// `keepalives`: the peers whose keepalive is on.
    fn by(changes: &mut [PeerChange], mut keepalives: HashSet<PeerKey>) -> Self {
        let mut found = Self::default();
        let mut removed = HashSet::new();
        for change in changes {
            let key = change.key;
            if change.action == PeerAction::Remove {
                removed.insert(key);
                keepalives.remove(&key);
                continue;
            }
            let anew = removed.remove(&key) && change.endpoint.is_some();
            let switched_on = match change.persistent_keepalive {
                None => false,
                Some(0) => {
                    let was_on = keepalives.remove(&key);
                    if was_on && found.woken.contains(&key) {
                        change.persistent_keepalive = None;
                        found.pulses.push(key);
                    }
                    false
                }
                Some(_) => keepalives.insert(key),
            };
            if (anew || switched_on) && !found.woken.contains(&key) {
                found.woken.push(key);
            }
        }
        found
    }
}

type Write<'a> = DeviceWrite<'a, Transports>;

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
        device
            .modify_peer(&key, |peer| peer.set_keepalive(None))
            .await;
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

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: PeerKey = PeerKey::from_bytes([7; 32]);

    fn keepalive(seconds: u16) -> PeerChange {
        PeerChange {
            persistent_keepalive: Some(seconds),
            ..PeerChange::new(KEY, PeerAction::Update)
        }
    }

    fn woken(mut changes: Vec<PeerChange>, is_on: bool) -> (bool, bool, Vec<Option<u16>>) {
        let on = is_on.then_some(KEY).into_iter().collect();
        let Woken { woken, pulses } = Woken::by(&mut changes, on);
        let keepalives = changes.iter().map(|c| c.persistent_keepalive).collect();
        (woken == [KEY], pulses == [KEY], keepalives)
    }

    #[test]
    fn a_keepalive_that_is_switched_on_wakes_a_peer_and_one_that_stays_on_does_not() {
        assert_eq!(
            woken(vec![keepalive(25)], false),
            (true, false, vec![Some(25)])
        );
        assert_eq!(
            woken(vec![keepalive(7)], true),
            (false, false, vec![Some(7)])
        );
        assert_eq!(
            woken(vec![keepalive(0)], true),
            (false, false, vec![Some(0)])
        );
        // A pulse of one that is on, and of one that is off: this one lasts until the next tick.
        assert_eq!(
            woken(vec![keepalive(0), keepalive(25)], true),
            (true, false, vec![Some(0), Some(25)])
        );
        assert_eq!(
            woken(vec![keepalive(25), keepalive(0)], false),
            (true, true, vec![Some(25), None])
        );
    }

    #[test]
    fn a_peer_that_is_made_anew_with_an_endpoint_is_woken() {
        let anew = |endpoint: Option<&str>| PeerChange {
            endpoint: endpoint.map(|endpoint| endpoint.parse().unwrap()),
            ..PeerChange::new(KEY, PeerAction::Upsert)
        };
        let remove = PeerChange::remove(KEY);
        assert!(woken(vec![remove.clone(), anew(Some("192.0.2.1:1"))], false).0);
        assert!(!woken(vec![remove, anew(None)], false).0);
        assert!(!woken(vec![anew(Some("192.0.2.1:1"))], false).0);
    }
}
