//! A conversation in which the model calls tools: it asks, the app answers, it goes on.
//!
//! [`TextModel::chat_with_tools`] does it all with a [`ToolHandler`], such as an async closure:
//!
//! ```
//! use gpt_oss_mlx::chat::tool_loop::{ToolError, ToolLoop, ToolLoopEnd};
//! use gpt_oss_mlx::chat::{Conversation, Message, Tool, ToolCall};
//! use gpt_oss_mlx::{ChatOptions, LoadOptions, Session, TextModel};
//! use serde_json::{Value, json};
//!
//! # fn block_on<T>(future: impl Future<Output = T>) -> T {
//! #     struct Unpark(std::thread::Thread);
//! #     impl std::task::Wake for Unpark {
//! #         fn wake(self: std::sync::Arc<Self>) { self.0.unpark(); }
//! #     }
//! #     let waker = std::sync::Arc::new(Unpark(std::thread::current())).into();
//! #     let mut context = std::task::Context::from_waker(&waker);
//! #     let mut future = std::pin::pin!(future);
//! #     loop {
//! #         match future.as_mut().poll(&mut context) {
//! #             std::task::Poll::Ready(output) => return output,
//! #             std::task::Poll::Pending => std::thread::park(),
//! #         }
//! #     }
//! # }
//! async fn weather(call: ToolCall) -> Result<String, ToolError> {
//!     let arguments: Value = serde_json::from_str(&call.arguments)?;
//!     match arguments["location"].as_str() {
//!         Some("Paris") => Ok(json!({"sky": "sunny", "celsius": 21}).to_string()),
//!         _ => Err(ToolError::new("there is no such city")),
//!     }
//! }
//!
//! # fn main() -> gpt_oss_mlx::Result<()> {
//! let model = TextModel::load("assets/gpt-oss-tiny", &LoadOptions::default())?;
//! let mut session = Session::new(model.model());
//! let schema = json!({"type": "object", "properties": {"location": {"type": "string"}}});
//! let tool = Tool::new("get_weather", "Gets the weather of a city.", schema);
//! let question = Message::user("What is the weather in Paris?");
//! let mut conversation = Conversation::new([question]).with_tools([tool]);
//!
//! let tools = ToolLoop::new(&mut conversation).with_max_rounds(4);
//! let options = ChatOptions::default();
//! let end = block_on(model.chat_with_tools(&mut session, tools, &weather, &options, |event| {
//!     println!("{event:?}");
//! }))?;
//! assert!(matches!(end, ToolLoopEnd::Turn(_)));
//! assert!(conversation.messages.len() >= 4, "question, call, result, answer");
//! # Ok(())
//! # }
//! ```
//!
//! # Threads
//!
//! The future waits for handlers without blocking, but computes on the thread that polls it for as
//! long as the model's turn takes. In an async app it belongs on a thread of its own, which owns
//! the model (`std::thread::spawn`, or tokio's `spawn_blocking`) and there is waited for with
//! the runtime's `block_on` (tokio: `Handle::current().block_on(…)`, so that handlers may use the
//! runtime). Events go to the app through a channel that the event closure owns. The future itself
//! is not `Send`, since a model is used by one thread at a time; handlers and what they return
//! are. Time-outs need no runtime.
//!
//! # Without async
//!
//! [`ToolLoop`] is a plain state machine that does nothing by itself. [`ToolLoop::step`] says what
//! is to be done next:
//!
//! ```
//! use gpt_oss_mlx::chat::Conversation;
//! use gpt_oss_mlx::chat::tool_loop::{Step, ToolError, ToolLoop, ToolLoopEnd};
//! use gpt_oss_mlx::{ChatOptions, Session, TextModel};
//!
//! fn run(
//!     model: &TextModel,
//!     session: &mut Session,
//!     conversation: &mut Conversation,
//! ) -> gpt_oss_mlx::Result<ToolLoopEnd> {
//!     let mut tools = ToolLoop::new(conversation);
//!     loop {
//!         match tools.step() {
//!             Step::Turn => {
//!                 let conversation = tools.conversation();
//!                 let mut chat = model.chat(session, conversation, &ChatOptions::default())?;
//!                 for event in &mut chat {
//!                     println!("{:?}", event?);
//!                 }
//!                 tools.take_turn(chat.into_turn());
//!             }
//!             Step::Calls(calls) => {
//!                 for call in calls {
//!                     tools.answer(&call.id, Err(ToolError::new("not today")))?;
//!                 }
//!             }
//!             Step::End(end) => return Ok(end),
//!         }
//!     }
//! }
//! ```
//!
//! # What the model is told
//!
//! A result as it stands. What went wrong, as `{"error": "…"}`: a handler's error, a time-out, a
//! call of a tool that is not on offer or with arguments that are not JSON. The latter two never
//! reach a handler, and count as rounds like others.
//!
//! # When it ends early
//!
//! A turn is part of the conversation once it is complete; an error in the middle of one leaves the
//! conversation as it was before that turn. A [`ToolLoop`] that is dropped while calls are open, as
//! by dropping the future, answers them with an error, so that every call has a result and the
//! conversation can go on. The session always matches its own cache, and a later prompt reuses of
//! it what fits.
//!
//! [`TextModel::chat_with_tools`]: crate::TextModel::chat_with_tools

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use serde::de::IgnoredAny;
use serde_json::json;

