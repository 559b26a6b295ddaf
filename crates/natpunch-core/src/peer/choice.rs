//! Which path the pair uses: what is chosen now, what the peer says of its own choice, and how the
//! next choice is made.
//!
//! Of each pair, the node with the lower public key decides (it is *controlling*, RFC 8445, 6.1.1)
//! and the other follows its nomination, so both always aim at each other and neither flaps.

use std::time::Duration;

use natpunch_types::{PathId, RelayPolicy};

use crate::candidates::{Entry, Table};
use crate::path;
use crate::{EndpointReason, PeerSpec, Time};

use super::device::Session;
use super::health::Health;
use super::relaying::STAY;
use super::selection::{Check, How, Selection};

/// A path that WireGuard roamed to by itself is kept at least this long.
const ROAM_DWELL: Duration = Duration::from_secs(15);
/// Nominations that the peer sent before it noticed that we roamed are ignored for this long.
const ROAM_DEAF: Duration = Duration::from_secs(2);
/// The peer's WireGuard is shown that ours is alive at most this often.
/// Less than the shortest time between two of its questions, so that none of them is in vain.
const SIGN_OF_LIFE_EVERY: Duration = Duration::from_millis(900);

/// What is chosen, on either side.
#[derive(Debug)]
pub(super) struct Choice {
    /// This side decides for the pair.
    pub(super) controlling: bool,
    pub(super) selection: Option<Selection>,
    /// The path that the controlling peer nominated last.
    nominated: Option<PathId>,
    /// The path that the peer has chosen, as it last said, and when.
    peer_uses: Option<(PathId, Time)>,
    /// The sequence number of that word. An older word may arrive later by a relay.
    said: u64,
    ignores_nominations_until: Time,
    sign_of_life_after: Time,
}

impl Choice {
    pub(super) fn new(controlling: bool, now: Time) -> Self {
        Self {
            controlling,
            selection: None,
            nominated: None,
            peer_uses: None,
            said: 0,
            ignores_nominations_until: now,
            sign_of_life_after: now,
        }
    }

    pub(super) fn is_selected(&self, path: PathId) -> bool {
        self.selection.as_ref().is_some_and(|s| s.path == path)
    }

    /// The selection, if it is this path.
    pub(super) fn selected_mut(&mut self, path: PathId) -> Option<&mut Selection> {
        self.selection.as_mut().filter(|s| s.path == path)
    }

    /// The peer says that it has chosen the same path as this side.
    pub(super) fn is_agreed(&self) -> bool {
        self.peer_uses
            .is_some_and(|(path, _)| self.is_selected(path))
    }

    /// The peer has said since this moment that it uses this path.
    pub(super) fn peer_uses_since(&self, path: PathId, since: Time) -> bool {
        self.peer_uses
            .is_some_and(|(used, at)| used == path && at >= since)
    }

    /// What a fresh message of the peer says of the path that it came on.
    pub(super) fn on_peer_says(&mut self, path: PathId, in_use: bool, sequence: u64, now: Time) {
        // The peer has said something newer on another path.
        if sequence < self.said {
            return;
        }
        if in_use {
            self.said = sequence;
            self.peer_uses = Some((path, now));
        } else if self.peer_uses.is_some_and(|(used, _)| used == path) {
            self.peer_uses = None;
        }
        if in_use && !self.controlling && now >= self.ignores_nominations_until {
            self.nominated = Some(path);
        }
    }

    /// The peer runs anew and has chosen nothing yet.
    pub(super) fn forget_peers_choice(&mut self) {
        self.nominated = None;
        self.peer_uses = None;
        self.said = 0;
    }

    /// No path is used any more, and what the peer said of any is over.
    pub(super) fn rest(&mut self) {
        self.selection = None;
        self.nominated = None;
        self.peer_uses = None;
    }

    /// The path in use does not work: the nomination that led to it is not followed again.
    pub(super) fn forget_nomination(&mut self) {
        self.nominated = None;
    }

