//! The log: standard error, a bounded part of a minute's disk.
//!
//! What is logged for each packet or request of others is a way to fill a disk, and somebody always
//! raises the level to see what is wrong. So whatever is logged, no more than 1 MiB a minute is
//! written, no more than a quarter of it from one place in the program, so that what others cause
//! there silences nothing else, and how much was not.
//!
//! Where standard error is the journal of systemd, each line begins with its priority, and has no
//! time, since the journal has both in fields of its own.
//!
//! Text of others can't pass for lines of ours: what follows a line break is indented.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::sync::Mutex;
use std::time::Instant;

use natpunch_types::{Rate, RateBudget, Time, lock};
use tracing::callsite::Identifier;
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// Written in any minute at most.
const PER_MINUTE: u64 = 1 << 20;
/// Of these, at once.
const BURST: u64 = PER_MINUTE / 4;
/// One cause has one in so many bytes.
const CAUSES: u64 = 4;
/// Causes that are told apart; the others are one.
const MAX_CAUSES: usize = 1_024;

/// Writes lines as long as there is room in the minute.
pub(super) struct Limited<W> {
    inner: Mutex<Inner<W>>,
    start: Instant,
    json: bool,
    journal: bool,
}

struct Inner<W> {
    budget: Share,
    /// By the places in the program that log.
    causes: HashMap<Option<Identifier>, Share>,
    to: W,
}

impl<W: Write> Limited<W> {
    /// Writes to `to`, in JSON or text; with the priority of each line, if that is the journal.
    pub(super) fn new(to: W, json: bool, journal: bool) -> Self {
        let inner = Inner {
            budget: Share::one_in(1),
            causes: HashMap::new(),
            to,
        };
        Self {
            inner: Mutex::new(inner),
            start: Instant::now(),
            json,
            journal,
        }
    }

    fn write_line(&self, about: Option<&About>, line: &[u8], now: Time) -> io::Result<()> {
        let line = harmless(line);
        let line = match self.journal {
            true => Cow::Owned(with_priority(&line, about.map(|about| about.level))),
            false => line,
        };
        let cause = about.map(|about| about.cause.clone());
        let mut inner = lock(&self.inner);
        let Inner { budget, causes, to } = &mut *inner;
        let cause = cause
            .filter(|cause| causes.len() < MAX_CAUSES || causes.contains_key(&Some(cause.clone())));
        let cause = causes.entry(cause).or_insert_with(|| Share::one_in(CAUSES));
        let Some(of_cause) = cause.take(line.len(), now) else {
            return Ok(());
        };
        let Some(of_all) = budget.take(line.len(), now) else {
            return Ok(());
        };
        let left_out = of_cause + of_all;
        let mut note = String::new();
        if left_out > 0 {
            let text = format!(
                "{left_out} lines of the log were left out: it may have 1 MiB a minute, a quarter of it from one cause"
            );
            if self.journal {
                note.push_str(priority(Some(Level::WARN)));
            }
            let _ = if self.json {
                writeln!(note, "{{\"level\":\"WARN\",\"message\":\"{text}\"}}")
            } else {
                writeln!(note, "WARN {text}")
            };
        }
        to.write_all(note.as_bytes())?;
        to.write_all(line.as_bytes())
    }
}

/// A line of the log, what follows its first line break indented, and without characters that do
/// anything to a terminal but colour it.
fn harmless(line: &[u8]) -> Cow<'_, str> {
    let line = String::from_utf8_lossy(line);
    let (text, end) = line
        .strip_suffix('\n')
        .map_or((&*line, ""), |text| (text, "\n"));
    if !text.contains(char::is_control) {
        return line;
    }
    let mut out = String::with_capacity(line.len() + 16);
    let mut rest = text.chars();
    while let Some(next) = rest.next() {
        match next {
            '\n' => out.push_str("\n  "),
            '\t' => out.push(next),
            '\u{1b}' if is_colour(rest.as_str()) => out.push(next),
            next if next.is_control() => out.push('?'),
            next => out.push(next),
        }
    }
    out.push_str(end);
    Cow::Owned(out)
}

/// What sd-daemon(3) has before a line of this level: a priority of syslog.
fn priority(level: Option<Level>) -> &'static str {
    match level {
        Some(Level::ERROR) => "<3>",
        Some(Level::WARN) => "<4>",
        Some(Level::DEBUG | Level::TRACE) => "<7>",
        _ => "<6>",
    }
}

/// Each line of a record by itself, since the journal takes it for one.
fn with_priority(record: &str, level: Option<Level>) -> String {
    let lines = record.split_inclusive('\n');
    lines.flat_map(|line| [priority(level), line]).collect()
}

/// Whether standard error is the journal: systemd names it by device and inode.
pub(super) fn is_journal() -> bool {
    let named = std::env::var("JOURNAL_STREAM").ok();
    let stream = nix::sys::stat::fstat(std::io::stderr()).ok();
    named
        .zip(stream)
        .is_some_and(|(named, stream)| named == format!("{}:{}", stream.st_dev, stream.st_ino))
}

/// Whether this goes on, after its escape, as SGR of ECMA-48: a colour or the like.
fn is_colour(text: &str) -> bool {
    let parameters = text
        .strip_prefix('[')
        .map(|text| text.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';'));
    parameters.is_some_and(|rest| rest.starts_with('m'))
}

/// One line of a [`Limited`]: what a subscriber writes at once.
pub(super) struct Line<'a, W>(&'a Limited<W>, Option<About>);

/// What a line is about.
struct About {
    /// The place in the program that logs it.
    cause: Identifier,
    level: Level,
}

