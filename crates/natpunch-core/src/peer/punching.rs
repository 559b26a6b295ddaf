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

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::time::Duration;

use natpunch_types::{CandidateKind, PathId, RelayPolicy};
use rand_core::RngCore as _;

use crate::about::{About, Stage, Word};
use crate::candidates::Entry;
use crate::env::Env;
use crate::pacer::Denied;
use crate::ports::series;
use crate::profile::NatProfile;
use crate::strategy::{self, Aim, Pair, Role, Shot, Strategy, Timing};
use crate::{Event, Time, Transmit};

use super::{Connection, Peer};

/// From one try to the next; the last one repeats.
const RETRY: [Duration; 4] = [
    Duration::from_secs(2),
    Duration::from_secs(30),
    Duration::from_secs(600),
    Duration::from_secs(3600),
];
/// After so many packets the next try waits for routers to forget them (Linux: 30 s).
const LONG_SWEEP: u32 = 200;
const FORGOTTEN: Duration = Duration::from_secs(32);
/// Another try, when something was in the way that may soon be gone.
const SOON: Duration = Duration::from_secs(2);
/// How long it may take to see where a sequence of ports is.
const SAMPLE: Duration = Duration::from_secs(1);
/// From the opener's word to the moment at which both begin.
const TOGETHER: Duration = Duration::from_millis(400);
/// How long the opener waits for what the sweep brings: the longest sweep, and some.
const SWEEP: Duration = Duration::from_secs(10);
/// How long answers are awaited after the last shot.
const ANSWERS: Duration = Duration::from_secs(1);
/// Where no word can be said, the sweeper begins so much later than the opener.
const BEHIND: Duration = Duration::from_millis(2500);
/// How often words are repeated, and the path that they travel on is looked at.
const WORDS: Duration = Duration::from_millis(400);
/// Pings that the node keeps for other paths while it sweeps.
const RESERVE: u64 = 25;
/// A pong is awaited for every shot of these.
const AWAITED: Duration = Duration::from_secs(5);
/// Signs of harm: so many words in a row, over at least so long, without an answer ...
const HARM: (u32, Duration) = (4, Duration::from_millis(1500));
/// ... or a round trip that grows to so many times what it was, and more than this.
const HARM_RTT: (u32, Duration) = (3, Duration::from_millis(100));

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
}