use super::conversation::{BuiltinTool, Conversation, Message, ToolCall};
use super::events::{ChatEvent, EndReason};
use super::timeout::within;
use super::turn::Turn;
use crate::error::{Error, Result};

/// Rounds of a [`ToolLoop`] that is told nothing else.
const MAX_ROUNDS: usize = 16;
/// Its time-out.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Why a call has no result. The model reads it.
///
/// Any error becomes one by `?`, so that it is none itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolError(String);

impl ToolError {
    /// An error in words for the model.
    pub fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}

impl Display for ToolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<E: std::error::Error> From<E> for ToolError {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

/// What a tool returns: text that the model sees as it stands, often JSON.
pub type ToolResult = std::result::Result<String, ToolError>;

/// A tool's result to come.
pub type ToolFuture<'a> = Pin<Box<dyn Future<Output = ToolResult> + Send + 'a>>;

/// What runs the tools: async functions and closures that take a [`ToolCall`] (their futures own
/// what they use), and maps from names to handlers. Owned by the app.
pub trait ToolHandler: Send + Sync {
    /// Runs a call. The tool is on offer and the arguments are JSON, but need not fit its schema;
    /// those of `python` are code. A time-out drops the future where it waits; one that blocks the
    /// thread instead cannot be timed.
    fn call<'a>(&'a self, call: &'a ToolCall) -> ToolFuture<'a>;
}

impl<F, R> ToolHandler for F
where
    F: Fn(ToolCall) -> R + Send + Sync,
    R: Future<Output = ToolResult> + Send + 'static,
{
    fn call<'a>(&'a self, call: &'a ToolCall) -> ToolFuture<'a> {
        Box::pin(self(call.clone()))
    }
}

impl ToolHandler for BTreeMap<String, Box<dyn ToolHandler>> {
    fn call<'a>(&'a self, call: &'a ToolCall) -> ToolFuture<'a> {
        match self.get(&call.name) {
            Some(handler) => handler.call(call),
            None => {
                let error = ToolError(format!("`{}` is not available now", call.name));
                Box::pin(std::future::ready(Err(error)))
            }
        }
    }
}

/// Something that happened while the model used tools.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ToolLoopEvent {
    /// In the model's turn. Each turn ends with [`ChatEvent::TurnEnd`].
    Chat(ChatEvent),
    /// A handler is about to be asked.
    Called(ToolCall),
    /// The model is told this. Not after [`ToolLoopEvent::Called`] when the call was refused.
    Answered(Answer),
}

/// What came of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Answer {
    /// The call, with the id that it has in the conversation.
    pub call: ToolCall,
    /// Its result, or what went wrong.
    pub result: ToolResult,
}

/// How the conversation came to rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ToolLoopEnd {
    /// The model's turn ended without a call, for this reason.
    Turn(EndReason),
    /// The model called tools once more than it may. Those calls were not run, and are answered in
    /// the conversation by an error that says so.
    RoundLimit,
}

/// What is to be done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The model is to take its turn in [`ToolLoop::conversation`], for [`ToolLoop::take_turn`].
    Turn,
    /// These calls are to be answered by [`ToolLoop::answer`], in any order; never empty.
    Calls(Vec<ToolCall>),
    /// Nothing.
    End(ToolLoopEnd),
}

/// A conversation in which the model calls tools, as a state machine; see the [module](self).
#[derive(Debug)]
pub struct ToolLoop<'a> {
    conversation: &'a mut Conversation,
    max_rounds: usize,
    timeout: Option<Duration>,
    rounds: usize,
    /// Calls without an answer.
    open: Vec<ToolCall>,
    end: Option<ToolLoopEnd>,
}

impl<'a> ToolLoop<'a> {
    /// Begins with the model's turn. At most 16 rounds, 60 seconds for each call.
    pub fn new(conversation: &'a mut Conversation) -> Self {
        Self {
            conversation,
            max_rounds: MAX_ROUNDS,
            timeout: Some(TIMEOUT),
            rounds: 0,
            open: Vec::new(),
            end: None,
        }
    }

    /// Most turns whose calls are answered; 0 runs no tool. A turn may have several calls.
    #[must_use]
    pub fn with_max_rounds(mut self, rounds: usize) -> Self {
        self.max_rounds = rounds;
        self
    }

