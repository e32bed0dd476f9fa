//! A grammar as one generation follows it.

use std::fmt;

use llguidance::api::StopReason;
use llguidance::{Matcher, TokenParser};

use super::compile::clean;
use crate::error::{Error, Result};
use crate::generate::TokenGuide;

/// Where a turn is in its grammar.
pub struct Guide {
    matcher: Matcher,
    /// Tokens taken.
    taken: usize,
}

impl Guide {
    pub(super) fn new(parser: TokenParser) -> Self {
        Self { matcher: Matcher::new(Ok(parser)), taken: 0 }
    }

    /// For each of a model's `vocab_size` tokens whether it may come next; at least one may. To be
    /// asked before every [`push`](Self::push), and not after the last.
    ///
    /// # Errors
    /// [`Error::Constraint`] when no token may come next, or the work exceeds a limit.
    pub fn allowed(&mut self, vocab_size: usize) -> Result<Vec<bool>> {
        let mask = self.matcher.compute_mask().map_err(|e| self.fail(&format!("{e:#}")))?;
        let mut allowed = Vec::with_capacity(vocab_size.next_multiple_of(32));
        for word in mask.as_slice().iter().take(vocab_size.div_ceil(32)) {
            allowed.extend((0..32).map(|bit| word >> bit & 1 == 1));
        }
        // Ids that only the model has are never allowed, nor those that only the grammar has.
        allowed.truncate(mask.len().min(vocab_size));
        allowed.resize(vocab_size, false);
        if !allowed.contains(&true) {
            return Err(self.fail("no token of the vocabulary fits"));
        }
        Ok(allowed)
    }

    /// Takes an allowed token; true when the turn ends with it.
    ///
    /// # Errors
    /// [`Error::Constraint`] when the token is not allowed, or the work exceeds a limit.
    pub fn push(&mut self, id: u32) -> Result<bool> {
        self.matcher.consume_token(id).map_err(|e| self.fail(&format!("{e:#}")))?;
        match self.matcher.stop_reason() {
            StopReason::NotStopped => {
                self.taken = self.taken.saturating_add(1);
                Ok(false)
            }
            reason if reason.is_ok() => Ok(true),
            reason => Err(self.fail(&format!("llguidance stopped: {reason}"))),
        }
    }

    fn fail(&self, message: &str) -> Error {
        Error::Constraint { index: self.taken, message: clean(message) }
    }
}

impl TokenGuide for Guide {
    fn allowed(&mut self, vocab_size: usize) -> Result<Vec<bool>> {
        Guide::allowed(self, vocab_size)
    }

    fn push(&mut self, id: u32) -> Result<bool> {
        Guide::push(self, id)
    }
}

impl fmt::Debug for Guide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guide").field("taken", &self.taken).finish_non_exhaustive()
    }
}
