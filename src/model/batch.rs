//! One decoding step of several sequences at once. Each keeps its own [`Cache`]: who joins or leaves
//! between two steps moves nothing, and no length is padded to another's. What needs no cache, which
//! is all but attention itself, runs once for all of them.

use mlx_rs::Array;

use super::Model;
use crate::cache::Cache;
use crate::error::{Error, Result};

impl Model {
    /// One decoding step of several sequences: feeds `tokens[i]` to `caches[i]`. Returns the logits
    /// after each, f32 or the activations' type, [rows, vocabulary]. Lazy, as [`Model::forward`].
    ///
    /// The caches may be of any lengths and policies. A row's logits are those that
    /// [`Model::forward`] gives it alone, but for the rounding of sums; a single row is computed by
    /// it.
    ///
    /// # Errors
    /// [`Error::Argument`] that names the row for an id outside the vocabulary, or for a cache that
    /// is full, broken or of another model, and for no tokens or not one for each cache: no cache is
    /// changed then. [`Error::Mlx`] when MLX fails: all of the caches then have to be
    /// [cleared](Cache::clear).
    pub fn forward_batch(&self, tokens: &[u32], caches: &mut [&mut Cache]) -> Result<Array> {
        for (row, &id) in tokens.iter().enumerate() {
            let named = |reason| Error::argument("tokens", format!("row {row}: {reason}"));
            self.check_id(id).map_err(named)?;
        }
        let tokens = self.checked(tokens)?;
        self.step_batch(&tokens, caches)
    }

    /// [`Model::forward_batch`] of as many token ids u32, which the host may not have read yet: each
    /// must be below the vocabulary's size.
    pub(crate) fn step_batch(&self, tokens: &Array, caches: &mut [&mut Cache]) -> Result<Array> {
        if tokens.size() != caches.len() {
            let reason = format!("{} for {} caches", tokens.size(), caches.len());
            return Err(Error::argument("tokens", reason));
        }
        for (row, cache) in caches.iter().enumerate() {
            let named = |error| Error::argument("caches", format!("row {row}: {error}"));
            self.check_row(cache).map_err(named)?;
        }
        self.device.run(|| {
            let logits = match caches {
                [] => return Err(Error::argument("caches", "there are none")),
                [cache] => self.row_alone(tokens, cache),
                _ => self.rows_at_once(tokens, caches),
            };
            if logits.is_err() {
                // Some have taken their token in, others not or not in every layer.
                caches.iter_mut().for_each(|cache| cache.spoil());
            }
            logits
        })
    }

    /// Whether a sequence with this cache can take one more token: what [`Model::forward_batch`]
    /// asks for each row before it begins.
    ///
    /// # Errors
    /// [`Error::ContextFull`], and [`Error::Argument`] for a cache that is broken or of another
    /// model.
    pub(crate) fn check_row(&self, cache: &Cache) -> Result<()> {
        self.position(cache)?;
        cache.check(&self.config)
    }

    /// The position of the next token.
    fn position(&self, cache: &Cache) -> Result<i32> {
        let limit = self.context_limit();
        match i32::try_from(cache.len()) {
            Ok(position) if cache.len() < limit => Ok(position),
            _ => Err(Error::ContextFull { tokens: cache.len().saturating_add(1), limit }),
        }
    }

    /// One token of one sequence → [1, vocabulary].
    fn row_alone(&self, token: &Array, cache: &mut Cache) -> Result<Array> {
        let hidden = self.hidden(&token.reshape(&[1, 1])?, cache)?;
        Ok(self.head(&hidden)?.squeeze_axes(&[0])?)
    }

    /// One token of each → [rows, vocabulary]. A step of a single token is never
    /// [divided](Cache::undivided).
    fn rows_at_once(&self, tokens: &Array, caches: &mut [&mut Cache]) -> Result<Array> {
        let offsets =
            caches.iter().map(|cache| self.position(cache)).collect::<Result<Vec<_>>>()?;
        let rows = i32::try_from(offsets.len())
            .map_err(|_| Error::argument("caches", "too many at once"))?;
        let offsets = Array::from_slice(&offsets, &[rows]);
        for cache in caches.iter_mut() {
            cache.begin(&self.config, 1)?;
        }
        // As if they were one sequence: only attention tells them apart.
        let mut x = self.embed_tokens.forward(&tokens.reshape(&[1, rows])?)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let caches = caches.iter_mut().filter_map(|cache| cache.layers.get_mut(index));
            x = layer.forward_batch(&x, self, &offsets, caches)?;
        }
        for cache in caches.iter_mut() {
            cache.advance(1)?;
        }
        let hidden = self.norm.forward(&x)?;
        Ok(self.head(&hidden)?.squeeze_axes(&[0])?)
    }
}
