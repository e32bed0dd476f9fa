//! A cache taken apart and put together again: what a file holds of it.

use std::ops::RangeInclusive;

use super::rows::{KeysValues, too_long};
use super::sliding::{self, SlidingCache};
use super::{Cache, FullCache, KvPolicy, LayerCache, Snapshot};
use crate::config::{Config, LayerType, QuantizationParams};
use crate::error::Result;

/// Which rows of a cache.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    /// Those of the snapshot at this position; None for those of the whole sequence.
    pub(crate) snapshot: Option<usize>,
    /// The layer's number.
    pub(crate) layer: usize,
}

/// How rows at a place look.
#[derive(Debug, Clone)]
pub(crate) struct Form {
    /// How many there can be.
    pub(crate) rows: RangeInclusive<usize>,
    /// How keys are packed; None for floats.
    pub(crate) keys: Option<QuantizationParams>,
    /// How values are packed; None for floats.
    pub(crate) values: Option<QuantizationParams>,
}

impl KvPolicy {
    /// True when the full layers of a cache of `len` tokens can be packed, or can be not packed.
    /// Both are possible at `quantize_from`: they are packed by the step behind it, and stay so in
    /// a cache that goes back to it.
    pub(crate) fn can_be_packed(&self, packed: bool, len: usize) -> bool {
        match packed {
            true => self.is_quantized() && len > 0 && len >= self.quantize_from,
            false => !self.is_quantized() || len <= self.quantize_from,
        }
    }
}

impl Cache {
    /// All rows, each with the memory that begins with them and their number. What lies behind them
    /// there may be of another sequence.
    pub(crate) fn parts(&self) -> impl Iterator<Item = (Place, &KeysValues, i32)> {
        let layers = self.layers.iter().enumerate().filter_map(|(layer, cache)| {
            let rows = match cache {
                LayerCache::Full(cache) => cache.len(),
                LayerCache::Sliding(cache) => cache.len(),
            };
            Some((Place { snapshot: None, layer }, cache.held()?, rows))
        });
        let is_sliding = |cache: &LayerCache| matches!(cache, LayerCache::Sliding(_));
        let sliding = self.layers.iter().enumerate().filter(move |(_, cache)| is_sliding(cache));
        let snapshots = self.snapshots.iter().flat_map(move |snapshot| {
            sliding.clone().zip(&snapshot.layers).filter_map(|((layer, _), rows)| {
                let place = Place { snapshot: Some(snapshot.position), layer };
                Some((place, rows, rows.count().ok()?))
            })
        });
        layers.chain(snapshots)
    }

    /// True when full layers are packed.
    pub(crate) fn is_packed(&self) -> bool {
        self.layers.iter().filter_map(LayerCache::held).any(KeysValues::is_packed)
    }

    /// A cache of `len` tokens, full layers packed or not, with snapshots at `positions`, ascending:
    /// `read` gives the rows of each place in the form that it is told. The caller has asked
    /// [`KvPolicy::can_be_packed`].
    ///
    /// # Errors
    /// Whatever `read` reports, and [`Error::Mlx`](crate::Error::Mlx) when MLX fails.
    pub(crate) fn from_parts(
        config: &Config,
        policy: &KvPolicy,
        (len, packed): (usize, bool),
        positions: impl IntoIterator<Item = usize>,
        mut read: impl FnMut(Place, Form) -> Result<KeysValues>,
    ) -> Result<Self> {
        let mut cache = Self::new(config, policy);
        if len == 0 {
            return Ok(cache);
        }
        let (keys, values) = match packed {
            true => (policy.key_packing(), policy.value_packing()),
            false => (None, None),
        };
        let window = config.sliding_window;
        let sliding = |position: usize, most: usize| Form {
            rows: position.min(window.saturating_sub(1))..=position.min(most),
            keys: None,
            values: None,
        };
        for (layer, layer_cache) in cache.layers.iter_mut().enumerate() {
            let place = Place { snapshot: None, layer };
            match layer_cache {
                LayerCache::Full(full) => {
                    let rows = read(place, Form { rows: len..=len, keys, values })?;
                    *full = FullCache::restored(*policy, rows)?;
                }
                LayerCache::Sliding(cache) => {
                    let form = sliding(len, sliding::capacity(window, policy.slack));
                    restore(cache, &read(place, form)?)?;
                }
            }
        }
        for position in positions {
            let mut layers = Vec::new();
            for (layer, &layer_type) in config.layer_types.iter().enumerate() {
                if layer_type == LayerType::SlidingAttention {
                    let place = Place { snapshot: Some(position), layer };
                    let form = sliding(position, sliding::kept(window, policy.slack));
                    layers.push(read(place, form)?);
                }
            }
            cache.snapshots.push(Snapshot { position, layers }, policy.snapshot_bytes);
        }
        cache.len = len;
        Ok(cache)
    }
}

fn restore(cache: &mut SlidingCache, rows: &KeysValues) -> Result<()> {
    cache.restore(Some(rows))?;
    match cache.len() == rows.count()? {
        true => Ok(()),
        false => Err(too_long()),
    }
}
