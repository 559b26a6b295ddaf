//! Kernel WireGuard by generic netlink.
//!
//! `wireguard-control` reads the device, sets its key, port and mark, and adds and removes peers.
//! What it cannot say is said here with a message of our own: changes of a peer that must not
//! create it (`WGPEER_F_UPDATE_ONLY`), and the removal and addition of a peer in one message. Its
//! dumps return a peer with many networks several times, so peers are merged by key; its messages
//! have room for about a hundred networks, so they are chunked.

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, UNIX_EPOCH};

use ipnet::IpNet;
use natpunch_types::{DevicePeer, DeviceSnapshot, PeerKey, PresharedKey, canonical};
use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_generic::GenlMessage;
use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use netlink_packet_wireguard::{
    WireguardAddressFamily, WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAttribute,
    WireguardCmd, WireguardMessage, WireguardPeer, WireguardPeerAttribute, WireguardPeerFlags,
};
use netlink_sys::{Socket, SocketAddr as NetlinkAddr, protocols::NETLINK_GENERIC};
use wireguard_control::{Backend, DeviceUpdate, InterfaceName, Key, PeerConfigBuilder};

use crate::backend::BackendKind;
use crate::device::{Device, DeviceChange, DeviceState, PeerAction, PeerChange};
use crate::error::WgError;
use crate::links;

/// Allowed IPs per message: `wireguard-control` fails at about 4 KiB a peer, some 120 networks.
const NETS_PER_MESSAGE: usize = 64;
/// Peers per call of `wireguard-control`, which splits into messages by itself.
const PEERS_PER_CALL: usize = 1_000;

/// A kernel WireGuard interface.
#[derive(Debug)]
pub struct KernelDevice {
    name: String,
    interface: InterfaceName,
}

impl KernelDevice {
    /// The interface of this name. It need not exist yet.
    pub fn new(name: &str) -> Result<Self, WgError> {
        let interface = name.parse().map_err(|e| WgError::Invalid {
            name: name.into(),
            problem: format!("not an interface name: {e}"),
        })?;
        Ok(Self {
            name: name.into(),
            interface,
        })
    }

    fn error(&self, what: &str, error: io::Error) -> WgError {
        match error.raw_os_error() {
            Some(libc::ENODEV) => self.gone(),
            _ => WgError::io(format!("{what} {}", self.name), error),
        }
    }

    fn gone(&self) -> WgError {
        WgError::Gone {
            name: self.name.clone(),
            reason: "there is no such link".into(),
        }
    }

    /// `wireguard-control` creates a link that it does not find; a link that somebody removed shall
    /// stay removed.
    fn must_exist(&self) -> Result<(), WgError> {
        links::find(&self.name)?
            .map(|_| ())
            .ok_or_else(|| self.gone())
    }

    fn apply(&self, update: DeviceUpdate) -> Result<(), WgError> {
        update
            .apply(&self.interface, Backend::Kernel)
            .map_err(|e| self.error("configure", e))
    }

    fn settings(&self, change: &DeviceChange) -> Result<(), WgError> {
        let mut update = DeviceUpdate::new();
        if let Some(key) = &change.private_key {
            update = update.set_private_key(to_key(key.expose()));
        }
        if let Some(port) = change.listen_port {
            update = update.set_listen_port(port);
        }
        if let Some(mark) = change.fwmark {
            update = update.set_fwmark(mark);
        }
        update.apply(&self.interface, Backend::Kernel).map_err(|e| {
            match (e.raw_os_error(), change.listen_port) {
                (Some(libc::EADDRINUSE), Some(port)) => WgError::PortInUse(port),
                _ => self.error("configure", e),
            }
        })
    }

    /// Adds and removes by `wireguard-control`.
    fn add_and_remove(&self, peers: &[&PeerChange]) -> Result<(), WgError> {
        for batch in peers.chunks(PEERS_PER_CALL) {
            let update = batch.iter().fold(DeviceUpdate::new(), |update, peer| {
                peer_configs(peer)
                    .into_iter()
                    .fold(update, DeviceUpdate::add_peer)
            });
            self.apply(update)?;
        }
        Ok(())
    }

