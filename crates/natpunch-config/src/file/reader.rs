//! Reading a parsed TOML document section by section: every error is kept, with its place, and
//! reading goes on.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use toml_edit::{Item, TableLike};

use super::kind::Kind;
use crate::report::error::ConfigError;
use crate::report::source::Place;
use crate::report::wording::{Quoted, did_you_mean, is_secret};

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Located<T> {
    pub(crate) value: T,
    pub(crate) place: Place,
    /// Where its key stands.
    pub(crate) key: Place,
}

impl<T: JsonSchema> JsonSchema for Located<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        T::schema_name()
    }
    fn schema_id() -> std::borrow::Cow<'static, str> {
        T::schema_id()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

/// A key as the file states it, if it does.
pub(crate) type Field<T> = Option<Located<T>>;

/// The dotted way to a key, printed lazily.
#[derive(Clone, Copy)]
pub(crate) struct KeyPath<'a> {
    parent: Option<&'a KeyPath<'a>>,
    name: &'a str,
}

impl<'a> KeyPath<'a> {
    pub(crate) const fn root(name: &'a str) -> Self {
        Self { parent: None, name }
    }

    pub(crate) const fn join(&'a self, name: &'a str) -> Self {
        Self {
            parent: Some(self),
            name,
        }
    }
}

impl fmt::Display for KeyPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.parent {
            Some(parent) if !parent.name.is_empty() => write!(f, "{parent}.{}", Quoted(self.name)),
            _ => write!(f, "{}", Quoted(self.name)),
        }
    }
}

/// Collects the errors of one file.
pub(crate) struct Reader {
    pub(crate) file: usize,
    /// The plugins that the file may name.
    pub(crate) kinds: Arc<[Kind]>,
    pub(crate) errors: Vec<ConfigError>,
    /// Keys that are there, but with values that can't be used, in whole or in part.
    pub(crate) unusable: BTreeSet<String>,
}

impl Reader {
    pub(crate) fn place(&self, span: Option<Range<usize>>) -> Place {
        let span = span.unwrap_or_default();
        Place {
            file: self.file,
            start: span.start,
            end: span.end,
        }
    }

    pub(crate) fn report(&mut self, error: ConfigError) {
        self.errors.push(error);
    }

    /// The place of a key; that of its item where the parser keeps none.
    pub(crate) fn key_place(&self, table: &dyn TableLike, key: &str) -> Place {
        let span = table.key(key).and_then(toml_edit::Key::span);
        self.place(span.or_else(|| table.get(key).and_then(Item::span)))
    }

    /// Reads one key of a table.
    pub(crate) fn field<T: Value>(
        &mut self,
        table: &dyn TableLike,
        path: &KeyPath<'_>,
        key: &str,
    ) -> Field<T> {
        let item = table.get(key)?;
        let key_place = self.key_place(table, key);
        let place = item.span().map_or(key_place, |span| self.place(Some(span)));
        let value = T::read(item, place, &path.join(key), self);
        if value.is_none() {
            self.unusable.insert(path.join(key).to_string());
        }
        value.map(|value| Located {
            value,
            place,
            key: key_place,
        })
    }

    /// Reports every key of a table that is not one of `known`. `inner` are the sections within,
    /// with their keys: a key may have been written one level too high.
    pub(crate) fn unknown_keys(
        &mut self,
        table: &dyn TableLike,
        path: &KeyPath<'_>,
        known: &[&str],
        inner: &[(&str, &[&str])],
    ) {
        for (key, _) in table.iter() {
            if known.contains(&key) {
                continue;
            }
            let place = self.key_place(table, key);
            let belongs = inner.iter().find(|(_, keys)| keys.contains(&key));
            self.report(match belongs {
                Some((section, _)) if !is_secret(key) => {
                    let error = unknown(place, path, key);
                    error.help(format!("it belongs in [{}]", path.join(section)))
                }
                _ => unknown_key(place, path, key, known),
            });
        }
    }

    /// Reports a key that has to be in a section and is not.
    pub(crate) fn required(
        &mut self,
        table: &dyn TableLike,
        place: Place,
        path: &KeyPath<'_>,
        known: &[&str],
        (key, help): (&str, &str),
    ) {
        // A misspelt key is there, and is reported as such.
        let misspelt = |(word, _): (&str, &Item)| {
            !known.contains(&word) && did_you_mean(word, known) == Some(key)
        };
        // A secret is in a file, or stands here encrypted.
        let other = key
            .strip_suffix("_file")
            .map(|secret| format!("{secret}_age"));
        if other.is_some_and(|other| table.contains_key(&other)) {
            return;
        }
        if !table.contains_key(key) && !table.iter().any(misspelt) {
            let error = ConfigError::at(place, format!("`{key}` is missing in [{path}]"));
            self.report(error.label("this section is not complete").help(help));
        }
    }

