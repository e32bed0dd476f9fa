//! Text to token ids and back, from a model's tokenizer.json.
//!
//! GPT-OSS uses byte-level BPE: every token is a string of bytes, and a character may be spread
//! over several tokens. [`Detokenizer`] therefore works on bytes: it keeps back the start of a
//! character until the rest has come, and its output, joined, is what [`Tokenizer::decode`] gives
//! for all the ids at once.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::str;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::IgnoredAny;
use tokenizers::models::bpe::BPE;
use tokenizers::tokenizer::{AddedToken, OffsetType, SplitDelimiterBehavior};
use tokenizers::{Model, PreTokenizedString, PreTokenizer, PreTokenizerWrapper};

use crate::error::{Error, Result, Source};

/// The file that a tokenizer is read from.
const FILE_NAME: &str = "tokenizer.json";
/// Bytes of a tokenizer.json that are read at most; GPT-OSS's own has 28 MB.
const FILE_LIMIT: u64 = 256 << 20;
/// Highest token id accepted, so that a table over all ids stays small; GPT-OSS has 200,019.
const ID_LIMIT: u32 = 1 << 22;

/// A model's tokenizer. Cloning is cheap: clones share the vocabulary.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<tokenizers::Tokenizer>,
    table: Arc<Table>,
    /// Ids below this decode to nothing when they have no token.
    padded: usize,
}

