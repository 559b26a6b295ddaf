//! What is known of the NAT before a node: how it maps, and how it hands out ports.
//!
//! Each side measures its own NAT and tells the peer, sealed, in its record and in its pings. Both
//! then look at the same two profiles, and so come to the same strategies and roles. A profile
//! orders what is tried; it forbids nothing that costs nothing, since a class may be wrong.

use std::fmt;
use std::num::NonZeroU8;

use natpunch_types::Mapping;

use crate::nat::family::PerFamily;
use crate::nat::lifetime::SHORTEST;
use crate::status::{Filtering, NatStatus, PortPattern};

/// The bytes of one profile on the wire, but for those that were added later.
pub(crate) const PROFILE_LEN: usize = 6;
/// Those that were added later. A version that does not know one has a zero there.
pub(crate) const ADDED_LEN: usize = 5;

/// Samples from which a pattern other than a preserved port is told.
pub(crate) const ENOUGH_SAMPLES: usize = 6;
/// From one mapping to the next a sequential NAT moves by no more than this, other hosts' mappings
/// included.
const MAX_STRIDE: i32 = 256;
/// A block is no longer than this: carriers give a customer 512 to 4,096 ports (RFC 7422), and a
/// longer one is not worth a sweep.
const MAX_BLOCK: u16 = 2_048;

/// How a NAT chooses the outside port of a new mapping (RFC 4787, 4.2), as samples show it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Pattern {
    /// Too few samples.
    #[default]
    Unknown,
    /// The port of the host.
    Preserved,
    /// The last port plus a step.
    Sequential {
        /// The port of the newest mapping that is known.
        newest: u16,
        /// From one mapping to the next.
        step: i16,
    },
    /// Any port of a range.
    Block {
        /// Its first port, as far as can be told.
        low: u16,
        /// Its last port.
        high: u16,
    },
    /// Any port.
    Random,
}

impl Pattern {
    /// The pattern of samples, in the order in which their mappings were made: the port of the host
    /// and the port outside.
    pub(crate) fn of(samples: &[(u16, u16)]) -> Self {
        if samples.is_empty() {
            return Self::Unknown;
        }
        if samples.iter().all(|(host, outside)| host == outside) {
            return Self::Preserved;
        }
        if samples.len() < ENOUGH_SAMPLES {
            return Self::Unknown;
        }
        let ports: Vec<u16> = samples.iter().map(|(_, outside)| *outside).collect();
        Self::sequence(&ports)
            .or_else(|| Self::block(&ports))
            .unwrap_or(Self::Random)
    }

    fn sequence(ports: &[u16]) -> Option<Self> {
        let strides = ports.windows(2).filter_map(|pair| match pair {
            [first, second] => Some(i32::from(*second) - i32::from(*first)),
            _ => None,
        });
        // Where the range ends a sequence begins anew: one stride of many may be out of line.
        let (small, wild): (Vec<i32>, Vec<i32>) =
            strides.partition(|stride| stride.abs() <= MAX_STRIDE);
        let rises = small.iter().all(|stride| *stride > 0);
        let falls = small.iter().all(|stride| *stride < 0);
        if wild.len() > 1 || !(rises || falls) {
            return None;
        }
        // Other hosts' mappings lie between ours, so each stride is a multiple of the step.
        let step = small.iter().fold(0, |step, stride| gcd(step, stride.abs()));
        let step = i16::try_from(if falls { -step } else { step }).ok()?;
        Some(Self::Sequential {
            newest: *ports.last()?,
            step,
        })
    }

    fn block(ports: &[u16]) -> Option<Self> {
        let (low, high) = (*ports.iter().min()?, *ports.iter().max()?);
        let spread = high - low;
        // Of so many random samples the outermost lie about this far from the ends.
        let margin = spread / u16::try_from(ports.len() - 1).ok()? * 2;
        let length = u32::from(spread) + 2 * u32::from(margin);
        (length < u32::from(MAX_BLOCK)).then(|| Self::Block {
            low: low.saturating_sub(margin).max(1_024),
            high: high.saturating_add(margin),
        })
    }

