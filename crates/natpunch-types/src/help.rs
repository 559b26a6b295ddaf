//! What a person is told of an error beside what happened: what to do about it.

use std::fmt;

/// An error that knows what would help. Its `Display` says what happened and no more, so that help
/// is shown in one way everywhere: on a terminal by the command line's report, elsewhere by
/// [`with_help`].
pub trait Help: fmt::Display {
    /// What to do about it, each by itself; empty where nothing is known to help.
    fn helps(&self) -> Vec<String>;

    /// What happened and what to do, by [`with_help`].
    fn in_full(&self) -> String {
        with_help(self, self.helps())
    }
}

const HELP: &str = "; help: ";

/// What happened and what to do about it, on one line: for logs, answers over a socket and
/// `status`. A log that is read by line keeps the two together.
pub fn with_help<H: fmt::Display>(
    problem: impl fmt::Display,
    helps: impl IntoIterator<Item = H>,
) -> String {
    let mut text = problem.to_string();
    for help in helps {
        text.push_str(HELP);
        text.push_str(&help.to_string());
    }
    text
}

/// The two parts of what [`with_help`] made, for who has a better way to show them. Errors that
/// cross the program as text, such as those of devices, have that form from the start.
pub fn split_help(text: &str) -> (&str, impl Iterator<Item = &str>) {
    let mut parts = text.split(HELP);
    (parts.next().unwrap_or_default(), parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_that_was_put_on_the_line_of_its_problem_is_found_again() {
        for helps in [&[][..], &["do this"], &["do this; or that", "do more"]] {
            let text = with_help("it failed; twice", helps);
            assert!(!text.contains('\n'));
            let (problem, found) = split_help(&text);
            assert_eq!(
                (problem, &found.collect::<Vec<_>>()[..]),
                ("it failed; twice", helps)
            );
        }
    }
}
