//! The model's turn as the fields of one message that grow. Chunks of a stream and whole messages
//! are made from the same deltas, so that they cannot differ.

use gpt_oss_mlx::chat::events::ChatEvent;

use crate::ids;

/// What is between two messages of the model that become parts of one field.
const PARAGRAPH: &str = "\n\n";

/// What is new of the message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delta {
    /// More reasoning.
    Reasoning(String),
    /// More of what the user is told: remarks and the answer.
    Content(String),
    /// A call begins.
    Call { index: usize, id: String, name: String },
    /// More of a call's arguments.
    Arguments { index: usize, text: String },
}

/// Makes deltas of a turn's events.
#[derive(Debug, Default)]
pub struct Deltas {
    reasoning: Joint,
    content: Joint,
}

/// The place where the next text is joined to those before it.
#[derive(Debug, Default)]
struct Joint {
    begun: bool,
    ended: bool,
}

impl Joint {
    fn join(&mut self, text: String) -> String {
        let apart = std::mem::take(&mut self.ended) && self.begun;
        self.begun = true;
        if apart { format!("{PARAGRAPH}{text}") } else { text }
    }
}

impl Deltas {
    /// What an event adds to the message.
    pub fn push(&mut self, event: ChatEvent) -> Option<Delta> {
        match event {
            ChatEvent::AnalysisDelta { text } => Some(Delta::Reasoning(self.reasoning.join(text))),
            ChatEvent::CommentaryDelta { text } | ChatEvent::FinalDelta { text } => {
                Some(Delta::Content(self.content.join(text)))
            }
            ChatEvent::ToolCallStarted { index, name, .. } => {
                Some(Delta::Call { index, id: ids::id("call_"), name })
            }
            ChatEvent::ArgumentsDelta { index, text } => Some(Delta::Arguments { index, text }),
            ChatEvent::MessageEnd { .. } => {
                (self.reasoning.ended, self.content.ended) = (true, true);
                None
            }
            _ => None,
        }
    }
}
