//! The log: standard error, a bounded part of a minute's disk.
//!
//! What is logged for each packet or request of others is a way to fill a disk, and somebody always raises the level to
//! see what is wrong. So whatever is logged, no more than 1 MiB a minute is written, and how much was not.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing_subscriber::fmt::MakeWriter;

/// Written in any minute at most.
const PER_MINUTE: u64 = 1 << 20;
/// Of these, at once.
const BURST: u64 = PER_MINUTE / 4;

/// Writes lines as long as there is room in the minute.
pub(super) struct Limited<W> {
    inner: Mutex<Inner<W>>,
    start: Instant,
    json: bool,
}

struct Inner<W> {
    budget: Budget,
    to: W,
}

impl<W: Write> Limited<W> {
    /// Writes to `to`, in JSON or text.
    pub(super) fn new(to: W, json: bool) -> Self {
        let inner = Inner { budget: Budget::default(), to };
        Self { inner: Mutex::new(inner), start: Instant::now(), json }
    }

    fn write_line(&self, line: &[u8], now: Duration) -> io::Result<()> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let Inner { budget, to } = &mut *inner;
        let Some(left_out) = budget.take(line.len(), now) else { return Ok(()) };
        let mut note = String::new();
        if left_out > 0 {
            let text = format!("{left_out} lines of the log were left out: it may have 1 MiB a minute");
            let _ = if self.json {
                writeln!(note, "{{\"level\":\"WARN\",\"message\":\"{text}\"}}")
            } else {
                writeln!(note, "WARN {text}")
            };
        }
        to.write_all(note.as_bytes())?;
        to.write_all(line)
    }
}

/// One line of a [`Limited`]: what a subscriber writes at once.
pub(super) struct Line<'a, W>(&'a Limited<W>);

impl<W: Write> Write for Line<'_, W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.write_line(line, self.0.start.elapsed()).map(|()| line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a, W: Write + 'a> MakeWriter<'a> for Limited<W> {
    type Writer = Line<'a, W>;

    fn make_writer(&'a self) -> Self::Writer {
        Line(self)
    }
}

/// How much may be written. Pure: the time is an argument.
#[derive(Debug)]
struct Budget {
    bytes: u64,
    at: Duration,
    left_out: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Self { bytes: BURST, at: Duration::ZERO, left_out: 0 }
    }
}

impl Budget {
    /// Room for a line, and how many had none since the last that had; `None` if there is none for this one.
    fn take(&mut self, length: usize, now: Duration) -> Option<u64> {
        let since = u64::try_from(now.saturating_sub(self.at).as_millis()).unwrap_or(u64::MAX);
        let grown = since.saturating_mul(PER_MINUTE - BURST) / 60_000;
        if grown > 0 {
            (self.bytes, self.at) = (self.bytes.saturating_add(grown).min(BURST), now);
        }
        // With the note that may go with it.
        let length = length as u64 + 128;
        if length > self.bytes {
            self.left_out += 1;
            return None;
        }
        self.bytes -= length;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_logged_a_minute_has_a_mebibyte_at_most_and_says_what_is_missing() {
        let line = [b'x'; 99];
        for per_second in [10_u64, 1_000, 100_000] {
            let log = Limited::new(Vec::new(), false);
            let mut written_before = Vec::new();
            for second in 0..180 {
                for n in 0..per_second {
                    let now = Duration::from_secs(second) + Duration::from_nanos(n * 1_000_000_000 / per_second);
                    log.write_line(&line, now).unwrap();
                }
                written_before.push(log.inner.lock().unwrap().to.len() as u64);
            }
            let most = written_before.windows(61).map(|minute| minute[60] - minute[0]).max().unwrap();
            assert!(most <= PER_MINUTE, "{per_second} lines a second: {most} bytes in a minute");
            let text = String::from_utf8(log.inner.into_inner().unwrap().to).unwrap();
            assert_eq!(text.contains("lines of the log were left out"), per_second > 100);
        }
    }

    /// What several may write to.
    #[derive(Clone, Default)]
    struct Kept(std::sync::Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_subscriber_writes_through_it() {
        let kept = Kept::default();
        let subscriber = tracing_subscriber::fmt().json().with_writer(Limited::new(kept.clone(), true)).finish();
        tracing::subscriber::with_default(subscriber, || {
            (0..20_000).for_each(|n| tracing::warn!(n, "a line that somebody else can cause"));
        });
        let text = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
        assert!((BURST / 2..PER_MINUTE).contains(&(text.len() as u64)), "{}", text.len());
        assert!(text.lines().all(|line| line.starts_with('{') && line.ends_with('}')));
    }
}
