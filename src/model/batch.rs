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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use mlx_rs::ops::indexing::argmax_axis;

    use super::*;
    use crate::LoadOptions;
    use crate::cache::{KvBits, KvPolicy, LayerCache, SlidingCache};
    use crate::model::mlx_dtype;

    const DIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/gpt-oss-tiny");

    fn numbers(logits: &Array) -> Vec<f32> {
        logits.eval().unwrap();
        logits.as_slice::<f32>().to_vec()
    }

    /// Caches of one token, of another in each.
    fn begun(model: &Model, rows: usize) -> Vec<Cache> {
        let begun = |row| {
            let mut cache = model.new_cache();
            model.forward(&[row], &mut cache).unwrap();
            cache
        };
        (0..u32::try_from(rows).unwrap()).map(begun).collect()
    }

    /// As `the_residual_stream_keeps_its_type_at_every_layer` of a single sequence.
    #[test]
    fn the_residual_stream_of_a_batch_keeps_its_type_at_every_layer() {
        use safetensors::Dtype as FileDtype;
        for dtype in [FileDtype::F32, FileDtype::BF16, FileDtype::F16] {
            let options = LoadOptions::default();
            let model =
                Model::load_as(Path::new(DIR), &options, Some(dtype), &mut |_, _| ()).unwrap();
            let dtype = mlx_dtype(dtype);
            // A few rows, and enough for experts sorted by number and unpacked projections.
            for rows in [2, 9, 40] {
                let mut caches = begun(&model, rows);
                // Packed rows among them.
                caches[1] = model.new_cache_with(&KvPolicy::quantized(KvBits::Eight)).unwrap();
                let offsets = vec![1; rows];
                let offsets = Array::from_slice(&offsets, &[i32::try_from(rows).unwrap()]);
                let ids = model.checked(&vec![7; rows]).unwrap();
                let mut x = model.embed_tokens.forward(&ids).unwrap();
                for (index, layer) in model.layers.iter().enumerate() {
                    assert_eq!(x.dtype(), dtype);
                    let caches = caches.iter_mut().map(|cache| &mut cache.layers[index]);
                    x = layer.forward_batch(&x, &model, &offsets, caches).unwrap();
                }
                assert_eq!(x.dtype(), dtype);
                let mut caches: Vec<&mut Cache> = caches.iter_mut().collect();
                let logits = model.forward_batch(&vec![7; rows], &mut caches).unwrap();
                assert_eq!(logits.dtype(), dtype);
                assert!(caches[0].arrays().all(|array| array.dtype() == dtype));
            }
        }
    }

    #[test]
    fn when_mlx_fails_on_the_way_no_cache_of_the_batch_is_trusted() {
        let model = Model::load(DIR, &LoadOptions::default()).unwrap();
        let mut caches = begun(&model, 3);
        // What MLX refuses in the third layer of the second row: the first two layers have taken
        // the step in, in all rows.
        caches[1].layers[2] = LayerCache::Sliding(SlidingCache::new(2, 32));
        let strange = Array::from_slice(&[0f32; 24], &[1, 3, 1, 8]);
        caches[1].layers[2].update(strange.clone(), strange).unwrap();
        let mut all: Vec<&mut Cache> = caches.iter_mut().collect();
        assert!(matches!(model.forward_batch(&[4, 5, 6], &mut all), Err(Error::Mlx { .. })));
        for (row, cache) in caches.iter_mut().enumerate() {
            assert!(matches!(model.check_row(cache), Err(Error::Argument { name: "cache", .. })));
            let said = model.forward_batch(&[1], &mut [cache]).unwrap_err().to_string();
            assert!(said.contains("half-way"), "row {row}: {said}");
        }

        // They can begin anew.
        caches.iter_mut().for_each(Cache::clear);
        let mut all: Vec<&mut Cache> = caches.iter_mut().collect();
        let again = numbers(&model.forward_batch(&[4, 5, 6], &mut all).unwrap());
        let mut fresh = [model.new_cache(), model.new_cache(), model.new_cache()];
        let mut fresh: Vec<&mut Cache> = fresh.iter_mut().collect();
        assert_eq!(again, numbers(&model.forward_batch(&[4, 5, 6], &mut fresh).unwrap()));
    }

    /// Each has its token then, but nobody has what follows it.
    #[test]
    fn nor_when_it_fails_after_the_last_layer() {
        let mut model = Model::load(DIR, &LoadOptions::default()).unwrap();
        for rows in [1, 3] {
            let mut caches = begun(&model, rows);
            let weight = std::mem::replace(&mut model.norm.weight, Array::from_f32(1.0));
            let mut all: Vec<&mut Cache> = caches.iter_mut().collect();
            assert!(matches!(
                model.forward_batch(&vec![4; rows], &mut all),
                Err(Error::Mlx { .. })
            ));
            model.norm.weight = weight;
            assert!(caches.iter().all(|cache| model.check_row(cache).is_err()));
        }
    }

    #[test]
    fn tokens_need_not_have_been_read_by_the_host() {
        let model = Model::load(DIR, &LoadOptions::default()).unwrap();
        for rows in [1, 3] {
            let (mut read, mut unread) = (begun(&model, rows), begun(&model, rows));
            let mut read: Vec<&mut Cache> = read.iter_mut().collect();
            let mut unread: Vec<&mut Cache> = unread.iter_mut().collect();
            let mut ids = vec![9; rows];
            let mut tokens = Array::from_slice(&ids, &[i32::try_from(rows).unwrap()]);
            let (mut want, mut got) = (Vec::new(), Vec::new());
            for _ in 0..5 {
                let logits = model.forward_batch(&ids, &mut read).unwrap();
                let greatest = argmax_axis(&logits, -1, false).unwrap();
                greatest.eval().unwrap();
                ids = greatest.as_slice::<u32>().to_vec();
                want.push(ids.clone());
                // Nothing is evaluated here until the end.
                let logits = model.step_batch(&tokens, &mut unread).unwrap();
                tokens = argmax_axis(&logits, -1, false).unwrap();
                got.push(tokens.clone());
            }
            for (got, want) in got.iter().zip(want) {
                got.eval().unwrap();
                assert_eq!(got.as_slice::<u32>(), want);
            }
            let too_many = Array::from_slice(&[1u32; 4], &[4]);
            let refused = model.step_batch(&too_many, &mut unread);
            assert!(matches!(refused, Err(Error::Argument { name: "tokens", .. })));
        }
    }
}