impl Tokenizer {
    /// Reads `tokenizer.json` in a model folder.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the file cannot be read or parsed, is not a byte-level BPE
    /// tokenizer, cannot spell every byte, or declares other ids for its added tokens than they
    /// have.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let path = dir.join(FILE_NAME);
        match read_text(&path, FILE_LIMIT) {
            Ok(text) => Self::from_json(&path, &text),
            Err(source) => Err(Error::Tokenizer {
                path,
                reason: "cannot be read".into(),
                source: Some(source.into()),
            }),
        }
    }

    /// Parses the text of a tokenizer.json; `path` only names it in errors.
    ///
    /// # Errors
    /// As for [`Tokenizer::from_dir`].
    pub fn from_json(path: &Path, text: &str) -> Result<Self> {
        let fail = |reason: String, source: Option<Source>| Error::Tokenizer {
            path: path.to_path_buf(),
            reason,
            source,
        };
        let parse =
            |e: serde_json::Error| fail("is not a tokenizer description".into(), Some(e.into()));
        let description: Description = serde_json::from_str(text).map_err(parse)?;
        if let Some(reason) = description.unsupported() {
            return Err(fail(reason.into(), None));
        }
        let Vocabulary { model } = serde_json::from_str(text).map_err(parse)?;
        let mut inner = tokenizers::Tokenizer::new(model);
        inner.with_pre_tokenizer(description.pre_tokenizer);
        inner
            .add_tokens(description.added_tokens.iter().map(|added| added.token.clone()))
            .map_err(|e| fail("`added_tokens` cannot be used".into(), Some(e)))?;
        for byte in u8::MIN..=u8::MAX {
            let spelled = char_of_byte(byte).to_string();
            if inner.get_model().token_to_id(&spelled).is_none() {
                // The model would silently drop this byte from every text.
                return Err(fail(format!("no token for the byte {byte:#04x}"), None));
            }
        }
        for Added { id, token } in &description.added_tokens {
            let given = inner.token_to_id(&token.content);
            if given != Some(*id) {
                let given = given.map_or("none".into(), |id| id.to_string());
                let reason = format!(
                    "added token `{}` declares the id {id} but its place in the vocabulary is \
                     {given}",
                    token.content
                );
                return Err(fail(reason, None));
            }
        }
        let table = Table::new(path, &inner).map_err(|reason| fail(reason, None))?;
        let padded = table.len();
        Ok(Self { inner: Arc::new(inner), table: Arc::new(table), padded })
    }

    /// The same tokenizer for a model with `vocab_size` logits.
    ///
    /// A model may have more logits than the tokenizer has tokens: 201,088 and 200,019 for
    /// GPT-OSS, rounded up for the hardware. The ids in between were never trained and stand for
    /// no text, so they decode to nothing: one of them, sampled by mischance, must not cost the
    /// user the answer. Ids from `vocab_size` on remain errors.
    #[must_use]
    pub fn padded_to(mut self, vocab_size: usize) -> Self {
        self.padded = vocab_size.max(self.table.len());
        self
    }

    /// One more than the highest token id.
    pub fn vocab_size(&self) -> usize {
        self.table.len()
    }

    /// Token ids of `text`. With `special`, names of special tokens in the text
    /// (`<|start|>`) become those tokens; without, they are ordinary text, as is right for
    /// everything that a user or a tool wrote. Nothing is added before or after.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the tokenizer's own rules fail on the text.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let ids = if special {
            self.inner.encode_fast(text, false).map(|encoding| encoding.get_ids().to_vec())
        } else {
            self.encode_text(text)
        };
        ids.map_err(|source| Error::Tokenizer {
            path: self.table.path.clone(),
            reason: "cannot encode this text".into(),
            source: Some(source),
        })
    }

    /// The steps of the tokenizer without the one that looks for added tokens.
    fn encode_text(&self, text: &str) -> std::result::Result<Vec<u32>, Source> {
        let mut pieces = PreTokenizedString::from(text);
        if let Some(pre_tokenizer) = self.inner.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut pieces)?;
        }
        let model = self.inner.get_model();
        pieces.tokenize(|piece| model.tokenize(piece.get()))?;
        Ok(pieces.into_encoding(None, 0, OffsetType::None)?.get_ids().to_vec())
    }

    /// The text of `ids`; with `skip_special`, special tokens are left out. Bytes that are not
    /// UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] naming the first id that is outside the vocabulary.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        let mut bytes = Vec::new();
        for &id in ids {
            bytes.extend_from_slice(self.table.text(id, skip_special, self.padded)?);
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The bytes that token `id` stands for, special or not: part of a character, or several.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the id is outside the vocabulary.
    pub fn token_bytes(&self, id: u32) -> Result<&[u8]> {
        self.table.text(id, false, self.padded)
    }

    /// The id of the token that is spelled exactly so, such as `<|return|>`.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// True for control tokens, which are not part of any text.
    pub fn is_special(&self, id: u32) -> bool {
        self.table.special.contains(&id)
    }

    /// Spelling and id of every special token; a token comes before any that is a prefix of it.
    pub fn special_tokens(&self) -> &[(String, u32)] {
        &self.table.specials
    }

    /// A decoder for a stream of ids.
    pub fn stream(&self, skip_special: bool) -> Detokenizer {
        Detokenizer {
            table: Arc::clone(&self.table),
            padded: self.padded,
            skip_special,
            pending: Vec::new(),
        }
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("path", &self.table.path)
            .field("vocab_size", &self.vocab_size())
            .finish_non_exhaustive()
    }
}

/// Turns ids into text one at a time. Each token costs time proportional to its own bytes, however
/// long the stream has become.
#[derive(Debug, Clone)]
pub struct Detokenizer {
    table: Arc<Table>,
    padded: usize,
    skip_special: bool,
    /// The start of a character whose other bytes have not come yet: three bytes at most.
    pending: Vec<u8>,
}

impl Detokenizer {
    /// The text that is certain after this id: empty while a character is incomplete.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the id is outside the vocabulary; the stream is unchanged.
    pub fn push(&mut self, id: u32) -> Result<String> {
        let bytes = self.table.text(id, self.skip_special, self.padded)?;
        self.pending.extend_from_slice(bytes);
        Ok(take_characters(&mut self.pending))
    }

