//! An interface as a whole: link, device, addresses, routes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use natpunch_os::{failpoint, failpoint_is_set};
use natpunch_types::{DeviceSnapshot, PeerKey, resting_endpoint};
use serde::Serialize;

use crate::backend::{BackendChoice, BackendKind};
use crate::device::{self, Device, DeviceChange, DeviceState, EndpointUpdate};
use crate::diff::device_changes;
use crate::embedded::{self, Control};
use crate::error::WgError;
use crate::host::{HostChanges, LimitChanges};
use crate::kernel::KernelDevice;
use crate::links::{self, Link, LinkKind};
use crate::pins::{self, PinError, PinMethod, PinSet, Pins};
use crate::plan::{Change, Plan};
use crate::routing::{self, Rule, wanted_rules};
use crate::spec::{EMBEDDED_MAX_MTU, InterfaceSpec, check_name, mark, seconds};
use crate::state_file::{self, StateFile, control_socket, guard_log};
use crate::uapi::{UapiDevice, socket_path};

/// A WireGuard interface that is ours.
pub struct Interface {
    name: String,
    backend: BackendKind,
    device: Box<dyn Device + Send>,
    link: u32,
    pins: Pins,
}

/// What [`Interface::apply`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Applied {
    /// The steps that were made.
    pub plan: Plan,
    /// How many peers were written to.
    pub peers_touched: usize,
}

/// What [`down`] removed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// The interface itself, if it was ours to remove.
    pub interface: bool,
    /// Peers removed from an interface that stays.
    pub peers: usize,
    /// Addresses removed from an interface that stays.
    pub addresses: usize,
    /// Routes removed from an interface that stays.
    pub routes: usize,
    /// Policy rules removed.
    pub rules: usize,
    /// Pins removed, with their table in nftables or their forwarder.
    pub pins: usize,
}

impl std::fmt::Display for Removed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self {
                interface: true, ..
            } => f.write_str("removed the interface with its addresses and routes")?,
            Self {
                peers,
                addresses,
                routes,
                ..
            } => {
                write!(
                    f,
                    "removed {peers} peers, {addresses} addresses and {routes} routes"
                )?;
            }
        }
        if self.rules > 0 {
            write!(f, ", and {} policy rules", self.rules)?;
        }
        if self.pins > 0 {
            write!(f, ", and {} pins", self.pins)?;
        }
        Ok(())
    }
}

/// What is on this host under the name of an interface.
enum Present {
    Nothing,
    Ours {
        link: Link,
        backend: BackendKind,
    },
    /// Somebody else's, which the specification says to take over.
    Adoptable {
        link: Link,
    },
    External {
        link: Link,
    },
}

impl Interface {
    /// What [`Interface::open`] or [`Interface::apply`] would change on this host now. Writes
    /// nothing.
    pub fn plan(spec: &InterfaceSpec) -> Result<Plan, WgError> {
        spec.validate()?;
        let mut adopts = false;
        let (link, backend, state) = match look(spec)? {
            Present::Adoptable { link } => {
                adopts = true;
                let state = KernelDevice::new(&spec.name)?.get()?;
                (Some(link), BackendKind::Kernel, state)
            }
            Present::Nothing => {
                let backend = match spec.backend {
                    BackendChoice::Kernel => BackendKind::Kernel,
                    BackendChoice::Auto if links::kernel_has_wireguard() => BackendKind::Kernel,
                    _ => BackendKind::Userspace,
                };
                (None, backend, DeviceState::default())
            }
            // The device is found by its name.
            Present::Ours { link, .. } if link.name != spec.name => {
                return Ok(Plan {
                    changes: vec![renamed_back(&link, &spec.name)],
                });
            }
            Present::Ours { link, backend } => {
                let state = open_device(&spec.name, &spec.runtime_dir, backend)?.get()?;
                (Some(link), backend, state)
            }
            Present::External { link } => {
                let state = UapiDevice::external(&spec.name).get()?;
                adopts = is_new(spec);
                (Some(link), BackendKind::External, state)
            }
        };
        check_mtu(spec, backend)?;
        let mut plan = Plan::default();
        if link.is_none() {
            plan.changes.push(Change::CreateInterface {
                name: spec.name.clone(),
                backend,
                mtu: spec.mtu,
            });
        }
        let mut record = Record::load(spec, backend, &state);
        if let Some(link) = link.as_ref().filter(|_| adopts) {
            record = Record::of_nothing(spec, backend);
            plan.changes.push(adoption(spec, link, backend, &state)?);
        }
        plan.changes
            .extend(device_changes(spec, &state, &record.file.peers).1);
        let host = HostChanges::find(spec, link.as_ref(), &record.file)?;
        plan.changes.extend(host.words());
        Ok(plan)
    }

