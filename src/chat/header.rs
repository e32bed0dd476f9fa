//! The header of a message: what its words mean, and where it can no longer be a header.
//!
//! A header is ASCII words between white space and control tokens. The grammar is generous, since
//! models are: the parts may come in any order, and one word may be unknown. What does not fit is
//! the text of a message whose `<|message|>` is missing, and it begins with the first word that
//! was not understood.

/// Bytes of a header at most: nothing is held back beyond them.
const LIMIT: usize = 512;

const CHANNELS: [&str; 3] = ["analysis", "commentary", "final"];
const ROLES: [&str; 5] = ["assistant", "user", "system", "developer", "tool"];
const CONTENT_TYPES: [&str; 2] = ["json", "code"];
const FUNCTIONS: &str = "functions.";
const TO: &str = "to=";

/// A header as far as it has come.
#[derive(Debug, Clone, Default)]
pub(super) struct Header {
    /// Its text, without control tokens.
    pub(super) text: Vec<u8>,
    /// Control tokens inside, with where in the text they stand.
    marks: Vec<(usize, Mark)>,
    /// Begun by `<|start|>`, so that a role comes first.
    started: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    Channel,
    Constrain,
}

/// What a header says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Fields {
    pub(super) role: Option<String>,
    pub(super) channel: Option<String>,
    pub(super) recipient: Option<String>,
    pub(super) content_type: Option<String>,
}

/// A header, read.
#[derive(Debug, Default)]
pub(super) struct Reading {
    /// What it says, an unknown word taken as the content type, the channel or the role.
    pub(super) fields: Fields,
    /// What it says before the first word that was not understood, and where that word begins.
    pub(super) unknown: Option<(usize, Fields)>,
    /// The whole cannot be a header, whatever follows.
    pub(super) broken: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The first word, before any control token.
    First,
    Channel,
    ContentType,
    /// After `to=` and a space.
    Recipient,
    Other,
}

impl Header {
    /// The header of a message after `<|start|>`; `before` is white space from in front of it.
    pub(super) fn started(before: Vec<u8>) -> Self {
        Self { text: before, marks: Vec::new(), started: true }
    }

    pub(super) fn mark(&mut self, mark: Mark) {
        self.marks.push((self.text.len(), mark));
    }

    /// True while nothing but its text says that this is a header.
    pub(super) fn in_doubt(&self) -> bool {
        !self.started && self.marks.is_empty()
    }

    pub(super) fn is_blank(&self) -> bool {
        self.text.trim_ascii().is_empty()
    }

    pub(super) fn read(&self) -> Reading {
        let mut reading = Reading::default();
        // Read only up to the limit, so that it does not matter how far beyond it a token reaches.
        let text = self.text.get(..LIMIT).unwrap_or(&self.text);
        let too_long = text.len() < self.text.len();
        let mut marks = self.marks.iter().copied().peekable();
        let mut place = Place::First;
        let mut at = 0;
        loop {
            at += text.get(at..).map_or(0, spaces);
            while let Some((_, mark)) = marks.next_if(|&(mark_at, _)| mark_at <= at) {
                place = match mark {
                    Mark::Channel => Place::Channel,
                    Mark::Constrain => Place::ContentType,
                };
            }
            let end = marks.peek().map_or(text.len(), |&(at, _)| at);
            let Some(rest) = text.get(at..end).filter(|rest| !rest.is_empty()) else { break };
            let word = word(rest);
            let next = at + word.len();
            let at_end = next == text.len();
            if word.is_empty() || (at_end && too_long) {
                // No word of a header, so the text begins here.
                reading.unknown.get_or_insert((at, reading.fields.clone()));
                reading.broken = true;
                break;
            }
            let before = reading.fields.clone();
            let known = self.take(word, place, at_end, &mut reading.fields);
            if !known {
                // A word that has only begun is given the benefit of the doubt.
                let settled = !(at_end && may_grow(word));
                reading.broken = settled && (self.in_doubt() || reading.unknown.is_some());
                reading.unknown.get_or_insert((at, before));
                if reading.broken {
                    break;
                }
            }
            place = if word == TO { Place::Recipient } else { Place::Other };
            at = next;
        }
        if too_long && !reading.broken {
            reading.broken = true;
            reading.unknown.get_or_insert((text.len(), reading.fields.clone()));
        }
        reading
    }

    /// Takes one word into `fields`; false when it is not understood.
    fn take(&self, word: &str, place: Place, at_end: bool, fields: &mut Fields) -> bool {
        let doubt = self.in_doubt();
        let text = || Some(word.to_owned());
        if let Some(name) = word.strip_prefix(TO) {
            if name.is_empty() {
                return at_end || !doubt;
            }
            let again = fields.recipient.is_some();
            fields.recipient = Some(name.to_owned());
            return !(again && doubt);
        }
        let assistants = word.strip_prefix("assistant").filter(|name| CHANNELS.contains(name));
        match place {
            Place::Recipient => {
                fields.recipient = text();
                true
            }
            Place::Channel => {
                fields.channel = text();
                CHANNELS.contains(&word)
            }
            Place::ContentType => {
                fields.content_type = text();
                true
            }
            Place::First if doubt && word != "assistant" && assistants.is_none() => {
                fields.channel = text();
                CHANNELS.contains(&word)
            }
            Place::First if CHANNELS.contains(&word) => {
                fields.channel = text();
                true
            }
            Place::First => {
                fields.role = text();
                if let Some(channel) = assistants {
                    fields.role = Some("assistant".into());
                    fields.channel = Some(channel.to_owned());
                }
                // A tool speaks in its own name.
                assistants.is_some() || ROLES.contains(&word) || word.contains('.')
            }
            Place::Other if fields.channel.is_none() && CHANNELS.contains(&word) => {
                fields.channel = text();
                true
            }
            Place::Other if word.starts_with(FUNCTIONS) && fields.recipient.is_none() && !doubt => {
                fields.recipient = text();
                true
            }
            Place::Other => {
                let known = CONTENT_TYPES.contains(&word)
                    && (!doubt || fields.channel.is_some() || fields.recipient.is_some());
                if known || fields.content_type.is_none() {
                    fields.content_type = text();
                }
                known
            }
        }
    }
}

/// True when `word` may be the beginning of a word that every header may have.
pub(super) fn may_grow(word: &str) -> bool {
    let beginnings = CHANNELS.iter().chain(&CONTENT_TYPES).chain(&[TO, FUNCTIONS]);
    let rest = word.strip_prefix("assistant").unwrap_or(word);
    "assistant".starts_with(word) || beginnings.into_iter().any(|whole| whole.starts_with(rest))
}

fn spaces(text: &[u8]) -> usize {
    text.iter().take_while(|byte| byte.is_ascii_whitespace()).count()
}

/// The word that `text` begins with; empty where no header has such a character.
fn word(text: &[u8]) -> &str {
    let part = |byte: &&u8| byte.is_ascii_alphanumeric() || b"_-./".contains(byte);
    let named = text.strip_prefix(TO.as_bytes());
    let prefix = if named.is_some() { TO.len() } else { 0 };
    let length = prefix + named.unwrap_or(text).iter().take_while(part).count();
    text.get(..length).and_then(|word| str::from_utf8(word).ok()).unwrap_or_default()
}
