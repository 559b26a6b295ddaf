//! The node's punch budget: one pacer for all that is sent to guessed ports, whatever the peer.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use natpunch_types::{PeerKey, Rate, RateBudget};

use crate::{PunchSpec, Time};

/// The longest bound of the budget.
const LONG: Duration = Duration::from_secs(600);
/// What was sent is remembered in steps of this.
const STEP: Duration = Duration::from_secs(1);
/// Shots that leave at once at most.
const BURST: u64 = 8;
/// Routers forget an unanswered packet after this (Linux: 30 s) ...
pub(crate) const FORGOTTEN: Duration = Duration::from_secs(32);
/// ... and after so many in that time the next sweep waits for it, or they would add up in a table.
pub(crate) const LONG_SWEEP: u32 = 200;
/// How many eighths of the ten minutes' bound may go to sweeps against the odds: one long sweep and
/// the opener's ports of another.
const AGAINST_ODDS: u32 = 5;
/// After a sign of harm nothing is guessed for this long.
const REST: Duration = Duration::from_secs(600);

/// Why nothing is sent to guessed ports at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Denied {
    /// The mesh file says so.
    Off,
    /// A sweep of another peer is under way.
    Busy,
    /// The budget is used up until then.
    Until(Time),
    /// The network showed signs of harm; nothing is guessed until then.
    Harm(Time),
}

/// What was sent within one step.
#[derive(Debug, Clone, Copy)]
struct Sent {
    at: Time,
    shots: u32,
    /// Those among them that were against the odds.
    against_odds: u32,
}

/// A sweep, towards one address.
#[derive(Debug, Clone, Copy)]
struct Sweep {
    peer: PeerKey,
    to: IpAddr,
    against_odds: bool,
}

/// Bounds of what this node sends to guessed ports.
#[derive(Debug)]
pub(crate) struct Pacer {
    spec: PunchSpec,
    rate: RateBudget,
    /// When how many were sent, of the last ten minutes.
    log: VecDeque<Sent>,
    /// The one sweep that is under way.
    sweep: Option<Sweep>,
    rests_until: Option<Time>,
}

impl Default for Pacer {
    fn default() -> Self {
        Self::new(PunchSpec::default())
    }
}

impl Pacer {
    pub(crate) fn new(spec: PunchSpec) -> Self {
        let rate = u64::from(shots_of(&spec));
        Self {
            rate: RateBudget::new(Rate::per_second(rate, BURST.min(rate))),
            spec,
            log: VecDeque::new(),
            sweep: None,
            rests_until: None,
        }
    }

    /// Takes other bounds; what was sent counts on.
    pub(crate) fn set(&mut self, spec: PunchSpec) {
        if self.spec != spec {
            let before = std::mem::replace(self, Self::new(spec));
            self.log = before.log;
            self.sweep = before.sweep;
            self.rests_until = before.rests_until;
        }
    }

    /// Whether ports are guessed at all.
    pub(crate) fn sprays(&self) -> bool {
        self.spec.spray && self.spec.rate > 0
    }

    /// Shots of one second.
    pub(crate) fn rate_of_shots(&self) -> u32 {
        shots_of(&self.spec)
    }

    pub(crate) fn per_round(&self) -> u32 {
        self.spec.per_round
    }

    /// Sent in the last ten minutes.
    pub(crate) fn used(&self, now: Time) -> u32 {
        self.lately(now).map(|sent| sent.shots).sum()
    }

    fn lately(&self, now: Time) -> impl Iterator<Item = &Sent> {
        self.log
            .iter()
            .filter(move |sent| now.since(sent.at) < LONG)
    }

    /// What may be sent in ten minutes.
    pub(crate) fn allowed(&self) -> u32 {
        self.spec.per_10_minutes
    }

    /// What bars every sweep at this moment.
    pub(crate) fn barred(&self, now: Time) -> Option<Denied> {
        if !self.sprays() {
            return Some(Denied::Off);
        }
        if let Some(until) = self.rests_until.filter(|until| now < *until) {
            return Some(Denied::Harm(until));
        }
        let until = self.used_up_until(now).max(self.remembered_until(now));
        until.map(Denied::Until)
    }

