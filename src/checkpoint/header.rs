//! Parsing and checking of safetensors headers and of the index, from bytes alone. Whatever the
//! bytes are, nothing here panics, and memory is taken only in proportion to their number, never
//! to what they claim.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use std::path::{Component, Path};

use safetensors::{Dtype, tensor::TensorInfo as HeaderEntry};
use serde::Deserialize;
use serde::de::{self, DeserializeOwned, IgnoredAny, MapAccess, Visitor};

use crate::error::{Error, Result};

/// Bytes before the header.
const PREFIX_BYTES: usize = 8;

/// Longest header that the format allows.
const MAX_HEADER_BYTES: usize = 100_000_000;

/// Longest tensor name in bytes, well above any real one: names are shown in error messages.
const MAX_NAME_BYTES: usize = 1024;

/// Where a tensor is and what it holds. Elements are little-endian, in row-major order.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TensorInfo {
    /// Type of an element.
    pub dtype: Dtype,
    /// Length of each axis; empty for a scalar.
    pub shape: Vec<usize>,
    /// Which of the checkpoint's files holds it, for
    /// [`Checkpoint::path`](super::Checkpoint::path).
    pub file: usize,
    /// First byte, counted from the start of the file. Aligned to nothing in general.
    pub offset: usize,
    /// Number of bytes: what type and shape ask for.
    pub nbytes: usize,
}

impl TensorInfo {
    /// The tensor's place in its file, in bytes.
    pub fn range(&self) -> Range<usize> {
        // The header was checked: the sum is at most the file's length.
        self.offset..self.offset.saturating_add(self.nbytes)
    }
}

/// Reads the header of a safetensors file. `head` is the start of the file, or all of it, and
/// `file_len` the length of the whole file in bytes. Returns the tensors in the order of their
/// bytes, with [`TensorInfo::file`] 0.
///
/// Not done with `SafeTensors::read_metadata` of the safetensors crate: 0.8 adds header and data
/// length unchecked, keeps the last of two tensors with one name, and does not say which tensor is
/// wrong. The rules are the same otherwise.
///
/// # Errors
/// [`Error::Checkpoint`] with `path` when the header is cut off, longer than the file or than the
/// format allows, or not JSON; when a tensor's type is unknown; when a tensor's shape does not fit
/// its bytes; when tensors overlap or leave a gap, or end before or behind the end of the file.
pub fn parse_header(
    path: &Path,
    head: &[u8],
    file_len: usize,
) -> Result<Vec<(String, TensorInfo)>> {
    header(head, file_len).map_err(|reason| corrupt(path, reason))
}

fn header(head: &[u8], file_len: usize) -> std::result::Result<Vec<(String, TensorInfo)>, String> {
    let Some(prefix) = head.first_chunk::<PREFIX_BYTES>() else {
        return Err(format!("is cut off: {file_len} bytes hold no safetensors header"));
    };
    let claimed = u64::from_le_bytes(*prefix);
    let text = usize::try_from(claimed)
        .ok()
        .and_then(|length| length.checked_add(PREFIX_BYTES))
        .filter(|&end| end <= file_len)
        .and_then(|end| head.get(PREFIX_BYTES..end));
    let Some(text) = text else {
        return Err(format!(
            "is cut off, or no safetensors file: its header should have {claimed} bytes, the file \
             has {file_len}"
        ));
    };
    if text.len() > MAX_HEADER_BYTES {
        return Err(format!(
            "its header has {claimed} bytes, more than the {MAX_HEADER_BYTES} that are allowed"
        ));
    }
    let Entries::<Header>(mut entries, _) = serde_json::from_slice(text)
        .map_err(|error| format!("its header is not valid: {}", printable(&error.to_string())))?;
    entries.sort_unstable_by_key(|(_, entry)| entry.data_offsets);

    // `text` ends within the file, so neither of these wraps.
    let data_start = PREFIX_BYTES.saturating_add(text.len());
    let data_len = file_len.saturating_sub(data_start);
    let mut reached = 0;
    let mut tensors = Vec::with_capacity(entries.len());
    for (name, HeaderEntry { dtype, shape, data_offsets: (start, end) }) in entries {
        let Some(nbytes) = end.checked_sub(start) else {
            return Err(format!("tensor {name} ends at byte {end}, before its start at {start}"));
        };
        if end > data_len {
            return Err(format!(
                "tensor {name} ends at byte {end}, behind the {data_len} bytes of data: the file \
                 is cut off or damaged"
            ));
        }
        if start < reached {
            return Err(format!(
                "tensor {name} starts at byte {start}, but the one before it ends at {reached}: \
                 they overlap"
            ));
        }
        if start > reached {
            return Err(format!(
                "there is a gap of {} bytes before tensor {name}",
                start - reached
            ));
        }
        if byte_size(dtype, &shape) != Some(nbytes) {
            return Err(format!(
                "tensor {name} has {nbytes} bytes, which is not {dtype} {shape:?}"
            ));
        }
        reached = end;
        let offset = data_start.saturating_add(start);
        tensors.push((name, TensorInfo { dtype, shape, file: 0, offset, nbytes }));
    }
    if reached < data_len {
        return Err(format!("has {} bytes behind its last tensor", data_len - reached));
    }
    Ok(tensors)
}

