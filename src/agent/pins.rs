//! Source ports beside WireGuard's, and the pins that join some of them to it: what the core asks
//! for is done here, and what becomes of it is told back.
//!
//! Which pins there shall be is what the last `SetEndpoint` of each peer says. The device's thread
//! brings all of them in force in one step, before it sets the endpoint. Somebody who takes them
//! away is noticed at once ([`PinWatch`]), and with each look for drift.
//!
//! nftables gives WireGuard's packets, and probes that leave from WireGuard's port, the pinned one.
//! Where another process has a socket on the pinned port instead, the agent shares that port by raw
//! sockets, as it does WireGuard's.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use natpunch_net::{IcmpErrors, NetError, Probed, RawPort, SourcePorts};
use natpunch_types::{IcmpError, Nat64, PathId, PeerKey, Pins as News, Travel};
use natpunch_wg::{Interface, PinChoice, PinError, PinMethod, PinSet, PinWatch};
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

use super::{Agent, now};

/// What `status` says of pins.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinStatus {
    /// Whether this host can make pins, as far as it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub possible: Option<bool>,
    /// How they are made: `nftables`; `device`, by the embedded device itself; `forwarder`, by a
    /// process between WireGuard and the pinned port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<PinMethod>,
    /// Why they are not made by nftables, which costs the least.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Why it can't, or why the last change of them failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The pins in force, by the peer's name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub peers: BTreeMap<String, PinnedPath>,
    /// How many source ports beside WireGuard's are open.
    pub source_ports: usize,
    /// How often others took pins away, and they were put back.
    pub healed: u64,
}

/// A pin in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinnedPath {
    /// The source port that WireGuard's packets to the peer are given.
    pub source_port: NonZeroU16,
    /// Where they go.
    pub remote: SocketAddr,
}

/// The ports, and the pins as they are wanted and as they are.
pub(super) struct Pins {
    ports: SourcePorts,
    /// The list that the core asked for last.
    asked: Arc<[NonZeroU16]>,
    /// The path of each peer whose endpoint needs a pin.
    wanted: BTreeMap<PeerKey, PathId>,
    /// What the device's thread has read back.
    in_force: PinSet,
    watch: Option<PinWatch>,
    /// What routers say of packets; `None`: it can't be heard.
    icmp: Option<IcmpErrors>,
    /// It is being tried whether this host can make pins. A program is run for that, which nothing
    /// that the device has to do waits for.
    trial: Option<JoinHandle<Result<PinChoice, PinError>>>,
    /// Whether this host can make pins, and how; `None`: it was not tried yet.
    possible: Option<Result<PinChoice, String>>,
    /// How those in force are made.
    method: PinMethod,
    error: Option<String>,
    healed: u64,
    /// Whether the device's thread was asked to look after them, and has not answered.
    is_checking: bool,
}

/// Which peers the pins belong to that an earlier run has left: those whose endpoint they lead to.
pub(super) fn found(interface: &mut Interface) -> BTreeMap<PeerKey, PathId> {
    if interface.pins().is_empty() {
        return BTreeMap::new();
    }
    let snapshot = match interface.snapshot() {
        Ok(snapshot) => snapshot,
        Err(error) => {
            tracing::warn!(%error, "can't tell whose the pins are that an earlier run has left");
            return BTreeMap::new();
        }
    };
    let pins = interface.pins();
    let path = |endpoint: Option<SocketAddr>| {
        let remote = natpunch_types::canonical(endpoint?);
        Some(PathId::from_port(*pins.get(&remote)?, remote))
    };
    snapshot
        .peers
        .iter()
        .filter_map(|peer| Some((peer.key, path(peer.endpoint)?)))
        .collect()
}

/// Without it, openers go as far as is usual, and a sweep that a router forbids goes on.
fn hear_icmp() -> Option<IcmpErrors> {
    IcmpErrors::open()
        .inspect_err(|error| tracing::debug!(%error, "routers are not heard"))
        .ok()
}

impl Pins {
    /// No ports, and the pins that were found.
    pub(super) fn new(fwmark: u32, method: PinMethod, found: BTreeMap<PeerKey, PathId>) -> Self {
        let mut pins = Self {
            ports: SourcePorts::new(fwmark),
            asked: Arc::from([]),
            wanted: found,
            in_force: PinSet::new(),
            watch: None,
            icmp: hear_icmp(),
            trial: None,
            possible: None,
            method,
            error: None,
            healed: 0,
            is_checking: false,
        };
        pins.in_force = pins.set();
        pins
    }

