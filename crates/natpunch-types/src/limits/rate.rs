//! Rate limits: the generic cell rate algorithm (GCRA, virtual scheduling of ITU-T I.371).
//!
//! The whole state of a limit is one [`Time`]: when the bucket would be full again. So many
//! buckets share one [`Rate`], and a limit that threads share fits into one atomic word
//! ([`Bucket::after`]).

use std::time::Duration;

use crate::Time;

/// How much may happen: so many units in each period in the long run, and a burst at once.
///
/// A unit is whatever is limited: a packet, a byte, a handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    units: u64,
    period: Duration,
    burst: u64,
}

impl Rate {
    /// `units` in each second, and `burst` at once. With no units at all nothing passes.
    pub const fn per_second(units: u64, burst: u64) -> Self {
        Self {
            units,
            period: Duration::from_secs(1),
            burst,
        }
    }

    /// One unit in each interval, and `burst` at once.
    pub const fn every(interval: Duration, burst: u64) -> Self {
        Self {
            units: 1,
            period: interval,
            burst,
        }
    }

    /// How long the rate takes to earn so many units; `None` if it never does.
    fn cost(self, units: u64) -> Option<Duration> {
        let nanos = u128::from(units)
            .saturating_mul(self.period.as_nanos())
            .checked_div(u128::from(self.units))?;
        Some(Duration::from_nanos(
            u64::try_from(nanos).unwrap_or(u64::MAX),
        ))
    }
}

/// What is left of a [`Rate`], for one source of many.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bucket {
    full_at: Time,
}

impl Bucket {
    /// The bucket that will be full at this moment.
    pub const fn full_at(full_at: Time) -> Self {
        Self { full_at }
    }

    /// When it will be full again; a moment in the past means that it is full.
    pub const fn fills_at(self) -> Time {
        self.full_at
    }

    /// Nothing is missing: the bucket is as good as a new one and may be forgotten.
    pub fn is_full(self, now: Time) -> bool {
        self.full_at <= now
    }

    /// The bucket after so many units were taken; `None` if there is no room for them.
    pub fn after(self, rate: Rate, units: u64, now: Time) -> Option<Self> {
        let full_at = self.full_at.max(now) + rate.cost(units)?;
        (full_at.since(now) <= rate.cost(rate.burst)?).then_some(Self { full_at })
    }

    /// Takes so many units. False, and nothing is taken, if there is no room for them.
    pub fn take(&mut self, rate: Rate, units: u64, now: Time) -> bool {
        let after = self.after(rate, units, now);
        if let Some(after) = after {
            *self = after;
        }
        after.is_some()
    }

    /// Takes so many units ahead of time: when they may pass. `None`, and nothing is taken, if that
    /// is not within `longest`.
    pub fn reserve(
        &mut self,
        rate: Rate,
        units: u64,
        longest: Duration,
        now: Time,
    ) -> Option<Time> {
        let full_at = self.full_at.max(now) + rate.cost(units)?;
        let passes_at = (full_at - rate.cost(rate.burst)?).max(now);
        (passes_at.since(now) <= longest).then(|| {
            self.full_at = full_at;
            passes_at
        })
    }

    /// The earliest moment at which so many units can be taken; `None` if they never can.
    pub fn available_at(self, rate: Rate, units: u64) -> Option<Time> {
        let (wanted, all) = (rate.cost(units)?, rate.cost(rate.burst)?);
        (wanted <= all).then(|| (self.full_at + wanted) - all)
    }
}

/// A [`Rate`] and its one [`Bucket`]: a limit on something that there is once.
#[derive(Debug, Clone, Copy)]
pub struct RateBudget {
    rate: Rate,
    bucket: Bucket,
}

impl RateBudget {
    /// A full budget.
    pub const fn new(rate: Rate) -> Self {
        Self {
            rate,
            bucket: Bucket::full_at(Time::ZERO),
        }
    }

    /// Takes one unit; false if none is left.
    pub fn take(&mut self, now: Time) -> bool {
        self.take_units(1, now)
    }

    /// Takes so many units. False, and nothing is taken, if there is no room for all of them.
    pub fn take_units(&mut self, units: u64, now: Time) -> bool {
        self.bucket.take(self.rate, units, now)
    }

    /// Nothing is missing.
    pub fn is_full(&self, now: Time) -> bool {
        self.bucket.is_full(now)
    }

    /// The earliest moment at which [`RateBudget::take`] succeeds; `None` if it never does.
    pub fn available_at(&self) -> Option<Time> {
        self.bucket.available_at(self.rate, 1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_burst_passes_at_once_and_then_the_rate() {
        let mut budget = RateBudget::new(Rate::per_second(1_000, 1_000));
        let mut passed = |now| {
            (0..10_000)
                .filter(|_| budget.take_units(10, Time::from_millis(now)))
                .count()
        };
        assert_eq!(passed(5_000), 100);
        assert_eq!(passed(5_100), 10);
        assert_eq!(passed(99_000), 100, "what was not used is not kept");
    }

    #[test]
    fn a_rate_of_nothing_lets_nothing_pass_and_what_exceeds_the_burst_never_passes() {
        let mut none = RateBudget::new(Rate::per_second(0, 5));
        assert!(!none.take(Time::from_millis(1)) && none.available_at().is_none());
        let mut small = RateBudget::new(Rate::every(Duration::from_secs(1), 3));
        assert!(!small.take_units(4, Time::from_millis(9_000)));
        assert!(small.take_units(3, Time::from_millis(9_000)));
    }

    #[test]
    fn a_rate_of_gigabytes_loses_nothing_to_rounding() {
        let mut budget = RateBudget::new(Rate::per_second(3_000_000_000, 3_000_000_000));
        assert!(budget.take_units(3_000_000_000, Time::ZERO));
        assert!(!budget.take_units(3, Time::ZERO));
        assert!(budget.take_units(3, Time::from_nanos(1)));
    }

    #[test]
    fn what_is_reserved_passes_one_after_the_other_and_nothing_waits_too_long() {
        let (rate, longest) = (Rate::per_second(10, 2), Duration::from_millis(250));
        let (mut bucket, now) = (Bucket::default(), Time::from_millis(5_000));
        let passes: Vec<Option<Duration>> = (0..6)
            .map(|_| bucket.reserve(rate, 1, longest, now))
            .map(|at| at.map(|at| at.since(now)))
            .collect();
        let after = |ms| Some(Duration::from_millis(ms));
        let wanted = [after(0), after(0), after(100), after(200), None, None];
        assert_eq!(passes, wanted);
    }

    proptest! {
        #[test]
        fn no_time_lets_more_pass_than_burst_and_rate_allow(
            (per_second, burst) in (1_u64..1_000, 1_u64..100),
            steps in prop::collection::vec((0_u64..50, 1_u64..20), 1..200),
        ) {
            let mut budget = RateBudget::new(Rate::per_second(per_second, burst));
            let (mut now, mut passed) = (1_000, 0);
            for (later, units) in steps {
                now += later;
                if budget.take_units(units, Time::from_millis(now)) {
                    passed += units;
                } else if units == 1 {
                    let at = budget.available_at().unwrap();
                    prop_assert!(at > Time::from_millis(now));
                    let mut then = budget;
                    prop_assert!(then.take(at), "not available when it is said to be");
                }
                let earned = (now - 1_000) * per_second / 1_000 + 1;
                prop_assert!(passed <= burst + earned);
            }
        }
    }
}
