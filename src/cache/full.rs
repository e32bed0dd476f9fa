//! The cache of a layer that sees everything.

use mlx_rs::{Array, ops};

use super::{KeysValues, Rows, row_count, too_long};
use crate::error::Result;

/// Rows by which the memory grows. Growing copies everything, so it must not happen at each token.
const GROWTH_STEP: i32 = 256;

/// Keys and values of all tokens, in memory allocated ahead in steps.
#[derive(Debug, Default)]
pub(crate) struct FullCache {
    rows: Option<Rows>,
    len: i32,
}

impl FullCache {
    pub(super) fn update(&mut self, keys: &Array, values: &Array) -> Result<KeysValues> {
        let end = self.len.checked_add(row_count(keys)?).ok_or_else(too_long)?;
        // Taken out, so that no second handle keeps MLX from writing in place.
        let rows = match self.rows.take() {
            None => Rows::new(keys, values, capacity_for(end)?)?,
            Some(rows) if end <= rows.capacity => rows,
            Some(rows) => {
                let capacity = capacity_for(end)?;
                let more = Rows::new(keys, values, capacity - rows.capacity)?;
                Rows {
                    keys: ops::concatenate(&[rows.keys, more.keys], 2)?,
                    values: ops::concatenate(&[rows.values, more.values], 2)?,
                    capacity,
                }
            }
        };
        let rows = rows.write(keys, values, self.len)?;
        let view = rows.view(0, end)?;
        self.rows = Some(rows);
        self.len = end;
        Ok(view)
    }

    pub(super) fn held(&self) -> Option<(&Array, &Array)> {
        self.rows.as_ref().map(|rows| (&rows.keys, &rows.values))
    }
}

fn capacity_for(len: i32) -> Result<i32> {
    len.checked_add(GROWTH_STEP - 1).map(|n| n - n % GROWTH_STEP).ok_or_else(too_long)
}
