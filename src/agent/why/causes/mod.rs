//! Why a peer's path is what it is, and what one change would make it direct or faster. Pure: facts
//! in, a sentence out. This is the one place that reasons; `status` and `why` print its words.
//!
//! The core says what was tried and what did not answer. Why that is so often lies in what it does
//! not see: the mesh file, the discovery instances, and where WireGuard saw the peer over time.

mod away;
mod flips;
mod indirect;
pub(super) mod nat;
#[cfg(test)]
mod tests;

use natpunch_core::{CandidateStatus, MeshStatus, PathKind, PeerState, PeerStatus};
use natpunch_types::{CandidateKind, PeerKey};
use serde::{Deserialize, Serialize};

pub(in crate::agent) use flips::Flips;

/// Origins of candidates that are no discovery instance: the peer itself, authenticated, and the
/// device, which heard from the peer there. Who was heard knows this node's key.
const HEARD: [&str; 2] = ["peer", "wireguard"];

/// A discovery instance, as far as it tells of a cause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::agent) struct Finder {
    pub(in crate::agent) name: String,
    /// Whether it works, and what it says of itself.
    pub(in crate::agent) ok: bool,
    pub(in crate::agent) note: String,
    pub(in crate::agent) kind: Kind,
}

/// What a candidate of an instance proves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::agent) enum Kind {
    /// Endpoints of the mesh file: nothing about the peer.
    File,
    /// Records that the peer sealed to this node's key: its mesh file has this node.
    Records,
    /// Where a server saw the peer: it runs, and may not know this node.
    Seen,
}

/// What the mesh file says of a peer.
#[derive(Debug, Clone, Copy)]
pub(in crate::agent) struct Named<'a> {
    pub(in crate::agent) endpoint: Option<&'a str>,
    /// This node's own public key, which the peer's mesh file must have.
    pub(in crate::agent) own_key: &'a PeerKey,
}

/// All that a cause is found from.
#[derive(Debug, Clone, Copy)]
pub(in crate::agent) struct Facts<'a> {
    pub(in crate::agent) peer: &'a PeerStatus,
    /// What the core knows of this node.
    pub(in crate::agent) own: &'a MeshStatus,
    pub(in crate::agent) named: Named<'a>,
    pub(in crate::agent) finders: &'a [Finder],
    /// Something carries this node's word that it wants a peer which rests.
    pub(in crate::agent) carries_records: bool,
    /// Why WireGuard's endpoint of the peer goes to and fro, if it does.
    pub(in crate::agent) flips: Option<&'a str>,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// The row of the table.
    pub situation: String,
    /// What is so, and what one change would make it better: one sentence.
    pub text: String,
}

/// One row: in which situation it speaks, and what it says.
struct Row {
    situation: &'static str,
    /// `status` says it, too, as what most likely keeps the peer away.
    likely: bool,
    says: fn(&Facts<'_>) -> Option<String>,
}

const fn row(situation: &'static str, says: fn(&Facts<'_>) -> Option<String>) -> Row {
    Row {
        situation,
        likely: false,
        says,
    }
}

const fn likely_row(situation: &'static str, says: fn(&Facts<'_>) -> Option<String>) -> Row {
    Row {
        situation,
        likely: true,
        says,
    }
}

/// All situations; the first row that has something to say is the cause.
const TABLE: &[Row] = &[
    row("never-woken", away::never_woken),
    row("at-rest", away::at_rest),
    likely_row("two-hosts-answer", away::twins),
    likely_row("two-hosts-in-turns", |facts| facts.flips.map(str::to_owned)),
    row("natpunch-silent", away::natpunch_silent),
    row("lan", indirect::lan),
    row("direct", indirect::direct),
    likely_row("name-does-not-resolve", away::unresolved),
    likely_row("nothing-left-for-us", away::nothing_left),
    likely_row("does-not-know-us", away::does_not_know_us),
    row("plain-silent", away::plain),
    row("servers-silent", away::servers_silent),
    row("relay-only", indirect::relay_only),
    row("wireguard-blocked", indirect::blocked),
    row("behind-other-tunnel", indirect::other_tunnel),
    row("no-common-family", indirect::no_common_family),
    row("under-way", indirect::under_way),
    row("direct-soon", indirect::direct_soon),
    row("heard-one-way", indirect::one_way),
    row("same-lan", indirect::same_lan),
    row("both-nats-hard", indirect::both_hard),
    row("hard-nat-several-addresses", indirect::pool),
    row("guesses-forbidden", indirect::no_guesses),
    row("no-source-ports", indirect::no_pins),
    row("guesses-barred", indirect::barred),
    row("just-begun", indirect::just_begun),
    row("firewall", indirect::firewall),
    row("peer-silent", away::silent),
    row("no-address", away::no_address),
    row("unknown", indirect::unknown),
];

/// The cause of how things are with a peer. There always is one, be it that all is well.
pub(in crate::agent) fn of(facts: &Facts<'_>) -> Cause {
    let mut found = TABLE.iter().filter_map(|row| says(row, facts));
    found.next().unwrap_or_else(|| Cause {
        situation: "unknown".to_owned(),
        text: facts.peer.state.to_string(),
    })
}

/// The most likely cause that keeps a peer away, if there is one that the peer's state does not say
/// already.
pub(in crate::agent) fn likely(facts: &Facts<'_>) -> Option<String> {
    if facts.peer.state == PeerState::Resting {
        return None;
    }
    let mut found = TABLE.iter().filter(|row| row.likely);
    found.find_map(|row| (row.says)(facts))
}

fn says(row: &Row, facts: &Facts<'_>) -> Option<Cause> {
    let text = (row.says)(facts)?;
    Some(Cause {
        situation: row.situation.to_owned(),
        text,
    })
}

impl<'a> Facts<'a> {
    fn name(&self) -> &'a str {
        &self.peer.name
    }

    fn is_connected(&self) -> bool {
        self.peer.state == PeerState::Connected && self.peer.path != PathKind::None
    }

    /// There is nothing under way that may connect it.
    fn is_away(&self) -> bool {
        matches!(
            self.peer.state,
            PeerState::Waiting { .. } | PeerState::Unreachable { .. }
        )
    }

    fn is_unreachable(&self) -> bool {
        matches!(self.peer.state, PeerState::Unreachable { .. })
    }

    fn is_relayed(&self) -> bool {
        self.peer.path == PathKind::Relay
    }

    /// Some candidate came from an instance of this kind.
    fn has_from(&self, kind: Kind) -> bool {
        let mut origins = self.peer.candidates.iter().flat_map(|c| c.origins.iter());
        let is_of =
            |finder: &Finder, origin: &String| finder.kind == kind && finder.name == *origin;
        origins.any(|origin| self.finders.iter().any(|finder| is_of(finder, origin)))
    }

    /// The peer itself was heard, which proves that it knows this node.
    fn was_heard(&self) -> bool {
        let mut origins = self.peer.candidates.iter().flat_map(|c| c.origins.iter());
        self.peer.handshake_age.is_some() || origins.any(|origin| HEARD.contains(&origin.as_str()))
    }

    /// The peer's natpunch runs now: it answers somewhere.
    fn runs(&self) -> bool {
        self.peer
            .candidates
            .iter()
            .any(|candidate| candidate.answered)
    }

    /// The candidates that pass through no relay.
    fn direct(&self) -> impl Iterator<Item = &'a CandidateStatus> + use<'a> {
        let candidates = self.peer.candidates.iter();
        candidates.filter(|candidate| candidate.kind != CandidateKind::Relay)
    }
}