    /// The next thing that happens to the ports or the pins.
    pub(super) async fn next(&mut self) -> PinEvent {
        let changed = async {
            match &mut self.watch {
                Some(watch) => watch.changed().await,
                None => std::future::pending().await,
            }
        };
        let tried = async {
            match &mut self.trial {
                Some(trial) => trial.await,
                None => std::future::pending().await,
            }
        };
        let icmp = async {
            match &self.icmp {
                Some(icmp) => icmp.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            error = icmp => PinEvent::Icmp(error),
            probed = self.ports.recv() => PinEvent::Probed(probed),
            changed = changed => PinEvent::Changed(changed),
            tried = tried => {
                self.trial = None;
                let failed = |error| Err(PinError::Run(io::Error::other(error)));
                PinEvent::Tried(tried.unwrap_or_else(failed))
            }
        }
    }

    /// Takes what the network translates.
    pub(super) fn set_nat64(&mut self, nat64: Option<Nat64>) {
        self.ports.set_nat64(nat64);
    }

    /// All pins that there shall be.
    fn set(&self) -> PinSet {
        self.wanted
            .values()
            .filter_map(|path| Some((path.remote, path.pin()?)))
            .collect()
    }

    /// Opens the ports that the core asks for but those that a process of pins binds or is about to
    /// bind, which are shared; gives those that can't be opened.
    fn open_ports(&mut self) -> Vec<(NonZeroU16, NetError)> {
        let shared: BTreeSet<NonZeroU16> = match self.method.binds_ports() {
            true => {
                let wanted = self.set();
                wanted
                    .values()
                    .chain(self.in_force.values())
                    .copied()
                    .collect()
            }
            false => BTreeSet::new(),
        };
        self.ports.set(&self.asked, &shared)
    }

    /// Takes the path that a peer shall have; gives all pins if they are others than before.
    pub(super) fn want(&mut self, peer: PeerKey, path: PathId) -> Option<PinSet> {
        let before = match path.pin() {
            Some(_) => self.wanted.insert(peer, path),
            None => self.wanted.remove(&peer),
        };
        (before != path.pin().map(|_| path)).then(|| self.set())
    }

    /// The path by which an answer leaves to a datagram that came to WireGuard's port: through the
    /// pin that leads there, if there is one. One that is asked for counts already, and one that is
    /// to go still does: the device's thread makes the change before it is known here.
    pub(super) fn path_to(&self, remote: SocketAddr) -> PathId {
        let asked = self.wanted.values().find(|path| path.remote == remote);
        let in_force = || Some(PathId::from_port(*self.in_force.get(&remote)?, remote));
        asked
            .copied()
            .or_else(in_force)
            .unwrap_or(PathId::wireguard(remote))
    }

    /// Sends a probe from another port than WireGuard's. Where nftables joins that to WireGuard's,
    /// the probe leaves from WireGuard's and passes through the pin, as WireGuard's packets do: it
    /// then proves the pin, too.
    pub(super) fn send(
        &self,
        raw: &RawPort,
        port: NonZeroU16,
        remote: SocketAddr,
        travel: Travel,
        payload: &[u8],
    ) -> Result<(), NetError> {
        let is_rewritten = self.method == PinMethod::Nftables;
        if is_rewritten && self.in_force.get(&remote) == Some(&port) {
            raw.send(None, remote, travel, payload)
        } else {
            self.ports.send(port, remote, travel, payload)
        }
    }
}

/// What happens to the ports and the pins.
pub(super) enum PinEvent {
    /// A probe came to one of the ports.
    Probed(Probed),
    /// A router says something of a packet; or it can't be heard any more.
    Icmp(Result<IcmpError, NetError>),
    /// Others changed the table of the pins, or the watch over it ended.
    Changed(io::Result<()>),
    /// Whether this host can make pins was tried.
    Tried(Result<PinChoice, PinError>),
}

impl Agent {
    pub(super) fn on_pin_event(&mut self, event: PinEvent) {
        match event {
            PinEvent::Probed(Probed {
                port,
                source,
                payload,
            }) => {
                let path = PathId::from_port(port, source);
                self.mesh.handle_datagram(path, None, &payload, now());
            }
            PinEvent::Icmp(Ok(error)) => self.mesh.handle_icmp(&self.nat64.error(error), now()),
            PinEvent::Icmp(Err(error)) => {
                tracing::warn!(%error, "routers are not heard any more");
                self.pins.icmp = None;
            }
            PinEvent::Tried(result) => self.on_can_pin(result),
            PinEvent::Changed(Ok(())) => self.look_after_pins(),
            PinEvent::Changed(Err(_)) if self.pins.method == PinMethod::Forwarder => {
                // It has ended: another one takes its place.
                self.pins.watch = None;
                self.look_after_pins();
            }
            PinEvent::Changed(Err(error)) => {
                tracing::warn!(
                    %error,
                    "nftables can't be watched; pins that somebody removes are put back within \
                     some seconds only"
                );
                self.pins.watch = None;
            }
        }
    }

