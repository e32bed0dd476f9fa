//! Text in, text out: a model with its tokenizer and chat template.

use std::path::Path;
#[cfg(feature = "constrain")]
use std::sync::OnceLock;

use crate::chat::Conversation;
use crate::chat::events::{ChatEvent, EndReason};
use crate::chat::harmony::HarmonyParser;
use crate::chat::template::{ChatTemplate, TemplateInput};
#[cfg(feature = "constrain")]
use crate::constrain::{Constraint, ConstraintSpec, Recent, Vocabulary};
use crate::error::{Error, Result};
use crate::generate::{FinishReason, GenerateOptions, Generation, Timings, Token, TokenSource};
use crate::model::{LoadOptions, Model};
use crate::session::{Decoder, Session};
use crate::stop::StopMatcher;
use crate::tokenizer::{Detokenizer, Tokenizer};

/// A model folder, loaded whole: weights, tokenizer, chat template.
#[derive(Debug)]
pub struct TextModel {
    model: Model,
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    /// Made when the first constraint is compiled.
    #[cfg(feature = "constrain")]
    vocabulary: OnceLock<Vocabulary>,
    #[cfg(feature = "constrain")]
    constraints: Recent,
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

/// Which part of the model's output is given as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Visible {
    /// The answer: the messages of the `final` channel, without control tokens. For prompts that
    /// end where the assistant's turn begins, as [`TextModel::chat_prompt`] makes them.
    #[default]
    Final,
    /// Everything, control tokens by their names.
    Everything,
}

impl TextModel {
    /// Loads a folder with config.json, tokenizer.json, safetensors files and, for chat, a chat
    /// template.
    ///
    /// # Errors
    /// Whatever is wrong with a file, named; see [`Error`].
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
        // Asked first: a wrong path should not be reported as a missing tokenizer.json.
        std::fs::read_dir(dir).map_err(Error::io("open the model folder", dir))?;
        // Then the small files: what is wrong with them should not cost a long load.
        let tokenizer = Tokenizer::from_dir(dir)?;
        let template = ChatTemplate::from_dir(dir)?;
        let model = Model::load_with_progress(dir, options, progress)?;
        let tokenizer = tokenizer.padded_to(model.config().vocab_size);
        Ok(Self {
            model,
            tokenizer,
            template,
            #[cfg(feature = "constrain")]
            vocabulary: OnceLock::new(),
            #[cfg(feature = "constrain")]
            constraints: Recent::default(),
        })
    }

    /// The weights.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The ids of a conversation that ends where the assistant's turn begins. Control tokens come
    /// from the template alone: in a message's text they stay text.
    ///
    /// # Errors
    /// [`Error::Conversation`] naming what is wrong with it, [`Error::ChatTemplate`] when the
    /// folder has no template or it refuses the messages.
    pub fn chat_prompt(&self, conversation: &Conversation) -> Result<Vec<u32>> {
        self.chat_prompt_with(&conversation.template_input()?)
    }

    /// [`TextModel::chat_prompt`] for messages, tools and variables as the template takes them.
    ///
    /// # Errors
    /// As [`TextModel::chat_prompt`].
    pub fn chat_prompt_with(&self, input: &TemplateInput) -> Result<Vec<u32>> {
        let template = self.template.as_ref().ok_or_else(|| Error::ChatTemplate {
            path: self.model.dir().into(),
            reason: "the folder has no chat_template.jinja, and tokenizer_config.json names none"
                .into(),
            source: None,
        })?;
        template.render_ids(input, &self.tokenizer)
    }

    /// The ids of a text taken as it is; control tokens in it are control tokens.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the text cannot be encoded.
    pub fn raw_prompt(&self, text: &str) -> Result<Vec<u32>> {
        self.tokenizer.encode(text, true)
    }

    /// Compiles what a turn after [`chat_prompt`](Self::chat_prompt) must keep to, for
    /// [`GenerateOptions::constraint`]; None when nothing is enforced. The few that were compiled
    /// last are kept, so that the same again costs nothing. [`TextModel::chat`] does it by itself,
    /// by its options.
    ///
    /// # Errors
    /// [`Error::Grammar`] names the part that is not possible; [`Error::Argument`] when the
    /// tokenizer lacks control tokens of the Harmony format.
    #[cfg(feature = "constrain")]
    pub fn constraint(&self, spec: &ConstraintSpec) -> Result<Option<Constraint>> {
        self.constraints.get(spec, || {
            if let Some(vocabulary) = self.vocabulary.get() {
                return vocabulary.compile(spec);
            }
            let vocabulary = Vocabulary::new(&self.tokenizer)?;
            self.vocabulary.get_or_init(|| vocabulary).compile(spec)
        })
    }

    /// Generates after `prompt` and gives text as it comes. See [`Completion`].
    ///
    /// # Errors
    /// [`Error::Argument`] for an empty prompt, an id outside the vocabulary or an option out of
    /// range, [`Error::ContextFull`] when the prompt leaves no room for a token.
    pub fn complete(
        &self,
        prompt: &[u32],
        options: &CompletionOptions,
    ) -> Result<Completion<Decoder<'_>>> {
        let generation = self.model.generate(prompt, &options.generate)?;
        Completion::new(generation, &self.tokenizer, options)
    }

    /// [`TextModel::complete`] in a session: what the session's cache holds of `prompt`, the whole
    /// conversation so far, is not computed again. Where the first and the last user message begin
    /// is kept for prompts that branch off there: another conversation under the same
    /// instructions, or the last message edited.
    ///
    /// # Errors
    /// As [`TextModel::complete`], and [`Error::Argument`] for a session of another model.
    pub fn complete_in<'a>(
        &'a self,
        session: &'a mut Session,
        prompt: &[u32],
        options: &CompletionOptions,
    ) -> Result<Completion<Decoder<'a>>> {
        session.set_branch_points(self.user_turns(prompt));
        let generation = self.model.generate_in(session, prompt, &options.generate)?;
        Completion::new(generation, &self.tokenizer, options)
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
    text: Text,
    done: bool,
}