    /// Creates the interface, or adopts the one that is there without touching what is right
    /// already, and applies.
    pub fn open(spec: &InterfaceSpec) -> Result<Self, WgError> {
        Self::open_reporting(spec).map(|(interface, _)| interface)
    }

    /// [`Interface::open`], with what it did.
    pub fn open_reporting(spec: &InterfaceSpec) -> Result<(Self, Applied), WgError> {
        spec.validate()?;
        state_file::make_runtime_dir(&spec.runtime_dir)?;
        wait_for_the_dead(spec)?;
        let (link, backend) = match look(spec)? {
            Present::Nothing => {
                let made = create(spec).and_then(|(link, backend)| {
                    let (interface, mut applied) = Self::adopt(spec, &link, backend)?;
                    let created = Change::CreateInterface {
                        name: spec.name.clone(),
                        backend,
                        mtu: spec.mtu,
                    };
                    applied.plan.changes.insert(0, created);
                    Ok((interface, applied))
                });
                if made.is_err() {
                    // Half an interface is useless: the host is left as it was found.
                    let _ = down(&spec.name, &spec.owner, &spec.runtime_dir);
                }
                return made;
            }
            Present::Ours { link, backend } => (link, backend),
            Present::External { link } if is_new(spec) => {
                let state = UapiDevice::external(&spec.name).get()?;
                let taken = adoption(spec, &link, BackendKind::External, &state)?;
                let (interface, mut applied) = Self::adopt(spec, &link, BackendKind::External)?;
                applied.plan.changes.insert(0, taken);
                return Ok((interface, applied));
            }
            Present::External { link } => (link, BackendKind::External),
            Present::Adoptable { link } => {
                let state = KernelDevice::new(&spec.name)?.get()?;
                let taken = adoption(spec, &link, BackendKind::Kernel, &state)?;
                // Nothing on it is ours yet; from here on a restart needs no word any more.
                let file = StateFile::new(&spec.owner, BackendKind::Kernel);
                state_file::write(&spec.runtime_dir, &spec.name, &file)?;
                failpoint("adopt: written down");
                let (interface, mut applied) = Self::adopt(spec, &link, BackendKind::Kernel)?;
                applied.plan.changes.insert(0, taken);
                return Ok((interface, applied));
            }
        };
        Self::adopt(spec, &link, backend)
    }

    /// Takes over an interface that is there, and applies.
    fn adopt(
        spec: &InterfaceSpec,
        link: &Link,
        backend: BackendKind,
    ) -> Result<(Self, Applied), WgError> {
        check_mtu(spec, backend)?;
        if link.name != spec.name {
            links::rename(link.index, &spec.name)?;
        }
        if backend != BackendKind::External && link.alias.as_deref() != Some(&spec.mark()) {
            links::set_alias(link.index, &spec.mark())?;
        }
        let mut interface = Self {
            name: spec.name.clone(),
            backend,
            device: open_device(&spec.name, &spec.runtime_dir, backend)?,
            link: link.index,
            pins: Pins::find(spec),
        };
        let applied = interface.apply(spec)?;
        Ok((interface, applied))
    }

