//! What `web` and `top` show of an agent while one looks: its last status, rates, and what
//! happened. Pure: statuses and the time go in.

pub(in crate::cli) mod args;
pub(super) mod feed;
pub(super) mod picture;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::Serialize;

use super::status::view::{Counts, Peer, View};

/// So many events are kept.
const MOST_EVENTS: usize = 500;
/// Peers whose rates are kept.
const MOST_PEERS: usize = 16_384;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Event {
    /// Which one it is, counted from 1.
    pub(super) number: u64,
    /// When, in seconds since 1970.
    pub(super) at_s: f64,
    /// The peer that it is about, if it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) peer: Option<String>,
    /// What it is about: `path`, `change`, `agent` or `node`.
    pub(super) kind: &'static str,
    /// What, for people.
    pub(super) text: String,
}

/// Bytes in a second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(super) struct Rate {
    /// Received.
    pub(super) rx: f64,
    /// Sent.
    pub(super) tx: f64,
}

#[derive(Debug, Clone, Copy)]
struct Counter {
    at_s: f64,
    rx: u64,
    tx: u64,
    rate: Rate,
}

/// Why there is no status now.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Away {
    /// In words.
    pub(super) reason: String,
    /// Since when, in seconds since 1970.
    pub(super) since_s: f64,
}

/// What is known of the agent.
#[derive(Debug, Default)]
pub(super) struct Live {
    /// Its last status.
    pub(super) view: Option<View>,
    /// It does not answer, or has no mesh yet.
    pub(super) away: Option<Away>,
    /// What happened, the oldest first.
    pub(super) events: VecDeque<Event>,
    counters: BTreeMap<String, Counter>,
    number: u64,
}

impl Live {
    /// Takes a status that was asked for at this time, in seconds since 1970.
    pub(super) fn take(&mut self, view: View, now_s: f64) {
        if self.away.take().is_some() && self.view.is_some() {
            self.tell(now_s, None, "agent", "the agent answers again".to_owned());
        }
        self.count(&view, now_s);
        if let Some(before) = self.view.take() {
            self.compare(&before, &view, now_s);
        }
        self.view = Some(view);
    }

    /// The agent does not answer.
    pub(super) fn lose(&mut self, reason: &str, now_s: f64) {
        match &mut self.away {
            Some(away) => reason.clone_into(&mut away.reason),
            None => {
                self.away = Some(Away {
                    reason: reason.to_owned(),
                    since_s: now_s,
                });
                self.tell(now_s, None, "agent", format!("the agent is away: {reason}"));
            }
        }
    }

    /// How fast bytes come and go.
    pub(super) fn rate(&self, peer: &str) -> Rate {
        let counter = self.counters.get(peer);
        counter.map_or_else(Rate::default, |counter| counter.rate)
    }

    fn tell(&mut self, at_s: f64, peer: Option<&str>, kind: &'static str, text: String) {
        self.number += 1;
        if self.events.len() >= MOST_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(Event {
            number: self.number,
            at_s,
            peer: peer.map(str::to_owned),
            kind,
            text,
        });
    }

    fn count(&mut self, view: &View, now_s: f64) {
        let names = names(view);
        self.counters
            .retain(|name, _| names.contains(name.as_str()));
        for peer in view.core.peers.iter().take(MOST_PEERS) {
            let (rx, tx) = (peer.rx_bytes, peer.tx_bytes);
            let rate = self.counters.get(&peer.name).map(|last| {
                let passed = now_s - last.at_s;
                // A device that was made again counts from zero.
                let per_second = |now: u64, before: u64| match passed > 0.0 {
                    true => now.saturating_sub(before) as f64 / passed,
                    false => 0.0,
                };
                Rate {
                    rx: per_second(rx, last.rx),
                    tx: per_second(tx, last.tx),
                }
            });
            let counter = Counter {
                at_s: now_s,
                rx,
                tx,
                rate: rate.unwrap_or_default(),
            };
            self.counters.insert(peer.name.clone(), counter);
        }
    }

