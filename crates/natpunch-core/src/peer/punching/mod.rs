//! What a pair does that one port on each side does not join: a strategy at a time, from the plan
//! that both sides draw up from their two NATs ([`crate::strategy`]).
//!
//! The opener opens its ports and says so; the sweeper begins on that word, and says when it has
//! ended. The words travel with the pings on whatever path answers already, a relay as a rule, so
//! that no server learns of them. Without such a path both sides go by the time: of the moment at
//! which discovery lets them fire, or of the beginning of their search.
//!
//! What a shot finds becomes a path like any other, by its answer. Here it is only seen that the
//! search is over, and the other ports are closed.

mod volley;

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::time::Duration;

use natpunch_types::{CandidateKind, PathId, RelayPolicy, is_global};
use rand_core::RngCore as _;

use crate::Time;
use crate::candidates::Entry;
use crate::env::Env;
use crate::messages::about::{About, Stage, Word};
use crate::nat::profile::NatProfile;
use crate::strategy::{self, Plan, Role, Strategy, Timing, Turn};

use super::round::may_be_poisoned;
use super::{Connection, Peer};
use volley::ANSWERS;

/// From the first try to the second, and from each to the next of those that the plan has not had.
const NEXT: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(30)];
/// When each has had its turn: from try to try, while each has its second turn, and after that.
const RETRY: [Duration; 2] = [Duration::from_secs(600), Duration::from_secs(3600)];
/// Another try, when something was in the way that may soon be gone ...
const SOON: Duration = Duration::from_secs(2);
/// ... or that lasts, unless another profile or the peer's word comes before.
const LATER: Duration = Duration::from_secs(30);
/// For so long after a direct path was lost, or never found, an idle pair tries, too.
const HASTE: Duration = Duration::from_secs(180);
/// How often words are repeated, and the path that they travel on is looked at.
const WORDS: Duration = Duration::from_millis(400);

/// Paths that are tried of those that a volley has found.
const FINDS: usize = 3;

/// Where a volley is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// It waits until it is seen where this side's sequence of ports is.
    Samples,
    /// Shots leave, from this moment on.
    Shoots { from: Time },
    /// All shots have left.
    Waits,
}

/// One strategy, once.
struct Volley {
    strategy: &'static Strategy,
    role: Role,
    attempt: u32,
    ports: Vec<NonZeroU16>,
    target: SocketAddr,
    phase: Phase,
    began: Time,
    /// It ends then, whatever has happened; shots that are still to leave do not.
    until: Option<Time>,
    next: usize,
    sent: u32,
    /// A ping that can be answered left then.
    awaited: Option<Time>,
    next_word: Time,
    /// The round trip of the words when it began.
    rtt: Option<Duration>,
    /// Routers that have forbidden it, by their word.
    prohibitions: u32,
}

/// What a pair does about its NATs.
#[derive(Default)]
pub(super) struct Punching {
    /// The peer's NAT, as it says.
    peer: NatProfile,
    /// The NATs for which the failures are counted, and where the peer's is.
    tried: Option<(NatProfile, NatProfile, Option<IpAddr>)>,
    failures: u32,
    /// The opener's word is awaited, the second time in vain.
    waits: bool,
    /// Since when no direct path works.
    since: Option<Time>,
    /// The earliest next try.
    at: Option<Time>,
    /// The next try waits for somebody to talk.
    rests: bool,
    volley: Option<Volley>,
    word: Word,
    /// The peer's round that was heeded last.
    heeded: Option<u16>,
    /// When there is something to do.
    wake: Option<Time>,
}

impl Punching {
    /// What is said with every ping.
    pub(super) fn word(&self) -> Word {
        self.word
    }

    pub(super) fn wakes_at(&self) -> Option<Time> {
        self.wake
    }

    pub(super) fn on_peer_profile(&mut self, profile: NatProfile) {
        self.peer = profile;
    }

