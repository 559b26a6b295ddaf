//! How long to leave a server alone that fails. Pure.

use std::time::Duration;

use natpunch_types::{Time, backoff, spread};

/// The wait after the first failure, and after many.
const WAIT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// The rest after failures. Several questions that were under way at once and fail together are one
/// failure.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Pause {
    failures: u32,
    until: Time,
}

impl Pause {
    /// Whether it is over, and otherwise when it will be.
    pub(crate) fn ends(self) -> Time {
        self.until
    }

    /// A failure; `random` spreads those of many nodes.
    pub(crate) fn failed(&mut self, random: u32, now: Time) {
        if now < self.until {
            return;
        }
        self.until = now + spread(backoff(WAIT, self.failures), random);
        self.failures = self.failures.saturating_add(1);
    }

    /// It works, or may work again.
    pub(crate) fn over(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_fails_is_asked_ever_more_seldom_up_to_once_a_minute() {
        let mut pause = Pause::default();
        let mut now = Time::from_millis(1_000);
        let mut waits = Vec::new();
        const MIDDLE: u32 = 1 << 31;
        for _ in 0..10 {
            pause.failed(MIDDLE, now);
            // One that was under way, too.
            pause.failed(MIDDLE, now);
            waits.push(pause.ends().since(now).as_secs());
            now = pause.ends();
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]);
        pause.over();
        assert!(pause.ends() <= now);
    }
}
