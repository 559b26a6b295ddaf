//! Messages of plugins to and from the peer, and what the peer's answers tell of this node's own
//! address, which such plugins are to tell others.

use natpunch_types::{PathId, Rate, RateBudget, RelayPolicy};

use crate::env::Env;
use crate::messages::peer_message;
use crate::messages::probe::Probe;
use crate::{Event, PacketKind, Time, Transmit};

use super::probing::Freshness;
use super::selection::Check;
use super::{Connection, Peer};

/// Messages to one peer, and from it: so many at once, and per second in the long run.
const RATE: Rate = Rate::per_second(8, 64);

/// How much is said either way.
#[derive(Debug)]
pub(super) struct Messages {
    sent: RateBudget,
    received: RateBudget,
}

impl Default for Messages {
    fn default() -> Self {
        Self {
            sent: RateBudget::new(RATE),
            received: RateBudget::new(RATE),
        }
    }
}

impl Peer {
    /// The direct path in use, by which messages go. A relay lets probes through and what
    /// WireGuard says, and while there is one, there is a server that carries records.
    fn message_path(&self, now: Time) -> Option<PathId> {
        let selection = self.choice.selection.as_ref()?;
        let is_good = self.probes()
            && self.connection(now) == Connection::Settled
            && selection.check == Check::Passed
            && !self.is_relay(selection.path);
        is_good.then_some(selection.path)
    }

    /// Whether messages reach the peer.
    pub(crate) fn takes_messages(&self, now: Time) -> bool {
        self.message_path(now).is_some()
    }

    /// Sends a message on the direct path in use, within the budgets. It may be lost.
    pub(crate) fn send_message(&mut self, payload: &[u8], env: &mut Env, now: Time) {
        let Some(path) = self.message_path(now) else {
            return;
        };
        if !self.messages.sent.take(now) || !env.messages.take(now) {
            return;
        }
        let stamp = self.prober.stamp(env.session);
        let keys = self.keys.as_ref();
        let sealed =
            keys.and_then(|keys| peer_message::seal(stamp, payload, &keys.outbound, &mut env.rng));
        if let Some(payload) = sealed {
            self.send(PacketKind::Message, Transmit::new(path, payload), env, now);
        }
    }

    /// A datagram with this peer's tag and the form of a message: what it says, if the peer's present
    /// run said it to this run, and for the first time.
    pub(crate) fn handle_message(
        &mut self,
        datagram: &[u8],
        env: &Env,
        now: Time,
    ) -> Option<Vec<u8>> {
        if !self.probes() {
            return None;
        }
        let keys = self.keys.as_ref()?;
        let (stamp, payload) = peer_message::open(&keys.inbound, datagram)?;
        let is_fresh = self.prober.judge(stamp, env.session) == Freshness::Fresh;
        (is_fresh && self.messages.received.take(now)).then_some(payload)
    }

    /// The peer has answered a ping: from where it came, as the peer sees it. What went through a
    /// relay came from there, and a port beside WireGuard's has a mapping of its own.
    pub(super) fn note_sighting(&self, path: PathId, pong: &Probe, env: &mut Env, now: Time) {
        let shows_port = path.pin().is_none() && !self.is_relay(path);
        if !shows_port || self.spec.relay == RelayPolicy::Only {
            return;
        }
        let sightings = &mut env.local.sightings;
        if let Some(address) = sightings.note(&self.spec.key, pong.observed, now) {
            env.out.event(Event::ReflexiveLearned {
                server: format!("peer {}", self.spec.name),
                address,
            });
        }
    }
}
