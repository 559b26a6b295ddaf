//! How closely the path in use is watched: every few seconds while WireGuard carries data, and only
//! as often as its NATs need it while nobody talks.
//!
//! An idle pair costs both ends their batteries and bills. Where both sides know how long their NATs
//! hold a mapping, one ping and its answer in that time are all that passes between the two agents:
//! a packet each way, which holds both mappings and proves the path. The side that decides for the
//! pair asks; the other one asks when that has not come. WireGuard's own keepalive is made as long,
//! for it holds the path when an agent has died.
//!
//! Where a lifetime is not known, rules of thumb take its place: WireGuard's keepalive holds the
//! mapping of its sender and shows the other end that the path works, so it serves as a ping.
//!
//! Data that waits for an answer has the path asked at once, whatever is written here.

use std::time::Duration;

use natpunch_types::{AddressClass, CandidateKind, PathId, backoff, classify, keepalive_for};

use crate::candidates::Entry;
use crate::env::Env;
use crate::nat::family::PerFamily;
use crate::{Command, Time};

use super::Peer;
use super::selection::Check;

/// Ping interval on the path in use while there is traffic; half of the shortest common mapping
/// timer (10 s).
pub(super) const KEEPALIVE: Duration = Duration::from_secs(5);
/// Ping interval that keeps a hole open; with jitter still less than the shortest common mapping
/// timer (30 s).
pub(super) const HOLE: Duration = Duration::from_secs(22);
/// A pair is idle when WireGuard has carried nothing but its own messages for this long.
const IDLE_AFTER: Duration = Duration::from_secs(20);
/// The path of an idle pair is asked when it has shown no life for this long. More than WireGuard's
/// usual keepalive (25 s), which then comes first, and less than the mapping timer of most NATs (30
/// s), which the answer of a peer holds that sends no keepalive.
const IDLE: Duration = Duration::from_secs(28);
/// The path of an idle pair has to answer so often even if keepalives come in: what is never asked
/// is not proven any more.
const IDLE_PROOF: Duration = Duration::from_secs(60);
/// The longest keepalive of WireGuard's that holds this side's mapping in most NATs.
const HOLDS: Duration = Duration::from_secs(25);
/// The longest that WireGuard's keepalive is made. Of two of them the second comes while the keys
/// can still be used (180 s), so that it makes new ones and WireGuard always has a session.
const LONGEST_KEEPALIVE: Duration = Duration::from_secs(85);
/// A handshake was seen at most this long after it was made.
const SEEN: Duration = Duration::from_secs(1);
/// Within this time the relay that stands by is asked while the pair is idle: before its proof has
/// ended. Its port there, and the mapping to that, are held by whoever asked for it.
const WARM_IDLE: Duration = Duration::from_secs(200);
/// How long the other paths of an idle pair are left alone: one that does not answer may do so
/// when both are in one LAN again, and one that lies in another LAN hardly ...
const OTHERS_IDLE: Duration = Duration::from_secs(300);
const HOPELESS_IDLE: Duration = Duration::from_secs(1_800);
/// ... and all of them where nothing has to be held.
const AT_REST: Duration = Duration::from_secs(86_400);
/// How soon they are looked at when somebody talks again, or one of them seems to be better.
const OTHERS_AWAKE: Duration = Duration::from_secs(60);
/// WireGuard's keepalive is not ordered more often than this.
const ORDER_EVERY: Duration = Duration::from_secs(5);
/// A path that did not answer after a rest, for at least this long while the peer was there, has
/// lost a mapping ...
const LOST_MAPPING: (Duration, Duration) = (Duration::from_millis(900), Duration::from_secs(30));
/// ... and paths to this peer get no such rest for so long, twice as long each time up to the second
/// figure: first none by what was measured, then none at all.
const NO_REST: (Duration, Duration) = (Duration::from_secs(3_600), Duration::from_secs(86_400));

/// How often some sort of rest cost a mapping, and until when there is none.
#[derive(Debug, Default)]
struct Burned {
    times: u32,
    until: Option<Time>,
}

impl Burned {
    fn is_over(&self, now: Time) -> bool {
        self.until.is_none_or(|until| until <= now)
    }

