//! When the pings of a burst leave, and how far they go.

use std::num::NonZeroU8;
use std::time::Duration;

use crate::nat::hops::opener_ttl;

/// Milliseconds from the start of a burst, doubling: the first answer counts, and loss is made up
/// for.
const DIRECT: [u64; 8] = [0, 20, 60, 140, 300, 620, 1260, 2000];
/// The same for a path on which the peer is unlikely to answer.
const SPARSE: [u64; 2] = [0, 620];
/// The openers of an opening burst ...
const OPENERS: [u64; 3] = [0, 500, 1500];
/// ... and its pings proper, late enough that the other side, which may be two seconds behind, has
/// opened too.
const AFTER_OPENERS: [u64; 5] = [3000, 3040, 3120, 3280, 3600];
/// The TTL of each opener, where it is not known how far this side's last NAT is: past this side's
/// NATs, and dead before the peer's. The first TTL is for a single NAT, the others for a provider's
/// NAT behind it.
const OPENER_TTL: [u8; 3] = [2, 4, 7];
/// The openers of a burst that is held until discovery says that both sides fire, and how far they
/// go ...
const HELD_OPENERS: [u64; 2] = [0, 30];
const HELD_OPENER_TTL: [u8; 2] = [2, 4];
/// ... and its pings proper, if discovery says nothing.
const AFTER_HELD: [u64; 6] = [500, 520, 560, 640, 800, 1120];
/// The kind of a burst.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Burst {
    /// All pings go to the peer.
    #[default]
    Direct,
    /// The same with few pings.
    Sparse,
    /// First some pings that only open this side's NAT. A ping that arrives before the other NAT
    /// has a mapping for it makes some routers (Linux that accepts on its outside) reserve the
    /// five-tuple that the peer is about to use, and every repetition keeps it reserved.
    Opening,
    /// The same, but only until the moment at which both sides are told to fire, which starts a
    /// [`Burst::Direct`].
    Held,
}

impl Burst {
    /// When ping number `step` leaves, from the start of the burst.
    pub(crate) fn offset(self, step: usize) -> Option<Duration> {
        let offset = match self {
            Self::Direct => DIRECT.get(step),
            Self::Sparse => SPARSE.get(step),
            Self::Opening => OPENERS.iter().chain(&AFTER_OPENERS).nth(step),
            Self::Held => HELD_OPENERS.iter().chain(&AFTER_HELD).nth(step),
        };
        offset.map(|millis| Duration::from_millis(*millis))
    }

    /// How far ping number `step` goes; `None` is all the way. `hops`: how far it has to go to pass
    /// this side's NATs, if that is known.
    pub(crate) fn ttl(self, step: usize, hops: Option<NonZeroU8>) -> Option<u8> {
        let guess = match self {
            Self::Opening => OPENER_TTL.get(step).copied(),
            Self::Held => HELD_OPENER_TTL.get(step).copied(),
            Self::Direct | Self::Sparse => None,
        };
        guess.map(|guess| hops.map_or(guess, |_| opener_ttl(hops)))
    }

    /// Number of pings that are due this long after the start.
    pub(crate) fn due(self, elapsed: Duration) -> usize {
        (0..)
            .map_while(|step| self.offset(step))
            .take_while(|offset| *offset <= elapsed)
            .count()
    }

    /// From the start to the time for the last answers.
    pub(crate) fn duration(self) -> Duration {
        let last = (0..)
            .map_while(|step| self.offset(step))
            .last()
            .unwrap_or_default();
        last + Duration::from_millis(600)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openers_come_first_and_full_pings_after_them() {
        let burst = Burst::Opening;
        let ttls: Vec<_> = (0..8).map(|step| burst.ttl(step, None)).collect();
        assert_eq!(
            ttls,
            [Some(2), Some(4), Some(7), None, None, None, None, None]
        );
        assert!((0..8).all(|step| Burst::Direct.ttl(step, None).is_none()));
        let held: Vec<_> = (0..4)
            .map(|step| (Burst::Held.offset(step), Burst::Held.ttl(step, None)))
            .collect();
        let at = |millis| Some(Duration::from_millis(millis));
        assert_eq!(
            held,
            [
                (at(0), Some(2)),
                (at(30), Some(4)),
                (at(500), None),
                (at(520), None)
            ]
        );
        let known = (0..4).map(|step| burst.ttl(step, NonZeroU8::new(4)));
        let expected = [Some(5), Some(5), Some(5), None];
        assert_eq!(known.collect::<Vec<_>>(), expected);
        assert_eq!(burst.offset(8), None);
        assert_eq!(burst.due(Duration::from_millis(1500)), 3);
        assert_eq!(
            (Burst::Direct.duration(), burst.duration()),
            (Duration::from_millis(2600), Duration::from_millis(4200))
        );
    }
}
