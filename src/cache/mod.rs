//! Keys and values of the tokens seen so far, one [`LayerCache`] for each layer.
//!
//! Full layers keep everything, in memory that grows in steps. Sliding layers keep the window and
//! a slack in memory that never grows.

mod full;
mod sliding;

use mlx_rs::Array;

use crate::config::{Config, LayerType};
use crate::error::{Error, Result};

pub(crate) use full::FullCache;
pub(crate) use sliding::SlidingCache;

/// The cache of one sequence.
#[derive(Debug)]
pub struct Cache {
    pub(crate) layers: Vec<LayerCache>,
    /// Tokens seen.
    len: usize,
    /// A step is being built: some layers have its keys and values, others not yet.
    half_way: bool,
}

/// The cache of one layer.
#[derive(Debug)]
pub(crate) enum LayerCache {
    Full(FullCache),
    Sliding(SlidingCache),
}

/// Keys and values, each [batch, key-value heads, length, head_dim].
pub(crate) type KeysValues = (Array, Array);

impl Cache {
    pub(crate) fn new(config: &Config) -> Self {
        let layers = config
            .layer_types
            .iter()
            .map(|layer_type| match layer_type {
                LayerType::FullAttention => LayerCache::Full(FullCache::default()),
                LayerType::SlidingAttention => {
                    LayerCache::Sliding(SlidingCache::new(config.sliding_window))
                }
            })
            .collect();
        Self { layers, len: 0, half_way: false }
    }

    /// Tokens seen so far: the position of the next one.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True before the first token.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of all keys and values held, allocated but unused ones included.
    pub fn nbytes(&self) -> usize {
        self.arrays().map(Array::nbytes).sum()
    }

    /// Begins a step of a model with this number of layers.
    ///
    /// # Errors
    /// [`Error::Argument`] when the cache is of another model, or a step failed half-way: its
    /// layers then hold different tokens, and going on would give wrong answers.
    pub(crate) fn begin(&mut self, layers: usize) -> Result<()> {
        if self.layers.len() != layers {
            return Err(Error::argument("cache", "it belongs to another model"));
        }
        if self.half_way {
            return Err(Error::argument("cache", "a step failed half-way; start a new cache"));
        }
        self.half_way = true;
        Ok(())
    }

    /// Ends a step: all layers have taken its tokens in.
    pub(crate) fn advance(&mut self, tokens: usize) {
        self.len = self.len.saturating_add(tokens);
        self.half_way = false;
    }

    /// All arrays held; evaluating them ends the graph that made them.
    pub(crate) fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.layers.iter().filter_map(LayerCache::held).flat_map(|(keys, values)| [keys, values])
    }
}

impl LayerCache {
    /// The memory for keys and values; None before the first token.
    pub(crate) fn held(&self) -> Option<(&Array, &Array)> {
        match self {
            Self::Full(cache) => cache.held(),
            Self::Sliding(cache) => cache.held(),
        }
    }

    /// Appends the keys and values of `length` new tokens and returns those that the new tokens'
    /// queries may see, oldest first, the new ones last.
    pub(crate) fn update(&mut self, keys: Array, values: Array) -> Result<KeysValues> {
        match self {
            Self::Full(cache) => cache.update(&keys, &values),
            Self::Sliding(cache) => cache.update(keys, values),
        }
    }
}

/// A fixed block of memory for keys and values: rows are written in place and read as views.
#[derive(Debug)]
struct Rows {
    keys: Array,
    values: Array,
    capacity: i32,
}

impl Rows {
    /// Zeroed rows of the shape and type of `keys` [batch, heads, _, head_dim] and `values`.
    fn new(keys: &Array, values: &Array, capacity: i32) -> Result<Self> {
        let zeros = |like: &Array| -> Result<Array> {
            let &[batch, heads, _, dim] = like.shape() else { return Err(wrong_rank(like)) };
            Ok(mlx_rs::ops::zeros_dtype(&[batch, heads, capacity, dim], like.dtype())?)
        };
        Ok(Self { keys: zeros(keys)?, values: zeros(values)?, capacity })
    }

    /// Writes rows from `at` on. In place when no view is alive at evaluation.
    fn write(self, keys: &Array, values: &Array, at: i32) -> Result<Self> {
        let put = |target: Array, rows: &Array| -> Result<Array> {
            let &[batch, heads, length, dim] = rows.shape() else { return Err(wrong_rank(rows)) };
            let stop = [batch, heads, at.saturating_add(length), dim];
            crate::mlx::slice_update(target, rows, &[0, 0, at, 0], &stop)
        };
        Ok(Self {
            keys: put(self.keys, keys)?,
            values: put(self.values, values)?,
            capacity: self.capacity,
        })
    }

    /// A view of the rows from `start` up to `stop`.
    fn view(&self, start: i32, stop: i32) -> Result<KeysValues> {
        Ok((rows_of(&self.keys, start, stop)?, rows_of(&self.values, start, stop)?))
    }
}

/// The rows from `start` up to `stop` of [batch, heads, length, head_dim]. A view.
fn rows_of(array: &Array, start: i32, stop: i32) -> Result<Array> {
    let &[batch, heads, _, dim] = array.shape() else { return Err(wrong_rank(array)) };
    crate::mlx::slice(array, &[0, 0, start, 0], &[batch, heads, stop, dim])
}

/// Number of rows of [batch, heads, length, head_dim].
fn row_count(array: &Array) -> Result<i32> {
    array.shape().get(2).copied().ok_or_else(|| wrong_rank(array))
}

fn wrong_rank(array: &Array) -> Error {
    Error::Mlx { op: "cache", message: format!("keys or values of shape {:?}", array.shape()) }
}

fn too_long() -> Error {
    Error::argument("tokens", "more than a cache can count")
}
