//! Reading a JSON file of bounded size, and refusing duplicate keys in it.

use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::result::Result as StdResult;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::fields::config_error;
use crate::error::{Error, Result};

/// Largest config file that is read: 16 MiB, some thousand times the size of a real one.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// Reads a whole text file of at most [`MAX_FILE_BYTES`].
///
/// Pipes, devices and folders are refused before they are opened, since reading one may never end.
pub(super) fn read_text(path: &Path) -> Result<String> {
    let metadata = path.metadata().map_err(Error::io("read", path))?;
    if !metadata.is_file() {
        return Err(unreadable(path, io::ErrorKind::InvalidInput, "not a regular file"));
    }
    if metadata.len() > MAX_FILE_BYTES {
        let reason = format!("longer than {MAX_FILE_BYTES} bytes");
        return Err(unreadable(path, io::ErrorKind::FileTooLarge, reason));
    }
    let mut text = String::new();
    let file = File::open(path).map_err(Error::io("open", path))?;
    // Bounded once more: the file may be growing.
    file.take(MAX_FILE_BYTES).read_to_string(&mut text).map_err(Error::io("read", path))?;
    Ok(text)
}

fn unreadable(path: &Path, kind: io::ErrorKind, reason: impl Into<String>) -> Error {
    Error::io("read", path)(io::Error::new(kind, reason.into()))
}

/// Parses one JSON object in which no key occurs twice.
///
/// JSON leaves duplicate keys undefined, and parsers differ on which one counts, so neither does.
pub(super) fn parse_object(path: &Path, text: &str) -> Result<Map<String, Value>> {
    let json = |source| Error::Json { path: path.to_owned(), source };
    if text.starts_with('\u{feff}') {
        let reason = "the file starts with a byte-order mark; JSON is UTF-8 without one";
        return Err(json(serde_json::Error::custom(reason)));
    }
    let object = serde_json::from_str(text).map_err(json)?;
    match first_duplicate(text).map_err(json)? {
        None => Ok(object),
        Some(field) => Err(config_error(path, &field, "occurs twice")),
    }
}

/// The dotted name of the first key that its object already has.
fn first_duplicate(text: &str) -> serde_json::Result<Option<String>> {
    let (mut path, mut found) = (Vec::new(), None);
    let keys = UniqueKeys { path: &mut path, found: &mut found };
    keys.deserialize(&mut serde_json::Deserializer::from_str(text))?;
    Ok(found)
}

/// Walks any JSON value and notes the first duplicate key.
struct UniqueKeys<'a> {
    /// Keys from the root to this value.
    path: &'a mut Vec<String>,
    found: &'a mut Option<String>,
}

impl<'de> DeserializeSeed<'de> for UniqueKeys<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> StdResult<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for UniqueKeys<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, _: bool) -> StdResult<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> StdResult<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> StdResult<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> StdResult<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> StdResult<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> StdResult<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> StdResult<(), A::Error> {
        let Self { path, found } = self;
        while list.next_element_seed(UniqueKeys { path, found })?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> StdResult<(), A::Error> {
        let Self { path, found } = self;
        let mut seen = HashSet::new();
        while let Some(key) = object.next_key::<String>()? {
            path.push(key.clone());
            if !seen.insert(key) && found.is_none() {
                *found = Some(path.join("."));
            }
            object.next_value_seed(UniqueKeys { path, found })?;
            path.pop();
        }
        Ok(())
    }
}