    /// The peer's NAT, if the peer has said anything of it.
    pub(super) fn peer_nat(&self) -> Option<&NatProfile> {
        Some(&self.peer).filter(|profile| **profile != NatProfile::default())
    }

    /// For `status`.
    pub(super) fn in_words(&self) -> Option<String> {
        let volley = self.volley.as_ref()?;
        let role = match volley.role {
            Role::Opener => "opens ports",
            Role::Sweeper => "probes the peer's ports",
        };
        let sent = volley.sent;
        Some(format!("{}: {role} ({sent} packets)", volley.strategy.name))
    }

    /// Somebody talks, or the network is another: the next try need not wait for that.
    pub(super) fn resume(&mut self, now: Time) {
        if std::mem::take(&mut self.rests) {
            (self.at, self.wake) = (Some(now), Some(now));
        }
    }

    /// A moment at which both sides probe: a good one to begin, where no word can be said.
    pub(super) fn on_fire(&mut self, now: Time) {
        if let Some(at) = &mut self.at {
            *at = (*at).min(now + SOON);
        }
    }
}

impl Peer {
    /// What the peer says of itself in a fresh ping.
    pub(super) fn heed_about(&mut self, about: About, env: &mut Env, now: Time) {
        self.punching.peer = about.profile;
        let Word {
            strategy,
            stage,
            round,
            seed,
        } = about.word;
        match (stage, &mut self.punching.volley) {
            (Stage::Armed, None) if self.punching.heeded != Some(round) => {
                self.punching.heeded = Some(round);
                if let Some(strategy) = strategy::by_id(strategy) {
                    self.answer_call(strategy, round, seed, env, now);
                }
            }
            (Stage::Sweeping, Some(volley)) if self.punching.word.round == round => {
                // Both sides shoot where their sequences lead, which the peer has told just now.
                let waits = volley.role == Role::Opener && volley.phase == Phase::Waits;
                if waits && volley.next == 0 {
                    volley.phase = Phase::Shoots { from: now };
                    self.punching.wake = Some(now);
                }
            }
            (Stage::Done, Some(volley))
                if self.punching.word.round == round && volley.role == Role::Opener =>
            {
                volley.until = volley.until.map(|until| until.min(now + ANSWERS));
                self.punching.wake = Some(now);
            }
            // Nothing is asked for, or it was heeded already.
            _ => {}
        }
    }

    /// The opener says that it is ready.
    fn answer_call(
        &mut self,
        strategy: &'static Strategy,
        round: u16,
        seed: u16,
        env: &mut Env,
        now: Time,
    ) {
        if !self.seeks_by_strategy(now) {
            return;
        }
        let planned = self.plan(env, now).sweeps(strategy).copied();
        // Where both open, the peer waits for where this side's sequence is.
        let stage = match strategy.both_open {
            true => Stage::Idle,
            false => Stage::Sweeping,
        };
        let told = Word {
            strategy: strategy.id,
            stage,
            round,
            seed,
        };
        self.punching.word = told;
        let has_begun = planned.is_some_and(|turn| self.begin(turn, seed, env, now));
        if !has_begun {
            self.punching.word.stage = Stage::Done;
        }
        self.say(env, now);
    }

    /// A direct path is looked for, and one by guesses may be used.
    fn seeks_by_strategy(&self, now: Time) -> bool {
        let may = self.probes() && self.spec.relay != RelayPolicy::Only;
        may && self.connection(now) != Connection::Settled && !self.has_found()
    }

    /// A packet that one of the two NATs does not expect spoils the pair's session there.
    pub(super) fn is_poison_prone(&self, env: &Env) -> bool {
        [&env.profile, &self.punching.peer]
            .map(|side| side.poison_prone)
            .contains(&Some(true))
    }

    fn plan(&self, env: &Env, now: Time) -> Plan {
        let (own, peer) = (&env.profile, &self.punching.peer);
        let plan = strategy::plan(own, peer, self.choice.controlling);
        match self.words_path(now) {
            Some(_) => plan,
            None => plan.without_words(own, peer),
        }
    }

