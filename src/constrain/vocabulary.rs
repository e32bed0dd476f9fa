//! A tokenizer's tokens in the form that grammars are matched against.

use std::fmt;
use std::panic::AssertUnwindSafe;

use llguidance::ParserFactory;
use llguidance::panic_utils::catch_unwind;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};

use super::spec::{ConstraintSpec, Enforce};
use super::{Constraint, compile, turn};
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;

/// Control tokens that a turn is made of.
const CONTROLS: [&str; 7] = [
    "<|start|>",
    "<|channel|>",
    "<|message|>",
    "<|constrain|>",
    "<|end|>",
    "<|call|>",
    "<|return|>",
];
/// Never part of UTF-8. llguidance writes it before a control token's name, so no other token may
/// have it.
const MARKER: u8 = TokTrie::SPECIAL_TOKEN_MARKER;
/// Bytes of a token at most; llguidance takes no longer ones.
const TOKEN_LIMIT: usize = 512;

/// The tokens of a model, by which grammars are compiled. Made once per model.
pub struct Vocabulary {
    factory: ParserFactory,
}

impl Vocabulary {
    /// Takes over a tokenizer's tokens. Ids without a token, such as those that pad a model's
    /// vocabulary, are never allowed, nor are tokens that cannot be part of UTF-8.
    ///
    /// # Errors
    /// [`Error::Argument`] when the tokenizer lacks a control token of the Harmony format, or has
    /// more tokens than llguidance can take.
    pub fn new(tokenizer: &Tokenizer) -> Result<Self> {
        let special = |name: &&str| {
            let id = tokenizer.token_id(name);
            id.is_some_and(|id| tokenizer.is_special(id))
        };
        if let Some(missing) = CONTROLS.iter().find(|name| !special(name)) {
            let reason = format!("has no control token `{missing}`");
            return Err(Error::argument("tokenizer", reason));
        }
        let mut words = Vec::with_capacity(tokenizer.vocab_size().saturating_add(1));
        for id in (0u32..).take(tokenizer.vocab_size()) {
            let bytes = tokenizer.token_bytes(id)?;
            words.push(if tokenizer.is_special(id) {
                [&[MARKER], bytes].concat()
            } else if bytes.contains(&MARKER) || bytes.len() > TOKEN_LIMIT {
                Vec::new()
            } else {
                bytes.to_vec()
            });
        }
        Self::of_words(words)
    }

    /// `words` are the bytes of the tokens by id, control tokens behind [`MARKER`].
    fn of_words(mut words: Vec<Vec<u8>>) -> Result<Self> {
        let unusable = |e: &dyn fmt::Display| {
            Error::argument("tokenizer", format!("cannot be used with grammars: {e}"))
        };
        // A turn ends by control tokens of its own. llguidance's end of sequence would be allowed
        // behind those, and is therefore a token that no model has.
        let end = u32::try_from(words.len()).map_err(|e| unusable(&e))?;
        words.push([&[MARKER], b"<|end of sequence|>".as_slice()].concat());
        let build = || {
            let info = TokRxInfo::new(end.saturating_add(1), end);
            let trie = TokTrie::from(&info, &words);
            let env: TokEnv = std::sync::Arc::new(ApproximateTokEnv::new(trie));
            let mut factory = ParserFactory::new_simple(&env)?;
            factory.quiet();
            factory.limits_mut().verbose_errors = false;
            Ok(factory)
        };
        let factory = catch_unwind(AssertUnwindSafe(build)).map_err(|e| unusable(&e))?;
        Ok(Self { factory })
    }

    /// Compiles what a turn must keep to; None when nothing is enforced.
    ///
    /// # Errors
    /// [`Error::Grammar`] names the part that is not possible: the response format, a tool, the
    /// choice of tools.
    pub fn compile(&self, spec: &ConstraintSpec) -> Result<Option<Constraint>> {
        if spec.enforce == Enforce::Off {
            return Ok(None);
        }
        let turn = turn::Turn::new(spec)?;
        compile::compile(&self.factory, &turn).map(Some)
    }
}

impl fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vocabulary").finish_non_exhaustive()
    }
}
