//! How a model is loaded, checked against its shape.

use std::sync::Arc;

use crate::cache::KvPolicy;
use crate::checkpoint::Checkpoint;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::memory::{self, MemoryCheck, MemoryEstimate, MemoryLimits, available};
use crate::mlx::Device;
use crate::weights::plan::Plan;

/// How a model is loaded.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LoadOptions {
    /// Where the model runs.
    pub device: Device,
    /// Join gate and up projections that are stored apart, at the cost of a copy: decoding is
    /// faster. Without it they stay as they are, and on Metal in the mapped file.
    pub fuse_gate_up: bool,
    /// How caches keep keys and values; checked against the model's shape.
    pub kv: KvPolicy,
    /// Most tokens of a sequence, at most the model's own limit. It bounds [`Model::context_limit`](super::Model::context_limit)
    /// and is the context for which there has to be memory. None takes the model's limit, and looks
    /// for memory for 4096 tokens.
    pub max_context: Option<usize>,
    /// What to do when there is not memory enough.
    pub memory: MemoryCheck,
    /// Limits of MLX's allocator, set before anything is loaded, for the whole process.
    pub limits: MemoryLimits,
}

impl LoadOptions {
    /// Checks the options against the model's shape.
    pub(super) fn validate(&self, config: &Config) -> Result<()> {
        self.kv.validate(config)?;
        let limit = config.max_position_embeddings;
        match self.max_context {
            Some(0) => Err(Error::argument("max_context", "must be at least 1")),
            Some(tokens) if tokens > limit => {
                let reason = format!("{tokens} is more than the model's own {limit}");
                Err(Error::argument("max_context", reason))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn estimate(
        &self,
        config: &Arc<Config>,
        checkpoint: &Checkpoint,
        plan: &Plan,
        dtype: safetensors::Dtype,
    ) -> Result<MemoryEstimate> {
        let options = self.memory_options(self.device.is_gpu(), available(self.device)?);
        Ok(MemoryEstimate::new(config, checkpoint, plan, dtype, options))
    }

    pub(super) fn memory_options(&self, on_gpu: bool, available: Option<u64>) -> memory::Options {
        let Self { kv, max_context, fuse_gate_up, .. } = *self;
        memory::Options { kv, max_context, fuse_gate_up, on_gpu, available }
    }

    /// The type of the activations, which all floats are cast to. MLX's CPU kernels add up in it:
    /// f32 is both exact and fast there.
    pub(super) fn activation_dtype(&self, plan: &Plan) -> safetensors::Dtype {
        if self.device.is_gpu() { plan.dtype } else { safetensors::Dtype::F32 }
    }
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            device: Device::Auto,
            fuse_gate_up: true,
            kv: KvPolicy::default(),
            max_context: None,
            memory: MemoryCheck::default(),
            limits: MemoryLimits::default(),
        }
    }
}