    /// Makes the least change that leads to `spec`, reads everything back and compares.
    pub fn apply(&mut self, spec: &InterfaceSpec) -> Result<Applied, WgError> {
        spec.validate()?;
        if spec.name != self.name || !spec.backend.accepts(self.backend) {
            return Err(WgError::BackendDiffers {
                name: self.name.clone(),
                present: self.backend,
                wanted: spec.backend.to_string(),
            });
        }
        check_mtu(spec, self.backend)?;
        let found = self.link()?;
        let renamed = (found.name != self.name).then(|| renamed_back(&found, &self.name));
        if renamed.is_some() {
            // First, since the device is found by its name.
            links::rename(self.link, &self.name)?;
        }
        let state = self.device.get()?;
        let mut record = Record::load(spec, self.backend, &state);
        let (change, words) = device_changes(spec, &state, &record.file.peers);
        let host = HostChanges::find(spec, Some(&self.link()?), &record.file)?;
        let mut applied = Applied {
            plan: Plan {
                changes: renamed.into_iter().chain(words).collect(),
            },
            peers_touched: touched(&change),
        };
        applied.plan.changes.extend(host.words());
        // What is ours is written down before it is made: a crash in between leaves nothing
        // unowned.
        failpoint("apply: planned");
        record.claim(spec)?;
        failpoint("apply: claimed");
        host.prepare(self.link)?;
        self.configure(change)?;
        host.make(self.link)?;
        if let Err(error) = self.pins.follow(spec.listen_port, spec.fwmark) {
            // The next look at the pins tries again, and says who lost one.
            tracing::warn!(%error, "pins do not follow WireGuard to its new port or mark yet");
        }
        failpoint("apply: made");
        let remaining = self.remaining(spec, &record)?;
        if !remaining.is_empty() {
            return Err(WgError::ReadBack {
                name: self.name.clone(),
                remaining,
            });
        }
        record.settle(spec)?;
        failpoint("apply: settled");
        Ok(applied)
    }

    /// Writes the change: at once, or, where a test kills us in between, step by step as a device
    /// may take it.
    fn configure(&mut self, change: DeviceChange) -> Result<(), WgError> {
        if change.is_empty() {
            return Ok(());
        }
        if failpoint_is_set() {
            let (peers, settings) = (
                change.peers.clone(),
                DeviceChange {
                    peers: Vec::new(),
                    ..change
                },
            );
            for step in peers.into_iter().map(|peer| DeviceChange {
                peers: vec![peer],
                ..DeviceChange::default()
            }) {
                self.device.configure(&step)?;
                failpoint("apply: one peer");
            }
            if !settings.is_empty() {
                self.device.configure(&settings)?;
            }
        } else {
            self.device.configure(&change)?;
        }
        failpoint("apply: the device");
        Ok(())
    }

    /// How the interface differs from `spec` now; what somebody else changed since the last
    /// [`Interface::apply`]. Peers and addresses that others added don't count, nor do endpoints:
    /// those are WireGuard's to move. Writes nothing.
    pub fn drift(&mut self, spec: &InterfaceSpec) -> Result<Plan, WgError> {
        let link = self.link()?;
        if link.name != self.name {
            // The rest is compared when it has its name again.
            return Ok(Plan {
                changes: vec![renamed_back(&link, &self.name)],
            });
        }
        let state = self.device.get()?;
        let record = Record::load(spec, self.backend, &state);
        self.remaining(spec, &record)
    }

    fn remaining(&mut self, spec: &InterfaceSpec, record: &Record) -> Result<Plan, WgError> {
        let state = self.device.get()?;
        let mut changes = device_changes(spec, &state, &record.file.peers).1;
        changes.extend(HostChanges::find(spec, Some(&self.link()?), &record.file)?.words());
        Ok(Plan { changes })
    }

    /// The link, whatever its name is now.
    fn link(&self) -> Result<Link, WgError> {
        links::by_index(self.link)?.ok_or_else(|| WgError::Gone {
            name: self.name.clone(),
            reason: "it was removed; apply again to create it".into(),
        })
    }

    /// The device as it is now. A peer at its resting endpoint has none.
    pub fn snapshot(&mut self) -> Result<DeviceSnapshot, WgError> {
        let read_at = SystemTime::now().duration_since(UNIX_EPOCH).ok();
        let mut snapshot = self.device.get()?.snapshot.without_resting();
        snapshot.read_at = read_at;
        for peer in &mut snapshot.peers {
            // That WireGuard sends to a forwarder of this host is nobody else's business.
            peer.endpoint = peer
                .endpoint
                .and_then(|endpoint| self.pins.remote(endpoint));
        }
        Ok(snapshot)
    }

