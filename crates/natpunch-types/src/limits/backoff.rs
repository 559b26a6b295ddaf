use std::time::Duration;

/// How long to wait after so many failures: the first time, doubled with each, up to the last.
pub fn backoff((first, last): (Duration, Duration), failures: u32) -> Duration {
    (first * 2_u32.saturating_pow(failures)).min(last)
}

/// Somewhere between three and five quarters of a duration, by a random number, so that many nodes
/// don't act in step.
pub fn spread(duration: Duration, random: u32) -> Duration {
    let share = f64::from(random) / f64::from(u32::MAX);
    duration.mul_f64(0.75 + share / 2.0)
}