    /// A path may no longer be used, whichever side chose it.
    pub(super) fn bar(&mut self, path: PathId) {
        self.selection.take_if(|s| s.path == path);
        self.nominated.take_if(|nominated| *nominated == path);
        self.peer_uses.take_if(|(used, _)| *used == path);
    }

    /// Uses another path, on which nothing was shown to the peer yet.
    pub(super) fn select(&mut self, selection: Selection, now: Time) {
        self.sign_of_life_after = now;
        self.selection = Some(selection);
    }

    /// WireGuard has moved: what it does is followed.
    pub(super) fn take_over(&mut self, selection: Selection, now: Time) {
        self.selection = Some(selection);
        self.nominated = None;
        self.ignores_nominations_until = now + ROAM_DEAF;
    }

    /// Whether the peer may be shown now that WireGuard works here; if so, the next time is later.
    pub(super) fn may_show_life(&mut self, now: Time) -> bool {
        let may = now >= self.sign_of_life_after;
        if may {
            self.sign_of_life_after = now + SIGN_OF_LIFE_EVERY;
        }
        may
    }

    /// The path that should be used, if that is another than now, and why.
    pub(super) fn next(&self, scene: &Scene<'_>) -> Option<(PathId, EndpointReason)> {
        if self.controlling {
            self.choose(scene)
        } else {
            self.follow(scene)
        }
    }

    /// The controlling side's choice.
    fn choose(&self, scene: &Scene<'_>) -> Option<(PathId, EndpointReason)> {
        let now = scene.now;
        let Some(selection) = &self.selection else {
            // Nothing is in use, so nothing can be lost by a choice.
            return Some((scene.first()?, EndpointReason::FirstPath));
        };

        // The path in use is failing. The best that has answered since takes its place: an older
        // answer may be from before whatever broke this one.
        let health = scene.health(selection);
        // A path that the kernel can't send on any more, or would send into a tunnel, counts as
        // failing.
        let barred = scene
            .is_barred(selection.path)
            .then(|| selection.doubted.unwrap_or_default());
        if let Some(since) = health.replaceable_since().or(barred) {
            let answered = scene.usable().filter(|(_, e)| e.is_answered_since(since));
            let best = scene.best(answered)?;
            // A lost path that answers again is chosen again, since WireGuard has to be checked
            // there anew. One that is not lost yet need not be chosen to be kept.
            let is_lost = matches!(health, Health::Lost { .. });
            return (is_lost || best != selection.path).then_some((best, EndpointReason::PathLost));
        }

        // A relay is in use though a direct path would do. Any proven direct path is better,
        // however long its round trip: a relay is somebody else's machine and bandwidth.
        let on_relay = scene.is_relay(selection.path);
        let seeks_direct = on_relay && scene.spec.relay != RelayPolicy::Only;
        if seeks_direct {
            // Not back to a path that has just failed: each change costs packets.
            let may = now >= scene.direct_after;
            // Soon after the relay was chosen, an older answer may be from before whatever made the
            // relay necessary.
            let rested = now.since(selection.since) >= STAY;
            let at_once = scene.may_leave_relay(selection);
            let is_fresh = |e: &Entry| rested || at_once && e.is_answered_since(selection.since);
            let answers = |e: &Entry| !e.is_relay() && e.is_answered_since(scene.direct_left_at);
            let direct = scene.usable();
            let direct = direct.filter(|(_, e)| may && answers(e) && is_fresh(e));
            if let Some(best) = scene.best(direct) {
                return Some((best, EndpointReason::BetterPath));
            }
        }

        // WireGuard has not shown yet that it works here. Another change would only begin its
        // handshake anew.
        if selection.check != Check::Passed {
            return None;
        }
        // The path was not in use for long. WireGuard's own move is not undone at once, as its
        // packets may have come that way for a reason; a relay is left for another when both sides
        // have seen the session.
        let dwell = match selection.how {
            How::Roamed => ROAM_DWELL,
            _ if on_relay => STAY,
            _ => Duration::ZERO,
        };
        if now.since(selection.since) < dwell {
            return None;
        }
        // The path in use is good. Only one of at least its sort that was clearly better several
        // times in a row is worth a change; direct paths for a relay were looked at above.
        let better = scene.usable().filter(|(path, entry)| {
            **path != selection.path
                && entry.wins >= path::SAMPLES
                && (!seeks_direct || entry.is_relay())
        });
        Some((scene.best(better)?, EndpointReason::BetterPath))
    }

