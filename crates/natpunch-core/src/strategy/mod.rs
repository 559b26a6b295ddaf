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
//! | [`sequential`] | endpoint-dependent, ports in sequence | endpoint-independent, or any (below) |
//! | [`block`] | endpoint-dependent, ports of a small range | the same |
//! | [`birthday`] | endpoint-dependent, any ports | the same |
//! | [`both_sequential`] | endpoint-dependent, in sequence | the same |
//! | [`rotation`] | keeps ports | endpoint-independent; one of them accepts on its outside |
//! | [`fresh`] | keeps ports, and so may the other; they can agree on nothing | the same |
//! | [`birthday`] on suspicion | seems endpoint-independent | the same |
//!
//! Where the opener's NAT lets in whatever comes from an address that it has sent to, the sweeper's
//! port does not matter, and so its NAT may be of any kind.
//!
//! Cone with cone, one open side and one LAN need none of this: they are what ordinary bursts find
//! ([`crate::burst`]).
//!
//! A class may be wrong: measured with a server that lies, or of a NAT that has changed. So the
//! profiles order the plan and forbid nothing. Behind the rows that suit them come all others that
//! the two nodes are able to do, later and with what the budget has left. Only three things bar a
//! row: what a node itself says that it can't or must not do; numbers that are missing; and servers
//! that see a node at several addresses. In that case one of them may have named a third host, at
//! which nobody may guess.

mod birthday;
mod block;
mod both_sequential;
mod fresh;
mod order;
mod rotation;
mod sequential;

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::time::Duration;

use natpunch_types::{LocalSocket, PathId};

use crate::nat::profile::NatProfile;
use crate::status::Filtering;

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

impl Role {
    fn other(self) -> Self {
        match self {
            Self::Opener => Self::Sweeper,
            Self::Sweeper => Self::Opener,
        }
    }
}

