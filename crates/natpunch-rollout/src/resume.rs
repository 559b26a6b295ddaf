//! The start of an agent: what the mesh file and the journal say is to run.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use natpunch_types::{PeerKey, Time};

use crate::caps::refusals;
use crate::facts::{Hash, Release};
use crate::journal::{Change, Recorded, time};
use crate::machine::{Held, Lost, RECOVERY, Rollout, State};
use crate::watch::Guard;
use crate::words::{Refused, Settings};

/// What is known at the start.
#[derive(Debug)]
pub struct Start<V> {
    /// What the mesh file says.
    pub file: Arc<V>,
    /// What the journal says, if there is one that can be read.
    pub recorded: Option<Recorded>,
    /// Whether the interface is up and ours.
    pub is_ours: bool,
}

/// A machine that goes on where the last one ended.
#[derive(Debug)]
pub struct Resumed<V> {
    /// The machine. What it runs is to be put in place before its outputs are done.
    pub rollout: Rollout<V>,
    /// Where the peers were before an open change.
    pub endpoints: BTreeMap<PeerKey, SocketAddr>,
    /// A change that is undone, as its time ran out without an agent: its version, and why.
    pub undone: Option<(Hash, &'static str)>,
}

impl<V: Release> Rollout<V> {
    /// Goes on with what the last agent left, or begins what the mesh file says. `load` loads the
    /// version that the journal says works; `None` if that can't be used any more.
    ///
    /// # Errors
    /// It is the first version here, and needs a person's consent.
    pub fn resume(
        settings: Settings,
        start: Start<V>,
        load: impl FnOnce() -> Option<V>,
        now: Time,
    ) -> Result<Resumed<V>, Refused> {
        let Start {
            file,
            recorded,
            is_ours,
        } = start;
        let endpoints = match recorded.as_ref().and_then(|entry| entry.change.as_ref()) {
            Some(Change::Open { endpoints, .. }) => endpoints.clone(),
            Some(Change::Held { .. }) | None => BTreeMap::new(),
        };
        let Some(Recorded { good, change }) = recorded else {
            // The first version here is held to the caps as every other. An interface that is ours
            // already ran some version: only its journal is lost.
            if !is_ours {
                let needs = refusals(None, file.facts(), &[], &settings.allow);
                if !needs.is_empty() {
                    return Err(Refused::Caps(needs));
                }
            }
            return Ok(Resumed::of(steady(settings, file), endpoints));
        };
        let overdue = change
            .as_ref()
            .and_then(|c| overdue(c, &settings.boot, now));
        let is_open = change.as_ref().is_some_and(Change::is_open);
        if good == file.hash() {
            let mut rollout = steady(settings, file);
            // What is held stays so: a source may come with its last good version first, and with
            // the held one later. A change of key files alone has nothing in the journal to go back
            // to: what they hold now runs.
            rollout.held = match change.filter(|change| change.to() != good) {
                Some(Change::Held { to, reason }) => Some(Held::noted(to, reason)),
                Some(Change::Open { to, .. }) if is_open => {
                    overdue.map(|reason| Held::noted(to, reason.to_owned()))
                }
                Some(Change::Open { .. }) | None => None,
            };
            return Ok(Resumed::of(rollout, endpoints));
        }
        let before = load().filter(|before| {
            let fixed = before.facts().node.fixed(&file.facts().node);
            fixed.is_none()
        });
        let Some(before) = before.map(Arc::new) else {
            return Ok(Resumed::of(steady(settings, file), endpoints));
        };
        let lost = match &change {
            Some(Change::Open { watched, .. }) => Lost {
                watched: watched.clone(),
                until: Some(now + RECOVERY),
            },
            Some(Change::Held { .. }) | None => Lost::default(),
        };
        let is_file = change.as_ref().is_some_and(|c| c.to() == file.hash());
        match (change, overdue) {
            // Undone, and not tried again.
            (Some(Change::Held { to, reason }), _) if is_file => {
                let mut rollout = steady(settings, before);
                rollout.held = Some(Held::noted(to, reason));
                Ok(Resumed::of(rollout, endpoints))
            }
            // Its time is over, or the host was restarted, which may be its doing.
            (Some(Change::Open { to, .. }), Some(reason)) if is_open => {
                let mut rollout = steady(settings, before);
                rollout.held = Some(Held::noted(to, reason.to_owned()));
                rollout.catch_up = !is_file;
                rollout.lost = lost;
                Ok(Resumed {
                    undone: Some((to, reason)),
                    ..Resumed::of(rollout, endpoints)
                })
            }
            // It goes on being watched, to the same deadline.
            (Some(open @ Change::Open { .. }), None) if is_open && is_file => {
                let guard = guard(open, now);
                let state = guard.map_or(State::Steady, State::Watching);
                let rollout = Rollout::new(settings, before, file, state);
                Ok(Resumed::of(rollout, endpoints))
            }
            // Another version: it is a change, as when the agent runs.
            _ => {
                let mut rollout = steady(settings, before);
                rollout.catch_up = true;
                rollout.lost = lost;
                Ok(Resumed::of(rollout, endpoints))
            }
        }
    }
}

impl<V: Release> Resumed<V> {
    fn of(mut rollout: Rollout<V>, endpoints: BTreeMap<PeerKey, SocketAddr>) -> Self {
        // The journal of a change that goes on is as it has to be.
        if matches!(rollout.state, State::Steady) {
            rollout.write_closing();
        }
        Self {
            rollout,
            endpoints,
            undone: None,
        }
    }
}

impl<V> Held<V> {
    /// What the journal says. It knows no keys.
    fn noted(to: Hash, reason: String) -> Self {
        Self {
            to,
            reason,
            tried: None,
        }
    }
}

fn steady<V: Release>(settings: Settings, version: Arc<V>) -> Rollout<V> {
    Rollout::new(settings, Arc::clone(&version), version, State::Steady)
}

fn guard(change: Change, now: Time) -> Option<Guard> {
    let Change::Open {
        to,
        deadline_ms,
        settled_ms,
        by_person,
        watched,
        endpoints,
        ..
    } = change
    else {
        return None;
    };
    Some(Guard {
        by_person,
        // A removed peer does not count, whatever an older agent wrote.
        watched: watched.into_iter().filter(|w| w.key.is_some()).collect(),
        endpoints,
        ..Guard::new(to, time(deadline_ms), time(settled_ms), now)
    })
}

/// Why a change whose agent died may not be tried any longer.
fn overdue(change: &Change, boot: &str, now: Time) -> Option<&'static str> {
    let Change::Open {
        boot: of,
        deadline_ms,
        ..
    } = change
    else {
        return None;
    };
    if of.is_empty() || of != boot {
        return Some("the host was restarted before it was confirmed");
    }
    let deadline = Duration::from_millis(*deadline_ms);
    (now.since_origin() >= deadline).then_some("its time ran out while no agent ran")
}
