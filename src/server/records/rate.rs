//! Token buckets by source, in bounded memory. Pure: the time is an argument.

use std::collections::HashMap;
use std::time::Duration;

use crate::server::store::Source;

/// Lets each source do `burst` things at once and `rate` per second in the long run.
#[derive(Debug)]
pub(in crate::server) struct RateLimiter {
    rate: f64,
    burst: f64,
    capacity: usize,
    buckets: HashMap<Source, Bucket>,
    pruned: Duration,
}

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    at: Duration,
}

impl RateLimiter {
    /// A limiter that remembers at most `capacity` sources; when so many are active at once, new
    /// ones are refused.
    pub(in crate::server) fn new(rate: u32, burst: u32, capacity: usize) -> Self {
        Self {
            rate: f64::from(rate),
            burst: f64::from(burst),
            capacity,
            buckets: HashMap::new(),
            pruned: Duration::ZERO,
        }
    }

    /// Whether this source may do one thing now; if so, it is counted.
    pub(in crate::server) fn allow(&mut self, source: Source, now: Duration) -> bool {
        if self.buckets.len() >= self.capacity && !self.buckets.contains_key(&source) {
            self.prune(now);
            if self.buckets.len() >= self.capacity {
                return false;
            }
        }
        let (rate, burst) = (self.rate, self.burst);
        let bucket = self.buckets.entry(source).or_insert(Bucket {
            tokens: burst,
            at: now,
        });
        bucket.tokens = bucket.refilled(rate, burst, now);
        bucket.at = now;
        let allowed = bucket.tokens >= 1.0;
        if allowed {
            bucket.tokens -= 1.0;
        }
        allowed
    }

    /// Forgets the sources whose bucket is full again: they are as good as new. At most once per
    /// second, so that a flood of sources costs no scan each.
    fn prune(&mut self, now: Duration) {
        if now.saturating_sub(self.pruned) >= Duration::from_secs(1) {
            self.pruned = now;
            let (rate, burst) = (self.rate, self.burst);
            self.buckets
                .retain(|_, bucket| bucket.refilled(rate, burst, now) < burst);
        }
    }
}

impl Bucket {
    fn refilled(&self, rate: f64, burst: f64, now: Duration) -> f64 {
        (self.tokens + rate * now.saturating_sub(self.at).as_secs_f64()).min(burst)
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
        let mut limiter = RateLimiter::new(10, 3, 8);
        let allowed = |limiter: &mut RateLimiter, ms| {
            (0..10)
                .filter(|_| limiter.allow(source(1), Duration::from_millis(ms)))
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
            limiter.allow(source(2), Duration::from_secs(100)),
            "one source does not use another's share"
        );
    }

    #[test]
    fn memory_is_bounded_and_idle_sources_make_room() {
        let mut limiter = RateLimiter::new(1, 2, 4);
        let at = Duration::from_secs(10);
        assert_eq!(
            (0..100).filter(|n| limiter.allow(source(*n), at)).count(),
            4
        );
        assert_eq!(limiter.buckets.len(), 4);
        assert!(limiter.allow(source(50), at + Duration::from_secs(2)));
        assert_eq!(limiter.buckets.len(), 1);
    }
}
