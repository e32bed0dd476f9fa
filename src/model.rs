//! The GPT-OSS model: OpenAI's `gpt_oss/torch/model.py`, with the cache as an argument.

mod batch;
mod options;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mlx_rs::{Array, Dtype, fast, ops};

use crate::attention::{Attention, AttentionShape, Masks};
use crate::cache::{Cache, KvPolicy, LayerCache};
use crate::checkpoint::Checkpoint;
use crate::config::{Config, GenerationConfig};
use crate::error::{Error, Result};
use crate::fingerprint::Fingerprint;
use crate::linear::{Embedding, Linear};
use crate::memory::{MemoryCheck, MemoryEstimate};
use crate::mlx::{self, Device};
use crate::moe::{Moe, MoeShared};
use crate::rope::Rope;
use crate::weights::Loader;
use crate::weights::plan::{LayerPlan, Plan, plan};
pub use options::LoadOptions;

/// A GPT-OSS model with its weights. It holds no sequence: that is the [`Cache`]'s part.
///
/// A `Model` may move to another thread, and several may run in several threads at once. MLX gives
/// each thread that runs one a worker of its own, which stays until the process ends: keep models
/// in a few threads that live long.
pub struct Model {
    config: Arc<Config>,
    stop_ids: Vec<u32>,
    dir: PathBuf,
    device: Device,
    load_time: Duration,
    fingerprint: Fingerprint,
    dtype: Dtype,
    kv: KvPolicy,
    max_context: Option<usize>,
    memory: Option<MemoryEstimate>,
    rope: Rope,
    moe: MoeShared,
    embed_tokens: Embedding,
    layers: Vec<Layer>,
    norm: RmsNorm,
    /// None when the embedding serves as the head.
    lm_head: Option<Linear>,
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model").field("dir", &self.dir).field("dtype", &self.dtype).finish()
    }
}

#[derive(Debug)]
struct RmsNorm {
    /// [hidden].
    weight: Array,
    eps: f32,
}

impl RmsNorm {
    fn forward(&self, x: &Array) -> Result<Array> {
        Ok(fast::rms_norm(x, Some(&self.weight), self.eps)?)
    }
}

struct Layer {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_attention_layernorm: RmsNorm,
    mlp: Moe,
}

impl Layer {
    /// [batch, length, hidden] → the same.
    fn forward(
        &self,
        x: &Array,
        model: &Model,
        offset: i32,
        masks: &mut Masks,
        cache: &mut LayerCache,
    ) -> Result<Array> {
        self.around(x, model, |attention, h| {
            attention.forward(h, &model.rope, offset, masks, cache)
        })
    }

    /// One token of each of several sequences, [1, rows, hidden] → the same; `offsets` i32 [rows]
    /// are their positions.
    pub(crate) fn forward_batch<'a>(
        &self,
        x: &Array,
        model: &Model,
        offsets: &Array,
        caches: impl Iterator<Item = &'a mut LayerCache>,
    ) -> Result<Array> {
        self.around(x, model, |attention, h| {
            attention.forward_batch(h, &model.rope, offsets, caches)
        })
    }

    /// The layer around its attention.
    fn around(
        &self,
        x: &Array,
        model: &Model,
        attend: impl FnOnce(&Attention, &Array) -> Result<Array>,
    ) -> Result<Array> {
        let h = self.input_layernorm.forward(x)?;
        let h = attend(&self.self_attn, &h)?;
        let x = x.add(h)?;
        let h = self.post_attention_layernorm.forward(&x)?;
        let h = self.mlp.forward(&h, &model.moe)?;
        Ok(x.add(h)?)
    }
}

impl Model {
    /// Loads a model folder: config.json, generation_config.json where there is one, and the
    /// safetensors files.
    ///
    /// # Errors
    /// Whatever is wrong with a file or an option, named, and [`Error::OutOfMemory`] when there is
    /// not memory enough; see [`Error`].
    pub fn load(dir: impl AsRef<Path>, options: &LoadOptions) -> Result<Self> {
        Self::load_with_progress(dir, options, |_, _| ())
    }

