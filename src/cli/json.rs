//! How commands print JSON: one object, which says by `format` of which shape it is.

use std::fmt;
use std::io::Write as _;

use serde::Serialize;

use super::CliError;

/// The number of the shapes that docs/reference/json.md lists. It rises when a field goes or
/// changes its meaning, and not when one comes.
pub const FORMAT: u32 = 1;

#[derive(Serialize)]
struct Numbered<'a, T> {
    format: u32,
    #[serde(flatten)]
    object: &'a T,
}

/// An object as indented JSON with a line break at its end.
///
/// # Errors
/// It is no object, or can't be written as JSON.
pub(in crate::cli) fn object(object: &impl Serialize) -> Result<String, CliError> {
    text(serde_json::to_string_pretty(&Numbered {
        format: FORMAT,
        object,
    }))
}

/// Tells what a command did: as such an object if `json`, else in words.
///
/// # Errors
/// As [`object`], or standard output is closed.
pub(in crate::cli) fn tell(
    json: bool,
    done: &impl Serialize,
    words: fmt::Arguments<'_>,
) -> Result<(), CliError> {
    let mut out = anstream::stdout();
    match json {
        true => write!(out, "{}", object(done)?)?,
        false => writeln!(out, "{words}")?,
    }
    Ok(())
}

/// An object on one line, for commands that print one object after the other.
///
/// # Errors
/// As [`object`].
pub(in crate::cli) fn line(object: &impl Serialize) -> Result<String, CliError> {
    text(serde_json::to_string(&Numbered {
        format: FORMAT,
        object,
    }))
}

fn text(text: serde_json::Result<String>) -> Result<String, CliError> {
    let mut text = text.map_err(|error| CliError::new(error.to_string()))?;
    text.push('\n');
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_object_begins_with_the_number_of_its_format() {
        let text = line(&serde_json::json!({ "peers": [] })).unwrap();
        assert_eq!(text, "{\"format\":1,\"peers\":[]}\n");
        assert!(object(&serde_json::json!(["no", "object"])).is_err());
    }
}