    /// Opens the ports that the core asks for, and closes all others.
    pub(super) fn open_source_ports(&mut self, ports: Arc<[NonZeroU16]>) {
        self.pins.asked = ports;
        for (port, error) in self.pins.open_ports() {
            tracing::debug!(port, %error, "a source port can't be used");
            self.mesh.handle_source_port_refused(port, now());
        }
    }

    /// WireGuard's mark is another, or so is its port.
    pub(super) fn reopen_source_ports(&mut self) {
        self.pins.ports = SourcePorts::new(self.node.fwmark);
        self.pins.ports.set_nat64(self.nat64.found);
        self.open_source_ports(Arc::clone(&self.pins.asked));
    }

    /// Tells a core that begins what the shell knows of pins; the rest is asked of the device.
    pub(super) fn tell_pins(&mut self) {
        for (peer, path) in self.pins.wanted.clone() {
            self.mesh.handle_pins(News::Found { peer, path }, now());
        }
        match self.pins.possible.clone() {
            Some(Ok(_)) => self.mesh.handle_pins(News::Available, now()),
            Some(Err(reason)) => self.mesh.handle_pins(News::Unavailable { reason }, now()),
            None => {}
        }
    }

    /// An endpoint was not set, so its pin is of no use.
    pub(super) fn forget_pin(&mut self, peer: PeerKey, path: PathId) {
        if self.pins.wanted.get(&peer) == Some(&path) {
            self.pins.wanted.remove(&peer);
            self.reset_pins();
        }
    }

    /// Has all pins written anew, over what an earlier run or an earlier device has left.
    pub(super) fn reset_pins(&mut self) {
        self.share_pinned_ports();
        let pins = self.nat64.pins_outward(self.pins.set());
        self.device.set_pins(self.pins.method, pins);
    }

    /// Lets go of the ports that a process of pins is to bind. To be called before it is asked to.
    pub(super) fn share_pinned_ports(&mut self) {
        if self.pins.method.binds_ports() {
            self.open_source_ports(Arc::clone(&self.pins.asked));
        }
    }

    /// Brings a peer on a path, with the pin that it needs.
    pub(super) fn set_endpoint(&mut self, peer: PeerKey, path: PathId, kick: bool) {
        let pins = self.pins.want(peer, path);
        if pins.is_some() {
            self.share_pinned_ports();
        }
        let pins = pins.map(|pins| (self.pins.method, self.nat64.pins_outward(pins)));
        let endpoint = self.nat64.outward(path.endpoint());
        self.device.set_endpoint(peer, (path, endpoint), kick, pins);
    }

    /// Takes away the pins of peers that are not in the mesh any more.
    pub(super) fn drop_pins_of_others(&mut self) {
        let before = self.pins.wanted.len();
        let peers = &self.node.peers;
        self.pins
            .wanted
            .retain(|key, _| peers.iter().any(|peer| peer.key == *key));
        if self.pins.wanted.len() != before {
            self.reset_pins();
        }
    }

    /// Has the pins compared with what is in force, and put back.
    pub(super) fn look_after_pins(&mut self) {
        if !self.pins.in_force.is_empty() && !self.pins.is_checking {
            self.pins.is_checking = true;
            self.device.check_pins();
        }
    }

    /// Tries whether this host can make pins, and how.
    pub(super) fn try_pins(&mut self) {
        let interface = self.node.interface.clone();
        let directory = self.options.runtime_dir.clone();
        self.pins.trial = Some(tokio::task::spawn_blocking(move || {
            natpunch_wg::choose_pins(&interface, &directory)
        }));
    }