    /// The same but for what each new mapping changes.
    fn kind(self) -> Self {
        match self {
            Self::Sequential { step, .. } => Self::Sequential { newest: 0, step },
            other => other,
        }
    }
}

fn gcd(a: i32, b: i32) -> i32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// One node's NAT, of IPv4, its firewall of IPv6, and what the node can do about them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct NatProfile {
    /// How it maps, if some server could tell.
    pub(crate) mapping: Option<Mapping>,
    /// How it hands out ports.
    pub(crate) pattern: Pattern,
    /// Servers see this node at several addresses: what one of them sees says little of another
    /// destination.
    pub(crate) pool: bool,
    /// The node can join another source port to WireGuard's.
    pub(crate) pins: bool,
    /// The node guesses ports.
    pub(crate) spray: bool,
    /// The silence that a mapping is known to outlive, in seconds, if it was measured.
    pub(crate) lifetime: PerFamily<Option<u8>>,
    /// Whose packets it lets in, if some server could tell.
    pub(crate) filtering: PerFamily<Option<Filtering>>,
    /// Whether an unexpected packet spoils the five-tuple that a peer is to be reached by, if that
    /// was measured.
    pub(crate) poison_prone: Option<bool>,
    /// The addresses at which servers see this node; more than 15 are 15, and 0 is not known.
    pub(crate) addresses: u8,
    /// Routers up to the first one with a public address, that one included: packets that go so far
    /// have passed all NATs of this side.
    pub(crate) hops: Option<NonZeroU8>,
}

/// More can't be told.
pub(crate) const MOST: u8 = 15;

impl fmt::Display for NatProfile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mapping {
            None => f.write_str("mapping not known")?,
            Some(mapping) => write!(f, "{mapping} mapping")?,
        }
        match self.pattern {
            Pattern::Unknown => Ok(()),
            Pattern::Preserved => f.write_str(", ports preserved"),
            Pattern::Sequential { step, .. } => write!(f, ", ports in sequence, step {step}"),
            Pattern::Block { low, high } => write!(f, ", ports of a block near {low} to {high}"),
            Pattern::Random => f.write_str(", random ports"),
        }?;
        if self.pool {
            f.write_str(", several addresses")?;
        }
        if let Some(filtering) = self.filtering.v4 {
            write!(f, ", {filtering} filtering")?;
        }
        if self.poison_prone == Some(true) {
            f.write_str(", spoiled by unexpected packets")?;
        }
        if let Some(lifetime) = self.lifetime.v4 {
            write!(f, ", mappings outlive {lifetime} s of silence")?;
        }
        Ok(())
    }
}

const POOL: u8 = 4;
const PINS: u8 = 8;
const SPRAY: u8 = 16;

impl NatProfile {
    /// Its mapping depends on the destination: nobody knows its port beforehand.
    pub(crate) fn is_hard(&self) -> bool {
        self.mapping == Some(Mapping::EndpointDependent)
    }

    /// Its mapping does not depend on the destination, as far as a server could tell.
    pub(crate) fn is_easy(&self) -> bool {
        self.mapping == Some(Mapping::EndpointIndependent)
    }

    /// A peer gets in at the port that servers see: from anywhere, or from any port of an address
    /// that was sent to. Of a NAT with a port for each destination the latter is of no use.
    pub(crate) fn is_open(&self) -> bool {
        match self.filtering.v4 {
            Some(Filtering::EndpointIndependent) => true,
            Some(Filtering::AddressDependent | Filtering::NotByPort) => self.is_easy(),
            Some(Filtering::AddressAndPortDependent) | None => false,
        }
    }