    /// Moves a peer to an endpoint; with `kick`, makes WireGuard send there at once. See
    /// [`device::set_endpoint`].
    pub fn set_endpoint(
        &mut self,
        peer: &PeerKey,
        endpoint: SocketAddr,
        kick: bool,
    ) -> Result<EndpointUpdate, WgError> {
        let endpoint = self.pins.endpoint(endpoint);
        device::set_endpoint(&mut self.device, peer, endpoint, kick)
    }

    /// Puts a peer to its resting endpoint, without keepalives. A peer that is gone stays gone.
    pub fn rest(&mut self, peer: &PeerKey) -> Result<(), WgError> {
        let change = device::PeerChange {
            endpoint: Some(resting_endpoint(peer)),
            persistent_keepalive: Some(0),
            ..device::PeerChange::new(*peer, device::PeerAction::Update)
        };
        self.device.configure(&DeviceChange {
            peers: vec![change],
            ..DeviceChange::default()
        })
    }

    /// Gives these endpoints to those of the peers that are at their resting endpoint: nobody will
    /// hear any more what WireGuard sends there. How many that were.
    pub fn leave_rest(
        &mut self,
        endpoints: &BTreeMap<PeerKey, SocketAddr>,
    ) -> Result<usize, WgError> {
        device::leave_rest(&mut self.device, endpoints)
    }

    /// Sets the interval of a peer's persistent keepalive, in whole seconds. A peer that is gone stays
    /// gone.
    pub fn set_keepalive(&mut self, peer: &PeerKey, interval: Duration) -> Result<(), WgError> {
        let change = device::PeerChange {
            persistent_keepalive: Some(seconds(Some(interval))),
            ..device::PeerChange::new(*peer, device::PeerAction::Update)
        };
        self.device.configure(&DeviceChange {
            peers: vec![change],
            ..DeviceChange::default()
        })
    }

    /// Sets the MTU of the routes to peers as `spec` has it, and nothing else; true if that changed
    /// something.
    ///
    /// # Errors
    /// The kernel refused a route.
    pub fn limit_routes(&mut self, spec: &InterfaceSpec) -> Result<bool, WgError> {
        let changes = LimitChanges::of_link(spec, self.link)?;
        changes.make(self.link)?;
        Ok(!changes.is_empty())
    }

    /// The pins that shall be in force: those of the last [`Interface::set_pins`], and before it
    /// those that an earlier run has left.
    pub fn pins(&self) -> &PinSet {
        self.pins.pins()
    }

    /// How the pins are made.
    pub fn pin_method(&self) -> PinMethod {
        self.pins.method()
    }

    /// Brings exactly these pins in force in this way, all in one step, and reads them back. See
    /// [`pins`](crate::pins).
    ///
    /// # Errors
    /// What makes pins is missing, or refuses. Those of before may still be in force.
    pub fn set_pins(&mut self, method: PinMethod, pins: &PinSet) -> Result<(), PinError> {
        self.pins.set(method, pins)
    }

    /// Makes the pins anew if somebody took them away or changed them, as `nft flush ruleset` does;
    /// true if that was necessary.
    ///
    /// # Errors
    /// What makes pins is missing, or refuses: the pins are not in force.
    pub fn heal_pins(&mut self) -> Result<bool, PinError> {
        self.pins.heal()
    }

    /// The backend that it has.
    pub fn backend(&self) -> BackendKind {
        self.backend
    }

    /// The process of the embedded device; `None` on other backends, or if it does not answer.
    pub fn device_process(&self, runtime_dir: &Path) -> Option<embedded::DeviceProcess> {
        let control = Control::find(&self.name, runtime_dir).ok()??;
        control.process().cloned()
    }

    /// The kernel's index of the link.
    pub fn link_index(&self) -> u32 {
        self.link
    }
}

