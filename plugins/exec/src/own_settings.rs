//! A program's own settings: the `settings` of its section, against what its hello says of them.
//! Pure.

use std::collections::BTreeMap;
use std::fmt;

use natpunch_plugin::SettingFlaw;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::text::shown;

/// A program's own settings.
pub type OwnSettings = BTreeMap<String, OwnSetting>;

/// A setting that means something to the program alone.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "a setting is a text, a whole number, true or false, or a list of texts"
)]
pub enum OwnSetting {
    /// True or false.
    Boolean(bool),
    /// A whole number.
    Integer(i64),
    /// A text.
    String(String),
    /// Several texts.
    Strings(Vec<String>),
}

/// The table in the section.
const TABLE: &str = "settings";
/// Settings that a program may have.
pub(crate) const MOST: usize = 64;
/// The longest of all together, in bytes of JSON.
pub(crate) const LONGEST: usize = 16 << 10;

/// What a program says of its settings: each by its key.
pub(crate) type Schema = BTreeMap<String, Setting>;

/// What a program says of one setting.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Setting {
    #[serde(rename = "type")]
    form: Form,
    #[serde(default)]
    required: bool,
    /// What it is, for people.
    doc: String,
}

/// What a setting may be.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Form {
    String,
    Integer,
    Boolean,
    Strings,
}

impl Form {
    fn is_of(self, value: &OwnSetting) -> bool {
        matches!(
            (self, value),
            (Self::String, OwnSetting::String(_))
                | (Self::Integer, OwnSetting::Integer(_))
                | (Self::Boolean, OwnSetting::Boolean(_))
                | (Self::Strings, OwnSetting::Strings(_))
        )
    }

    fn example(self) -> &'static str {
        match self {
            Self::String => "\"…\"",
            Self::Integer => "1",
            Self::Boolean => "true",
            Self::Strings => "[\"…\"]",
        }
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::String => "a text in quotes",
            Self::Integer => "a whole number",
            Self::Boolean => "true or false",
            Self::Strings => "a list of texts",
        })
    }
}

/// Whether the settings are those that the program wants. Its hello may name none.
///
/// # Errors
/// What is wrong, all of it.
pub(crate) fn check(
    program: &str,
    schema: Option<&Schema>,
    given: &OwnSettings,
) -> Result<(), Vec<SettingFlaw>> {
    let of_nobody = Schema::new();
    let known = schema.unwrap_or(&of_nobody);
    let flaw = |key: &str, problem: String, help: String| SettingFlaw {
        key: format!("{TABLE}.{}", shown(key)),
        problem,
        help,
    };
    let mut flaws = Vec::new();
    for (key, value) in given {
        let Some(setting) = known.get(key) else {
            let help = match known.is_empty() {
                true => "take it out".to_owned(),
                false => {
                    let keys: Vec<String> = known.keys().map(|key| shown(key)).collect();
                    format!("its settings: {}", keys.join(", "))
                }
            };
            flaws.push(flaw(key, format!("is not a setting of {program}"), help));
            continue;
        };
        if !setting.form.is_of(value) {
            let (form, doc) = (setting.form, shown(&setting.doc));
            let help = format!("{doc}: write {} = {}", shown(key), form.example());
            flaws.push(flaw(key, format!("is not {form}"), help));
        }
    }
    for (key, setting) in known {
        if setting.required && !given.contains_key(key) {
            let (key, form) = (shown(key), setting.form);
            let help = format!(
                "{}: add a line {key} = {} to its settings",
                shown(&setting.doc),
                form.example()
            );
            flaws.push(flaw(&key, "is missing".to_owned(), help));
        }
    }
    if flaws.is_empty() { Ok(()) } else { Err(flaws) }
}