impl Pair<'_> {
    /// The opener's ports depend on the destination, and it lets the sweeper in: the sweeper's port
    /// is known, or does not matter.
    fn is_hard_with_findable(&self) -> bool {
        let filtering = self.opener.filtering.v4;
        let lets_in = filtering.is_some_and(Filtering::lets_in_any_port);
        self.opener.is_hard() && (self.sweeper.is_easy() || lets_in)
    }

    /// Neither node's mesh file forbids it.
    fn may_spray(&self) -> bool {
        self.opener.spray && self.sweeper.spray
    }

    /// The opener can open other ports than WireGuard's, and they may be guessed.
    fn may_open(&self) -> bool {
        self.opener.pins && !self.opener.pool && self.may_spray()
    }

    fn sides(&self) -> [&NatProfile; 2] {
        [self.opener, self.sweeper]
    }

    /// One side lets the other in without any guess: ordinary bursts find the path.
    fn is_open(&self) -> bool {
        self.sides().into_iter().any(NatProfile::is_open)
    }

    /// An unexpected packet has spoiled, or will spoil, the five-tuple of WireGuard's own port.
    fn is_poison_prone(&self) -> bool {
        let mut sides = self.sides().into_iter();
        sides.any(|side| side.poison_prone == Some(true))
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
    /// Agreed by both sides; of this side's ports, where each has its own.
    pub(crate) seed: u16,
    /// Where each side has ports of its own: of the peer's.
    pub(crate) peers_seed: u16,
    /// How often this strategy has failed since either profile changed.
    pub(crate) attempt: u32,
    /// How far the packets go that only open a NAT: past the own ones, and dead before the peer's.
    pub(crate) opener_ttl: u8,
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
    /// NATs, and go all the way, unless the other router is known to be of that kind.
    fn open(&self, n: usize) -> Option<Shot> {
        let spoils = self.pair.sweeper.poison_prone == Some(true);
        let ends_early = spoils || self.attempt.is_multiple_of(2);
        let ttl = ends_early.then_some(self.opener_ttl);
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
    /// Each side begins by itself, and does the same.
    Alone,
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
    pub(crate) patience: fn(Pair<'_>) -> Duration,
    /// Both nodes are able to do it and may, whatever their NATs.
    pub(crate) can: fn(Pair<'_>) -> bool,
    /// It is for NATs as these seem to be.
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

/// When no direct path has been found for this long, what does not suit is tried, too.
const AGAINST_ODDS: Duration = Duration::from_secs(20);
/// The last row that suits is tried so often again before those that do not: a volley may have had
/// bad luck, and its openers may have ended before they passed the own NATs.
const AGAIN: usize = 1;

/// One try.
#[derive(Clone, Copy)]
pub(crate) struct Turn {
    pub(crate) strategy: &'static Strategy,
    /// This node's part.
    pub(crate) role: Role,
    /// How often it has been tried before.
    pub(crate) attempt: u32,
    /// The two NATs do not seem to be of the kinds that it is for.
    pub(crate) against_odds: bool,
    /// It is tried when no direct path has been found for this long.
    pub(crate) patience: Duration,
}

/// What a pair tries, in order.
pub(crate) struct Plan {
    /// The rows that suit, and then the others that are possible.
    rows: Vec<Turn>,
    /// How many suit.
    suited: usize,
}

impl Plan {
    /// The try after so many that have failed; `None` where nothing is possible.
    pub(crate) fn turn(&self, failures: u32) -> Option<Turn> {
        let failures = usize::try_from(failures).unwrap_or(usize::MAX);
        let round = failures.checked_div(self.tries())?;
        let place = failures.checked_rem(self.tries())?;
        let end = self.suited + self.again();
        let (row, repeats) = match place {
            _ if place < self.suited => (place, 0),
            _ if place < end => (self.suited - 1, 1 + place - self.suited),
            _ => (place - self.again(), 0),
        };
        let attempt = u32::try_from(round + repeats).unwrap_or(u32::MAX);
        Some(Turn {
            attempt,
            ..*self.rows.get(row)?
        })
    }

    /// How often the last row that suits is tried again.
    fn again(&self) -> usize {
        if self.suited > 0 { AGAIN } else { 0 }
    }

    /// The tries after which it begins anew.
    fn tries(&self) -> usize {
        self.rows.len() + self.again()
    }

    /// The same where no word can be said: without what needs a moment for both sides, and first
    /// what each side can do by itself.
    pub(crate) fn without_words(mut self, own: &NatProfile, peer: &NatProfile) -> Self {
        let needs_none = |turn: &Turn| turn.strategy.timing != Timing::Together;
        let suited = self.rows.iter().take(self.suited);
        self.suited = suited.filter(|turn| needs_none(turn)).count();
        self.rows.retain(needs_none);
        let (strategy, role) = (&fresh::STRATEGY, Role::Opener);
        let pair = Pair {
            opener: own,
            sweeper: peer,
        };
        if (strategy.can)(pair) && (strategy.suits)(pair) {
            let turn = Turn {
                strategy,
                role,
                attempt: 0,
                against_odds: false,
                patience: (strategy.patience)(pair),
            };
            self.rows.insert(0, turn);
            self.suited += 1;
        }
        self
    }

    /// The row in which this node sweeps for that strategy, if there is one.
    pub(crate) fn sweeps(&self, strategy: &Strategy) -> Option<&Turn> {
        let is_asked = |turn: &&Turn| turn.strategy.id == strategy.id && turn.role == Role::Sweeper;
        self.rows.iter().find(is_asked)
    }

    /// How often each try has had its turn after so many failures.
    pub(crate) fn rounds(&self, failures: u32) -> usize {
        let failures = usize::try_from(failures).unwrap_or(usize::MAX);
        failures.checked_div(self.tries()).unwrap_or_default()
    }
}

/// What to try, in order, and this node's part in each: on both sides the same, with the other
/// part. Where the profiles allow both parts, the controlling side opens.
pub(crate) fn plan(own: &NatProfile, peer: &NatProfile, controlling: bool) -> Plan {
    let pair_of = |role| match role {
        Role::Opener => Pair {
            opener: own,
            sweeper: peer,
        },
        Role::Sweeper => Pair {
            opener: peer,
            sweeper: own,
        },
    };
    let first = match controlling {
        true => Role::Opener,
        false => Role::Sweeper,
    };
    let roles = [first, first.other()];
    let is_open = pair_of(first).is_open();
    let turn = |strategy: &'static Strategy, role, against_odds| {
        let patience = (strategy.patience)(pair_of(role));
        Turn {
            strategy,
            role,
            attempt: 0,
            against_odds,
            patience: if against_odds {
                patience.max(AGAINST_ODDS)
            } else {
                patience
            },
        }
    };
    let can = |strategy: &Strategy, role| (strategy.can)(pair_of(role));
    let suits = |strategy: &Strategy, role| {
        !is_open && can(strategy, role) && (strategy.suits)(pair_of(role))
    };
    let mut rows = Vec::new();
    for strategy in STRATEGIES {
        let suited = roles.into_iter().filter(|role| suits(strategy, *role));
        let parts = if strategy.either_opens { 2 } else { 1 };
        rows.extend(suited.take(parts).map(|role| turn(strategy, role, false)));
    }
    let suited = rows.len();
    for strategy in STRATEGIES {
        for role in roles {
            // Who opens first makes no difference where both open.
            let is_planned = |row: &Turn| {
                row.strategy.id == strategy.id && (row.role == role || strategy.both_open)
            };
            if can(strategy, role) && !rows.iter().any(is_planned) {
                rows.push(turn(strategy, role, true));
            }
        }
    }
    Plan { rows, suited }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use natpunch_types::Mapping;

    use super::*;
    use crate::nat::family::PerFamily;
    use crate::nat::profile::Pattern;

    fn easy(pattern: Pattern) -> NatProfile {
        NatProfile {
            mapping: Some(Mapping::EndpointIndependent),
            pattern,
            pins: true,
            spray: true,
            ..NatProfile::default()
        }
    }

    fn hard(pattern: Pattern) -> NatProfile {
        NatProfile {
            mapping: Some(Mapping::EndpointDependent),
            ..easy(pattern)
        }
    }

    /// The rows that suit.
    fn names(own: NatProfile, peer: NatProfile) -> Vec<(&'static str, Role)> {
        let plan = plan(&own, &peer, true);
        let suited = plan.rows.iter().filter(|row| !row.against_odds);
        suited.map(|row| (row.strategy.name, row.role)).collect()
    }

    /// All rows, in no order.
    fn possible(own: &NatProfile, peer: &NatProfile) -> BTreeSet<(&'static str, bool)> {
        let plan = plan(own, peer, true);
        let of_row = |row: &Turn| {
            let name = match row.strategy.name {
                // It is the same but for when it is tried.
                "birthday on suspicion" => "birthday",
                name => name,
            };
            (name, row.role == Role::Opener || row.strategy.both_open)
        };
        plan.rows.iter().map(of_row).collect()
    }

    /// Profiles of all kinds.
    fn all_kinds() -> Vec<NatProfile> {
        use Filtering::{AddressAndPortDependent, AddressDependent, EndpointIndependent};
        let patterns = [Pattern::Preserved, SEQUENCE, BLOCK, Pattern::Random];
        let filters = [
            None,
            Some(AddressAndPortDependent),
            Some(AddressDependent),
            Some(Filtering::NotByPort),
            Some(EndpointIndependent),
        ];
        let mappings = [
            None,
            Some(Mapping::EndpointIndependent),
            Some(Mapping::EndpointDependent),
        ];
        let mut all = Vec::new();
        for pattern in patterns {
            for v4 in filters {
                for mapping in mappings {
                    for poison_prone in [None, Some(false), Some(true)] {
                        all.push(NatProfile {
                            mapping,
                            filtering: PerFamily { v4, v6: None },
                            poison_prone,
                            ..easy(pattern)
                        });
                    }
                }
            }
        }
        all
    }

    #[test]
    fn no_class_of_either_side_changes_what_is_tried_but_only_when() {
        let all = all_kinds();
        for a in &all {
            for b in &all {
                let alike = |profile: &NatProfile| easy(profile.pattern);
                let expected = possible(&alike(a), &alike(b));
                assert_eq!(possible(a, b), expected, "{a} with {b}");
            }
        }
        assert!(!possible(&all[0], &all[0]).is_empty());
    }

    #[test]
    fn each_row_of_a_plan_has_its_turn_again_and_again() {
        let plan = plan(&hard(SEQUENCE), &easy(Pattern::Preserved), true);
        let turns: Vec<Turn> = (0..40).filter_map(|failures| plan.turn(failures)).collect();
        let firsts = turns
            .iter()
            .take(3)
            .map(|turn| (turn.strategy.name, turn.attempt));
        let expected = [("sequential", 0), ("birthday", 0), ("birthday", 1)];
        assert_eq!(firsts.collect::<Vec<_>>(), expected);
        let tries = plan.tries();
        let rounds = |failures: usize| plan.rounds(failures as u32);
        assert_eq!([tries - 1, tries, 2 * tries].map(rounds), [0, 1, 2]);
        for row in &plan.rows {
            let is_row =
                |turn: &&Turn| turn.strategy.id == row.strategy.id && turn.role == row.role;
            let times = |turns: &[Turn]| turns.iter().filter(is_row).count();
            assert!(times(&turns[..tries]) >= 1, "{}", row.strategy.name);
            assert!(times(&turns[tries..2 * tries]) >= 1);
        }
        let nothing = super::plan(&NatProfile::default(), &hard(SEQUENCE), true);
        assert!(nothing.turn(0).is_none() && nothing.turn(7).is_none());
    }

    #[test]
    fn an_open_side_needs_no_guess_and_a_poison_prone_one_another_port_soon() {
        let home = easy(Pattern::Preserved);
        let open = |v4| NatProfile {
            filtering: PerFamily {
                v4: Some(v4),
                v6: None,
            },
            ..home
        };
        let random = hard(Pattern::Random);
        for filtering in [Filtering::EndpointIndependent, Filtering::NotByPort] {
            assert_eq!(names(random, open(filtering)), vec![]);
        }
        let closed = open(Filtering::AddressAndPortDependent);
        assert_eq!(names(random, closed), vec![("birthday", Role::Opener)]);
        let poisoned = NatProfile {
            poison_prone: Some(true),
            ..closed
        };
        let patience = |peer| plan(&home, &peer, true).turn(0).unwrap().patience;
        assert!(patience(poisoned) < patience(closed) / 2);
    }

    #[test]
    fn ports_that_let_in_any_port_of_an_address_are_found_from_behind_any_nat() {
        let random = hard(Pattern::Random);
        let lax = NatProfile {
            filtering: PerFamily {
                v4: Some(Filtering::NotByPort),
                v6: None,
            },
            ..random
        };
        assert_eq!(names(lax, random), vec![("birthday", Role::Opener)]);
        assert_eq!(names(random, lax), vec![("birthday", Role::Sweeper)]);
        assert_eq!(names(lax, lax), vec![("birthday", Role::Opener)]);
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
                assert_eq!(ours.rows.len(), theirs.rows.len());
                for (one, other) in ours.rows.iter().zip(&theirs.rows) {
                    let is_same = one.strategy.id == other.strategy.id;
                    assert!(is_same && one.role != other.role, "{}", one.strategy.name);
                    assert_eq!(one.patience, other.patience);
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
    fn where_no_word_can_be_said_nothing_needs_a_moment_and_fresh_ports_come_first() {
        let silent = |own: NatProfile, peer: NatProfile| -> Vec<&'static str> {
            let plan = plan(&own, &peer, true).without_words(&own, &peer);
            (0..plan.suited as u32)
                .filter_map(|failures| plan.turn(failures))
                .map(|turn| turn.strategy.name)
                .collect()
        };
        let (known, unknown) = (easy(Pattern::Preserved), NatProfile::default());
        assert_eq!(silent(known, unknown).first(), Some(&"fresh ports"));
        let both = silent(known, known);
        assert_eq!(both.first(), Some(&"fresh ports"));
        assert!(!both.contains(&"rotation"), "{both:?}");
        // Another port than the host's is met by nobody who waits for the host's.
        assert!(!silent(known, hard(Pattern::Random)).contains(&"fresh ports"));
        let forbids = NatProfile {
            spray: false,
            ..known
        };
        assert!(silent(forbids, unknown).is_empty());
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
