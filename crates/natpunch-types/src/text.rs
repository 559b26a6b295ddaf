//! Text of others, before a terminal shows it.

use std::fmt;

/// Whether a terminal would obey a character, or show the text around it in another order than it
/// has: control characters, and the invisible ones such as the bidirectional controls of Unicode.
pub fn is_unprintable(c: char) -> bool {
    let is_invisible = matches!(
        c,
        '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}'
    );
    c.is_control() || is_invisible
}

/// A piece of somebody's text inside a message: shortened, and with nothing in it that a terminal
/// would obey.
#[derive(Debug, Clone, Copy)]
pub struct Quoted<'a>(pub &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LONGEST: usize = 64;
        let mut characters = self.0.chars();
        for c in characters.by_ref().take(LONGEST) {
            if is_unprintable(c) {
                write!(f, "{}", c.escape_unicode())?
            } else {
                write!(f, "{c}")?
            }
        }
        if characters.next().is_some() {
            f.write_str("…")
        } else {
            Ok(())
        }
    }
}
