//! Two NATs that hand out ports in sequence, for each destination anew.
//!
//! Shot number `n` of one side leaves from the `n`th port after its newest one, and goes to the
//! `n`th after the other's: the two meet if nobody else takes a port meanwhile. So there are few
//! shots and few tries; each try allows for one port more that was taken.

use std::time::Duration;

use super::sequential::ahead;
use super::{Aim, Pair, Shot, Strategy, Timing};
use crate::nat::profile::{NatProfile, Pattern};

const SHOTS: usize = 24;
/// Tries after which the sequences are held to be too busy.
const TRIES: u32 = 3;

pub(super) static STRATEGY: Strategy = Strategy {
    id: 4,
    name: "both sequential",
    timing: Timing::Armed,
    ports: SHOTS,
    samples: true,
    known_ports: false,
    both_open: true,
    either_opens: false,
    patience: |_| Duration::from_millis(600),
    can,
    suits,
    opener: |aim, n| shot(aim, aim.pair.sweeper.pattern, n, 0),
    sweeper: |aim, n| shot(aim, aim.pair.opener.pattern, n, aim.attempt % TRIES),
};

fn can(pair: Pair<'_>) -> bool {
    let able = |side: &NatProfile| {
        let is_sequence = matches!(side.pattern, Pattern::Sequential { .. });
        is_sequence && side.pins && !side.pool
    };
    pair.may_spray() && pair.sides().into_iter().all(able)
}

fn suits(pair: Pair<'_>) -> bool {
    pair.sides().into_iter().all(NatProfile::is_hard)
}

fn shot(aim: &Aim<'_>, other: Pattern, n: usize, skipped: u32) -> Option<Shot> {
    if n >= SHOTS {
        return None;
    }
    let port = ahead(other, n + 1 + usize::try_from(skipped).ok()?)?;
    aim.shot_from(n, Duration::ZERO, port, None)
}
