//! What of a program's words may be shown.

/// How much of a text of the program's is shown, in characters.
const LONGEST_NOTE: usize = 200;

/// A text of the program's: short, and with nothing in it that a terminal would obey.
pub(crate) fn shown(text: &str) -> String {
    let plain = text.chars().filter(|c| !c.is_control());
    hide_tags(&plain.take(LONGEST_NOTE).collect::<String>())
}

/// Replaces what looks like a tag: a reader of the log must not learn the mailboxes of pairs.
fn hide_tags(text: &str) -> String {
    let mut hidden = String::new();
    let mut digits = String::new();
    for c in text.chars().map(Some).chain([None]) {
        if let Some(c) = c.filter(char::is_ascii_hexdigit) {
            digits.push(c);
            continue;
        }
        // Also a part of a tag at the end of a text that was cut.
        if digits.len() >= 16 {
            hidden.push_str("[tag]");
        } else {
            hidden.push_str(&digits);
        }
        digits.clear();
        hidden.extend(c);
    }
    hidden
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_short_and_steers_no_terminal() {
        assert_eq!(shown("a\u{1b}[31mb"), "a[31mb");
        assert_eq!(shown(&"x".repeat(900)).len(), LONGEST_NOTE);
        assert_eq!(shown(&format!("got {}.", "0f".repeat(16))), "got [tag].");
        assert_eq!(shown("deadbeef"), "deadbeef");
    }
}
