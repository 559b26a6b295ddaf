//! A NAT that hands out ports of a small range (a carrier's share for one customer, RFC 7422),
//! against one that keeps its port: the range is swept.

use std::time::Duration;

use super::order::shuffled;
use super::{Aim, Pair, Shot, Strategy, Timing};
use crate::nat::profile::Pattern;

pub(super) static STRATEGY: Strategy = Strategy {
    id: 2,
    name: "block",
    timing: Timing::Armed,
    // The customer has no more than the range, so little of it is taken: of 1,024 ports 16 are
    // enough for 99 % after 256 probes.
    ports: 16,
    samples: false,
    known_ports: false,
    both_open: false,
    either_opens: false,
    patience: |_| Duration::from_millis(600),
    can,
    suits,
    opener: |aim, n| aim.open(n),
    sweeper,
};

/// The opener needs no pins: its WireGuard port has a port of the range, too.
fn can(pair: Pair<'_>) -> bool {
    let is_block = matches!(pair.opener.pattern, Pattern::Block { .. });
    is_block && !pair.opener.pool && pair.may_spray()
}

fn suits(pair: Pair<'_>) -> bool {
    pair.is_hard_with_findable()
}

fn sweeper(aim: &Aim<'_>, n: usize) -> Option<Shot> {
    let Pattern::Block { low, high } = aim.pair.opener.pattern else {
        return None;
    };
    let place = shuffled(n, u32::from(high - low) + 1, aim.seed)?;
    let port = low.saturating_add(u16::try_from(place).ok()?);
    Some(aim.sweep(port, Duration::ZERO))
}
