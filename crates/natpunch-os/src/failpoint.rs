//! Places at which a test kills the process, to see what the next one makes of it.

use std::fmt::Display;

/// A place between two steps. With the feature `failpoints`, `NATPUNCH_FAIL_AT=N` in the
/// environment kills the process with SIGKILL at the Nth place that it comes to, and
/// `NATPUNCH_FAIL_LOG=FILE` notes them all. Without the feature this does nothing.
#[cfg(feature = "failpoints")]
pub fn failpoint(place: impl Display) {
    use std::io::Write as _;
    use std::sync::atomic::{AtomicU64, Ordering};
    static PASSED: AtomicU64 = AtomicU64::new(0);
    let number = PASSED.fetch_add(1, Ordering::SeqCst) + 1;
    if let Some(file) = std::env::var_os("NATPUNCH_FAIL_LOG")
        && let Ok(mut file) = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(file)
    {
        let _ = writeln!(file, "{number} {place}");
    }
    if std::env::var("NATPUNCH_FAIL_AT").is_ok_and(|at| at.parse() == Ok(number)) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
    }
}

/// A place between two steps: nothing, in this build.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn failpoint(_place: impl Display) {}

/// Whether a test kills this process at one of its places, so that what is one step otherwise is
/// taken as several.
pub fn failpoint_is_set() -> bool {
    cfg!(feature = "failpoints") && std::env::var_os("NATPUNCH_FAIL_AT").is_some()
}
