//! A conversation: who said what, the tools on offer, and what the model is told about itself.
//!
//! The types read and write the shape of OpenAI's chat completions API, so that a request's JSON
//! body is a [`Conversation`]; see [`Conversation::from_json`] for what is accepted beyond it.
//! [`Conversation::template_input`] prepares one for a model's chat template.

use std::fmt::Display;

use serde_json::{Value, json};

use super::template::TemplateInput;
use super::tools::{self, Tool};
use crate::error::{Error, Result};

/// Longest name of a tool that a call in the history may have. The model wrote it, so that it may
/// be none of those on offer.
pub(super) const CALL_NAME_LIMIT: usize = 256;

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Whoever runs the app. OpenAI's API calls the same `developer` for its newer models.
    System,
    /// Whoever wrote the app.
    Developer,
    /// Whoever uses it.
    User,
    /// The model.
    Assistant,
    /// What a tool returned.
    Tool,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 5] =
        [Self::System, Self::Developer, Self::User, Self::Assistant, Self::Tool];

    /// Its name in JSON: `system`, `developer`, `user`, `assistant` or `tool`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Developer => "developer",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Message {
    /// Instructions.
    System(String),
    /// Instructions.
    Developer(String),
    /// What the user says.
    User(String),
    /// What the model said.
    Assistant(AssistantMessage),
    /// What a tool returned.
    Tool(ToolMessage),
}

/// A turn of the model, or one of several of which a turn with tool calls consists.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AssistantMessage {
    /// The reasoning before the answer or the calls (the `analysis` channel).
    pub analysis: Option<String>,
    /// The answer (the `final` channel); next to tool calls what the model said to the user before
    /// them (a preamble in the `commentary` channel).
    pub content: Option<String>,
    /// The tools called, in order.
    pub tool_calls: Vec<ToolCall>,
}

/// A call of a tool by the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolCall {
    /// What the tool's message refers to; unique within the turn.
    pub id: String,
    /// The tool, without `functions.` before it.
    pub name: String,
    /// The arguments, as the model wrote them. They need not be valid JSON.
    pub arguments: String,
}

/// What a tool returned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolMessage {
    /// The call answered. Empty when it is not known: the turn then has to have one open call, or
    /// one of that name.
    pub tool_call_id: String,
    /// The tool's name, if given.
    pub name: Option<String>,
    /// The result, which the model sees as it stands.
    pub content: String,
}

impl ToolCall {
    /// A call of the tool `name` with arguments as JSON text.
    pub fn new(
        id: impl Into<String>,
        name: impl Into<String>,
        arguments: impl Into<String>,
    ) -> Self {
        Self { id: id.into(), name: name.into(), arguments: arguments.into() }
    }
}

impl AssistantMessage {
    /// An answer.
    pub fn new(content: impl Into<String>) -> Self {
        Self { content: Some(content.into()), ..Self::default() }
    }

    /// The same message with the reasoning that led to it.
    #[must_use]
    pub fn with_analysis(mut self, analysis: impl Into<String>) -> Self {
        self.analysis = Some(analysis.into());
        self
    }

    /// The same message with one more tool call.
    #[must_use]
    pub fn with_call(mut self, call: ToolCall) -> Self {
        self.tool_calls.push(call);
        self
    }
}

impl From<AssistantMessage> for Message {
    fn from(message: AssistantMessage) -> Self {
        Self::Assistant(message)
    }
}

impl Message {
    /// Instructions from whoever runs the app.
    pub fn system(text: impl Into<String>) -> Self {
        Self::System(text.into())
    }

    /// Instructions from whoever wrote the app.
    pub fn developer(text: impl Into<String>) -> Self {
        Self::Developer(text.into())
    }

    /// Instructions that name a JSON Schema for the answer, in the form that OpenAI's Harmony guide
    /// gives for it. It belongs behind other instructions, since all are joined in their order; a
    /// template puts tools after them. Being told makes the model follow the schema more likely;
    /// only constrained decoding (`response_format` of [`ChatOptions`](crate::ChatOptions)) makes it
    /// certain.
    pub fn response_format(name: impl Display, description: Option<&str>, schema: &Value) -> Self {
        let mut text = format!("# Response Formats\n\n## {name}\n\n");
        for line in description.unwrap_or_default().lines() {
            text.push_str(&format!("// {line}\n"));
        }
        text.push_str(&schema.to_string());
        Self::Developer(text)
    }

    /// What the user says.
    pub fn user(text: impl Into<String>) -> Self {
        Self::User(text.into())
    }

