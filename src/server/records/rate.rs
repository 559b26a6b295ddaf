//! Token buckets by source, in bounded memory. Pure: the time is an argument.

use std::collections::HashMap;
use std::time::Duration;

use crate::server::store::Source;
use natpunch_types::{Bucket, Rate, Time};

/// Lets each source do some things at once, and so many per second in the long run.
#[derive(Debug)]
pub(in crate::server) struct RateLimiter {
    rate: Rate,
    capacity: usize,
    buckets: HashMap<Source, Bucket>,
    pruned: Time,
}

impl RateLimiter {
    /// A limiter that remembers at most `capacity` sources; when so many are active at once, new
    /// ones are refused.
    pub(in crate::server) fn new(rate: Rate, capacity: usize) -> Self {
        Self {
            rate,
            capacity,
            buckets: HashMap::new(),
            pruned: Time::ZERO,
        }
    }

    /// Whether this source may do one thing now; if so, it is counted.
    pub(in crate::server) fn allow(&mut self, source: Source, now: Time) -> bool {
        if self.buckets.len() >= self.capacity && !self.buckets.contains_key(&source) {
            self.prune(now);
            if self.buckets.len() >= self.capacity {
                return false;
            }
        }
        self.buckets
            .entry(source)
            .or_default()
            .take(self.rate, 1, now)
    }

    /// Forgets the sources whose bucket is full again: they are as good as new. At most once per
    /// second, so that a flood of sources costs no scan each.
    fn prune(&mut self, now: Time) {
        if now.since(self.pruned) >= Duration::from_secs(1) {
            self.pruned = now;
            self.buckets.retain(|_, bucket| !bucket.is_full(now));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(n: u8) -> Source {
        Source::of([192, 0, 2, n].into())
    }

    #[test]
    fn a_burst_is_allowed_and_then_the_rate() {
        let mut limiter = RateLimiter::new(Rate::per_second(10, 3), 8);
        let allowed = |limiter: &mut RateLimiter, ms| {
            (0..10)
                .filter(|_| limiter.allow(source(1), Time::from_millis(ms)))
                .count()
        };
        assert_eq!(allowed(&mut limiter, 1_000), 3);
        assert_eq!(allowed(&mut limiter, 1_200), 2);
        assert_eq!(
            allowed(&mut limiter, 100_000),
            3,
            "a bucket never holds more than the burst"
        );
        assert!(
            limiter.allow(source(2), Time::from_millis(100_000)),
            "one source does not use another's share"
        );
    }

    #[test]
    fn memory_is_bounded_and_idle_sources_make_room() {
        let mut limiter = RateLimiter::new(Rate::per_second(1, 2), 4);
        let at = Time::from_millis(10_000);
        assert_eq!(
            (0..100).filter(|n| limiter.allow(source(*n), at)).count(),
            4
        );
        assert_eq!(limiter.buckets.len(), 4);
        assert!(limiter.allow(source(50), at + Duration::from_secs(2)));
        assert_eq!(limiter.buckets.len(), 1);
    }
}