impl std::fmt::Debug for Interface {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Interface({}, {}, link {})",
            self.name, self.backend, self.link
        )
    }
}

fn renamed_back(link: &Link, name: &str) -> Change {
    Change::Rename {
        from: link.name.clone(),
        to: name.to_owned(),
    }
}

/// Whether this host has an interface of this name, no matter which program made it.
pub fn exists(name: &str) -> Result<bool, WgError> {
    Ok(links::find(name)?.is_some())
}

/// [`Interface::leave_rest`] for an interface whose agent has ended, if it is still natpunch's.
pub fn leave_rest(
    name: &str,
    runtime_dir: &Path,
    endpoints: &BTreeMap<PeerKey, SocketAddr>,
) -> Result<usize, WgError> {
    check_name(name)?;
    let (Some(file), Some(link)) = (state_file::read(runtime_dir, name), links::find(name)?) else {
        return Ok(0);
    };
    let is_marked = link.alias.as_deref() == Some(&*mark(&file.owner));
    if file.backend != BackendKind::External && !is_marked {
        return Ok(0);
    }
    let mut device = open_device(name, runtime_dir, file.backend)?;
    device::leave_rest(&mut device, endpoints)
}

/// Removes exactly what natpunch made: the interface, or, if another program runs the device, our
/// peers, addresses and routes. An interface that this mesh does not own is refused; a missing one
/// is no error.
pub fn down(name: &str, owner: &str, runtime_dir: &Path) -> Result<Removed, WgError> {
    check_name(name)?;
    let mut removed = Removed::default();
    let state = state_file::read(runtime_dir, name);
    let mut link = links::find(name)?;
    if link.is_none() && state.as_ref().is_some_and(|file| file.owner == owner) {
        // Somebody may have renamed it.
        link = links::by_alias(&mark(owner))?;
    }
    let mine = |link: &Link| link.alias.as_deref() == Some(&*mark(owner));
    if link.as_ref().is_none_or(mine) || state.as_ref().is_some_and(|file| file.owner == owner) {
        removed.rules = remove_rules(link.as_ref(), state.as_ref())?;
        removed.pins = pins::remove(name, runtime_dir, state.as_ref())?;
    }
    let Removed { rules, pins, .. } = removed;
    match (link, &state) {
        (Some(link), Some(file))
            if file.backend == BackendKind::External && file.owner == owner =>
        {
            removed = Removed {
                rules,
                pins,
                ..leave(name, &link, file)?
            };
        }
        (Some(link), _) if mine(&link) => {
            Control::end(name, runtime_dir)?;
            if let Some(link) = links::by_index(link.index)?.filter(mine) {
                links::remove(link.index)?;
            }
            removed.interface = true;
        }
        (Some(link), _) => return Err(foreign(name, &link)),
        (None, _) => {
            // Only the process may be left, if its interface was removed from under it.
            Control::end(name, runtime_dir)?;
        }
    }
    state_file::remove(runtime_dir, name);
    let socket = control_socket(runtime_dir, name);
    for path in [
        socket.with_extension("lock"),
        runtime_dir.join(format!("{name}.device.log")),
        guard_log(runtime_dir, name),
        socket,
    ] {
        let _ = std::fs::remove_file(path);
    }
    Ok(removed)
}

/// Removes the policy rules of an interface, and what its own tables have beside the routes that go
/// with it. They are those of the state file; without one, those of the tables that our routes
/// through the link are in.
fn remove_rules(link: Option<&Link>, state: Option<&StateFile>) -> Result<usize, WgError> {
    let mut tables = state.map(StateFile::tables).unwrap_or_default();
    let index = link.map(|link| link.index);
    let routes = routing::routes(index, &tables)?;
    tables.extend(
        routes
            .iter()
            .filter(|route| !route.is_in_main())
            .map(|route| route.table),
    );
    if tables.is_empty() {
        return Ok(0);
    }
    let all = routing::rules()?;
    let marks: BTreeSet<u32> = all
        .iter()
        .filter(|rule| tables.contains(&rule.table))
        .filter_map(|rule| rule.not_mark)
        .collect();
    let is_ours = |rule: &&Rule| {
        state.is_some_and(|file| file.rules.contains(rule))
            || rule.not_mark.is_some_and(|mark| marks.contains(&mark))
    };
    let rules: Vec<Rule> = all.iter().filter(is_ours).copied().collect();
    routing::remove_rules(&rules)?;
    let own: Vec<_> = routing::routes(index, &tables)?
        .into_iter()
        .filter(|route| !route.is_in_main())
        .collect();
    routing::remove_routes(index.unwrap_or_default(), &own)?;
    Ok(rules.len())
}

