//! Strategies for pairs that one port on each side does not join: as data, each a row of a table.
//!
//! A strategy says for which pair of NATs it is, and then only where shot number `n` goes and when.
//! Nothing here knows of peers, budgets or answers: a ping that arrives makes a path as any other
//! does. Shots are made one by one from a number, so that no list of guesses is ever kept.
//!
//! Both sides pick from the same two profiles. One is the *opener*: its NAT gets mappings towards
//! the other side, from many source ports. The other is the *sweeper*: it probes where those
//! mappings may be.
//!
//! | strategy | opener | sweeper |
//! |---|---|---|
//! | [`sequential`] | endpoint-dependent, ports in sequence | endpoint-independent |
//! | [`block`] | endpoint-dependent, ports of a small range | endpoint-independent |
//! | [`birthday`] | endpoint-dependent, any ports | endpoint-independent |
//! | [`both_sequential`] | endpoint-dependent, in sequence | the same |
//! | [`rotation`] | keeps ports | endpoint-independent; one of them accepts on its outside |
//! | [`birthday`] on suspicion | seems endpoint-independent | the same |
//!
//! What is in no row is left to a relay. Cone with cone, one open side and one LAN need none of
//! this: they are what ordinary bursts find ([`crate::burst`]).

mod birthday;
mod block;
mod both_sequential;
mod order;
mod rotation;
mod sequential;

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::time::Duration;

use natpunch_types::{LocalSocket, Mapping, PathId};

use crate::nat::profile::NatProfile;

/// How far the packets go that only open a NAT: past the own ones, and dead before the peer's.
const OPENER_TTL: u8 = 4;

/// Which part a node has in a strategy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Its NAT gets the mappings.
    Opener,
    /// It looks for them.
    Sweeper,
}

/// Two profiles by the parts that their nodes have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pair<'a> {
    pub(crate) opener: &'a NatProfile,
    pub(crate) sweeper: &'a NatProfile,
}

impl Pair<'_> {
    /// The opener's ports depend on the destination and the sweeper's do not, as is known of both; and
    /// the opener is behind one address.
    fn is_hard_with_easy(&self) -> bool {
        let is_easy = self.sweeper.mapping == Some(Mapping::EndpointIndependent);
        self.opener.is_hard() && !self.opener.pool && is_easy && self.may_spray()
    }

    /// Neither node's mesh file forbids it.
    fn may_spray(&self) -> bool {
        self.opener.spray && self.sweeper.spray
    }
}

/// One shot: a ping that leaves this long after the volley began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shot {
    pub(crate) after: Duration,
    pub(crate) path: PathId,
    pub(crate) ttl: Option<u8>,
}

/// What the shots of one side are made from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Aim<'a> {
    pub(crate) pair: Pair<'a>,
    /// The opener's source ports: of the opener itself those that it has opened, in order.
    pub(crate) ports: &'a [NonZeroU16],
    /// Where the other side's WireGuard port is seen from outside, or whose ports are guessed.
    pub(crate) target: SocketAddr,
    /// Agreed by both sides.
    pub(crate) seed: u16,
    /// How often this strategy has failed since either profile changed.
    pub(crate) attempt: u32,
}

impl Aim<'_> {
    /// A shot from one of the opener's ports, or from WireGuard's where it can have no other.
    fn shot_from(&self, n: usize, after: Duration, to: u16, ttl: Option<u8>) -> Option<Shot> {
        let local = match (self.ports.get(n), n) {
            (Some(port), _) => LocalSocket::SourcePort(*port),
            (None, 0) if self.ports.is_empty() => LocalSocket::WireguardPort,
            (None, _) => return None,
        };
        Some(Shot {
            after,
            path: PathId {
                local,
                remote: SocketAddr::new(self.target.ip(), to),
            },
            ttl,
        })
    }

    /// The opener's usual shots: one from each port, which open its NAT and, the first time, do not
    /// reach the other: a router that took them for its own would move the very mapping that the
    /// sweep comes from. Where nothing came of that, they may have died before they passed the own
    /// NATs, and go all the way.
    fn open(&self, n: usize) -> Option<Shot> {
        let ttl = self.attempt.is_multiple_of(2).then_some(OPENER_TTL);
        self.shot_from(n, Duration::ZERO, self.target.port(), ttl)
    }

    /// A sweeper's shot at a guessed port.
    fn sweep(&self, port: u16, after: Duration) -> Shot {
        let remote = SocketAddr::new(self.target.ip(), port);
        Shot {
            after,
            path: PathId::wireguard(remote),
            ttl: None,
        }
    }
}

/// How the two sides come together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Timing {
    /// The sweep begins when the opener says that its ports are open.
    Armed,
    /// Both begin at one moment.
    Together,
}

