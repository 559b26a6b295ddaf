//! What a node says of itself with each ping: its NAT, and what it does about the pair's.

use crate::messages::wire::{ADDRESS_LEN, Reader};
use crate::nat::profile::{ADDED_LEN, NatProfile, PROFILE_LEN};

const VERSION: u8 = 1;

/// How far a node is with a strategy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Nothing is under way.
    #[default]
    Idle,
    /// The opener: the ports are open, or are about to be; the sweeper shall begin.
    Armed,
    /// The sweeper: it has begun.
    Sweeping,
    /// The sweeper: it has ended, or could not begin.
    Done,
}

/// What a node says of the strategy that is under way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Word {
    /// The number of the strategy; 0 is none.
    pub(crate) strategy: u8,
    pub(crate) stage: Stage,
    /// Tells one volley of the opener from the next.
    pub(crate) round: u16,
    /// From which both sides derive the same ports.
    pub(crate) seed: u16,
}

/// What a ping says beside the path that it is on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct About {
    pub(crate) profile: NatProfile,
    pub(crate) word: Word,
}

impl About {
    pub(crate) fn to_bytes(self) -> [u8; ADDRESS_LEN] {
        let Word {
            strategy,
            stage,
            round,
            seed,
        } = self.word;
        let stage = match stage {
            Stage::Idle => 0,
            Stage::Armed => 1,
            Stage::Sweeping => 2,
            Stage::Done => 3,
        };
        let fields = [VERSION]
            .into_iter()
            .chain(self.profile.to_bytes())
            .chain([strategy, stage])
            .chain(round.to_be_bytes())
            .chain(seed.to_be_bytes())
            .chain(self.profile.added());
        let mut bytes = [0; ADDRESS_LEN];
        for (place, byte) in bytes.iter_mut().zip(fields) {
            *place = byte;
        }
        bytes
    }

    /// What the first bytes of these say; `None` of a version that says nothing.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        if reader.u8()? != VERSION {
            return None;
        }
        let mut profile = NatProfile::from_bytes(reader.array::<PROFILE_LEN>()?);
        let strategy = reader.u8()?;
        let stage = match reader.u8()? {
            1 => Stage::Armed,
            2 => Stage::Sweeping,
            3 => Stage::Done,
            _ => Stage::Idle,
        };
        let word = Word {
            strategy,
            stage,
            round: reader.u16()?,
            seed: reader.u16()?,
        };
        profile = profile.with_added(reader.array::<ADDED_LEN>()?);
        Some(Self { profile, word })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nat::family::PerFamily;
    use crate::nat::lifetime::SHORTEST;

    fn of_lifetime(v4: Option<u8>) -> NatProfile {
        NatProfile {
            lifetime: PerFamily { v4, v6: None },
            ..NatProfile::default()
        }
    }

    #[test]
    fn what_is_said_comes_back_and_an_older_version_says_nothing() {
        let word = Word {
            strategy: 3,
            stage: Stage::Sweeping,
            round: 0x1234,
            seed: 0xfedc,
        };
        for lifetime in [None, Some(SHORTEST), Some(110)] {
            let profile = of_lifetime(lifetime);
            let about = About { profile, word };
            assert_eq!(About::from_bytes(&about.to_bytes()), Some(about));
        }
        let hasty = About {
            profile: of_lifetime(Some(1)),
            word,
        };
        let heard = About::from_bytes(&hasty.to_bytes());
        assert_eq!(heard.map(|about| about.profile.lifetime.v4), Some(None));
        assert_eq!(About::from_bytes(&[0; ADDRESS_LEN]), None);
        assert_eq!(About::from_bytes(&[VERSION, 0, 0]), None);
    }
}
