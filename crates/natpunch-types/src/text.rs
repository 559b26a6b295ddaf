//! Text of others, before a terminal shows it.

/// Whether a terminal would obey a character, or show the text around it in another order than it
/// has: control characters, and the invisible ones such as the bidirectional controls of Unicode.
pub fn is_unprintable(c: char) -> bool {
    let is_invisible = matches!(
        c,
        '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}'
    );
    c.is_control() || is_invisible
}