/// One row: for whom it is, and its shots.
pub(crate) struct Strategy {
    /// Names it on the wire; never used again for another.
    pub(crate) id: u8,
    /// What people call it.
    pub(crate) name: &'static str,
    pub(crate) timing: Timing,
    /// How many source ports the opener opens.
    pub(crate) ports: usize,
    /// A side whose NAT hands out ports in sequence looks where the sequence is before it shoots.
    pub(crate) samples: bool,
    /// The opener's ports are told by the seed, so that the sweeper knows them.
    pub(crate) known_ports: bool,
    /// The sweeper opens ports, too.
    pub(crate) both_open: bool,
    /// Where both sides may, each opens in its turn, the controlling one first.
    pub(crate) either_opens: bool,
    /// It is tried when no direct path has been found for this long.
    pub(crate) patience: Duration,
    pub(crate) suits: fn(Pair<'_>) -> bool,
    /// The opener's shot number `n`; `None` ends the volley.
    pub(crate) opener: fn(&Aim<'_>, usize) -> Option<Shot>,
    /// The sweeper's.
    pub(crate) sweeper: fn(&Aim<'_>, usize) -> Option<Shot>,
}

/// All strategies, the least expensive first.
static STRATEGIES: [&Strategy; 6] = [
    &sequential::STRATEGY,
    &block::STRATEGY,
    &both_sequential::STRATEGY,
    &birthday::STRATEGY,
    &rotation::STRATEGY,
    &birthday::LAST_RESORT,
];

/// The strategy of this number.
pub(crate) fn by_id(id: u8) -> Option<&'static Strategy> {
    STRATEGIES.into_iter().find(|strategy| strategy.id == id)
}

/// What to try, in order, and this node's part in each. Where the profiles allow both parts, the
/// controlling side opens.
pub(crate) fn plan(
    own: &NatProfile,
    peer: &NatProfile,
    controlling: bool,
) -> Vec<(&'static Strategy, Role)> {
    let opens = Pair {
        opener: own,
        sweeper: peer,
    };
    let sweeps = Pair {
        opener: peer,
        sweeper: own,
    };
    let parts = |strategy: &&'static Strategy| -> &'static [Role] {
        match ((strategy.suits)(opens), (strategy.suits)(sweeps)) {
            (true, true) if strategy.either_opens && controlling => &[Role::Opener, Role::Sweeper],
            (true, true) if strategy.either_opens => &[Role::Sweeper, Role::Opener],
            (true, true) if controlling => &[Role::Opener],
            (true, false) => &[Role::Opener],
            (true, true) | (false, true) => &[Role::Sweeper],
            (false, false) => &[],
        }
    };
    let rows = STRATEGIES.into_iter();
    rows.flat_map(|strategy| parts(&strategy).iter().map(move |role| (strategy, *role)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nat::profile::Pattern;

    fn easy(pattern: Pattern) -> NatProfile {
        NatProfile {
            mapping: Some(Mapping::EndpointIndependent),
            pattern,
            pins: true,
            spray: true,
            pool: false,
            lifetime: None,
        }
    }

    fn hard(pattern: Pattern) -> NatProfile {
        NatProfile {
            mapping: Some(Mapping::EndpointDependent),
            ..easy(pattern)
        }
    }

    fn names(own: NatProfile, peer: NatProfile) -> Vec<(&'static str, Role)> {
        let plan = plan(&own, &peer, true);
        plan.iter().map(|(s, role)| (s.name, *role)).collect()
    }

    const SEQUENCE: Pattern = Pattern::Sequential {
        newest: 5000,
        step: 1,
    };
    const BLOCK: Pattern = Pattern::Block {
        low: 4096,
        high: 5119,
    };

    #[test]
    fn each_pair_gets_the_strategies_of_the_table_and_both_sides_the_same_with_other_parts() {
        let profiles = [
            easy(Pattern::Preserved),
            easy(Pattern::Random),
            hard(SEQUENCE),
            hard(BLOCK),
            hard(Pattern::Random),
            NatProfile::default(),
        ];
        for a in profiles {
            for b in profiles {
                let (ours, theirs) = (plan(&a, &b, true), plan(&b, &a, false));
                assert_eq!(ours.len(), theirs.len());
                for ((one, role), (other, part)) in ours.iter().zip(&theirs) {
                    assert!(one.id == other.id && role != part, "{}", one.name);
                }
            }
        }
        let (opens, sweeps) = (Role::Opener, Role::Sweeper);
        let table = [
            (
                hard(SEQUENCE),
                easy(Pattern::Preserved),
                vec![("sequential", opens), ("birthday", opens)],
            ),
            (
                easy(Pattern::Preserved),
                hard(BLOCK),
                vec![("block", sweeps), ("birthday", sweeps)],
            ),
            (
                hard(Pattern::Random),
                easy(Pattern::Preserved),
                vec![("birthday", opens)],
            ),
            (
                hard(SEQUENCE),
                hard(SEQUENCE),
                vec![("both sequential", opens)],
            ),
            (
                easy(Pattern::Preserved),
                easy(Pattern::Preserved),
                vec![
                    ("rotation", opens),
                    ("birthday on suspicion", opens),
                    ("birthday on suspicion", sweeps),
                ],
            ),
            (hard(Pattern::Random), hard(Pattern::Random), vec![]),
            (NatProfile::default(), hard(Pattern::Random), vec![]),
        ];
        for (own, peer, expected) in table {
            assert_eq!(names(own, peer), expected, "{own:?} with {peer:?}");
        }
    }

    #[test]
    fn without_pins_only_what_one_port_can_do_is_left_and_without_sprays_nothing() {
        let unable = |profile: NatProfile| NatProfile {
            pins: false,
            ..profile
        };
        let easy = easy(Pattern::Preserved);
        assert_eq!(names(unable(hard(Pattern::Random)), easy), vec![]);
        let block = names(unable(hard(BLOCK)), easy);
        assert_eq!(block, vec![("block", Role::Opener)]);
        let forbids = NatProfile {
            spray: false,
            ..easy
        };
        assert_eq!(names(hard(Pattern::Random), forbids), vec![]);
    }

    #[test]
    fn numbers_on_the_wire_name_one_strategy_each() {
        for (n, one) in STRATEGIES.iter().enumerate() {
            assert!(
                STRATEGIES
                    .iter()
                    .skip(n + 1)
                    .all(|other| one.id != other.id)
            );
            assert_eq!(by_id(one.id).map(|found| found.name), Some(one.name));
        }
    }
}