    /// The model's answer. For reasoning and tool calls see [`AssistantMessage`].
    pub fn assistant(text: impl Into<String>) -> Self {
        AssistantMessage::new(text).into()
    }

    /// What the tool returned for the call with the id `call_id`.
    pub fn tool_result(call_id: impl Into<String>, content: impl Into<String>) -> Self {
        let (tool_call_id, content) = (call_id.into(), content.into());
        Self::Tool(ToolMessage { tool_call_id, name: None, content })
    }

    /// Who speaks.
    pub fn role(&self) -> Role {
        match self {
            Self::System(_) => Role::System,
            Self::Developer(_) => Role::Developer,
            Self::User(_) => Role::User,
            Self::Assistant(_) => Role::Assistant,
            Self::Tool(_) => Role::Tool,
        }
    }

    /// What is said, without reasoning and tool calls.
    pub fn text(&self) -> &str {
        match self {
            Self::System(text) | Self::Developer(text) | Self::User(text) => text,
            Self::Assistant(message) => message.content.as_deref().unwrap_or_default(),
            Self::Tool(message) => &message.content,
        }
    }

    /// True for a message that ends the model's turn with an answer.
    fn is_final(&self) -> bool {
        match self {
            Self::Assistant(message) => message.tool_calls.is_empty() && message.content.is_some(),
            _ => false,
        }
    }
}

/// How much the model reasons before it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ReasoningEffort {
    /// Briefly.
    Low,
    /// The models' own default.
    Medium,
    /// At length.
    High,
}

impl ReasoningEffort {
    /// Every effort, the least first.
    pub const ALL: [Self; 3] = [Self::Low, Self::Medium, Self::High];

    /// Its name in JSON and in the prompt: `low`, `medium` or `high`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }
}

impl std::str::FromStr for ReasoningEffort {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|effort| effort.as_str() == name).ok_or_else(|| {
            Error::argument("reasoning_effort", format!("`{name}` is not low, medium or high"))
        })
    }
}

/// A tool that GPT-OSS was trained with. The template describes it; running it is up to the app.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BuiltinTool {
    /// Search, open and find in web pages.
    Browser,
    /// Python in a notebook.
    Python,
}

impl BuiltinTool {
    /// Every one of them.
    pub const ALL: [Self; 2] = [Self::Browser, Self::Python];

    /// Its name in JSON and in the prompt: `browser` or `python`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Browser => "browser",
            Self::Python => "python",
        }
    }
}

/// Everything that a prompt is made from.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Conversation {
    /// What was said, the oldest first.
    pub messages: Vec<Message>,
    /// The tools on offer.
    pub tools: Vec<Tool>,
    /// The model's own tools on offer.
    pub builtin_tools: Vec<BuiltinTool>,
    /// How much to reason; without it, the template's default.
    pub reasoning_effort: Option<ReasoningEffort>,
    /// The day that the model is told, such as `2025-08-05`; without it, the day on which the
    /// prompt is made, in the local time zone. A conversation that lasts past midnight should set
    /// it: the date is at the start of the prompt, and what was computed after it is lost with it.
    pub date: Option<String>,
    /// The first sentence of the system message; without it, the template's. OpenAI advises to
    /// leave it and to say everything else in the instructions.
    pub model_identity: Option<String>,
}

impl Conversation {
    /// A conversation of these messages.
    pub fn new(messages: impl IntoIterator<Item = Message>) -> Self {
        Self { messages: messages.into_iter().collect(), ..Self::default() }
    }

    /// The same conversation with these tools on offer.
    #[must_use]
    pub fn with_tools(mut self, tools: impl IntoIterator<Item = Tool>) -> Self {
        self.tools = tools.into_iter().collect();
        self
    }

    /// The same conversation with these of the model's own tools on offer.
    #[must_use]
    pub fn with_builtin_tools(mut self, tools: impl IntoIterator<Item = BuiltinTool>) -> Self {
        self.builtin_tools = tools.into_iter().collect();
        self
    }

    /// The same conversation with this effort.
    #[must_use]
    pub fn with_effort(mut self, effort: ReasoningEffort) -> Self {
        self.reasoning_effort = Some(effort);
        self
    }

    /// The same conversation on this day, such as `2025-08-05`.
    #[must_use]
    pub fn with_date(mut self, date: impl Into<String>) -> Self {
        self.date = Some(date.into());
        self
    }

