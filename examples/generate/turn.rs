//! The messages of which an answer consists, and what of them goes to stderr.

use std::io::{self, Write};

use gpt_oss_mlx::FinishReason;
use gpt_oss_mlx::chat::events::{ChatEvent, EndReason};
use gpt_oss_mlx::chat::harmony::HarmonyParser;
use serde::Serialize;

use crate::args::Args;

/// A message of the model.
#[derive(Debug, Serialize)]
pub struct Said {
    channel: Option<String>,
    recipient: Option<String>,
    content: String,
}

/// The model's turn so far.
pub struct Turn {
    parser: HarmonyParser,
    messages: Vec<Said>,
    /// Of the message that is not over.
    content: String,
    reason: EndReason,
    show_analysis: bool,
    show_calls: bool,
    /// What the line on stderr has not been ended after.
    open: bool,
}

/// A turn that is over.
pub struct Done {
    pub messages: Vec<Said>,
    pub reason: EndReason,
}

impl Turn {
    /// A turn that has not begun. In JSON the calls are part of the object.
    pub fn new(parser: HarmonyParser, args: &Args) -> Self {
        let (messages, content) = Default::default();
        let (show_analysis, show_calls) = (args.show_analysis, !args.json);
        let reason = EndReason::Stop;
        Self { parser, messages, content, reason, show_analysis, show_calls, open: false }
    }

    /// Takes the next token.
    pub fn push(&mut self, id: u32) -> gpt_oss_mlx::Result<()> {
        for event in self.parser.push(id)? {
            self.add(event);
        }
        Ok(())
    }

    /// Ends the turn.
    pub fn finish(mut self, reason: FinishReason) -> Done {
        for event in self.parser.finish(reason.into()) {
            self.add(event);
        }
        Done { messages: self.messages, reason: self.reason }
    }

    fn add(&mut self, event: ChatEvent) {
        match event {
            ChatEvent::AnalysisDelta { text } => {
                self.show(&text, self.show_analysis);
                self.content.push_str(&text);
            }
            ChatEvent::CommentaryDelta { text } => {
                self.show(&text, self.show_calls);
                self.content.push_str(&text);
            }
            ChatEvent::ToolCallStarted { name, .. } => {
                self.show(&format!("call {name} "), self.show_calls);
            }
            ChatEvent::ArgumentsDelta { text, .. } => {
                self.show(&text, self.show_calls);
                self.content.push_str(&text);
            }
            ChatEvent::FinalDelta { text } => self.content.push_str(&text),
            ChatEvent::MessageEnd { channel, recipient, .. } => {
                if std::mem::take(&mut self.open) {
                    self.print("\n");
                }
                let content = std::mem::take(&mut self.content);
                self.messages.push(Said { channel, recipient, content });
            }
            ChatEvent::TurnEnd { reason } => self.reason = reason,
            _ => {}
        }
    }

    fn show(&mut self, text: &str, wanted: bool) {
        if wanted {
            self.print(text);
            self.open = true;
        }
    }

    /// Unlike `eprint!` this does not panic when nobody reads there.
    fn print(&self, text: &str) {
        let _ = io::stderr().write_all(text.as_bytes());
    }
}
