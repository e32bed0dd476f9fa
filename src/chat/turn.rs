//! A turn of the model as a message of the conversation.

use std::collections::BTreeSet;

use super::conversation::{AssistantMessage, CALL_NAME_LIMIT, Conversation, Message, ToolCall};
use super::events::{ChatEvent, EndReason};

/// What is between two messages of the same channel.
const PARAGRAPH: &str = "\n\n";

/// What the model said in one turn. Messages of the same channel are joined by an empty line.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Turn {
    /// The reasoning; empty without one.
    pub analysis: String,
    /// Remarks to the user that are no answer, such as what tools will be called for.
    pub commentary: String,
    /// The answer; empty without one.
    pub answer: String,
    /// The tools called, in order; there are some exactly when `reason` is
    /// [`EndReason::ToolCalls`]. Their ids are empty: [`Conversation::push_turn`] chooses them.
    pub calls: Vec<ToolCall>,
    /// Why the turn ended.
    pub reason: EndReason,
}

impl Turn {
    /// The turn as one message, whose content is what the user was told: remarks and answer.
    /// None when nothing was said.
    fn into_message(self) -> Option<AssistantMessage> {
        let Self { analysis, commentary: mut content, answer, calls: tool_calls, .. } = self;
        if !content.is_empty() && !answer.is_empty() {
            content.push_str(PARAGRAPH);
        }
        content.push_str(&answer);
        let text = |text: String| (!text.is_empty()).then_some(text);
        let message =
            AssistantMessage { analysis: text(analysis), content: text(content), tool_calls };
        (message != AssistantMessage::default()).then_some(message)
    }
}

/// Collects the events of a turn. Whatever they are and wherever they end, there is a [`Turn`].
///
/// A turn that was cut off, by its length or from outside, keeps its texts as far as they came. It
/// has no calls: the last one may lack its end, and the model has not asked for results yet.
#[derive(Debug, Clone, Default)]
pub struct TurnBuilder {
    /// Analysis, commentary, answer.
    texts: [Text; 3],
    calls: Vec<ToolCall>,
    reason: Option<EndReason>,
}

#[derive(Debug, Clone, Default)]
struct Text {
    text: String,
    /// True when the message that was written last is over.
    ended: bool,
}

impl Text {
    fn push(&mut self, more: &str) {
        if std::mem::take(&mut self.ended) && !self.text.is_empty() {
            self.text.push_str(PARAGRAPH);
        }
        self.text.push_str(more);
    }
}

impl TurnBuilder {
    /// Takes the next event.
    pub fn push(&mut self, event: &ChatEvent) {
        let [analysis, commentary, answer] = &mut self.texts;
        match event {
            ChatEvent::AnalysisDelta { text } => analysis.push(text),
            ChatEvent::CommentaryDelta { text } => commentary.push(text),
            ChatEvent::FinalDelta { text } => answer.push(text),
            ChatEvent::MessageEnd { .. } => {
                for text in &mut self.texts {
                    text.ended = true;
                }
            }
            ChatEvent::ToolCallFinished { name, arguments, .. } => {
                self.calls.push(ToolCall::new("", name, arguments));
            }
            ChatEvent::TurnEnd { reason } => self.reason = Some(*reason),
            // Said again, whole, by the event that finishes the call.
            ChatEvent::ToolCallStarted { .. } | ChatEvent::ArgumentsDelta { .. } => {}
        }
    }

    /// The turn. Without [`ChatEvent::TurnEnd`] it counts as cancelled.
    pub fn finish(self) -> Turn {
        let Self { texts: [analysis, commentary, answer], mut calls, reason } = self;
        let reason = reason.unwrap_or(EndReason::Cancelled);
        if reason != EndReason::ToolCalls {
            calls.clear();
        }
        Turn {
            analysis: analysis.text,
            commentary: commentary.text,
            answer: answer.text,
            calls,
            reason,
        }
    }
}

impl Conversation {
    /// Adds what the model said, as one message; nothing when it said nothing. Calls get ids that
    /// no other call of the conversation has. Returns the calls added, each of which needs a
    /// [`Message::tool_result`] before the model goes on.
    ///
    /// A name that the model made up and that no prompt can show (empty, or very long) is
    /// shortened, or becomes `unknown`.
    pub fn push_turn(&mut self, mut turn: Turn) -> &[ToolCall] {
        let calls = self.messages.iter().flat_map(|message| match message {
            Message::Assistant(message) => message.tool_calls.as_slice(),
            _ => &[],
        });
        let used: BTreeSet<&str> = calls.map(|call| call.id.as_str()).collect();
        let free = (used.len()..).map(|n| format!("call_{n}"));
        let mut free = free.filter(|id| !used.contains(id.as_str()));
        for call in &mut turn.calls {
            call.id = free.next().unwrap_or_default();
            call.name = showable(&call.name);
        }
        drop(free);
        let Some(message) = turn.into_message() else { return &[] };
        self.messages.push(message.into());
        match self.messages.last() {
            Some(Message::Assistant(message)) => &message.tool_calls,
            _ => &[],
        }
    }

    /// The names by which the model may call what is on offer: functions, and of the built-in
    /// tools `browser.search`, `browser.open`, `browser.find` and `python`.
    pub fn tool_names(&self) -> Vec<String> {
        let functions = self.tools.iter().map(|tool| tool.name.clone());
        let builtin = self.builtin_tools.iter().flat_map(|tool| tool.functions());
        functions.chain(builtin.map(|(name, _)| name.to_owned())).collect()
    }
}

/// A name as it can be part of a header.
fn showable(name: &str) -> String {
    let shown = name.chars().filter(|c| !c.is_whitespace() && !c.is_control());
    let name: String = shown.take(CALL_NAME_LIMIT).collect();
    if name.is_empty() { "unknown".into() } else { name }
}
