//! Text in, text out: a model with its tokenizer and chat template.

use std::path::Path;
use std::sync::Arc;

use crate::chat::Conversation;
use crate::chat::template::TemplateInput;
#[cfg(feature = "constrain")]
use crate::constrain::{Constraint, ConstraintSpec};
use crate::error::Result;
use crate::generate::{FinishReason, GenerateOptions, Generation, Timings, Token, TokenSource};
use crate::model::{LoadOptions, Model};
use crate::prompter::Prompter;
use crate::session::{Decoder, Session};
use crate::tokenizer::Tokenizer;
use crate::visible::{Visible, VisibleText};

/// A model folder, loaded whole: weights, tokenizer, chat template.
#[derive(Debug)]
pub struct TextModel {
    model: Model,
    prompter: Arc<Prompter>,
}

/// How to complete a prompt.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct CompletionOptions {
    /// How tokens are generated.
    pub generate: GenerateOptions,
    /// Texts that end the completion. They are looked for in the visible text only, and neither
    /// they nor what follows them is shown.
    pub stop: Vec<String>,
    /// What of the output is text.
    pub visible: Visible,
}

impl TextModel {
    /// Loads a folder with config.json, tokenizer.json, safetensors files and, for chat, a chat
    /// template.
    ///
    /// # Errors
    /// Whatever is wrong with a file, named; see [`Error`](crate::Error).
    pub fn load(dir: impl AsRef<Path>, options: &LoadOptions) -> Result<Self> {
        Self::load_with_progress(dir, options, |_, _| ())
    }

    /// [`TextModel::load`] that calls `progress` with the bytes of weights read so far and in all.
    ///
    /// # Errors
    /// As [`TextModel::load`].
    pub fn load_with_progress(
        dir: impl AsRef<Path>,
        options: &LoadOptions,
        progress: impl FnMut(u64, u64),
    ) -> Result<Self> {
        let dir = dir.as_ref();
        // The small files first: what is wrong with them should not cost a long load.
        let prompter = Prompter::from_dir(dir)?;
        let model = Model::load_with_progress(dir, options, progress)?;
        let prompter = Arc::new(prompter.padded_to(model.config().vocab_size));
        Ok(Self { model, prompter })
    }

    /// The weights.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        self.prompter.tokenizer()
    }

    /// What makes the prompts, for other threads too.
    pub(crate) fn prompter(&self) -> &Arc<Prompter> {
        &self.prompter
    }

    /// The ids of a conversation that ends where the assistant's turn begins. Control tokens come
    /// from the template alone: in a message's text they stay text.
    ///
    /// # Errors
    /// [`Error::Conversation`](crate::Error::Conversation) naming what is wrong with it, [`Error::ChatTemplate`](crate::Error::ChatTemplate) when the
    /// folder has no template or it refuses the messages.
    pub fn chat_prompt(&self, conversation: &Conversation) -> Result<Vec<u32>> {
        self.chat_prompt_with(&conversation.template_input()?)
    }

    /// [`TextModel::chat_prompt`] for messages, tools and variables as the template takes them.
    ///
    /// # Errors
    /// As [`TextModel::chat_prompt`].
    pub fn chat_prompt_with(&self, input: &TemplateInput) -> Result<Vec<u32>> {
        self.prompter.chat_prompt(input)
    }

    /// The ids of a text taken as it is; control tokens in it are control tokens.
    ///
    /// # Errors
    /// [`Error::Tokenizer`](crate::Error::Tokenizer) when the text cannot be encoded.
    pub fn raw_prompt(&self, text: &str) -> Result<Vec<u32>> {
        self.tokenizer().encode(text, true)
    }

    /// Compiles what a turn after [`chat_prompt`](Self::chat_prompt) must keep to, for
    /// [`GenerateOptions::constraint`]; None when nothing is enforced. The few that were compiled
    /// last are kept, so that the same again costs nothing. [`TextModel::chat`] does it by itself,
    /// by its options.
    ///
    /// # Errors
    /// [`Error::Grammar`](crate::Error::Grammar) names the part that is not possible; [`Error::Argument`](crate::Error::Argument) when the
    /// tokenizer lacks control tokens of the Harmony format.
    #[cfg(feature = "constrain")]
    pub fn constraint(&self, spec: &ConstraintSpec) -> Result<Option<Constraint>> {
        self.prompter.constraint(spec)
    }

    /// Generates after `prompt` and gives text as it comes. See [`Completion`].
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) for an empty prompt, an id outside the vocabulary or an option out of
    /// range, [`Error::ContextFull`](crate::Error::ContextFull) when the prompt leaves no room for a token.
    pub fn complete(
        &self,
        prompt: &[u32],
        options: &CompletionOptions,
    ) -> Result<Completion<Decoder<'_>>> {
        let generation = self.model.generate(prompt, &options.generate)?;
        Completion::new(generation, self.tokenizer(), options)
    }

    /// [`TextModel::complete`] in a session: what the session's cache holds of `prompt`, the whole
    /// conversation so far, is not computed again. Where the first and the last user message begin
    /// is kept for prompts that branch off there: another conversation under the same
    /// instructions, or the last message edited.
    ///
    /// # Errors
    /// As [`TextModel::complete`], and [`Error::Argument`](crate::Error::Argument) for a session of another model.
    pub fn complete_in<'a>(
        &'a self,
        session: &'a mut Session,
        prompt: &[u32],
        options: &CompletionOptions,
    ) -> Result<Completion<Decoder<'a>>> {
        session.set_branch_points(self.prompter.user_turns(prompt));
        let generation = self.model.generate_in(session, prompt, &options.generate)?;
        Completion::new(generation, self.tokenizer(), options)
    }
}

