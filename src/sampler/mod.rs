//! From logits to a token, on the device.
//!
//! Everything here builds MLX operations and reads nothing back, so that the next step of decoding
//! can be queued with a token that the host has not seen yet. The order is that of mlx-lm, whose
//! output is this project's reference:
//!
//! 1. logit bias: added to the logits;
//! 2. repetition, presence and frequency penalties, in this order;
//! 3. top-p, then min-p, then XTC, then top-k, each on the distribution at temperature 1 and on
//!    what the one before has left;
//! 4. temperature;
//! 5. one draw.
//!
//! At temperature 0 the steps from 3 on are one argmax. Where mlx-lm leaves a choice between equal
//! logits to chance, the lower token id counts as the more probable one: top-k leaves k tokens and
//! not more, and `top_k: 1` is the argmax.

mod filters;
mod logprobs;
mod options;
mod penalties;
mod random;

use mlx_rs::error::ConversionError;
use mlx_rs::ops::indexing;
use mlx_rs::{Array, Dtype, ops};

use crate::error::{Error, Result};
use filters::Candidates;
pub(crate) use logprobs::logprob_of;
pub use logprobs::logprobs;
pub use options::Sampling;
use penalties::Penalties;

/// Chooses the tokens of one request.
///
/// Keeps what the penalties need to know of the tokens so far, and counts its steps: the random
/// numbers follow from the seed and the step alone.
#[derive(Debug)]
pub struct Sampler {
    sampling: Sampling,
    /// Logits in a row; also their number as MLX counts.
    vocab_size: usize,
    width: i32,
    /// f32 `[vocab]`
    bias: Option<Array>,
    /// bool `[vocab]`: tokens that XTC may remove.
    removable: Option<Array>,
    penalties: Option<Penalties>,
    step: u64,
}

/// A token that was chosen, not necessarily computed yet.
#[derive(Debug, Clone)]
pub struct Sampled {
    /// u32 `[1]`; always a valid id, also when `max_logit` says that it means nothing.
    pub token: Array,
    /// f32 scalar: the greatest logit after biases and penalties. Not finite when there was
    /// nothing to choose; see [`Sampled::read`].
    pub max_logit: Array,
}

impl Sampled {
    /// The token's id, once it is computed. `position` is where it will stand in the sequence, for
    /// the error.
    ///
    /// # Errors
    /// [`Error::NotFinite`] when a logit was NaN or infinite, [`Error::AllBanned`] when biases
    /// ruled every token out, [`Error::Mlx`] when the computation failed.
    pub fn read(&self, position: usize) -> Result<u32> {
        mlx_rs::transforms::eval([&self.token, &self.max_logit])?;
        let max_logit: f32 = self.max_logit.try_item_exact().map_err(unreadable)?;
        if max_logit == f32::NEG_INFINITY {
            return Err(Error::AllBanned { position });
        }
        if !max_logit.is_finite() {
            return Err(Error::NotFinite { position });
        }
        self.token.try_item_exact().map_err(unreadable)
    }
}

impl Sampler {
    /// A sampler for logits of `vocab_size` tokens. `stop_ids` are the tokens that XTC never
    /// removes, so that an answer can still end.
    ///
    /// # Errors
    /// [`Error::Argument`] when an option is out of range (see [`Sampling::validate`]) or a token
    /// id is not below `vocab_size`.
    pub fn new(sampling: &Sampling, vocab_size: usize, stop_ids: &[u32]) -> Result<Self> {
        sampling.validate()?;
        let width = i32::try_from(vocab_size).ok().filter(|&width| width > 0).ok_or_else(|| {
            Error::argument("vocab_size", format!("{vocab_size} tokens cannot be sampled from"))
        })?;
        let mut bias = None;
        if !sampling.logit_bias.is_empty() {
            let mut values = vec![0f32; vocab_size];
            for (&id, &value) in &sampling.logit_bias {
                *slot(&mut values, id, "logit_bias")? = value;
            }
            bias = Some(Array::from_slice(&values, &[width]));
        }
        let mut removable = vec![true; vocab_size];
        for &id in stop_ids {
            *slot(&mut removable, id, "stop_ids")? = false;
        }
        let removable = (sampling.xtc_probability > 0.0 && !stop_ids.is_empty())
            .then(|| Array::from_slice(&removable, &[width]));
        let penalties = Penalties::new(sampling, vocab_size, width)?;
        let sampling = sampling.clone();
        Ok(Self { sampling, vocab_size, width, bias, removable, penalties, step: 0 })
    }