    /// The same conversation with a model that is told to be this.
    #[must_use]
    pub fn with_identity(mut self, identity: impl Into<String>) -> Self {
        self.model_identity = Some(identity.into());
        self
    }

    /// Checks what types cannot say: that there is a message, that every tool message answers a
    /// call of its turn, that names and schemas of tools are valid, that the date is one.
    ///
    /// # Errors
    /// [`Error::Conversation`] naming the first field that is wrong.
    pub fn validate(&self) -> Result<()> {
        self.checked().map(drop)
    }

    fn checked(&self) -> Result<Vec<Turn<'_>>> {
        if self.messages.is_empty() {
            return Err(Error::conversation("messages", "is empty"));
        }
        tools::validate(&self.tools)?;
        if let Some(date) = &self.date {
            date.parse::<jiff::civil::Date>().map_err(|_| {
                Error::conversation("date", format!("is `{date}`, not a date such as 2025-08-05"))
            })?;
        }
        self.turns()
    }

    /// The conversation as a chat template takes it, for a prompt that ends where the model's
    /// answer begins.
    ///
    /// Templates for GPT-OSS know one place for instructions, one call in a message, and the
    /// result right after its call. So instructions are joined and go first; a message with
    /// several calls becomes several, each followed by its result; and what the model said to the
    /// user before a call is joined to the reasoning before it.
    ///
    /// Reasoning stays while the tool calls that it led to have no final answer after them. Any
    /// other is left out, as is a message of reasoning alone.
    ///
    /// # Errors
    /// As [`Conversation::validate`].
    pub fn template_input(&self) -> Result<TemplateInput> {
        let turns = self.checked()?;
        let mut messages: Vec<Value> = self.instructions().into_iter().collect();
        let last_final = self.messages.iter().rposition(Message::is_final);
        for turn in turns {
            match turn {
                Turn::User(text) => messages.push(json!({"role": "user", "content": text})),
                Turn::Final(text) => messages.push(json!({"role": "assistant", "content": text})),
                Turn::Call { at, call, reasoning, result } => {
                    let function = json!({"name": call.name, "arguments": call.arguments});
                    let mut message = json!({
                        "role": "assistant",
                        "tool_calls": [{"type": "function", "id": call.id, "function": function}],
                    });
                    let kept = last_final.is_none_or(|last| last < at);
                    let fields = message.as_object_mut();
                    if let (Some(fields), Some(reasoning), true) = (fields, reasoning, kept) {
                        fields.insert("thinking".into(), reasoning.into());
                    }
                    messages.push(message);
                    messages.extend(result.map(|result| {
                        let (id, content) = (&result.tool_call_id, &result.content);
                        json!({
                            "role": "tool", "name": call.name,
                            "tool_call_id": id, "content": content,
                        })
                    }));
                }
            }
        }
        if messages.is_empty() {
            // Nothing that is shown was said; templates look at the first message all the same.
            messages.push(json!({"role": Role::Developer.as_str(), "content": ""}));
        }
        let mut input = TemplateInput::new(messages);
        input.tools = self.tools.iter().map(Tool::for_template).collect();
        input.now.clone_from(&self.date);
        input.verbatim = true;
        if let Some(effort) = self.reasoning_effort {
            input = input.with("reasoning_effort", effort.as_str());
        }
        if let Some(identity) = &self.model_identity {
            input = input.with("model_identity", identity.as_str());
        }
        if !self.builtin_tools.is_empty() {
            let names: Vec<_> = self.builtin_tools.iter().map(|tool| tool.as_str()).collect();
            input = input.with("builtin_tools", names);
        }
        Ok(input)
    }

    /// All instructions as one message.
    fn instructions(&self) -> Option<Value> {
        let of = |message: &Message| match message {
            Message::System(text) | Message::Developer(text) if !text.is_empty() => {
                Some((message.role(), text.clone()))
            }
            _ => None,
        };
        let (role, text) = self
            .messages
            .iter()
            .filter_map(of)
            .reduce(|(role, all), (_, text)| (role, all + "\n\n" + &text))?;
        Some(json!({"role": role.as_str(), "content": text}))
    }

    /// The conversation in the order in which it is rendered, every result next to its call.
    fn turns(&self) -> Result<Vec<Turn<'_>>> {
        let mut turns = Vec::new();
        // Where in `turns` the calls are that a tool message may answer.
        let mut open: Vec<usize> = Vec::new();
        for (at, message) in self.messages.iter().enumerate() {
            match message {
                Message::System(_) | Message::Developer(_) => {}
                Message::User(text) => {
                    open.clear();
                    turns.push(Turn::User(text));
                }
                Message::Assistant(message) if message.tool_calls.is_empty() => {
                    // A turn that was cut off while it reasoned has nothing to show.
                    if let Some(text) = &message.content {
                        open.clear();
                        turns.push(Turn::Final(text));
                    }
                }
                Message::Assistant(message) => {
                    let mut reasoning = message.reasoning();
                    for (i, call) in message.tool_calls.iter().enumerate() {
                        let field = |name| format!("messages[{at}].tool_calls[{i}].{name}");
                        check_call_name(&call.name)
                            .map_err(|e| Error::conversation(field("function.name"), e))?;
                        let same = |turn: &usize| {
                            turns.get(*turn).is_some_and(|t: &Turn| t.call_id() == Some(&call.id))
                        };
                        if !call.id.is_empty() && open.iter().any(same) {
                            let reason = format!("`{}` is the id of another call", call.id);
                            return Err(Error::conversation(field("id"), reason));
                        }
                        open.push(turns.len());
                        let reasoning = reasoning.take();
                        turns.push(Turn::Call { at, call, reasoning, result: None });
                    }
                }
                Message::Tool(message) => {
                    answer(&mut turns, &open, message).map_err(|(field, reason)| {
                        Error::conversation(format!("messages[{at}].{field}"), reason)
                    })?
                }
            }
        }
        Ok(turns)
    }
}

