//! What the demo prints, each line with the time since its start.

use std::time::Instant;

use anstyle::{AnsiColor, Style};

const TIME: Style = Style::new().dimmed();
const HEADLINE: Style = Style::new().bold();
const GOOD: Style = AnsiColor::Green.on_default().bold();
const BAD: Style = AnsiColor::Red.on_default().bold();

/// The clock of the printed lines.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timeline {
    start: Instant,
}

impl Timeline {
    pub(super) fn start() -> Self {
        Timeline {
            start: Instant::now(),
        }
    }

    /// One line: when, who, what.
    pub(super) fn say(&self, at: Instant, who: &str, what: &str) {
        let seconds = at.saturating_duration_since(self.start).as_secs_f64();
        let mut lines = what.lines();
        anstream::println!(
            "{TIME}+{seconds:7.3} s{TIME:#}  {who:<8} {}",
            lines.next().unwrap_or_default()
        );
        for line in lines {
            anstream::println!("{:21}{line}", "");
        }
    }

    /// What happens now, by the demo itself.
    pub(super) fn now(&self, who: &str, what: &str) {
        self.say(Instant::now(), who, what);
    }
}

/// A headline.
pub(super) fn headline(text: &str) {
    anstream::println!("\n{HEADLINE}{text}{HEADLINE:#}");
}

/// Text as it is.
pub(super) fn text(text: &str) {
    anstream::println!("{}", text.trim_end());
}

/// The last line: what came out.
pub(super) fn outcome(good: bool, text: &str) {
    let style = if good { GOOD } else { BAD };
    anstream::println!("\n{style}{text}{style:#}");
}

/// The last line after Ctrl-C.
pub(super) fn interrupted() {
    anstream::println!("\ninterrupted; the demo's machines and networks are gone");
}
