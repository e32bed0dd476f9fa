//! The model's turn, token by token, as [`ChatEvent`]s.
//!
//! Format: OpenAI Harmony, <https://cookbook.openai.com/articles/openai-harmony>. A turn is
//! messages, each with a header, `<|message|>`, and a text that `<|end|>`, `<|call|>` or
//! `<|return|>` ends:
//!
//! ```text
//! <|channel|>analysis<|message|>The user asks…<|end|>
//! <|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city":"Paris"}<|call|>
//! ```
//!
//! The prompt ends in `<|start|>assistant`, so a turn begins inside a header. A header's parts may
//! come in any order: `to=` before or after the channel, `<|constrain|>` or not, white space or not.
//!
//! # What becomes of a message
//!
//! | header | events |
//! |---|---|
//! | a recipient, on any channel | [`ToolCallStarted`], [`ArgumentsDelta`]…, [`ToolCallFinished`] |
//! | `analysis` | [`AnalysisDelta`]… |
//! | `commentary` | [`CommentaryDelta`]… |
//! | `final` | [`FinalDelta`]… |
//!
//! and then one [`MessageEnd`]. The recipients `assistant`, `user` and `all` are no tools.
//!
//! # Output that does not keep to the format
//!
//! A model at temperature 1 gets a header wrong every now and then. Its text is never lost, and
//! nothing but text is shown. "Text" below is given by the channel that is known, and as the final
//! answer when none is; [`Defect`] in [`MessageEnd`] says what was wrong.
//!
//! | the model writes | the events | defect |
//! |---|---|---|
//! | text without any header, first or after the end of a message | text | `no_header` |
//! | a recipient or a channel's name without any control token, and then the end | text; before `<\|call\|>` a call without arguments, before `<\|start\|>` a header | `no_header`, `cut_header` |
//! | `<\|message\|>` without a channel | text, or a call when there is a recipient | `no_channel` |
//! | an unknown channel | text as the final answer, or a call when there is a recipient | `unknown_channel` |
//! | the name of a channel without `<\|channel\|>`, then `<\|message\|>` | as with it | |
//! | a recipient that was not offered | a call with `known: false` | |
//! | several recipients, or channels | the last counts | |
//! | a header with more than one unknown word, or with a character that no header has (`?`, `{`, `é`…) | the header ends there: the rest, from the first unknown word on, is text | `no_message_token` |
//! | a header of more than 512 bytes | the same, from the word that reaches beyond them on | `no_message_token` |
//! | a header with one unknown word, then `<\|message\|>` | the word is part of the header | |
//! | a header with one unknown word that ends there | the word and what follows is text; but not the beginning of a known word, such as `fin` | `no_message_token` |
//! | a header that ends by a control token (`<\|end\|>`, `<\|call\|>`, `<\|return\|>`, `<\|start\|>`) | none, or with a recipient a call without arguments | `cut_header` |
//! | a header that the end of the stream cuts off | none: the recipient may not be complete | `cut_header` |
//! | a header of another role | by its channel; as analysis when it has none | `other_role` |
//! | `<\|call\|>` after a message for no tool | text | `no_recipient` |
//! | arguments that are not JSON | a call with `valid_json: false` | |
//! | `<\|start\|>` or `<\|channel\|>` inside a text | the message ends and a header begins | `not_ended` |
//! | `<\|start\|>` twice | as once | |
//! | other control tokens inside a text | none | |
//! | the end of the stream inside a text | text so far | `not_ended` |
//!
//! The words of a message's header are in [`MessageEnd`]. So the headers and texts of all messages,
//! joined, are what the model wrote without control tokens, each character once; only a stop
//! string, and what follows it, is left out. A message that ends in half a character ends in U+FFFD.
//!
//! [`ToolCallStarted`]: ChatEvent::ToolCallStarted
//! [`ArgumentsDelta`]: ChatEvent::ArgumentsDelta
//! [`ToolCallFinished`]: ChatEvent::ToolCallFinished
//! [`AnalysisDelta`]: ChatEvent::AnalysisDelta
//! [`CommentaryDelta`]: ChatEvent::CommentaryDelta
//! [`FinalDelta`]: ChatEvent::FinalDelta
//! [`MessageEnd`]: ChatEvent::MessageEnd

use std::collections::BTreeSet;

use serde::de::IgnoredAny;

use super::events::{ChatEvent, Defect, EndReason, Part};
use super::header::{Fields, Header, Mark, Reading, may_grow};
use crate::error::Result;
use crate::stop::StopMatcher;
use crate::tokenizer::{Tokenizer, take_characters};

/// Recipients that are no tools.
const NO_TOOLS: [&str; 3] = ["assistant", "user", "all"];