impl AssistantMessage {
    /// What goes before the calls.
    fn reasoning(&self) -> Option<String> {
        let texts = [&self.analysis, &self.content];
        let texts: Vec<&str> =
            texts.into_iter().flatten().map(String::as_str).filter(|t| !t.is_empty()).collect();
        (!texts.is_empty()).then(|| texts.join("\n\n"))
    }
}

/// What a template renders as one or two messages.
enum Turn<'a> {
    User(&'a str),
    Final(&'a str),
    Call {
        /// Which message the call is in.
        at: usize,
        call: &'a ToolCall,
        reasoning: Option<String>,
        result: Option<&'a ToolMessage>,
    },
}

impl Turn<'_> {
    fn call_id(&self) -> Option<&String> {
        match self {
            Turn::Call { call, .. } => Some(&call.id),
            _ => None,
        }
    }

    /// True for a call without a result that `message` may be meant for.
    fn awaits(&self, message: &ToolMessage) -> bool {
        let Turn::Call { call, result: None, .. } = self else { return false };
        if !message.tool_call_id.is_empty() {
            return call.id == message.tool_call_id;
        }
        message.name.as_deref().is_none_or(|name| bare(name) == bare(&call.name))
    }
}

/// A function's name with or without its namespace.
fn bare(name: &str) -> &str {
    name.strip_prefix("functions.").unwrap_or(name)
}

/// Puts a result next to its call; the field and the reason when there is no such call.
fn answer<'a>(
    turns: &mut [Turn<'a>],
    open: &[usize],
    message: &'a ToolMessage,
) -> std::result::Result<(), (&'static str, String)> {
    let id = &message.tool_call_id;
    let awaiting: Vec<usize> = open
        .iter()
        .copied()
        .filter(|&turn| turns.get(turn).is_some_and(|turn| turn.awaits(message)))
        .collect();
    let turn = match awaiting.as_slice() {
        [turn] => *turn,
        [] if id.is_empty() => {
            return Err(("tool_call_id", "is missing, and no call of this turn is open".into()));
        }
        [] => {
            let answered = open
                .iter()
                .any(|&turn| turns.get(turn).is_some_and(|turn| turn.call_id() == Some(id)));
            let reason = if answered {
                format!("`{id}` has been answered already")
            } else {
                format!("`{id}` is no call of this turn")
            };
            return Err(("tool_call_id", reason));
        }
        _ => {
            return Err((
                "tool_call_id",
                format!("is missing, and {} calls of this turn are open", awaiting.len()),
            ));
        }
    };
    if let Some(Turn::Call { result, .. }) = turns.get_mut(turn) {
        *result = Some(message);
    }
    Ok(())
}

/// The name is part of a header, where white space separates.
fn check_call_name(name: &str) -> std::result::Result<(), String> {
    if name.is_empty() {
        return Err("is empty".into());
    }
    if name.chars().count() > CALL_NAME_LIMIT {
        return Err(format!("is longer than {CALL_NAME_LIMIT} characters"));
    }
    if name.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(format!("{name:?} has white space or control characters"));
    }
    Ok(())
}
