//! Whether a model fits, before it is loaded: estimated from config.json and the files' headers,
//! compared with what the machine has.

mod available;
mod limits;
mod weights;
mod working;

use std::fmt;
use std::sync::Arc;

use safetensors::Dtype as FileDtype;
use serde::Serialize;

use crate::cache::{KvBytes, KvPolicy};
use crate::checkpoint::Checkpoint;
use crate::config::Config;
use crate::error::{Error, Result, readable};
use crate::weights::plan::Plan;
use weights::weight_bytes;
use working::Working;

pub(crate) use available::available;
pub use limits::MemoryLimits;

/// Context that has to fit when none is named: a conversation. The model's own 131,072 tokens are
/// more than most programs use, and a model should not be refused for them.
const USUAL_CONTEXT: usize = 4096;
/// Prompt tokens fed at once where nothing else is said, as in `GenerateOptions`.
const USUAL_CHUNK: usize = 512;
/// Contexts are told apart in steps of so many tokens.
const STEP: usize = 256;
/// The contexts of [`MemoryEstimate::table`].
const TABLE: [usize; 4] = [4 << 10, 8 << 10, 32 << 10, 128 << 10];

/// What to do when a model does not fit into memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum MemoryCheck {
    /// Refuse to load it. Where a GPU's memory ends, MLX may end the whole process.
    #[default]
    Refuse,
    /// Load it all the same; [`crate::Model::memory_estimate`] tells.
    Report,
    /// Do not look.
    Off,
}

/// How much memory a model takes, and how much there is.
///
/// The parts are bytes that MLX allocates. Not in them: what the program itself needs, the mapped
/// files while they are read, and what MLX keeps for reuse, which it gives back when memory is
/// short.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct MemoryEstimate {
    /// The weights once loaded.
    pub weights: u64,
    /// The most while they are loaded.
    pub load_peak: u64,
    /// The cache of one sequence as long as the context; where the policy quantizes later on, with
    /// what it takes before.
    pub cache: KvBytes,
    /// What prefill and decoding take besides.
    pub working: u64,
    /// Tokens of the sequence.
    pub context: usize,
    /// Prompt tokens fed at once.
    pub prefill_chunk: usize,
    /// What the machine had for a model when it was asked; None where it does not say.
    pub available: Option<u64>,
    sizes: Sizes,
}

/// What else says how much memory a model takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    pub(crate) kv: KvPolicy,
    pub(crate) max_context: Option<usize>,
    pub(crate) fuse_gate_up: bool,
    pub(crate) on_gpu: bool,
    pub(crate) available: Option<u64>,
}

/// What an estimate for another context needs.
#[derive(Clone)]
struct Sizes {
    config: Arc<Config>,
    policy: KvPolicy,
    /// Bytes of a float of the activations.
    item_size: usize,
    /// Most tokens of a sequence.
    limit: usize,
    working: Working,
}

/// One line of a table, for people or for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct MemoryRow {
    /// Tokens.
    pub context: usize,
    /// Bytes of the weights.
    pub weights: u64,
    /// Bytes of the cache.
    pub cache: u64,
    /// Bytes of working memory.
    pub working: u64,
    /// The most at once, while loading or later.
    pub total: u64,
    /// Whether that fits; None where the machine does not say what it has.
    pub fits: Option<bool>,
}

impl MemoryEstimate {
    /// From files that are open already: their headers are enough. `dtype` is the activations'
    /// type, `max_context` the longest sequence where it is not the model's own.
    pub(crate) fn new(
        config: &Arc<Config>,
        checkpoint: &Checkpoint,
        plan: &Plan,
        dtype: FileDtype,
        options: Options,
    ) -> Self {
        let Options { kv, max_context, fuse_gate_up, on_gpu, available } = options;
        let item_size = if dtype == FileDtype::F32 { 4 } else { 2 };
        let weights = weight_bytes(plan, checkpoint, dtype, long(item_size), fuse_gate_up);
        let limit = max_context.unwrap_or(config.max_position_embeddings);
        let sizes = Sizes {
            policy: kv,
            item_size,
            limit,
            working: Working::new(config, plan, on_gpu, long(item_size)),
            config: Arc::clone(config),
        };
        let empty = Self {
            weights: weights.loaded,
            load_peak: weights.peak,
            cache: KvBytes::default(),
            working: 0,
            context: 0,
            prefill_chunk: USUAL_CHUNK,
            available,
            sizes,
        };
        empty.at(max_context.unwrap_or(USUAL_CONTEXT).min(limit))
    }