    /// For `status`.
    pub(crate) fn status(&self) -> NatStatus {
        NatStatus {
            mapping: self.mapping,
            ports: match self.pattern {
                Pattern::Unknown => PortPattern::Unknown,
                Pattern::Preserved => PortPattern::Preserved,
                Pattern::Sequential { .. } => PortPattern::Sequential,
                Pattern::Block { .. } => PortPattern::Block,
                Pattern::Random => PortPattern::Random,
            },
            filtering: self.filtering.v4,
            filtering_v6: self.filtering.v6,
            poison_prone: self.poison_prone,
            several_addresses: self.pool,
            addresses: (self.addresses > 0).then_some(self.addresses),
            hops: self.hops.map(NonZeroU8::get),
            pins: self.pins,
            guesses: self.spray,
            mapping_lifetime_s: self.lifetime.v4,
            mapping_lifetime_v6_s: self.lifetime.v6,
        }
    }

    /// Whether both call for the same strategies.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        let kind = |profile: &Self| Self {
            pattern: profile.pattern.kind(),
            lifetime: PerFamily::default(),
            filtering: PerFamily {
                v6: None,
                ..profile.filtering
            },
            addresses: 0,
            hops: None,
            ..*profile
        };
        kind(self) == kind(other)
    }

    /// Bits of mapping (0 unknown, 1 independent, 2 dependent), pool, pins, spray; then the pattern
    /// with its two numbers, big-endian. Zeros are a profile of which nothing is known. The rest has
    /// a place of its own in what a node says of itself ([`added`](Self::added)).
    pub(crate) fn to_bytes(self) -> [u8; PROFILE_LEN] {
        let bit = |set: bool, bit: u8| if set { bit } else { 0 };
        let mapping = match self.mapping {
            None => 0,
            Some(Mapping::EndpointIndependent) => 1,
            Some(Mapping::EndpointDependent) => 2,
        };
        let flags = mapping | bit(self.pool, POOL) | bit(self.pins, PINS) | bit(self.spray, SPRAY);
        let (kind, [a, b], [c, d]) = match self.pattern {
            Pattern::Unknown => (0, [0; 2], [0; 2]),
            Pattern::Preserved => (1, [0; 2], [0; 2]),
            Pattern::Sequential { newest, step } => (2, newest.to_be_bytes(), step.to_be_bytes()),
            Pattern::Block { low, high } => (3, low.to_be_bytes(), high.to_be_bytes()),
            Pattern::Random => (4, [0; 2], [0; 2]),
        };
        [flags, kind, a, b, c, d]
    }

    /// What a version does not know is unknown to it.
    pub(crate) fn from_bytes(bytes: [u8; PROFILE_LEN]) -> Self {
        let [flags, kind, a, b, c, d] = bytes;
        let (first, second) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        let step = i16::from_be_bytes([c, d]);
        let is_stride = step != 0 && i32::from(step).abs() <= MAX_STRIDE;
        Self {
            mapping: match flags & 3 {
                1 => Some(Mapping::EndpointIndependent),
                2 => Some(Mapping::EndpointDependent),
                _ => None,
            },
            pattern: match kind {
                1 => Pattern::Preserved,
                2 if is_stride => Pattern::Sequential {
                    newest: first,
                    step,
                },
                3 if first <= second && second - first < MAX_BLOCK => Pattern::Block {
                    low: first,
                    high: second,
                },
                4 => Pattern::Random,
                _ => Pattern::Unknown,
            },
            pool: flags & POOL != 0,
            pins: flags & PINS != 0,
            spray: flags & SPRAY != 0,
            ..Self::default()
        }
    }

    /// The lifetime of IPv4; then 3 bits of its filtering (0 unknown, 1 endpoint-independent, 2
    /// address-dependent, 3 address- and port-dependent, 4 one of the first two), 2 of whether the
    /// NAT is poison-prone (0 unknown, 1 no, 2 yes), 3 of the filtering of IPv6; 4 bits of the
    /// addresses and 4 of the hops (0 unknown); the lifetime of IPv6; zero.
    pub(crate) fn added(self) -> [u8; ADDED_LEN] {
        let poison = match self.poison_prone {
            None => 0,
            Some(false) => 1,
            Some(true) => 2,
        };
        let of_v4 = filtering_bits(self.filtering.v4);
        let of_v6 = filtering_bits(self.filtering.v6);
        let hops = self.hops.map_or(0, NonZeroU8::get).min(MOST);
        [
            self.lifetime.v4.unwrap_or_default(),
            of_v4 | poison << 3 | of_v6 << 5,
            self.addresses.min(MOST) << 4 | hops,
            self.lifetime.v6.unwrap_or_default(),
            0,
        ]
    }

    /// The same with these bits of its flags, of the kind of its pattern, and of its filters the
    /// other way round.
    pub(crate) fn distorted(self, [flags, kind, filters]: [u8; 3]) -> Self {
        if [flags, kind, filters] == [0; 3] {
            return self;
        }
        let (mut bytes, mut added) = (self.to_bytes(), self.added());
        for (byte, bits) in bytes.iter_mut().zip([flags, kind]) {
            *byte ^= bits;
        }
        for (byte, bits) in added.iter_mut().zip([0, filters]) {
            *byte ^= bits;
        }
        Self::from_bytes(bytes).with_added(added)
    }

    /// The same profile with what was added later.
    pub(crate) fn with_added(self, bytes: [u8; ADDED_LEN]) -> Self {
        let [of_v4, filters, counts, of_v6, _] = bytes;
        // Nobody is asked more often than any NAT needs it.
        let lifetime = |seconds: u8| Some(seconds).filter(|seconds| *seconds >= SHORTEST);
        Self {
            lifetime: PerFamily {
                v4: lifetime(of_v4),
                v6: lifetime(of_v6),
            },
            filtering: PerFamily {
                v4: filtering_of(filters),
                v6: filtering_of(filters >> 5),
            },
            poison_prone: match filters >> 3 & 3 {
                1 => Some(false),
                2 => Some(true),
                _ => None,
            },
            addresses: counts >> 4,
            hops: NonZeroU8::new(counts & 15),
            ..self
        }
    }
}

