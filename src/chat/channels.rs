//! Which part of the model's answer a token belongs to.
//!
//! Format: OpenAI Harmony, <https://cookbook.openai.com/articles/openai-harmony>.

use crate::error::Result;
use crate::tokenizer::Tokenizer;

/// The channel of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Channel {
    /// Reasoning, not meant for the user.
    Analysis,
    /// Tool calls, and remarks to the user before them.
    Commentary,
    /// The answer.
    Final,
}

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    /// A special token; no text.
    Control,
    /// Text of a message header: role, channel, recipient, content type.
    Header,
    /// Text of a message in this channel.
    Body(Channel),
}

/// Sorts the tokens of one answer into control tokens, headers and bodies.
///
/// The prompt is taken to end in `<|start|>assistant`, so the answer begins inside a header.
/// Output that does not keep to the format is shown rather than lost: text without any header, a
/// header without a channel and a channel of another name all count as [`Channel::Final`], except
/// that a message to a recipient without a channel is [`Channel::Commentary`].
#[derive(Debug, Clone)]
pub struct ChannelSplitter {
    tokenizer: Tokenizer,
    ids: Ids,
    state: State,
    /// Header text since `<|start|>`, up to the first control token.
    role: Vec<u8>,
    /// Header text since `<|channel|>`, if that has come.
    channel: Option<Vec<u8>>,
    /// Tokens at the start of the answer that may be a header or a body.
    undecided: Vec<u32>,
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
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// At the start of the answer, where a recipient, a channel or plain text may follow.
    Primed,
    Header,
    Body(Channel),
    /// After the end of a message.
    Between,
}

impl ChannelSplitter {
    /// A splitter for one answer; `None` when the tokenizer lacks Harmony's control tokens.
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
            },
            tokenizer: tokenizer.clone(),
            state: State::Primed,
            role: Vec::new(),
            channel: None,
            undecided: Vec::new(),
        })
    }

    /// Takes the next token and returns what is now known: nothing while the first tokens of an
    /// answer may be either a recipient or plain text, usually one token, and several when such a
    /// doubt is settled. Every token comes out once and in order.
    ///
    /// # Errors
    /// [`crate::Error::Tokenizer`] when the id is outside the vocabulary.
    pub fn push(&mut self, id: u32) -> Result<Vec<(u32, Part)>> {
        if self.tokenizer.is_special(id) {
            let ids = self.ids;
            let ends = [ids.start, ids.end, ids.ret, ids.call].contains(&id);
            let mut parts =
                self.settle(if ends { Part::Body(Channel::Final) } else { Part::Header });
            self.control(id);
            parts.push((id, Part::Control));
            return Ok(parts);
        }
        let bytes = self.tokenizer.token_bytes(id)?;
        Ok(match self.state {
            State::Primed => {
                self.role.extend_from_slice(bytes);
                self.undecided.push(id);
                if may_be_recipient(&self.role) {
                    Vec::new()
                } else {
                    self.state = State::Body(Channel::Final);
                    self.settle(Part::Body(Channel::Final))
                }
            }
            State::Header => {
                self.channel.as_mut().unwrap_or(&mut self.role).extend_from_slice(bytes);
                vec![(id, Part::Header)]
            }
            State::Body(channel) => vec![(id, Part::Body(channel))],
            State::Between => {
                self.state = State::Body(Channel::Final);
                vec![(id, Part::Body(Channel::Final))]
            }
        })
    }

    /// The tokens still in doubt at the end of the answer: plain text, since no header followed.
    pub fn finish(&mut self) -> Vec<(u32, Part)> {
        self.settle(Part::Body(Channel::Final))
    }

    /// Whom the current message is for, such as `functions.get_weather`, as far as its header has
    /// come.
    pub fn recipient(&self) -> Option<String> {
        let channel = self.channel.as_deref().unwrap_or_default();
        recipient(channel).or_else(|| recipient(&self.role))
    }

    fn settle(&mut self, part: Part) -> Vec<(u32, Part)> {
        self.undecided.drain(..).map(|id| (id, part)).collect()
    }

    fn control(&mut self, id: u32) {
        let ids = self.ids;
        if id == ids.start {
            self.state = State::Header;
            self.role.clear();
            self.channel = None;
        } else if id == ids.channel {
            if !matches!(self.state, State::Primed | State::Header) {
                // A header whose start token is missing.
                self.role.clear();
            }
            self.state = State::Header;
            self.channel = Some(Vec::new());
        } else if id == ids.message {
            if !matches!(self.state, State::Body(_)) {
                self.state = State::Body(self.named_channel());
            }
        } else if Some(id) == ids.constrain {
            // What follows is the content type: still the header, apart from the channel's name.
            if let (State::Primed | State::Header, Some(channel)) = (self.state, &mut self.channel)
            {
                channel.push(b' ');
            }
            if self.state == State::Primed {
                self.state = State::Header;
            }
        } else if id == ids.end || id == ids.ret || id == ids.call {
            self.state = State::Between;
        }
    }

    fn named_channel(&self) -> Channel {
        let text = String::from_utf8_lossy(self.channel.as_deref().unwrap_or_default());
        match text.split_whitespace().next() {
            Some("analysis") => Channel::Analysis,
            Some("commentary") => Channel::Commentary,
            None if self.recipient().is_some() => Channel::Commentary,
            _ => Channel::Final,
        }
    }
}

/// True while `text` may still be the recipient that a header begins with (` to=name`).
fn may_be_recipient(text: &[u8]) -> bool {
    let text = text.trim_ascii_start();
    text.starts_with(b"to=") || b"to=".starts_with(text)
}

fn recipient(header: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(header);
    let name = text.split_whitespace().find_map(|word| word.strip_prefix("to="))?;
    Some(name.to_owned())
}
