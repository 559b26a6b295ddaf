//! What an agent counts for Prometheus, and how it is asked: `apply --metrics ADDR:PORT`. Off
//! unless that is given. No metric has a key, an address or a peer's name.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use natpunch_core::{Event, PathKind, PeerState, PeerStatus};
use natpunch_types::{CandidateKind, PeerKey, Time};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};

use super::Status;
use crate::control::{Call, Reply, Request};
use crate::exposition::{CONTENT_TYPE, Exposition, Histogram};
use crate::server;

/// What a scrape is made from.
pub(super) struct Scrape<'a> {
    pub(super) counted: &'a Metrics,
    pub(super) status: &'a Status,
}

/// One family of metrics.
struct Family {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    write: fn(&Scrape<'_>, &str, &mut Exposition),
}

/// All of them. docs/reference/metrics.md lists them, held against this by a test.
const TABLE: &[Family] = &[
    Family {
        name: "agent_peers",
        kind: "gauge",
        help: "Peers by the kind of path in use.",
        write: peers,
    },
    Family {
        name: "agent_time_to_direct_seconds",
        kind: "histogram",
        help: "From a peer's start without a direct path to its connection by one.",
        write: |scrape, name, to| scrape.counted.to_direct.render(name, to),
    },
    Family {
        name: "agent_punches_total",
        kind: "counter",
        help: "Strategies against NATs that ended, by their result.",
        write: punches,
    },
    Family {
        name: "agent_relay_bytes_total",
        kind: "counter",
        help: "Bytes of WireGuard that went by relays, both ways, as far as seen each second.",
        write: |scrape, name, to| to.sample(name, &[], scrape.counted.relay_bytes as f64),
    },
    Family {
        name: "agent_probes_total",
        kind: "counter",
        help: "Probes: sent, sent to guessed ports, held back by a budget.",
        write: probes,
    },
    Family {
        name: "agent_discovery_ok",
        kind: "gauge",
        help: "1 if the discovery instance works.",
        write: discovery,
    },
    Family {
        name: "agent_rollout",
        kind: "gauge",
        help: "1 for the state of the rollout: settled, trying a change, or holding one back.",
        write: rollout,
    },
    Family {
        name: "agent_generation",
        kind: "gauge",
        help: "The generation that the mesh file states.",
        write: |scrape, name, to| {
            if let Some(generation) = scrape.status.generation {
                to.sample(name, &[], generation as f64);
            }
        },
    },
    Family {
        name: "agent_reloads_total",
        kind: "counter",
        help: "Changes of the mesh that were made.",
        write: |scrape, name, to| to.sample(name, &[], scrape.status.reloads as f64),
    },
    Family {
        name: "agent_reload_errors_total",
        kind: "counter",
        help: "Versions of the mesh that could not be used.",
        write: |scrape, name, to| to.sample(name, &[], scrape.counted.reload_errors as f64),
    },
    Family {
        name: "agent_mesh_outdated",
        kind: "gauge",
        help: "1 if the newest version of the mesh does not run.",
        write: |scrape, name, to| {
            let outdated = scrape.status.reload_error.is_some() || scrape.status.held.is_some();
            to.sample(name, &[], f64::from(u8::from(outdated)));
        },
    },
    Family {
        name: "agent_version_age_seconds",
        kind: "gauge",
        help: "For how long the version of the mesh has run.",
        write: |scrape, name, to| to.sample(name, &[], scrape.status.runs_for_s.floor()),
    },
];

/// The metrics as text.
pub(super) fn text(scrape: &Scrape<'_>) -> String {
    let mut to = Exposition::default();
    for family in TABLE {
        to.family(family.name, family.kind, family.help);
        (family.write)(scrape, family.name, &mut to);
    }
    to.text()
}

fn peers(scrape: &Scrape<'_>, name: &str, to: &mut Exposition) {
    let peers = &scrape.status.core.peers;
    for kind in [
        PathKind::Lan,
        PathKind::Direct,
        PathKind::Relay,
        PathKind::None,
    ] {
        let is_of = |peer: &&PeerStatus| peer.path == kind && peer.state != PeerState::Resting;
        let count = peers.iter().filter(is_of).count();
        to.sample(name, &[("path", &kind.to_string())], count as f64);
    }
    let at_rest = peers.iter().filter(|peer| peer.state == PeerState::Resting);
    to.sample(name, &[("path", "resting")], at_rest.count() as f64);
}

fn punches(scrape: &Scrape<'_>, name: &str, to: &mut Exposition) {
    for ((strategy, result), count) in &scrape.counted.punches {
        let labels = [("strategy", *strategy), ("result", *result)];
        to.sample(name, &labels, *count as f64);
    }
}

fn probes(scrape: &Scrape<'_>, name: &str, to: &mut Exposition) {
    let probes = &scrape.status.core.probes;
    for (fate, count) in [
        ("sent", probes.sent),
        ("guessed", probes.guessed),
        ("held-back", probes.held_back),
    ] {
        to.sample(name, &[("fate", fate)], count as f64);
    }
}

fn discovery(scrape: &Scrape<'_>, name: &str, to: &mut Exposition) {
    for instance in &scrape.status.discovery {
        let ok = f64::from(u8::from(instance.ok));
        to.sample(name, &[("instance", &instance.name)], ok);
    }
}

fn rollout(scrape: &Scrape<'_>, name: &str, to: &mut Exposition) {
    let (trying, held) = (scrape.status.change.is_some(), scrape.status.held.is_some());
    for (state, is_so) in [
        ("settled", !trying && !held),
        ("trying", trying),
        ("held", held && !trying),
    ] {
        to.sample(name, &[("state", state)], f64::from(u8::from(is_so)));
    }
}

/// What is counted as it happens. Pure.
#[derive(Debug)]
pub(super) struct Metrics {
    to_direct: Histogram<10>,
    /// Since when each peer is without a direct path.
    without: BTreeMap<PeerKey, Time>,
    /// The strategy that is under way for a peer.
    running: BTreeMap<PeerKey, &'static str>,
    punches: BTreeMap<(&'static str, &'static str), u64>,
    relay_bytes: u64,
    /// WireGuard's count of each peer, when it was last looked at.
    bytes: BTreeMap<PeerKey, u64>,
    reload_errors: u64,
    reload_error: Option<String>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            to_direct: Histogram::new([0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0]),
            without: BTreeMap::new(),
            running: BTreeMap::new(),
            punches: BTreeMap::new(),
            relay_bytes: 0,
            bytes: BTreeMap::new(),
            reload_errors: 0,
            reload_error: None,
        }
    }
}