    /// After every input: begins, goes on with or ends what this pair does about its NATs.
    pub(super) fn plan_punching(&mut self, env: &mut Env, now: Time) {
        let settled = self.probes() && self.connection(now) == Connection::Settled;
        if settled {
            if self.punching.since.take().is_some() {
                self.stop_punching(env);
                self.punching.failures = 0;
            }
            (self.punching.at, self.punching.wake) = (None, None);
            return;
        }
        if !self.seeks_by_strategy(now) {
            return;
        }
        let since = *self.punching.since.get_or_insert(now);
        let (own, peer) = (env.profile, self.punching.peer);
        let place = self
            .target(Trust::Peer)
            .or_else(|| self.target(Trust::Anybody));
        let place = place.map(|(_, target)| target.ip());
        let is_tried = self.punching.tried.as_ref().is_some_and(|tried| {
            tried.0.is_like(&own) && tried.1.is_like(&peer) && tried.2 == place
        });
        if self.punching.volley.is_none() && !is_tried {
            self.punching.tried = Some((own, peer, place));
            (self.punching.failures, self.punching.waits) = (0, false);
            self.punching.at = None;
        }
        if self.punching.volley.is_some() && self.punching.wake.is_none() {
            // It was left alone while WireGuard was tried on a path that has come to nothing.
            self.punching.wake = Some(now);
        }
        if self.punching.volley.is_none() && self.punching.at.is_none() {
            let next = self.next_strategy(env, now);
            self.punching.at = next.and_then(|turn| {
                // Who can't speak with the peer begins when it hears of it, as the peer does.
                let since = match turn.strategy.timing {
                    Timing::Alone => self.target(Trust::Anybody)?.0.max(since),
                    Timing::Armed | Timing::Together => since,
                };
                Some((since + turn.patience).max(now))
            });
            self.punching.wake = self.punching.at;
        }
    }

    /// The strategy whose turn it is.
    fn next_strategy(&self, env: &Env, now: Time) -> Option<Turn> {
        self.plan(env, now).turn(self.punching.failures)
    }

    /// What is due.
    pub(super) fn punch(&mut self, env: &mut Env, now: Time) {
        self.punching.wake = None;
        if !self.seeks_by_strategy(now) {
            return;
        }
        if self.punching.volley.is_some() {
            self.go_on(env, now);
        } else if self.punching.at.is_some_and(|at| at <= now) {
            self.start_strategy(env, now);
        }
        if self.punching.volley.is_none() {
            self.punching.wake = self
                .punching
                .at
                .map(|at| at.max(now + Duration::from_millis(1)));
        }
    }

    fn start_strategy(&mut self, env: &mut Env, now: Time) {
        // The likely ones had their turn, so another try is a long shot of a thousand packets. While
        // nobody talks, the relay is good enough.
        let since = self.punching.since.unwrap_or(now);
        let is_late = self.punching.failures > 0 && now.since(since) >= HASTE;
        self.punching.rests = is_late && self.is_idle(env, now);
        if self.punching.rests {
            self.punching.at = Some(now + LATER);
            return;
        }
        let Some(turn) = self.next_strategy(env, now) else {
            // Another profile begins anew.
            self.punching.at = None;
            return;
        };
        let Turn { strategy, role, .. } = turn;
        let has_words = self.words_path(now).is_some();
        match role {
            // The opener's word comes, unless the other side has got to another row.
            Role::Sweeper if has_words || strategy.timing == Timing::Together => {
                if std::mem::replace(&mut self.punching.waits, true) {
                    self.punching.failures = self.punching.failures.saturating_add(1);
                    self.punching.waits = false;
                }
                self.punching.at = Some(now + LATER);
            }
            // Without words there is no moment at which both could begin.
            Role::Opener if !has_words && strategy.timing == Timing::Together => {
                self.punching.at = Some(now + SOON);
            }
            Role::Opener | Role::Sweeper => {
                let seed = match (strategy.timing, &self.keys) {
                    (Timing::Alone, Some(keys)) => keys.outbound.ports_seed,
                    (Timing::Alone, None) | (Timing::Armed | Timing::Together, _) => {
                        env.rng.next_u32() as u16
                    }
                };
                self.punching.at = Some(now + LATER);
                if self.begin(turn, seed, env, now) && role == Role::Opener {
                    self.punching.word = Word {
                        strategy: strategy.id,
                        stage: Stage::Idle,
                        round: env.rng.next_u32() as u16,
                        seed,
                    };
                    if strategy.timing == Timing::Together {
                        self.punching.word.stage = Stage::Armed;
                        self.say(env, now);
                    }
                }
            }
        }
    }

