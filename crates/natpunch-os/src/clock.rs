//! Time that goes on while the machine sleeps.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Time since boot, sleep included (`CLOCK_BOOTTIME`). It never goes back, and nobody sets it.
pub fn boot_time() -> Duration {
    // The clock can't fail on Linux; zero is the time of boot.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}