/// What a pair does about its NATs.
#[derive(Default)]
pub(super) struct Punching {
    /// The peer's NAT, as it says.
    peer: NatProfile,
    /// The NATs for which the failures are counted.
    tried: Option<(NatProfile, NatProfile)>,
    failures: u32,
    /// Since when no direct path works.
    since: Option<Time>,
    /// The earliest next try.
    at: Option<Time>,
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
        let plan = self.plan(env);
        let sweeps = |(planned, role): &(&Strategy, Role)| {
            planned.id == strategy.id && *role == Role::Sweeper
        };
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
        if !plan.iter().any(sweeps) || !self.begin(strategy, Role::Sweeper, seed, env, now) {
            self.punching.word.stage = Stage::Done;
        }
        self.say(env, now);
    }

    /// A direct path is looked for, and one by guesses may be used.
    fn seeks_by_strategy(&self, now: Time) -> bool {
        let may = self.probes() && self.spec.relay != RelayPolicy::Only;
        may && self.connection(now) != Connection::Settled && !self.has_found()
    }

    fn plan(&self, env: &Env) -> Vec<(&'static Strategy, Role)> {
        strategy::plan(&env.profile, &self.punching.peer, self.choice.controlling)
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
        let pair = (env.profile, self.punching.peer);
        let is_like =
            |(own, peer): &(NatProfile, NatProfile)| own.is_like(&pair.0) && peer.is_like(&pair.1);
        if self.punching.volley.is_none() && !self.punching.tried.as_ref().is_some_and(is_like) {
            self.punching.tried = Some(pair);
            self.punching.failures = 0;
            self.punching.at = None;
        }
        if self.punching.volley.is_some() && self.punching.wake.is_none() {
            // It was left alone while WireGuard was tried on a path that has come to nothing.
            self.punching.wake = Some(now);
        }
        if self.punching.volley.is_none() && self.punching.at.is_none() {
            let next = self.next_strategy(env);
            self.punching.at = next.map(|(strategy, ..)| (since + strategy.patience).max(now));
            self.punching.wake = self.punching.at;
        }
    }

    /// The strategy whose turn it is, this node's part in it, and how often it has failed.
    fn next_strategy(&self, env: &Env) -> Option<(&'static Strategy, Role, u32)> {
        let plan = self.plan(env);
        let failures = usize::try_from(self.punching.failures).unwrap_or(usize::MAX);
        let turn = failures.min(plan.len().checked_sub(1)?);
        let (strategy, role) = *plan.get(turn)?;
        let attempt = u32::try_from(failures - turn).unwrap_or(u32::MAX);
        Some((strategy, role, attempt))
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
        let Some((strategy, role, _)) = self.next_strategy(env) else {
            // Another profile begins anew.
            self.punching.at = None;
            return;
        };
        let has_words = self.words_path(now).is_some();
        match role {
            // The opener's word comes.
            Role::Sweeper if has_words || strategy.timing == Timing::Together => {
                self.punching.at = Some(now + SOON);
            }
            // Without words there is no moment at which both could begin.
            Role::Opener if !has_words && strategy.timing == Timing::Together => {
                self.punching.at = Some(now + SOON);
            }
            Role::Opener | Role::Sweeper => {
                let seed = env.rng.next_u32() as u16;
                self.punching.at = Some(now + SOON);
                if self.begin(strategy, role, seed, env, now) && role == Role::Opener {
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

    /// Begins a volley; false if it can't be, in which case the next try has its time.
    fn begin(
        &mut self,
        strategy: &'static Strategy,
        role: Role,
        seed: u16,
        env: &mut Env,
        now: Time,
    ) -> bool {
        let Some(target) = self.target() else {
            return false;
        };
        if env.local.shares_public_ip(target.ip()) {
            // Behind one NAT: the LAN is the way.
            return false;
        }
        if let Err(denied) = env.pacer.begin(self.spec.key, target.ip(), now) {
            let until = match denied {
                Denied::Busy | Denied::Off => now + SOON,
                Denied::Until(at) | Denied::Harm(at) => at,
            };
            self.punching.at = Some(now + env.jitter(until.since(now).max(SOON)));
            return false;
        }
        let opens = role == Role::Opener || strategy.both_open;
        let ports = match (opens, strategy.known_ports) {
            (true, true) => env.ports.open_series(self.spec.key, strategy.ports, seed),
            (true, false) => {
                let opened = env.ports.open(self.spec.key, strategy.ports, &mut env.rng);
                // With few ports, few shots hit: then not at all, but for a strategy that makes do
                // with WireGuard's.
                let enough = opened.len() * 2 >= strategy.ports || !env.profile.pins;
                enough.then_some(opened)
            }
            (false, true) => Some(series(seed).take(strategy.ports).collect()),
            (false, false) => Some(Vec::new()),
        };
        let Some(ports) = ports else {
            self.close_ports(env);
            env.pacer.end(&self.spec.key);
            return false;
        };
        let rtt = self.words_path(now).map(|path| self.rtt(path));
        let phase = match (strategy.timing, role) {
            _ if strategy.samples && opens => {
                env.sampler.refresh();
                Phase::Samples
            }
            (Timing::Armed, Role::Sweeper) if rtt.is_none() => Phase::Shoots { from: now + BEHIND },
            (Timing::Armed, _) => Phase::Shoots { from: now },
            (Timing::Together, Role::Opener) => Phase::Shoots {
                from: now + TOGETHER,
            },
            // The word was half a round trip under way.
            (Timing::Together, Role::Sweeper) => Phase::Shoots {
                from: now + TOGETHER.saturating_sub(rtt.unwrap_or_default() / 2),
            },
        };
        let attempt = self.next_strategy(env).map_or(0, |(.., attempt)| attempt);
        self.punching.volley = Some(Volley {
            strategy,
            role,
            attempt,
            ports,
            target,
            phase,
            began: now,
            until: None,
            next: 0,
            sent: 0,
            awaited: None,
            next_word: now + WORDS,
            rtt,
        });
        self.punching.wake = Some(now);
        env.out.event(Event::StrategyBegun {
            peer: self.spec.key,
            strategy: strategy.name,
            opens: role == Role::Opener,
        });
        true
    }

    fn go_on(&mut self, env: &mut Env, now: Time) {
        if self.watch_for_harm(env, now) {
            return;
        }
        self.end_samples(env, now);
        self.shoot(env, now);
        let Some(volley) = &self.punching.volley else {
            return;
        };
        let found = self.has_find(volley.began, now);
        if found && volley.phase == Phase::Waits {
            // What was found is about to be chosen, or will be when a retreat from direct paths ends.
            let until = Some(now + ANSWERS);
            self.punching.wake = until;
            if let Some(volley) = &mut self.punching.volley {
                volley.until = until;
            }
            return;
        }
        if volley.until.is_some_and(|until| until <= now) {
            self.fail_strategy(env, now);
            return;
        }
        if volley.next_word <= now {
            if let Some(volley) = &mut self.punching.volley {
                volley.next_word = now + WORDS;
            }
            self.say(env, now);
        }
        let Some(volley) = &self.punching.volley else {
            return;
        };
        let wakes = [self.punching.wake, volley.until, Some(volley.next_word)];
        self.punching.wake = wakes.into_iter().flatten().min();
    }

    /// Where this side's sequence is was seen, or could not be.
    fn end_samples(&mut self, env: &mut Env, now: Time) {
        let Some(volley) = &mut self.punching.volley else {
            return;
        };
        if volley.phase != Phase::Samples {
            return;
        }
        let seen = env.sampler.is_fresh_since(volley.began);
        if !seen && now.since(volley.began) < SAMPLE {
            self.punching.wake = Some(now + Duration::from_millis(5));
            return;
        }
        // The sampler's profile is what the word carries.
        env.note_pattern();
        let waits_for_peer = volley.strategy.both_open && volley.role == Role::Opener;
        if waits_for_peer {
            volley.phase = Phase::Waits;
            volley.until = Some(now + SWEEP);
            self.punching.word.stage = Stage::Armed;
        } else {
            volley.phase = Phase::Shoots { from: now };
            if volley.role == Role::Sweeper {
                self.punching.word.stage = Stage::Sweeping;
            }
        }
        if waits_for_peer || volley.strategy.both_open {
            self.say(env, now);
        }
    }

    /// The shots that are due, as far as the budget reaches.
    fn shoot(&mut self, env: &mut Env, now: Time) {
        while let Some(volley) = &self.punching.volley {
            let Phase::Shoots { from } = volley.phase else {
                return;
            };
            let (next, to) = (volley.next, volley.target.ip());
            let within = volley.sent < env.pacer.per_round();
            // What was found is tried first; more of the same would be of no use.
            let found = self.has_direct_answer(volley.began, now);
            let shot = self.shot(volley, env).filter(|_| within && !found);
            let Some(shot) = shot else {
                self.end_shots(env, now);
                return;
            };
            let due = from + shot.after;
            if due > now {
                self.punching.wake = Some(due);
                return;
            }
            let mut reserve = env.pings;
            if !reserve.take_units(RESERVE, now) {
                self.punching.wake = Some(now + Duration::from_millis(5));
                return;
            }
            match env.pacer.take(&self.spec.key, to, now) {
                Ok(()) => {}
                Err(Denied::Until(at)) if at.since(now) < ANSWERS => {
                    self.punching.wake = Some(at.max(now + Duration::from_micros(1)));
                    return;
                }
                Err(_) => {
                    self.end_shots(env, now);
                    return;
                }
            }
            let _ = env.pings.take(now);
            self.send_shot(shot, env, now);
            if let Some(volley) = &mut self.punching.volley {
                volley.next = next + 1;
                volley.sent += 1;
            }
        }
    }

    fn shot(&self, volley: &Volley, env: &Env) -> Option<Shot> {
        let (own, peer) = (&env.profile, &self.punching.peer);
        let (opener, sweeper) = match volley.role {
            Role::Opener => (own, peer),
            Role::Sweeper => (peer, own),
        };
        let aim = Aim {
            pair: Pair { opener, sweeper },
            ports: &volley.ports,
            target: volley.target,
            seed: self.punching.word.seed,
            attempt: volley.attempt,
        };
        match volley.role {
            Role::Opener => (volley.strategy.opener)(&aim, volley.next),
            Role::Sweeper => (volley.strategy.sweeper)(&aim, volley.next),
        }
    }

    /// All shots have left, or no more may.
    fn end_shots(&mut self, env: &mut Env, now: Time) {
        let Some(volley) = &mut self.punching.volley else {
            return;
        };
        volley.phase = Phase::Waits;
        let (wait, word) = match (volley.role, volley.strategy.timing) {
            (Role::Opener, Timing::Armed) if !volley.strategy.both_open => {
                self.punching.word.stage = Stage::Armed;
                (SWEEP, true)
            }
            (Role::Opener | Role::Sweeper, _) => (ANSWERS, false),
        };
        volley.until = Some(now + wait);
        self.punching.wake = volley.until;
        if word {
            self.say(env, now);
        }
    }

    fn send_shot(&mut self, shot: Shot, env: &mut Env, now: Time) {
        let Some(volley) = &mut self.punching.volley else {
            return;
        };
        let awaits = volley.awaited.is_none_or(|at| now.since(at) >= AWAITED);
        if awaits {
            volley.awaited = Some(now);
        }
        let Some(payload) = self.shot_ping(shot.path, awaits, env, now) else {
            return;
        };
        env.out.transmit(Transmit {
            path: shot.path,
            source: None,
            ttl: shot.ttl,
            payload,
        });
    }

    /// The strategy has come to nothing.
    fn fail_strategy(&mut self, env: &mut Env, now: Time) {
        let Some(volley) = &self.punching.volley else {
            return;
        };
        env.out.event(Event::StrategyFailed {
            peer: self.spec.key,
            strategy: volley.strategy.name,
            sent: volley.sent,
        });
        let sweeper = volley.role == Role::Sweeper;
        let rung = usize::try_from(self.punching.failures).unwrap_or(usize::MAX);
        let wait = RETRY.get(rung).or(RETRY.last()).copied();
        // Two long sweeps in a row would add up in the routers' tables.
        let long = volley.sent >= LONG_SWEEP;
        let wait = wait.map(|wait| wait.max(if long { FORGOTTEN } else { SOON }));
        self.punching.failures = self.punching.failures.saturating_add(1);
        self.punching.at = Some(now + wait.unwrap_or(SOON));
        self.stop_punching(env);
        if sweeper {
            self.punching.word.stage = Stage::Done;
            self.say(env, now);
        }
    }

    /// Nothing is under way any more, and the ports that lead nowhere are closed.
    fn stop_punching(&mut self, env: &mut Env) {
        self.punching.volley = None;
        self.punching.word.stage = Stage::Idle;
        env.pacer.end(&self.spec.key);
        self.close_ports(env);
    }

    fn close_ports(&mut self, env: &mut Env) {
        let in_use = [self.keep(), self.device.pin];
        let keeps = |port| {
            in_use
                .into_iter()
                .flatten()
                .any(|path| path.pin() == Some(port))
        };
        env.ports.close(&self.spec.key, keeps);
        self.table.forget_ports(keeps);
    }

    /// The network suffers from what is sent, as far as the path of the words shows: then it is
    /// left in peace.
    fn watch_for_harm(&mut self, env: &mut Env, now: Time) -> bool {
        let Some(volley) = &self.punching.volley else {
            return false;
        };
        let entry = self.words_path(now).and_then(|path| self.table.get(&path));
        let (Some(entry), Some(before)) = (entry, volley.rtt) else {
            return false;
        };
        let (pings, silence) = HARM;
        let unanswered = entry
            .unanswered_since
            .is_some_and(|at| now.since(at) >= silence);
        let (factor, least) = HARM_RTT;
        let slow = entry.rtt.is_some_and(|rtt| rtt > before * factor + least);
        if !(slow || unanswered && entry.unanswered >= pings) {
            return false;
        }
        env.pacer.on_harm(now);
        self.fail_strategy(env, now);
        true
    }

    /// Some direct path has answered since then. An answer from before it is no find: it may be that
    /// of the path whose loss has made the search necessary.
    fn has_direct_answer(&self, since: Time, now: Time) -> bool {
        let mut direct = self.table.iter().filter(|(_, entry)| !entry.is_relay());
        direct.any(|(_, entry)| entry.is_answered_since(since) && !entry.is_blocked(now))
    }

    /// A direct path was proven since then, and WireGuard may pass on it.
    fn has_find(&self, since: Time, now: Time) -> bool {
        let mut direct = self.table.iter().filter(|(_, entry)| !entry.is_relay());
        direct.any(|(_, entry)| entry.is_answered_since(since) && entry.is_usable(now))
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

    /// Where the peer's NAT is, as the peer itself has said: nobody else's word sends shots at an
    /// address.
    fn target(&self) -> Option<SocketAddr> {
        let told = |(path, entry): (&PathId, &Entry)| {
            let outside = entry.kind == CandidateKind::Reflexive && path.remote.is_ipv4();
            let told = outside && path.pin().is_none() && entry.is_sure();
            told.then_some((entry.learned, path.remote))
        };
        let newest = self.table.iter().filter_map(told).max();
        newest.map(|(_, address)| address)
    }
}
