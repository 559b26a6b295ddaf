//! A NAT that hands out any port, against one that keeps its port and filters by port.
//!
//! Of `R` ports `N` lead to the opener; `M` probes at random ports miss them all with the
//! probability `(1 - N/R)^M`: with 256 of 64,512 and 1,024 probes that is 1.7 %, and the mean number
//! of probes to the first hit is 251.

use std::time::Duration;

use super::order::shuffled;
use super::{Aim, Pair, Shot, Strategy, Timing};
use crate::profile::NatProfile;

/// The ports that a NAT may hand out: all but the well-known ones.
const FIRST: u16 = 1_024;
const COUNT: u32 = 65_536 - FIRST as u32;

pub(super) static STRATEGY: Strategy = Strategy {
    id: 1,
    name: "birthday",
    timing: Timing::Armed,
    ports: 256,
    samples: false,
    known_ports: false,
    both_open: false,
    either_opens: false,
    patience: Duration::from_millis(600),
    suits,
    opener: |aim, n| aim.open(n),
    sweeper,
};

/// The same where nobody knows of a NAT that maps by destination, and no direct path is found all the
/// same: one server can't tell a NAT that maps by address from one that maps independently.
pub(super) static LAST_RESORT: Strategy = Strategy {
    id: 6,
    name: "birthday on suspicion",
    timing: Timing::Armed,
    ports: 256,
    samples: false,
    known_ports: false,
    both_open: false,
    either_opens: true,
    patience: Duration::from_secs(10),
    suits: suits_on_suspicion,
    opener: |aim, n| aim.open(n),
    sweeper,
};

fn suits_on_suspicion(pair: Pair<'_>) -> bool {
    let is_easy = |side: &NatProfile| !side.is_hard() && !side.pool;
    pair.opener.pins && is_easy(pair.opener) && is_easy(pair.sweeper) && pair.may_spray()
}

/// Any pattern: where a better guess has failed, this is what is left.
fn suits(pair: Pair<'_>) -> bool {
    let opener = pair.opener.is_hard() && pair.opener.pins && !pair.opener.pool;
    opener && !pair.sweeper.is_hard() && pair.may_spray()
}

fn sweeper(aim: &Aim<'_>, n: usize) -> Option<Shot> {
    let port = u16::try_from(shuffled(n, COUNT, aim.seed)?).ok()?;
    Some(aim.sweep(FIRST + port, Duration::ZERO))
}