    /// Reports a value of another type than `expected`.
    pub(crate) fn wrong_type(
        &mut self,
        item: &Item,
        place: Place,
        path: &KeyPath<'_>,
        expected: &str,
    ) {
        let found = match item.type_name() {
            "string" => "a string",
            "integer" => "an integer",
            "float" => "a float",
            "boolean" => "a boolean",
            "datetime" => "a date",
            "array" => "an array",
            "array of tables" => "an array of tables",
            "inline table" | "table" => "a table",
            _ => "something else",
        };
        let help = match item.as_str() {
            Some(text) if text.parse::<i64>().is_ok() || text.parse::<bool>().is_ok() => {
                format!("remove the quotes: {} = {text}", path.name)
            }
            _ => format!("write it as {expected}"),
        };
        let error = ConfigError::at(place, format!("wrong type: `{path}` is {found}"));
        self.report(error.label(format!("expected {expected}")).help(help));
    }
}

fn unknown(place: Place, path: &KeyPath<'_>, key: &str) -> ConfigError {
    let section = if path.name.is_empty() {
        "the mesh file".to_owned()
    } else {
        format!("[{path}]")
    };
    ConfigError::at(place, format!("unknown key `{}` in {section}", Quoted(key)))
        .label("not a key of natpunch")
}

fn unknown_key(place: Place, path: &KeyPath<'_>, key: &str, known: &[&str]) -> ConfigError {
    if is_secret(key) {
        let message = format!(
            "`{}` in plain: secrets are never written in the mesh file",
            Quoted(key)
        );
        return ConfigError::at(place, message)
            .label("a secret does not belong here")
            .help(
                "put the key in a file of its own with mode 0600 and name that: private_key_file = \
                 \"/etc/natpunch/mesh.key\", or preshared_key_file in a [[preshared]] section; or \
                 encrypt it with `natpunch encrypt`",
            )
            .help(
                "whoever can read this file may have seen the key: make a new one with `natpunch \
                 keygen`",
            );
    }
    let error = unknown(place, path, key);
    match did_you_mean(key, known) {
        Some(best) => error.help(format!("did you mean `{best}`?")),
        None => error.help(format!("known keys: {}", known.join(", "))),
    }
}

/// Something that a key's value can be read as.
pub(crate) trait Value: Sized {
    /// The keys of a section; none of a plain value.
    const KEYS: &'static [&'static str] = &[];

    /// Reads it, or reports why not.
    fn read(item: &Item, place: Place, path: &KeyPath<'_>, reader: &mut Reader) -> Option<Self>;
}

/// A value written as a string with a form of its own.
pub(crate) trait Text: Sized {
    /// What to write, for messages.
    const EXPECTED: &'static str;
    /// Reads it; the error says what is wrong and what to do.
    fn parse(text: &str) -> Result<Self, Flaw>;
}

/// What is wrong with a text, and what to do.
pub(crate) struct Flaw {
    pub(crate) problem: String,
    pub(crate) help: String,
}

impl Flaw {
    pub(crate) fn new(problem: impl Into<String>, help: impl Into<String>) -> Self {
        Self {
            problem: problem.into(),
            help: help.into(),
        }
    }
}

impl<T: Text> Value for T {
    fn read(item: &Item, place: Place, path: &KeyPath<'_>, reader: &mut Reader) -> Option<Self> {
        let Some(text) = item.as_str() else {
            reader.wrong_type(item, place, path, T::EXPECTED);
            return None;
        };
        match T::parse(text) {
            Ok(value) => Some(value),
            Err(flaw) => {
                let message = format!("bad value of `{path}`: {}", flaw.problem);
                reader.report(
                    ConfigError::at(place, message)
                        .label(format!("expected {}", T::EXPECTED))
                        .help(flaw.help),
                );
                None
            }
        }
    }
}

