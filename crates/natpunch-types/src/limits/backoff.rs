use std::time::Duration;

/// How long to wait after so many failures: the first time, doubled with each, up to the last.
pub fn backoff((first, last): (Duration, Duration), failures: u32) -> Duration {
    (first * 2_u32.saturating_pow(failures)).min(last)
}