    /// Sends changes of one peer in one message of our own.
    fn send(&self, peers: &[&PeerChange]) -> Result<(), WgError> {
        let mut message = Vec::new();
        let mut rest = Vec::new();
        for peer in peers {
            let mut chunks = peer.allowed_ips.chunks(NETS_PER_MESSAGE);
            message.push(peer_message(peer, chunks.next().unwrap_or_default()));
            // More of the same peer, as additions that do not create it.
            let more = PeerChange::new(peer.key, PeerAction::Update);
            rest.extend(chunks.map(|nets| peer_message(&more, nets)));
        }
        let mut socket = GenericSocket::open().map_err(|e| self.error("configure", e))?;
        socket
            .set(&self.name, message)
            .map_err(|e| self.error("configure", e))?;
        for peer in rest {
            socket
                .set(&self.name, vec![peer])
                .map_err(|e| self.error("configure", e))?;
        }
        Ok(())
    }
}

impl Device for KernelDevice {
    fn kind(&self) -> BackendKind {
        BackendKind::Kernel
    }

    fn get(&mut self) -> Result<DeviceState, WgError> {
        let device = wireguard_control::Device::get(&self.interface, Backend::Kernel)
            .map_err(|e| self.error("read", e))?;
        Ok(read_device(&device))
    }

    fn configure(&mut self, change: &DeviceChange) -> Result<(), WgError> {
        self.must_exist()?;
        if change.has_settings() {
            self.settings(change)?;
        }
        let mut plain: Vec<&PeerChange> = Vec::new();
        for group in change.peers.chunk_by(|a, b| a.key == b.key) {
            match group {
                [one] if one.action != PeerAction::Update => plain.push(one),
                group => {
                    self.add_and_remove(&std::mem::take(&mut plain))?;
                    self.send(&group.iter().collect::<Vec<_>>())?;
                }
            }
        }
        self.add_and_remove(&plain)
    }
}

fn to_key(bytes: &[u8; 32]) -> Key {
    Key(*bytes)
}

/// One peer as one or more builders: the first carries everything, the others add networks.
fn peer_configs(peer: &PeerChange) -> Vec<PeerConfigBuilder> {
    let key = to_key(peer.key.as_bytes());
    let mut first = PeerConfigBuilder::new(&key);
    if peer.action == PeerAction::Remove {
        return vec![first.remove()];
    }
    if let Some(preshared) = &peer.preshared_key {
        first = match preshared {
            Some(preshared) => first.set_preshared_key(to_key(preshared.expose())),
            None => first.unset_preshared_key(),
        };
    }
    if let Some(endpoint) = peer.endpoint {
        first = first.set_endpoint(endpoint);
    }
    if let Some(interval) = peer.persistent_keepalive {
        first = first.set_persistent_keepalive_interval(interval);
    }
    if peer.replace_allowed_ips {
        first = first.replace_allowed_ips();
    }
    let with = |builder: PeerConfigBuilder, nets: &[IpNet]| {
        nets.iter().fold(builder, |b, net| {
            b.add_allowed_ip(net.network(), net.prefix_len())
        })
    };
    let mut chunks = peer.allowed_ips.chunks(NETS_PER_MESSAGE);
    let first = with(first, chunks.next().unwrap_or_default());
    std::iter::once(first)
        .chain(chunks.map(|nets| with(PeerConfigBuilder::new(&key), nets)))
        .collect()
}

