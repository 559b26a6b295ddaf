//! One volley: a strategy from its first packet to its end.

use std::time::Duration;

use natpunch_types::{IcmpError, LocalSocket};

use crate::env::Env;
use crate::messages::about::Stage;
use crate::messages::probe;
use crate::nat::hops::opener_ttl;
use crate::pacer::{Denied, FORGOTTEN, LONG_SWEEP};
use crate::ports::series;
use crate::strategy::{Aim, Pair, Role, Shot, Timing, Turn};
use crate::{Event, PacketKind, Time, Transmit};

use super::super::Peer;
use super::{NEXT, Phase, RETRY, SOON, Trust, Volley, WORDS};

/// How long it may take to see where a sequence of ports is.
const SAMPLE: Duration = Duration::from_secs(1);
/// From the opener's word to the moment at which both begin.
const TOGETHER: Duration = Duration::from_millis(400);
/// How long the opener waits for what the sweep brings: the longest sweep, and some.
const SWEEP: Duration = Duration::from_secs(10);
/// How long answers are awaited after the last shot.
pub(super) const ANSWERS: Duration = Duration::from_secs(1);
/// Where no word can be said, the sweeper begins so much later than the opener.
const BEHIND: Duration = Duration::from_millis(2500);
/// Pings that the node keeps for other paths while it sweeps.
const RESERVE: u64 = 25;
/// A pong is awaited for every shot of these.
const AWAITED: Duration = Duration::from_secs(5);
/// Prohibitions that a volley may draw where they quote the ports of a shot and none of its bytes.
const HINTS: u32 = 3;
/// Signs of harm: so many words in a row, over at least so long, without an answer ...
const HARM: (u32, Duration) = (4, Duration::from_millis(1500));
/// ... or a round trip that grows to so many times what it was, and more than this.
const HARM_RTT: (u32, Duration) = (3, Duration::from_millis(100));

