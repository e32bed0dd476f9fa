//! Tokens of the model's output as the text that is shown.

use crate::chat::events::{ChatEvent, EndReason, Part};
use crate::chat::harmony::HarmonyParser;
use crate::error::Result;
use crate::stop::StopMatcher;
use crate::tokenizer::{Detokenizer, Tokenizer};

/// Which part of the model's output is given as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Visible {
    /// The answer: the messages of the `final` channel, without control tokens. For prompts that
    /// end where the assistant's turn begins, as
    /// [`TextModel::chat_prompt`](crate::TextModel::chat_prompt) makes them.
    #[default]
    Final,
    /// Everything, control tokens by their names.
    Everything,
}

/// How tokens become visible text.
#[derive(Debug)]
pub(crate) enum VisibleText {
    /// The final channel of a turn.
    Final(Box<HarmonyParser>),
    /// All that is generated.
    Plain { detokenizer: Detokenizer, stop: StopMatcher },
}

impl VisibleText {
    pub(crate) fn new(tokenizer: &Tokenizer, visible: Visible, stop: &[String]) -> Result<Self> {
        let parser = match visible {
            Visible::Final => HarmonyParser::new(tokenizer),
            Visible::Everything => None,
        };
        Ok(match parser {
            Some(parser) => Self::Final(Box::new(parser.with_stop(stop.to_vec())?)),
            None => Self::Plain {
                // Control tokens are shown only where everything is.
                detokenizer: tokenizer.stream(visible == Visible::Final),
                stop: StopMatcher::new(stop.to_vec())?,
            },
        })
    }

    /// Takes the next token, which may be one that stops: the text that can be shown now, and
    /// whether a stop string ended it.
    pub(crate) fn push(&mut self, id: u32, stops: bool) -> Result<(String, bool)> {
        Ok(match self {
            Self::Final(parser) => (answer(parser.push(id)?), parser.stopped().is_some()),
            // A stop token ends the text and is no part of it.
            Self::Plain { .. } if stops => (String::new(), false),
            Self::Plain { detokenizer, stop } => {
                let (shown, stopped) = stop.push(&detokenizer.push(id)?);
                (shown, stopped.is_some())
            }
        })
    }

    /// Where in the turn the token stands that was pushed last; where everything is shown, all of it
    /// is the answer.
    pub(crate) fn part_of(&self, id: u32) -> Part {
        match self {
            Self::Final(parser) => parser.part_of(id),
            Self::Plain { .. } => Part::Final,
        }
    }

    /// What was held back and will not be completed any more, and whether a stop string ended it.
    pub(crate) fn finish(&mut self) -> (String, bool) {
        match self {
            Self::Final(parser) => {
                let events = parser.finish(EndReason::Stop);
                let end = ChatEvent::TurnEnd { reason: EndReason::StopString };
                let stopped = events.last() == Some(&end);
                (answer(events), stopped)
            }
            Self::Plain { detokenizer, stop } => {
                let (mut text, stopped) = stop.push(&detokenizer.finish());
                if stopped.is_none() {
                    text.push_str(&stop.finish());
                }
                (text, stopped.is_some())
            }
        }
    }
}

/// The text of the final channel.
fn answer(events: Vec<ChatEvent>) -> String {
    let text = |event| match event {
        ChatEvent::FinalDelta { text } => Some(text),
        _ => None,
    };
    events.into_iter().filter_map(text).collect()
}
