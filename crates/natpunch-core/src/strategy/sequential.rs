//! A NAT that hands out ports in sequence, against one that keeps its port: the next ones are
//! probed.

use std::time::Duration;

use super::{Aim, Pair, Shot, Strategy, Timing};
use crate::nat::profile::Pattern;

/// Ports that the opener takes of the sequence: gaps that other hosts make do not matter.
const PORTS: usize = 16;
/// How far ahead the sweeper looks: a carrier's NAT at 35 new flows a second and a round trip of a
/// second is still within it.
const WINDOW: usize = 96;

pub(super) static STRATEGY: Strategy = Strategy {
    id: 3,
    name: "sequential",
    timing: Timing::Armed,
    ports: PORTS,
    samples: true,
    known_ports: false,
    both_open: false,
    either_opens: false,
    patience: |_| Duration::from_millis(600),
    can,
    suits,
    opener: |aim, n| aim.open(n),
    sweeper,
};

fn can(pair: Pair<'_>) -> bool {
    let is_sequence = matches!(pair.opener.pattern, Pattern::Sequential { .. });
    is_sequence && pair.may_open()
}

fn suits(pair: Pair<'_>) -> bool {
    pair.is_hard_with_findable()
}

fn sweeper(aim: &Aim<'_>, n: usize) -> Option<Shot> {
    let port = (n < WINDOW).then(|| ahead(aim.pair.opener.pattern, n + 1))??;
    Some(aim.sweep(port, Duration::ZERO))
}

/// The port so many mappings after the newest one that is known.
pub(super) fn ahead(pattern: Pattern, count: usize) -> Option<u16> {
    let Pattern::Sequential { newest, step } = pattern else {
        return None;
    };
    let far = i32::from(newest) + i32::from(step) * i32::try_from(count).ok()?;
    // Where the range ends it begins anew, above the well-known ports.
    let wrapped = match far {
        65_536.. => far - 65_536 + 1_024,
        ..1_024 => far + 64_512,
        _ => far,
    };
    u16::try_from(wrapped).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_goes_on_beyond_the_end_of_the_range() {
        let rising = Pattern::Sequential {
            newest: 65_534,
            step: 1,
        };
        let ports: Vec<_> = (1..4).map(|n| ahead(rising, n)).collect();
        assert_eq!(ports, [Some(65_535), Some(1_024), Some(1_025)]);
        let falling = Pattern::Sequential {
            newest: 1_025,
            step: -2,
        };
        assert_eq!(ahead(falling, 1), Some(65_535));
        assert_eq!(ahead(Pattern::Random, 1), None);
    }
}
