//! The cache of a layer that sees a window.
//!
//! Rows lie in order in a block somewhat longer than the window. When the block is full, the rows
//! still needed move to its front. Compared with a ring written round and round, the visible rows
//! are always one contiguous view, so that decoding needs no mask; it costs one move of a few
//! hundred rows every `STEP` tokens.

use mlx_rs::{Array, ops};

use super::{KeysValues, Rows, row_count, rows_of, too_long};
use crate::error::{Error, Result};

/// Rows kept beyond the window, so that the window of a position up to as many tokens back is still
/// whole. Nothing goes back yet; the room is part of the layout, since rows once dropped are gone.
const SLACK: i32 = 32;
/// Tokens between two moves.
const STEP: i32 = 64;

/// Keys and values of the last tokens, in memory that does not grow.
#[derive(Debug)]
pub(crate) struct SlidingCache {
    /// Tokens that a query sees before its own: the window less one.
    before: i32,
    rows: Option<Rows>,
    /// Rows in use, from the block's front.
    len: i32,
}

impl SlidingCache {
    pub(crate) fn new(window: usize) -> Self {
        // The config bounds the window far below this limit.
        let before = i32::try_from(window.saturating_sub(1)).unwrap_or(i32::MAX / 2);
        Self { before, rows: None, len: 0 }
    }

    /// Returns up to window − 1 earlier rows and then the new ones.
    pub(super) fn update(&mut self, keys: Array, values: Array) -> Result<KeysValues> {
        let new = row_count(&keys)?;
        let kept = self.before.checked_add(SLACK).ok_or_else(too_long)?;
        let capacity = kept.checked_add(STEP).ok_or_else(too_long)?;
        let visible_before = self.len.min(self.before);
        let rows = match self.rows.take() {
            None => Rows::new(&keys, &values, capacity)?,
            Some(rows) => rows,
        };
        if self.len.checked_add(new).is_some_and(|end| end <= capacity) {
            let rows = rows.write(&keys, &values, self.len)?;
            self.len += new;
            let view = rows.view(self.len - new - visible_before, self.len)?;
            self.rows = Some(rows);
            return Ok(view);
        }

        // The block is full, or the tokens are more than it holds: join what is still needed with
        // the new rows, and put the end of that into the block.
        let (old_keys, old_values) = rows.view(self.len - self.len.min(kept), self.len)?;
        let all_keys = ops::concatenate(&[old_keys, keys], 2)?;
        let all_values = ops::concatenate(&[old_values, values], 2)?;
        let all = row_count(&all_keys)?;
        self.len = all.min(kept);
        let tail = |array: &Array| rows_of(array, all - self.len, all);
        let (tail_keys, tail_values) = (tail(&all_keys)?, tail(&all_values)?);
        self.rows = Some(rows.write(&tail_keys, &tail_values, 0)?);
        let start = all - new - visible_before;
        if start < 0 {
            return Err(Error::Mlx { op: "cache", message: format!("{start} visible rows") });
        }
        Ok((rows_of(&all_keys, start, all)?, rows_of(&all_values, start, all)?))
    }

    pub(super) fn held(&self) -> Option<(&Array, &Array)> {
        self.rows.as_ref().map(|rows| (&rows.keys, &rows.values))
    }
}
