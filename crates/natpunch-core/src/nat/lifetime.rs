//! How long the NAT before this node holds a mapping that nothing passes (RFC 4787, 4.3), measured
//! by STUN from spare ports, never on a mapping that is in use (RFC 5780, 4.6).
//!
//! A trial has two spare ports. The *holder* opens a mapping and is silent. Then the *asker* has
//! the server answer to the holder's mapping: what arrives shows that it was held. Before the
//! silence the same is done once, so that a server or a NAT with which it never works is not taken
//! for one that forgets at once. Where nothing arrives after the silence, the holder asks for
//! itself, so that a network that is down is not either.
//!
//! Most NATs hold a mapping for longer than is worth knowing: their first trial is the last. Of the
//! others a binary search finds the longest silence that they outlive.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::time::Duration;

use natpunch_types::{PathId, PeerKey};
use rand_core::RngCore;

use crate::gather::fresh;
use crate::nat::begin_at;
use crate::nat::stun::{self, Answer, Token, TransactionId};
use crate::ports::SourcePorts;
use crate::{Time, Transmit};

/// The shortest silence that is tried, in seconds: no NAT is known to forget sooner.
pub(crate) const SHORTEST: u8 = 8;
/// The silences that are tried: a little less than the timers that NATs are known to
/// have (10, 15, 20, 30, 35, 60, 90 and 120 s). RFC 4787 (REQ-5) wants at least the last, and more
/// than that saves next to nothing.
const SILENCES: [u8; 8] = [SHORTEST, 13, 18, 28, 34, 58, 85, 110];
/// From the first packet of a mapping to its last before the silence. Linux gives the long timer to
/// those only that have carried packets both ways for more than two seconds.
const SETTLING: Duration = Duration::from_millis(2_500);
/// When a request is sent again, and how often it is sent.
const RESEND: Duration = Duration::from_millis(500);
const TRIES: u32 = 4;
/// After a start or a change of the network until the first trial: the search for paths comes first.
const QUIET: Duration = Duration::from_secs(30);
/// From one trial to the next.
const PAUSE: Duration = Duration::from_secs(1);
/// When it is tried again if no server answered ...
const RETRY: Duration = Duration::from_secs(300);
/// ... or the one that was asked can't send to another port: with the next one.
const OTHER_SERVER: Duration = Duration::from_secs(60);
/// Servers in a row with which it does not work, after which it rests for so long.
const MAX_SERVERS: usize = 4;
const UNFIT: Duration = Duration::from_secs(86_400);
/// When what was measured is tried again, by one trial if it is still true: the router may have been
/// replaced.
const GOOD_FOR: Duration = Duration::from_secs(1_800);
/// For how long it is remembered of another network.
const REMEMBERED: Duration = Duration::from_secs(604_800);
/// Networks that are remembered.
const MAX_NETWORKS: usize = 16;

/// What a trial waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The holder's mapping.
    Open,
    /// That the server can send to it, by the asker's word.
    Control,
    /// The second packet of the holder's, when its mapping is old enough.
    Settle,
    /// The end of the silence.
    Silence,
    /// An answer at the holder's port, by the asker's word.
    Ask,
    /// Any answer to the holder, whose mapping is gone.
    Check,
}

#[derive(Debug)]
struct Trial {
    server: SocketAddr,
    holder: NonZeroU16,
    asker: NonZeroU16,
    /// The place of its silence in [`SILENCES`].
    number: usize,
    step: Step,
    began: Time,
    transaction: TransactionId,
    /// Requests of this step that were sent.
    tries: u32,
    next: Time,
    /// The holder's port outside, and the server's token for it.
    mapped: Option<(u16, Option<Token>)>,
}

/// What became of a trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// The mapping outlived the silence.
    Held,
    /// It did not.
    Forgotten,
    /// With this server it can't be told.
    Unfit,
    /// The server did not answer at all.
    Void,
}

/// What was measured in one network, to be kept over a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MeasuredLifetime {
    /// The network, by the address at which servers see this node there.
    pub network: IpAddr,
    /// The silence that mappings outlive there, in seconds.
    pub seconds: u8,
    /// How long ago it was measured.
    pub age: Duration,
}

/// What is known of how long mappings of one address family live here.
#[derive(Debug)]
pub(crate) struct Lifetimes {
    /// In whose name the spare ports are open.
    owner: PeerKey,
    /// The longest silence that a mapping is known to outlive, in seconds.
    known: Option<u8>,
    trial: Option<Trial>,
    /// The search: the numbers of the silences that may still be the longest.
    range: Option<(usize, usize)>,
    /// The best so far of the search.
    best: Option<u8>,
    /// When the next trial begins.
    due: Option<Time>,
    /// Servers in a row with which it did not work.
    unfit: usize,
    /// By the address that servers saw of it: what was measured in a network, and when.
    networks: BTreeMap<IpAddr, (u8, Time)>,
    /// The network that this node is in.
    network: Option<IpAddr>,
}

