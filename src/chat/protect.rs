//! Keeps text from becoming control tokens.
//!
//! A chat template joins control tokens and the conversation's own text into one string, in which
//! `<|end|>` written by a user looks like the template's. Before rendering, every character of the
//! conversation that a special token could begin with, and every punctuation mark that occurs in
//! one (`<`, `|`, `>`), is therefore replaced by a Unicode noncharacter that occurs nowhere else;
//! in the rendered string only the template's own control tokens are then spelled out. The text
//! between them gets its characters back and is tokenized as ordinary text.
//!
//! What a template itself builds around a text, as in `<|{{ role }}|>`, is the template's.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::error::Result;
use crate::tokenizer::Tokenizer;

/// The noncharacters that Unicode sets aside for use inside a program.
const RESERVED: std::ops::RangeInclusive<char> = '\u{FDD0}'..='\u{FDEF}';
/// Where marks are taken from when a text uses those: the private planes.
const PRIVATE: std::ops::RangeInclusive<char> = '\u{F0000}'..='\u{10FFFD}';

/// The conversation uses so many of the characters reserved for marks that too few are left.
#[derive(Debug)]
pub(super) struct NoMarks;

/// Characters that occur neither in the `templates` nor in any of `values`.
pub(super) fn unused<'t>(
    templates: impl Iterator<Item = &'t str>,
    values: &[&Value],
) -> Box<dyn Iterator<Item = char>> {
    let mut used = BTreeSet::new();
    let mut note = |text: &str| used.extend(text.chars().filter(|&c| is_candidate(c)));
    templates.for_each(&mut note);
    for value in values {
        visit(value, &mut note);
    }
    Box::new(RESERVED.chain(PRIVATE).filter(move |c| !used.contains(c)))
}

/// The marks for one rendering.
pub(super) struct Protection<'a> {
    tokenizer: &'a Tokenizer,
    /// Characters of special tokens, and what stands in for each.
    marks: Vec<(char, char)>,
    /// Stands before texts that `tojson` leaves as they are.
    verbatim: char,
}

impl<'a> Protection<'a> {
    /// Takes marks from the `unused` characters.
    pub(super) fn new(
        tokenizer: &'a Tokenizer,
        mut unused: impl Iterator<Item = char>,
    ) -> std::result::Result<Self, NoMarks> {
        let verbatim = unused.next().ok_or(NoMarks)?;
        let mut originals = BTreeSet::new();
        for (name, _) in tokenizer.special_tokens() {
            originals.extend(name.chars().next());
            originals.extend(name.chars().filter(|&c| is_punctuation(c)));
        }
        let marks: Vec<_> = originals.iter().copied().zip(unused).collect();
        if marks.len() < originals.len() {
            return Err(NoMarks);
        }
        Ok(Self { tokenizer, marks, verbatim })
    }

    /// The character that stands before texts to be left as they are.
    pub(super) fn verbatim(&self) -> char {
        self.verbatim
    }

    /// All marks.
    pub(super) fn marks(&self) -> Vec<char> {
        self.marks.iter().map(|&(_, mark)| mark).collect()
    }

    /// A copy of `value` in which no string can take part in a special token.
    pub(super) fn value(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.text(text)),
            Value::Array(items) => Value::Array(items.iter().map(|v| self.value(v)).collect()),
            Value::Object(map) => Value::Object(self.map(map)),
            simple => simple.clone(),
        }
    }

    /// As [`Protection::value`], for the names of a mapping too.
    pub(super) fn map(&self, map: &Map<String, Value>) -> Map<String, Value> {
        map.iter().map(|(name, value)| (self.text(name), self.value(value))).collect()
    }

    /// Marked is not only what spells a whole special token: a template may join, cut and replace
    /// texts, and halves of a token may then meet each other or the template's own text.
    fn text(&self, text: &str) -> String {
        let mark = |c| self.marks.iter().find(|&&(first, _)| first == c).map(|&(_, mark)| mark);
        text.chars().map(|c| mark(c).unwrap_or(c)).collect()
    }

    /// Token ids of a string rendered from protected values: special tokens become control tokens,
    /// everything else is text.
    pub(super) fn encode(&self, rendered: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        let mut begin = 0;
        let mut from = 0;
        while let Some((at, c)) = self.next_first(rendered, from) {
            let rest = rendered.get(at..).unwrap_or_default();
            let special =
                self.tokenizer.special_tokens().iter().find(|(name, _)| rest.starts_with(name));
            match special {
                Some((name, id)) => {
                    self.encode_text(rendered.get(begin..at).unwrap_or_default(), &mut ids)?;
                    ids.push(*id);
                    begin = at + name.len();
                    from = begin;
                }
                None => from = at + c.len_utf8(),
            }
        }
        self.encode_text(rendered.get(begin..).unwrap_or_default(), &mut ids)?;
        Ok(ids)
    }

    /// The next place from `from` on where a special token may begin.
    fn next_first(&self, text: &str, from: usize) -> Option<(usize, char)> {
        let rest = text.get(from..)?;
        let is_first = |c: char| self.marks.iter().any(|&(first, _)| first == c);
        let at = rest.find(is_first)?;
        Some((from + at, rest.get(at..)?.chars().next()?))
    }

    fn encode_text(&self, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        if !text.is_empty() {
            ids.extend(self.tokenizer.encode(&self.restore(text), false)?);
        }
        Ok(())
    }

    /// The text with the original characters back in place of the marks.
    pub(super) fn restore(&self, text: &str) -> String {
        let original = |c| self.marks.iter().find(|&&(_, mark)| mark == c).map(|&(first, _)| first);
        text.chars().filter(|&c| c != self.verbatim).map(|c| original(c).unwrap_or(c)).collect()
    }
}

fn is_candidate(c: char) -> bool {
    RESERVED.contains(&c) || PRIVATE.contains(&c)
}

/// Letters stay, since templates compare roles and types; so does white space, since they trim.
fn is_punctuation(c: char) -> bool {
    !c.is_alphanumeric() && !c.is_whitespace() && c != '_'
}

/// Calls `note` for every string in `value`, names included.
fn visit(value: &Value, note: &mut impl FnMut(&str)) {
    match value {
        Value::String(text) => note(text),
        Value::Array(items) => items.iter().for_each(|item| visit(item, note)),
        Value::Object(map) => {
            for (name, value) in map {
                note(name);
                visit(value, note);
            }
        }
        _ => {}
    }
}