/// Takes one turn of the model apart. Made fresh for each turn; the prompt is taken to end in
/// `<|start|>assistant`. See the [module](self) for what it makes of what.
#[derive(Debug, Clone)]
pub struct HarmonyParser {
    tokenizer: Tokenizer,
    ids: Ids,
    tools: Option<BTreeSet<String>>,
    stop: StopMatcher,
    state: State,
    /// Calls started so far.
    calls: usize,
}

#[derive(Debug, Clone, Copy)]
struct Ids {
    start: u32,
    channel: u32,
    message: u32,
    end: u32,
    ret: u32,
    call: u32,
    constrain: Option<u32>,
    endoftext: Option<u32>,
}

#[derive(Debug, Clone)]
enum State {
    Header(Header),
    Body(Body),
    /// After the turn's end, or a stop string.
    Over,
}

/// A message whose header is complete.
#[derive(Debug, Clone)]
struct Body {
    kind: Kind,
    fields: Fields,
    header: String,
    defect: Option<Defect>,
    /// The beginning of a character.
    pending: Vec<u8>,
}

#[derive(Debug, Clone)]
enum Kind {
    Analysis,
    Commentary,
    Final,
    Call { index: usize, name: String, arguments: String },
}

/// What ends a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// `<|end|>`, `<|return|>` or `<|endoftext|>`.
    End,
    Call,
    /// `<|start|>` or `<|channel|>` of another message.
    Next,
    StopString,
    EndOfStream,
}

impl HarmonyParser {
    /// A parser for one turn; `None` when the tokenizer lacks Harmony's control tokens.
    pub fn new(tokenizer: &Tokenizer) -> Option<Self> {
        let id = |name| tokenizer.token_id(name).filter(|&id| tokenizer.is_special(id));
        Some(Self {
            ids: Ids {
                start: id("<|start|>")?,
                channel: id("<|channel|>")?,
                message: id("<|message|>")?,
                end: id("<|end|>")?,
                ret: id("<|return|>")?,
                call: id("<|call|>")?,
                constrain: id("<|constrain|>"),
                endoftext: id("<|endoftext|>"),
            },
            tokenizer: tokenizer.clone(),
            tools: None,
            stop: StopMatcher::default(),
            state: State::Header(Header::default()),
            calls: 0,
        })
    }

    /// Names the tools that were offered, by which [`ChatEvent::ToolCallStarted`] says whether a
    /// call is for one of them: functions with or without `functions.`, built-in tools as they are
    /// called (`browser.search`, `python`).
    #[must_use]
    pub fn with_tools(mut self, names: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        let names = names.into_iter().map(|name| bare(name.as_ref()).to_owned());
        self.tools = Some(names.collect());
        self
    }

    /// Texts that end the turn when they appear in the final answer. Neither they nor what
    /// follows them is given out.
    ///
    /// # Errors
    /// [`crate::Error::Argument`] when one is empty.
    pub fn with_stop(mut self, stops: Vec<String>) -> Result<Self> {
        self.stop = StopMatcher::new(stops)?;
        Ok(self)
    }

    /// Takes the next token and returns what is certain with it. Text is held back only while it
    /// may be part of a header or the start of a stop string, or is half a character. Gives
    /// nothing more once a stop string was found.
    ///
    /// # Errors
    /// [`crate::Error::Tokenizer`] when the id is outside the vocabulary; the parser is unchanged.
    pub fn push(&mut self, id: u32) -> Result<Vec<ChatEvent>> {
        let mut events = Vec::new();
        if self.tokenizer.is_special(id) {
            self.control(id, &mut events);
        } else {
            let bytes = self.tokenizer.token_bytes(id)?.to_vec();
            self.text(&bytes, &mut events);
        }
        Ok(events)
    }

    /// Ends the turn: what was held back, the end of an open message, and
    /// [`ChatEvent::TurnEnd`]. Of a turn that ends by [`EndReason::Stop`] the parser knows better
    /// whether tools were called or a stop string appeared. A second call gives nothing.
    pub fn finish(&mut self, reason: EndReason) -> Vec<ChatEvent> {
        let mut events = Vec::new();
        let stopped = self.stop.stopped().is_some();
        match std::mem::replace(&mut self.state, State::Over) {
            State::Over if !stopped => return events,
            State::Over => {}
            State::Header(header) => self.cut(header, Ending::EndOfStream, &mut events),
            State::Body(body) => self.end(body, Ending::EndOfStream, &mut events),
        }
        self.state = State::Over;
        // What was held back may have completed a stop string only now.
        let reason = match reason {
            EndReason::Stop if self.stop.stopped().is_some() => EndReason::StopString,
            EndReason::Stop if self.calls > 0 => EndReason::ToolCalls,
            reason => reason,
        };
        self.stop = StopMatcher::default();
        events.push(ChatEvent::TurnEnd { reason });
        events
    }