    /// What is left at the end of the stream: U+FFFD when the last character never became
    /// complete, else nothing. The detokenizer is then as new.
    pub fn finish(&mut self) -> String {
        let rest = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        rest
    }

    /// True while a character has begun and not ended.
    pub fn is_incomplete(&self) -> bool {
        !self.pending.is_empty()
    }
}

/// Takes from `bytes` all that is decided, with U+FFFD for what can no longer become UTF-8, and
/// leaves the start of a character that later bytes may complete. Applied to the pieces of a byte
/// string in turn, it gives what `String::from_utf8_lossy` gives for the whole.
pub(crate) fn take_characters(bytes: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut rest = bytes.as_slice();
    loop {
        match str::from_utf8(rest) {
            Ok(valid) => {
                text.push_str(valid);
                rest = &[];
                break;
            }
            Err(error) => {
                let (valid, after) = rest.split_at(error.valid_up_to());
                text.push_str(str::from_utf8(valid).unwrap_or_default());
                let Some(bad) = error.error_len() else {
                    rest = after;
                    break;
                };
                text.push(char::REPLACEMENT_CHARACTER);
                rest = after.get(bad..).unwrap_or_default();
            }
        }
    }
    let kept = rest.len();
    bytes.drain(..bytes.len().saturating_sub(kept));
    text
}

/// What each id stands for.
#[derive(Debug)]
struct Table {
    path: PathBuf,
    /// The bytes of all tokens, in the order of their ids.
    bytes: Vec<u8>,
    /// For each id, where its bytes end; they begin where those of the id before end.
    ends: Vec<usize>,
    special: HashSet<u32>,
    specials: Vec<(String, u32)>,
}

impl Table {
    fn new(path: &Path, inner: &tokenizers::Tokenizer) -> std::result::Result<Self, String> {
        let highest = inner.get_vocab(true).into_values().max().unwrap_or(0);
        if highest > ID_LIMIT {
            return Err(format!("the token id {highest} is above the limit of {ID_LIMIT}"));
        }
        let added = inner.get_added_vocabulary();
        let mut bytes = Vec::new();
        let mut ends = Vec::new();
        for id in 0..=highest {
            let token = added.simple_id_to_token(id).or_else(|| inner.get_model().id_to_token(id));
            if let Some(token) = token {
                match token.chars().map(byte_of_char).collect::<Option<Vec<u8>>>() {
                    Some(spelled) => bytes.extend(spelled),
                    // Not in the byte alphabet: an added token, spelled as it reads.
                    None => bytes.extend_from_slice(token.as_bytes()),
                }
            }
            ends.push(bytes.len());
        }
        let mut specials: Vec<(String, u32)> = added
            .get_added_tokens_decoder()
            .iter()
            .filter(|(_, token)| token.special && !token.content.is_empty())
            .map(|(&id, token)| (token.content.clone(), id))
            .collect();
        specials.sort_by(|a, b| b.cmp(a));
        let special = specials.iter().map(|&(_, id)| id).collect();
        Ok(Self { path: path.to_path_buf(), bytes, ends, special, specials })
    }

    fn len(&self) -> usize {
        self.ends.len()
    }

    fn text(&self, id: u32, skip_special: bool, padded: usize) -> Result<&[u8]> {
        let index = usize::try_from(id).unwrap_or(usize::MAX);
        let Some(&end) = self.ends.get(index) else {
            if index < padded {
                return Ok(&[]);
            }
            return Err(Error::Tokenizer {
                path: self.path.clone(),
                reason: format!("the token id {id} is outside the vocabulary of {padded}"),
                source: None,
            });
        };
        if skip_special && self.special.contains(&id) {
            return Ok(&[]);
        }
        let start = index.checked_sub(1).and_then(|i| self.ends.get(i)).copied().unwrap_or(0);
        Ok(self.bytes.get(start..end).unwrap_or_default())
    }
}

