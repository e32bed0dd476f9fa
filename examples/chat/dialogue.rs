//! The conversation and the model's turns in it.

use gpt_oss_mlx::chat::events::{ChatEvent, EndReason};
use gpt_oss_mlx::chat::{Conversation, Message, ToolCall, Turn};
use gpt_oss_mlx::{CancelToken, ChatOptions, Session, TextModel, Timings};
use serde_json::json;

use crate::Failure;
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
        for _ in 0..ROUNDS {
            let turn = self.turn(screen)?;
            let reason = turn.reason;
            let calls = self.conversation.push_turn(turn).to_vec();
            match reason {
                EndReason::ToolCalls => self.run(calls, screen)?,
                EndReason::Cancelled => return Ok(true),
                EndReason::Length => {
                    let tokens = self.options.generate.max_tokens;
                    screen.say(&format!("(cut off by --max-tokens {tokens} or a full context)"))?;
                    return Ok(false);
                }
                _ => return Ok(false),
            }
        }
        screen.say(&format!("(no answer after {ROUNDS} rounds of calls)"))?;
        Ok(false)
    }

    /// The model's turn up to its end or to calls of tools.
    fn turn(&mut self, screen: &mut Screen) -> Result<Turn, Failure> {
        let sampling = &mut self.options.generate.sampling;
        sampling.seed = sampling.seed.wrapping_add(1);
        let mut chat = self.model.chat(&mut self.session, &self.conversation, &self.options)?;
        chat.prefill(|done, total| screen.status(&format!("reading {done}/{total} tokens")))?;
        for event in &mut chat {
            match event? {
                ChatEvent::AnalysisDelta { text } => match self.show_analysis {
                    true => screen.aside(&text)?,
                    false => screen.status("thinking"),
                },
                ChatEvent::FinalDelta { text } | ChatEvent::CommentaryDelta { text } => {
                    screen.answer(&text)?;
                }
                ChatEvent::ToolCallStarted { name, .. } => screen.aside(&format!("{name} "))?,
                ChatEvent::ArgumentsDelta { text, .. } => screen.aside(&text)?,
                ChatEvent::MessageEnd { .. } => screen.end_line()?,
                _ => {}
            }
        }
        self.last.push(chat.timings());
        Ok(chat.into_turn())
    }

    /// Runs the tools called; what goes wrong is for the model to know.
    fn run(&mut self, calls: Vec<ToolCall>, screen: &mut Screen) -> Result<(), Failure> {
        for call in calls {
            let offered = self.conversation.tools.iter().any(|tool| tool.name == call.name);
            let result = match offered {
                true => tools::call(&call.name, &call.arguments),
                false => Err("this tool is not on offer".into()),
            };
            let result = result.unwrap_or_else(|error| json!({"error": error})).to_string();
            screen.aside(&format!("{} returned {result}\n", call.name))?;
            self.conversation.messages.push(Message::tool_result(call.id, result));
        }
        Ok(())
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
