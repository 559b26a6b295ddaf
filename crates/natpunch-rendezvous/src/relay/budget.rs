//! What all ports of a relay may pass on together.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How much may pass at once, in the time that it takes at the rate.
const BURST: Duration = Duration::from_secs(1);

/// A rate that ports share, each from a thread of its own: the generic cell rate algorithm (ITU-T
/// I.371), of which all state is the time when what has passed so far will be paid for.
#[derive(Debug)]
pub struct Budget {
    bytes_per_second: u64,
    /// In nanoseconds.
    paid_at: AtomicU64,
}

impl Budget {
    /// A budget of so many bytes in a second, and as a burst.
    pub fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second,
            paid_at: AtomicU64::new(0),
        }
    }

    /// Takes so many bytes; false if there is no room for them.
    pub(super) fn take(&self, bytes: u64, now: Duration) -> bool {
        let now = nanos(now);
        let Some(cost) = bytes
            .saturating_mul(1_000_000_000)
            .checked_div(self.bytes_per_second)
        else {
            return false;
        };
        let pay = |paid_at: u64| {
            let paid_at = paid_at.max(now).saturating_add(cost);
            (paid_at - now <= nanos(BURST)).then_some(paid_at)
        };
        self.paid_at
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, pay)
            .is_ok()
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_s_worth_passes_at_once_and_then_the_rate() {
        let budget = Budget::new(1_000);
        let at = Duration::from_millis;
        let passed = |now| (0..10_000).filter(|_| budget.take(10, at(now))).count();
        assert_eq!(passed(5_000), 100);
        assert_eq!(passed(5_100), 10);
        assert_eq!(passed(99_000), 100, "what was not used is not kept");
        assert!(!Budget::new(0).take(1, at(1)) && !Budget::new(10).take(11, at(1)));
    }
}