/// Reads the free text of a header that [`parse_header`] has accepted.
///
/// # Errors
/// [`Error::Checkpoint`] with `path` when there is none.
pub(crate) fn parse_metadata(path: &Path, head: &[u8]) -> Result<BTreeMap<String, String>> {
    #[derive(Deserialize)]
    struct Metadata {
        #[serde(rename = "__metadata__")]
        metadata: BTreeMap<String, String>,
    }
    let text = head
        .split_first_chunk::<PREFIX_BYTES>()
        .and_then(|(length, rest)| rest.get(..usize::try_from(u64::from_le_bytes(*length)).ok()?));
    let Metadata { metadata } = serde_json::from_slice(text.unwrap_or_default())
        .map_err(|error| corrupt(path, printable(&error.to_string())))?;
    Ok(metadata)
}

/// Bytes of a tensor; `None` when that is no whole number or does not fit into a `usize`.
fn byte_size(dtype: Dtype, shape: &[usize]) -> Option<usize> {
    let elements = shape.iter().try_fold(1_usize, |product, &axis| product.checked_mul(axis))?;
    let bits = elements.checked_mul(dtype.bitsize())?;
    (bits % 8 == 0).then_some(bits / 8)
}

/// Reads `model.safetensors.index.json`: the file name of each tensor. Everything but `weight_map`
/// is ignored.
///
/// # Errors
/// [`Error::Json`] with `path` when it is not JSON. [`Error::Checkpoint`] when it has no
/// `weight_map` of names, when that is empty or lists a tensor twice, or when a file name is not
/// that of a safetensors file in the same folder.
pub fn parse_index(path: &Path, text: &[u8]) -> Result<BTreeMap<String, String>> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: Entries<Shards>,
    }
    let index: Index = serde_json::from_slice(text).map_err(|error| {
        // Errors inside of `weight_map` look alike to serde: ask again whether it is JSON at all.
        match serde_json::from_slice::<IgnoredAny>(text) {
            Err(source) => Error::Json { path: path.into(), source },
            Ok(IgnoredAny) => corrupt(path, printable(&error.to_string())),
        }
    })?;
    let Entries(listed, _) = index.weight_map;
    if listed.is_empty() {
        return Err(corrupt(path, "its weight_map lists no tensors"));
    }
    match listed.iter().find(|(_, shard)| !is_plain_safetensors(shard)) {
        None => Ok(listed.into_iter().collect()),
        Some((name, shard)) => Err(corrupt(
            path,
            format!(
                "puts tensor {name} into \"{}\", which is not the name of a safetensors file in \
                 the same folder",
                printable(shard)
            ),
        )),
    }
}

/// Whether a file name from an index stays in its folder on every platform.
fn is_plain_safetensors(name: &str) -> bool {
    let mut components = Path::new(name).components();
    let plain = matches!(components.next(), Some(Component::Normal(only)) if only == name);
    plain
        && components.next().is_none()
        && name.len() <= MAX_NAME_BYTES
        && name.strip_suffix(".safetensors").is_some_and(|stem| !stem.is_empty())
        && !name.contains(|c: char| matches!(c, '/' | '\\' | ':') || c.is_control())
}

/// An error about the file at `path`.
pub(super) fn corrupt(path: &Path, reason: impl Into<String>) -> Error {
    Error::Checkpoint { path: path.into(), reason: reason.into() }
}

/// Text from a damaged file, cut and without control characters, so that it can be shown on a
/// terminal.
pub(crate) fn printable(text: &str) -> String {
    const SHOWN: usize = 300;
    let clean = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
    let mut shown: String = text.chars().take(SHOWN).map(clean).collect();
    if text.chars().nth(SHOWN).is_some() {
        shown.push('…');
    }
    shown
}

/// What a JSON object with tensor names as keys has as values.
trait Values {
    type Value: DeserializeOwned;
    /// A key that is no tensor, to be skipped.
    const SKIPPED: Option<&'static str>;
}

/// A safetensors header: each tensor's entry, and free text that nothing here reads.
struct Header;

impl Values for Header {
    type Value = HeaderEntry;
    const SKIPPED: Option<&'static str> = Some("__metadata__");
}

/// The `weight_map` of an index: file names.
struct Shards;

impl Values for Shards {
    type Value = String;
    const SKIPPED: Option<&'static str> = None;
}

/// A JSON object by tensor name. A name given twice is an error; serde's own maps keep the last.
struct Entries<V: Values>(Vec<(String, V::Value)>, PhantomData<V>);

impl<'de, V: Values> Deserialize<'de> for Entries<V> {
    fn deserialize<D: de::Deserializer<'de>>(
        deserializer: D,
    ) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(EntriesVisitor(PhantomData))
    }
}

struct EntriesVisitor<V>(PhantomData<V>);

impl<'de, V: Values> Visitor<'de> for EntriesVisitor<V> {
    type Value = Entries<V>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with a tensor's name for each key")
    }

    fn visit_map<A: MapAccess<'de>>(
        self,
        mut map: A,
    ) -> std::result::Result<Self::Value, A::Error> {
        let mut entries = Vec::new();
        let mut names = BTreeSet::new();
        while let Some(name) = map.next_key::<String>()? {
            if name.len() > MAX_NAME_BYTES || name.contains(char::is_control) {
                return Err(de::Error::custom("a tensor's name is too long or not printable"));
            }
            if !names.insert(name.clone()) {
                return Err(de::Error::custom(format_args!("{name} is there twice")));
            }
            if V::SKIPPED == Some(&name) {
                // Free text, which nothing here reads; the format allows strings only.
                map.next_value::<BTreeMap<String, String>>()?;
                continue;
            }
            let value = map
                .next_value()
                .map_err(|error| de::Error::custom(format_args!("tensor {name}: {error}")))?;
            entries.push((name, value));
        }
        Ok(Entries(entries, PhantomData))
    }
}