impl Metrics {
    /// Takes the peers that there are from now on.
    pub(super) fn peers(&mut self, keys: impl Iterator<Item = PeerKey>, now: Time) {
        let mut before = std::mem::take(&mut self.bytes);
        let mut without = std::mem::take(&mut self.without);
        for key in keys {
            let bytes = before.remove(&key);
            match (without.remove(&key), bytes) {
                (Some(since), _) => _ = self.without.insert(key, since),
                (None, None) => _ = self.without.insert(key, now),
                (None, Some(_)) => {}
            }
            self.bytes.insert(key, bytes.unwrap_or(0));
        }
        self.running.retain(|key, _| self.bytes.contains_key(key));
    }

    /// Takes an event. `kind` is how the other end of its path was found.
    pub(super) fn note(&mut self, event: &Event, kind: Option<CandidateKind>, now: Time) {
        let Some(peer) = event.peer().filter(|peer| self.bytes.contains_key(peer)) else {
            return;
        };
        let is_direct = kind != Some(CandidateKind::Relay);
        match event {
            Event::Connected { .. } | Event::Adopted { .. } if is_direct => {
                let since = self.without.remove(peer);
                if let (Some(since), Event::Connected { .. }) = (since, event) {
                    self.to_direct.observe(now.since(since).as_secs_f64());
                }
                self.end(*peer, "connected");
            }
            Event::PathLost { .. } | Event::WireGuardBlocked { .. } if is_direct => {
                self.without.entry(*peer).or_insert(now);
            }
            Event::Connected { .. } => _ = self.without.entry(*peer).or_insert(now),
            // At rest it wants no path.
            Event::Rests { .. } => _ = self.without.remove(peer),
            Event::Woken { .. } => _ = self.without.insert(*peer, now),
            Event::StrategyBegun { strategy, .. } => _ = self.running.insert(*peer, strategy),
            Event::StrategyFailed { .. } => self.end(*peer, "failed"),
            _ => {}
        }
    }

    fn end(&mut self, peer: PeerKey, result: &'static str) {
        if let Some(strategy) = self.running.remove(&peer) {
            *self.punches.entry((strategy, result)).or_default() += 1;
        }
    }

    /// Takes what WireGuard has counted of a peer, and whether that goes by a relay now.
    pub(super) fn traffic(&mut self, peer: &PeerKey, by_relay: bool, total: u64) {
        let Some(before) = self.bytes.get_mut(peer) else {
            return;
        };
        // A device that was made anew counts from zero.
        let more = total.saturating_sub(*before);
        *before = total;
        if by_relay {
            self.relay_bytes = self.relay_bytes.saturating_add(more);
        }
    }

    /// Takes why the newest version does not run, if it doesn't.
    pub(super) fn reload(&mut self, error: Option<&String>) {
        if error != self.reload_error.as_ref() {
            self.reload_errors += u64::from(error.is_some());
            self.reload_error = error.cloned();
        }
    }
}