fn filtering_bits(filtering: Option<Filtering>) -> u8 {
    match filtering {
        None => 0,
        Some(Filtering::EndpointIndependent) => 1,
        Some(Filtering::AddressDependent) => 2,
        Some(Filtering::AddressAndPortDependent) => 3,
        Some(Filtering::NotByPort) => 4,
    }
}

fn filtering_of(bits: u8) -> Option<Filtering> {
    match bits & 7 {
        1 => Some(Filtering::EndpointIndependent),
        2 => Some(Filtering::AddressDependent),
        3 => Some(Filtering::AddressAndPortDependent),
        4 => Some(Filtering::NotByPort),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(outside: &[u16]) -> Vec<(u16, u16)> {
        let hosts = 61_000..;
        hosts.zip(outside.iter().copied()).collect()
    }

    #[test]
    fn what_calls_for_other_strategies_is_told_from_what_does_not() {
        let plain = NatProfile {
            mapping: Some(Mapping::EndpointDependent),
            pattern: Pattern::Sequential {
                newest: 4000,
                step: 1,
            },
            ..NatProfile::default()
        };
        let elsewhere_in_the_sequence = NatProfile {
            pattern: Pattern::Sequential {
                newest: 9000,
                step: 1,
            },
            hops: NonZeroU8::new(3),
            addresses: 1,
            ..plain
        };
        assert!(plain.is_like(&elsewhere_in_the_sequence));
        for other in [
            NatProfile {
                mapping: None,
                ..plain
            },
            NatProfile {
                pattern: Pattern::Random,
                ..plain
            },
            NatProfile {
                spray: true,
                ..plain
            },
            NatProfile {
                poison_prone: Some(true),
                ..plain
            },
        ] {
            assert!(!plain.is_like(&other), "{other}");
        }
    }

    #[test]
    fn a_sequence_is_told_with_its_step_though_other_hosts_ports_lie_between() {
        for (ports, step, newest) in [
            ([4000, 4001, 4002, 4003, 4004, 4005], 1, 4005),
            ([4000, 4002, 4006, 4008, 4016, 4018], 2, 4018),
            ([4000, 3997, 3991, 3988, 3985, 3982], -3, 3982),
            ([65_533, 65_534, 65_535, 1024, 1025, 1027], 1, 1027),
        ] {
            let expected = Pattern::Sequential { newest, step };
            assert_eq!(Pattern::of(&samples(&ports)), expected, "{ports:?}");
        }
    }

    #[test]
    fn a_block_is_told_from_a_random_port_and_both_from_a_preserved_one() {
        let block = Pattern::of(&samples(&[5100, 5400, 5010, 5333, 5222, 5060, 5480, 5301]));
        assert!(
            matches!(block, Pattern::Block { low, high } if low <= 5000 && high >= 5500),
            "{block:?}"
        );
        let random = [60_001, 1100, 33_000, 9000, 45_678, 20_000];
        assert_eq!(Pattern::of(&samples(&random)), Pattern::Random);
        let kept: Vec<u16> = (61_000..61_006).collect();
        assert_eq!(Pattern::of(&samples(&kept)), Pattern::Preserved);
        assert_eq!(Pattern::of(&samples(&random[..3])), Pattern::Unknown);
        assert_eq!(Pattern::of(&[]), Pattern::Unknown);
    }

    #[test]
    fn a_profile_comes_back_from_its_bytes_and_nonsense_is_unknown() {
        for pattern in [
            Pattern::Unknown,
            Pattern::Preserved,
            Pattern::Sequential {
                newest: 65_535,
                step: -2,
            },
            Pattern::Block {
                low: 5000,
                high: 6023,
            },
            Pattern::Random,
        ] {
            let profile = NatProfile {
                mapping: Some(Mapping::EndpointDependent),
                pattern,
                pool: true,
                pins: false,
                spray: true,
                ..NatProfile::default()
            };
            assert_eq!(NatProfile::from_bytes(profile.to_bytes()), profile);
        }
        for nonsense in [[3, 9, 1, 2, 3, 4], [0, 2, 1, 1, 0, 0], [0, 3, 9, 9, 1, 1]] {
            assert_eq!(NatProfile::from_bytes(nonsense), NatProfile::default());
        }
    }

    #[test]
    fn what_was_added_later_comes_back_and_zeros_are_unknown() {
        let filters = [
            None,
            Some(Filtering::EndpointIndependent),
            Some(Filtering::AddressDependent),
            Some(Filtering::NotByPort),
            Some(Filtering::AddressAndPortDependent),
        ];
        let base = NatProfile::default();
        assert_eq!(base.with_added([0; ADDED_LEN]), base);
        for (v4, v6) in filters.into_iter().zip(filters.into_iter().rev()) {
            for poison_prone in [None, Some(false), Some(true)] {
                let profile = NatProfile {
                    filtering: PerFamily { v4, v6 },
                    poison_prone,
                    lifetime: PerFamily {
                        v4: Some(SHORTEST),
                        v6: Some(110),
                    },
                    addresses: 3,
                    hops: NonZeroU8::new(2),
                    ..base
                };
                assert_eq!(base.with_added(profile.added()), profile);
            }
        }
        let far = NatProfile {
            addresses: 200,
            hops: NonZeroU8::new(64),
            ..base
        };
        let heard = base.with_added(far.added());
        assert_eq!((heard.addresses, heard.hops), (MOST, NonZeroU8::new(MOST)));
        let nonsense = base.with_added([1, 0xff, 0, 7, 9]);
        assert_eq!(nonsense, base, "no version has such values");
    }
}