    /// The stop string that was found, as an index into the list, until the turn is finished.
    pub fn stopped(&self) -> Option<usize> {
        self.stop.stopped()
    }

    /// Where in the turn the token stands that was pushed last.
    pub fn part_of(&self, id: u32) -> Part {
        match &self.state {
            _ if self.tokenizer.is_special(id) => Part::Header,
            State::Header(_) => Part::Header,
            State::Over => Part::Ended,
            State::Body(body) => match &body.kind {
                Kind::Analysis => Part::Analysis,
                Kind::Commentary => Part::Commentary,
                Kind::Final => Part::Final,
                Kind::Call { .. } => Part::ToolCall,
            },
        }
    }

    fn text(&mut self, bytes: &[u8], events: &mut Vec<ChatEvent>) {
        match &mut self.state {
            State::Over => {}
            State::Body(_) => self.body(bytes, events),
            State::Header(header) => {
                header.text.extend_from_slice(bytes);
                let reading = header.read();
                if !reading.broken {
                    return;
                }
                let header = std::mem::take(header);
                if header.in_doubt() {
                    self.open(Fields::default(), Vec::new(), Some(Defect::NoHeader), events);
                    self.body(&header.text, events);
                } else {
                    self.open_broken(header, reading, events);
                }
            }
        }
    }

    /// Begins the text of a message with what of its header is none.
    fn open_broken(&mut self, header: Header, reading: Reading, events: &mut Vec<ChatEvent>) {
        let Some((at, fields)) = reading.unknown else { return };
        let mut head = header.text;
        let text = head.split_off(at.min(head.len()));
        self.open(fields, head, Some(Defect::NoMessageToken), events);
        self.body(&text, events);
    }

    fn control(&mut self, id: u32, events: &mut Vec<ChatEvent>) {
        let ids = self.ids;
        let mark = if id == ids.channel {
            Some(Mark::Channel)
        } else if Some(id) == ids.constrain {
            Some(Mark::Constrain)
        } else {
            None
        };
        let ending = if id == ids.start || id == ids.channel {
            Ending::Next
        } else if id == ids.call {
            Ending::Call
        } else if id == ids.end || id == ids.ret || Some(id) == ids.endoftext {
            Ending::End
        } else if id == ids.message || mark.is_some() {
            // Only in a header do these mean anything.
            if let State::Header(header) = &mut self.state {
                match mark {
                    Some(mark) => header.mark(mark),
                    None => {
                        let header = std::mem::take(header);
                        let fields = header.read().fields;
                        self.open(fields, header.text, None, events);
                    }
                }
            }
            return;
        } else {
            return;
        };
        match std::mem::replace(&mut self.state, State::Over) {
            State::Over => return,
            State::Header(mut header) if mark.is_some() => {
                header.mark(Mark::Channel);
                self.state = State::Header(header);
                return;
            }
            State::Header(header) if id == ids.start && header.is_blank() => {
                self.state = State::Header(Header::started(header.text));
                return;
            }
            State::Header(header) => self.cut(header, ending, events),
            State::Body(body) => self.end(body, ending, events),
        }
        if self.stopped().is_some() {
            return;
        }
        let mut header = Header::default();
        if id == ids.start {
            header = Header::started(Vec::new());
        } else if let Some(mark) = mark {
            header.mark(mark);
        }
        self.state = State::Header(header);
    }

    /// Begins the text of a message.
    fn open(
        &mut self,
        fields: Fields,
        header: Vec<u8>,
        defect: Option<Defect>,
        events: &mut Vec<ChatEvent>,
    ) {
        let other_role = fields.role.as_deref().is_some_and(|role| role != "assistant");
        let channel = fields.channel.as_deref();
        let defect = defect.or(match channel {
            _ if other_role => Some(Defect::OtherRole),
            Some("analysis" | "commentary" | "final") => None,
            Some(_) => Some(Defect::UnknownChannel),
            None => Some(Defect::NoChannel),
        });
        let recipient = fields.recipient.as_deref().filter(|name| !NO_TOOLS.contains(name));
        let kind = match (recipient, channel) {
            (Some(recipient), _) => {
                let index = self.calls;
                self.calls += 1;
                let name = bare(recipient).to_owned();
                let known = self.tools.as_ref().is_none_or(|tools| tools.contains(&name));
                events.push(ChatEvent::ToolCallStarted { index, name: name.clone(), known });
                Kind::Call { index, name, arguments: String::new() }
            }
            (None, Some("analysis")) => Kind::Analysis,
            (None, Some("commentary")) => Kind::Commentary,
            // What the model puts into the user's mouth, or a tool's, is no answer.
            (None, None) if other_role => Kind::Analysis,
            (None, _) => Kind::Final,
        };
        let header = String::from_utf8_lossy(&header).into_owned();
        self.state = State::Body(Body { kind, fields, header, defect, pending: Vec::new() });
    }

