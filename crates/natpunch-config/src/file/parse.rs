//! From the text of one file to its sections. What is not TOML gets an error that says what was
//! likely meant.

use std::ops::Range;

use natpunch_types::PeerKey;
use toml_edit::TableLike;

use super::forms::check_host_port;
use super::raw::{self, RawFile};
use super::reader::Reader;
use crate::report::error::ConfigError;
use crate::report::source::{Place, Source};
use crate::report::wording::{Quoted, is_secret};

/// The keys by which a file of wg-quick is told from a mesh file.
const WG_QUICK_KEYS: [&str; 6] = [
    "PrivateKey",
    "PublicKey",
    "AllowedIPs",
    "ListenPort",
    "Address",
    "Endpoint",
];

/// Where the first section of a file of wg-quick begins, if the text is one.
fn wg_quick_section(text: &str) -> Option<Range<usize>> {
    let key = |line: &str| {
        line.split('=')
            .next()
            .map(str::trim)
            .unwrap_or_default()
            .to_owned()
    };
    if !text
        .lines()
        .any(|line| WG_QUICK_KEYS.contains(&key(line).as_str()))
    {
        return None;
    }
    let section = text.lines().map(str::trim).find(|line| {
        ["[Interface]", "[Peer]"]
            .iter()
            .any(|section| line.starts_with(section))
    })?;
    let start = section.as_ptr().addr() - text.as_ptr().addr();
    Some(start..start + section.len())
}

/// The error of a value without quotes, if that is what is wrong with the line at `at`.
fn unquoted(text: &str, at: usize, place: impl Fn(Range<usize>) -> Place) -> Option<ConfigError> {
    let start = text.get(..at)?.rfind('\n').map_or(0, |newline| newline + 1);
    let line = text.get(start..)?.lines().next()?;
    let (key, value) = line.split_once('=')?;
    let key = key.trim();
    // A comment behind the value is none of it.
    let value = value.split(" #").next().unwrap_or(value).trim();
    let bare = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    let plain = !value.is_empty() && !value.contains(['"', '\'', '\\', '{', ',']);
    let in_brackets = value.starts_with('[') && check_host_port(value).is_err();
    if !plain || in_brackets || key.is_empty() || !key.chars().all(bare) {
        return None;
    }
    // A value that is one by itself has something else wrong with it.
    if format!("v = {value}")
        .parse::<toml_edit::DocumentMut>()
        .is_ok()
    {
        return None;
    }
    let value_start = value.as_ptr().addr() - text.as_ptr().addr();
    let at = place(value_start..value_start + value.len());
    let error = ConfigError::at(
        at,
        format!("the value of `{}` is not in quotes", Quoted(key)),
    )
    .label("expected a text in quotes");
    let secret = is_secret(key) || value.parse::<PeerKey>().is_ok();
    let error = if secret { error.secret() } else { error };
    Some(match secret {
        true => error.help(format!("write it in quotes: {key} = \"…\"")),
        false => error.help(format!("write: {key} = \"{}\"", Quoted(value))),
    })
}

/// Parses one file and reads its sections.
pub(crate) fn parse(source: &Source, reader: &mut Reader) -> Option<RawFile> {
    if let Some(section) = wg_quick_section(&source.text) {
        let place = reader.place(Some(section));
        let error = ConfigError::at(place, "this is a file of wg-quick, not a mesh file");
        let file = source.path.display().to_string();
        let help = format!("make a mesh file of it: natpunch import {}", Quoted(&file));
        reader.report(error.label("a section of wg-quick").help(help));
        return None;
    }
    match toml_edit::Document::parse(source.text.as_str()) {
        Ok(document) => Some(raw::read_file(&document, reader)),
        Err(error) => {
            let span = error.span().unwrap_or(source.text.len()..source.text.len());
            let place = reader.place(Some(span.clone()));
            reader.report(if error.message().contains("duplicate key") {
                let error = ConfigError::at(place, "the same key is defined twice")
                    .help("remove one of the two");
                match first_definition(&source.text, span.start) {
                    Some(first) => error
                        .label("defined again here")
                        .also(reader.place(Some(first)), "first defined here"),
                    None => error,
                }
            } else if let Some(error) =
                unquoted(&source.text, span.start, |span| reader.place(Some(span)))
            {
                error
            } else {
                let first_line = error.message().lines().next().unwrap_or_default();
                ConfigError::at(place, format!("this is not TOML: {first_line}")).help(
                    "texts stand in quotes, lists in [ ], one `key = value` a line: see \
                     https://toml.io",
                )
            });
            None
        }
    }
}

/// Where the key was defined first that is defined again at `at`: by reading what is before that
/// line, and the line by itself.
fn first_definition(text: &str, at: usize) -> Option<Range<usize>> {
    let line_start = text.get(..at)?.rfind('\n').map_or(0, |newline| newline + 1);
    let before = text.get(..line_start)?;
    let line = text.get(line_start..)?.lines().next()?;
    let document = toml_edit::Document::parse(before).ok()?;
    let path_in = |line: &str| -> Option<Vec<String>> {
        let alone = toml_edit::Document::parse(line.to_owned()).ok()?;
        let mut path = Vec::new();
        let mut table: &dyn TableLike = alone.as_table();
        while let Some((key, item)) = table.iter().next() {
            path.push(key.to_owned());
            match item.as_table() {
                Some(inner) => table = inner,
                None => break,
            }
        }
        Some(path)
    };
    let mut path = Vec::new();
    if !line.trim_start().starts_with('[') {
        let header = before
            .lines()
            .rev()
            .find(|line| line.trim_start().starts_with('['));
        path = header.and_then(path_in).unwrap_or_default();
    }
    path.extend(path_in(line)?);
    let (last, parents) = path.split_last()?;
    let mut table: &dyn TableLike = document.as_table();
    for key in parents {
        table = table.get(key)?.as_table_like()?;
    }
    table.key(last)?.span()
}
