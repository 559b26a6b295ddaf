use std::time::Duration;

/// How long to wait after so many failures: the first time, doubled with each, up to the last.
pub fn backoff((first, last): (Duration, Duration), failures: u32) -> Duration {
    (first * 2_u32.saturating_pow(failures)).min(last)
}

/// Somewhere between 80 and 120 % of a duration (RFC 7675, 5.1), by a random number.
pub fn jitter(duration: Duration, random: u32) -> Duration {
    duration * (80 + random % 41) / 100
}

/// Somewhere between three and five quarters of a duration, by a random number, so that many nodes
/// don't act in step.
pub fn spread(duration: Duration, random: u32) -> Duration {
    let share = f64::from(random) / f64::from(u32::MAX);
    duration.mul_f64(0.75 + share / 2.0)
}
