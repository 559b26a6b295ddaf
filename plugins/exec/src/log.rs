//! A program's standard error, line by line into natpunch's log.

use std::sync::Mutex;
use std::time::Duration;

use natpunch_plugin::Host;
use natpunch_types::{Rate, RateBudget, lock};
use tokio::process::ChildStderr;

use crate::lines::{Line, Lines};
use crate::text::shown;

/// The longest line, in bytes; longer ones are left out. What is logged of a line is shorter yet.
const LONGEST_LINE: usize = 4 << 10;
/// Lines that are logged; more are left out.
const RATE: Rate = Rate::per_second(5, 50);
/// How long the reader rests after each line that it leaves out: a flood costs the program's time,
/// not natpunch's.
const REST: Duration = Duration::from_millis(1);

/// What a program wrote to standard error.
#[derive(Default)]
pub(crate) struct Log {
    last: Mutex<Option<String>>,
}

impl Log {
    /// The last line, to say why the program ended.
    pub(crate) fn last_words(&self) -> Option<String> {
        lock(&self.last).clone()
    }

    /// Logs until the program closes its standard error.
    pub(crate) async fn run(&self, program: &str, stderr: ChildStderr, host: &dyn Host) {
        let mut lines = Lines::new(stderr, LONGEST_LINE);
        let mut budget = RateBudget::new(RATE);
        let mut left_out = 0_u64;
        while let Ok(Some(line)) = lines.next().await {
            let text = match line {
                Line::Whole(bytes) => shown(&String::from_utf8_lossy(&bytes)),
                Line::TooLong | Line::Half => String::new(),
            };
            if text.is_empty() || !budget.take(host.now()) {
                left_out += 1;
                tokio::time::sleep(REST).await;
                continue;
            }
            let before = std::mem::take(&mut left_out);
            tracing::info!(program, left_out = before, "{text}");
            *lock(&self.last) = Some(text);
        }
    }
}