/// Answers collectors at a loopback address until the sender is dropped.
///
/// # Errors
/// The address can't be listened on.
pub(super) async fn listen(
    address: SocketAddr,
    calls: mpsc::Sender<Call>,
) -> std::io::Result<watch::Sender<bool>> {
    let listener = TcpListener::bind(address).await?;
    let (stop, stopped) = watch::channel(false);
    let router = Router::new()
        .route("/metrics", get(answer))
        .with_state(calls);
    tokio::spawn(server::serve_metrics(listener, router, stopped));
    Ok(stop)
}

async fn answer(State(calls): State<mpsc::Sender<Call>>) -> impl IntoResponse {
    let (answer, answered) = oneshot::channel();
    let call = Call {
        request: Request::Metrics,
        connected: super::now(),
        answer,
    };
    let sent = calls.send(call).await.is_ok();
    let reply = if sent { answered.await.ok() } else { None };
    match reply {
        Some(Reply::Ok(serde_json::Value::String(text))) => {
            (StatusCode::OK, [(header::CONTENT_TYPE, CONTENT_TYPE)], text)
        }
        _ => (
            StatusCode::SERVICE_UNAVAILABLE,
            [(header::CONTENT_TYPE, "text/plain")],
            "the agent is stopping\n".to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use natpunch_types::PathId;

    use super::*;

    const PEER: PeerKey = PeerKey::from_bytes([1; 32]);

    fn at(millis: u64) -> Time {
        Time::from_millis(millis)
    }

    fn connected() -> Event {
        Event::Connected {
            peer: PEER,
            path: PathId::wireguard(SocketAddr::from(([198, 51, 100, 7], 51820))),
        }
    }

    fn lines(metrics: &Metrics) -> String {
        let mut to = Exposition::default();
        metrics.to_direct.render("d", &mut to);
        to.text()
    }

    #[test]
    fn time_to_direct_counts_from_the_start_or_the_loss_and_once() {
        let mut metrics = Metrics::default();
        metrics.peers([PEER].into_iter(), at(0));
        metrics.note(&connected(), Some(CandidateKind::Relay), at(100));
        assert!(lines(&metrics).contains("d_count 0"));
        metrics.note(&connected(), Some(CandidateKind::Reflexive), at(700));
        metrics.note(&connected(), Some(CandidateKind::Reflexive), at(900));
        let text = lines(&metrics);
        assert!(
            text.contains("d_count 1") && text.contains("d_sum 0.7"),
            "{text}"
        );
        // A reload leaves it alone.
        metrics.peers([PEER].into_iter(), at(1_000));
        metrics.note(&connected(), Some(CandidateKind::Reflexive), at(2_000));
        assert!(lines(&metrics).contains("d_count 1"));
        let lost = Event::PathLost {
            peer: PEER,
            path: PathId::wireguard(SocketAddr::from(([198, 51, 100, 7], 51820))),
        };
        metrics.note(&lost, Some(CandidateKind::Reflexive), at(5_000));
        metrics.note(&connected(), Some(CandidateKind::Host), at(6_000));
        assert!(lines(&metrics).contains("d_count 2"));
    }

    #[test]
    fn punches_are_counted_by_strategy_and_result() {
        let mut metrics = Metrics::default();
        metrics.peers([PEER].into_iter(), at(0));
        let begun = || Event::StrategyBegun {
            peer: PEER,
            strategy: "birthday",
            opens: true,
        };
        let failed = Event::StrategyFailed {
            peer: PEER,
            strategy: "birthday",
            sent: 9,
        };
        metrics.note(&begun(), None, at(1));
        metrics.note(&failed, None, at(2));
        metrics.note(&begun(), None, at(3));
        metrics.note(&connected(), Some(CandidateKind::PeerReflexive), at(4));
        let expected = [(("birthday", "connected"), 1), (("birthday", "failed"), 1)];
        assert_eq!(metrics.punches, BTreeMap::from(expected));
    }

    #[test]
    fn only_what_goes_by_a_relay_counts_as_its_bytes() {
        let mut metrics = Metrics::default();
        metrics.peers([PEER].into_iter(), at(0));
        metrics.traffic(&PEER, true, 100);
        metrics.traffic(&PEER, false, 1_100);
        metrics.traffic(&PEER, true, 1_150);
        metrics.traffic(&PEER, true, 0);
        assert_eq!(metrics.relay_bytes, 150);
    }

    #[test]
    fn a_version_that_stays_unusable_is_one_error() {
        let mut metrics = Metrics::default();
        let error = |text: &str| Some(text.to_owned());
        for found in [
            None,
            error("line 3"),
            error("line 3"),
            None,
            error("line 4"),
        ] {
            metrics.reload(found.as_ref());
        }
        assert_eq!(metrics.reload_errors, 2);
    }
}