    /// [`Model::load`] that calls `progress` with the bytes read so far and in all.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn load_with_progress(
        dir: impl AsRef<Path>,
        options: &LoadOptions,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<Self> {
        Self::load_as(dir.as_ref(), options, None, &mut progress)
    }

    /// How much memory the model in a folder takes, loaded with these options, and whether that is
    /// there. The context is `max_context`, else 4096 tokens or the model's own where that is less;
    /// the estimate tells of others as well. Reads config.json and the headers, and no tensor.
    ///
    /// # Errors
    /// As [`Model::load`], but for memory.
    pub fn estimate_memory(dir: impl AsRef<Path>, options: &LoadOptions) -> Result<MemoryEstimate> {
        let (config, checkpoint, plan) = read_headers(dir.as_ref(), options)?;
        options.estimate(&config, &checkpoint, &plan, options.activation_dtype(&plan))
    }

    /// [`Model::estimate_memory`] for a GPU with so many bytes, whatever this machine has: for
    /// choosing a model that is to run elsewhere.
    ///
    /// # Errors
    /// As [`Model::estimate_memory`].
    pub fn estimate_memory_on_gpu(
        dir: impl AsRef<Path>,
        options: &LoadOptions,
        available: Option<u64>,
    ) -> Result<MemoryEstimate> {
        let (config, checkpoint, plan) = read_headers(dir.as_ref(), options)?;
        let options = options.memory_options(true, available);
        Ok(MemoryEstimate::new(&config, &checkpoint, &plan, plan.dtype, options))
    }

    /// Loads with activations of type `dtype`, or of the type that suits the device.
    fn load_as(
        dir: &Path,
        options: &LoadOptions,
        dtype: Option<safetensors::Dtype>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self> {
        let started = Instant::now();
        let config = read_config(dir, options)?;
        let generation = GenerationConfig::from_dir(dir)?;
        if let Some(generation) = &generation {
            generation.check_vocabulary(&dir.join("generation_config.json"), config.vocab_size)?;
        }
        let stop_ids = generation
            .map(|generation| generation.eos_token_id)
            .filter(|ids| !ids.is_empty())
            .unwrap_or_else(|| config.eos_token_id.clone());
        let checkpoint = Checkpoint::open(dir)?;
        let plan = plan(&config, &checkpoint)?;
        let device = options.device;
        let dtype = dtype.unwrap_or_else(|| options.activation_dtype(&plan));
        let memory = match options.memory {
            MemoryCheck::Off => None,
            _ => Some(options.estimate(&config, &checkpoint, &plan, dtype)?),
        };
        if let (MemoryCheck::Refuse, Some(memory)) = (options.memory, &memory) {
            memory.check()?;
        }
        options.limits.apply()?;
        let mut model = device.run(|| {
            let (dtype, on_gpu) = (mlx_dtype(dtype), device.is_gpu());
            // Now: the files may be others when a session is saved.
            let fingerprint = Fingerprint::new(&config, &checkpoint, dtype)?;
            let loader = Loader::new(checkpoint, dtype, on_gpu, options.fuse_gate_up, progress);
            Self::build(dir, config, stop_ids, &plan, fingerprint, device, loader)
        })?;
        model.kv = options.kv;
        model.max_context = options.max_context;
        model.memory = memory;
        model.load_time = started.elapsed();
        Ok(model)
    }

    fn build(
        dir: &Path,
        config: Arc<Config>,
        stop_ids: Vec<u32>,
        plan: &Plan,
        fingerprint: Fingerprint,
        device: Device,
        mut loader: Loader<'_>,
    ) -> Result<Self> {
        let dtype = fingerprint.dtype;
        let shape = AttentionShape::new(&config, device.is_gpu())?;
        let embed_tokens = loader.embedding(&plan.embed_tokens)?;
        let layers = plan
            .layers
            .iter()
            .zip(&config.layer_types)
            .map(|(layer, &layer_type)| {
                let attention = |loader: &mut Loader<'_>| -> Result<Attention> {
                    Ok(Attention {
                        shape,
                        layer_type,
                        qkv: loader.qkv(&layer.qkv)?,
                        sinks: loader.float(&layer.sinks, &[config.num_attention_heads])?,
                        o_proj: loader.linear(&layer.o_proj)?,
                    })
                };
                Self::layer(&config, layer, attention, &mut loader)
            })
            .collect::<Result<_>>()?;
        let norm = norm(&config, &plan.norm, &mut loader)?;
        let lm_head = plan.lm_head.as_ref().map(|head| loader.linear(head)).transpose()?;
        Ok(Self {
            rope: Rope::new(&config)?,
            moe: MoeShared::new(&config, dtype, device.is_gpu())?,
            embed_tokens,
            layers,
            norm,
            lm_head,
            dir: dir.into(),
            config,
            stop_ids,
            device,
            fingerprint,
            dtype,
            kv: KvPolicy::default(),
            max_context: None,
            memory: None,
            load_time: Duration::ZERO,
        })
    }

