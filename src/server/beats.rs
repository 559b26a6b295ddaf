//! Signs of life: a thread that is stuck, or gone, is missed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use natpunch_types::lock;

/// How often a thread shows itself at least.
pub(super) const BEAT: Duration = Duration::from_secs(1);
/// A thread that has not shown itself for so long is stuck.
pub(super) const DEADLINE: Duration = Duration::from_secs(10);

/// The sign of life of one thread.
#[derive(Debug)]
pub(super) struct Beat {
    thread: String,
    /// When it was last given, in milliseconds.
    at: AtomicU64,
}

impl Beat {
    /// The thread is alive now.
    pub(super) fn show(&self, now: Duration) {
        self.at.store(millis(now), Ordering::Relaxed);
    }
}

/// Those of all threads of a server.
#[derive(Debug, Default)]
pub(super) struct Beats(Mutex<Vec<Arc<Beat>>>);

impl Beats {
    /// Expects signs of life of this thread from now on.
    pub(super) fn expect(&self, thread: &str, now: Duration) -> Arc<Beat> {
        let beat = Arc::new(Beat {
            thread: thread.to_owned(),
            at: AtomicU64::new(millis(now)),
        });
        self.lock().push(beat.clone());
        beat
    }

    /// The threads that have not shown themselves within this time.
    pub(super) fn missed(&self, within: Duration, now: Duration) -> Vec<String> {
        let is_missed = |beat: &Beat| {
            millis(now).saturating_sub(beat.at.load(Ordering::Relaxed)) > millis(within)
        };
        self.lock()
            .iter()
            .filter(|beat| is_missed(beat))
            .map(|beat| beat.thread.clone())
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Beat>>> {
        lock(&self.0)
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_whose_sign_of_life_stands_still_is_missed_by_name_and_the_others_are_not() {
        let beats = Beats::default();
        let seconds = Duration::from_secs;
        let (worker, relay) = (
            beats.expect("worker-0", seconds(1)),
            beats.expect("relay-0", seconds(1)),
        );
        assert!(beats.missed(DEADLINE, seconds(11)).is_empty());
        worker.show(seconds(11));
        assert_eq!(beats.missed(DEADLINE, seconds(12)), ["relay-0"]);
        relay.show(seconds(12));
        assert!(beats.missed(DEADLINE, seconds(12)).is_empty());
        // Whoever let go of it shows nothing any more.
        drop(worker);
        assert_eq!(beats.missed(DEADLINE, seconds(22)), ["worker-0"]);
    }
}
