//! The cache of a layer that sees everything.

use mlx_rs::transforms;

use super::KvPolicy;
use super::rows::{KeysValues, too_long};
use crate::error::Result;

/// Keys and values of all tokens, in memory allocated ahead in steps; in floats up to the length
/// that the policy names, packed from there on.
#[derive(Debug, Clone)]
pub(crate) struct FullCache {
    policy: KvPolicy,
    rows: Option<KeysValues>,
    /// Rows in use.
    len: i32,
    packed: bool,
}

impl FullCache {
    pub(super) fn new(policy: KvPolicy) -> Self {
        Self { policy, rows: None, len: 0, packed: false }
    }

    /// Returns all rows, the new ones last. Every query of a step sees the cache in the same form,
    /// so a step must not reach across `quantize_from`.
    pub(super) fn update(&mut self, new: KeysValues) -> Result<KeysValues> {
        let end = self.len.checked_add(new.count()?).ok_or_else(too_long)?;
        // Taken out, so that no second handle keeps MLX from writing in place.
        let mut rows = self.rows.take();
        let mut new = new;
        if self.policy.is_quantized() && size(self.len) >= self.policy.quantize_from {
            let (keys, values) = (self.policy.key_packing(), self.policy.value_packing());
            new = new.packed(keys, values)?;
            rows = rows.map(|rows| rows.packed(keys, values)).transpose()?;
            self.packed = true;
        }
        let capacity = rows.as_ref().map_or(Ok(0), KeysValues::count)?;
        let rows = match rows {
            Some(rows) if end <= capacity => rows,
            None => new.zeros(self.capacity_for(end)?)?,
            Some(rows) => {
                // Rows behind those in use may be left over from a longer sequence.
                let more = new.zeros(self.capacity_for(end)? - self.len)?;
                rows.view(0, self.len)?.followed_by(&more)?
            }
        };
        let rows = rows.write(&new, self.len)?;
        let view = rows.view(0, end)?;
        self.rows = Some(rows);
        self.len = end;
        Ok(view)
    }

    fn capacity_for(&self, len: i32) -> Result<i32> {
        let step = i32::try_from(self.policy.growth_step).map_err(|_| too_long())?.max(1);
        len.checked_add(step - 1).map(|n| n - n % step).ok_or_else(too_long)
    }

    /// True when the first `to` rows are what a sequence of that length would hold: once packed,
    /// floats are gone.
    pub(super) fn can_go_back(&self, to: usize) -> bool {
        to <= size(self.len) && (!self.packed || to == 0 || to >= self.policy.quantize_from)
    }

    /// Drops all rows from `to` on; the caller has asked [`FullCache::can_go_back`].
    pub(super) fn go_back(&mut self, to: usize) -> Result<()> {
        if to == 0 {
            *self = Self::new(self.policy);
        }
        self.len = i32::try_from(to).map_err(|_| too_long())?.min(self.len);
        // Memory for much more than is left would be copied when it is shared, and saved.
        let fitting = self.capacity_for(self.len)?;
        if let Some(rows) = &self.rows
            && rows.count()? / 2 > fitting
        {
            let fewer = rows.view(0, fitting)?.copied()?;
            // Else the larger memory would stay until the next step.
            transforms::async_eval(fewer.arrays())?;
            self.rows = Some(fewer);
        }
        Ok(())
    }

    /// A cache that holds exactly these rows.
    pub(super) fn restored(policy: KvPolicy, rows: KeysValues) -> Result<Self> {
        // Not told by the length: who went back to `quantize_from` has packed rows there.
        let packed = rows.is_packed();
        Ok(Self { policy, len: rows.count()?, rows: Some(rows), packed })
    }

    /// Rows in use.
    pub(super) fn len(&self) -> i32 {
        self.len
    }

    pub(super) fn held(&self) -> Option<&KeysValues> {
        self.rows.as_ref()
    }
}

fn size(n: i32) -> usize {
    usize::try_from(n).unwrap_or(0)
}