    /// The controlled side follows the last nomination, once the path is proven here too.
    fn follow(&self, scene: &Scene<'_>) -> Option<(PathId, EndpointReason)> {
        let nominated = self.nominated?;
        let in_use = |s: &Selection| s.path == nominated && s.check != Check::Lost;
        let followed = self.selection.as_ref().is_some_and(in_use);
        let usable = scene.table.get(&nominated)?.is_usable(scene.now);
        (!followed && usable).then_some((nominated, EndpointReason::Nominated))
    }
}

/// What a choice is made from.
pub(super) struct Scene<'a> {
    pub(super) table: &'a Table,
    pub(super) spec: &'a PeerSpec,
    pub(super) session: Session,
    /// Before this no direct path takes the place of a relay.
    pub(super) direct_after: Time,
    /// When a direct path was last left for a relay.
    pub(super) direct_left_at: Time,
    /// WireGuard's handshake goes by whatever path is chosen: its initiation is at hand.
    pub(super) can_repeat_handshake: bool,
    pub(super) now: Time,
}

impl<'a> Scene<'a> {
    pub(super) fn is_relay(&self, path: PathId) -> bool {
        self.table.get(&path).is_some_and(Entry::is_relay)
    }

    fn is_barred(&self, path: PathId) -> bool {
        self.table.get(&path).is_some_and(Entry::is_barred)
    }

    pub(super) fn health(&self, selection: &Selection) -> Health {
        Health::of(selection, self.table.get(&selection.path), self.now)
    }

    /// Whether leaving a relay begins no second handshake beside one that is under way there.
    fn may_leave_relay(&self, selection: &Selection) -> bool {
        // The handshake is over, as this side sees. Should the other side begin one of its own before
        // it has the keys, that one takes none of them away.
        let is_over = selection.check == Check::Passed && self.session.has_keys();
        // The handshake is the same one on either path, and the first answer ends it.
        is_over || self.can_repeat_handshake
    }

    /// The paths that are proven and on which WireGuard is not known to fail.
    pub(super) fn usable(&self) -> impl Iterator<Item = (&'a PathId, &'a Entry)> {
        let now = self.now;
        let paths = self.table.iter();
        paths.filter(move |(_, entry)| entry.is_usable(now))
    }

    /// The best of these paths.
    pub(super) fn best(
        &self,
        paths: impl Iterator<Item = (&'a PathId, &'a Entry)>,
    ) -> Option<PathId> {
        let relays = self.spec.relays.as_deref();
        let best =
            paths.min_by_key(|(path, entry)| entry.rank(**path, self.table.same_site, relays));
        best.map(|(path, _)| *path)
    }

    /// The path to begin with.
    fn first(&self) -> Option<PathId> {
        let now = self.now;
        let answers =
            |entry: &Entry| entry.is_answered(now) && !entry.is_blocked(now) && !entry.is_barred();
        // A relay's first pong is enough, which saves half a round trip, unless a direct path
        // answers too and will be proven as soon, or WireGuard has a session that could be moved.
        let direct = self
            .table
            .iter()
            .any(|(_, entry)| !entry.is_relay() && entry.is_answered(now));
        let relay_is_enough = !direct && !self.session.is_live();
        let paths = self.table.iter().filter(|(_, entry)| {
            entry.is_usable(now) || relay_is_enough && entry.is_relay() && answers(entry)
        });
        self.best(paths)
    }

    /// The best relay, while a direct path is in use.
    pub(super) fn standby(&self, selection: Option<&Selection>) -> Option<PathId> {
        let in_use = selection?.path;
        if self.is_relay(in_use) {
            return None;
        }
        self.best(self.usable().filter(|(_, entry)| entry.is_relay()))
    }
}
