//! From tokens to a request's events.

use super::events::{EngineEvent, TokenEvent};
use crate::chat::events::{ChatEvent, EndReason, Part};
use crate::chat::harmony::HarmonyParser;
use crate::error::{Error, Result};
use crate::generate::{FinishReason, Token};
use crate::tokenizer::Tokenizer;
use crate::visible::{Visible, VisibleText};

/// What becomes of a request's tokens.
pub(super) enum Output {
    Chat(Box<HarmonyParser>),
    Text(VisibleText),
}

impl Output {
    pub(super) fn chat(tokenizer: &Tokenizer, stop: Vec<String>, tools: &[String]) -> Result<Self> {
        let parser = HarmonyParser::new(tokenizer).ok_or_else(|| {
            Error::argument("tokenizer", "has no control tokens of the Harmony format")
        })?;
        Ok(Self::Chat(Box::new(parser.with_stop(stop)?.with_tools(tools))))
    }

    pub(super) fn text(tokenizer: &Tokenizer, visible: Visible, stop: &[String]) -> Result<Self> {
        Ok(Self::Text(VisibleText::new(tokenizer, visible, stop)?))
    }

    /// Takes a token, which may be one that stops. Adds what it makes known. Returns where in the
    /// turn it stands, and whether a stop string ended the answer.
    pub(super) fn push(
        &mut self,
        token: Token,
        stops: bool,
        events: &mut Vec<EngineEvent>,
    ) -> Result<(Part, bool)> {
        let (made, stopped) = match self {
            Self::Chat(parser) => {
                let made: Vec<_> =
                    parser.push(token.id)?.into_iter().map(EngineEvent::Chat).collect();
                (made, parser.stopped().is_some())
            }
            Self::Text(text) => {
                let (text, stopped) = text.push(token.id, stops)?;
                (of_text(text).collect(), stopped)
            }
        };
        let part = match self {
            Self::Chat(parser) => parser.part_of(token.id),
            Self::Text(text) => text.part_of(token.id),
        };
        if token.logprob.is_some() {
            events.push(EngineEvent::Token(TokenEvent { token, part }));
        }
        events.extend(made);
        Ok((part, stopped))
    }

    /// What was held back. Returns the reason, which a stop string that is complete only now
    /// changes.
    pub(super) fn finish(
        &mut self,
        reason: FinishReason,
        events: &mut Vec<EngineEvent>,
    ) -> FinishReason {
        match self {
            Self::Chat(parser) => {
                let made = parser.finish(reason.into());
                let end = ChatEvent::TurnEnd { reason: EndReason::StopString };
                let stopped = made.last() == Some(&end);
                events.extend(made.into_iter().map(EngineEvent::Chat));
                if stopped { FinishReason::Stop } else { reason }
            }
            Self::Text(text) => {
                let (text, stopped) = text.finish();
                events.extend(of_text(text));
                if stopped { FinishReason::Stop } else { reason }
            }
        }
    }
}

fn of_text(text: String) -> impl Iterator<Item = EngineEvent> {
    Some(text).filter(|text| !text.is_empty()).into_iter().map(EngineEvent::Text)
}