    /// Some direct path has answered since then. An answer from before it is no find: it may be
    /// that of the path whose loss has made the search necessary.
    fn has_direct_answer(&self, since: Time, now: Time) -> bool {
        let mut direct = self.table.iter().filter(|(_, entry)| !entry.is_relay());
        direct.any(|(_, entry)| entry.is_answered_since(since) && !entry.is_blocked(now))
    }

    /// A direct path was proven since then, and WireGuard may pass on it.
    fn has_find(&self, since: Time, now: Time) -> bool {
        let mut direct = self.table.iter().filter(|(_, entry)| !entry.is_relay());
        direct.any(|(_, entry)| entry.is_answered_since(since) && entry.is_usable(now))
    }

    /// The volley has led to so many paths that more of them would only cost probes. Both sides
    /// keep the first ones, which are the same on both.
    pub(super) fn has_enough_finds(&self) -> bool {
        let Some(volley) = &self.punching.volley else {
            return false;
        };
        let is_find = |entry: &Entry| {
            entry.kind == CandidateKind::PeerReflexive && entry.learned >= volley.began
        };
        let finds = self.table.iter().filter(|(_, entry)| is_find(entry));
        finds.count() >= FINDS
    }

    /// Says the present word on the path that answers.
    fn say(&mut self, env: &mut Env, now: Time) {
        if let Some(path) = self.words_path(now) {
            self.ping_now(path, env, now);
        }
    }

    /// The path on which words are said: the one in use, or any that answers.
    fn words_path(&self, now: Time) -> Option<PathId> {
        let answers = |path: &PathId| self.table.get(path).is_some_and(|e| e.is_answered(now));
        let in_use = self.choice.selection.as_ref().map(|s| s.path);
        let mut others = self.table.iter().map(|(path, _)| *path);
        in_use.filter(answers).or_else(|| others.find(answers))
    }

    /// The newest address of the peer's NAT, and since when it is known.
    fn target(&self, trust: Trust) -> Option<(Time, SocketAddr)> {
        let told = |(path, entry): (&PathId, &Entry)| {
            let is_outside = match entry.kind {
                CandidateKind::Reflexive => true,
                // The peer may have been heard from there before, on a path that is gone.
                CandidateKind::PeerReflexive => trust == Trust::Peer,
                // A host that has a public address of its own, behind a firewall, is seen there.
                CandidateKind::Host => trust == Trust::Peer && is_global(path.remote.ip()),
                CandidateKind::Mapped | CandidateKind::Relay => false,
            };
            let is_trusted = match trust {
                Trust::Peer => entry.is_recorded(),
                Trust::Anybody => may_be_poisoned(*path, entry) && entry.last_ping.is_some(),
            };
            let is_of_nat = is_outside && path.remote.is_ipv4() && path.pin().is_none();
            let told = is_of_nat && is_trusted;
            told.then_some((entry.learned, path.remote))
        };
        self.table.iter().filter_map(told).max()
    }
}

/// Whose word counts for where the peer's NAT is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trust {
    /// The peer's own. Any other origin could aim shots at a third host.
    Peer,
    /// Discovery's, too, where an ordinary burst goes anyway: for shots that reach no other port.
    Anybody,
}
