//! What a turn of the model consists of, as it comes.

use serde::Serialize;

/// Something that happened in the model's turn. Texts of one kind, joined, are the whole text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum ChatEvent {
    /// More reasoning, not meant for the user.
    AnalysisDelta {
        /// The new text; never empty.
        text: String,
    },
    /// More of the answer.
    FinalDelta {
        /// The new text; never empty.
        text: String,
    },
    /// More of a remark to the user that comes before the answer, such as what tools will be
    /// called for.
    CommentaryDelta {
        /// The new text; never empty.
        text: String,
    },
    /// The model calls a tool.
    ToolCallStarted {
        /// Which call of this turn, from 0.
        index: usize,
        /// The function's name without `functions.`; built-in tools as they are called, such as
        /// `browser.search` and `python`.
        name: String,
        /// Whether this tool was offered; true where the parser was not told what is.
        known: bool,
    },
    /// More of the arguments of the call that started last.
    ArgumentsDelta {
        /// Which call of this turn.
        index: usize,
        /// The new text; never empty.
        text: String,
    },
    /// The call that started last is complete, or as complete as it will be.
    ToolCallFinished {
        /// Which call of this turn.
        index: usize,
        /// The name, as in [`ChatEvent::ToolCallStarted`].
        name: String,
        /// The arguments, whole, as the model wrote them.
        arguments: String,
        /// Whether the arguments are JSON. Those of `python` are code.
        valid_json: bool,
    },
    /// A message is over; every text belongs to the message whose end comes next.
    MessageEnd {
        /// The channel that the header names, if it does.
        channel: Option<String>,
        /// Whom the message is for, such as `functions.get_weather`.
        recipient: Option<String>,
        /// What the content is, such as `json`.
        content_type: Option<String>,
        /// The text of the header as it came. With the texts before this event it is all that the
        /// model wrote in this message, apart from control tokens.
        header: String,
        /// How the message departs from the format.
        defect: Option<Defect>,
    },
    /// The turn is over. The last event.
    TurnEnd {
        /// Why.
        reason: EndReason,
    },
}

/// How a message departs from the Harmony format; of several ways the first in this list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Defect {
    /// Text without any header.
    NoHeader,
    /// A header that runs into its text: `<|message|>` is missing.
    NoMessageToken,
    /// A header and nothing else.
    CutHeader,
    /// The header names another role than the assistant's.
    OtherRole,
    /// The header names no channel.
    NoChannel,
    /// The channel is none of `analysis`, `commentary` and `final`.
    UnknownChannel,
    /// Ended as a tool call, but for no tool.
    NoRecipient,
    /// Not ended: another message or the end of the stream came instead.
    NotEnded,
}

/// Where in the model's turn a token stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Part {
    /// In the header of a message, or a control token.
    Header,
    /// In reasoning.
    Analysis,
    /// In a remark that comes before the answer.
    Commentary,
    /// In the answer.
    Final,
    /// In the arguments of a call.
    ToolCall,
    /// Behind the turn's end; also the token that completes a stop string.
    Ended,
}

/// Why a turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum EndReason {
    /// The model said so.
    Stop,
    /// The model said so, and waits for what the tools return.
    ToolCalls,
    /// A stop string appeared in the answer.
    StopString,
    /// The number of tokens asked for, or the end of the model's context, was reached.
    Length,
    /// It was cancelled.
    Cancelled,
}

impl EndReason {
    /// The name that OpenAI's API uses, where it has one: "stop" (for stop strings too),
    /// "tool_calls", "length", "cancelled".
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop | Self::StopString => "stop",
            Self::ToolCalls => "tool_calls",
            Self::Length => "length",
            Self::Cancelled => "cancelled",
        }
    }
}