    /// Begins a sweep towards an address. Of one against the odds the number of its shots is given:
    /// all of those leave a part of the ten minutes' bound to others.
    pub(crate) fn begin(
        &mut self,
        peer: PeerKey,
        to: IpAddr,
        against_odds: Option<u32>,
        now: Time,
    ) -> Result<(), Denied> {
        if let Some(denied) = self.barred(now) {
            return Err(denied);
        }
        let sent: u32 = self.lately(now).map(|sent| sent.against_odds).sum();
        let most = self.spec.per_10_minutes / 8 * AGAINST_ODDS;
        if against_odds.is_some_and(|shots| sent.saturating_add(shots) > most) {
            return Err(Denied::Until(now + FORGOTTEN));
        }
        if self.sweep.is_some_and(|sweep| sweep.peer != peer) {
            return Err(Denied::Busy);
        }
        self.sweep = Some(Sweep {
            peer,
            to,
            against_odds: against_odds.is_some(),
        });
        Ok(())
    }

    /// Whose sweep is under way.
    pub(crate) fn sweeping(&self) -> Option<PeerKey> {
        self.sweep.map(|sweep| sweep.peer)
    }

    /// The sweep is over.
    pub(crate) fn end(&mut self, peer: &PeerKey) {
        self.sweep.take_if(|sweep| sweep.peer == *peer);
    }

    /// Takes one shot at this address; when the next may be taken if not now.
    pub(crate) fn take(&mut self, peer: &PeerKey, to: IpAddr, now: Time) -> Result<(), Denied> {
        let is_this = |sweep: &Sweep| sweep.peer == *peer && sweep.to == to;
        let Some(sweep) = self.sweep.filter(is_this) else {
            return Err(Denied::Busy);
        };
        // A step is forgotten when its last shot may be.
        let is_over = |sent: &Sent| now.since(sent.at) >= LONG + STEP;
        while self.log.front().is_some_and(is_over) {
            self.log.pop_front();
        }
        if let Some(until) = self.used_up_until(now) {
            return Err(Denied::Until(until));
        }
        if !self.rate.take(now) {
            let at = self.rate.available_at().unwrap_or(now + LONG);
            return Err(Denied::Until(at));
        }
        let against_odds = u32::from(sweep.against_odds);
        match self.log.back_mut() {
            Some(sent) if now.since(sent.at) < STEP => {
                sent.shots += 1;
                sent.against_odds += against_odds;
            }
            _ => self.log.push_back(Sent {
                at: now,
                shots: 1,
                against_odds,
            }),
        }
        Ok(())
    }

    /// The network suffers: nothing is guessed for a while.
    pub(crate) fn on_harm(&mut self, now: Time) {
        self.rests_until = Some(now + REST);
        self.sweep = None;
    }

    /// Until when routers remember so much that another sweep would be too much.
    fn remembered_until(&self, now: Time) -> Option<Time> {
        let is_remembered = |sent: &&Sent| now.since(sent.at) < FORGOTTEN + STEP;
        let remembered = || self.log.iter().filter(is_remembered);
        let sent: u32 = remembered().map(|sent| sent.shots).sum();
        let last = remembered()
            .map(|sent| sent.at + FORGOTTEN + STEP)
            .next_back();
        last.filter(|_| sent >= LONG_SWEEP)
    }

    /// Until when there is nothing left of the ten minutes' bound; `None` if something is.
    fn used_up_until(&self, now: Time) -> Option<Time> {
        let lately = || {
            self.log
                .iter()
                .filter(|sent| now.since(sent.at) < LONG + STEP)
        };
        let sent: u32 = lately().map(|sent| sent.shots).sum();
        let first = lately().map(|sent| sent.at).next();
        first
            .filter(|_| sent >= self.spec.per_10_minutes)
            .map(|at| at + LONG + STEP)
    }
}

