//! Reading the fields of a JSON object, so that an error can name the one that is wrong.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::errors::ApiError;

/// The fields of an object; null counts as missing.
#[derive(Debug, Clone, Copy)]
pub struct Fields<'a> {
    map: &'a Map<String, Value>,
    at: &'a str,
}

type Result<T> = std::result::Result<T, ApiError>;

impl<'a> Fields<'a> {
    /// The fields of `value`, which is the field `at` of the request.
    pub fn of(value: &'a Value, at: &'a str) -> Result<Self> {
        let wrong = || wrong(at, value, "an object");
        value.as_object().map(|map| Self { map, at }).ok_or_else(wrong)
    }

    /// The fields of an object, whose errors name the fields alone.
    pub fn in_map(map: &'a Map<String, Value>) -> Self {
        Self { map, at: "" }
    }

    /// The name of a field as the request's author sees it.
    pub fn path(&self, name: &str) -> String {
        if self.at.is_empty() { name.to_owned() } else { format!("{}.{name}", self.at) }
    }

    /// Refuses fields that are in none of the lists.
    pub fn only(&self, known: &[&[&str]]) -> Result<()> {
        let unknown = |name: &&String| !known.iter().any(|list| list.contains(&name.as_str()));
        match self.map.keys().find(unknown) {
            Some(name) => {
                let error = ApiError::field(self.path(name), "is not a field that is known here");
                Err(error.with_code("unknown_parameter"))
            }
            None => Ok(()),
        }
    }

    /// Refuses fields that are known and cannot be honoured.
    pub fn refuse(&self, names: &[(&str, &str)]) -> Result<()> {
        match names.iter().find(|(name, _)| self.get(name).is_some()) {
            Some((name, reason)) => Err(ApiError::unsupported(self.path(name), reason)),
            None => Ok(()),
        }
    }

    /// A field that is there and not null.
    pub fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    /// A field that must be there.
    pub fn required(&self, name: &str) -> Result<&'a Value> {
        self.get(name).ok_or_else(|| {
            ApiError::field(self.path(name), "is missing").with_code("missing_required_parameter")
        })
    }

    pub fn bool(&self, name: &str) -> Result<Option<bool>> {
        self.read(name, Value::as_bool, "true or false")
    }

    pub fn string(&self, name: &str) -> Result<Option<&'a str>> {
        self.read(name, Value::as_str, "a string")
    }

    pub fn list(&self, name: &str) -> Result<Option<&'a [Value]>> {
        self.read(name, |value| value.as_array().map(Vec::as_slice), "a list")
    }

    pub fn map(&self, name: &str) -> Result<Option<&'a Map<String, Value>>> {
        self.read(name, Value::as_object, "an object")
    }

    /// A whole number of this range.
    pub fn integer(&self, name: &str, range: RangeInclusive<i64>) -> Result<Option<i64>> {
        let whole = self.read(name, Value::as_i64, "a whole number")?;
        self.within(name, whole, &range)
    }

    /// How many of something, in this range.
    pub fn count(&self, name: &str, range: RangeInclusive<i64>) -> Result<Option<usize>> {
        let whole = self.integer(name, range)?;
        whole.map(usize::try_from).transpose().map_err(|_| {
            ApiError::field(self.path(name), "is negative, or larger than can be counted here")
        })
    }

    /// A number of this range.
    pub fn number(&self, name: &str, range: RangeInclusive<f64>) -> Result<Option<f32>> {
        let number = self.read(name, Value::as_f64, "a number")?;
        Ok(self.within(name, number, &range)?.map(|number| number as f32))
    }

    /// One of several names.
    pub fn one_of(&self, name: &str, names: &[&'static str]) -> Result<Option<&'static str>> {
        let Some(text) = self.string(name)? else { return Ok(None) };
        match names.iter().find(|known| **known == text) {
            Some(known) => Ok(Some(known)),
            None => {
                let reason = format!("is `{text}`, not one of {}", names.join(", "));
                Err(ApiError::field(self.path(name), reason))
            }
        }
    }

    fn read<T>(
        &self,
        name: &str,
        read: impl Fn(&'a Value) -> Option<T>,
        what: &str,
    ) -> Result<Option<T>> {
        let read = |value| read(value).ok_or_else(|| wrong(&self.path(name), value, what));
        self.get(name).map(read).transpose()
    }

    fn within<T: PartialOrd + std::fmt::Display>(
        &self,
        name: &str,
        value: Option<T>,
        range: &RangeInclusive<T>,
    ) -> Result<Option<T>> {
        match value {
            Some(value) if !range.contains(&value) => {
                let reason =
                    format!("is {value}, not between {} and {}", range.start(), range.end());
                Err(ApiError::field(self.path(name), reason))
            }
            value => Ok(value),
        }
    }
}

/// A value of the wrong type.
pub fn wrong(at: &str, value: &Value, what: &str) -> ApiError {
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "another number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    };
    ApiError::field(at, format!("is {kind}, not {what}")).with_code("invalid_type")
}