/// Takes our things off an interface that stays.
fn leave(name: &str, link: &Link, file: &StateFile) -> Result<Removed, WgError> {
    let mut device = UapiDevice::external(name);
    let present: BTreeSet<_> = device
        .get()?
        .snapshot
        .peers
        .iter()
        .map(|peer| peer.key)
        .collect();
    let ours: Vec<_> = file
        .peers
        .intersection(&present)
        .map(|key| device::PeerChange::remove(*key))
        .collect();
    let routes: Vec<_> = routing::routes(Some(link.index), &BTreeSet::new())?
        .into_iter()
        .collect();
    let addresses: Vec<_> = links::addresses(link.index)?
        .into_iter()
        .filter(|address| file.addresses.contains(address))
        .collect();
    let (peers, routes_count) = (ours.len(), routes.len());
    let removed = Removed {
        peers,
        addresses: addresses.len(),
        routes: routes_count,
        ..Removed::default()
    };
    device.configure(&DeviceChange {
        peers: ours,
        ..DeviceChange::default()
    })?;
    routing::remove_routes(link.index, &routes)?;
    for address in addresses {
        links::remove_address(link.index, address)?;
    }
    Ok(removed)
}

fn foreign(name: &str, link: &Link) -> WgError {
    let found = match &link.alias {
        Some(alias) => format!("{}, alias {alias:?}", link.kind),
        None => link.kind.to_string(),
    };
    WgError::Foreign {
        name: name.into(),
        found,
    }
}

fn check_mtu(spec: &InterfaceSpec, backend: BackendKind) -> Result<(), WgError> {
    if backend == BackendKind::Userspace && spec.mtu > EMBEDDED_MAX_MTU {
        return Err(WgError::Invalid {
            name: spec.name.clone(),
            problem: format!(
                "MTU {} is more than the embedded device's {EMBEDDED_MAX_MTU}",
                spec.mtu
            ),
        });
    }
    Ok(())
}

/// Finds what is there under the name, and refuses what is not ours.
fn look(spec: &InterfaceSpec) -> Result<Present, WgError> {
    let link = links::find(&spec.name)?;
    if spec.backend == BackendChoice::External {
        let link = link
            .filter(|link| link.kind == LinkKind::Tun && socket_path(&spec.name).exists())
            .ok_or_else(|| WgError::NoExternalDevice {
                name: spec.name.clone(),
                socket: socket_path(&spec.name),
            })?;
        if spec.adopt {
            check_key(spec, &mut UapiDevice::external(&spec.name))?;
        }
        return Ok(Present::External { link });
    }
    let Some(link) = link.map_or_else(|| renamed(spec), |link| Ok(Some(link)))? else {
        return Ok(Present::Nothing);
    };
    // A link without alias is ours if we died between its creation and its marking.
    let marked = link.alias.as_deref() == Some(&*spec.mark());
    let unfinished = link.alias.is_none()
        && state_file::read(&spec.runtime_dir, &spec.name)
            .is_some_and(|file| file.owner == spec.owner);
    let backend = match link.kind {
        LinkKind::Wireguard => BackendKind::Kernel,
        LinkKind::Tun => BackendKind::Userspace,
        LinkKind::Other(_) => return Err(foreign(&spec.name, &link)),
    };
    if !marked && !unfinished {
        return adoptable(spec, link);
    }
    if !spec.backend.accepts(backend) {
        return Err(WgError::BackendDiffers {
            name: spec.name.clone(),
            present: backend,
            wanted: spec.backend.to_string(),
        });
    }
    Ok(Present::Ours { link, backend })
}