/// A fifth of the rate is left to the node's other probes, so that all together keep it.
fn shots_of(spec: &PunchSpec) -> u32 {
    spec.rate.saturating_mul(4) / 5
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn key(n: u8) -> PeerKey {
        PeerKey::from_bytes([n; 32])
    }

    /// Shots that leave within this many seconds, one tried each millisecond.
    fn shots(pacer: &mut Pacer, from: u64, seconds: u64) -> usize {
        let times = (from * 1000..(from + seconds) * 1000).map(Time::from_millis);
        times
            .filter(|now| pacer.take(&key(1), HERE, *now).is_ok())
            .count()
    }

    #[test]
    fn no_second_and_no_ten_minutes_see_more_than_their_bounds() {
        let mut pacer = Pacer::default();
        pacer
            .begin(key(1), HERE, None, Time::from_millis(1000))
            .unwrap();
        let first = shots(&mut pacer, 1, 1);
        assert!((190..=250).contains(&first), "{first}");
        let rest = shots(&mut pacer, 2, 500);
        assert_eq!(first + rest, 2048);
        let denied = pacer.begin(key(1), HERE, None, Time::from_millis(502_000));
        assert!(matches!(denied, Err(Denied::Until(at)) if at > Time::from_millis(600_000)));
        assert_eq!(pacer.used(Time::from_millis(502_000)), 2048);
        assert!(shots(&mut pacer, 601, 10) > 0);
    }

    #[test]
    fn one_sweep_is_under_way_at_a_time_and_towards_one_address() {
        let (mut pacer, now) = (Pacer::default(), Time::from_millis(1));
        pacer.begin(key(1), HERE, None, now).unwrap();
        assert_eq!(pacer.begin(key(2), HERE, None, now), Err(Denied::Busy));
        let there = IpAddr::from([192, 0, 2, 1]);
        assert_eq!(pacer.take(&key(1), there, now), Err(Denied::Busy));
        assert_eq!(pacer.take(&key(1), HERE, now), Ok(()));
        pacer.end(&key(1));
        assert_eq!(pacer.begin(key(2), HERE, None, now), Ok(()));
    }

    #[test]
    fn a_sweep_against_the_odds_leaves_some_of_the_budget_to_others() {
        let (mut pacer, now) = (Pacer::default(), Time::from_millis(1000));
        pacer.begin(key(1), HERE, Some(1024), now).unwrap();
        assert!(shots(&mut pacer, 1, 5) > 512);
        pacer.end(&key(1));
        let later = Time::from_millis(60_000);
        let denied = pacer.begin(key(1), HERE, Some(1024), later);
        assert!(matches!(denied, Err(Denied::Until(at)) if at > later));
        assert_eq!(pacer.begin(key(1), HERE, None, later), Ok(()));
        assert_eq!(
            pacer.begin(key(1), HERE, Some(1024), Time::from_millis(620_000)),
            Ok(())
        );
    }

    #[test]
    fn a_sweep_after_a_long_one_waits_until_routers_have_forgotten_that() {
        let (mut pacer, now) = (Pacer::default(), Time::from_millis(1000));
        pacer.begin(key(1), HERE, None, now).unwrap();
        assert!(shots(&mut pacer, 1, 2) > 200);
        pacer.end(&key(1));
        let denied = pacer.begin(key(2), HERE, None, Time::from_millis(5000));
        let Err(Denied::Until(at)) = denied else {
            panic!("{denied:?}");
        };
        assert!(at > Time::from_millis(34_000), "{at:?}");
        assert_eq!(pacer.begin(key(2), HERE, None, at), Ok(()));
    }

    #[test]
    fn nothing_is_guessed_after_a_sign_of_harm_or_where_the_mesh_file_forbids_it() {
        let (mut pacer, now) = (Pacer::default(), Time::from_millis(1));
        pacer.begin(key(1), HERE, None, now).unwrap();
        pacer.on_harm(now);
        assert!(pacer.take(&key(1), HERE, now).is_err());
        assert!(matches!(
            pacer.begin(key(1), HERE, None, now),
            Err(Denied::Harm(_))
        ));
        pacer.set(PunchSpec {
            spray: false,
            ..PunchSpec::default()
        });
        assert_eq!(pacer.begin(key(1), HERE, None, now), Err(Denied::Off));
    }
}
