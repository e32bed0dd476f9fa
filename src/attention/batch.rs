//! Attention of one token of each of several sequences: the projections see all of them at once,
//! and each looks at its own cache.

use mlx_rs::{Array, ops};

use super::{Attention, AttentionShape};
use crate::cache::LayerCache;
use crate::error::{Error, Result};
use crate::mlx;
use crate::rope::Rope;

impl Attention {
    /// [1, rows, hidden] → the same, appending one token to the cache of each row. `offsets` i32
    /// [rows] are the tokens' positions.
    pub(crate) fn forward_batch<'a>(
        &self,
        x: &Array,
        rope: &Rope,
        offsets: &Array,
        caches: impl Iterator<Item = &'a mut LayerCache>,
    ) -> Result<Array> {
        let AttentionShape { heads, kv_heads, head_dim, .. } = self.shape;
        let &[_, rows, _] = x.shape() else {
            return Err(Error::Mlx { op: "attention", message: format!("shape {:?}", x.shape()) });
        };
        let all_heads = heads + 2 * kv_heads;
        let qkv = self.qkv.forward(x)?; // [1, rows, all_heads · head_dim]
        // From here on each row is a sequence of its own, of one token.
        let qkv = qkv.reshape(&[rows, all_heads, 1, head_dim])?;
        let turned = mlx::slice(&qkv, &[0; 4], &[rows, heads + kv_heads, 1, head_dim])?;
        let turned = rope.forward_each(&turned, offsets)?;

        let mut mixed = Vec::with_capacity(usize::try_from(rows).unwrap_or(0));
        for (row, cache) in (0..rows).zip(caches) {
            let of_row = |array: &Array, from: i32, to: i32| {
                mlx::slice(array, &[row, from, 0, 0], &[row + 1, to, 1, head_dim])
            };
            let queries = of_row(&turned, 0, heads)?;
            let keys = of_row(&turned, heads, heads + kv_heads)?;
            let values = of_row(&qkv, heads + kv_heads, all_heads)?;
            let seen = cache.update(keys, values)?; // [1, kv_heads, seen, head_dim]
            mixed.push(self.attend_one(&queries, &seen)?); // [1, heads, 1, head_dim]
        }
        let mixed = ops::concatenate(&mixed, 0)?;
        self.o_proj.forward(&mixed.reshape(&[1, rows, heads * head_dim])?)
    }
}
