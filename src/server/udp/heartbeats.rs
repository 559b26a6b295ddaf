//! Signs of life: a thread that is stuck, or gone, is missed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use natpunch_types::{Time, lock};

/// How often a thread shows itself at least.
pub(in crate::server) const BEAT: Duration = Duration::from_secs(1);
/// A thread that has not shown itself for so long is stuck.
pub(in crate::server) const DEADLINE: Duration = Duration::from_secs(10);

/// The sign of life of one thread.
#[derive(Debug)]
pub(in crate::server) struct Heartbeat {
    thread: String,
    /// When it was last given, in milliseconds.
    at: AtomicU64,
}

impl Heartbeat {
    /// The thread is alive now.
    pub(in crate::server) fn show(&self, now: Time) {
        self.at.store(now.as_nanos(), Ordering::Relaxed);
    }
}

/// Those of all threads of a server.
#[derive(Debug, Default)]
pub(in crate::server) struct Heartbeats(Mutex<Vec<Arc<Heartbeat>>>);

impl Heartbeats {
    /// Expects signs of life of this thread from now on.
    pub(in crate::server) fn expect(&self, thread: &str, now: Time) -> Arc<Heartbeat> {
        let heartbeat = Arc::new(Heartbeat {
            thread: thread.to_owned(),
            at: AtomicU64::new(now.as_nanos()),
        });
        self.lock().push(heartbeat.clone());
        heartbeat
    }

    /// The threads that have not shown themselves within this time.
    pub(in crate::server) fn missed(&self, within: Duration, now: Time) -> Vec<String> {
        let is_missed = |heartbeat: &Heartbeat| {
            let shown = Time::from_nanos(heartbeat.at.load(Ordering::Relaxed));
            now.since(shown) > within
        };
        self.lock()
            .iter()
            .filter(|heartbeat| is_missed(heartbeat))
            .map(|heartbeat| heartbeat.thread.clone())
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Heartbeat>>> {
        lock(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_whose_sign_of_life_stands_still_is_missed_by_name_and_the_others_are_not() {
        let heartbeats = Heartbeats::default();
        let seconds = |n: u64| Time::from_millis(n * 1_000);
        let (worker, relay) = (
            heartbeats.expect("worker-0", seconds(1)),
            heartbeats.expect("relay-0", seconds(1)),
        );
        assert!(heartbeats.missed(DEADLINE, seconds(11)).is_empty());
        worker.show(seconds(11));
        assert_eq!(heartbeats.missed(DEADLINE, seconds(12)), ["relay-0"]);
        relay.show(seconds(12));
        assert!(heartbeats.missed(DEADLINE, seconds(12)).is_empty());
        // A thread that has dropped it shows no life any more.
        drop(worker);
        assert_eq!(heartbeats.missed(DEADLINE, seconds(22)), ["worker-0"]);
    }
}
