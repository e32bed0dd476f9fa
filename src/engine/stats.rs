//! How an engine is doing.

use crate::session::PrefixStats;

/// How an engine is doing. Counts are since its start.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct EngineStats {
    /// Requests that wait for their turn.
    pub waiting: usize,
    /// Requests that are computed.
    pub running: usize,
    /// Those of them whose prompts are not through yet.
    pub prefilling: usize,
    /// Those of them that pause for their readers.
    pub paused: usize,
    /// Requests that ended: the model stopped.
    pub stopped: u64,
    /// Requests that ended: as many tokens as asked for.
    pub at_length: u64,
    /// Requests that were cancelled, or whose readers went away.
    pub cancelled: u64,
    /// Requests that were not done in time.
    pub timed_out: u64,
    /// Requests that failed, refused ones included.
    pub failed: u64,
    /// Tokens of the prompts that were taken up.
    pub prompt_tokens: u64,
    /// Those of them that a kept prefix held.
    pub cached_tokens: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Decoding steps; the tokens beyond are what batching saved.
    pub steps: u64,
    /// Bytes set aside for the caches of running requests.
    pub reserved_bytes: u64,
    /// The caches kept after their requests.
    pub prefixes: PrefixStats,
    /// Bytes that MLX holds in arrays, in this process.
    pub active_memory: u64,
}