    fn on_lost_mapping(&mut self, now: Time) {
        if !self.is_over(now) {
            return;
        }
        let pause = backoff(NO_REST, self.times);
        self.times = self.times.saturating_add(1);
        self.until = Some(now + pause);
    }
}

/// What was learned of how long paths to one peer can be left alone.
#[derive(Debug, Default)]
pub(super) struct Vigilance {
    /// Rests by the rules of thumb.
    by_rule: Burned,
    /// Rests by what the two sides have measured.
    by_measure: Burned,
    /// The lifetime of this side's mappings as the last ping said it, and as the last ping did that
    /// was answered.
    said: PerFamily<Option<u8>>,
    told: PerFamily<Option<u8>>,
    /// That of the peer's, as its last ping said.
    peers: PerFamily<Option<u8>>,
    /// When WireGuard's keepalive was last ordered.
    ordered: Option<Time>,
}

/// What a path that nobody uses needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    /// Nothing: no NAT is on it, and the mesh file wants no keepalives.
    Nothing,
    /// A ping and its answer within this time.
    Exchange(Duration),
    /// What the rules of thumb say.
    Rule,
}

impl Vigilance {
    /// A ping leaves that says this.
    pub(super) fn on_ping(&mut self, lifetime: PerFamily<Option<u8>>) {
        self.said = lifetime;
    }

    /// A ping was answered.
    pub(super) fn on_pong(&mut self) {
        self.told = self.said;
    }

    /// A ping of the peer's says this.
    pub(super) fn on_peers_ping(&mut self, lifetime: PerFamily<Option<u8>>) {
        self.peers = lifetime;
    }
}

impl Peer {
    /// WireGuard works on the path in use, and nobody has anything to say.
    pub(super) fn is_idle(&self, env: &Env, now: Time) -> bool {
        let Some(selection) = &self.choice.selection else {
            return false;
        };
        let rested =
            now.since(selection.since) >= IDLE_AFTER && self.device.is_quiet(IDLE_AFTER, now);
        rested
            && selection.check == Check::Passed
            && selection.doubted.is_none()
            && self.device.session(now).is_up()
            && !self.device.is_waiting()
            // What became of rests by rules of thumb says nothing of one by what was measured since.
            && (self.lifetime(selection.path, env, now).is_some()
                || self.vigilance.by_rule.is_over(now))
    }

    /// When the path in use, which has just answered, is asked again.
    pub(super) fn watch_at(&self, env: &mut Env, now: Time) -> Time {
        let path = self.choice.selection.as_ref().map(|s| s.path);
        match path.filter(|_| self.is_idle(env, now)) {
            Some(path) => now + self.rest(self.need(path, env, now), env),
            None => now + env.jitter(KEEPALIVE),
        }
    }

    /// How long a path is left alone after it has shown life.
    fn rest(&self, need: Need, env: &mut Env) -> Duration {
        let holds = |keepalive: Duration| keepalive <= HOLDS;
        match need {
            Need::Nothing => AT_REST,
            Need::Exchange(within) => within,
            Need::Rule if self.spec.persistent_keepalive.is_some_and(holds) => IDLE,
            // Nothing but these pings holds this side's mapping.
            Need::Rule => env.jitter(HOLE),
        }
    }

    /// What the path in use needs while nobody talks.
    fn need(&self, path: PathId, env: &Env, now: Time) -> Need {
        if self.spec.persistent_keepalive.is_none() && self.is_without_nat(path, env) {
            return Need::Nothing;
        }
        match self.lifetime(path, env, now) {
            Some(lifetime) => Need::Exchange(self.in_turns(lifetime)),
            None => Need::Rule,
        }
    }

    /// When this side asks, of two that know that something has to pass within `lifetime`.
    fn in_turns(&self, lifetime: Duration) -> Duration {
        let first = keepalive_for(lifetime);
        if self.choice.controlling {
            first
        } else {
            first + (lifetime - first) / 2
        }
    }

