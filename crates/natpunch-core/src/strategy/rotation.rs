//! Two NATs that keep their ports, of which one takes a packet for its own that it does not expect
//! (Linux that accepts on its outside), and so moves the session that was wanted to another port.
//!
//! A five-tuple that was spoiled stays so for 30 s after the last packet. Other source ports are
//! other five-tuples, and one is not spoiled if the packets of both sides cross: each has left its
//! own NAT before the other's arrives there. Clocks do not agree that well where the two routers
//! are neighbours on one wire. Hence the one side shoots a little faster than the other, like the
//! two scales of a vernier, and over the volley the difference passes through zero.

use std::time::Duration;

use super::{Aim, Pair, Shot, Strategy, Timing};
use crate::nat::profile::{NatProfile, Pattern};

const SHOTS: usize = 64;
/// From shot to shot: of the sweeper, and of the opener, whose first one leaves earlier by half of
/// what this adds up to.
const PACE: Duration = Duration::from_micros(5_200);
const SLOWER: Duration = Duration::from_micros(250);
/// The first shot of the sweeper.
const LEAD: Duration = SLOWER.saturating_mul(SHOTS as u32 / 2);

pub(super) static STRATEGY: Strategy = Strategy {
    id: 5,
    name: "rotation",
    timing: Timing::Together,
    ports: SHOTS,
    samples: false,
    known_ports: true,
    both_open: false,
    either_opens: false,
    patience,
    can,
    suits,
    opener: |aim, n| {
        let after = (PACE + SLOWER).checked_mul(u32::try_from(n).ok()?)?;
        aim.shot_from(n, after, aim.target.port(), None)
    },
    sweeper,
};

/// Where a side is known to be of this kind, a first burst that has not joined the two has spoiled
/// their session.
fn patience(pair: Pair<'_>) -> Duration {
    match pair.is_poison_prone() {
        true => Duration::from_millis(1_500),
        false => Duration::from_secs(4),
    }
}

fn can(pair: Pair<'_>) -> bool {
    pair.opener.pins && pair.may_spray()
}

/// One of the two may accept on its outside though its self-test, which reaches the nearest NAT that
/// filters, has not shown it. What matters is that the opener's ports are known.
fn suits(pair: Pair<'_>) -> bool {
    let is_known = pair.opener.pattern == Pattern::Preserved;
    is_known && pair.sides().into_iter().all(NatProfile::is_easy)
}

fn sweeper(aim: &Aim<'_>, n: usize) -> Option<Shot> {
    let after = LEAD + PACE.checked_mul(u32::try_from(n).ok()?)?;
    Some(aim.sweep(aim.ports.get(n)?.get(), after))
}
