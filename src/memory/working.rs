//! The memory that computing takes besides weights and cache.
//!
//! MLX allocates an operation's result when it queues it, and frees its inputs when it has run.
//! Some dozens of operations are queued ahead, about as many as a layer has, so that what a layer
//! computes counts as alive all at once. What follows was derived from the model's code and MLX's,
//! and compared with measured peaks on the CPU (`tests/memory_measured.rs`); the terms for GPUs have
//! not been measured.

use crate::attention::{MIN_BLOCK, PACKED_QUERIES, WAIT_FROM_SCORES};
use crate::cache::{KvBytes, KvPolicy};
use crate::config::{Config, LayerType};
use crate::weights::plan::{LinearPlan, Plan};

/// Layers whose results are alive at once on a GPU, where whole command buffers are queued ahead.
const GPU_LAYERS_AHEAD: u64 = 2;
/// Score matrices for each query and key that an attention without a fused kernel makes: scores,
/// scores with the sink, and their rows copied together.
const SCORE_MATRICES: u64 = 3;
/// Blocks of a full layer whose scores are alive at once where the host does not wait for them.
const BLOCKS_AHEAD: u64 = 3;
/// Bytes for each number that MLX's CPU path makes while it unpacks: the codes apart, joined, and
/// as floats.
const CPU_UNPACKED_NUMBER: u64 = 12;
/// Rows from which packed weights are unpacked on the CPU, as in `weights/load.rs`.
const CPU_UNPACK_FROM: u64 = 32;
/// Arrays of f32 as long as the vocabulary: logits and what samplers make of them, two steps.
const VOCABULARY_ARRAYS: u64 = 16;
/// Prompt tokens from which the attention of a sliding layer has so many operations that its scores
/// are gone before the experts' results come.
const SCORES_APART_FROM: u64 = 256;
/// Masks, indices, tables, constants.
const SMALL_ARRAYS: u64 = 4 << 20;

/// What the working memory depends on besides context and chunk.
#[derive(Debug, Clone)]
pub(super) struct Working {
    on_gpu: bool,
    item_size: u64,
    heads: u64,
    /// Numbers of a key in all heads.
    kv_width: u64,
    vocab_size: u64,
    /// Numbers that a layer's attention makes of each token, scores apart, and its experts.
    attention: u64,
    experts: u64,
    /// Numbers of the largest packed weight that is unpacked as a whole.
    largest_packed: u64,
    /// Keys that a query's block sees in a sliding layer.
    sliding_keys: u64,
    full_layers: u64,
    /// Attention without score matrices.
    fused: bool,
}

impl Working {
    pub(super) fn new(config: &Config, plan: &Plan, on_gpu: bool, item_size: u64) -> Self {
        let [hidden, width, heads, kv_heads, head_dim] = [
            config.hidden_size,
            config.intermediate_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        ]
        .map(long);
        let [experts, top_k, window] =
            [config.num_local_experts, config.num_experts_per_tok, config.sliding_window].map(long);
        let queries = heads.saturating_mul(head_dim);
        let keys = kv_heads.saturating_mul(head_dim);
        // In the order of the model. Sizes are those of a validated config: no overflow.
        let attention = hidden // norm
            + 2 * (queries + 2 * keys) // projections, heads first
            + 3 * (queries + keys) // turned halves, joined
            + 4 * queries // scaled, outputs of blocks, joined, heads last
            + 2 * hidden; // projection, residual
        let experts_of_token = 2 * hidden // sorted rows and their source
            + 4 * width // gate and up, their biases
            + 3 * width // SwiGLU
            + 4 * hidden; // outputs, their biases, put back, weighted
        let moe = 3 * hidden + 4 * experts + top_k * experts_of_token;
        let numbers = |linear: &LinearPlan| match linear.quantization {
            Some(_) => long(linear.inputs).saturating_mul(long(linear.outputs)),
            None => 0,
        };
        let packed = plan.layers.iter().map(|layer| {
            let qkv: u64 = layer.qkv.parts().into_iter().map(numbers).sum();
            qkv.max(numbers(&layer.o_proj)).max(numbers(&layer.router))
        });
        let full = config.layer_types.iter().filter(|&&kind| kind == LayerType::FullAttention);
        Self {
            on_gpu,
            item_size,
            heads,
            kv_width: keys,
            vocab_size: long(config.vocab_size),
            attention,
            experts: moe,
            largest_packed: packed.max().unwrap_or(0),
            sliding_keys: window.max(count(MIN_BLOCK)).saturating_add(window),
            full_layers: long(full.count()),
            // What both Metal and cuDNN have a kernel for.
            fused: on_gpu && item_size == 2 && matches!(head_dim, 64 | 128),
        }
    }