/// How tokens become visible text.
#[derive(Debug)]
enum Text {
    /// The final channel of a turn.
    Final(Box<HarmonyParser>),
    /// All that is generated.
    Plain { detokenizer: Detokenizer, stop: StopMatcher },
}

impl<S: TokenSource> Completion<S> {
    /// Turns the tokens of a generation into text.
    ///
    /// # Errors
    /// [`Error::Argument`] for an empty stop string.
    pub fn new(
        generation: Generation<S>,
        tokenizer: &Tokenizer,
        options: &CompletionOptions,
    ) -> Result<Self> {
        let parser = match options.visible {
            Visible::Final => HarmonyParser::new(tokenizer),
            Visible::Everything => None,
        };
        let text = match parser {
            Some(parser) => Text::Final(Box::new(parser.with_stop(options.stop.clone())?)),
            None => Text::Plain {
                // Control tokens are shown only where everything is.
                detokenizer: tokenizer.stream(options.visible == Visible::Final),
                stop: StopMatcher::new(options.stop.clone())?,
            },
        };
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
        let (mut text, stopped) = match &mut self.text {
            Text::Final(parser) => (answer(parser.push(token.id)?), parser.stopped().is_some()),
            Text::Plain { .. } if stops => (String::new(), false),
            Text::Plain { detokenizer, stop } => {
                let (shown, stopped) = stop.push(&detokenizer.push(token.id)?);
                (shown, stopped.is_some())
            }
        };
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
        let (text, stopped) = match &mut self.text {
            Text::Final(parser) => {
                let events = parser.finish(EndReason::Stop);
                let end = ChatEvent::TurnEnd { reason: EndReason::StopString };
                let stopped = events.last() == Some(&end);
                (answer(events), stopped)
            }
            Text::Plain { detokenizer, stop } => {
                let (mut text, stopped) = stop.push(&detokenizer.finish());
                if stopped.is_none() {
                    text.push_str(&stop.finish());
                }
                (text, stopped.is_some())
            }
        };
        // A stop string may be complete only now, at the end of what was held back.
        if stopped {
            self.generation.stop();
        }
        text
    }
}

/// The text of the final channel.
fn answer(events: Vec<ChatEvent>) -> String {
    let text = |event| match event {
        ChatEvent::FinalDelta { text } => Some(text),
        _ => None,
    };
    events.into_iter().filter_map(text).collect()
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
