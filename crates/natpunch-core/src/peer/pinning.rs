//! The pin of a peer: another source port of this host that is joined to WireGuard's on the way to
//! one remote address.
//!
//! While a pin is in force, everything between WireGuard's port and that address passes through it,
//! probes included. So the path from WireGuard's port to it and the pinned path are one.

use std::net::SocketAddr;
use std::num::NonZeroU16;

use natpunch_types::{LocalSocket, PathId};

use crate::Time;
use crate::env::Env;

use super::Peer;

impl Peer {
    /// The path from this host's WireGuard to an address as it is now, with the pin that leads
    /// there.
    pub(super) fn wireguards_path(&self, remote: SocketAddr) -> PathId {
        let pin = self.device.pin.filter(|path| path.remote == remote);
        pin.unwrap_or(PathId::wireguard(remote))
    }

    /// Whether a pin would send on another path what is sent on this one.
    pub(super) fn is_shadowed(&self, path: PathId) -> bool {
        self.path_seen(path) != path
    }

    /// The path by which a datagram really came: at WireGuard's port it may have come through a
    /// pin.
    pub(super) fn path_seen(&self, path: PathId) -> PathId {
        match path.local {
            LocalSocket::WireguardPort => self.wireguards_path(path.remote),
            LocalSocket::SourcePort(_) => path,
        }
    }

    /// The shell has found a pin that was made before this run.
    pub(crate) fn handle_pin_found(&mut self, path: PathId, env: &mut Env) {
        let Some(port) = path.pin() else { return };
        env.ports.hold(port, self.spec.key);
        self.device.pin = Some(path);
    }

    /// A pin is gone: nothing passes on its path any more.
    pub(crate) fn handle_pin_lost(&mut self, path: PathId, env: &mut Env, now: Time) {
        self.device.pin.take_if(|pin| *pin == path);
        self.give_up_path(path, env, now);
    }

    /// A source port can't be used.
    pub(crate) fn handle_port_refused(&mut self, port: NonZeroU16, env: &mut Env, now: Time) {
        let of_port = |path: &PathId| path.pin() == Some(port);
        let paths: Vec<PathId> = self.table.iter().map(|(path, _)| *path).collect();
        for path in paths.into_iter().filter(of_port) {
            self.give_up_path(path, env, now);
        }
    }

    /// WireGuard no longer passes on a path: the path is not used for a while, and is left if it is
    /// in use.
    fn give_up_path(&mut self, path: PathId, env: &mut Env, now: Time) {
        if let Some(entry) = self.table.get_mut(&path) {
            entry.forget_proof();
            // Probes may still pass there, from the port itself; WireGuard does not.
            entry.block(false, now);
            entry.next_ping = None;
        }
        if self.choice.is_selected(path) {
            self.lose(env, now);
        }
        self.decide(env, now);
    }
}