    /// Bytes for a sequence of `context` tokens in chunks of `chunk`. Grows with the context.
    pub(super) fn bytes(
        &self,
        policy: &KvPolicy,
        cache: &KvBytes,
        context: usize,
        chunk: usize,
    ) -> u64 {
        let [min_block, packed_queries, wait_from] =
            [MIN_BLOCK, PACKED_QUERIES, WAIT_FROM_SCORES].map(count);
        let (rows, chunk, context) = (long(chunk.min(context)), long(chunk), long(context));
        let Self { on_gpu, item_size, heads, kv_width, vocab_size, .. } = *self;
        let layers = if on_gpu { GPU_LAYERS_AHEAD } else { 1 };
        let attention = product([rows, self.attention, item_size, layers]);
        let experts = product([rows, self.experts, item_size, layers]);

        // Scores in the activations' type and a mask in bytes. On the CPU large blocks of a full layer
        // are computed one after another; small ones are queued ahead, and those of a sliding layer
        // run side by side.
        let scores = |queries: u64, keys: u64| match self.fused {
            true => 0,
            false => product([queries, keys, heads * item_size * SCORE_MATRICES + 1]),
        };
        let full = match (self.full_layers, on_gpu) {
            (0, _) => 0,
            (_, true) => scores(rows, context),
            (_, false) => {
                let waits_from = wait_from / heads.saturating_mul(min_block).max(1);
                let ahead = rows.min(BLOCKS_AHEAD * min_block);
                scores(rows.min(min_block), context).max(scores(ahead, context.min(waits_from)))
            }
        };
        let sliding = scores(rows, context.min(self.sliding_keys));
        let scores = full.max(sliding);
        let scores_or_experts = match chunk >= SCORES_APART_FROM {
            true => scores.max(experts),
            false => scores.saturating_add(experts),
        };
        let weights = match !on_gpu && rows >= CPU_UNPACK_FROM {
            true => self.largest_packed.saturating_mul(CPU_UNPACKED_NUMBER),
            false => 0,
        };
        let packed = policy.is_quantized() && context > long(policy.quantize_from);
        let unpacked_cache = match packed && rows > packed_queries {
            true => {
                let number = if on_gpu { item_size } else { CPU_UNPACKED_NUMBER };
                product([2, kv_width, context, number])
            }
            false => 0,
        };
        // Scores of a few queries, also as f32, and their mask.
        let packed_scores = match packed {
            true => {
                let queries = rows.min(packed_queries);
                product([queries, context, heads * (3 * item_size + 4) + 16])
            }
            false => 0,
        };
        // While it grows, a layer's cache is there twice, and a packed one is copied to be read.
        let moved = cache.full.checked_div(self.full_layers).unwrap_or(0).saturating_mul(2);
        let logits = product([vocab_size, 4, VOCABULARY_ARRAYS]);
        let cache_reads = unpacked_cache.max(packed_scores);
        [attention, scores_or_experts, weights, cache_reads, moved, logits]
            .into_iter()
            .fold(SMALL_ARRAYS, u64::saturating_add)
    }
}

fn product<const N: usize>(factors: [u64; N]) -> u64 {
    factors.into_iter().fold(1, u64::saturating_mul)
}

/// A number of rows or scores, which is never negative.
fn count(n: i32) -> u64 {
    u64::from(n.unsigned_abs())
}

fn long(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}
