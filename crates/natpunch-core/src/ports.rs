//! The source ports beside WireGuard's on which this node receives, and for which peer.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU16;
use std::sync::Arc;

use natpunch_types::{MAX_SOURCE_PORTS, PeerKey, SOURCE_PORTS};
use rand_core::RngCore;

/// While no more than so many are open, one of an earlier run is opened again.
const MAX_REOPENED: usize = 64;

/// Whether this host can join another source port to WireGuard's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Pinning {
    /// The shell has not said.
    #[default]
    Unknown,
    /// It can.
    Possible,
    /// It can't, for this reason.
    Impossible(String),
}

/// All source ports, each once, in an order that a seed names and that does not look like a scan.
pub(crate) fn series(seed: u16) -> impl Iterator<Item = NonZeroU16> {
    /// It has no divisor in common with the number of ports (2^3 * 3^4 * 7).
    const STEP: u32 = 1_109;
    let (low, high) = (*SOURCE_PORTS.start(), *SOURCE_PORTS.end());
    let span = u32::from(high - low) + 1;
    let port = move |n| low + ((u32::from(seed) + n * STEP) % span) as u16;
    (0..span).map(port).filter_map(NonZeroU16::new)
}

/// The source ports in use. One port serves one peer at a time, so that what arrives at it, and
/// what a NAT has mapped for it, concerns one pair only.
#[derive(Debug, Default)]
pub(crate) struct SourcePorts {
    pub(crate) pinning: Pinning,
    owners: BTreeMap<NonZeroU16, PeerKey>,
    /// Ports that the shell can't use. At most as many as there are.
    refused: BTreeSet<NonZeroU16>,
    changed: bool,
}

impl SourcePorts {
    /// Whether paths from these ports are of any use.
    pub(crate) fn are_of_use(&self) -> bool {
        self.pinning == Pinning::Possible
    }

    /// Opens so many ports for a peer, at random: fewer if there is no room for them, and none
    /// where they would be of no use.
    pub(crate) fn open(
        &mut self,
        peer: PeerKey,
        count: usize,
        rng: &mut impl RngCore,
    ) -> Vec<NonZeroU16> {
        if !self.are_of_use() {
            return Vec::new();
        }
        let room = MAX_SOURCE_PORTS.saturating_sub(self.owners.len());
        let opened: Vec<NonZeroU16> = series(rng.next_u32() as u16)
            .filter(|port| self.is_free(*port))
            .take(count.min(room))
            .collect();
        self.owners.extend(opened.iter().map(|port| (*port, peer)));
        self.changed |= !opened.is_empty();
        opened
    }

    /// Opens the first ports of a [`series`] for a peer: all of them, or none.
    pub(crate) fn open_series(
        &mut self,
        peer: PeerKey,
        count: usize,
        seed: u16,
    ) -> Option<Vec<NonZeroU16>> {
        let room = MAX_SOURCE_PORTS.saturating_sub(self.owners.len()) >= count;
        let ports: Vec<NonZeroU16> = series(seed).take(count).collect();
        let all_free = ports.iter().all(|port| self.is_free(*port));
        if !(self.are_of_use() && room && all_free) {
            return None;
        }
        self.owners.extend(ports.iter().map(|port| (*port, peer)));
        self.changed = true;
        Some(ports)
    }

    fn is_free(&self, port: NonZeroU16) -> bool {
        !self.owners.contains_key(&port) && !self.refused.contains(&port)
    }

    /// Keeps a port open that is in use already.
    pub(crate) fn hold(&mut self, port: NonZeroU16, peer: PeerKey) {
        let room = self.owners.len() < MAX_SOURCE_PORTS;
        if SOURCE_PORTS.contains(&port.get()) && (room || self.owners.contains_key(&port)) {
            self.changed |= self.owners.insert(port, peer) != Some(peer);
        }
    }

    /// Opens a port that a path of an earlier run left from. A few only: searches need the others.
    pub(crate) fn reopen(&mut self, port: NonZeroU16, peer: PeerKey) -> bool {
        if self.is_of(port, &peer) {
            return true;
        }
        let has_room = self.owners.len() < MAX_REOPENED;
        let is_free = SOURCE_PORTS.contains(&port.get()) && self.is_free(port);
        let opens = self.are_of_use() && has_room && is_free;
        if opens {
            self.owners.insert(port, peer);
            self.changed = true;
        }
        opens
    }

    /// Closes the ports of a peer but those.
    pub(crate) fn close(&mut self, peer: &PeerKey, keep: impl Fn(NonZeroU16) -> bool) {
        let before = self.owners.len();
        self.owners
            .retain(|port, owner| owner != peer || keep(*port));
        self.changed |= self.owners.len() != before;
    }

    /// The shell can't use a port; whose it was.
    pub(crate) fn refuse(&mut self, port: NonZeroU16) -> Option<PeerKey> {
        if SOURCE_PORTS.contains(&port.get()) {
            self.refused.insert(port);
        }
        let owner = self.owners.remove(&port);
        self.changed |= owner.is_some();
        owner
    }

    /// Whether the port is open for this peer.
    pub(crate) fn is_of(&self, port: NonZeroU16, peer: &PeerKey) -> bool {
        self.owners.get(&port) == Some(peer)
    }

    /// The open ports, if they are others than when this was asked last.
    pub(crate) fn take_changed(&mut self) -> Option<Arc<[NonZeroU16]>> {
        std::mem::take(&mut self.changed).then(|| self.owners.keys().copied().collect())
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng as _;

    use super::*;

    fn ports() -> (SourcePorts, ChaCha20Rng) {
        let ports = SourcePorts {
            pinning: Pinning::Possible,
            ..SourcePorts::default()
        };
        (ports, ChaCha20Rng::from_seed([7; 32]))
    }

    fn key(n: u8) -> PeerKey {
        PeerKey::from_bytes([n; 32])
    }

    #[test]
    fn no_more_ports_are_open_than_the_bound_and_each_belongs_to_one_peer() {
        let (mut ports, mut rng) = ports();
        let first = ports.open(key(1), 250, &mut rng);
        let second = ports.open(key(2), 250, &mut rng);
        assert_eq!((first.len(), second.len()), (250, 6));
        assert!(first.iter().all(|port| !second.contains(port)));
        let in_range = |port: &NonZeroU16| SOURCE_PORTS.contains(&port.get());
        assert!(first.iter().chain(&second).all(in_range));
        ports.close(&key(1), |port| Some(&port) == first.first());
        assert_eq!(ports.take_changed().map(|open| open.len()), Some(7));
        assert_eq!(ports.take_changed(), None);
    }

    #[test]
    fn a_port_that_the_shell_refuses_is_not_opened_again() {
        let (mut ports, mut rng) = ports();
        let Some(port) = ports.open(key(1), 1, &mut rng).first().copied() else {
            panic!("no port");
        };
        assert_eq!(ports.refuse(port), Some(key(1)));
        for _ in 0..100 {
            assert!(!ports.open(key(1), 200, &mut rng).contains(&port));
            ports.close(&key(1), |_| false);
        }
    }

    #[test]
    fn no_port_is_opened_before_the_shell_says_that_it_can_be_joined_to_wireguards() {
        let (mut ports, mut rng) = ports();
        for pinning in [
            Pinning::Unknown,
            Pinning::Impossible("no nftables".to_owned()),
        ] {
            ports.pinning = pinning;
            assert!(ports.open(key(1), 9, &mut rng).is_empty());
        }
    }
}