impl Peer {
    /// Begins a volley; false if it can't be, in which case the next try has its time.
    pub(super) fn begin(&mut self, turn: Turn, seed: u16, env: &mut Env, now: Time) -> bool {
        let Turn { strategy, role, .. } = turn;
        let trust = match strategy.timing {
            Timing::Alone => Trust::Anybody,
            Timing::Armed | Timing::Together => Trust::Peer,
        };
        let Some((_, target)) = self.target(trust) else {
            return false;
        };
        if env.local.shares_public_ip(target.ip()) {
            // Behind one NAT: the LAN is the way.
            return false;
        }
        let shots = match role {
            Role::Sweeper if !strategy.known_ports => env.pacer.per_round(),
            Role::Opener | Role::Sweeper => u32::try_from(strategy.ports).unwrap_or(u32::MAX),
        };
        let against_odds = turn.against_odds.then_some(shots);
        if let Err(denied) = env
            .pacer
            .begin(self.spec.key, target.ip(), against_odds, now)
        {
            env.probes.held_back += 1;
            let until = match denied {
                Denied::Busy | Denied::Off => now + SOON,
                Denied::Until(at) | Denied::Harm(at) => at,
            };
            self.punching.at = Some(now + env.jitter(until.since(now).max(SOON)));
            return false;
        }
        let opens = role == Role::Opener || strategy.both_open;
        let ports = match (opens, strategy.known_ports) {
            // A side without ports of its own does the other half.
            (true, true) if strategy.timing == Timing::Alone => {
                let opened = env.ports.open_series(self.spec.key, strategy.ports, seed);
                Some(opened.unwrap_or_default())
            }
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
            self.punching.at = Some(now + SOON);
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
            (Timing::Armed | Timing::Alone, _) => Phase::Shoots { from: now },
            (Timing::Together, Role::Opener) => Phase::Shoots {
                from: now + TOGETHER,
            },
            // The word was half a round trip under way.
            (Timing::Together, Role::Sweeper) => Phase::Shoots {
                from: now + TOGETHER.saturating_sub(rtt.unwrap_or_default() / 2),
            },
        };
        let attempt = self.next_strategy(env, now).map_or(0, |turn| turn.attempt);
        self.punching.waits = false;
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
            prohibitions: 0,
        });
        self.punching.wake = Some(now);
        env.out.event(Event::StrategyBegun {
            peer: self.spec.key,
            strategy: strategy.name,
            opens: role == Role::Opener,
        });
        true
    }

    pub(super) fn go_on(&mut self, env: &mut Env, now: Time) {
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
            let shot = self.shot(volley, next, env).filter(|_| within && !found);
            let Some(shot) = shot else {
                self.end_shots(env, now);
                return;
            };
            let due = from + shot.after;
            if due > now {
                self.punching.wake = Some(due);
                return;
            }
            // The rate is that of all probes. Where much else leaves, as with many paths or packets
            // that arrive twice, shots make room for it, so that a fifth is always left.
            let is_full = env.out.sent_lately(now) >= env.pacer.rate_of_shots();
            if is_full || !env.pings.has_left(RESERVE, now) {
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

    /// Shot number `n` of this side.
    fn shot(&self, volley: &Volley, n: usize, env: &Env) -> Option<Shot> {
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
            peers_seed: self.keys.as_ref().map_or(0, |keys| keys.inbound.ports_seed),
            attempt: volley.attempt,
            opener_ttl: opener_ttl(env.profile.hops),
        };
        match volley.role {
            Role::Opener => (volley.strategy.opener)(&aim, n),
            Role::Sweeper => (volley.strategy.sweeper)(&aim, n),
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
        env.probes.guessed += 1;
        let guess = Transmit {
            travel: shot.ttl.into(),
            ..Transmit::new(shot.path, payload)
        };
        self.send(PacketKind::Guess, guess, env, now);
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
        let (strategy, role) = (volley.strategy, volley.role);
        let sweeper = role == Role::Sweeper;
        let mut wait = self.wait_after(env, now);
        if wait > SOON {
            // Two sides that fall into step would both open, and neither would sweep.
            wait = env.jitter(wait);
        }
        // The sweeper's pacer has to let it begin again when the ports are open.
        let was_long = volley.role == Role::Opener && volley.sent >= LONG_SWEEP;
        let least = if was_long { FORGOTTEN + SOON * 2 } else { SOON };
        // A sweep that the peer has called for out of this side's turn leaves this side its turn.
        let is_turn = |turn: &Turn| turn.strategy.id == strategy.id && turn.role == role;
        let next = if self.next_strategy(env, now).as_ref().is_some_and(is_turn) {
            self.punching.failures = self.punching.failures.saturating_add(1);
            now + wait.max(least)
        } else {
            self.punching.at.unwrap_or(now).max(now + least)
        };
        self.punching.at = Some(next);
        self.stop_punching(env);
        if sweeper {
            self.punching.word.stage = Stage::Done;
            self.say(env, now);
        }
    }

    /// From a try that fails now to the next.
    fn wait_after(&self, env: &Env, now: Time) -> Duration {
        let failures = self.punching.failures;
        let plan = self.plan(env, now);
        let waits = match plan.rounds(failures.saturating_add(1)) {
            0 if failures == 0 => NEXT.first(),
            0 => NEXT.last(),
            1 => RETRY.first(),
            _ => RETRY.last(),
        };
        waits.copied().unwrap_or(SOON)
    }

    /// Nothing is under way any more, and the ports that lead nowhere are closed.
    pub(in crate::peer) fn stop_punching(&mut self, env: &mut Env) {
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

    /// A router on the way says that what is sent is forbidden: then nothing more is. It has to quote
    /// a shot of the volley that is under way. The peer's own router does not count: it may say so of
    /// every port that is closed, and the peer itself has asked for the sweep.
    pub(crate) fn handle_prohibition(&mut self, error: &IcmpError, env: &mut Env, now: Time) {
        let (Some(volley), Some(keys)) = (&self.punching.volley, &self.keys) else {
            return;
        };
        let target = volley.target.ip();
        if error.from == target || error.destination.ip() != target {
            return;
        }
        let quoted = probe::quote(&error.payload, &keys.outbound);
        let is_shot = |shot: Shot| {
            let is_source = match shot.path.local {
                LocalSocket::SourcePort(port) => port.get() == error.source_port,
                LocalSocket::WireguardPort => env.local.is_listen_port(error.source_port),
            };
            is_source && shot.path.remote == error.destination
        };
        let sent = || (0..volley.next).filter_map(|n| self.shot(volley, n, env));
        let Some(has_tag) = quoted.filter(|_| sent().any(is_shot)) else {
            return;
        };
        if let Some(volley) = &mut self.punching.volley {
            // Who quotes no more than the ports may have guessed them.
            volley.prohibitions += if has_tag { HINTS } else { 1 };
            if volley.prohibitions >= HINTS {
                env.pacer.on_harm(now);
                self.fail_strategy(env, now);
            }
        }
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
}