impl Lifetimes {
    /// Nothing is known. No peer may have this key.
    pub(crate) const fn new(owner: PeerKey) -> Self {
        Self {
            owner,
            known: None,
            trial: None,
            range: None,
            best: None,
            due: None,
            unfit: 0,
            networks: BTreeMap::new(),
            network: None,
        }
    }

    /// Whether a spare port is one of its trial.
    pub(crate) fn has_port(&self, port: NonZeroU16) -> bool {
        let of_trial = |trial: &Trial| [trial.holder, trial.asker].contains(&port);
        self.trial.as_ref().is_some_and(of_trial)
    }

    /// What was measured lately, of each network.
    pub(crate) fn measured(&self, now: Time) -> impl Iterator<Item = MeasuredLifetime> {
        let networks = self.networks.iter();
        let all = networks.map(move |(network, (seconds, at))| MeasuredLifetime {
            network: *network,
            seconds: *seconds,
            age: now.since(*at),
        });
        all.filter(|measured| measured.age < REMEMBERED)
    }

    /// Takes what an earlier run has measured, unless this one knows better.
    pub(crate) fn restore(&mut self, measured: &MeasuredLifetime, now: Time) {
        let is_one = SILENCES.contains(&measured.seconds) && measured.age < REMEMBERED;
        // On a clock that has not run for so long yet, it is as old as the clock.
        let at = now - measured.age;
        if is_one && !self.networks.contains_key(&measured.network) {
            self.remember(measured.network, measured.seconds, at);
        }
    }

    /// The longest silence that mappings of this node are known to outlive, in whole seconds.
    pub(crate) fn known(&self) -> Option<u8> {
        self.known
    }

    /// The network is another.
    pub(crate) fn restart(&mut self, ports: &mut SourcePorts, now: Time) {
        self.end_trial(ports);
        *self = Self {
            networks: std::mem::take(&mut self.networks),
            due: Some(now + QUIET),
            ..Self::new(self.owner)
        };
    }

    /// A mapping was lost that should have been held: nothing is known any more.
    pub(crate) fn doubt(&mut self, ports: &mut SourcePorts, now: Time) {
        if let Some(network) = self.network {
            self.networks.remove(&network);
        }
        self.restart(ports, now);
    }

    /// When something is due, if there is anything to be held.
    pub(crate) fn next_timeout(&self) -> Option<Time> {
        let trial = self.trial.as_ref().map(|trial| trial.next);
        trial.or(self.due)
    }

    /// Goes on with a trial, or begins one that is due. `servers`: STUN servers of the family that
    /// answer; `wanted`: some mapping is to be held.
    pub(crate) fn handle_timeout(
        &mut self,
        servers: impl FnOnce() -> Vec<SocketAddr>,
        wanted: bool,
        ports: &mut SourcePorts,
        rng: &mut impl RngCore,
        now: Time,
        mut send: impl FnMut(Transmit),
    ) {
        if !(wanted && ports.are_of_use()) {
            self.end_trial(ports);
            return;
        }
        let due = *self.due.get_or_insert(now + QUIET);
        if self.trial.is_none() && due <= now {
            self.begin(&servers(), ports, rng, now);
        }
        let Some(trial) = self.trial.as_mut().filter(|trial| trial.next <= now) else {
            return;
        };
        if trial.step == Step::Silence {
            trial.turn(Step::Ask, now, rng);
        }
        if trial.tries < TRIES {
            send(trial.request());
            trial.tries += 1;
            trial.next = now + RESEND;
            return;
        }
        match trial.step {
            Step::Open | Step::Settle | Step::Check | Step::Silence => {
                self.conclude(Outcome::Void, ports, now);
            }
            // The server answers the holder, and not there by another's word.
            Step::Control => self.conclude(Outcome::Unfit, ports, now),
            Step::Ask => trial.turn(Step::Check, now, rng),
        }
    }

    /// The number of the silence to begin with.
    fn first(&self) -> usize {
        let is_known = |silence: &u8| Some(*silence) == self.known;
        let known = SILENCES.iter().position(is_known);
        known.unwrap_or(SILENCES.len() - 1)
    }

    fn begin(
        &mut self,
        servers: &[SocketAddr],
        ports: &mut SourcePorts,
        rng: &mut impl RngCore,
        now: Time,
    ) {
        let number = match self.range {
            // What is known first, or the longest, which is all that most NATs need.
            None => self.first(),
            Some((low, high)) => low.midpoint(high),
        };
        let begun = begin_at(servers, self.unfit, ports, self.owner, rng);
        let Some((server, [holder, asker])) = begun else {
            self.due = Some(now + RETRY);
            return;
        };
        self.trial = Some(Trial {
            server,
            holder,
            asker,
            number,
            step: Step::Open,
            began: now,
            transaction: fresh(rng),
            tries: 0,
            next: now,
            mapped: None,
        });
    }