impl<T: Value> Value for Vec<Located<T>> {
    fn read(item: &Item, place: Place, path: &KeyPath<'_>, reader: &mut Reader) -> Option<Self> {
        let elements: Vec<Item> = match (item.as_array(), item.as_array_of_tables()) {
            (Some(array), _) => array
                .iter()
                .map(|value| Item::Value(value.clone()))
                .collect(),
            (_, Some(tables)) => tables
                .iter()
                .map(|table| Item::Table(table.clone()))
                .collect(),
            _ => {
                let error = ConfigError::at(place, format!("wrong type: `{path}` is not an array"));
                let help = match item.as_str() {
                    Some(text) => format!(
                        "write it in square brackets: {} = [\"{}\"]",
                        path.name,
                        Quoted(text)
                    ),
                    None => {
                        "write it as an array, in square brackets, even with one element: [ … ]"
                            .to_owned()
                    }
                };
                reader.report(error.label("expected an array").help(help));
                return None;
            }
        };
        let mut read = Vec::with_capacity(elements.len());
        for element in &elements {
            let place = reader.place(element.span());
            match T::read(element, place, path, reader) {
                Some(value) => read.push(Located {
                    value,
                    place,
                    key: place,
                }),
                // Reported, and left out.
                None => {
                    reader.unusable.insert(path.to_string());
                }
            }
        }
        Some(read)
    }
}

impl Value for bool {
    fn read(item: &Item, place: Place, path: &KeyPath<'_>, reader: &mut Reader) -> Option<Self> {
        item.as_bool().or_else(|| {
            reader.wrong_type(item, place, path, "true or false");
            None
        })
    }
}

/// Reads an integer within bounds.
pub(crate) fn integer<T: TryFrom<i64>>(
    item: &Item,
    place: Place,
    path: &KeyPath<'_>,
    reader: &mut Reader,
    (least, most): (i64, i64),
    unit: &str,
) -> Option<T> {
    let expected = format!("an integer from {least} to {most}{unit}");
    let Some(value) = item.as_integer() else {
        reader.wrong_type(item, place, path, &expected);
        return None;
    };
    let inside = Some(value)
        .filter(|value| (least..=most).contains(value))
        .and_then(|value| T::try_from(value).ok());
    if inside.is_none() {
        let message = format!("bad value of `{path}`: {value} is out of range");
        reader.report(
            ConfigError::at(place, message)
                .label(format!("expected {expected}"))
                .help(format!("write {expected}")),
        );
    }
    inside
}

/// A section whose keys may come from several files.
pub(crate) trait Section {
    /// Takes the keys of another file; tells of each key that both have, its second place and its
    /// first.
    fn merge(&mut self, from: Self, twice: &mut Twice<'_>);
}

/// Is told of a key that two files have: its second place, and its first.
pub(crate) type Twice<'a> = dyn FnMut(&str, Place, Place) + 'a;

/// Defines a section of the mesh file: a struct with one [`Field`] a key, its list of keys and its
/// reader, all from one list. Its JSON schema and the reference manual come from the same doc
/// comments.
macro_rules! section {
    (
        $(#[$meta:meta])*
        struct $name:ident
        $(requires { $($required:ident: $help:literal,)* })?
        { $($(#[$field_meta:meta])* $field:ident: $type:ty,)* }
    ) => {
        #[derive(Debug, Clone, Default, schemars::JsonSchema)]
        #[schemars(deny_unknown_fields)]
        $(#[$meta])*
        pub(crate) struct $name {
            $($(#[$field_meta])* pub(crate) $field: $crate::file::reader::Field<$type>,)*
        }

        impl $name {
            /// Reads the section from its table.
            pub(crate) fn read_table(
                table: &dyn toml_edit::TableLike,
                path: &$crate::file::reader::KeyPath<'_>,
                reader: &mut $crate::file::reader::Reader,
            ) -> Self {
                use $crate::file::reader::Value;
                let inner = [$((stringify!($field), <$type as Value>::KEYS)),*];
                reader.unknown_keys(table, path, <Self as Value>::KEYS, &inner);
                Self { $($field: reader.field(table, path, stringify!($field)),)* }
            }
        }

        impl $crate::file::reader::Section for $name {
            fn merge(&mut self, from: Self, twice: &mut $crate::file::reader::Twice<'_>) {
                $(match (&self.$field, from.$field) {
                    (Some(first), Some(second)) => twice(stringify!($field), second.key, first.key),
                    (None, second) => self.$field = second,
                    (Some(_), None) => {}
                })*
            }
        }

        impl $crate::file::reader::Value for $name {
            const KEYS: &'static [&'static str] = &[$(stringify!($field)),*];

            fn read(
                item: &toml_edit::Item,
                place: $crate::report::source::Place,
                path: &$crate::file::reader::KeyPath<'_>,
                reader: &mut $crate::file::reader::Reader,
            ) -> Option<Self> {
                let Some(table) = item.as_table_like() else {
                    reader.wrong_type(item, place, path, "a table");
                    return None;
                };
                $($({
                    let key = (stringify!($required), $help);
                    reader.required(table, place, path, Self::KEYS, key);
                })*)?
                Some(Self::read_table(table, path, reader))
            }
        }
    };
}
pub(crate) use section;