/// tokenizer.json without the vocabulary. What the library would do with the rest of it is not
/// asked for: parts that byte-level BPE has no use for can make it panic.
#[derive(Deserialize)]
struct Description {
    #[serde(default)]
    added_tokens: Vec<Added>,
    normalizer: Option<IgnoredAny>,
    pre_tokenizer: Option<PreTokenizerWrapper>,
    decoder: Option<Kind>,
    model: ModelKind,
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    #[serde(flatten)]
    token: AddedToken,
}

#[derive(Deserialize)]
struct Kind {
    #[serde(rename = "type")]
    name: String,
}

#[derive(Deserialize)]
struct ModelKind {
    #[serde(rename = "type")]
    name: Option<String>,
    dropout: Option<f64>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
}

/// The vocabulary of tokenizer.json.
#[derive(Deserialize)]
struct Vocabulary {
    model: BPE,
}

impl Description {
    /// Why this is not byte-level BPE, in which every text is spelled without loss.
    fn unsupported(&self) -> Option<&'static str> {
        let model = &self.model;
        if model.name.as_deref() != Some("BPE") {
            return Some("`model.type` is not BPE");
        }
        if model.dropout.is_some() {
            return Some("`model.dropout` makes encoding random");
        }
        let affixes = [&model.continuing_subword_prefix, &model.end_of_word_suffix];
        if affixes.into_iter().flatten().any(|affix| !affix.is_empty()) {
            return Some("`model` marks the parts of words, which byte-level BPE does not");
        }
        if self.normalizer.is_some() {
            return Some("`normalizer` changes the text before it is encoded");
        }
        if self.decoder.as_ref().is_none_or(|decoder| decoder.name != "ByteLevel") {
            return Some("`decoder.type` is not ByteLevel");
        }
        let steps = match &self.pre_tokenizer {
            Some(PreTokenizerWrapper::Sequence(steps)) => steps.as_ref(),
            Some(step) => std::slice::from_ref(step),
            None => &[],
        };
        let Some((PreTokenizerWrapper::ByteLevel(bytes), splits)) = steps.split_last() else {
            return Some("`pre_tokenizer` does not end in ByteLevel");
        };
        if bytes.add_prefix_space {
            return Some("`pre_tokenizer` adds a space");
        }
        let keeps_text = |step: &PreTokenizerWrapper| match step {
            PreTokenizerWrapper::Split(split) => split.behavior != SplitDelimiterBehavior::Removed,
            _ => false,
        };
        if !splits.iter().all(keeps_text) {
            return Some("`pre_tokenizer` has a step that is not a Split that keeps the text");
        }
        None
    }
}

/// Byte-level BPE spells each byte as one printable character (the alphabet of GPT-2): itself
/// where it is printable in Latin-1, else the next free one from U+0100 on.
fn char_of_byte(byte: u8) -> char {
    let code = u32::from(byte);
    let shown = match byte {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => code,
        0x00..=0x20 => 0x100 + code,
        0x7F..=0xA0 => 0x100 + 33 + (code - 0x7F),
        0xAD => 0x100 + 67,
    };
    char::from_u32(shown).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// The inverse of [`char_of_byte`]; `None` for characters outside the alphabet.
fn byte_of_char(shown: char) -> Option<u8> {
    let code = u32::from(shown);
    let byte = match code {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => code,
        0x100..=0x120 => code - 0x100,
        0x121..=0x142 => code - 0x121 + 0x7F,
        0x143 => 0xAD,
        _ => return None,
    };
    u8::try_from(byte).ok()
}

/// Reads a regular file of at most `limit` bytes as UTF-8.
pub(crate) fn read_text(path: &Path, limit: u64) -> io::Result<String> {
    if !fs::metadata(path)?.is_file() {
        // Opening a pipe would wait for a writer.
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > limit {
        let message = format!("larger than the limit of {limit} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    String::from_utf8(bytes).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.utf8_error()))
}