    /// The silence that the mappings of both sides on this path are known to outlive. Both are known
    /// to both: the peer goes by it, too.
    fn lifetime(&self, path: PathId, env: &Env, now: Time) -> Option<Duration> {
        if !self.vigilance.by_measure.is_over(now) {
            return None;
        }
        let to = path.remote.ip();
        let own = *env.profile.lifetime.of(to);
        let peers = *self.vigilance.peers.of(to);
        let told = *self.vigilance.told.of(to);
        let shorter = own.filter(|_| told == own)?.min(peers?);
        Some(Duration::from_secs(shorter.into()))
    }

    /// Both ends of the path are addresses of their hosts, on the internet.
    fn is_without_nat(&self, path: PathId, env: &Env) -> bool {
        let is_public =
            |address: std::net::SocketAddr| classify(address.ip()) == AddressClass::Global;
        let is_hosts = |entry: &Entry| entry.kind == CandidateKind::Host;
        let peers_own = self.table.get(&path).is_some_and(is_hosts);
        let seen_as = self.prober.seen_as.filter(|seen| env.local.is_own(*seen));
        peers_own && is_public(path.remote) && seen_as.is_some_and(is_public)
    }

    /// A ping that is due on a path of an idle pair need not be sent yet: until when.
    pub(super) fn rests_until(&self, path: PathId, env: &mut Env, now: Time) -> Option<Time> {
        if !self.is_idle(env, now) {
            return None;
        }
        let in_use = self.choice.selection.as_ref().map(|s| s.path)?;
        let need = self.need(in_use, env, now);
        let entry = self.table.get(&path).filter(|e| e.unanswered == 0)?;
        let (answered, exchanged) = (entry.answered_at()?, self.exchanged_at(path)?);
        let until = match need {
            Need::Nothing => exchanged + AT_REST,
            _ if path != in_use => {
                let standby = self.scene(now).standby(self.choice.selection.as_ref());
                standby.filter(|standby| *standby == path)?;
                exchanged + self.in_turns(WARM_IDLE)
            }
            Need::Exchange(within) => exchanged + within,
            Need::Rule => {
                let heard = self.device.rx_seen;
                let life = heard.map_or(answered, |heard| heard.max(answered));
                (life + self.rest(need, env)).min(answered + IDLE_PROOF)
            }
        };
        (until > now).then_some(until)
    }

    /// When something last passed both ways on a path: a ping and its answer, or WireGuard's
    /// handshake on the one in use.
    fn exchanged_at(&self, path: PathId) -> Option<Time> {
        let exchanged = self.table.get(&path)?.exchanged_at()?;
        let selection = self.choice.selection.as_ref().filter(|s| s.path == path);
        let handshake = selection.and_then(|selection| {
            let at = self.device.handshake_seen?;
            // One of the path before may have been seen when this one was in use already.
            let of_this = at > selection.since + SEEN && self.device_path() == Some(path);
            of_this.then(|| at - SEEN)
        });
        Some(handshake.map_or(exchanged, |at| at.max(exchanged)))
    }

    /// The ping interval of a path that is not in use while the pair is idle.
    pub(super) fn idle_interval(&self, path: PathId, env: &Env, now: Time) -> Duration {
        let stands_by = self.scene(now).standby(self.choice.selection.as_ref()) == Some(path);
        let same_site = self.table.same_site;
        let is_hopeless = |entry: &Entry| entry.is_hopeless(path, same_site);
        let is_better = |entry: &Entry| entry.wins > 0;
        let in_use = self.choice.selection.as_ref().map(|s| s.path);
        match in_use.map(|path| self.need(path, env, now)) {
            Some(Need::Nothing) => AT_REST,
            // Spread by a fifth; what is not this side's turn yet is put off.
            _ if stands_by => WARM_IDLE * 3 / 4,
            // Some samples more, and the pair uses it.
            _ if self.table.get(&path).is_some_and(is_better) => OTHERS_AWAKE,
            _ if self.table.get(&path).is_some_and(is_hopeless) => HOPELESS_IDLE,
            _ => OTHERS_IDLE,
        }
    }