    fn compare(&mut self, before: &View, view: &View, now_s: f64) {
        if before.pid != view.pid {
            let text = format!("another agent runs: process {}", view.pid);
            self.tell(now_s, None, "agent", text);
        }
        if before.revision != view.revision {
            let (new, old) = (&view.revision, &before.revision);
            self.tell(
                now_s,
                None,
                "change",
                format!("revision {new} replaces {old}"),
            );
        }
        let tried = |view: &View| view.change.as_ref().map(|change| change.revision.clone());
        match (tried(before), tried(view)) {
            (old, Some(new)) if old.as_ref() != Some(&new) => {
                let by_person = view.change.as_ref().is_some_and(|change| change.by_person);
                let how = if by_person {
                    "until it is confirmed"
                } else {
                    "while peers are awaited"
                };
                self.tell(
                    now_s,
                    None,
                    "change",
                    format!("revision {new} is tried {how}"),
                );
            }
            (Some(old), None) if view.revision == old => {
                self.tell(
                    now_s,
                    None,
                    "change",
                    format!("revision {old} is confirmed"),
                );
            }
            _ => {}
        }
        let held = |view: &View| {
            let held = view.held.as_ref();
            held.map(|held| format!("revision {} was undone: {}", held.revision, held.reason))
        };
        let about = [
            (held(before), held(view), "change"),
            (refused(before), refused(view), "change"),
            (stale(before), stale(view), "change"),
            (drift(before), drift(view), "node"),
            (
                before.warnings.first().cloned(),
                view.warnings.first().cloned(),
                "node",
            ),
        ];
        for (old, new, kind) in about {
            if let Some(text) = new.filter(|new| old.as_ref() != Some(new)) {
                self.tell(now_s, None, kind, text);
            }
        }
        let old: BTreeMap<&str, &Peer> = before
            .core
            .peers
            .iter()
            .map(|peer| (peer.name.as_str(), peer))
            .collect();
        let mut news = Vec::new();
        for peer in &view.core.peers {
            let pins = |view: &View| view.pins.peers.get(&peer.name).cloned();
            let shown = peer.shown_path(pins(view).as_ref());
            match old.get(peer.name.as_str()) {
                None => news.push((peer.name.clone(), format!("is new: {shown}"))),
                Some(old) => {
                    let was = old.shown_path(pins(before).as_ref());
                    if was != shown {
                        news.push((peer.name.clone(), format!("{was} → {shown}")));
                    }
                }
            }
        }
        let names = names(view);
        let gone = old.keys().filter(|name| !names.contains(*name));
        news.extend(gone.map(|name| ((*name).to_owned(), "is no peer any more".to_owned())));
        for (name, text) in news {
            self.tell(now_s, Some(&name), "path", text);
        }
    }
}

fn names(view: &View) -> BTreeSet<&str> {
    let peers = view.core.peers.iter();
    peers.map(|peer| peer.name.as_str()).collect()
}

fn refused(view: &View) -> Option<String> {
    let error = view.reload_error.as_ref()?;
    let first = error.lines().next().unwrap_or_default();
    Some(format!("the newest mesh file is not applied: {first}"))
}

fn stale(view: &View) -> Option<String> {
    let stale = view.source.as_ref()?.stale.as_ref()?;
    Some(format!("the source is stale: {stale}"))
}

fn drift(view: &View) -> Option<String> {
    let drift = view
        .drift
        .as_ref()
        .filter(|drift| !drift.changes.is_empty())?;
    let what = if drift.healed {
        "was put right"
    } else {
        "is NOT put right"
    };
    Some(format!(
        "somebody changed the interface, which {what} ({} times)",
        drift.times
    ))
}

/// How the peers are connected, in one line.
pub(super) fn summary(view: &View) -> String {
    Counts::of(&view.core.peers).to_string()
}

#[cfg(test)]
mod tests;
