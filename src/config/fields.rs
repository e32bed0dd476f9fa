//! Taking typed fields out of a JSON object, so that every error names the file and the dotted
//! field.

use std::ops::RangeInclusive;
use std::path::Path;
use std::result::Result as StdResult;

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// A field's value as `T`, or what it must be instead.
pub(super) type Converted<T> = StdResult<T, String>;

/// Longest piece of a file that an error repeats, in characters.
const MAX_QUOTED: usize = 80;

/// The fields of one JSON object, with the file and the way to it for errors.
#[derive(Clone)]
pub(super) struct Fields<'a> {
    path: &'a Path,
    /// Dotted name of the object, empty for the file's top level.
    name: String,
    object: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// The top level of the file `path`.
    pub(super) fn new(path: &'a Path, object: &'a Map<String, Value>) -> Self {
        Self { path, name: String::new(), object }
    }

    /// All keys and values, in the file's order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&'a String, &'a Value)> + use<'a> {
        self.object.iter()
    }

    /// Whether the key is there, be its value null or not.
    pub(super) fn contains(&self, key: &str) -> bool {
        self.object.contains_key(key)
    }

    /// The field's value; null counts as absent.
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    /// The converted field, or `None` where it is absent or null.
    pub(super) fn optional<T>(
        &self,
        key: &str,
        convert: impl FnOnce(&'a Value) -> Converted<T>,
    ) -> Result<Option<T>> {
        let value = self.get(key).map(convert).transpose();
        value.map_err(|reason| self.error(key, reason))
    }

    /// The converted field, which must be there.
    pub(super) fn required<T>(
        &self,
        key: &str,
        convert: impl FnOnce(&'a Value) -> Converted<T>,
    ) -> Result<T> {
        self.optional(key, convert)?.ok_or_else(|| self.missing(key))
    }

    /// The object in a field, or `None` where it is absent or null.
    pub(super) fn object(&self, key: &str) -> Result<Option<Self>> {
        let object = self.optional(key, |value| match value {
            Value::Object(object) => Ok(object),
            other => Err(format!("must be an object, not {}", shown(other))),
        })?;
        Ok(object.map(|object| Self { path: self.path, name: self.dotted(key), object }))
    }

    /// An error for a field that must be there.
    pub(super) fn missing(&self, key: &str) -> Error {
        self.error(key, if self.contains(key) { "is required, but null" } else { "is missing" })
    }

    /// An error about a field of this object.
    pub(super) fn error(&self, key: &str, reason: impl AsRef<str>) -> Error {
        config_error(self.path, &self.dotted(key), reason.as_ref())
    }

    /// The field's full name.
    pub(super) fn dotted(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }
}

/// An error about the field with this dotted name.
pub(super) fn config_error(path: &Path, field: &str, reason: &str) -> Error {
    Error::Config { path: path.to_owned(), field: shortened(field), reason: reason.to_owned() }
}

/// An integer in a range; floats are refused even where they are whole.
pub(super) fn integer(range: RangeInclusive<usize>) -> impl Fn(&Value) -> Converted<usize> {
    move |value| {
        let number = value.as_u64().and_then(|number| usize::try_from(number).ok());
        number.filter(|number| range.contains(number)).ok_or_else(|| {
            let (low, high) = (range.start(), range.end());
            format!("must be an integer from {low} to {high}, not {}", shown(value))
        })
    }
}

/// An integer out of a few.
pub(super) fn one_of(allowed: &[usize], context: &str) -> impl Fn(&Value) -> Converted<usize> {
    move |value| {
        let found = allowed.iter().copied().find(|&one| value.as_u64() == u64::try_from(one).ok());
        found.ok_or_else(|| {
            let list: Vec<_> = allowed.iter().map(usize::to_string).collect();
            format!("must be {}{context}, not {}", list.join(" or "), shown(value))
        })
    }
}

/// A finite number that `accept` takes, once rounded to f32; `wanted` says which those are.
pub(super) fn number(
    wanted: &str,
    accept: impl Fn(f32) -> bool,
) -> impl Fn(&Value) -> Converted<f32> {
    move |value| {
        // Rounding can turn a tiny number into zero and a huge one into infinity: test after it.
        let number = value.as_f64().map(|number| number as f32);
        number
            .filter(|number| number.is_finite() && accept(*number))
            .ok_or_else(|| format!("must be {wanted}, not {}", shown(value)))
    }
}

/// True or false.
pub(super) fn boolean(value: &Value) -> Converted<bool> {
    value.as_bool().ok_or_else(|| format!("must be true or false, not {}", shown(value)))
}

/// A word out of a few, each with what it stands for.
pub(super) fn keyword<T: Copy>(words: &[(&str, T)]) -> impl Fn(&Value) -> Converted<T> {
    move |value| {
        let found = words.iter().find(|(word, _)| value.as_str() == Some(word));
        found.map(|&(_, meaning)| meaning).ok_or_else(|| {
            let list: Vec<_> = words.iter().map(|(word, _)| format!("`{word}`")).collect();
            format!("must be {}, not {}", list.join(" or "), shown(value))
        })
    }
}

/// A token id below `vocab_size`.
pub(super) fn token_id(vocab_size: usize) -> impl Fn(&Value) -> Converted<u32> + Copy {
    move |value| {
        let id = value.as_u64().and_then(|id| usize::try_from(id).ok());
        id.filter(|&id| id < vocab_size).and_then(|id| u32::try_from(id).ok()).ok_or_else(|| {
            format!("must be a token id below vocab_size ({vocab_size}), not {}", shown(value))
        })
    }
}

/// A list, each entry converted alike.
pub(super) fn list<T>(
    convert: impl Fn(&Value) -> Converted<T>,
) -> impl Fn(&Value) -> Converted<Vec<T>> {
    move |value| match value {
        Value::Array(entries) => {
            let entries = entries.iter().enumerate();
            entries.map(|(i, e)| convert(e).map_err(|why| format!("entry {i} {why}"))).collect()
        }
        other => Err(format!("must be a list, not {}", shown(other))),
    }
}

/// One value or a list of them.
pub(super) fn one_or_many<T>(
    convert: impl Fn(&Value) -> Converted<T>,
) -> impl Fn(&Value) -> Converted<Vec<T>> {
    move |value| match value {
        Value::Array(_) => list(&convert)(value),
        one => convert(one).map(|one| vec![one]),
    }
}

/// A value as an error shows it.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "an object".into(),
        Value::String(text) => format!("\"{}\"", shortened(text)),
        other => shortened(&other.to_string()),
    }
}

/// The first [`MAX_QUOTED`] characters, so that a hostile file cannot fill the terminal; control
/// characters are escaped.
pub(super) fn shortened(text: &str) -> String {
    let mut chars = text.chars();
    let start: String = chars.by_ref().take(MAX_QUOTED).flat_map(printable).collect();
    if chars.next().is_none() { start } else { start + "…" }
}

fn printable(c: char) -> impl Iterator<Item = char> {
    let (plain, escaped) =
        if c.is_control() { (None, Some(c.escape_debug())) } else { (Some(c), None) };
    plain.into_iter().chain(escaped.into_iter().flatten())
}