/// A token and the text that became visible with it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Piece {
    /// The token; None when a cancelled completion gives up the text that it held back.
    pub token: Option<Token>,
    /// New visible text; empty while the token is hidden, half a character, or the possible start
    /// of a stop string.
    pub text: String,
}

/// A running completion: an iterator of pieces, whose texts joined are the answer.
#[derive(Debug)]
pub struct Completion<S: TokenSource> {
    generation: Generation<S>,
    text: VisibleText,
    done: bool,
}

impl<S: TokenSource> Completion<S> {
    /// Turns the tokens of a generation into text.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) for an empty stop string.
    pub fn new(
        generation: Generation<S>,
        tokenizer: &Tokenizer,
        options: &CompletionOptions,
    ) -> Result<Self> {
        let text = VisibleText::new(tokenizer, options.visible, &options.stop)?;
        Ok(Self { generation, text, done: false })
    }

    /// Feeds the prompt; see [`Generation::prefill`].
    ///
    /// # Errors
    /// Those of the model and the sampler.
    pub fn prefill(&mut self, progress: impl FnMut(usize, usize)) -> Result<()> {
        self.generation.prefill(progress)
    }

    /// Why the completion ended; None while it runs or after an error.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.generation.finish_reason()
    }

    /// Timings so far.
    pub fn timings(&self) -> Timings {
        self.generation.timings()
    }

    fn advance(&mut self) -> Result<Option<Piece>> {
        let Some(token) = self.generation.next().transpose()? else {
            let text = self.flush();
            return Ok((!text.is_empty()).then_some(Piece { token: None, text }));
        };
        // A stop token ends the text and is no part of it.
        let stops = self.generation.finish_reason() == Some(FinishReason::Stop);
        let (mut text, stopped) = self.text.push(token.id, stops)?;
        if stopped {
            self.generation.stop();
        }
        if self.generation.finish_reason().is_some() {
            text.push_str(&self.flush());
        }
        Ok(Some(Piece { token: Some(token), text }))
    }

    /// What was held back and will not be completed any more.
    fn flush(&mut self) -> String {
        if std::mem::replace(&mut self.done, true) {
            return String::new();
        }
        let (text, stopped) = self.text.finish();
        // A stop string may be complete only now, at the end of what was held back.
        if stopped {
            self.generation.stop();
        }
        text
    }
}

impl<S: TokenSource> Iterator for Completion<S> {
    type Item = Result<Piece>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let result = self.advance();
        self.done |= result.is_err();
        result.transpose()
    }
}
