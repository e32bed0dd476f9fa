//! Conversations and texts as prompts: tokenizer, chat template and grammars of one model folder.

use std::path::{Path, PathBuf};
#[cfg(feature = "constrain")]
use std::sync::OnceLock;

use crate::chat::template::{ChatTemplate, TemplateInput};
#[cfg(feature = "constrain")]
use crate::constrain::{Constraint, ConstraintSpec, Recent, Vocabulary};
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;

/// Makes prompts, and what their answers keep to. Nothing of it reaches MLX, so that any thread may
/// use it while another runs the model.
#[derive(Debug)]
pub(crate) struct Prompter {
    dir: PathBuf,
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    /// Made when the first constraint is compiled.
    #[cfg(feature = "constrain")]
    vocabulary: OnceLock<Vocabulary>,
    #[cfg(feature = "constrain")]
    constraints: Recent,
}

impl Prompter {
    /// Reads tokenizer.json and, where there is one, the chat template.
    pub(crate) fn from_dir(dir: &Path) -> Result<Self> {
        // Asked first: a wrong path should not be reported as a missing tokenizer.json.
        std::fs::read_dir(dir).map_err(Error::io("open the model folder", dir))?;
        Ok(Self {
            dir: dir.into(),
            tokenizer: Tokenizer::from_dir(dir)?,
            template: ChatTemplate::from_dir(dir)?,
            #[cfg(feature = "constrain")]
            vocabulary: OnceLock::new(),
            #[cfg(feature = "constrain")]
            constraints: Recent::default(),
        })
    }

    /// For a model whose vocabulary has so many tokens, some of which the tokenizer may not know.
    pub(crate) fn padded_to(self, vocab_size: usize) -> Self {
        Self { tokenizer: self.tokenizer.padded_to(vocab_size), ..self }
    }

    pub(crate) fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// See [`TextModel::chat_prompt_with`](crate::TextModel::chat_prompt_with).
    pub(crate) fn chat_prompt(&self, input: &TemplateInput) -> Result<Vec<u32>> {
        let template = self.template.as_ref().ok_or_else(|| Error::ChatTemplate {
            path: self.dir.clone(),
            reason: "the folder has no chat_template.jinja, and tokenizer_config.json names none"
                .into(),
            source: None,
        })?;
        template.render_ids(input, &self.tokenizer)
    }

    /// See [`TextModel::constraint`](crate::TextModel::constraint).
    #[cfg(feature = "constrain")]
    pub(crate) fn constraint(&self, spec: &ConstraintSpec) -> Result<Option<Constraint>> {
        self.constraints.get(spec, || {
            if let Some(vocabulary) = self.vocabulary.get() {
                return vocabulary.compile(spec);
            }
            let vocabulary = Vocabulary::new(&self.tokenizer)?;
            self.vocabulary.get_or_init(|| vocabulary).compile(spec)
        })
    }

    /// Where the first and the last user message of a Harmony prompt begin.
    pub(crate) fn user_turns(&self, prompt: &[u32]) -> Vec<usize> {
        let Some(start) = self.tokenizer.token_id("<|start|>") else { return Vec::new() };
        let Ok(user) = self.tokenizer.encode("user", false) else { return Vec::new() };
        let turns = || {
            let starts = prompt.iter().enumerate().filter(|(_, id)| **id == start);
            let user_turn = |(at, _): (usize, &u32)| {
                let role = prompt.get(at.saturating_add(1)..)?;
                (at > 0 && role.starts_with(&user)).then_some(at)
            };
            starts.filter_map(user_turn)
        };
        turns().next().into_iter().chain(turns().next_back()).collect()
    }
}
