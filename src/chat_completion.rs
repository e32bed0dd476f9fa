//! The model's turn in a conversation, as events.

use std::borrow::Cow;
use std::collections::VecDeque;

use crate::chat::events::{ChatEvent, EndReason};
use crate::chat::harmony::HarmonyParser;
use crate::chat::tool_loop::{ToolHandler, ToolLoop, ToolLoopEnd, ToolLoopEvent};
use crate::chat::{Conversation, Turn, TurnBuilder};
use crate::completion::TextModel;
#[cfg(feature = "constrain")]
use crate::constrain::{ConstraintSpec, Enforce, ResponseFormat, ToolChoice};
use crate::error::{Error, Result};
use crate::generate::{FinishReason, GenerateOptions, Generation, Timings, TokenSource};
use crate::prompter::Prompter;
use crate::session::{Decoder, Session};
use crate::tokenizer::Tokenizer;

/// How the model takes its turn.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct ChatOptions {
    /// How tokens are generated.
    pub generate: GenerateOptions,
    /// Texts that end the turn. They are looked for in the final channel only, and neither they
    /// nor what follows them is given out.
    pub stop: Vec<String>,
    /// Names of the tools that the prompt offers, by which a call is known or not. None takes those
    /// of the conversation; without a conversation it knows all.
    pub tools: Option<Vec<String>>,
    /// The form of the answer in the final channel; None is any text. The model is not told of it:
    /// [`Message::response_format`](crate::chat::Message::response_format) does that.
    #[cfg(feature = "constrain")]
    pub response_format: Option<ResponseFormat>,
    /// Which of the conversation's tools may or must be called.
    #[cfg(feature = "constrain")]
    pub tool_choice: ToolChoice,
    /// How much of the format of a turn is enforced; see [`constrain`](crate::constrain). None
    /// enforces everything where `response_format` or `tool_choice` asks for something, and nothing
    /// elsewhere: by default the model is free, and no grammar is compiled.
    #[cfg(feature = "constrain")]
    pub enforce: Option<Enforce>,
}

impl ChatOptions {
    #[cfg(feature = "constrain")]
    fn enforced(&self) -> Enforce {
        let asked = self.response_format.is_some() || self.tool_choice != ToolChoice::Auto;
        self.enforce.unwrap_or(if asked { Enforce::Everything } else { Enforce::Off })
    }

    /// The options with the grammar that they ask for.
    #[cfg(feature = "constrain")]
    pub(crate) fn constrained<'a>(
        &'a self,
        prompter: &Prompter,
        conversation: &Conversation,
    ) -> Result<Cow<'a, GenerateOptions>> {
        let enforce = self.enforced();
        if enforce == Enforce::Off {
            return Ok(Cow::Borrowed(&self.generate));
        }
        if self.generate.constraint.is_some() {
            let reason = "is given beside `response_format`, `tool_choice` or `enforce`, which make \
                          another";
            return Err(Error::argument("generate.constraint", reason));
        }
        let spec = ConstraintSpec {
            response_format: self.response_format.clone(),
            tool_choice: self.tool_choice.clone(),
            enforce,
            ..ConstraintSpec::for_conversation(conversation)
        };
        let mut generate = self.generate.clone();
        generate.constraint = prompter.constraint(&spec)?;
        Ok(Cow::Owned(generate))
    }

    #[cfg(not(feature = "constrain"))]
    pub(crate) fn constrained<'a>(
        &'a self,
        _: &Prompter,
        _: &Conversation,
    ) -> Result<Cow<'a, GenerateOptions>> {
        Ok(Cow::Borrowed(&self.generate))
    }
}

