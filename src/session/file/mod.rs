//! A session on disk: one safetensors file with the tokens and the rows in use.
//!
//! Tensors, in this order: `ids`, u32 [tokens]; `layers.{i}.keys` and `.values`, or for packed rows
//! `.keys.codes`, `.keys.scales`, `.keys.biases` and so on, each [1, key-value heads, rows, …];
//! `snapshots.{position}.layers.{i}…` likewise; last `checksum`, u8 \[16\], the XXH3 of all bytes
//! before it, so that no bit of the file can change unnoticed. It guards against damage, not
//! against someone who makes a file up: whatever a file holds, reading it is safe, but the tokens
//! that it leads to are as good as their source.

mod read;
mod replace;
mod write;

use mlx_rs::Dtype;
use safetensors::Dtype as FileDtype;

use crate::cache::Place;

/// What the metadata calls the format.
const FORMAT: &str = "gpt-oss-mlx session";
/// Changes whenever a reader of the old form would misread the new one.
const VERSION: &str = "1";

/// The last tensor.
const CHECKSUM: &str = "checksum";
const CHECKSUM_BYTES: usize = size_of::<u128>();
const IDS: &str = "ids";

/// Keys of the metadata.
mod key {
    pub(super) const FORMAT: &str = "format";
    pub(super) const VERSION: &str = "version";
    pub(super) const CONFIG: &str = "config";
    pub(super) const WEIGHTS: &str = "weights";
    pub(super) const ACTIVATIONS: &str = "activations";
    pub(super) const POLICY: &str = "policy";
    pub(super) const TOKENS: &str = "tokens";
    pub(super) const PACKED: &str = "packed";
    pub(super) const PREFILL_SECONDS: &str = "prefill_seconds";
}

/// What the tensors of a place begin with.
fn prefix(place: Place) -> String {
    match place.snapshot {
        None => format!("layers.{}", place.layer),
        Some(position) => format!("snapshots.{position}.layers.{}", place.layer),
    }
}

/// The position in the name of a snapshot's tensor.
fn snapshot_position(name: &str) -> Option<usize> {
    name.strip_prefix("snapshots.")?.split_once('.')?.0.parse().ok()
}

/// The file's name for a type that a cache is made of.
fn file_dtype(dtype: Dtype) -> Option<FileDtype> {
    match dtype {
        Dtype::Bfloat16 => Some(FileDtype::BF16),
        Dtype::Float16 => Some(FileDtype::F16),
        Dtype::Float32 => Some(FileDtype::F32),
        Dtype::Uint32 => Some(FileDtype::U32),
        _ => None,
    }
}

/// The activations' type as the metadata shows it.
fn activations(dtype: Dtype) -> String {
    file_dtype(dtype).map_or_else(String::new, |dtype| dtype.to_string())
}

/// A hash as the metadata shows it.
fn hex(hash: u128) -> String {
    format!("{hash:032x}")
}
