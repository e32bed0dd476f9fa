//! A conversation's tokens together with their cache, so that the next prompt is computed only from
//! where it differs.

mod decoder;
mod file;
mod store;

pub use decoder::Decoder;
pub use store::{PrefixStats, PrefixStore};

use std::time::Duration;

use mlx_rs::{Array, transforms};

use crate::cache::{Cache, KvPolicy};
use crate::error::{Error, Result};
use crate::fingerprint::Fingerprint;
use crate::mlx::Device;
use crate::model::Model;

/// The tokens of a conversation and their cache.
///
/// Given the next prompt, whole, [`Model::generate_in`] keeps the longest common prefix, goes back
/// to it and computes the rest; what a chat template has rewritten since (Harmony drops earlier
/// analysis) is computed anew. A clone is a branch: neither sees what the other adds.
#[derive(Debug, Clone)]
pub struct Session {
    /// The tokens in the cache, apart from `last`.
    ids: Vec<u32>,
    /// The last token fed, which the host may not have read yet.
    last: Option<Array>,
    cache: Cache,
    /// Positions of the coming prompt at which to keep a snapshot.
    branch_points: Vec<usize>,
    /// Tokens of the last prompt.
    prompt_len: usize,
    /// The model whose cache it is.
    model: Fingerprint,
    prefill_time: Duration,
    device: Device,
}

impl Session {
    /// An empty session for a model, with the policy that the model was loaded with.
    pub fn new(model: &Model) -> Self {
        Self::of(model, model.new_cache(), Vec::new())
    }

    /// An empty session with another policy.
    ///
    /// # Errors
    /// [`Error::Argument`] when this model cannot honour the policy.
    pub fn with_policy(model: &Model, policy: &KvPolicy) -> Result<Self> {
        Ok(Self::of(model, model.new_cache_with(policy)?, Vec::new()))
    }

    /// A session of tokens that are in the cache.
    fn of(model: &Model, cache: Cache, ids: Vec<u32>) -> Self {
        Self {
            last: None,
            cache,
            branch_points: Vec::new(),
            prompt_len: ids.len(),
            model: model.fingerprint(),
            prefill_time: Duration::ZERO,
            device: model.device(),
            ids,
        }
    }

    /// The tokens held.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// The cache.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// How long it took to compute what the cache holds, as far as [`Session::set_prefill_time`]
    /// was told: what a saved session saves.
    pub fn prefill_time(&self) -> Duration {
        self.prefill_time
    }

    /// Notes how long it took to compute what the cache holds, for [`Session::save`].
    pub fn set_prefill_time(&mut self, time: Duration) {
        self.prefill_time = time;
    }

    /// Positions of the next prompt from which other prompts may branch off, such as the end of the
    /// instructions that many conversations share. A snapshot is kept there, so that going back is
    /// exact and costs nothing. The end of each prompt is always such a point.
    pub fn set_branch_points(&mut self, positions: impl IntoIterator<Item = usize>) {
        self.branch_points = positions.into_iter().collect();
    }

    /// How many tokens of `prompt` [`Session::reuse`] would keep: at most all but the last, whose
    /// logits have to be computed.
    pub fn reusable(&self, prompt: &[u32]) -> usize {
        let common = self.ids.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        self.cache.reachable(common.min(prompt.len().saturating_sub(1)))
    }

    /// Goes back to where `prompt` begins to differ, or to the nearest position before it that the
    /// cache can go back to. Returns the number of tokens kept; the rest of `prompt` is to be fed.
    ///
    /// # Errors
    /// [`Error::Mlx`] when MLX fails; the session is then empty.
    pub fn reuse(&mut self, prompt: &[u32]) -> Result<usize> {
        self.settle();
        self.prompt_len = prompt.len();
        let device = self.device;
        let wanted = self.reusable(prompt);
        let reached = device.run(|| {
            let reached = self.cache.rewind(wanted)?;
            // Further prompts may branch off here, where this one ends, and where it says.
            self.cache.snapshot()?;
            let points = std::mem::take(&mut self.branch_points);
            self.cache.mark(points.into_iter().chain([prompt.len()]));
            // Waited for here: a clone may go to another thread, and no two may wait for the same.
            transforms::eval(self.cache.arrays())?;
            Ok(reached)
        });
        match reached {
            Ok(reached) => self.ids.truncate(reached),
            Err(_) => self.clear(),
        }
        reached
    }

    /// Bytes of the cache and the tokens.
    pub fn nbytes(&self) -> usize {
        self.cache.nbytes().saturating_add(size_of_val(self.ids.as_slice()))
    }

    /// True when it can be used with this model, and keeps keys and values as the model's own
    /// sessions do.
    fn is_of(&self, model: &Model) -> bool {
        self.model == model.fingerprint() && self.cache.policy() == model.kv_policy()
    }

    /// True when it begins with `ids` and can go back to where they end.
    fn covers(&self, ids: &[u32]) -> bool {
        self.ids.starts_with(ids) && self.cache.reachable(ids.len()) == ids.len()
    }

    /// The tokens of the last prompt; those behind them were generated.
    fn prompt(&self) -> &[u32] {
        self.ids.get(..self.prompt_len).unwrap_or(&self.ids)
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.ids.clear();
        self.last = None;
        self.prefill_time = Duration::ZERO;
        self.cache.clear();
    }

    /// Waits for what is being computed, and reads the last token. What failed is forgotten: the
    /// next prompt is then computed from its beginning.
    fn settle(&mut self) {
        // Either way, what is left can be gone on with.
        self.settled().ok();
    }

    /// [`Session::settle`] that says what failed.
    fn settled(&mut self) -> Result<()> {
        let device = self.device;
        let settled = device.run(|| {
            self.read_last()?;
            transforms::eval(self.cache.arrays())?;
            match self.ids.len() == self.cache.len() && self.cache.can_trim(self.cache.len()) {
                true => Ok(()),
                false => Err(Error::argument("session", "a step failed")),
            }
        });
        if settled.is_err() {
            self.clear();
        }
        settled
    }

    /// Moves the last token, once computed, to the others.
    fn read_last(&mut self) -> Result<()> {
        let Some(last) = self.last.take() else { return Ok(()) };
        last.eval()?;
        let read = last.try_as_slice::<u32>();
        let read = read.map_err(|e| Error::Mlx { op: "token", message: e.to_string() })?;
        self.ids.extend_from_slice(read);
        Ok(())
    }
}
