//! Penalties on tokens that were seen. How often is counted on the device, since the host does not
//! know the last token yet when the next one is chosen.

use std::collections::VecDeque;

use mlx_rs::ops::indexing::scatter_add_single;
use mlx_rs::{Array, Dtype, ops};

use super::Sampling;
use crate::error::Result;

/// The counts over the last tokens, and what they cost.
#[derive(Debug)]
pub(super) struct Penalties {
    repetition: f32,
    presence: f32,
    frequency: f32,
    /// Last tokens that count; 0 for all.
    context: usize,
    /// The tokens counted, oldest first; empty when all count, as none is ever taken back.
    recent: VecDeque<Token>,
    /// f32 `[vocab]`: how often each token is among the last ones. Whole numbers, exact up to 2^24.
    counts: Array,
}

/// One of the last tokens.
#[derive(Debug)]
enum Token {
    /// Of the prompt.
    Known(u32),
    /// Sampled, u32 `[1]`.
    OnDevice(Array),
}

impl Penalties {
    /// `None` when no penalty is on. `width` is `vocab_size` as MLX counts.
    pub(super) fn new(sampling: &Sampling, vocab_size: usize, width: i32) -> Result<Option<Self>> {
        Ok(sampling.penalizes().then(|| Self {
            repetition: sampling.repetition_penalty,
            presence: sampling.presence_penalty,
            frequency: sampling.frequency_penalty,
            context: sampling.penalty_context,
            recent: VecDeque::new(),
            counts: Array::from_slice(&vec![0f32; vocab_size], &[width]),
        }))
    }

    /// Counts tokens that the host knows, all below the vocabulary's size.
    pub(super) fn observe(&mut self, ids: &[u32]) -> Result<()> {
        let mut change = vec![0f32; self.counts.size()];
        let mut count = |id: u32, by: f32| {
            if let Some(entry) = change.get_mut(id as usize) {
                *entry += by;
            }
        };
        let mut sampled = Vec::new();
        for &id in ids {
            count(id, 1.0);
            match self.shift(Token::Known(id)) {
                Some(Token::Known(old)) => count(old, -1.0),
                Some(Token::OnDevice(old)) => sampled.push(old),
                None => {}
            }
        }
        self.counts = self.counts.add(Array::from_slice(&change, self.counts.shape()))?;
        sampled.iter().try_for_each(|token| self.count(token, -1.0))
    }

    /// Counts a token that was just sampled, u32 `[1]`.
    pub(super) fn push(&mut self, token: &Array) -> Result<()> {
        self.count(token, 1.0)?;
        match self.shift(Token::OnDevice(token.clone())) {
            Some(Token::Known(old)) => self.count(&Array::from_slice(&[old], &[1]), -1.0),
            Some(Token::OnDevice(old)) => self.count(&old, -1.0),
            None => Ok(()),
        }
    }

    /// Takes a token in, and gives the one that falls out of the context.
    fn shift(&mut self, token: Token) -> Option<Token> {
        if self.context == 0 {
            return None;
        }
        self.recent.push_back(token);
        if self.recent.len() > self.context { self.recent.pop_front() } else { None }
    }

    fn count(&mut self, token: &Array, by: f32) -> Result<()> {
        let by = Array::from_slice(&[by], &[1, 1]);
        self.counts = scatter_add_single(&self.counts, token, by, 0)?;
        Ok(())
    }

    /// `logits`, f32 `[vocab]`, after the penalties.
    pub(super) fn apply(&self, mut logits: Array) -> Result<Array> {
        let seen = self.counts.gt(Array::from_f32(0.0))?;
        if self.repetition != 1.0 {
            let factor = Array::from_f32(self.repetition);
            let positive = logits.gt(Array::from_f32(0.0))?;
            let less = ops::select(positive, logits.divide(&factor)?, logits.multiply(&factor)?)?;
            logits = ops::select(&seen, less, logits)?;
        }
        if self.presence != 0.0 {
            let cost = seen.as_dtype(Dtype::Float32)?.multiply(Array::from_f32(self.presence))?;
            logits = logits.subtract(cost)?;
        }
        if self.frequency != 0.0 {
            logits = logits.subtract(self.counts.multiply(Array::from_f32(self.frequency))?)?;
        }
        Ok(logits)
    }
}