    /// Tells the penalties which tokens come before the first one that is sampled.
    ///
    /// # Errors
    /// [`Error::Argument`] when an id is not below the vocabulary's size.
    pub fn observe_prompt(&mut self, ids: &[u32]) -> Result<()> {
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.vocab_size) {
            return Err(out_of_vocabulary("ids", *id, self.vocab_size));
        }
        match &mut self.penalties {
            Some(penalties) => penalties.observe(ids),
            None => Ok(()),
        }
    }

    /// Chooses the next token from the logits of one position: any float type, `[vocab]` or with
    /// leading dimensions of 1.
    ///
    /// # Errors
    /// [`Error::Argument`] when the logits have another size, [`Error::Mlx`] when an operation
    /// failed. What is wrong with the numbers shows in [`Sampled::read`].
    pub fn sample(&mut self, logits: &Array) -> Result<Sampled> {
        self.sample_allowed(logits, None)
    }

    /// [`sample`](Self::sample) from the tokens that `allowed`, bool `[vocab]`, has true: for all
    /// that follows, the others have a logit of -∞.
    ///
    /// # Errors
    /// As [`sample`](Self::sample).
    pub fn sample_allowed(&mut self, logits: &Array, allowed: Option<&Array>) -> Result<Sampled> {
        let logits = self.process(logits, allowed)?;
        let max_logit = logits.max(false)?;
        let token = if self.sampling.is_greedy() {
            indexing::argmax_axis(&logits, 0, true)?
        } else {
            self.draw(logits, &max_logit)?
        };
        if let Some(penalties) = &mut self.penalties {
            penalties.push(&token)?;
        }
        self.step = self.step.wrapping_add(1);
        Ok(Sampled { token, max_logit })
    }

    /// The tokens from which the next [`sample`](Self::sample) of these logits draws when the
    /// temperature is above 0, and in which proportions: ids (u32 `[n]`) and logits (f32 `[n]`),
    /// divided by the temperature, with -∞ for the tokens that are ruled out. In any order.
    ///
    /// # Errors
    /// As [`sample`](Self::sample); also [`Error::Argument`] at temperature 0.
    pub fn candidates(&self, logits: &Array) -> Result<(Array, Array)> {
        if self.sampling.temperature == 0.0 {
            return Err(Error::argument("temperature", "at 0 there is nothing to draw from"));
        }
        let logits = self.process(logits, None)?;
        let max_logit = logits.max(false)?;
        let Candidates { ids, logits } = self.filter(logits, &max_logit)?;
        let ids = match ids {
            Some(ids) => ids,
            None => Array::from_iter(0..self.width, &[self.width]).as_dtype(Dtype::Uint32)?,
        };
        Ok((ids, logits))
    }

    /// Biases and penalties: any float `[.., vocab]` → f32 `[vocab]`.
    fn process(&self, logits: &Array, allowed: Option<&Array>) -> Result<Array> {
        if logits.size() != self.vocab_size {
            let reason = format!("{:?} is not one row of {}", logits.shape(), self.vocab_size);
            return Err(Error::argument("logits", reason));
        }
        let mut logits = logits.reshape(&[self.width])?.as_dtype(Dtype::Float32)?;
        if let Some(allowed) = allowed {
            logits = ops::select(allowed, &logits, Array::from_f32(f32::NEG_INFINITY))?;
        }
        if let Some(bias) = &self.bias {
            logits = logits.add(bias)?;
        }
        match &self.penalties {
            Some(penalties) => penalties.apply(logits),
            None => Ok(logits),
        }
    }

    /// Filters and temperature.
    fn filter(&self, logits: Array, max_logit: &Array) -> Result<Candidates> {
        let Sampling { top_k, min_tokens_to_keep, .. } = self.sampling;
        let mut candidates = if self.sampling.needs_order(self.vocab_size) {
            Candidates::ranked(&logits)?
        } else {
            Candidates::all(logits)
        };
        if self.sampling.top_p < 1.0 {
            candidates.top_p(self.sampling.top_p)?;
        }
        if self.sampling.min_p > 0.0 {
            candidates.min_p(self.sampling.min_p, max_logit, min_tokens_to_keep)?;
        }
        let xtc = random::coin(self.sampling.seed, self.step, self.sampling.xtc_probability);
        if xtc {
            candidates.xtc(self.sampling.xtc_threshold, self.removable.as_ref())?;
        }
        if (1..self.vocab_size).contains(&top_k) {
            candidates.top_k(top_k)?;
        }
        // The others leave the most probable token; XTC may have removed it.
        if xtc {
            let max_logit = candidates.logits.max(false)?;
            candidates.scale(&max_logit, self.sampling.temperature)?;
        } else {
            candidates.scale(max_logit, self.sampling.temperature)?;
        }
        Ok(candidates)
    }

    /// One draw from the filtered distribution, u32 `[1]`. The greatest of the logits with Gumbel
    /// noise added is distributed like a draw from their softmax.
    fn draw(&self, logits: Array, max_logit: &Array) -> Result<Array> {
        let Candidates { ids, logits } = self.filter(logits, max_logit)?;
        let noise = random::gumbel(self.sampling.seed, self.step, self.width)?;
        let place = indexing::argmax_axis(logits.add(noise)?, 0, true)?;
        match ids {
            Some(ids) => Ok(ids.take(place)?),
            None => Ok(place),
        }
    }
}

fn unreadable(error: ConversionError) -> Error {
    Error::Mlx { op: "item", message: error.to_string() }
}

/// The entry of a token in a table of the vocabulary.
fn slot<'a, T>(table: &'a mut [T], id: u32, argument: &'static str) -> Result<&'a mut T> {
    let size = table.len();
    table.get_mut(id as usize).ok_or_else(|| out_of_vocabulary(argument, id, size))
}

fn out_of_vocabulary(argument: &'static str, id: u32, vocab_size: usize) -> Error {
    Error::argument(argument, format!("token {id} is not in the vocabulary of {vocab_size}"))
}
