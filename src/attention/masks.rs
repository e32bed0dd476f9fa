//! What a query may not see, as numbers to be added to scores.

use mlx_rs::{Array, Dtype, ops};

use crate::error::{Error, Result};

/// The masks of one forward pass, made once for all layers.
#[derive(Debug)]
pub(crate) struct Masks {
    dtype: Dtype,
    /// By number of queries and keys, and window; a few entries at most.
    made: Vec<([i32; 3], Array)>,
}

impl Masks {
    /// Masks to be added to scores of type `dtype`.
    pub(crate) fn new(dtype: Dtype) -> Self {
        Self { dtype, made: Vec::new() }
    }

    /// 0 where a query sees a key, −∞ elsewhere, [queries, keys]; the last query is that of the
    /// last key.
    pub(super) fn sliding(&mut self, queries: i32, keys: i32, window: i32) -> Result<&Array> {
        let key = [queries, keys, window];
        if !self.made.iter().any(|(made, _)| *made == key) {
            self.made.push((key, self.make(queries, keys, window)?));
        }
        self.made
            .iter()
            .find_map(|(made, mask)| (*made == key).then_some(mask))
            .ok_or_else(|| Error::Mlx { op: "mask", message: "not made".into() })
    }

    /// [`Masks::sliding`] without a window.
    pub(super) fn causal(&mut self, queries: i32, keys: i32) -> Result<&Array> {
        self.sliding(queries, keys, i32::MAX)
    }

    fn make(&self, queries: i32, keys: i32, window: i32) -> Result<Array> {
        let query: Vec<i32> = (keys - queries..keys).collect();
        let query = Array::from_slice(&query, &[queries, 1]);
        let key = Array::from_slice(&(0..keys).collect::<Vec<i32>>(), &[1, keys]);
        let behind = query.subtract(&key)?;
        // A window of w sees the query's own key and the w − 1 before it.
        let seen =
            ops::logical_and(behind.ge(Array::from_int(0))?, behind.lt(Array::from_int(window))?)?;
        let mask = ops::select(&seen, Array::from_f32(0.0), Array::from_f32(f32::NEG_INFINITY))?;
        Ok(mask.as_dtype(self.dtype)?)
    }
}