impl<W: Write> Write for Line<'_, W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0
            .write_line(
                self.1.as_ref(),
                line,
                Time::from_origin(self.0.start.elapsed()),
            )
            .map(|()| line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a, W: Write + 'a> MakeWriter<'a> for Limited<W> {
    type Writer = Line<'a, W>;

    fn make_writer(&'a self) -> Self::Writer {
        Line(self, None)
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Self::Writer {
        let (cause, level) = (metadata.callsite(), *metadata.level());
        Line(self, Some(About { cause, level }))
    }
}

/// A share of what may be written, and how many lines had no room in it since the last that had.
#[derive(Debug)]
struct Share {
    bytes: RateBudget,
    left_out: u64,
}

impl Share {
    /// One part in so many of all bytes.
    fn one_in(parts: u64) -> Self {
        Self {
            bytes: RateBudget::new(Rate::per_second(
                (PER_MINUTE - BURST) / 60 / parts,
                BURST / parts,
            )),
            left_out: 0,
        }
    }

    /// Room for a line, and how many had none since the last that had; `None` if there is none for
    /// this one.
    fn take(&mut self, length: usize, now: Time) -> Option<u64> {
        // With the note that may go with it.
        if !self.bytes.take_units(length as u64 + 128, now) {
            self.left_out += 1;
            return None;
        }
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn whatever_is_logged_a_minute_has_a_mebibyte_at_most_and_says_what_is_missing() {
        let line = [b'x'; 99];
        for per_second in [10_u64, 1_000, 10_000] {
            let log = Limited::new(Vec::new(), false, false);
            let mut written_before = Vec::new();
            for second in 0..180 {
                for n in 0..per_second {
                    let now = Duration::from_secs(second)
                        + Duration::from_nanos(n * 1_000_000_000 / per_second);
                    log.write_line(None, &line, Time::from_origin(now)).unwrap();
                }
                written_before.push(log.inner.lock().unwrap().to.len() as u64);
            }
            // Other causes have the rest.
            let most = written_before
                .windows(61)
                .map(|minute| minute[60] - minute[0])
                .max()
                .unwrap();
            assert!(
                most <= PER_MINUTE / CAUSES,
                "{per_second} lines a second: {most} bytes in a minute"
            );
            let text = String::from_utf8(log.inner.into_inner().unwrap().to).unwrap();
            assert_eq!(
                text.contains("lines of the log were left out"),
                per_second > 100
            );
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
        let subscriber = tracing_subscriber::fmt()
            .json()
            .with_writer(Limited::new(kept.clone(), true, false))
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            (0..20_000).for_each(|n| tracing::warn!(n, "a line that somebody else can cause"));
        });
        let text = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
        assert!(
            (BURST / 8..PER_MINUTE / CAUSES).contains(&(text.len() as u64)),
            "{}",
            text.len()
        );
        assert!(
            text.lines()
                .all(|line| line.starts_with('{') && line.ends_with('}'))
        );
    }

    #[test]
    fn in_the_journal_each_line_has_its_priority() {
        let kept = Kept::default();
        let limited = Limited::new(kept.clone(), false, true);
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .without_time()
            .with_target(false)
            .with_writer(limited)
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!("joined");
            tracing::error!("not applied\nmesh.toml:3: no such key");
        });
        let text = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let wanted = [
            "<6> INFO joined",
            "<3>ERROR not applied",
            "<3>  mesh.toml:3: no such key",
        ];
        assert_eq!(lines, wanted);
    }

    /// What is logged in there, as text.
    fn logged(log: impl FnOnce()) -> String {
        let kept = Kept::default();
        let limited = Limited::new(kept.clone(), false, false);
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(limited)
            .finish();
        tracing::subscriber::with_default(subscriber, log);
        String::from_utf8(kept.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn a_cause_that_is_noisy_silences_no_other() {
        let text = logged(|| {
            (0..50_000).for_each(|n| tracing::warn!(n, "what others cause as often as they like"));
            // More than comes back while the others are left out.
            (0..200).for_each(|n| tracing::warn!(n, "what the operator has to know"));
        });
        assert!(text.lines().count() < 20_000, "it was limited");
        assert_eq!(
            text.lines()
                .filter(|line| line.contains("what the operator has to know"))
                .count(),
            200
        );
    }

    #[test]
    fn all_causes_together_have_a_mebibyte_a_minute_and_are_as_many_as_fit() {
        let log = Limited::new(Vec::new(), false, false);
        for n in 0..60_000 {
            let now = Time::from_origin(Duration::from_millis(n));
            log.write_line(None, &[b'x'; 99], now).unwrap();
            log.inner.lock().unwrap().causes.clear();
        }
        let written = log.inner.lock().unwrap().to.len() as u64;
        assert!(
            (PER_MINUTE / 4..=PER_MINUTE).contains(&written),
            "{written}"
        );
    }

    #[test]
    fn text_of_others_can_not_pass_for_a_line_of_ours_nor_move_the_cursor() {
        let hostile = "x\r\u{8}\u{9b}2J\u{1b}[2J\u{1b}]0;t\u{7}\n2026-11-28T00:00:00Z ERROR forged\nERROR forged";
        let text = logged(
            || tracing::warn!(shown = %hostile, debugged = ?hostile, "a peer says {hostile}"),
        );
        for (number, line) in text.lines().enumerate() {
            assert_eq!(line.starts_with("  "), number > 0, "{text}");
            assert!(!line.contains(|c: char| c.is_control()), "{line:?}");
        }
    }
}