fn peer_message(peer: &PeerChange, nets: &[IpNet]) -> WireguardPeer {
    let mut attributes = vec![WireguardPeerAttribute::PublicKey(*peer.key.as_bytes())];
    let mut flags = match peer.action {
        PeerAction::Upsert => WireguardPeerFlags::empty(),
        PeerAction::Update => WireguardPeerFlags::UpdateOnly,
        PeerAction::Remove => WireguardPeerFlags::RemoveMe,
    };
    if peer.replace_allowed_ips {
        flags |= WireguardPeerFlags::ReplaceAllowedIps;
    }
    attributes.push(WireguardPeerAttribute::Flags(flags));
    if let Some(preshared) = &peer.preshared_key {
        let bytes = preshared.as_ref().map_or([0; 32], |key| *key.expose());
        attributes.push(WireguardPeerAttribute::PresharedKey(bytes));
    }
    if let Some(endpoint) = peer.endpoint {
        attributes.push(WireguardPeerAttribute::Endpoint(endpoint));
    }
    if let Some(interval) = peer.persistent_keepalive {
        attributes.push(WireguardPeerAttribute::PersistentKeepalive(interval));
    }
    if !nets.is_empty() {
        let nets = nets.iter().map(|net| {
            let family = if net.addr().is_ipv4() {
                WireguardAddressFamily::Ipv4
            } else {
                WireguardAddressFamily::Ipv6
            };
            WireguardAllowedIp(vec![
                WireguardAllowedIpAttr::Family(family),
                WireguardAllowedIpAttr::IpAddr(net.network()),
                WireguardAllowedIpAttr::Cidr(net.prefix_len()),
            ])
        });
        attributes.push(WireguardPeerAttribute::AllowedIps(nets.collect()));
    }
    WireguardPeer(attributes)
}

fn read_device(device: &wireguard_control::Device) -> DeviceState {
    let mut state = read_peers(&device.peers);
    state.snapshot.listen_port = device.listen_port.unwrap_or_default();
    state.snapshot.fwmark = device.fwmark.unwrap_or_default();
    // A device without a private key reports a key of zeros.
    let has_key = device
        .private_key
        .as_ref()
        .is_some_and(|key| key.0 != [0; 32]);
    let public_key = device.public_key.as_ref().filter(|_| has_key);
    state.snapshot.public_key = public_key.map(|key| PeerKey::from_bytes(key.0));
    state
}

fn read_peers(parts: &[wireguard_control::PeerInfo]) -> DeviceState {
    let mut state = DeviceState {
        snapshot: DeviceSnapshot::default(),
        preshared: BTreeMap::new(),
    };
    let mut peers: BTreeMap<PeerKey, DevicePeer> = BTreeMap::new();
    for part in parts {
        let key = PeerKey::from_bytes(part.config.public_key.0);
        let peer = peers.entry(key).or_insert_with(|| DevicePeer::new(key));
        // Only the first part of a peer has more than its networks.
        if let Some(preshared) = part
            .config
            .preshared_key
            .as_ref()
            .filter(|key| key.0 != [0; 32])
        {
            peer.has_preshared_key = true;
            state
                .preshared
                .insert(key, PresharedKey::from_bytes(preshared.0));
        }
        peer.endpoint = peer.endpoint.or(part.config.endpoint.map(canonical));
        peer.persistent_keepalive = peer.persistent_keepalive.or(part
            .config
            .persistent_keepalive_interval
            .filter(|seconds| *seconds != 0)
            .map(|seconds| Duration::from_secs(seconds.into())));
        let handshake = part
            .stats
            .last_handshake_time
            .and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        peer.last_handshake = peer
            .last_handshake
            .or(handshake.filter(|age| !age.is_zero()));
        peer.rx_bytes = peer.rx_bytes.max(part.stats.rx_bytes);
        peer.tx_bytes = peer.tx_bytes.max(part.stats.tx_bytes);
        peer.allowed_ips.extend(
            part.config
                .allowed_ips
                .iter()
                .filter_map(|ip| IpNet::new(ip.address, ip.cidr).ok()),
        );
    }
    state.snapshot.peers = peers
        .into_values()
        .map(|mut peer| {
            peer.allowed_ips.sort_unstable();
            peer.allowed_ips.dedup();
            peer
        })
        .collect();
    state
}

/// A generic netlink socket that knows WireGuard's family number.
struct GenericSocket {
    socket: Socket,
    family: u16,
}

