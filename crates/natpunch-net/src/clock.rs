//! Time that goes on while the machine sleeps.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use natpunch_os::boot_time;
use natpunch_types::Time;
use nix::sys::time::TimeSpec;
use nix::sys::timer::{Expiration, TimerSetTimeFlags};
use nix::sys::timerfd::{ClockId as TimerClock, TimerFd, TimerFlags};
use nix::time::{ClockId, clock_gettime};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::readable::readable;

/// The time since boot, sleep included.
pub fn now() -> Time {
    Time::from_origin(boot_time())
}

/// How long a machine must have slept for its mappings in NATs to be in doubt.
const SUSPENDED: Duration = Duration::from_secs(5);

/// Counts the time since it was started, sleep included.
#[derive(Debug, Clone, Copy)]
pub struct Stopwatch(Duration);

impl Stopwatch {
    /// Starts now.
    pub fn start() -> Self {
        Self(boot_time())
    }

    /// The same as a moment, on a clock that begins at the start.
    pub fn now(&self) -> Time {
        Time::from_origin(self.elapsed())
    }

    /// The time since then.
    pub fn elapsed(&self) -> Duration {
        boot_time().saturating_sub(self.0)
    }
}

fn read(clock: ClockId) -> Duration {
    // Neither clock can fail on Linux; zero is the time of boot.
    clock_gettime(clock).map_or(Duration::ZERO, Duration::from)
}

/// Tells that the machine has slept, at once when it wakes.
#[derive(Debug)]
pub(crate) struct SuspendWatch {
    /// Fires every [`SUSPENDED`] of boot time, thus right after waking.
    timer: AsyncFd<OwnedFd>,
    gap: SuspendGap,
}

impl SuspendWatch {
    pub(crate) fn new() -> io::Result<Self> {
        let timer = TimerFd::new(
            TimerClock::CLOCK_BOOTTIME,
            TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC,
        )?;
        timer.set(
            Expiration::Interval(TimeSpec::from(SUSPENDED)),
            TimerSetTimeFlags::empty(),
        )?;
        let gap = SuspendGap::new(boot_time(), read(ClockId::CLOCK_MONOTONIC));
        Ok(Self {
            timer: readable(OwnedFd::from(timer))?,
            gap,
        })
    }

    /// Resolves after the next sleep of more than [`SUSPENDED`].
    pub(crate) async fn woke(&mut self) {
        let expire = |timer: &OwnedFd| Ok(nix::unistd::read(timer.as_fd(), &mut [0; 8])?);
        loop {
            if let Err(error) = self.timer.async_io(Interest::READABLE, expire).await {
                tracing::warn!(%error, "cannot read the boot clock's timer: sleep goes unnoticed from now on");
                return std::future::pending().await;
            }
            if self
                .gap
                .observe(boot_time(), read(ClockId::CLOCK_MONOTONIC))
            {
                return;
            }
        }
    }
}

/// The distance between a clock that counts sleep and one that does not.
#[derive(Debug)]
struct SuspendGap(Duration);

impl SuspendGap {
    fn new(boot: Duration, monotonic: Duration) -> Self {
        Self(boot.saturating_sub(monotonic))
    }

    /// True if the distance has grown by more than [`SUSPENDED`] since it was last true. Short naps
    /// add up.
    fn observe(&mut self, boot: Duration, monotonic: Duration) -> bool {
        let gap = boot.saturating_sub(monotonic);
        let slept = gap.saturating_sub(self.0) > SUSPENDED;
        if slept {
            self.0 = gap;
        }
        slept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleep_is_told_once_and_short_naps_add_up() {
        let s = Duration::from_secs;
        let mut gap = SuspendGap::new(s(1000), s(400));
        assert!(!gap.observe(s(2000), s(1400)), "awake");
        assert!(!gap.observe(s(2010), s(1405)), "five seconds are too short");
        assert!(gap.observe(s(2020), s(1410)), "ten in two naps are not");
        assert!(!gap.observe(s(2030), s(1420)), "told once");
        assert!(gap.observe(s(12_030), s(1420)));
        assert!(
            !gap.observe(s(1), s(2)),
            "clocks that make no sense are no sleep"
        );
    }

    #[test]
    fn boot_time_counts_at_least_what_the_monotonic_clock_counts() {
        let monotonic = read(ClockId::CLOCK_MONOTONIC);
        let boot = boot_time();
        assert!(boot >= monotonic && boot <= boot_time());
    }
}
