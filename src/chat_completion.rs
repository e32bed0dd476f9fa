//! The model's turn in a conversation, as events.

use std::collections::VecDeque;

use crate::chat::events::{ChatEvent, EndReason};
use crate::chat::harmony::HarmonyParser;
use crate::chat::tool_loop::{ToolHandler, ToolLoop, ToolLoopEnd, ToolLoopEvent};
use crate::chat::{Conversation, Turn, TurnBuilder};
use crate::completion::TextModel;
use crate::error::{Error, Result};
use crate::generate::{FinishReason, GenerateOptions, Generation, Timings, TokenSource};
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
}

impl TextModel {
    /// The model's turn in a conversation. What the session's cache holds of the prompt is not
    /// computed again, as for [`TextModel::complete_in`].
    ///
    /// The conversation is as it was: [`Chat::into_turn`] and [`Conversation::push_turn`] add what
    /// the model said.
    ///
    /// # Errors
    /// As [`TextModel::chat_prompt`] and [`TextModel::chat_ids`].
    pub fn chat<'a>(
        &'a self,
        session: &'a mut Session,
        conversation: &Conversation,
        options: &ChatOptions,
    ) -> Result<Chat<Decoder<'a>>> {
        let prompt = self.chat_prompt(conversation)?;
        let mut chat = self.chat_ids(session, &prompt, options)?;
        if options.tools.is_none() {
            chat.parser = chat.parser.with_tools(conversation.tool_names());
        }
        Ok(chat)
    }

    /// [`TextModel::chat`] after a prompt of one's own, which ends where the model's turn begins.
    ///
    /// # Errors
    /// As [`TextModel::complete_in`], and [`Error::Argument`] when the tokenizer has no control
    /// tokens of the Harmony format.
    pub fn chat_ids<'a>(
        &'a self,
        session: &'a mut Session,
        prompt: &[u32],
        options: &ChatOptions,
    ) -> Result<Chat<Decoder<'a>>> {
        session.set_branch_points(self.user_turns(prompt));
        let generation = self.model().generate_in(session, prompt, &options.generate)?;
        Chat::new(generation, self.tokenizer(), options)
    }

    /// The model's turns in a conversation with tools, until one ends without a call. Blocks its
    /// thread while the model computes; see [`tool_loop`](crate::chat::tool_loop) for an example,
    /// for threads, and for what becomes of errors.
    ///
    /// `options` hold for each turn by itself. Cancelling by their token ends the turn that is
    /// computed; a handler that is waited for is given up by dropping the future.
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
        let turn = |conversation: &Conversation, give: &mut dyn FnMut(ChatEvent)| {
            let mut chat = self.chat(session, conversation, options)?;
            for event in &mut chat {
                give(event?);
            }
            Ok(chat.into_turn())
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
    /// Turns the tokens of a generation into events.
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