    /// The estimate for another context. Any length may be asked for, also one that the model does
    /// not have.
    pub fn at(&self, context: usize) -> Self {
        let (cache, working) = self.parts(context);
        Self { cache, working, context, ..self.clone() }
    }

    /// The estimate for prompts fed in other chunks.
    pub fn with_prefill_chunk(&self, prefill_chunk: usize) -> Self {
        Self { prefill_chunk, ..self.clone() }.at(self.context)
    }

    /// The estimate as if the machine had this much memory.
    pub fn with_available(&self, available: Option<u64>) -> Self {
        Self { available, ..self.clone() }
    }

    /// Cache and working memory with a context.
    fn parts(&self, context: usize) -> (KvBytes, u64) {
        let Sizes { config, policy, item_size, working, .. } = &self.sizes;
        let at = |tokens| policy.bytes(config, tokens, *item_size);
        let mut cache = at(context);
        if policy.is_quantized() {
            // Before they are quantized, fewer tokens may take more.
            let before = at(context.min(policy.quantize_from));
            cache.full = cache.full.max(before.full);
        }
        // A snapshot more than the budget allows is there before another goes.
        let snapshot = policy.one_snapshot(config, context, *item_size);
        let computing = working.bytes(policy, &cache, context, self.prefill_chunk);
        (cache, computing.saturating_add(snapshot))
    }

    /// The most at once, while loading or later.
    pub fn total(&self) -> u64 {
        let running = self.weights.saturating_add(self.cache.total()).saturating_add(self.working);
        running.max(self.load_peak)
    }

    /// Whether there is memory for it; true where nothing says how much there is.
    pub fn fits(&self) -> bool {
        self.available.is_none_or(|available| self.total() <= available)
    }

    /// The longest context that fits, in steps of 256 tokens up to `max_context` or the model's
    /// own; 0 when not even the shortest does.
    pub fn largest_context(&self) -> usize {
        let limit = self.sizes.limit;
        if self.at(limit).fits() {
            return limit;
        }
        let (mut fits, mut too_long) = (0, limit.div_ceil(STEP));
        while too_long - fits > 1 {
            let middle = fits + (too_long - fits) / 2;
            match self.at(middle.saturating_mul(STEP)).fits() {
                true => fits = middle,
                false => too_long = middle,
            }
        }
        fits.saturating_mul(STEP)
    }

    /// Estimates at 4K, 8K, 32K and 128K tokens, as far as the model and `max_context` go, or at
    /// that limit where it is shorter.
    pub fn table(&self) -> Vec<MemoryRow> {
        let limit = self.sizes.limit;
        let mut contexts: Vec<usize> = TABLE.into_iter().filter(|&n| n <= limit).collect();
        let longest = TABLE.into_iter().max().unwrap_or(0);
        if limit < longest && !contexts.contains(&limit) {
            contexts.push(limit);
        }
        contexts.into_iter().map(|context| self.at(context).row()).collect()
    }

    /// This estimate as a line of a table.
    pub fn row(&self) -> MemoryRow {
        MemoryRow {
            context: self.context,
            weights: self.weights,
            cache: self.cache.total(),
            working: self.working,
            total: self.total(),
            fits: self.available.map(|_| self.fits()),
        }
    }

    /// # Errors
    /// [`Error::OutOfMemory`] when it does not fit.
    pub(crate) fn check(&self) -> Result<()> {
        match self.available {
            Some(available) if !self.fits() => Err(Error::OutOfMemory {
                needed: self.total(),
                available,
                context: self.context,
                largest_context: self.largest_context(),
            }),
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sizes").field("limit", &self.limit).finish_non_exhaustive()
    }
}

impl fmt::Display for MemoryEstimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} for {} tokens: weights {}, cache {}, working memory {}",
            readable(self.total()),
            self.context,
            readable(self.weights),
            readable(self.cache.total()),
            readable(self.working)
        )?;
        match self.available {
            Some(available) => write!(f, "; {} available", readable(available)),
            None => Ok(()),
        }
    }
}

fn long(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}