/// How long the interface of a device process that was killed may outlive it.
const DYING: Duration = Duration::from_secs(3);

/// Waits for the end of an embedded device of ours whose process answers no more: its socket is
/// closed some milliseconds before the kernel removes its interface.
fn wait_for_the_dead(spec: &InterfaceSpec) -> Result<(), WgError> {
    let deadline = Instant::now() + DYING;
    loop {
        let left = links::find(&spec.name)?
            .filter(|link| link.kind == LinkKind::Tun)
            .filter(|link| link.alias.as_deref() == Some(&*spec.mark()));
        if left.is_none()
            || Control::find(&spec.name, &spec.runtime_dir)?.is_some()
            || Instant::now() > deadline
        {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Our interface under a name that somebody else gave it. Making another beside it would fail, for
/// it still has the port.
fn renamed(spec: &InterfaceSpec) -> Result<Option<Link>, WgError> {
    let was_made = state_file::read(&spec.runtime_dir, &spec.name)
        .is_some_and(|file| file.owner == spec.owner);
    if was_made {
        links::by_alias(&spec.mark())
    } else {
        Ok(None)
    }
}

/// An interface of somebody else: taken over if that is said, if it is this node's, and if it is
/// the kernel's.
fn adoptable(spec: &InterfaceSpec, link: Link) -> Result<Present, WgError> {
    let anothers = link
        .alias
        .as_deref()
        .is_some_and(|alias| alias.starts_with(&mark("")));
    if !spec.adopt || anothers {
        return Err(foreign(&spec.name, &link));
    }
    if link.kind != LinkKind::Wireguard {
        return Err(WgError::RunByProgram {
            name: spec.name.clone(),
        });
    }
    if !spec.backend.accepts(BackendKind::Kernel) {
        let wanted = spec.backend.to_string();
        return Err(WgError::BackendDiffers {
            name: spec.name.clone(),
            present: BackendKind::Kernel,
            wanted,
        });
    }
    check_key(spec, &mut KernelDevice::new(&spec.name)?)?;
    Ok(Present::Adoptable { link })
}

/// What is taken over has to be this node already: another key would end every session.
fn check_key(spec: &InterfaceSpec, device: &mut impl Device) -> Result<(), WgError> {
    let found = device.get()?.snapshot.public_key;
    let wanted = spec.private_key.public_key();
    if found == Some(wanted) {
        return Ok(());
    }
    let found = found.map_or_else(|| "none".to_owned(), |key| key.to_string());
    Err(WgError::OtherKey {
        name: spec.name.clone(),
        found,
        wanted,
    })
}

/// Whether nothing on the interface is known to be ours.
fn is_new(spec: &InterfaceSpec) -> bool {
    state_file::read(&spec.runtime_dir, &spec.name).is_none_or(|file| file.owner != spec.owner)
}

/// What is said of an interface that is taken over.
fn adoption(
    spec: &InterfaceSpec,
    link: &Link,
    backend: BackendKind,
    state: &DeviceState,
) -> Result<Change, WgError> {
    let wanted: BTreeSet<PeerKey> = spec.peers.iter().map(|peer| peer.key).collect();
    let peers = state
        .snapshot
        .peers
        .iter()
        .map(|peer| peer.key)
        .filter(|key| !wanted.contains(key))
        .collect();
    let routes = routing::routes_of_others(link.index)?.into_iter().collect();
    Ok(Change::Adopt {
        name: spec.name.clone(),
        backend,
        peers,
        routes,
    })
}

fn create(spec: &InterfaceSpec) -> Result<(Link, BackendKind), WgError> {
    // Rules and pins outlive their interface.
    let (rules, pins) = state_file::read(&spec.runtime_dir, &spec.name)
        .map(|file| (file.rules, file.pins))
        .unwrap_or_default();
    let record = |backend| {
        let file = StateFile {
            rules: rules.clone(),
            pins,
            ..StateFile::new(&spec.owner, backend)
        };
        state_file::write(&spec.runtime_dir, &spec.name, &file)
    };
    let kernel = spec.backend != BackendChoice::Userspace && {
        record(BackendKind::Kernel)?;
        links::create_wireguard(&spec.name)?
    };
    let backend = match spec.backend {
        _ if kernel => BackendKind::Kernel,
        BackendChoice::Kernel => {
            state_file::remove(&spec.runtime_dir, &spec.name);
            return Err(WgError::NoKernelWireguard);
        }
        _ => {
            check_mtu(spec, BackendKind::Userspace)?;
            record(BackendKind::Userspace)?;
            // A process whose interface was removed is on its way out; it must be gone before the
            // next one starts.
            Control::end(&spec.name, &spec.runtime_dir)?;
            embedded::start(&spec.name, &spec.device_program, &spec.runtime_dir)?;
            BackendKind::Userspace
        }
    };
    let mut link = links::find(&spec.name)?.ok_or_else(|| WgError::Gone {
        name: spec.name.clone(),
        reason: "it vanished while it was being created".into(),
    })?;
    links::set_mtu(link.index, spec.mtu)?;
    link.mtu = spec.mtu;
    Ok((link, backend))
}

fn open_device(
    name: &str,
    runtime_dir: &Path,
    backend: BackendKind,
) -> Result<Box<dyn Device + Send>, WgError> {
    Ok(match backend {
        BackendKind::Kernel => Box::new(KernelDevice::new(name)?),
        BackendKind::External => Box::new(UapiDevice::external(name)),
        BackendKind::Userspace => match Control::find(name, runtime_dir)? {
            Some(control) => Box::new(control.device()),
            None => {
                return Err(WgError::Gone {
                    name: name.into(),
                    reason: format!(
                        "the interface is there, but its device process does not answer at {}; remove it with `ip link del {}`",
                        control_socket(runtime_dir, name).display(),
                        name
                    ),
                });
            }
        },
    })
}

fn touched(change: &DeviceChange) -> usize {
    change
        .peers
        .iter()
        .map(|peer| peer.key)
        .collect::<BTreeSet<_>>()
        .len()
}

/// What is ours, and its file.
struct Record {
    file: StateFile,
    stored: Option<StateFile>,
}

impl Record {
    /// Without a file everything on a device of ours counts as ours (a peer that was taken out of
    /// the mesh must not survive the loss of a file), and nothing on somebody else's.
    fn load(spec: &InterfaceSpec, backend: BackendKind, state: &DeviceState) -> Self {
        let stored =
            state_file::read(&spec.runtime_dir, &spec.name).filter(|file| file.owner == spec.owner);
        let file = stored.clone().unwrap_or_else(|| StateFile {
            peers: match backend {
                BackendKind::External => BTreeSet::new(),
                _ => state.snapshot.peers.iter().map(|peer| peer.key).collect(),
            },
            ..StateFile::new(&spec.owner, backend)
        });
        Self {
            file: StateFile { backend, ..file },
            stored,
        }
    }

    /// Of an interface on which nothing is ours.
    fn of_nothing(spec: &InterfaceSpec, backend: BackendKind) -> Self {
        Self {
            file: StateFile::new(&spec.owner, backend),
            stored: None,
        }
    }

    /// Adds what will be made.
    fn claim(&mut self, spec: &InterfaceSpec) -> Result<(), WgError> {
        self.file
            .peers
            .extend(spec.peers.iter().map(|peer| peer.key));
        self.file.addresses.extend(&spec.addresses);
        self.file.rules.extend(wanted_rules(spec));
        self.store(spec)
    }

    /// Leaves what is there now that the rest was removed.
    fn settle(&mut self, spec: &InterfaceSpec) -> Result<(), WgError> {
        self.file.peers = spec.peers.iter().map(|peer| peer.key).collect();
        self.file.addresses = spec.addresses.iter().copied().collect();
        self.file.rules = wanted_rules(spec);
        self.store(spec)
    }

    fn store(&mut self, spec: &InterfaceSpec) -> Result<(), WgError> {
        if self.stored.as_ref() != Some(&self.file) {
            state_file::write(&spec.runtime_dir, &spec.name, &self.file)?;
            self.stored = Some(self.file.clone());
        }
        Ok(())
    }
}
