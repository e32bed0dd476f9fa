//! The conversation and the model's turns in it.

use std::io;

use gpt_oss_mlx::chat::events::{ChatEvent, EndReason};
use gpt_oss_mlx::chat::tool_loop::{Answer, Step, ToolLoop, ToolLoopEnd, ToolResult};
use gpt_oss_mlx::chat::{Conversation, Message, ToolCall};
use gpt_oss_mlx::{CancelToken, Chat, ChatOptions, Decoder, Session, TextModel, Timings};

use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::screen::Screen;
use crate::tools;

/// Times that tools may be called before the model has to answer.
const ROUNDS: usize = 8;

/// A conversation with a model.
pub struct Dialogue<'a> {
    pub conversation: Conversation,
    pub show_analysis: bool,
    model: &'a TextModel,
    session: Session,
    options: ChatOptions,
    /// The parts of the last turn; all but the last end in tool calls.
    last: Vec<Timings>,
}

impl<'a> Dialogue<'a> {
    pub fn new(model: &'a TextModel, options: ChatOptions) -> Self {
        let session = Session::new(model.model());
        let (conversation, show_analysis, last) = Default::default();
        Self { conversation, show_analysis, model, session, options, last }
    }

    /// Says `text` to the model and shows what it answers. True when Ctrl-C ended the answer.
    ///
    /// After an error the conversation is as it was.
    pub fn say(
        &mut self,
        text: String,
        screen: &mut Screen,
        interrupt: &Interrupt,
    ) -> Result<bool, Failure> {
        let before = self.conversation.messages.len();
        self.conversation.messages.push(Message::User(text));
        let answered = self.answer(screen, interrupt);
        if answered.is_err() {
            self.conversation.messages.truncate(before);
        }
        answered
    }

    /// Answers the last message of the user again; None when there is none.
    ///
    /// After an error the conversation is as it was.
    pub fn regenerate(
        &mut self,
        screen: &mut Screen,
        interrupt: &Interrupt,
    ) -> Result<Option<bool>, Failure> {
        let messages = &mut self.conversation.messages;
        let asked = |message: &Message| matches!(message, Message::User(_));
        let Some(last) = messages.iter().rposition(asked) else { return Ok(None) };
        let old = messages.split_off(last + 1);
        let answered = self.answer(screen, interrupt);
        if answered.is_err() {
            self.conversation.messages.truncate(last + 1);
            self.conversation.messages.extend(old);
        }
        answered.map(Some)
    }

    /// The model's turn: calls of tools as long as it makes any, then the answer.
    fn answer(&mut self, screen: &mut Screen, interrupt: &Interrupt) -> Result<bool, Failure> {
        self.last.clear();
        self.options.generate.cancel = CancelToken::default();
        interrupt.cancels(self.options.generate.cancel.clone());
        let mut tools = ToolLoop::new(&mut self.conversation).with_max_rounds(ROUNDS);
        let end = loop {
            match tools.step() {
                Step::End(end) => break end,
                Step::Turn => {
                    let sampling = &mut self.options.generate.sampling;
                    sampling.seed = sampling.seed.wrapping_add(1);
                    let conversation = tools.conversation();
                    let mut chat =
                        self.model.chat(&mut self.session, conversation, &self.options)?;
                    show(&mut chat, self.show_analysis, screen)?;
                    self.last.push(chat.timings());
                    for Answer { call, result, .. } in tools.take_turn(chat.into_turn()) {
                        show_result(&call.name, &result, screen)?;
                    }
                }
                Step::Calls(calls) => {
                    for ToolCall { id, name, arguments } in calls {
                        let result = tools::call(&name, &arguments);
                        show_result(&name, &result, screen)?;
                        tools.answer(&id, result)?;
                    }
                }
            }
        };
        match end {
            ToolLoopEnd::Turn(EndReason::Cancelled) => return Ok(true),
            ToolLoopEnd::Turn(EndReason::Length) => {
                let tokens = self.options.generate.max_tokens;
                screen.say(&format!("(cut off by --max-tokens {tokens} or a full context)"))?;
            }
            ToolLoopEnd::RoundLimit => {
                screen.say(&format!("(no answer after {ROUNDS} rounds of calls)"))?;
            }
            _ => {}
        }
        Ok(false)
    }

    /// Figures of the last turn and of the cache.
    pub fn stats(&self) -> String {
        let mut lines: Vec<String> = self.last.iter().map(figures).collect();
        if lines.is_empty() {
            lines.push("no answer yet".into());
        }
        let (cache, limit) = (self.session.cache(), self.model.model().context_limit());
        let (tokens, megabytes) = (cache.len(), cache.nbytes() as f64 / 1e6);
        lines.push(format!("cache {tokens} of {limit} tokens, {megabytes:.1} MB"));
        lines.join("\n")
    }
}

fn figures(timings: &Timings) -> String {
    format!(
        "prompt {} tokens, {} of them cached, {:.1} tok/s\n\
         answer {} tokens, {:.1} tok/s, the first after {:.3} s; peak memory {:.1} MB",
        timings.prompt_tokens,
        timings.cached_prompt_tokens,
        timings.prefill_tokens_per_second(),
        timings.generated_tokens,
        timings.decode_tokens_per_second(),
        timings.time_to_first_token.as_secs_f64(),
        timings.peak_memory as f64 / 1e6,
    )
}

/// Shows a turn as it comes.
fn show(chat: &mut Chat<Decoder>, show_analysis: bool, screen: &mut Screen) -> Result<(), Failure> {
    chat.prefill(|done, total| screen.status(&format!("reading {done}/{total} tokens")))?;
    for event in chat {
        match event? {
            ChatEvent::AnalysisDelta { text } if show_analysis => screen.aside(&text)?,
            ChatEvent::AnalysisDelta { .. } => screen.status("thinking"),
            ChatEvent::FinalDelta { text } | ChatEvent::CommentaryDelta { text } => {
                screen.answer(&text)?;
            }
            ChatEvent::ToolCallStarted { name, .. } => screen.aside(&format!("{name} "))?,
            ChatEvent::ArgumentsDelta { text, .. } => screen.aside(&text)?,
            ChatEvent::MessageEnd { .. } => screen.end_line()?,
            _ => {}
        }
    }
    Ok(())
}

fn show_result(name: &str, result: &ToolResult, screen: &mut Screen) -> io::Result<()> {
    screen.aside(&match result {
        Ok(text) => format!("{name} returned {text}\n"),
        Err(error) => format!("{name} failed: {error}\n"),
    })
}