    /// Whether this host can make pins is known, and how.
    pub(super) fn on_can_pin(&mut self, result: Result<PinChoice, PinError>) {
        let result = result.map_err(|error| error.to_string());
        if self.pins.possible.as_ref() == Some(&result) {
            return;
        }
        match &result {
            Ok(PinChoice {
                method,
                reason: Some(reason),
            }) => tracing::info!(reason, "{method} makes pins, since nftables can't"),
            Ok(_) => {}
            Err(reason) => tracing::info!(
                reason,
                "WireGuard can use no source port but its own: peers behind NATs that map by \
                 destination are reached by a relay"
            ),
        }
        let chosen = result.as_ref().ok().map(|choice| choice.method);
        let news = match &result {
            Ok(_) => News::Available,
            Err(reason) => News::Unavailable {
                reason: reason.clone(),
            },
        };
        self.pins.possible = Some(result);
        if let Some(method) = chosen.filter(|method| *method != self.pins.method) {
            // A process that holds pins goes on holding them: another way would cut them off for a
            // moment.
            let holds = self.pins.method.binds_ports() && !self.pins.in_force.is_empty();
            if !holds {
                self.pins.method = method;
                self.reset_pins();
            }
        }
        self.mesh.handle_pins(news, now());
        // What needs a pin was left out before.
        self.offer_remembered();
    }

    /// A change of the pins was made, or was not.
    pub(super) fn on_pins_set(&mut self, result: Result<PinSet, PinError>) {
        match result {
            Ok(pins) => {
                self.pins.error = None;
                self.pins.in_force = self.nat64.pins_inward(pins);
                self.watch_pins();
            }
            Err(error) => {
                tracing::warn!(%error, "the pins can't be changed");
                self.pins.error = Some(error.to_string());
                if !is_passing(&error) {
                    self.try_pins();
                }
                // What of them is in force will be seen.
                self.look_after_pins();
            }
        }
    }

    /// The pins were checked: true if they had to be put back.
    pub(super) fn on_pins_checked(&mut self, result: Result<bool, PinError>) {
        self.pins.is_checking = false;
        match result {
            Ok(false) => self.watch_pins(),
            Ok(true) => {
                self.pins.healed += 1;
                let what = match self.pins.method {
                    PinMethod::Nftables => {
                        "somebody took the pins of this interface out of nftables (`nft flush \
                         ruleset`?)"
                    }
                    PinMethod::Device => "the device had lost the pins of this interface",
                    PinMethod::Forwarder => "the forwarder of this interface's pins had ended",
                };
                tracing::warn!(
                    pins = self.pins.in_force.len(),
                    times = self.pins.healed,
                    "{what}; they were put back"
                );
                self.watch_pins();
            }
            Err(error) => {
                tracing::error!(%error, "the pins are gone and can't be put back");
                self.pins.error = Some(error.to_string());
                let lost = std::mem::take(&mut self.pins.wanted);
                self.pins.in_force.clear();
                self.watch_pins();
                for (peer, path) in lost {
                    self.mesh.handle_pins(News::Lost { peer, path }, now());
                }
                if !is_passing(&error) {
                    self.try_pins();
                }
            }
        }
    }

    /// Watches over the pins while there are any.
    fn watch_pins(&mut self) {
        if self.pins.in_force.is_empty() {
            self.pins.watch = None;
        } else if self.pins.watch.is_none() {
            let (interface, directory) = (&self.node.interface, &self.options.runtime_dir);
            match PinWatch::open(self.pins.method, interface, directory) {
                Ok(watch) => self.pins.watch = watch,
                Err(error) => tracing::debug!(%error, "can't watch over the pins"),
            }
        }
    }

    /// What `status` says; nothing where there is nothing to say.
    pub(super) fn pin_status(&self) -> PinStatus {
        let peers = self.pins.wanted.iter().filter_map(|(peer, path)| {
            let source_port = path.pin()?;
            let remote = path.remote;
            let is_in_force = self.pins.in_force.get(&remote) == Some(&source_port);
            is_in_force.then(|| {
                let pinned = PinnedPath {
                    source_port,
                    remote,
                };
                (self.name_of(peer), pinned)
            })
        });
        let possible = self.pins.possible.as_ref();
        let refusal = possible.and_then(|possible| possible.as_ref().err());
        let choice = possible.and_then(|possible| possible.as_ref().ok());
        PinStatus {
            possible: possible.map(Result::is_ok),
            method: choice.map(|_| self.pins.method),
            reason: choice.and_then(|choice| choice.reason.clone()),
            error: refusal.cloned().or_else(|| self.pins.error.clone()),
            peers: peers.collect(),
            source_ports: self.pins.ports.len(),
            healed: self.pins.healed,
        }
    }
}

/// Whether the next try may well succeed: nothing is missing on this host.
fn is_passing(error: &PinError) -> bool {
    !matches!(
        error,
        PinError::NoProgram | PinError::NotPermitted | PinError::NoKernelSupport(_)
    )
}