    /// How long [`ToolLoop::run`] waits for one call; None waits as long as it takes.
    #[must_use]
    pub fn with_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.timeout = timeout.into();
        self
    }

    /// The conversation so far.
    pub fn conversation(&self) -> &Conversation {
        self.conversation
    }

    /// What is to be done next.
    pub fn step(&self) -> Step {
        match self.end {
            Some(end) => Step::End(end),
            None if self.open.is_empty() => Step::Turn,
            None => Step::Calls(self.open.clone()),
        }
    }

    /// Adds a turn of the model to the conversation. Answers calls that cannot be run: returns
    /// those, with what is wrong.
    ///
    /// To be called when [`ToolLoop::step`] asks for it; otherwise calls that are still open are
    /// answered as when the loop is dropped.
    pub fn take_turn(&mut self, turn: Turn) -> Vec<Answer> {
        self.abandon();
        let reason = turn.reason;
        let calls = self.conversation.push_turn(turn).to_vec();
        self.end = match reason {
            EndReason::ToolCalls if self.rounds >= self.max_rounds => Some(ToolLoopEnd::RoundLimit),
            EndReason::ToolCalls => None,
            reason => Some(ToolLoopEnd::Turn(reason)),
        };
        self.rounds = self.rounds.saturating_add(1);
        let mut refused = Vec::new();
        for call in calls {
            match self.problem(&call) {
                None => self.open.push(call),
                Some(error) => {
                    self.tell(&call, &Err(error.clone()));
                    refused.push(Answer { call, result: Err(error) });
                }
            }
        }
        refused
    }

    /// Answers a call.
    ///
    /// # Errors
    /// [`Error::Argument`] when no call with this id is open.
    pub fn answer(&mut self, call_id: &str, result: ToolResult) -> Result<()> {
        let at = self.open.iter().position(|call| call.id == call_id).ok_or_else(|| {
            Error::argument("call_id", format!("`{call_id}` is no call that is open"))
        })?;
        let call = self.open.remove(at);
        self.tell(&call, &result);
        Ok(())
    }

    /// Runs the conversation to its end. `turn` lets the model take its turn, giving its events
    /// as they come; for a [`TextModel`](crate::TextModel) there is
    /// [`chat_with_tools`](crate::TextModel::chat_with_tools). The calls of a turn are run one
    /// after the other.
    ///
    /// # Errors
    /// Those of `turn`. What goes wrong in a handler is no error: the model is told.
    pub async fn run(
        mut self,
        handler: &dyn ToolHandler,
        mut turn: impl FnMut(&Conversation, &mut dyn FnMut(ChatEvent)) -> Result<Turn>,
        mut on_event: impl FnMut(ToolLoopEvent),
    ) -> Result<ToolLoopEnd> {
        loop {
            match self.step() {
                Step::End(end) => return Ok(end),
                Step::Turn => {
                    let mut give = |event| on_event(ToolLoopEvent::Chat(event));
                    let turn = turn(self.conversation, &mut give)?;
                    for answer in self.take_turn(turn) {
                        on_event(ToolLoopEvent::Answered(answer));
                    }
                }
                Step::Calls(calls) => {
                    for call in calls {
                        on_event(ToolLoopEvent::Called(call.clone()));
                        let result = self.ask(handler, &call).await;
                        self.answer(&call.id, result.clone())?;
                        on_event(ToolLoopEvent::Answered(Answer { call, result }));
                    }
                }
            }
        }
    }

    /// A handler's result, in time.
    async fn ask(&self, handler: &dyn ToolHandler, call: &ToolCall) -> ToolResult {
        let Some(limit) = self.timeout else { return handler.call(call).await };
        match within(limit, handler.call(call)).await {
            Ok(Some(result)) => result,
            Ok(None) => Err(ToolError(format!("no result within {limit:?}"))),
            Err(error) => Err(ToolError(format!("cannot be timed: {error}"))),
        }
    }

    /// Why a call is not to be run.
    fn problem(&self, call: &ToolCall) -> Option<ToolError> {
        if self.end.is_some() {
            return Some(ToolError(format!("not run: more than {} rounds", self.max_rounds)));
        }
        let names = self.conversation.tool_names();
        if !names.contains(&call.name) {
            let offered = match names.is_empty() {
                true => "there are none".into(),
                false => format!("those on offer are {}", names.join(", ")),
            };
            return Some(ToolError(format!("`{}` is not a tool; {offered}", call.name)));
        }
        let is_code = call.name == BuiltinTool::Python.as_str()
            && !self.conversation.tools.iter().any(|tool| tool.name == call.name);
        match serde_json::from_str::<IgnoredAny>(&call.arguments) {
            Err(error) if !is_code => {
                Some(ToolError(format!("the arguments are not JSON: {error}")))
            }
            _ => None,
        }
    }

    fn tell(&mut self, call: &ToolCall, result: &ToolResult) {
        let content = match result {
            Ok(text) => text.clone(),
            Err(error) => json!({"error": error.0}).to_string(),
        };
        self.conversation.messages.push(Message::tool_result(&call.id, content));
    }

    /// Answers what nobody will.
    fn abandon(&mut self) {
        for call in std::mem::take(&mut self.open) {
            self.tell(&call, &Err(ToolError::new("cancelled")));
        }
    }
}

impl Drop for ToolLoop<'_> {
    fn drop(&mut self) {
        self.abandon();
    }
}