impl GenericSocket {
    fn open() -> io::Result<Self> {
        let socket = Socket::new(NETLINK_GENERIC)?;
        socket.connect(&NetlinkAddr::new(0, 0))?;
        let question = GenlMessage::from_payload(GenlCtrl {
            cmd: GenlCtrlCmd::GetFamily,
            nlas: vec![GenlCtrlAttrs::FamilyName("wireguard".into())],
        });
        let mut this = Self { socket, family: 0 };
        for answer in this.exchange(NetlinkMessage::from(question))? {
            this.family = answer
                .payload
                .nlas
                .iter()
                .find_map(|attribute| match attribute {
                    GenlCtrlAttrs::FamilyId(id) => Some(*id),
                    _ => None,
                })
                .unwrap_or(this.family);
        }
        if this.family == 0 {
            Err(io::ErrorKind::NotFound.into())
        } else {
            Ok(this)
        }
    }

    fn set(&mut self, interface: &str, peers: Vec<WireguardPeer>) -> io::Result<()> {
        let mut message = GenlMessage::from_payload(WireguardMessage {
            cmd: WireguardCmd::SetDevice,
            attributes: vec![
                WireguardAttribute::IfName(interface.into()),
                WireguardAttribute::Peers(peers),
            ],
        });
        message.set_resolved_family_id(self.family);
        self.exchange(NetlinkMessage::from(message)).map(|_| ())
    }

    /// Sends one request and reads answers until the acknowledgement.
    fn exchange<P>(
        &mut self,
        mut request: NetlinkMessage<GenlMessage<P>>,
    ) -> io::Result<Vec<GenlMessage<P>>>
    where
        GenlMessage<P>:
            netlink_packet_core::NetlinkSerializable + netlink_packet_core::NetlinkDeserializable,
    {
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK;
        request.finalize();
        let mut bytes = zeroize::Zeroizing::new(vec![0; request.buffer_len()]);
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut answers = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            let mut rest = datagram.as_slice();
            while !rest.is_empty() {
                let message = NetlinkMessage::<GenlMessage<P>>::deserialize(rest)
                    .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?;
                // Messages are padded to four bytes (NLMSG_ALIGN).
                let length = (message.header.length as usize).next_multiple_of(4).max(4);
                rest = rest.get(length..).unwrap_or_default();
                match message.payload {
                    NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                    NetlinkPayload::Error(e) if e.code.is_some() => return Err(e.to_io()),
                    NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok(answers),
                    _ => {}
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(key: u8, nets: &[&str]) -> wireguard_control::PeerInfo {
        let mut info = wireguard_control::PeerInfo::from_public_key(Key([key; 32]));
        info.config.allowed_ips = nets.iter().map(|net| net.parse().unwrap()).collect();
        info
    }

    #[test]
    fn a_peer_that_a_dump_splits_comes_back_once() {
        let mut first = info(1, &["10.0.0.0/24"]);
        first.config.endpoint = Some("[::ffff:192.0.2.1]:7".parse().unwrap());
        first.stats.rx_bytes = 9;
        let parts = [first, info(1, &["10.0.1.0/24"]), info(2, &[])];
        let state = read_peers(&parts);
        assert_eq!(state.snapshot.peers.len(), 2);
        let peer = &state.snapshot.peers[0];
        assert_eq!(peer.allowed_ips.len(), 2);
        assert_eq!(
            (peer.rx_bytes, peer.endpoint),
            (9, Some("192.0.2.1:7".parse().unwrap()))
        );
    }

    #[test]
    fn a_peer_with_hundreds_of_networks_is_chunked() {
        let mut peer = PeerChange::new(PeerKey::from_bytes([1; 32]), PeerAction::Upsert);
        peer.replace_allowed_ips = true;
        peer.allowed_ips = (0..=255)
            .map(|i| format!("10.0.{i}.0/24").parse().unwrap())
            .collect();
        assert_eq!(peer_configs(&peer).len(), 4);
    }
}
