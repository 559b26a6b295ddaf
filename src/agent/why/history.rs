//! What happened to each peer's path, and when: what the core tells as events, kept for `why`.
//! Pure and bounded: events and the time in, the last steps out.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;

use natpunch_core::Event;
use natpunch_types::{CandidateKind, PathId, PeerKey, Time};
use serde::{Deserialize, Serialize};

/// Steps of each sort that are kept of a peer: changes of its path, and the many on the way there.
const STEPS: usize = 24;
/// Runs of strategies that are kept of a peer.
const RUNS: usize = 8;
/// Peers of which anything is kept.
const PEERS: usize = 16_384;

/// What happened to the peers' paths lately.
#[derive(Debug, Default)]
pub(in crate::agent) struct History(BTreeMap<PeerKey, Past>);

/// What happened to the paths of one peer.
#[derive(Debug, Default)]
pub(in crate::agent) struct Past {
    changes: VecDeque<(Time, Change)>,
    steps: VecDeque<(Time, String)>,
    runs: VecDeque<Run>,
}

/// A change of the path in use.
#[derive(Debug)]
struct Change {
    text: String,
    /// The path, if the pair uses it from then on.
    to: Option<Used>,
}

/// A path that is or was in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::agent) struct Used {
    path: PathId,
    by_relay: bool,
}

/// A strategy against the pair's NATs, once.
#[derive(Debug)]
struct Run {
    strategy: &'static str,
    opens: bool,
    began: Time,
    ended: Option<(Time, Ended)>,
}

#[derive(Debug, Clone, Copy)]
enum Ended {
    Failed {
        sent: u32,
    },
    /// A direct path was connected while it was under way.
    Connected,
}

/// Something that happened, as `why` tells it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// How long ago, in seconds.
    pub ago_s: f64,
    /// What, for people.
    pub text: String,
}

/// Since when the path in use is used, and what it replaced.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Since {
    /// For how long the path has been in use, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since_s: Option<f64>,
    /// The path before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replaced: Option<Replaced>,
}

/// A path that was in use before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Replaced {
    /// Where the peer, or its relay, was reached.
    pub endpoint: SocketAddr,
    /// Whether it passed through a relay.
    pub by_relay: bool,
    /// For how long it was used, in seconds.
    pub for_s: f64,
}

/// A strategy against the pair's NATs, as `why` tells it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StrategyRun {
    /// Its name, as in docs/nat.md.
    pub strategy: String,
    /// Whether this side opened ports; else it looked for the peer's.
    pub opens: bool,
    /// How long ago it began, in seconds.
    pub ago_s: f64,
    /// How it ended: `failed`, `connected`, or `running`.
    pub result: String,
    /// Packets that this side sent, of one that failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sent: Option<u32>,
}

impl History {
    /// Takes an event. `kind` is how the other end of its path was found.
    pub(in crate::agent) fn note(&mut self, event: &Event, kind: Option<CandidateKind>, now: Time) {
        let Some(peer) = event.peer() else { return };
        if !self.0.contains_key(peer) && self.0.len() >= PEERS {
            return;
        }
        let past = self.0.entry(*peer).or_default();
        let by_relay = kind == Some(CandidateKind::Relay);
        match event {
            Event::StrategyBegun {
                strategy, opens, ..
            } => {
                past.end_run(Ended::Failed { sent: 0 }, now);
                let run = Run {
                    strategy,
                    opens: *opens,
                    began: now,
                    ended: None,
                };
                push(&mut past.runs, run, RUNS);
            }
            Event::StrategyFailed { sent, .. } => past.end_run(Ended::Failed { sent: *sent }, now),
            Event::Connected { .. } if !by_relay => past.end_run(Ended::Connected, now),
            _ => {}
        }
        if event.is_step() {
            push(&mut past.steps, (now, event.to_string()), STEPS);
            return;
        }
        let to = match event {
            Event::PathSelected { path, .. }
            | Event::Connected { path, .. }
            | Event::Roamed { path, .. }
            | Event::Adopted { path, .. } => Some(Used {
                path: *path,
                by_relay,
            }),
            _ => None,
        };
        let mut text = event.to_string();
        if let (Event::Connected { path, .. }, true) = (event, by_relay) {
            text = format!("connected by the relay at {path}");
        }
        push(&mut past.changes, (now, Change { text, to }), STEPS);
    }

    /// Forgets the peers that are no longer there.
    pub(in crate::agent) fn keep(&mut self, is_there: impl Fn(&PeerKey) -> bool) {
        self.0.retain(|key, _| is_there(key));
    }

    pub(in crate::agent) fn of(&self, peer: &PeerKey) -> Option<&Past> {
        self.0.get(peer)
    }
}

impl Past {
    fn end_run(&mut self, how: Ended, now: Time) {
        if let Some(run) = self.runs.back_mut().filter(|run| run.ended.is_none()) {
            run.ended = Some((now, how));
        }
    }