    fn layer(
        config: &Config,
        plan: &LayerPlan,
        attention: impl FnOnce(&mut Loader<'_>) -> Result<Attention>,
        loader: &mut Loader<'_>,
    ) -> Result<Layer> {
        Ok(Layer {
            input_layernorm: norm(config, &plan.input_layernorm, loader)?,
            self_attn: attention(loader)?,
            post_attention_layernorm: norm(config, &plan.post_attention_layernorm, loader)?,
            mlp: Moe {
                router: loader.linear(&plan.router)?,
                gate_up: loader.gate_up(&plan.gate_up)?,
                down_proj: loader.experts(&plan.down_proj)?,
            },
        })
    }

    /// The model's shape.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The folder that the model was loaded from.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Tokens that end an answer, from generation_config.json, else from config.json.
    pub fn stop_ids(&self) -> &[u32] {
        &self.stop_ids
    }

    /// Most tokens of a sequence: the model's own limit, or the `max_context` that it was loaded
    /// with.
    pub fn context_limit(&self) -> usize {
        self.max_context.unwrap_or(self.config.max_position_embeddings)
    }

    /// The memory estimated before loading; None when the check was off.
    pub fn memory_estimate(&self) -> Option<&MemoryEstimate> {
        self.memory.as_ref()
    }

    /// Where the model runs.
    pub fn device(&self) -> Device {
        self.device
    }

    /// How long loading took.
    pub fn load_time(&self) -> Duration {
        self.load_time
    }

    /// What tells this model from others.
    pub(crate) fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// An empty cache for one sequence, with the policy that the model was loaded with.
    pub fn new_cache(&self) -> Cache {
        Cache::new(&self.config, &self.kv)
    }

    /// How the model's caches keep keys and values.
    pub fn kv_policy(&self) -> &KvPolicy {
        &self.kv
    }

    /// An empty cache with another policy.
    ///
    /// # Errors
    /// [`Error::Argument`] when this model cannot honour the policy.
    pub fn new_cache_with(&self, policy: &KvPolicy) -> Result<Cache> {
        policy.validate(&self.config)?;
        Ok(Cache::new(&self.config, policy))
    }

    /// Bytes of a float of the activations, and so of keys and values that are not quantized.
    pub fn activation_bytes(&self) -> usize {
        match self.dtype {
            Dtype::Float32 => 4,
            _ => 2,
        }
    }

    /// Feeds the next tokens of a sequence to the model and returns the logits of each,
    /// f32 or the activations' type, [tokens, vocabulary]. Lazy: the host waits
    /// for nothing until the result is evaluated.
    ///
    /// # Errors
    /// [`Error::Argument`] for no tokens or an id outside the vocabulary,
    /// [`Error::ContextFull`] when the model's context ends, [`Error::Mlx`] when MLX fails.
    pub fn forward(&self, tokens: &[u32], cache: &mut Cache) -> Result<Array> {
        let tokens = self.checked(tokens)?;
        self.device.run(|| {
            let hidden = self.hidden(&tokens, cache)?;
            Ok(self.head(&hidden)?.squeeze_axes(&[0])?)
        })
    }

    /// Token ids as an array [1, length], each below the vocabulary's size: a lookup outside it
    /// would read foreign memory.
    pub(crate) fn checked(&self, tokens: &[u32]) -> Result<Array> {
        tokens.iter().try_for_each(|&id| {
            self.check_id(id).map_err(|reason| Error::argument("tokens", reason))
        })?;
        match i32::try_from(tokens.len()) {
            Ok(length) if length > 0 => Ok(Array::from_slice(tokens, &[1, length])),
            Ok(_) => Err(Error::argument("tokens", "there are none")),
            Err(_) => Err(Error::argument("tokens", "too many at once")),
        }
    }

    /// What is wrong with a token id, if anything.
    fn check_id(&self, id: u32) -> std::result::Result<(), String> {
        let vocab_size = self.config.vocab_size;
        match usize::try_from(id) {
            Ok(id) if id < vocab_size => Ok(()),
            _ => Err(format!("id {id} is outside the vocabulary of {vocab_size}")),
        }
    }

    /// Token ids u32 [1, length] → the last layer's output after its norm, [1, length, hidden].
    pub(crate) fn hidden(&self, tokens: &Array, cache: &mut Cache) -> Result<Array> {
        let limit = self.context_limit();
        let length = tokens.size();
        let total = cache.len().saturating_add(length);
        if total > limit {
            return Err(Error::ContextFull { tokens: total, limit });
        }
        let first = cache.undivided(length);
        if first == length {
            return self.step(tokens, cache);
        }
        let int =
            |n: usize| i32::try_from(n).map_err(|_| Error::ContextFull { tokens: total, limit });
        let (first, length) = (int(first)?, int(length)?);
        let before = self.step(&mlx::slice(tokens, &[0, 0], &[1, first])?, cache)?;
        let after = self.step(&mlx::slice(tokens, &[0, first], &[1, length])?, cache)?;
        Ok(ops::concatenate(&[before, after], 1)?)
    }

    /// [`Model::hidden`] of tokens that the cache takes at once.
    fn step(&self, tokens: &Array, cache: &mut Cache) -> Result<Array> {
        let limit = self.context_limit();
        let offset = i32::try_from(cache.len())
            .map_err(|_| Error::ContextFull { tokens: cache.len(), limit })?;
        cache.begin(&self.config, tokens.size())?;
        let mut masks = Masks::new(self.dtype);
        let mut x = self.embed_tokens.forward(tokens)?;
        for (layer, cache) in self.layers.iter().zip(&mut cache.layers) {
            x = layer.forward(&x, self, offset, &mut masks, cache)?;
        }
        cache.advance(tokens.size())?;
        self.norm.forward(&x)
    }

    /// [..., hidden] → [..., vocabulary].
    pub(crate) fn head(&self, hidden: &Array) -> Result<Array> {
        match &self.lm_head {
            Some(lm_head) => lm_head.forward(hidden),
            None => self.embed_tokens.as_head(hidden),
        }
    }
}

/// The model's shape, which the options have to fit.
fn read_config(dir: &Path, options: &LoadOptions) -> Result<Arc<Config>> {
    // Asked first: a wrong path should not be reported as a missing config.json.
    std::fs::read_dir(dir).map_err(Error::io("open the model folder", dir))?;
    let config = Config::from_dir(dir)?;
    options.validate(&config)?;
    Ok(Arc::new(config))
}

fn read_headers(dir: &Path, options: &LoadOptions) -> Result<(Arc<Config>, Checkpoint, Plan)> {
    let config = read_config(dir, options)?;
    let checkpoint = Checkpoint::open(dir)?;
    let plan = plan(&config, &checkpoint)?;
    Ok((config, checkpoint, plan))
}

fn norm(config: &Config, name: &str, loader: &mut Loader<'_>) -> Result<RmsNorm> {
    Ok(RmsNorm { weight: loader.float(name, &[config.hidden_size])?, eps: config.rms_norm_eps })
}

fn mlx_dtype(dtype: safetensors::Dtype) -> Dtype {
    match dtype {
        safetensors::Dtype::BF16 => Dtype::Bfloat16,
        safetensors::Dtype::F16 => Dtype::Float16,
        _ => Dtype::Float32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{KeysValues, SlidingCache};

    const DIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/gpt-oss-tiny");

    /// A constant of another type anywhere would turn the whole residual stream into that type,
    /// and decoding on a GPU would take several times as long.
    #[test]
    fn the_residual_stream_keeps_its_type_at_every_layer() {
        use safetensors::Dtype as FileDtype;
        for dtype in [FileDtype::F32, FileDtype::BF16, FileDtype::F16] {
            let model = Model::load_as(
                Path::new(DIR),
                &LoadOptions::default(),
                Some(dtype),
                &mut |_, _| (),
            )
            .unwrap();
            let dtype = mlx_dtype(dtype);
            // One token, a few, and enough for experts sorted by number and a mask.
            for length in [1u32, 9, 100] {
                let mut cache = model.new_cache();
                let mut masks = Masks::new(dtype);
                let ids = model.checked(&(0..length).collect::<Vec<_>>()).unwrap();
                let mut x = model.embed_tokens.forward(&ids).unwrap();
                for (layer, cache) in model.layers.iter().zip(&mut cache.layers) {
                    assert_eq!(x.dtype(), dtype);
                    x = layer.forward(&x, &model, 0, &mut masks, cache).unwrap();
                }
                assert_eq!(x.dtype(), dtype);
                let logits = model.head(&model.norm.forward(&x).unwrap()).unwrap();
                assert_eq!(logits.dtype(), dtype);
                assert!(cache.arrays().all(|array| array.dtype() == dtype));
            }
        }
    }

    #[test]
    fn a_cache_that_does_not_fit_is_refused() {
        let model = Model::load(DIR, &LoadOptions::default()).unwrap();
        let refused = |cache: &mut Cache| {
            matches!(model.forward(&[1], cache), Err(Error::Argument { name: "cache", .. }))
        };
        let mut other = model.new_cache();
        other.layers.pop();
        assert!(refused(&mut other));

        // A step that MLX refuses in the third layer, after the first two have taken it in.
        let mut cache = model.new_cache();
        model.forward(&[1], &mut cache).unwrap();
        cache.layers[2] = LayerCache::Sliding(SlidingCache::new(2, 32));
        let strange = Array::from_slice(&[0f32; 24], &[1, 3, 1, 8]);
        cache.layers[2].update(strange.clone(), strange).unwrap();
        assert!(matches!(model.forward(&[1], &mut cache), Err(Error::Mlx { .. })));
        assert!(refused(&mut cache));

        // It can neither be taken back nor copied, but begin anew.
        assert!(!cache.can_trim(1));
        assert_eq!(cache.reachable(1), 0);
        cache.snapshot().unwrap();
        assert_eq!(cache.rewind(1).unwrap(), 0);
        let again = model.forward(&[1], &mut cache).unwrap();
        let fresh = model.forward(&[1], &mut model.new_cache()).unwrap();
        again.eval().unwrap();
        fresh.eval().unwrap();
        assert_eq!(again.as_slice::<f32>(), fresh.as_slice::<f32>());
    }

    #[test]
    fn the_memory_of_sliding_layers_does_not_grow() {
        let model = Model::load(DIR, &LoadOptions::default()).unwrap();
        let mut cache = model.new_cache();
        let sliding = |cache: &Cache| -> usize {
            let layers = cache.layers.iter();
            let sliding = layers.filter(|layer| matches!(layer, LayerCache::Sliding(_)));
            sliding.flat_map(LayerCache::held).flat_map(KeysValues::arrays).map(Array::nbytes).sum()
        };
        model.forward(&[1], &mut cache).unwrap().eval().unwrap();
        let at_first = sliding(&cache);
        assert!(at_first > 0);
        for chunk in [1, 63, 64, 65, 300, 1, 1, 500] {
            model.forward(&vec![7; chunk], &mut cache).unwrap().eval().unwrap();
            assert_eq!(sliding(&cache), at_first, "after {} tokens", cache.len());
        }
    }
}
