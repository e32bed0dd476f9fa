//! How probable the model found the tokens, whatever the sampler then did.

use mlx_rs::{Array, Dtype, ops};

use crate::error::{Error, Result};
use crate::mlx::slice;

/// The `top_n` most probable tokens by the model's own distribution, before any sampler: ids
/// (u32 `[n]`, the lower one first among equals) and natural logarithms of their probabilities
/// (f32 `[n]`). `logits` are those of one position, any float type, any shape. n is `top_n` or the
/// vocabulary's size, whichever is less. Lazy, like [`Sampler::sample`](super::Sampler::sample).
///
/// # Errors
/// [`Error::Argument`] when `top_n` is 0 or there are no logits, [`Error::Mlx`] when an operation
/// failed.
pub fn logprobs(logits: &Array, top_n: usize) -> Result<(Array, Array)> {
    if top_n == 0 {
        return Err(Error::argument("top_n", "0 log-probabilities were asked for"));
    }
    let n = i32::try_from(top_n.min(logits.size())).unwrap_or(i32::MAX);
    if n == 0 {
        return Err(Error::argument("logits", "there are none"));
    }
    let logits = logits.reshape(&[-1])?.as_dtype(Dtype::Float32)?;
    let order = ops::argsort_axis(logits.negative()?, 0)?;
    let ids = slice(&order, &[0], &[n])?;
    let logprobs = logits.take(&ids)?.subtract(logits.logsumexp(false)?)?;
    Ok((ids, logprobs))
}

/// The natural logarithm of the probability of `token`, u32 `[1]`, by the model's own distribution:
/// f32 `[1]`. Lazy.
///
/// # Errors
/// [`Error::Mlx`] when an operation failed.
pub(crate) fn logprob_of(logits: &Array, token: &Array) -> Result<Array> {
    let logits = logits.reshape(&[-1])?.as_dtype(Dtype::Float32)?;
    Ok(logits.take(token)?.subtract(logits.logsumexp(false)?)?)
}