impl TextModel {
    /// The model's turn in a conversation. What the session's cache holds of the prompt is not
    /// computed again, as for [`TextModel::complete_in`].
    ///
    /// The conversation is as it was: [`Chat::into_turn`] and [`Conversation::push_turn`] add what
    /// the model said.
    ///
    /// # Errors
    /// As [`TextModel::chat_prompt`] and [`TextModel::chat_ids`]. With the feature `constrain`,
    /// [`Error::Grammar`] that names what cannot be enforced: the response format, a tool, a choice
    /// of a tool that is not on offer.
    pub fn chat<'a>(
        &'a self,
        session: &'a mut Session,
        conversation: &Conversation,
        options: &ChatOptions,
    ) -> Result<Chat<Decoder<'a>>> {
        let prompt = self.chat_prompt(conversation)?;
        let generate = options.constrained(self.prompter(), conversation)?;
        let mut chat = self.begin_chat(session, &prompt, options, &generate)?;
        if options.tools.is_none() {
            chat.parser = chat.parser.with_tools(conversation.tool_names());
        }
        Ok(chat)
    }

    /// [`TextModel::chat`] after a prompt of one's own, which ends where the model's turn begins.
    /// What the turn keeps to is said by `generate.constraint` alone, since the options do not know
    /// what the prompt offers.
    ///
    /// # Errors
    /// As [`TextModel::complete_in`], and [`Error::Argument`] when the tokenizer has no control
    /// tokens of the Harmony format, or the options ask for what only a conversation allows.
    pub fn chat_ids<'a>(
        &'a self,
        session: &'a mut Session,
        prompt: &[u32],
        options: &ChatOptions,
    ) -> Result<Chat<Decoder<'a>>> {
        #[cfg(feature = "constrain")]
        if options.enforced() != Enforce::Off {
            let reason = "a prompt of one's own has no tools to go by: compile a `ConstraintSpec` \
                          for `generate.constraint`";
            return Err(Error::argument("enforce", reason));
        }
        self.begin_chat(session, prompt, options, &options.generate)
    }

    fn begin_chat<'a>(
        &'a self,
        session: &'a mut Session,
        prompt: &[u32],
        options: &ChatOptions,
        generate: &GenerateOptions,
    ) -> Result<Chat<Decoder<'a>>> {
        session.set_branch_points(self.prompter().user_turns(prompt));
        let generation = self.model().generate_in(session, prompt, generate)?;
        Chat::new(generation, self.tokenizer(), options)
    }

    /// The model's turns in a conversation with tools, until one ends without a call. Blocks its
    /// thread while the model computes; see [`tool_loop`](crate::chat::tool_loop) for an example,
    /// for threads, and for what becomes of errors.
    ///
    /// `options` hold for each turn by itself; but a tool choice that demands a call is fulfilled by
    /// the first turn, after which the model calls tools or answers as it likes, in the form that
    /// was enforced before. Cancelling by their token ends the turn that is computed; a handler that
    /// is waited for is given up by dropping the future.
    ///
    /// # Errors
    /// As [`TextModel::chat`], and those of the model and the sampler.
    pub async fn chat_with_tools(
        &self,
        session: &mut Session,
        tools: ToolLoop<'_>,
        handler: &dyn ToolHandler,
        options: &ChatOptions,
        on_event: impl FnMut(ToolLoopEvent),
    ) -> Result<ToolLoopEnd> {
        #[cfg(feature = "constrain")]
        let mut options = ChatOptions { enforce: Some(options.enforced()), ..options.clone() };
        #[cfg(not(feature = "constrain"))]
        let options = options.clone();
        let turn = |conversation: &Conversation, give: &mut dyn FnMut(ChatEvent)| {
            let mut chat = self.chat(session, conversation, &options)?;
            for event in &mut chat {
                give(event?);
            }
            let turn = chat.into_turn();
            // A model that must call again and again would never answer.
            #[cfg(feature = "constrain")]
            if matches!(options.tool_choice, ToolChoice::Required | ToolChoice::Function(_)) {
                options.tool_choice = ToolChoice::Auto;
            }
            Ok(turn)
        };
        tools.run(handler, turn, on_event).await
    }
}

/// A running turn: an iterator of events, of which [`ChatEvent::TurnEnd`] is the last.
///
/// After an error it gives nothing more.
#[derive(Debug)]
pub struct Chat<S: TokenSource> {
    generation: Generation<S>,
    parser: HarmonyParser,
    events: VecDeque<ChatEvent>,
    turn: TurnBuilder,
    tokens: Vec<u32>,
    done: bool,
}

impl<S: TokenSource> Chat<S> {
    /// Turns the tokens of a generation into events. Of the options only `stop` and `tools` count:
    /// the generation has begun with its own.
    ///
    /// # Errors
    /// [`Error::Argument`] for an empty stop string, or when the tokenizer has no control tokens
    /// of the Harmony format.
    pub fn new(
        generation: Generation<S>,
        tokenizer: &Tokenizer,
        options: &ChatOptions,
    ) -> Result<Self> {
        let parser = HarmonyParser::new(tokenizer).ok_or_else(|| {
            Error::argument("tokenizer", "has no control tokens of the Harmony format")
        })?;
        let mut parser = parser.with_stop(options.stop.clone())?;
        if let Some(tools) = &options.tools {
            parser = parser.with_tools(tools);
        }
        Ok(Self {
            generation,
            parser,
            events: VecDeque::new(),
            turn: TurnBuilder::default(),
            tokens: Vec::new(),
            done: false,
        })
    }

    /// Feeds the prompt; see [`Generation::prefill`].
    ///
    /// # Errors
    /// Those of the model and the sampler.
    pub fn prefill(&mut self, progress: impl FnMut(usize, usize)) -> Result<()> {
        self.generation.prefill(progress)
    }

    /// Timings so far.
    pub fn timings(&self) -> Timings {
        self.generation.timings()
    }

    /// The tokens generated so far.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// What the model said. A turn that is still running, or that an error ended, ends here as if
    /// it had been cancelled, with the text of all tokens generated so far.
    pub fn into_turn(mut self) -> Turn {
        self.events.extend(self.parser.finish(EndReason::Cancelled));
        for event in &self.events {
            self.turn.push(event);
        }
        self.turn.finish()
    }

    /// Takes the next token, if there is one, and what it makes known.
    fn advance(&mut self) -> Result<()> {
        match self.generation.next().transpose()? {
            Some(token) => {
                self.tokens.push(token.id);
                self.events.extend(self.parser.push(token.id)?);
                if self.parser.stopped().is_some() {
                    self.generation.stop();
                }
            }
            // Also after an error that `prefill` gave.
            None => self.done = true,
        }
        if let Some(reason) = self.generation.finish_reason() {
            self.done = true;
            self.events.extend(self.parser.finish(reason.into()));
        }
        Ok(())
    }
}

impl<S: TokenSource> Iterator for Chat<S> {
    type Item = Result<ChatEvent>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(event) = self.events.pop_front() {
                self.turn.push(&event);
                return Some(Ok(event));
            }
            if self.done {
                return None;
            }
            if let Err(error) = self.advance() {
                self.done = true;
                return Some(Err(error));
            }
        }
    }
}

impl From<FinishReason> for EndReason {
    fn from(reason: FinishReason) -> Self {
        match reason {
            FinishReason::Stop => Self::Stop,
            FinishReason::Length => Self::Length,
            FinishReason::Cancelled => Self::Cancelled,
        }
    }
}
