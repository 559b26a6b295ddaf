//! Text in a picture: what is left of it, and how wide it is.

use natpunch_types::is_unprintable;

/// Text in which nothing steers the order or the look of what is around it. Such characters are
/// shown as one that stands for them.
pub fn printable(text: &str) -> String {
    let shown = |c: char| if is_unprintable(c) { '\u{fffd}' } else { c };
    text.chars().map(shown).collect()
}

/// The same, with at most so many characters; the last is then `…`.
pub fn cut(text: &str, most: usize) -> String {
    let text = printable(text);
    if text.chars().count() <= most {
        return text;
    }
    let kept = text.chars().take(most.saturating_sub(1));
    kept.chain(['…']).collect()
}

/// Text as XML has it, in an element or an attribute.
pub fn escaped(text: &str) -> String {
    let mut to = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => to.push_str("&amp;"),
            '<' => to.push_str("&lt;"),
            '>' => to.push_str("&gt;"),
            '"' => to.push_str("&quot;"),
            '\'' => to.push_str("&#39;"),
            // No XML 1.0 may have these, not even as numbers.
            '\n' | '\t' => to.push(c),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => to.push('\u{fffd}'),
            c => to.push(c),
        }
    }
    to
}

/// About how wide text is, in a font of unknown widths: rather too wide.
pub(crate) fn width(text: &str, size: f64) -> f64 {
    let of = |c: char| match c {
        'i' | 'j' | 'l' | '.' | ',' | ':' | '\'' | '|' => 0.34,
        ' ' | '-' | '/' | 'f' | 't' | 'r' | '(' | ')' => 0.44,
        'm' | 'w' | 'M' | 'W' | '@' | '%' => 0.98,
        c if c.is_ascii_lowercase() => 0.62,
        c if c.is_ascii_digit() => 0.65,
        c if c.is_ascii() => 0.76,
        _ => 1.0,
    };
    text.chars().map(of).sum::<f64>() * size
}

/// Text in lines of at most this width, broken at spaces.
pub(crate) fn wrapped(text: &str, size: f64, most: f64) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if width(line, size) + width(word, size) + 0.5 * size <= most => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}