    /// Somebody talks again: the path in use is watched closely from now on, and the others are
    /// looked at.
    pub(super) fn wake(&mut self, env: &mut Env, now: Time) {
        self.punching.resume(now);
        let Some(path) = self.choice.selection.as_ref().map(|s| s.path) else {
            return;
        };
        let standby = self.scene(now).standby(self.choice.selection.as_ref());
        for (other, entry) in self.table.iter_mut() {
            let within = match *other {
                in_use if in_use == path => KEEPALIVE,
                relay if Some(relay) == standby => KEEPALIVE * 2,
                _ => OTHERS_AWAKE,
            };
            // Spread by a fifth.
            if entry.next_ping.is_some_and(|at| at > now + within * 6 / 5) {
                entry.next_ping = Some(now + env.jitter(within));
            }
        }
    }

    /// The peer has answered, on whatever path. If the one in use did not after a rest, the rest
    /// was too long for some NAT on it.
    pub(super) fn learn_of_rest(&mut self, env: &mut Env, now: Time) {
        let in_use = self.choice.selection.as_ref().map(|s| s.path);
        let Some((path, entry)) = in_use.and_then(|path| Some((path, self.table.get(&path)?)))
        else {
            return;
        };
        let (Some(exchanged), Some(silent)) = (self.exchanged_at(path), entry.unanswered_since)
        else {
            return;
        };
        let (least, most) = LOST_MAPPING;
        let silence = now.since(silent);
        let rested = silent.since(exchanged) > KEEPALIVE * 2;
        if !(rested && silence >= least && silence <= most) {
            return;
        }
        if self.lifetime(path, env, now).is_some() {
            // One of the two NATs is another one than was measured, or treats peers otherwise than
            // servers. Each side measures its own anew.
            self.vigilance.by_measure.on_lost_mapping(now);
            let lifetimes = env.lifetimes.of_mut(path.remote.ip());
            lifetimes.doubt(&mut env.ports, now);
        } else {
            self.vigilance.by_rule.on_lost_mapping(now);
        }
    }

    /// Has WireGuard send its keepalives as often as the pair's mappings need them, if the mesh file
    /// leaves that open.
    pub(super) fn order_keepalive(&mut self, env: &mut Env, now: Time) {
        if self.is_drowsy(now) {
            // WireGuard's keys are to end, so that its next packet begins with a handshake.
            self.order(None, env, now);
            return;
        }
        let in_use = self
            .choice
            .selection
            .as_ref()
            .filter(|s| s.check == Check::Passed);
        let Some(path) = in_use
            .map(|s| s.path)
            .filter(|_| self.spec.adapts_keepalive || self.is_on_demand())
        else {
            // Without a path nothing is known, and what was ordered does no harm.
            return;
        };
        let lifetime = self.lifetime(path, env, now);
        let lifetime = lifetime.filter(|_| self.spec.adapts_keepalive);
        let measured = lifetime.map(keepalive_for);
        // Whole seconds are all that WireGuard knows.
        let seconds = |long: Duration| Duration::from_secs(long.min(LONGEST_KEEPALIVE).as_secs());
        let wanted = measured.map(seconds).or(self.spec.persistent_keepalive);
        self.order(wanted, env, now);
    }

    fn order(&mut self, wanted: Option<Duration>, env: &mut Env, now: Time) {
        let lately = |at: Time| now.since(at) < ORDER_EVERY;
        if self.device.keepalive == wanted || self.vigilance.ordered.is_some_and(lately) {
            return;
        }
        self.vigilance.ordered = Some(now);
        let peer = self.spec.key;
        let interval = wanted.unwrap_or_default();
        env.out
            .keepalive(peer, Command::SetKeepalive { peer, interval });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_that_was_lost_in_a_rest_ends_the_rests_longer_each_time() {
        let mut burned = Burned::default();
        let mut now = Time::ZERO;
        for hours in [1, 2, 4, 8, 16, 24, 24] {
            assert!(burned.is_over(now));
            burned.on_lost_mapping(now);
            // What is lost while there is no rest says nothing.
            burned.on_lost_mapping(now);
            let pause = Duration::from_secs(hours * 3_600);
            assert!(!burned.is_over(now + (pause - Duration::from_secs(1))));
            now += pause;
        }
    }
}
