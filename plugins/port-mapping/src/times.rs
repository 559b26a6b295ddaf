//! When the router is asked. Pure.

use std::time::Duration;

use natpunch_types::{Rate, RateBudget, Time};

use crate::talk::LIFETIME;

/// No router grants less than this time, as far as we heed it.
const SHORTEST: Duration = Duration::from_secs(60);
/// The pause after the first time that no router answered, doubled each time up to the longest.
const PAUSE: (Duration, Duration) = (Duration::from_secs(600), LIFETIME);
/// Beside what is due, a few times at once and then once in a while.
const EARLY: Rate = Rate::every(Duration::from_secs(300), 4);

/// When the router is asked next.
#[derive(Debug)]
pub(crate) struct Times {
    due: Time,
    early: RateBudget,
    /// Until when the mapping that is held lives.
    until: Option<Time>,
    pause: Duration,
}

impl Times {
    /// At once.
    pub(crate) fn new(now: Time) -> Self {
        Self {
            due: now,
            early: RateBudget::new(EARLY),
            until: None,
            pause: PAUSE.0,
        }
    }

    pub(crate) fn due(&self) -> Time {
        self.due
    }

    /// The router may have forgotten the mapping, or is another: asks soon.
    pub(crate) fn hint(&mut self, now: Time) {
        let soon = if self.early.take(now) {
            Some(now)
        } else {
            self.early.available_at()
        };
        self.due = soon.map_or(self.due, |soon| self.due.min(soon));
    }

    /// What was held is held no longer.
    pub(crate) fn lost(&mut self) {
        (self.until, self.pause) = (None, PAUSE.0);
    }

    /// The router maps for so long. It is asked again when half of that is over.
    pub(crate) fn granted(&mut self, lifetime: Duration, now: Time) {
        let lifetime = lifetime.clamp(SHORTEST, LIFETIME);
        (self.due, self.until) = (now + lifetime / 2, Some(now + lifetime));
        self.pause = PAUSE.0;
    }

    /// No router maps, or the one that did does not answer; true if the mapping is over with it.
    pub(crate) fn failed(&mut self, now: Time) -> bool {
        let left = self.until.map_or(Duration::ZERO, |until| until.since(now));
        if left > SHORTEST {
            self.due = now + (left / 2).max(SHORTEST);
            return false;
        }
        let is_over = self.until.take().is_some();
        self.due = now + self.pause;
        self.pause = (self.pause * 2).min(PAUSE.1);
        is_over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Time {
        Time::from_millis(seconds * 1000)
    }

    const fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_mapping_is_renewed_at_half_of_its_life_and_never_later_than_we_asked_for() {
        let mut times = Times::new(at(0));
        assert_eq!(times.due(), at(0));
        times.granted(secs(600), at(0));
        assert_eq!(times.due(), at(300));
        times.granted(secs(864_000), at(300));
        assert_eq!(times.due(), at(300 + 1800));
        times.granted(secs(1), at(0));
        assert_eq!(times.due(), at(30));
    }

    #[test]
    fn a_renewal_without_an_answer_is_tried_again_before_the_mapping_is_given_up() {
        let mut times = Times::new(at(0));
        times.granted(secs(3600), at(0));
        let (mut tries, mut now) = (0, times.due());
        while !times.failed(now) {
            assert!(times.due() > now);
            (tries, now) = (tries + 1, times.due());
        }
        assert!((3..=8).contains(&tries), "{tries}");
        assert!(now <= at(3600) + SHORTEST);
    }

    #[test]
    fn a_network_without_such_a_router_is_asked_ever_more_seldom() {
        let mut times = Times::new(at(0));
        let mut pauses = Vec::new();
        for _ in 0..5 {
            let now = times.due();
            assert!(!times.failed(now));
            pauses.push(times.due().since(now).as_secs());
        }
        assert_eq!(pauses, [600, 1200, 2400, 3600, 3600]);
    }

    #[test]
    fn a_thousand_hints_are_a_few_questions() {
        let mut times = Times::new(at(0));
        let mut asked = 0;
        for second in 0..3600 {
            times.hint(at(second));
            if times.due() <= at(second) {
                asked += 1;
                times.granted(secs(3600), at(second));
            }
        }
        assert!((10..=17).contains(&asked), "{asked}");
    }
}
