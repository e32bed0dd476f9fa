//! The filters that rule tokens out before the draw, by setting their logits to -∞.
//!
//! A filter that needs the tokens in order works on ranked candidates: one stable sort serves them
//! all, and the draw happens among the ranks, so that nothing is put back into the order of ids.

use mlx_rs::{Array, Dtype, ops};

use crate::error::Result;

/// What of the distribution is left.
pub(super) struct Candidates {
    /// u32 `[n]` when the tokens are ranked, else the place is the id.
    pub(super) ids: Option<Array>,
    /// f32 `[n]`
    pub(super) logits: Array,
}

/// Stands for a top-p of 0: less than the share of any most probable token, and not so small that
/// a device flushes it to zero.
const LEAST_TOP_P: f32 = 1e-30;

impl Candidates {
    /// All tokens in the order of their ids. `logits`: f32 `[vocab]`.
    pub(super) fn all(logits: Array) -> Self {
        Self { ids: None, logits }
    }

    /// All tokens from the most to the least probable. MLX's argsort is stable on every backend,
    /// so the lower id comes first among equals.
    pub(super) fn ranked(logits: &Array) -> Result<Self> {
        let ids = ops::argsort_axis(logits.negative()?, 0)?;
        let logits = logits.take(&ids)?;
        Ok(Self { ids: Some(ids), logits })
    }

    /// Leaves each token while those ranked above it have not reached `top_p`. Ranked only.
    pub(super) fn top_p(&mut self, top_p: f32) -> Result<()> {
        let probabilities = ops::softmax_axis(&self.logits, 0, true)?;
        let above = probabilities.cumsum(0, false, false)?;
        self.remove_where(&above.ge(scalar(top_p.max(LEAST_TOP_P)))?)
    }

    /// Removes what is less than `min_p` times as probable as the most probable token, but leaves
    /// the first `keep` ranks; `keep` above 1 on ranked candidates only. `max_logit` is the
    /// greatest logit of all.
    pub(super) fn min_p(&mut self, min_p: f32, max_logit: &Array, keep: usize) -> Result<()> {
        let mut remove = self.logits.lt(max_logit.add(scalar(min_p.ln()))?)?;
        if keep > 1 {
            let len = self.logits.shape().first().copied().unwrap_or(0);
            let keep = i32::try_from(keep).unwrap_or(i32::MAX);
            let rank = Array::from_iter(0..len, &[len]);
            remove = remove.logical_and(rank.ge(Array::from_int(keep))?)?;
        }
        self.remove_where(&remove)
    }

    /// Of the tokens more probable than `threshold` (among what is left) leaves the least probable
    /// and those that may not be removed. `removable`: bool `[vocab]`, by id.
    pub(super) fn xtc(&mut self, threshold: f32, removable: Option<&Array>) -> Result<()> {
        let probabilities = ops::softmax_axis(&self.logits, 0, true)?;
        let top = probabilities.gt(scalar(threshold))?;
        // Nothing is greater than ∞: without a top choice nothing is removed.
        let least = ops::select(top, &probabilities, scalar(f32::INFINITY))?.min(false)?;
        let mut remove = probabilities.gt(least)?;
        if let Some(removable) = removable {
            remove = match &self.ids {
                Some(ids) => remove.logical_and(removable.take(ids)?)?,
                None => remove.logical_and(removable)?,
            };
        }
        self.remove_where(&remove)
    }

    /// Leaves the first `k` of what is left. Ranked only.
    pub(super) fn top_k(&mut self, k: usize) -> Result<()> {
        let left = self.logits.gt(scalar(f32::NEG_INFINITY))?.as_dtype(Dtype::Int32)?;
        let rank_among_left = left.cumsum(0, false, true)?;
        let k = Array::from_int(i32::try_from(k).unwrap_or(i32::MAX));
        self.remove_where(&rank_among_left.gt(k)?)
    }

    /// Divides by the temperature. The greatest logit goes to 0 first, and stays there: however
    /// small the temperature, only the others can overflow, to -∞.
    pub(super) fn scale(&mut self, max_logit: &Array, temperature: f32) -> Result<()> {
        self.logits = self.logits.subtract(max_logit)?.divide(scalar(temperature))?;
        Ok(())
    }

    fn remove_where(&mut self, remove: &Array) -> Result<()> {
        self.logits = ops::select(remove, scalar(f32::NEG_INFINITY), &self.logits)?;
        Ok(())
    }
}

fn scalar(value: f32) -> Array {
    Array::from_f32(value)
}
