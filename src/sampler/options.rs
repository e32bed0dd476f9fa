//! What a caller may choose, and what is refused.

use std::collections::BTreeMap;

use crate::error::{Error, Result};

/// How tokens are chosen. The default is greedy: always the most probable one.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// Divides the logits before the draw; 0 for the most probable token, always.
    pub temperature: f32,
    /// Leave only this many of the most probable tokens; 0 for all.
    pub top_k: usize,
    /// Leave the most probable tokens whose probabilities together reach this much (Holtzman et
    /// al., "The Curious Case of Neural Text Degeneration", 2019); 1 for all, 0 for one.
    pub top_p: f32,
    /// Leave the tokens that are at least this many times as probable as the most probable one
    /// (Nguyen et al., "Turning Up the Heat", 2024); 0 for all.
    pub min_p: f32,
    /// Tokens that `min_p` leaves in any case, at least 1.
    pub min_tokens_to_keep: usize,
    /// How likely XTC ("exclude top choices") is applied at a step: of the tokens more probable
    /// than `xtc_threshold` it leaves only the least probable. 0 for never.
    pub xtc_probability: f32,
    /// From which probability on a token is one of XTC's top choices. Above 0.5 there is never
    /// more than one, and XTC does nothing.
    pub xtc_threshold: f32,
    /// Divides the logits above 0 and multiplies the others of every token seen (Keskar et al.,
    /// "CTRL", 2019); 1 for off.
    pub repetition_penalty: f32,
    /// Taken once from the logit of every token seen; 0 for off.
    pub presence_penalty: f32,
    /// Taken from a token's logit as often as it was seen; 0 for off.
    pub frequency_penalty: f32,
    /// "Seen" for the three penalties means: among this many last tokens, prompt included; 0 for
    /// all tokens so far.
    pub penalty_context: usize,
    /// Added to the logits of these tokens; -∞ rules a token out.
    pub logit_bias: BTreeMap<u32, f32>,
    /// The same seed, options, prompt and model give the same tokens on the same device.
    pub seed: u64,
}

/// Long enough to see a loop of several sentences, short enough that the words of a long prompt
/// stay usable.
const DEFAULT_PENALTY_CONTEXT: usize = 256;

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            min_tokens_to_keep: 1,
            xtc_probability: 0.0,
            xtc_threshold: 0.1,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            penalty_context: DEFAULT_PENALTY_CONTEXT,
            logit_bias: BTreeMap::new(),
            seed: 0,
        }
    }
}

impl Sampling {
    /// Checks every option's range.
    ///
    /// # Errors
    /// [`Error::Argument`], naming the first option that is out of range.
    pub fn validate(&self) -> Result<()> {
        let shares = [
            ("top_p", self.top_p),
            ("min_p", self.min_p),
            ("xtc_probability", self.xtc_probability),
            ("xtc_threshold", self.xtc_threshold),
        ];
        for (name, value) in shares {
            if !(0.0..=1.0).contains(&value) {
                return Err(Error::argument(name, format!("{value} is not between 0 and 1")));
            }
        }
        if !self.temperature.is_finite() || self.temperature < 0.0 {
            let reason = format!("{} is not a number from 0 upwards", self.temperature);
            return Err(Error::argument("temperature", reason));
        }
        if self.min_tokens_to_keep == 0 {
            return Err(Error::argument("min_tokens_to_keep", "at least one token must be left"));
        }
        if !self.repetition_penalty.is_finite() || self.repetition_penalty <= 0.0 {
            let reason = format!("{} is not a number above 0", self.repetition_penalty);
            return Err(Error::argument("repetition_penalty", reason));
        }
        let amounts = [
            ("presence_penalty", self.presence_penalty),
            ("frequency_penalty", self.frequency_penalty),
        ];
        for (name, value) in amounts {
            if !value.is_finite() {
                return Err(Error::argument(name, format!("{value} is not finite")));
            }
        }
        for (id, value) in &self.logit_bias {
            if value.is_nan() || *value == f32::INFINITY {
                let reason = format!("{value} for token {id} is neither finite nor -inf");
                return Err(Error::argument("logit_bias", reason));
            }
        }
        Ok(())
    }

    /// True when the draw can only end in the most probable token.
    pub(super) fn is_greedy(&self) -> bool {
        let single = self.top_k == 1 || self.top_p == 0.0;
        self.temperature == 0.0 || (single && self.xtc_probability == 0.0)
    }

    /// True when a filter needs the tokens in order of probability.
    pub(super) fn needs_order(&self, vocab_size: usize) -> bool {
        self.top_p < 1.0
            || (1..vocab_size).contains(&self.top_k)
            || (self.min_p > 0.0 && self.min_tokens_to_keep > 1)
    }

    /// True when a penalty is on.
    pub(super) fn penalizes(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.presence_penalty != 0.0
            || self.frequency_penalty != 0.0
    }
}