    /// Since when the path that ends at `endpoint` is in use, and what was before it.
    pub(in crate::agent) fn since(&self, endpoint: SocketAddr, now: Time) -> Since {
        // The stretches in which one path was aimed at, the oldest first.
        let mut stretches: Vec<(Time, Used)> = Vec::new();
        for (at, used) in self.changes.iter().filter_map(|(at, c)| Some((at, c.to?))) {
            if stretches.last().is_none_or(|(_, last)| *last != used) {
                stretches.push((*at, used));
            }
        }
        let is_this = |used: &Used| used.path.endpoint() == endpoint;
        let Some((since, _)) = stretches.pop().filter(|(_, used)| is_this(used)) else {
            return Since::default();
        };
        let replaced = stretches.last().map(|(at, used)| Replaced {
            endpoint: used.path.endpoint(),
            by_relay: used.by_relay,
            for_s: since.since(*at).as_secs_f64(),
        });
        Since {
            since_s: Some(now.since(since).as_secs_f64()),
            replaced,
        }
    }

    /// The changes of the path, the newest first.
    pub(in crate::agent) fn changes(&self, now: Time) -> Vec<Step> {
        let changes = self.changes.iter().rev();
        changes
            .map(|(at, change)| step(*at, &change.text, now))
            .collect()
    }

    /// What led to them, the newest first.
    pub(in crate::agent) fn steps(&self, now: Time) -> Vec<Step> {
        let steps = self.steps.iter().rev();
        steps.map(|(at, text)| step(*at, text, now)).collect()
    }

    /// The strategies that ran, the newest first.
    pub(in crate::agent) fn runs(&self, now: Time) -> Vec<StrategyRun> {
        let run = |run: &Run| {
            let (result, sent) = match run.ended {
                None => ("running", None),
                Some((_, Ended::Failed { sent })) => ("failed", Some(sent)),
                Some((_, Ended::Connected)) => ("connected", None),
            };
            StrategyRun {
                strategy: run.strategy.to_owned(),
                opens: run.opens,
                ago_s: now.since(run.began).as_secs_f64(),
                result: result.to_owned(),
                sent,
            }
        };
        self.runs.iter().rev().map(run).collect()
    }
}

fn step(at: Time, text: &str, now: Time) -> Step {
    Step {
        ago_s: now.since(at).as_secs_f64(),
        text: text.to_owned(),
    }
}

fn push<T>(queue: &mut VecDeque<T>, item: T, most: usize) {
    if queue.len() >= most {
        queue.pop_front();
    }
    queue.push_back(item);
}

#[cfg(test)]
mod tests {
    use natpunch_core::EndpointReason;

    use super::*;

    const PEER: PeerKey = PeerKey::from_bytes([1; 32]);

    fn path(n: u8) -> PathId {
        PathId::wireguard(SocketAddr::from(([198, 51, 100, n], 51820)))
    }

    fn at(seconds: u64) -> Time {
        Time::from_millis(seconds * 1_000)
    }

    fn select(history: &mut History, n: u8, kind: CandidateKind, seconds: u64) {
        let event = Event::PathSelected {
            peer: PEER,
            path: path(n),
            reason: EndpointReason::FirstPath,
        };
        history.note(&event, Some(kind), at(seconds));
    }

    #[test]
    fn the_path_in_use_is_told_with_its_age_and_the_one_that_it_replaced() {
        let mut history = History::default();
        select(&mut history, 9, CandidateKind::Relay, 10);
        select(&mut history, 2, CandidateKind::Reflexive, 15);
        let connected = Event::Connected {
            peer: PEER,
            path: path(2),
        };
        history.note(&connected, Some(CandidateKind::Reflexive), at(16));
        let past = history.of(&PEER).unwrap();
        let since = past.since(path(2).remote, at(75));
        assert_eq!(since.since_s, Some(60.0));
        let replaced = since.replaced.unwrap();
        assert_eq!(
            (replaced.endpoint, replaced.by_relay, replaced.for_s),
            (path(9).remote, true, 5.0)
        );
        // WireGuard is somewhere that no event has told of.
        assert_eq!(past.since(path(7).remote, at(75)), Since::default());
        assert_eq!(past.changes(at(75)).len(), 3);
    }

    #[test]
    fn a_strategy_ends_by_its_failure_or_by_a_direct_path_and_not_by_the_relays() {
        let mut history = History::default();
        let begun = || Event::StrategyBegun {
            peer: PEER,
            strategy: "birthday",
            opens: true,
        };
        let connected = |n| Event::Connected {
            peer: PEER,
            path: path(n),
        };
        let result = |history: &History| {
            let runs = history.of(&PEER).unwrap().runs(at(9));
            (runs[0].result.clone(), runs[0].sent)
        };
        history.note(&begun(), None, at(1));
        history.note(&connected(9), Some(CandidateKind::Relay), at(2));
        assert_eq!(result(&history), ("running".to_owned(), None));
        let failed = Event::StrategyFailed {
            peer: PEER,
            strategy: "birthday",
            sent: 256,
        };
        history.note(&failed, None, at(3));
        assert_eq!(result(&history), ("failed".to_owned(), Some(256)));
        history.note(&begun(), None, at(4));
        history.note(&connected(2), Some(CandidateKind::PeerReflexive), at(5));
        assert_eq!(result(&history), ("connected".to_owned(), None));
    }

    #[test]
    fn what_is_kept_has_a_bound_and_goes_with_its_peer() {
        let mut history = History::default();
        for n in 0..200 {
            select(&mut history, (n % 7) as u8, CandidateKind::Host, n);
        }
        assert_eq!(history.of(&PEER).unwrap().changes(at(200)).len(), STEPS);
        history.keep(|_| false);
        assert!(history.of(&PEER).is_none());
    }
}