    /// Takes an answer that came to a port of a trial.
    pub(crate) fn handle_answer(
        &mut self,
        path: PathId,
        payload: &[u8],
        ports: &mut SourcePorts,
        rng: &mut impl RngCore,
        now: Time,
    ) {
        let Some(trial) = self.trial.as_mut().filter(|t| t.server == path.remote) else {
            return;
        };
        let Some((transaction, answer)) = stun::parse_answer(payload) else {
            return;
        };
        let at_holder = path.pin() == Some(trial.holder);
        if transaction != trial.transaction {
            return;
        }
        match (trial.step, answer) {
            (Step::Open, Answer::Mapped(address)) if at_holder => {
                trial.mapped = Some((address.port(), stun::parse_token(payload)));
                trial.turn(Step::Control, now, rng);
                self.recall(address.ip(), now);
                let first = self.first();
                if let Some(trial) = self.trial.as_mut().filter(|_| self.range.is_none()) {
                    trial.number = first;
                }
            }
            (Step::Control, Answer::Mapped(_)) if at_holder => {
                trial.turn(Step::Settle, now, rng);
                trial.next = trial.began + SETTLING;
            }
            (Step::Settle, Answer::Mapped(_)) if at_holder => {
                let silence = SILENCES.get(trial.number).copied().unwrap_or_default();
                trial.turn(Step::Silence, now, rng);
                trial.next = now + Duration::from_secs(silence.into());
            }
            (Step::Ask, Answer::Mapped(_)) if at_holder => {
                self.conclude(Outcome::Held, ports, now);
            }
            (Step::Check, Answer::Mapped(_)) if at_holder => {
                self.conclude(Outcome::Forgotten, ports, now);
            }
            // It refuses to send to another port, or has not understood.
            (Step::Control, _) => self.conclude(Outcome::Unfit, ports, now),
            _ => {}
        }
    }

    /// The network is the one that servers see at this address: what was measured in it before is
    /// taken for true until it is measured anew.
    fn recall(&mut self, network: IpAddr, now: Time) {
        self.network = Some(network);
        let remembered = self.networks.get(&network);
        if let Some((lifetime, _)) = remembered.filter(|(_, at)| now.since(*at) < REMEMBERED) {
            self.known = self.known.or(Some(*lifetime));
        }
    }

    fn conclude(&mut self, outcome: Outcome, ports: &mut SourcePorts, now: Time) {
        let Some(number) = self.trial.as_ref().map(|trial| trial.number) else {
            return;
        };
        self.end_trial(ports);
        let (low, high) = self.range.unwrap_or((0, number));
        let next = match outcome {
            Outcome::Held => {
                self.best = SILENCES.get(number).copied();
                (number < high).then_some((number + 1, high))
            }
            Outcome::Forgotten => {
                // What was known is not true any more.
                self.known
                    .take_if(|known| SILENCES.get(number).is_some_and(|n| n <= known));
                let shorter = number.checked_sub(1).filter(|high| low <= *high);
                shorter.map(|high| (low, high))
            }
            Outcome::Void => {
                self.due = Some(now + RETRY);
                return;
            }
            Outcome::Unfit => {
                self.unfit += 1;
                let is_last = self.unfit.is_multiple_of(MAX_SERVERS);
                self.due = Some(now + if is_last { UNFIT } else { OTHER_SERVER });
                return;
            }
        };
        self.range = next;
        if next.is_some() {
            self.due = Some(now + PAUSE);
            return;
        }
        // Nothing that was tried is short enough for some: then nothing is known.
        self.known = self.best.take();
        self.due = Some(now + GOOD_FOR);
        if let (Some(network), Some(lifetime)) = (self.network, self.known) {
            self.remember(network, lifetime, now);
        }
    }

    fn remember(&mut self, network: IpAddr, lifetime: u8, now: Time) {
        self.networks.insert(network, (lifetime, now));
        if self.networks.len() > MAX_NETWORKS {
            let oldest = self.networks.iter().min_by_key(|(_, (_, at))| *at);
            if let Some(oldest) = oldest.map(|(network, _)| *network) {
                self.networks.remove(&oldest);
            }
        }
    }

    fn end_trial(&mut self, ports: &mut SourcePorts) {
        if self.trial.take().is_some() {
            ports.close(&self.owner, |_| false);
        }
    }
}

impl Trial {
    fn turn(&mut self, step: Step, now: Time, rng: &mut impl RngCore) {
        self.step = step;
        self.transaction = fresh(rng);
        (self.tries, self.next) = (0, now);
    }

    /// The request of this step.
    fn request(&self) -> Transmit {
        let by_asker = matches!(self.step, Step::Control | Step::Ask);
        let port = if by_asker { self.asker } else { self.holder };
        let payload = match self.mapped.filter(|_| by_asker) {
            Some((port, token)) => stun::request_to_port(self.transaction, port, token),
            None => stun::request_token(self.transaction),
        };
        Transmit::new(PathId::from_port(port, self.server), payload)
    }
}

#[cfg(test)]
#[path = "lifetime_tests.rs"]
mod tests;