    /// More of the text of the open message.
    fn body(&mut self, bytes: &[u8], events: &mut Vec<ChatEvent>) {
        let State::Body(body) = &mut self.state else { return };
        body.pending.extend_from_slice(bytes);
        let text = take_characters(&mut body.pending);
        body.give(text, &mut self.stop, events);
        if self.stopped().is_some()
            && let State::Body(body) = std::mem::replace(&mut self.state, State::Over)
        {
            self.end(body, Ending::StopString, events);
        }
    }

    fn end(&mut self, mut body: Body, ending: Ending, events: &mut Vec<ChatEvent>) {
        let rest = String::from_utf8_lossy(&std::mem::take(&mut body.pending)).into_owned();
        body.give(rest, &mut self.stop, events);
        if let (Kind::Final, None) = (&body.kind, self.stop.stopped()) {
            let held = self.stop.finish();
            body.give_shown(held, events);
        }
        let call = matches!(body.kind, Kind::Call { .. });
        if let Kind::Call { index, name, arguments } = body.kind {
            let valid_json = serde_json::from_str::<IgnoredAny>(&arguments).is_ok();
            events.push(ChatEvent::ToolCallFinished { index, name, arguments, valid_json });
        }
        let defect = body.defect.or(match ending {
            Ending::Next | Ending::EndOfStream => Some(Defect::NotEnded),
            Ending::Call if !call => Some(Defect::NoRecipient),
            _ => None,
        });
        events.push(message_end(body.fields, body.header, defect));
    }

    /// The end of a message in its header.
    fn cut(&mut self, header: Header, ending: Ending, events: &mut Vec<ChatEvent>) {
        if header.text.is_empty() {
            return;
        }
        let mut reading = header.read();
        let is_header = match ending {
            _ if !header.in_doubt() => true,
            Ending::Next => !header.is_blank(),
            Ending::Call => reading.fields.recipient.is_some(),
            _ => false,
        };
        // The beginning of a known word is no text.
        let half = |at: usize| {
            let last = header.text.get(at..).and_then(|word| str::from_utf8(word).ok());
            last.is_some_and(may_grow)
        };
        reading.unknown.take_if(|(at, _)| half(*at));
        let fields = reading.fields.clone();
        let called = fields.recipient.as_deref().is_some_and(|name| !NO_TOOLS.contains(&name));
        if !is_header {
            self.open(Fields::default(), Vec::new(), Some(Defect::NoHeader), events);
            self.body(&header.text, events);
        } else if reading.unknown.is_some() {
            self.open_broken(header, reading, events);
        } else if called && ending != Ending::EndOfStream {
            self.open(fields, header.text, Some(Defect::CutHeader), events);
        } else {
            let text = String::from_utf8_lossy(&header.text).into_owned();
            events.push(message_end(fields, text, Some(Defect::CutHeader)));
        }
        if let State::Body(body) = std::mem::replace(&mut self.state, State::Over) {
            self.end(body, ending, events);
        }
    }
}

impl Body {
    /// Gives out text of this message; of the final answer, what no stop string may begin in.
    fn give(&mut self, text: String, stop: &mut StopMatcher, events: &mut Vec<ChatEvent>) {
        let text = if matches!(self.kind, Kind::Final) { stop.push(&text).0 } else { text };
        self.give_shown(text, events);
    }

    fn give_shown(&mut self, text: String, events: &mut Vec<ChatEvent>) {
        if text.is_empty() {
            return;
        }
        events.push(match &mut self.kind {
            Kind::Analysis => ChatEvent::AnalysisDelta { text },
            Kind::Commentary => ChatEvent::CommentaryDelta { text },
            Kind::Final => ChatEvent::FinalDelta { text },
            Kind::Call { index, arguments, .. } => {
                arguments.push_str(&text);
                ChatEvent::ArgumentsDelta { index: *index, text }
            }
        });
    }
}

fn message_end(fields: Fields, header: String, defect: Option<Defect>) -> ChatEvent {
    let Fields { channel, recipient, content_type, .. } = fields;
    ChatEvent::MessageEnd { channel, recipient, content_type, header, defect }
}

/// The name of a function without its namespace; a built-in tool's as it is.
fn bare(recipient: &str) -> &str {
    recipient.strip_prefix("functions.").unwrap_or(recipient)
}
