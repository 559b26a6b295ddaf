//! What a program prints, read in the background, each line with the time at which it came.

use std::io::{self, BufRead as _, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// More lines than any lab prints; what comes after is read and forgotten.
const MAX_LINES: usize = 200_000;

/// What was read from a pipe so far.
#[derive(Debug)]
pub struct Follower<T> {
    shared: Arc<Shared<T>>,
}

#[derive(Debug)]
struct Shared<T> {
    read: Mutex<Progress<T>>,
    changed: Condvar,
}

#[derive(Debug)]
struct Progress<T> {
    lines: Vec<(Instant, T)>,
    ended: bool,
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, Progress<T>> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Clone + Send + 'static> Follower<T> {
    /// Starts to read `pipe` to its end, and keeps what `parse` makes of each line.
    pub fn start(
        pipe: impl Read + Send + 'static,
        mut parse: impl FnMut(Instant, &str) -> Option<T> + Send + 'static,
    ) -> io::Result<Self> {
        let read = Progress {
            lines: Vec::new(),
            ended: false,
        };
        let shared = Arc::new(Shared {
            read: Mutex::new(read),
            changed: Condvar::new(),
        });
        let seen = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("follow".into())
            .spawn(move || {
                let mut pipe = BufReader::new(pipe);
                let mut line = Vec::new();
                // A line that is not UTF-8 is shown as well as it can be.
                while pipe
                    .read_until(b'\n', &mut line)
                    .is_ok_and(|length| length != 0)
                {
                    let now = Instant::now();
                    if let Some(parsed) = parse(now, String::from_utf8_lossy(&line).trim_end()) {
                        let mut read = seen.lock();
                        if read.lines.len() < MAX_LINES {
                            read.lines.push((now, parsed));
                        }
                        seen.changed.notify_all();
                    }
                    line.clear();
                }
                seen.lock().ended = true;
                seen.changed.notify_all();
            })?;
        Ok(Follower { shared })
    }

    /// Everything so far.
    pub fn so_far(&self) -> Vec<(Instant, T)> {
        self.shared.lock().lines.clone()
    }

    /// Waits until `check` finds what it looks for in everything so far; `None` if the deadline
    /// passes or the pipe ends before.
    pub fn wait<R>(
        &self,
        deadline: Instant,
        mut check: impl FnMut(&[(Instant, T)]) -> Option<R>,
    ) -> Option<R> {
        let mut read = self.shared.lock();
        loop {
            if let Some(found) = check(&read.lines) {
                return Some(found);
            }
            if read.ended {
                return None;
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            read = self
                .shared
                .changed
                .wait_timeout(read, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}
